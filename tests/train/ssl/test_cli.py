"""``decipher-rt train ssl``: what it leaves and says, and that errors name the key."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from decipher_rt.errors import DecipherError
from decipher_rt.train.cli import train
from decipher_rt.train.config import ConfigError, dump_config, load_config
from decipher_rt.train.progress import Progress
from decipher_rt.train.sources import ListedExamples
from decipher_rt.train.ssl import pretrain
from decipher_rt.train.ssl.config import SSLConfig

CONFIGS = Path(__file__).parents[3] / "train" / "configs"
BALLS = Path(__file__).parents[1] / "programs" / "ssl_run.yaml"


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_committed_configs_load(size: str) -> None:
    config = load_config(SSLConfig, CONFIGS / size / "ssl.yaml")
    assert config.encoder.width == {"tiny": 192, "small": 384, "base": 768}[size]
    # 3DINO's starting values; where batches are of 16, rate, momentum and teacher are tuned (the file says why).
    rate, momentum = (8e-3, 0.98) if size == "tiny" else (2e-3, 0.992)
    teaching, run = config.distillation, config.run
    assert (teaching.losses.dino, teaching.losses.ibot, teaching.losses.koleo) == (1.0, 1.0, 0.1)
    assert (teaching.mask_probability, teaching.mask_ratio, teaching.momentum) == (0.5, (0.2, 0.75), (momentum, 1.0))
    assert (run.rate, run.weight_decay) == (rate, (0.04, 0.4))
    assert config.scaled_run.rate == pytest.approx(rate * math.sqrt(run.batch / 1024))
    assert dataclasses.replace(config.scaled_run, rate=run.rate) == run


def test_dump_and_load_give_the_same(tmp_path: Path) -> None:
    config = load_config(SSLConfig, CONFIGS / "tiny" / "ssl.yaml", ["method=mae", "encoder.stem=conv"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(SSLConfig, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("method=simclr", "method"),
        ("crops.local_crops=-1", "crops.local_crops"),
        ("crops.global_tokens=[96, 48]", "crops.global_tokens"),
        ("crops.local_tokens=[16, 4000]", "crops.local_tokens"),
        ("crops.local_share=[0, 0.2]", "crops.local_share"),
        ("crops.global_share=[0.5, 1.5]", "crops.global_share"),
        ("distillation.mask_ratio=[0.5, 1.2]", "distillation.mask_ratio"),
        ("distillation.mask_probability=2", "distillation.mask_probability"),
        ("distillation.momentum=[0.9, 1.1]", "distillation.momentum[1]"),
        ("distillation.teacher_temperature=[0.001, 0.07]", "distillation.teacher_temperature[0]"),
        ("distillation.student_temperature=0", "distillation.student_temperature"),
        ("distillation.prototypes=1", "distillation.prototypes"),
        ("distillation.losses.koleo=much", "distillation.losses.koleo"),
        ("mae.mask_ratio=1", "mae.mask_ratio"),
        ("mae.decoder_width=100", "mae.decoder_width"),
        ("mae.decoder_width=0", "mae.decoder_width is 0, expected 1 or more"),
        ("encoder.stem=cnn", "encoder.stem"),
        ("encoder.heads=7", "encoder.width"),
        ("augment.flip=1.5", "augment.flip"),
        ("run.batch=1", "run.batch"),
        ("run.batch=6", "run.batch"),
        ("run.accumulate=16", "run.batch / run.accumulate is 1, expected 2 or more"),
        ("run.steps=0", "run.steps"),
        ("source.kind=bids", "source.path"),
        ("pool_series=1", "pool_series"),
        ("run.strategy=fsdp", "run.strategy is fsdp"),
    ],
)
def test_errors_name_the_key(override: str, key: str) -> None:
    overrides = [override, "run.devices=4"] if override == "run.batch=6" else [override]
    with pytest.raises(ConfigError) as caught:
        load_config(SSLConfig, CONFIGS / "tiny" / "ssl.yaml", overrides)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_leaves_a_weights_folder_and_goes_on(
    balls: Callable[[int, int], ListedExamples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "open_source", lambda *arguments: balls(0, 24))
    command = ["ssl", str(BALLS), "-o", str(tmp_path / "run"), "--json", "run.steps=4"]
    done = CliRunner().invoke(train, command, catch_exceptions=False)
    figures = json.loads(done.stdout)
    assert {"loss", "dino", "ibot", "koleo", "teacher_entropy", "marginal_entropy", "embedding_rank"} <= set(figures)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "model.safetensors", "config.yaml", "log.csv", "curve.png", ".lock"
    }  # fmt: skip
    again = CliRunner().invoke(train, command, catch_exceptions=False)
    assert json.loads(again.stdout) == figures
    with pytest.raises(DecipherError, match="another configuration"):
        CliRunner().invoke(train, [*command[:-1], "run.steps=5"], catch_exceptions=False)


@pytest.mark.parametrize(("override", "said"), [("method=distillation", True), ("method=mae", False)])
def test_parts_that_are_smaller_than_the_batch_are_said_where_losses_couple_series(
    balls: Callable[[int, int], ListedExamples],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    said: bool,
) -> None:
    monkeypatch.setattr(pretrain, "open_source", lambda *arguments: balls(0, 8))
    monkeypatch.setattr(pretrain, "run", lambda *arguments: None)
    config = load_config(SSLConfig, BALLS, [override, "run.accumulate=2"])
    pretrain.pretrain(config, tmp_path, tmp_path, Progress())
    assert ("Sinkhorn-Knopp and KoLeo see parts of 4 series, and not the 8" in capsys.readouterr().err) == said
