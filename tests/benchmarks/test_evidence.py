"""Evidence: what is measured again, who measured what, and what the scripts compute by themselves."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from decipher_rt.train.checkpoint import write_tensors
from decipher_rt.train.config import load_config
from decipher_rt.train.model.vit import ViT, ViTConfig

REPOSITORY = Path(__file__).resolve().parents[2]
EVIDENCE = REPOSITORY / "benchmarks" / "evidence"
TINY = REPOSITORY / "train" / "configs" / "tiny"


@pytest.fixture(scope="module")
def script():
    """Import a script of the folder by its name."""
    path, before = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(EVIDENCE))
    yield importlib.import_module
    sys.path[:] = path
    for name in {one.stem for one in EVIDENCE.glob("*.py")} - before:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def arms(script):
    return script("arms")


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


class Options(SimpleNamespace):
    """A command line of which it does not matter what it says."""

    def __getattr__(self, name: str) -> int:
        return 2


def small_encoder(depth: int = 1) -> ViT:
    torch.manual_seed(0)
    return ViT(replace(ViTConfig.PRESETS["tiny"], width=12, depth=depth, heads=2))


def settings_of(script, tmp_path: Path, name: str, *overrides: str) -> dict:
    """Return the settings of a script's results for a configuration with other values."""
    module = script(name)
    if name == "pretraining":
        return module.settings_of(Options(), load_config(module.SSLConfig, TINY / "ssl.yaml", overrides))
    if name == "ablations":
        write_tensors(tmp_path / "model.safetensors", {"x": torch.zeros(1)}, {})
        config = load_config(module.AlignConfig, TINY / "align.yaml", overrides)
        return module.settings_of(Options(text=tmp_path), config, small_encoder())
    config = load_config(module.DecoderRunConfig, TINY / "decoder-tissue.yaml", ["encoder=RUN", *overrides])
    return module.settings_of(Options(), config, small_encoder())


@pytest.mark.parametrize("name", ["segmentation", "pretraining", "ablations"])
def test_another_configuration_begins_anew(script, tmp_path, name) -> None:
    found = settings_of(script, tmp_path, name)
    assert found == settings_of(script, tmp_path, name)
    assert found != settings_of(script, tmp_path, name, "source.seed=5")


def test_other_code_begins_anew(script, tmp_path) -> None:
    code = tmp_path / "script.py"
    keys = []
    for text, expected in (("PENALTY = 1", 1), ("PENALTY = 1", 1), ("PENALTY = 2", 2)):
        code.write_text(text)
        results = script("arms").Results(tmp_path / "results.json", {"steps": 2}, str(code))
        assert results.part("one", lambda: int(code.read_text()[-1])) == expected
        code.write_text("PENALTY = 3")
        assert results.part("one", lambda: 3) == expected
        keys.append(results.key)
        assert json.loads((tmp_path / "results.json").read_text())["seconds"] == {"one": 0}
    assert keys[0] == keys[1] != keys[2]


def test_where_the_encoder_of_the_segmentation_lies_does_not_matter(script, tmp_path) -> None:
    found = settings_of(script, tmp_path, "segmentation")
    assert found == settings_of(script, tmp_path, "segmentation", "encoder=elsewhere")


@pytest.mark.parametrize("steps", [10, 200])
def test_networks_warm_up_for_a_tenth_of_the_run_however_many_steps_it_has(script, steps) -> None:
    network = torch.nn.Linear(1, 1)
    optimise = script("segmentation").Optimiser(network)
    rates = []
    for step in range(steps):
        optimise(network(torch.ones(1, 1)).sum(), step / steps)
        rates.append(optimise.adam.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(2e-4)
    assert np.argmax(rates) == pytest.approx(steps / 10, abs=steps / 100 + 1)
    assert max(rates) == pytest.approx(2e-3, rel=0.05)
    assert rates[-1] < 1e-4


def test_every_row_is_as_likely_in_a_bootstrap_sample(script) -> None:
    """Of 3 rows beside 5 series, "5 modulo 3" drew the last one half as often."""
    rng = np.random.default_rng(0)
    rows = {"row": np.arange(3)}
    drawn = np.concatenate([script("token_dropping").drawn_again(rows, rng)["row"] for _ in range(2000)])
    assert len(drawn) == 6000
    assert np.bincount(drawn) / 6000 == pytest.approx([1 / 3] * 3, abs=0.02)  # three deviations of 0.006


def test_two_real_series_of_one_name_are_refused(script) -> None:
    truths_of = script("real").truths_of
    assert truths_of(["a/head=T1w", "b/x=y.nii=other"]) == {"a/head": "T1w", "b/x=y.nii": "other"}
    with pytest.raises(SystemExit, match="scan"):
        truths_of(["a/scan=T1w", "b/scan=other"])
