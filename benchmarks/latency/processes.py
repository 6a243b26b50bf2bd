"""Processes that are measured: workers that wait for their turn, and cold ones that run once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
COMMAND = Path(sys.executable).with_name("decipher-rt")


class Worker:
    """A step of the waterfall in its own process (``worker.py``), loaded and warmed up, asleep until told to run."""

    def __init__(self, step: str, series: Path, models: Path, threads: int) -> None:
        command = [sys.executable, str(FOLDER / "worker.py"), step, str(series), str(models), str(threads)]
        # To a file: nobody reads a pipe of complaints, and a full one would stop the process.
        self._log = Path(tempfile.mkstemp(prefix=f"worker-{step}-", suffix=".log")[1])
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._said: Any = self._process.stdin
        self._heard: Any = self._process.stdout
        self.ready = self._listen()

    def run(self) -> dict[str, Any]:
        """Run once: ``wall_s``, ``cpu_s``, and ``stages_ms`` where the step has them."""
        return self._tell("run")

    def end(self) -> dict[str, Any]:
        """End the process: ``peak_mib``."""
        said = self._tell("end")
        self._process.wait(timeout=60)
        self._log.unlink()
        return said

    def _tell(self, word: str) -> dict[str, Any]:
        self._said.write(word + "\n")
        self._said.flush()
        return self._listen()

    def _listen(self) -> dict[str, Any]:
        for line in self._heard:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit(f"a worker ended: {self._log.read_text()[-2000:]}")


@dataclass(frozen=True)
class Cold:
    """A process from its start to its end. ``peak_mib`` by the kernel (ru_maxrss)."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    printed: str


def cold(command: Sequence[str]) -> Cold:
    """Run a command once.

    The kernel counts into a process's peak what its parent held when it was started; the benchmark itself stays below
    60 MiB for that reason, and imports no torch.
    """
    with tempfile.TemporaryFile("w+") as complaints:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True)
        heard: Any = process.stdout
        printed = heard.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            complaints.seek(0)
            raise SystemExit(f"{' '.join(command)}: {complaints.read()[-2000:]}")
    return Cold(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, printed)


def cold_step(step: str, bundle: tuple[str, str] | None, series: Path, models: Path, threads: int) -> Cold:
    """Run a step in a new process: series path in, JSON out. Those of decipher-rt are its own command."""
    if bundle is None:
        script = str(FOLDER / "worker.py")
        return cold([sys.executable, script, step, str(series), str(models), str(threads), "--once"])
    name, precision = bundle
    arguments = ["infer", str(series), "-b", str(models / name), "--precision", precision, "--threads", str(threads)]
    return cold([str(COMMAND), *arguments, "--json"])
