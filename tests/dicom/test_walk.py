"""The fast path: identical to pydicom on real and synthetic files, and refusing what is unusual."""

import subprocess
import sys
import warnings

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from decipher_rt.dicom import walk
from decipher_rt.dicom.image import ENHANCED, ImageFile
from decipher_rt.dicom.parse import parse_file, parse_with_pydicom, wanted_tags
from decipher_rt.dicom.source import Source, sources
from decipher_rt.dicom.walk import UnusualFileError, Walker

CLASSIC = [
    "ge_epi_fmri_ax", "ge_t1_mprage_ax", "philips_t1_mprage_sag", "siemens_epi_fmri", "siemens_t1_fl2d_sag_hfp",
    "siemens_t1_fl2d_sag_hfs",
]  # fmt: skip
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


def walked(source, walker=None):
    return (walker or Walker(wanted_tags(keep_phi=True))).walk(source)


def source_of(path):
    return Source(path.name, path, path.stat().st_size)


@pytest.mark.parametrize("name", CLASSIC)
def test_real_files_give_what_pydicom_gives(shared_data, name):
    walker = Walker(wanted_tags(keep_phi=False))
    fast_walker = Walker(wanted_tags(keep_phi=False))
    for source in list(sources(shared_data / "dicom" / name))[::7]:
        fast_walker.walk(source)  # raises where the fast path would fall back
        fast = parse_file(source, walker)
        assert isinstance(fast, ImageFile)
        assert fast.frames
        assert fast == parse_with_pydicom(source)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_nested_sequences_are_walked(tmp_path, synthetic, syntax):
    def nested(depth):
        item = Dataset()
        item.CodeValue = "7FE0"
        if depth:
            item.ConceptCodeSequence = Sequence([nested(depth - 1), nested(0)])
            item["ConceptCodeSequence"].is_undefined_length = bool(depth % 2)
            for part in item.ConceptCodeSequence:
                part.is_undefined_length_sequence_item = bool(depth % 3)
        return item

    voxels = synthetic.voxels((4, 5, 6))
    walker = Walker(wanted_tags(keep_phi=False))
    for index in range(4):
        dataset = synthetic.slice_dataset(voxels[index], synthetic.oblique_affine(), index, "1.2.3")
        dataset.ProcedureCodeSequence = Sequence([nested(index), Dataset()])
        dataset["ProcedureCodeSequence"].is_undefined_length = True
        path = synthetic.save(dataset, tmp_path / f"{index}.dcm", syntax)
        source = source_of(path)
        found = walker.walk(source)
        assert source.read(found.pixel_offset, found.pixel_length) == voxels[index].tobytes()
        assert parse_file(source, Walker(wanted_tags(False))) == parse_with_pydicom(source)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("SeriesDescription", "T1 Schädel"),
        ("SeriesDescription", "頭部"),
        ("SeriesDescription", ""),
        ("SeriesDescription", "a\\b\\\\c"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "", "P"]),
        ("ImageType", None),
        ("EchoTime", ""),
        ("EchoTime", " 3.5e0 "),
        ("RepetitionTime", None),
        ("InstanceNumber", "+7"),
        ("TriggerTime", "12.5"),
        ("TemporalPositionIdentifier", "3"),
        ("RescaleSlope", "2"),
        ("ScanningSequence", ["SE", "IR"]),
        ("PatientName", "Müller^Jörg"),
        ("BodyPartExamined", " HEAD"),
        ("LossyImageCompression", "01"),
        ("DiffusionBValue", 1000.0),
        ("DataSetTrailingPadding", b"\0\0\0\0"),
    ],
)
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
@pytest.mark.parametrize("charset", [None, "ISO_IR 100", "ISO_IR 192"])
def test_odd_values_give_what_pydicom_gives(tmp_path, synthetic, keyword, value, syntax, charset):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom, of what is written on purpose
        dataset = synthetic.slice_dataset(synthetic.voxels((1, 4, 4))[0], synthetic.oblique_affine(), 0, "1.2.3")
        dataset.SpecificCharacterSet = charset
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
        try:
            path = synthetic.save(dataset, tmp_path / "a.dcm", syntax)
        except UnicodeEncodeError:
            pytest.skip("this character set does not hold this text")
    fast = parse_file(source_of(path), Walker(wanted_tags(True)), keep_phi=True)
    assert isinstance(fast, ImageFile)
    assert fast == parse_with_pydicom(source_of(path), keep_phi=True)


def test_files_that_grow_shrink_and_miss_elements(tmp_path, synthetic):
    """The memory of the previous file must never leak into the next one."""
    walker = Walker(wanted_tags(keep_phi=False))
    voxels = synthetic.voxels((1, 4, 4))[0]
    edits = [
        {}, {"EchoTime": None}, {}, {"TriggerTime": "1"}, {"EchoTime": "12.25"}, {"ImageType": None}, {"EchoTime": "3"},
        {"SeriesDescription": "x" * 64, "TriggerTime": "7"}, {"SeriesDescription": None}, {},
    ]  # fmt: skip
    for number, edit in enumerate(edits * 2):
        dataset = synthetic.slice_dataset(voxels, synthetic.oblique_affine(seed=number), number, "1.2.3", **edit)
        syntax = IMPLICIT if number % 4 == 3 else EXPLICIT
        source = source_of(synthetic.save(dataset, tmp_path / f"{number}.dcm", syntax))
        walked(source)
        assert parse_file(source, walker) == parse_with_pydicom(source)


def spoil(path, find, replace):
    data = path.read_bytes()
    assert find in data
    path.write_bytes(data.replace(find, replace, 1))
    return source_of(path)


@pytest.mark.parametrize(
    ("find", "replace"),
    [
        (b"DICM", b"DICN"),
        (b"\x08\x00\x60\x00CS", b"\x08\x00\x60\x00cs"),  # no value representation
        (b"\x08\x00\x60\x00CS", b"\x08\x00\x60\x00LO"),  # another one than the standard's
        (b"\x18\x00\x81\x00DS", b"\x08\x00\x81\x00DS"),  # tags that do not ascend
        (b"\x18\x00\x81\x00DS\x04\x00", b"\x18\x00\x81\x00DS\xff\xff"),  # longer than the file
        (b"\xe0\x7f\x10\x00OW\0\0", b"\xe0\x7f\x11\x00OW\0\0"),
        (b"\xe0\x7f\x10\x00OW\0\0\x20\0\0\0", b"\xe0\x7f\x10\x00OW\0\0\x22\0\0\0"),
        (b"\xe0\x7f\x10\x00OW\0\0\x20\0\0\0", b"\xe0\x7f\x10\x00OW\0\0\x1e\0\0\0"),
        (b"\xe0\x7f\x10\x00OW\0\0\x20\0\0\0", b"\xe0\x7f\x10\x00OW\0\0\xff\xff\xff\xff"),
        (b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"),
    ],
)
def test_what_is_unusual_is_left_to_pydicom(tmp_path, synthetic, find, replace):
    dataset = synthetic.slice_dataset(synthetic.voxels((1, 4, 4))[0], synthetic.oblique_affine(), 0, "1.2.3")
    path = synthetic.save(dataset, tmp_path / "a.dcm", EXPLICIT)
    walked(source_of(path))
    with pytest.raises(UnusualFileError):
        walked(spoil(path, find, replace))


@pytest.mark.parametrize("sop_class", ENHANCED)
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_functional_groups_are_not_walked(tmp_path, synthetic, monkeypatch, sop_class, syntax):
    """The header of an enhanced object may have megabytes; pydicom reads them all the same."""
    dataset = synthetic.slice_dataset(synthetic.voxels((1, 4, 4))[0], synthetic.oblique_affine(), 0, "1.2.3")
    walker = Walker(wanted_tags(keep_phi=False))
    walker.walk(source_of(synthetic.save(dataset, tmp_path / "classic.dcm", syntax)))
    dataset.SOPClassUID = sop_class
    dataset.PerFrameFunctionalGroupsSequence = [Dataset()]
    dataset["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    source = source_of(synthetic.save(dataset, tmp_path / "enhanced.dcm", syntax))
    monkeypatch.delattr(walk, "_sequence_end")
    with pytest.raises(UnusualFileError, match="functional groups"):
        walker.walk(source)


def test_no_value_of_the_patient_is_kept_unless_asked_for(tmp_path, synthetic):
    dataset = synthetic.slice_dataset(synthetic.voxels((1, 4, 4))[0], synthetic.oblique_affine(), 0, "1.2.3")
    source = source_of(synthetic.save(dataset, tmp_path / "a.dcm"))
    for parsed in (parse_file(source, Walker(wanted_tags(False))), parse_with_pydicom(source)):
        assert "Jane" not in repr(parsed)
        assert "SECRET" not in repr(parsed)
    kept = parse_file(source, Walker(wanted_tags(True)), keep_phi=True)
    assert kept == parse_with_pydicom(source, keep_phi=True)
    assert kept.patient == {"name": "Doe^Jane", "id": "SECRET-1"}


def test_the_fast_path_imports_neither_pydicom_nor_nibabel(tmp_path, write_series):
    folder = write_series(tmp_path / "series")
    code = (
        "import sys; from pathlib import Path; from decipher_rt.series import find_series, read_series;"
        f"v = read_series(find_series(Path({str(folder)!r}))[0]); assert v.voxels.shape == (6, 10, 12);"
        "heavy = {'pydicom', 'nibabel', 'torch', 'PIL', 'scipy', 'onnxruntime', 'gdcm'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pydicom_is_the_version_that_the_walker_was_checked_against():
    assert pydicom.__version_info__[0] == "3"
