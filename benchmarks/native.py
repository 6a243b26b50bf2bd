"""Cold start, warm latency and streaming of the native SDK beside Python's, on the bundle that ships with the package.

    make .venv/dev sdk && python benchmarks/native.py [--rounds 7] [--json benchmarks/results/native.json]

The volume is the head of the golden case, whole, sagittal, 170 slices of 256x256, 1 mm, uint16, read from one file.
Programs take turns. A cold start is a new process up to its first result, by two clocks: ``start_to_result`` from
before the process is started, and ``open_to_result`` from before the library is opened (before ``import decipher_rt``,
after numpy, in Python), the volume being in memory. The processor time of all threads between the same moments as the
latter is given too: it depends less on what else runs on the machine. The files are in the page cache, and OpenVINO's
compiled graphs in the native cache folder, as on a machine where the program has run once; ``without cache`` is the
first time ever. With ``embedding alone`` no head is loaded. With ``huge pages`` the process was started with
``GLIBC_TUNABLES=glibc.malloc.hugetlb=1`` (glibc 2.35), which a host may set for itself and a library may not. Warm
latency is of later runs in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from decipher_rt.bundle import DEFAULT_BUNDLE
from decipher_rt.engines.threads import usable_cores

REPOSITORY = Path(__file__).parents[1]
BUILD = REPOSITORY / "build" / "sdk"
PACKAGES = ("openvino", "nvidia-dali-cuda130", "onnxruntime", "numpy")
KILLS = 20
# After a program's name: no head is loaded; its memory comes in huge pages, as the system's own allocator can give it.
EMBEDDING_ALONE, HUGE_PAGES = ", embedding alone", ", huge pages"
MALLOC_IN_HUGE_PAGES = "glibc.malloc.hugetlb=1"
COMPARED = ("native", "Python, onnxruntime")
GRID_MM = 2.5  # of the bundle that ships

PYTHON = """
import resource, sys, time
import numpy as np
def used():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return (usage.ru_utime + usage.ru_stime) * 1e3, usage.ru_minflt
bundle, path, rounds, threads, engine = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
heads = () if sys.argv[6:] == ["none"] else None
voxels = np.fromfile(path, np.uint16).reshape(170, 256, 256)
affine = np.array([[1.0, 0, 0, -85], [0, 0, 1, -128], [0, -1, 0, 128], [0, 0, 0, 1]])
cpu, faults = used()
start = time.perf_counter()
from pathlib import Path
from decipher_rt.bundle import open_bundle
from decipher_rt.session import Session
from decipher_rt.volume import Histogram, SeriesInfo, Volume
session = Session(open_bundle(bundle, only_used=True), engine=engine, threads=threads, heads=heads)
opened = time.perf_counter()
def volume():
    return Volume(voxels, affine, SeriesInfo("1.2.3", Path()), histogram=Histogram(0, np.bincount(voxels.ravel())))
session.infer_volume(volume())
first, at = time.perf_counter(), time.monotonic()
cpu_then, faults_then = used()
warm, finish, encode = [], [], []
for _ in range(rounds):
    before = time.perf_counter()
    session.infer_volume(volume())
    warm.append((time.perf_counter() - before) * 1e3)
    stream = session.stream(voxels.shape, voxels.dtype, affine, SeriesInfo("1.2.3", Path()))
    for index, pixels in enumerate(voxels):
        stream.push(pixels, affine[:3, 3] + index * affine[:3, 0])
    before = time.perf_counter()
    timings = stream.finish().timings_ms
    finish.append((time.perf_counter() - before) * 1e3)
    encode.append(timings["encode"] + timings["heads"])
import json
print(json.dumps({"open_ms": (opened - start) * 1e3, "open_to_result_ms": (first - start) * 1e3,
                  "open_to_result_cpu_ms": cpu_then - cpu, "open_to_result_page_faults": faults_then - faults,
                  "first_result_at_s": at, "total_ms": warm, "finish_ms": finish, "finish_encode_ms": encode}))
"""


def write_head(path: Path) -> None:
    """Write the head of the bundle's golden case, sagittal: slices to the left, rows to the feet, columns to the back.

    Its grid of 2.5 mm runs to (S, A, R); each axis is interpolated to 1 mm about the centre, with air beyond the grid.
    """
    with np.load(DEFAULT_BUNDLE / "golden" / "case.npz", allow_pickle=False) as case:
        volume = case["volume"].reshape(case["volume"].shape[-3:]).astype(np.float32)

    def along(size: int, grid: int) -> np.ndarray:
        at = (np.arange(size) - (size - 1) / 2) / GRID_MM + (grid - 1) / 2
        return np.stack([np.interp(at, np.arange(grid), one, left=0, right=0) for one in np.eye(grid)], axis=1)

    s, a, r = (along(size, grid)[::-1] for size, grid in zip((256, 256, 170), volume.shape, strict=True))
    head = np.einsum("hi,wj,dk,ijk->dhw", s, a, r, volume, optimize=True)
    head.clip(0).round().astype(np.uint16).tofile(path)


def run(command: list[str | Path], cache_home: Path, tunables: str = "") -> dict[str, Any]:
    """Run a program that prints one JSON object; the time from its start to its first result is added."""
    environment = {**os.environ, "XDG_CACHE_HOME": os.fspath(cache_home), "GLIBC_TUNABLES": tunables}
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    said = json.loads(done.stdout)
    return {**said, "start_to_result_ms": (said["first_result_at_s"] - start) * 1e3}


def summary(values: list[float]) -> dict[str, float]:
    """Median and smallest."""
    return {"median": round(statistics.median(values), 2), "min": round(min(values), 2)}


def measure(rounds: int, threads: int) -> dict[str, Any]:
    """Let the programs take turns."""
    latency, bundle = BUILD / "tests" / "native" / "latency", DEFAULT_BUNDLE
    with tempfile.TemporaryDirectory() as name:
        cache, voxels = Path(name), Path(name) / "head.raw"
        write_head(voxels)
        native: list[str | Path] = [latency, bundle, voxels, "0", str(threads)]
        python: list[str | Path] = [sys.executable, "-c", PYTHON, bundle, voxels, "0", str(threads)]
        programs: dict[str, list[str | Path]] = {
            "native": [*native, cache / "native"],
            "native without cache": native,
            "Python, onnxruntime": [*python, "onnxruntime"],
            "Python, openvino": [*python, "openvino"],
            f"native{EMBEDDING_ALONE}": [*native, cache / "native", ""],
            f"Python, onnxruntime{EMBEDDING_ALONE}": [*python, "onnxruntime", "none"],
        }
        for command in programs.values():  # fills caches
            run(command, cache)
        turns = [(name, command, "") for name, command in programs.items()]
        turns += [(f"{name}{HUGE_PAGES}", programs[name], MALLOC_IN_HUGE_PAGES) for name in COMPARED]
        cold: dict[str, list[dict[str, Any]]] = {name: [] for name, _, _ in turns}
        for _ in range(rounds):
            for name, command, tunables in turns:
                cold[name].append(run(command, cache, tunables))
        warm = str(3 * rounds)
        warm_native = run([*native[:3], warm, str(threads), cache / "native"], cache)
        warm_python = run([*python[:5], warm, str(threads), "onnxruntime"], cache)
    beyond = [
        whole - encode - heads
        for whole, encode, heads in zip(
            warm_native["finish_ms"], warm_native["finish_encode_ms"], warm_native["finish_heads_ms"], strict=True
        )
    ]
    keys = (
        "start_to_result_ms", "open_ms", "open_to_result_ms", "open_to_result_cpu_ms", "open_to_result_page_faults",
    )  # fmt: skip
    lists = {key: values for key, values in warm_native.items() if isinstance(values, list)}
    return {
        "cold_start": {
            program: {key: summary([row[key] for row in rows]) for key in keys} for program, rows in cold.items()
        },
        "warm_native": {key: summary(values) for key, values in lists.items()},
        "warm_python": {key: summary(warm_python[key]) for key in ("total_ms", "finish_ms")},
        "finish_beyond_encoder_and_heads_ms": summary(beyond),
    }


def measure_kills(kills: int) -> dict[str, float]:
    """Kill the worker at ``kills`` points of a run; ms from the kill to the return of the host's call."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("binding", REPOSITORY / "tests" / "native" / "conftest.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError("tests/native/conftest.py, which holds the binding")
    binding = importlib.util.module_from_spec(spec)
    sys.modules["binding"] = binding
    spec.loader.exec_module(binding)
    sdk = binding.Sdk(BUILD / "decipher_rt" / "native" / "libdecipher_rt.so")
    voxels = np.random.default_rng(0).integers(0, 2000, (170, 256, 256)).astype(np.int16)
    affine = np.array([[0, 0, 1.0, -120], [0, 1.0, 0, -110], [1.2, 0, 0, -90], [0, 0, 0, 1]])
    taken = []
    for kill in range(kills):
        with sdk.open(DEFAULT_BUNDLE, mode=1) as session:
            session.run(voxels, affine)
            killed: list[float] = []
            pid = session.info().worker_pid

            def end(pid: int = pid, delay: float = 0.01 * kill, killed: list[float] = killed) -> None:
                time.sleep(delay)
                killed.append(time.perf_counter())
                os.kill(pid, signal.SIGKILL)

            thread = threading.Thread(target=end)
            thread.start()
            try:
                while True:
                    session.run(voxels, affine)
            except binding.SdkError:
                returned = time.perf_counter()
            thread.join()
            taken.append((returned - killed[0]) * 1e3)
    return {"kills": kills, "median": round(statistics.median(taken), 1), "max": round(max(taken), 1)}


def deployed_megabytes() -> dict[str, float]:
    """Size of each part of what is deployed, by the script that collects it."""
    with tempfile.TemporaryDirectory() as name:
        script = REPOSITORY / "scripts" / "collect_sdk.py"
        command: list[str | Path] = [sys.executable, script, BUILD, Path(name) / "sdk"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {part: float(size) for size, part in (line.split(" MB  ") for line in said.splitlines())}


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not (BUILD / "tests" / "native" / "latency").exists():
        sys.exit("error: the native SDK is not built: make sdk")
    load = os.getloadavg()[0]
    result: dict[str, Any] = {
        "command": f"python benchmarks/native.py --rounds {arguments.rounds} --threads {arguments.threads}",
        "machine": {
            "processor": next(
                (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x),
                "",
            ),
            "cores": usable_cores(),
            "system": platform.platform(),
            "load_before": round(load, 2),
        },
        "versions": {package: version(package) for package in PACKAGES},
        **measure(arguments.rounds, arguments.threads),
        "worker_killed_to_error_ms": measure_kills(KILLS),
        "deployed_mb": deployed_megabytes(),
    }
    cold = result["cold_start"]
    for name, how in (
        ("cold_start_native_over_python", ""),
        ("embedding_alone_native_over_python", EMBEDDING_ALONE),
        ("huge_pages_native_over_python", HUGE_PAGES),
    ):
        ours, theirs = (cold[f"{program}{how}"] for program in COMPARED)
        result[name] = {
            key: {which: round(ours[key][which] / theirs[key][which], 3) for which in ("median", "min")}
            for key in ("start_to_result_ms", "open_to_result_ms", "open_to_result_cpu_ms")
        }
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if arguments.json:
        arguments.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
