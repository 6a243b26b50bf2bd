"""The whole recipe from the command line at tiny size: three stages, five decoders, a bundle, and answers without PyTorch.

A few steps a stage show that each takes what the one before left; how well a full run does is in docs/model-card.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

import decipher_rt

pytestmark = pytest.mark.slow

DEMO = Path(decipher_rt.__file__).parent / "default" / "demo_series"
CONFIGS = Path(decipher_rt.__file__).parent / "train" / "configs" / "tiny"
HEADS = "source.heads=1"  # a template takes half a minute to make
SOURCE = (HEADS, "source.train=96", "source.validation=32", "source.test=48")
SHORT = ("run.steps=3", "run.warmup=1")
DECODERS = ("sequence", "tissue", "brain_volume_ml", "lesion", "lesion_box")
PROMPTS = ("a T1-weighted scan", "fluid has been suppressed")


def command(*arguments: object, without_torch: bool = False) -> str:
    """Run ``decipher-rt``; a program that must not need PyTorch finds none."""
    program = "from decipher_rt.cli import main; main()"
    if without_torch:
        program = f"import sys; sys.modules['torch'] = None; {program}"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, "TRITON_INTERPRET": "0"}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage of training, one after the other, and the model's bundle."""
    runs = tmp_path_factory.mktemp("recipe")
    cache = ("--cache", runs / "cache")
    command(
        "train", "ssl", CONFIGS / "ssl.yaml", "-o", runs / "ssl", *cache, *SOURCE, *SHORT, "pool_series=32"
    )  # fmt: skip
    command("train", "text", CONFIGS / "text.yaml", "-o", runs / "text", "reports=256", HEADS, *SHORT)
    stages = (f"encoder_from={runs / 'ssl'}", f"text_from={runs / 'text'}", "run.batch=8", "pool=48")
    command("train", "align", CONFIGS / "align.yaml", "-o", runs / "align", *cache, *SOURCE, *SHORT, *stages)
    for name in DECODERS:
        changed = ("run.steps=150", "run.batch=32", "scope.others=32") if name == "sequence" else SHORT
        config = CONFIGS / f"decoder-{name}.yaml"
        command(
            "train", "decoder", config, "-o", runs / "model", *cache, *SOURCE, f"encoder={runs / 'align'}", *changed
        )  # fmt: skip
    # So few steps teach too little for figures of so few series to be held to.
    command(
        "export", runs / "model", "-o", runs / "bundle", "--fp16", *cache, "--evaluate", 8, "--max-drop", 100
    )  # fmt: skip
    return runs


def test_the_sequence_head_learns_and_evaluate_says_so(runs: Path) -> None:
    figures = json.loads(command("evaluate", runs / "model", "--cache", runs / "cache", "--json"))
    assert set(figures) == {*DECODERS, "scope", "retrieval"}
    assert 30 < figures["sequence"]["series"] < 48  # one in five is no head
    assert figures["sequence"]["accuracy"] > 0.4  # the most frequent of five has three tenths
    assert figures["retrieval"]["pool"] == figures["sequence"]["series"]


def test_the_bundle_is_sound(runs: Path) -> None:
    command("verify", runs / "bundle", without_torch=True)


def test_a_series_gets_every_answer_without_pytorch(runs: Path, tmp_path: Path) -> None:
    asked = [part for prompt in PROMPTS for part in ("--prompt", prompt)]
    printed = command(
        "infer", DEMO, "-b", runs / "bundle", "-o", tmp_path, "--png", "--json", *asked, without_torch=True
    )  # fmt: skip
    result = json.loads(printed)
    assert set(result["heads"]) == set(DECODERS)
    assert sum(one["probability"] for one in result["prompts"].values()) == pytest.approx(1, abs=1e-3)
    assert len(list(tmp_path.rglob("*.png"))) == 1
    (written,) = (path for path in tmp_path.rglob("*.nii.gz"))
    labels = nibabel.as_closest_canonical(nibabel.load(written))  # it is written in the source's own axes
    assert labels.shape == tuple(result["series"]["shape_ras"])
    assert np.allclose(labels.affine, result["series"]["affine_ras_mm"], atol=1e-3)


def test_a_series_is_found_by_words_and_by_itself(runs: Path, tmp_path: Path) -> None:
    index = tmp_path / "archive.index"
    command("embed", DEMO, "-b", runs / "bundle", "-o", index, without_torch=True)
    for query in ("T1-weighted image of the head", DEMO):
        answer = json.loads(command("search", index, query, "-b", runs / "bundle", "--json", without_torch=True))
        assert len(answer["hits"]) == 1
    assert answer["hits"][0]["cosine"] == pytest.approx(1, abs=1e-3)
