"""The CUDA driver by ctypes: what runs an engine and the kernels of a bundle on a GPU, without PyTorch or CuPy.

Function names and signatures are those of ``cuda.h`` (CUDA Driver API, 12 and later); ``_v2`` is what the header's
macros make of a name. Every call is checked, and an error says which call failed and how the driver names it.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.device_array import DeviceArray
from decipher_rt.errors import EngineError

LIBRARY = "libcuda.so.1"
SUCCESS = 0
STREAM_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
CAPTURE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CUfunction_attribute


class KernelNodeParams(ctypes.Structure):
    """``CUDA_KERNEL_NODE_PARAMS_v2``."""

    _fields_ = [
        ("func", c_void_p),
        *((f"{what}Dim{axis}", c_uint) for what in ("grid", "block") for axis in "XYZ"),
        ("sharedMemBytes", c_uint),
        ("kernelParams", POINTER(c_void_p)),
        ("extra", POINTER(c_void_p)),
        ("kern", c_void_p),  # read only where func is null
        ("ctx", c_void_p),
    ]


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphCreate": (POINTER(c_void_p), c_uint),
    "cuGraphAddChildGraphNode": (POINTER(c_void_p), c_void_p, POINTER(c_void_p), c_size_t, c_void_p),
    "cuGraphAddKernelNode_v2": (POINTER(c_void_p), c_void_p, POINTER(c_void_p), c_size_t, POINTER(KernelNodeParams)),
    "cuGraphExecKernelNodeSetParams_v2": (c_void_p, c_void_p, POINTER(KernelNodeParams)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, ctypes.c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_void_p), c_size_t),
    "cuMemFree_v2": (c_void_p,),
    "cuMemAllocHost_v2": (POINTER(c_void_p), c_size_t),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_void_p, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_void_p, c_size_t, c_void_p),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleUnload": (c_void_p,),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}


class Buffer:
    """Memory on the GPU with its page-locked counterpart on the host, made once and freed with the object."""

    def __init__(self, driver: Driver, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self._driver = driver
        nbytes = int(np.prod(shape)) * dtype.itemsize
        device, host = c_void_p(), c_void_p()
        driver.call("cuMemAlloc_v2", byref(device), nbytes)
        weakref.finalize(self, driver.free, "cuMemFree_v2", device)
        driver.call("cuMemAllocHost_v2", byref(host), nbytes)
        weakref.finalize(self, driver.free, "cuMemFreeHost", host)
        assert device.value is not None and host.value is not None  # noqa: S101, PT018 - the calls succeeded
        self.array = DeviceArray(device.value, tuple(shape), dtype)
        memory = (ctypes.c_uint8 * nbytes).from_address(host.value)
        self.host: NDArray[Any] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def upload(self, stream: c_void_p) -> None:
        """Copy host to device on a stream."""
        self._copy("cuMemcpyHtoDAsync_v2", self.array.pointer, self.host.ctypes.data, stream)

    def download(self, stream: c_void_p) -> None:
        """Copy device to host on a stream."""
        self._copy("cuMemcpyDtoHAsync_v2", self.host.ctypes.data, self.array.pointer, stream)

    def _copy(self, function: str, target: int, source: int, stream: c_void_p) -> None:
        self._driver.call(function, c_void_p(target), c_void_p(source), self.array.nbytes, stream)


class Driver:
    """One device with its primary context current in this thread, and a stream of its own.

    Parameters
    ----------
    index : int
        Of the device, as ``CUDA_VISIBLE_DEVICES`` leaves them.

    Raises
    ------
    EngineError
        If there is no driver, or no such device.
    """

    def __init__(self, index: int = 0) -> None:
        self._library = _library()
        self.call("cuInit", 0)
        device = c_int()
        self.call("cuDeviceGet", byref(device), index)
        self._device, self.index = device.value, index
        self._context = c_void_p()
        self.call("cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        self.make_current()
        self.stream = c_void_p()
        self.call("cuStreamCreate", byref(self.stream), STREAM_NON_BLOCKING)
        weakref.finalize(self, self._library.cuStreamDestroy_v2, self.stream)

    @property
    def stream_handle(self) -> int:
        """The stream as a number, as libraries take it."""
        return self.stream.value or 0

    @property
    def name(self) -> str:
        """The card's name."""
        name = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", name, len(name), self._device)
        return name.value.decode(errors="replace")

    @property
    def architecture(self) -> int:
        """Compute capability times ten."""
        return self._attribute(COMPUTE_CAPABILITY_MAJOR) * 10 + self._attribute(COMPUTE_CAPABILITY_MINOR)

    @property
    def version(self) -> str:
        """The newest CUDA that the driver supports."""
        number = c_int()
        self.call("cuDriverGetVersion", byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def make_current(self) -> None:
        """Make the context current in the calling thread."""
        self.call("cuCtxSetCurrent", self._context)

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        self.call("cuStreamSynchronize", self.stream)

    def call(self, function: str, *arguments: Any) -> None:
        """Call the driver.

        Raises
        ------
        EngineError
            Naming the call and the driver's name for its error.
        """
        status = getattr(self._library, function)(*arguments)
        if status != SUCCESS:
            name = c_char_p()
            self._library.cuGetErrorName(status, byref(name))
            said = name.value.decode() if name.value else f"error {status}"
            raise EngineError(f"CUDA: {function} gives {said}; 'decipher-rt doctor' says what this machine has")

    def free(self, function: str, memory: c_void_p) -> None:
        """Free memory, silently: at exit the context may be gone before."""
        getattr(self._library, function)(memory)

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), attribute, self._device)
        return value.value


class Kernel:
    """A kernel of a cubin; ``shared_memory`` is what each of its blocks gets, in bytes."""

    def __init__(self, driver: Driver, cubin: bytes, entry: str, shared_memory: int, *, raise_limit: bool) -> None:
        self._driver, self.shared_memory = driver, shared_memory
        module = c_void_p()
        driver.call("cuModuleLoadData", byref(module), cubin)
        weakref.finalize(self, driver.free, "cuModuleUnload", module)
        self.function = c_void_p()
        driver.call("cuModuleGetFunction", byref(self.function), module, entry.encode())
        if raise_limit:
            driver.call("cuFuncSetAttribute", self.function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_memory)

    def launch(self, grid: tuple[int, int, int], threads: int, pointers: ctypes.Array[c_void_p]) -> None:
        """Launch on the driver's stream; ``pointers`` are the addresses of its arguments."""
        self._driver.call(
            "cuLaunchKernel",
            self.function, *grid, threads, 1, 1, self.shared_memory, self._driver.stream, pointers, None,
        )  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel with what it is launched on; ``arguments`` are ctypes values in the kernel's order."""

    kernel: Kernel
    grid: tuple[int, int, int]
    threads: int
    arguments: tuple[Any, ...]

    def run(self) -> None:
        """Launch on the driver's stream."""
        self.kernel.launch(self.grid, self.threads, self.pointers())

    def pointers(self) -> ctypes.Array[c_void_p]:
        """Return the arguments' addresses, as the driver takes them; it copies what they point to at the call."""
        return (c_void_p * len(self.arguments))(*(ctypes.addressof(argument) for argument in self.arguments))


@functools.cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise EngineError(f"no NVIDIA driver ({LIBRARY} is not here): install it, or run on the CPU") from None
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    return library
