"""Classification: one of several labels of a series, with calibrated probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from ...calibration import best_temperature
from ...metrics import accuracy, auroc, calibration_error, rounded
from ...model.vit import ViTConfig
from ..contract import Decoder, Known, Rows, label_text
from ..pooling import AttentionPool, LinearPool, TokenPool


@dataclass(frozen=True)
class Settings:
    """Options of a classification.

    Attributes
    ----------
    labels : in the order of the answer; of two, the second is the positive
    pool : ``linear`` probe, ``attention`` pooling, or ``max``: the strongest patch decides (two labels)
    heads, dropout : of attention pooling
    hidden : channels of ``max``
    odds : of ``max`` upon a segmentation: whether a patch's logit starts as the odds in it of the last of the
        segmentation's ``labels``: put the rarest there
    smoothing : label smoothing of the loss
    """

    labels: tuple[str, ...]
    pool: Literal["linear", "attention", "max"] = "linear"
    heads: int = 4
    dropout: float = 0.0
    hidden: int = 128
    odds: bool = False
    smoothing: float = 0.02

    def check(self) -> None:
        """Raise ValueError by key where a value cannot be used."""
        if self.hidden < 1:
            raise ValueError(f"hidden is {self.hidden}, expected 1 or more")
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels is {list(self.labels)}, expected two or more different ones")
        if self.pool == "max" and len(self.labels) != 2:
            raise ValueError(f"pool is 'max', expected 'linear' or 'attention' for {len(self.labels)} labels")
        if self.odds and self.pool != "max":
            raise ValueError(f"odds is true, expected false for the pool {self.pool!r}")
        for name in ("dropout", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more and less than 1")


class Classification(Decoder):
    """``probabilities`` (B, L) in the order of ``labels``; ``raw`` is the logits (B, L) at temperature 1."""

    answer = "classification"
    settings = Settings
    temperature: Tensor

    def __init__(self, target: str, settings: Settings, encoder: ViTConfig) -> None:
        super().__init__(target, settings, encoder)
        self.name, self.labels, self.smoothing = target, settings.labels, settings.smoothing
        self.pool: LinearPool | AttentionPool | TokenPool
        if settings.pool == "linear":
            self.pool = LinearPool(encoder, len(self.labels))
        elif settings.pool == "attention":
            self.pool = AttentionPool(encoder, len(self.labels), heads=settings.heads, dropout=settings.dropout)
        else:
            self.pool = TokenPool(encoder, how="max", hidden=settings.hidden, odds=settings.odds)
        self.inputs, self.needs_mean_only = self.pool.inputs, settings.pool == "linear"
        self.register_buffer("temperature", torch.ones(()))

    def raw(self, patch: Tensor, tokens: Tensor, embedding: Tensor, image: Tensor | None = None) -> Tensor:  # noqa: ARG002 - the base's signature
        """Return the logits (B, L)."""
        if isinstance(self.pool, LinearPool):
            return self.pool(patch, embedding)
        logits = self.pool(patch)
        # One number for two labels: the odds of the second.
        return torch.cat([-logits / 2, logits / 2], dim=-1) if isinstance(self.pool, TokenPool) else logits

    def finish(self, raw: Tensor) -> Tensor:
        """Return the probabilities (B, L)."""
        return (raw / self.temperature).softmax(dim=-1)

    def knows(self, known: Known) -> bool:
        """Whether the series has one of the labels."""
        return label_text(known.labels.get(self.name)) in self.labels

    def target(self, known: Known, tissue: NDArray[np.uint8] | None, tokens: NDArray[np.int64]) -> Rows:  # noqa: ARG002
        """Return ``label``, an index."""
        return {"label": np.array(self.labels.index(label_text(known.labels[self.name])), np.int64)}

    def losses(self, raw: Tensor, target: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the cross-entropy."""
        return {"loss": F.cross_entropy(raw, target["label"], label_smoothing=self.smoothing)}

    def rows(self, raw: Tensor, target: Mapping[str, Tensor], tokens: Tensor) -> Rows:  # noqa: ARG002
        """Return ``logits`` and ``label``."""
        return {"logits": raw.float().cpu().numpy(), "label": target["label"].cpu().numpy()}

    def check_truth(self, known: Sequence[Known]) -> None:
        """Raise ValueError where no series has one of the labels."""
        there = {label_text(one.labels[self.name]) for one in known}
        if without := [label for label in self.labels if label not in there]:
            raise ValueError(
                f"decoder.options.labels holds {', '.join(map(repr, without))[:80]}, which no series of the train "
                f"split has; those that it has of them: {', '.join(sorted(there))[:80]}"
            )

    def start(self, pooled: Mapping[str, NDArray[Any]], known: Sequence[Known]) -> None:  # noqa: ARG002
        """Set the pooling's statistics."""
        self.pool.start(pooled)

    def calibrate(self, rows: Rows) -> None:
        """Fit the temperature (arXiv 1706.04599)."""
        logits, label = torch.from_numpy(rows["logits"]), torch.from_numpy(rows["label"])
        self.temperature.fill_(best_temperature(lambda t: F.cross_entropy(logits / t, label)))

    def figures(self, rows: Rows) -> dict[str, Any]:
        """Accuracy, area under the ROC curve, calibration error, confusion (rows truth, columns answer)."""
        from sklearn.metrics import confusion_matrix

        with torch.no_grad():
            logits = torch.from_numpy(rows["logits"])
            probabilities = (logits / self.temperature.cpu()).softmax(dim=-1).double().numpy()
        label, answer = rows["label"], probabilities.argmax(axis=1)
        figures: dict[str, Any] = {
            "series": len(label),
            "accuracy": rounded(accuracy(label, probabilities)),
            "auroc": rounded(auroc(label, probabilities)),
            "calibration_error": rounded(calibration_error(probabilities.max(axis=1), answer == label)),
            "confusion": confusion_matrix(label, answer, labels=range(len(self.labels))).tolist(),
        }
        if len(self.labels) == 2:
            for name, index in (("sensitivity", 1), ("specificity", 0)):
                of = label == index
                figures[name] = rounded(float((answer[of] == index).mean())) if of.any() else None
        return figures
