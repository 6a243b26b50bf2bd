"""A machine with a GPU, played: a driver whose device memory is the host's, and an engine that is ONNX."""

# ruff: noqa: N802, N815 - handlers carry the names of cuda.h
from __future__ import annotations

import copy
import ctypes
import itertools
import json
import threading
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from decipher_rt.engines import cuda

Work = Callable[[], None]
FIRST_DEVICE, FIRST_PRIMARY = 70, 500  # handles of the first card and of its primary context; neither is an index
OUT_OF_MEMORY, NO_DEVICE, INVALID_DEVICE, INVALID_CONTEXT = 2, 100, 101, 201  # CUresult
ERRORS = {
    OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY", NO_DEVICE: b"CUDA_ERROR_NO_DEVICE",
    INVALID_DEVICE: b"CUDA_ERROR_INVALID_DEVICE", INVALID_CONTEXT: b"CUDA_ERROR_INVALID_CONTEXT",
}  # fmt: skip
# What cuda.h lets a thread call that has no current context.
FREE_OF_CONTEXT = {
    "cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetUuid_v2",
    "cuDeviceTotalMem_v2", "cuDeviceGetAttribute", "cuGetErrorName", "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2",
}  # fmt: skip


def view(pointer: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer)).view(dtype).reshape(shape)


@dataclass(frozen=True)
class FakeCard:
    name: str = "Fake RTX"
    architecture: int = 89
    uuid: str = "3f0c8a52-91d7-4c33-b6a0-2b7f3e5d1c90"
    memory_mib: int = 16384


class FakeCuda:
    """The driver's functions on host memory. Work on a stream is done at once, or recorded while it is captured.

    ``done`` names the copies and kernels that were carried out, in order; ``launches`` are those of kernels outside of
    graphs. A call in ``fail`` does nothing and gives an error, and so does one that needs a context in a thread where
    none is current (``contexts()`` are the calling thread's, the last is current), or where the primary context is gone,
    and one that is given what was made on another card than the current context's (the driver allows some of that).
    ``foreign_streams`` are those of others in the same context.
    ``handles`` are streams and events that live, ``waits`` the streams that were waited for, ``destroyed`` the library's
    objects in the order in which they went, and ``strays`` those that went where their card's context was not current:
    the real library would then start the first card. ``used`` are the cards that had a context.
    """

    def __init__(self, kernels: Path | None, cards: Sequence[FakeCard] = (FakeCard(),)) -> None:
        self.cards = cards
        self.owner: dict[int, int] = {}  # the card of every handle and of all memory
        self.used: set[int] = set()
        self.strays: list[str] = []
        self.calls: list[str] = []
        self.done: list[str] = []
        self.launches: list[dict[str, Any]] = []
        self.live: dict[int, Any] = {}
        self.graphs: dict[int, FakeGraph] = {}
        self.executables: dict[int, FakeGraph] = {}
        self.recording: list[Work] | None = None
        self.fail: set[str] = set()
        self.retained_on = [0] * len(cards)
        self.handles: set[int] = set()
        self.foreign_streams: set[int] = set()
        self.recorded_events: dict[int, int] = {}
        self.waits: list[int] = []
        self.destroyed: list[str] = []
        self._thread = threading.local()
        launch_data = json.loads((kernels / "kernels.json").read_text())["kernels"] if kernels else []
        self.launch_data = {item["kernel"]: item for item in launch_data}
        self._kernel_of: dict[int, str] = {}
        self._handles = itertools.count(1000)

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        handler = getattr(type(self), f"on_{name}", type(self)._nothing)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            expected = cuda._SIGNATURES[name]
            assert len(arguments) == len(expected), name
            if name in self.fail:
                if name == "cuStreamEndCapture":
                    self.recording = None  # also a capture that became invalid is over
                return OUT_OF_MEMORY
            if name not in FREE_OF_CONTEXT and not self._may(arguments):
                return INVALID_CONTEXT
            return int(handler(self, *arguments) or 0)

        return call

    def _nothing(self, *_: Any) -> None:
        pass

    def contexts(self) -> list[int]:
        if not hasattr(self._thread, "contexts"):
            self._thread.contexts = []
        return self._thread.contexts

    @property
    def retained(self) -> int:
        return sum(self.retained_on)

    def current(self) -> int | None:
        """The card whose primary context is current in this thread and lives."""
        card = self.contexts()[-1] - FIRST_PRIMARY if self.contexts() else -1
        return card if 0 <= card < len(self.cards) and self.retained_on[card] else None

    def has_context(self) -> bool:
        return self.current() is not None

    def _may(self, arguments: tuple[Any, ...]) -> bool:
        card = self.current()
        given = (getattr(argument, "value", None) for argument in arguments)
        return card is not None and all(self.owner.get(value, card) == card for value in given if value)

    def _new(self, address: int | None = None) -> int:
        """A handle, or a given address, that belongs to the current card."""
        handle = next(self._handles) if address is None else address
        card = self.current()
        assert card is not None
        self.owner[handle] = card
        return handle

    def gone(self, kind: str, card: int | None) -> None:
        self.destroyed.append(kind)
        if self.current() != card:
            self.strays.append(kind)

    def on_cuGetErrorName(self, status: int, name: Any) -> None:
        name._obj.value = ERRORS[status]

    def _index(self, device: int) -> int:
        assert device in range(FIRST_DEVICE, FIRST_DEVICE + len(self.cards)), "not a handle that cuDeviceGet gave"
        return device - FIRST_DEVICE

    def on_cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:
        card = self._index(device)
        self.retained_on[card] += 1
        self.used.add(card)
        context._obj.value = FIRST_PRIMARY + card

    def on_cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:
        card = self._index(device)
        if self.retained_on[card] == 0:
            return INVALID_CONTEXT
        self.retained_on[card] -= 1
        left = [item for item in (*self.live, *self.handles) if self.owner.get(item) == card]
        assert self.retained_on[card] or not left, "the context took what was not freed with it"
        return 0

    def on_cuCtxPushCurrent_v2(self, context: Any) -> int:
        card = context.value - FIRST_PRIMARY
        if not (0 <= card < len(self.cards) and self.retained_on[card]):
            return INVALID_CONTEXT
        self.contexts().append(context.value)
        return 0

    def on_cuCtxPopCurrent_v2(self, context: Any) -> int:
        if not self.contexts():
            return INVALID_CONTEXT
        context._obj.value = self.contexts().pop()
        return 0

    def on_cuDriverGetVersion(self, number: Any) -> None:
        number._obj.value = 13000

    def on_cuInit(self, flags: int) -> int:
        assert flags == 0
        return 0 if self.cards else NO_DEVICE

    def on_cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = len(self.cards)

    def on_cuDeviceGet(self, device: Any, ordinal: int) -> int:
        if not 0 <= ordinal < len(self.cards):
            return INVALID_DEVICE
        device._obj.value = FIRST_DEVICE + ordinal
        return 0

    def on_cuDeviceGetName(self, name: Any, length: int, device: int) -> None:
        assert length == len(name)
        name.value = self.cards[self._index(device)].name.encode()

    def on_cuDeviceGetUuid_v2(self, number: Any, device: int) -> None:
        number.raw = uuid.UUID(self.cards[self._index(device)].uuid).bytes  # a buffer of another size would be refused

    def on_cuDeviceTotalMem_v2(self, size: Any, device: int) -> None:
        size._obj.value = self.cards[self._index(device)].memory_mib << 20

    def on_cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:
        architecture = self.cards[self._index(device)].architecture
        value._obj.value = {75: architecture // 10, 76: architecture % 10}[attribute]

    def _create(self, out: Any, flags: int) -> None:
        assert flags  # neither kind is made with the defaults
        out._obj.value = self._new()
        self.handles.add(out._obj.value)

    on_cuStreamCreate = on_cuEventCreate = _create

    def _destroy(self, handle: Any) -> None:
        self.handles.remove(handle.value)

    on_cuStreamDestroy_v2 = on_cuEventDestroy_v2 = _destroy

    def on_cuEventRecord(self, event: Any, stream: Any) -> int:
        assert event.value in self.handles
        if stream.value not in self.handles | self.foreign_streams:
            return INVALID_CONTEXT
        self.recorded_events[event.value] = stream.value
        return 0

    def on_cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        assert flags == 0
        assert stream.value in self.handles
        self.waits.append(self.recorded_events[event.value])
        self.enqueue("wait", lambda: None)

    def _allocate(self, out: Any, size: int) -> None:
        memory = (ctypes.c_uint8 * (size + 256))()
        address = -(-ctypes.addressof(memory) // 256) * 256
        ctypes.memset(address, 0xFF, size)  # NaN in every float type
        out._obj.value = self._new(address)
        self.live[address] = memory

    on_cuMemAlloc_v2 = on_cuMemAllocHost_v2 = _allocate

    def _free(self, pointer: Any) -> None:
        self.live.pop(pointer.value)
        self.owner.pop(pointer.value)  # the address may come again, for whatever

    on_cuMemFree_v2 = on_cuMemFreeHost = _free

    def enqueue(self, name: str, work: Callable[[], None]) -> None:
        def noted() -> None:
            self.done.append(name)
            work()

        self.recording.append(noted) if self.recording is not None else noted()

    def on_cuMemcpyHtoDAsync_v2(self, target: Any, source: Any, size: int, _stream: Any) -> None:
        self.enqueue("upload", lambda: ctypes.memmove(target.value, source.value, size))

    def on_cuMemcpyDtoHAsync_v2(self, target: Any, source: Any, size: int, _stream: Any) -> None:
        self.enqueue("download", lambda: ctypes.memmove(target.value, source.value, size))

    def on_cuStreamSynchronize(self, _stream: Any) -> None:
        assert self.recording is None, "a stream that is being captured cannot be waited for"

    def on_cuStreamBeginCapture_v2(self, _stream: Any, mode: int) -> None:
        assert mode == cuda.CAPTURE_THREAD_LOCAL
        assert self.recording is None
        self.recording = []

    def on_cuStreamEndCapture(self, _stream: Any, graph: Any) -> None:
        recorded, self.recording = self.recording, None
        assert recorded is not None, "no capture has begun"
        self._new_graph(graph).nodes[next(self._handles)] = recorded

    def _new_graph(self, out: Any) -> FakeGraph:
        out._obj.value = self._new()
        return self.graphs.setdefault(out._obj.value, FakeGraph())

    def on_cuGraphCreate(self, graph: Any, flags: int) -> None:
        assert flags == 0
        self._new_graph(graph)

    def _add(self, node: Any, graph: Any, dependencies: Any, count: int, work: list[Work]) -> None:
        node._obj.value = next(self._handles)
        assert count == (0 if dependencies is None else 1)
        self.graphs[graph.value].add(node._obj.value, work, dependencies._obj.value if count else None)

    def on_cuGraphAddChildGraphNode(self, node: Any, graph: Any, dependencies: Any, count: int, child: Any) -> None:
        self._add(node, graph, dependencies, count, self.graphs[child.value].work())

    def on_cuGraphAddKernelNode_v2(self, node: Any, graph: Any, dependencies: Any, count: int, params: Any) -> None:
        self._add(node, graph, dependencies, count, [self._kernel_of_node(params._obj)])

    def on_cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, _flags: int) -> None:
        executable._obj.value = self._new()
        self.executables[executable._obj.value] = copy.deepcopy(self.graphs[graph.value])

    def on_cuGraphExecKernelNodeSetParams_v2(self, executable: Any, node: Any, params: Any) -> None:
        assert any(node.value in graph.nodes for graph in self.graphs.values()), "its graph was destroyed"
        self.executables[executable.value].nodes[node.value] = [self._kernel_of_node(params._obj)]

    def on_cuGraphLaunch(self, executable: Any, _stream: Any) -> None:
        for work in self.executables[executable.value].work():
            work()

    def on_cuGraphDestroy(self, graph: Any) -> int:
        return 0 if graph.value and self.graphs.pop(graph.value) else 1

    def on_cuGraphExecDestroy(self, executable: Any) -> None:
        self.executables.pop(executable.value)

    def on_cuModuleLoadData(self, out: Any, cubin: bytes) -> None:
        assert cubin.startswith(b"\x7fELF")
        out._obj.value = self._new()

    def on_cuModuleGetFunction(self, out: Any, _module: Any, name: bytes) -> None:
        out._obj.value = self._new()
        (kernel,) = (item["kernel"] for item in self.launch_data.values() if item["entry"] == name.decode())
        self._kernel_of[out._obj.value] = kernel

    def on_cuLaunchKernel(self, function: Any, *arguments: Any) -> None:
        *sizes, _stream, pointers, _extra = arguments
        kernel = self._kernel_of[function.value]
        self.launches.append({"kernel": kernel, "grid": sizes[:3], "block": sizes[3:6], "shared": sizes[6]})
        self.enqueue(kernel, self._compute(kernel, pointers))

    def _kernel_of_node(self, params: cuda.KernelNodeParams) -> Work:
        """Read the parameters now, as the driver does: what they point to may be gone later."""
        kernel = self._kernel_of[params.func]
        data = self.launch_data[kernel]
        assert (params.blockDimX, params.blockDimY, params.blockDimZ) == (data["threads"], 1, 1)
        assert params.sharedMemBytes == data["shared_memory_bytes"]
        assert not params.extra
        compute = self._compute(kernel, params.kernelParams)

        def work() -> None:
            self.done.append(kernel)
            compute()

        return work

    def _compute(self, kernel: str, pointers: Any) -> Work:
        data, given, card = self.launch_data[kernel], {}, self.current()
        for index, item in enumerate(data["arguments"]):
            kind = ctypes.c_int32 if "int32" in item else ctypes.c_uint64
            value = given[item["name"]] = kind.from_address(pointers[index]).value
            assert "int32" in item or self.owner.get(value, card) == card, "memory of another card: an illegal address"
        return lambda: KERNELS[kernel](given, data["constants"])


class FakeGraph:
    """Nodes in the order in which their dependencies let them run: here each depends on the one before."""

    def __init__(self) -> None:
        self.nodes: dict[int, list[Work]] = {}

    def add(self, node: int, work: list[Work], after: int | None) -> None:
        assert after == (list(self.nodes)[-1] if self.nodes else None), "two nodes could run at once"
        self.nodes[node] = work

    def work(self) -> list[Work]:
        return [work for node in self.nodes.values() for work in node]

    def __deepcopy__(self, _memo: Any) -> FakeGraph:
        made = FakeGraph()
        made.nodes = {node: list(work) for node, work in self.nodes.items()}
        return made


def embed(given: dict[str, int], constants: dict[str, int]) -> None:
    """The patch embedding in numpy, from nothing but the arguments of the launch."""
    assert given["global_scratch"] == given["profile_scratch"] == 0
    grid = (constants["GRID_D"], constants["GRID_H"], constants["GRID_W"])
    patch = (constants["PATCH_D"], constants["PATCH_H"], constants["PATCH_W"])
    rows, per_volume, C = given["rows"], given["tokens_per_volume"], constants["C"]
    assert rows == per_volume  # one volume
    P, N = int(np.prod(patch)), int(np.prod(grid))
    volume = view(given["volume"], tuple(g * p for g, p in zip(grid, patch, strict=True)), np.float32)
    low, high = view(given["window"], (2,), np.float32)
    tokens = view(given["tokens"], (rows,), np.int64)
    weight = view(given["weight"], (C, P), np.float16).astype(np.float32)
    bias, position = view(given["bias"], (C,), np.float32), view(given["position"], (N, C), np.float32)
    split = volume.reshape(grid[0], patch[0], grid[1], patch[1], grid[2], patch[2]).transpose(0, 2, 4, 1, 3, 5)
    patches = np.clip((split.reshape(N, P)[tokens] - low) / (high - low), 0, 1) * 2 - 1
    view(given["out"], (rows, C), np.float16)[...] = patches @ weight.T + bias + position[tokens]


def count(given: dict[str, int], constants: dict[str, int]) -> None:
    """The tissue counts by a loop over patches, from nothing but the arguments of the launch."""
    assert given["global_scratch"] == given["profile_scratch"] == 0
    grid = (constants["GRID_D"], constants["GRID_H"], constants["GRID_W"])
    patch = (constants["PATCH_D"], constants["PATCH_H"], constants["PATCH_W"])
    volume = view(given["volume"], tuple(g * p for g, p in zip(grid, patch, strict=True)), np.float32)
    (threshold,) = view(given["threshold"], (1,), np.float32)
    out = view(given["out"], (int(np.prod(grid)),), np.int32)
    for index, corner in enumerate(np.ndindex(*grid)):
        block = tuple(slice(c * p, (c + 1) * p) for c, p in zip(corner, patch, strict=True))
        out[index] = np.count_nonzero(volume[block] > threshold)


KERNELS = {"patch_embed3d": embed, "tissue_counts": count}


class FakeContext:
    """An execution context of TensorRT; ``config`` is the runtime configuration that it was made with."""

    def __init__(self, driver: FakeCuda, session: ort.InferenceSession, config: FakeConfig | None, log: Any) -> None:
        self._driver, self._session, self._log = driver, session, log
        self._card = driver.current()
        self._config = None if config is None else weakref.ref(config)
        self.refuses_capture = self.says_so = False
        self.complaint: str | None = None  # why it does not run
        self.addresses: dict[str, int] = {}
        self.profile = self.shape = None

    def __del__(self) -> None:
        self._driver.gone("context", self._card)

    def _check(self) -> None:
        """What it was made with must outlive it."""
        config = None if self._config is None else self._config()
        assert self._config is None or config is not None, "the runtime configuration went before the context"
        assert config is None or config._attached() is not None, "the runtime cache went before the context"

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self._driver.handles
        self.profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert isinstance(shape, tuple | list)
        self.shape = shape
        return name == "embedded"

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert self._driver.owner[memory] == self._card, "memory of another card"
        self.addresses[name] = int(memory)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._check()
        assert stream_handle in self._driver.handles
        assert self._driver.current() == self._card, "the library would take the current context's card, or the first"
        if self.refuses_capture and self._driver.recording is not None:
            return False
        if self.complaint is not None:
            self._log.log(1, self.complaint)
            return False
        self._driver.enqueue("engine", self._run)
        return True

    def _run(self) -> None:
        embedded = view(self.addresses["embedded"], self.shape, np.float16)
        for name, array in zip(("patch", "embedding"), self._session.run(None, {"embedded": embedded}), strict=True):
            view(self.addresses[name], array.shape, np.float32)[...] = array


class FakeRtxContext(FakeContext):
    """TensorRT-RTX alone can be asked before."""

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream in self._driver.handles
        return not (self.says_so and self.refuses_capture)


class FakeCache:
    """``IRuntimeCache``."""

    def __init__(self, driver: FakeCuda) -> None:
        self._driver, self._card = driver, driver.current()
        self.content: bytes | None = None

    def __del__(self) -> None:
        self._driver.gone("cache", self._card)

    def deserialize(self, blob: bytes) -> bool:
        assert self._driver.has_context(), "the cache compares itself with the current context's device"
        self.content = blob
        return blob == b"compiled"

    def serialize(self) -> memoryview:
        return memoryview(b"compiled")


class FakeConfig:
    """``IRuntimeConfig`` of TensorRT, which knows of no cache."""

    def get_execution_context_allocation_strategy(self) -> int:
        return 0

    def set_execution_context_allocation_strategy(self, strategy: int = 0) -> None:
        pass

    def _attached(self) -> FakeCache | None:
        raise AssertionError("it has none")


class FakeRtxConfig(FakeConfig):
    """``IRuntimeConfig`` of TensorRT-RTX."""

    def __init__(self, driver: FakeCuda, caches: list[weakref.ref[FakeCache]]) -> None:
        self._driver, self._caches, self._card = driver, caches, driver.current()
        self._cache: weakref.ref[FakeCache] | None = None

    def __del__(self) -> None:
        self._driver.gone("config", self._card)

    def create_runtime_cache(self) -> FakeCache:
        cache = FakeCache(self._driver)
        self._caches.append(weakref.ref(cache))
        return cache

    def set_runtime_cache(self, cache: FakeCache | None = None) -> bool:
        assert isinstance(cache, FakeCache)
        self._cache = weakref.ref(cache)
        return True

    def _attached(self) -> FakeCache | None:
        return self._cache() if self._cache is not None else None


def fake_library(
    driver: FakeCuda, *, rtx: bool, refuses_capture: bool = False, says_so: bool = False
) -> SimpleNamespace:
    """With ``refuses_capture`` no context runs while its stream is captured; with ``says_so`` it can be asked before.

    ``contexts`` and ``caches`` are weak references: the library owns neither. ``parts`` are the played classes by the
    names of the real ones.
    """
    contexts: list[weakref.ref[FakeContext]] = []
    caches: list[weakref.ref[FakeCache]] = []

    class Logger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    class Engine:
        def __init__(self, content: bytes, log: Any) -> None:
            self._session, self._log = ort.InferenceSession(content, providers=["CPUExecutionProvider"]), log
            self._card = driver.current()

        def __del__(self) -> None:
            driver.gone("engine", self._card)

        def create_runtime_config(self) -> FakeConfig:
            return FakeRtxConfig(driver, caches) if rtx else FakeConfig()

        def create_execution_context(self, runtime_config: FakeConfig | None = None) -> FakeContext:
            assert isinstance(runtime_config, FakeRtxConfig) or not rtx, "it would compile without a cache"
            assert driver.current() == self._card, "an engine is of the card that it was read on"
            made = (FakeRtxContext if rtx else FakeContext)(driver, self._session, runtime_config, self._log)
            made.refuses_capture, made.says_so = refuses_capture, says_so
            contexts.append(weakref.ref(made))
            return made

    class Runtime:
        def __init__(self, logger: Any) -> None:
            assert driver.has_context(), "the library would take the first device's context"
            self._log = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
            if serialized_engine.startswith(b"other"):
                self._log.log(Logger.Severity.ERROR, "Version tag does not match.\n  expected 1.7")
                return None
            # The real ones complain of what they then mend, too.
            self._log.log(Logger.Severity.ERROR, "an engine of another minor version, read all the same")
            return Engine(serialized_engine, self._log)

    parts = {"Runtime": Runtime, "ICudaEngine": Engine}
    parts |= {"IExecutionContext": FakeRtxContext, "IRuntimeConfig": FakeRtxConfig, "IRuntimeCache": FakeCache}
    if not rtx:
        parts |= {"IExecutionContext": FakeContext, "IRuntimeConfig": FakeConfig}
        del parts["IRuntimeCache"]
    return SimpleNamespace(
        ILogger=Logger, Runtime=Runtime, __version__="1.7.1", contexts=contexts, caches=caches, parts=parts
    )


@pytest.fixture(scope="session")
def gpu_memory() -> Callable[[int, tuple[int, ...], Any], np.ndarray]:
    """An array on what an address of the played GPU holds."""
    return view


@pytest.fixture(scope="session")
def play_gpu() -> Callable[..., FakeCuda]:
    """Put the played driver in the place of the machine's, for the kernels of a folder.

    ``cards`` are the arguments of a ``FakeCard`` each; without them there is one.
    """

    def play(kernels: Path | None, patch: pytest.MonkeyPatch, cards: Sequence[Mapping[str, Any]] = ({},)) -> FakeCuda:
        driver = FakeCuda(kernels, [FakeCard(**card) for card in cards])
        patch.setattr(cuda, "_library", lambda: driver)
        return driver

    return play


@pytest.fixture(scope="session")
def play_library() -> Callable[..., SimpleNamespace]:
    """Make a TensorRT, of either flavour, whose plans are ONNX graphs and whose work goes to a played driver."""
    return fake_library
