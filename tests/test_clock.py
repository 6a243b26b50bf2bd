"""The clock of a series against time.sleep and time.perf_counter."""

import time

import pytest

from decipher_rt.clock import StageClock


def test_spans_touch_and_sum_to_the_total():
    clock = StageClock()
    time.sleep(0.03)
    clock.finish("read")
    time.sleep(0.02)
    clock.finish("preprocess")
    clock.finish("tokens")
    times = clock.timings_ms()
    assert times["read"] >= 30
    assert times["preprocess"] >= 20
    for before, after in zip(clock.spans, clock.spans[1:], strict=False):
        assert after.start_s == pytest.approx(before.start_s + before.wall_ms / 1e3, abs=1e-9)
    assert sum(span.wall_ms for span in clock.spans) == pytest.approx(times["total"], abs=1.0)


def test_a_results_timings_have_no_tokens_but_their_time():
    clock = StageClock()
    time.sleep(0.01)
    clock.finish("tokens")
    times = clock.timings_ms()
    assert list(times) == ["read", "preprocess", "encode", "heads", "write", "total"]
    assert times["preprocess"] >= 10


def test_waiting_belongs_to_no_stage():
    clock = StageClock()
    clock.finish("read")
    time.sleep(0.05)
    clock.resume()
    time.sleep(0.01)
    clock.finish("preprocess")
    times = clock.timings_ms()
    assert 10 <= times["total"] < 50
    assert times["preprocess"] < 50


def test_time_before_the_clock_is_part_of_reading():
    clock = StageClock(already_ms=100.0)
    clock.finish("read")
    times = clock.timings_ms()
    assert times["read"] >= 100
    assert times["total"] >= times["read"]


def test_cpu_time_tells_work_from_sleep():
    clock = StageClock()
    time.sleep(0.05)
    clock.finish("read")
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    clock.finish("preprocess")
    asleep, at_work = clock.spans
    assert asleep.cpu_ms < 25
    assert at_work.cpu_ms >= 50


def test_who_watches_hears_of_every_stage():
    heard: list[str] = []
    clock = StageClock(on_finish=heard.append)
    for stage in ("read", "encode"):
        clock.finish(stage)
    assert heard == ["read", "encode"]


def test_what_comes_after_the_last_stage_belongs_to_it():
    """Freeing memory, or a pause of the collector: it is in the total, so it must be in a part."""
    clock = StageClock()
    clock.finish("read")
    clock.finish("write")
    time.sleep(0.02)
    times = clock.timings_ms()
    assert times["write"] >= 20
    assert sum(times[stage] for stage in times if stage != "total") == pytest.approx(times["total"], abs=1e-6)
    clock.extend()
    assert clock.spans[-1].wall_ms >= times["write"]
    assert clock.timings_ms()["total"] == pytest.approx(sum(span.wall_ms for span in clock.spans), abs=1.0)


def test_a_stage_that_is_not_over_has_its_time_so_far():
    clock = StageClock()
    clock.finish("heads")
    time.sleep(0.02)
    times = clock.timings_ms("write")
    assert times["write"] >= 20
    assert times["heads"] < 20
    clock.finish("write")
    assert clock.spans[-1].wall_ms >= times["write"]
