"""The encoder's contract, against definitions written out here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from decipher_rt.kernels import ops
from decipher_rt.train.model.vit import ViT, ViTConfig, gather_patches, normalise, patch_positions

SMALL = ViTConfig(
    width=48, depth=2, heads=4, embedding_size=16, grid_shape=(12, 16, 8), patch_shape=(4, 4, 4),
    spacing_mm=(10.0, 10.0, 10.0), token_buckets=(12, 24), layer_scale=0.1,
)  # fmt: skip


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    volume = torch.rand((2, 1, *SMALL.grid_shape), generator=generator) * 900 - 50
    tokens = torch.stack([torch.randperm(24, generator=generator)[:12].sort().values for _ in range(2)])
    return {"volume": volume, "window": torch.tensor([[0.0, 800.0], [20.0, 600.0]]), "tokens": tokens}


@pytest.fixture
def encoder() -> ViT:
    torch.manual_seed(0)
    return ViT(SMALL).eval()


@torch.no_grad()
def test_outputs_have_the_shapes_of_the_contract(encoder: ViT, inputs: dict[str, torch.Tensor]) -> None:
    patch, embedding = encoder(**inputs)
    assert patch.shape == (2, 12, 48)
    assert patch.dtype is torch.float32
    assert embedding.shape == (2, 16)
    assert torch.allclose(embedding.norm(dim=-1), torch.ones(2), atol=1e-6)


def test_patches_are_the_boxes_of_the_grid(inputs: dict[str, torch.Tensor]) -> None:
    rows = gather_patches(inputs["volume"], inputs["tokens"], SMALL.patch_shape)
    for b in range(2):
        for k, token in enumerate(inputs["tokens"][b].tolist()):
            d, h, w = (4 * int(i) for i in np.unravel_index(token, (3, 4, 2)))
            box = inputs["volume"][b, 0, d : d + 4, h : h + 4, w : w + 4]
            assert torch.equal(rows[b, k], box.flatten())


def test_projection_equals_a_strided_convolution(encoder: ViT, inputs: dict[str, torch.Tensor]) -> None:
    weight, bias = encoder.patch_embed.weight, encoder.patch_embed.bias
    unit = normalise(inputs["volume"].flatten(1).unsqueeze(1), inputs["window"]).reshape(inputs["volume"].shape)
    every = torch.nn.functional.conv3d(unit, weight.view(-1, 1, 4, 4, 4), bias, stride=4).flatten(2).transpose(1, 2)
    expected = torch.stack([every[b, t] + patch_positions(SMALL)[t] for b, t in enumerate(inputs["tokens"])])
    assert torch.allclose(encoder.embed(**inputs), expected, atol=1e-4)  # sums of 64 products in another order


def test_normalising_after_the_gather_equals_normalising_before(inputs: dict[str, torch.Tensor]) -> None:
    after = normalise(gather_patches(inputs["volume"], inputs["tokens"], SMALL.patch_shape), inputs["window"])
    low, high = (inputs["window"][:, i].view(2, 1, 1, 1, 1) for i in (0, 1))
    before = (inputs["volume"].maximum(low).minimum(high) - low) / (high - low) * 2 - 1
    assert torch.allclose(after, gather_patches(before, inputs["tokens"], SMALL.patch_shape), atol=1e-6)


@torch.no_grad()
def test_values_beyond_the_window_do_not_matter(encoder: ViT, inputs: dict[str, torch.Tensor]) -> None:
    changed = inputs["volume"].clone()
    changed[changed > 800.0] = 1e30
    assert torch.equal(encoder(**inputs)[1], encoder(**{**inputs, "volume": changed})[1])


@torch.no_grad()
def test_permuting_tokens_permutes_patch_and_leaves_the_embedding(
    encoder: ViT, inputs: dict[str, torch.Tensor]
) -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    patch, embedding = encoder(**inputs)
    permuted, same = encoder(**{**inputs, "tokens": inputs["tokens"][:, order]})
    assert torch.allclose(permuted, patch[:, order], atol=1e-5)
    assert torch.allclose(same, embedding, atol=1e-6)


@torch.no_grad()
def test_volumes_of_a_batch_do_not_see_each_other(encoder: ViT, inputs: dict[str, torch.Tensor]) -> None:
    alone = encoder(**{name: tensor[1:] for name, tensor in inputs.items()})
    both = encoder(**inputs)
    for a, b in zip(alone, both, strict=True):
        assert torch.allclose(a, b[1:], atol=1e-5)


@torch.no_grad()
def test_air_patches_left_out_leave_any_number_of_tokens(encoder: ViT, inputs: dict[str, torch.Tensor]) -> None:
    for K in (1, 12, 24):
        tokens = torch.arange(K).expand(2, -1)
        assert encoder(**{**inputs, "tokens": tokens})[0].shape == (2, K, 48)


def test_position_depends_on_millimetres_not_on_the_index() -> None:
    # The same box of 120 x 160 x 80 mm, cut into patches of half the voxels at half the resolution: the same places.
    coarse = dataclasses.replace(SMALL, grid_shape=(6, 8, 4), patch_shape=(2, 2, 2), spacing_mm=(20.0,) * 3)
    assert torch.equal(patch_positions(coarse), patch_positions(SMALL))
    # A larger grid: the middle patches are where the small grid's are.
    larger = dataclasses.replace(SMALL, grid_shape=(20, 24, 16), token_buckets=(120,))
    middle = patch_positions(larger).reshape(5, 6, 4, -1)[1:4, 1:5, 1:3].reshape(24, -1)
    assert torch.equal(middle, patch_positions(SMALL))


def test_weights_fit_a_grid_of_another_size(encoder: ViT) -> None:
    larger = ViT(dataclasses.replace(SMALL, grid_shape=(20, 24, 16), token_buckets=(120,)))
    larger.load_state_dict(encoder.state_dict())
    assert larger.position.shape == (120, 48)


def test_every_patch_has_its_own_position() -> None:
    code = patch_positions(ViTConfig.PRESETS["base"])
    distance = torch.cdist(code, code) + 1e3 * torch.eye(len(code))
    assert distance.min() > 0.1 * math.sqrt(code.shape[1] / 2)  # of the norm of a code


def test_base_is_vit_base() -> None:
    config = ViTConfig.PRESETS["base"]
    with torch.device("meta"):
        encoder = ViT(config)
    blocks = sum(p.numel() for name, p in encoder.blocks.named_parameters() if "scale" not in name)
    assert (config.width, config.depth, config.heads, config.grid_shape, config.patch_shape) == (
        768, 12, 12, (128, 128, 128), (16, 16, 16),
    )  # fmt: skip
    assert blocks == 85_054_464  # the twelve layers of ViT-Base (arXiv 2010.11929, table 1: 86M with its 2D patches)
    # Patches of 16^3 voxels, class token and registers, last norm, LayerScale, projection of class and mean token.
    others = (16**3 + 1) * 768 + 5 * 768 + 2 * 768 + 12 * 2 * 768 + 2 * 768 * 512
    assert sum(p.numel() for p in encoder.parameters()) == blocks + others


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near(encoder: ViT, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    _, expected = encoder(**inputs)
    patch, embedding = encoder.to(dtype)(**inputs)
    assert patch.dtype is embedding.dtype is torch.float32
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]  # 11 and 8 bits of mantissa
    assert torch.allclose(embedding, expected, atol=tolerance)


@torch.no_grad()
def test_large_stored_values_survive_half_precision(encoder: ViT, inputs: dict[str, torch.Tensor]) -> None:
    # 65535 is beyond float16: clipping and normalising happen before half precision starts.
    scale, offset = 60.0, 1000.0
    large = {**inputs, "volume": inputs["volume"] * scale + offset, "window": inputs["window"] * scale + offset}
    _, expected = encoder(**inputs)
    _, embedding = encoder.half()(**large)
    assert torch.allclose(embedding, expected, atol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kernels_serve_where_they_are_active(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """As on a CUDA device (here with the operators' CPU implementation): each is called, and the output stays."""
    config = dataclasses.replace(SMALL, width=96, heads=3)
    torch.manual_seed(0)
    encoder = ViT(config).eval().to(dtype)
    volume, window, tokens = torch.rand(2, 1, *SMALL.grid_shape), torch.tensor([[0.0, 1.0]] * 2), torch.arange(24)
    inputs = (volume, window, tokens.expand(2, -1))
    plain, _ = encoder(*inputs)
    called: dict[str, int] = {}
    for name in ("patch_embed3d", "attention"):
        operator = getattr(ops, name)

        def counting(*arguments: object, name: str = name, operator: Callable[..., torch.Tensor] = operator):
            called[name] = called.get(name, 0) + 1
            return operator(*arguments)

        monkeypatch.setattr(ops, name, counting)
    monkeypatch.setattr(ops, "_SERVED_DEVICES", ("cpu",))
    monkeypatch.delenv(ops.SWITCH, raising=False)
    served, _ = encoder(*inputs)
    assert called == {"patch_embed3d": 1, "attention": config.depth}
    torch.testing.assert_close(served, plain, rtol=0, atol=0.05 if dtype is torch.float16 else 0.3)
    with ops.disabled():
        encoder(*inputs)
    assert called["attention"] == config.depth
