"""Whole simulated series as a scanner would store them: native matrix, oblique planes, gaps; and as DICOM files."""

from .acquired import AcquiredSeries, acquire, acquire_scene
from .dicom import write_dicom

__all__ = ["AcquiredSeries", "acquire", "acquire_scene", "write_dicom"]
