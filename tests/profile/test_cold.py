"""A new process: its parts follow each other, and their sum is the total that the parent measured."""

import time
from pathlib import Path

import pytest

from decipher_rt.errors import DecipherError
from decipher_rt.profile.cold import BEFORE, PARTS, _cold_run, run_cold

SESSION = {"engine": "onnxruntime", "precision": "fp32", "threads": 1}


def test_parts_of_a_process_sum_to_its_total(tmp_path, write_series):
    series = write_series(tmp_path / "series", shape=(12, 32, 32))
    start = time.perf_counter()
    run = run_cold(series, None, {"volume": 0}, SESSION)
    whole = (time.perf_counter() - start) * 1e3
    assert list(run.parts_ms) == list(PARTS)
    assert sum(run.parts_ms.values()) == pytest.approx(run.total_ms, rel=0.02)
    assert run.total_ms == pytest.approx(whole, abs=20)
    assert all(run.parts_ms[part] > 0 for part in (*BEFORE, "preprocess", "encode", "exit"))
    assert run.peak_mib > 50
    assert run.read_ms > 0


def test_the_processor_time_is_of_the_process_and_its_own(tmp_path, monkeypatch):
    """As of the process that decodes for it, which ends before it."""
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    monkeypatch.setattr(
        "decipher_rt.profile.cold.PROGRAM",
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}], check=True); "
        'print(\'{"marks": [["process start", 0, 0], ["imports", 0, 0], ["bundle open", 0, 0], \''
        '\'["engine load", 0, 0]], "spans": [], "peak_mib": 1}\')',
    )
    assert 300 <= run_cold(tmp_path, None, {}, SESSION).cpu_ms < 3000


def test_reading_that_hides_behind_loading_costs_nothing():
    report = {
        "marks": [("process start", 1.1, 0), ("imports", 1.3, 0), ("bundle open", 1.4, 0), ("engine load", 2.0, 0)],
        "spans": [["read", 1.31, 500.0, 0], ["preprocess", 2.0, 100.0, 0], ["encode", 2.1, 300.0, 0]],
        "peak_mib": 1.0,
    }
    run = _cold_run(report, 1.0, 2.5, 0.4)
    assert run.cpu_ms == 400
    assert run.parts_ms["read"] == 0
    assert run.read_ms == 500
    assert run.parts_ms["engine load"] == pytest.approx(600)
    assert run.parts_ms["exit"] == pytest.approx(100)
    assert sum(run.parts_ms.values()) == pytest.approx(run.total_ms) == pytest.approx(1500)


def test_reading_that_lasts_longer_shows_what_was_left():
    report = {
        "marks": [("process start", 1.1, 0), ("imports", 1.3, 0), ("bundle open", 1.4, 0), ("engine load", 2.0, 0)],
        "spans": [["read", 1.31, 990.0, 0], ["encode", 2.3, 300.0, 0]],
        "peak_mib": 1.0,
    }
    run = _cold_run(report, 1.0, 2.7, 0.0)
    assert run.parts_ms["read"] == pytest.approx(300)
    assert sum(run.parts_ms.values()) == pytest.approx(run.total_ms)


def test_the_message_of_a_process_that_fails_is_passed_on(tmp_path):
    with pytest.raises(DecipherError, match="no-series"):
        run_cold(tmp_path / "no-series", None, {}, SESSION)
    write = tmp_path / "bundle"
    write.mkdir()
    with pytest.raises(DecipherError, match="bundle"):
        run_cold(tmp_path, write, {}, SESSION)


def test_a_process_that_hangs_is_ended(tmp_path, monkeypatch):
    told = tmp_path / "pid"
    program = f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr("decipher_rt.profile.cold.PROGRAM", program)
    monkeypatch.setattr("decipher_rt.profile.cold.TIMEOUT_S", 3)
    with pytest.raises(DecipherError, match="did not end"):
        run_cold(tmp_path, None, {}, SESSION)
    assert not Path("/proc", told.read_text()).exists()
