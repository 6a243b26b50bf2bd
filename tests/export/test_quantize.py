"""Int8 encoders: close to fp32, exact where a CPU without VNNI would saturate, and standard ONNX."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from decipher_rt.engines import load_engine
from decipher_rt.engines.cpu import cpu_features
from decipher_rt.engines.select import FULL_RANGE_FEATURES, INT8_FULL_RANGE, INT8_PORTABLE
from decipher_rt.errors import EngineError
from decipher_rt.export.onnx import encoder_graph
from decipher_rt.export.quantize import quantize_encoder, smooth
from decipher_rt.train.model.vit import ViT, ViTConfig

CONFIG = ViTConfig(
    width=96, depth=3, heads=3, embedding_size=32, grid_shape=(32, 32, 32), patch_shape=(8, 8, 8),
    spacing_mm=(6.0,) * 3, token_buckets=(32, 64),
)  # fmt: skip
TARGETS = (INT8_PORTABLE, INT8_FULL_RANGE)
SIZE = 64  # of the small products
ROUND_OFF = 1e-4  # fp32, another order of summation


def volumes(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Smooth volumes with noise, in stored units, with ascending tokens."""
    rng = np.random.default_rng(seed)
    d, h, w = np.mgrid[:32, :32, :32] / 32
    return [
        {
            "volume": (500 + 300 * np.sin(7 * d + i) * np.cos(5 * h) + 100 * w + 30 * rng.standard_normal(d.shape))
            .astype(np.float32)[None, None],
            "window": np.array([[100, 900]], np.float32),
            "tokens": np.sort(rng.permutation(64)[:32])[None].astype(np.int64),
        }
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained encoder whose LayerNorms, like those of trained transformers, have a few outlying channels."""
    torch.manual_seed(3)
    model = ViT(CONFIG).eval()
    with torch.no_grad():
        for block in model.blocks:
            for norm in (block.norm1, block.norm2):
                norm.weight.mul_(torch.exp(0.3 * torch.randn_like(norm.weight)))
                norm.weight[::24] *= 10
    path = tmp_path_factory.mktemp("fp32") / "encoder.onnx"
    path.write_bytes(encoder_graph(model, {k: torch.from_numpy(v) for k, v in volumes(1)[0].items()}, "fp32"))
    return path


def cosines(graph: Path, reference: Path, inputs: list[dict[str, np.ndarray]]) -> list[float]:
    a, b = (load_engine("onnxruntime", path, precision="int8", exact_int8=True) for path in (graph, reference))
    return [float((a.run(x)["embedding"] * b.run(x)["embedding"]).sum()) for x in inputs]


@pytest.mark.parametrize("target", TARGETS)
def test_embeddings_stay_close_on_volumes_that_were_not_calibrated_on(fp32: Path, tmp_path: Path, target: str) -> None:
    quantize_encoder(fp32, tmp_path / "int8.onnx", target=target, calibration=volumes(3))
    assert min(cosines(tmp_path / "int8.onnx", fp32, volumes(4, seed=9))) > 0.99


def test_smoothing_is_the_same_function_in_fp32(fp32: Path, tmp_path: Path) -> None:
    model = onnx.load(fp32)
    norms = [node.output[0] for node in model.graph.node if node.op_type == "LayerNormalization"][:-1]
    ranges = {name: np.geomspace(0.1, 50, CONFIG.width).astype(np.float32) for name in norms}
    smoothed = smooth(model, ranges, 0.5)
    onnx.save(smoothed, tmp_path / "smoothed.onnx")
    outputs = [
        load_engine("onnxruntime", path, precision="fp32").run(volumes(1)[0])
        for path in (fp32, tmp_path / "smoothed.onnx")
    ]
    assert np.abs(outputs[0]["patch"] - outputs[1]["patch"]).max() < 20 * ROUND_OFF
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, smoothed))
    assert set(after) - set(before), "no tensor was smoothed"


def outlying(path: Path) -> Path:
    """LayerNorm, product, unit rows; a few channels of the norm are 50 times the others, as in trained transformers."""
    rng = np.random.default_rng(8)
    gain = rng.uniform(0.5, 1.5, SIZE).astype(np.float32)
    gain[::16] *= 50
    weight = rng.normal(size=(SIZE, SIZE)).astype(np.float32)
    weight[::16] /= 50  # what they carry is as important as the rest, and no more
    arrays = {"gain": gain, "shift": np.zeros(SIZE, np.float32), "weight": weight}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["norm"]),
        helper.make_node("MatMul", ["norm", "weight"], ["product"]),
        helper.make_node("LpNormalization", ["product"], ["embedding"], axis=-1, p=2),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", SIZE]) for name in ("x", "embedding"))
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(v, k) for k, v in arrays.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_smoothing_helps_where_channels_lie_far_out_and_the_better_is_taken(tmp_path: Path) -> None:
    fp32, rng = outlying(tmp_path / "fp32.onnx"), np.random.default_rng(9)
    calibration, held_out = ([{"x": rng.normal(size=(40, SIZE)).astype(np.float32)} for _ in range(3)] for _ in "ab")
    chosen = quantize_encoder(fp32, tmp_path / "smooth.onnx", calibration=calibration)
    quantize_encoder(fp32, tmp_path / "plain.onnx", calibration=calibration, smoothing=(None,))
    assert chosen.smoothing == 0.5
    assert chosen.embedding_cosine[0.5] > chosen.embedding_cosine[None]
    engines = {
        n: load_engine("onnxruntime", tmp_path / f"{n}.onnx", precision="int8") for n in ("fp32", "smooth", "plain")
    }
    errors = {
        name: np.mean([np.abs(engine.run(x)["embedding"] - engines["fp32"].run(x)["embedding"]) for x in held_out])
        for name, engine in engines.items()
    }
    assert errors["smooth"] < errors["plain"] / 4


@pytest.mark.parametrize(("target", "largest"), [(INT8_PORTABLE, 64), (INT8_FULL_RANGE, 127)])
def test_weights_use_the_bits_of_their_target_and_operators_are_standard(
    fp32: Path, tmp_path: Path, target: str, largest: int
) -> None:
    quantize_encoder(fp32, tmp_path / "int8.onnx", target=target)
    model = onnx.load(tmp_path / "int8.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    tensors = {t.name: t for t in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 4 * CONFIG.depth + 1
    for product in products:
        weight = numpy_helper.to_array(tensors[product.input[1]])
        assert weight.dtype == np.int8
        assert np.abs(weight.astype(int)).max(axis=0).tolist() == [largest] * weight.shape[1]
    assert any(node.op_type in ("Gemm", "MatMul") and node.output[0] in projection(model) for node in model.graph.node)


def projection(model: onnx.ModelProto) -> set[str]:
    """What is normalised to the embedding."""
    return {name for node in model.graph.node if node.output[0] == "embedding" for name in node.input}


def test_a_graph_without_constant_products_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])])  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(EngineError, match=r"relu\.onnx: no matrix product"):
        quantize_encoder(tmp_path / "relu.onnx", tmp_path / "int8.onnx")


def test_a_calibration_volume_that_is_not_finite_is_refused(fp32: Path, tmp_path: Path) -> None:
    bad = volumes(1)[0] | {"window": np.array([[np.nan, 1]], np.float32)}
    with pytest.raises(EngineError, match="not finite"):
        quantize_encoder(fp32, tmp_path / "int8.onnx", calibration=[bad])
    assert not (tmp_path / "int8.onnx").exists()


# --- Saturation. The worst case for 16-bit sums: every activation at the top of its range, all weights of one sign.


def adversarial(path: Path) -> Path:
    """A product whose exact result is SIZE / 2 in every channel."""
    weight = numpy_helper.from_array(np.full((SIZE, SIZE), 0.5, np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", SIZE]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def quantized_weight(path: Path) -> np.ndarray:
    model = onnx.load(path)
    name = next(node for node in model.graph.node if node.op_type == "MatMulInteger").input[1]
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def vpmaddubsw(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intel's VPMADDUBSW: neighbouring products of uint8 and int8, added and saturated to int16."""
    pairs = (a.astype(np.int32) * b.astype(np.int32)).reshape(-1, 2).sum(axis=1)
    return pairs.clip(-32768, 32767)


@pytest.mark.parametrize(("target", "saturates"), [(INT8_PORTABLE, False), (INT8_FULL_RANGE, True)])
def test_seven_bits_cannot_saturate_sixteen(tmp_path: Path, target: str, saturates: bool) -> None:
    path = adversarial(tmp_path / "product.onnx")
    quantize_encoder(path, tmp_path / "int8.onnx", target=target)
    column = quantized_weight(tmp_path / "int8.onnx")[:, 0]
    activations = np.full(SIZE, 255, np.uint8)
    exact = int(activations.astype(np.int64) @ column.astype(np.int64))
    assert (int(vpmaddubsw(activations, column).sum()) != exact) == saturates


@pytest.mark.parametrize("target", TARGETS)
def test_whoever_checks_gets_what_vnni_gives_on_any_cpu(tmp_path: Path, target: str) -> None:
    path = adversarial(tmp_path / "product.onnx")
    quantize_encoder(path, tmp_path / "int8.onnx", target=target)
    engine = load_engine("onnxruntime", tmp_path / "int8.onnx", precision="int8", threads=1, exact_int8=True)
    (product,) = engine.run({"x": np.ones((4, 64), np.float32)}).values()
    assert product == pytest.approx(SIZE / 2, rel=1e-3)


RUN_PRODUCT = """
import json, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
x = numpy.ones((4, 64), numpy.float32)
runs = [onnxruntime.InferenceSession(path, options).run(None, {"x": x})[0] for path in sys.argv[1:]]
print(json.dumps([[float(y.min()), float(y.max())] for y in runs]))
"""


SATURATES = "avx2" in cpu_features() and not FULL_RANGE_FEATURES & cpu_features()  # as Haswell to Skylake


@pytest.mark.skipif(
    not SATURATES and shutil.which("qemu-x86_64") is None,
    reason="this CPU is none with AVX2 and without VNNI, and qemu-x86_64 (Debian's qemu-user) is not installed",
)
def test_on_a_cpu_without_vnni_seven_bits_are_right_and_eight_are_not(tmp_path: Path) -> None:
    """onnxruntime itself, on this CPU or an emulated Haswell: AVX2 and no VNNI (onnxruntime issue 14642)."""
    path = adversarial(tmp_path / "product.onnx")
    graphs = []
    for target in TARGETS:
        graphs.append(str(tmp_path / f"{target}.onnx"))
        quantize_encoder(path, Path(graphs[-1]), target=target)
    emulated = [] if SATURATES else ["qemu-x86_64", "-cpu", "Haswell"]
    command = [*emulated, sys.executable, "-c", RUN_PRODUCT, *graphs]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    portable, full_range = json.loads(finished.stdout)
    assert portable == pytest.approx([SIZE / 2, SIZE / 2], rel=1e-3)
    # Were this right as well, the CPU would have VNNI, and the line above would show nothing.
    assert max(full_range) < 0.6 * SIZE / 2
