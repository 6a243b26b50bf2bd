"""Each kind of decoder learns what it is for, and its ONNX graph answers in onnxruntime and OpenVINO as in torch."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from decipher_rt.engines import load_engine
from decipher_rt.export.answering import Answering
from decipher_rt.export.onnx import graph
from decipher_rt.head_graphs import OUTPUTS
from decipher_rt.train.data.sample import LABELS
from decipher_rt.train.decoders import kinds
from decipher_rt.train.decoders.contract import Decoder, Known
from decipher_rt.train.decoders.registry import DecoderConfig, build_decoder, kind_of, names
from decipher_rt.train.decoders.stage import DecoderStage, answer_rows, read_batch
from decipher_rt.train.decoders.truth import known_series
from decipher_rt.train.model.vit import ViTConfig

from .every_kind import ALL, ATTENTION, BOX, LESION, LINEAR, MASK, TISSUE, VOLUME
from .learning import learn

AXES = {"patch": {0: "B", 1: "K"}, "tokens": {0: "B", 1: "K"}} | {
    n: {0: "B"} for n in ("embedding", "volume", "window")
}


def fitted(config: DecoderConfig, encoder: ViTConfig, splits: dict, steps: int, rate: float, batch: int = 32) -> dict:
    """Train with the stage's own batches and AdamW, calibrate, and return the figures of the test split."""
    torch.manual_seed(0)
    decoder = build_decoder(config, encoder)
    examples, tokens = splits["train"]
    learn(decoder, tokens, examples, steps, rate, batch)
    decoder.calibrate(answer_rows(decoder, splits["validation"][1], splits["validation"][0]))
    return decoder.figures(answer_rows(decoder, splits["test"][1], splits["test"][0]))


# The margins are from what an answer that ignores the series reaches: 0.5 of two labels, the error of the mean, and
# the Dice of nothing.
@pytest.mark.parametrize(("config", "steps"), [(LINEAR, 60), (ATTENTION, 60)], ids=["linear", "attention"])
def test_classification_learns(config: DecoderConfig, steps: int, vit_config: ViTConfig, splits: dict) -> None:
    figures = fitted(config, vit_config, splits, steps, 1e-2)
    assert figures["accuracy"] > 0.95
    assert figures["auroc"] > 0.98
    assert figures["series"] == sum(known.kind == "head" for known in splits["test"][1].known)
    assert np.trace(figures["confusion"]) == round(figures["accuracy"] * figures["series"])


def test_the_strongest_patch_finds_lesions(vit_config: ViTConfig, splits: dict) -> None:
    config = dataclasses.replace(LESION, options={**LESION.options, "hidden": 48})
    figures = fitted(config, vit_config, splits, 200, 1e-2)
    assert figures["auroc"] > 0.8  # the encoder is random, and 200 steps are few
    assert min(figures["sensitivity"], figures["specificity"]) > 0.6


def test_regression_learns_volumes(vit_config: ViTConfig, splits: dict) -> None:
    figures = fitted(VOLUME, vit_config, splits, 150, 1e-2)
    assert figures["unit"] == "ml"
    assert figures["mae"] < 0.3 * figures["mae_of_mean"]
    assert figures["r_squared"] > 0.85


def test_segmentation_learns_tissues(vit_config: ViTConfig, splits: dict) -> None:
    config = dataclasses.replace(TISSUE, options={"channels": [32, 16]})
    figures = fitted(config, vit_config, splits, 250, 1e-2, batch=8)
    assert figures["dice"]["grey"] > 0.9
    assert figures["dice"]["white"] > 0.9
    assert figures["dice"]["lesion"] > 0.35
    assert figures["dice"]["csf"] is None  # no ball has any


def test_voxels_beside_the_tokens_find_what_is_small(vit_config: ViTConfig, splits: dict) -> None:
    """Crops of three patches of four along each axis. On tokens alone as many steps bring lesions to 0.63."""
    config = dataclasses.replace(TISSUE, options={"channels": [32, 16], "skips": True, "crop": 3})
    figures = fitted(config, vit_config, splits, 400, 1e-2, batch=8)
    assert figures["dice"]["grey"] > 0.9
    assert figures["dice"]["white"] > 0.9
    assert figures["dice"]["lesion"] > 0.75


def test_localisation_learns_boxes(vit_config: ViTConfig, splits: dict) -> None:
    figures = fitted(BOX, vit_config, splits, 200, 1e-2)
    assert figures["presence_auroc"] > 0.85
    # A voxel is 15 mm, a patch 60; always the middle of where boxes may lie would be 35 mm off.
    assert figures["centre_error_mm"]["median"] < 22
    assert figures["iou"] > 0.25


def _outputs(decoder: Decoder, inputs: dict[str, torch.Tensor], tmp_path: Path) -> tuple[np.ndarray, ...]:
    """Return the answers of onnxruntime, OpenVINO and torch."""
    some = {name: inputs[name][:1] for name in decoder.inputs}
    some |= {name: some[name][:, :20] for name in ("patch", "tokens") if name in some}
    content = graph(
        Answering([decoder]),
        some,
        outputs=(OUTPUTS[decoder.answer],),
        dynamic={name: AXES[name] for name in decoder.inputs},
    )
    path = tmp_path / "decoder.onnx"
    path.write_bytes(content)
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {""}
    used = {name for node in model.graph.node for name in node.input}
    assert used & set(inputs) == set(decoder.inputs), "the decoder says which inputs matter"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {name: inputs[name].numpy() for name in decoder.inputs}
    (answer,) = session.run(None, given)
    other = load_engine("openvino", path, precision="fp32", threads=2).run(given)[OUTPUTS[decoder.answer]]
    with torch.no_grad():
        (expected,) = Answering([decoder])(*(inputs[name] for name in decoder.inputs))
    return answer, other, expected.numpy()


# Between them they hold every module; the others differ in sizes.
@pytest.mark.parametrize("name", ["linear", "attention", "max", "sum", "tissue", "skips", "boxes"])
def test_the_graph_answers_as_torch_does(name: str, vit_config: ViTConfig, splits: dict, tmp_path: Path) -> None:
    torch.manual_seed(1)
    decoder = build_decoder(ALL[name], vit_config).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():  # so that nothing is zero, or the same everywhere
            parameter.add_(0.1 * torch.randn_like(parameter))
    _, tokens = splits["train"]
    K = int(np.bincount(tokens.count).argmax())
    rows = [tokens[i] for i in np.flatnonzero(tokens.count == K)[:3]]
    inputs = {key: torch.stack([getattr(row, key) for row in rows]) for key in ("patch", "tokens", "embedding")}
    inputs |= {"volume": 300 * torch.rand(3, 1, 16, 16, 16), "window": torch.tensor([[20.0, 250.0]] * 3)}
    *answers, expected = _outputs(decoder, inputs, tmp_path)
    for answer in answers:
        assert answer.dtype == expected.dtype
        assert answer.shape == expected.shape
        if decoder.answer == "segmentation":
            assert answer.dtype == np.uint8
            assert len(np.unique(answer)) > 1
            assert (answer != expected).mean() < 1e-3  # an argmax may tip where two logits are equal to the last bits
        else:
            assert np.allclose(answer, expected, atol=1e-4, rtol=1e-4)


def test_answers_follow_the_bundles_contract(vit_config: ViTConfig, splits: dict) -> None:
    torch.manual_seed(2)
    _, tokens = splits["train"]
    one = tokens[0]
    inputs = {key: getattr(one, key)[None] for key in ("patch", "tokens", "embedding")}
    inputs["image"] = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        answers = {name: build_decoder(config, vit_config).eval()(**inputs) for name, config in ALL.items()}
    for name in ("linear", "attention", "max"):
        assert answers[name].shape == (1, 2)
        assert float(answers[name].sum()) == pytest.approx(1.0)
    assert answers["sum"].shape == (1, 1)
    assert answers["tissue"].shape == (1, 16, 16, 16)
    assert answers["strided"].shape == (1, 8, 8, 8)
    assert int(answers["strided"].max()) <= 1
    assert answers["skips"].shape == answers["tissue"].shape
    assert answers["strided skips"].shape == answers["strided"].shape
    assert answers["box"].shape == (1, 1, 7)
    assert answers["boxes"].shape == (1, 3, 7)
    scores = answers["boxes"][0, :, 0]
    assert bool((scores[:-1] >= scores[1:]).all())
    assert bool((answers["boxes"][..., 4:] > 0).all())


def test_the_order_of_tokens_does_not_matter(vit_config: ViTConfig, splits: dict) -> None:
    torch.manual_seed(4)
    one = splits["train"][1][3]
    order = torch.randperm(len(one.tokens))
    image = torch.rand(1, 1, 16, 16, 16)
    for name, config in ALL.items():
        decoder = build_decoder(config, vit_config).eval()
        with torch.no_grad():
            straight = decoder(one.patch[None], one.tokens[None], one.embedding[None], image)
            shuffled = decoder(one.patch[None, order], one.tokens[None, order], one.embedding[None], image)
        if decoder.answer == "localisation":  # untrained, every token scores alike: which come first is a tie
            straight, shuffled = straight[..., 0], shuffled[..., 0]
        assert torch.allclose(straight.float(), shuffled.float(), atol=1e-4), name


def test_what_is_unknown_trains_nothing(vit_config: ViTConfig, splits: dict) -> None:
    tokens = splits["train"][1]
    heads = np.flatnonzero(tokens.head)
    for config in ALL.values():
        assert np.array_equal(known_series(build_decoder(config, vit_config), tokens.known), heads)
    other = build_decoder(dataclasses.replace(LINEAR, target="scanner"), vit_config)
    assert len(known_series(other, tokens.known)) == 0
    with pytest.raises(ValueError, match="no series of the train split"):
        DecoderStage(other, tokens, splits["train"][0], 8, seed=0)
    nobody_looked = Known({"lesion": "present"}, None, "head", tissue=False)
    assert not build_decoder(BOX, vit_config).knows(nobody_looked)
    assert not build_decoder(VOLUME, vit_config).knows(Known({"ball_volume_ml": float("nan")}, None, "head", False))


def test_an_epoch_is_every_series_once_and_shares_make_the_whole(vit_config: ViTConfig, splits: dict) -> None:
    examples, tokens = splits["train"]
    stage = DecoderStage(build_decoder(LESION, vit_config), tokens, examples, 16, seed=5)
    sizes = [len(group) for group in stage._groups]
    steps = sum(-(-size // 16) for size in sizes)
    seen = [stage.indices(step) for step in range(steps)]
    assert all(len({int(tokens.count[i]) for i in batch}) == 1 for batch in seen)
    assert {i for batch in seen for i in batch} == set(known_series(stage.decoder, tokens.known).tolist())
    assert [stage.indices(step) for step in range(steps, 2 * steps)] != seen
    own = [i for batch in seen for i in set(batch)]
    assert len(own) == len(set(own))  # a batch is filled up by its own series only
    whole, halves = stage.batch(3, 0, 1), [stage.batch(3, rank, 2) for rank in (0, 1)]
    assert torch.equal(whole["patch"], torch.cat([half["patch"] for half in halves]))
    with torch.no_grad():
        losses = [float(stage.model(half, 3)["loss"]) for half in halves]
        assert float(stage.model(whole, 3)["loss"]) == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_copies_that_fill_a_batch_do_not_count(vit_config: ViTConfig, splits: dict) -> None:
    """A step of 3 series in a batch of 12 weighs a quarter; a whole one is what it was, to the bit."""
    examples, tokens = splits["train"]
    decoder = build_decoder(LESION, vit_config)
    stage = DecoderStage(decoder, tokens, examples, 12, seed=5)
    group = next(group for group in stage._groups if len(group) >= 12)
    stage._groups = [group[:3]]
    assert sorted(stage.indices(0)) == sorted(4 * group[:3].tolist())
    batch = read_batch(decoder, tokens, examples, [int(i) for i in group[:3]])
    with torch.no_grad():
        raw = decoder.raw(batch["patch"], batch["tokens"], batch["embedding"])
        alone = float(decoder.losses(raw, batch["target"], batch["tokens"])["loss"])
        for rank, processes in ((0, 1), (0, 2), (1, 2)):
            loss = float(stage.model(stage.batch(0, rank, processes), 0)["loss"])
            assert loss == pytest.approx(alone / 4, rel=1e-5)
        stage._groups = [group[:12]]
        whole = stage.batch(0, 0, 1)
        raw = decoder.raw(whole["patch"], whole["tokens"], whole["embedding"])
        assert torch.equal(stage.model(whole, 0)["loss"], decoder.losses(raw, whole["target"], whole["tokens"])["loss"])


def test_the_mean_token_is_enough_for_a_linear_probe(vit_config: ViTConfig, splits: dict) -> None:
    torch.manual_seed(6)
    examples, tokens = splits["train"]
    decoder = build_decoder(LINEAR, vit_config).eval()
    with torch.no_grad():
        decoder.pool.linear.weight.normal_()
    assert decoder.needs_mean_only
    batch = read_batch(decoder, tokens, examples, [1])
    one = tokens[1]
    with torch.no_grad():
        by_mean = decoder.raw(batch["patch"], batch["tokens"], batch["embedding"])
        by_tokens = decoder.raw(one.patch[None], one.tokens[None], one.embedding[None])
    assert torch.allclose(by_mean, by_tokens, atol=5e-3)  # the cache keeps tokens in half precision


def test_temperature_makes_probabilities_as_sure_as_they_are_right(vit_config: ViTConfig) -> None:
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 2, (4000, 2)).astype(np.float32)
    label = (rng.random(4000) < 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))).astype(np.int64)
    decoder = build_decoder(LINEAR, vit_config)
    rows = {"logits": 3 * logits, "label": label}  # three times too sure
    before = decoder.figures(rows)["calibration_error"]
    decoder.calibrate(rows)
    assert float(decoder.temperature) == pytest.approx(3.0, rel=0.15)
    assert decoder.figures(rows)["calibration_error"] < 0.03 < before


@pytest.mark.parametrize("wrong", [0, 1])
def test_validation_series_that_cannot_tell_how_sure_to_be_leave_the_temperature(
    vit_config: ViTConfig, wrong: int
) -> None:
    """All of ten are right, or one is wrong by odds of e^40: the likelihood has no optimum in the range."""
    label = np.arange(10) % 2
    logits = np.where(np.eye(2)[label] > 0, 3.0, -3.0).astype(np.float32)
    logits[:wrong] = [-20.0, 20.0]
    decoder = build_decoder(LINEAR, vit_config)
    decoder.calibrate({"logits": logits, "label": label})
    assert float(decoder.temperature) == 1.0


def test_every_file_of_kinds_is_a_decoder() -> None:
    assert set(names()) == {"classification", "regression", "segmentation", "localisation"}
    for name in names():
        kind = kind_of(name)
        assert kind.answer == name
        assert dataclasses.is_dataclass(kind.settings)
        assert not inspect.isabstract(kind)


def test_a_new_kind_is_one_file(vit_config: ViTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doubled.py").write_text(
        "from decipher_rt.train.decoders.kinds.regression import Regression\n\n\n"
        "class Doubled(Regression):\n"
        "    def finish(self, raw):\n"
        "        return 2 * super().finish(raw)\n"
    )
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    assert "doubled" in names()
    decoder = build_decoder(dataclasses.replace(VOLUME, kind="doubled"), vit_config)
    assert float(decoder.finish(torch.tensor([[3.0]]))) == 6.0
    monkeypatch.delitem(sys.modules, f"{kinds.__name__}.doubled")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (dataclasses.replace(LINEAR, kind="telepathy"), "decoder.kind is 'telepathy', expected one of classification"),
        (dataclasses.replace(LINEAR, name="a/b"), "decoder.name is 'a/b'"),
        (dataclasses.replace(LINEAR, name="type"), "decoder.name is 'type', which torch keeps for itself"),
        (dataclasses.replace(LINEAR, name="keys"), "decoder.name is 'keys', which torch keeps for itself"),
        (dataclasses.replace(LESION, options={**LESION.options, "hidden": -1}), "decoder.options.hidden is -1"),
        (dataclasses.replace(VOLUME, options={"unit": "ml", "hidden": 0}), "decoder.options.hidden is 0"),
        (dataclasses.replace(LINEAR, options={}), "decoder.options.labels: missing"),
        (dataclasses.replace(LINEAR, options={"labels": ["one"]}), "decoder.options.labels is \\['one'\\]"),
        (dataclasses.replace(LINEAR, options={"labels": ["a", "b"], "pool": "min"}), "decoder.options.pool is 'min'"),
        (dataclasses.replace(ATTENTION, options={**ATTENTION.options, "heads": 5}), "decoder.options.heads is 5"),
        (dataclasses.replace(VOLUME, options={"unit": ""}), "decoder.options.unit is ''"),
        (dataclasses.replace(TISSUE, options={"channels": [8]}), "decoder.options.channels is \\[8\\], expected 2"),
        (
            dataclasses.replace(TISSUE, options={"channels": [8], "stride": 3}),
            "decoder.options.stride is 3, expected 1 or 2: the sides",
        ),
        (dataclasses.replace(TISSUE, options={"channels": [8, 8], "crop": 2}), "decoder.options.crop is 2"),
        (dataclasses.replace(TISSUE, options={"channels": [8, 8], "rarity": 1}), r"options.rarity is 1\.0"),
        (
            dataclasses.replace(TISSUE, options={"channels": [8, 8], "skips": True, "crop": 2, "rarity": -1}),
            r"options.rarity is -1\.0",
        ),
        (dataclasses.replace(TISSUE, options={"channels": [8, 8], "weights": [1, 2]}), "options.weights is"),
        (dataclasses.replace(TISSUE, options={"channels": [8, 8], "margins": [1, 2]}), "options.margins is"),
        (dataclasses.replace(TISSUE, target="bone"), "decoder.target is 'bone', expected 'tissue'"),
        (dataclasses.replace(TISSUE, options={"channels": [8, 8], "labels": list(LABELS[1:])}), "options.labels is"),
        (
            dataclasses.replace(TISSUE, options={"channels": [8, 8], "labels": ["background", "bone"]}),
            "target is 'mask'",
        ),
        (dataclasses.replace(TISSUE, options={"channels": [8, 8], "values": [0, 1, 2, 3, 4]}), "target is 'mask'"),
        (dataclasses.replace(MASK, options={**MASK.options, "values": [0, 2, 2]}), "options.values is"),
        (dataclasses.replace(MASK, options={**MASK.options, "values": [0, 256, 2]}), "options.values is"),
        (dataclasses.replace(MASK, target="masks"), "decoder.target is 'masks'"),
        (dataclasses.replace(BOX, options={"boxes": 0}), "decoder.options.boxes is 0"),
        (dataclasses.replace(BOX, options={"boxes": 17}), "decoder.options.boxes is 17"),
    ],
)
def test_what_cannot_be_is_refused_by_key(config: DecoderConfig, words: str, vit_config: ViTConfig) -> None:
    with pytest.raises(ValueError, match=words):
        build_decoder(config, vit_config)
