"""Base anatomy: tissue mixtures of whole heads in MNI space, built once from a brain template and cached.

Every voxel holds a code into a palette of tissue mixtures, so that an image of any contrast is one small product
(palette x tissue signals) and one gather, however many tissues there are.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .head_shape import AIR, CSF, GREY, WHITE, Frame, build_head
from .susceptibility import field_shift_ppm
from .tissues import TISSUES

FORMAT = "decipher-rt/anatomy/1"
LEVELS = 16  # fractions are kept in sixteenths
FINE_MM, COARSE_MM = 1.0, 2.0
LOW_MM = (-104.0, -140.0, -204.0)  # first voxel centre (R, A, S) of the fine lattice
SHAPE = (324, 276, 208)  # (S, A, R) of the fine lattice; even, so that 2 x 2 x 2 blocks are the coarse one


@dataclass(frozen=True)
class Map:
    """One head at one step.

    Attributes
    ----------
    codes : ndarray of uint16, (S, A, R)
        Rows of ``palette``; axes run to Superior, Anterior, Right... of MNI space (S, A, R positive).
    palette : ndarray of float32, (M, T)
        Fractions of the T tissues of ``tissues.TISSUES``; each row sums to 1.
    origin_mm : (R, A, S) of the first voxel's centre
    step_mm : float
    """

    codes: NDArray[np.uint16]
    palette: NDArray[np.float32]
    origin_mm: tuple[float, float, float]
    step_mm: float

    def fractions(self, tissue: str) -> NDArray[np.float32]:
        """One tissue's fraction, (S, A, R)."""
        return self.palette[:, TISSUES.index(tissue)][self.codes]


@dataclass(frozen=True)
class Head:
    """One head.

    Attributes
    ----------
    coarse : map for the training grid
    field_ppm : ndarray of float32, (S, A, R) of ``coarse``: field shift by the head's own air
    field_gradient_ppm_mm : its gradient's magnitude, ppm per mm
    fine : gives the fine map, loaded when first asked for
    """

    coarse: Map
    field_ppm: NDArray[np.float32]
    field_gradient_ppm_mm: NDArray[np.float32]
    fine: Callable[[], Map]


@dataclass(frozen=True)
class Anatomy:
    """A set of heads around one base brain. ``name`` says which base it is."""

    name: str
    heads: tuple[Head, ...]


def load_anatomy(cache_dir: Path | None = None, *, heads: int = 4) -> Anatomy:
    """Return the default anatomy (nilearn's MNI152 template), built on first use.

    Parameters
    ----------
    cache_dir : Path, optional
        Where built maps lie; default ``$XDG_CACHE_HOME/decipher-rt``. A build takes about a minute a head.
    heads : int
        How many heads of different build to make around the brain.
    """
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "decipher-rt"
    files = []
    for i in range(heads):
        path = cache_dir / f"anatomy-mni152-{_version()}-{i}.npz"
        if not path.exists():
            write_head(path, build_codes(mni152_brain(), seed=i))
        files.append(path)
    return anatomy_from_files("mni152", files)


def anatomy_from_files(name: str, files: list[Path]) -> Anatomy:
    """Return an anatomy from files that ``write_head`` wrote, of any base."""
    return Anatomy(name, tuple(_read_head(path) for path in files))


def mni152_brain() -> NDArray[np.float32]:
    """Grey, white and CSF fractions of the ICBM152 2009a template in nilearn's wheel, (3, S, A, R) on the fine lattice.

    The template's own T1 contrast, sharpened, decides the mixture: the probability maps are averages over subjects and
    blurred. They only say which intensity is which tissue. Source: Fonov 2011, NeuroImage 54:313.
    """
    from nilearn import datasets

    images = [
        datasets.load_mni152_template(resolution=1),
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_wm_template(resolution=1),
    ]
    t1, grey, white = (_on_lattice(np.asarray(image.dataobj, np.float32), image.affine) for image in images)
    return fractions_from_t1(t1, grey, white)


def fractions_from_t1(
    t1: NDArray[np.float32], grey: NDArray[np.float32], white: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Turn a skull-stripped T1 image (0 outside) and its probability maps into fractions of grey, white and CSF."""
    mask = ndimage.binary_fill_holes(t1 > 0.05 * t1.max())
    sharp = t1 + 0.9 * (t1 - ndimage.gaussian_filter(t1, 2.2))
    core = ndimage.binary_erosion(mask, iterations=4)
    peaks = [
        float(np.percentile(sharp[core & (grey + white < 0.15)], 40)),
        float(np.median(sharp[core & (grey > 0.92)])),
        float(np.median(sharp[core & (white > 0.97)])),
    ]
    to_grey = np.clip((sharp - peaks[0]) / (peaks[1] - peaks[0]), 0, 1)
    to_white = np.clip((sharp - peaks[1]) / (peaks[2] - peaks[1]), 0, 1)
    # Average intensity of cortex lies below that of deep grey because of sulci: only a clear deficit is CSF.
    csf = np.clip(1.35 * (1 - to_grey) - 0.1, 0, 1)
    rest = 1 - csf
    return (np.stack([rest * (1 - to_white), rest * to_white, csf]) * mask).astype(np.float32)


def build_codes(brain: NDArray[np.float32], seed: int) -> tuple[Map, Map, NDArray[np.float32]]:
    """Paint a head around a brain; return the fine map, the coarse map and the coarse field shift in ppm."""
    s, a, r = SHAPE
    frame = Frame(
        (LOW_MM[0] + FINE_MM * np.arange(r, dtype=np.float32))[None, None, :],
        (LOW_MM[1] + FINE_MM * np.arange(a, dtype=np.float32))[None, :, None],
        (LOW_MM[2] + FINE_MM * np.arange(s, dtype=np.float32))[:, None, None],
        FINE_MM,
    )
    inside = brain.sum(0)
    labels = build_head(frame, inside > 0.5, np.random.default_rng([seed, 0x48454144]))
    fine = np.zeros((len(TISSUES), *SHAPE), np.uint8)
    share = np.clip(inside, 0, 1)
    for tissue in range(len(TISSUES)):
        fine[tissue] = np.round(LEVELS * (labels == tissue) * (1 - share))
    for row, tissue in enumerate((GREY, WHITE, CSF)):
        fine[tissue] += np.round(LEVELS * brain[row]).astype(np.uint8)
    coarse = fine.reshape(len(TISSUES), s // 2, 2, a // 2, 2, r // 2, 2).sum((2, 4, 6), dtype=np.uint16) // 8
    origin = tuple(v + FINE_MM / 2 for v in LOW_MM)
    small = _palette(coarse.astype(np.uint8), (origin[0], origin[1], origin[2]), COARSE_MM)
    air = small.palette[:, AIR][small.codes]
    return _palette(fine, LOW_MM, FINE_MM), small, field_shift_ppm(air, COARSE_MM)


def write_head(path: Path, built: tuple[Map, Map, NDArray[np.float32]]) -> None:
    """Write one head as npz, beside and renamed. No pickle."""
    fine, coarse, field = built
    gradient = np.sqrt(sum(g**2 for g in np.gradient(field, coarse.step_mm)))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                format=np.array(FORMAT),
                tissues=np.array(TISSUES),
                fine=fine.codes,
                fine_palette=fine.palette,
                fine_origin=np.array(fine.origin_mm),
                coarse=coarse.codes,
                coarse_palette=coarse.palette,
                coarse_origin=np.array(coarse.origin_mm),
                steps=np.array([fine.step_mm, coarse.step_mm]),
                field_ppm=field.astype(np.float16),
                field_gradient_ppm_mm=gradient.astype(np.float16),
            )
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _read_head(path: Path) -> Head:
    with np.load(path, allow_pickle=False) as file:
        if str(file["format"]) != FORMAT or tuple(file["tissues"]) != TISSUES:
            raise ValueError(f"{path}: not a {FORMAT} file of these tissues; delete it and it is built again")
        coarse = _read_map(file, "coarse", 1)
        field = file["field_ppm"].astype(np.float32)
        gradient = file["field_gradient_ppm_mm"].astype(np.float32)

    @functools.cache
    def fine() -> Map:
        with np.load(path, allow_pickle=False) as again:
            return _read_map(again, "fine", 0)

    return Head(coarse, field, gradient, fine)


def _read_map(file: np.lib.npyio.NpzFile, name: str, step: int) -> Map:
    origin = tuple(float(v) for v in file[f"{name}_origin"])
    return Map(file[name], file[f"{name}_palette"], (origin[0], origin[1], origin[2]), float(file["steps"][step]))


def _palette(fractions: NDArray[np.uint8], origin: tuple[float, float, float], step: float) -> Map:
    """Code the distinct mixtures of (T, S, A, R) fractions in sixteenths."""
    tissues = len(fractions)
    flat = fractions.reshape(tissues, -1)
    # A mixture has few tissues: a mixed-radix key in 64 bits identifies it (17 levels, 12 tissues < 2**50).
    key = np.zeros(flat.shape[1], np.int64)
    for row in flat:
        key = key * (LEVELS + 1) + row
    unique, codes = np.unique(key, return_inverse=True)
    while len(unique) > 2**16:
        raise ValueError(f"{len(unique)} distinct mixtures do not fit 16-bit codes")
    rows = np.empty((len(unique), tissues), np.float32)
    rest = unique.copy()
    for tissue in reversed(range(tissues)):
        rest, rows[:, tissue] = np.divmod(rest, LEVELS + 1)
    total = rows.sum(1, keepdims=True)
    palette = np.divide(rows, total, out=np.zeros_like(rows), where=total > 0)
    palette[total[:, 0] == 0, AIR] = 1.0
    return Map(codes.reshape(fractions.shape[1:]).astype(np.uint16), palette, origin, step)


def _on_lattice(image: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.float32]:
    """Put an image (x, y, z order, RAS+ affine) on the fine lattice, (S, A, R), 0 outside."""
    inverse = np.linalg.inv(affine)
    to_index = inverse[:3, :3] * FINE_MM
    offset = inverse[:3, :3] @ np.array(LOW_MM) + inverse[:3, 3]
    moved = ndimage.affine_transform(image, to_index, offset, output_shape=SHAPE[::-1], order=1)
    return np.ascontiguousarray(moved.T)


@functools.cache
def _version() -> str:
    """Name of a build: a digest of the files that decide it, so that a changed builder never reads an old cache."""
    digest = hashlib.sha256()
    for name in ("anatomy.py", "head_shape.py", "susceptibility.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    digest.update(",".join(TISSUES).encode())
    return digest.hexdigest()[:12]
