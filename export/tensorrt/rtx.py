"""TensorRT-RTX engines, built on any machine: one file for all token buckets and all architectures asked for.

The builder needs no GPU. What it leaves open is compiled on the first run on the card, into a cache that the runtime
keeps. Networks are strongly typed: half precision and 8-bit weights are in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import onnx
from onnx import ModelProto

from decipher_rt.engines.select import RTX_ARCHITECTURES
from decipher_rt.engines.tensorrt_log import failure, message_log
from decipher_rt.errors import EngineError

PACKAGE = "tensorrt-rtx-cu13-bindings"
INSTALL = "pip install 'decipher-rt[tensorrt-rtx]'"


def build_engine(model: ModelProto, token_buckets: Sequence[int], architectures: Sequence[int]) -> bytes:
    """Build the engine of an encoder.

    Parameters
    ----------
    model : ModelProto
        From ``embedded_graph``, sizes free.
    token_buckets : sequence of int
        Each becomes an optimisation profile of one static shape, in this order.
    architectures : sequence of int
        Compute capabilities times ten, of ``RTX_ARCHITECTURES``.

    Returns
    -------
    bytes
        The serialised engine.

    Raises
    ------
    EngineError
        If TensorRT-RTX is absent, does not know an architecture, or refuses the graph: with what it says.
    """
    trt = _library()
    unknown = sorted(set(architectures) - set(RTX_ARCHITECTURES))
    if unknown or not architectures:
        known = ", ".join(f"sm_{a}" for a in RTX_ARCHITECTURES)
        asked = ", ".join(f"sm_{a}" for a in unknown) or "none"
        raise EngineError(f"TensorRT-RTX does not build for {asked}; it knows {known}")
    log = message_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString()):
        raise failure("TensorRT-RTX refuses the graph", log)
    config = builder.create_builder_config()
    # What is captured into a CUDA graph may not allocate: the runtime gives the memory.
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    width = network.get_input(0).shape[-1]
    for tokens in token_buckets:
        profile, shape = builder.create_optimization_profile(), (1, tokens, width)
        profile.set_shape(network.get_input(0).name, shape, shape, shape)
        config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(architectures)
    for index, architecture in enumerate(architectures):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{architecture}"), index)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise failure("TensorRT-RTX builds no engine", log)
    return bytes(plan)


def built_with(token_buckets: Sequence[int], architectures: Sequence[int]) -> dict[str, str]:
    """Return what the manifest says of such an engine: the runtime decides by it, before anything is loaded."""
    return {
        "tensorrt_rtx": version(PACKAGE),
        "onnx": onnx.__version__,
        "architectures": " ".join(f"sm_{a}" for a in architectures),
        "tokens": " ".join(map(str, token_buckets)),
    }


def _library() -> Any:
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        raise EngineError(f"TensorRT-RTX is not installed: {INSTALL}") from None
    import tensorrt_rtx_bindings

    return tensorrt_rtx_bindings
