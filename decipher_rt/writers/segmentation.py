"""Segmentations as NIfTI, voxel for voxel over the source."""

from __future__ import annotations

import gzip
import re

import numpy as np
from numpy.typing import NDArray

from decipher_rt.dicom.geometry import FLIP_RAS_LPS
from decipher_rt.label_map import LabelMap, on_source
from decipher_rt.volume import Volume

COMPRESSION = 4  # label maps are long runs: more gains nothing
NIFTI1_VOXELS = 32767  # along an axis, at most
SHEAR = 1e-3  # largest cosine between two axes that still are perpendicular
INTENT = "label"


def nifti_name(head: str) -> str:
    """Return the file name for a head's segmentation."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", head) + ".nii.gz"


def segmentation_nifti(label_map: LabelMap, volume: Volume, name: str) -> bytes:
    """Return a gzipped NIfTI file of a label map in the geometry of its source: NIfTI-1, or -2 where an axis is longer.

    The array runs along columns, rows and slices, as the source's does in NIfTI; both affines are the source's, in RAS
    mm. A sheared source (gantry tilt) is stated by the sform alone, which a qform could not hold.

    Parameters
    ----------
    label_map : LabelMap
        On the encoder's grid; labels are taken by nearest neighbour.
    volume : Volume
        The source.
    name : str
        Of the head: kept in the header's ``intent_name``, at most 15 bytes.
    """
    import nibabel

    labels = on_source(label_map, volume.affine_lps_mm, volume.voxels.shape)
    affine = nifti_affine(volume.affine_lps_mm)
    image_class = nibabel.Nifti1Image if max(labels.shape) <= NIFTI1_VOXELS else nibabel.Nifti2Image
    image = image_class(labels.transpose(2, 1, 0), affine)
    header = image.header
    header.set_xyzt_units("mm")
    header.set_intent(INTENT, name=name.encode("ascii", "replace")[:15].decode())
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=0 if _is_sheared(affine) else 1)
    return gzip.compress(image.to_bytes(), COMPRESSION, mtime=0)


def nifti_affine(affine_lps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the affine in RAS mm of an array (w, h, d) from that of (d, h, w) in LPS mm."""
    affine: NDArray[np.float64] = (FLIP_RAS_LPS @ affine_lps_mm)[:, [2, 1, 0, 3]]
    return affine


def _is_sheared(affine: NDArray[np.float64]) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR)
