"""The masked autoencoder sees what is visible, is judged on what is not, and learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.sources.example import ListedExamples
from decipher_rt.train.ssl.config import CropConfig, MaskedAutoencoderConfig
from decipher_rt.train.ssl.crops import CropBatch, crop_batch
from decipher_rt.train.ssl.mae import MaskedAutoencoder
from decipher_rt.train.ssl.masks import plan_random
from decipher_rt.train.views import ViewConfig

CONFIG = MaskedAutoencoderConfig(decoder_width=24, decoder_depth=1, decoder_heads=2)


@pytest.fixture
def batch(encoder: ViTConfig, balls: Callable[[int, int], ListedExamples]) -> CropBatch:
    return crop_batch(
        [balls(i, i + 1)[0].volume for i in range(4)],
        [np.random.default_rng(i) for i in range(4)],
        (40, 8),
        plan_random(2, 4, 0.75),
        encoder.preprocessing,
        CropConfig(local_crops=0),
        ViewConfig(shift_voxels=0),
    )


@pytest.fixture
def model(encoder: ViTConfig) -> MaskedAutoencoder:
    torch.manual_seed(3)
    return MaskedAutoencoder(encoder, CONFIG)


def test_the_encoder_gets_the_visible_quarter(
    model: MaskedAutoencoder, batch: CropBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, real = [], model.encoder.features

    def features(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shapes.append(x.shape)
        return real(x)

    monkeypatch.setattr(model.encoder, "features", features)
    model(batch, 0)
    assert shapes == [(8, 10, 48)]


def test_a_perfect_prediction_costs_nothing(
    model: MaskedAutoencoder, batch: CropBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the decoder says is compared with the voxels of the patches that were masked, in their order."""
    truth = batch.global_patches.flatten(0, 1)[batch.masks.flatten(0, 1)]
    said = (truth - truth.mean(dim=1, keepdim=True)) / (truth.var(dim=1, keepdim=True) + 1e-4).sqrt()
    monkeypatch.setattr(model.voxels, "forward", lambda hidden: said)
    assert model(batch, 0)["loss"].item() < 1e-9
    monkeypatch.setattr(model.voxels, "forward", lambda hidden: said.roll(1, dims=0))
    assert model(batch, 0)["loss"].item() > 0.1


def test_visible_tokens_reach_the_decoder_at_their_own_places(model: MaskedAutoencoder, batch: CropBatch) -> None:
    """The order of a crop's tokens does not matter: nothing is put where another token belongs."""
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    mixed = dataclasses.replace(
        batch,
        global_patches=batch.global_patches[:, :, order],
        global_tokens=batch.global_tokens[:, :, order],
        masks=batch.masks[:, :, order],
    )
    with torch.no_grad():
        assert model(mixed, 0)["loss"].item() == pytest.approx(model(batch, 0)["loss"].item(), rel=1e-5)


def test_everything_learns_but_what_is_for_reports(model: MaskedAutoencoder, batch: CropBatch) -> None:
    model(batch, 0)["loss"].backward()
    for name, parameter in model.learned():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert model.encoder.projection.weight.grad is None


def test_it_learns_to_fill_in(model: MaskedAutoencoder, batch: CropBatch) -> None:
    optimiser = torch.optim.AdamW([p for _, p in model.learned()], lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model(batch, 0)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    # Saying nothing of any patch costs about the share of patches that are not air; this is less.
    with torch.no_grad():
        model.voxels.weight.zero_()
        model.voxels.bias.zero_()
        nothing = model(batch, 0)["loss"].item()
    assert losses[-1] < 0.8 * nothing
