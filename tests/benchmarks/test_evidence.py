"""Results of evidence: what is measured again, and who measured what."""

import importlib
import json
import sys
from pathlib import Path

import pytest

EVIDENCE = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence"


@pytest.fixture(scope="module")
def arms():
    path = list(sys.path)
    sys.path.insert(0, str(EVIDENCE))
    yield importlib.import_module("arms")
    sys.path[:] = path
    del sys.modules["arms"]


@pytest.fixture
def measure(arms, tmp_path, monkeypatch):
    """Measure parts in a run of a commit; which of them were measured now is returned."""
    file = tmp_path / "evidence.json"

    def run(commit: str, settings: dict, **weights: str | None) -> list[str]:
        now = {"machine": "m", "versions": {}, "commit": commit, "command": "c", "load_average": len(commit)}
        monkeypatch.setattr(arms, "provenance", lambda: dict(now))
        results, made = arms.Results(file, settings), []
        for name, fingerprint in weights.items():
            assert results.part(name, lambda name=name: made.append(name) or name.upper(), fingerprint) == name.upper()
        return made

    run.file = file
    return run


def test_a_killed_run_goes_on_where_it_was(measure) -> None:
    assert measure("a", {"n": 1}, one=None) == ["one"]
    assert measure("a", {"n": 1}, one=None, two=None) == ["two"]
    (run,) = json.loads(measure.file.read_text())["provenance"]
    assert run["parts"] == ["one", "two"]


def test_other_settings_begin_anew(measure) -> None:
    measure("a", {"n": 1}, one=None)
    assert measure("b", {"n": 2}, two=None) == ["two"]
    document = json.loads(measure.file.read_text())
    assert document["parts"] == {"two": "TWO"}
    assert [(run["commit"], run["parts"]) for run in document["provenance"]] == [("b", ["two"])]


def test_only_the_part_of_other_weights_is_measured_again(measure) -> None:
    measure("a", {"n": 1}, trained="w1", untrained=None)
    assert measure("b", {"n": 1}, trained="w2", untrained=None) == ["trained"]
    document = json.loads(measure.file.read_text())
    assert document["weights"] == {"trained": "w2"}
    assert [(run["commit"], run["parts"]) for run in document["provenance"]] == [
        ("a", ["untrained"]),
        ("b", ["trained"]),
    ]
