"""TensorRT engines (data centre, Jetson, IGX), built on the machine that will run them: one for each token bucket.

Networks are strongly typed. Attention is TensorRT's own or the kernel of this project; both are built, both run here as
the runtime runs them, and of two that give the same the faster is kept. Written against the documented API of TensorRT
10.9 to 11; see ``docs/engines.md`` for what has been run.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from decipher_rt.device_array import DeviceArray
from decipher_rt.engines.cuda import Buffer, Driver
from decipher_rt.engines.tensorrt import OUTPUTS, SINGLE, Plan, TensorRtEngine, require_library
from decipher_rt.engines.tensorrt_log import failure, message_log
from decipher_rt.errors import EngineError
from decipher_rt.kernels.ops import SWITCH, enabled
from decipher_rt.manifest import Precision, Preprocessing
from decipher_rt.verify import TOLERANCES

from .graph import half_type, with_attention_nodes, with_static_tokens
from .plugin import plugin_kernel, use_kernel

ROUNDS, WARM_UP = 30, 5
NATIVE, KERNEL = "native", "kernel"
# What is raised where a plugin cannot be built: by this project, by TensorRT in Python, and by what binds it to C++.
REFUSALS = (EngineError, ValueError, TypeError, RuntimeError)
LONGEST_REASON = 300


@dataclass(frozen=True)
class Surroundings:
    """What an engine runs with.

    Attributes
    ----------
    kernels : Path
        As in the bundle: launch data, cubins, and the weights of the patch embedding.
    spec : Preprocessing
    embedding_size : int
    precision : str
        Of the graph.
    """

    kernels: Path
    spec: Preprocessing
    embedding_size: int
    precision: Precision


@dataclass(frozen=True)
class BuiltEngine:
    """An engine for one bucket.

    Attributes
    ----------
    plan : bytes
    tokens : int
        Of the bucket.
    attention : "native" or "kernel"
        Which it is built with.
    times_ms : dict
        Median time of each attention that runs.
    kernel_refused : str or None
        Why the kernel was no candidate, in a line.
    not_recorded : str or None
        Why the times are without a CUDA graph, where one was refused; the runtime then has none either.
    """

    plan: bytes
    tokens: int
    attention: str
    times_ms: dict[str, float]
    kernel_refused: str | None = None
    not_recorded: str | None = None


def build_engines(
    model: ModelProto, heads: int, token_buckets: Sequence[int], surroundings: Surroundings
) -> list[BuiltEngine]:
    """Build the engines of an encoder for the card of this machine.

    Parameters
    ----------
    model : ModelProto
        From ``embedded_graph``, sizes free.
    heads : int
        Attention heads.
    token_buckets : sequence of int
    surroundings : Surroundings

    Raises
    ------
    EngineError
        If TensorRT or the driver is absent, or TensorRT refuses the graph with its own attention.
    """
    require_library("tensorrt")
    architecture = Driver().architecture
    return [_build_bucket(model, heads, tokens, architecture, surroundings) for tokens in token_buckets]


def _build_bucket(
    model: ModelProto, heads: int, tokens: int, architecture: int, surroundings: Surroundings
) -> BuiltEngine:
    plans = {NATIVE: build_one(with_static_tokens(model, tokens))}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engines = {NATIVE: _load(folder / NATIVE, plans[NATIVE], tokens, surroundings)}
        refused = None
        try:
            plans[KERNEL] = build_with_kernel(model, heads, tokens, architecture)
            kernel = _load(folder / KERNEL, plans[KERNEL], tokens, surroundings)
            require_same(engines[NATIVE], kernel, tokens, surroundings)
            engines[KERNEL] = kernel
        except REFUSALS as error:
            refused = _in_a_line(error)
        times = measure(engines, tokens, surroundings.spec)
    best = min(times, key=times.__getitem__)
    return BuiltEngine(plans[best], tokens, best, times, refused, engines[best].not_recorded)


def build_one(model: ModelProto) -> bytes:
    """Build the engine of a graph whose sizes are all fixed.

    Raises
    ------
    EngineError
        With what TensorRT says.
    """
    import tensorrt as trt

    log = message_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        raise failure("TensorRT refuses the graph", log)
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise failure("TensorRT builds no engine", log)
    return bytes(plan)


def build_with_kernel(model: ModelProto, heads: int, tokens: int, architecture: int) -> bytes:
    """Build the engine of one bucket with the attention kernel.

    Raises
    ------
    EngineError
        If kernels are switched off, this TensorRT has no plugins for it, or refuses it, or the kernel cannot be one.
    ValueError
        If TensorRT refuses the plugin's definition, or the kernel does not compile.
    """
    if not enabled():
        raise EngineError(f"switched off ({SWITCH}=0)")
    try:
        import tensorrt.plugin as trtp
    except ImportError:
        raise EngineError("this TensorRT has no tensorrt.plugin (10.6 and later)") from None
    width = model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    # The class token and the registers join the tokens of the bucket; the tiles hardly differ for them.
    use_kernel(trtp, plugin_kernel(heads, width // heads, tokens, architecture, half_type(model)))
    return build_one(with_attention_nodes(with_static_tokens(model, tokens), heads))


def require_same(native: TensorRtEngine, kernel: TensorRtEngine, tokens: int, surroundings: Surroundings) -> None:
    """Hold what an engine with the attention kernel gives for a grid of noise against TensorRT's own attention.

    Raises
    ------
    EngineError
        Where an output differs by more than the precision is allowed, or is not finite.
    """
    spec, tolerance = surroundings.spec, TOLERANCES[surroundings.precision]
    noise = np.random.default_rng(0).random((1, 1, *spec.grid_shape), np.float32)
    given = _inputs(noise, tokens)
    expected, found = native.run(given), kernel.run(given)
    for name in OUTPUTS:
        error = float(np.abs(found[name] - expected[name]).max())
        if not error <= tolerance:
            raise EngineError(f"{name} differs by {error:.3g} from that of TensorRT's attention, allowed {tolerance:g}")


def measure(engines: Mapping[str, TensorRtEngine], tokens: int, spec: Preprocessing) -> dict[str, float]:
    """Return the median time of each engine in ms, from a grid in device memory to the outputs on the host.

    They run as at inference, each as its one CUDA graph where that was recorded, and take turns, so that a card that
    slows down slows all of them. The grid is of zeros: the work does not depend on the values.

    Parameters
    ----------
    engines : mapping
        By name; each has a bucket of ``tokens``.
    tokens : int
    spec : Preprocessing
    """
    driver = Driver()
    grid = Buffer(driver, (1, 1, *spec.grid_shape), SINGLE)
    grid.host[...] = 0
    grid.upload(driver.stream)
    driver.synchronize()
    given = _inputs(grid.array, tokens)
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(WARM_UP + ROUNDS):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine.run(given)
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}


def _inputs(volume: NDArray[Any] | DeviceArray, tokens: int) -> dict[str, NDArray[Any] | DeviceArray]:
    return {
        "volume": volume,
        "window": np.array([[0, 1]], np.float32),
        "tokens": np.arange(tokens, dtype=np.int64)[None],
    }


def _load(path: Path, plan: bytes, tokens: int, surroundings: Surroundings) -> TensorRtEngine:
    path.write_bytes(plan)
    return TensorRtEngine(
        "tensorrt",
        [Plan(path, hashlib.sha256(plan).hexdigest(), (tokens,))],
        surroundings.kernels,
        surroundings.spec,
        precision=surroundings.precision,
        embedding_size=surroundings.embedding_size,
    )


def _in_a_line(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said[:LONGEST_REASON]
