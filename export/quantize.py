"""8-bit encoders for CPUs: weights of the matrix products in int8, activations quantised as they come, the rest fp32.

Each product becomes ``DynamicQuantizeLinear`` and ``MatMulInteger``, which are standard ONNX: activations are uint8
with a scale of their own at every run, weights int8 with a scale for each output channel. Two forms of the weights
exist, because CPUs multiply bytes in two ways. AVX2 adds two products of a uint8 and an int8 in 16 bits and saturates
(``VPMADDUBSW``; onnxruntime issue 14642): weights of 7 bits cannot reach that, 255 * 64 * 2 = 32640. VNNI and the dot
products of Arm add in 32 bits and take all 8.

SmoothQuant (arXiv 2211.10438) moves the range of outlying channels from activations into weights. It costs nothing at
run time, because the LayerNorm before the product absorbs it.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from decipher_rt.engines import load_engine
from decipher_rt.engines.select import INT8_FULL_RANGE, INT8_PORTABLE
from decipher_rt.errors import EngineError

Arrays = Mapping[str, NDArray[Any]]

# Both are made and judged with exact sums on any x86-64 CPU; the runtime takes the second where the CPU's are exact.
FULL_RANGE = {INT8_PORTABLE: False, INT8_FULL_RANGE: True}
SMOOTHING = (None, 0.5)  # tried; 0.5 is the paper's


@dataclass(frozen=True)
class Int8Encoder:
    """An int8 encoder and why it is as it is.

    Attributes
    ----------
    graph : ModelProto
    smoothing : float or None
        SmoothQuant's exponent, None where none of the tried ones made the embedding better.
    embedding_cosine : mapping
        Smallest cosine to the fp32 embedding over the calibration volumes, for every exponent tried.
    """

    graph: ModelProto
    smoothing: float | None
    embedding_cosine: Mapping[float | None, float]


def quantize_encoder(
    fp32_onnx: Path,
    out: Path,
    *,
    target: str = INT8_PORTABLE,
    calibration: Sequence[Arrays] = (),
    smoothing: Sequence[float | None] = SMOOTHING,
) -> Int8Encoder:
    """Write the int8 form of an fp32 encoder.

    Parameters
    ----------
    fp32_onnx : Path
        After the encoder contract.
    out : Path
        The int8 graph.
    target : str
        ``INT8_PORTABLE`` (7 bits, any CPU) or ``INT8_FULL_RANGE`` (8 bits, CPUs with VNNI or an 8-bit dot product).
    calibration : sequence
        Inputs of the encoder (``volume``, ``window``, ``tokens``) made from real preprocessed volumes. They decide
        which of ``smoothing`` is taken; without them nothing is smoothed.
    smoothing : sequence
        Exponents to try; None is no smoothing.

    Raises
    ------
    EngineError
        If the graph has no product with constant weights, or a calibration volume gives numbers that are not finite.
    """
    fp32 = onnx.load(fp32_onnx)
    if not _constant_products(fp32):
        raise EngineError(f"{fp32_onnx.name}: no matrix product with constant weights, so there is nothing to quantise")
    full_range = FULL_RANGE[target]
    if not calibration:
        chosen = Int8Encoder(_quantize(fp32, full_range), None, {})
    else:
        chosen = _best(fp32, calibration, smoothing, full_range)
    onnx.save(chosen.graph, out)
    return chosen


def int8_graphs(fp32: bytes, calibration: Sequence[Arrays], targets: Iterable[str] = FULL_RANGE) -> dict[str, bytes]:
    """Return the int8 form of a serialised fp32 encoder for each target; see ``quantize_encoder``."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "encoder.onnx"
        source.write_bytes(fp32)
        graphs = {}
        for target in targets:
            out = Path(folder) / f"{target}.onnx"
            quantize_encoder(source, out, target=target, calibration=calibration)
            graphs[target] = out.read_bytes()
    return graphs


def _best(
    fp32: ModelProto, calibration: Sequence[Arrays], smoothing: Sequence[float | None], full_range: bool
) -> Int8Encoder:
    """Try every exponent; the one whose embeddings are closest to fp32 on the calibration volumes is taken."""
    ranges, references = _channel_ranges(fp32, calibration)
    graphs, cosines = {}, {}
    for exponent in smoothing:
        source = fp32 if exponent is None else smooth(fp32, ranges, exponent)
        graphs[exponent] = _quantize(source, full_range)
        embeddings = [run["embedding"] for run in _run(graphs[exponent], calibration, full_range=full_range)]
        cosines[exponent] = min(float((a * b).sum(axis=-1).min()) for a, b in zip(embeddings, references, strict=True))
    best = max(cosines, key=cosines.__getitem__)
    return Int8Encoder(graphs[best], best, cosines)


def smooth(model: ModelProto, ranges: Mapping[str, NDArray[np.float32]], exponent: float) -> ModelProto:
    """Return the same function with the channels of every LayerNorm before products brought closer to one range.

    Parameters
    ----------
    model : ModelProto
    ranges : mapping
        Largest absolute value of each channel, shape (C,), of every LayerNorm output that is to be smoothed.
    exponent : float
        0 leaves activations as they are, 1 gives all channels one range (SmoothQuant, equation 4).
    """
    model = _copy(model)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    products = _constant_products(model)
    for norm in model.graph.node:
        if norm.op_type != "LayerNormalization" or norm.output[0] not in ranges:
            continue
        readers = [node for node in products if node.input[0] == norm.output[0]]
        weights = [tensors[node.input[1]] for node in readers]
        largest_weight = np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
        scale = np.maximum(ranges[norm.output[0]], 1e-5) ** exponent / np.maximum(largest_weight, 1e-5) ** (
            1 - exponent
        )
        scale = (scale / np.exp(np.log(scale).mean())).astype(np.float32)  # the geometric mean stays where it was
        for place, name in enumerate(norm.input[1:], start=1):
            norm.input[place] = _add(model, f"{norm.output[0]}.smoothed{place}", tensors[name] / scale)
        for node, weight in zip(readers, weights, strict=True):
            node.input[1] = _add(model, f"{node.output[0]}.smoothed", weight * scale[:, None])
    _drop_unused(model)
    return model


def _channel_ranges(
    model: ModelProto, calibration: Sequence[Arrays]
) -> tuple[dict[str, NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Return the largest absolute value of each channel of what can be smoothed, and the fp32 embeddings."""
    names = _smoothable(model)
    watched = _copy(model)
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    ranges: dict[str, NDArray[np.float32]] = {}
    embeddings = []
    for run in _run(watched, calibration):
        if not np.isfinite(run["embedding"]).all():
            raise EngineError("a calibration volume gives an embedding that is not finite; calibrate on other series")
        embeddings.append(run["embedding"])
        for name in names:
            largest = np.abs(run[name]).reshape(-1, run[name].shape[-1]).max(axis=0)
            ranges[name] = np.maximum(ranges.get(name, largest), largest)
    return ranges, embeddings


def _smoothable(model: ModelProto) -> list[str]:
    """Return outputs of LayerNorms that only products with constant weights read."""
    products = {node.output[0] for node in _constant_products(model)}
    outputs = {value.name for value in model.graph.output}
    found = []
    for norm in model.graph.node:
        name = norm.output[0] if norm.op_type == "LayerNormalization" else None
        readers = [node for node in model.graph.node if name in node.input]
        if name and name not in outputs and readers and all(r.output[0] in products for r in readers):
            found.append(name)
    return found


def _constant_products(model: ModelProto) -> list[NodeProto]:
    matrices = {t.name for t in model.graph.initializer if len(t.dims) == 2}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in matrices]


def _quantize(model: ModelProto, full_range: bool) -> ModelProto:
    # The projection to the embedding is one row of work and the last thing before the answer: it stays fp32. The
    # library would turn it into a MatMul of this name and quantise it.
    kept = [f"{node.name}{suffix}" for node in model.graph.node if node.op_type == "Gemm" for suffix in ("", "_MatMul")]
    with tempfile.TemporaryDirectory() as folder, _silent():
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            _copy(model),
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=kept,
            per_channel=True,
            reduce_range=not full_range,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        quantized = onnx.load(path)
    del quantized.metadata_props[:]
    del quantized.graph.value_info[:]
    used = {node.domain for node in quantized.graph.node}
    imports = [entry for entry in quantized.opset_import if entry.domain in used]
    del quantized.opset_import[:]
    quantized.opset_import.extend(imports)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def _run(model: ModelProto, inputs: Sequence[Arrays], *, full_range: bool = False) -> Iterator[dict[str, NDArray[Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        onnx.save(model, path)
        engine = load_engine("onnxruntime", path, precision="int8", exact_int8=full_range)
        for arrays in inputs:
            yield engine.run(arrays)


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _add(model: ModelProto, name: str, array: NDArray[np.float32]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def _drop_unused(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [t for t in model.graph.initializer if t.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the quantiser from advising on the root logger."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
