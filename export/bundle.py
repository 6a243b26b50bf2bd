"""A weights folder becomes a bundle: graphs, preprocessing, golden case, manifest; checked before writing."""

from __future__ import annotations

import functools
import importlib.metadata
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import decipher_rt
from decipher_rt.bundle import write_bundle
from decipher_rt.engines.select import INT8_FULL_RANGE, INT8_PORTABLE
from decipher_rt.manifest import EngineFile, Manifest, Numerics, Precision, Preprocessing
from decipher_rt.preprocess import build_graph
from decipher_rt.text import INPUTS, OUTPUT
from decipher_rt.train.golden import GoldenCase
from decipher_rt.train.weights import Weights
from decipher_rt.verify import CASE, TOLERANCES

from .evaluate import Judge, judge_encoders
from .onnx import encoder_graph, graph, half_storage
from .parts import SCOPE_GRAPH, TEXT_GRAPH, TOKENIZER, Parts, TextPart, parts_of
from .quantize import int8_graphs
from .tensorrt.files import Wanted, plan_files
from .verify import check_graphs, reference_outputs

ENCODERS: dict[tuple[str, Precision], str] = {
    ("onnx", "fp32"): "encoder.onnx",
    ("onnx", "fp16"): "encoder.fp16.onnx",
    (INT8_PORTABLE, "int8"): "encoder.int8.onnx",
    (INT8_FULL_RANGE, "int8"): "encoder.int8-vnni.onnx",
}
# Of a head's inputs, the axes that stay free.
AXES = {
    "patch": {0: "B", 1: "K"},
    "tokens": {0: "B", 1: "K"},
    "embedding": {0: "B"},
    "volume": {0: "B"},
    "window": {0: "B"},
}
EXAMPLE_TOKENS = 8  # of the text that the tower is traced with: their number stays free
GRAPHS = {"cpu": "preprocess.cpu.dali", "gpu": "preprocess.gpu.dali"}
# Of a model whose configuration does not say.
INTENDED_USE = "Research. Not a medical device; no decision about a patient may rest on it."
LICENCE = "not stated"
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
    tokenizer: bytes | None = None,
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
        Add a half-precision encoder beside the fp32 one, and store the text tower in half precision.
    int8 : sequence, optional
        Inputs of the encoder to calibrate on: add 8-bit encoders, one for any CPU and one for CPUs with VNNI.
    judge : Judge, optional
        Compare every encoder's heads with fp32 on evaluation series, and refuse what loses too much.
    plans : Wanted, optional
        Add engines of a TensorRT flavour. They run on a GPU only: one that was built here is checked before it is
        taken, one for other cards is checked on the golden case whenever it is loaded.
    tokenizer : bytes, optional
        ``tokenizer.json`` of a model with a text tower.

    Returns
    -------
    tuple of Numerics
        Each precision beside the fp32 torch reference, as the manifest states it.

    Raises
    ------
    EngineError
        If a graph differs from the reference by more than its tolerance, or fails the judge, or the tokenizer of a
        text tower is not given: nothing is written.
    BundleError
        If something other than a bundle is in the folder's place.
    """
    parts = parts_of(weights, tokenizer, text_tolerance=TOLERANCES["fp16" if fp16 else "fp32"])
    inputs = {
        "volume": torch.from_numpy(case.volume.astype(np.float32))[None, None],
        "window": torch.from_numpy(case.window)[None],
        "tokens": torch.from_numpy(case.tokens)[None],
    }
    precisions: tuple[Precision, ...] = ("fp32", "fp16") if fp16 else ("fp32",)
    graphs: dict[tuple[str, Precision], bytes] = {
        ("onnx", p): encoder_graph(parts.encoder, inputs, p) for p in precisions
    }
    engines = [_engine_file("onnx", p, ("torch", "onnx")) for p in precisions]
    if int8 is not None:
        made = int8_graphs(graphs["onnx", "fp32"], int8)
        graphs |= {(target, "int8"): content for target, content in made.items()}
        engines += [_engine_file(target, "int8", ("onnxruntime",)) for target in made]
    files: dict[str, bytes | Path] = {ENCODERS[key]: content for key, content in graphs.items()}
    if plans is not None:
        made_plans, entries = plan_files(parts.encoder, plans, int8 or ())
        files |= made_plans
        engines += entries
    files |= small_graphs(parts, inputs, half_text=fp16)
    files |= {GRAPHS["cpu"]: build_graph(parts.spec, "cpu"), GRAPHS["gpu"]: build_graph(parts.spec, "gpu")}
    manifest = _manifest(parts, engines)
    reference = reference_outputs(parts, inputs)
    whole = reference_outputs(parts, _whole_grid(inputs, parts.spec))

    @functools.cache
    def of_bucket(tokens: int) -> Mapping[str, NDArray[Any]]:
        return reference_outputs(parts, _of_bucket(inputs, parts.spec, tokens))

    numerics = check_graphs(files, manifest, [reference, whole], of_bucket)
    if judge:
        numerics = judge_encoders(files, manifest, numerics, parts.heads, judge)
    files[f"{manifest.golden}/{CASE}"] = _archive({**reference, "volume": case.volume[None, None]})
    write_bundle(folder, replace(manifest, numerics=numerics), files)
    return numerics


def _engine_file(target: str, precision: Precision, packages: Sequence[str]) -> EngineFile:
    built_with = {name: importlib.metadata.version(name) for name in packages}
    return EngineFile(target, precision, ENCODERS[target, precision], built_with)


def small_graphs(parts: Parts, inputs: Mapping[str, Tensor], *, half_text: bool) -> dict[str, bytes]:
    """Return the graphs beside the encoder, and the tokenizer, by their names in the bundle.

    With ``half_text`` the text tower's weights are stored in half precision: it has one form, and is most of what there
    is beside an encoder.
    """
    with torch.no_grad():
        features = {**inputs, **dict(zip(("patch", "embedding"), parts.encoder(**inputs), strict=True))}
    files = {}
    for one in parts.graphs:
        taken = {name: features[name] for name in one.module.inputs}
        dynamic = {name: AXES[name] for name in one.module.inputs}
        outputs = [head.output for head in one.heads]
        files[one.file] = graph(one.module, taken, outputs=outputs, dynamic=dynamic)
    if parts.scope:
        taken, dynamic = {"embedding": features["embedding"]}, {"embedding": AXES["embedding"]}
        files[SCOPE_GRAPH] = graph(parts.scope.module, taken, outputs=("score",), dynamic=dynamic)
    if parts.text:
        tower = _text_graph(parts.text)
        files |= {TEXT_GRAPH: half_storage(tower) if half_text else tower, TOKENIZER: parts.text.tokenizer}
    return files


def _text_graph(text: TextPart) -> bytes:
    ids = torch.ones(1, min(EXAMPLE_TOKENS, text.entry.max_tokens), dtype=torch.int64)
    examples = dict(zip(INPUTS, (ids, torch.ones_like(ids)), strict=True))
    free = {name: {0: "B", 1: "T"} for name in INPUTS}
    return graph(text.module, examples, outputs=(OUTPUT,), dynamic=free, most={"T": text.entry.max_tokens})


def _whole_grid(inputs: Mapping[str, Tensor], spec: Preprocessing) -> dict[str, Tensor]:
    """Two volumes at once and every patch a token: what the golden case leaves out. The second is upside down."""
    volume = torch.cat([inputs["volume"], inputs["volume"].flip(2)])
    tokens = torch.arange(spec.patches).expand(2, -1)
    return {"volume": volume, "window": inputs["window"].expand(2, -1), "tokens": tokens}


def _of_bucket(inputs: Mapping[str, Tensor], spec: Preprocessing, tokens: int) -> dict[str, Tensor]:
    """Return the golden case with another number of tokens: some of its own, or those and others."""
    golden = inputs["tokens"][0]
    others = torch.arange(spec.patches)
    others = others[~torch.isin(others, golden)]
    return {**inputs, "tokens": torch.cat([golden, others])[:tokens].sort().values[None]}


def _manifest(parts: Parts, engines: Sequence[EngineFile]) -> Manifest:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return Manifest(
        name=parts.name,
        version=parts.version,
        intended_use=parts.intended_use or INTENDED_USE,
        licence=parts.licence or LICENCE,
        preprocessing=replace(parts.spec, graphs=GRAPHS),
        encoder=parts.described,
        engines=tuple(engines),
        heads=tuple(head.entry for head in parts.heads),
        scope=parts.scope.entry if parts.scope else None,
        text=parts.text.entry if parts.text else None,
        metrics=parts.metrics,
        provenance={**parts.provenance, "export": {"decipher-rt": decipher_rt.__version__, **versions}},
    )


def _archive(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
