"""Successive series overlap, in order, with bounded memory, and one that fails does not stop the others."""

import threading
import time
import weakref
from pathlib import Path

import pytest

import decipher_rt
from decipher_rt import pipeline
from decipher_rt.errors import EngineError
from decipher_rt.pipeline import OpenedSeries, located, one_ahead, read_each
from decipher_rt.result import Failure, Result
from decipher_rt.series import ReadOptions, Series


def counted(made: list[int], total: int):
    for number in range(total):
        made.append(number)
        yield number


def test_items_come_in_order_and_at_most_one_waits():
    made: list[int] = []
    taken = []
    for number in one_ahead(counted(made, 6)):
        time.sleep(0.02)  # long enough to run ahead, were that allowed
        taken.append(number)
        assert len(made) <= len(taken) + 1
    assert taken == list(range(6))


@pytest.mark.parametrize(
    ("name", "message", "said"),
    [
        ("IM1", "IM1: modality is CT", "{}/IM1 (T1): IM1: modality is CT"),  # of a file in a folder of its name
        ("one.nii", "one.nii: no header", "{}/one.nii: no header"),
        ("one.nii", "no contrast", "{}/one.nii (T1): no contrast"),
        ("IM1", "{}/IM1 (T1): modality is CT", "{}/IM1 (T1): modality is CT"),
    ],
)
def test_what_is_wrong_is_located_once(tmp_path, name, message, said):
    path = tmp_path / name
    (path.write_bytes if path.suffix else lambda _: path.mkdir())(b"")
    assert located(Series("1.2.3", path, "T1", 1, ""), message.format(tmp_path)) == said.format(tmp_path)


@pytest.mark.parametrize("path", ["1", "."])
def test_a_short_path_is_not_taken_for_a_part_of_the_message(path):
    """Archives call the folders of a study by numbers, and one may stand in the folder itself."""
    message = "1 slice is missing, the first at (0.00, 0.00, 12.50) mm LPS"
    assert located(Series("1.2.3", Path(path), "T1", 1, ""), message) == f"{path} (T1): {message}"


def test_the_first_item_is_made_before_anyone_asks():
    made: list[int] = []
    started = threading.Event()

    def items():
        started.set()
        yield from counted(made, 1)

    waiting = one_ahead(items())
    assert started.wait(5)
    assert list(waiting) == [0]


def test_making_and_using_overlap():
    """Two sleeps of 40 ms each, five times: one after the other they would take 0.4 s."""

    def slow():
        for number in range(5):
            time.sleep(0.04)
            yield number

    start = time.perf_counter()
    for _ in one_ahead(slow()):
        time.sleep(0.04)
    assert time.perf_counter() - start < 0.34


def test_an_exception_comes_in_its_place():
    def items():
        yield 1
        raise ZeroDivisionError("third")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ZeroDivisionError, match="third"):
        next(ahead)


def test_leaving_early_leaves_no_thread_behind():
    before = threading.active_count()
    ahead = one_ahead(iter(range(100)))
    next(ahead)
    ahead.close()
    assert threading.active_count() == before


def test_reading_reports_what_it_cannot_read(tmp_path, write_series):
    good = write_series(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    opened = list(read_each([tmp_path / "empty", good], ReadOptions()))
    assert [type(item) for item in opened] == [Failure, OpenedSeries]
    assert opened[1].volume.voxels.shape == (6, 10, 12)


def test_many_series_give_the_answers_of_each_alone(tmp_path, write_series):
    """Overlapping changes neither order nor a bit of any answer; times leave out the waiting, so the parts still sum."""
    folders = [write_series(tmp_path / str(seed), shape=(12, 32, 32), seed=seed) for seed in range(5)]
    session = decipher_rt.load(threads=1)
    alone = [session.infer(folder) for folder in folders]
    together = list(session.infer_each([*folders[:2], tmp_path / "absent", *folders[2:]]))
    assert isinstance(together.pop(2), Failure)
    for expected, found in zip(alone, together, strict=True):
        assert isinstance(found, Result)
        assert found.series["uid"] == expected.series["uid"]
        assert (found.embedding == expected.embedding).all()
        parts = sum(ms for stage, ms in found.timings_ms.items() if stage != "total")
        assert parts == pytest.approx(found.timings_ms["total"], rel=0.02)


def test_a_series_too_large_for_the_memory_is_a_failure_and_the_others_go_on(tmp_path, write_series, monkeypatch):
    large, small = write_series(tmp_path / "large"), write_series(tmp_path / "small")
    read = pipeline.read_series

    def no_room(series, options):
        if series.path == large:
            raise MemoryError
        return read(series, options)

    monkeypatch.setattr(pipeline, "read_series", no_room)
    failure, opened = read_each([large, small], ReadOptions())
    assert failure.error.startswith(f"{large} (synthetic t1): needs more memory")
    assert failure.uid
    assert opened.series.path == small


def test_what_was_found_under_one_path_is_let_go_before_the_next_is_opened(tmp_path, write_series, monkeypatch):
    """Of an archive that is all its bytes; series that wait for their answers do not hold it."""
    paths = [write_series(tmp_path / name) for name in "ab"]
    find, found = pipeline.find_series, []

    def watched(path, options):
        assert [content() for content in found] == [None] * len(found)
        series = find(path, options)
        found.extend(weakref.ref(one.content) for one in series)
        return series

    monkeypatch.setattr(pipeline, "find_series", watched)
    opened = list(read_each(paths, ReadOptions()))
    assert [one.series.path for one in opened] == paths
    assert len(found) == 2


def test_the_time_of_finding_is_shared_by_the_series_that_are_read(tmp_path, write_series, monkeypatch):
    for name in "abcd":
        write_series(tmp_path / name)
    find = pipeline.find_series
    monkeypatch.setattr(pipeline, "find_series", lambda *asked: (time.sleep(0.4), find(*asked))[1])
    (only,) = read_each([tmp_path], ReadOptions(), lambda series: series.path.name == "c")
    assert only.clock.timings_ms()["read"] >= 400


@pytest.fixture
def slices(tmp_path, write_series):
    """The files of two series, as a shell lists them, and one that is no image."""
    for name in "ab":
        write_series(tmp_path / "study", prefix=name, series_uid=f"1.2.{ord(name)}")
    (tmp_path / "study" / "report.txt").write_text("no finding")
    return sorted((tmp_path / "study").iterdir())


@pytest.mark.parametrize("relative", [False, True])
def test_slices_named_one_by_one_are_one_series(slices, tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    named = [path.relative_to(tmp_path) for path in slices] if relative else slices
    *opened, failure = read_each([*named, named[0]], ReadOptions())
    assert [(one.series.uid, one.volume.voxels.shape) for one in opened] == [
        ("1.2.97", (6, 10, 12)),
        ("1.2.98", (6, 10, 12)),
    ]
    assert [one.series.path for one in opened] == [named[0].parent] * 2
    assert (failure.path, failure.uid) == (str(named[-1]), None)
    assert failure.error.startswith(f"{named[-1]}: not a DICOM file")


def test_slices_come_in_the_place_of_the_first_among_folders(slices, tmp_path, write_series):
    first, last = (write_series(tmp_path / name, series_uid=f"1.3.{i}") for i, name in enumerate(("x", "y")))
    opened = list(read_each([first, *map(str, slices[:6]), last], ReadOptions()))
    assert [one.series.uid for one in opened] == ["1.3.0", "1.2.97", "1.3.1"]


def test_a_slice_that_is_gone_or_cut_off_is_a_failure_and_its_series_says_what_is_missing(slices, tmp_path):
    slices[2].write_bytes(slices[2].read_bytes()[:400])
    found = list(read_each([*slices[:6], tmp_path / "gone.dcm"], ReadOptions()))
    assert all(isinstance(one, Failure) for one in found)
    errors = [one.error for one in found]
    assert any(slices[2].name in error for error in errors)
    assert any("1 slice is missing" in error for error in errors)
    assert sum(error.startswith(f"{tmp_path / 'gone.dcm'}: No such file") for error in errors) == 1


def test_paths_from_a_generator_are_read_as_they_come(slices):
    asked = []

    def arriving():
        for path in slices[:2]:
            asked.append(path)
            yield path

    reading = read_each(arriving(), ReadOptions())
    assert next(reading).volume.series.warnings[0].startswith("one slice only")
    assert asked == slices[:1]


def test_one_path_needs_no_list(tmp_path, write_series):
    folder = write_series(tmp_path / "s", shape=(12, 32, 32))
    session = decipher_rt.load(threads=1, heads=())
    for path in (folder, str(folder)):
        (result,) = session.infer_each(path)
        assert isinstance(result, Result)


def test_what_the_engine_fails_at_says_for_which_series(tmp_path, write_series, monkeypatch):
    folder = write_series(tmp_path / "s", shape=(12, 32, 32))
    session = decipher_rt.load(threads=1, heads=())

    def fail(*_):
        raise EngineError("encoder.onnx: onnxruntime failed")

    monkeypatch.setattr(type(session.encoder), "run", fail)
    (failure,) = session.infer_each([folder])
    assert failure.error == f"{folder} (synthetic t1): encoder.onnx: onnxruntime failed"
