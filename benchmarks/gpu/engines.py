"""What else is installed: onnxruntime on CUDA with the shipped encoder, and the runtime from DICOM to answers.

ViT-Base is exported for onnxruntime, and TensorRT engines of it are built here, for this card, where the libraries are
installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from benchmarks.gpu import onnx_base, plans
from benchmarks.gpu.encoder import wall
from benchmarks.gpu.measure import Ceilings, Deadline, Row, reason, summarise

ROUNDS = 9
ONNX_SHARE = 0.4
"""Of the time that is left when ViT-Base is exported for onnxruntime; the rest is for TensorRT, which builds longer."""


def installed(module: str) -> bool:
    """Return whether a module can be found, parents included."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def run(deadline: Deadline, ceilings: Ceilings) -> dict[str, list[Row]]:
    """Return the rows of each engine, by section; what is quick comes first, and builds take the time that is left."""
    cuda = "CUDAExecutionProvider"
    return {
        "onnxruntime": _section("onnxruntime", ("onnxruntime", "numpy"), lambda: onnxruntime(cuda), deadline),
        "DALI on the GPU": _section("DALI on the GPU", ("nvidia.dali", "numpy"), dali, deadline),
        "runtime from DICOM": _section(
            "runtime from DICOM", ("nvidia.dali", "onnxruntime", "pydicom", "numpy"), runtime, deadline
        ),
        "onnxruntime, ViT-Base": _section(
            "onnxruntime, ViT-Base",
            ("onnxruntime", "onnx"),
            lambda: onnx_base.run(cuda, ceilings, Deadline(deadline.left() * ONNX_SHARE)),
            deadline,
        ),
        "TensorRT": _section(
            "TensorRT", ("tensorrt", "onnx"), lambda: plans.run("tensorrt", deadline, ceilings), deadline
        ),
        "TensorRT-RTX": _section(
            "TensorRT-RTX",
            ("tensorrt_rtx_bindings", "onnx"),
            lambda: plans.run("tensorrt-rtx", deadline, ceilings),
            deadline,
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
    from decipher_rt.engines.onnxruntime import CUDA_PROVIDER, cuda_provider, why_no_cuda

    bundle = open_bundle(DEFAULT_BUNDLE)
    if provider not in ort.get_available_providers():
        return [Row("onnxruntime", provider, not_run=f"onnxruntime {ort.__version__} is built without {provider}")]
    manifest = bundle.manifest
    providers = [cuda_provider(0) if provider == CUDA_PROVIDER else provider]
    session = ort.InferenceSession(bundle.file(manifest.engine_file("onnx", "fp32").file), providers=providers)
    if session.get_providers()[0] != provider:
        return [Row("onnxruntime", provider, not_run=f"{provider} did not load: {why_no_cuda()}")]
    random = np.random.default_rng(0)
    grid = manifest.preprocessing.grid_shape
    volume = (random.random((1, 1, *grid)) * 1500).astype(np.float32)
    rows = []
    for k in manifest.preprocessing.token_buckets:
        tokens = np.sort(random.permutation(manifest.preprocessing.patches)[:k])[None]
        feed = {"volume": volume, "window": np.array([[20.0, 1200.0]], np.float32), "tokens": tokens}
        timing = wall(lambda feed=feed: session.run(None, feed), ROUNDS)
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
    return [Row("170x256x256 uint16 to the grid", "DALI on the GPU", wall(lambda: preprocess(volume), ROUNDS))]


def runtime() -> list[Row]:
    """Answer for the series that ships with the package, stage by stage, on the best engine that runs here."""
    import decipher_rt
    from decipher_rt.bundle import DEFAULT_BUNDLE

    session = decipher_rt.load(engine="auto")
    series = DEFAULT_BUNDLE.parent / "demo_series"
    results = [session.infer(series) for _ in range(ROUNDS + 1)][1:]
    engine = results[0].engine
    method = f"{engine['name']} on {engine['device']}"
    stages = results[0].timings_ms
    rows = [Row(f"demo series, {stage}", method, summarise([r.timings_ms[stage] for r in results])) for stage in stages]
    if "fallback" in engine:
        rows.append(Row("demo series, engines before this one", method, not_run=engine["fallback"]))
    return rows
