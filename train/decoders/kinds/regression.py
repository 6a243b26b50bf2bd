"""Regression: a number with a unit, such as a volume in ml or an age in years."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from ...metrics import explained, mean_absolute_error, rounded
from ...model.vit import ViTConfig
from ..contract import Decoder, Known, Rows
from ..pooling import AttentionPool, LinearPool, TokenPool


@dataclass(frozen=True)
class Settings:
    """Options of a regression.

    Attributes
    ----------
    unit : of the value, e.g. "ml"
    pool : ``linear`` probe, ``attention`` pooling, or ``sum``: each patch adds its share, as of a volume
    heads, dropout : of attention pooling
    hidden : channels of ``sum``
    """

    unit: str
    pool: Literal["linear", "attention", "sum"] = "linear"
    heads: int = 4
    dropout: float = 0.0
    hidden: int = 128

    def check(self) -> None:
        """Raise ValueError by key where a value cannot be used."""
        if self.hidden < 1:
            raise ValueError(f"hidden is {self.hidden}, expected 1 or more")
        if not self.unit:
            raise ValueError("unit is '', expected the unit of the value")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected 0 or more and less than 1")


class Regression(Decoder):
    """``value`` (B, 1) in ``unit``; ``raw`` is the value standardised by the training series' mean and spread."""

    answer = "regression"
    settings = Settings
    mean: Tensor
    spread: Tensor

    def __init__(self, target: str, settings: Settings, encoder: ViTConfig) -> None:
        super().__init__(target, settings, encoder)
        self.name, self.unit = target, settings.unit
        self.pool: LinearPool | AttentionPool | TokenPool
        if settings.pool == "linear":
            self.pool = LinearPool(encoder, 1)
        elif settings.pool == "attention":
            self.pool = AttentionPool(encoder, 1, heads=settings.heads, dropout=settings.dropout)
        else:
            self.pool = TokenPool(encoder, how="sum", hidden=settings.hidden)
        self.inputs, self.needs_mean_only = self.pool.inputs, settings.pool == "linear"
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def raw(self, patch: Tensor, tokens: Tensor, embedding: Tensor, image: Tensor | None = None) -> Tensor:  # noqa: ARG002 - the base's signature
        """Return the standardised value (B, 1)."""
        return self.pool(patch, embedding) if isinstance(self.pool, LinearPool) else self.pool(patch)

    def finish(self, raw: Tensor) -> Tensor:
        """Return the value (B, 1) in ``unit``."""
        return raw * self.spread + self.mean

    def knows(self, known: Known) -> bool:
        """Whether the label is there and a finite number."""
        value = known.labels.get(self.name)
        return isinstance(value, int | float) and bool(np.isfinite(value))

    def target(self, known: Known, tissue: NDArray[np.uint8] | None, tokens: NDArray[np.int64]) -> Rows:  # noqa: ARG002
        """Return ``value`` in ``unit``."""
        return {"value": np.array(float(known.labels[self.name]), np.float32)}

    def losses(self, raw: Tensor, target: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the Huber loss of the standardised value: a few odd series must not rule the fit."""
        wanted = (target["value"] - self.mean) / self.spread
        return {"loss": F.smooth_l1_loss(raw.squeeze(-1), wanted, beta=0.5)}

    def rows(self, raw: Tensor, target: Mapping[str, Tensor], tokens: Tensor) -> Rows:  # noqa: ARG002
        """Return ``value`` and ``truth`` in ``unit``."""
        value = self.finish(raw).squeeze(-1)
        return {"value": value.float().cpu().numpy(), "truth": target["value"].cpu().numpy()}

    def start(self, pooled: Mapping[str, NDArray[Any]], known: Sequence[Known]) -> None:
        """Set the target's mean and spread, and the pooling's statistics."""
        values = np.array([float(one.labels[self.name]) for one in known])
        self.mean.fill_(float(values.mean()))
        self.spread.fill_(float(values.std()) or 1.0)
        self.pool.start(pooled)

    def figures(self, rows: Rows) -> dict[str, Any]:
        """Mean absolute error and bias in ``unit``, R squared, and the error of always answering the training mean."""
        value, truth = rows["value"].astype(np.float64), rows["truth"].astype(np.float64)
        always = np.full(len(truth), float(self.mean))
        return {
            "series": len(truth),
            "unit": self.unit,
            "mae": rounded(mean_absolute_error(truth, value)),
            "mae_of_mean": rounded(mean_absolute_error(truth, always)),
            "bias": rounded(float((value - truth).mean())) if len(truth) else None,
            "r_squared": rounded(explained(truth, value)),
        }
