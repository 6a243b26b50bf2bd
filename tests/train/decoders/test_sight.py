"""What a segmentation sees beside each token: what it is, how it is kept, and what decoders make of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decipher_rt.train.decoders.contract import REACH
from decipher_rt.train.decoders.registry import DecoderConfig, build_decoder
from decipher_rt.train.decoders.shards import ShardError
from decipher_rt.train.decoders.sight import Sight, SightedTokens, sighted
from decipher_rt.train.decoders.stage import answer_rows, images_of
from decipher_rt.train.decoders.tokens import Encoded
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.progress import Progress
from decipher_rt.train.shards import SHARD

from .learning import learn

OPTIONS: dict[str, Any] = {"channels": [16, 8], "skips": True, "crop": 3}
TISSUE = DecoderConfig("tissue", "segmentation", "tissue", options=OPTIONS)
LESION = DecoderConfig(
    "lesion",
    "classification",
    "lesion",
    upon="tissue",
    options={"labels": ["absent", "present"], "pool": "max", "odds": True},
)
BOX = DecoderConfig("box", "localisation", "lesion", upon="tissue", options={"hidden": 48, "odds": True})
VOLUME = DecoderConfig(
    "volume", "regression", "ball_volume_ml", upon="tissue", options={"unit": "ml", "pool": "sum", "hidden": 48}
)


@pytest.fixture(scope="module")
def sight(vit_config: ViTConfig, splits: dict) -> Sight:
    torch.manual_seed(0)
    examples, tokens = splits["train"]
    segmentation = build_decoder(TISSUE, vit_config)
    learn(segmentation, tokens, examples, 250, 1e-2, 8)
    return Sight(segmentation.eval().requires_grad_(False))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def seen(sight: Sight, splits: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, SightedTokens]]:
    cache = tmp_path_factory.mktemp("sight")
    return {
        split: (examples, sighted(sight, tokens, examples, cache, Progress()))
        for split, (examples, tokens) in splits.items()
    }


@torch.no_grad()
def test_what_is_seen_is_what_the_segmentation_says_of_each_cell(
    sight: Sight, vit_config: ViTConfig, splits: dict
) -> None:
    """Cells of two voxels, two to a patch; what lies in a dropped patch, or beyond the grid, is no lesion."""
    examples, tokens = splits["train"]
    one = next(tokens[i] for i in range(len(tokens)) if tokens.count[i] < vit_config.token_buckets[-1])
    index = next(i for i in range(len(tokens)) if tokens.count[i] < vit_config.token_buckets[-1])
    patch, kept = one.patch[None], one.tokens[None]
    beside = sight(patch, kept, images_of([examples[index]]))
    assert torch.equal(beside[..., :48], patch)
    assert beside.shape[-1] == 48 + sight.size == 48 + 5 + 4**3 + 1

    segmentation = sight.segmentation
    logits = segmentation.last(segmentation.features(patch, kept, images_of([examples[index]])))[0]
    cells = logits.reshape(5, 8, 2, 8, 2, 8, 2).mean(dim=(2, 4, 6))
    odds = (cells[4] - cells[:4].logsumexp(dim=0)).clamp(-REACH, REACH)
    odds = (odds + REACH) / (2 * REACH)
    shares = cells.softmax(dim=0)
    there = set(one.tokens.tolist())
    for row, token in enumerate(one.tokens.tolist()):
        d, h, w = (int(n) for n in np.unravel_index(token, (4, 4, 4)))
        own = shares[:, 2 * d : 2 * d + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].mean(dim=(1, 2, 3))
        torch.testing.assert_close(beside[0, row, 48:53], own)
        around = beside[0, row, 53:-1].reshape(4, 4, 4)
        assert beside[0, row, -1] == around[1:3, 1:3, 1:3].max()
        for place in np.ndindex(4, 4, 4):
            cell = tuple(2 * a + b - 1 for a, b in zip((d, h, w), place, strict=True))
            inside = all(0 <= c < 8 for c in cell)
            neighbour = int(np.ravel_multi_index(tuple(c // 2 for c in cell), (4, 4, 4))) if inside else -1
            expected = odds[cell] if neighbour in there else torch.tensor(0.0)
            torch.testing.assert_close(around[place], expected)


def test_what_is_seen_is_kept_and_looked_at_once(sight: Sight, splits: dict, tmp_path: Path) -> None:
    examples, tokens = splits["train"]
    first = sighted(sight, tokens, examples, tmp_path, Progress())
    assert first.mean.shape == (len(tokens), 48 + sight.size)
    np.testing.assert_allclose(first.mean[3], first[3].patch.mean(dim=0), atol=2e-3)
    examples.read.clear()
    again = sighted(sight, tokens, examples, tmp_path, Progress())
    assert examples.read == []
    assert torch.equal(again[SHARD + 1].patch, first[SHARD + 1].patch)
    other = Sight(build_decoder(TISSUE, sight_encoder(splits)))  # type: ignore[arg-type]
    sighted(other, tokens, examples, tmp_path, Progress())
    assert len(examples.read) == len(tokens), "another segmentation sees something else"
    (folder, *_) = (f for f in tmp_path.iterdir() if first[0].patch.numel())
    next(folder.glob("*.safetensors")).write_bytes(b"cut off")
    with pytest.raises(ShardError, match=r"\.safetensors: not a shard"):
        SightedTokens(tokens, folder)


def sight_encoder(splits: dict) -> ViTConfig:
    width = splits["train"][1].mean.shape[1]
    return ViTConfig(
        width=width, depth=2, heads=4, embedding_size=16, grid_shape=(16,) * 3, patch_shape=(4, 4, 4),
        spacing_mm=(15.0,) * 3, token_buckets=(16, 32, 64),
    )  # fmt: skip


class Blind(SightedTokens):
    """Tokens that say nothing: what is seen beside them is all there is."""

    def __init__(self, tokens: SightedTokens) -> None:
        vars(self).update(vars(tokens))

    def __getitem__(self, index: int) -> Encoded:
        one = super().__getitem__(index)
        return dataclasses.replace(one, patch=torch.cat([0 * one.patch[:, :48], one.patch[:, 48:]], dim=1))


@pytest.mark.parametrize(
    ("config", "better"),
    [
        (LESION, lambda f: f["auroc"] > 0.85),
        (BOX, lambda f: f["presence_auroc"] > 0.95 and f["centre_error_mm"]["median"] < 22 and f["iou"] > 0.3),
        (VOLUME, lambda f: f["mae"] < 0.7 * f["mae_of_mean"]),
    ],
    ids=["lesion", "box", "volume"],
)
def test_what_is_seen_answers_by_itself(
    config: DecoderConfig, better: Any, sight: Sight, vit_config: ViTConfig, seen: dict
) -> None:
    torch.manual_seed(0)
    blind = {split: (examples, Blind(tokens)) for split, (examples, tokens) in seen.items()}
    decoder = build_decoder(config, vit_config, sight.size)
    learn(decoder, blind["train"][1], blind["train"][0], 200, 1e-2, 32)
    decoder.calibrate(answer_rows(decoder, blind["validation"][1], blind["validation"][0]))
    figures = decoder.figures(answer_rows(decoder, blind["test"][1], blind["test"][0]))
    assert better(figures), figures


def test_a_segmentation_stands_upon_tokens_alone(vit_config: ViTConfig) -> None:
    with pytest.raises(ValueError, match=r"decoder\.upon is 'tissue', expected nothing"):
        build_decoder(dataclasses.replace(TISSUE, name="more", upon="tissue"), vit_config)
    with pytest.raises(ValueError, match=r"decoder\.options\.odds is true, expected a segmentation that sees them"):
        build_decoder(dataclasses.replace(LESION, upon=""), vit_config)
    with pytest.raises(ValueError, match=r"odds is true, expected false for the pool 'linear'"):
        build_decoder(dataclasses.replace(LESION, options={**LESION.options, "pool": "linear"}), vit_config)
