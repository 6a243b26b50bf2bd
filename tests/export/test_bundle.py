"""A bundle from an untrained model: its graphs against torch, what it refuses to write, and what must not be in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from decipher_rt.bundle import Bundle, open_bundle
from decipher_rt.engines import load_engine
from decipher_rt.engines.select import plan_entries
from decipher_rt.errors import BundleError, EngineError
from decipher_rt.export import bundle as export_module
from decipher_rt.export import cli
from decipher_rt.export import known as known_module
from decipher_rt.export import verify as verify_module
from decipher_rt.export.bundle import ENCODERS, export_bundle
from decipher_rt.export.cli import export
from decipher_rt.export.evaluate import Judge
from decipher_rt.export.known import KnownSeries
from decipher_rt.export.tensorrt.files import Wanted
from decipher_rt.manifest import EngineFile, Numerics, Precision
from decipher_rt.train.decoders.contract import Known
from decipher_rt.train.golden import GoldenCase, save_golden
from decipher_rt.train.model.vit import ViT, ViTConfig
from decipher_rt.train.weights import Weights, save_weights
from decipher_rt.verify import read_case, verify_bundle

ENCODER = ViTConfig(
    width=48, depth=2, heads=4, embedding_size=16, grid_shape=(16, 16, 24), patch_shape=(4, 4, 4),
    spacing_mm=(15.0,) * 3, token_buckets=(24, 96), layer_scale=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def weights(untrained: Callable[..., Weights]) -> Weights:
    made = untrained(ENCODER, metadata={"metrics": {"lesion": {"auroc": 0.5}}})
    scope, decoders = made.model.scope, made.model.decoders
    with torch.no_grad():
        scope.distance_edge.copy_(torch.tensor([2.0, 0.5]))
        scope.logit_edge.copy_(torch.tensor([-9.0, 1.0]))
        decoders["lesion"].pool.affine.copy_(torch.tensor([0.7, -2.0]))
        decoders["lesion"].temperature.fill_(1.4)
        decoders["sequence"].temperature.fill_(0.6)
    return made


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 4000, ENCODER.grid_shape).astype(np.int16)
    tokens = np.sort(rng.choice(96, 24, replace=False)).astype(np.int64)
    return GoldenCase(volume, np.array([100, 3500], np.float32), tokens)


@pytest.fixture(scope="module")
def bundle(weights: Weights, case: GoldenCase, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("export") / "bundle"
    export_bundle(weights, case, folder, fp16=True)
    return open_bundle(folder)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("B", "K"), [(1, 24), (3, 7), (2, 96)])
def test_encoder_equals_torch_for_any_batch_and_any_tokens(
    bundle: Bundle, weights: Weights, engine: str, precision: Precision, B: int, K: int
) -> None:
    generator = torch.Generator().manual_seed(B)
    inputs = {
        "volume": torch.rand((B, 1, *ENCODER.grid_shape), generator=generator) * 5000,
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


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_verify_passes(bundle: Bundle, engine: str, precision: Precision) -> None:
    report = verify_bundle(bundle, engine, precision)
    assert report.passed, report
    assert [row.output for row in report.rows] == ["patch", "embedding", "heads.sequence", "heads.lesion", "scope"]
    assert report.embedding_cosine > 0.9999


def test_golden_case_is_what_torch_gives(bundle: Bundle, weights: Weights, case: GoldenCase) -> None:
    golden = read_case(bundle)
    assert np.array_equal(golden["volume"][0, 0], case.volume)
    with torch.no_grad():
        patch, embedding = weights.model.encoder(*(torch.from_numpy(golden[n]) for n in ("volume", "window", "tokens")))
        sequence = weights.model.decoders["sequence"].pool(patch, embedding)
        lesion = weights.model.decoders["lesion"].pool(patch)
    assert np.array_equal(golden["embedding"], embedding.numpy())
    assert np.allclose(golden["heads.sequence"], torch.softmax(sequence / 0.6, 1).numpy(), atol=1e-6)
    absent, present = golden["heads.lesion"][0]
    assert present == pytest.approx(float(torch.sigmoid(lesion / 1.4)), abs=1e-6)
    assert absent + present == pytest.approx(1.0, abs=1e-6)


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


def test_no_path_and_no_name_of_this_machine_is_in_the_bundle(bundle: Bundle) -> None:
    here = [
        str(Path.home()),
        str(Path(export_module.__file__).parents[1]),
        "site-packages",
        ".py",
        "/usr/",
        str(bundle.path),
    ]
    for file in bundle.path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [text for text in here if text.encode() in content], file.name


@pytest.fixture
def exported_again(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Callable[[np.ndarray], None]], None]:
    """Let the exporter give the bundle's own graphs, one of them with its largest weight changed."""

    def prepare(changed: str, change: Callable[[np.ndarray], None]) -> None:
        def graph(file: str) -> bytes:
            model = onnx.load(bundle.file(file))
            if file == changed:
                largest = max(model.graph.initializer, key=lambda i: int(np.prod(i.dims)))
                values = onnx.numpy_helper.to_array(largest).copy()
                change(values)
                largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
            return model.SerializeToString()

        small = ("heads/sequence.onnx", "heads/lesion.onnx", "scope.onnx")
        monkeypatch.setattr(export_module, "encoder_graph", lambda e, i, precision: graph(ENCODERS["onnx", precision]))
        monkeypatch.setattr(
            export_module, "small_graphs", lambda parts, inputs, half_text: {file: graph(file) for file in small}
        )

    return prepare


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("encoder.onnx", "the fp32 graphs differ.*patch differs by .*tolerance 0.001"),
        ("encoder.fp16.onnx", "the fp16 graphs differ.*patch differs by .*tolerance 0.05"),
        ("heads/lesion.onnx", "the fp32 graphs differ.*heads.lesion differs by"),
        ("scope.onnx", "the fp32 graphs differ.*scope differs by"),
    ],
)
def test_a_graph_that_differs_is_refused_and_nothing_is_written(
    weights: Weights, case: GoldenCase, tmp_path: Path, exported_again: Callable[..., None], file: str, said: str
) -> None:
    def change(values: np.ndarray) -> None:
        values.flat[: values.size // 2] *= 3

    exported_again(file, change)
    with pytest.raises(EngineError, match=said) as caught:
        export_bundle(weights, case, tmp_path / "bundle", fp16=True)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_not_finite_is_refused(
    weights: Weights, case: GoldenCase, tmp_path: Path, exported_again: Callable[..., None]
) -> None:
    exported_again("heads/sequence.onnx", lambda values: values.fill(np.nan))
    with pytest.raises(EngineError, match=r"heads.sequence differs by inf"):
        export_bundle(weights, case, tmp_path / "bundle", fp16=True)
    assert not list(tmp_path.iterdir())


def test_manifest_says_what_is_in_it(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.encoder.parameters == sum(p.numel() for p in ViT(ENCODER).parameters())
    assert manifest.preprocessing.grid_shape == ENCODER.grid_shape
    assert {head.name: head.labels for head in manifest.heads}["sequence"] == ("T1w", "T2w", "PDw", "FLAIR", "T2*w")
    assert [row.precision for row in manifest.numerics] == ["fp32", "fp16"]
    assert all(
        max(r.patch_max_error, r.heads_max_error, r.embedding_max_error) <= r.tolerance for r in manifest.numerics
    )
    assert manifest.metrics == {"lesion": {"auroc": 0.5}}
    descriptions = {head.name: head.description for head in manifest.heads}
    assert descriptions["sequence"] == "Contrast."
    assert descriptions["lesion"].startswith("Lesion. NOT TO BE RELIED ON: hardly better than chance")
    assert manifest.provenance["config"]["encoder"]["width"] == 48


def damaged(bundle: Bundle, folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Bundle:
    """Return a bundle whose golden case was changed, sums and all."""
    from decipher_rt.bundle import write_bundle

    files: dict[str, bytes | Path] = {
        f.relative_to(bundle.path).as_posix(): f for f in bundle.path.rglob("*") if f.is_file()
    }
    for name in ("manifest.json", "SHA256SUMS"):
        del files[name]
    with np.load(bundle.file("golden/case.npz")) as stored:
        case = dict(stored)
    change(case)
    np.savez(folder / "case.npz", **case)
    write_bundle(folder / "bundle", bundle.manifest, files | {"golden/case.npz": folder / "case.npz"})
    return open_bundle(folder / "bundle")


def test_verify_fails_where_an_output_differs(bundle: Bundle, tmp_path: Path) -> None:
    def change(case: dict[str, np.ndarray]) -> None:
        case["heads.sequence"] = case["heads.sequence"][:, ::-1]

    report = verify_bundle(damaged(bundle, tmp_path, change), "onnxruntime", "fp32")
    assert not report.passed
    assert [row.output for row in report.rows if not row.passed] == ["heads.sequence"]


def test_verify_says_what_the_golden_case_lacks(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"golden/case.npz has no array scope"):
        verify_bundle(damaged(bundle, tmp_path, lambda case: case.pop("scope") and None), "onnxruntime", "fp32")


def test_verify_refuses_pickled_arrays(bundle: Bundle, tmp_path: Path) -> None:
    def change(case: dict[str, np.ndarray]) -> None:
        case["scope"] = np.array([{"a": 1}], dtype=object)

    with pytest.raises(BundleError, match="not an archive of arrays"):
        verify_bundle(damaged(bundle, tmp_path, change), "onnxruntime", "fp32")


def test_command_exports_and_prints_the_comparison(
    weights: Weights,
    case: GoldenCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exported_again: Callable[..., None],
) -> None:
    save_weights(tmp_path / "weights", weights)
    exported_again("none", lambda values: None)
    save_golden(tmp_path / "weights", case)
    arguments = [str(tmp_path / "weights"), "-o", str(tmp_path / "bundle"), "--json"]
    run = CliRunner().invoke(export, arguments, catch_exceptions=False)
    assert run.exit_code == 0
    printed = json.loads(run.stdout)["numerics"]
    assert [row["precision"] for row in printed] == ["fp32"]
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["numerics"] == printed
    open_bundle(tmp_path / "bundle")
    table = CliRunner().invoke(export, arguments[:-1], catch_exceptions=False)
    assert "fp32" in table.output
    assert "allowed" in table.output


def test_the_comparison_is_whole_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing cuts a column where no terminal says how wide it is; ``COLUMNS`` is what rich would heed otherwise."""
    monkeypatch.setenv("COLUMNS", "60")
    heads = {f"head_number_{index}": 90.0 + index for index in range(6)}
    rows = [
        Numerics("fp32", 1.0, 1e-6, 2e-6, 3e-6, 1e-3, "onnx", 1.0, heads),
        Numerics("int8", 0.99951, 0.01, 0.2, 0.03, 0.5, "onnx-vnni", 0.99441, heads),
    ]
    cli._console().print(cli._comparison(rows))
    printed = capsys.readouterr().out
    title, _, header, *_ = printed.splitlines()
    assert title.strip() == "against torch fp32: smallest cosines, largest absolute differences"
    for name in (
        "encoder",
        "cosine",
        "of tokens",
        "embedding",
        "tokens",
        "heads",
        "allowed",
        *(f"{h} %" for h in heads),
    ):
        assert f" {name} " in header
    for figure in ("int8 vnni", "0.99951", "0.99441", "0.2", "95.00"):
        assert figure in printed
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed
    assert max(map(len, printed.splitlines())) < 250  # and no line is padded to that width


# --- Plans, whose buckets are builds of their own


class Bucketed:
    """The fp32 graph in a plan's place; from the bucket of ``broken`` tokens come other tokens."""

    def __init__(self, graph: Path, broken: int) -> None:
        self._engine, self._broken, self.ran = load_engine("onnxruntime", graph, precision="fp32"), broken, list[int]()

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert inputs["volume"].shape[0] == 1, "a plan takes one volume"
        self.ran.append(inputs["tokens"].shape[1])
        outputs = self._engine.run(inputs)
        return {**outputs, "patch": outputs["patch"] * 1.5} if self.ran[-1] == self._broken else outputs


@pytest.mark.parametrize("broken", [0, 24, 48, 96])
def test_every_bucket_of_a_plan_is_compared_with_fp32(
    weights: Weights,
    case: GoldenCase,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exported_again: Callable[..., None],
    broken: int,
) -> None:
    exported_again("none", lambda values: None)
    about = {"architectures": "sm_89"}
    plans = [
        EngineFile("tensorrt-sm_89", "fp16", f"engines/{name}.plan", about | {"tokens": tokens})
        for name, tokens in (("a", "24"), ("b", "48 96"))
    ]
    engine = Bucketed(bundle.file("encoder.onnx"), broken)
    fp32 = load_engine("onnxruntime", bundle.file("encoder.onnx"), precision="fp32")
    monkeypatch.setattr(export_module, "plan_files", lambda *_: ({p.file: b"plan" for p in plans}, plans))
    monkeypatch.setattr(
        verify_module, "runnable_encoders", lambda _, manifest: [(manifest.engines[0], fp32), (plans[0], engine)]
    )
    wanted = Wanted("tensorrt", ("fp16",))
    if broken:
        said = rf"tensorrt-sm_89 fp16 graphs .*patch{'' if broken == 24 else f' of {broken} tokens'} differs by"
        with pytest.raises(EngineError, match=said):
            export_bundle(weights, case, tmp_path / "bundle", fp16=False, plans=wanted)
        return
    numerics = export_bundle(weights, case, tmp_path / "bundle", fp16=False, plans=wanted)
    assert engine.ran == [24, 48, 96]
    assert [row.target for row in numerics] == ["onnx", "tensorrt-sm_89"]


def test_other_buckets_of_the_golden_case_are_of_it(case: GoldenCase) -> None:
    inputs = {"tokens": torch.from_numpy(case.tokens)[None]}
    for K in (8, 24, 40, 96):
        found = export_module._of_bucket(inputs, ENCODER.preprocessing, K)["tokens"][0].tolist()
        assert len(set(found)) == K
        assert found == sorted(found)
        assert len(set(found) & set(case.tokens.tolist())) == min(K, 24)


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="the extra tensorrt-rtx is absent")
def test_command_builds_an_engine_for_a_card_that_is_not_here(
    weights: Weights, case: GoldenCase, tmp_path: Path, exported_again: Callable[..., None]
) -> None:
    save_weights(tmp_path / "weights", weights)
    save_golden(tmp_path / "weights", case)
    exported_again("none", lambda values: None)
    arguments = ["--engine", "tensorrt-rtx", "--arch", "sm_89", "--fp16", "--evaluate", "0"]
    run = CliRunner().invoke(
        export, [str(tmp_path / "weights"), "-o", str(tmp_path / "bundle"), *arguments], catch_exceptions=False
    )
    assert run.exit_code == 0, run.output
    assert "tensorrt-rtx engines are built and not run: no card for them here." in run.output
    opened = open_bundle(tmp_path / "bundle")
    (entry,) = plan_entries(opened.manifest, "tensorrt-rtx", "fp16", 89)
    assert opened.file(entry.file).read_bytes()[1:4] == b"trt"
    assert (entry.built_with["tokens"], entry.built_with["tolerance"]) == ("24 96", "0.05")
    kernels = json.loads(opened.file("kernels/kernels.json").read_text())["kernels"]
    assert {(kernel["kernel"], kernel["architecture"]) for kernel in kernels} == {
        ("patch_embed3d", "sm_89"),
        ("tissue_counts", "sm_89"),
    }
    assert opened.file("kernels/patch_embed3d.npz").is_file()


# --- Which precisions are judged


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 0),
        (["--fp16"], 320),
        (["--fp16", "--evaluate", "7"], 7),
        (["--fp16", "--evaluate", "0"], 0),
        (["--int8"], 512),
        (["--bf16", "--engine", "tensorrt-rtx"], 320),
        (["--fp16", "--engine", "tensorrt"], 512),
    ],
)
def test_every_reduced_precision_is_judged(
    weights: Weights,
    case: GoldenCase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    count: int,
) -> None:
    save_weights(tmp_path / "weights", weights)
    save_golden(tmp_path / "weights", case)
    asked: list[int] = []

    def exported(*_: object, judge: Judge | None, **__: object) -> tuple[Numerics, ...]:
        if judge is not None:
            assert list(judge.series()) == []
            assert judge.max_drop == 0.5
        return (Numerics("fp32", 1.0, 0.0, 0.0, 0.0, 1e-3),)

    def series(_config: object, split: str, wanted: int, *_: object) -> list[KnownSeries]:
        assert split == "test"
        asked.append(wanted)
        return []

    monkeypatch.setattr(export_module, "export_bundle", exported)
    monkeypatch.setattr(known_module, "known_series", series)
    monkeypatch.setattr(known_module, "calibration_inputs", lambda *_: [])
    run = CliRunner().invoke(
        export,
        [str(tmp_path / "weights"), "-o", str(tmp_path / "bundle"), "--json", *arguments],
        catch_exceptions=False,
    )
    assert run.exit_code == 0, run.output
    assert asked == ([count] if count else [])


def test_half_precision_alone_has_its_figures_and_can_be_refused(
    weights: Weights,
    case: GoldenCase,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exported_again: Callable[..., None],
) -> None:
    exported_again("none", lambda values: None)
    save_weights(tmp_path / "weights", weights)
    save_golden(tmp_path / "weights", case)
    rng = np.random.default_rng(3)
    inputs = [
        {
            "volume": rng.normal(1500, 900, (1, 1, *ENCODER.grid_shape)).astype(np.float32),
            "window": np.array([[0, 3000]], np.float32),
            "tokens": np.sort(rng.choice(96, 24, replace=False)).astype(np.int64)[None],
        }
        for _ in range(8)
    ]
    encoder = load_engine("onnxruntime", bundle.file("encoder.onnx"), precision="fp32")
    patches = torch.from_numpy(np.concatenate([encoder.run(one)["patch"] for one in inputs]))
    with torch.no_grad():
        strongest = weights.model.decoders["lesion"].pool(patches)[:, 0].argsort()[4:].tolist()

    def series(*_: object) -> Iterator[KnownSeries]:
        for number, one in enumerate(inputs):
            labels = {"sequence": "T1w", "lesion": "present" if number in strongest else "absent"}
            yield KnownSeries(one, Known(labels, boxes=None, kind="head", tissue=False), heads=("sequence", "lesion"))

    monkeypatch.setattr(known_module, "known_series", series)
    arguments = [str(tmp_path / "weights"), "-o", str(tmp_path / "bundle"), "--fp16", "--evaluate", "8", "--json"]
    run = CliRunner().invoke(export, [*arguments, "--max-drop", "100"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    rows = json.loads(run.stdout)["numerics"]
    assert [(row["precision"], set(row["metrics"])) for row in rows] == [
        ("fp32", {"sequence", "lesion"}),
        ("fp16", {"sequence", "lesion"}),
    ]
    assert rows[0]["metrics"]["lesion"] == 100.0

    engine = type(encoder)
    whole = engine.run

    def turned(self: Any, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = whole(self, given)
        judged = any(given.get("volume") is one["volume"] for one in inputs)
        return {**outputs, "patch": -outputs["patch"]} if self.precision == "fp16" and judged else outputs

    monkeypatch.setattr(engine, "run", turned)
    with pytest.raises(EngineError, match=r"onnx fp16 encoder loses too much.*lesion falls from 100\.00 to"):
        CliRunner().invoke(export, arguments, catch_exceptions=False)
