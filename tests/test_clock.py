"""The clock of a series against time.sleep, time.perf_counter and what proc(5) says of another process."""

import os
import time
import timeit
from pathlib import Path

import pytest

from decipher_rt.clock import StageClock, decoder_pid, processor_s
from decipher_rt.dicom import decode_process
from decipher_rt.series import find_series, read_series

TICK_MS = 1e3 / os.sysconf("SC_CLK_TCK")


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


def test_the_process_that_decodes_is_counted(tmp_path, synthetic, compressed_dataset):
    """From its start on: that alone takes some tenths of a second."""
    dataset = compressed_dataset(synthetic.voxels((1, 40, 48))[0], "jpeg-ls")
    (series,) = find_series(synthetic.save(dataset, tmp_path / "a.dcm", dataset.file_meta.TransferSyntaxUID))
    decode_process.stop_decoding()
    clock, own = StageClock(), time.process_time()
    read_series(series)
    clock.finish("read")
    own_ms = (time.process_time() - own) * 1e3
    decoder_ms = used_ms(decoder_pid())
    assert decoder_ms > 50
    assert clock.spans[0].cpu_ms == pytest.approx(own_ms + decoder_ms, abs=4 * TICK_MS)
    decode_process.stop_decoding()
    assert decoder_pid() is None
    clock.finish("preprocess")  # what it had used is not taken back where it ends
    assert -2 * TICK_MS < clock.spans[1].cpu_ms < decoder_ms / 2


def used_ms(pid: int) -> float:
    """Processor time as proc(5) has it, in ticks: utime and stime, the 14th and 15th field of ``stat``."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) * TICK_MS


def test_looking_at_the_clock_takes_microseconds():
    decode_process.stop_decoding()
    best_s = min(timeit.repeat(processor_s, number=200, repeat=20)) / 200
    assert best_s < 20e-6  # 2 where nothing else runs
