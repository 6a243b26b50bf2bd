"""Write an acquired series as classic DICOM MR Image Storage (PS3.3 A.4), one file a slice.

UIDs are UUIDs under the root 2.25 (PS3.5 B.2), derived from the seed: the same series gives the same files. No date is
written; the name says that the patient is simulated.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from decipher_rt.atomic import whole_folder

from .acquired import AcquiredSeries

NAMESPACE = uuid.UUID("9b0c3f1e-6f0e-5d53-8a54-0d5b9a4c7d21")  # of all UIDs of this simulator
VARIANTS = {"mprage": "MP\\SP", "flash2d": "SP", "flash3d": "SP", "gre2d": "SP", "gre3d": "SP", "epi": "SK"}


def write_dicom(series: AcquiredSeries, folder: Path) -> list[Path]:
    """Write a series into a new folder, whole or not at all.

    Parameters
    ----------
    series : AcquiredSeries
    folder : Path
        Must not exist, or be empty.

    Returns
    -------
    list of Path
        One file a slice, in slice order.

    Raises
    ------
    FileExistsError
        Where the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: give a new folder, or empty this one")
    names = []
    with whole_folder(folder) as staging:
        common = _series_dataset(series)
        for d in range(len(series.voxels)):
            name = f"{d + 1:04d}.dcm"
            dcmwrite(staging / name, _slice_dataset(common, series, d), enforce_file_format=True)
            names.append(name)
    return [folder / name for name in names]


def simulated_uid(seed: int, what: str) -> str:
    """Return the UID of something of a seed: 2.25 and a name-based UUID."""
    return f"2.25.{uuid.uuid5(NAMESPACE, f'{seed}/{what}').int}"


def _series_dataset(series: AcquiredSeries) -> Dataset:
    """Everything that the slices share."""
    scene, protocol, prescription = series.scene, series.scene.protocol, series.scene.prescription
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = list(series.header.image_type)
    ds.SOPClassUID = MRImageStorage
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.Modality = "MR"
    ds.Manufacturer = "decipher-rt simulator"
    ds.ManufacturerModelName = "simulated"
    ds.SoftwareVersions = "1"
    ds.StudyDescription = "SIMULATED DATA, not a patient"
    ds.SeriesDescription = f"SIM {protocol.sequence} {protocol.family} {prescription.plane}"
    ds.PatientName = "SIMULATED^HEAD"
    ds.PatientID = f"SIM-{scene.seed}"
    ds.PatientBirthDate = ds.PatientSex = ""
    ds.BodyPartExamined = "HEAD"
    ds.ScanningSequence = (series.header.scanning_sequence or "SE").split("\\")
    ds.SequenceVariant = VARIANTS.get(protocol.family, "SK" if "tse" in protocol.family else "NONE").split("\\")
    ds.ScanOptions = "FS" if protocol.fat_suppression < 0.5 else ""
    ds.MRAcquisitionType = "3D" if protocol.three_dimensional else "2D"
    ds.SliceThickness = _decimal(series.thickness_mm)
    ds.RepetitionTime = _decimal(series.header.repetition_time_ms)
    ds.EchoTime = _decimal(series.header.echo_time_ms)
    if series.header.inversion_time_ms is not None:
        ds.InversionTime = _decimal(series.header.inversion_time_ms)
    ds.FlipAngle = _decimal(series.header.flip_angle_deg)
    ds.MagneticFieldStrength = _decimal(protocol.field_strength_t)
    ds.ImagedNucleus = "1H"
    ds.EchoTrainLength = max(1, protocol.echoes)
    ds.SpacingBetweenSlices = _decimal(prescription.step_mm[prescription.slice_axis])
    ds.InPlanePhaseEncodingDirection = series.phase_axis
    ds.PatientPosition = series.patient_position
    ds.StudyInstanceUID = simulated_uid(scene.seed, "study")
    ds.SeriesInstanceUID = simulated_uid(scene.seed, "series")
    ds.FrameOfReferenceUID = simulated_uid(scene.seed, "frame of reference")
    ds.PositionReferenceIndicator = ""
    ds.StudyID = "1"
    ds.SeriesNumber = 1
    ds.Laterality = ""
    directions, spacing = _directions(series)
    ds.ImageOrientationPatient = [_decimal(v) for v in (*directions[:, 2], *directions[:, 1])]
    ds.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[2])]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = series.voxels.shape[1:]
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 0
    ds.BurnedInAnnotation = "NO"
    ds.LossyImageCompression = "00"
    low, high = np.percentile(series.voxels, (1, 99))
    ds.WindowCenter, ds.WindowWidth = _decimal((low + high) / 2), _decimal(max(high - low, 1.0))
    return ds


def _slice_dataset(common: Dataset, series: AcquiredSeries, d: int) -> FileDataset:
    uid = UID(simulated_uid(series.scene.seed, f"slice {d}"))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    ds.update(common)
    ds.SOPInstanceUID = uid
    ds.InstanceNumber = d + 1
    position = series.affine_lps_mm @ np.array([d, 0, 0, 1.0])
    ds.ImagePositionPatient = [_decimal(v) for v in position[:3]]
    directions, _ = _directions(series)
    ds.SliceLocation = _decimal(position[:3] @ np.cross(directions[:, 2], directions[:, 1]))
    ds.PixelData = series.voxels[d].astype("<u2").tobytes()
    return ds


def _directions(series: AcquiredSeries) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors (columns: slice, row index, column index) and spacings in the same order."""
    matrix = series.affine_lps_mm[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    return matrix / spacing, spacing


def _decimal(value: float | None) -> str:
    """Write a decimal string of at most 16 characters (PS3.5 6.2, DS) as exactly as fits."""
    number = 0.0 if value is None else float(value)
    for digits in range(15, 0, -1):
        text = f"{number:.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(f"{number} does not fit a decimal string")
