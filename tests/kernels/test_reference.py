"""The references against other implementations: Conv3d, the encoder's own operators, torch's attention."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from decipher_rt.kernels.reference import attention_reference, patch_embed3d_reference, softmax_scale

ROUNDING = 1e-12
"""Sums of a few hundred fp64 products in another order."""


def test_patch_embedding_is_a_convolution_whose_stride_is_its_kernel() -> None:
    random = torch.Generator().manual_seed(0)
    patch, width = (3, 5, 2), 7
    volume = torch.randint(-500, 3000, (2, 6, 15, 8), generator=random, dtype=torch.int16)
    window = torch.tensor([[0.0, 1500.0], [-100.0, 900.0]])
    weight = torch.randn(width, *patch, generator=random, dtype=torch.float64)
    bias = torch.randn(width, generator=random, dtype=torch.float64)
    position = torch.randn(2 * 3 * 4, width, generator=random, dtype=torch.float64)
    tokens = torch.tensor([[5, 0, 23, 5], [1, 2, 3, 4]])

    low, high = window.double().view(2, 2, 1, 1, 1, 1).unbind(1)
    normal = volume.double().unsqueeze(1).clip(low, high).sub(low).div(high - low).mul(2).sub(1)
    every = F.conv3d(normal, weight.unsqueeze(1), bias, stride=patch).flatten(2).transpose(1, 2) + position
    expected = torch.stack([every[b][tokens[b]] for b in range(2)])

    out = patch_embed3d_reference(volume, window, tokens, weight.flatten(1), bias, position, patch)
    torch.testing.assert_close(out, expected, rtol=0, atol=ROUNDING)


def test_patch_embedding_is_the_encoders() -> None:
    from decipher_rt.train.model.vit import ViT, ViTConfig

    config = dataclasses.replace(
        ViTConfig.PRESETS["tiny"], grid_shape=(24, 36, 24), patch_shape=(12, 12, 12), token_buckets=(12,), depth=1
    )
    model = ViT(config).double()
    random = torch.Generator().manual_seed(1)
    volume = torch.rand(2, 1, 24, 36, 24, generator=random) * 1000
    window = torch.tensor([[50.0, 900.0], [10.0, 700.0]])
    tokens = torch.randint(12, (2, 5), generator=random)
    with torch.no_grad():
        expected = model.embed(volume, window, tokens)
        linear = model.patch_embed
        out = patch_embed3d_reference(
            volume[:, 0], window, tokens, linear.weight, linear.bias, model.position, config.patch_shape
        )
    # The encoder normalises in fp32: 2^-23 of a few operations, on 1728 voxels with weights below 0.06.
    torch.testing.assert_close(out, expected.double(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("outside", [-1, 24, 2**40])
def test_an_index_outside_gives_nan(outside: int) -> None:
    tokens = torch.tensor([[0, outside]])
    zeros = torch.zeros(7)
    out = patch_embed3d_reference(
        torch.zeros(1, 6, 15, 8),
        torch.tensor([[0.0, 1.0]]),
        tokens,
        torch.zeros(7, 30),
        zeros,
        zeros.expand(24, 7),
        (3, 5, 2),
    )
    assert (out[0, 0] == 0).all()
    assert out[0, 1].isnan().all()


def test_attention_is_torchs() -> None:
    q, k, v = torch.randn(3, 2, 4, 19, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(
        attention_reference(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=0, atol=ROUNDING
    )


def test_softmax_scale_turns_e_into_2() -> None:
    dot = torch.tensor(3.7, dtype=torch.float64)
    torch.testing.assert_close(torch.exp2(dot * softmax_scale(64)), torch.exp(dot / 8), rtol=1e-12, atol=0)
