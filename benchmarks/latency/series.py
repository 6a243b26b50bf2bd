"""Synthetic series of any size: an ellipsoid with texture in noise, written as classic MR images, one file a slice."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

FIELD_OF_VIEW_MM = 256.0


def head_like(shape: tuple[int, int, int]) -> np.ndarray:
    """Return (D, H, W) uint16: tissue in an ellipsoid that fills two thirds of each axis, noise elsewhere."""
    rng = np.random.default_rng(0)
    axes = [(np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1 for n in shape]
    d, h, w = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = (d**2 + h**2 + w**2) < 0.66
    texture = 600 + 150 * np.sin(9 * d) * np.cos(7 * h) + 100 * np.sin(11 * w)
    noise = rng.rayleigh(20, shape).astype(np.float32)
    return (noise + np.where(inside, texture, 0)).astype(np.uint16)


def write_series(folder: Path, shape: tuple[int, int, int]) -> Path:
    """Write a sagittal series of (D, H, W) = ``shape`` and return its folder; one already there is left alone."""
    if folder.is_dir():
        return folder
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    staging = folder.with_name(folder.name + ".part")
    staging.mkdir(parents=True, exist_ok=True)
    spacing = [FIELD_OF_VIEW_MM / n for n in shape]
    name = "x".join(map(str, shape))
    uids = {key: generate_uid(entropy_srcs=[key, name]) for key in ("series", "study", "frame")}
    for index, plane in enumerate(head_like(shape)):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        uid = generate_uid(entropy_srcs=[name, str(index)])
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SeriesInstanceUID, image.StudyInstanceUID = uids["series"], uids["study"]
        image.FrameOfReferenceUID = uids["frame"]
        image.Modality, image.Manufacturer, image.SeriesDescription = "MR", "Synthetic", f"ellipsoid {name}"
        image.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        image.InstanceNumber = index + 1
        # Sagittal: slices run to L, rows to P, columns to F.
        image.ImagePositionPatient = [f"{(index + 0.5) * spacing[0] - 128:.4f}", "-128", "128"]
        image.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]
        image.PixelSpacing = [f"{spacing[1]:.6g}", f"{spacing[2]:.6g}"]
        image.SliceThickness = image.SpacingBetweenSlices = f"{spacing[0]:.6g}"
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Rows, image.Columns = plane.shape
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
        image.PixelData = plane.tobytes()
        image.save_as(staging / f"{index:04d}.dcm", enforce_file_format=True)
    staging.rename(folder)
    return folder


if __name__ == "__main__":  # python benchmarks/latency/series.py FOLDER D H W
    write_series(Path(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
