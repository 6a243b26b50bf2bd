"""TensorRT and TensorRT-RTX: the encoder on a GPU, from a grid in device memory to embedding and tokens on one stream.

The patch-embedding kernel reads the grid where DALI left it, the engine what the kernel wrote; for each token bucket
uploads, kernel, engine and downloads are one CUDA graph. All memory is taken when the engine is loaded, and each bucket
is run once then.

Written against the documented API of TensorRT 10 and 11 and TensorRT-RTX 1.7. ``docs/engines.md`` says what of it has
run on a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import time
import weakref
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from decipher_rt.device_array import DeviceArray
from decipher_rt.engines.cuda import Buffer, DeviceMemory, Driver, Launch
from decipher_rt.engines.cuda_graph import GridStep
from decipher_rt.engines.driver_release import driver_release
from decipher_rt.engines.patch_embed import PatchEmbed
from decipher_rt.engines.select import plan_advice
from decipher_rt.engines.tensorrt_cache import CachingConfig, RuntimeCache, cache_file
from decipher_rt.engines.tensorrt_log import failure, message_log
from decipher_rt.engines.tissue import TissueCounter
from decipher_rt.errors import EngineError
from decipher_rt.manifest import Precision, Preprocessing

if TYPE_CHECKING:
    import tensorrt as trt

# Flavour, module, and how to install it.
LIBRARIES = {
    "tensorrt": ("tensorrt", "pip install tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "pip install 'decipher-rt[tensorrt-rtx]'"),
}
INPUT, OUTPUTS = "embedded", ("patch", "embedding")
SINGLE, HALF, INDEX = np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int64)


@dataclass(frozen=True)
class Plan:
    """One serialised engine; ``tokens`` are its buckets in the order of its optimisation profiles.

    ``built_with`` is the version of the library that built it, as the manifest has it; empty where that says nothing.
    """

    path: Path
    sha256: str
    tokens: tuple[int, ...]
    built_with: str = ""


@dataclass(frozen=True)
class _Bucket:
    """What one number of tokens needs: buffers, the context with their addresses, and the step that uses them.

    ``sha256`` is that of the plan.
    """

    sha256: str
    context: trt.IExecutionContext
    tokens: Buffer
    embedded: Buffer
    outputs: dict[str, Buffer]
    step: GridStep


class TensorRtEngine:
    """The encoder on a GPU, one volume at a time.

    Parameters
    ----------
    flavour : "tensorrt" or "tensorrt-rtx"
    plans : sequence of Plan
        All of one bundle and precision for this card.
    kernels : Path
        The bundle's folder of kernels.
    spec : Preprocessing
    precision : "fp16", "bf16" or "int8"
    embedding_size : int
    device : int
        CUDA's index of the card.

    Attributes
    ----------
    load_ms : float
    compiled : bool
        Whether this load compiled what a later one finds on disk (TensorRT-RTX).
    not_recorded : str or None
        Why CUDA graphs are not used, where recording one was refused.

    Raises
    ------
    EngineError
        If there is no driver or library, or an engine was built for another card or version: which, and how to
        rebuild it.
    """

    threads = 1
    inputs = ("volume", "window", "tokens")

    def __init__(
        self,
        flavour: str,
        plans: Sequence[Plan],
        kernels: Path,
        spec: Preprocessing,
        *,
        precision: Precision,
        embedding_size: int,
        device: int = 0,
    ) -> None:
        start = time.perf_counter()
        self.name, self.precision = flavour, str(precision)
        self._precision = precision
        self._trt = require_library(flavour)
        self.driver = Driver(device)
        self.device = self.driver.label
        self._buckets: dict[int, _Bucket] = {}
        self._engines: list[trt.ICudaEngine] = []
        self._caches: list[RuntimeCache] = []
        self._scratch: list[DeviceMemory] = []
        # In the card's context: in a thread without one the library would start the first card to free what is here.
        weakref.finalize(self, _free, self.driver, self._buckets, self._engines, self._caches, self._scratch)
        self._log = message_log(self._trt)
        self.not_recorded: str | None = None
        with self.driver.current():
            self._runtime: trt.Runtime = self._trt.Runtime(self._log)
            self._embed = PatchEmbed(kernels, self.driver)
            self._volume = Buffer(self.driver, (1, 1, *spec.grid_shape), SINGLE)
            self._window = Buffer(self.driver, (1, 2), SINGLE)
            self._count = TissueCounter(kernels, self.driver, spec.patches)
            self._prepare_warm_up()
            self._count(self._volume.array, np.float32(0))
            self._record(self._count.step)
            for plan in plans:
                self._load(plan, embedding_size)
        # What the card's first load takes is no measure of the others: it compiles.
        self.compiled = any(cache.compiled for cache in self._caches)
        self.load_ms = (time.perf_counter() - start) * 1e3

    def run(self, inputs: Mapping[str, NDArray[Any] | DeviceArray]) -> dict[str, NDArray[Any]]:
        """Encode one volume.

        Parameters
        ----------
        inputs : mapping
            ``volume`` (1, 1, D, H, W) float32, on the host or already on this device; ``window`` (1, 2) float32;
            ``tokens`` (1, K) int64.

        Raises
        ------
        EngineError
            If an input has another type or shape, K is no bucket of the engine, or CUDA fails.
        """
        volume, window, tokens = (inputs[name] for name in self.inputs)
        _check("volume", volume, self._volume.array)
        _check("window", window, self._window.array)
        bucket = self._bucket_of(tokens.shape[-1])
        _check("tokens", tokens, bucket.tokens.array)
        bucket.tokens.host[...] = tokens
        self._window.host[...] = window
        with self.driver.current():
            bucket.step.run(self._on_device(volume))
            self.driver.synchronize()
        return {name: output.host.copy() for name, output in bucket.outputs.items()}

    def sha256_of(self, tokens: int) -> str:
        """Return the sha256 of the plan that encodes this number of tokens.

        Raises
        ------
        EngineError
            If it is no bucket of the engine.
        """
        return self._bucket_of(tokens).sha256

    def tissue_counts(self, volume: NDArray[Any] | DeviceArray, threshold: np.float32) -> NDArray[np.int32]:
        """Count the voxels of each patch of a grid that are above a threshold.

        Parameters
        ----------
        volume : (1, 1, D, H, W) float32, on the host or already on this device
        threshold : float32
            From ``decipher_rt.tokens.tissue_threshold``.

        Returns
        -------
        ndarray, shape (patches,), int32

        Raises
        ------
        EngineError
            If the grid has another type or shape, or CUDA fails.
        """
        _check("volume", volume, self._volume.array)
        with self.driver.current():
            return self._count(self._on_device(volume), threshold)

    def _bucket_of(self, tokens: int) -> _Bucket:
        bucket = self._buckets.get(tokens)
        if bucket is None:
            known = ", ".join(map(str, self._buckets))
            raise EngineError(f"{self.name}: {tokens} tokens, the engine was built for {known}")
        return bucket

    def _on_device(self, volume: NDArray[Any] | DeviceArray) -> DeviceArray:
        """Return a grid that work on this driver's stream may read."""
        if isinstance(volume, DeviceArray):
            if volume.stream not in (0, self.driver.stream_handle):
                self.driver.wait_for(volume.stream)
            return volume
        self._volume.host[...] = volume
        self._volume.upload(self.driver.stream)
        return self._volume.array

    def _load(self, plan: Plan, embedding_size: int) -> None:
        """Make one plan ready: its engine, and a context for each of its buckets, each run once."""
        engine = self._deserialize(plan)
        self._engines.append(engine)
        # TensorRT has runtime configurations as well, but theirs know no cache: it compiles nothing at loading.
        cache = self._cache(plan) if self.name == "tensorrt-rtx" else None
        scratch = None
        if cache is not None:
            self._caches.append(cache)
            sizes = [engine.get_device_memory_size_for_profile_v2(profile) for profile in range(len(plan.tokens))]
            scratch = DeviceMemory(self.driver, max(1, *sizes))  # one bucket at a time runs: they share it
            self._scratch.append(scratch)
        for profile, tokens in enumerate(plan.tokens):
            context = self._context(engine, cache)
            self._buckets[tokens] = self._bucket(plan.sha256, engine, context, profile, tokens, embedding_size)
            if scratch is not None:
                context.set_device_memory(scratch.pointer, scratch.nbytes)
            self._warm_up(self._buckets[tokens])
        if cache is not None:
            cache.save()

    def _deserialize(self, plan: Plan) -> trt.ICudaEngine:
        content, architecture = plan.path.read_bytes(), self.driver.architecture
        self._log.errors.clear()
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            built = f" (built with {plan.built_with})" if plan.built_with else ""
            where = f"{plan.path.name}{built}: {self.name} {self._trt.__version__} on sm_{architecture}"
            advice = f"rebuild it: {plan_advice(self.name, self._precision, architecture)}"
            raise failure(f"{where} refuses it", self._log, advice)
        return engine

    def _cache(self, plan: Plan) -> RuntimeCache:
        driver = f"{self.driver.version} {driver_release()}"
        card = f"{self.driver.name} sm_{self.driver.architecture}"
        return RuntimeCache(cache_file(plan.sha256, self._trt.__version__, driver, card))

    def _context(self, engine: trt.ICudaEngine, cache: RuntimeCache | None) -> trt.IExecutionContext:
        self._log.errors.clear()
        if cache is None:
            context = engine.create_execution_context()
        else:
            runtime_config = engine.create_runtime_config()
            config = cast("CachingConfig", runtime_config)  # the stubs are TensorRT's, this one is TensorRT-RTX's
            # Left to itself it compiles in the background, and what is recorded first are fallback kernels, for ever.
            config.dynamic_shapes_kernel_specialization_strategy = (
                self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            # What is captured may not allocate, and plans that are built for that want their memory from here.
            config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            cache.attach(config)
            context = engine.create_execution_context(runtime_config)
        if context is None:
            raise failure(f"{self.name}: no memory for the engine on {self.device}", self._log)
        return context

    def _bucket(
        self,
        sha256: str,
        engine: trt.ICudaEngine,
        context: trt.IExecutionContext,
        profile: int,
        tokens: int,
        embedding_size: int,
    ) -> _Bucket:
        width = self._embed.width
        shapes = {"patch": (1, tokens, width), "embedding": (1, embedding_size)}
        indices = Buffer(self.driver, (1, tokens), INDEX)
        embedded = Buffer(self.driver, (1, tokens, width), HALF)
        outputs = {name: Buffer(self.driver, shapes[name], SINGLE) for name in OUTPUTS}
        step = self._step(context, indices, embedded, outputs)
        bucket = _Bucket(sha256, context, indices, embedded, outputs, step)
        self._log.errors.clear()
        good = context.set_optimization_profile_async(profile, self.driver.stream_handle)
        self.driver.synchronize()
        good = good and context.set_input_shape(INPUT, (1, tokens, width))
        good = good and context.set_tensor_address(INPUT, bucket.embedded.array.pointer)
        for name, output in bucket.outputs.items():
            good = good and context.set_tensor_address(name, output.array.pointer)
        if not good:
            raise failure(f"{self.name}: the engine is not this bundle's encoder", self._log)
        for name, shape in shapes.items():  # it would write beyond the memory that it is given
            dims = context.get_tensor_shape(name)
            found = tuple(dims[axis] for axis in range(len(dims)))
            if found != shape or engine.get_tensor_dtype(name) != self._trt.DataType.FLOAT:
                raise EngineError(
                    f"{self.name}: the engine's {name} is {found}, not {shape} of float32 as the manifest says; "
                    "export the bundle again"
                )
        return bucket

    def _step(
        self, context: trt.IExecutionContext, indices: Buffer, embedded: Buffer, outputs: dict[str, Buffer]
    ) -> GridStep:
        """Return what a bucket does. Nothing in it holds this object: memory is freed with its last reference."""
        driver, name, log, window, kernel = self.driver, self.name, self._log, self._window, self._embed

        def upload() -> None:
            indices.upload(driver.stream)
            window.upload(driver.stream)

        def embed(grid: DeviceArray) -> Launch:
            return kernel.bind(grid, window.array, indices.array, embedded.array)

        def encode() -> None:
            log.errors.clear()
            if not context.execute_async_v3(driver.stream_handle):
                raise failure(f"{name}: the engine does not run", log)
            for output in outputs.values():
                output.download(driver.stream)

        return GridStep(driver, upload, embed, encode)

    def _prepare_warm_up(self) -> None:
        """Give the first runs something to read."""
        self._volume.host[...] = 0
        self._volume.upload(self.driver.stream)
        self._window.host[...] = (0, 1)

    def _warm_up(self, bucket: _Bucket) -> None:
        """Run a bucket once, so that everything is compiled and allocated, then record it where that is possible."""
        bucket.tokens.host[...] = 0
        bucket.step.run(self._volume.array)
        self.driver.synchronize()
        capturable = getattr(bucket.context, "is_stream_capturable", None)
        if capturable is None or capturable(self.driver.stream_handle):
            self._record(bucket.step)
        else:
            self.not_recorded = f"{self.name} does not let its work be recorded"

    def _record(self, step: GridStep) -> None:
        """Record a step and run it once; where that is refused it stays as it is, and works."""
        refused = step.record(self._volume.array)
        if refused is not None:
            self.not_recorded = refused
        step.run(self._volume.array)
        self.driver.synchronize()


def _free(driver: Driver, *parts: MutableMapping[int, _Bucket] | list[Any]) -> None:
    """Free an engine's parts in their order: a context before its engine, its configuration and their cache."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(EngineError):  # a context that is gone took everything along
            stack.enter_context(driver.current())
        for part in parts:
            part.clear()


def require_library(flavour: str) -> Any:
    """Import a flavour.

    Raises
    ------
    EngineError
        If it is not installed or does not load: how to install it.
    """
    module, install = LIBRARIES[flavour]
    try:
        library = importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise EngineError(f"{flavour} is not usable ({str(error)[:120]}): {install}") from None
    if not hasattr(library, "Runtime"):  # type stubs alone make an empty package of that name
        raise EngineError(f"{flavour} is not installed: {install}")
    return library


def _check(name: str, found: NDArray[Any] | DeviceArray, expected: DeviceArray) -> None:
    if found.dtype != expected.dtype or tuple(found.shape) != expected.shape:
        raise EngineError(
            f"tensorrt: {name} is {found.dtype} {tuple(found.shape)}, expected {expected.dtype} {expected.shape}"
        )
