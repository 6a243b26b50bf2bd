"""The guard: what has become slower is found and what has not is not."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def guard():
    spec = importlib.util.spec_from_file_location("guard", REPOSITORY / "benchmarks" / "guard.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture
def committed(guard, tmp_path, monkeypatch):
    """A committed file whose figures a fake session gives exactly."""
    monkeypatch.setattr(guard, "COMMITTED", tmp_path / "guard.json")
    monkeypatch.setattr(guard, "make_series", lambda: tmp_path)
    monkeypatch.setattr(guard, "reference_work", lambda folder: dict.fromkeys(guard.KIND.values(), lambda: None))
    monkeypatch.setattr(guard, "seconds", lambda work: 0.01)
    monkeypatch.setattr(guard, "cold_ratio", lambda folder: 5.0)

    def run(*arguments: str, **slower: float) -> int:
        stages = {stage: 20.0 * slower.get(stage, 1.0) for stage in ("read", "preprocess", "encode", "heads", "write")}
        session = SimpleNamespace(infer=lambda folder, write: SimpleNamespace(timings_ms=stages))
        monkeypatch.setattr(guard, "load_session", lambda: session)
        monkeypatch.setattr(sys, "argv", ["guard.py", *arguments])
        return guard.main()

    assert run("--update") == 0
    return run


def test_the_same_speed_passes(committed):
    assert committed() == 0


@pytest.mark.parametrize("stage", ["read", "preprocess", "encode"])
def test_a_stage_half_as_slow_again_fails_by_name(committed, stage, capsys):
    assert committed(**{stage: 1.5}) == 1
    lost = [line for line in capsys.readouterr().out.splitlines() if "LOST" in line]
    assert len(lost) == 1
    assert stage in lost[0]


def test_faster_and_a_little_slower_pass(committed):
    assert committed(read=0.3, encode=1.05) == 0


def test_losses_begin_beyond_a_fifth(guard):
    wanted = {"read": 10.0, "encode": 2.0}
    assert guard.losses({"read": 11.9, "encode": 2.39}, wanted) == []
    assert guard.losses({"read": 12.1, "encode": 2.39}, wanted) == ["read"]


def test_the_committed_figures_are_of_every_stage(guard):
    committed = json.loads((REPOSITORY / "benchmarks" / "results" / "guard.json").read_text())
    assert set(committed["ratio_to_reference"]) == set(guard.KIND) == set(committed["kind"])
    assert committed["command"] == "python benchmarks/guard.py --update"
