"""What users have today, each as a function from a series folder to an embedding.

Nothing of decipher-rt runs here but the encoder's own definition in torch and its ONNX graph: reading, geometry and
resampling are MONAI's or dicomsdl's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

Answer = Callable[[], np.ndarray]

SPACING_MM, GRID, PATCHES = 2.0, 128, 512
PERCENTILES = (0.5, 99.5)
# The encoder's axes. Labels are MONAI's own defaults, named because their default is to change.
AXES, LABELS = "SAR", (("L", "R"), ("P", "A"), ("I", "S"))


def monai_transforms():
    """Load, orient, space, resize, normalise: the chain of MONAI's tutorials and bundles, with its defaults."""
    from monai.transforms import (
        Compose,
        EnsureChannelFirst,
        LoadImage,
        Orientation,
        ResizeWithPadOrCrop,
        ScaleIntensityRangePercentiles,
        Spacing,
    )

    return Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation(axcodes=AXES, labels=LABELS),
            Spacing(pixdim=(SPACING_MM,) * 3, mode="bilinear"),
            ResizeWithPadOrCrop((GRID,) * 3),
            ScaleIntensityRangePercentiles(*PERCENTILES, b_min=-1.0, b_max=1.0, clip=True),
        ]
    )


def monai_torch(series: Path, models: Path, threads: int, compiled: bool) -> Answer:
    """Prepare (a) and (b): MONAI and torch, eager or compiled."""
    import torch
    from latency.base_model import torch_encoder

    torch.set_num_threads(threads)
    transforms, encoder = monai_transforms(), torch_encoder(models)
    if compiled:
        encoder = torch.compile(encoder)
    # The volume is normalised already: to the encoder's own normalisation it is one from -1 to 1.
    window, tokens = torch.tensor([[-1.0, 1.0]]), torch.arange(PATCHES)[None]

    @torch.inference_mode()
    def answer() -> np.ndarray:
        volume = transforms(str(series)).as_tensor()[None]
        return encoder(volume, window, tokens)[1][0].numpy()

    return answer


def read_dicomsdl(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a series of single slices with dicomsdl: voxels (D, H, W) and their affine in RAS mm, as MONAI has it."""
    import dicomsdl

    slices = []
    for path in folder.iterdir():
        dataset = dicomsdl.open_file(str(path))
        row, column = np.array(dataset.ImageOrientationPatient).reshape(2, 3)
        position = np.array(dataset.ImagePositionPatient)
        pixels = np.frombuffer(dataset["PixelData"], np.uint16).reshape(dataset.Rows, dataset.Columns)
        slices.append((position @ np.cross(row, column), position, row, column, dataset.PixelSpacing, pixels))
    slices.sort(key=lambda one: one[0])
    _, first, row, column, (between_rows, between_columns), _ = slices[0]
    affine = np.eye(4)
    affine[:3, 0] = (slices[-1][1] - first) / (len(slices) - 1)
    affine[:3, 1] = column * between_rows
    affine[:3, 2] = row * between_columns
    affine[:3, 3] = first
    return np.stack([one[-1] for one in slices]), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def exact_percentiles(voxels: np.ndarray) -> np.ndarray:
    """Return the two percentiles of unsigned integers by counting, many times faster than sorting."""
    counts = np.cumsum(np.bincount(voxels.ravel()))
    return np.searchsorted(counts, np.asarray(PERCENTILES) / 100 * counts[-1]).astype(np.float32)


def careful(series: Path, bundles: Path, threads: int) -> Answer:
    """Prepare (c): the fastest reader, MONAI's lazy resampling in one step in float32, onnxruntime."""
    import onnxruntime as ort
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Compose, Orientation, ResizeWithPadOrCrop, Spacing

    torch.set_num_threads(threads)
    resample = Compose(
        [
            Orientation(axcodes=AXES, labels=LABELS),
            Spacing(pixdim=(SPACING_MM,) * 3, mode="bilinear", dtype=np.float32),
            ResizeWithPadOrCrop((GRID,) * 3),
        ],
        lazy=True,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    encoder = ort.InferenceSession(bundles / "all-fp32" / "encoder.onnx", options, providers=["CPUExecutionProvider"])
    tokens = np.arange(PATCHES)[None]

    @torch.inference_mode()
    def answer() -> np.ndarray:
        voxels, affine = read_dicomsdl(series)
        volume = resample(MetaTensor(torch.from_numpy(voxels.astype(np.float32))[None], torch.from_numpy(affine)))
        inputs = {"volume": volume.numpy()[None], "window": exact_percentiles(voxels)[None], "tokens": tokens}
        return encoder.run(["embedding"], inputs)[0][0]

    return answer
