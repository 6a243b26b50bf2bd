"""``decipher-rt profile`` as a program calls it."""

import json
import subprocess
import sys

import pytest

from decipher_rt.clock import STAGES

COMMAND = [sys.executable, "-c", "from decipher_rt.cli import main; main()", "profile"]


def profile(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def series(tmp_path_factory, write_series):
    return write_series(tmp_path_factory.mktemp("profile") / "series", shape=(12, 32, 32))


@pytest.fixture(scope="module")
def outputs(series, tmp_path_factory):
    """One profile with everything that it can write."""
    folder = tmp_path_factory.mktemp("out")
    run = profile(
        series, "--runs", 3, "--cold", 1, "--threads", 1, "--json",
        "--trace", folder / "deep" / "trace.json", "--html", folder / "page.html",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (folder / "a.json").write_text(run.stdout)
    return folder, run


def test_json_is_one_object_with_the_keys_of_the_contract(outputs):
    _, run = outputs
    report = json.loads(run.stdout)
    assert len(run.stdout.splitlines()) == 1
    assert {"stages", "total", "cold", "peak_mib", "machine", "versions", "command"} <= set(report)
    assert list(report["stages"]) == list(STAGES)
    for row in (*report["stages"].values(), report["total"]):
        assert {"p50_ms", "p95_ms", "p99_ms"} <= set(row)
    assert report["total"]["runs"] == 3
    assert report["cold"]["runs"] == 1
    assert report["engine"]["threads"] == 1
    assert "--runs 3" in report["command"]


def test_trace_and_page_are_written_whole(outputs):
    folder, _ = outputs
    events = json.loads((folder / "deep" / "trace.json").read_text())["traceEvents"]
    assert {e["name"] for e in events if e["ph"] == "X"} >= set(STAGES)
    assert (folder / "page.html").read_text().rstrip().endswith("</html>")
    assert {path.name for path in folder.iterdir()} == {"deep", "page.html", "a.json"}


def test_two_reports_are_compared(outputs):
    folder, _ = outputs
    run = profile("--compare", folder / "a.json", folder / "a.json")
    assert run.returncode == 0
    assert "encode" in run.stdout
    compared = json.loads(profile("--compare", folder / "a.json", folder / "a.json", "--json").stdout)
    assert {row["ratio"] for row in compared["stages"]} == {1.0}
    assert compared["not_the_same"] == {}


def test_a_person_reads_a_table(series):
    run = profile(series, "--runs", 2, "--cold", 0, "--throughput", 3)
    assert run.returncode == 0
    assert "the parts sum to" in run.stdout
    assert "saturated, 3 series" in run.stdout
    assert "cold, a new process" not in run.stdout


@pytest.mark.parametrize("gone", ["environment", "cold", "stages", "series", "date", "command"])
def test_a_report_that_lost_a_part_is_refused_by_name(outputs, tmp_path, gone):
    folder, _ = outputs
    report = json.loads((folder / "a.json").read_text())
    del report[gone]
    (tmp_path / "b.json").write_text(json.dumps(report))
    run = profile("--compare", folder / "a.json", tmp_path / "b.json")
    assert run.returncode == 2
    assert run.stderr == (
        f"decipher-rt: {tmp_path / 'b.json'}: a part of the report is gone; make it again with 'decipher-rt profile'\n"
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Missing argument 'SERIES'"),
        (("absent",), "absent"),
        (("x", "--compare", "a.json", "b.json"), "leave out SERIES"),
        (("--compare", "a.json", "b.json", "--runs", "3", "-b", "x"), "leave out --bundle, --runs"),
        (("--compare", "a.json", "b.json"), "a.json"),
        (("x", "--runs", "0"), "--runs"),
        (("x", "-b", "no-bundle"), "no-bundle"),
    ],
)
def test_mistakes_end_in_one_line(arguments, complaint):
    run = profile(*arguments)
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1
    assert complaint in run.stderr
    assert run.stdout == ""


def test_a_folder_of_several_series_is_refused(tmp_path, write_series):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b")
    run = profile(tmp_path, "--cold", 0, "--runs", 1)
    assert run.returncode == 2
    assert "2 series" in run.stderr


def test_what_no_report_nests_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    run = profile("--compare", tmp_path / "deep.json", tmp_path / "deep.json")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "deep.json: not JSON; give what" in run.stderr
