"""An untrained model, its bundle, and an export of it that takes no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result

from decipher_rt.bundle import Bundle, open_bundle
from decipher_rt.export import bundle as export_module
from decipher_rt.export.bundle import ENCODERS, export_bundle
from decipher_rt.export.cli import export
from decipher_rt.train.golden import GoldenCase, save_golden
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.weights import Weights, save_weights


@pytest.fixture(scope="session")
def weights(untrained: Callable[..., Weights]) -> Weights:
    encoder = ViTConfig(
        width=48, depth=2, heads=4, embedding_size=16, grid_shape=(16, 16, 24), patch_shape=(4, 4, 4),
        spacing_mm=(15.0,) * 3, token_buckets=(24, 96), layer_scale=0.5,
    )  # fmt: skip
    made = untrained(encoder, metadata={"metrics": {"lesion": {"auroc": 0.5}}})
    scope, decoders = made.model.scope, made.model.decoders
    with torch.no_grad():
        scope.distance_edge.copy_(torch.tensor([2.0, 0.5]))
        scope.logit_edge.copy_(torch.tensor([-9.0, 1.0]))
        decoders["lesion"].pool.affine.copy_(torch.tensor([0.7, -2.0]))
        decoders["lesion"].temperature.fill_(1.4)
        decoders["sequence"].temperature.fill_(0.6)
    return made


@pytest.fixture(scope="session")
def case(weights: Weights) -> GoldenCase:
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 4000, weights.config.encoder.grid_shape).astype(np.int16)
    tokens = np.sort(rng.choice(96, 24, replace=False)).astype(np.int64)
    return GoldenCase(volume, np.array([100, 3500], np.float32), tokens)


@pytest.fixture(scope="session")
def bundle(weights: Weights, case: GoldenCase, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("export") / "bundle"
    export_bundle(weights, case, folder, fp16=True)
    return open_bundle(folder)


@pytest.fixture
def exported_again(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the exporter give the bundle's own graphs; ``change`` alters the largest weight of the one in ``changed``."""

    def prepare(changed: str | None = None, change: Callable[[np.ndarray], Any] | None = None) -> None:
        def graph(file: str) -> bytes:
            model = onnx.load(bundle.file(file))
            if change is not None and file == changed:
                largest = max(model.graph.initializer, key=lambda i: int(np.prod(i.dims)))
                values = onnx.numpy_helper.to_array(largest).copy()
                change(values)
                largest.CopyFrom(onnx.numpy_helper.from_array(values, largest.name))
            return model.SerializeToString()

        small = ("heads/sequence.onnx", "heads/lesion.onnx", "scope.onnx")
        monkeypatch.setattr(export_module, "encoder_graph", lambda e, i, precision: graph(ENCODERS["onnx", precision]))
        monkeypatch.setattr(
            export_module, "small_graphs", lambda parts, inputs, half_text: {file: graph(file) for file in small}
        )

    return prepare


@pytest.fixture
def run_export(weights: Weights, case: GoldenCase, tmp_path: Path) -> Callable[..., Result]:
    """Run ``decipher-rt export`` on the weights, with more arguments; the bundle is ``tmp_path / "bundle"``."""
    save_weights(tmp_path / "weights", weights)
    save_golden(tmp_path / "weights", case)

    def run(*arguments: str) -> Result:
        given = [str(tmp_path / "weights"), "-o", str(tmp_path / "bundle"), *arguments]
        result = CliRunner().invoke(export, given, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result

    return run
