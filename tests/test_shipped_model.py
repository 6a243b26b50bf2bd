"""What ships: small enough, weights and bundle of one training, and the same answers for the public real series.

The real series guard against change. They are weak evidence of how well the scope does: its form was chosen after they
had been looked at, with another model (docs/model-card.md).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import decipher_rt
from decipher_rt.bundle import open_bundle
from decipher_rt.session import Session

DEFAULT = Path(decipher_rt.__file__).parent / "default"
MOST_BYTES = 40e6  # of the weights, and of the bundle
HEADS = {
    "philips_t1_mprage_sag": "T1w",
    "siemens_t1_fl2d_sag_hfs": "T1w",
    "siemens_t1_fl2d_sag_hfp": "T1w",
    "ge_epi_fmri_ax": "T2*w",
}
PHANTOMS = ("ge_t1_mprage_ax", "siemens_epi_fmri", "siemens_xa10_enhanced", "philips_enhanced_fmap")


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(open_bundle())


@pytest.mark.parametrize("name", ["weights", "bundle"])
def test_it_is_small(name: str) -> None:
    assert sum(file.stat().st_size for file in (DEFAULT / name).rglob("*") if file.is_file()) <= MOST_BYTES


def test_it_has_every_decoder_and_words(session: Session) -> None:
    manifest = session.bundle.manifest
    kinds = {head.name: head.kind for head in manifest.heads}
    assert kinds == {
        "sequence": "classification",
        "brain_volume_ml": "regression",
        "lesion": "classification",
        "lesion_box": "localisation",
        "tissue": "segmentation",
    }
    assert manifest.text is not None
    assert manifest.scope is not None
    assert "HEAD" in manifest.scope.body_parts


def test_weights_and_bundle_are_of_one_training() -> None:
    safetensors = pytest.importorskip("safetensors", reason="reading the weights needs the train extra")
    with safetensors.safe_open(DEFAULT / "weights" / "model.safetensors", framework="numpy") as file:
        metrics = json.loads(file.metadata()["metrics"])
        parameters = sum(
            file.get_tensor(key).size
            for key in file.keys()  # noqa: SIM118 - not a mapping
            if key.startswith("encoder.") and "pooled" not in key
        )
    manifest = open_bundle().manifest
    assert manifest.metrics == metrics
    assert manifest.encoder.parameters == parameters


@pytest.mark.parametrize(("name", "sequence"), HEADS.items())
def test_real_heads_are_in_scope_and_named_right(session: Session, shared_data: Path, name: str, sequence: str) -> None:
    result = session.infer(shared_data / "dicom" / name)
    assert result.scope.inside, result.scope.reason
    assert result.heads["sequence"].label == sequence


@pytest.mark.parametrize("name", PHANTOMS)
def test_phantoms_are_out_of_scope_and_get_no_answer(session: Session, shared_data: Path, name: str) -> None:
    for result in session.infer_each([shared_data / "dicom" / name]):
        assert not result.scope.inside  # type: ignore[union-attr]
        assert all(head.not_answered for head in result.heads.values())  # type: ignore[union-attr]
