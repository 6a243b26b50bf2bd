"""Successive series overlap, in order, with bounded memory, and one that fails does not stop the others."""

import threading
import time
import weakref

import pytest

import decipher_rt
from decipher_rt import pipeline
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
    ],
)
def test_what_is_wrong_is_located_once(tmp_path, name, message, said):
    path = tmp_path / name
    (path.write_bytes if path.suffix else lambda _: path.mkdir())(b"")
    assert located(Series("1.2.3", path, "T1", 1, ""), message) == said.format(tmp_path)


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
