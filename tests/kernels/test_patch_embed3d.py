"""The patch-embedding kernel in the interpreter against its fp64 reference, within bounds that follow from its roundings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from decipher_rt.kernels.config import PatchEmbed3dConfig
from decipher_rt.kernels.reference import patch_embed3d_reference

pytestmark = pytest.mark.usefixtures("interpreter")

UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}
"""Largest relative error of one rounding to nearest."""
NORMALISATION_ERROR = 2.0**-20
"""Of the normalised voxel in fp32, absolute: a subtraction, a reciprocal, a product and the map to -1..1, a few 2^-23 each."""
TILES = PatchEmbed3dConfig(block_t=16, block_c=16, block_p=64, group_t=2, num_warps=4, num_stages=2)


def error_bound(reference: Tensor, weight: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Largest error each token may have: |normalised| <= 1, so every voxel's error counts with its weight."""
    voxels = weight.shape[1]
    voxel = UNIT_ROUNDOFF[weight.dtype] + NORMALISATION_ERROR + voxels * UNIT_ROUNDOFF[torch.float32]
    return voxel * weight.double().abs().sum(1) + UNIT_ROUNDOFF[out_dtype] * 1.01 * reference.abs() + 1e-7


def case(
    grid: tuple[int, int, int] = (2, 3, 2),
    patch: tuple[int, int, int] = (5, 3, 4),
    batch: int = 2,
    kept: int = 7,
    width: int = 40,
    volume: torch.dtype = torch.float32,
    weight: torch.dtype = torch.float16,
    index: torch.dtype = torch.int64,
) -> dict[str, Any]:
    """Random arguments; each volume has its own window, and a fifth of its voxels lie outside it."""
    random = torch.Generator().manual_seed(sum(grid) + kept + width)
    shape = [batch, *(g * p for g, p in zip(grid, patch, strict=True))]
    patches, voxels = grid[0] * grid[1] * grid[2], patch[0] * patch[1] * patch[2]
    low = torch.rand(batch, generator=random) * 300 + 100
    window = torch.stack([low, low + 800 + 900 * torch.rand(batch, generator=random)], dim=1)
    signed = volume is not torch.uint16
    values = torch.rand(shape, generator=random) * 2600 - (400 if signed else 0)
    return {
        "volume": values.to(volume),
        "window": window,
        "tokens": torch.randint(patches, (batch, kept), generator=random).to(index),
        "weight": (torch.randn(width, voxels, generator=random) / voxels**0.5).to(weight),
        "bias": torch.randn(width, generator=random),
        "position": torch.randn(patches, width, generator=random),
        "patch": patch,
    }


def check(arguments: dict[str, Any], out: Tensor) -> None:
    reference = patch_embed3d_reference(**arguments)
    error = (out.double() - reference).abs()
    assert (error <= error_bound(reference, arguments["weight"], out.dtype)).all(), f"largest error {error.max()}"


def run(arguments: dict[str, Any], **options: Any) -> Tensor:
    from decipher_rt.kernels.patch_embed3d import patch_embed3d

    return patch_embed3d(**arguments, config=TILES, **options)


@pytest.mark.parametrize("volume", [torch.int16, torch.uint16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("weight", [torch.float16, torch.bfloat16], ids=str)
def test_every_dtype(volume: torch.dtype, weight: torch.dtype) -> None:
    arguments = case(volume=volume, weight=weight)
    out = run(arguments)
    assert out.dtype == weight
    check(arguments, out)


@pytest.mark.parametrize(
    "sizes",
    [
        {"grid": (2, 2, 2), "patch": (4, 4, 4), "batch": 1, "kept": 8, "width": 16},  # every tile is full
        {"grid": (1, 1, 1), "patch": (7, 5, 3), "batch": 3, "kept": 1, "width": 1},  # every tile is ragged
        {"grid": (2, 2, 2), "patch": (12, 12, 12), "batch": 1, "kept": 3, "width": 24},
        {"grid": (3, 2, 1), "patch": (8, 16, 16), "batch": 1, "kept": 6, "width": 17},
        {"grid": (4, 4, 4), "patch": (2, 2, 2), "batch": 2, "kept": 41, "width": 33, "index": torch.int32},
        {"grid": (2, 2, 2), "patch": (1, 1, 1), "batch": 1, "kept": 5, "width": 8},
    ],
    ids=lambda sizes: "-".join("x".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in sizes.values()),
)
def test_every_shape(sizes: dict[str, Any]) -> None:
    arguments = case(**sizes)
    check(arguments, run(arguments, out_dtype=torch.float32))


@pytest.mark.parametrize("volume", [torch.int16, torch.float32], ids=str)
def test_reads_and_writes_only_its_own(
    volume: torch.dtype,
    guarded: Callable[[Tensor], Tensor],
    cropped: Callable[[Tensor], Tensor],
    output_buffer: Callable[..., tuple[Tensor, Callable[[], bool]]],
) -> None:
    arguments = case(volume=volume)
    poisoned = {name: guarded(value) for name, value in arguments.items() if isinstance(value, Tensor)}
    poisoned["volume"] = cropped(arguments["volume"])
    assert not poisoned["volume"].is_contiguous()
    out, untouched = output_buffer((2, 7, 40), torch.float32)
    assert run({**arguments, **poisoned}, out=out) is out
    assert not out.isnan().any()
    assert untouched()
    check(arguments, out)


def test_no_address_beside_the_arguments(
    only_touching: Callable[..., contextlib.AbstractContextManager[None]], cropped: Callable[[Tensor], Tensor]
) -> None:
    arguments = case(kept=9)
    arguments["tokens"][0, 2], arguments["tokens"][1, 8] = -5, 12
    arguments["volume"] = cropped(arguments["volume"])
    out = torch.empty(2, 9, 40)
    with only_touching([value for value in arguments.values() if isinstance(value, Tensor)], [out]):
        run(arguments, out=out)
    with only_touching([out], [out]), pytest.raises(Exception, match="beside the arguments"):  # it does look
        run(arguments, out=out)


def test_any_strides() -> None:
    arguments = case()
    reordered = arguments["volume"].permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    assert reordered.stride(-1) != 1
    check(arguments, run({**arguments, "volume": reordered}))


@pytest.mark.parametrize("outside", [-1, -12, 12, 2**31, 2**32 + 3, -(2**63)])
def test_an_index_outside_gives_nan_and_touches_nothing_else(
    outside: int, cropped: Callable[[Tensor], Tensor], guarded: Callable[[Tensor], Tensor]
) -> None:
    arguments = case()
    arguments["tokens"][1, 3] = outside
    arguments |= {"volume": cropped(arguments["volume"]), "position": guarded(arguments["position"])}
    out = run(arguments)
    assert out[1, 3].isnan().all()
    out[1, 3] = 0
    assert not out.isnan().any()


def test_window_is_each_volumes_own_and_a_flat_one_divides_by_nothing() -> None:
    arguments = case(weight=torch.float16)
    arguments["window"] = torch.tensor([[500.0, 500.0], [0.0, 1000.0]])
    check(arguments, run(arguments, out_dtype=torch.float32))


def test_extreme_voxels_are_clipped_and_nan_is_kept() -> None:
    arguments = case(batch=1)
    low_and_high = arguments["volume"].clone()
    low_and_high[0, ::2] = float("-inf")
    low_and_high[0, 1::2] = float("inf")
    out = run({**arguments, "volume": low_and_high}, out_dtype=torch.float32)
    sign = torch.where(torch.arange(10) % 2 == 0, -1.0, 1.0).view(2, 5).repeat_interleave(12, dim=1).double()
    rows = arguments["tokens"][0] // 6  # (depth index of the patch)
    expected = (
        (sign[rows] @ arguments["weight"].double().T)
        + arguments["bias"]
        + arguments["position"][arguments["tokens"][0]]
    )
    torch.testing.assert_close(out[0].double(), expected, rtol=0, atol=1e-4)
    low_and_high[0, 0, 0, 0] = float("nan")
    out = run({**arguments, "volume": low_and_high, "tokens": torch.tensor([[0, 1]])})
    assert out[0, 0].isnan().all()
    assert not out[0, 1].isnan().any()


def test_tiles_do_not_change_the_result() -> None:
    from decipher_rt.kernels.patch_embed3d import patch_embed3d

    arguments = case(kept=9, batch=3)
    for tiles in [(16, 64, 16, 1), (32, 16, 32, 8), (16, 16, 128, 3)]:
        out = patch_embed3d(**arguments, config=PatchEmbed3dConfig(*tiles, num_warps=4, num_stages=2))
        check(arguments, out)


def test_no_rows() -> None:
    arguments = case(kept=7)
    out = run({**arguments, "tokens": torch.empty((2, 0), dtype=torch.int64)})
    assert out.shape == (2, 0, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volume": torch.zeros(2, 10, 9, 8, dtype=torch.float64)}, "volume is torch.float64"),
        ({"volume": torch.zeros(2, 10, 9, 9)}, "not a positive multiple of the patch"),
        ({"volume": torch.zeros(10, 9, 8)}, "expected (B, D, H, W)"),
        ({"window": torch.zeros(2, 3)}, "window is (2, 3), expected (2, 2)"),
        ({"tokens": torch.zeros(1, 7, dtype=torch.int64)}, "tokens is (1, 7), expected (2, 7)"),
        ({"tokens": torch.zeros(2, 7)}, "tokens is torch.float32"),
        ({"weight": torch.zeros(40, 60)}, "weight is torch.float32"),
        ({"weight": torch.zeros(40, 61, dtype=torch.float16)}, "weight is (40, 61), expected (40, 60)"),
        ({"bias": torch.zeros(39)}, "bias is (39,), expected (40,)"),
        ({"position": torch.zeros(13, 40)}, "position is (13, 40), expected (12, 40)"),
        ({"bias": torch.zeros(40, device="meta")}, "expected one device"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="patch_embed3d: ") as error:
        run({**case(), **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
