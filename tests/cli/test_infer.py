"""``decipher-rt infer`` as a program and a person call it."""

import contextlib
import gzip
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import pydicom
import pytest
from click import unstyle
from click.testing import CliRunner

from decipher_rt.cli import cli
from decipher_rt.cli.demo import DEMO_SERIES
from decipher_rt.cli.infer import say_answer
from decipher_rt.result import HeadAnswer
from decipher_rt.writers import views

COMMAND = [sys.executable, "-c", "from decipher_rt.cli import main; main()", "infer"]


def infer(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options)


def validate(document: dict) -> None:
    name = document["schema"].removeprefix("decipher-rt/").replace("/", "-")
    schema = json.loads((files("decipher_rt") / "schemas" / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)


def test_json_is_one_object_a_line_and_nothing_else(tmp_path, write_series):
    write_series(tmp_path / "a")
    write_series(tmp_path / "b")
    run = infer(tmp_path, "--json")
    assert (run.returncode, run.stderr) == (0, "")
    documents = [json.loads(line) for line in run.stdout.splitlines()]
    assert len({d["series"]["uid"] for d in documents}) == 2
    for document in documents:
        validate(document)
        parts = sum(ms for stage, ms in document["timings_ms"].items() if stage != "total")
        assert parts == pytest.approx(document["timings_ms"]["total"], rel=0.02)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [("tissue,sequence", ["sequence", "tissue"]), (" sequence , lesion", ["sequence", "lesion"]), ("none", [])],
)
def test_only_the_heads_that_are_asked_for_answer(tmp_path, write_series, asked, answered):
    write_series(tmp_path / "a")
    run = infer(tmp_path / "a", "--json", "--heads", asked)
    document = json.loads(run.stdout)
    validate(document)
    assert list(document["heads"]) == answered


def test_an_unknown_head_is_one_line_and_status_2(tmp_path, write_series):
    write_series(tmp_path / "a")
    run = infer(tmp_path / "a", "--heads", "sequence,")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.count("\n") == 1
    assert "no head ''; it has sequence" in run.stderr


def test_out_holds_what_stdout_says(tmp_path, write_series):
    write_series(tmp_path / "a")
    run = infer(tmp_path / "a", "--json", "--png", "-o", tmp_path / "out")
    document = json.loads(run.stdout)
    validate(document)
    folder = tmp_path / "out" / document["series"]["uid"]
    assert json.loads((folder / "result.json").read_text()) == document
    assert np.linalg.norm(np.load(document["embedding"], allow_pickle=False)) == pytest.approx(1, abs=1e-4)
    assert (folder / "views.png").read_bytes().startswith(b"\x89PNG")


def test_some_that_fail_give_status_1_and_the_others_are_done(tmp_path, write_series):
    write_series(tmp_path / "good")
    write_series(tmp_path / "gap", edit=lambda _, index: index != 3)
    run = infer(tmp_path, tmp_path / "absent", "--json", "-o", tmp_path / "out")
    assert run.returncode == 1
    documents = [json.loads(line) for line in run.stdout.splitlines()]
    for document in documents:
        validate(document)
    assert [d["schema"].split("/")[1] for d in documents] == ["failure", "result", "failure"]  # as they come
    assert len(run.stderr.splitlines()) == 2
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert "--allow-gaps" in run.stderr


def test_gaps_can_be_allowed(tmp_path, write_series):
    write_series(tmp_path / "gap", edit=lambda _, index: index != 3)
    run = infer(tmp_path / "gap", "--allow-gaps", "--json")
    assert run.returncode == 0
    assert any("missing" in warning for warning in json.loads(run.stdout)["series"]["warnings"])


@pytest.mark.parametrize("keep", [False, True])
def test_who_it_is_is_kept_only_if_asked_for(tmp_path, write_series, answering_bundle, monkeypatch, keep):
    """In files that are compressed, too, and in what is drawn."""
    drawn, draw = [], views._text
    monkeypatch.setattr(views, "_text", lambda *a, **k: (drawn.append(a[2]), draw(*a, **k)))
    write_series(tmp_path / "a", PatientBirthDate="19610317", PatientSex="F")
    asked = ["--json", "--png", "-b", answering_bundle, "-o", tmp_path / "out", *(["--keep-phi"] if keep else [])]
    run = CliRunner().invoke(cli, ["infer", str(tmp_path / "a"), *map(str, asked)])
    assert run.exit_code == 0
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.suffix for path in written} == {".json", ".png", ".gz", ".npy"}
    contents = [gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in written]
    everything = run.output + "".join(map(str, drawn)) + "".join(content.decode("latin-1") for content in contents)
    for told in ("Doe", "SECRET", "19610317"):
        assert (told in everything) == keep
    patient = json.loads(run.stdout)["series"].get("patient")
    assert (patient or {}).get("sex") == ("F" if keep else None)


def test_a_person_reads_the_answers(tmp_path, write_series):
    run = infer(write_series(tmp_path / "a"))
    assert run.returncode == 0
    for word in ("synthetic t1", "scope", "sequence", "time", "not a medical device"):
        assert word in run.stdout
    assert "\x1b" not in run.stdout


@pytest.mark.parametrize("gap", [False, True])
def test_what_a_header_says_commands_no_terminal(tmp_path, write_series, gap):
    hostile = "T1\x1b]0;title\x07\x1b[31m\nsecond line"
    series = write_series(
        tmp_path / "a\x1b[31m", SeriesDescription=hostile, Manufacturer=hostile, edit=lambda _, i: not (gap and i == 2)
    )
    run = infer(series)
    assert (run.returncode == 0) != gap
    assert not set("\x1b\x07") & set(run.stdout + run.stderr)
    assert "second line" in run.stdout + run.stderr
    assert not gap or run.stderr.count("\n") == 1


def test_what_a_bundle_says_commands_no_terminal():
    hostile = "T1w\x1b]0;title\x07\n  sequence T2w"
    answers = (
        HeadAnswer("classification", label=hostile, probabilities={hostile: 0.9, f"{hostile}2": 0.1}),
        HeadAnswer("regression", value=1.0, unit=hostile),
        HeadAnswer("segmentation", volumes_ml={hostile: 1.0}),
    )
    for answer in answers:
        said = unstyle(say_answer(answer))
        assert said.isprintable()
        assert "T1w ]0;title sequence T2w" in " ".join(said.split())


def test_a_terminal_without_the_letters_of_a_description(tmp_path, write_series):
    series = write_series(tmp_path / "a", SeriesDescription="頭部 T1", SpecificCharacterSet="ISO_IR 192")
    run = infer(series, env={**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"})
    assert run.returncode == 0
    assert r"\u982d\u90e8 T1" in run.stdout


def test_what_a_header_says_of_the_body_part_commands_no_terminal(tmp_path, write_series):
    with pydicom.config.disable_value_validation():
        series = write_series(tmp_path / "a", BodyPartExamined="X\n  sequence T1w")
    printed = infer(series).stdout
    assert "body part X SEQUENCE T1W, made for" in printed


def test_progress_is_for_terminals_only(tmp_path, write_series):
    series = write_series(tmp_path / "a")
    assert infer(series).stderr == ""
    leader, follower = pty.openpty()
    run = subprocess.Popen(
        [*COMMAND, str(series)], stdout=subprocess.PIPE, stderr=follower, env={**os.environ, "TERM": "xterm"}
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    run.communicate(timeout=60)
    os.close(leader)
    assert b"series" in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")  # the cursor is there again


def test_a_result_on_a_terminal_begins_its_own_line(tmp_path, write_series):
    series = write_series(tmp_path / "a")
    leader, follower = pty.openpty()
    run = subprocess.Popen(
        [*COMMAND, str(series)], stdout=follower, stderr=follower, env={**os.environ, "TERM": "xterm"}
    )
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):
        while chunk := os.read(leader, 4096):
            shown += chunk
    run.wait(timeout=60)
    os.close(leader)
    before, _, _ = shown.partition(str(series).encode())
    drawn = re.split(rb"\x1b\[2K", before)[-1]  # since the line was last cleared
    assert b"series done" not in drawn


def test_the_reader_that_goes_away_is_no_error(tmp_path, write_series):
    write_series(tmp_path / "a")
    command = " ".join([f"'{part}'" for part in [*COMMAND, str(tmp_path / "a"), "--json"]])
    script = f"{command} | true; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr) == ("1\n", "")


def test_help_is_quick_and_loads_nothing_heavy():
    """Under 0.3 s is measured in benchmarks; here it is shown why: none of what takes time is imported."""
    code = (
        "import sys; from decipher_rt.cli import cli; cli.main(['--help'], standalone_mode=False); "
        "heavy = {'numpy', 'torch', 'onnxruntime', 'nvidia', 'PIL', 'nibabel', 'pydicom', 'rich'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_the_runtime_never_imports_torch():
    code = (
        "import sys, decipher_rt; decipher_rt.load().infer(sys.argv[1]); "
        "assert not {'torch', 'triton', 'onnx', 'scipy', 'decipher_rt.train', 'decipher_rt.export'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(DEMO_SERIES)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("command", sorted(cli.list_commands(None)))
def test_every_command_says_what_it_does_with_an_example(command):
    shown = CliRunner().invoke(cli, [command, "--help"])
    assert shown.exit_code == 0
    assert "Example" in shown.output


def test_every_real_series_has_its_line_or_its_error(shared_data):
    """Whole series of four vendors: one line each, geometry as dcm2niix says (exactness is tested with the reader)."""
    folders = sorted(p for p in (shared_data / "dicom").iterdir() if p.is_dir())
    run = infer(*folders, "--json")
    documents = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(documents) >= len(folders)
    reference = json.loads((shared_data / "reference.json").read_text())

    def set_of(path):
        return Path(path).relative_to(shared_data / "dicom").parts[0]

    for document in documents:
        validate(document)
        if document["schema"] == "decipher-rt/result/1":
            name = set_of(document["series"]["path"])
            assert document["series"]["shape_ras"] == reference[name][0]["shape"][:3]
    answered = {set_of(d["series"]["path"]) for d in documents if d["schema"] == "decipher-rt/result/1"}
    assert answered == {p.name for p in folders}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [(["-b", "absent"], 2, "absent"), ([], 130, "interrupted")],
    ids=["error", "ctrl-c"],
)
def test_nobody_waits_for_a_read_that_has_no_use(tmp_path, arguments, status, said):
    program = f"""
import os, signal, time
from decipher_rt import pipeline
from decipher_rt.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background ignores it
def slow(*_):
    if {status} == 130:
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(300)
pipeline.find_series = slow
main()
"""
    command = [sys.executable, "-c", program, "infer", str(tmp_path), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == status
    assert said in run.stderr
    assert run.stderr.strip().count("\n") == 0


def test_a_copy_with_the_same_uid_takes_no_ones_place(tmp_path, write_series):
    for name in ("original", "defaced"):
        write_series(tmp_path / name, seed=len(name))
    one, other = tmp_path / "original", tmp_path / "defaced"
    uid = json.loads(infer(one, "--json").stdout)["series"]["uid"]
    for path in sorted(other.iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = uid
        dataset.save_as(path)
    run = infer(one, other, "-o", tmp_path / "out", "--json")
    assert run.returncode == 1
    assert f"{other}: has the Series Instance UID of {one}" in run.stderr
    answered, failed = map(json.loads, run.stdout.splitlines())
    validate(failed)
    kept = json.loads((tmp_path / "out" / uid / "result.json").read_text())
    assert kept["series"]["path"] == answered["series"]["path"] == str(one)


def test_a_series_that_is_reached_twice_is_answered_twice(tmp_path, write_series):
    write_series(tmp_path / "study" / "one")
    assert infer(tmp_path / "study", tmp_path / "study" / "one", "-o", tmp_path / "out").returncode == 0


def test_only_new_series_are_answered(tmp_path, write_series):
    out = tmp_path / "out"
    write_series(tmp_path / "study" / "one")
    assert infer(tmp_path / "study", "-o", out, "--new", "--json").stdout.count("\n") == 1
    write_series(tmp_path / "study" / "two")
    again = infer(tmp_path / "study", "-o", out, "--new", "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["series"]["uid"] in {path.name for path in out.iterdir()}
    assert "1 series, which were left out" in again.stderr
    (tmp_path / "inbox" / "of_today").mkdir(parents=True)
    idle = infer(tmp_path / "inbox", "-o", out, "--new", "--json")
    assert (idle.returncode, idle.stdout, idle.stderr) == (0, "", "")
    (tmp_path / "study" / "three").mkdir()
    (tmp_path / "study" / "three" / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    assert infer(tmp_path / "study", "-o", out, "--new").returncode == 1  # as when the others were answered
    too_long = infer(tmp_path / "study" / "one", tmp_path / ("x" * 300), "-o", out, "--new")
    assert (too_long.returncode, too_long.stderr.count("File name too long")) == (1, 1)
    nowhere = infer(tmp_path / "study", "--new")
    assert nowhere.returncode == 2
    assert "give OUT with -o" in nowhere.stderr


def test_a_program_is_told_of_a_failure_where_nothing_could_be_answered(tmp_path):
    run = infer(tmp_path / "absent", "--json")
    assert run.returncode == 2
    validate(json.loads(run.stdout))


@pytest.mark.parametrize("gone", ["user", "reader"])
def test_nobody_waits_for_the_series_after_the_one_that_was_left(tmp_path, write_series, gone):
    """Whoever leaves while one series is answered does not wait until the next one is read."""
    write_series(tmp_path / "a")
    program = f"""
import time
from decipher_rt import pipeline, session
from decipher_rt.cli import main
find = pipeline.find_series
pipeline.find_series = lambda path, *more: time.sleep(300) if path.name == "slow" else find(path, *more)
def interrupted(*_):
    raise KeyboardInterrupt
if "{gone}" == "user":
    session.Session._finish = interrupted
main()
"""
    command = [sys.executable, "-c", program, "infer", str(tmp_path / "a"), str(tmp_path / "slow"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        if gone == "reader":
            run.stdout.close()
        assert run.wait(100) == {"user": 130, "reader": 1}[gone]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_that_does_not_fit_is_an_error(tmp_path, write_series, unbuffered):
    """Python without buffers writes what fits, and says nothing."""
    write_series(tmp_path / "a")
    answers = tmp_path / "answers.jsonl"
    answers.write_bytes(b"\n" * 9_000)
    limited = f"ulimit -f 10; exec {sys.executable} -m decipher_rt infer {tmp_path / 'a'} --json >> {answers}"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nowhere"}
    run = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, env=environment)
    assert run.returncode == 2
    assert "File too large" in run.stderr


def test_a_person_is_told_what_was_not_used(tmp_path, write_series, monkeypatch):
    from decipher_rt import session

    monkeypatch.setattr(session, "golden_fault", lambda *_: "on the golden case it is wrong")
    monkeypatch.setattr(session, "is_accepted", lambda *_: False)
    arguments = ["infer", str(write_series(tmp_path / "a")), "--precision", "int8"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0
    assert "on the golden case it is wrong" in shown.output


def test_an_archive_below_a_folder_is_told(tmp_path, write_series):
    write_series(tmp_path / "incoming" / "first")
    shutil.make_archive(str(tmp_path / "incoming" / "second"), "zip", write_series(tmp_path / "other"))
    run = infer(tmp_path / "incoming", "--json")
    warnings = json.loads(run.stdout)["series"]["warnings"]
    assert [w for w in warnings if "an archive, which is read where it is given itself" in w]


def test_new_leaves_out_the_volume_that_there_is_and_no_other(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 900, (24, 24, 24, 2)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4.0, 4, 4, 1])), tmp_path / "two.nii.gz")
    arguments = (tmp_path / "two.nii.gz", "-o", tmp_path / "out", "--new", "--json")
    for volume in ("0", "1"):
        assert json.loads(infer(*arguments, "--volume", volume).stdout)["series"]["volume_index"] == int(volume)
        again = infer(*arguments, "--volume", volume)
        assert (again.returncode, again.stdout) == (0, "")
    assert len(list((tmp_path / "out").iterdir())) == 2
