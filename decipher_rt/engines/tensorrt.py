"""TensorRT and TensorRT-RTX: the encoder on a GPU, from a grid in device memory to embedding and tokens on one stream.

The patch-embedding kernel reads the grid where DALI left it; the engine, recorded as a CUDA graph for each token
bucket, reads what the kernel wrote. All memory is taken when the engine is loaded, and each bucket is run once then.

Written against the documented API of TensorRT 10 and 11 and TensorRT-RTX 1.7. ``docs/engines.md`` says what of it has
run on a GPU.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.device_array import DeviceArray
from decipher_rt.engines.cuda import Buffer, Driver, Graph
from decipher_rt.engines.patch_embed import PatchEmbed
from decipher_rt.engines.tensorrt_log import failure, message_log
from decipher_rt.errors import EngineError
from decipher_rt.manifest import Preprocessing

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
    """One serialised engine; ``tokens`` are its buckets in the order of its optimisation profiles."""

    path: Path
    sha256: str
    tokens: tuple[int, ...]


@dataclass
class _Bucket:
    """What one number of tokens needs: buffers, the context with their addresses, and its recorded graph."""

    context: trt.IExecutionContext
    tokens: Buffer
    embedded: Buffer
    outputs: dict[str, Buffer]
    graph: Graph | None = None


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
    precision : str
    embedding_size : int
    device : int
        Index of the card.

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
        precision: str,
        embedding_size: int,
        device: int = 0,
    ) -> None:
        start = time.perf_counter()
        self.name, self.precision = flavour, precision
        self._trt = require_library(flavour)
        self.driver = Driver(device)
        self.device = f"cuda:{device} {self.driver.name}"
        self._embed = PatchEmbed(kernels, self.driver)
        self._volume = Buffer(self.driver, (1, 1, *spec.grid_shape), SINGLE)
        self._window = Buffer(self.driver, (1, 2), SINGLE)
        self._log = message_log(self._trt)
        self._runtime: trt.Runtime = self._trt.Runtime(self._log)
        self._engines: list[trt.ICudaEngine] = []  # contexts need theirs alive
        self._buckets: dict[int, _Bucket] = {}
        cached = True
        for plan in plans:
            engine = self._deserialize(plan)
            self._engines.append(engine)
            cache = _RuntimeCache(plan, self.driver, self._trt) if hasattr(engine, "create_runtime_config") else None
            for profile, tokens in enumerate(plan.tokens):
                context = self._context(engine, cache)
                self._buckets[tokens] = self._bucket(context, profile, tokens, embedding_size)
                self._warm_up(tokens, (1, tokens, self._embed.width))
            if cache is not None:
                cached = cached and cache.found
                cache.save()
        # What the card's first load takes is no measure of the others: it compiles.
        self.load_ms, self.compiled = (time.perf_counter() - start) * 1e3, not cached

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
        self.driver.make_current()
        volume, window, tokens = (inputs[name] for name in self.inputs)
        _check("volume", volume, self._volume.array)
        _check("window", window, self._window.array)
        bucket = self._buckets.get(tokens.shape[-1])
        if bucket is None:
            known = ", ".join(map(str, self._buckets))
            raise EngineError(f"{self.name}: {tokens.shape[-1]} tokens, the engine was built for {known}")
        _check("tokens", tokens, bucket.tokens.array)
        stream = self.driver.stream
        bucket.tokens.host[...] = tokens
        bucket.tokens.upload(stream)
        self._window.host[...] = window
        self._window.upload(stream)
        if isinstance(volume, DeviceArray):
            grid = volume
        else:
            self._volume.host[...] = volume
            self._volume.upload(stream)
            grid = self._volume.array
        self._embed(grid, self._window.array, bucket.tokens.array, bucket.embedded.array)
        self._launch(bucket)
        for output in bucket.outputs.values():
            output.download(stream)
        self.driver.synchronize()
        return {name: output.host.copy() for name, output in bucket.outputs.items()}

    def _launch(self, bucket: _Bucket) -> None:
        if bucket.graph is not None:
            bucket.graph.launch()
        else:
            self._enqueue(bucket)

    def _enqueue(self, bucket: _Bucket) -> None:
        if not bucket.context.execute_async_v3(self.driver.stream_handle):
            raise failure(f"{self.name}: the engine does not run", self._log)

    def _deserialize(self, plan: Plan) -> trt.ICudaEngine:
        content = plan.path.read_bytes()
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            where = f"{plan.path.name}: {self.name} {self._trt.__version__} on sm_{self.driver.architecture}"
            raise failure(f"{where} refuses it", self._log, rebuild(self.name, self.driver.architecture))
        return engine

    def _context(self, engine: trt.ICudaEngine, cache: _RuntimeCache | None) -> trt.IExecutionContext:
        if cache is None:
            context = engine.create_execution_context()
        else:
            config = engine.create_runtime_config()
            cache.attach(config)
            context = engine.create_execution_context(config)
        if context is None:
            raise failure(f"{self.name}: no memory for the engine on {self.device}", self._log)
        return context

    def _bucket(self, context: trt.IExecutionContext, profile: int, tokens: int, embedding_size: int) -> _Bucket:
        width = self._embed.width
        shapes = {"patch": (1, tokens, width), "embedding": (1, embedding_size)}
        bucket = _Bucket(
            context=context,
            tokens=Buffer(self.driver, (1, tokens), INDEX),
            embedded=Buffer(self.driver, (1, tokens, width), HALF),
            outputs={name: Buffer(self.driver, shapes[name], SINGLE) for name in OUTPUTS},
        )
        good = context.set_optimization_profile_async(profile, self.driver.stream_handle)
        self.driver.synchronize()
        good = good and context.set_input_shape(INPUT, (1, tokens, width))
        good = good and context.set_tensor_address(INPUT, bucket.embedded.array.pointer)
        for name, output in bucket.outputs.items():
            good = good and context.set_tensor_address(name, output.array.pointer)
        if not good:
            raise failure(f"{self.name}: the engine is not this bundle's encoder", self._log)
        return bucket

    def _warm_up(self, tokens: int, shape: tuple[int, ...]) -> None:
        """Run a bucket once, so that everything is compiled and allocated, then record it where that is possible."""
        bucket = self._buckets[tokens]
        bucket.embedded.host[...] = np.zeros(shape, HALF)
        bucket.embedded.upload(self.driver.stream)
        self._enqueue(bucket)
        self.driver.synchronize()
        capturable = getattr(bucket.context, "is_stream_capturable", None)
        if capturable is None or capturable(self.driver.stream_handle):
            bucket.graph = Graph(self.driver, lambda: self._enqueue(bucket))
            bucket.graph.launch()
            self.driver.synchronize()


class _RuntimeCache:
    """What TensorRT-RTX compiles on a card, kept on disk for the next process; one for all contexts of an engine."""

    def __init__(self, plan: Plan, driver: Driver, trt: Any) -> None:
        self._path = cache_file(plan.sha256, trt.__version__, driver.version, driver.name)
        self._cache: Any = None
        self.found = False

    def attach(self, config: Any) -> None:
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._path is not None and self._path.is_file():
                self.found = bool(self._cache.deserialize(self._path.read_bytes()))
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the cache beside its place and rename it; a machine without a writable cache compiles each time."""
        if self._path is None or self.found or self._cache is None:
            return
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            beside.write_bytes(bytes(self._cache.serialize()))
            beside.replace(self._path)
        except OSError:
            beside.unlink(missing_ok=True)


def cache_file(plan_sha256: str, library_version: str, driver_version: str, card: str) -> Path | None:
    """Return where the runtime cache of an engine lies; another engine, library, driver or card has another file."""
    key = hashlib.sha256("\n".join((plan_sha256, library_version, driver_version, card)).encode()).hexdigest()
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME") and f"{os.environ['HOME']}/.cache")
    return Path(base) / "decipher-rt" / "tensorrt-rtx" / f"{key[:32]}.cache" if base else None


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


def rebuild(flavour: str, architecture: int) -> str:
    """Say how to build an engine for a card."""
    arch = f" --arch sm_{architecture}" if flavour == "tensorrt-rtx" else " on this machine"
    return f"rebuild it: decipher-rt export CHECKPOINT -o BUNDLE --fp16 --engine {flavour}{arch}"


def _check(name: str, found: NDArray[Any] | DeviceArray, expected: DeviceArray) -> None:
    if found.dtype != expected.dtype or tuple(found.shape) != expected.shape:
        raise EngineError(
            f"tensorrt: {name} is {found.dtype} {tuple(found.shape)}, expected {expected.dtype} {expected.shape}"
        )
