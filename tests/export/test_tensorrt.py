"""TensorRT engines without a GPU: those of RTX are built, the parts of the other flavour are checked one by one."""

from __future__ import annotations

import copy
import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from decipher_rt.engines import tensorrt
from decipher_rt.engines.select import RTX_ARCHITECTURES, plan_entries, plan_target
from decipher_rt.errors import EngineError
from decipher_rt.export.tensorrt import builder, files, plugin, rtx
from decipher_rt.export.tensorrt.files import Wanted, plan_files
from decipher_rt.export.tensorrt.graph import embedded_graph, with_attention_nodes, with_static_tokens
from decipher_rt.export.tensorrt.int8 import activation_ranges, symmetric_qdq, weight_only
from decipher_rt.manifest import Encoder, Manifest
from decipher_rt.train.model.vit import ViT, ViTConfig
from decipher_rt.verify import TOLERANCES

CONFIG = ViTConfig(
    width=192, depth=2, heads=6, embedding_size=32, grid_shape=(32, 32, 32), patch_shape=(8, 8, 8),
    spacing_mm=(6.0,) * 3, token_buckets=(32, 64),
)  # fmt: skip
ARCHITECTURES = (80, 86, 89, 120)
HALF_STEPS = 1e-2  # two layers of float16, tokens of order 1

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT-RTX (the extra tensorrt-rtx) is absent"
)


@pytest.fixture(scope="module")
def encoder() -> ViT:
    torch.manual_seed(0)
    return ViT(CONFIG).eval()


@pytest.fixture(scope="module")
def model(encoder: ViT) -> ModelProto:
    return onnx.load_from_string(embedded_graph(copy.deepcopy(encoder).half()))


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(1, 32, CONFIG.width)).astype(np.float16)


def run(model: ModelProto, embedded: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"embedded": embedded})


def test_the_graph_is_the_encoder_after_its_patch_embedding(
    encoder: ViT, model: ModelProto, tokens: np.ndarray
) -> None:
    with torch.no_grad():
        expected = encoder.encode(torch.from_numpy(tokens).float())
    for found, wanted in zip(run(model, tokens), expected, strict=True):
        assert found.dtype == np.float32
        assert np.abs(found - wanted.numpy()).max() < HALF_STEPS


def test_the_graph_in_bfloat16_sums_its_softmax_in_float32(encoder: ViT, tokens: np.ndarray) -> None:
    graph = onnx.load_from_string(embedded_graph(copy.deepcopy(encoder).bfloat16()))
    made = {node.output[0]: node for node in graph.graph.node}
    softmaxes = [node for node in graph.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == CONFIG.depth
    for node in softmaxes:
        cast = made[node.input[0]]
        assert cast.op_type == "Cast"
        assert cast.attribute[0].i == onnx.TensorProto.FLOAT
    assert {t.data_type for t in graph.graph.initializer if len(t.dims) == 2} == {onnx.TensorProto.BFLOAT16}
    with torch.no_grad():
        expected = encoder.encode(torch.from_numpy(tokens).float())
    found = ReferenceEvaluator(graph).run(None, {"embedded": tokens})
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        assert np.abs(ours - wanted.numpy()).max() < 16 * HALF_STEPS  # 8 bits of mantissa instead of 11


# --- TensorRT-RTX


@pytest.fixture(scope="module")
def plans(encoder: ViT) -> tuple[dict[str, bytes], list]:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX (the extra tensorrt-rtx) is absent")
    return plan_files(encoder, Wanted("tensorrt-rtx", ("fp16", "bf16", "int8"), ARCHITECTURES))


def test_one_file_is_built_for_all_cards_and_buckets(plans: tuple[dict[str, bytes], list], encoder: ViT) -> None:
    contents, entries = plans
    weights = 2 * sum(p.numel() for name, p in encoder.named_parameters() if not name.startswith("patch_embed"))
    for entry in entries:
        plan = contents[entry.file]
        assert plan[1:4] == b"trt"
        assert len(plan) > weights * (0.5 if entry.precision == "int8" else 1.0)
        assert len(plan) < 3 * weights + 8_000_000
        assert entry.built_with["architectures"] == "sm_80 sm_86 sm_89 sm_120"
        assert entry.built_with["tokens"] == "32 64"
        assert entry.built_with["tensorrt_rtx"] == "1.7.1.116"
        assert float(entry.built_with["tolerance"]) == TOLERANCES[entry.precision]


def test_the_kernel_of_every_card_and_its_weights_come_along(
    plans: tuple[dict[str, bytes], list], encoder: ViT
) -> None:
    contents, _ = plans
    cubins = {name.split("/")[1] for name, content in contents.items() if content.startswith(b"\x7fELF")}
    assert cubins == {"sm_80", "sm_86", "sm_89", "sm_120"}
    with np.load(io.BytesIO(contents["kernels/patch_embed3d.npz"])) as stored:
        assert np.array_equal(stored["position"], encoder.position.numpy())
        assert np.array_equal(stored["weight"], encoder.patch_embed.weight.detach().half().numpy())


def manifest(entries: list) -> Manifest:
    return Manifest("b", "1", "", "", CONFIG.preprocessing, Encoder(CONFIG.width, 32, 1), tuple(entries))


@needs_rtx
def test_the_manifest_finds_the_plan_of_a_card_or_says_which_there_are(plans: tuple[dict[str, bytes], list]) -> None:
    written = manifest(plans[1])
    (entry,) = plan_entries(written, "tensorrt-rtx", "fp16", 89)
    assert entry.file == "engines/tensorrt-rtx-fp16.plan"
    with pytest.raises(EngineError, match="for sm_120 sm_80 sm_86 sm_89, this card is sm_75; build one:") as caught:
        plan_entries(written, "tensorrt-rtx", "fp16", 75)
    assert str(caught.value).endswith("--engine tensorrt-rtx --arch sm_75")
    with pytest.raises(EngineError, match="holds fp16 tensorrt engines for no card"):
        plan_entries(written, "tensorrt", "fp16", 89)
    assert plan_target("tensorrt", 89) == "tensorrt-sm_89"


@pytest.mark.parametrize(
    ("card", "cubin"), [(75, 75), (88, 87), (89, 89), (90, 90), (121, 121), (103, None), (72, None)]
)
def test_a_card_gets_a_cubin_that_runs_on_it(card: int, cubin: int | None) -> None:
    """From sm_90 on Triton's cubins run on no later card, however near."""
    if cubin is None:
        with pytest.raises(EngineError, match=f"no kernel for sm_{card}"):
            files._cubin_architecture(card)
    else:
        assert files._cubin_architecture(card) == cubin


@needs_rtx
def test_every_card_of_rtx_has_its_kernels() -> None:
    assert [files._cubin_architecture(card) for card in RTX_ARCHITECTURES] == list(RTX_ARCHITECTURES)


@needs_rtx
def test_cards_without_bfloat16_are_left_out_of_its_plan(encoder: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtx, "build_engine", lambda _model, _buckets, cards: bytes(cards))
    contents, entries = plan_files(encoder, Wanted("tensorrt-rtx", ("fp16", "bf16")))
    cards = {entry.precision: contents[entry.file] for entry in entries}
    assert set(cards["fp16"]) == set(RTX_ARCHITECTURES)
    assert set(cards["fp16"]) - set(cards["bf16"]) == {75}


@needs_rtx
def test_plans_can_be_recorded(model: ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX 1.2's release notes: the flag is required when using CUDA stream capture."""
    trt, configs = rtx._library(), []

    class Watched(trt.Builder):  # type: ignore[misc, name-defined]
        def create_builder_config(self) -> Any:
            configs.append(super().create_builder_config())
            return configs[-1]

    monkeypatch.setattr(trt, "Builder", Watched)
    rtx.build_engine(model, (32,), (89,))
    assert [config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION) for config in configs] == [True]


@needs_rtx
def test_more_cards_hardly_make_the_file_larger(model: ModelProto) -> None:
    one, four = (len(rtx.build_engine(model, (32,), cards)) for cards in ((89,), ARCHITECTURES))
    assert four < 1.2 * one


@needs_rtx
def test_what_rtx_does_not_know_is_refused(model: ModelProto) -> None:
    with pytest.raises(EngineError, match=r"does not build for sm_90; it knows sm_75, "):
        rtx.build_engine(model, (32,), (89, 90))
    with pytest.raises(EngineError, match=r"refuses the graph: .*attention"):
        rtx.build_engine(with_attention_nodes(model, CONFIG.heads), (32,), (89,))


# --- 8-bit forms


def test_weight_only_stays_close_and_halves_the_weights(model: ModelProto, tokens: np.ndarray) -> None:
    small = weight_only(model)
    onnx.checker.check_model(small, full_check=True)
    assert small.ByteSize() < 0.6 * model.ByteSize()
    exact, found = run(model, tokens)[1][0], run(small, tokens)[1][0]
    assert exact @ found > 0.999


def test_qdq_is_symmetric_on_every_product_and_stays_close(model: ModelProto, tokens: np.ndarray) -> None:
    quantized = symmetric_qdq(model, activation_ranges(model, [tokens]))
    onnx.checker.check_model(quantized, full_check=True)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer}
    nodes = [node for node in quantized.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(not tensors[node.input[2]].any() for node in nodes)
    made = {node.output[0]: node for node in quantized.graph.node}
    products = [n for n in quantized.graph.node if n.op_type == "MatMul" and n.input[1].endswith(".dq")]
    assert len(products) == 4 * CONFIG.depth
    assert all(made[name].op_type == "DequantizeLinear" for node in products for name in node.input)
    assert run(model, tokens)[1][0] @ run(quantized, tokens)[1][0] > 0.999


# --- The flavour that builds on its card, with the building left out


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[ModelProto]:
    """As on a card of sm_89 whose builder keeps what it is given."""
    models: list[ModelProto] = []

    def build(
        model: ModelProto, _heads: int, buckets: tuple[int, ...], surroundings: builder.Surroundings
    ) -> list[builder.BuiltEngine]:
        models.append(model)
        assert (surroundings.kernels / "kernels.json").is_file()
        assert (surroundings.spec, surroundings.embedding_size) == (CONFIG.preprocessing, CONFIG.embedding_size)
        return [builder.BuiltEngine(b"plan", tokens, "native", {"native": 1.0}) for tokens in buckets]

    monkeypatch.setattr(builder, "build_engines", build)
    monkeypatch.setattr(files, "Driver", lambda: SimpleNamespace(architecture=89, name="NVIDIA L4"))
    # The module alone: its wheel is called tensorrt, tensorrt-cu12 or tensorrt-cu13, or it came with the system.
    monkeypatch.setattr(tensorrt, "LIBRARIES", {"tensorrt": ("played_tensorrt_module", "")})
    monkeypatch.setitem(sys.modules, "played_tensorrt_module", SimpleNamespace(__version__="11.4", Runtime=None))  # type: ignore[arg-type]
    return models


def calibration() -> list[dict[str, np.ndarray]]:
    volume = np.random.default_rng(2).uniform(0, 900, (1, 1, *CONFIG.grid_shape)).astype(np.float32)
    window, chosen = np.array([[0, 800]], np.float32), np.arange(0, 64, 2)[None]
    return [{"volume": volume, "window": window, "tokens": chosen}]


def test_int8_for_the_card_is_calibrated_on_the_volumes_given(encoder: ViT, built: list[ModelProto]) -> None:
    _, entries = plan_files(encoder, Wanted("tensorrt", ("fp16", "int8")), calibration())
    assert [(e.target, e.precision, e.built_with["tokens"]) for e in entries] == [
        ("tensorrt-sm_89", precision, tokens) for precision in ("fp16", "int8") for tokens in ("32", "64")
    ]
    assert [float(e.built_with["tolerance"]) for e in entries] == [5e-2] * 2 + [0.5] * 2
    assert {e.built_with["tensorrt"] for e in entries} == {"11.4"}
    half, quantized = built
    (embedded,) = files.embedded_tokens(encoder, calibration())
    assert (embedded.dtype, embedded.shape) == (np.float16, (1, 32, CONFIG.width))
    assert run(half, embedded)[1][0] @ run(quantized, embedded)[1][0] > 0.999
    scales = {t.name: float(onnx.numpy_helper.to_array(t)) for t in quantized.graph.initializer if not t.dims}
    ranges = activation_ranges(half, [embedded])
    assert all(scales[f"{name}.scale"] == pytest.approx(largest / 127, rel=1e-3) for name, largest in ranges.items())


def test_int8_for_the_card_needs_volumes(encoder: ViT, built: list[ModelProto]) -> None:
    with pytest.raises(EngineError, match="give some with --calibrate"):
        plan_files(encoder, Wanted("tensorrt", ("int8",)))


def test_bfloat16_is_refused_on_a_card_without_it(
    encoder: ViT, built: list[ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "Driver", lambda: SimpleNamespace(architecture=75, name="NVIDIA T4"))
    with pytest.raises(EngineError, match="sm_75, which has no bfloat16"):
        plan_files(encoder, Wanted("tensorrt", ("bf16",)))


# --- The attention plugin


class attention(OpRun):  # noqa: N801 - the reference evaluator finds it by this name
    """What the plugin computes, from the definition of attention, in double precision; rounded to what q is of."""

    op_domain = ""

    def _run(self, q: Any, k: Any, v: Any, plugin_namespace: str, aot: int) -> tuple[np.ndarray]:
        assert (plugin_namespace, aot) == ("decipher_rt", 1)
        dtype = q.dtype
        q, k, v = (x.astype(np.float64).transpose(0, 2, 1, 3) for x in (q, k, v))
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = weights / weights.sum(axis=-1, keepdims=True) @ v
        return (out.transpose(0, 2, 1, 3).astype(dtype),)


def plugin_nodes(model: ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "attention"]


def test_attention_becomes_one_node_and_stays_the_same_function(model: ModelProto, tokens: np.ndarray) -> None:
    fused = with_attention_nodes(model, CONFIG.heads)
    assert len(plugin_nodes(fused)) == CONFIG.depth
    assert not any(node.op_type == "Softmax" for node in fused.graph.node)
    evaluator = ReferenceEvaluator(fused, new_ops=[attention])
    for found, expected in zip(evaluator.run(None, {"embedded": tokens}), run(model, tokens), strict=True):
        assert np.abs(found - expected).max() < 2 * HALF_STEPS


def test_attention_of_a_bfloat16_graph_is_given_bfloat16(encoder: ViT, tokens: np.ndarray) -> None:
    graph = onnx.load_from_string(embedded_graph(copy.deepcopy(encoder).bfloat16()))
    fused = with_attention_nodes(graph, CONFIG.heads)
    assert len(plugin_nodes(fused)) == CONFIG.depth
    assert not any(node.op_type == "Softmax" for node in fused.graph.node)
    seen = []

    class noted(attention):  # noqa: N801
        def _run(self, q: Any, k: Any, v: Any, **attributes: Any) -> tuple[np.ndarray]:
            seen.extend(str(x.dtype) for x in (q, k, v))
            return super()._run(q, k, v, **attributes)

    noted.__name__ = attention.__name__
    with torch.no_grad():
        expected = encoder.encode(torch.from_numpy(tokens).float())
    found = ReferenceEvaluator(fused, new_ops=[noted]).run(None, {"embedded": tokens})
    assert seen == ["bfloat16"] * 3 * CONFIG.depth
    for ours, wanted in zip(found, expected, strict=True):
        assert np.abs(ours - wanted.numpy()).max() < 16 * HALF_STEPS


def test_a_softmax_that_is_no_attention_is_named(model: ModelProto) -> None:
    odd = ModelProto()
    odd.CopyFrom(model)
    for node in odd.graph.node:
        if node.op_type == "Split":
            node.op_type = "Identity"
    with pytest.raises(EngineError, match="attention 0"):
        with_attention_nodes(odd, CONFIG.heads)


def test_static_graphs_have_no_free_size(model: ModelProto, tokens: np.ndarray) -> None:
    fixed = with_static_tokens(model, 32)
    sizes = [d for v in (*fixed.graph.input, *fixed.graph.output) for d in v.type.tensor_type.shape.dim]
    assert all(size.HasField("dim_value") and size.dim_value > 0 for size in sizes)
    assert np.abs(run(fixed, tokens)[1] - run(model, tokens)[1]).max() < HALF_STEPS  # other fusions


@pytest.fixture(scope="module")
def kernel() -> Any:
    return plugin.plugin_kernel(CONFIG.heads, CONFIG.width // CONFIG.heads, 64, 89)


def test_the_ptx_without_hidden_parameters_assembles_and_has_what_tensorrt_passes(kernel: Any, tmp_path: Path) -> None:
    ptx = plugin.without_hidden_parameters(kernel.ptx)
    entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None
    kinds = re.findall(r"\.param\s+\.(\w+)", entry[2])
    scalars = len(kernel.specialisation.scalars)
    assert kinds == ["u64"] * 3 + ["u32"] * scalars + ["u64"]  # inputs, scalars, output
    assembler = Path(importlib.util.find_spec("triton").origin).parent / "backends" / "nvidia" / "bin" / "ptxas"
    (tmp_path / "kernel.ptx").write_text(ptx)
    command = [assembler, "-arch=sm_89", "-o", tmp_path / "kernel.cubin", tmp_path / "kernel.ptx"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "kernel.cubin").read_bytes().startswith(b"\x7fELF")


def test_ptx_that_reads_its_scratch_is_refused(kernel: Any) -> None:
    last = re.search(r"\.entry\s+\w+\s*\((.*?)\)", kernel.ptx, re.DOTALL)[1].split()[-1]
    reading = kernel.ptx.replace("ret;", f"ld.param.u64 %rd1, [{last}];\n\tret;", 1)
    with pytest.raises(EngineError, match="reads its scratch pointer"):
        plugin.without_hidden_parameters(reading)
    with pytest.raises(EngineError, match="does not end its parameters"):
        plugin.without_hidden_parameters(plugin.without_hidden_parameters(kernel.ptx))
