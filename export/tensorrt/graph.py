"""The encoder as TensorRT gets it: from embedded tokens on, in half precision, with attention as one node where wanted.

Gather, normalisation and projection of the patches are the ``patch_embed3d`` kernel's, which runs before the engine.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from decipher_rt.errors import EngineError
from decipher_rt.train.model.vit import ViT

from ..onnx import graph

HalfType = Literal["float16", "bfloat16"]
PLUGIN_NAMESPACE, PLUGIN_NAME = "decipher_rt", "attention"


class _Encode(nn.Module):
    """The encoder without its patch embedding, which gives float16 whatever the rest works in."""

    def __init__(self, encoder: ViT) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder.encode(embedded.to(self.encoder.class_token.dtype))


def embedded_graph(encoder: ViT) -> bytes:
    """Return the ONNX graph of a half-precision encoder from embedded tokens on.

    Parameters
    ----------
    encoder : ViT
        In float16 or bfloat16.

    Returns
    -------
    bytes
        Input ``embedded`` (B, K, C) float16; outputs ``patch`` (B, K, C) and ``embedding`` (B, E), float32.
    """
    example = torch.zeros(1, encoder.config.token_buckets[0], encoder.config.width, dtype=torch.float16)
    return graph(
        _Encode(encoder),
        {"embedded": example},
        outputs=("patch", "embedding"),
        dynamic={"embedded": {0: "B", 1: "K"}},
    )


def half_type(model: ModelProto) -> HalfType:
    """Return what a graph computes its attention in: bfloat16 where its weights are, otherwise float16."""
    types = {tensor.data_type for tensor in model.graph.initializer}
    return "bfloat16" if TensorProto.BFLOAT16 in types else "float16"


def with_static_tokens(model: ModelProto, tokens: int) -> ModelProto:
    """Return the graph for one volume of ``tokens`` tokens: engines have one shape each."""
    fixed = ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_value = {"B": 1, "K": tokens}.get(size.dim_param, 0) or _unknown(size.dim_param)
    return onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)


def with_attention_nodes(model: ModelProto, heads: int) -> ModelProto:
    """Return the graph with every softmax attention as one plugin node of q, k, v and result (B, N, H, d).

    The exported pattern is: q, k, v from a Split of (B, N, 3C), each reshaped and transposed, scaled, multiplied;
    softmax; multiplied with v; transposed and reshaped to (B, N, C). The node's attributes are those that TensorRT's
    ONNX parser takes for a quick-deployable plugin with an ahead-of-time implementation.

    Raises
    ------
    EngineError
        If there is a softmax around which the pattern is not found.
    """
    fused = ModelProto()
    fused.CopyFrom(model)
    nodes = list(fused.graph.node)
    made_by = {output: node for node in nodes for output in node.output}
    read_by: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            read_by.setdefault(name, []).append(node)
    shape = fused.graph.initializer.add()
    shape.CopyFrom(numpy_helper.from_array(_int64(0, 0, heads, -1), "attention.heads_shape"))
    joined = fused.graph.initializer.add()
    joined.CopyFrom(numpy_helper.from_array(_int64(0, 0, -1), "attention.joined_shape"))
    replaced: dict[str, list[NodeProto]] = {}
    for number, softmax in enumerate(node for node in nodes if node.op_type == "Softmax"):
        split = _first_above(softmax, "Split", made_by)
        last = _first_below(softmax, "Reshape", read_by)
        if split is None or last is None or len(split.output) != 3:
            raise EngineError(
                f"attention {number}: the graph around {softmax.name} is not split, multiplied and joined"
            )
        name = f"attention{number}"
        parts = [f"{name}.{part}" for part in "qkv"]
        separate = [
            helper.make_node("Reshape", [joint, shape.name], [part])
            for joint, part in zip(split.output, parts, strict=True)
        ]
        attention = helper.make_node(
            PLUGIN_NAME, parts, [f"{name}.out"], name=name, plugin_namespace=PLUGIN_NAMESPACE, aot=1
        )
        join = helper.make_node("Reshape", [f"{name}.out", joined.name], [last.output[0]])
        replaced[last.output[0]] = [*separate, attention, join]
    del fused.graph.node[:]
    for node in nodes:
        fused.graph.node.extend(replaced.get(node.output[0], [node]))
    _drop_unread(fused)
    return fused


def _first_above(node: NodeProto, op_type: str, made_by: dict[str, NodeProto]) -> NodeProto | None:
    """Return the nearest node of a type among those that a node is made from, breadth first."""
    seen, wave = set(), [node]
    while wave:
        above = [made_by[name] for item in wave for name in item.input if name in made_by]
        wave = []
        for item in above:
            if item.op_type == op_type:
                return item
            if item.output[0] not in seen:
                seen.add(item.output[0])
                wave.append(item)
    return None


def _first_below(node: NodeProto, op_type: str, read_by: dict[str, list[NodeProto]]) -> NodeProto | None:
    """Follow the only reader of each result to the first node of a type."""
    while node.op_type != op_type:
        readers = read_by.get(node.output[0], [])
        if len(readers) != 1:
            return None
        node = readers[0]
    return node


def _drop_unread(model: ModelProto) -> None:
    """Remove nodes and constants that no output needs any more."""
    wanted = {value.name for value in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    constants = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)


def _int64(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _unknown(name: str) -> int:
    raise EngineError(f"the encoder's graph has a free size {name!r} other than B and K")
