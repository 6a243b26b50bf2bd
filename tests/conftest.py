"""Fixtures that several test files share: the real series beside the repository, and a writer of synthetic ones."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
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

# The same examples on every machine, in as much time as each takes.
settings.register_profile("repository", deadline=None, derandomize=True, database=None)
settings.load_profile("repository")

# Nothing is read from the user's own cache, nor left there. What was accepted on this machine before is forgotten.
os.environ["XDG_CACHE_HOME"] = str(REPOSITORY / ".cache" / "tests")
if "PYTEST_XDIST_WORKER" not in os.environ:
    shutil.rmtree(REPOSITORY / ".cache" / "tests" / "decipher-rt" / "accepted", ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow ones: of two processes, neither is left with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


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


@pytest.fixture(scope="session")
def answering_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a head of every kind and a text tower, whose answers can be worked out by hand.

    The grid is 32^3 voxels of 4 mm, patches 8^3. A patch token is (mean, 1 - mean, mean^2, 1) of the windowed patch; the
    embedding is (m, 1 - m, 0, 0), normalised, of the mean m of all tokens. Heads: ``brightness`` (bright, dark: softmax
    of ten times the embedding's first two), ``mean_percent`` (100 m), ``tissue`` (stride 2; a patch is tissue above 0.25
    and bright above 0.75) and ``brightest`` (a box around the brightest patch, its mean the score, threshold 0.5). Words
    "bright" and "dark" are the first and second axis of the embedding; "brain", "image", "a", "of" and "the" the third.
    """
    pytest.importorskip("tokenizers", reason="the text extra is not installed")
    import torch
    from torch import nn

    from decipher_rt.bundle import write_bundle
    from decipher_rt.export.onnx import graph
    from decipher_rt.manifest import Encoder, EngineFile, Head, Manifest, Numerics, Preprocessing, Scope, Text
    from decipher_rt.preprocess import build_graph

    class ToyEncoder(nn.Module):
        def forward(self, volume, window, tokens):
            low, high = window[:, 0].reshape(-1, 1, 1, 1), window[:, 1].reshape(-1, 1, 1, 1)
            scaled = ((volume[:, 0] - low) / (high - low)).clamp(0, 1)
            patches = scaled.reshape(-1, 4, 8, 4, 8, 4, 8).permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, 64, 512)
            mean = patches.mean(-1).gather(1, tokens)
            m = mean.mean(1)
            embedding = torch.stack([m, 1 - m, m * 0, m * 0], -1)
            patch = torch.stack([mean, 1 - mean, mean * mean, mean * 0 + 1], -1)
            return patch, embedding / embedding.norm(dim=-1, keepdim=True)

    class Brightness(nn.Module):
        def forward(self, embedding):
            return torch.softmax(embedding[:, :2] * 10, -1)

    class MeanPercent(nn.Module):
        def forward(self, patch):
            return 100 * patch[..., 0].mean(1, keepdim=True)

    class Tissue(nn.Module):
        def forward(self, patch, tokens):
            label = (patch[..., 0] > 0.25).float() + (patch[..., 0] > 0.75).float()
            label = torch.zeros(1, 64).expand(patch.shape[0], -1).scatter(1, tokens, label)
            blocks = label.reshape(-1, 4, 1, 4, 1, 4, 1).expand(-1, -1, 4, -1, 4, -1, 4)
            return blocks.reshape(-1, 16, 16, 16).to(torch.uint8)

    class Brightest(nn.Module):
        def forward(self, patch, tokens):
            score, place = patch[..., 0].max(1)
            token = tokens.gather(1, place[:, None])
            corner = torch.cat([token // 16, token // 4 % 4, token % 4], -1).float() * 8
            return torch.cat([score[:, None], corner + 3.5, torch.full_like(corner, 8.0)], -1)[:, None]

    class InScope(nn.Module):
        def forward(self, embedding):
            return embedding.sum(-1)

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            table = torch.tensor([[0, 0, 0, 1.0]] * 5 + [[1.0, 0, 0, 0], [0, 1.0, 0, 0]] + [[0, 0, 1.0, 0]] * 5)
            self.table = nn.Parameter(table)
            self.weight = nn.Parameter(torch.tensor([0.0] * 5 + [1.0] * 7))

        def forward(self, input_ids, attention_mask):
            weight = (self.weight[input_ids] * attention_mask).unsqueeze(-1)
            total = (self.table[input_ids] * weight).sum(1)
            return total / total.norm(dim=-1, keepdim=True).clamp_min(1e-6)

    spec = Preprocessing((32, 32, 32), (4.0, 4.0, 4.0), (8, 8, 8), (16, 64), graphs={"cpu": "cpu.dali"})
    rng = np.random.default_rng(3)
    inputs = {
        "volume": torch.from_numpy(rng.integers(0, 1000, (1, 1, 32, 32, 32)).astype(np.float32)),
        "window": torch.tensor([[10.0, 990.0]]),
        "tokens": torch.arange(0, 64, 4)[None],
    }
    axes = {"volume": {0: "B"}, "window": {0: "B"}, "tokens": {0: "B", 1: "K"}, "patch": {0: "B", 1: "K"}}
    axes["embedding"] = {0: "B"}
    encoder = ToyEncoder()
    patch, embedding = encoder(**inputs)
    features = {"patch": patch, "embedding": embedding, "tokens": inputs["tokens"]}
    heads = {
        "brightness": (Brightness(), ("embedding",), "probabilities"),
        "mean_percent": (MeanPercent(), ("patch",), "value"),
        "tissue": (Tissue(), ("patch", "tokens"), "labels_map"),
        "brightest": (Brightest(), ("patch", "tokens"), "boxes"),
    }
    files: dict[str, bytes | Path] = {
        "encoder.onnx": graph(encoder, inputs, outputs=("patch", "embedding"), dynamic={k: axes[k] for k in inputs}),
        "cpu.dali": build_graph(spec, "cpu"),
    }
    case = {**inputs, "patch": patch, "embedding": embedding}
    for name, (module, takes, gives) in heads.items():
        taken = {key: features[key] for key in takes}
        files[f"heads/{name}.onnx"] = graph(module, taken, outputs=(gives,), dynamic={key: axes[key] for key in takes})
        case[f"heads.{name}"] = module(*taken.values())
    case["scope"] = InScope()(embedding)
    files["scope.onnx"] = graph(
        InScope(), {"embedding": embedding}, outputs=("score",), dynamic={"embedding": axes["embedding"]}
    )
    ids = torch.tensor([[2, 5, 6, 3]])
    files["text.onnx"] = graph(
        Words(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, outputs=("embedding",),
        dynamic={"input_ids": {0: "B", 1: "T"}, "attention_mask": {0: "B", 1: "T"}},
    )  # fmt: skip
    files["tokenizer.json"] = _toy_tokenizer()
    arrays = {name: tensor.numpy() for name, tensor in case.items()}
    arrays["prompts"] = np.array(["a bright image", "dark"])
    # One word on the first axis and two on the third, normalised.
    arrays["text"] = np.array([[1 / 5**0.5, 0, 2 / 5**0.5, 0], [0, 1, 0, 0]], np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    files["golden/case.npz"] = buffer.getvalue()
    manifest = Manifest(
        name="toy", version="1", intended_use="Tests.", licence="Apache-2.0", preprocessing=spec,
        encoder=Encoder(width=4, embedding_size=4, parameters=0),
        engines=(EngineFile("onnx", "fp32", "encoder.onnx"),),
        heads=(
            Head("brightness", "classification", "heads/brightness.onnx", "Toy, knows nothing.", ("bright", "dark")),
            Head("mean_percent", "regression", "heads/mean_percent.onnx", unit="%"),
            Head("tissue", "segmentation", "heads/tissue.onnx", "Whole patches only.",
                 ("background", "tissue", "bright"), stride=2),
            Head("brightest", "localisation", "heads/brightest.onnx", threshold=0.5),
        ),
        scope=Scope("scope.onnx", "toy", -10.0, subject="anything"),
        text=Text("text.onnx", "tokenizer.json", 16, 10.0),
        numerics=(Numerics("fp32", 1.0, 0.0, 0.0, 0.0, 1e-4),),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("answering") / "bundle"
    write_bundle(folder, manifest, files)
    return folder


def _toy_tokenizer() -> bytes:
    """A tokenizer of twelve words, with BERT's rules around them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bright", "dark", "brain", "image", "a", "of", "the"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token=words[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(6)  # the runtime refuses what is too long, whatever the file says
    tokenizer.enable_padding(length=6)
    return tokenizer.to_str().encode()


@pytest.fixture(scope="session")
def rewrite_bundle() -> Callable[..., Path]:
    """A function that copies a bundle with files or manifest changed, and sums that are right again.

    ``rewrite_bundle(bundle, folder, files={name: bytes}, change=lambda manifest: ...)``: ``change`` gets the manifest as
    plain JSON types and alters it in place.
    """

    def rewrite(
        bundle: Path,
        folder: Path,
        files: dict[str, bytes] | None = None,
        change: Callable[[dict[str, Any]], object] | None = None,
    ) -> Path:
        target = folder / "changed-bundle"
        shutil.copytree(bundle, target)
        for name, content in (files or {}).items():
            (target / name).write_bytes(content)
        if change is not None:
            manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
            change(manifest)
            (target / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        lines = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(target).as_posix()}\n"
            for path in sorted(target.rglob("*"))
            if path.is_file() and path.name != "SHA256SUMS"
        ]
        (target / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
        return target

    return rewrite
