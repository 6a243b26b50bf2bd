"""Which patches become tokens, against a plain loop over patches."""

from __future__ import annotations

import numpy as np
import pytest

from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Grid
from decipher_rt.tokens import select_tokens

SPEC = Preprocessing((8, 12, 16), (1.0, 1.0, 1.0), (4, 3, 2), (4, 16, 40, 64), tissue_level=0.2, min_tissue=0.25)


def make_grid(volume: np.ndarray, window: tuple[float, float] = (10.0, 110.0)) -> Grid:
    return Grid(volume.astype(np.float32), np.array(window, np.float32), np.eye(4))


def ranked_by_loop(volume: np.ndarray, level: float) -> list[tuple[int, int]]:
    """(patch index, tissue voxels), best first, ties by index."""
    patches = []
    for d in range(2):
        for h in range(4):
            for w in range(8):
                block = volume[4 * d : 4 * d + 4, 3 * h : 3 * h + 3, 2 * w : 2 * w + 2]
                patches.append((len(patches), int(sum(value > level for value in block.ravel()))))
    return sorted(patches, key=lambda patch: (-patch[1], patch[0]))


@pytest.mark.parametrize("threshold", [0, 40, 75, 90, 99, 120])
def test_tokens_are_the_best_patches(threshold: float) -> None:
    rng = np.random.default_rng(int(threshold))
    # Smooth over patches, so that their shares differ; integers, so that many are equal.
    smooth = np.kron(rng.integers(0, 120, (2, 4, 8)), np.ones((4, 3, 2)))
    volume = np.where(rng.integers(0, 120, SPEC.grid_shape) + smooth > 2 * threshold, 100, 0)
    tokens = select_tokens(make_grid(volume), SPEC)
    ranked = ranked_by_loop(volume, 10 + 0.2 * 100)
    kept = sum(count >= 0.25 * 24 for _, count in ranked)
    size = min(bucket for bucket in SPEC.token_buckets if bucket >= kept)
    assert (tokens.kept, tokens.total) == (kept, 64)
    assert tokens.indices.dtype == np.int64
    assert tokens.indices.tolist() == sorted(index for index, _ in ranked[:size])


def test_all_sizes_of_bucket_occur_above() -> None:
    """The smallest bucket that is large enough, exactly full ones included."""
    for patches, size in ((0, 4), (4, 4), (5, 16), (16, 16), (17, 40), (41, 64), (64, 64)):
        volume = np.zeros((64, 24))
        volume[64 - patches :] = 100  # the last ones, so that ties by index are seen to fill up from the front
        volume = volume.reshape(2, 4, 8, 4, 3, 2).transpose(0, 3, 1, 4, 2, 5).reshape(SPEC.grid_shape)
        tokens = select_tokens(make_grid(volume), SPEC)
        assert (tokens.kept, len(tokens.indices)) == (patches, size)
        filled = [*range(size - patches), *range(64 - patches, 64)]
        assert tokens.indices.tolist() == filled


def test_level_and_share_are_inclusive_where_the_manifest_says() -> None:
    """A voxel must exceed the level; a patch must reach the share."""
    volume = np.full(SPEC.grid_shape, 30.0)  # exactly low + 0.2 * (high - low)
    assert select_tokens(make_grid(volume), SPEC).kept == 0
    volume[0, 0:3, 0:2] = 30.001  # 6 of the 24 voxels of patch 0: exactly a quarter
    assert select_tokens(make_grid(volume), SPEC).kept == 1
    volume[0, 0, 0] = 30.0
    assert select_tokens(make_grid(volume), SPEC).kept == 0


def test_units_do_not_matter() -> None:
    """Stored values of any scale and offset choose the same tokens: both sides of the comparison move together."""
    volume = np.random.default_rng(0).gamma(1.0, 30.0, SPEC.grid_shape)
    first = select_tokens(make_grid(volume), SPEC)
    scaled = select_tokens(make_grid(volume * 16 - 1024, (10 * 16 - 1024, 110 * 16 - 1024)), SPEC)
    np.testing.assert_array_equal(first.indices, scaled.indices)
