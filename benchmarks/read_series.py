"""Reading a series: decipher-rt beside pydicom, SimpleITK, dcm2niix and dicomsdl, alternating in one run.

    python benchmarks/read_series.py SERIES_FOLDER [--rounds 15] [--json benchmarks/results/read_series.json]

Every reader goes from the folder to all voxels of the volume in memory (dcm2niix: to a NIfTI file), slices in order.
Ours also checks the geometry and fills the exact histogram. dicomsdl is a yardstick only: it ends the process on
truncated files. The files are in the page cache: the first round is not counted. Beside the wall clock stands the
processor time (user and system, children too), which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Reader = Callable[[Path], "np.ndarray[Any, Any] | None"]


def read_bytes(folder: Path) -> None:
    """Read every file's bytes: the floor."""
    for path in folder.iterdir():
        path.read_bytes()


def read_decipher_rt(folder: Path) -> np.ndarray[Any, Any]:
    """find_series and read_series."""
    from decipher_rt.series import find_series, read_series

    volume = read_series(find_series(folder)[0])
    assert volume.histogram is not None  # noqa: S101
    return volume.voxels


def read_pydicom_pixel_array(folder: Path) -> np.ndarray[Any, Any]:
    """Take dcmread and pixel_array, sorted by position along the normal."""
    import pydicom

    datasets = [pydicom.dcmread(path) for path in folder.iterdir()]
    return np.stack([dataset.pixel_array for dataset in _in_order(datasets)])


def read_pydicom_named_tags(folder: Path) -> np.ndarray[Any, Any]:
    """Take dcmread of the few tags that geometry and pixels need, and frombuffer."""
    import pydicom

    tags = ["ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns", "PixelSpacing", "PixelRepresentation",
            "BitsAllocated", "RescaleSlope", "RescaleIntercept", "SeriesInstanceUID", "PixelData"]  # fmt: skip
    datasets = _in_order([pydicom.dcmread(path, specific_tags=tags) for path in folder.iterdir()])
    return np.stack([np.frombuffer(d.PixelData, np.uint16).reshape(d.Rows, d.Columns) for d in datasets])


def read_simpleitk(folder: Path) -> np.ndarray[Any, Any]:
    """ImageSeriesReader (GDCM), names sorted by GDCM."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return SimpleITK.GetArrayFromImage(reader.Execute())


def read_dcm2niix(folder: Path) -> None:
    """dcm2niix to an uncompressed NIfTI file in a temporary folder (a process of its own)."""
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(["dcm2niix", "-z", "n", "-b", "n", "-o", out, str(folder)], check=True, capture_output=True)


def read_dicomsdl(folder: Path) -> np.ndarray[Any, Any]:
    """open_file and toNumpy-like access to the pixels, sorted by position."""
    import dicomsdl

    slices = []
    for path in folder.iterdir():
        dataset = dicomsdl.open_file(str(path))
        position = np.array(dataset.ImagePositionPatient)
        normal = np.cross(dataset.ImageOrientationPatient[:3], dataset.ImageOrientationPatient[3:])
        pixels = np.frombuffer(dataset["PixelData"], np.uint16).reshape(dataset.Rows, dataset.Columns)
        slices.append((position @ normal, pixels))
    return np.stack([pixels for _, pixels in sorted(slices, key=lambda item: item[0])])


READERS: dict[str, tuple[Reader, str]] = {
    "decipher-rt": (read_decipher_rt, ""),
    "bytes only": (read_bytes, ""),
    "dicomsdl": (read_dicomsdl, "dicomsdl"),
    "pydicom, named tags": (read_pydicom_named_tags, "pydicom"),
    "pydicom, pixel_array": (read_pydicom_pixel_array, "pydicom"),
    "dcm2niix": (read_dcm2niix, ""),
    "SimpleITK": (read_simpleitk, "SimpleITK"),
}


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with one uncompressed classic MR series")
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds (default 15)")
    parser.add_argument("--json", type=Path, help="write the result here too")
    arguments = parser.parse_args()
    readers = {name: reader for name, (reader, package) in READERS.items() if _present(name, package)}
    expected = read_decipher_rt(arguments.folder)
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    processor: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(arguments.rounds + 1):
        for name, reader in readers.items():
            start, busy = time.perf_counter(), _processor_seconds()
            voxels = reader(arguments.folder)
            elapsed = time.perf_counter() - start
            if number:
                seconds[name].append(elapsed)
                processor[name].append(_processor_seconds() - busy)
            elif voxels is not None:
                _check_same(name, voxels, expected)
    result = _result(arguments, expected, seconds, processor)
    _print_table(result)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def _in_order(datasets: list[Any]) -> list[Any]:
    row, column = np.array(datasets[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    normal = np.cross(row, column)
    return sorted(datasets, key=lambda dataset: float(np.array(dataset.ImagePositionPatient, dtype=float) @ normal))


def _present(name: str, package: str) -> bool:
    if name == "dcm2niix":
        return shutil.which("dcm2niix") is not None
    try:
        return not package or bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def _check_same(name: str, voxels: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Every reader must have read the same slices in the same order; SimpleITK rescales, so it is compared by rank."""
    scale = float(voxels.max()) / float(expected.max())
    if voxels.shape != expected.shape or not np.allclose(voxels, expected * scale, rtol=1e-4, atol=1e-3):
        sys.exit(f"{name} read other voxels")


def _result(
    arguments: argparse.Namespace,
    voxels: np.ndarray[Any, Any],
    seconds: dict[str, list[float]],
    processor: dict[str, list[float]],
) -> dict[str, Any]:
    ours = statistics.median(seconds["decipher-rt"])
    packages = [name for name in ("numpy", "pydicom", "SimpleITK", "dicomsdl") if _present("", name)]
    name = arguments.folder.name
    return {
        "what": "from a folder to all voxels in memory, files in the page cache; ours with checks and exact histogram",
        "series": {
            "name": name,
            "slices": voxels.shape[0],
            "rows": voxels.shape[1],
            "columns": voxels.shape[2],
            "bytes": sum(path.stat().st_size for path in arguments.folder.iterdir()),
        },
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "load_average_1min": round(os.getloadavg()[0], 2),
        },
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
            "dcm2niix": _dcm2niix_version(),
        },
        "command": f"python benchmarks/read_series.py .../{name} --rounds {arguments.rounds}",
        "rounds": arguments.rounds,
        "readers": [
            {
                "name": reader,
                "median_s": statistics.median(times),
                "min_s": min(times),
                "max_s": max(times),
                "processor_median_s": statistics.median(processor[reader]),
                "ratio_to_ours": statistics.median(times) / ours,
            }
            for reader, times in seconds.items()
        ],
    }


def _print_table(result: dict[str, Any]) -> None:
    series = result["series"]
    size = f"{series['slices']} slices of {series['rows']}x{series['columns']}"
    print(f"{series['name']}: {size}, {result['rounds']} rounds; milliseconds")
    print(f"{'reader':22} {'median':>8} {'min':>8} {'max':>8} {'processor':>10} {'ratio':>7}")
    for reader in result["readers"]:
        keys = ("median_s", "min_s", "max_s", "processor_median_s")
        median, low, high, busy = (f"{1e3 * reader[key]:.1f}" for key in keys)
        print(f"{reader['name']:22} {median:>8} {low:>8} {high:>8} {busy:>10} {reader['ratio_to_ours']:>6.1f}x")
    print(f"{result['machine']}\n{result['versions']}\n{result['command']}")


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _dcm2niix_version() -> str | None:
    if shutil.which("dcm2niix") is None:
        return None
    # dcm2niix answers --version with a status of its own.
    done = subprocess.run(["dcm2niix", "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else None


if __name__ == "__main__":
    main()
