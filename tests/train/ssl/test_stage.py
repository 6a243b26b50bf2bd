"""A run as a whole: processes, kills, what it leaves, and that it learns."""

from __future__ import annotations

import csv
import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from decipher_rt.train.checkpoint import read_tensors
from decipher_rt.train.config import dump_config
from decipher_rt.train.loop import run
from decipher_rt.train.model.vit import ViT
from decipher_rt.train.pool import pooled_vectors
from decipher_rt.train.progress import Progress
from decipher_rt.train.sources import ListedExamples
from decipher_rt.train.ssl.config import SSLConfig
from decipher_rt.train.ssl.stage import SSLStage

Balls = Callable[[int, int], ListedExamples]


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "log.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def program_run(program: ModuleType, folder: Path, *overrides: str) -> list[dict[str, float]]:
    assert program.__file__
    done = subprocess.run(
        [sys.executable, program.__file__, folder, *overrides], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return rows(folder)


@pytest.mark.parametrize("method", ["distillation", "mae"])
def test_two_processes_give_one_processes_losses_and_weights(program: ModuleType, tmp_path: Path, method: str) -> None:
    alone = program_run(program, tmp_path / "one", f"method={method}")
    together = program_run(program, tmp_path / "two", f"method={method}", "run.devices=2")
    assert len(alone) == len(together) == 6
    for one, two in zip(alone, together, strict=True):
        for name in set(one) - {"seconds"}:
            # Sums in another order, and a few steps of Adam, which divides by what may be small.
            assert two[name] == pytest.approx(one[name], rel=2e-3, abs=1e-6), (name, one["step"])
    a, b = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("one", "two"))
    for name, tensor in a.items():
        assert torch.allclose(tensor, b[name], atol=2e-3), name


@pytest.mark.parametrize("method", ["distillation", "mae"])
def test_killed_and_started_again_it_ends_with_the_same_weights(
    config: SSLConfig, balls: Balls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    config = dataclasses.replace(config, method=method)
    examples = balls(0, 24)

    def train(folder: Path) -> None:
        torch.manual_seed(config.run.seed)
        run(SSLStage(config, examples), config.scaled_run, folder, dump_config(config), Progress())

    train(tmp_path / "whole")
    after_step = SSLStage.after_step

    def killed(self: SSLStage, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt
        after_step(self, step)

    monkeypatch.setattr(SSLStage, "after_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed")
    monkeypatch.setattr(SSLStage, "after_step", after_step)
    train(tmp_path / "killed")
    whole, again = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "killed"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_batch_is_the_same_whoever_makes_it(config: SSLConfig, balls: Balls) -> None:
    stage = SSLStage(config, balls(0, 24))
    whole = stage.batch(3, 0, 1)
    parts = [stage.batch(3, rank, 4) for rank in range(4)]
    for field in dataclasses.fields(whole):
        joined = torch.cat([getattr(part, field.name) for part in parts], dim=1)
        assert torch.equal(joined, getattr(whole, field.name)), field.name
    assert not torch.equal(stage.batch(3, 0, 1).global_tokens[0, 0], stage.batch(3, 0, 1).global_tokens[0, 1])
    assert SSLStage(dataclasses.replace(config, method="mae"), balls(0, 24)).batch(0, 0, 1).local_tokens.shape[0] == 0


def test_a_batch_masks_half_of_its_crops(config: SSLConfig, balls: Balls) -> None:
    stage = SSLStage(config, balls(0, 24))
    for step in range(5):
        masks = stage.batch(step, 0, 1).masks
        shares = masks.float().mean(dim=2).flatten()
        assert (shares > 0).sum() == 8  # of 2 x 8
        assert 0.2 - 0.5 / masks.shape[2] <= shares[shares > 0].min()
        assert shares.max() <= 0.75 + 0.5 / masks.shape[2]


def test_every_parameter_is_in_one_group_and_tokens_do_not_decay(config: SSLConfig, balls: Balls) -> None:
    stage = SSLStage(config, balls(0, 8))
    groups = stage.parameter_groups()
    names = {id(p): name for name, p in stage.model.named_parameters()}
    grouped = [(names[id(p)], g) for g in groups for p in g["params"]]
    assert sorted(name for name, _ in grouped) == sorted(
        name for name, p in stage.model.named_parameters() if p.requires_grad
    )
    for name, group in grouped:
        matrix = name.endswith((".weight", "prototypes")) and "norm" not in name
        assert group["decays"] == matrix, name
        assert group["rate_scale"] == (48 / 64 if name.endswith("patch_embed.weight") else 1.0), name


@pytest.mark.parametrize("method", ["distillation", "mae"])
def test_what_is_left_is_the_encoder_with_its_pool(
    config: SSLConfig, balls: Balls, tmp_path: Path, method: str
) -> None:
    """The teacher's encoder; pooled vectors of the series that fixed the pool have mean 0 and variance 1."""
    config = dataclasses.replace(config, method=method)
    examples = balls(0, 24)
    torch.manual_seed(1)
    stage = SSLStage(config, examples)
    run(stage, config.scaled_run, tmp_path, dump_config(config), Progress())
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    assert all(name.startswith("encoder.") for name in tensors)
    encoder = ViT(config.encoder)
    encoder.load_state_dict({name.removeprefix("encoder."): tensor for name, tensor in tensors.items()})
    trained = stage.network.teacher.encoder if method == "distillation" else stage.network.encoder
    assert torch.equal(encoder.blocks[0].attention.qkv.weight, trained.blocks[0].attention.qkv.weight)
    pooled = torch.cat(list(pooled_vectors(encoder, (e.volume for e in examples))))
    scaled = (pooled - encoder.pooled_mean) / encoder.pooled_var.sqrt()
    assert scaled.mean(dim=0).abs().max() < 1e-3
    assert (scaled.var(dim=0, correction=0) - 1).abs().max() < 1e-3
    assert (tmp_path / "config.yaml").read_text() == dump_config(config)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_it_learns_and_does_not_collapse(config: SSLConfig, balls: Balls, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, steps=120, batch=16, warmup=10, rate=0.01, checkpoint_every=120),
        distillation=dataclasses.replace(config.distillation, momentum=(0.98, 1.0), freeze_prototypes=0),
    )
    stage = SSLStage(config, balls(0, 240))
    run(stage, config.scaled_run, tmp_path, dump_config(config), Progress())
    log = rows(tmp_path)
    first, last = ({n: np.mean([row[n] for row in part]) for n in log[0]} for part in (log[:10], log[-10:]))
    even_odds = math.log(config.distillation.prototypes)
    # An encoder whose crops of one ball say nothing of each other can do no better than even odds among prototypes.
    assert first["dino"] > even_odds
    assert last["dino"] < even_odds
    assert last["ibot"] < first["ibot"] - 0.05
    # The teacher says something of each ball, and not the same of all: what it says of one tells which ball it was.
    assert last["teacher_entropy"] < 0.9 * even_odds
    assert last["marginal_entropy"] > last["teacher_entropy"] + 0.2
    assert last["embedding_std"] > 0.4
    assert last["embedding_rank"] > 5


def test_the_patch_embedding_starts_from_whitened_patches(config: SSLConfig, balls: Balls) -> None:
    """Of student and teacher alike: channels of training patches have no mean and no correlation."""
    torch.manual_seed(0)
    stage = SSLStage(config, balls(0, 80))
    stage.start()
    student, teacher = stage.network.student, stage.network.teacher
    for ours, theirs in zip(student.parameters(), teacher.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    patches = torch.cat([stage.batch(step, 0, 8).global_patches.flatten(0, 2) for step in range(60)])
    with torch.no_grad():
        channels = student.encoder.patch_embed(patches)
    correlation = torch.corrcoef(channels.T) - torch.eye(48)
    assert correlation.abs().max() < 0.2
    assert channels.mean(dim=0).abs().max() < 0.2
