"""Fixtures that several test files share: the real series beside the repository, and a writer of synthetic ones."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    generate_uid,
)
from pydicom.valuerep import DSfloat

# Triton decides when it is first imported, by whichever test that may be, whether kernels are interpreted on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real series (``dicom/<name>/``, ``reference.json``); see its README."""
    folder = Path(os.environ.get("DECIPHER_RT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "reference.json").is_file():
        pytest.skip(f"the real series are not at {folder} (DECIPHER_RT_SHARED_DATA says where)")
    return folder


def oblique_affine(spacing: Sequence[float] = (3.0, 1.0, 1.25), seed: int | None = 7) -> np.ndarray:
    """An LPS affine of (d, h, w) with a random right-handed rotation (axial, rows to L, columns to P, for ``seed=None``)."""
    axes = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # columns: directions of d, h, w
    generator = np.random.default_rng(seed)
    if seed is not None:
        matrix, triangular = np.linalg.qr(generator.normal(size=(3, 3)))
        matrix = matrix * np.sign(np.diag(triangular))
        axes = matrix * np.sign(np.linalg.det(matrix)) @ axes
    affine = np.eye(4)
    affine[:3, :3] = axes * np.asarray(spacing)
    affine[:3, 3] = generator.uniform(-100, 100, 3) if seed is not None else 0.0
    return affine


def synthetic_voxels(shape: Sequence[int], dtype: Any = np.uint16, seed: int = 0) -> np.ndarray:
    """Random integers over 12 bits (or the type's range where it is smaller), (D, H, W)."""
    info = np.iinfo(dtype)
    low, high = max(info.min, -2048), min(info.max, 4095)
    return np.random.default_rng(seed).integers(low, high, size=tuple(shape), dtype=dtype, endpoint=True)


def slice_dataset(plane: np.ndarray, affine: np.ndarray, index: int, series_uid: str, **overrides: Any) -> Dataset:
    """One classic MR image: slice ``index`` of a volume with this LPS affine. ``overrides`` are DICOM keywords; None removes."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / spacing
    dataset = Dataset()
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[series_uid, str(index), str(overrides.get("InstanceNumber"))])
    dataset.SeriesInstanceUID = series_uid
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", series_uid])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", series_uid])
    dataset.Modality = "MR"
    dataset.Manufacturer = "Synthetic"
    dataset.SeriesDescription = "synthetic t1"
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = "SECRET-1"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    dataset.ScanningSequence = "GR"
    dataset.RepetitionTime = "8.5"
    dataset.EchoTime = "3.5"
    dataset.FlipAngle = "9"
    dataset.MagneticFieldStrength = "3"
    dataset.InstanceNumber = index + 1
    dataset.SliceThickness = DSfloat(float(spacing[0]), auto_format=True)
    dataset.SpacingBetweenSlices = DSfloat(float(spacing[0]), auto_format=True)
    position = affine[:3, 3] + index * affine[:3, 0]
    dataset.ImagePositionPatient = [DSfloat(float(value), auto_format=True) for value in position]
    orientation = [*directions[:, 2], *directions[:, 1]]
    dataset.ImageOrientationPatient = [DSfloat(float(value), auto_format=True) for value in orientation]
    dataset.PixelSpacing = [DSfloat(float(value), auto_format=True) for value in spacing[1:]]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.BitsAllocated = plane.dtype.itemsize * 8
    dataset.BitsStored = dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(plane.dtype.kind == "i")
    pixels = np.ascontiguousarray(plane).astype(plane.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    for keyword, value in overrides.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    return dataset


def save_dataset(dataset: Dataset, path: Path, transfer_syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write a dataset as a DICOM file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="session")
def write_series() -> Callable[..., Path]:
    """A function that writes a small classic MR series and returns its folder.

    ``write_series(folder, shape=(6, 10, 12), affine=None, dtype="uint16", voxels=None, seed=0, series_uid=None,
    transfer_syntax=explicit little endian, prefix="", order=None, edit=None, **overrides)``: ``affine`` is LPS, mm, of
    (d, h, w); ``overrides`` are DICOM keywords for every file (None removes one); ``edit(dataset, index)`` changes or,
    returning False, leaves out single slices; ``order`` is the order in which slices get their file names.
    """

    def write(
        folder: Path,
        shape: Sequence[int] = (6, 10, 12),
        affine: np.ndarray | None = None,
        dtype: Any = "uint16",
        voxels: np.ndarray | None = None,
        seed: int = 0,
        series_uid: str | None = None,
        transfer_syntax: str = ExplicitVRLittleEndian,
        prefix: str = "",
        order: Sequence[int] | None = None,
        edit: Callable[[Dataset, int], bool | None] | None = None,
        **overrides: Any,
    ) -> Path:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        volume = synthetic_voxels(shape, np.dtype(dtype), seed) if voxels is None else voxels
        affine = oblique_affine() if affine is None else affine
        uid = series_uid or generate_uid(entropy_srcs=[str(folder), prefix])
        for number, index in enumerate(order if order is not None else range(len(volume))):
            dataset = slice_dataset(volume[index], affine, index, uid, **overrides)
            if edit is None or edit(dataset, index) is not False:
                save_dataset(dataset, folder / f"{prefix}{number:04d}.dcm", transfer_syntax)
        return folder

    return write


@pytest.fixture(scope="session")
def synthetic() -> SimpleNamespace:
    """The parts that ``write_series`` is made of, for series that it does not write."""
    return SimpleNamespace(
        oblique_affine=oblique_affine,
        voxels=synthetic_voxels,
        slice_dataset=slice_dataset,
        save=save_dataset,
    )


@pytest.fixture(scope="session")
def compressed_dataset() -> Callable[[np.ndarray, str], Dataset]:
    """A function ``(plane, name) -> Dataset`` that compresses a slice: rle, jpeg-ls, jpeg 2000, jpeg lossless."""

    def compressed(
        plane: np.ndarray, name: str, index: int = 0, affine: np.ndarray | None = None, **overrides: Any
    ) -> Dataset:
        affine = oblique_affine() if affine is None else affine
        dataset = slice_dataset(plane, affine, index, "1.2.826.0.1.3680043.8.498.1", **overrides)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if name == "jpeg lossless":
            return _jpeg_lossless(dataset)
        syntax, plugin = {
            "rle": (RLELossless, "pydicom"),
            "jpeg-ls": (JPEGLSLossless, "pyjpegls"),
            "jpeg 2000": (JPEG2000Lossless, "pylibjpeg"),
        }[name]
        dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
        return dataset

    return compressed


def _jpeg_lossless(dataset: Dataset) -> Dataset:
    """Compress as JPEG lossless, first order prediction, with GDCM, in another process (its objects outlive Python's)."""
    code = (
        "import gdcm, sys; reader = gdcm.ImageReader(); reader.SetFileName(sys.argv[1]); assert reader.Read();"
        "change = gdcm.ImageChangeTransferSyntax(); syntax = gdcm.TransferSyntax.JPEGLosslessProcess14_1;"
        "change.SetTransferSyntax(gdcm.TransferSyntax(syntax)); change.SetInput(reader.GetImage());"
        "assert change.Change(); writer = gdcm.ImageWriter(); writer.SetFileName(sys.argv[2]);"
        "writer.SetFile(reader.GetFile()); writer.SetImage(change.GetOutput()); assert writer.Write()"
    )
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder, "plain.dcm"), Path(folder, "packed.dcm")
        save_dataset(dataset, plain)
        subprocess.run([sys.executable, "-c", code, plain, packed], check=True)
        return dcmread(packed)
