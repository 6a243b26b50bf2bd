"""The files that TensorRT needs of a bundle: plans, the patch-embedding kernel for each card, and its weights."""

from __future__ import annotations

import copy
import io
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from decipher_rt.engines.cuda import Driver
from decipher_rt.engines.patch_embed import CONSTANTS
from decipher_rt.engines.select import plan_target
from decipher_rt.errors import EngineError
from decipher_rt.kernels.bundle import write_kernels
from decipher_rt.kernels.config import ARCHITECTURES as KERNEL_ARCHITECTURES
from decipher_rt.kernels.specs import PatchEmbed3dSpec
from decipher_rt.manifest import EngineFile, Precision
from decipher_rt.train.model.vit import ViT

from . import builder, rtx
from .graph import embedded_graph
from .int8 import weight_only


@dataclass(frozen=True)
class Wanted:
    """What was asked for: ``flavour``, its precisions, and architectures (compute capability times ten) for RTX."""

    flavour: str
    precisions: tuple[Precision, ...]
    architectures: tuple[int, ...] = ()


def parse_wanted(engine: str | None, architectures: Sequence[str], *, fp16: bool, int8: bool) -> Wanted | None:
    """Read what the command line asks of TensorRT; None for nothing.

    Raises
    ------
    EngineError
        If an architecture is not of the form sm_89, or what is asked for does not go together.
    """
    if engine is None:
        if architectures:
            raise EngineError("--arch says which card a TensorRT-RTX engine is for: add --engine tensorrt-rtx")
        return None
    if engine == "tensorrt" and architectures:
        raise EngineError("--engine tensorrt builds for the card of this machine: leave --arch out")
    numbers = []
    for text in architectures:
        if not re.fullmatch(r"sm_\d{2,3}", text):
            raise EngineError(f"--arch {text}: expected a compute capability such as sm_89")
        numbers.append(int(text[3:]))
    precisions: tuple[Precision, ...] = (*(("fp16",) if fp16 else ()), *(("int8",) if int8 else ()))
    if not precisions:
        raise EngineError(f"{engine} runs in half precision or on 8-bit weights: add --fp16 or --int8")
    return Wanted(engine, precisions, tuple(sorted(set(numbers))))


def plan_files(encoder: ViT, wanted: Wanted) -> tuple[dict[str, bytes], list[EngineFile]]:
    """Build what a bundle holds for TensorRT.

    Parameters
    ----------
    encoder : ViT
        In float32.
    wanted : Wanted

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
    model = onnx.load_from_string(embedded_graph(copy.deepcopy(encoder).half().eval()))
    build = _rtx_plans if wanted.flavour == "tensorrt-rtx" else _native_plans
    files, entries, architectures = build(model, encoder, wanted)
    return files | _kernel_files(encoder, architectures), entries


def _rtx_plans(
    model: onnx.ModelProto, encoder: ViT, wanted: Wanted
) -> tuple[dict[str, bytes], list[EngineFile], Sequence[int]]:
    architectures = wanted.architectures or rtx.ARCHITECTURES
    buckets = encoder.config.token_buckets
    files, entries = {}, []
    for precision in wanted.precisions:
        graph = weight_only(model) if precision == "int8" else model
        name = f"engines/tensorrt-rtx-{precision}.plan"
        files[name] = rtx.build_engine(graph, buckets, architectures)
        entries.append(EngineFile("tensorrt-rtx", precision, name, rtx.built_with(buckets, architectures)))
    return files, entries, architectures


def _native_plans(
    model: onnx.ModelProto, encoder: ViT, wanted: Wanted
) -> tuple[dict[str, bytes], list[EngineFile], Sequence[int]]:
    if "fp16" not in wanted.precisions:
        raise EngineError("tensorrt engines are built in half precision: add --fp16")
    architecture = Driver().architecture
    files, entries = {}, []
    for built in builder.build_engines(model, encoder.config.heads, encoder.config.token_buckets):
        name = f"engines/tensorrt-sm_{architecture}-fp16-{built.tokens}.plan"
        files[name] = built.plan
        about = {
            "tensorrt": version("tensorrt"),
            "architectures": f"sm_{architecture}",
            "tokens": str(built.tokens),
            "attention": built.attention,
            **{f"{kind}_ms": f"{ms:.4f}" for kind, ms in built.times_ms.items()},
        }
        entries.append(EngineFile(plan_target("tensorrt", architecture), "fp16", name, about))
    return files, entries, (architecture,)


def _kernel_files(encoder: ViT, architectures: Sequence[int]) -> dict[str, bytes]:
    """Return the patch-embedding kernel for the cards, and the weights it reads."""
    config = encoder.config
    spec = PatchEmbed3dSpec(config.grid_shape, config.patch_shape, config.width, rows=config.token_buckets[0])
    with tempfile.TemporaryDirectory() as folder:
        paths = write_kernels(Path(folder), [spec], sorted({_cubin_architecture(a) for a in architectures}))
        files = {f"kernels/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in paths}
    arrays = io.BytesIO()
    with torch.no_grad():
        np.savez(
            arrays,
            weight=encoder.patch_embed.get_parameter("weight").half().numpy(),
            bias=encoder.patch_embed.get_parameter("bias").float().numpy(),
            position=encoder.position.float().numpy(),
        )
    return files | {f"kernels/{CONSTANTS}": arrays.getvalue()}


def _cubin_architecture(architecture: int) -> int:
    """Return what serves a card: its own cubin, or that of the nearest earlier card of its generation."""
    fitting = [known for known in KERNEL_ARCHITECTURES if known // 10 == architecture // 10 and known <= architecture]
    if not fitting:
        raise EngineError(f"there is no kernel for sm_{architecture}")
    return max(fitting)
