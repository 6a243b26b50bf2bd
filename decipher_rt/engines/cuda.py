"""The CUDA driver by ctypes: what runs an engine and the kernels of a bundle on a GPU, without PyTorch or CuPy.

Function names and signatures are those of ``cuda.h`` (CUDA Driver API, 12 and later); ``_v2`` is what the header's
macros make of a name. Every call is checked, and an error says which call failed and how the driver names it. Calls are
made in the device's primary context; a caller's own context is current again afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
import uuid
import weakref
from collections.abc import Iterator, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.device_array import DeviceArray
from decipher_rt.errors import EngineError

LIBRARY = "libcuda.so.1"
OLDEST = "CUDA 12.0, driver release 525"  # the first with all functions below
SUCCESS = 0
STREAM_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
EVENT_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
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
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetUuid_v2": (c_char_p, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
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


class DeviceMemory:
    """Memory on the GPU alone, freed with the object."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        device = c_void_p()
        driver.call("cuMemAlloc_v2", byref(device), nbytes)
        weakref.finalize(self, driver.free, "cuMemFree_v2", device)
        assert device.value is not None  # noqa: S101 - the call succeeded
        self.pointer, self.nbytes = device.value, nbytes


class Buffer:
    """Memory on the GPU with its page-locked counterpart on the host, made once and freed with the object."""

    def __init__(self, driver: Driver, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self._driver = driver
        nbytes = int(np.prod(shape)) * dtype.itemsize
        self._device, host = DeviceMemory(driver, nbytes), c_void_p()
        driver.call("cuMemAllocHost_v2", byref(host), nbytes)
        weakref.finalize(self, driver.free, "cuMemFreeHost", host)
        assert host.value is not None  # noqa: S101 - the call succeeded
        self.array = DeviceArray(self._device.pointer, tuple(shape), dtype)
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


class Device:
    """What the driver says of one device, without starting anything on it.

    Parameters
    ----------
    index : int
        Of the device, as ``CUDA_VISIBLE_DEVICES`` leaves them.

    Raises
    ------
    EngineError
        If there is no driver, or one that is too old, or no such device.
    """

    def __init__(self, index: int = 0) -> None:
        self._library = _ready()
        device = c_int()
        self._call("cuDeviceGet", byref(device), index)
        self._device, self.index = device.value, index

    @property
    def name(self) -> str:
        """The card's name."""
        name = ctypes.create_string_buffer(128)
        self._call("cuDeviceGetName", name, len(name), self._device)
        return name.value.decode(errors="replace")

    @property
    def label(self) -> str:
        """Index and name, as results have them."""
        return f"cuda:{self.index} {self.name}"

    @property
    def uuid(self) -> str:
        """What names the card whatever its index is, as ``nvidia-smi -L`` prints it."""
        number = ctypes.create_string_buffer(16)
        self._call("cuDeviceGetUuid_v2", number, self._device)
        return f"GPU-{uuid.UUID(bytes=number.raw)}"

    @property
    def memory_mib(self) -> int:
        """All of the card's memory."""
        size = c_size_t()
        self._call("cuDeviceTotalMem_v2", byref(size), self._device)
        return size.value >> 20

    @property
    def architecture(self) -> int:
        """Compute capability times ten."""
        return self._attribute(COMPUTE_CAPABILITY_MAJOR) * 10 + self._attribute(COMPUTE_CAPABILITY_MINOR)

    @property
    def version(self) -> str:
        """The newest CUDA that the driver supports."""
        number = c_int()
        self._call("cuDriverGetVersion", byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def _attribute(self, attribute: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), attribute, self._device)
        return value.value

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != SUCCESS:
            said = _error_name(self._library, status)
            raise EngineError(f"CUDA: {function} gives {said}; 'decipher-rt doctor' says what this machine has")


class Driver(Device):
    """One device with its primary context and a stream of its own; parameters and errors are those of ``Device``."""

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self._thread = threading.local()
        self._context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(self._context), self._device)
        # The last of this object's finalizers to run: those that are registered later run before it.
        weakref.finalize(self, self._library.cuDevicePrimaryCtxRelease_v2, self._device)
        self.stream = self._made("cuStreamCreate", STREAM_NON_BLOCKING, "cuStreamDestroy_v2")
        self._event = self._made("cuEventCreate", EVENT_DISABLE_TIMING, "cuEventDestroy_v2")

    @property
    def stream_handle(self) -> int:
        """The stream as a number, as libraries take it."""
        return self.stream.value or 0

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Have the context current in this thread within the block; libraries that share the device need it.

        Raises
        ------
        EngineError
            If the driver refuses.
        """
        if getattr(self._thread, "inside", False):
            yield
            return
        self._call("cuCtxPushCurrent_v2", self._context)
        self._thread.inside = True
        try:
            yield
        finally:
            self._thread.inside = False
            self._library.cuCtxPopCurrent_v2(byref(c_void_p()))

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        self.call("cuStreamSynchronize", self.stream)

    def wait_for(self, stream: int) -> None:
        """Let what is enqueued from now on wait for what another stream of the primary context was given so far.

        Raises
        ------
        EngineError
            If the driver refuses, as it does for a stream of another context.
        """
        self.call("cuEventRecord", self._event, c_void_p(stream))
        self.call("cuStreamWaitEvent", self.stream, self._event, 0)

    def call(self, function: str, *arguments: Any) -> None:
        """Call the driver in the device's context.

        Raises
        ------
        EngineError
            Naming the call and the driver's name for its error.
        """
        with self.current():
            self._call(function, *arguments)

    def free(self, function: str, memory: c_void_p) -> None:
        """Free memory from any thread, silently: at exit the context may be gone before."""
        with contextlib.suppress(EngineError):
            self.call(function, memory)

    def _made(self, create: str, flags: int, destroy: str) -> c_void_p:
        """Create what is destroyed, in its context, with this object."""
        handle = c_void_p()
        self.call(create, byref(handle), flags)
        weakref.finalize(self, _destroy, self._library, self._context, destroy, handle)
        return handle


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


def devices() -> tuple[Device, ...]:
    """Return the cards that CUDA shows, in its order; nothing is started on them.

    Raises
    ------
    EngineError
        If there is no driver, or one that is too old, or it finds no card.
    """
    count = c_int()
    status = _ready().cuDeviceGetCount(byref(count))
    if status != SUCCESS or not count.value:
        raise _no_card("cuDeviceGetCount", status)
    return tuple(Device(index) for index in range(count.value))


def _ready() -> Any:
    """Return the driver's library, initialised."""
    library = _library()
    status = library.cuInit(0)
    if status != SUCCESS:
        raise _no_card("cuInit", status)
    return library


def _no_card(function: str, status: int) -> EngineError:
    said = _error_name(_library(), status) if status != SUCCESS else "0"
    return EngineError(
        f"the NVIDIA driver finds no usable card ({function} gives {said}): see that 'nvidia-smi -L' lists one and "
        "that CUDA_VISIBLE_DEVICES does not hide it, or run on the CPU"
    )


def _error_name(library: Any, status: int) -> str:
    name = c_char_p()
    library.cuGetErrorName(status, byref(name))
    return name.value.decode() if name.value else f"error {status}"


def _destroy(library: Any, context: c_void_p, function: str, handle: c_void_p) -> None:
    """Destroy a driver's own object, silently as ``Driver.free``; it holds no reference to the driver."""
    if library.cuCtxPushCurrent_v2(context) == SUCCESS:
        getattr(library, function)(handle)
        library.cuCtxPopCurrent_v2(byref(c_void_p()))


@functools.cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise EngineError(f"no NVIDIA driver ({LIBRARY} is not here): install it, or run on the CPU") from None
    for name, arguments in _SIGNATURES.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise EngineError(
                f"NVIDIA driver too old ({LIBRARY} has no {name}): it must be of {OLDEST} or later; update it, or run "
                "on the CPU"
            ) from None
        function.argtypes, function.restype = arguments, c_int
    return library
