"""demo, doctor, inspect and verify."""

import dataclasses
import json
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
from decipher_rt.cli import cli, main
from decipher_rt.engines import Availability
from decipher_rt.machine import describe_machine
from decipher_rt.writers.overlay import colour


def run(*arguments, status=0):
    outcome = CliRunner().invoke(cli, list(map(str, arguments)))
    if outcome.exception and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert outcome.exit_code == status, outcome.output
    return outcome.output


def test_demo_explains_each_step_and_ends_with_the_picture(tmp_path):
    output = run("demo", "-o", tmp_path / "out")
    for step in ("Open", "Load", "Read", "Preprocess", "Encode", "Scope", "Answer", "Words", "Truth", "Total"):
        assert step in output
    for head in ("sequence", "tissue", "brain_volume_ml", "lesion", "lesion_box"):
        assert f"{head}: " in output
    picture = next((tmp_path / "out").rglob("views.png"))
    assert str(picture) in output.splitlines()[-2]
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    for label in (1, 2, 3):  # grey, white and CSF in the key of the map that lies over the head
        assert (pixels == list(bytes.fromhex(colour(label)[1:]))).all(axis=-1).sum() >= 100


def test_demo_says_on_stderr_what_cannot_be_read(tmp_path):
    outcome = CliRunner().invoke(cli, ["demo", str(tmp_path / "nope"), "-o", str(tmp_path / "out")])
    assert outcome.exit_code == 2
    assert outcome.stderr == (
        f"decipher-rt: {tmp_path / 'nope'}: No such file or directory; "
        "give a DICOM folder, a .zip of one, or a NIfTI file\n"
    )


def test_demo_ends_with_1_where_some_series_failed(tmp_path, write_series):
    series = write_series(tmp_path / "s", shape=(12, 32, 32))
    outcome = CliRunner().invoke(cli, ["demo", str(series), str(tmp_path / "nope"), "-o", str(tmp_path / "out")])
    assert outcome.exit_code == 1
    assert "The picture is" in outcome.stdout


def test_doctor_says_the_same_to_people_and_programs():
    report = json.loads(run("doctor", "--json"))
    text = run("doctor")
    assert report["machine"]["cores"] >= 1
    assert {engine["name"] for engine in report["engines"]} >= {"onnxruntime", "openvino"}
    assert report["bundle"]["error"] is None
    for engine in report["engines"]:
        assert engine["detail"] in text


def test_doctor_calls_no_engine_good_that_has_no_gpu_to_run_on(monkeypatch):
    machine = dataclasses.replace(describe_machine(), gpus=())
    monkeypatch.setattr("decipher_rt.machine.describe_machine", lambda: machine)
    lookups = [Availability("onnxruntime", True, "1.0"), Availability("tensorrt-rtx", True, "2.0")]
    monkeypatch.setattr("decipher_rt.engines.available", lambda: lookups)
    assert [engine["runs_here"] for engine in json.loads(run("doctor", "--json"))["engines"]] == [True, False]
    assert "  -- tensorrt-rtx  2.0, no GPU to run it on\n" in run("doctor")


def test_doctor_names_what_is_missing(monkeypatch):
    monkeypatch.setattr("decipher_rt.cli.doctor.DECODERS", {"JPEG 3000": "no-such-package"})
    assert "pip install no-such-package" in run("doctor")


def test_inspect_says_what_the_bundle_holds():
    document = json.loads(run("inspect", "--json"))
    opened = open_bundle(DEFAULT_BUNDLE)
    assert document["sha256"] == opened.sha256
    assert document["bytes"] <= 40e6
    text = run("inspect")
    for head in opened.manifest.heads:
        assert head.name in text


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_verify_passes_here(engine):
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    report = json.loads(run("verify", "--engine", engine, "--json"))
    assert report["passed"]
    assert report["embedding_cosine"] > 0.9999


def test_verify_fails_where_an_output_differs(monkeypatch):
    from decipher_rt import verify as module

    honest = module.run_case
    monkeypatch.setattr(module, "run_case", lambda *a: {k: v + 0.5 for k, v in honest(*a).items()})
    assert "differs" in run("verify", status=1)


def test_what_is_not_finite_is_null_in_json(monkeypatch):
    from decipher_rt import verify as module

    honest = module.run_case
    monkeypatch.setattr(module, "run_case", lambda *a: {k: v * np.float32("nan") for k, v in honest(*a).items()})

    def refuse(constant):
        raise AssertionError(constant)

    report = json.loads(run("verify", "--json", status=1), parse_constant=refuse)
    assert None in {row["error"] for row in report["rows"]}


def test_the_package_runs_as_a_module_and_says_so_in_its_advice():
    command = [sys.executable, "-m", "decipher_rt", "inferr"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "decipher-rt: No such command 'inferr'; see 'python -m decipher_rt --help'\n"


def test_ctrl_c_during_an_import_is_one_line(monkeypatch, capsys):
    """Extension modules turn a KeyboardInterrupt that reaches their import into an ImportError."""

    def interrupted(**_):
        try:
            raise KeyboardInterrupt  # noqa: TRY301 - as the import of an extension module does it
        except KeyboardInterrupt as error:
            raise ImportError("numpy._core.multiarray failed to import") from error

    monkeypatch.setattr(cli, "main", interrupted)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "decipher-rt: interrupted\n"


def test_another_import_error_is_not_hidden(monkeypatch):
    def broken(**_):
        raise ImportError("libstdc++.so.6: version not found")

    monkeypatch.setattr(cli, "main", broken)
    with pytest.raises(ImportError, match="libstdc"):
        main()


def test_no_memory_for_torch_is_one_line(monkeypatch, capsys):
    """It says so in a RuntimeError, on a GPU in a class of that; another one stays a traceback."""

    class OutOfMemoryError(RuntimeError):
        """As torch's own is called."""

    on_cpu = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    for error in (RuntimeError(on_cpu), OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")):
        monkeypatch.setattr(cli, "main", Mock(side_effect=error))
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert capsys.readouterr().err.startswith("decipher-rt: out of memory; ")
    monkeypatch.setattr(cli, "main", Mock(side_effect=RuntimeError("anything else")))
    with pytest.raises(RuntimeError, match="anything else"):
        main()
