"""A small encoder, and series of simple shapes whose truth is known by construction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decipher_rt.atomic import write_text
from decipher_rt.train.checkpoint import WEIGHTS, write_tensors
from decipher_rt.train.config import dump_config
from decipher_rt.train.decoders import splits as splitting
from decipher_rt.train.decoders.tokens import Tokens, cache_tokens
from decipher_rt.train.golden import GoldenCase, save_golden
from decipher_rt.train.model.text import TextTower
from decipher_rt.train.model.vit import ViT, ViTConfig
from decipher_rt.train.sources import SourceConfig
from decipher_rt.train.sources.example import Box, Example
from decipher_rt.train.text.tokenizer import save_tokenizer, train_tokenizer

from .small_runs import SOURCE, TEXT, AlignedConfig

SIDE = 16
SPACING = 15.0


class ShapeExamples:
    """Examples by number; ``name`` says what they are, as that of a source on disk does."""

    def __init__(self, first: int, count: int, make: Callable[[int], Example]) -> None:
        self.name = f"shapes-{first}"
        self.read: list[int] = []
        self._first, self._count, self._make = first, count, make

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        self.read.append(index)
        return self._make(self._first + index)

    def facts(self, index: int) -> Example:
        return self._make(self._first + index)


def shape(index: int) -> Example:
    """A ball of a size and brightness of its own, with a bright box in it or none; every eighth is noise.

    Its volume in ml, its brightness as "dark" or "light" and the box are what decoders shall find.
    """
    rng = np.random.default_rng([index, 5])
    affine = np.diag([-SPACING, -SPACING, SPACING, 1.0])[[2, 1, 0, 3]]  # d to S, h to P, w to L, each reversed as RAS
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    if index % 8 == 7:
        volume = rng.random((SIDE,) * 3).astype(np.float16)
        return Example(volume=volume, affine_lps_mm=affine, patient=f"{index}", kind="noise")
    axes = np.meshgrid(*[np.arange(SIDE) - 7.5] * 3, indexing="ij")
    inside = np.sqrt(sum(a**2 for a in axes)) < rng.uniform(5.0, 7.4)
    light = bool(rng.random() < 0.5)
    volume = np.where(inside, 0.55 if light else 0.3, 0.0)
    tissue = np.where(inside, 2 if light else 1, 0).astype(np.uint8)
    boxes: tuple[Box, ...] = ()
    if rng.random() < 0.6:
        size, low = rng.integers(2, 5, 3), rng.integers(4, 9, 3)
        place = tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))
        volume[place], tissue[place] = 1.0, 4
        centre = affine @ np.array([*(low + (size - 1) / 2), 1.0])
        boxes = (Box(tuple(centre[:3]), tuple(size * SPACING)),)  # type: ignore[arg-type]
    volume = volume + rng.normal(0, 0.01, volume.shape)
    return Example(
        volume=volume.clip(0, 1).astype(np.float16),
        affine_lps_mm=affine,
        tissue=tissue,
        labels={
            "sequence": "light" if light else "dark",
            "lesion": "present" if boxes else "absent",
            "ball_volume_ml": float(inside.sum()) * SPACING**3 / 1000,
        },
        report=(f"A {'light' if light else 'dark'} ball.",),
        boxes=boxes,
        patient=f"{index}",
    )


@pytest.fixture(scope="session")
def make_shape() -> Callable[[int], Example]:
    return shape


@pytest.fixture(scope="session")
def shapes() -> Callable[[int, int], ShapeExamples]:
    return lambda first, count: ShapeExamples(first, count, shape)


@pytest.fixture(scope="session")
def vit_config() -> ViTConfig:
    return ViTConfig(
        width=48, depth=2, heads=4, embedding_size=16, grid_shape=(SIDE,) * 3, patch_shape=(4, 4, 4),
        spacing_mm=(SPACING,) * 3, token_buckets=(16, 32, 64),
    )  # fmt: skip


@pytest.fixture(scope="session")
def encoder(vit_config: ViTConfig) -> ViT:
    """An encoder with random weights: its tokens still hold what their patches held."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    encoder = ViT(vit_config)
    with torch.no_grad():
        encoder.patch_embed.weight.mul_(6)  # so that the voxels weigh as much as the position code
    return encoder.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def splits(encoder: ViT, shapes: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Tokens]]:
    folder = tmp_path_factory.mktemp("tokens")
    found = {}
    for split, first, count in (("train", 0, 224), ("validation", 1000, 64), ("test", 2000, 96)):
        examples = shapes(first, count)
        found[split] = (examples, cache_tokens(encoder, examples, split, folder, lambda _: None))
    return found


@pytest.fixture
def aligned(encoder: ViT, tmp_path: Path) -> Path:
    """A folder as alignment leaves it, with a tokenizer and a golden case."""
    folder = tmp_path / "aligned"
    tower = TextTower(TEXT, encoder.config.embedding_size)
    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    tensors |= {f"text.{name}": tensor for name, tensor in tower.state_dict().items()}
    tensors["logit_scale"] = torch.tensor(2.0)
    write_tensors(folder / WEIGHTS, tensors, {"metrics": {"recall": 0.5}, "provenance": {"steps": 7}})
    write_text(folder / "config.yaml", dump_config(AlignedConfig("aligned", encoder.config, TEXT, SOURCE)))
    save_tokenizer(folder, train_tokenizer(["A dark ball.", "A light ball."], TEXT.vocabulary, TEXT.max_tokens))
    save_golden(folder, GoldenCase(np.zeros((16,) * 3, np.int16), np.array([0, 1], np.float32), np.arange(16)))
    return folder


@pytest.fixture
def small_sources(shapes: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator is replaced by shapes on the small grid: a source's own tests are elsewhere."""
    torch.set_num_threads(1)
    first = {"train": 0, "validation": 1000, "test": 2000}

    def opened(config: SourceConfig, spec: object, split: str, *_: object) -> object:
        return shapes(first[split] + 10000 * config.seed, getattr(config, split))

    monkeypatch.setattr(splitting, "open_source", opened)
