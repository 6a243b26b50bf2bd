"""onnxruntime: the default engine in Python, on the CPU; on a GPU through its CUDA provider."""

from __future__ import annotations

import contextlib
import ctypes
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from decipher_rt.engines import CUDA_ADVICE
from decipher_rt.engines.signature import Input, check_inputs
from decipher_rt.engines.threads import usable_cores
from decipher_rt.errors import EngineError

# onnxruntime's exceptions have no base of their own.
ORT_ERRORS = tuple(kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception))
# A provider that does not start says so in one of Python's own.
LOAD_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, RuntimeError, ValueError)
CUDA_PROVIDER, CPU_PROVIDER = "CUDAExecutionProvider", "CPUExecutionProvider"
FATAL = 4  # its errors come as exceptions too: one report is enough
# The encoder contract and the heads know these as inputs, in any precision.
TENSOR_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(int64)": np.dtype(np.int64),
}

ort.set_default_logger_severity(FATAL)


class OnnxRuntimeEngine:
    """An ONNX graph in an onnxruntime session, set up for the latency of one request at a time.

    ``card`` is CUDA's index of the card that it runs on; None is the CPU. With ``exact_int8`` sums of products of bytes
    do not saturate on a CPU without VNNI either.
    """

    def __init__(
        self,
        graph: Path,
        *,
        precision: str,
        threads: int | None = None,
        card: int | None = None,
        exact_int8: bool = False,
    ) -> None:
        self.name = "onnxruntime" if card is None else "onnxruntime-cuda"
        providers: list[Any] = [CPU_PROVIDER] if card is None else [cuda_provider(card), CPU_PROVIDER]
        self.precision = precision
        self.threads = threads or usable_cores()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = FATAL
        options.enable_mem_pattern = False  # a second block beside the arena's for every shape, and no more speed
        # Threads spin between the operators of one run, which is what makes it fast, and sleep once it is over.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if exact_int8:
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            # Left to itself it prints what went wrong, and goes on with the CPU.
            self._session = ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        except LOAD_ERRORS as error:
            raise EngineError(f"{graph.name}: onnxruntime {ort.__version__} refuses it: {_one_line(error)}") from error
        if card is not None and self._session.get_providers()[0] != CUDA_PROVIDER:
            # onnxruntime goes on with the CPU and only logs why.
            raise EngineError(f"onnxruntime {ort.__version__} has no usable CUDA ({why_no_cuda()}): {CUDA_ADVICE}")
        self.device = "cpu" if card is None else _label(card)
        self._graph = graph.name
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._signature = {item.name: _describe(item, graph.name) for item in self._session.get_inputs()}

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
            outputs = self._session.run(self._outputs, dict(inputs))
        except ORT_ERRORS as error:
            raise EngineError(f"{self._graph}: onnxruntime failed: {_one_line(error)}") from error
        return dict(zip(self._outputs, outputs, strict=True))


def cuda_provider(card: int) -> tuple[str, dict[str, str]]:
    """Return the CUDA provider on a card as a session takes it, with the libraries loaded that pip installed for it.

    Float32 stays what it is: left to itself the provider multiplies it as TF32, which has ten bits of mantissa.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        ort.preload_dlls(directory="")
    return CUDA_PROVIDER, {"device_id": str(card), "use_tf32": "0"}


def why_no_cuda() -> str:
    """Say in a line why the CUDA provider does not start; onnxruntime itself only logs it."""
    if CUDA_PROVIDER not in ort.get_available_providers():
        return "it is built without CUDA"
    try:
        ctypes.CDLL(str(Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return _one_line(error)
    return "its provider loads but does not start: the driver may be too old for it, see 'decipher-rt doctor'"


def _label(card: int) -> str:
    from decipher_rt.engines.cuda import Device

    return Device(card).label


def _describe(item: Any, graph: str) -> Input:
    shape = tuple(size if isinstance(size, int) else None for size in item.shape)
    if item.type not in TENSOR_TYPES:
        raise EngineError(
            f"{graph}: input {item.name} is a {item.type}, which no input of a graph may be; export the bundle again"
        )
    return Input(TENSOR_TYPES[item.type], shape)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
