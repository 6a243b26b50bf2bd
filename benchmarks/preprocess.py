"""How long a volume takes to become the encoder's grid, beside other resamplers, and how long until a process is ready.

    python benchmarks/preprocess.py [--rounds 15] [--threads 2] [--json benchmarks/results/preprocess.json]

The volume is that of a whole head, sagittal, 170 slices of 256x256, 1 mm, uint16 (the times do not depend on what is
in it); the grid is 128^3 at 2 mm in S, A, R. Every method is run once unmeasured, then the methods take turns, so that
a busy machine slows all of them; the processor time of all threads together says what they cost whatever else runs.
Peers that are not installed are left out. They interpolate linearly between the eight nearest voxels; decipher-rt and
DALI average over the grid voxel, which reads every voxel of the volume.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from decipher_rt.dicom.geometry import axis_order
from decipher_rt.engines.threads import usable_cores
from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Preprocessor, build_graph, plan
from decipher_rt.preprocess.grid import graph_inputs
from decipher_rt.tokens import select_tokens
from decipher_rt.volume import Histogram, SeriesInfo, Volume

OURS = "decipher-rt"
SPEC = Preprocessing((128, 128, 128), (2.0, 2.0, 2.0), (16, 16, 16), (128, 192, 256, 384, 512))
# Slices to the left, rows to the feet, columns to the back: grid index to LPS.
AFFINE = np.array([[1.0, 0, 0, -85], [0, 0, 1, -128], [0, -1, 0, 128], [0, 0, 0, 1]])
PACKAGES = ("nvidia-dali-cuda130", "numpy", "scipy", "simpleitk", "torch", "monai")

Method = Callable[[], Any]


def head_volume() -> Volume:
    """Return a smooth random volume with its histogram, as the reader gives it."""
    coarse = np.random.default_rng(0).integers(0, 3000, (17, 16, 16))
    voxels = np.ascontiguousarray(np.kron(coarse, np.ones((10, 16, 16), int)).astype(np.uint16))
    return Volume(voxels, AFFINE, SeriesInfo("2.25.1", Path()), histogram=Histogram(0, np.bincount(voxels.ravel())))


def decipher_methods(volume: Volume, threads: int) -> dict[str, Method]:
    """Return the runtime's own path, and the same graph in DALI's Python as one sample."""
    from nvidia.dali import Pipeline

    graph = build_graph(SPEC, "cpu")
    preprocess = Preprocessor(graph, SPEC, threads=threads)
    pipeline = Pipeline.deserialize(graph, batch_size=1, num_threads=threads, prefetch_queue_depth=1)
    inputs = graph_inputs(plan(volume, SPEC), SPEC.grid_shape, 1)

    def dali_in_python() -> Any:
        pipeline.feed_input("voxels", [volume.voxels[..., None]])
        for name, values in inputs.items():
            pipeline.feed_input(name, [np.asarray(values[0])])
        return np.array(pipeline.run()[0].as_array())

    return {
        OURS: lambda: preprocess(volume),
        f"{OURS} with tokens": lambda: select_tokens(preprocess(volume), SPEC),
        "the same graph in DALI's Python": dali_in_python,
    }


def scipy_zoom(volume: Volume, _threads: int) -> Method:
    """Reorient, then linear zoom; padding left out."""
    from scipy import ndimage

    reoriented = axis_order(AFFINE).apply(volume.voxels)
    return lambda: ndimage.zoom(reoriented.astype(np.float32), 0.5, order=1, grid_mode=True, mode="nearest")


def simpleitk_resample(volume: Volume, threads: int) -> Method:
    """Linear resampling straight onto the grid."""
    import SimpleITK as sitk  # noqa: N813 (its own name for itself)

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    image = sitk.GetImageFromArray(volume.voxels)
    image.SetDirection(AFFINE[:3, 2::-1].ravel().tolist())
    image.SetOrigin(AFFINE[:3, 3].tolist())
    grid = plan(volume, SPEC).affine_lps_mm
    resample = sitk.ResampleImageFilter()
    resample.SetInterpolator(sitk.sitkLinear)
    resample.SetOutputPixelType(sitk.sitkFloat32)
    resample.SetSize(SPEC.grid_shape[::-1])
    resample.SetOutputSpacing(SPEC.spacing_mm[::-1])
    resample.SetOutputOrigin(grid[:3, 3].tolist())
    resample.SetOutputDirection((grid[:3, 2::-1] / 2.0).ravel().tolist())
    return lambda: sitk.GetArrayFromImage(resample.Execute(image))


def torch_interpolate(volume: Volume, threads: int) -> Method:
    """Trilinear interpolation and reorientation; padding left out."""
    import torch

    torch.set_num_threads(threads)
    order = axis_order(AFFINE)

    def run() -> Any:
        voxels = torch.from_numpy(volume.voxels.astype(np.float32))[None, None]
        small = torch.nn.functional.interpolate(voxels, scale_factor=0.5, mode="trilinear", align_corners=False)
        return order.apply(small[0, 0].numpy()).copy()

    return run


def monai_transforms(volume: Volume, threads: int) -> Method:
    """Orientation, Spacing, ResizeWithPadOrCrop: what a training pipeline does."""
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Compose, Orientation, ResizeWithPadOrCrop, Spacing

    torch.set_num_threads(threads)
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE
    pipeline = Compose(
        [
            Orientation("SAR", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacing((2.0, 2.0, 2.0), mode="bilinear"),
            ResizeWithPadOrCrop(SPEC.grid_shape),
        ]
    )
    return lambda: pipeline(MetaTensor(torch.from_numpy(volume.voxels.astype(np.float32))[None], affine=ras)).numpy()


def peers(volume: Volume, threads: int) -> dict[str, Method]:
    """Return the installed ones."""
    makers = {
        "SimpleITK resample": simpleitk_resample,
        "torch interpolate": torch_interpolate,
        "scipy.ndimage.zoom": scipy_zoom,
        "MONAI transforms": monai_transforms,
    }
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make(volume, threads)
        except ImportError:
            print(f"{name}: not installed", file=sys.stderr)
    return found


def take_turns(methods: dict[str, Method], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Time each method, all of them once a round; return wall and processor times in ms."""
    wall: dict[str, list[float]] = {name: [] for name in methods}
    processor_time: dict[str, list[float]] = {name: [] for name in methods}
    for method in methods.values():
        method()
    for _ in range(rounds):
        for name, method in methods.items():
            start, processor_start = time.perf_counter(), time.process_time()
            method()
            wall[name].append((time.perf_counter() - start) * 1e3)
            processor_time[name].append((time.process_time() - processor_start) * 1e3)
    return wall, processor_time


READY_OURS = """
from decipher_rt.preprocess import Preprocessor
preprocess = Preprocessor(graph, spec)
"""
READY_DALI = """
from nvidia.dali import Pipeline
pipeline = Pipeline.deserialize(graph, batch_size=1, num_threads=2, prefetch_queue_depth=1)
pipeline.build()
"""
READY_FRAME = """
import sys, time
from pathlib import Path
import numpy
from decipher_rt.manifest import Preprocessing
graph = Path(sys.argv[1]).read_bytes()
spec = Preprocessing((128, 128, 128), (2.0, 2.0, 2.0), (16, 16, 16), (512,))
start = time.perf_counter()
{}
print((time.perf_counter() - start) * 1e3)
"""


def time_until_ready(rounds: int) -> dict[str, list[float]]:
    """Time in new processes, in ms, from the serialised graph in memory to a pipeline that takes its first volume."""
    codes = {f"{OURS} ready": READY_OURS, "DALI's Python ready": READY_DALI}
    times: dict[str, list[float]] = {name: [] for name in codes}
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "preprocess.cpu.dali"
        graph.write_bytes(build_graph(SPEC, "cpu"))
        for _ in range(rounds + 1):
            for name, code in codes.items():
                command = [sys.executable, "-c", READY_FRAME.format(code), str(graph)]
                finished = subprocess.run(command, capture_output=True, text=True, check=True)
                times[name].append(float(finished.stdout))
    return {name: values[1:] for name, values in times.items()}


def summarise(times: dict[str, list[float]], baseline: str) -> dict[str, dict[str, float]]:
    """Return median, min and max in ms, and the median of the ratios to the baseline of the same round."""
    return {
        name: {
            "median_ms": round(statistics.median(values), 2),
            "min_ms": round(min(values), 2),
            "max_ms": round(max(values), 2),
            "ratio": round(statistics.median(a / b for a, b in zip(values, times[baseline], strict=True)), 2),
        }
        for name, values in times.items()
    }


def processor() -> str:
    """Return the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def installed(package: str) -> str | None:
    """Return a package's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Measure, print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    volume = head_volume()
    load = os.getloadavg()[0]
    warm, costs = take_turns(
        {**decipher_methods(volume, options.threads), **peers(volume, options.threads)}, options.rounds
    )
    ready = time_until_ready(max(3, options.rounds // 2))
    report = {
        "claim": "170x256x256 uint16 to a 128^3 grid of 2 mm",
        "machine": {"processor": processor(), "usable_cores": usable_cores(), "system": platform.platform()},
        "load_average": round(load, 2),
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
        "command": f"python benchmarks/preprocess.py --rounds {options.rounds} --threads {options.threads}",
        "rounds": options.rounds,
        "threads": options.threads,
        "warm": {
            name: {**row, "processor_ms": round(statistics.median(costs[name]), 2)}
            for name, row in summarise(warm, OURS).items()
        },
        "new_process": summarise(ready, f"{OURS} ready"),
    }
    print(f"{report['machine']['processor']}, {options.threads} threads, load {report['load_average']}")
    for part in ("warm", "new_process"):
        for name, row in report[part].items():
            spread = f"({row['min_ms']:.1f} to {row['max_ms']:.1f})"
            cost = f"  processor {row['processor_ms']:.1f} ms" if "processor_ms" in row else ""
            print(f"{name:34} {row['median_ms']:8.1f} ms  {spread:18} {row['ratio']:6.2f} x{cost}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
