"""A bundle from an untrained model with a decoder of every kind and a text tower: graphs against torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from decipher_rt.bundle import Bundle, open_bundle
from decipher_rt.engines import load_engine
from decipher_rt.errors import EngineError
from decipher_rt.export import bundle as export_module
from decipher_rt.export import evaluate as evaluate_module
from decipher_rt.export import known as known_module
from decipher_rt.export.bundle import export_bundle
from decipher_rt.export.evaluate import evaluate_encoders
from decipher_rt.export.known import KnownSeries
from decipher_rt.export.parts import PROMPTS, parts_of, unreliable
from decipher_rt.export.verify import reference_outputs
from decipher_rt.session import Session
from decipher_rt.text import TextTower
from decipher_rt.train.decoders.contract import Known, seen_as_encoder
from decipher_rt.train.decoders.registry import DecoderConfig
from decipher_rt.train.golden import GoldenCase
from decipher_rt.train.model.recipe import RecipeModel
from decipher_rt.train.model.text import TextConfig
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.progress import Progress
from decipher_rt.train.scope import ScopeConfig
from decipher_rt.train.sources import Box, Example, ListedExamples, SourceConfig
from decipher_rt.train.text.tokenizer import encode, train_tokenizer
from decipher_rt.train.weights import Weights
from decipher_rt.verify import PROMPTS as GOLDEN_PROMPTS
from decipher_rt.verify import read_case, verify_bundle
from decipher_rt.volume import Acquisition, SeriesInfo, Volume

ENCODER = ViTConfig(
    width=48, depth=1, heads=4, embedding_size=16, grid_shape=(16, 16, 24), patch_shape=(4, 4, 4),
    spacing_mm=(15.0,) * 3, token_buckets=(24, 96), layer_scale=0.5,
)  # fmt: skip
TEXT = TextConfig(width=32, depth=1, heads=2, hidden=64, vocabulary=512, max_tokens=64)
DECODERS = (
    DecoderConfig("sequence", "classification", "sequence", "Contrast.", {"labels": ["T1w", "T2w", "FLAIR"]}),
    DecoderConfig(
        "lesion", "classification", "lesion", "Weak: a coin.", {"labels": ["absent", "present"], "pool": "max"}
    ),
    DecoderConfig("brain_volume_ml", "regression", "brain_volume_ml", options={"unit": "ml", "pool": "sum"}),
    DecoderConfig("tissue", "segmentation", "tissue", options={"channels": [16], "stride": 2, "skips": True}),
    DecoderConfig("lesion_box", "localisation", "lesion", options={"hidden": 48, "boxes": 2}),
)


@pytest.fixture(scope="module")
def weights(untrained: Callable[..., Weights]) -> Weights:
    metadata = {"metrics": {"tissue": {"dice": 0.5}}}
    made = untrained(ENCODER, decoders=DECODERS, text=TEXT, scope=ScopeConfig(groups=3), metadata=metadata)
    model = made.model
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.decoders["brain_volume_ml"].mean.fill_(1200.0)
        model.decoders["brain_volume_ml"].spread.fill_(100.0)
        model.decoders["lesion_box"].threshold.fill_(0.375)
    return made


@pytest.fixture(scope="module")
def tokenizer() -> bytes:
    return train_tokenizer(list(PROMPTS) * 4, TEXT.vocabulary, TEXT.max_tokens).to_str().encode()


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 4000, ENCODER.grid_shape).astype(np.int16)
    tokens = np.sort(rng.choice(96, 24, replace=False)).astype(np.int64)
    return GoldenCase(volume, np.array([100, 3500], np.float32), tokens)


@pytest.fixture(scope="module")
def bundle(weights, tokenizer, case, tmp_path_factory) -> Bundle:
    folder = tmp_path_factory.mktemp("recipe") / "bundle"
    export_bundle(weights, case, folder, fp16=False, tokenizer=tokenizer)
    return open_bundle(folder)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_verify_passes_with_every_output(bundle: Bundle, engine: str) -> None:
    report = verify_bundle(bundle, engine, "fp32", 1)
    assert report.passed, report
    assert [row.output for row in report.rows] == [
        "patch", "embedding", *(f"heads.{d.name}" for d in DECODERS), "scope", "text"
    ]  # fmt: skip


def test_the_manifest_says_what_the_decoders_are(bundle: Bundle, weights: Weights) -> None:
    heads = {head.name: head for head in bundle.manifest.heads}
    assert [head.kind for head in heads.values()] == [
        "classification", "classification", "regression", "segmentation", "localisation"
    ]  # fmt: skip
    assert heads["sequence"].labels == ("T1w", "T2w", "FLAIR")
    assert heads["lesion"].description == "Weak: a coin. NOT TO BE RELIED ON: not measured on held-out series."
    assert heads["brain_volume_ml"].unit == "ml"
    assert (heads["tissue"].stride, heads["tissue"].labels[0]) == (2, "background")
    assert heads["lesion_box"].threshold == 0.375
    text = bundle.manifest.text
    assert text is not None
    assert (text.max_tokens, text.logit_scale) == (64, pytest.approx(np.exp(2.0)))
    assert bundle.manifest.metrics == {"tissue": {"dice": 0.5}}
    assert bundle.manifest.provenance["config"]["decoders"][0]["name"] == "sequence"


@pytest.mark.parametrize("name", [decoder.name for decoder in DECODERS])
@pytest.mark.parametrize(("B", "K"), [(1, 96), (2, 24), (3, 7)])
def test_a_decoder_equals_torch_for_any_batch_and_any_tokens(
    bundle: Bundle, weights: Weights, name: str, B: int, K: int
) -> None:
    generator = torch.Generator().manual_seed(B)
    features = {
        "patch": torch.randn((B, K, 48), generator=generator),
        "tokens": torch.stack([torch.randperm(96, generator=generator)[:K].sort().values for _ in range(B)]),
        "embedding": torch.nn.functional.normalize(torch.randn((B, 16), generator=generator), dim=-1),
    }
    voxels = {
        "volume": 300 * torch.rand((B, 1, *ENCODER.grid_shape), generator=generator),
        "window": torch.tensor([[20.0, 250.0], [0.0, 1.0], [-5.0, 300.0]])[:B],
    }
    with torch.no_grad():
        expected = weights.model.decoders[name](**features, image=seen_as_encoder(**voxels)).numpy()
    features |= voxels
    engine = load_engine("onnxruntime", bundle.file(f"heads/{name}.onnx"), precision="fp32", threads=1)
    (output,) = engine.run({key: features[key].numpy() for key in engine.inputs}).values()
    assert output.shape == expected.shape
    assert output.dtype == expected.dtype
    if name == "tissue":
        assert output.shape[1:] == (8, 8, 12)
        assert (output != expected).mean() < 1e-3
    else:
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_a_graph_takes_only_what_it_looks_at(bundle: Bundle) -> None:
    inputs = {
        head.name: {entry.name for entry in onnx.load(bundle.file(head.file)).graph.input}
        for head in bundle.manifest.heads
    }
    assert inputs["lesion"] == {"patch"}
    assert inputs["lesion_box"] == {"patch", "tokens"}
    assert inputs["tissue"] == {"patch", "tokens", "volume", "window"}


def test_the_text_tower_equals_torch_padded_or_not(bundle: Bundle, weights: Weights, tokenizer: bytes) -> None:
    """The training's batch is padded and masked; the runtime runs each text alone."""
    from tokenizers import Tokenizer

    texts = ["No lesion.", "FLAIR image with a lesion in the left frontal lobe.", "head"]
    ids, mask = encode(Tokenizer.from_buffer(tokenizer), texts)
    with torch.no_grad():
        expected = weights.model.text(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    np.testing.assert_allclose(TextTower(bundle, 1).embed(texts), expected, atol=1e-5)


def test_half_precision_keeps_the_text_tower_in_half_the_room(
    bundle: Bundle, weights: Weights, tokenizer: bytes, case: GoldenCase, tmp_path: Path
) -> None:
    """The arithmetic stays float32: what differs from torch is the rounding of the weights, 2^-11 of each."""
    config = dataclasses.replace(weights.config, decoders=(), sources={}, scope=None)
    model = RecipeModel(config).eval()
    model.load_state_dict({k: v for k, v in weights.model.state_dict().items() if not k.startswith(("dec", "sco"))})
    export_bundle(Weights(model, config, {}), case, tmp_path / "bundle", fp16=True, tokenizer=tokenizer)
    half = open_bundle(tmp_path / "bundle")
    assert half.file("text.onnx").stat().st_size < 0.6 * bundle.file("text.onnx").stat().st_size
    assert half.manifest.text is not None
    assert half.manifest.text.tolerance == 5e-2
    assert half.manifest.heads == ()
    difference = np.abs(TextTower(half, 1).embed(PROMPTS) - TextTower(bundle, 1).embed(PROMPTS)).max()
    assert 0 < difference < 1e-2
    for precision in ("fp32", "fp16"):
        assert verify_bundle(half, "onnxruntime", precision, 1).passed


def test_the_golden_case_holds_what_torch_gives(bundle: Bundle, weights: Weights) -> None:
    golden = read_case(bundle)
    with torch.no_grad():
        volume, window, tokens = (torch.from_numpy(golden[n]) for n in ("volume", "window", "tokens"))
        patch, embedding = weights.model.encoder(volume, window, tokens)
        tissue = weights.model.decoders["tissue"](patch, tokens, embedding, seen_as_encoder(volume, window))
    assert np.array_equal(golden["heads.tissue"], tissue.numpy())
    assert golden["prompts"].tolist() == list(PROMPTS)


def test_a_session_answers_with_every_kind(bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    info = SeriesInfo("1.2.3", Path("memory"), files=1, acquisition=Acquisition(modality="MR"))
    affine = np.array([[0, 0, 15, -120], [0, 15, 0, -120], [15, 0, 0, -120], [0, 0, 0, 1.0]])
    volume = Volume(rng.integers(0, 1000, (16, 16, 16)).astype(np.int16), affine, info)
    opened = Bundle(bundle.path, _in_scope(bundle), bundle.sha256, bundle.sums)
    result = Session(opened, threads=1, prompts=["No lesion.", "A lesion is seen."]).infer_volume(volume)
    assert set(result.heads["tissue"].volumes_ml) == {"grey", "white", "csf", "lesion"}
    assert sum(result.heads["tissue"].volumes_ml.values()) <= np.prod((16, 16, 16)) * 15**3 / 1000 + 1e-6
    assert result.heads["brain_volume_ml"].unit == "ml"
    assert len(result.heads["lesion_box"].boxes) <= 2
    assert sum(answer.probability or 0 for answer in result.prompts.values()) == pytest.approx(1)


def _in_scope(bundle: Bundle):
    assert bundle.manifest.scope is not None
    return dataclasses.replace(bundle.manifest, scope=dataclasses.replace(bundle.manifest.scope, threshold=-1e9))


def test_a_text_tower_without_its_tokenizer_is_refused(weights, case, tmp_path) -> None:
    with pytest.raises(EngineError, match=r"its folder no tokenizer\.json"):
        export_bundle(weights, case, tmp_path / "bundle", fp16=False)
    assert not list(tmp_path.iterdir())


def test_series_to_judge_on_come_from_each_decoder_s_own_source(weights, monkeypatch, tmp_path) -> None:
    """A series judges the decoders that were trained on its source, and no more are made than are looked at."""
    rng = np.random.default_rng(0)
    asked = []

    def examples(source, spec, split, *_):
        asked.append((source.seed, split, source.test))
        labels = {"sequence": "T2w", "lesion": "present", "age": 61.0}
        volume = rng.random(ENCODER.grid_shape).astype(np.float16)
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        boxes = (Box((8.0, 4.0, 2.0), (4.0, 2.0, 6.0)),)
        tissue = np.ones(ENCODER.grid_shape, np.uint8)
        example = Example(patient="p", volume=volume, affine_lps_mm=affine, labels=labels, boxes=boxes, tissue=tissue)
        return ListedExamples([example] * 3)

    monkeypatch.setattr(known_module, "open_source", examples)
    sources = {d.name: SourceConfig(seed=1 if d.name == "lesion" else 0) for d in DECODERS}
    config = dataclasses.replace(weights.config, sources=sources)
    known = list(known_module.known_series(config, "test", 2, tmp_path, Progress()))
    assert asked == [(0, "test", 2), (1, "test", 2)]
    others = tuple(d.name for d in DECODERS if d.name != "lesion")
    assert [series.heads for series in known] == [others] * 2 + [("lesion",)] * 2
    assert {series.known.labels["sequence"] for series in known} == {"T2w"}
    assert np.allclose(known[0].known.boxes, [[4, 2, 1, 2, 1, 3]])  # in voxels of 2 mm
    assert known[0].tissue.all()
    assert known[0].inputs["volume"].shape == (1, 1, *ENCODER.grid_shape)
    assert len(known[0].inputs["tokens"][0]) in ENCODER.token_buckets


class Encoded:
    """An encoder that gives each series, known by its first voxel, tokens and an embedding of its own, changed."""

    name, device, precision, threads, inputs = "fake", "cpu", "fp16", 1, ("volume", "window", "tokens")

    def __init__(self, change: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> None:
        self._change = change

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(int(inputs["volume"].flat[0]))
        patch = self._change(rng.normal(size=(1, 24, 48)).astype(np.float32))
        embedding = self._change(rng.normal(size=(1, 16)).astype(np.float32))
        return {"patch": patch, "embedding": embedding / np.linalg.norm(embedding)}


@pytest.fixture(scope="module")
def answered(weights: Weights) -> list[KnownSeries]:
    """Series whose truth is what the decoders say of the tokens as they are; of the lesions, of the upper half."""
    rng = np.random.default_rng(6)
    decoders, said = weights.model.decoders, []
    for number in range(24):
        tokens = np.sort(rng.choice(96, 24, replace=False)).astype(np.int64)[None]
        inputs = {
            "volume": np.full((1, 1, *ENCODER.grid_shape), number, np.float32),
            "window": np.array([[0, 24]], np.float32),
            "tokens": tokens,
        }
        encoded = {name: torch.from_numpy(array) for name, array in Encoded().run(inputs).items()}
        image = seen_as_encoder(torch.from_numpy(inputs["volume"]), torch.from_numpy(inputs["window"]))
        features = {**encoded, "tokens": torch.from_numpy(tokens), "image": image}
        with torch.no_grad():
            said.append((inputs, {name: decoder(**features)[0].numpy() for name, decoder in decoders.items()}))
    strong, sure = (
        np.median([one[name][place] for _, one in said]) for name, place in (("lesion", 1), ("lesion_box", (0, 0)))
    )
    series = []
    for inputs, one in said:
        labels = {
            "sequence": DECODERS[0].options["labels"][one["sequence"].argmax()],
            "lesion": "present" if one["lesion"][1] > strong else "absent",
            "brain_volume_ml": float(one["brain_volume_ml"][0]),
        }
        boxes = one["lesion_box"][:1, 1:] if one["lesion_box"][0, 0] > sure else np.zeros((0, 6), np.float32)
        tissue = one["tissue"].repeat(2, 0).repeat(2, 1).repeat(2, 2)
        known = Known(labels, boxes=boxes, kind="head", tissue=True)
        series.append(KnownSeries(inputs, known, tissue, tuple(d.name for d in DECODERS)))
    return series


METRICS = ["sequence", "lesion", "brain_volume_ml", "tissue", "lesion_box", "lesion_box IoU"]


def test_every_kind_of_head_is_judged_and_refused_with_the_numbers(
    weights: Weights, tokenizer: bytes, answered: list[KnownSeries]
) -> None:
    """Tokens that are others make every head worse; a rounding to half makes none."""
    noise = np.random.default_rng(7)
    half = Encoded(lambda x: x.astype(np.float16).astype(np.float32))
    other = Encoded(lambda x: x + 2 * noise.normal(size=x.shape).astype(np.float32))
    heads = parts_of(weights, tokenizer).heads
    reference, (close, far) = evaluate_encoders(Encoded(), [half, other], heads, iter(answered))
    assert list(reference.metrics) == METRICS
    assert list(reference.metrics.values()) == pytest.approx([100.0] * len(METRICS), abs=0.02)
    evaluate_module._refuse("onnx fp16", reference, close, 0.5)
    with pytest.raises(EngineError) as caught:
        evaluate_module._refuse("onnx int8", reference, far, 0.5)
    for name in METRICS:
        assert far.metrics[name] < 99
        assert f"{name} falls from {reference.metrics[name]:.2f} to {far.metrics[name]:.2f} %" in str(caught.value)


@pytest.mark.parametrize("name", ["brain_volume_ml", "tissue", "lesion_box"])
def test_a_head_that_no_series_can_judge_is_named(
    weights: Weights, tokenizer: bytes, answered: list[KnownSeries], name: str
) -> None:
    heads = parts_of(weights, tokenizer).heads
    unknown = [dataclasses.replace(one, heads=tuple(n for n in one.heads if n != name)) for one in answered]
    with pytest.raises(EngineError, match=rf"no truth to judge {name} by; evaluate on more with --evaluate"):
        evaluate_encoders(Encoded(), [], heads, iter(unknown))


def test_half_a_tokenizer_is_refused_in_words(weights: Weights, tokenizer: bytes, case: GoldenCase) -> None:
    inputs = {
        "volume": torch.from_numpy(case.volume.astype(np.float32))[None, None],
        "window": torch.from_numpy(case.window)[None],
        "tokens": torch.from_numpy(case.tokens)[None],
    }
    with pytest.raises(EngineError, match=r"^tokenizer.json of the model's folder: not a tokenizer .*copy it again"):
        reference_outputs(parts_of(weights, tokenizer[: len(tokenizer) // 2]), inputs)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("heads/tissue.onnx", r"heads\.tissue differs by"),
        ("heads/lesion_box.onnx", r"heads\.lesion_box differs by"),
        ("heads/brain_volume_ml.onnx", r"heads\.brain_volume_ml differs by"),
        ("text.onnx", "the text graphs differ from the fp32 torch model"),
    ],
)
def test_a_graph_that_differs_is_refused_and_nothing_is_written(
    bundle: Bundle, weights, tokenizer, case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, said: str
) -> None:
    small = {
        n: bundle.file(n).read_bytes()
        for n in bundle.sums
        if n.startswith("heads/") or n in ("scope.onnx", "text.onnx")
    }
    model = onnx.load_from_string(small[file])
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 8:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.roll(values, 1) * np.float32(1.3), tensor.name))
    small |= {file: model.SerializeToString(), "tokenizer.json": tokenizer}
    encoder = bundle.file("encoder.onnx").read_bytes()
    monkeypatch.setattr(export_module, "encoder_graph", lambda *_: encoder)
    monkeypatch.setattr(export_module, "small_graphs", lambda *_, half_text: small)
    with pytest.raises(EngineError, match=said) as caught:
        export_bundle(weights, case, tmp_path / "bundle", fp16=False, tokenizer=tokenizer)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"auroc": 0.91}, ""),
        ({"auroc": 0.55}, "AUROC 0.55"),
        ({"presence_auroc": 0.5, "iou": 0.4}, "AUROC 0.50"),
        ({"r_squared": 0.05}, "5% of the variance"),
        ({"r_squared": 0.8}, ""),
        ({"dice": {"grey": 0.6, "lesion": 0.02}}, "lesion (Dice 0.02)"),
        ({"dice": {"grey": 0.6, "lesion": None}}, "lesion (not measured)"),
        (None, "not measured on held-out series"),
        ({"series": 5, "presence_auroc": None, "iou": 0.4}, "not measured on held-out series"),  # all have the lesion
        ({"series": 5, "accuracy": 1.0, "auroc": None}, "not measured on held-out series"),
        ({"series": 1, "mae": 0.2, "r_squared": None}, "not measured on held-out series"),
        ({"dice": {"lesion": None}}, "not measured on held-out series"),
    ],
)
def test_a_head_of_poor_figures_says_so_with_every_answer(figures: dict | None, said: str) -> None:
    warning = unreliable(figures)
    assert said in warning
    assert warning.startswith(" NOT TO BE RELIED ON") == bool(said)


@pytest.mark.parametrize(("most", "prompts"), [(8, ["No lesion is seen."]), (4, ["a"])])
def test_a_tower_that_reads_few_tokens_answers_for_words_that_fit(
    untrained: Callable[..., Weights], tokenizer: bytes, case: GoldenCase, tmp_path: Path, most: int, prompts: list[str]
) -> None:
    short = untrained(ENCODER, decoders=DECODERS[:1], text=dataclasses.replace(TEXT, max_tokens=most))
    export_bundle(short, case, tmp_path / "bundle", fp16=False, tokenizer=tokenizer)
    bundle = open_bundle(tmp_path / "bundle")
    assert verify_bundle(bundle, "onnxruntime", "fp32", 1).passed
    assert [str(prompt) for prompt in read_case(bundle)[GOLDEN_PROMPTS]] == prompts
