"""What segmentation and localisation heads found, as it lies on the planes of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.boxes import Box
from decipher_rt.dicom.geometry import AxisOrder
from decipher_rt.label_map import LabelMap, on_source
from decipher_rt.result import HeadAnswer
from decipher_rt.volume import Volume

# Okabe and Ito's colours, told apart with any colour vision; a ninth label begins again.
PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7", "#f0e442", "#0072b2", "#999999")
OPACITY = 0.45
BOX_COLOUR = "#ff5d5d"

# (top, left, bottom, right) as fractions of a view
Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class Findings:
    """What is drawn over the planes: the first segmentation, and every box."""

    label_map: LabelMap | None = None
    boxes: tuple[Box, ...] = ()


NOTHING = Findings()


def findings(heads: Mapping[str, HeadAnswer]) -> Findings:
    """Collect what the heads of a result found."""
    drawn = drawn_segmentation(heads)
    boxes = [box for answer in heads.values() for box in answer.boxes]
    return Findings(None if drawn is None else heads[drawn].label_map, tuple(sorted(boxes, key=lambda box: -box.score)))


def drawn_segmentation(heads: Mapping[str, HeadAnswer]) -> str | None:
    """Return the name of the head whose map is drawn: maps over one another could not be told apart."""
    return next((name for name, answer in heads.items() if answer.label_map is not None), None)


def colour(value: int) -> str:
    """Return the colour of a label, 1 or more."""
    return PALETTE[(value - 1) % len(PALETTE)]


@dataclass(frozen=True)
class PictureFrame:
    """A volume's axes as the picture has them: rows run down and columns to the right, from S, A and R.

    Index 0 along each of the three axes is the most superior, anterior, right one.
    """

    order: AxisOrder
    shape: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Voxels along S, A, R."""
        s, a, r = (int(self.shape[axis]) for axis in self.order.permutation)
        return s, a, r

    def apply(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """Return a view of an array (D, H, W) with the picture's axes."""
        return self.order.apply(voxels)[::-1, ::-1, ::-1]

    def index(self, axis: int, position: float) -> float:
        """Return where an index along the volume's own axis lies along the picture's ``axis``."""
        size = self.shape[self.order.permutation[axis]]
        return position if self.order.flips[axis] else size - 1 - position

    def plane(self, voxels: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
        """Return the plane of an array (D, H, W) at an index along the picture's ``axis``."""
        plane: NDArray[Any] = np.take(self.apply(voxels), index, axis)
        return plane


def labels_of_plane(
    label_map: LabelMap, volume: Volume, frame: PictureFrame, axis: int, index: int
) -> NDArray[np.uint8]:
    """Return the labels of one plane of the picture, resampled for that plane only."""
    planes: list[int | None] = [None, None, None]
    planes[frame.order.permutation[axis]] = round(frame.index(axis, index))
    labels = on_source(label_map, volume.affine_lps_mm, volume.voxels.shape, planes)
    plane: NDArray[np.uint8] = np.take(frame.apply(labels), 0, axis)
    return plane


def center_and_reach(box: Box, volume: Volume, frame: PictureFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a box's centre and half its size along the picture's axes (S, A, R), in voxels."""
    center = (np.linalg.inv(volume.affine_lps_mm) @ np.append(box.center_lps_mm, 1.0))[:3]
    spacing = np.linalg.norm(volume.affine_lps_mm[:3, :3], axis=0)
    along = np.abs(np.asarray(box.axes_lps) @ (volume.affine_lps_mm[:3, :3] / spacing))  # box axis, volume axis
    reach = (np.asarray(box.size_mm) / 2) @ along / spacing
    order = frame.order.permutation
    placed = np.array([frame.index(axis, center[order[axis]]) for axis in range(3)])
    return placed, reach[list(order)]


def rectangle_on_plane(box: Box, volume: Volume, frame: PictureFrame, axis: int, index: int) -> Rectangle | None:
    """Return the outline of a box on a plane of the picture; None where the plane misses it."""
    center, reach = center_and_reach(box, volume, frame)
    if abs(center[axis] - index) > max(reach[axis], 0.5):
        return None
    low, high = ((center + sign * reach + 0.5) / frame.sizes for sign in (-1, 1))
    down, across = (other for other in range(3) if other != axis)
    return float(low[down]), float(low[across]), float(high[down]), float(high[across])


def tinted(grey: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay the labels' colours over a grey plane of the same shape; return (rows, columns, 3)."""
    colours = np.zeros((256, 3), np.float32)
    colours[1:] = [_rgb(colour(value)) for value in range(1, 256)]
    opacity = np.where(labels > 0, np.float32(OPACITY), np.float32(0))[..., None]
    blended: NDArray[np.uint8] = (grey[..., None] * (1 - opacity) + colours[labels] * opacity).round().astype(np.uint8)
    return blended


def _rgb(code: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(code.removeprefix("#"))
    return red, green, blue
