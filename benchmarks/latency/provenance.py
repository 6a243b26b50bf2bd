"""Machine, versions and command: what stands beside every figure."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from latency.cache import REPOSITORY

PACKAGES = ("monai", "torch", "dicomsdl", "onnxruntime", "nvidia-dali-cuda130", "numpy", "pydicom")


def provenance() -> dict[str, Any]:
    """Return ``machine``, ``versions``, ``commit``, ``command`` and the load average so far."""
    from decipher_rt.machine import describe_machine, package_version

    def git(*words: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs")
    return {
        "machine": dataclasses.asdict(describe_machine()),
        "versions": {name: version for name in PACKAGES if (version := package_version(name))},
        "commit": git("rev-parse", "HEAD") + (" and changes" if changed else ""),
        "command": shlex.join(["python", *map(_relative, sys.argv)]),
        "load_average": round(os.getloadavg()[1], 2),
    }


def _relative(argument: str) -> str:
    """Write a path of this checkout as one runs it from there; others by their name."""
    name, equals, value = argument.rpartition("=")
    path = Path(value)
    if not path.is_absolute():
        return argument
    return name + equals + (str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else path.name)
