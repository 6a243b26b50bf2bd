"""The attention kernel in the interpreter against fp64 and closed forms."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from decipher_rt.kernels.config import AttentionConfig
from decipher_rt.kernels.reference import attention_reference

pytestmark = pytest.mark.usefixtures("interpreter")

UNIT_ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
EXPONENT_ERROR = 2.0**-16
"""Relative, of one softmax weight in fp32: scores below 8 carry 2^-21 absolute, exp2 and the running sums a few 2^-23."""
TILES = AttentionConfig(block_m=16, block_n=16, num_warps=4, num_stages=2)
HEAD_DIMS = [32, 64, 96]
DTYPES = [torch.float16, torch.bfloat16]


def error_bound(v: Tensor) -> float:
    """Largest error: the weights (they sum to 1) are rounded once, the result once, each against the largest |v|."""
    return float(v.abs().max()) * (2 * UNIT_ROUNDOFF[v.dtype] + 2 * EXPONENT_ERROR)


def random_qkv(
    batch: int, heads: int, n: int, d: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed + n + d)
    q, k, v = torch.randn(3, batch, heads, n, d, generator=random).to(dtype)
    return q, k, v


def run(q: Tensor, k: Tensor, v: Tensor, out: Tensor | None = None, tiles: AttentionConfig = TILES) -> Tensor:
    from decipher_rt.kernels.attention import attention

    return attention(q, k, v, config=tiles, out=out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", HEAD_DIMS)
@pytest.mark.parametrize("n", [1, 16, 37])
def test_against_fp64(n: int, d: int, dtype: torch.dtype) -> None:
    q, k, v = random_qkv(1, 2, n, d, dtype)
    out = run(q, k, v)
    assert out.dtype == dtype
    assert out.shape == q.shape
    assert (out.double() - attention_reference(q, k, v)).abs().max() <= error_bound(v)


@pytest.mark.parametrize("n", [15, 17, 32, 50])
def test_ragged_lengths(n: int) -> None:
    q, k, v = random_qkv(2, 1, n, 32, torch.float16)
    assert (run(q, k, v).double() - attention_reference(q, k, v)).abs().max() <= error_bound(v)


@pytest.mark.parametrize("d", HEAD_DIMS)
def test_reads_and_writes_only_its_own(
    d: int, cropped: Callable[[Tensor], Tensor], output_buffer: Callable[..., tuple[Tensor, Callable[[], bool]]]
) -> None:
    q, k, v = random_qkv(2, 2, 19, d, torch.float16)
    out, untouched = output_buffer(q.shape, torch.float16)
    assert run(cropped(q), cropped(k), cropped(v), out=out) is out
    assert not out.isnan().any()
    assert untouched()
    assert (out.double() - attention_reference(q, k, v)).abs().max() <= error_bound(v)


@pytest.mark.parametrize("d", HEAD_DIMS)
def test_no_address_beside_the_arguments(
    d: int, only_touching: Callable[..., contextlib.AbstractContextManager[None]], cropped: Callable[[Tensor], Tensor]
) -> None:
    q, k, v = (cropped(t) for t in random_qkv(2, 2, 19, d, torch.float16))
    out = cropped(torch.zeros_like(q))
    with only_touching([q, k, v], [out]):
        run(q, k, v, out=out)


def test_output_guards_inside_a_strided_buffer() -> None:
    q, k, v = random_qkv(2, 2, 19, 32, torch.float16)
    buffer = torch.full((2, 3, 24, 40), -77.0, dtype=torch.float16)
    run(q, k, v, out=buffer[:, :2, :19, :32])
    kept = buffer.clone()
    kept[:, :2, :19, :32] = -77
    assert (kept == -77).all()
    assert (buffer[:, :2, :19, :32].double() - attention_reference(q, k, v)).abs().max() <= error_bound(v)


def test_views_into_one_projection() -> None:
    packed = torch.randn(2, 21, 3, 2, 64, generator=torch.Generator().manual_seed(5)).to(torch.float16)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    out = run(q, k, v)
    assert (out.double() - attention_reference(q, k, v)).abs().max() <= error_bound(v)
    assert out.transpose(1, 2).is_contiguous(), "joining the heads must be a view"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_keys_give_the_mean_of_the_values(dtype: torch.dtype) -> None:
    q, k, v = random_qkv(1, 1, 40, 32, dtype)
    out = run(q, k[:, :, :1].expand(-1, -1, 40, -1), v)
    assert (out.double() - v.double().mean(2, keepdim=True)).abs().max() <= error_bound(v)


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_the_largest_key_wins_wherever_it_lies(order: str) -> None:
    """Scores grow (or fall) by 60 a key, so that the running maximum moves in every block and every other weight is 0."""
    n, d = 50, 32
    height = torch.arange(n, dtype=torch.float32) if order == "rising" else torch.arange(n - 1, -1, -1.0)
    k = torch.zeros(1, 1, n, d)
    k[0, 0, :, 0] = height * 6
    q = torch.zeros(1, 1, n, d)
    q[0, 0, :, 0] = 10 * d**0.5
    _, _, v = random_qkv(1, 1, n, d, torch.float16)
    out = run(q.to(torch.float16), k.to(torch.float16), v)
    winner = n - 1 if order == "rising" else 0
    torch.testing.assert_close(out, v[:, :, winner : winner + 1].expand_as(v), rtol=0, atol=0)


def test_every_query_finds_its_own_key() -> None:
    """One-hot queries and keys under a permutation: the result is the permuted values, to the bit."""
    n = d = 32
    order = torch.randperm(n, generator=torch.Generator().manual_seed(2))
    q = (torch.eye(n)[order] * 200).to(torch.float16)[None, None]
    k = (torch.eye(n) * 200).to(torch.float16)[None, None]
    _, _, v = random_qkv(1, 1, n, d, torch.float16)
    torch.testing.assert_close(run(q, k, v), v[:, :, order], rtol=0, atol=0)


def test_tiles_do_not_change_the_result() -> None:
    q, k, v = random_qkv(1, 1, 45, 96, torch.float16)
    for block_m, block_n in [(32, 16), (16, 32), (64, 64)]:
        out = run(q, k, v, tiles=AttentionConfig(block_m, block_n, num_warps=4, num_stages=2))
        assert (out.double() - attention_reference(q, k, v)).abs().max() <= error_bound(v)


def test_no_tokens() -> None:
    q = torch.empty(2, 3, 0, 32, dtype=torch.float16)
    assert run(q, q, q).shape == (2, 3, 0, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: (q, q[:, :, :4], q), "expected three of (B, H, N, d)"),
        (lambda q: (q[0], q[0], q[0]), "expected three of (B, H, N, d)"),
        (lambda q: (q[..., :48],) * 3, "head dim 48, expected one of 32, 64, 96"),
        (lambda q: (q.float(),) * 3, "q is torch.float32"),
        (lambda q: (q, q, q.to(torch.bfloat16)), "v is torch.bfloat16, q is torch.float16"),
        (lambda q: (q, q.transpose(2, 3).contiguous().transpose(2, 3), q), "k has stride 6 along the head dim"),
        (lambda q: (q, q.to("meta"), q), "expected one device"),
    ],
)
def test_wrong_arguments_are_named(change: Callable[[Tensor], tuple[Tensor, ...]], message: str) -> None:
    with pytest.raises(ValueError, match="attention: ") as error:
        run(*change(torch.zeros(1, 1, 6, 64, dtype=torch.float16)))
    assert message in str(error.value)
