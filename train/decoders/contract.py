"""What a decoder is: the base of every kind, and what a decoder may know of a series."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..model.vit import ViTConfig, normalise

REACH = 10.0  # what a segmentation sees: logarithms of odds beyond it are not told apart
Answer = Literal["classification", "regression", "segmentation", "localisation"]
Rows = Mapping[str, NDArray[Any]]
Batch = dict[str, Any]  # as `decipher_rt.train.decoders.stage.read_batch` makes it


@dataclass(frozen=True)
class Known:
    """What is known of one series, kept beside its tokens.

    Attributes
    ----------
    labels : by name, text or a number; what is not there is unknown
    boxes : (M, 6) float32, centre d, h, w and size d, h, w of each finding in grid voxels, largest first; None where
        nobody looked
    kind : one of the simulator's ``KINDS``; "head" for real series
    tissue : whether the source has a tissue map for it
    box_labels : of each box, empty where nobody said; none at all where nobody said of any
    """

    labels: Mapping[str, str | float]
    boxes: NDArray[np.float32] | None
    kind: str
    tissue: bool
    box_labels: tuple[str, ...] = ()


def label_text(label: str | float | None) -> str:
    """Return a label as a configuration writes it: a column of numbers holds 1.0 where the file said 1."""
    if isinstance(label, float):
        return str(int(label)) if label.is_integer() else repr(label)
    return label or ""


class Decoder(nn.Module, ABC):
    """Base of the kinds.

    ``forward`` is what the bundle's graph computes, with plain standard operators; ``raw`` is what the loss and the
    calibration see. Statistics, temperatures and thresholds are buffers, so that the weights file holds them.

    Attributes
    ----------
    answer : kind of answer, as the bundle's manifest calls it
    settings : dataclass of what a configuration may set under ``decoder.options``
    curve : losses that the curve of its training shows
    inputs : which of ``patch``, ``tokens``, ``embedding``, ``volume`` and ``window`` the answer depends on, in this
        order; the last two go together: they are the ``image``
    labels : of a classification or segmentation, in the order of the answer
    unit : of a regression
    stride : of a segmentation, grid voxels to a voxel of the answer along each axis
    threshold : of a localisation only, the score under which a box is left out
    reads_tissue : whether ``target`` needs the tissue map
    needs_mean_only : whether the mean of the patch tokens says as much to it as they do: it is then trained on that
    """

    answer: ClassVar[Answer]
    settings: ClassVar[type]
    curve: ClassVar[tuple[str, ...]] = ("loss",)
    reads_tissue: ClassVar[bool] = False
    inputs: tuple[str, ...] = ("patch", "tokens", "embedding")
    needs_mean_only: bool = False
    labels: tuple[str, ...] = ()
    unit: str = ""
    stride: int = 1

    @abstractmethod
    def __init__(self, target: str, settings: Any, encoder: ViTConfig) -> None:
        """Build for an encoder; ``target`` is the label (or lesion, or tissue) to answer for.

        Raises ValueError, naming the key under ``options``, where settings do not fit.
        """
        super().__init__()

    @property
    def reads_image(self) -> bool:
        """Whether the answer depends on voxels beside the tokens."""
        return "volume" in self.inputs

    @abstractmethod
    def raw(self, patch: Tensor, tokens: Tensor, embedding: Tensor, image: Tensor | None = None) -> Tensor:
        """Map (B, K, C) patch tokens, (B, K) indices and (B, E) embeddings to what losses are made of.

        ``image`` (B, 1, D, H, W) is the grid, -1..1 over its intensity window as the encoder sees it; ``None`` where
        ``reads_image`` is false.
        """

    @abstractmethod
    def finish(self, raw: Tensor) -> Tensor:
        """Turn ``raw`` into the answer of the bundle's contract."""

    def forward(self, patch: Tensor, tokens: Tensor, embedding: Tensor, image: Tensor | None = None) -> Tensor:
        """Answer as the graph does: ``probabilities``, ``value``, ``labels_map`` or ``boxes``."""
        return self.finish(self.raw(patch, tokens, embedding, image))

    @abstractmethod
    def knows(self, known: Known) -> bool:
        """Whether the truth of a series is known."""

    def check_truth(self, known: Sequence[Known]) -> None:
        """Raise ValueError, naming the key, where series whose truth is known cannot teach what the options ask for."""

    def check_maps(self, maps: Iterable[NDArray[np.uint8] | None]) -> None:
        """Raise ValueError, naming the key, where the maps of those series lack what the options ask for."""

    @abstractmethod
    def target(self, known: Known, tissue: NDArray[np.uint8] | None, tokens: NDArray[np.int64]) -> Rows:
        """Return the truth as arrays of a fixed shape, or of K entries in the order of ``tokens``."""

    def narrow(self, batch: Batch, rngs: Sequence[np.random.Generator]) -> Batch:  # noqa: ARG002 - a kind may draw
        """Return what a step of training sees of a batch of whole series; each series has its own generator."""
        return batch

    @abstractmethod
    def losses(self, raw: Tensor, target: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
        """Return the losses, the one to minimise as ``loss``; each a mean over the batch of one number a series."""

    @abstractmethod
    def rows(self, raw: Tensor, target: Mapping[str, Tensor], tokens: Tensor) -> Rows:
        """Return what the figures need of each series, first axis B."""

    @abstractmethod
    def figures(self, rows: Rows) -> dict[str, Any]:
        """Return the figures of a split from its rows, as plain JSON types."""

    def start(self, pooled: Mapping[str, NDArray[Any]], known: Sequence[Known]) -> None:
        """Set statistics before training, from the training split.

        Parameters
        ----------
        pooled : mapping
            ``mean`` (N, C) of each series' patch tokens, ``embedding`` (N, E), ``count`` (N,) their number K.
        known : sequence
            Of the same N series; ``knows`` is true of each.
        """

    def calibrate(self, rows: Rows) -> None:
        """Set temperature or threshold after training, from the rows of the validation split."""


def seen_as_encoder(volume: Tensor, window: Tensor) -> Tensor:
    """Return the image (B, 1, D, H, W) of a volume of that shape and its window (B, 2): -1..1."""
    return normalise(volume.flatten(2), window).reshape(volume.shape)
