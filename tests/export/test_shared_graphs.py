"""Heads upon a segmentation: one graph for all of them, which gives what torch does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from decipher_rt import head_graphs
from decipher_rt.bundle import Bundle, open_bundle
from decipher_rt.engines import load_engine
from decipher_rt.errors import BundleError
from decipher_rt.export.bundle import export_bundle
from decipher_rt.export.evaluate import _Given
from decipher_rt.export.known import KnownSeries
from decipher_rt.export.parts import parts_of
from decipher_rt.head_graphs import HeadGraphs
from decipher_rt.session import Session
from decipher_rt.train.decoders.contract import Known, seen_as_encoder
from decipher_rt.train.decoders.registry import DecoderConfig
from decipher_rt.train.golden import GoldenCase
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.weights import Weights
from decipher_rt.verify import verify_bundle

ENCODER = ViTConfig(
    width=48, depth=1, heads=4, embedding_size=16, grid_shape=(16, 16, 24), patch_shape=(4, 4, 4),
    spacing_mm=(15.0,) * 3, token_buckets=(24, 96),
)  # fmt: skip
PRESENCE = {"labels": ["absent", "present"], "pool": "max"}
DECODERS = (
    DecoderConfig("tissue", "segmentation", "tissue", options={"channels": [16, 8], "skips": True}),
    DecoderConfig("volume", "regression", "brain_volume_ml", upon="tissue", options={"unit": "ml", "pool": "linear"}),
    DecoderConfig("lesion", "classification", "lesion", upon="tissue", options={**PRESENCE, "odds": True}),
    DecoderConfig("box", "localisation", "lesion", upon="tissue", options={"hidden": 48, "boxes": 2, "odds": True}),
    DecoderConfig("again", "classification", "lesion", upon="tissue", options={**PRESENCE, "hidden": 16}),
)
SHARED = ("tissue", "volume", "lesion", "box")


@pytest.fixture(scope="module")
def weights(untrained: Callable[..., Weights]) -> Weights:
    return untrained(ENCODER, decoders=DECODERS)


@pytest.fixture(scope="module")
def bundle(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 4000, ENCODER.grid_shape).astype(np.int16)
    tokens = np.sort(rng.choice(96, 24, replace=False)).astype(np.int64)
    folder = tmp_path_factory.mktemp("shared") / "bundle"
    export_bundle(weights, GoldenCase(volume, np.array([100, 3500], np.float32), tokens), folder, fp16=False)
    return open_bundle(folder)


@pytest.fixture(scope="module")
def features() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        "patch": torch.randn((2, 40, 48), generator=generator),
        "tokens": torch.stack([torch.randperm(96, generator=generator)[:40].sort().values for _ in range(2)]),
        "embedding": torch.nn.functional.normalize(torch.randn((2, 16), generator=generator), dim=-1),
        "volume": 300 * torch.rand((2, 1, *ENCODER.grid_shape), generator=generator),
        "window": torch.tensor([[20.0, 250.0], [0.0, 1.0]]),
    }


class Counted:
    """An engine that counts its runs."""

    def __init__(self, path: Path, threads: int) -> None:
        self.engine, self.threads, self.runs = (
            load_engine("openvino", path, precision="fp32", threads=threads),
            threads,
            0,
        )
        self.inputs = self.engine.inputs

    def run(self, inputs: Any) -> Any:
        self.runs += 1
        return self.engine.run(inputs)


def test_one_graph_answers_for_all_that_stand_upon_it(bundle: Bundle) -> None:
    files = {head.name: head.file for head in bundle.manifest.heads}
    assert files == dict.fromkeys(SHARED, "heads/tissue.onnx") | {"again": "heads/again.onnx"}
    graph = onnx.load(bundle.file("heads/tissue.onnx")).graph
    assert [output.name for output in graph.output] == ["labels_map", "value", "probabilities", "boxes"]
    convolutions = [node for node in graph.node if node.op_type.startswith("Conv")]
    alone = [n for n in onnx.load(bundle.file("heads/again.onnx")).graph.node if n.op_type.startswith("Conv")]
    assert len(convolutions) == len(alone), "what they share is computed once"


def test_heads_upon_a_segmentation_are_traced_as_they_are(weights: Weights, features: dict[str, torch.Tensor]) -> None:
    """Where ``strict=False`` fails, the exporter falls back to a tracer that takes several times as long."""
    (module,) = (part.module for part in parts_of(weights).graphs if part.file == "heads/tissue.onnx")
    torch.export.export(module, tuple(features[name] for name in module.inputs), strict=False)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_verify_passes(bundle: Bundle, engine: str) -> None:
    report = verify_bundle(bundle, engine, "fp32", 1)
    assert report.passed, report
    assert [row.output for row in report.rows][2:7] == [f"heads.{d.name}" for d in DECODERS]


def test_each_graph_runs_once_and_gives_what_torch_does(
    bundle: Bundle, weights: Weights, features: dict[str, torch.Tensor]
) -> None:
    loaded: dict[str, Counted] = {}

    def load(file: str, threads: int) -> Any:
        return loaded.setdefault(file, Counted(bundle.file(file), threads))

    heads = HeadGraphs(bundle.manifest.heads, load, {"heads/tissue.onnx": 2})
    assert heads.inputs == {"patch", "tokens", "embedding", "volume", "window"}
    outputs = heads.run({name: tensor.numpy() for name, tensor in features.items()})
    assert {file: (engine.runs, engine.threads) for file, engine in loaded.items()} == {
        "heads/tissue.onnx": (1, 2), "heads/again.onnx": (1, 1)
    }  # fmt: skip
    patch, tokens, embedding = (features[name] for name in ("patch", "tokens", "embedding"))
    image, model = seen_as_encoder(features["volume"], features["window"]), weights.model
    with torch.no_grad():
        for decoder in DECODERS:
            sight = model.sights.get(decoder.name)
            seen = sight(patch, tokens, image) if sight else patch
            expected = model.decoders[decoder.name](seen, tokens, embedding, image).numpy()
            if decoder.name == "tissue":
                assert (outputs[decoder.name] != expected).mean() < 1e-3
            else:
                np.testing.assert_allclose(outputs[decoder.name], expected, rtol=1e-4, atol=1e-4)


def test_some_heads_of_a_graph_can_be_asked_alone(bundle: Bundle, features: dict[str, torch.Tensor]) -> None:
    kept = bundle.with_heads(["box"])

    def load(file: str, threads: int) -> Any:
        return load_engine("onnxruntime", bundle.file(file), precision="fp32", threads=threads)

    assert set(HeadGraphs(kept.manifest.heads, load, {}).run({n: t.numpy() for n, t in features.items()})) == {"box"}


def test_a_head_whose_graph_does_not_answer_for_it_is_named(bundle: Bundle, features: dict[str, torch.Tensor]) -> None:
    (again,) = (head for head in bundle.manifest.heads if head.name == "again")
    lying = dataclasses.replace(again, kind="regression", unit="ml", labels=())

    def load(file: str, threads: int) -> Any:
        return load_engine("onnxruntime", bundle.file(file), precision="fp32", threads=threads)

    with pytest.raises(BundleError, match=r"head again: heads/again\.onnx gives no output value; export"):
        HeadGraphs([lying], load, {}).run({name: tensor.numpy() for name, tensor in features.items()})


def test_the_judge_looks_at_voxels_once_a_series(
    weights: Weights, features: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {part.entry.name: part for part in parts_of(weights).heads}
    looked: list[int] = []
    features_of = type(parts["tissue"].decoder).features
    monkeypatch.setattr(type(parts["tissue"].decoder), "features", lambda *a: looked.append(1) or features_of(*a))
    inputs = {name: features[name][:1].numpy() for name in ("volume", "window", "tokens")}
    known = Known({"lesion": "present"}, np.zeros((0, 6), np.float32), "head", tissue=True)
    encoded = {name: features[name][:1].numpy() for name in ("patch", "embedding")}
    asked = ("tissue", "lesion", "again", "box")
    given = _Given(encoded, KnownSeries(inputs, known, np.zeros(ENCODER.grid_shape, np.uint8), asked))
    with torch.no_grad():
        rows = {name: given.rows(parts[name]) for name in asked}
    assert len(looked) == 1
    assert rows["lesion"]["logits"].shape == (1, 2)
    assert rows["tissue"]["counts"].shape == (1, 5, 3)


def test_a_large_graph_keeps_its_threads_whoever_is_asked(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load(engine: str, path: Path, *, precision: str, threads: int) -> Any:
        asked[path.name] = threads
        return load_engine(engine, path, precision=precision, threads=threads)  # type: ignore[arg-type]

    monkeypatch.setattr(head_graphs, "load_engine", load)
    Session(bundle, threads=2, heads=["box", "again"])
    assert asked == {"tissue.onnx": 2, "again.onnx": 1}
