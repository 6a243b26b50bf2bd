"""Self-distillation: a student learns to say of a part what its teacher says of more; the teacher is its average.

DINO on class tokens, iBOT on masked patches and KoLeo, with separate heads and Sinkhorn-Knopp centring, as DINOv2
(arXiv 2304.07193) puts them together; starting values as 3DINO has them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..model.vit import ViT, ViTConfig, take_rows
from ..schedule import cosine
from .config import DistillationConfig
from .crops import VIEWS, CropBatch
from .heads import PrototypeHead
from .losses import dino_loss, ibot_loss, koleo_loss, sinkhorn
from .monitor import watch


class Network(nn.Module):
    """An encoder with its two heads: what the student and the teacher each are."""

    def __init__(self, encoder: ViTConfig, config: DistillationConfig) -> None:
        super().__init__()
        sizes = (encoder.width, config.head_hidden, config.head_bottleneck, config.prototypes)
        self.encoder = ViT(encoder)
        # Image and report meet in the next stage: nothing here trains this.
        self.encoder.projection.requires_grad_(False)
        self.whole = PrototypeHead(*sizes)
        self.patch = PrototypeHead(*sizes)


class Distillation(nn.Module):
    """Student, teacher and their losses.

    Parameters
    ----------
    encoder : ViTConfig
    config : DistillationConfig
    steps : int
        Of the whole run: schedules end there.
    """

    def __init__(self, encoder: ViTConfig, config: DistillationConfig, steps: int) -> None:
        super().__init__()
        self.config, self.steps = config, steps
        self.student = Network(encoder, config)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.mask_token = nn.Parameter(torch.zeros(encoder.width))
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, batch: CropBatch, step: int) -> dict[str, Tensor]:
        """Return the losses, their weighted sum ``loss``, and what a collapse would show in.

        Parameters
        ----------
        batch : CropBatch
            This process's share.
        step : int
        """
        config, weights = self.config, self.config.losses
        patches, tokens, mask = (x.flatten(0, 1) for x in (batch.global_patches, batch.global_tokens, batch.masks))
        crops, B = len(tokens), batch.global_tokens.shape[1]
        seen, whole_targets, patch_targets = self._teach(patches, tokens, mask, step)

        frozen = step < config.freeze_prototypes
        student = self.student
        whole, patch = student.encoder.features(self._masked(patches, tokens, mask))
        logits = [student.whole(whole, frozen=frozen)]
        if len(batch.local_tokens):
            local_patches, local_tokens = batch.local_patches.flatten(0, 1), batch.local_tokens.flatten(0, 1)
            local, _ = student.encoder.features(student.encoder.project(local_patches, local_tokens))
            logits.append(student.whole(local, frozen=frozen))
        said = student.patch(patch[mask], frozen=frozen)
        per_crop = mask.sum(dim=1, keepdim=True).expand(mask.shape)[mask]
        with torch.autocast(whole.device.type, enabled=False):
            parts = {
                "dino": dino_loss(
                    torch.cat(logits).unflatten(0, (-1, B)),
                    whole_targets.unflatten(0, (VIEWS, B)),
                    config.student_temperature,
                ),
                "ibot": ibot_loss(said, patch_targets, per_crop, config.student_temperature, crops),
                # Two crops of one series are meant to be alike: each view is spread out by itself.
                "koleo": torch.stack([koleo_loss(view) for view in whole.chunk(VIEWS)]).mean(),
            }
        total = weights.dino * parts["dino"] + weights.ibot * parts["ibot"] + VIEWS * weights.koleo * parts["koleo"]
        return {"loss": total, **parts, **watch(*seen, self.teacher_temperature(step))}

    def after_step(self, step: int) -> None:
        """Move the teacher towards the student, step by step more slowly."""
        share = 1.0 - self.momentum(step)
        with torch.no_grad():
            for theirs, ours in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                theirs.lerp_(ours, share)

    def momentum(self, step: int) -> float:
        """Return the teacher's momentum: a cosine from its start to its end."""
        return cosine(*self.config.momentum, step / max(1, self.steps - 1))

    def teacher_temperature(self, step: int) -> float:
        """Return the teacher's temperature: it rises linearly at the start."""
        start, end = self.config.teacher_temperature
        return start + (end - start) * min(1.0, step / max(1, self.config.temperature_warmup))

    def learned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what the optimiser moves."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    @torch.no_grad()
    def _teach(
        self, patches: Tensor, tokens: Tensor, mask: Tensor, step: int
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Return class tokens with their logits, and the targets of class tokens and of masked patches."""
        teacher, temperature = self.teacher, self.teacher_temperature(step)
        whole, patch = teacher.encoder.features(teacher.encoder.project(patches, tokens))
        logits = teacher.whole(whole)
        return (
            (whole.float(), logits),
            sinkhorn(logits, temperature),
            sinkhorn(teacher.patch(patch[mask]), temperature),
        )

    def _masked(self, patches: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Embed tokens; of a masked one only its place is left."""
        encoder = self.student.encoder
        blank = self.mask_token.to(encoder.position.dtype) + take_rows(encoder.position, tokens)
        embedded = encoder.project(patches, tokens)
        return torch.where(mask.unsqueeze(-1), blank.to(embedded.dtype), embedded)
