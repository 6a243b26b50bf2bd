"""Engines: what runs a bundle's graphs on this machine. None is imported before it is asked for."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from decipher_rt.engines.base import Engine
from decipher_rt.engines.select import GPU_PLANS
from decipher_rt.errors import EngineError
from decipher_rt.telemetry import silence_onnxruntime, silence_openvino

__all__ = ["Availability", "Engine", "available", "load_engine"]

# Both wheels of onnxruntime fill one folder, and the one that was installed last is what is imported.
CUDA_ADVICE = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
# Engine name, the distributions that can provide it, and how to install it. The first is the default.
ENGINES = {
    "onnxruntime": (("onnxruntime", "onnxruntime-gpu"), "pip install onnxruntime"),
    "openvino": (("openvino",), "pip install 'decipher-rt[openvino]'"),
    "onnxruntime-cuda": (("onnxruntime-gpu",), CUDA_ADVICE),
    "tensorrt": (("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "pip install tensorrt"),
    "tensorrt-rtx": (("tensorrt-rtx-cu13-bindings", "tensorrt-rtx"), "pip install 'decipher-rt[tensorrt-rtx]'"),
}
CPU_ENGINES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Availability:
    """Whether an engine is installed. ``detail`` is its version, or what to do to have it."""

    name: str
    available: bool
    detail: str


def available() -> list[Availability]:
    """Say of every engine whether it is installed, without importing it."""
    return [_look_up(name) for name in ENGINES]


def load_engine(
    name: str,
    graph: Path,
    *,
    precision: str,
    threads: int | None = None,
    card: int = 0,
    exact_int8: bool = False,
) -> Engine:
    """Load an ONNX graph.

    Parameters
    ----------
    name : str
        ``onnxruntime``, ``onnxruntime-cuda`` or ``openvino``: those that run ONNX graphs.
    graph : Path
        The ONNX file.
    precision : str
        What the graph's weights and arithmetic are ("fp32", "fp16", ...), as the manifest says; it goes into results.
    threads : int, optional
        CPU threads; default: the physical cores that this process may use.
    card : int
        CUDA's index of the card, for ``onnxruntime-cuda``.
    exact_int8 : bool
        Compute 8-bit weights as a CPU with VNNI does, slowly where this one has none: for checks, with ``onnxruntime``.

    Raises
    ------
    EngineError
        Where the engine is unknown or not installed, or refuses the graph.
    """
    if name not in ENGINES:
        raise EngineError(f"there is no engine {name!r}; choose one of {', '.join(ENGINES)}")
    if name in GPU_PLANS:
        raise EngineError(f"{name} runs the plans of a bundle, not the ONNX graph {graph.name}")
    if threads is not None and threads < 1:
        raise EngineError(f"threads is {threads}, expected at least 1")
    # To find the default engine's module takes a hundredth of the time that reading its version does.
    if name != "onnxruntime" or importlib.util.find_spec(name) is None:
        found = _look_up(name)
        if not found.available:
            raise EngineError(f"engine {name} is {found.detail}")
    if not graph.is_file():
        raise EngineError(f"{graph}: no such file for engine {name}")
    if name in ("onnxruntime", "onnxruntime-cuda"):
        silence_onnxruntime()
        from decipher_rt.engines.onnxruntime import OnnxRuntimeEngine

        on_card = card if name == "onnxruntime-cuda" else None
        return OnnxRuntimeEngine(graph, precision=precision, threads=threads, card=on_card, exact_int8=exact_int8)
    with silence_openvino():
        from decipher_rt.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(graph, precision=precision, threads=threads)


def _look_up(name: str) -> Availability:
    from importlib.metadata import PackageNotFoundError, version

    distributions, advice = ENGINES[name]
    for distribution in distributions:
        try:
            found = f"{distribution} {version(distribution)}"
        except PackageNotFoundError:
            continue
        if distribution == "onnxruntime-gpu" and name == "onnxruntime-cuda" and _installed_last() == "onnxruntime":
            return Availability(name, False, f"{found}, overwritten by onnxruntime: {advice}")
        return Availability(name, True, found)
    return Availability(name, False, f"not installed: {advice}")


def _installed_last() -> str:
    """Return which wheel the folder ``onnxruntime`` is of, without importing it; empty where it does not say."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return ""
    try:
        about = (Path(spec.origin).parent / "capi" / "build_and_package_info.py").read_text(encoding="utf-8")
    except OSError:
        return ""
    said = re.search(r"^package_name = '([^']+)'", about, re.MULTILINE)
    return said[1] if said else ""
