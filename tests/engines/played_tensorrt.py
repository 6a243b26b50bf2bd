"""TensorRT and TensorRT-RTX, played: a plan is an ONNX graph, and its work goes to a played driver."""

# ruff: noqa: N802 - the library's names
from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from .played_cuda import FakeCuda
from .played_kernels import view

SCRATCH = 4096  # bytes that a context of the first profile needs


class FakeLogger:
    """``ILogger``."""

    Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)


@dataclass
class FakeLibrary:
    """The module of either flavour.

    With ``refuses_capture`` no context runs while its stream is captured; with ``says_so`` it can be asked before.
    ``contexts`` and ``caches`` are weak references: the library owns neither. ``fallback_kernels`` are the shapes that
    were recorded before their own kernels were compiled.
    """

    driver: FakeCuda
    rtx: bool
    refuses_capture: bool = False
    says_so: bool = False
    contexts: list[weakref.ref[FakeContext]] = field(default_factory=list)
    caches: list[weakref.ref[FakeCache]] = field(default_factory=list)
    fallback_kernels: list[str] = field(default_factory=list)
    DataType = SimpleNamespace(FLOAT="float", HALF="half")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy", EAGER="eager", NONE="none")
    ExecutionContextAllocationStrategy = SimpleNamespace(STATIC="static", USER_MANAGED="user managed")
    ILogger = FakeLogger
    __version__ = "1.7.1"

    def Runtime(self, logger: Any) -> FakeRuntime:
        return FakeRuntime(self, logger)

    @property
    def parts(self) -> dict[str, type]:
        """The played classes by the names of the real ones."""
        if self.rtx:
            return {
                "Runtime": FakeRuntime, "ICudaEngine": FakeRtxEngine, "IExecutionContext": FakeRtxContext,
                "IRuntimeConfig": FakeConfig, "IRuntimeCache": FakeCache,
            }  # fmt: skip
        return {"Runtime": FakeRuntime, "ICudaEngine": FakeEngine, "IExecutionContext": FakeContext}


class FakeRuntime:
    def __init__(self, library: FakeLibrary, log: Any) -> None:
        assert library.driver.current() is not None, "the library would take the first device's context"
        self._library, self._log = library, log

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
        if serialized_engine.startswith(b"other"):
            self._log.log(FakeLogger.Severity.ERROR, "Version tag does not match.\n  expected 1.7")
            return None
        # The real ones complain of what they then mend, too.
        self._log.log(FakeLogger.Severity.ERROR, "an engine of another minor version, read all the same")
        return (FakeRtxEngine if self._library.rtx else FakeEngine)(self._library, serialized_engine, self._log)


class Owned:
    """An object of the library. It belongs to the card that is current when it is made."""

    kind: str

    def __init__(self, library: FakeLibrary) -> None:
        self._library, self._driver, self._card = library, library.driver, library.driver.current()

    def __del__(self) -> None:
        self._driver.gone(self.kind, self._card)


class FakeEngine(Owned):
    """``ICudaEngine`` of TensorRT, which the runtime asks for no runtime configuration."""

    kind = "engine"

    def __init__(self, library: FakeLibrary, content: bytes, log: Any) -> None:
        super().__init__(library)
        self._session, self._log = ort.InferenceSession(content, providers=["CPUExecutionProvider"]), log

    def create_execution_context(self, runtime_config: FakeConfig | None = None) -> FakeContext | None:
        assert isinstance(runtime_config, FakeConfig) == self._library.rtx, "RTX would compile without a cache"
        if runtime_config is not None and runtime_config.allocation != "user managed":
            self._log.log(
                FakeLogger.Severity.ERROR,
                "Engine was built with BuilderFlag::kREQUIRE_USER_ALLOCATION. Execution context creation requires "
                "ExecutionContextAllocationStrategy::kUSER_MANAGED allocation strategy.",
            )
            return None
        assert self._driver.current() == self._card, "an engine is of the card that it was read on"
        made = (FakeRtxContext if self._library.rtx else FakeContext)(
            self._library, self._session, runtime_config, self._log
        )
        self._library.contexts.append(weakref.ref(made))
        return made

    def get_tensor_dtype(self, name: str) -> str:
        (output,) = (output for output in self._session.get_outputs() if output.name == name)
        return self._library.DataType.FLOAT if output.type == "tensor(float)" else self._library.DataType.HALF


class FakeRtxEngine(FakeEngine):
    """``ICudaEngine`` of TensorRT-RTX."""

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig(self._library)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return SCRATCH * (profile_index + 1)


class FakeConfig(Owned):
    """``IRuntimeConfig`` of TensorRT-RTX; TensorRT's knows of no cache."""

    kind = "config"

    def __init__(self, library: FakeLibrary) -> None:
        super().__init__(library)
        self._cache: weakref.ref[FakeCache] | None = None
        self.dynamic_shapes_kernel_specialization_strategy, self.allocation = "lazy", "static"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> FakeCache:
        cache = FakeCache(self._library)
        self._library.caches.append(weakref.ref(cache))
        return cache

    def set_runtime_cache(self, cache: FakeCache | None = None) -> bool:
        assert isinstance(cache, FakeCache)
        self._cache = weakref.ref(cache)
        return True

    def _attached(self) -> FakeCache | None:
        return self._cache() if self._cache is not None else None


class FakeCache(Owned):
    """``IRuntimeCache``: the shapes whose kernels are compiled."""

    kind = "cache"

    def __init__(self, library: FakeLibrary) -> None:
        super().__init__(library)
        self.shapes: set[str] = set()

    def deserialize(self, blob: bytes) -> bool:
        assert self._driver.current() is not None, "the cache compares itself with the current context's device"
        magic, _, shapes = blob.decode().partition(":")
        if magic != "compiled":
            return False
        self.shapes = set(shapes.split(";"))
        return True

    def serialize(self) -> memoryview:
        return memoryview(f"compiled:{';'.join(sorted(self.shapes))}".encode())


class FakeContext(Owned):
    """An execution context of TensorRT; ``complaint`` is why it does not run."""

    kind = "context"

    def __init__(
        self, library: FakeLibrary, session: ort.InferenceSession, config: FakeConfig | None, log: Any
    ) -> None:
        super().__init__(library)
        self._session, self._log = session, log
        self._config = None if config is None else weakref.ref(config)
        self.complaint: str | None = None
        self.addresses: dict[str, int] = {}
        self.profile = self.shape = None

    def _check(self) -> None:
        """What it was made with must outlive it."""
        if self._config is None:
            return
        config = self._config()
        assert config is not None, "the runtime configuration went before the context"
        assert config._attached() is not None, "the runtime cache went before the context"

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self._driver.handles
        self.profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert isinstance(shape, tuple | list)
        self.shape = shape
        return name == "embedded"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        (array,) = self._session.run([name], {"embedded": np.zeros(self.shape, np.float16)})
        return array.shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert self._driver.owner[memory] == self._card, "memory of another card"
        self.addresses[name] = int(memory)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self._check()
        assert stream_handle in self._driver.handles
        assert self._driver.current() == self._card, "the library would take the current context's card, or the first"
        if self._library.refuses_capture and self._driver.recording is not None:
            return False
        if self.complaint is not None:
            self._log.log(FakeLogger.Severity.ERROR, self.complaint)
            return False
        self._driver.enqueue("engine", self._run)
        return True

    def _run(self) -> None:
        embedded = view(self.addresses["embedded"], self.shape, np.float16)
        for name, array in zip(("patch", "embedding"), self._session.run(None, {"embedded": embedded}), strict=True):
            view(self.addresses[name], array.shape, np.float32)[...] = array


class FakeRtxContext(FakeContext):
    """TensorRT-RTX alone can be asked before, compiles, and is given its memory.

    Left to itself it compiles behind the first runs, which take a kernel that is there for every shape; what is recorded
    of those is never replaced, and what is written of the cache lacks it.
    """

    memory: tuple[int, int] | None = None

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._driver.owner[memory] == self._card, "memory of another card"
        self.memory = memory, size

    def execute_async_v3(self, stream_handle: int) -> bool:
        config = None if self._config is None else self._config()
        assert config is not None
        if self.memory is None or self.memory[1] < SCRATCH * ((self.profile or 0) + 1):
            self._log.log(FakeLogger.Severity.ERROR, "IExecutionContext::setDeviceMemoryV2 should be called before")
            return False
        assert self.memory[0] in self._driver.live, "its memory was freed"
        cache = config._attached()
        if config.dynamic_shapes_kernel_specialization_strategy == "eager":
            assert cache is not None
            assert str(self.shape) in cache.shapes or self._driver.recording is None, "nothing compiles in a capture"
            cache.shapes.add(str(self.shape))
        elif self._driver.recording is not None:
            self._library.fallback_kernels.append(str(self.shape))
        return super().execute_async_v3(stream_handle)

    def is_stream_capturable(self, stream: int) -> bool:
        assert stream in self._driver.handles
        return not (self._library.says_so and self._library.refuses_capture)
