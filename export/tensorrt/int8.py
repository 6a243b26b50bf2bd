"""8-bit forms of the half-precision graph: weights only for TensorRT-RTX, symmetric QDQ for TensorRT."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

BLOCK = 64  # rows of a weight that share a scale; with one scale a column TensorRT-RTX 1.7 folds the weight to half
BLOCK_OPSET = 21  # the first with blocks
SMALLEST_SCALE = 2.0**-14  # the smallest normal float16: below it a scale loses bits


def weight_only(model: ModelProto) -> ModelProto:
    """Return the graph with int8 weights, scaled by blocks of ``BLOCK`` rows, and float16 arithmetic.

    TensorRT-RTX multiplies in half precision; what is saved is memory and its traffic.
    """
    quantized = _insert(model, {}, BLOCK)
    for entry in quantized.opset_import:
        entry.version = max(entry.version, BLOCK_OPSET)
    return quantized


def symmetric_qdq(model: ModelProto, largest: Mapping[str, float]) -> ModelProto:
    """Return the graph with int8 weights and int8 activations, both symmetric, as TensorRT takes explicit quantisation.

    Parameters
    ----------
    model : ModelProto
    largest : mapping
        Largest absolute value of each activation that a product with constant weights reads (``activation_ranges``).
    """
    return _insert(model, largest, None)


def activation_ranges(model: ModelProto, embedded: Sequence[NDArray[np.float16]]) -> dict[str, float]:
    """Return the largest absolute value of every activation that a product with constant weights reads.

    Parameters
    ----------
    model : ModelProto
    embedded : sequence of ndarray, shape (1, K, C), float16
        Embedded tokens of calibration volumes.
    """
    names = sorted({node.input[0] for node in _products(model)} - {value.name for value in model.graph.input})
    watched = ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    largest = dict.fromkeys(names, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watched.onnx"
        onnx.save(watched, path)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        for tokens in embedded:
            for name, array in zip(names, session.run(names, {"embedded": tokens}), strict=True):
                largest[name] = max(largest[name], float(np.abs(array.astype(np.float32)).max()))
    return largest


def _products(model: ModelProto) -> list[NodeProto]:
    matrices = {t.name for t in model.graph.initializer if len(t.dims) == 2}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in matrices]


def _insert(model: ModelProto, largest: Mapping[str, float], block: int | None) -> ModelProto:
    quantized = ModelProto()
    quantized.CopyFrom(model)
    tensors = {t.name: t for t in quantized.graph.initializer}
    products = {node.output[0] for node in _products(quantized)}
    nodes: list[NodeProto] = []
    done: set[str] = set()
    for node in list(quantized.graph.node):
        if node.output[0] in products:
            activation, weight = node.input
            if activation in largest:
                if activation not in done:
                    nodes += _activation_pair(quantized, activation, largest[activation])
                    done.add(activation)
                node.input[0] = f"{activation}.dq"
            if f"{weight}.dq" not in done:
                nodes.append(_weight(quantized, tensors[weight], block))
                done.add(f"{weight}.dq")
            node.input[1] = f"{weight}.dq"
        nodes.append(node)
    del quantized.graph.node[:]
    quantized.graph.node.extend(nodes)
    read = {name for node in quantized.graph.node for name in node.input}
    kept = [t for t in quantized.graph.initializer if t.name in read]
    del quantized.graph.initializer[:]
    quantized.graph.initializer.extend(kept)
    return quantized


def _activation_pair(model: ModelProto, name: str, largest: float) -> list[NodeProto]:
    scale = np.float16(max(largest / 127, SMALLEST_SCALE))
    inputs = [
        _constant(model, f"{name}.scale", np.array(scale)),
        _constant(model, f"{name}.zero", np.array(0, np.int8)),
    ]
    return [
        helper.make_node("QuantizeLinear", [name, *inputs], [f"{name}.q"]),
        helper.make_node("DequantizeLinear", [f"{name}.q", *inputs], [f"{name}.dq"]),
    ]


def _weight(model: ModelProto, tensor: onnx.TensorProto, block: int | None) -> NodeProto:
    """Return the node that gives a weight (rows, columns) back; scales are of columns, or of ``block`` rows of them."""
    weight = numpy_helper.to_array(tensor).astype(np.float32)
    rows = weight.shape[0]
    size = block if block and rows % block == 0 else rows
    largest = np.abs(weight.reshape(-1, size, weight.shape[1])).max(axis=1)
    scale = np.maximum(largest / 127, SMALLEST_SCALE).astype(np.float16)
    integers = np.rint(weight / np.repeat(scale.astype(np.float32), size, axis=0)).clip(-127, 127).astype(np.int8)
    blocked = {"axis": 0, "block_size": size} if block else {"axis": 1}
    scale = scale if block else scale[0]
    inputs = [
        _constant(model, f"{tensor.name}.q", integers),
        _constant(model, f"{tensor.name}.scale", scale),
        _constant(model, f"{tensor.name}.zero", np.zeros(scale.shape, np.int8)),
    ]
    return helper.make_node("DequantizeLinear", inputs, [f"{tensor.name}.dq"], **blocked)


def _constant(model: ModelProto, name: str, array: NDArray[np.generic]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return name
