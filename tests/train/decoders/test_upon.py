"""Decoders that stand upon a segmentation of the model: trained, kept, and lost with it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from decipher_rt.train import weights as weights_folder
from decipher_rt.train.checkpoint import CheckpointError, fingerprint
from decipher_rt.train.config import ConfigError
from decipher_rt.train.decoders.evaluate import evaluate_model
from decipher_rt.train.progress import Progress
from decipher_rt.train.scope import ScopeConfig
from decipher_rt.train.weights import load_weights

from .small_runs import BALL, SEEN, TISSUE, run_config, trained

pytestmark = pytest.mark.usefixtures("small_sources")


def test_a_decoder_stands_upon_a_segmentation_of_the_model(aligned: Path, tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    with pytest.raises(ConfigError, match=r"decoder\.upon is 'tissue', expected a segmentation .*it has none; train"):
        trained(run_config(aligned, SEEN), folder, cache)
    trained(run_config(aligned, TISSUE), folder, cache)
    made = trained(run_config(aligned, SEEN), folder, cache)
    loaded = load_weights(folder)
    assert set(loaded.model.sights) == {"lesion"}
    assert loaded.model.sights["lesion"].segmentation is loaded.model.decoders["tissue"]
    assert not any("segmentation" in name for name in loaded.model.state_dict()), "its weights are stored once"
    figures = evaluate_model(loaded, folder, cache, Progress())
    assert figures["lesion"] == made.metadata["metrics"]["lesion"]


def test_other_margins_train_nothing_again_and_keep_what_stands_upon_them(aligned: Path, tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    first = trained(run_config(aligned, TISSUE), folder, cache)
    trained(run_config(aligned, SEEN), folder, cache)
    margins = [0, 0, 0, 0, 50]  # of the last label, which then is never chosen
    options = {**TISSUE.options, "margins": margins}
    again = trained(run_config(aligned, dataclasses.replace(TISSUE, options=options)), folder, cache)
    loaded = load_weights(folder)
    assert loaded.model.decoders["tissue"].margins.tolist() == margins
    assert set(loaded.model.sights) == {"lesion"}
    assert fingerprint(loaded.model.decoders["tissue"].state_dict()) == fingerprint(
        first.model.decoders["tissue"].state_dict()
    )
    assert again.metadata["provenance"]["tissue"] == first.metadata["provenance"]["tissue"]
    assert again.metadata["metrics"]["tissue"]["dice"]["lesion"] in (0, None)


def test_killed_between_weights_and_configuration_the_same_command_goes_on(
    aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that is new, one that another was upon, and a scope of another size."""
    folder, cache = tmp_path / "model", tmp_path / "cache"
    for config in (TISSUE, SEEN):
        trained(run_config(aligned, config, scope=ScopeConfig(neighbours=5)), folder, cache)
    shutil.rmtree(folder / "decoders" / "tissue")
    other = dataclasses.replace(TISSUE, options={"channels": [8, 12], "skips": True})
    nearest = ScopeConfig(method="nearest", neighbours=3, among=16)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for config, names in (
        (run_config(aligned, BALL), ["tissue", "lesion", "ball"]),
        (run_config(aligned, other), ["tissue", "ball"]),
        (run_config(aligned, BALL, scope=nearest), ["tissue", "ball"]),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(weights_folder, "write_text", killed)
            with pytest.raises(KeyboardInterrupt):
                trained(config, folder, cache)
        trained(config, folder, cache)
        assert [d.name for d in load_weights(folder).config.decoders] == names
    assert set(load_weights(folder).metadata["metrics"]) == {"recall", "scope", *names}


def test_a_segmentation_that_is_trained_again_loses_what_stands_upon_it(
    aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    for config in (TISSUE, SEEN, BALL):
        trained(run_config(aligned, config), folder, cache)
    same = trained(run_config(aligned, TISSUE), folder, cache)
    assert [d.name for d in same.config.decoders] == ["tissue", "lesion", "ball"], "nothing was trained: all stays"
    capsys.readouterr()
    other = dataclasses.replace(TISSUE, options={"channels": [8, 12], "skips": True})
    shutil.rmtree(folder / "decoders" / "tissue")
    changed = trained(run_config(aligned, other), folder, cache)
    assert [d.name for d in changed.config.decoders] == ["ball", "tissue"]
    assert set(changed.metadata["metrics"]) == {"recall", "tissue", "ball"}
    assert set(changed.metadata["provenance"]) == {"encoder", "tissue", "ball"}
    assert capsys.readouterr().err == "decipher-rt: lesion left out: upon another tissue; train again\n"
    load_weights(folder)
    with pytest.raises(CheckpointError, match="another configuration"):
        trained(run_config(aligned, SEEN), folder, cache)
