"""Reading DICOM: one file for each concept of the standard."""
