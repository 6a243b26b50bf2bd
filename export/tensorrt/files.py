"""The files that TensorRT needs of a bundle: plans, the patch-embedding kernel for each card, and its weights."""

from __future__ import annotations

import copy
import importlib.util
import io
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from decipher_rt.engines.cuda import Driver
from decipher_rt.engines.patch_embed import CONSTANTS
from decipher_rt.engines.select import RTX_ARCHITECTURES, plan_target
from decipher_rt.engines.tensorrt import require_library
from decipher_rt.errors import EngineError
from decipher_rt.kernels.bundle import write_kernels
from decipher_rt.kernels.config import ARCHITECTURES as KERNEL_ARCHITECTURES
from decipher_rt.kernels.specs import PatchEmbed3dSpec, TissueCountsSpec
from decipher_rt.manifest import EngineFile, Precision
from decipher_rt.train.model.vit import ViT
from decipher_rt.verify import TOLERANCES

from ..runnable import write_files
from . import builder, rtx
from .graph import embedded_graph
from .int8 import activation_ranges, symmetric_qdq, weight_only

KERNELS = "kernels"  # folder of a bundle
FIRST_WITH_BF16 = 80  # Ampere
FIRST_WITHOUT_SUCCESSORS = 90  # Hopper: Triton compiles for sm_90a and the like, which run on no other card


@dataclass(frozen=True)
class Wanted:
    """What was asked for: ``flavour``, its precisions, and architectures (compute capability times ten) for RTX."""

    flavour: str
    precisions: tuple[Precision, ...]
    architectures: tuple[int, ...] = ()


def parse_wanted(
    engine: str | None, architectures: Sequence[str], *, fp16: bool, bf16: bool, int8: bool
) -> Wanted | None:
    """Read what the command line asks of TensorRT; None for nothing.

    Raises
    ------
    EngineError
        If an architecture is not of the form sm_89, what is asked for does not go together, or Triton is not installed.
    """
    if engine is None:
        if architectures:
            raise EngineError("--arch says which card a TensorRT-RTX engine is for: add --engine tensorrt-rtx")
        if bf16:
            raise EngineError("--bf16 is a precision of TensorRT engines: add --engine tensorrt-rtx or tensorrt")
        return None
    if engine == "tensorrt" and architectures:
        raise EngineError("--engine tensorrt builds for the card of this machine: leave --arch out")
    numbers = []
    for text in architectures:
        if not re.fullmatch(r"sm_\d{2,3}", text):
            raise EngineError(f"--arch {text}: expected a compute capability such as sm_89")
        numbers.append(int(text[3:]))
    asked: dict[Precision, bool] = {"fp16": fp16, "bf16": bf16, "int8": int8}
    precisions = tuple(precision for precision, wanted in asked.items() if wanted)
    if not precisions:
        raise EngineError(f"{engine} runs in half precision or on 8 bits: add --fp16, --bf16 or --int8")
    without = [number for number in numbers if number < FIRST_WITH_BF16]
    if bf16 and without:
        raise EngineError(f"sm_{without[0]} has no bfloat16: leave --bf16 or that --arch out")
    if importlib.util.find_spec("triton") is None:
        raise EngineError(f"{engine} needs triton, which compiles the kernel that embeds patches: pip install triton")
    return Wanted(engine, precisions, tuple(sorted(set(numbers))))


def plan_files(
    encoder: ViT, wanted: Wanted, calibration: Sequence[Mapping[str, NDArray[Any]]] = ()
) -> tuple[dict[str, bytes], list[EngineFile]]:
    """Build what a bundle holds for TensorRT.

    Parameters
    ----------
    encoder : ViT
        In float32.
    wanted : Wanted
    calibration : sequence
        Inputs of the encoder (``volume``, ``window``, ``tokens``), for int8 of the ``tensorrt`` flavour.

    Returns
    -------
    files : dict
        By name in the bundle.
    entries : list of EngineFile

    Raises
    ------
    EngineError
        If a flavour cannot be built here, or does not know an architecture or precision, or if the encoder's stem is
        not linear.
    """
    if not isinstance(encoder.patch_embed, nn.Linear):
        raise EngineError(
            "the encoder has a convolutional stem (encoder.stem=conv), and the kernel that embeds patches before a "
            "TensorRT engine is for a linear one: leave --engine out, or train with encoder.stem=linear"
        )
    if wanted.flavour == "tensorrt-rtx":
        files, entries = _rtx_plans(encoder, wanted)
    else:
        files, entries = _native_plans(encoder, wanted, calibration)
    # Also of plans that no machine has run yet: wherever one is loaded, its golden case is held to this.
    allowed = {entry.precision: f"{TOLERANCES[entry.precision]:g}" for entry in entries}
    return files, [replace(e, built_with={**e.built_with, "tolerance": allowed[e.precision]}) for e in entries]


def _rtx_plans(encoder: ViT, wanted: Wanted) -> tuple[dict[str, bytes], list[EngineFile]]:
    architectures = wanted.architectures or RTX_ARCHITECTURES
    buckets = encoder.config.token_buckets
    files, entries = _kernel_files(encoder, architectures), []
    for precision in wanted.precisions:
        model = _half_model(encoder, precision)
        graph = weight_only(model) if precision == "int8" else model
        cards = [a for a in architectures if precision != "bf16" or a >= FIRST_WITH_BF16]
        name = f"engines/tensorrt-rtx-{precision}.plan"
        files[name] = rtx.build_engine(graph, buckets, cards)
        entries.append(EngineFile("tensorrt-rtx", precision, name, rtx.built_with(buckets, cards)))
    return files, entries


def _native_plans(
    encoder: ViT, wanted: Wanted, calibration: Sequence[Mapping[str, NDArray[Any]]]
) -> tuple[dict[str, bytes], list[EngineFile]]:
    card = Driver()
    architecture = card.architecture
    if "bf16" in wanted.precisions and architecture < FIRST_WITH_BF16:
        raise EngineError(f"this card is sm_{architecture}, which has no bfloat16: leave --bf16 out")
    config, entries = encoder.config, []
    files = _kernel_files(encoder, (architecture,))
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), files)
        for precision in wanted.precisions:
            model = _half_model(encoder, precision)
            if precision == "int8":
                model = symmetric_qdq(model, activation_ranges(model, embedded_tokens(encoder, calibration)))
            surroundings = builder.Surroundings(
                Path(folder) / KERNELS, config.preprocessing, config.embedding_size, precision
            )
            for built in builder.build_engines(model, config.heads, config.token_buckets, surroundings):
                file = f"engines/tensorrt-sm_{architecture}-{precision}-{built.tokens}.plan"
                files[file] = built.plan
                about = _built_with(built, card)
                entries.append(EngineFile(plan_target("tensorrt", architecture), precision, file, about))
    return files, entries


def _built_with(built: builder.BuiltEngine, card: Driver) -> dict[str, str]:
    """Return what the manifest says of an engine: which attention it has, what each took, and why one was left out."""
    about = {
        "tensorrt": require_library("tensorrt").__version__,  # its wheel may be tensorrt-cu12, or there is none
        "architectures": f"sm_{card.architecture}",
        "card": card.name,
        "tokens": str(built.tokens),
        "attention": built.attention,
        **{f"{kind}_ms": f"{ms:.4f}" for kind, ms in built.times_ms.items()},
    }
    if built.kernel_refused is not None:
        about["kernel_refused"] = built.kernel_refused
    if built.not_recorded is not None:
        about["no_cuda_graph"] = built.not_recorded
    return about


def _half_model(encoder: ViT, precision: Precision) -> onnx.ModelProto:
    """Return the encoder from embedded tokens on, in what a precision computes in; int8 starts from float16."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return onnx.load_from_string(embedded_graph(copy.deepcopy(encoder).to(dtype).eval()))


@torch.no_grad()
def embedded_tokens(encoder: ViT, calibration: Sequence[Mapping[str, NDArray[Any]]]) -> list[NDArray[np.float16]]:
    """Return what the patch-embedding kernel gives for calibration volumes, (1, K, C) each.

    Raises
    ------
    EngineError
        If there are none: ranges of activations come from them.
    """
    if not calibration:
        raise EngineError("int8 for tensorrt needs volumes to calibrate on; give some with --calibrate")
    return [
        encoder.embed(*(torch.from_numpy(inputs[name]) for name in ("volume", "window", "tokens"))).half().numpy()
        for inputs in calibration
    ]


def _kernel_files(encoder: ViT, architectures: Sequence[int]) -> dict[str, bytes]:
    """Return the kernels that read the grid, for the cards, and the weights of the patch embedding."""
    config = encoder.config
    specs: list[PatchEmbed3dSpec | TissueCountsSpec] = [
        PatchEmbed3dSpec(config.grid_shape, config.patch_shape, config.width, rows=config.token_buckets[0]),
        TissueCountsSpec(config.grid_shape, config.patch_shape),
    ]
    with tempfile.TemporaryDirectory() as folder:
        try:
            paths = write_kernels(Path(folder), specs, sorted({_cubin_architecture(a) for a in architectures}))
        except ValueError as error:
            hint = " (for sm_121 Triton 3.9 or later is needed)" if 121 in architectures else ""
            raise EngineError(f"kernels: {error}{hint}") from error
        files = {f"{KERNELS}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in paths}
    arrays = io.BytesIO()
    with torch.no_grad():
        np.savez(
            arrays,
            weight=encoder.patch_embed.get_parameter("weight").half().numpy(),
            bias=encoder.patch_embed.get_parameter("bias").float().numpy(),
            position=encoder.position.float().numpy(),
        )
    return files | {f"{KERNELS}/{CONSTANTS}": arrays.getvalue()}


def _cubin_architecture(architecture: int) -> int:
    """Return what serves a card: its own cubin, or before Hopper that of the nearest earlier card of its generation."""
    fitting = [known for known in KERNEL_ARCHITECTURES if known // 10 == architecture // 10 and known <= architecture]
    if not fitting or (architecture >= FIRST_WITHOUT_SUCCESSORS and architecture not in fitting):
        known = ", ".join(f"sm_{a}" for a in KERNEL_ARCHITECTURES)
        raise EngineError(
            f"there is no kernel for sm_{architecture} (there are for {known}): leave --engine out, and run "
            "onnxruntime-cuda on that card"
        )
    return max(fitting)
