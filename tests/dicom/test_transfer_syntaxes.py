"""Every transfer syntax that is read, against what was written and against pydicom's own files."""

import logging
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from decipher_rt.dicom import decode
from decipher_rt.dicom.decode_process import stop_decoding
from decipher_rt.dicom.parse import quiet_pydicom
from decipher_rt.errors import SeriesError
from decipher_rt.series import ReadOptions, find_series, read_series

COMPRESSIONS = ["rle", "jpeg-ls", "jpeg 2000", "jpeg lossless"]
NATIVE = {
    "implicit little endian": "1.2.840.10008.1.2",
    "explicit little endian": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
}


@pytest.mark.parametrize("syntax", list(NATIVE))
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_uncompressed(tmp_path, write_series, synthetic, syntax, dtype):
    voxels = synthetic.voxels((3, 5, 7), np.dtype(dtype))
    folder = write_series(tmp_path / "s", voxels=voxels, transfer_syntax=NATIVE[syntax])
    volume = read_series(find_series(folder)[0])
    np.testing.assert_array_equal(volume.voxels, voxels)
    kept = {"uint8": "uint8", "int8": "int16", "uint16": "uint16", "int16": "int16"}
    assert volume.voxels.dtype == kept.get(dtype, "float32")
    assert (volume.histogram is None) == (dtype not in kept)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32"])
def test_big_endian(tmp_path, synthetic, dtype):
    voxels = synthetic.voxels((3, 5, 8), np.dtype(dtype))
    affine = synthetic.oblique_affine()
    for index, plane in enumerate(voxels):
        dataset = synthetic.slice_dataset(plane, affine, index, "1.2.3")
        dataset.PixelData = plane.astype(plane.dtype.newbyteorder(">")).tobytes()
        if dtype == "uint8":
            dataset["PixelData"].VR = "OB"
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        pydicom.dcmwrite(
            tmp_path / f"{index}.dcm", dataset, implicit_vr=False, little_endian=False, enforce_file_format=True
        )
    np.testing.assert_array_equal(read_series(find_series(tmp_path)[0]).voxels, voxels)


@pytest.mark.parametrize("name", COMPRESSIONS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_compressed_without_loss(tmp_path, synthetic, compressed_dataset, name, dtype):
    voxels = synthetic.voxels((3, 40, 48), np.dtype(dtype))
    affine = synthetic.oblique_affine()
    for index, plane in enumerate(voxels):
        dataset = compressed_dataset(plane, name, index, affine)
        synthetic.save(dataset, tmp_path / f"{index}.dcm", dataset.file_meta.TransferSyntaxUID)
    volume = read_series(find_series(tmp_path)[0])
    assert volume.voxels.dtype == dtype
    np.testing.assert_array_equal(volume.voxels, voxels)
    levels, counts = np.unique(voxels, return_counts=True)
    assert volume.histogram.first == levels[0]
    np.testing.assert_array_equal(volume.histogram.counts[levels.astype(int) - int(levels[0])], counts)


@pytest.mark.parametrize(
    "name",
    ["MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm",
     "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm", "MR_small_expb.dcm"],
)  # fmt: skip
def test_one_image_in_many_encodings(name):
    """pydicom's MR_small is one GE image in many encodings: all must read as the first."""
    volume = read_series(find_series(Path(get_testdata_file(name)))[0])
    expected = pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array
    np.testing.assert_array_equal(volume.voxels[0], expected)
    plain = read_series(find_series(Path(get_testdata_file("MR_small.dcm")))[0])
    np.testing.assert_allclose(volume.affine_lps_mm, plain.affine_lps_mm, atol=1e-9)


def test_lossy_compression_is_reported(tmp_path, synthetic, compressed_dataset):
    dataset = compressed_dataset(synthetic.voxels((1, 40, 48))[0], "jpeg-ls", LossyImageCompression="01")
    path = synthetic.save(dataset, tmp_path / "a.dcm", dataset.file_meta.TransferSyntaxUID)
    assert any("loss" in warning for warning in read_series(find_series(path)[0]).series.warnings)


@pytest.mark.parametrize(
    ("uid", "words"),
    [
        ("1.2.840.10008.1.2.4.102", "MPEG-4"),
        ("1.2.840.10008.1.2.4.90", "not compressed as the file says"),
        ("1.2.3.4", "unknown transfer syntax"),
    ],
)
def test_what_no_decoder_reads_is_said(tmp_path, synthetic, compressed_dataset, uid, words):
    dataset = compressed_dataset(synthetic.voxels((1, 40, 48))[0], "rle")
    path = synthetic.save(dataset, tmp_path / "a.dcm", "1.2.840.10008.1.2.5")
    old = b"UI\x14\x001.2.840.10008.1.2.5\0"
    data = path.read_bytes()
    assert old in data
    value = uid.encode() + b"\0" * (len(uid) % 2)
    data = data.replace(old, b"UI" + len(value).to_bytes(2, "little") + value)
    length = int.from_bytes(data[140:144], "little") + len(value) - 20
    path.write_bytes(data[:140] + length.to_bytes(4, "little") + data[144:])
    (series,) = find_series(path)
    with pytest.raises(SeriesError, match=words) as error:
        read_series(series, ReadOptions(any_modality=True))
    assert "a.dcm" in str(error.value)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_an_image_of_another_size_than_the_header_says(tmp_path, synthetic, compressed_dataset, name):
    dataset = compressed_dataset(synthetic.voxels((1, 40, 48))[0], name)
    dataset.Rows, dataset.Columns = 80, 96
    path = synthetic.save(dataset, tmp_path / "a.dcm", dataset.file_meta.TransferSyntaxUID)
    with pytest.raises(SeriesError, match=r"a\.dcm: (image 1 is compressed with 40 x 48|the pixels cannot be decoded)"):
        read_series(find_series(path)[0])


def test_decoders_of_other_licences_are_never_asked():
    """pylibjpeg is asked only for JPEG 2000 (openjpeg); for JPEG and RLE pydicom would take GPL code through it."""
    by_pylibjpeg = {syntax for syntax, plugin in decode.DECODERS.items() if plugin == "pylibjpeg"}
    assert all(
        pydicom.uid.UID(syntax).name.startswith(("JPEG 2000", "High-Throughput JPEG 2000")) for syntax in by_pylibjpeg
    )
    known = {str(uid) for uid in pydicom.uid.AllTransferSyntaxes if uid.is_encapsulated}
    assert set(decode.DECODERS) <= known


def test_a_damaged_image_writes_nothing_to_the_terminal(tmp_path, synthetic, compressed_dataset):
    dataset = compressed_dataset(synthetic.voxels((1, 40, 48))[0], "jpeg lossless")
    path = synthetic.save(dataset, tmp_path / "a.dcm", dataset.file_meta.TransferSyntaxUID)
    data = bytearray(path.read_bytes())
    data[-600:-100] = bytes(range(250)) * 2
    path.write_bytes(data)
    code = (
        "import sys; from pathlib import Path; from decipher_rt.series import *; from decipher_rt.errors import SeriesError\n"
        f"try: read_series(find_series(Path({str(path)!r}))[0])\nexcept SeriesError: pass"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert done.stdout + done.stderr == b""


def test_a_process_that_was_forked_decodes_for_itself(tmp_path, synthetic, compressed_dataset):
    dataset = compressed_dataset(synthetic.voxels((1, 40, 48))[0], "jpeg-ls")
    path = synthetic.save(dataset, tmp_path / "a.dcm", dataset.file_meta.TransferSyntaxUID)
    program = f"""
import os
from pathlib import Path
from decipher_rt.series import find_series, read_series
read = lambda: read_series(find_series(Path({str(path)!r}))[0]).voxels.sum()
total = read()
if not (child := os.fork()):
    os._exit(int(read() != total))
_, status = os.waitpid(child, 0)
assert read() == total
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=100)


def test_a_process_forked_while_a_thread_reads_is_not_silent():
    """Of the thread nothing is left in the child, nobody would undo what it had done."""
    program = """
import logging, os, threading
from decipher_rt.quiet import quiet
inside, forked = threading.Event(), threading.Event()
def read():
    with quiet("pydicom"):
        inside.set()
        forked.wait()
thread = threading.Thread(target=read)
thread.start()
inside.wait()
if not (child := os.fork()):
    os._exit(logging.getLogger("pydicom").level > logging.CRITICAL)
forked.set()
thread.join()
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=100)


@pytest.mark.parametrize("python", ["", None, "/bin/true"])
def test_a_host_that_is_no_python_is_told_what_decodes(monkeypatch, python):
    (series,) = find_series(Path(get_testdata_file("MR_small_jp2klossless.dcm")))
    stop_decoding()
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(SeriesError, match=r"a Python process of its own, which does not start: sys\.executable is"):
        read_series(series)


def test_two_threads_that_read_leave_the_process_as_it_was():
    before = (
        list(warnings.filters),
        logging.getLogger("pydicom").level,
        pydicom.config.settings.reading_validation_mode,
    )
    inside, gone = threading.Event(), threading.Event()

    def first():
        with quiet_pydicom():
            inside.set()
            entered.wait(0.2)  # in vain: the second waits until this one has left
        gone.set()

    entered = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with quiet_pydicom():
        entered.set()
        gone.wait()
    thread.join()
    after = (
        list(warnings.filters),
        logging.getLogger("pydicom").level,
        pydicom.config.settings.reading_validation_mode,
    )
    assert after == before
