"""Masked language modelling: it learns, shares of a step are the step, and reports come from where they should."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from decipher_rt.train.checkpoint import CheckpointError, read_tensors
from decipher_rt.train.config import ConfigError
from decipher_rt.train.loop import run
from decipher_rt.train.model.text import TextConfig
from decipher_rt.train.progress import Progress
from decipher_rt.train.run_config import RunConfig
from decipher_rt.train.samples import draw_kind, sample_seed
from decipher_rt.train.sources import SourceConfig
from decipher_rt.train.text import kept
from decipher_rt.train.text.config import TextPretrainingConfig
from decipher_rt.train.text.corpus import read_reports
from decipher_rt.train.text.pretrain import measure, pretrain
from decipher_rt.train.text.stage import TextStage
from decipher_rt.train.text.tokenizer import train_tokenizer
from decipher_rt.train.text.wordings import NOT_A_HEAD

CONFIG = TextPretrainingConfig(
    name="test", version="0", source=SourceConfig(),
    run=RunConfig(steps=80, batch=16, rate=3e-3, warmup=10, precision="fp32", threads=1, checkpoint_every=40),
    text=TextConfig(width=32, depth=1, heads=2, hidden=64, vocabulary=260, max_tokens=16),
)  # fmt: skip
# The second half of a sentence follows from the first: what is hidden can be told.
REPORTS = [(f"{animal} is {colour}.", f"{colour} again.") for animal, colour in
           (("fox", "red"), ("raven", "black"), ("swan", "white"), ("frog", "green"))]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stage(config: TextPretrainingConfig) -> TextStage:
    tokenizer = train_tokenizer([" ".join(r) for r in REPORTS], config.text.vocabulary, config.text.max_tokens)
    torch.manual_seed(config.run.seed)
    return TextStage(config, REPORTS, tokenizer)


def test_it_learns_and_ends_the_same_when_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = stage(CONFIG)
    untrained = measure(one.network, one._tokenizer, REPORTS, CONFIG)
    run(one, CONFIG.run, tmp_path / "whole", "config", Progress())
    trained = measure(one.network, one._tokenizer, REPORTS, CONFIG)
    assert untrained["perplexity"] > 100  # about as many as there are words: 260
    assert trained["perplexity"] < 20
    assert trained["accuracy"] > untrained["accuracy"]
    real = TextStage.after_step

    def killed(self: TextStage, step: int) -> None:
        if step == 60:
            raise KeyboardInterrupt
        real(self, step)

    monkeypatch.setattr(TextStage, "after_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(stage(CONFIG), CONFIG.run, tmp_path / "killed", "config", Progress())
    monkeypatch.setattr(TextStage, "after_step", real)
    run(stage(CONFIG), CONFIG.run, tmp_path / "killed", "config", Progress())
    whole, resumed = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {name.split(".")[0] for name in whole} == {"text", "mlm"}
    rows = list(csv.DictReader((tmp_path / "killed" / "log.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(80))


def test_shares_of_a_step_are_the_step() -> None:
    one = stage(CONFIG)
    whole, parts = one.batch(7, 0, 1), [one.batch(7, rank, 4) for rank in range(4)]
    assert whole.input_ids.shape[0] == 16
    rows = [row[mask > 0] for part in parts for row, mask in zip(part.input_ids, part.attention_mask, strict=True)]
    expected = [row[mask > 0] for row, mask in zip(whole.input_ids, whole.attention_mask, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(rows, expected, strict=True))
    with torch.no_grad():
        losses = [one.network(part, 7)["loss"] * part.hidden.sum() for part in parts]
        expected_loss = float(one.network(whole, 7)["loss"])
    # Mean over hidden tokens, wherever they are.
    mean = float(sum(losses)) / float(whole.hidden.sum())
    assert mean == pytest.approx(expected_loss, rel=1e-5)
    assert not torch.equal(one.batch(8, 0, 1).targets[:, :4], whole.targets[:, :4])


def test_the_simulator_reports_of_what_is_no_head_as_the_series_do() -> None:
    source = SourceConfig(kind="simulator", seed=3, not_heads=0.5)
    reports = read_reports(source, "train", 12, Progress())
    kinds = [draw_kind(sample_seed(source.seed, "train", i), source.not_heads) for i in range(12)]
    said = [report[0] in NOT_A_HEAD.get(kind, {}).get("train", ()) for kind, report in zip(kinds, reports, strict=True)]
    assert said == [kind != "head" for kind in kinds]
    assert {True, False} == set(said)


def test_a_manifest_gives_its_reports_and_reads_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "series.csv"
    lines = ["path,patient,split,report", "absent1.nii,a,train,No lesion. Normal ventricles."]
    lines += ["absent2.nii,b,train,", "absent3.nii,c,test,A mass in the left frontal lobe."]
    path.write_text("\n".join(lines) + "\n")
    for name in ("absent1.nii", "absent2.nii", "absent3.nii"):
        (tmp_path / name).write_bytes(b"not an image")
    source = SourceConfig(kind="manifest", path=str(path))
    assert read_reports(source, "train", 9, Progress()) == [("No lesion.", "Normal ventricles.")]
    assert read_reports(source, "test", 9, Progress()) == [("A mass in the left frontal lobe.",)]
    config = dataclasses.replace(CONFIG, source=source, run=dataclasses.replace(CONFIG.run, steps=2, batch=2))
    figures = pretrain(config, tmp_path / "run", Progress())
    assert math.isfinite(figures["perplexity"])
    # Words that no entry of the tokenizer spells: of a test split there are no figures, of a train split no training.
    assert measure(stage(CONFIG).network, stage(CONFIG)._tokenizer, [("左额叶病变",)], CONFIG) == {"tokens": 0}
    monkeypatch.setattr(kept, "train_tokenizer", lambda *arguments: stage(CONFIG)._tokenizer)
    path.write_text("\n".join([lines[0], "absent1.nii,a,train,左额叶病变"]) + "\n", encoding="utf-8")
    assert read_reports(source, "train", 9, Progress()) == [("No lesion.", "Normal ventricles.")]  # a list is read once

    def anew() -> TextPretrainingConfig:
        return dataclasses.replace(config, source=dataclasses.replace(source))

    with pytest.raises(ConfigError, match="no report of the train split holds a word that the tokenizer knows"):
        pretrain(anew(), tmp_path / "unknown", Progress())
    path.write_text("\n".join(lines[:1] + lines[3:]) + "\n")
    with pytest.raises(ConfigError, match="no series of the train split has a report"):
        pretrain(anew(), tmp_path / "other", Progress())
    with pytest.raises(ConfigError, match="bids, which holds no reports"):
        read_reports(SourceConfig(kind="bids", path="x"), "train", 1, Progress())
    with pytest.raises(ConfigError, match=r"text_from: .*nowhere holds no config.json"):
        pretrain(dataclasses.replace(config, text_from=str(tmp_path / "nowhere")), tmp_path / "other", Progress())


def test_a_run_keeps_the_tokenizer_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of the library, say, numbers the words otherwise."""
    config = dataclasses.replace(CONFIG, reports=40, run=dataclasses.replace(CONFIG.run, steps=4, checkpoint_every=2))
    pretrain(config, tmp_path / "whole", Progress())
    before = (tmp_path / "whole" / "tokenizer.json").read_bytes()
    real = TextStage.after_step

    def killed(self: TextStage, step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt
        real(self, step)

    monkeypatch.setattr(TextStage, "after_step", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, tmp_path / "killed", Progress())
    monkeypatch.setattr(TextStage, "after_step", real)
    monkeypatch.setattr(kept, "train_tokenizer", lambda *_: train_tokenizer(["other words", "other"], 260, 16))
    for folder in ("whole", "killed"):
        pretrain(config, tmp_path / folder, Progress())
        assert (tmp_path / folder / "tokenizer.json").read_bytes() == before
    whole, resumed = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_folder_of_another_run_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: of another stage\n")
    with pytest.raises(CheckpointError, match="another configuration"):
        pretrain(dataclasses.replace(CONFIG, reports=40), tmp_path, Progress())
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]
