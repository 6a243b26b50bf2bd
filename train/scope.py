"""The scope's statistics, from training series, and its thresholds, from validation series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .model.scope import Scope, ScopeMethod
from .progress import Progress


@dataclass(frozen=True)
class ScopeConfig:
    """When a model answers.

    Attributes
    ----------
    method : the distance to what was trained on, see ``Scope``
    label : whose values the classes of "mahalanobis" are; one class of all heads where no more than ``neighbours`` have
        it, or no two the same
    neighbours, among : of "nearest": k, and how many training heads they are sought among
    others : simulated series that are no heads, made beside the source's to show what to refuse; a quarter as many, of
        the test split, are what the share refused is measured on
    false_refusals : share of validation heads that may be refused
    body_parts : values of Body Part Examined (0018,0015) that a series may have, upper case; none: any
    groups, outliers : what the fit found: the number of classes or heads; whether there was anything else than heads
    """

    method: ScopeMethod = "mahalanobis"
    label: str = "sequence"
    neighbours: int = 10
    among: int = 512
    others: int = 0
    false_refusals: float = 0.01
    body_parts: tuple[str, ...] = ()
    groups: int = 0
    outliers: bool = False

    def check(self, key: str = "scope") -> None:
        """Raise ValueError by key where a value cannot be used."""
        if not 0 < self.false_refusals < 0.5:
            raise ValueError(f"{key}.false_refusals is {self.false_refusals}, expected more than 0 and less than 0.5")
        if any(not part or part != part.upper().strip() for part in self.body_parts):
            raise ValueError(f"{key}.body_parts is {list(self.body_parts)}, expected words in upper case")
        if self.others < 0:
            raise ValueError(f"{key}.others is {self.others}, expected 0 or more")
        if not 1 <= self.neighbours <= self.among:
            raise ValueError(f"{key}.neighbours is {self.neighbours}, expected 1 to {key}.among ({self.among})")


def build_scope(config: ScopeConfig, embedding_size: int) -> Scope:
    """Return a scope of the shape that a fit found."""
    return Scope(
        embedding_size,
        config.groups,
        method=config.method,
        neighbours=config.neighbours,
        outliers=config.outliers,
    )


@dataclass(frozen=True)
class Seen:
    """Embeddings (N, E) of a split, whether each is a head, and the class of each (text, or None where unknown)."""

    embedding: NDArray[np.float32]
    head: NDArray[np.bool_]
    label: Sequence[str | None]

    def __add__(self, other: Seen) -> Seen:
        """Return both, one after the other."""
        embedding = np.concatenate([self.embedding, other.embedding])
        return Seen(embedding, np.concatenate([self.head, other.head]), [*self.label, *other.label])


def fit_scope(config: ScopeConfig, train: Seen, validation: Seen, progress: Progress) -> tuple[ScopeConfig, Scope]:
    """Fit a scope to a frozen encoder's embeddings.

    Returns
    -------
    ScopeConfig
        With ``groups`` and ``outliers`` as found.
    Scope

    Raises
    ------
    ValueError
        If there are too few heads to fit a distribution to, or to fix a threshold on.
    """
    heads, others = train.embedding[train.head], train.embedding[~train.head]
    inside = validation.embedding[validation.head]
    least = config.neighbours + 1
    if len(heads) < least or len(inside) < least:
        raise ValueError(
            f"scope: {len(heads)} training and {len(inside)} validation heads are too few, expected {least} or more of "
            "each"
        )
    if config.method == "nearest":
        references, groups = heads[: config.among], min(config.among, len(heads))
        classes = np.zeros(0, int)
    else:
        labels = [label for label, head in zip(train.label, train.head, strict=True) if head]
        known, classes = _classes(config, labels, least, progress)
        references, groups = heads[known], int(classes.max()) + 1
    found = replace(config, groups=groups, outliers=len(others) >= least)
    scope = build_scope(found, heads.shape[1])
    if config.method == "nearest":
        scope.means.copy_(torch.from_numpy(references))
    else:
        _set_means(scope, references, classes, groups)
    if found.outliers:
        _fit_headness(scope, train)
    _set_edges(scope, inside, config.false_refusals)
    return found, scope.eval()


def _classes(
    config: ScopeConfig, labels: Sequence[str | None], least: int, progress: Progress
) -> tuple[NDArray[np.bool_], NDArray[np.integer]]:
    """Return which heads have a known class and the class of each of these, or one class of all where those are few.

    A class of one head has no spread of its own, but its mean still counts.
    """
    known = np.array([label is not None for label in labels])
    names, classes = np.unique([label for label in labels if label is not None], return_inverse=True)
    if len(classes) >= least and len(names) < len(classes):
        return known, classes
    if len(names):
        progress.warn(
            f"scope.label is {config.label!r}, which {len(classes)} of {len(labels)} training heads have, with "
            f"{len(names)} values: too few to tell classes by, and all heads are one"
        )
    return np.ones(len(labels), bool), np.zeros(len(labels), int)


def _set_means(scope: Scope, embedding: NDArray[np.float32], classes: NDArray[np.integer], groups: int) -> None:
    """Set class means and the inverse root of the covariance that the classes share."""
    embedding = embedding.astype(np.float64)
    means = np.stack([embedding[classes == c].mean(axis=0) for c in range(groups)])
    scope.means.copy_(torch.from_numpy(means))
    if scope.whitening is not None:
        scope.whitening.copy_(torch.from_numpy(_whitening(embedding - means[classes])))


@torch.no_grad()
def _set_edges(scope: Scope, inside: NDArray[np.float32], false_refusals: float) -> None:
    """Set the margins from the embeddings (N, E) of validation heads.

    An edge (margin 0, score 0) is where ``false_refusals`` of them lie beyond; the median head has margin 1.
    """
    heads = torch.from_numpy(inside)
    scope.distance_edge.copy_(_edge(scope.distance(heads), 1 - false_refusals))
    if scope.headness is not None:
        scope.logit_edge.copy_(_edge(scope.headness(heads), false_refusals))
    scope.edge.zero_()
    scope.edge.copy_(scope(heads).quantile(false_refusals))


def _fit_headness(scope: Scope, seen: Seen) -> None:
    """Fit the outlier-exposure logit, a linear one, to embeddings that are not trained any further."""
    from sklearn.linear_model import LogisticRegression

    gain = float(scope.headness.gain.detach())
    fit = LogisticRegression(class_weight="balanced", max_iter=2000).fit(seen.embedding * gain, seen.head)
    with torch.no_grad():
        scope.headness.linear.weight.copy_(torch.from_numpy(fit.coef_))
        scope.headness.linear.bias.copy_(torch.from_numpy(fit.intercept_))


def _whitening(offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return W with W W^T the inverse of the shrunk covariance."""
    from sklearn.covariance import LedoitWolf

    values, vectors = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(offsets).covariance_)
    return np.asarray(vectors / np.sqrt(np.maximum(values, values.max() * 1e-6)))


def _edge(values: Tensor, quantile: float) -> Tensor:
    return torch.stack([values.quantile(quantile), values.median()])
