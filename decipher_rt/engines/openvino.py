"""OpenVINO on the CPU: the engine of the C SDK, optional in Python."""

from __future__ import annotations

import hashlib
import locale
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.frontend import FrontEndManager

from decipher_rt.caches import cache_folder
from decipher_rt.engines.signature import Input, check_inputs
from decipher_rt.engines.threads import usable_cores
from decipher_rt.errors import EngineError

_VERSION = ov.__version__.partition("-")[0]
KEPT = "c-"  # begins the folder of a graph: those kept by versions that asked for no locale do not


class OpenVinoEngine:
    """An ONNX graph compiled by OpenVINO, set up for the latency of one request at a time.

    Compiled graphs are kept under ``$XDG_CACHE_HOME/decipher-rt/openvino`` where that can be written, so that the next
    process starts faster.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, graph: Path, *, precision: str, threads: int | None = None) -> None:
        self.precision = precision
        self.threads = threads or usable_cores()
        if not FrontEndManager().load_by_framework("onnx").supported(os.fspath(graph)):
            # Left to itself, OpenVINO tries its other formats on the file, and complains of each on standard error.
            raise EngineError(f"{graph.name}: OpenVINO {_VERSION} refuses it: not an ONNX graph")
        core = ov.Core()
        properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            # Where the CPU has bfloat16, OpenVINO takes it for fp32 graphs: answers would depend on the CPU.
            "INFERENCE_PRECISION_HINT": "f32",
            # Left to itself it binds its threads, and leaves the caller's where the process's first one may run.
            "ENABLE_CPU_PINNING": False,
        }
        cache = _cache_folder(graph)
        if cache is not None:
            properties["CACHE_DIR"] = os.fspath(cache)
        try:
            self._compiled = core.compile_model(graph, "CPU", properties)
            self._request = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise EngineError(f"{graph.name}: OpenVINO {_VERSION} refuses it: {_one_line(error)}") from error
        self._graph = graph.name
        self._signature = {_name(port): _describe(port) for port in self._compiled.inputs}
        self._outputs = [_name(port) for port in self._compiled.outputs]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return tuple(self._signature)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph on named arrays and return its named outputs.

        Raises
        ------
        EngineError
            Where an input is missing, unknown, of another type or shape, or the graph fails on it.
        """
        check_inputs(self._graph, self._signature, inputs)
        try:
            outputs = self._request.infer({name: np.ascontiguousarray(array) for name, array in inputs.items()})
        except RuntimeError as error:
            raise EngineError(f"{self._graph}: OpenVINO failed: {_one_line(error)}") from error
        # The request writes its next outputs into the same memory.
        return {name: np.array(outputs[name]) for name in self._outputs}


def _name(port: Any) -> str:
    """Return the name in the ONNX file: a port also has those of tensors that a Cast or Identity made the same."""
    own = str(port.get_node().get_friendly_name()).removesuffix("/sink_port_0")
    return own if own in port.get_names() else str(port.get_any_name())


def _describe(port: Any) -> Input:
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return Input(np.dtype(port.get_element_type().to_dtype()), shape)


def _cache_folder(graph: Path) -> Path | None:
    """Return a folder of this very graph: OpenVINO tells files by path, size and whole seconds alone.

    There is none under a locale with a decimal comma: OpenVINO would write the numbers of a graph with it, and read
    them without.
    """
    base = cache_folder("openvino")
    if base is None or locale.localeconv()["decimal_point"] != ".":
        return None
    try:
        with graph.open("rb") as file:
            folder = base / (KEPT + hashlib.file_digest(file, "sha256").hexdigest()[:32])
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _one_line(error: Exception) -> str:
    # OpenVINO begins with the place in its own source.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or lines
    return " ".join(said)[:300]
