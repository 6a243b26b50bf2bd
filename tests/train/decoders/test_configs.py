"""The committed configurations of decoders: of the size, the words and the company that they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from decipher_rt.train.checkpoint import DEFAULT_WEIGHTS
from decipher_rt.train.config import load_config
from decipher_rt.train.decoders import train as training
from decipher_rt.train.decoders.config import DecoderRunConfig
from decipher_rt.train.decoders.contract import label_text
from decipher_rt.train.decoders.registry import build_decoder
from decipher_rt.train.model.vit import ViT, ViTConfig

CONFIGS = Path(training.__file__).resolve().parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/decoder-*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_committed_configurations_fit_their_encoders(path: Path) -> None:
    config = load_config(DecoderRunConfig, path, ["encoder=runs/align"])
    encoder = ViTConfig.PRESETS[path.parent.name]
    decoder = build_decoder(config.decoder, encoder)
    assert config.decoder.name == path.stem.removeprefix("decoder-")
    with torch.device("meta"):  # sizes without the numbers
        whole = sum(p.numel() for p in ViT(encoder).parameters())
    assert sum(p.numel() for p in decoder.parameters()) < 0.25 * whole, "a decoder is light"


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("name", ["lesion", "lesion_box", "brain_volume_ml"])
def test_what_stands_upon_a_segmentation_can_do_without(size: str, name: str) -> None:
    """The overrides are those of docs/encoder-and-decoders.md."""
    alone = ["decoder.upon=", *(["decoder.options.odds=false"] if name != "brain_volume_ml" else [])]
    config = load_config(DecoderRunConfig, CONFIGS / size / f"decoder-{name}.yaml", ["encoder=RUN", *alone])
    assert config.decoder.upon == ""
    build_decoder(config.decoder, ViTConfig.PRESETS[size])


def test_the_shipped_configurations_say_the_shipped_words() -> None:
    manifest = json.loads((DEFAULT_WEIGHTS.parent / "bundle" / "manifest.json").read_text())
    for name in (head["name"] for head in manifest["heads"]):
        config = load_config(DecoderRunConfig, CONFIGS / "tiny" / f"decoder-{name}.yaml", ["encoder=RUN"])
        for key in ("name", "version", "licence", "intended_use"):
            assert getattr(config, key) == manifest[key], (name, key)
        assert config.scope is None or config.subject == manifest["scope"]["subject"]


def test_every_size_has_every_decoder() -> None:
    wanted = {f"decoder-{n}" for n in ("sequence", "lesion", "lesion_box", "tissue", "brain_volume_ml", "age", "sex")}
    for size in ("tiny", "small", "base"):
        assert {path.stem for path in (CONFIGS / size).glob("decoder-*.yaml")} == wanted


@pytest.mark.parametrize(
    ("label", "text"),
    [(1.0, "1"), (-2.0, "-2"), (1.5, "1.5"), (1234567.0, "1234567"), (1234.567, "1234.567"), ("F", "F")],
)
def test_a_label_is_written_as_the_file_has_it(label: str | float, text: str) -> None:
    assert label_text(label) == text
