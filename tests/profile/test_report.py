"""The report, the trace and the comparison, from a real profile of a small series."""

import copy
import dataclasses
import json
import subprocess
import sys
from html import unescape
from types import SimpleNamespace

import numpy as np
import pytest

import decipher_rt
from decipher_rt.bundle import open_bundle
from decipher_rt.clock import STAGES, Span
from decipher_rt.errors import DecipherError
from decipher_rt.profile.cold import PARTS, ColdRun, environment
from decipher_rt.profile.compare import changed_conditions, compare_reports, text_comparison
from decipher_rt.profile.html import html_comparison, html_report
from decipher_rt.profile.measure import Throughput, Warm, measure_throughput, measure_warm
from decipher_rt.profile.peak import MachinePeak
from decipher_rt.profile.report import build_report, read_report, text_report
from decipher_rt.profile.trace import trace
from decipher_rt.series import ReadOptions
from decipher_rt.session import Session

SUM_TOLERANCE = 0.02


@pytest.fixture(scope="module")
def series(tmp_path_factory, write_series):
    return write_series(tmp_path_factory.mktemp("profile") / "series", shape=(16, 48, 48))


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(open_bundle(), threads=1)


@pytest.fixture(scope="module")
def warm(session, series) -> Warm:
    return measure_warm(session, series, ReadOptions(), runs=6)


@pytest.fixture(scope="module")
def saturated(session, series) -> Throughput:
    return measure_throughput(session, series, ReadOptions(), 5, cores=1)


@pytest.fixture(scope="module")
def cold() -> list[ColdRun]:
    """Three invented processes, each part longer than the one before."""
    parts = {part: float(n + 1) for n, part in enumerate(PARTS)}
    total = sum(parts.values())
    return [ColdRun(parts, total + n, 5.0, 40.0, 123.0, 10.0 * n) for n in range(3)]


@pytest.fixture(scope="module")
def report(session, warm, cold, saturated):
    return build_report(
        bundle=session.bundle,
        encoder=session.encoder,
        warm=warm,
        cold=cold,
        throughput=saturated,
        peak=MachinePeak(100.0, 10.0),
        load={"bundle open": 1.0, "engine load": 2.0},
        command="decipher-rt profile series",
    )


def test_the_stages_sum_to_the_total_of_every_run(warm):
    for run in (*warm.warm_up, *warm.runs):
        assert [span.stage for span in run.spans] == list(STAGES)
        assert sum(span.wall_ms for span in run.spans) == pytest.approx(run.total_ms, rel=SUM_TOLERANCE)
    assert warm.volume_bytes == 16 * 48 * 48 * 2


def test_the_report_has_the_keys_that_tools_read(report):
    for row in (*report["stages"].values(), report["total"], *report["cold"]["stages"].values()):
        assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert list(report["stages"]) == list(STAGES)
    assert list(report["cold"]["stages"]) == list(PARTS)
    assert report["parts_over_total"] == pytest.approx(1, abs=SUM_TOLERANCE)
    assert report["peak_mib"] > 0
    assert report["machine"]["cores"] >= 1
    assert report["versions"]["decipher-rt"] == decipher_rt.__version__
    assert report["command"] == "decipher-rt profile series"
    assert json.loads(json.dumps(report)) == report


def test_shares_of_the_peak_are_rates_over_it(report):
    encode = report["share_of_peak"]["encode"]
    assert encode["share"] == pytest.approx(encode["rate"] / 100.0, rel=0.01)
    read = report["share_of_peak"]["read"]
    read_and_written = 2 * 16 * 48 * 48 * 2
    assert read["rate"] == pytest.approx(read_and_written / report["stages"]["read"]["p50_ms"] / 1e6, abs=1e-3)


def made_with(session, warm, engine):
    """A report of a result whose ``engine`` says something else too."""
    told = dataclasses.replace(warm, result=dataclasses.replace(warm.result, engine={**warm.result.engine, **engine}))
    return build_report(
        bundle=session.bundle, encoder=session.encoder, warm=told, cold=[], throughput=None,
        peak=MachinePeak(100.0, 10.0), load={}, command="",
    )  # fmt: skip


def test_a_gpu_is_not_set_beside_the_cpu(session, warm):
    report = made_with(session, warm, {"name": "tensorrt", "device": "cuda:0"})
    assert list(report["share_of_peak"]) == ["read"]
    assert "of the matrix product" not in text_report(report) + html_report(report)


def test_why_another_engine_answered_is_said_in_one_line(session, warm, report):
    reason = "tensorrt: no NVIDIA driver; onnxruntime-cuda: <not installed>"
    told = made_with(session, warm, {"fallback": reason})
    assert f"  fallback: {reason}" in text_report(told).splitlines()
    assert "fallback: tensorrt: no NVIDIA driver; onnxruntime-cuda: &lt;not installed&gt;" in html_report(told)
    assert "fallback" not in text_report(report) + html_report(report)


def work_elsewhere(*_):
    """Use a twentieth of a second of processor time in another process, as decoding does."""
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.05: pass"], check=True)


def test_what_works_for_a_run_in_another_process_is_counted(warm):
    def infer(path, options, write, clock):
        work_elsewhere()
        clock.finish("read")
        return write(warm.result, SimpleNamespace(voxels=np.zeros(4, np.uint16)), clock)

    def infer_each(paths, options, write):
        work_elsewhere()
        return []

    session = SimpleNamespace(infer=infer, infer_each=infer_each, encoder=SimpleNamespace(device="cpu"))
    (run,) = measure_warm(session, None, ReadOptions(), runs=1).runs
    assert run.cpu_ms >= 50
    assert run.spans[0].cpu_ms >= 50
    saturated = measure_throughput(session, None, ReadOptions(), 1, cores=1)
    assert saturated.busy * saturated.wall_s >= 0.05


def test_one_file_is_answered_for_as_often_as_it_is_asked(session, series):
    """Files in a list are slices of one series; the same one many times is not."""
    saturated = measure_throughput(session, min(series.iterdir()), ReadOptions(), 3, cores=1)
    assert len(saturated.runs) == 3


def test_a_reader_is_told_what_the_cpu_and_the_memory_are_of(report):
    for text in (text_report(report), unescape(html_report(report))):
        assert "the process that decodes compressed images" in text
        assert "the decoder's process included" in text


def test_no_patient_is_in_a_report(report):
    assert "SECRET" not in json.dumps(report)
    assert "Doe" not in json.dumps(report)


def test_a_person_reads_every_stage(report):
    text = text_report(report)
    for name in (*STAGES, *PARTS, "total", "GFLOP/s", "series/s", "decipher-rt profile series"):
        assert name in text
    assert "of so few, p95 and p99 are the slowest" in text


def test_a_first_load_on_a_card_is_told_apart(session, warm, cold, report):
    assert report["encoder_load"] is None  # nothing is compiled on a CPU
    assert "encoder loaded" not in text_report(report)

    def lines(**said):
        encoder = SimpleNamespace(threads=1, load_ms=1234.567, **said)
        made = build_report(
            bundle=session.bundle, encoder=encoder, warm=warm, cold=cold, throughput=None,
            peak=MachinePeak(100.0, 10.0), load={}, command="",
        )  # fmt: skip
        assert made["encoder_load"] == {"load_ms": 1234.57, **said}
        (line,) = (line for line in text_report(made).splitlines() if line.startswith("encoder loaded"))
        return line

    first = lines(compiled=True, not_recorded=None)
    assert first == (
        "encoder loaded in 1235 ms (compiled for this card, the first load here); one CUDA graph a token bucket"
    )
    again = lines(compiled=False, not_recorded="the driver refuses")
    assert again.endswith("(nothing to compile); no CUDA graph: the driver refuses")


def test_a_report_is_read_back_and_others_are_refused(report, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(report))
    assert read_report(path) == report
    for content, complaint in (("{", "not JSON"), ("{}", "schema"), ("[]", "schema")):
        path.write_text(content)
        with pytest.raises(DecipherError, match=complaint):
            read_report(path)
    with pytest.raises(DecipherError, match="No such file"):
        read_report(tmp_path / "absent.json")


def test_the_trace_shows_every_span_once_and_inside_its_run(warm, cold, saturated, report):
    document = json.loads(trace(warm, cold, saturated, report))
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert min(event["ts"] for event in events) == 0
    warm_spans = [e for e in events if e["pid"] == 1 and e["name"] in STAGES]
    assert len(warm_spans) == len(STAGES) * (len(warm.runs) + len(warm.warm_up))
    runs = [e for e in events if e["pid"] == 1 and e["name"] not in STAGES]
    for span in warm_spans:
        holders = [
            r for r in runs if r["ts"] - 1 <= span["ts"] and span["ts"] + span["dur"] <= r["ts"] + r["dur"] + 1e3
        ]
        assert len(holders) == 1
    assert len([e for e in events if e["pid"] == 2]) == sum(map(len, saturated.runs))
    assert {e["pid"] for e in events} >= {10, 11, 12}
    assert document["otherData"]["command"] == report["command"]


def test_series_overlap_in_the_saturated_run(saturated):
    """Reading of a later series begins before an earlier one is encoded to its end."""
    ends = [spans[-1].start_s for spans in saturated.runs]
    starts = [spans[0].start_s for spans in saturated.runs]
    assert any(start < end for start, end in zip(starts[1:], ends[:-1], strict=True))


def test_a_report_compared_with_itself_shows_no_difference(report):
    rows = compare_reports(report, report)
    assert {row.section for row in rows} == {"warm", "cold"}
    assert all(row.ratio == 1 and "no difference" in row.verdict for row in rows if row.section == "warm")
    assert all(row.verdict == "too few runs to say" for row in rows if row.section == "cold")
    assert changed_conditions(report, report) == {}


def test_a_stage_made_twice_as_slow_is_found(report):
    slower = copy.deepcopy(report)
    row = slower["stages"]["encode"]
    row["runs_ms"] = [2 * ms for ms in row["runs_ms"]]
    row["p50_ms"] *= 2
    slower["engine"]["precision"] = "int8"
    (encode,) = (row for row in compare_reports(slower, report) if (row.section, row.stage) == ("warm", "encode"))
    assert encode.ratio == pytest.approx(2)
    text = text_comparison(slower, report, ("slow.json", "fast.json"))
    assert "not the same precision: A int8, B fp32" in text
    assert "slow.json" in text


def test_versions_and_environment_that_differ_are_named(report):
    a, b = copy.deepcopy(report), copy.deepcopy(report)
    a["versions"]["onnxruntime"], b["versions"]["onnxruntime"] = "1.22.0", "1.32.0"
    a["versions"].pop("openvino", None)
    b["versions"]["openvino"] = "2026.0"
    a["environment"], b["environment"] = {"OMP_NUM_THREADS": "1"}, {"LD_PRELOAD": "libjemalloc.so"}
    a["machine"]["gpus"] = [{"name": "NVIDIA H200", "memory_mib": 143771}]
    b["machine"]["system"] = "Linux 1.0 x86_64, Python 3.14.0"
    assert changed_conditions(a, b) == {
        "GPUs": ("NVIDIA H200", "none"),
        "system": (report["machine"]["system"], "Linux 1.0 x86_64, Python 3.14.0"),
        "onnxruntime": ("1.22.0", "1.32.0"),
        "openvino": ("not installed", "2026.0"),
        "OMP_NUM_THREADS": ("1", "not set"),
        "LD_PRELOAD": ("not set", "libjemalloc.so"),
    }
    assert "not the same onnxruntime: A 1.22.0, B 1.32.0" in text_comparison(a, b, ("a.json", "b.json"))
    assert "OMP_NUM_THREADS is not the same: A 1, B not set" in html_comparison(a, b, ("a.json", "b.json"))


def test_the_environment_that_matters_is_recorded(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1073741824")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SOMETHING_ELSE", "secret")
    found = environment()
    assert found["GLIBC_TUNABLES"] == "glibc.malloc.mmap_threshold=1073741824"
    assert found["OMP_NUM_THREADS"] == "3"
    assert "SOMETHING_ELSE" not in found


def test_a_stage_that_took_no_time_in_some_runs_has_no_ratio(report):
    """As reading, where loading the bundle hid it."""
    hidden = copy.deepcopy(report)
    row = hidden["cold"]["stages"]["read"]
    row["runs_ms"] = [0.0, *row["runs_ms"][1:]]
    row["min_ms"], row["p50_ms"] = 0.0, 1.0
    for reports in ((report, hidden), (hidden, report)):
        rows = compare_reports(*reports)
        assert "read" not in {row.stage for row in rows if row.section == "cold"}
        assert "nan%" not in html_comparison(*reports, ("a.json", "b.json"))


def test_pages_are_whole_and_name_everything(report):
    one, two = html_report(report), html_comparison(report, report, ("a.json", "b.json"))
    for html in (one, two):
        assert html.startswith("<!doctype html>")
        assert html.count("<figure>") == html.count("</figure>") >= 3
        assert "http" not in html  # nothing is fetched
        assert "<script" not in html
        assert report["command"] in html
    for stage in (*STAGES, *PARTS):
        assert stage in one


def test_a_gpu_without_nvtx_has_no_ranges(monkeypatch):
    from decipher_rt.profile import ranges

    monkeypatch.setattr(ranges.importlib.util, "find_spec", lambda name: None)
    assert ranges.nvtx_ranges(on_gpu=True) is None
    assert ranges.nvtx_ranges(on_gpu=False) is None


def test_ranges_open_and_close_in_the_order_of_the_stages(monkeypatch):
    from decipher_rt.profile import ranges

    log: list[str] = []
    fake = SimpleNamespace(
        push_range=lambda name, domain: log.append(f"+{name}"), pop_range=lambda domain: log.append("-")
    )
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    monkeypatch.setattr(ranges.importlib.util, "find_spec", lambda name: fake)
    finish = ranges.nvtx_ranges(on_gpu=True)
    assert finish is not None
    for stage in STAGES:
        finish(stage)
    assert log == ["+read", *(f for after in STAGES[1:] for f in ("-", f"+{after}")), "-"]


def test_spans_are_on_the_clock_of_every_process():
    """perf_counter on Linux is CLOCK_MONOTONIC: a child's spans can stand beside its parent's."""
    import time

    before = time.perf_counter()
    printed = subprocess.check_output([sys.executable, "-c", "import time; print(time.perf_counter())"], text=True)
    assert before < float(printed) < time.perf_counter()
    assert Span("read", before, 1.0, 1.0).stage == "read"
