"""Segmentation: tokens scattered back to their places, then a convolutional decoder up to the grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from decipher_rt.manifest import MOST_LABELS

from ...data.sample import LABELS
from ...metrics import dice, overlap_counts, rounded
from ...model.vit import ViTConfig
from ..contract import Batch, Decoder, Known, Rows
from ..crops import draw_crop
from ..image import Block, ImageBranch, doublings

MOST_RARITY = 2.0
BACKGROUND_LOGIT = 30.0  # where a patch was dropped: its voxels are background, as sure as float32 can say


@dataclass(frozen=True)
class Settings:
    """Options of a segmentation.

    Attributes
    ----------
    channels : of the token grid and of each doubling but the last; as many as doublings from patch to ``stride``
    labels : names, background first. Of the target ``tissue``, some of the simulator's ``LABELS``; of ``mask``, any.
        What is left out becomes background
    values : of ``mask``: what each label is in the manifest's masks; by default 0, 1, 2, ...
    stride : grid voxels to a voxel of the answer along each axis
    skips : whether features of the voxels join at every size (as UNETR's skips, arXiv 2103.10504): a token stands for a
        whole patch, and what is smaller than a patch is not in it
    crop : patches along each axis of what a step of training sees of a series; 0: all of it. With ``skips`` only
    rarity : how much likelier a crop is around a label of fewer voxels; 0: around each label alike, 1: in inverse
        proportion. What is rare is learned sooner, at the cost of labels that lie elsewhere
    weights : of each label's voxels in the cross-entropy; none: all count alike
    margins : what each label's logit is lowered by when labels are chosen; none: by nothing. A label that counted more
        than its share in training is surer of itself than it should be. Not trained: chosen on validation series
    dropout : of whole channels of the token grid, in training only
    """

    channels: tuple[int, ...]
    labels: tuple[str, ...] = LABELS
    values: tuple[int, ...] = ()
    stride: int = 1
    skips: bool = False
    crop: int = 0
    rarity: float = 0.0
    weights: tuple[float, ...] = ()
    margins: tuple[float, ...] = ()
    dropout: float = 0.0

    def check(self) -> None:
        """Raise ValueError by key where a value cannot be used."""
        count = len(set(self.labels))
        if not 2 <= count == len(self.labels) <= MOST_LABELS or self.labels[0] != LABELS[0]:
            raise ValueError(
                f"labels is {str(list(self.labels))[:80]}, expected {LABELS[0]} and 1 to {MOST_LABELS - 1} other names"
            )
        whole = all(0 <= value < MOST_LABELS for value in self.values)
        if self.values and not (whole and len(set(self.values)) == len(self.values) == count):
            raise ValueError(
                f"values is {list(self.values)}, expected a number from 0 to 255 of its own for each label"
            )
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels is {list(self.channels)}, expected numbers above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected 0 or more and less than 1")
        if self.crop < 0 or (self.crop and not self.skips):
            raise ValueError(f"crop is {self.crop}, expected 0, or with skips the patches along each axis")
        if not 0 <= self.rarity <= MOST_RARITY or (self.rarity and not self.crop):
            raise ValueError(f"rarity is {self.rarity}, expected 0, or with crop up to {MOST_RARITY:g}")
        if self.weights and (len(self.weights) != count or min(self.weights) <= 0):
            raise ValueError(f"weights is {list(self.weights)}, expected a number above 0 for each label")
        if self.margins and len(self.margins) != count:
            raise ValueError(f"margins is {list(self.margins)}, expected a number for each label")


class Segmentation(Decoder):
    """``labels_map`` (B, D, H, W) uint8; ``raw`` is the logits (B, L, D, H, W). D, H, W: the grid's over ``stride``."""

    answer = "segmentation"
    settings = Settings
    curve = ("loss", "cross_entropy", "dice_loss")
    reads_tissue = True
    lookup: Tensor
    margins: Tensor
    weights: Tensor | None

    def __init__(self, target: str, settings: Settings, encoder: ViTConfig) -> None:
        super().__init__(target, settings, encoder)
        if target not in ("tissue", "mask"):
            raise ValueError(
                f"decoder.target is {target!r}, expected 'tissue' (the simulator's) or 'mask' (a manifest's)"
            )
        self.values = _values(target, settings)
        self.labels, self.stride = settings.labels, settings.stride
        self.of_masks = target == "mask"
        self.patch_grid, self.seen_shape = encoder.preprocessing.patch_grid, encoder.patch_shape
        self.crop, self.rarity = settings.crop, settings.rarity
        steps = doublings(encoder.patch_shape, settings.stride)
        if len(settings.channels) != len(steps):
            raise ValueError(
                f"decoder.options.channels is {list(settings.channels)}, expected {len(steps)} of them: patches of "
                f"{encoder.patch_shape} voxels are {len(steps)} doublings from stride {settings.stride}"
            )
        d, h, w = (p // settings.stride for p in encoder.patch_shape)
        self.patch_shape = (d, h, w)
        C, (first, *_) = encoder.width, settings.channels
        self.absent = nn.Parameter(torch.zeros(C))
        self.start_norm = nn.LayerNorm(C, eps=1e-6)
        self.reduce = nn.Linear(C, first)
        self.dropout = nn.Dropout3d(settings.dropout)
        self.blocks = nn.ModuleList([Block(width) for width in settings.channels])
        self.inputs = ("patch", "tokens", *(("volume", "window") if settings.skips else ()))
        td, th, tw = steps[-1]
        from_grid = (*steps[:-1], (td * settings.stride, th * settings.stride, tw * settings.stride))
        self.image = ImageBranch(settings.channels, from_grid) if settings.skips else None
        after = (*settings.channels[1:], len(self.labels))
        self.doublings = nn.ModuleList(
            [
                nn.ConvTranspose3d(before, width, step, stride=step)
                for before, width, step in zip(settings.channels, after, steps, strict=True)
            ]
        )
        table = torch.zeros(MOST_LABELS, dtype=torch.uint8)
        table[list(self.values)] = torch.arange(len(self.labels), dtype=torch.uint8)
        self.register_buffer("lookup", table, persistent=False)
        weights = torch.tensor(settings.weights) if settings.weights else None
        self.register_buffer("weights", weights, persistent=False)
        margins = torch.tensor(settings.margins or [0.0] * len(self.labels))
        self.register_buffer("margins", margins, persistent=False)

    def raw(self, patch: Tensor, tokens: Tensor, embedding: Tensor, image: Tensor | None = None) -> Tensor:  # noqa: ARG002 - the base's signature
        """Return the logits (B, L, D, H, W)."""
        return self.raw_from(self.features(patch, tokens, image), tokens, self.patches_of(image))

    def raw_from(self, features: Tensor, tokens: Tensor, patch_grid: tuple[int, int, int]) -> Tensor:
        """Return the logits from the ``features`` (B, C, d, h, w) of so many patches along each axis."""
        x = self.last(features)
        background = torch.zeros(1, len(self.labels), 1, 1, 1, dtype=x.dtype, device=x.device)
        background[:, 0] = BACKGROUND_LOGIT
        kept = self.kept(tokens, patch_grid, self.patch_shape)
        return torch.where(kept.unsqueeze(1), x, background)

    def finish(self, raw: Tensor) -> Tensor:
        """Return the label of each voxel, (B, D, H, W) uint8."""
        return (raw - self.margins.reshape(1, -1, 1, 1, 1)).argmax(dim=1).to(torch.uint8)

    def forward(self, patch: Tensor, tokens: Tensor, embedding: Tensor, image: Tensor | None = None) -> Tensor:  # noqa: ARG002 - as above
        """Answer as ``finish(raw(...))`` does, by a graph that is faster once exported."""
        return self.answer_from(self.features(patch, tokens, image), tokens)

    @property
    def last(self) -> nn.ConvTranspose3d:
        """What makes logits of the ``features``."""
        return cast(nn.ConvTranspose3d, self.doublings[-1])

    def answer_from(self, features: Tensor, tokens: Tensor) -> Tensor:
        """Return the label of each voxel from the ``features`` (B, C, d, h, w).

        The last doubling is a matrix of one voxel at a time. Labels are chosen before its results are put in their
        places: bytes are moved where logits were. Ties go to the first label, as in argmax, which engines compute
        slowly along any axis but the last. Labels are selected and never multiplied: OpenVINO 2026.4 computed a product
        of uint8 tensors in this graph wrongly.
        """
        last, (B, C, d, h, w) = self.last, features.shape
        (kd, kh, kw), L = last.kernel_size, len(self.labels)
        matrix = last.weight.permute(2, 3, 4, 1, 0).reshape(1, kd * kh * kw * L, C)
        bias = (cast(Tensor, last.bias) - self.margins).repeat(kd * kh * kw).unsqueeze(-1)
        of_label = (torch.matmul(matrix, features.flatten(2)) + bias).reshape(B, kd * kh * kw, L, d * h * w).unbind(2)
        best, label = of_label[0], torch.zeros_like(of_label[0], dtype=torch.uint8)
        for index, other in enumerate(of_label[1:], start=1):
            label = torch.where(other > best, torch.full((), index, dtype=torch.uint8, device=best.device), label)
            best = torch.maximum(best, other)
        pd, ph, pw = self.patch_shape
        kept = self.kept(tokens, self.patch_grid, (pd // kd, ph // kh, pw // kw)).reshape(B, 1, d * h * w)
        label = torch.where(kept, label, torch.zeros((), dtype=torch.uint8, device=best.device))
        label = label.reshape(B, kd, kh, kw, d, h, w).permute(0, 4, 1, 5, 2, 6, 3)
        return label.reshape(B, d * kd, h * kh, w * kw)

    def features(self, patch: Tensor, tokens: Tensor, image: Tensor | None) -> Tensor:
        """Return what the last doubling starts from, (B, C, d, h, w)."""
        B, _, C = patch.shape
        gd, gh, gw = self.patches_of(image)
        empty = self.absent.expand(B, gd * gh * gw, C)
        grid = empty.scatter(1, tokens.unsqueeze(-1).expand(-1, -1, C), patch)
        x = self.reduce(self.start_norm(grid)).transpose(1, 2).reshape(B, -1, gd, gh, gw)
        x = self.dropout(x)
        seen = [None] * len(self.blocks) if self.image is None else self.image(image)
        for place, (block, skip) in enumerate(zip(self.blocks, seen, strict=True)):
            x = self.doublings[place - 1](x) if place else x
            x = block(x if skip is None else x + skip)
        return x

    def patches_of(self, image: Tensor | None) -> tuple[int, int, int]:
        """Return the patches along each axis: those of the encoder's grid, or of the crop that ``image`` is."""
        if image is None:
            return self.patch_grid
        (D, H, W), (d, h, w) = image.shape[2:], self.seen_shape
        return D // d, H // h, W // w

    def kept(self, tokens: Tensor, patch_grid: tuple[int, int, int], patch_shape: tuple[int, int, int]) -> Tensor:
        """Return which voxels lie in one of the patches (B, K), of so many voxels each: (B, D, H, W) bool."""
        (gd, gh, gw), (pd, ph, pw) = patch_grid, patch_shape
        B = tokens.shape[0]
        empty = torch.zeros(1, gd * gh * gw, device=tokens.device).expand(B, -1)
        mask = empty.scatter(1, tokens, torch.ones_like(tokens, dtype=torch.float32)) > 0.5
        mask = mask.reshape(B, gd, 1, gh, 1, gw, 1).expand(-1, -1, pd, -1, ph, -1, pw)
        return mask.reshape(B, gd * pd, gh * ph, gw * pw)

    def knows(self, known: Known) -> bool:
        """Whether the source has a tissue map of this head."""
        return known.tissue and known.kind == "head"

    def check_maps(self, maps: Iterable[NDArray[np.uint8] | None]) -> None:
        """Raise ValueError where no mask has one of the labels; masks are looked at until all are found."""
        if not self.of_masks:
            return
        missing = dict(zip(self.values[1:], self.labels[1:], strict=True))
        for one in maps:
            missing = {value: name for value, name in missing.items() if one is None or not (one == value).any()}
            if not missing:
                return
        named = ", ".join(f"{name!r} (value {value})" for value, name in missing.items())
        raise ValueError(
            f"decoder.options.labels holds {named[:120]}, which no mask of the train split has on the encoder's grid; "
            "decoder.options.values says which value each label has"
        )

    def target(self, known: Known, tissue: NDArray[np.uint8] | None, tokens: NDArray[np.int64]) -> Rows:  # noqa: ARG002
        """Return ``map`` (D, H, W) uint8, indices in ``labels``; with a stride the middle voxel is its block's."""
        if tissue is None:
            raise ValueError("a segmentation's target needs the tissue map")
        s = self.stride
        return {"map": self.lookup.cpu().numpy().take(tissue[s // 2 :: s, s // 2 :: s, s // 2 :: s])}

    def narrow(self, batch: Batch, rngs: Sequence[np.random.Generator]) -> Batch:
        """Return a crop of each series."""
        if not self.crop:
            return batch
        tokens, labels, image = batch["tokens"], batch["target"]["map"], batch["image"]
        crops = [
            draw_crop(indices, one, self.patch_shape, self.patch_grid, self.crop, rng, self.rarity)
            for indices, one, rng in zip(tokens, labels, rngs, strict=True)
        ]
        return {
            **batch,
            "patch": torch.stack([patch[crop.rows] for crop, patch in zip(crops, batch["patch"], strict=True)]),
            "tokens": torch.stack([crop.tokens for crop in crops]),
            "image": torch.stack([crop.of(one, self.seen_shape) for crop, one in zip(crops, image, strict=True)]),
            "target": {
                "map": torch.stack([crop.of(one, self.patch_shape) for crop, one in zip(crops, labels, strict=True)])
            },
        }

    def losses(self, raw: Tensor, target: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
        """Return cross-entropy and soft Dice over the voxels of kept patches; ``loss`` is their sum.

        Dice is the mean over the labels that the series has, background left out (arXiv 1606.04797; the sum of both
        after nnU-Net, arXiv 1904.08128).
        """
        D, H, W = raw.shape[2:]
        d, h, w = self.patch_shape
        kept = self.kept(tokens, (D // d, H // h, W // w), self.patch_shape).float()  # the others are known already
        truth = target["map"].long()
        likelihood = raw.log_softmax(dim=1)
        each = F.nll_loss(likelihood, truth, weight=self.weights, reduction="none")
        entropy = ((each * kept).sum(dim=(1, 2, 3)) / kept.sum(dim=(1, 2, 3))).mean()
        right = torch.stack([truth == label for label in range(1, len(self.labels))], dim=1) * kept.unsqueeze(1)
        likely = likelihood[:, 1:].exp() * kept.unsqueeze(1)
        voxels = right.sum(dim=(2, 3, 4))  # (B, L - 1)
        overlap = (2 * (likely * right).sum(dim=(2, 3, 4)) + 1) / (likely.sum(dim=(2, 3, 4)) + voxels + 1)
        there = (voxels > 0).float()
        loss = ((1 - overlap) * there).sum(dim=1) / there.sum(dim=1).clamp_min(1)
        return {"loss": entropy + loss.mean(), "cross_entropy": entropy, "dice_loss": loss.mean()}

    def rows(self, raw: Tensor, target: Mapping[str, Tensor], tokens: Tensor) -> Rows:  # noqa: ARG002
        """Return ``counts`` (B, L, 3) over the whole grid, what lies in dropped patches included."""
        answers, truths = self.finish(raw).cpu().numpy(), target["map"].cpu().numpy()
        counts = [overlap_counts(t, a, len(self.labels)) for t, a in zip(truths, answers, strict=True)]
        return {"counts": np.stack(counts)}

    def figures(self, rows: Rows) -> dict[str, Any]:
        """Dice of each tissue: ``dice`` is the mean over series that have it, ``dice_pooled`` that of all voxels."""
        counts = rows["counts"]
        figures: dict[str, Any] = {"series": len(counts), "dice": {}, "dice_pooled": {}}
        pooled = dice(counts.sum(axis=0))
        for index, name in enumerate(self.labels[1:], start=1):
            having = counts[counts[:, index, 1] > 0, index]
            figures["dice"][name] = rounded(float(dice(having).mean())) if len(having) else None
            figures["dice_pooled"][name] = rounded(float(pooled[index]))
        return figures


def _values(target: str, settings: Settings) -> tuple[int, ...]:
    """Return what each label is in the source's map."""
    if target == "mask":
        return settings.values or tuple(range(len(settings.labels)))
    unknown = [name for name in settings.labels if name not in LABELS]
    if unknown or settings.values:
        raise ValueError(
            f"decoder.options.{'labels' if unknown else 'values'} does not fit the target 'tissue', whose labels are "
            f"{', '.join(LABELS)}; for a manifest's masks the target is 'mask'"
        )
    return tuple(LABELS.index(name) for name in settings.labels)
