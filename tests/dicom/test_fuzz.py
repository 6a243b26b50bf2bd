"""No input may end in anything but the volume that pydicom gives, or a SeriesError. Seeded, and by hypothesis."""

import os
import signal
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate

from decipher_rt.dicom import parse
from decipher_rt.dicom.read import find_dicom, read_dicom
from decipher_rt.dicom.source import Source
from decipher_rt.dicom.walk import UnusualFileError
from decipher_rt.errors import SeriesError

ANYWHERE = Path("fuzz")


class NoWalker:
    def __init__(self, wanted):
        pass

    def walk(self, source):  # noqa: ARG002
        raise UnusualFileError


def outcome(files):
    """Read every series; what was read, or that it was refused."""
    sources = [Source(f"{number}.dcm", ANYWHERE, len(data), data) for number, data in enumerate(files)]
    results, messages = {}, []
    found = find_dicom(sources, ANYWHERE)
    for series in found.series:
        for gaps in (False, True):
            try:
                results[series.uid, gaps] = read_dicom(series, allow_gaps=gaps, any_modality=True)
            except SeriesError as error:
                results[series.uid, gaps] = None
                messages.append(str(error))
    assert all(len(message.splitlines()) == 1 for message in messages)
    assert found.series or found.damaged or found.foreign
    return results


def by_pydicom(files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("decipher_rt.dicom.read.Walker", NoWalker)
        return outcome(files)


def assert_same(fast, record):
    assert fast.keys() == record.keys()
    for key, volume in fast.items():
        expected = record[key]
        assert (volume is None) == (expected is None)
        if volume is not None and expected is not None:
            assert volume.series == expected.series
            assert (volume.slope, volume.intercept) == (expected.slope, expected.intercept)
            assert volume.voxels.dtype == expected.voxels.dtype
            np.testing.assert_array_equal(volume.voxels, expected.voxels)
            np.testing.assert_array_equal(volume.affine_lps_mm, expected.affine_lps_mm)


def mutate(data, generator, start=0):
    """Overwrite, cut, insert or repeat a few bytes, mostly in the header."""
    data = bytearray(data)
    for _ in range(int(generator.integers(1, 4))):
        end = len(data) if generator.random() < 0.2 else min(len(data), start + 1500)
        place = int(generator.integers(min(start, end - 1), end))
        action = generator.integers(6)
        if action == 0:
            data[place] = generator.integers(256)
        elif action == 1:
            data[place] ^= 1 << generator.integers(8)
        elif action == 2:
            data[place : place + 4] = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"][
                int(generator.integers(4))
            ]
        elif action == 3:
            del data[place : place + int(generator.integers(1, 12))]
        elif action == 4:
            data[place:place] = generator.bytes(int(generator.integers(1, 12)))
        else:
            del data[place + int(generator.integers(len(data) - place + 1)) :]
        if len(data) < 8:
            break
    return bytes(data)


@pytest.fixture(scope="module")
def synthetic_files(tmp_path_factory, write_series):
    def files(syntax, **options):
        folder = write_series(
            tmp_path_factory.mktemp("fuzz"), (3, 5, 6), transfer_syntax=syntax, RescaleSlope="2", **options
        )
        return [path.read_bytes() for path in sorted(folder.iterdir())]

    return {
        "explicit": files("1.2.840.10008.1.2.1"),
        "implicit": files("1.2.840.10008.1.2"),
        "8 bit": files("1.2.840.10008.1.2.1", dtype="uint8"),
        "MONOCHROME1": files("1.2.840.10008.1.2.1", dtype="int16", PhotometricInterpretation="MONOCHROME1"),
    }


@pytest.mark.parametrize("kind", ["explicit", "implicit", "8 bit", "MONOCHROME1"])
def test_mutated_synthetic_files(synthetic_files, kind):
    files = synthetic_files[kind]
    generator = np.random.default_rng(20240229)
    read = 0
    for _ in range(150):
        mutated = list(files)
        victim = int(generator.integers(3))
        mutated[victim] = mutate(files[victim], generator, start=128)
        fast = outcome(mutated)
        assert_same(fast, by_pydicom(mutated))
        read += sum(volume is not None for volume in fast.values())
    assert read > 20  # otherwise nothing but refusals was compared


@pytest.mark.parametrize("kind", ["explicit", "implicit"])
def test_every_truncation(synthetic_files, kind):
    files = synthetic_files[kind]
    # Every byte around the end of the file meta information, where walker and pydicom decide on the encoding.
    start = 144 + int.from_bytes(files[1][140:144], "little")
    for length in sorted({*range(0, len(files[1]), 11), *range(start - 30, start + 60)}):
        mutated = [files[0], files[1][:length], files[2]]
        fast = outcome(mutated)
        assert all(volume is None for (_, gaps), volume in fast.items() if not gaps)
        assert_same(fast, by_pydicom(mutated))


@pytest.mark.parametrize(
    "name", ["siemens_epi_fmri", "siemens_xa10_enhanced", "philips_enhanced_fmap", "philips_t1_mprage_sag"]
)
def test_mutated_real_files(shared_data, name):
    paths = sorted((shared_data / "dicom" / name).iterdir())[:2]
    files = [path.read_bytes() for path in paths]
    generator = np.random.default_rng(7)
    for _ in range(12 if "enhanced" in name else 60):
        start = int(generator.integers(128, max(129, len(files[0]) - 9000)))
        mutated = [mutate(files[0], generator, start), *files[1:]]
        assert_same(outcome(mutated), by_pydicom(mutated))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_hypothesis_on_a_file(synthetic_files, data):
    files = synthetic_files[data.draw(st.sampled_from(["explicit", "implicit"]))]
    head = bytearray(files[0])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(132, len(head) - 1))
        head[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=8))
    mutated = [bytes(head), *files[1:]]
    assert_same(outcome(mutated), by_pydicom(mutated))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_hypothesis_on_any_bytes(data, prefixed):
    files = [b"\0" * 128 + b"DICM" + data if prefixed else data]
    assert_same(outcome(files), by_pydicom(files))


@pytest.mark.parametrize("syntax", ["jpeg lossless", "jpeg-ls", "jpeg 2000", "rle"])
def test_mutated_compressed_pixels(synthetic, compressed_dataset, syntax, monkeypatch, tmp_path):
    # Some mutations keep CharLS busy for ten seconds and more: the limit is drawn in so that the test stays short.
    monkeypatch.setattr("decipher_rt.dicom.decode_process.SECONDS", 1.0)
    generator = np.random.default_rng(11)
    plane = synthetic.voxels((1, 64, 72))[0]
    dataset = compressed_dataset(plane, syntax)
    frame = bytes(pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1))
    refused = 0
    for number in range(25):
        dataset.PixelData = encapsulate([mutate(frame, generator) if number else frame])
        path = synthetic.save(dataset, tmp_path / f"{number}.dcm", dataset.file_meta.TransferSyntaxUID)
        (series,) = find_dicom([Source(path.name, path, path.stat().st_size)], path).series
        try:
            volume = read_dicom(series)
        except SeriesError:
            assert number  # the first is as it was encoded
            refused += 1
            continue
        assert volume.voxels.shape == (1, 64, 72)
        assert number or np.array_equal(volume.voxels[0], plane)
    assert refused


def test_a_decoder_that_crashes_ends_in_an_error_and_the_next_image_is_read(synthetic, compressed_dataset, tmp_path):
    from decipher_rt.dicom import decode_process

    plane = synthetic.voxels((1, 64, 72))[0]
    dataset = compressed_dataset(plane, "jpeg-ls")
    data = synthetic.save(dataset, tmp_path / "a.dcm", dataset.file_meta.TransferSyntaxUID).read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_process, "_ask", kill_and_ask(decode_process._ask))
        (series,) = find_dicom([Source("a.dcm", ANYWHERE, len(data), data)], ANYWHERE).series
        with pytest.raises(SeriesError, match="the decoder crashed"):
            read_dicom(series)
    np.testing.assert_array_equal(read_dicom(series).voxels[0], plane)


def test_what_lies_in_the_current_folder_is_never_imported(synthetic, compressed_dataset, tmp_path, monkeypatch):
    from decipher_rt.dicom import decode_process

    plane = synthetic.voxels((1, 64, 72))[0]
    dataset = compressed_dataset(plane, "jpeg-ls")
    path = synthetic.save(dataset, tmp_path / "a.dcm", dataset.file_meta.TransferSyntaxUID)
    for name in ("json", "selectors", "pydicom"):
        (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path('run').touch()")
    monkeypatch.chdir(tmp_path)
    decode_process.stop_decoding()
    (series,) = find_dicom([Source(path.name, path, path.stat().st_size)], path).series
    np.testing.assert_array_equal(read_dicom(series).voxels[0], plane)
    assert not (tmp_path / "run").exists()


def kill_and_ask(ask):
    def killed(child, *arguments):
        child.kill()
        child.wait()
        return ask(child, *arguments)

    return killed


def test_a_decoder_that_takes_too_long_is_ended(synthetic, compressed_dataset, tmp_path):
    from decipher_rt.dicom import decode_process

    dataset = compressed_dataset(synthetic.voxels((1, 64, 72))[0], "jpeg-ls")
    data = synthetic.save(dataset, tmp_path / "a.dcm", dataset.file_meta.TransferSyntaxUID).read_bytes()
    (series,) = find_dicom([Source("a.dcm", ANYWHERE, len(data), data)], ANYWHERE).series
    read_dicom(series)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_process, "SECONDS", 0.1)
        patch.setattr(decode_process, "SECONDS_PER_IMAGE", 0.1)
        os.kill(decode_process._child.pid, signal.SIGSTOP)
        with pytest.raises(SeriesError, match="took too long"):
            read_dicom(series)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_deflate_bomb_is_refused(synthetic, tmp_path, monkeypatch, on_disk):
    dataset = synthetic.slice_dataset(synthetic.voxels((1, 4, 4))[0], synthetic.oblique_affine(), 0, "1.2.3")
    data = synthetic.save(dataset, tmp_path / "a.dcm", "1.2.840.10008.1.2.1.99").read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")  # the end of the file meta information
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = b"\0" * (1 << 20)
    packed = b"".join(deflater.compress(zeros) for _ in range(200)) + deflater.flush()
    bomb = data[:start] + packed
    path = tmp_path / "bomb.dcm"
    path.write_bytes(bomb)
    monkeypatch.setattr(parse, "LARGE_FILE", 0)
    (found,) = find_dicom([Source(path.name, path, len(bomb), None if on_disk else bomb)], tmp_path).damaged
    assert "inflates to more than" in found.trouble
