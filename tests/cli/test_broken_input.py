"""What arrives may be truncated, mixed, huge or hostile: exit status 2, one line on stderr, no traceback, nothing written.

Every case goes through the command line as a user would call it, in one process each for those that could kill it and in
this process for the others.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from decipher_rt.bundle import DEFAULT_BUNDLE

SHAPE = (6, 16, 16)


def each_file(folder: Path, change) -> Path:
    """Rewrite every file of a series after ``change(dataset, index)``."""
    for index, path in enumerate(sorted(folder.glob("*.dcm"))):
        dataset = pydicom.dcmread(path)
        change(dataset, index)
        dataset.save_as(path, enforce_file_format=True)
    return folder


def first_file(folder: Path, change) -> Path:
    return each_file(folder, lambda dataset, index: change(dataset) if index == 0 else None)


def truncate_all(folder: Path, keep: float) -> Path:
    for path in folder.glob("*.dcm"):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
    return folder


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def reframe(syntax):
    """Claim another transfer syntax for pixels that are not of it."""

    def change(dataset, _):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = pydicom.encaps.encapsulate([b"\x93garbage" * 30])
        dataset["PixelData"].is_undefined_length = True
        dataset["PixelData"].VR = "OB"

    return change


def nifti(folder: Path, name: str, voxels, affine=None) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1]) if affine is None else affine), folder / name)
    return folder / name


def patched_nifti(folder: Path, offset: int, content: bytes) -> Path:
    path = nifti(folder, "a.nii", np.random.default_rng(0).integers(0, 99, (8, 8, 8)).astype(np.int16))
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    return written(path, bytes(raw))


def zip_of(folder: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return folder / "a.zip"


def bundle_with(folder: Path, name: str, content: bytes, *, sealed: bool) -> Path:
    """Copy the bundle that ships and replace one file, with right sums if ``sealed``."""
    copy = folder / "bundle"
    shutil.copytree(DEFAULT_BUNDLE, copy)
    (copy / name).write_bytes(content)
    if sealed:
        names = sorted(p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file())
        names.remove("SHA256SUMS")
        lines = [f"{hashlib.sha256((copy / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
        (copy / "SHA256SUMS").write_text("".join(lines))
    return copy


def manifest_with(folder: Path, change) -> Path:
    document = json.loads((DEFAULT_BUNDLE / "manifest.json").read_text())
    change(document)
    return bundle_with(folder, "manifest.json", json.dumps(document).encode(), sealed=True)


def drop(*keywords):
    def change(dataset, _):
        for keyword in keywords:
            del dataset[keyword]

    return change


def put(**values):
    def change(dataset, _):
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return change


def only_third(change):
    return lambda dataset, index: change(dataset, index) if index == 2 else None


def remove(folder: Path, *numbers: int) -> Path:
    for number in numbers:
        (folder / f"{number:04d}.dcm").unlink()
    return folder


def loop(folder: Path) -> Path:
    (folder / "self").symlink_to(folder)
    return folder


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.dcm")
    return folder


# name: (what makes the input below a scratch folder, given a good series there, and returns the arguments; expected words)
SERIES_CASES = {
    "path that does not exist": (lambda d, s: [d / "nowhere"], "nowhere"),
    "empty folder": (lambda d, s: [_empty(d)], "no "),
    "folder of text files": (lambda d, s: [written(_empty(d) / "README.txt", b"hello").parent], "no "),
    "empty file": (lambda d, s: [written(d / "a.dcm", b"")], "a.dcm"),
    "random bytes": (lambda d, s: [written(d / "a.dcm", np.random.default_rng(0).bytes(5000))], "a.dcm"),
    "preamble and nothing more": (lambda d, s: [written(d / "a.dcm", bytes(128) + b"DICM")], "a.dcm"),
    "header cut in the middle": (lambda d, s: [truncate_all(s, 0.3)], ""),
    "pixels cut in the middle": (lambda d, s: [truncate_all(s, 0.9)], "trunc|pixel|bytes"),
    "one file of the series cut": (lambda d, s: [_truncate_one(s)], "0002.dcm|trunc"),
    "no pixel data": (lambda d, s: [each_file(s, drop("PixelData"))], "pixel"),
    "no position": (lambda d, s: [each_file(s, drop("ImagePositionPatient"))], "position|geometry"),
    "no orientation": (lambda d, s: [each_file(s, drop("ImageOrientationPatient"))], "orientation|geometry"),
    "no pixel spacing": (lambda d, s: [each_file(s, drop("PixelSpacing"))], "spacing|geometry"),
    "pixel spacing of zero": (lambda d, s: [each_file(s, put(PixelSpacing=[0, 0]))], "spacing"),
    "negative pixel spacing": (lambda d, s: [each_file(s, put(PixelSpacing=[-1, 1]))], "spacing"),
    "orientation of zeros": (lambda d, s: [each_file(s, put(ImageOrientationPatient=[0] * 6))], "orientation"),
    "orientation that is not orthogonal": (
        lambda d, s: [each_file(s, put(ImageOrientationPatient=[1, 0, 0, 0.7, 0.7, 0]))],
        "orientation|orthogonal|perpendicular",
    ),
    "slice missing": (lambda d, s: [remove(s, 3)], r"mm.*--allow-gaps|--allow-gaps"),
    "several slices missing": (lambda d, s: [remove(s, 1, 3)], "mm"),
    "spacing that varies": (lambda d, s: [_shift_last(s)], "spacing|mm"),
    "orientation of one slice differs": (
        lambda d, s: [each_file(s, only_third(put(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])))],
        "",
    ),
    "slices of different size": (lambda d, s: [_shrink_first(s)], "size|rows|x"),
    "CT": (lambda d, s: [each_file(s, put(Modality="CT", SOPClassUID=pydicom.uid.CTImageStorage))], "--any-modality"),
    "structured report only": (lambda d, s: [_report(s)], ""),
    "rows of zero": (lambda d, s: [each_file(s, put(Rows=0))], ""),
    "rows that the pixels do not fill": (lambda d, s: [each_file(s, put(Rows=65535, Columns=65535))], ""),
    "twelve bits allocated": (lambda d, s: [each_file(s, put(BitsAllocated=12))], "BitsAllocated|bit"),
    "colour": (
        lambda d, s: [each_file(s, put(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0))],
        "",
    ),
    "unknown transfer syntax": (lambda d, s: [each_file(s, reframe("1.2.840.10008.1.2.4.106"))], ""),
    "garbage as JPEG 2000": (lambda d, s: [each_file(s, reframe(JPEG2000Lossless))], ""),
    "garbage as RLE": (lambda d, s: [each_file(s, reframe(RLELossless))], ""),
    "volume that is not there": (lambda d, s: [s, "--volume", "9"], "--volume|volume"),
    "blank images": (
        lambda d, s: [each_file(s, put(PixelData=bytes(2 * SHAPE[1] * SHAPE[2])))],
        "no contrast",
    ),
    "folder that links to itself, otherwise empty": (lambda d, s: [loop(_empty(d))], "no "),
    "named pipe": (lambda d, s: [fifo(_empty(d))], "no "),
    "text as zip": (lambda d, s: [written(d / "a.zip", b"not a zip")], "a.zip"),
    "empty zip": (lambda d, s: [zip_of(d, {})], "a.zip"),
    "zip cut in the middle": (lambda d, s: [_cut_zip(d, s)], "a.zip"),
    "zip of a name that leaves the folder": (lambda d, s: [zip_of(d, {"../../evil.dcm": b"x" * 500})], "a.zip"),
    "zip bomb": (lambda d, s: [zip_of(d, {f"{i}.dcm": bytes(64 << 20) for i in range(3)})], "a.zip"),
    "text as NIfTI": (lambda d, s: [written(d / "a.nii", b"hello" * 200)], "a.nii"),
    "NIfTI cut in the middle": (lambda d, s: [_cut(nifti(d, "a.nii", np.ones((8, 8, 8), np.int16)))], "a.nii"),
    "gzip cut in the middle": (lambda d, s: [_cut(_noise_nifti(d))], "a.nii.gz"),
    "text in gzip": (lambda d, s: [written(d / "a.nii.gz", gzip.compress(b"hello" * 99))], "a.nii.gz"),
    "NIfTI of one plane": (lambda d, s: [nifti(d, "a.nii", np.eye(9, dtype=np.int16))], "a.nii"),
    "NIfTI without orientation": (lambda d, s: [patched_nifti(d, 280, bytes(48))], "a.nii|affine|orientation"),
    "NIfTI of not-a-number": (lambda d, s: [nifti(d, "a.nii", np.full((8, 8, 8), np.nan, np.float32))], "a.nii|finite"),
    "NIfTI of complex numbers": (lambda d, s: [nifti(d, "a.nii", np.ones((8, 8, 8), np.complex64))], "a.nii|complex"),
    "NIfTI header that claims 2 TB": (lambda d, s: [patched_nifti(d, 42, b"\xff\x7f" * 3)], "a.nii"),
    "-o is a file": (lambda d, s: [s, "-o", written(d / "out", b"")], "not a folder"),
    "-o below a file": (lambda d, s: [s, "-o", written(d / "out", b"") / "deep"], "out"),
    "unknown engine": (lambda d, s: [s, "--engine", "abacus"], "abacus"),
    "no series named": (lambda d, s: [], "SERIES"),
    "threads of zero": (lambda d, s: [s, "--threads", "0"], "--threads"),
    "precision that the bundle lacks": (lambda d, s: [s, "--precision", "bf16"], "bf16"),
}

BUNDLE_CASES = {
    "bundle that does not exist": (lambda d: d / "none", "no such folder"),
    "bundle altered": (lambda d: bundle_with(d, "encoder.onnx", b"other", sealed=False), "encoder.onnx differs"),
    "bundle with a file more": (lambda d: bundle_with(d, "run.sh", b"rm", sealed=False), "run.sh is not listed"),
    "encoder of garbage": (lambda d: bundle_with(d, "encoder.onnx", b"garbage" * 99, sealed=True), "encoder.onnx"),
    "preprocessing of garbage": (lambda d: bundle_with(d, "preprocess.cpu.dali", b"\x08garbage", sealed=True), ""),
    "manifest that leaves the folder": (
        lambda d: manifest_with(d, lambda m: m["engines"][0].update(file="../../etc/passwd")),
        "plain relative path",
    ),
    "manifest of a later schema": (
        lambda d: manifest_with(d, lambda m: m.update(schema="decipher-rt/bundle/7")),
        "bundle/7",
    ),
    "manifest with another grid than the encoder's": (
        lambda d: manifest_with(
            d, lambda m: m["preprocessing"].update(grid_shape=[48, 48, 48], patch_shape=[6, 6, 6], token_buckets=[512])
        ),
        "",
    ),
    "manifest with a label too many": (
        # Without a scope, so that the head is asked whatever the series is.
        lambda d: manifest_with(d, lambda m: (m.update(scope=None), m["heads"][0]["labels"].append("T9w"))),
        "label",
    ),
}


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def _truncate_one(folder: Path) -> Path:
    path = folder / "0002.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


def _cut(path: Path) -> Path:
    content = path.read_bytes()
    return written(path, content[: len(content) // 2])


def _noise_nifti(folder: Path) -> Path:
    return nifti(folder, "a.nii.gz", np.random.default_rng(0).integers(0, 4000, (24, 24, 24)).astype(np.int16))


def _cut_zip(folder: Path, series: Path) -> Path:
    return _cut(zip_of(folder, {p.name: p.read_bytes() for p in sorted(series.iterdir())}))


def _shift_last(folder: Path) -> Path:
    path = sorted(folder.glob("*.dcm"))[-1]
    dataset = pydicom.dcmread(path)
    row, column = np.array(dataset.ImageOrientationPatient).reshape(2, 3)
    position = np.array(dataset.ImagePositionPatient, float) + 0.4 * np.cross(row, column)
    dataset.ImagePositionPatient = [f"{x:.6f}" for x in position]
    dataset.save_as(path, enforce_file_format=True)
    return folder


def _shrink_first(folder: Path) -> Path:
    def change(dataset):
        dataset.Rows = SHAPE[1] // 2
        dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]

    return first_file(folder, change)


def _report(folder: Path) -> Path:
    def change(dataset, _):
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22"
        dataset.Modality = "SR"
        for keyword in (
            "PixelData",
            "Rows",
            "Columns",
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
        ):
            del dataset[keyword]

    return each_file(folder, change)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in sorted(folder.rglob("*")) if "self/" not in str(p)
    }


def call(arguments: list, where: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-X", "faulthandler", "-c", "from decipher_rt.cli import main; main()", "infer"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=where,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def check(run: subprocess.CompletedProcess, expected: str) -> None:
    assert run.returncode == 2, run.stderr
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith("decipher-rt: ")
    assert "Traceback" not in run.stderr
    assert "Doe" not in run.stderr
    assert "SECRET" not in run.stderr
    assert re.search(expected, run.stderr, re.IGNORECASE), f"{run.stderr!r} says nothing of {expected!r}"


@pytest.fixture
def scratch(tmp_path, write_series) -> tuple[Path, Path]:
    (tmp_path / "input").mkdir()
    (tmp_path / "here").mkdir()
    return tmp_path / "input", write_series(tmp_path / "input" / "series", SHAPE)


@pytest.mark.parametrize("case", SERIES_CASES)
def test_broken_series_and_arguments(case, scratch):
    make, expected = SERIES_CASES[case]
    folder, series = scratch
    arguments = make(folder, series)
    before = snapshot(folder.parent)
    check(call([*arguments, "--png"] if "-o" not in arguments else arguments, folder.parent / "here"), expected)
    assert snapshot(folder.parent) == before


@pytest.mark.parametrize("case", BUNDLE_CASES)
def test_broken_bundles(case, scratch):
    make, expected = BUNDLE_CASES[case]
    folder, series = scratch
    bundle = make(folder)
    before = snapshot(folder.parent)
    check(call([series, "-b", bundle, "--png"], folder.parent / "here"), expected)
    assert snapshot(folder.parent) == before


def test_the_good_series_of_these_cases_is_answered(scratch):
    folder, series = scratch
    run = call([series, "--json"], folder.parent / "here")
    assert (run.returncode, run.stderr) == (0, "")
    assert json.loads(run.stdout)["series"]["files"] == SHAPE[0]
