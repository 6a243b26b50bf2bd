"""TensorRT engines (data centre, Jetson, IGX), built on the machine that will run them: one for each token bucket.

Networks are strongly typed. Attention is TensorRT's own or the kernel of this project; both are built and measured
here, and the faster is kept. Written against the documented API of TensorRT 10.9 to 11; see ``docs/engines.md`` for
what has been run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto

from decipher_rt.engines.cuda import Buffer, Driver
from decipher_rt.engines.tensorrt import HALF, INPUT, OUTPUTS, SINGLE, require_library
from decipher_rt.engines.tensorrt_log import failure, message_log
from decipher_rt.errors import EngineError

from .graph import half_type, with_attention_nodes, with_static_tokens
from .plugin import plugin_kernel, register_attention

ROUNDS, WARM_UP = 30, 5


@dataclass(frozen=True)
class BuiltEngine:
    """An engine for one bucket, and the median time of each attention in ms; absent where that one was not built."""

    plan: bytes
    tokens: int
    attention: str
    times_ms: dict[str, float]


def build_engines(model: ModelProto, heads: int, token_buckets: Sequence[int], device: int = 0) -> list[BuiltEngine]:
    """Build the engines of an encoder for the card of this machine.

    Parameters
    ----------
    model : ModelProto
        From ``embedded_graph``, sizes free.
    heads : int
        Attention heads.
    token_buckets : sequence of int
    device : int
        Index of the card.

    Raises
    ------
    EngineError
        If TensorRT or the driver is absent, or TensorRT refuses the graph with its own attention.
    """
    require_library("tensorrt")
    driver = Driver(device)
    width = model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    engines = []
    for tokens in token_buckets:
        plans = {"native": build_one(with_static_tokens(model, tokens))}
        fused = _with_kernel(model, heads, width // heads, tokens, driver)
        if fused is not None:
            plans["kernel"] = fused
        times = {name: measure(driver, plan) for name, plan in plans.items()}
        best = min(times, key=times.__getitem__)
        engines.append(BuiltEngine(plans[best], tokens, best, times))
    return engines


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


def measure(driver: Driver, plan: bytes) -> float:
    """Return the median time of a run in ms, on zeros: the work does not depend on the values."""
    import tensorrt as trt

    log = message_log(trt)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    context = engine.create_execution_context() if engine is not None else None
    if context is None:
        raise failure("TensorRT does not load what it built", log)
    types: dict[str, np.dtype[Any]] = {INPUT: HALF, **dict.fromkeys(OUTPUTS, SINGLE)}
    buffers = {}
    for name, dtype in types.items():
        sizes = engine.get_tensor_shape(name)
        buffers[name] = Buffer(driver, [sizes[axis] for axis in range(len(sizes))], dtype)
        context.set_tensor_address(name, buffers[name].array.pointer)
    buffers[INPUT].host[...] = 0
    buffers[INPUT].upload(driver.stream)
    times = []
    for _ in range(WARM_UP + ROUNDS):
        driver.synchronize()
        start = time.perf_counter()
        if not context.execute_async_v3(driver.stream_handle):
            raise failure("the engine does not run", log)
        driver.synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[WARM_UP:])


def _with_kernel(model: ModelProto, heads: int, head_dim: int, tokens: int, driver: Driver) -> bytes | None:
    """Build with the attention kernel; None where this TensorRT has no such plugins or refuses it."""
    try:
        import tensorrt.plugin as trtp

        # The class token and the registers join the tokens of the bucket; the tiles hardly differ for them.
        register_attention(trtp, plugin_kernel(heads, head_dim, tokens, driver.architecture, half_type(model)))
        return build_one(with_attention_nodes(with_static_tokens(model, tokens), heads))
    except (ImportError, EngineError, ValueError):
        return None
