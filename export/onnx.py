"""Torch modules to ONNX: plain standard operators, batch and tokens free, nothing of the machine that wrote them."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from torch import Tensor, nn

from decipher_rt.errors import EngineError

OPSET = 20  # the first with Gelu as one operator
LARGE = 1024  # weights that are worth a cast
MOST = 1 << 16  # of any axis that stays free
_STANDARD_DOMAINS = {"", "ai.onnx"}


def encoder_graph(encoder: nn.Module, inputs: Mapping[str, Tensor], precision: str) -> bytes:
    """Return the encoder as a serialised ONNX graph after the encoder contract.

    Parameters
    ----------
    encoder : nn.Module
        Takes volume (B, 1, D, H, W), window (B, 2), tokens (B, K); gives patch and embedding in float32.
    inputs : mapping
        One example of each, on the CPU.
    precision : "fp32" or "fp16"
        fp16 is made in the graph: the patches are clipped and normalised in float32, then everything is half, except
        that LayerNorm accumulates (``stash_type``), softmax works and both outputs leave in float32.
    """
    if precision == "fp16":
        encoder = copy.deepcopy(encoder).half()
    return graph(
        encoder,
        inputs,
        outputs=("patch", "embedding"),
        dynamic={"volume": {0: "B"}, "window": {0: "B"}, "tokens": {0: "B", 1: "K"}},
    )


def graph(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, str]],
    most: Mapping[str, int] = {},
) -> bytes:
    """Export a module whose forward takes ``inputs`` in that order.

    What the module does not look at is no input of the graph.

    Parameters
    ----------
    dynamic : mapping
        For each input, names of the axes that stay free.
    most : mapping
        The largest size of an axis, by name; default: 65536.

    Raises
    ------
    EngineError
        If the graph holds an operator outside the ONNX standard or another opset.
    """
    # An axis of one is taken for a constant: examples are doubled along the batch.
    examples = tuple(torch.cat([x, x]) for x in inputs.values())
    names = sorted({name for axes in dynamic.values() for name in axes.values()})
    dimensions = {name: torch.export.Dim(name, min=1, max=most.get(name, MOST)) for name in names}
    shapes = tuple({axis: dimensions[name] for axis, name in dynamic[key].items()} for key in inputs)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(), examples, input_names=list(inputs), output_names=list(outputs), opset_version=OPSET,
            dynamic_shapes=shapes, dynamo=True, external_data=False, optimize=True, verbose=False,
        )  # fmt: skip
    if program is None:
        raise EngineError("torch.onnx gave no graph; install the versions that constraints.txt names")
    model = program.model_proto
    _strip(model)
    _drop_unused_inputs(model)
    _require_standard(model)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def half_storage(content: bytes) -> bytes:
    """Return a graph whose large weights are kept in half precision and widened when it is loaded.

    Arithmetic stays in float32; the file takes half the room. Weights beyond half's range stay as they are.
    """
    model = onnx.load_from_string(content)
    casts, kept = [], []
    for tensor in model.graph.initializer:
        weights = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = weights.astype(np.float16) if tensor.data_type == onnx.TensorProto.FLOAT else weights
        if half.dtype != np.float16 or half.size < LARGE or not np.isfinite(half).all():
            kept.append(tensor)
            continue
        kept.append(onnx.numpy_helper.from_array(half, f"{tensor.name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    for field, items in ((model.graph.initializer, kept), (model.graph.node, nodes)):
        copies = [copy.deepcopy(item) for item in items]
        del field[:]
        field.extend(copies)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _strip(model: ModelProto) -> None:
    """Remove what the exporter says of itself: stack traces and source lines hold paths of this machine."""
    del model.metadata_props[:]
    model.doc_string = ""
    for owner in (
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        del owner.metadata_props[:]
        owner.doc_string = ""
    del model.graph.value_info[:]
    for function in model.functions:
        del function.metadata_props[:]


def _drop_unused_inputs(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    for entry in list(model.graph.input):
        if entry.name not in used:
            model.graph.input.remove(entry)


def _require_standard(model: ModelProto) -> None:
    foreign = sorted({node.domain for node in model.graph.node} - _STANDARD_DOMAINS)
    if foreign or model.functions:
        raise EngineError(
            f"the graph uses operators of {', '.join(foreign) or 'its own'}; a bundle holds standard ones only"
        )
    versions = {entry.version for entry in model.opset_import if entry.domain in _STANDARD_DOMAINS}
    if not versions or min(versions) < OPSET:
        raise EngineError(f"the exported graph has opset {sorted(versions)}, a bundle needs {OPSET} or later")


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the exporter silent: it prints and warns of its own working, and what matters is checked on the result."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
