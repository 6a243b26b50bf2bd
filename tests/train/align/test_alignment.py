"""The alignment as a whole: it learns what reports say, goes on where it was killed, and two processes are one."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from decipher_rt.train.align import train as aligning
from decipher_rt.train.align.cli import align
from decipher_rt.train.align.config import AlignConfig
from decipher_rt.train.align.embed import embed_images, embed_texts
from decipher_rt.train.align.retrieval import retrieval
from decipher_rt.train.align.stage import AlignModel, AlignStage, heads_with_report
from decipher_rt.train.checkpoint import CheckpointError, load_state, read_tensors, write_tensors
from decipher_rt.train.config import ConfigError, dump_config, load_config
from decipher_rt.train.progress import Progress
from decipher_rt.train.sources import ListedExamples
from decipher_rt.train.ssl.config import SSLConfig
from decipher_rt.train.text.cli import text
from decipher_rt.train.text.config import TextPretrainingConfig
from decipher_rt.train.text.tokenizer import load_tokenizer

PROGRAM = Path(__file__).parents[1] / "programs" / "align_run.py"
MADE_UP: dict[str, Any] = runpy.run_path(str(PROGRAM))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(*overrides: str) -> AlignConfig:
    return load_config(AlignConfig, MADE_UP["CONFIG"], overrides)


def losses(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open(newline="") as file:
        return [{name: float(v) for name, v in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_it_learns_what_reports_say(tmp_path: Path) -> None:
    config = settings("run.steps=150", "run.checkpoint_every=150")
    MADE_UP["train"](config, tmp_path)
    model = AlignModel(config.encoder, config.text, config.sentences)
    load_state(model, read_tensors(tmp_path / "model.safetensors")[0], tmp_path)
    series = [MADE_UP["series"](i) for i in range(1000, 1120)]  # none of them was trained on
    images = embed_images(model.eval().encoder, ListedExamples(series), range(120))
    reports = [" ".join(one.report) for one in series]
    texts = embed_texts(model.text, load_tokenizer(tmp_path), reports)
    found = retrieval(images, texts, reports)
    assert found.text_to_image[5] > 2.5 * found.chance[5]
    assert found.image_to_text[5] > 1.5 * found.chance[5]
    # The report that is nearest to a series says the right shade; of three, chance is a third.
    nearest = (images @ texts.T).argmax(axis=1)
    shade = np.array([next(w for w in MADE_UP["SHADES"] if w in report) for report in reports])
    assert (shade[nearest] == shade).mean() > 0.8


def test_killed_and_resumed_it_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("run.steps=5")
    MADE_UP["train"](config, tmp_path / "whole")
    real = AlignStage.after_step

    def killed(self: AlignStage, step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt
        real(self, step)

    monkeypatch.setattr(AlignStage, "after_step", killed)
    with pytest.raises(KeyboardInterrupt):
        MADE_UP["train"](config, tmp_path / "killed")
    assert read_tensors(tmp_path / "killed" / "training.safetensors")[1]["step"] == 2
    monkeypatch.setattr(AlignStage, "after_step", real)
    MADE_UP["train"](config, tmp_path / "killed")
    one, other = (read_tensors(tmp_path / run / "model.safetensors")[0] for run in ("whole", "killed"))
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    MADE_UP["train"](settings("run.steps=4"), tmp_path / "one")
    command = [sys.executable, str(PROGRAM), str(tmp_path / "two"), "run.steps=4", "run.devices=2"]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 4
    for mine, theirs in zip(one, two, strict=True):
        for name, value in mine.items():
            # Sums in another order; the log keeps five digits.
            assert theirs[name] == pytest.approx(value, rel=2e-3), name


def test_what_starts_trained_moves_more_slowly_and_nothing_is_left_out(tmp_path: Path) -> None:
    config = dataclasses.replace(settings("run.steps=1"), encoder_rate=0.1, text_rate=0.2)
    stage = MADE_UP["train"](config, tmp_path)
    groups = stage.parameter_groups()
    optimised = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in optimised}) == len(optimised) == len(list(stage.network.parameters()))
    assert max(group["rate_scale"] for group in groups) == 1.0
    started = AlignStage(
        dataclasses.replace(config, encoder_from="a", text_from="b"), stage._examples, stage._tokenizer
    )
    scales = {id(p): group["rate_scale"] for group in started.parameter_groups() for p in group["params"]}
    network = started.network
    assert scales[id(network.encoder.blocks[0].mlp[0].weight)] == 0.1
    assert scales[id(network.text.encoder.words.weight)] == 0.2
    assert scales[id(network.text.projection.weight)] == scales[id(network.encoder.projection.weight)] == 1.0
    assert scales[id(network.logit_scale)] == 1.0
    decays = {id(p): group["decays"] for group in started.parameter_groups() for p in group["params"]}
    assert not decays[id(network.logit_scale)]
    assert not decays[id(network.text.encoder.positions)]


def test_from_the_command_line(tmp_path: Path) -> None:
    """Text, then its alignment with simulated series on a coarse grid; a finished run is not trained again."""
    run = "{steps: 8, batch: 8, rate: 1e-3, warmup: 2, precision: fp32, threads: 1, checkpoint_every: 4}"
    simulator = {"kind": "simulator", "seed": 4, "train": 16, "validation": 1, "test": 12}
    sizes = {"width": 32, "depth": 1, "heads": 2, "hidden": 64, "vocabulary": 400, "max_tokens": 64}
    common = {"name": "test", "version": "0", "source": simulator, "run": yaml.safe_load(run)}
    texts, pairs = tmp_path / "text.yaml", tmp_path / "align.yaml"
    texts.write_text(yaml.safe_dump({**common, "text": sizes, "reports": 80}))
    encoder = {**yaml.safe_load(dump_config(settings().encoder)), "pool": "batch"}  # as the presets have it
    pairs.write_text(yaml.safe_dump({**common, "encoder": encoder, "tokens": [16, 24], "pool_series": 8, "workers": 1}))

    def call(command: Any, *arguments: str | Path) -> str:
        result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    figures = json.loads(call(text, texts, "-o", tmp_path / "text", "--json"))
    assert 1 < figures["perplexity"] < 400
    assert figures["tokens"] > 500
    arguments = (pairs, "-o", tmp_path / "align", "--json", "encoder_from=", f"text_from={tmp_path / 'text'}")
    recall = json.loads(call(align, *arguments))
    assert recall["pool"] == 12
    assert recall["chance_recall@1"] == pytest.approx(1 / 12, abs=1e-3)
    tensors, metadata = read_tensors(tmp_path / "align" / "model.safetensors")
    assert metadata["metrics"]["retrieval"] == recall
    assert {name.split(".")[0] for name in tensors} == {"encoder", "text", "logit_scale"}
    for run_folder in ("text", "align"):
        assert {"model.safetensors", "config.yaml", "tokenizer.json", "log.csv", "curve.png"} <= {
            path.name for path in (tmp_path / run_folder).iterdir()
        }
    again = load_config(AlignConfig, tmp_path / "align" / "config.yaml")
    assert (again.text.width, again.text.vocabulary) == (32, 400)  # of the folder that it started from
    written = (tmp_path / "align" / "model.safetensors").stat().st_mtime_ns
    assert json.loads(call(align, *arguments)) == recall
    assert (tmp_path / "align" / "model.safetensors").stat().st_mtime_ns == written
    # Without the file that says it is finished it is run again, from the same start.
    (tmp_path / "align" / "config.yaml").unlink()
    assert json.loads(call(align, *arguments)) == recall
    again_tensors, _ = read_tensors(tmp_path / "align" / "model.safetensors")
    assert all(torch.equal(tensor, again_tensors[name]) for name, tensor in tensors.items())
    with pytest.raises(CheckpointError, match="another configuration"):
        call(align, *arguments, "by_region=0")
    # Other weights in the folder that it started from make it another run, though the path is the same.
    tensors, metadata = read_tensors(tmp_path / "text" / "model.safetensors")
    tensors["text.encoder.words.weight"][0, 0] += 1
    write_tensors(tmp_path / "text" / "model.safetensors", tensors, metadata)
    with pytest.raises(CheckpointError, match="another configuration"):
        call(align, *arguments)
    # A text encoder is no image encoder.
    with pytest.raises(ConfigError, match=r"text/config.yaml: has no encoder"):
        call(align, *arguments, f"encoder_from={tmp_path / 'text'}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("augment.flip=0.5", r"augment.flip is 0.5, expected 0: reports tell left from right"),
        (("whole=0.1", "whole_tokens=[10, 100]"), r"whole_tokens is \[10, 100\], expected two ascending numbers"),
        ("tokens=[10, 100]", r"tokens is \[10, 100\], expected two ascending numbers from 1 to 64 patches"),
        ("augment.window=-0.1", r"augment.window is -0.1, expected 0 or more"),
        ("encoder.registers=-1", r"encoder.registers is -1, expected 0 or more"),
        ("encoder.spacing_mm=[0,1,1]", r"encoder.spacing_mm is \[0.0, 1.0, 1.0\], expected numbers above 0"),
        ("by_region=2", r"by_region is 2.0, expected 0 to 1"),
        ("run.batch=1", r"run.batch / run.accumulate is 1, expected 2 or more"),
        ("run.accumulate=16", r"run.batch / run.accumulate is 1, expected 2 or more"),
        ("text.heads=3", r"text.width is 32, expected a multiple of text.heads \(3\)"),
        ("encoder_from=/nowhere", r"encoder_from: /nowhere is no folder; give one that .decipher-rt train ssl. wrote"),
        ("text_from=/nowhere", r"text_from: /nowhere is no folder; give one that .decipher-rt train text. wrote"),
    ],
)
def test_mistakes_are_named_by_their_key(override: str | tuple[str, ...], message: str) -> None:
    from decipher_rt.train.align.start import resolved

    with pytest.raises(ConfigError, match=message):
        resolved(settings(*([override] if isinstance(override, str) else override)))


@pytest.mark.parametrize(
    ("train", "test", "said"), [(3, 12, "3 of 3 series of the train"), (16, 2, "2 of 12 series of the test")]
)
def test_a_list_with_too_few_reports_is_refused_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: int, test: int, said: str
) -> None:
    rows = [f"{n}.nii,p{n},train,No lesion." for n in range(train)]
    rows += [f"t{n}.nii,q{n},test,{'No lesion.' if n < test else ''}" for n in range(12)]
    for row in rows:
        (tmp_path / row.partition(",")[0]).write_bytes(b"no image")
    manifest = tmp_path / "cohort.csv"
    manifest.write_text("\n".join(["path,patient,split,report", *rows]) + "\n")
    monkeypatch.setattr(aligning, "open_source", None)
    config = settings("source.kind=manifest", f"source.path={manifest}")
    with pytest.raises(ConfigError, match=rf"cohort\.csv: {said} split have a report, .* needs \d+; give them in its"):
        aligning.align(config, tmp_path / "run", tmp_path, Progress())


@pytest.mark.parametrize("parts", [1, 4])
def test_fewer_negatives_than_a_step_has_series_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], parts: int
) -> None:
    def enough(*_: object) -> None:
        raise ConfigError("no more is needed")

    monkeypatch.setattr(aligning, "open_source", enough)
    with pytest.raises(ConfigError, match="no more"):
        aligning.align(settings(f"run.accumulate={parts}"), tmp_path, tmp_path, Progress())
    said = "run.accumulate is 4: both InfoNCE losses see parts of 4 series, and not the 16 of run.batch;"
    assert (said in capsys.readouterr().err) == (parts == 4)


def test_a_share_of_the_steps_sees_a_series_whole() -> None:
    config = settings("whole=0.2", "whole_tokens=[60,64]", "tokens=[16,32]")
    stage = AlignStage(config, ListedExamples([MADE_UP["series"](i) for i in range(config.run.batch)]), None)
    drawn = np.array([stage.tokens_of(step) for step in range(500)])
    assert set(drawn) <= {*range(16, 33), *range(60, 65)}
    assert abs((drawn >= 60).mean() - 0.2) < 0.06  # three standard deviations of 500 draws


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_committed_stages_fit_each_other(size: str) -> None:
    """Stages share seed and sizes: what one leaves is what the next is configured for."""
    folder = PROGRAM.parents[3] / "train" / "configs" / size
    ssl = load_config(SSLConfig, folder / "ssl.yaml")
    text = load_config(TextPretrainingConfig, folder / "text.yaml")
    align = load_config(AlignConfig, folder / "align.yaml")
    dataclasses.replace(align, encoder=ssl.encoder, text=text.text).check()
    assert ssl.source == align.source
    assert text.source.seed == align.source.seed


def test_the_loss_has_all_its_digits_under_autocast(tmp_path: Path) -> None:
    config = settings("run.steps=1")
    MADE_UP["train"](config, tmp_path)
    model = AlignModel(config.encoder, config.text, config.sentences)
    load_state(model, read_tensors(tmp_path / "model.safetensors")[0], tmp_path)
    stage = AlignStage(config, ListedExamples([MADE_UP["series"](i) for i in range(32)]), load_tokenizer(tmp_path))
    batch = stage.batch(0, 0, 1)
    exact = model(batch, 0)
    with torch.autocast("cpu", torch.bfloat16):
        halved = model(batch, 0)
    assert {halved[name].dtype for name in ("loss", "report", "sentence")} == {torch.float32}
    assert halved["report"].item() == pytest.approx(exact["report"].item(), rel=0.02)


def test_recall_is_measured_among_heads() -> None:
    series = [MADE_UP["series"](i) for i in range(6)]
    series[1] = dataclasses.replace(series[1], kind="phantom")
    series[2] = dataclasses.replace(series[2], report=())
    assert heads_with_report(ListedExamples(series), 3) == [0, 3, 4]
