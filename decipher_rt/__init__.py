"""Runtime for 3D MRI foundation models: DICOM in, embeddings and decoder answers out, without PyTorch."""
