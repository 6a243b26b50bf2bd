"""A weights folder becomes a bundle: graphs, preprocessing, golden case, manifest; checked before writing."""

from __future__ import annotations

import importlib.metadata
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

import decipher_rt
from decipher_rt.bundle import write_bundle
from decipher_rt.engines.cpu import cpu_features
from decipher_rt.engines.select import INT8_FULL_RANGE, INT8_PORTABLE, int8_targets
from decipher_rt.manifest import Encoder, EngineFile, Head, Manifest, Numerics, Precision, Preprocessing, Scope
from decipher_rt.preprocess import build_graph
from decipher_rt.train.config import dump_config
from decipher_rt.train.golden import GoldenCase
from decipher_rt.train.model.heads import LESION, SEQUENCES
from decipher_rt.train.weights import Weights
from decipher_rt.verify import CASE

from .evaluate import Judge, judge_encoders
from .onnx import Probabilities, encoder_graph, graph
from .quantize import int8_graphs
from .tensorrt.files import Wanted, plan_files
from .verify import check_graphs, reference_outputs

ENCODERS: dict[tuple[str, Precision], str] = {
    ("onnx", "fp32"): "encoder.onnx",
    ("onnx", "fp16"): "encoder.fp16.onnx",
    (INT8_PORTABLE, "int8"): "encoder.int8.onnx",
    (INT8_FULL_RANGE, "int8"): "encoder.int8-vnni.onnx",
}
GRAPHS = {"cpu": "preprocess.cpu.dali", "gpu": "preprocess.gpu.dali"}
INTENDED_USE = "Research on MR series of the head. Not a medical device; no decision about a patient may rest on it."
LICENCE = "Apache-2.0"
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "nvidia-dali-cuda130")


def export_bundle(
    weights: Weights,
    case: GoldenCase,
    folder: Path,
    *,
    fp16: bool,
    int8: Sequence[Mapping[str, NDArray[Any]]] | None = None,
    judge: Judge | None = None,
    plans: Wanted | None = None,
) -> tuple[Numerics, ...]:
    """Export a trained model.

    Parameters
    ----------
    weights : Weights
        From ``load_weights``.
    case : GoldenCase
    folder : Path
        Where the bundle shall be.
    fp16 : bool
        Add a half-precision encoder beside the fp32 one.
    int8 : sequence, optional
        Inputs of the encoder to calibrate on: add 8-bit encoders, one for any CPU, and one for CPUs with VNNI where
        this machine can check it.
    judge : Judge, optional
        Compare every encoder's heads with fp32 on evaluation series, and refuse what loses too much.
    plans : Wanted, optional
        Add engines of a TensorRT flavour. They run on a GPU only: one that was built here is checked before it is
        taken, one for other cards is checked on the golden case whenever it is loaded.

    Returns
    -------
    tuple of Numerics
        Each precision beside the fp32 torch reference, as the manifest states it.

    Raises
    ------
    EngineError
        If a graph differs from the reference by more than its tolerance, or fails the judge: nothing is written.
    BundleError
        If something other than a bundle is in the folder's place.
    """
    model, spec = weights.model.eval(), weights.config.encoder.preprocessing
    inputs = {
        "volume": torch.from_numpy(case.volume.astype(np.float32))[None, None],
        "window": torch.from_numpy(case.window)[None],
        "tokens": torch.from_numpy(case.tokens)[None],
    }
    precisions: tuple[Precision, ...] = ("fp32", "fp16") if fp16 else ("fp32",)
    graphs: dict[tuple[str, Precision], bytes] = {
        ("onnx", p): encoder_graph(model.encoder, inputs, p) for p in precisions
    }
    engines = [_engine_file("onnx", p, ("torch", "onnx")) for p in precisions]
    if int8 is not None:
        made = int8_graphs(graphs["onnx", "fp32"], int8_targets(cpu_features()), int8)
        graphs |= {(target, "int8"): content for target, content in made.items()}
        engines += [_engine_file(target, "int8", ("onnxruntime",)) for target in made]
    files: dict[str, bytes | Path] = {ENCODERS[key]: content for key, content in graphs.items()}
    if plans is not None:
        made_plans, entries = plan_files(model.encoder, plans)
        files |= made_plans
        engines += entries
    with torch.no_grad():
        features = dict(zip(("patch", "embedding"), model.encoder(**inputs), strict=True))
    files["heads/sequence.onnx"] = _head_graph(Probabilities(model.sequence), "embedding", "probabilities", features)
    files["heads/lesion.onnx"] = _head_graph(Probabilities(model.lesion), "patch", "probabilities", features)
    files["scope.onnx"] = _head_graph(model.scope, "embedding", "score", features)
    files |= {GRAPHS["cpu"]: build_graph(spec, "cpu"), GRAPHS["gpu"]: build_graph(spec, "gpu")}
    manifest = _manifest(weights, engines)
    reference = reference_outputs(model, inputs)
    numerics = check_graphs(files, manifest, [reference, reference_outputs(model, _whole_grid(inputs, spec))])
    if judge:
        numerics = judge_encoders(files, manifest, numerics, judge)
    files[f"{manifest.golden}/{CASE}"] = _archive({**reference, "volume": case.volume[None, None]})
    write_bundle(folder, replace(manifest, numerics=numerics), files)
    return numerics


def _engine_file(target: str, precision: Precision, packages: Sequence[str]) -> EngineFile:
    built_with = {name: importlib.metadata.version(name) for name in packages}
    return EngineFile(target, precision, ENCODERS[target, precision], built_with)


def _head_graph(module: nn.Module, takes: str, gives: str, features: Mapping[str, Tensor]) -> bytes:
    axes = {"patch": {0: "B", 1: "K"}, "embedding": {0: "B"}}[takes]
    return graph(module, {takes: features[takes]}, outputs=(gives,), dynamic={takes: axes})


def _whole_grid(inputs: Mapping[str, Tensor], spec: Preprocessing) -> dict[str, Tensor]:
    """Two volumes at once and every patch a token: what the golden case leaves out. The second is upside down."""
    volume = torch.cat([inputs["volume"], inputs["volume"].flip(2)])
    tokens = torch.arange(spec.patches).expand(2, -1)
    return {"volume": volume, "window": inputs["window"].expand(2, -1), "tokens": tokens}


def _manifest(weights: Weights, engines: Sequence[EngineFile]) -> Manifest:
    config, metadata = weights.config, weights.metadata
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    encoder = weights.model.encoder
    return Manifest(
        name=config.name,
        version=config.version,
        intended_use=INTENDED_USE,
        licence=LICENCE,
        preprocessing=replace(config.encoder.preprocessing, graphs=GRAPHS),
        encoder=Encoder(
            width=config.encoder.width,
            embedding_size=config.encoder.embedding_size,
            parameters=sum(p.numel() for p in encoder.parameters()),
            config=asdict(config.encoder),
        ),
        engines=tuple(engines),
        heads=(
            Head("sequence", "classification", "heads/sequence.onnx", "Contrast of the image.", SEQUENCES),
            Head(
                "lesion",
                "classification",
                "heads/lesion.onnx",
                "Whether a focal lesion of the brain is visible.",
                LESION,
            ),
        ),
        scope=Scope("scope.onnx", "mean of Mahalanobis and outlier-exposure margins", 0.0, subject="heads"),
        metrics=metadata.get("metrics", {}),
        provenance={
            "config": yaml.safe_load(dump_config(config)),
            "seed": config.seed,
            "training": metadata.get("provenance", {}),
            "export": {"decipher-rt": decipher_rt.__version__, **versions},
        },
    )


def _archive(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
