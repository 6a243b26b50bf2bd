"""What else is installed: onnxruntime on CUDA with the shipped encoder, and the runtime from DICOM to answers.

TensorRT engines are built here, for this card, where the library is installed.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu import plans
from benchmarks.gpu.measure import Deadline, Row, Timing, reason, summarise

ROUNDS = 9


def installed(module: str) -> bool:
    """Return whether a module can be found, parents included."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def run(deadline: Deadline) -> dict[str, list[Row]]:
    """Return the rows of each engine, by section."""
    return {
        "onnxruntime": _section(
            "onnxruntime", ("onnxruntime", "numpy"), lambda: onnxruntime("CUDAExecutionProvider"), deadline
        ),
        "TensorRT": _section("TensorRT", ("tensorrt", "onnx"), lambda: plans.run("tensorrt", deadline), deadline),
        "TensorRT-RTX": _section(
            "TensorRT-RTX", ("tensorrt_rtx_bindings", "onnx"), lambda: plans.run("tensorrt-rtx", deadline), deadline
        ),
        "DALI on the GPU": _section("DALI on the GPU", ("nvidia.dali", "numpy"), dali, deadline),
        "runtime from DICOM": _section(
            "runtime from DICOM", ("nvidia.dali", "onnxruntime", "pydicom", "numpy"), runtime, deadline
        ),
    }


def _section(name: str, modules: tuple[str, ...], run: Callable[[], list[Row]], deadline: Deadline) -> list[Row]:
    absent = [module for module in modules if not installed(module)]
    if absent:
        return [Row(name, name, not_run=f"not installed: {', '.join(absent)}")]
    if deadline.left() < 20:
        return [Row(name, name, not_run="out of time")]
    try:
        return run()
    except Exception as error:  # noqa: BLE001 (a broken installation must not lose the rest of the evidence)
        return [Row(name, name, not_run=reason(error))]


def onnxruntime(provider: str) -> list[Row]:
    """Run the shipped encoder, fp32, at every token bucket, from host to host: the copies are in the time."""
    import numpy as np
    import onnxruntime as ort

    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle

    bundle = open_bundle(DEFAULT_BUNDLE)
    if provider not in ort.get_available_providers():
        return [Row("onnxruntime", provider, not_run=f"onnxruntime {ort.__version__} is built without {provider}")]
    manifest = bundle.manifest
    session = ort.InferenceSession(bundle.file(manifest.engine_file("onnx", "fp32").file), providers=[provider])
    if session.get_providers()[0] != provider:
        return [Row("onnxruntime", provider, not_run=f"{provider} did not load; see onnxruntime's log")]
    random = np.random.default_rng(0)
    grid = manifest.preprocessing.grid_shape
    volume = (random.random((1, 1, *grid)) * 1500).astype(np.float32)
    rows = []
    for k in manifest.preprocessing.token_buckets:
        tokens = np.sort(random.permutation(manifest.preprocessing.patches)[:k])[None]
        feed = {"volume": volume, "window": np.array([[20.0, 1200.0]], np.float32), "tokens": tokens}
        timing = _wall(lambda feed=feed: session.run(None, feed))
        rows.append(Row(f"{manifest.name} K={k} fp32", provider, timing))
    return rows


def dali() -> list[Row]:
    """Preprocess one whole head with DALI on the GPU, as the runtime does: 170x256x256 uint16 to the shipped grid."""
    import numpy as np

    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
    from decipher_rt.preprocess import Preprocessor
    from decipher_rt.volume import SeriesInfo, Volume

    voxels = np.random.default_rng(0).integers(0, 1500, (170, 256, 256), dtype=np.uint16)
    volume = Volume(voxels, np.diag([1.0, 1.0, 1.0, 1.0]), SeriesInfo("2.25.1", DEFAULT_BUNDLE))
    preprocess = Preprocessor(None, open_bundle(DEFAULT_BUNDLE).manifest.preprocessing, "gpu")
    return [Row("170x256x256 uint16 to the grid", "DALI on the GPU", _wall(lambda: preprocess(volume)))]


def runtime() -> list[Row]:
    """Answer for the series that ships with the package, stage by stage, on the engine that the runtime takes."""
    import decipher_rt
    from decipher_rt.bundle import DEFAULT_BUNDLE

    session = decipher_rt.load()
    series = DEFAULT_BUNDLE.parent / "demo_series"
    results = [session.infer(series) for _ in range(ROUNDS + 1)][1:]
    engine = results[0].engine
    method = f"{engine['name']} on {engine['device']}"
    stages = results[0].timings_ms
    return [Row(f"demo series, {stage}", method, summarise([r.timings_ms[stage] for r in results])) for stage in stages]


def _wall(run: Callable[[], Any]) -> Timing:
    """Time on the wall clock: these calls return when the result is in the host's memory."""
    run()
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e3)
    return summarise(times)
