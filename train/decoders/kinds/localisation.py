"""Localisation: boxes around lesions. Every token says whether it lies in one and where that box is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from ...metrics import auroc, box_iou, centre_error_mm, rounded
from ...model.vit import ViTConfig, take_rows
from ..boxes import generalised_iou, overlap, patch_centres
from ..contract import Decoder, Known, Rows
from ..pooling import Odds

ANY = "lesion"  # the target that every box is of, whatever its label: the simulator's say which kind of lesion it is
TRUE_BOXES = 8  # of a series that the figures look at, the largest first
CLEAR = 0.5  # a token is a positive when it holds at least this share of what the token that holds most of the box does
SUPPRESSED = -30.0  # added to the logit of a token beside a stronger one, and that of a place without a token
SIZE_RANGE = 4.0  # of the log size in patches: boxes of a 55th to 55 patches


@dataclass(frozen=True)
class Settings:
    """Options of a localisation.

    Attributes
    ----------
    boxes : M, of the answer, best first
    hidden : channels of the network that each token goes through
    dropout : in it, in training only
    positive_weight : of a token with a lesion: about one in fifty has one
    odds : upon a segmentation: whether a token's logit starts as the odds in its patch of the last of the
        segmentation's ``labels``: put the rarest there
    """

    boxes: int = 1
    hidden: int = 192
    dropout: float = 0.0
    positive_weight: float = 8.0
    odds: bool = False

    def check(self) -> None:
        """Raise ValueError by key where a value cannot be used."""
        for name in ("boxes", "hidden", "positive_weight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected 0 or more and less than 1")


class Localisation(Decoder):
    """``boxes`` (B, M, 7): score, centre d, h, w, size d, h, w in grid voxels, best first.

    ``raw`` is (B, K, 7): logit of presence, then centre and size of each token's box. Anchor-free as FCOS (arXiv
    1904.01355) and, for more boxes than one, only tokens stronger than their neighbours count (arXiv 1904.07850).
    """

    answer = "localisation"
    settings = Settings
    curve = ("loss", "token", "presence", "l1", "giou")
    inputs = ("patch", "tokens")
    platt: Tensor
    threshold: Tensor
    centres: Tensor
    patch: Tensor

    def __init__(self, target: str, settings: Settings, encoder: ViTConfig) -> None:
        super().__init__(target, settings, encoder)
        self.name, self.boxes, self.spacing_mm = target, settings.boxes, encoder.spacing_mm
        self.patch_grid = encoder.preprocessing.patch_grid
        if self.boxes > min(encoder.token_buckets):
            raise ValueError(f"decoder.options.boxes is {self.boxes}, expected at most the fewest tokens of a series")
        self.positive_weight = settings.positive_weight
        last = nn.Linear(settings.hidden, 7)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        # Few tokens hold a lesion: at even odds the pooled logit of all would say "present" of everything.
        nn.init.constant_(last.bias[:1], -5.0)
        self.network = nn.Sequential(
            nn.LayerNorm(encoder.width, eps=1e-6),
            nn.Linear(encoder.width, settings.hidden),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            last,
        )
        self.odds = Odds() if settings.odds else None
        centres = patch_centres(self.patch_grid, encoder.patch_shape)
        self.register_buffer("centres", torch.from_numpy(centres), persistent=False)
        self.register_buffer("patch", torch.tensor(encoder.patch_shape, dtype=torch.float32), persistent=False)
        self.register_buffer("platt", torch.tensor([1.0, 0.0]))
        self.register_buffer("threshold", torch.tensor(0.5))

    def raw(self, patch: Tensor, tokens: Tensor, embedding: Tensor, image: Tensor | None = None) -> Tensor:  # noqa: ARG002 - the base's signature
        """Return logit, centre and size of each token's box, (B, K, 7)."""
        x = self.network(patch).float()
        centre = take_rows(self.centres, tokens) + x[..., 1:4] * self.patch
        size = x[..., 4:].clamp(-SIZE_RANGE, SIZE_RANGE).exp() * self.patch
        logit = x[..., :1] if self.odds is None else x[..., :1] + self.odds(patch)
        return torch.cat([logit, centre, size], dim=-1)

    def finish(self, raw: Tensor) -> Tensor:
        """Return the boxes of the strongest tokens, (B, M, 7), whatever their score."""
        best = raw[..., 0].topk(self.boxes, dim=1).indices
        chosen = raw.gather(1, best.unsqueeze(-1).expand(-1, -1, 7))
        score = torch.sigmoid(self.platt[0] * chosen[..., :1] + self.platt[1])
        return torch.cat([score, chosen[..., 1:]], dim=-1)

    def forward(self, patch: Tensor, tokens: Tensor, embedding: Tensor, image: Tensor | None = None) -> Tensor:
        """Return ``boxes`` (B, M, 7)."""
        raw = self.raw(patch, tokens, embedding, image)
        return self.finish(self.suppress(raw, tokens) if self.boxes > 1 else raw)

    def suppress(self, raw: Tensor, tokens: Tensor) -> Tensor:
        """Take out tokens that lie beside a stronger one, so that one lesion gives one box."""
        B = raw.shape[0]
        gd, gh, gw = self.patch_grid
        logit = raw[..., 0]
        empty = torch.full((1, gd * gh * gw), SUPPRESSED, device=raw.device).expand(B, -1)
        grid = empty.scatter(1, tokens, logit).reshape(B, 1, gd, gh, gw)
        around = F.max_pool3d(grid, 3, stride=1, padding=1).reshape(B, -1).gather(1, tokens)
        logit = torch.where(logit >= around, logit, logit + SUPPRESSED)
        return torch.cat([logit.unsqueeze(-1), raw[..., 1:]], dim=-1)

    def knows(self, known: Known) -> bool:
        """Whether somebody looked for findings in this head."""
        return known.boxes is not None and known.kind == "head"

    def check_truth(self, known: Sequence[Known]) -> None:
        """Raise ValueError where no box is of the target."""
        if any(len(self.wanted(one)) for one in known):
            return
        labels = sorted({label for one in known for label in one.box_labels if label})
        if not labels:
            raise ValueError("decoder.target: no series of the train split has a box; give some in the column boxes")
        raise ValueError(
            f"decoder.target is {self.name!r}, which no box of the train split has as its label; those that there "
            f"are: {', '.join(labels)[:80]}; {ANY!r} takes them all"
        )

    def wanted(self, known: Known) -> NDArray[np.float32]:
        """Return the boxes of the target, (M, 6): those with its label, and those without any."""
        if known.boxes is None:
            return np.zeros((0, 6), np.float32)
        if self.name == ANY or not known.box_labels:
            return known.boxes
        return known.boxes[[label in ("", self.name) for label in known.box_labels]]

    def target(self, known: Known, tissue: NDArray[np.uint8] | None, tokens: NDArray[np.int64]) -> Rows:  # noqa: ARG002
        """Return ``positive`` (K,) of each token, -1 where not clear, and its ``box`` (K, 6); ``truth`` (8, 6)."""
        boxes = self.wanted(known)
        centres = self.centres.cpu().numpy()[tokens]
        patch = tuple(int(p) for p in self.patch.tolist())
        positive = np.zeros(len(tokens), np.float32)
        box = np.ones((len(tokens), 6), np.float32)
        most = np.zeros(len(tokens))
        for one in boxes:
            inside = overlap(centres, patch, one)
            nearer = inside > most
            clear = nearer & (inside >= CLEAR * inside.max())
            positive[(inside > 0) & (positive == 0)] = -1
            positive[clear] = 1
            box[clear] = one
            most = np.where(clear, inside, most)
        truth = np.zeros((TRUE_BOXES, 6), np.float32)
        count = min(TRUE_BOXES, len(boxes))
        truth[:count] = boxes[:count]
        return {"positive": positive, "box": box, "truth": truth}

    def losses(self, raw: Tensor, target: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Return ``token`` and ``presence`` (binary cross-entropy of tokens, and of the volume), ``l1`` and ``giou``.

        ``l1`` is in patches for the centre and in logarithms for the size, so that small lesions count as large ones
        do.
        """
        positive, logit = target["positive"], raw[..., 0]
        known, hit = (positive >= 0).float(), (positive > 0).float()
        weight = logit.new_tensor(self.positive_weight)
        each = F.binary_cross_entropy_with_logits(logit, hit, pos_weight=weight, reduction="none")
        token = ((each * known).sum(dim=1) / known.sum(dim=1).clamp_min(1)).mean()
        present = (target["truth"][:, 0, 3:].prod(dim=-1) > 0).float()
        presence = F.binary_cross_entropy_with_logits(torch.logsumexp(logit, dim=1), present)
        wanted = target["box"]
        offset = ((raw[..., 1:4] - wanted[..., :3]) / self.patch).abs().sum(dim=-1)
        ratio = (raw[..., 4:].log() - wanted[..., 3:].log()).abs().sum(dim=-1)
        giou = 1 - generalised_iou(raw[..., 1:], wanted)
        hits = hit.sum(dim=1).clamp_min(1)
        l1 = (((offset + ratio) * hit).sum(dim=1) / hits).mean()
        giou = ((giou * hit).sum(dim=1) / hits).mean()
        return {"loss": token + presence + l1 + giou, "token": token, "presence": presence, "l1": l1, "giou": giou}

    def rows(self, raw: Tensor, target: Mapping[str, Tensor], tokens: Tensor) -> Rows:
        """Return ``logit`` of the best box, ``boxes`` (M, 7) and ``truth`` (8, 6)."""
        boxes = self.finish(self.suppress(raw, tokens) if self.boxes > 1 else raw)
        best = raw[..., 0].amax(dim=1)
        truth = target["truth"]
        return {"logit": best.cpu().numpy(), "boxes": boxes.float().cpu().numpy(), "truth": truth.cpu().numpy()}

    def calibrate(self, rows: Rows) -> None:
        """Make the best score the probability of a lesion (Platt), and set the threshold of most balanced accuracy."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_curve

        present = rows["truth"][:, 0, 3:].prod(axis=-1) > 0
        if not 0 < present.mean() < 1:
            return
        logit = rows["logit"].astype(np.float64)
        fit = LogisticRegression().fit(logit[:, None], present)
        # A negative slope would turn the order of boxes around; it means that nothing was learned.
        slope = max(float(fit.coef_[0, 0]), 1e-3)
        self.platt.copy_(torch.tensor([slope, float(fit.intercept_[0])]))
        false, true, edges = roc_curve(present, logit)
        best = int(np.argmax(true - false))
        # Between the last logit that counts and the next, where there is one.
        below = logit[logit < edges[best]]
        edge = (edges[best] + below.max()) / 2 if len(below) and np.isfinite(edges[best]) else float(np.median(logit))
        self.threshold.fill_(float(1 / (1 + np.exp(-(slope * edge + fit.intercept_[0])))))

    def figures(self, rows: Rows) -> dict[str, Any]:
        """Presence, and where there is a lesion the best box against the nearest true one."""
        truth, best = rows["truth"], rows["boxes"][:, 0]
        there = truth[..., 3:].prod(axis=-1) > 0  # (N, 8)
        present, said = there[:, 0], best[:, 0] >= float(self.threshold)
        distance = np.where(there, centre_error_mm(best[:, None, 1:], truth, self.spacing_mm), np.inf)
        rows_, nearest = np.arange(len(truth)), distance.argmin(axis=1)
        error, iou = distance[rows_, nearest][present], box_iou(best[:, 1:], truth[rows_, nearest])[present]
        found = said[present]
        return {
            "series": len(truth),
            "with_lesion": int(present.sum()),
            "presence_auroc": rounded(auroc(present, rows["logit"])) if len(truth) else None,
            "sensitivity": rounded(float(found.mean())) if present.any() else None,
            "specificity": rounded(float((~said[~present]).mean())) if (~present).any() else None,
            "centre_error_mm": {
                "median": rounded(float(np.median(error))) if len(error) else None,
                "mean": rounded(float(error.mean())) if len(error) else None,
            },
            "iou": rounded(float(iou.mean())) if len(iou) else None,
        }
