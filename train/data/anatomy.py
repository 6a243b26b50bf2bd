"""Base anatomy: tissue mixtures of whole heads in MNI space, built once from a brain template and cached.

Every voxel holds a code into a palette of tissue mixtures, so that an image of any contrast is one small product
(palette x tissue signals) and one gather, however many tissues there are.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..lock import one_at_a_time
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
        Where built maps lie; default ``$XDG_CACHE_HOME/decipher-rt``. A head takes about half a minute to build.
    heads : int
        How many heads of different build to make around the brain.
    """
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "decipher-rt"
    files = [cache_dir / f"anatomy-mni152-{_version()}-{i}.npz" for i in range(heads)]
    if not all(path.exists() for path in files):
        with one_at_a_time(cache_dir / "anatomy.lock"):  # several workers start at once: one builds, the others wait
            from . import anatomy_build

            if not all(path.exists() for path in files):
                anatomy_build.build_heads(anatomy_build.mni152_brain(), files)
    return anatomy_from_files("mni152", files)


def anatomy_from_files(name: str, files: list[Path]) -> Anatomy:
    """Return an anatomy from files that ``write_head`` wrote, of any base."""
    return Anatomy(name, tuple(_read_head(path) for path in files))


def write_head(path: Path, fine: Map, coarse: Map, field: NDArray[np.float32]) -> None:
    """Write one head, its maps and the field shift in ppm over the coarse one, as npz, beside and renamed."""
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


@functools.cache
def _version() -> str:
    """Name of a build: a digest of the code that decides it, so that a changed builder never reads an old cache."""
    digest = hashlib.sha256()
    for name in ("anatomy_build.py", "head_shape.py", "susceptibility.py"):
        tree = ast.parse((Path(__file__).parent / name).read_text(encoding="utf-8"))
        digest.update(ast.dump(tree).encode())  # comments and layout do not matter
    digest.update(",".join(TISSUES).encode())
    return digest.hexdigest()[:12]
