"""Both engines against numpy on a small graph that follows the encoder contract, in fp32 and fp16."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from decipher_rt.engines import available, load_engine
from decipher_rt.engines.threads import usable_cores
from decipher_rt.errors import EngineError

GRID, PATCH, WIDTH = 8, 4, 24
PATCH_VOXELS = PATCH**3
WEIGHTS = (np.random.default_rng(7).normal(size=(PATCH_VOXELS, WIDTH)) / 8).astype(np.float32)
# One matrix product of 64 terms of order 1: rounding of fp32, and of fp16 (11 bits) where the graph asks for it.
TOLERANCE = {"fp32": 2e-6, "fp16": 4e-3}
ENGINES = ("onnxruntime", "openvino")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        require_openvino()
    return str(request.param)


def require_openvino() -> None:
    for engine in available():
        if engine.name == "openvino" and not engine.available:
            pytest.skip(engine.detail)


def write_encoder(path: Path, precision: str = "fp32") -> Path:
    """Clip and normalise after the gather, project, normalise the mean: the contract with one linear layer."""
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    numpy_kind = np.float16 if precision == "fp16" else np.float32
    side = GRID // PATCH
    shapes = {
        "split": [1, side, PATCH, side, PATCH, side, PATCH],
        "flat": [1, side**3, PATCH_VOXELS],
        "column": [1, -1, 1],
    }
    constants = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in shapes.items()]
    constants += [
        numpy_helper.from_array(WEIGHTS.astype(numpy_kind), "weights"),
        *(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in {"0": 0, "1": 1, "mean_axes": [1]}.items()),
        *(numpy_helper.from_array(np.array(v, np.float32), k) for k, v in {"zero": 0.0, "one": 1.0}.items()),
    ]
    node = helper.make_node
    nodes = [
        node("Reshape", ["volume", "split"], ["blocks"]),
        node("Transpose", ["blocks"], ["ordered"], perm=[0, 1, 3, 5, 2, 4, 6]),
        node("Reshape", ["ordered", "flat"], ["patches"]),
        node("Reshape", ["tokens", "column"], ["places"]),
        node("Expand", ["places", "places_shape"], ["wide"]),
        node("GatherElements", ["patches", "wide"], ["chosen"], axis=1),
        node("Gather", ["window", "0"], ["low"], axis=1),
        node("Gather", ["window", "1"], ["high"], axis=1),
        node("Sub", ["high", "low"], ["span"]),
        node("Sub", ["chosen", "low"], ["above"]),
        node("Div", ["above", "span"], ["scaled"]),
        node("Clip", ["scaled", "zero", "one"], ["clipped"]),
        node("Cast", ["clipped"], ["half"], to=kind),
        node("MatMul", ["half", "weights"], ["projected"]),
        node("Cast", ["projected"], ["patch"], to=TensorProto.FLOAT),
        node("ReduceMean", ["patch", "mean_axes"], ["mean"], keepdims=0),
        node("LpNormalization", ["mean"], ["embedding"], axis=1, p=2),
    ]
    constants.append(numpy_helper.from_array(np.array([1, 1, PATCH_VOXELS], np.int64), "places_shape"))
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info("volume", TensorProto.FLOAT, [1, 1, GRID, GRID, GRID]),
            helper.make_tensor_value_info("window", TensorProto.FLOAT, [1, 2]),
            helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, "K"]),
        ],
        [
            helper.make_tensor_value_info("patch", TensorProto.FLOAT, [1, "K", WIDTH]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, WIDTH]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def example(kept: tuple[int, ...] = (0, 3, 6)) -> dict[str, np.ndarray]:
    volume = np.random.default_rng(3).uniform(0, 900, (1, 1, GRID, GRID, GRID)).astype(np.float32)
    return {
        "volume": volume,
        "window": np.array([[50.0, 700.0]], np.float32),
        "tokens": np.array([kept], np.int64),
    }


def reference(inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    rows = []
    for token in inputs["tokens"][0]:
        corner = np.array(np.unravel_index(token, (GRID // PATCH,) * 3)) * PATCH
        block = inputs["volume"][0, 0][tuple(slice(c, c + PATCH) for c in corner)].astype(np.float64).ravel()
        rows.append(np.clip((block - 50) / 650, 0, 1) @ WEIGHTS.astype(np.float64))
    patch = np.array(rows)
    mean = patch.mean(axis=0)
    return patch[None], (mean / np.linalg.norm(mean))[None]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engine_agrees_with_numpy(name: str, precision: str, tmp_path: Path) -> None:
    engine = load_engine(name, write_encoder(tmp_path / "encoder.onnx", precision), precision=precision, threads=2)
    assert (engine.name, engine.device, engine.precision, engine.threads) == (name, "cpu", precision, 2)
    assert engine.inputs == ("volume", "window", "tokens")
    for kept in ((0, 3, 6), tuple(range(8)), (7,)):  # the number of tokens is open
        inputs = example(kept)
        outputs = engine.run(inputs)
        assert sorted(outputs) == ["embedding", "patch"]
        for output, expected in zip((outputs["patch"], outputs["embedding"]), reference(inputs), strict=True):
            assert output.dtype == np.float32
            np.testing.assert_allclose(output, expected, atol=TOLERANCE[precision], rtol=0)


def test_fp32_is_not_computed_in_bfloat16(name: str, tmp_path: Path) -> None:
    """OpenVINO would do so by itself on CPUs that can; 8 bits are 0.4 %, far outside fp32's tolerance."""
    path = tmp_path / "product.onnx"
    size = 256
    weights = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, size])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    path.write_bytes(model.SerializeToString())
    x = np.random.default_rng(1).normal(size=(64, size)).astype(np.float32)
    got = load_engine(name, path, precision="fp32", threads=1).run({"x": x})["y"]
    exact = x.astype(np.float64) @ weights.astype(np.float64)
    assert np.abs(got - exact).max() < 1e-4 * np.abs(exact).max()


def test_outputs_survive_the_next_run(name: str, tmp_path: Path) -> None:
    engine = load_engine(name, write_encoder(tmp_path / "encoder.onnx"), precision="fp32", threads=1)
    first = engine.run(example((0, 1, 2)))
    kept = first["patch"].copy()
    engine.run(example((5, 6, 7)))
    np.testing.assert_array_equal(first["patch"], kept)


def test_a_bound_thread_stays_bound(name: str, tmp_path: Path) -> None:
    graph, seen = write_encoder(tmp_path / "encoder.onnx"), []
    one = {min(os.sched_getaffinity(0))}

    def work() -> None:
        os.sched_setaffinity(0, one)  # of this thread; OpenVINO looks at the process's first
        load_engine(name, graph, precision="fp32", threads=2).run(example())
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [one]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": None}, "takes tokens, volume, window; given were tokens, volume"),
        ({"colour": np.zeros(1)}, "given were colour, tokens, volume, window"),
        ({"tokens": np.zeros((1, 3), np.int32)}, r"input tokens is int32 \(1, 3\), expected int64 \(1, any\)"),
        ({"volume": np.zeros((1, 1, 8, 8, 9), np.float32)}, r"input volume is float32 \(1, 1, 8, 8, 9\), expected"),
        ({"window": np.zeros((1, 2), np.float64)}, r"input window is float64 \(1, 2\), expected float32 \(1, 2\)"),
    ],
    ids=["missing", "unknown", "type", "shape", "double"],
)
def test_wrong_inputs_are_named(
    name: str, change: dict[str, np.ndarray | None], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = load_engine(name, write_encoder(tmp_path / "encoder.onnx"), precision="fp32", threads=1)
    inputs = {key: value for key, value in {**example(), **change}.items() if value is not None}
    with pytest.raises(EngineError, match=message) as caught:
        engine.run(inputs)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_failure_inside_the_graph_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Only onnxruntime checks the indices of a gather."""
    engine = load_engine("onnxruntime", write_encoder(tmp_path / "encoder.onnx"), precision="fp32", threads=1)
    with pytest.raises(EngineError, match=r"encoder\.onnx: onnxruntime failed: .*GatherElements") as caught:
        engine.run(example((0, 8, 1)))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"", b"not a graph at all", b"\x08\x0a\x12\xff\xff\xff\xff\x0f"])
def test_damaged_graph_is_refused_on_one_line(
    name: str, content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"damaged\.onnx: .* refuses it") as caught:
        load_engine(name, path, precision="fp32")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_unusable_requests_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = write_encoder(tmp_path / "encoder.onnx")
    with pytest.raises(EngineError, match="no engine 'tensorflow'; choose one of onnxruntime, openvino"):
        load_engine("tensorflow", graph, precision="fp32")
    with pytest.raises(EngineError, match="threads is 0"):
        load_engine("onnxruntime", graph, precision="fp32", threads=0)
    with pytest.raises(EngineError, match="no such file"):
        load_engine("onnxruntime", tmp_path / "absent.onnx", precision="fp32")
    monkeypatch.setattr(
        "decipher_rt.engines.ENGINES", {"openvino": (("no-such-distribution",), "pip install 'decipher-rt[openvino]'")}
    )
    with pytest.raises(EngineError, match=r"openvino is not installed: pip install 'decipher-rt\[openvino\]'"):
        load_engine("openvino", graph, precision="fp32")
    assert [(engine.name, engine.available) for engine in available()] == [("openvino", False)]


def test_openvino_keeps_nothing_that_was_written_with_a_decimal_comma(
    tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_openvino()
    graph = write_encoder(tmp_path / "encoder.onnx")
    monkeypatch.setattr("locale.localeconv", lambda: {"decimal_point": ","})
    load_engine("openvino", graph, precision="fp32", threads=1)
    assert not list(cache_folder.rglob("*.blob"))
    assert not (cache_folder / "decipher-rt" / "openvino").exists()


def test_openvino_keeps_compiled_graphs_and_survives_a_spoilt_cache(tmp_path: Path, cache_folder: Path) -> None:
    require_openvino()
    graph = write_encoder(tmp_path / "encoder.onnx")
    load_engine("openvino", graph, precision="fp32", threads=1)
    blobs = [path for path in (cache_folder / "decipher-rt" / "openvino").rglob("*") if path.is_file()]
    assert blobs
    for blob in blobs:
        blob.write_bytes(b"spoilt")
    inputs = example()
    outputs = load_engine("openvino", graph, precision="fp32", threads=1).run(inputs)
    np.testing.assert_allclose(outputs["patch"], reference(inputs)[0], atol=TOLERANCE["fp32"], rtol=0)


def test_cores_are_physical_and_within_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight logical CPUs in four pairs of hyper-threads, of which this process may use six."""
    for cpu in range(8):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 4, 5, 6})
    quota = tmp_path / "cpu.max"
    assert usable_cores(tmp_path, quota) == 3
    quota.write_text("max 100000\n")
    assert usable_cores(tmp_path, quota) == 3
    quota.write_text("150000 100000\n")
    assert usable_cores(tmp_path, quota) == 2
    assert usable_cores(tmp_path / "hidden", tmp_path / "none") == 6


SILENT_RUN = """
import json, sys
connections = []
sys.addaudithook(lambda event, arguments: connections.append(event) if event.startswith("socket.") else None)
import numpy as np
from pathlib import Path
from decipher_rt.engines import available, load_engine
available()
assert not {"onnxruntime", "openvino"} & set(sys.modules)
engine = load_engine(sys.argv[1], Path(sys.argv[2]), precision="fp32", threads=2)
engine.run({"volume": np.ones((1, 1, 8, 8, 8), np.float32), "window": np.array([[0, 2]], np.float32),
            "tokens": np.array([[1, 2]], np.int64)})
print(json.dumps(connections))
"""


def test_engines_are_silent_and_report_to_nobody(name: str, tmp_path: Path) -> None:
    """Without the opt-outs, onnxruntime 1.32 and OpenVINO 2026.4 both write an identifier below the home folder.

    The environment is bare, because onnxruntime reports nothing where variables such as CI say that this is a test.
    """
    graph = write_encoder(tmp_path / "encoder.onnx")
    home, cache = tmp_path / "home", tmp_path / "home" / ".cache"
    home.mkdir()
    finished = subprocess.run(
        [sys.executable, "-c", SILENT_RUN, name, str(graph)],
        env={"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (finished.returncode, finished.stderr) == (0, "")
    assert json.loads(finished.stdout) == []
    written = [path for path in home.rglob("*") if path.is_file()]
    assert [path for path in written if cache / "decipher-rt" not in path.parents] == []


@pytest.mark.parametrize("within", ["a", "v", "zz", "embedding2", "Cast_0"])
def test_names_are_those_of_the_file_whatever_lies_beside_them(name: str, within: str, tmp_path: Path) -> None:
    """OpenVINO takes a Cast that changes nothing, and an Identity, out of the graph, and their tensors' names together."""
    node = helper.make_node
    nodes = [
        node("Cast", ["embedding"], [within], to=TensorProto.FLOAT),
        node("ReduceMean", [within], [f"{within}.mean"], keepdims=1),
        node("Identity", [f"{within}.mean"], ["value"]),
    ]
    shapes = (
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", 4])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(helper.make_graph(nodes, "g", *shapes), opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "head.onnx")
    for _ in range(2):  # compiled, and kept
        engine = load_engine(name, tmp_path / "head.onnx", precision="fp32", threads=1)
        assert engine.inputs == ("embedding",)
        outputs = engine.run({"embedding": np.array([[1, 2, 3, 6]], np.float32)})
        assert {key: value.item() for key, value in outputs.items()} == {"value": 3.0}


def test_another_graph_of_the_same_name_size_and_time_is_not_taken_for_the_first(tmp_path: Path) -> None:
    """As a bundle that is unpacked over another one with the times of its archive."""
    require_openvino()
    path = tmp_path / "a.onnx"
    for factor in (2.0, 3.0):
        constant = numpy_helper.from_array(np.array([factor], np.float32), "factor")
        ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "factor"], ["y"])], "g", ports[:1], ports[1:], [constant]
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
        os.utime(path, (1e9, 1e9))
        engine = load_engine("openvino", path, precision="fp32", threads=1)
        assert engine.run({"x": np.ones(1, np.float32)})["y"] == factor


def test_a_card_that_does_not_start_is_one_line_and_nothing_is_printed(tmp_path, monkeypatch, capsys) -> None:
    import onnxruntime

    def fail(*_: object, **given: object) -> None:
        assert given["enable_fallback"] == 0  # which prints, and takes the CPU
        raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    (tmp_path / "a.onnx").touch()
    with pytest.raises(EngineError, match=r"a\.onnx: onnxruntime .* refuses it: CUDA failure 100"):
        load_engine("onnxruntime", tmp_path / "a.onnx", precision="fp32", threads=1)
    assert capsys.readouterr() == ("", "")
