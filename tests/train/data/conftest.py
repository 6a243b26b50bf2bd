from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the simulator needs the train extra")
pytest.importorskip("nilearn", reason="the base anatomy comes from the nilearn wheel")

from decipher_rt.manifest import Preprocessing
from decipher_rt.train.data import Anatomy, load_anatomy


@pytest.fixture(scope="session")
def anatomy() -> Anatomy:
    """One head of the default anatomy, from the user's cache; the first run ever builds it (about half a minute)."""
    return load_anatomy(heads=1)


@pytest.fixture(scope="session")
def small_grid() -> Preprocessing:
    return Preprocessing(
        grid_shape=(48, 48, 48), spacing_mm=(5.0, 5.0, 5.0), patch_shape=(12, 12, 12), token_buckets=(16, 32, 64)
    )


@pytest.fixture(scope="session")
def grid() -> Preprocessing:
    """The grid of the model that ships, in larger patches."""
    return Preprocessing(
        grid_shape=(96, 96, 96), spacing_mm=(2.5, 2.5, 2.5), patch_shape=(12, 12, 12), token_buckets=(128, 256, 512)
    )
