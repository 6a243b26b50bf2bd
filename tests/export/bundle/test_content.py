"""What is in a bundle beside its graphs, and what must not be in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from decipher_rt.bundle import Bundle
from decipher_rt.export import bundle as export_module
from decipher_rt.export.parts import parts_of
from decipher_rt.train.golden import GoldenCase
from decipher_rt.train.model.vit import ViT
from decipher_rt.train.sources import SourceConfig
from decipher_rt.train.weights import Weights
from decipher_rt.verify import read_case


def test_manifest_says_what_is_in_it(bundle: Bundle, weights: Weights) -> None:
    manifest, encoder = bundle.manifest, weights.config.encoder
    assert manifest.encoder.parameters == sum(p.numel() for p in ViT(encoder).parameters())
    assert manifest.preprocessing.grid_shape == encoder.grid_shape
    assert {head.name: head.labels for head in manifest.heads}["sequence"] == ("T1w", "T2w", "PDw", "FLAIR", "T2*w")
    assert [row.precision for row in manifest.numerics] == ["fp32", "fp16"]
    assert all(
        max(r.patch_max_error, r.heads_max_error, r.embedding_max_error) <= r.tolerance for r in manifest.numerics
    )
    assert manifest.metrics == {"lesion": {"auroc": 0.5}}
    descriptions = {head.name: head.description for head in manifest.heads}
    assert descriptions["sequence"] == "Contrast. NOT TO BE RELIED ON: not measured on held-out series."
    assert descriptions["lesion"].startswith("Lesion. NOT TO BE RELIED ON: AUROC 0.50 on held-out series")
    assert manifest.provenance["config"]["encoder"]["width"] == 48


def test_a_bundle_says_of_itself_what_its_configuration_says(bundle: Bundle, weights: Weights) -> None:
    """Of somebody's own model nothing is claimed, and of files of a machine the name alone."""
    plain = bundle.manifest
    assert (plain.licence, plain.intended_use) == ("not stated", export_module.INTENDED_USE)
    assert "head" not in plain.intended_use
    assert plain.scope is not None
    assert plain.scope.subject == ""
    listed = SourceConfig(kind="manifest", path="/home/her/cohort.csv", anatomy="/home/her/brain.nii.gz")
    words = {"licence": "MIT", "intended_use": "Play.", "subject": "balls", "scope_source": listed}
    config = dataclasses.replace(weights.config, sources=dict.fromkeys(weights.config.sources, listed), **words)
    manifest = export_module._manifest(parts_of(dataclasses.replace(weights, config=config)), ())
    assert (manifest.licence, manifest.intended_use) == ("MIT", "Play.")
    assert manifest.scope is not None
    assert manifest.scope.subject == "balls"
    assert "/home/her" not in str(manifest.provenance)
    told = manifest.provenance["config"]
    for source in (*told["sources"].values(), told["scope_source"]):
        assert (source["path"], source["anatomy"]) == ("cohort.csv", "brain.nii.gz")


def test_golden_case_is_what_torch_gives(bundle: Bundle, weights: Weights, case: GoldenCase) -> None:
    golden = read_case(bundle)
    assert np.array_equal(golden["volume"][0, 0], case.volume)
    with torch.no_grad():
        patch, embedding = weights.model.encoder(*(torch.from_numpy(golden[n]) for n in ("volume", "window", "tokens")))
        sequence = weights.model.decoders["sequence"].pool(patch, embedding)
        lesion = weights.model.decoders["lesion"].pool(patch)
    assert np.array_equal(golden["embedding"], embedding.numpy())
    assert np.allclose(golden["heads.sequence"], torch.softmax(sequence / 0.6, 1).numpy(), atol=1e-6)
    absent, present = golden["heads.lesion"][0]
    assert present == pytest.approx(float(torch.sigmoid(lesion / 1.4)), abs=1e-6)
    assert absent + present == pytest.approx(1.0, abs=1e-6)


def test_no_path_and_no_name_of_this_machine_is_in_the_bundle(bundle: Bundle) -> None:
    here = [
        str(Path.home()),
        str(Path(export_module.__file__).parents[1]),
        "site-packages",
        ".py",
        "/usr/",
        str(bundle.path),
    ]
    for file in bundle.path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [text for text in here if text.encode() in content], file.name
