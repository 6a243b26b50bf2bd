"""Views of stored series: the foreground is the runtime's, whatever half precision makes of the threshold."""

import dataclasses

import numpy as np
import pytest

from decipher_rt.preprocess import Grid
from decipher_rt.tokens import tissue_counts
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.views import UNIT_WINDOW, patches_at, ranked_patches, to_patches

SPEC = ViTConfig.PRESETS["tiny"].preprocessing


@pytest.mark.parametrize("level", [0.0, 0.1, 0.25, 1 / 3])  # exact in half precision or between two of its numbers
def test_patches_are_ranked_as_the_runtime_ranks_them(level: float) -> None:
    spec = dataclasses.replace(SPEC, tissue_level=level)
    rng = np.random.default_rng(3)
    volume = rng.uniform(-0.2, 1.2, spec.grid_shape).astype(np.float16)
    near = np.float16(level)
    steps = [np.nextafter(near, np.float16(-1)), near, np.nextafter(near, np.float16(1)), np.float16(-0.0)]
    volume[::2] = rng.choice(np.array(steps), volume[::2].shape)
    for seen in (volume, volume[..., ::-1]):
        counts = tissue_counts(Grid(seen.astype(np.float32), UNIT_WINDOW, np.eye(4)), spec)
        ranked, tissue = ranked_patches(seen, spec)
        np.testing.assert_array_equal(ranked, np.argsort(-counts, kind="stable"))
        assert tissue == (counts >= spec.min_tissue * np.prod(spec.patch_shape)).sum()


def test_rows_of_the_table_of_patches_are_had_without_the_table() -> None:
    volume = np.random.default_rng(4).random(SPEC.grid_shape).astype(np.float16)
    tokens = np.array([0, 5, 700, SPEC.patches - 1])
    for seen in (volume, volume[..., ::-1]):
        np.testing.assert_array_equal(patches_at(seen, tokens, SPEC), to_patches(seen, SPEC)[tokens])
