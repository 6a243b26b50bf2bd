"""The golden case: one simulated head on the grid, kept beside the weights so that an export need not simulate.

Its inputs lie in ``golden.npz`` of a weights folder; the export adds what the model in torch makes of them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decipher_rt.archives import read_arrays
from decipher_rt.atomic import write_bytes
from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Grid
from decipher_rt.tokens import select_tokens

from .checkpoint import CheckpointError
from .data import load_anatomy, simulate
from .samples import sample_seed

GOLDEN = "golden.npz"
MOST_BYTES = 1 << 30
STORED_RANGE = 2000  # whole numbers between the window's ends, as in a typical series of 12 bits


@dataclass(frozen=True)
class GoldenCase:
    """The encoder's inputs: volume (D, H, W) in whole numbers as scanners store them, window (2,), tokens (K,)."""

    volume: NDArray[np.int16]
    window: NDArray[np.float32]
    tokens: NDArray[np.int64]


def golden_case(spec: Preprocessing, seed: int) -> GoldenCase:
    """Simulate a head, never a patient's, with the seed of the first series of the test split."""
    sample = simulate(sample_seed(seed, "test", 0), load_anatomy(heads=1), spec, kind="head")
    low, high = map(float, sample.window)
    stored = np.round((sample.volume - low) / (high - low) * STORED_RANGE).clip(-STORED_RANGE, 8 * STORED_RANGE)
    window = np.array([0, STORED_RANGE], np.float32)
    tokens = select_tokens(Grid(stored.astype(np.float32), window, np.eye(4)), spec)
    return GoldenCase(stored.astype(np.int16), window, tokens.indices)


def save_golden(folder: Path, case: GoldenCase) -> None:
    """Write the case into a weights folder."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, volume=case.volume, window=case.window, tokens=case.tokens)
    write_bytes(folder / GOLDEN, buffer.getvalue())


def load_golden(folder: Path) -> GoldenCase:
    """Read the case of a weights folder.

    Raises
    ------
    CheckpointError
        If it is not there, or not what ``save_golden`` writes.
    """
    path = folder / GOLDEN
    try:
        with path.open("rb") as file:
            stored = read_arrays(file, ("volume", "window", "tokens"), MOST_BYTES)
        return GoldenCase(stored["volume"], stored["window"], stored["tokens"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; give a folder that 'decipher-rt train decoder' has finished"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a golden case ({error}); copy it again") from None
