"""Several volumes, kinds of image, stacks and duplicates in one series."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from decipher_rt.dicom.read import find_dicom
from decipher_rt.dicom.source import sources
from decipher_rt.dicom.volumes import drop_duplicates, split_volumes
from decipher_rt.errors import SeriesError
from decipher_rt.series import ReadOptions, find_series, read_series

SHAPE = (4, 6, 7)


@pytest.fixture
def many(tmp_path, write_series, synthetic):
    """Write several volumes of one series, each with its own keywords; return the folder and the voxels."""

    def write(*keywords, shape=SHAPE, affine=None, numbered=True):
        voxels = []
        for number, overrides in enumerate(keywords):

            def edit(dataset, index, number=number):
                if numbered:
                    dataset.InstanceNumber = number * shape[0] + index + 1
                dataset.SOPInstanceUID = f"1.2.3.{number}.{index + 1}"

            write_series(
                tmp_path / "many",
                shape,
                affine,
                seed=number,
                series_uid="1.2.3",
                prefix=f"{number}-",
                edit=edit,
                **overrides,
            )
            voxels.append(synthetic.voxels(shape, np.uint16, number))
        return tmp_path / "many", voxels

    return write


def read_all(folder):
    (series,) = find_series(folder)
    first = read_series(series)
    rest = [read_series(series, ReadOptions(volume=number)) for number in range(1, first.series.volumes)]
    with pytest.raises(SeriesError, match=f"has {first.series.volumes} volumes, --volume {first.series.volumes}"):
        read_series(series, ReadOptions(volume=first.series.volumes))
    with pytest.raises(SeriesError, match="--volume -1 is none of them"):
        read_series(series, ReadOptions(volume=-1))
    return [first, *rest]


@pytest.mark.parametrize(
    "keywords",
    [
        [{"TemporalPositionIdentifier": number} for number in (1, 2, 3)],
        [{"EchoTime": time} for time in ("5", "10", "15.5")],
        [{"DiffusionBValue": value} for value in (0.0, 500.0, 1000.0)],
        [{"AcquisitionNumber": number} for number in (1, 2, 3)],
        [{"TriggerTime": time} for time in ("0", "40", "80")],
        [{"InversionTime": time} for time in ("100", "400", "900")],
        [{"FlipAngle": angle} for angle in ("2", "10", "20")],
        [{"ImageType": ["ORIGINAL", "PRIMARY", "M", word]} for word in ("WATER", "FAT", "IN_PHASE")],
        [{}, {}, {}],
        [
            {"TemporalPositionIdentifier": time, "EchoTime": echo}
            for time, echo in ((1, "5"), (1, "10"), (2, "5"), (2, "10"))
        ],
    ],
    ids=[
        "time",
        "echo",
        "b-value",
        "acquisition",
        "trigger",
        "inversion",
        "flip",
        "dixon",
        "number only",
        "time and echo",
    ],
)
def test_volumes_at_the_same_places(many, keywords):
    folder, voxels = many(*keywords)
    volumes = read_all(folder)
    assert len(volumes) == len(keywords)
    for number, (volume, expected) in enumerate(zip(volumes, voxels, strict=True)):
        np.testing.assert_array_equal(volume.voxels, expected)
        assert (volume.series.volume_index, volume.series.volumes) == (number, len(keywords))
        assert any("--volume" in warning for warning in volume.series.warnings)
        assert volume.series.files == len(keywords) * SHAPE[0]


def test_an_echo_time_that_varies_in_its_last_digit_does_not_part_a_volume(tmp_path, write_series, synthetic):
    echo_times = ((2.99, 2.98, 2.98, 2.99), (2.98, 2.98, 2.99, 2.98))
    for number, times in enumerate(echo_times, 1):

        def edit(dataset, index, number=number, times=times):
            dataset.EchoTime, dataset.AcquisitionNumber = times[index], number
            dataset.SOPInstanceUID = f"1.2.3.{number}.{index}"

        write_series(tmp_path / "s", SHAPE, seed=number, series_uid="1.2.3", prefix=f"{number}-", edit=edit)
    for number, volume in enumerate(read_all(tmp_path / "s"), 1):
        np.testing.assert_array_equal(volume.voxels, synthetic.voxels(SHAPE, np.uint16, number))
        assert volume.series.volumes == 2


def test_inversion_times_that_hardly_differ_tell_volumes_apart_where_nothing_else_does(many):
    folder, voxels = many(*({"InversionTime": time} for time in ("3000", "3010", "3020")))
    (folder / "2-0003.dcm").unlink()
    volume = read_series(find_series(folder)[0], ReadOptions(volume=1))
    np.testing.assert_array_equal(volume.voxels, voxels[1])


def test_a_time_that_differs_everywhere_numbers_nothing(many, tmp_path, write_series, synthetic):
    def edit(dataset, index):
        dataset.TriggerTime = str(index * 31)
        dataset.AcquisitionNumber = index // 2

    folder = write_series(tmp_path / "one", SHAPE, edit=edit)
    (volume,) = read_all(folder)
    np.testing.assert_array_equal(volume.voxels, synthetic.voxels(SHAPE))


def test_instance_numbers_that_run_over_volumes_first(tmp_path, write_series, synthetic):
    """Philips counts all times of a slice, then the next slice."""
    for time in range(3):

        def edit(dataset, index, time=time):
            dataset.InstanceNumber = index * 3 + time + 1
            dataset.SOPInstanceUID = f"1.2.3.{time}.{index + 1}"

        write_series(tmp_path / "s", SHAPE, seed=time, series_uid="1.2.3", prefix=f"{time}-", edit=edit)
    for time, volume in enumerate(read_all(tmp_path / "s")):
        np.testing.assert_array_equal(volume.voxels, synthetic.voxels(SHAPE, np.uint16, time))


def test_images_that_nothing_tells_apart_are_refused(many):
    folder, _ = many({"InstanceNumber": 5}, {"InstanceNumber": 5}, numbered=False)
    with pytest.raises(SeriesError, match=r"cannot be told apart into volumes: 2 at \(.*mm LPS"):
        read_series(find_series(folder)[0])


def test_an_incomplete_last_volume(many):
    folder, voxels = many(*({"TemporalPositionIdentifier": number} for number in (1, 2, 3)))
    (folder / "2-0003.dcm").unlink()
    (series,) = find_series(folder)
    volume = read_series(series, ReadOptions(volume=1))
    np.testing.assert_array_equal(volume.voxels, voxels[1])
    assert any("volume 2 has 3 slices, 1 fewer" in warning for warning in volume.series.warnings)
    with pytest.raises(SeriesError, match=r"volume 2 has 3 slices, 1 fewer.*mm LPS \(--allow-gaps"):
        read_series(series, ReadOptions(volume=2))
    np.testing.assert_array_equal(read_series(series, ReadOptions(volume=2, allow_gaps=True)).voxels, voxels[2][:3])


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("phase", {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}),
        ("phase", {"ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]}),
        ("phase", {"ImageType": ["ORIGINAL", "PRIMARY", "P_FFE", "FFE"]}),
        ("phase", {"ComplexImageComponent": "PHASE"}),
        ("real", {"ImageType": ["ORIGINAL", "PRIMARY", "R", "ND"]}),
        ("imaginary", {"ImageType": ["ORIGINAL", "PRIMARY", "I", "ND"]}),
        ("field map", {"ImageType": ["ORIGINAL", "PRIMARY", "B0 MAP", "B0", "FFE"]}),
    ],
)
def test_magnitude_is_the_default_and_the_rest_is_reported(many, kind, overrides):
    folder, voxels = many(overrides, {})  # the other kind comes first in the files
    first, second = read_all(folder)
    np.testing.assert_array_equal(first.voxels, voxels[1])
    np.testing.assert_array_equal(second.voxels, voxels[0])
    assert f"4 {kind} images are in the series too (--volume 1)" in first.series.warnings


def test_ge_names_the_kind_in_a_private_element(many):
    def private(number):
        def edit(dataset):
            block = dataset.private_block(0x0043, "GEMS_PARM_01", create=True)
            block.add_new(0x2F, "SS", number)

        return edit

    folder, voxels = many({}, {})
    import pydicom

    for path in sorted(folder.glob("0-*")):
        dataset = pydicom.dcmread(path)
        private(1)(dataset)
        dataset.save_as(path)
    first, second = read_all(folder)
    np.testing.assert_array_equal(first.voxels, voxels[1])
    np.testing.assert_array_equal(second.voxels, voxels[0])
    assert any("4 phase images" in warning for warning in first.series.warnings)


def test_a_series_of_phase_images_alone_is_read_with_a_warning(many):
    folder, voxels = many({"ImageType": ["ORIGINAL", "PRIMARY", "P"]})
    (volume,) = read_all(folder)
    np.testing.assert_array_equal(volume.voxels, voxels[0])
    assert "the images are phase images, not magnitude" in volume.series.warnings


def test_a_localiser_gives_its_largest_stack(tmp_path, write_series, synthetic):
    folder = tmp_path / "localiser"
    axial = synthetic.oblique_affine((8, 1, 1), None)
    sagittal, coronal = axial.copy(), axial.copy()
    sagittal[:3, :3] = np.array([[-8, 0, 0], [0, 0, 1], [0, -1, 0]])
    coronal[:3, :3] = np.array([[0, 0, 1], [8, 0, 0], [0, -1, 0]])
    for number, (name, affine, slices) in enumerate((("a", axial, 3), ("s", sagittal, 5), ("c", coronal, 4))):

        def edit(dataset, index, number=number):
            dataset.SOPInstanceUID = f"1.2.3.{number}.{index + 1}"
            dataset.InstanceNumber = number * 10 + index

        write_series(folder, (slices, 6, 7), affine, seed=number, series_uid="1.2.3", prefix=name, edit=edit)
    (volume,) = read_all(folder)
    np.testing.assert_array_equal(volume.voxels, synthetic.voxels((5, 6, 7), np.uint16, 1))
    assert any(
        warning.startswith("7 images in 2 other stacks") and "the largest stack has 5" in warning
        for warning in volume.series.warnings
    )


def test_parallel_stacks_side_by_side(tmp_path, write_series, synthetic):
    """Two stations of a coronal series share the direction and the places along the normal, not the place in the plane."""
    affine = synthetic.oblique_affine((5, 1, 1), None)
    beside = affine.copy()
    beside[:3, 3] += 250 * affine[:3, 1]
    for number, (origin, slices) in enumerate(((affine, 4), (beside, 5))):

        def edit(dataset, index, number=number):
            dataset.SOPInstanceUID = f"1.2.3.{number}.{index + 1}"
            dataset.InstanceNumber = number * 10 + index

        write_series(
            tmp_path / "s", (slices, 6, 7), origin, seed=number, series_uid="1.2.3", prefix=str(number), edit=edit
        )
    (volume,) = read_all(tmp_path / "s")
    np.testing.assert_array_equal(volume.voxels, synthetic.voxels((5, 6, 7), np.uint16, 1))
    assert any("4 images in 1 other stacks" in warning for warning in volume.series.warnings)


def test_copies_of_files_are_dropped(tmp_path, write_series, synthetic):
    folder = write_series(tmp_path / "s", SHAPE)
    shutil.copytree(folder, folder / "copy")
    volume = read_series(find_series(folder)[0])
    np.testing.assert_array_equal(volume.voxels, synthetic.voxels(SHAPE))
    assert any(warning.startswith("4 duplicate images were left out") for warning in volume.series.warnings)
    assert volume.series.volumes == 1


def test_copies_with_another_header_are_dropped(tmp_path, write_series, synthetic):
    for name in ("one", "again"):
        write_series(tmp_path / name, SHAPE, series_uid="1.2.3", SeriesDescription=name)
    volume = read_series(find_series(tmp_path)[0])
    np.testing.assert_array_equal(volume.voxels, synthetic.voxels(SHAPE))
    assert any(warning.startswith("4 duplicate images were left out") for warning in volume.series.warnings)


def test_copies_under_another_sop_uid_are_dropped(tmp_path, write_series, synthetic):
    folder = write_series(tmp_path / "s", SHAPE, series_uid="1.2.3")
    write_series(
        folder,
        SHAPE,
        series_uid="1.2.3",
        prefix="again",
        edit=lambda d, i: setattr(d, "SOPInstanceUID", f"1.9.{i + 1}"),
    )
    volume = read_series(find_series(folder)[0])
    np.testing.assert_array_equal(volume.voxels, synthetic.voxels(SHAPE))
    assert volume.series.volumes == 1


def test_equal_images_of_different_times_are_no_duplicates(many, tmp_path):
    import pydicom

    folder, _ = many({"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2})
    for path in folder.iterdir():  # air only: every image is the same
        dataset = pydicom.dcmread(path)
        dataset.PixelData = bytes(len(dataset.PixelData))
        dataset.save_as(path)
    assert len(read_all(folder)) == 2


def test_one_sop_uid_with_two_contents_is_refused(tmp_path, write_series):
    folder = write_series(tmp_path / "s", SHAPE, series_uid="1.2.3")
    write_series(folder, SHAPE, series_uid="1.2.3", prefix="x", seed=9, edit=lambda _, index: index == 2)
    with pytest.raises(SeriesError, match=r"x0002\.dcm and 0002\.dcm claim to be the same image"):
        read_series(find_series(folder)[0])


def test_an_anonymiser_that_gave_all_images_one_sop_uid(tmp_path, write_series, synthetic):
    folder = write_series(tmp_path / "s", SHAPE, SOPInstanceUID="1.2.3.4")
    volume = read_series(find_series(folder)[0])
    np.testing.assert_array_equal(volume.voxels, synthetic.voxels(SHAPE))
    assert any("share their SOP Instance UID" in warning for warning in volume.series.warnings)


@pytest.fixture
def frame(tmp_path, write_series):
    """One image of a series."""
    folder = write_series(tmp_path / "s", SHAPE)
    return find_dicom(sources(folder), folder).series[0].files[0].frames[0]


def test_each_image_without_a_number_is_looked_at_once(frame):
    """An anonymised time series: whatever is at one place may be a duplicate of any other."""
    frames = [replace(frame, sop_uid=str(number)) for number in range(500)]
    asked = []

    def digest_of(one):
        asked.append(one)
        return one.sop_uid[-1:].encode()

    kept, warnings = drop_duplicates(frames, digest_of)
    assert [one.sop_uid for one in kept] == [str(number) for number in range(10)]
    assert len(asked) == len(frames)
    assert warnings == ["490 duplicate images were left out (first: 0000.dcm)"]


@pytest.mark.parametrize("turned", [True, False])
def test_images_that_lie_in_thousands_of_stacks_are_refused(frame, turned):
    """To find the stack of each would take hours."""
    if turned:
        axes, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((20_000, 3, 2)))
        frames = [replace(frame, orientation=(*row, *column)) for row, column in axes.transpose(0, 2, 1).tolist()]
    else:
        normal = np.cross(frame.orientation[:3], frame.orientation[3:])
        beside = np.cross(normal, [0.3, 0.5, 0.8])
        frames = [replace(frame, position=tuple(frame.position + 5.0 * n * beside)) for n in range(20_000)]
    with pytest.raises(
        SeriesError, match="the images lie in more than 500 stacks, each of another orientation or place"
    ):
        split_volumes(frames)


def test_what_volumes_lack_is_counted(frame):
    """One place has images of a thousand times, a thousand other places of one time."""
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    frames = [
        replace(
            frame, keys=replace(frame.keys, temporal_position=t), instance=(t + n, 0),
            position=tuple(frame.position + 2.0 * n * normal),
        )
        for n, t in [(0, t) for t in range(1000)] + [(n, 0) for n in range(1, 1000)]
    ]  # fmt: skip
    volumes, _ = split_volumes(frames)
    assert len(volumes) == 1000
    assert {(len(one.frames), one.absent) for one in volumes} == {(1000, 0), (1, 999)}
    assert volumes[0].first_absent is None
    np.testing.assert_allclose(volumes[1].first_absent, frame.position + 2.0 * normal)


def test_many_short_volumes_are_not_all_named(many):
    folder, _ = many({"TemporalPositionIdentifier": 1}, *({"TemporalPositionIdentifier": n} for n in range(2, 15)))
    for path in folder.glob("*-0003.dcm"):
        if not path.name.startswith("0-"):
            path.unlink()
    warnings = read_series(find_series(folder)[0]).series.warnings
    assert sum(warning.endswith("has 3 slices, 1 fewer than others") for warning in warnings) == 10
    assert "3 more volumes have fewer slices than others" in warnings
