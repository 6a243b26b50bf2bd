"""DALI's C interface (``dali/dali.h`` of the nvidia-dali wheel), as much of it as runs a serialised graph.

Importing ``nvidia.dali`` in Python and building a pipeline takes half a second, most of it for operator wrappers that a
serialised graph does not need. The C interface is ready in a tenth of that, and it is what C programs use too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_uint8, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.errors import EngineError

PACKAGE = "nvidia-dali-cuda130"
# In the order in which they depend on each other.
LIBRARIES = ("libdali_core.so", "libdali_kernels.so", "libdali.so", "libdali_operators.so")

# daliDataType_t (dali/core/dali_data_type.h); DALI promises that these do not change.
DATA_TYPES = {
    np.dtype(np.uint8): 0,
    np.dtype(np.uint16): 1,
    np.dtype(np.int16): 5,
    np.dtype(np.int32): 6,
    np.dtype(np.float32): 9,
}
CPU = 0  # DALI_STORAGE_CPU
FEED_NO_COPY = 4  # DALI_FEED_INPUT_NO_COPY
COPY_SYNC = 2  # DALI_COPY_SYNC
NO_LAYOUT = b""  # the graph says it; DALI 2.4 crashes on the NULL that its header allows
ASSERTION = re.compile(r'^Assert on ".*" failed: ')
BOILERPLATE = ("Critical error", "Error in", "encountered", "C++ context", "Current pipeline")
# Bits of daliPipelineParams_t that say which of its members are given.
HAS_BATCH, HAS_THREADS, HAS_DEVICE = 1 << 0, 1 << 1, 1 << 2


class _PipelineParams(ctypes.Structure):
    """``daliPipelineParams_t``."""

    _fields_ = [
        ("present", c_uint64),
        ("max_batch_size", c_int),
        ("num_threads", c_int),
        ("device_id", c_int),
        ("seed", c_int64),
        ("exec_type", c_int),
        ("exec_flags", c_int),
        ("prefetch_queue_depth_cpu", c_int),
        ("prefetch_queue_depth_gpu", c_int),
        ("enable_checkpointing", c_uint8),
        ("enable_memory_stats", c_uint8),
        ("bytes_per_sample_hint", c_size_t),
        ("later_versions", c_uint64 * 16),  # zero: members that a newer DALI may append are not given
    ]


class _BufferPlacement(ctypes.Structure):
    """``daliBufferPlacement_t``."""

    _fields_ = [("device_type", c_int), ("device_id", c_int), ("pinned", c_uint8)]


class _TensorDesc(ctypes.Structure):
    """``daliTensorDesc_t``."""

    _fields_ = [
        ("ndim", c_int),
        ("shape", POINTER(c_int64)),
        ("dtype", c_int),
        ("layout", c_char_p),
        ("data", c_void_p),
    ]


class DaliGraph:
    """A serialised graph with one output, ready to run on batches of up to ``batch`` samples.

    Not thread-safe. An input keeps its element type from the first run on.

    Parameters
    ----------
    graph : bytes
        As `decipher_rt.preprocess.build_graph` serialised it.
    batch : int
        Samples of each input.
    threads : int
        CPU threads; DALI runs a sample on one of them.
    device_id : int or None
        CUDA device of a graph for the GPU; ``None`` for the CPU.

    Raises
    ------
    EngineError
        Where DALI is absent or refuses the graph.
    """

    def __init__(self, graph: bytes, *, batch: int, threads: int, device_id: int | None = None) -> None:
        self.batch = batch
        self._held: list[c_void_p] = []  # the last outputs, whose memory the next stage may still read; one or none
        self._library = load_library()
        params = _PipelineParams(present=HAS_BATCH | HAS_THREADS, max_batch_size=batch, num_threads=threads)
        if device_id is not None:
            params.present |= HAS_DEVICE
            params.device_id = device_id
        self._handle = c_void_p()
        self._call("daliPipelineDeserialize", byref(self._handle), graph, c_size_t(len(graph)), byref(params))
        # Also at exit, before the libraries are unloaded.
        self._finalizer = weakref.finalize(self, _destroy, self._library, self._handle, self._held)
        self._call("daliPipelineBuild", self._handle)

    def run(self, inputs: Mapping[str, Sequence[NDArray[Any]]], out: NDArray[np.float32]) -> None:
        """Run once, and copy the output to the host.

        Parameters
        ----------
        inputs : mapping of input name to ``batch`` C-contiguous arrays; they are read in place, not copied
        out : ndarray, float32, C-contiguous
            Receives the samples of the output one after another; its size must be theirs.

        Raises
        ------
        EngineError
            Where DALI fails; the graph must then be made anew.
        """
        self._execute(inputs)
        try:
            self._copy_out(out)
        finally:
            self._release()

    def run_on_device(
        self, inputs: Mapping[str, Sequence[NDArray[Any]]], shape: tuple[int, ...]
    ) -> tuple[int, Callable[[], NDArray[np.float32]]]:
        """Run a graph for the GPU once, on one sample, and leave the output where it is.

        Parameters
        ----------
        inputs : mapping
            As for ``run``.
        shape : tuple of int
            Of the output.

        Returns
        -------
        address : int
            Of the output on the device, ready on every stream and valid until the next run.
        to_host : callable
            Copies it; an EngineError after the next run.

        Raises
        ------
        EngineError
            Where DALI fails; the graph must then be made anew.
        """
        self._execute(inputs)
        try:
            address = self._address(int(np.prod(shape)) * 4)
        except EngineError:
            self._release()
            raise
        (held,) = self._held

        def to_host() -> NDArray[np.float32]:
            if not any(one is held for one in self._held):
                raise EngineError("the grid is no longer on the GPU: the next volume has taken its place")
            out = np.empty(shape, np.float32)
            self._copy_out(out)
            return out

        return address, to_host

    def close(self) -> None:
        """Free the graph's threads and memory."""
        self._finalizer()

    def _release(self) -> None:
        while self._held:
            self._call("daliPipelineOutputsDestroy", self._held.pop())

    def _execute(self, inputs: Mapping[str, Sequence[NDArray[Any]]]) -> None:
        """Run, and hold the outputs: they are on the device, or the host, until they are released."""
        self._release()
        lists = [self._feed(name, samples) for name, samples in inputs.items()]
        try:
            self._call("daliPipelineRun", self._handle)
            outputs = c_void_p()
            self._call("daliPipelinePopOutputs", self._handle, byref(outputs))
            self._held.append(outputs)
        finally:
            for tensor_list in lists:
                self._call("daliTensorListDecRef", tensor_list, None)

    def _feed(self, name: str, samples: Sequence[NDArray[Any]]) -> c_void_p:
        first = samples[0]
        if any(not s.flags.c_contiguous or (s.dtype, s.ndim) != (first.dtype, first.ndim) for s in samples):
            raise ValueError(f"samples of {name} must be C-contiguous, of one type and one number of axes")
        tensor_list = c_void_p()
        self._call("daliTensorListCreate", byref(tensor_list), _BufferPlacement(CPU, 0, 0))
        try:
            descriptions = (_TensorDesc * len(samples))()
            for description, sample in zip(descriptions, samples, strict=True):
                description.ndim = sample.ndim
                description.shape = (c_int64 * sample.ndim)(*sample.shape)
                description.dtype = DATA_TYPES[sample.dtype]
                description.data = sample.ctypes.data
            self._call(
                "daliTensorListAttachSamples",
                tensor_list, len(samples), first.ndim, DATA_TYPES[first.dtype], NO_LAYOUT, descriptions, None,
            )  # fmt: skip
            self._call("daliPipelineFeedInput", self._handle, name.encode(), tensor_list, None, FEED_NO_COPY, None)
        except BaseException:
            self._call("daliTensorListDecRef", tensor_list, None)
            raise
        return tensor_list

    def _copy_out(self, out: NDArray[np.float32]) -> None:
        with self._output(out.nbytes) as tensor_list:
            host = _BufferPlacement(CPU, 0, 0)
            self._call("daliTensorListCopyOut", tensor_list, c_void_p(out.ctypes.data), host, None, COPY_SYNC)

    def _address(self, nbytes: int) -> int:
        with self._output(nbytes) as tensor_list:
            description = _TensorDesc()
            self._call("daliTensorListGetTensorDesc", tensor_list, byref(description), 0)
            return int(description.data)

    @contextlib.contextmanager
    def _output(self, nbytes: int) -> Iterator[c_void_p]:
        """Give the output that is held, after a look at its size and type."""
        tensor_list = c_void_p()
        self._call("daliPipelineOutputsGet", self._held[0], byref(tensor_list), 0)
        try:
            size, dtype = c_size_t(), c_int()
            self._call("daliTensorListGetByteSize", tensor_list, byref(size))
            self._call("daliTensorListGetDType", tensor_list, byref(dtype))
            if (size.value, dtype.value) != (nbytes, DATA_TYPES[np.dtype(np.float32)]):
                raise EngineError(
                    f"the DALI graph gave {size.value} bytes of type {dtype.value}, expected {nbytes} of float32: "
                    "the bundle's graph does not match its manifest"
                )
            yield tensor_list
        finally:
            self._call("daliTensorListDecRef", tensor_list, None)

    def _call(self, function: str, *arguments: Any) -> None:
        if getattr(self._library, function)(*arguments):
            message = self._library.daliGetLastErrorMessage().decode(errors="replace")
            self._library.daliClearLastError()
            raise EngineError(f"DALI: {_essence(message)} ({function})")


@functools.cache
def load_library() -> ctypes.CDLL:
    """Load DALI and register its operators, once.

    Raises
    ------
    EngineError
        Where the package is absent or its libraries do not load.
    """
    spec = importlib.util.find_spec("nvidia.dali") if importlib.util.find_spec("nvidia") else None
    if spec is None or spec.origin is None:
        raise EngineError(f"DALI is not installed: pip install {PACKAGE}")
    folder = Path(spec.origin).parent
    try:
        *_, dali, operators = (ctypes.CDLL(os.fspath(folder / name)) for name in LIBRARIES)
        operators.daliInitOperators()
        _declare(dali)
    except (OSError, AttributeError) as error:
        raise EngineError(f"DALI does not load ({error}): pip install --force-reinstall {PACKAGE}") from error
    return dali


def _destroy(library: ctypes.CDLL, pipeline: c_void_p, held: list[c_void_p]) -> None:
    """Free a pipeline, and before it the outputs that it still has to take back."""
    while held:
        library.daliPipelineOutputsDestroy(held.pop())
    library.daliPipelineDestroy(pipeline)


def _declare(library: ctypes.CDLL) -> None:
    """Say what the functions take, so that ctypes passes pointers and structures as C does."""
    handle, handle_out = c_void_p, POINTER(c_void_p)
    signatures: dict[str, tuple[Any, ...]] = {
        "daliPipelineDeserialize": (handle_out, c_char_p, c_size_t, POINTER(_PipelineParams)),
        "daliPipelineBuild": (handle,),
        "daliPipelineRun": (handle,),
        "daliPipelineDestroy": (handle,),
        "daliPipelineFeedInput": (handle, c_char_p, handle, c_char_p, c_int, c_void_p),
        "daliPipelinePopOutputs": (handle, handle_out),
        "daliPipelineOutputsGet": (handle, handle_out, c_int),
        "daliPipelineOutputsDestroy": (handle,),
        "daliTensorListCreate": (handle_out, _BufferPlacement),
        "daliTensorListAttachSamples": (handle, c_int, c_int, c_int, c_char_p, POINTER(_TensorDesc), c_void_p),
        "daliTensorListGetByteSize": (handle, POINTER(c_size_t)),
        "daliTensorListGetDType": (handle, POINTER(c_int)),
        "daliTensorListGetTensorDesc": (handle, POINTER(_TensorDesc), c_int),
        "daliTensorListCopyOut": (handle, c_void_p, _BufferPlacement, c_void_p, c_int),
        "daliTensorListDecRef": (handle, POINTER(c_int)),
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    library.daliGetLastErrorMessage.restype = c_char_p
    library.daliClearLastError.restype = None


def _essence(message: str) -> str:
    """Return what DALI says went wrong, on one line, without its source positions and stack."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    wanted = [line for line in lines if not line.startswith(BOILERPLATE)]
    return ASSERTION.sub("", (wanted or lines or ["no message"])[0])[:300]
