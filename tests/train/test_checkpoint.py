"""Weights and training state on disk: what is read is what was written, and what cannot be used is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from decipher_rt.atomic import write_text
from decipher_rt.train import checkpoint
from decipher_rt.train.checkpoint import (
    CONFIG,
    WEIGHTS,
    CheckpointError,
    check_same,
    folder_fingerprint,
    load_training,
    read_tensors,
    save_training,
    write_safetensors,
    write_tensors,
)
from decipher_rt.train.config import ConfigError, dump_config
from decipher_rt.train.model.recipe import RecipeConfig, RecipeModel
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.sources import SourceConfig
from decipher_rt.train.weights import Weights, check_splits, load_weights, save_weights, stage_metadata

ENCODER = ViTConfig(
    width=48, depth=2, heads=4, embedding_size=16, grid_shape=(16, 16, 16), patch_shape=(4, 4, 4),
    spacing_mm=(15.0,) * 3, token_buckets=(16, 32, 64),
)  # fmt: skip
CONFIGURATION = RecipeConfig("recipe", "test", "0", ENCODER)


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_model_comes_back_with_what_was_measured(tmp_path: Path) -> None:
    model = RecipeModel(CONFIGURATION)
    save_weights(tmp_path, Weights(model, CONFIGURATION, {"metrics": {"a": [0.25, None]}}))
    loaded = load_weights(tmp_path)
    assert (loaded.config, loaded.metadata) == (CONFIGURATION, {"metrics": {"a": [0.25, None]}})
    assert not loaded.model.training
    for (name, tensor), other in zip(model.state_dict().items(), loaded.model.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def test_weights_of_hugging_face_have_a_fingerprint(tmp_path: Path) -> None:
    """Their metadata is no JSON; as weights of our own they are refused for that, and not as damaged."""
    save_file({"a": torch.ones(2)}, tmp_path / WEIGHTS, {"format": "pt"})
    found = folder_fingerprint(tmp_path)
    with pytest.raises(CheckpointError, match=r"its metadata is not what 'decipher-rt train' writes"):
        read_tensors(tmp_path / WEIGHTS)
    write_tensors(tmp_path / WEIGHTS, {"a": torch.ones(2)}, {"step": 3})
    assert folder_fingerprint(tmp_path) == found


def test_damaged_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        load_weights(tmp_path)
    path.write_bytes(b"\x80\x04pickle?")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_tensors(path)
    save_weights(tmp_path, Weights(RecipeModel(CONFIGURATION), CONFIGURATION, {}))
    tensors, metadata = read_tensors(path)
    write_tensors(path, {name: t for name, t in tensors.items() if "norm2" not in name}, metadata)
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        load_weights(tmp_path)
    one_line(caught)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("name: ssl\nencoder: tiny\nsource: {}\n", "a stage of the recipe, which answers nothing yet"),
        ("name: text\nsource: {}\nwidth: 3\n", "a stage of the recipe, which answers nothing yet"),
        ("name: another\nseed: 20\nencoder: tiny\n", "no model"),
        ("{}\n", "no model"),
    ],
)
def test_a_folder_of_anything_else_is_no_model(tmp_path: Path, document: str, said: str) -> None:
    write_tensors(tmp_path / WEIGHTS, {"encoder.norm.bias": torch.zeros(1)}, {})
    write_text(tmp_path / CONFIG, document)
    with pytest.raises(CheckpointError) as caught:
        load_weights(tmp_path)
    expected = f"{tmp_path}: {said} (config.yaml has no key 'model'); give the folder of 'train decoder'"
    assert one_line(caught) == expected


def test_a_model_of_another_kind_is_refused_by_its_key(tmp_path: Path) -> None:
    write_tensors(tmp_path / WEIGHTS, {"encoder.norm.bias": torch.zeros(1)}, {})
    write_text(tmp_path / CONFIG, dump_config(CONFIGURATION).replace("model: recipe", "model: other"))
    with pytest.raises(ConfigError, match=r"config\.yaml: model is 'other', expected one of recipe"):
        load_weights(tmp_path)


def test_training_state_comes_back_and_another_configuration_is_refused(tmp_path: Path) -> None:
    def stepped(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
        for step in range(steps):
            optimiser.zero_grad()
            model(torch.full((4, 3), step + 1.0)).sum().square().backward()
            optimiser.step()
        return model, optimiser

    path = tmp_path / "training.safetensors"
    model, optimiser = stepped(2)
    save_training(path, model, optimiser, 2, "text")
    again, its_optimiser = stepped(0)
    assert load_training(path, again, its_optimiser, "text") == 2
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert all(torch.equal(optimiser.state[a][n], its_optimiser.state[b][n]) for n in ("exp_avg", "exp_avg_sq"))
    with pytest.raises(CheckpointError, match="another configuration"):
        load_training(path, again, its_optimiser, "other")


def test_a_run_of_another_configuration_names_the_keys() -> None:
    """Where its series lie is none of them; what neither says, as keys that came later, is the same."""
    config = "source: {kind: manifest, path: /a/x.csv, listed: '1'}\nrun: {rate: 0.1, steps: 3}\n"
    check_same(Path("x"), config, config.replace("/a/", "/b/").replace("listed", "cohort: '', listed"))
    for other, said in (
        (config.replace("0.1", "0.2").replace("3", "4"), "run.rate, run.steps"),
        (config.replace("'1'", "'2'"), "what source.path lists"),
        (config.replace("path", "cohort: y, path"), "source.cohort"),
        ("[", "source.kind, source.listed, run.rate, run.steps, config".replace("source.listed", "what .* lists")),
    ):
        with pytest.raises(CheckpointError, match=f"^x: a run of another configuration, which differs in {said}; give"):
            check_same(Path("x"), config, other)


def test_what_trains_nothing_makes_no_other_run() -> None:
    """Also against what an older version wrote, with other keys of these or without."""
    config = "run: {steps: 3, loaders: 1, checkpoint_every: 100}\nworkers: 2\nscope: null\n"
    other = "run: {steps: 3, loaders: 8}\nworkers: 16\nscope: {method: nearest, body_parts: [HEAD]}\n"
    check_same(Path("x"), config, other)
    check_same(Path("x"), other, "run: {steps: 3}\nencoder: {pool: fixed}\n")
    upon = "decoder: {options: {skips: true, margins: []}}\n"
    check_same(Path("x"), config + upon, other + upon.replace("[]", "[0, 2]"))
    with pytest.raises(CheckpointError, match=r"differs in scopes; give"):
        check_same(Path("x"), config, f"{other}scopes: 2\n")


def test_metadata_is_read_without_the_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Header:
        """An open file that gives no tensor."""

        def __init__(self, path: Path, framework: str) -> None:
            self._file = safe_open(path, framework)

        def __enter__(self) -> Header:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def metadata(self) -> dict[str, str]:
            return self._file.metadata()

    write_tensors(tmp_path / WEIGHTS, {"a": torch.ones(2)}, {"patients": ["b"]})
    (tmp_path / CONFIG).write_text("")
    monkeypatch.setattr(checkpoint, "safe_open", Header)
    assert stage_metadata(tmp_path) == {"patients": ["b"]}


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    """What safetensors raises there is no OSError."""

    def full(staging: Path) -> None:
        staging.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(CheckpointError, match=r"file: cannot be written \(I/O error: No space left"):
        write_safetensors(tmp_path / "file", full)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sources: [1]", "sources is list, expected keys and values"),
        ("source: 5", "source is 5, expected keys and values"),
        ("sources: {age: {kind: paper}}", "source.kind is 'paper', expected one of"),
    ],
)
def test_what_a_stage_was_trained_on_is_refused_by_its_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(ConfigError, match=f"config.yaml: {said}") as caught:
        check_splits(SourceConfig(), tmp_path)
    one_line(caught)
