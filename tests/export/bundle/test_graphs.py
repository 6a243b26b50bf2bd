"""The graphs of a bundle against torch, and the operators and types that they are made of."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from decipher_rt.bundle import Bundle
from decipher_rt.engines import load_engine
from decipher_rt.manifest import Precision
from decipher_rt.train.weights import Weights


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("B", "K"), [(1, 24), (3, 7), (2, 96)])
def test_encoder_equals_torch_for_any_batch_and_any_tokens(
    bundle: Bundle, weights: Weights, engine: str, precision: Precision, B: int, K: int
) -> None:
    generator = torch.Generator().manual_seed(B)
    inputs = {
        "volume": torch.rand((B, 1, *weights.config.encoder.grid_shape), generator=generator) * 5000,
        "window": torch.tensor([[0.0, 4000.0]]) + torch.arange(B).unsqueeze(1) * 300.0,
        "tokens": torch.stack([torch.randperm(96, generator=generator)[:K] for _ in range(B)]),
    }
    with torch.no_grad():
        patch, embedding = weights.model.encoder(**inputs)
    graph = bundle.file(bundle.manifest.engine_file("onnx", precision).file)
    outputs = load_engine(engine, graph, precision=precision).run({k: v.numpy() for k, v in inputs.items()})
    tolerance = {"fp32": 2e-5, "fp16": 1e-2}[precision]  # orders of summation; 11 bits of mantissa
    assert outputs["patch"].dtype == outputs["embedding"].dtype == np.float32
    assert np.abs(outputs["patch"] - patch.numpy()).max() < tolerance
    assert np.abs(outputs["embedding"] - embedding.numpy()).max() < tolerance


@pytest.mark.parametrize(
    "name", ["encoder.onnx", "encoder.fp16.onnx", "heads/sequence.onnx", "heads/lesion.onnx", "scope.onnx"]
)
def test_graphs_hold_standard_operators_only(bundle: Bundle, name: str) -> None:
    model = onnx.load(bundle.file(name))
    assert [(entry.domain, entry.version >= 20) for entry in model.opset_import] == [("", True)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert "Conv" not in {node.op_type for node in model.graph.node}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "B"


def test_half_precision_starts_after_normalising_and_spares_softmax(bundle: Bundle) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(bundle.file("encoder.fp16.onnx")))
    types = {
        v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.input, *model.graph.output]
    }
    types |= {i.name: i.data_type for i in model.graph.initializer}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    nodes = {kind: [n for n in model.graph.node if n.op_type == kind] for kind in ("Clip", "Softmax", "MatMul", "Gemm")}
    assert {types[n.input[0]] for n in nodes["Clip"] + nodes["Softmax"]} == {single}
    assert {types[n.input[1]] for n in nodes["MatMul"] + nodes["Gemm"]} == {half}
