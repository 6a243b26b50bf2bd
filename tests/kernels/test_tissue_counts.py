"""The counting kernel in the interpreter: the same integers as fp64, and as the runtime's own counts on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decipher_rt.bundle import open_bundle
from decipher_rt.kernels.arguments import VOLUME_DTYPES
from decipher_rt.kernels.reference import tissue_counts_reference
from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Grid, Preprocessor
from decipher_rt.series import ReadOptions, find_series, read_series
from decipher_rt.tokens import rank_patches, select_tokens, tissue_counts, tissue_threshold

pytestmark = pytest.mark.usefixtures("interpreter")

Shape = tuple[int, int, int]


def run(volume: Tensor, threshold: Tensor, patch: Shape, **options: Any) -> Tensor:
    from decipher_rt.kernels.tissue_counts import tissue_counts as launch

    return launch(volume, threshold, patch, **options)


def case(
    grid: Shape = (2, 3, 2), patch: Shape = (5, 3, 4), batch: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Shape]:
    """Volumes about half of whose voxels are above their threshold, many of them exactly at it."""
    random = torch.Generator().manual_seed(sum(grid) + sum(patch) + batch)
    shape = [batch, *(g * p for g, p in zip(grid, patch, strict=True))]
    volume = torch.randint(0 if dtype == torch.uint16 else -40, 160, shape, generator=random).to(dtype)
    return volume, torch.linspace(50, 70, batch), patch


@pytest.mark.parametrize("dtype", VOLUME_DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    arguments = case(dtype=dtype)
    out = run(*arguments)
    assert out.dtype == torch.int32
    assert torch.equal(out, tissue_counts_reference(*arguments))
    assert 0 < out.sum() < arguments[0].numel()


@pytest.mark.parametrize(
    ("grid", "patch", "batch"),
    [
        ((2, 2, 2), (16, 16, 16), 1),  # one tile, full
        ((1, 2, 1), (32, 16, 16), 1),  # two tiles
        ((2, 1, 2), (12, 12, 12), 3),  # a quarter of each tile is beside the patch
        ((1, 1, 1), (7, 5, 3), 2),
        ((3, 2, 2), (1, 1, 1), 1),
        ((1, 2, 1), (70, 65, 3), 1),  # a ragged last tile
    ],
)
def test_every_shape(grid: Shape, patch: Shape, batch: int) -> None:
    arguments = case(grid, patch, batch)
    assert torch.equal(run(*arguments), tissue_counts_reference(*arguments))


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float32], ids=str)
def test_reads_and_writes_only_its_own(
    dtype: torch.dtype,
    cropped: Callable[[Tensor], Tensor],
    guarded: Callable[[Tensor], Tensor],
    only_touching: Callable[..., contextlib.AbstractContextManager[None]],
) -> None:
    """Neighbours are the largest integer, or NaN; one that were counted would show in the first, a read in both."""
    volume, threshold, patch = case(dtype=dtype)
    volume, threshold, out = cropped(volume), guarded(threshold), torch.full((2, 12), -1, dtype=torch.int32)
    assert not volume.is_contiguous()
    with only_touching([volume, threshold], [out]):
        assert run(volume, threshold, patch, out=out) is out
    assert torch.equal(out, tissue_counts_reference(volume, threshold, patch))
    with only_touching([out], [out]), pytest.raises(Exception, match="beside the arguments"):  # it does look
        run(volume, threshold, patch, out=out)


def test_any_strides() -> None:
    volume, threshold, patch = case()
    reordered = volume.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    assert reordered.stride(-1) != 1
    assert torch.equal(run(reordered, threshold, patch), tissue_counts_reference(volume, threshold, patch))


def test_nan_is_no_tissue_and_infinity_is() -> None:
    volume = torch.tensor([float("nan"), float("inf"), float("-inf"), 3.0]).reshape(1, 1, 1, 4)
    assert run(volume, torch.tensor([2.0]), (1, 1, 2)).tolist() == [[1, 1]]


def test_no_volumes() -> None:
    assert run(torch.zeros(0, 4, 4, 4), torch.zeros(0), (2, 2, 2)).shape == (0, 8)


# --- What it is for: the counts that the runtime takes on the CPU, to the last voxel


def counted(volume: np.ndarray, window: np.ndarray, spec: Preprocessing) -> np.ndarray:
    threshold = torch.tensor([tissue_threshold(window, spec)])
    return run(torch.from_numpy(volume)[None], threshold, spec.patch_shape)[0].numpy()


def check_same(volume: np.ndarray, window: np.ndarray, spec: Preprocessing) -> None:
    grid = Grid(volume, window, np.eye(4))
    counts, expected = counted(volume, window, spec), select_tokens(grid, spec)
    np.testing.assert_array_equal(counts, tissue_counts(grid, spec))
    chosen = rank_patches(counts, spec)
    np.testing.assert_array_equal(chosen.indices, expected.indices)
    assert chosen.kept == expected.kept


def head(shape: Shape, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid of smooth tissue in noisy air, with its two percentiles."""
    rng = np.random.default_rng(shape[0])
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij")
    inside = sum((x / r) ** 2 for x, r in zip(axes, (1.0, 0.8, 0.9), strict=True)) < 1
    volume = np.abs(rng.normal(0, 15, shape)) + inside * (400 + 250 * np.cos(3 * axes[0]) * np.sin(5 * axes[2]))
    stored = volume.astype(dtype)
    return stored, np.percentile(stored.astype(np.float64), (0.5, 99.5)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float16, np.float32], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(
    ("shape", "patch", "level"),
    [((96, 96, 96), (12, 12, 12), 0.1), ((64, 96, 80), (16, 16, 16), 0.07)],
    ids=["12", "16"],
)
def test_counts_are_those_of_the_cpu(shape: Shape, patch: Shape, level: float, dtype: Any) -> None:
    patches = int(np.prod([n // p for n, p in zip(shape, patch, strict=True)]))
    spec = Preprocessing(shape, (2.0,) * 3, patch, (patches // 4, patches), tissue_level=level, min_tissue=0.1)
    volume, window = head(shape, dtype)
    check_same(volume, window, spec)


def test_voxels_within_a_rounding_of_the_threshold() -> None:
    """The three floats around every threshold: fused arithmetic on the device would put some on the other side."""
    rng = np.random.default_rng(0)
    for low, high, level in zip(
        rng.normal(0, 300, 50), rng.uniform(500, 4000, 50), rng.uniform(0, 0.3, 50), strict=True
    ):
        spec = Preprocessing((2, 2, 2), (1.0,) * 3, (2, 2, 2), (1,), tissue_level=float(level), min_tissue=0.1)
        window = np.array([low, high], np.float32)
        at = tissue_threshold(window, spec)
        volume = np.array([np.nextafter(at, -np.inf), at, np.nextafter(at, np.inf)] * 2 + [low, high], np.float32)
        check_same(volume.reshape(2, 2, 2), window, spec)
        assert counted(volume.reshape(2, 2, 2), window, spec)[0] == 3


def test_counts_of_a_real_series_are_those_of_the_cpu(shared_data: Path) -> None:
    (series,) = find_series(shared_data / "dicom" / "ge_t1_mprage_ax", ReadOptions())
    spec = open_bundle().manifest.preprocessing
    grid = Preprocessor(None, spec)(read_series(series, ReadOptions()))
    check_same(grid.volume, grid.window, spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volume": torch.zeros(2, 10, 9, 8, dtype=torch.float64)}, "volume is torch.float64"),
        ({"volume": torch.zeros(2, 10, 9, 9)}, "not a positive multiple of the patch"),
        ({"volume": torch.zeros(10, 9, 8)}, "expected (B, D, H, W)"),
        ({"threshold": torch.zeros(3)}, "threshold is (3,), expected (2,)"),
        ({"threshold": torch.zeros(2, dtype=torch.float64)}, "threshold is torch.float64"),
        ({"threshold": torch.zeros(2, device="meta")}, "expected one device"),
        ({"out": torch.zeros(2, 12)}, "out is torch.float32 (2, 12), expected contiguous torch.int32 (2, 12)"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="tissue_counts: ") as error:
        run(**{**dict(zip(("volume", "threshold", "patch"), case(), strict=True)), **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
