"""Synthetic enhanced multi-frame objects: stacks, several volumes, shared and own groups, compression; highdicom as oracle."""

import shutil

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage

from decipher_rt.dicom import parse, pixels, read
from decipher_rt.dicom.geometry import canonical_ras
from decipher_rt.dicom.source import Source
from decipher_rt.errors import SeriesError
from decipher_rt.series import ReadOptions, find_series, read_series


def item(**values):
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return Sequence([dataset])


def no_frames(dataset):
    dataset.NumberOfFrames = 0
    dataset.PerFrameFunctionalGroupsSequence = []
    dataset.PixelData = b""


@pytest.fixture
def write_enhanced(tmp_path, synthetic):
    """Write frames, each (plane, affine, slice index, {keyword: value for the frame}), as one enhanced MR object."""

    def write(frames, name="enhanced.dcm", shared_geometry=True, syntax=None, edit=None):
        plane, affine, *_ = frames[0]
        dataset = synthetic.slice_dataset(plane, affine, 0, "1.2.3")
        dataset.SOPClassUID = EnhancedMRImageStorage
        dataset.SOPInstanceUID = f"1.2.3.{len(frames)}.{len(name)}"
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "EchoTime",
                        "SpacingBetweenSlices", "RepetitionTime", "FlipAngle", "ScanningSequence"):  # fmt: skip
            delattr(dataset, keyword)
        dataset.EchoPulseSequence = "SPIN"
        dataset.NumberOfFrames = len(frames)
        dataset.PixelData = b"".join(np.ascontiguousarray(frame[0]).tobytes() for frame in frames)
        dataset["PixelData"].VR = "OW"
        shared, own = Dataset(), []
        shared.MRTimingAndRelatedParametersSequence = item(RepetitionTime="900", FlipAngle="90")
        for plane, affine, index, values in frames:
            classic = synthetic.slice_dataset(plane, affine, index, "1.2.3")
            group = Dataset()
            where = shared if shared_geometry else group
            where.PixelMeasuresSequence = item(
                PixelSpacing=classic.PixelSpacing,
                SliceThickness=classic.SliceThickness,
                SpacingBetweenSlices=classic.SpacingBetweenSlices,
            )
            where.PlaneOrientationSequence = item(ImageOrientationPatient=classic.ImageOrientationPatient)
            group.PlanePositionSequence = item(ImagePositionPatient=classic.ImagePositionPatient)
            group.PixelValueTransformationSequence = item(
                RescaleSlope=values.get("slope", "1"), RescaleIntercept="0", RescaleType="US"
            )
            group.MREchoSequence = item(EffectiveEchoTime=float(values.get("echo", 12.0)))
            group.MRImageFrameTypeSequence = item(
                FrameType=["ORIGINAL", "PRIMARY", "T1", "NONE"],
                ComplexImageComponent=values.get("component", "MAGNITUDE"),
            )
            group.FrameContentSequence = item(
                StackID=values.get("stack", "1"),
                InStackPositionNumber=index + 1,
                TemporalPositionIndex=values.get("time", 1),
            )
            own.append(group)
        dataset.SharedFunctionalGroupsSequence = Sequence([shared])
        dataset.PerFrameFunctionalGroupsSequence = Sequence(own)
        if edit:
            edit(dataset)
        if syntax:
            dataset.file_meta = pydicom.dataset.FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
            dataset.compress(syntax, generate_instance_uid=False)
        return synthetic.save(dataset, tmp_path / name, syntax or "1.2.840.10008.1.2.1")

    return write


def frames_of(voxels, affine, order=None, **values):
    return [(voxels[index], affine, index, values) for index in (order if order is not None else range(len(voxels)))]


@pytest.mark.parametrize("shared_geometry", [True, False])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_stack_equals_highdicom(write_enhanced, synthetic, shared_geometry, seed):
    voxels, affine = synthetic.voxels((5, 6, 7), seed=seed), synthetic.oblique_affine((4.0, 1.5, 2.0), seed)
    order = np.random.default_rng(seed).permutation(5).tolist()
    path = write_enhanced(frames_of(voxels, affine, order), shared_geometry=shared_geometry)
    ours = read_series(find_series(path)[0])
    theirs = highdicom.imread(path).get_volume(apply_real_world_transform=False, apply_modality_transform=False)
    frames = []
    for own_affine, array in ((ours.affine_lps_mm, ours.voxels), (theirs.get_affine("LPH"), theirs.array)):
        frame = canonical_ras(own_affine, array.shape)
        turned = array.transpose(frame.permutation)[tuple(slice(None, None, -1 if flip else 1) for flip in frame.flips)]
        frames.append((frame.affine_ras_mm, turned))
    np.testing.assert_allclose(frames[0][0], frames[1][0], atol=1e-4)
    np.testing.assert_array_equal(frames[0][1], frames[1][1])
    acquisition = ours.series.acquisition
    assert (acquisition.repetition_time_ms, acquisition.echo_time_ms, acquisition.flip_angle_deg) == (900, 12, 90)
    assert acquisition.scanning_sequence == "SE"


@pytest.mark.parametrize("key", ["time", "echo"])
def test_several_volumes_in_one_file(write_enhanced, synthetic, key):
    affine = synthetic.oblique_affine()
    volumes = [synthetic.voxels((4, 5, 6), seed=number) for number in range(3)]
    frames = [
        frame for number, voxels in enumerate(volumes) for frame in frames_of(voxels, affine, **{key: number + 1})
    ]
    frames = [frames[index] for index in np.arange(12).reshape(3, 4).T.ravel()]  # all volumes of a slice, then the next
    (series,) = find_series(write_enhanced(frames))
    for number, expected in enumerate(volumes):
        volume = read_series(series, ReadOptions(volume=number))
        np.testing.assert_array_equal(volume.voxels, expected)
        assert volume.series.volumes == 3
        assert volume.histogram.counts.sum() == expected.size


def test_the_largest_of_several_stacks(write_enhanced, synthetic):
    small, large = synthetic.voxels((3, 5, 6), seed=1), synthetic.voxels((4, 5, 6), seed=2)
    one, other = synthetic.oblique_affine(seed=1), synthetic.oblique_affine(seed=2)
    path = write_enhanced(frames_of(small, one, stack="1") + frames_of(large, other, stack="2"), shared_geometry=False)
    volume = read_series(find_series(path)[0])
    np.testing.assert_array_equal(volume.voxels, large)
    assert any("3 images in 1 other stacks" in warning for warning in volume.series.warnings)


def test_parallel_stacks_by_their_names(write_enhanced, synthetic):
    """Two slabs of one direction with a space between them are two stacks where the file says so."""
    affine = synthetic.oblique_affine()
    beyond = affine.copy()
    beyond[:3, 3] += 17.3 * affine[:3, 0]
    one, two = synthetic.voxels((4, 5, 6), seed=1), synthetic.voxels((3, 5, 6), seed=2)
    path = write_enhanced(frames_of(one, affine, stack="1") + frames_of(two, beyond, stack="2"), shared_geometry=False)
    np.testing.assert_array_equal(read_series(find_series(path)[0]).voxels, one)


def test_magnitude_and_phase_in_one_file(write_enhanced, synthetic):
    affine = synthetic.oblique_affine()
    phase, magnitude = synthetic.voxels((3, 5, 6), seed=1), synthetic.voxels((3, 5, 6), seed=2)
    path = write_enhanced(frames_of(phase, affine, component="PHASE", slope="2") + frames_of(magnitude, affine))
    (series,) = find_series(path)
    first, second = read_series(series), read_series(series, ReadOptions(volume=1))
    np.testing.assert_array_equal(first.voxels, magnitude)
    np.testing.assert_array_equal(second.voxels, phase)
    assert (first.slope, second.slope) == (1, 2)
    assert any("3 phase images" in warning for warning in first.series.warnings)


def test_slopes_that_vary_by_frame(write_enhanced, synthetic):
    affine, voxels = synthetic.oblique_affine(), synthetic.voxels((3, 5, 6))
    frames = [(plane, affine, index, {"slope": str(index + 0.5)}) for index, plane in enumerate(voxels)]
    volume = read_series(find_series(write_enhanced(frames))[0])
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.voxels, voxels * np.array([0.5, 1.5, 2.5])[:, None, None], rtol=1e-6)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"])
def test_compressed_frames(write_enhanced, synthetic, syntax):
    affine, voxels = synthetic.oblique_affine(), synthetic.voxels((4, 40, 48))
    order = [2, 0, 3, 1]
    path = write_enhanced(frames_of(voxels, affine, order), syntax=syntax)
    np.testing.assert_array_equal(read_series(find_series(path)[0]).voxels, voxels)


@pytest.mark.parametrize("syntax", [None, "1.2.840.10008.1.2.5"])
@pytest.mark.parametrize("kept", [1.0, 0.99, 0.9, 0.5, 0.2])
def test_a_large_file_gives_without_its_pixels_what_it_gives_read_whole(
    write_enhanced, synthetic, monkeypatch, syntax, kept
):
    voxels = synthetic.voxels((4, 300, 300))  # larger than what is left out
    path = write_enhanced(frames_of(voxels, synthetic.oblique_affine()), syntax=syntax)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    source = Source(path.name, path, path.stat().st_size)
    whole = parse.parse_with_pydicom(source)
    monkeypatch.setattr(parse, "LARGE_FILE", 0)
    monkeypatch.setattr(parse, "read_dataset", None)
    assert parse.parse_with_pydicom(source) == whole


def test_a_copy_of_a_compressed_file_is_left_out_undecoded(write_enhanced, synthetic, tmp_path, monkeypatch):
    voxels = synthetic.voxels((4, 5, 6))
    path = write_enhanced(frames_of(voxels, synthetic.oblique_affine()), syntax="1.2.840.10008.1.2.5")
    shutil.copy(path, tmp_path / "copy.dcm")
    monkeypatch.setattr(read, "plane_digests", lambda frames: None)
    volume = read_series(find_series(tmp_path)[0])
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert any(warning.startswith("4 duplicate images were left out") for warning in volume.series.warnings)


def test_two_compressed_files_are_compared_by_decoding_each_once(write_enhanced, synthetic, tmp_path, monkeypatch):
    voxels = synthetic.voxels((4, 5, 6))
    path = write_enhanced(frames_of(voxels, synthetic.oblique_affine()), syntax="1.2.840.10008.1.2.5")
    dataset = pydicom.dcmread(path)
    dataset.SeriesDescription = "exported again"
    dataset.save_as(tmp_path / "copy.dcm")
    decode, decoded = pixels.decode_planes, []
    monkeypatch.setattr(pixels, "decode_planes", lambda source, *more: decoded.append(source) or decode(source, *more))
    volume = read_series(find_series(tmp_path)[0])
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert any(warning.startswith("4 duplicate images were left out") for warning in volume.series.warnings)
    assert len(decoded) == 3  # to compare, and the voxels


def without(*path):
    def edit(dataset):
        for part in path[:-1]:
            dataset = dataset[part].value[1 if part.startswith("PerFrame") else 0]
        del dataset[path[-1]]

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (without("PerFrameFunctionalGroupsSequence", "PlanePositionSequence"), "frame 2 does not say where it lies"),
        (without("SharedFunctionalGroupsSequence", "PixelMeasuresSequence"), r"frame 1 .* no usable Pixel Spacing"),
        (
            lambda dataset: setattr(dataset, "NumberOfFrames", 3),
            r"240 bytes of pixel data|3 frames, and functional groups for 4",
        ),
        (lambda dataset: setattr(dataset, "NumberOfFrames", 9), "is cut off: its pixel data has 240 of 540"),
        (lambda dataset: setattr(dataset, "NumberOfFrames", 10**9), "is cut off"),
        (no_frames, "has 0 frames"),
        (lambda dataset: dataset.PerFrameFunctionalGroupsSequence.pop(), "4 frames, and functional groups for 3"),
        (without("PerFrameFunctionalGroupsSequence"), "several images without functional groups"),
    ],
)
def test_broken_functional_groups(write_enhanced, synthetic, edit, message):
    path = write_enhanced(frames_of(synthetic.voxels((4, 5, 6)), synthetic.oblique_affine()), edit=edit)
    with pytest.raises(SeriesError, match=rf"enhanced\.dcm: .*({message})"):
        read_series(find_series(path)[0])


def test_slices_side_by_side_in_one_frame_are_refused(write_enhanced, synthetic):
    """Navigators of Siemens XA; objects of several frames keep the word in their Image Type and are read."""

    def mosaic(dataset):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]

    voxels, affine = synthetic.voxels((2, 12, 16)), synthetic.oblique_affine((4, 2, 2), None)
    with pytest.raises(SeriesError, match="is a mosaic in an enhanced object"):
        read_series(find_series(write_enhanced(frames_of(voxels[:1], affine), edit=mosaic))[0])
    path = write_enhanced(frames_of(voxels, affine), name="two.dcm", edit=mosaic)
    assert read_series(find_series(path)[0]).voxels.shape == (2, 12, 16)
