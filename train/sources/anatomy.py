"""Base anatomies of the simulator by name: nilearn's MNI152, or any skull-stripped T1 image in MNI space."""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decipher_rt.errors import DecipherError

from ..data import Anatomy, anatomy, anatomy_build, load_anatomy
from ..lock import one_at_a_time
from .config import MNI152

BRAIN_ML = (700.0, 2500.0)  # what a brain with its ventricles and sulci can measure


class AnatomyError(DecipherError):
    """A base anatomy that cannot be used. The message names the file."""


@functools.lru_cache(maxsize=2)
def base_anatomy(base: str, heads: int) -> Anatomy:
    """Return the heads around a base brain, built on first use (half a minute each) and kept in the user's cache.

    Parameters
    ----------
    base : str
        "mni152", or the path of a skull-stripped T1 NIfTI image in MNI space.
    heads : int

    Raises
    ------
    AnatomyError
    """
    if base == MNI152:
        return load_anatomy(heads=heads)
    digest = base_digest(base)
    cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "decipher-rt"
    files = [cache_dir / f"anatomy-{digest[:12]}-{i}.npz" for i in range(heads)]
    if not all(path.exists() for path in files):
        with one_at_a_time(cache_dir / "anatomy.lock"):  # of several that start at once one builds, the others wait
            if not all(path.exists() for path in files):
                anatomy_build.build_heads(_fractions(Path(base)), files)
    return anatomy.anatomy_from_files(Path(base).name, files)


def base_digest(base: str) -> str:
    """Return a digest of what a base's heads follow from: the image's bytes and the code that builds heads."""
    digest = hashlib.sha256(base.encode() if base == MNI152 else _bytes(Path(base)))
    for module in ("anatomy_build.py", "head_shape.py", "susceptibility.py", "tissues.py"):
        digest.update((Path(anatomy.__file__).parent / module).read_bytes())
    return digest.hexdigest()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AnatomyError(
            f"{path}: cannot be read ({type(error).__name__}); source.anatomy is {MNI152}, or a skull-stripped T1 "
            "NIfTI image in MNI space"
        ) from None


def _fractions(path: Path) -> NDArray[np.float32]:
    """Grey, white and CSF fractions of a NIfTI image, refused where no brain can be made of it."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of an empty cluster is refused below
            fractions = anatomy_build.fractions_from_image(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise AnatomyError(f"{path}: not a readable NIfTI image of a head ({str(error)[:80]})") from None
    # One voxel of the lattice is 1 mm3.
    volume_ml = float(np.count_nonzero(fractions.sum(0) > 0.5)) / 1000
    least, most = BRAIN_ML
    if not least <= volume_ml <= most:
        raise AnatomyError(
            f"{path}: {volume_ml:.0f} ml lie where a brain in MNI space does, expected {least:.0f} to {most:.0f}; give "
            "a skull-stripped T1 image in MNI space (such as ch2bet.nii.gz of Debian's mricron-data)"
        )
    return fractions
