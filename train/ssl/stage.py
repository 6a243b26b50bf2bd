"""Self-supervised pretraining as a stage of the loop: batches by step, losses, and the teacher after each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ..distributed import share
from ..loop import ParameterGroup
from ..model.vit import ViT
from ..model.whiten import whiten_patch_embed
from ..parameter_groups import parameter_groups
from ..pool import fit_pool
from ..schedule import draw_indices
from ..sources import Examples
from .config import SSLConfig
from .crops import VIEWS, CropBatch, crop_batch, draw_sizes
from .distillation import Distillation
from .mae import MaskedAutoencoder
from .masks import MaskPlan, plan_blocks, plan_random

WHITENED_SERIES = 64
VIEW, SIZES, MASKS = 2, 3, 4  # what a generator is for, beside the seed


class SSLStage:
    """What the loop asks of a stage.

    Parameters
    ----------
    config : SSLConfig
    examples : Examples
        Training series; their voxels are all that is looked at.
    """

    def __init__(self, config: SSLConfig, examples: Examples) -> None:
        self._config, self._examples = config, examples
        self.network: Distillation | MaskedAutoencoder
        if config.method == "distillation":
            self.network = Distillation(config.encoder, config.distillation, config.run.steps)
            self.curve: tuple[str, ...] = ("loss", "dino", "ibot", "koleo")
        else:
            self.network = MaskedAutoencoder(config.encoder, config.mae)
            self.curve = ("loss",)

    def start(self) -> None:
        """Let a linear patch embedding begin from whitened patches of training series."""
        encoder = self._encoder
        if isinstance(encoder.patch_embed, nn.Linear):
            alone = self._config.run.batch  # a share is then one series
            crops = [self.batch(step, 0, alone).global_patches for step in range(WHITENED_SERIES)]
            whiten_patch_embed(encoder.patch_embed, torch.cat([patches.flatten(0, 2) for patches in crops]))
        if isinstance(self.network, Distillation):
            self.network.teacher.load_state_dict(self.network.student.state_dict())

    @property
    def model(self) -> nn.Module:
        """The module whose forward gives the losses."""
        return self.network

    def batch(self, step: int, rank: int, world_size: int) -> CropBatch:
        """Return one process's share of a step's batch; it follows from the seed, the step and its place alone."""
        config, run = self._config, self._config.run
        places = share(range(run.batch), rank, world_size)
        series = draw_indices(run.seed, len(self._examples), step, run.batch)
        distilled = config.method == "distillation"
        return crop_batch(
            [self._examples[series[place]].volume for place in places],
            [np.random.default_rng([run.seed, VIEW, step, place]) for place in places],
            draw_sizes(config.crops, np.random.default_rng([run.seed, SIZES, step])),
            self._plan(step).share(places[0], places[-1] + 1),
            config.encoder.preprocessing,
            config.crops if distilled else dataclasses.replace(config.crops, local_crops=0),
            config.augment,
        )

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return what is trained, in groups."""
        return parameter_groups(self._encoder, self.network.learned())

    def after_step(self, step: int) -> None:
        """Follow a step of the optimiser."""
        self.network.after_step(step)

    def weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the encoder that the run is for, its pool fixed by training series: ``encoder.*``.

        Of distillation it is the teacher's, which is the better one all along (arXiv 2104.14294, figure 6).
        """
        prefix = "teacher.encoder." if isinstance(self.network, Distillation) else "encoder."
        of_encoder = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        encoder = ViT(self._config.encoder).to(next(iter(of_encoder.values())).device)
        encoder.load_state_dict(of_encoder)
        count = min(self._config.pool_series, len(self._examples))
        fit_pool(encoder, (self._examples[i].volume for i in range(count)))
        return {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}

    @property
    def _encoder(self) -> ViT:
        """The encoder that gradients reach."""
        return self.network.student.encoder if isinstance(self.network, Distillation) else self.network.encoder

    def _plan(self, step: int) -> MaskPlan:
        config, series = self._config, self._config.run.batch
        if config.method == "mae":
            return plan_random(VIEWS, series, config.mae.mask_ratio)
        rng = np.random.default_rng([config.run.seed, MASKS, step])
        return plan_blocks(VIEWS, series, config.distillation.mask_probability, config.distillation.mask_ratio, rng)
