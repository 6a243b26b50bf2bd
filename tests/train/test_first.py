"""Training: killed and resumed it ends with the same bits, it learns, and it says what a checkpoint lacks."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from decipher_rt.train.checkpoint import CheckpointError, read_tensors, write_tensors
from decipher_rt.train.evaluate import evaluate
from decipher_rt.train.first import optimise
from decipher_rt.train.first_config import AugmentConfig, FirstConfig, OptimiserConfig
from decipher_rt.train.model.first import FirstModel
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.progress import Progress
from decipher_rt.train.samples import Series, draw_kind, sample_seed
from decipher_rt.train.scope import fit_scope, fit_temperatures
from decipher_rt.train.views import training_batch
from decipher_rt.train.weights import Weights, load_weights, save_weights

ENCODER = ViTConfig(
    width=48, depth=2, heads=4, embedding_size=16, grid_shape=(16, 16, 16), patch_shape=(4, 4, 4),
    spacing_mm=(15.0,) * 3, token_buckets=(16, 32, 64),
)  # fmt: skip
CONFIG = FirstConfig(
    name="test",
    version="0",
    seed=7,
    encoder=ENCODER,
    augment=AugmentConfig(shift_voxels=1, keep=(0.6, 1.0)),
    optimiser=OptimiserConfig(steps=6, batch=8, warmup=2),
    bf16=False,
    threads=1,
    checkpoint_every=2,
)


def ball(index: int) -> Series:
    """A ball whose brightness profile is its sequence; a quarter are cubes of noise; a lesion is a bright box."""
    rng = np.random.default_rng(index)
    axes = np.meshgrid(*[np.arange(16) - 7.5] * 3, indexing="ij")
    radius = np.sqrt(sum(a**2 for a in axes))
    kind = 2 if index % 4 == 3 else 0
    sequence, lesion = index % 5, bool(index % 2)
    profile = 0.3 + 0.12 * sequence + (0.05 * radius if sequence % 2 else 0)
    volume = np.where(radius < 6.5, profile, 0) if kind == 0 else rng.random((16, 16, 16))
    tissue = np.where(radius < 6.5, 2, 0).astype(np.uint8) if kind == 0 else np.zeros((16, 16, 16), np.uint8)
    if lesion and kind == 0:
        d, h, w = rng.integers(4, 9, 3)
        tissue[d : d + 3, h : h + 3, w : w + 3] = 4
    volume = np.where(tissue == 4, 1.0, volume) + rng.normal(0, 0.01, tissue.shape)
    return Series(volume.astype(np.float16), tissue, sequence if kind == 0 else -1, lesion and kind == 0, kind)


@pytest.fixture(scope="module")
def series() -> list[Series]:
    return [ball(i) for i in range(120)]


def test_resumed_equals_uninterrupted(series: list[Series], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    whole = optimise(CONFIG, series, tmp_path / "whole", Progress())

    from decipher_rt.train import first

    real_step = first._step

    def killed(*arguments: object) -> dict[str, float]:
        if arguments[-1] == 3:
            raise KeyboardInterrupt
        return real_step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(first, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        optimise(CONFIG, series, tmp_path / "killed", Progress())
    _, metadata = read_tensors(tmp_path / "killed" / "training.safetensors")
    assert metadata["step"] == 2
    monkeypatch.setattr(first, "_step", real_step)
    resumed = optimise(CONFIG, series, tmp_path / "killed", Progress())

    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    rows = [list(csv.DictReader((tmp_path / run / "log.csv").read_text().splitlines())) for run in ("whole", "killed")]
    assert [int(row["step"]) for row in rows[1]] == list(range(6))
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_a_finished_run_is_not_trained_further(series: list[Series], tmp_path: Path) -> None:
    first = optimise(CONFIG, series, tmp_path, Progress())
    again = optimise(CONFIG, [], tmp_path, Progress())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_checkpoint_of_another_configuration_is_refused(series: list[Series], tmp_path: Path) -> None:
    optimise(CONFIG, series, tmp_path, Progress())
    with pytest.raises(CheckpointError, match="another configuration"):
        optimise(dataclasses.replace(CONFIG, seed=8), series, tmp_path, Progress())


def test_it_learns_and_what_is_left_is_a_weights_folder(series: list[Series], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    settings = OptimiserConfig(steps=400, batch=16, warmup=15, rate=2e-3)
    config = dataclasses.replace(CONFIG, optimiser=settings, checkpoint_every=400, false_refusals=0.05)
    model = optimise(config, series, tmp_path / "run", Progress())
    validation, test = [ball(i) for i in range(1000, 1080)], [ball(i) for i in range(2000, 2080)]
    fit_temperatures(model, validation)
    fit_scope(model, series, validation, config.false_refusals)
    metrics = evaluate(model, test, config)
    # Far from chance (0.2, 0.5) and from perfect: 400 steps of a small network.
    assert metrics["sequence"]["accuracy"] > 0.7
    assert metrics["lesion"]["auroc"] > 0.7
    assert metrics["scope"]["others_refused"]["noise"] == 1.0
    assert metrics["scope"]["heads_refused"] < 0.35
    save_weights(tmp_path / "weights", Weights(model, config, {"metrics": metrics}))
    loaded = load_weights(tmp_path / "weights")
    assert loaded.config == config
    assert loaded.metadata["metrics"] == metrics
    assert evaluate(loaded.model, test, config) == metrics


def test_views_keep_lesions_under_their_tokens(series: list[Series]) -> None:
    plain = AugmentConfig(shift_voxels=0, flip=0.0, window=0.0, gamma=0.0, noise=0.0, keep=(1.0, 1.0))
    spec = ENCODER.preprocessing
    batch = training_batch(series[:8], spec, plain, np.random.default_rng(0), whole=True)
    for b, one in enumerate(series[:8]):
        for k, token in enumerate(batch.tokens[b].tolist()):
            d, h, w = (4 * int(i) for i in np.unravel_index(token, (4, 4, 4)))
            box = (slice(d, d + 4), slice(h, h + 4), slice(w, w + 4))
            voxels = int((one.tissue[box] == 4).sum())
            assert batch.lesion_tokens[b, k] == (1 if voxels >= 4 else 0 if voxels == 0 else -1)
            expected = np.clip(one.volume[box].astype(np.float32), 0, 1) * 2 - 1
            assert np.allclose(batch.patches[b, k].numpy(), expected.ravel(), atol=1e-6)


def test_flipped_and_shifted_views_move_volume_and_lesion_alike() -> None:
    volume = np.zeros((16, 16, 16), np.float16)
    volume[5:9, 6:8, 2:5] = 1
    one = Series(volume, 4 * (volume > 0).astype(np.uint8), 0, True, 0)
    moving = AugmentConfig(shift_voxels=3, flip=0.5, window=0.0, gamma=0.0, noise=0.0)
    for seed in range(8):
        batch = training_batch([one], ENCODER.preprocessing, moving, np.random.default_rng(seed), whole=True)
        bright = (batch.patches > 0.5).sum(dim=-1)
        known = batch.lesion_tokens >= 0
        assert torch.equal((bright >= 4)[known], (batch.lesion_tokens == 1)[known])


def test_seeds_of_splits_differ_and_kinds_follow_the_share() -> None:
    seeds = {sample_seed(1, split, i) for split in ("train", "validation", "test") for i in range(500)}
    assert len(seeds) == 1500
    kinds = [draw_kind(seed, 0.3) for seed in sorted(seeds)]
    assert 0.26 < sum(kind != "head" for kind in kinds) / 1500 < 0.34  # 3.4 standard deviations
    assert {"head", "phantom", "noise", "other_anatomy", "scrambled"} == set(kinds)


def test_damaged_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        read_tensors(path)
    path.write_bytes(b"\x80\x04pickle?")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_tensors(path)
    save_weights(tmp_path, Weights(FirstModel(ENCODER), CONFIG, {}))
    tensors, metadata = read_tensors(path)
    write_tensors(path, {name: t for name, t in tensors.items() if "norm2" not in name}, metadata)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_weights(tmp_path)
