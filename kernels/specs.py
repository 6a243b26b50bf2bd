"""What bundles and plugins ask of the kernels, and how each request is specialised: what stays an argument.

Everything that is fixed for a bundle (grid, patch, channels, heads, strides that follow from them) is compiled in; what
changes from call to call (number of tokens, batch) stays an int32 argument. So one cubin serves every token bucket.
Arguments keep the order inputs, int32 scalars, outputs, which TensorRT's ahead-of-time plugins need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from .arguments import HEAD_DIMS
from .config import (
    TISSUE_COUNTS_WARPS,
    AttentionConfig,
    PatchEmbed3dConfig,
    attention_config,
    patch_embed3d_config,
    tissue_counts_blocks,
    tuning,
)
from .reference import WINDOW_EPS, softmax_scale

DType = Literal["int16", "uint16", "float16", "bfloat16", "float32", "int32", "int64"]
TRITON_TYPES = {
    "int16": "i16",
    "uint16": "u16",
    "float16": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
    "int32": "i32",
    "int64": "i64",
}
ITEM_BYTES = {"int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2, "float32": 4, "int32": 4, "int64": 8}
POINTER_ALIGNMENT = 16
"""Bytes: every buffer given to a compiled kernel starts on such an address (CUDA allocations do, at 256)."""


@dataclass(frozen=True)
class PatchEmbed3dSpec:
    """``patch_embed3d`` for contiguous volumes of one grid.

    Attributes
    ----------
    grid_shape, patch_shape : (D, H, W) in voxels
    width : C
    volume, tokens : dtype of the voxels and of the patch indices
    operand : dtype of the weight and of the tensor-core operands
    table : dtype of bias and position
    output : dtype of the tokens that come out
    rows : B * K that the tiles are chosen for; any number runs
    """

    grid_shape: tuple[int, int, int]
    patch_shape: tuple[int, int, int]
    width: int
    volume: DType = "float32"
    operand: DType = "float16"
    tokens: DType = "int64"
    table: DType = "float32"
    output: DType = "float16"
    rows: int = 512


@dataclass(frozen=True)
class AttentionSpec:
    """``attention`` for one number of heads and head dim.

    Attributes
    ----------
    heads, head_dim : H, d
    dtype : of q, k, v and the result, (B, N, H, d) each
    tokens : N that the tiles are chosen for, with one volume at a time; any number of both runs
    stages : of the pipeline; None for as many as the tiles are tuned with
    """

    heads: int
    head_dim: int
    dtype: DType = "float16"
    tokens: int = 512
    stages: int | None = None


@dataclass(frozen=True)
class TissueCountsSpec:
    """``tissue_counts`` for contiguous volumes of one grid, with the dtype of its voxels."""

    grid_shape: tuple[int, int, int]
    patch_shape: tuple[int, int, int]
    volume: DType = "float32"


Spec = PatchEmbed3dSpec | AttentionSpec | TissueCountsSpec


@dataclass(frozen=True)
class Scalar:
    """An int32 argument or a grid axis: ``times`` * ceil(sizes[size] / ``block``); ``size`` None counts as 1."""

    size: str | None
    times: int = 1
    block: int = 1


@dataclass(frozen=True)
class Specialisation:
    """One compilation of one kernel.

    Attributes
    ----------
    kernel : name of the operation and of its module
    name : distinguishes it in a bundle; also the file name of its cubin
    signature : Triton type of each argument, ``constexpr`` for what is compiled in, in the kernel's order
    constants : value of each ``constexpr`` argument
    scalars : each int32 argument from the sizes of a call: ``batch``, ``tokens`` = K or N, ``rows`` = B * K
    multiples_of_16 : int32 arguments that always are
    grid : x, y, z
    num_warps, num_stages : launch and pipelining
    tuning : where the tile sizes come from; ``fixed`` where there is nothing to tune
    """

    kernel: str
    name: str
    signature: dict[str, str]
    constants: dict[str, int | float]
    scalars: dict[str, Scalar]
    grid: tuple[Scalar, Scalar, Scalar]
    num_warps: int
    num_stages: int
    tuning: str
    multiples_of_16: tuple[str, ...] = field(default=())


def specialise(spec: Spec, architecture: int) -> Specialisation:
    """Turn a request into what is compiled for one architecture.

    Raises
    ------
    ValueError
        A spec that no kernel serves, or bfloat16 on Turing, which has none.
    """
    if isinstance(spec, TissueCountsSpec):
        return _tissue_counts(spec)
    dtypes = (spec.operand, spec.output, spec.table) if isinstance(spec, PatchEmbed3dSpec) else (spec.dtype,)
    if architecture < 80 and "bfloat16" in dtypes:
        raise ValueError(f"{spec}: sm_{architecture} has no bfloat16; use float16")
    if isinstance(spec, PatchEmbed3dSpec):
        item = ITEM_BYTES[spec.volume]
        config = patch_embed3d_config(architecture, spec.rows, item, spec.grid_shape, spec.patch_shape)
        return _patch_embed3d(spec, config, tuning(architecture).source)
    return _attention(
        spec, attention_config(architecture, spec.head_dim, spec.tokens, spec.heads), tuning(architecture).source
    )


def _patch_embed3d(spec: PatchEmbed3dSpec, config: PatchEmbed3dConfig, source: str) -> Specialisation:
    if spec.operand not in ("float16", "bfloat16") or spec.width < 1:
        raise ValueError(f"{spec}: operand must be float16 or bfloat16, width at least 1")
    strides, patches = _volume_constants(spec)
    constants: dict[str, int | float] = {
        **strides,
        **patches,
        "C": spec.width,
        "EPS": WINDOW_EPS,
        "BLOCK_T": config.block_t,
        "BLOCK_C": config.block_c,
        "BLOCK_P": config.block_p,
        "GROUP_T": config.group_t,
    }
    pointers: dict[str, DType] = {
        "volume_ptr": spec.volume,
        "window_ptr": "float32",
        "tokens_ptr": spec.tokens,
        "weight_ptr": spec.operand,
        "bias_ptr": spec.table,
        "position_ptr": spec.table,
        "out_ptr": spec.output,
    }
    scalars = {"rows": Scalar("rows"), "tokens_per_volume": Scalar("tokens")}
    order = ("volume_ptr", "window_ptr", "tokens_ptr", "weight_ptr", "bias_ptr", "position_ptr", *scalars)
    order = (*order, *strides, "out_ptr", *list(constants)[len(strides) :])
    blocks_c = math.ceil(spec.width / config.block_c)
    return Specialisation(
        kernel="patch_embed3d",
        name=f"patch_embed3d-{_sizes(spec)}-{spec.width}-{spec.volume}-{spec.operand}",
        signature=_signature(order, pointers, scalars, constants),
        constants=constants,
        scalars=scalars,
        grid=(Scalar("rows", blocks_c, config.block_t), Scalar(None), Scalar(None)),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        tuning=source,
    )


def _tissue_counts(spec: TissueCountsSpec) -> Specialisation:
    strides, patches = _volume_constants(spec)
    block_r, block_w = tissue_counts_blocks(spec.patch_shape)
    constants: dict[str, int | float] = {**strides, **patches, "BLOCK_R": block_r, "BLOCK_W": block_w}
    pointers: dict[str, DType] = {"volume_ptr": spec.volume, "threshold_ptr": "float32", "out_ptr": "int32"}
    order = ("volume_ptr", "threshold_ptr", *strides, "out_ptr", *list(constants)[len(strides) :])
    programs = patches["GRID_D"] * patches["GRID_H"] * patches["GRID_W"]
    return Specialisation(
        kernel="tissue_counts",
        name=f"tissue_counts-{_sizes(spec)}-{spec.volume}",
        signature=_signature(order, pointers, {}, constants),
        constants=constants,
        scalars={},
        grid=(Scalar("batch", programs), Scalar(None), Scalar(None)),
        num_warps=TISSUE_COUNTS_WARPS,
        num_stages=1,
        tuning="fixed",
    )


def _volume_constants(spec: PatchEmbed3dSpec | TissueCountsSpec) -> tuple[dict[str, int], dict[str, int]]:
    """Return strides of a contiguous volume, and the patches along each axis with their size."""
    (D, H, W), (pd, ph, pw) = spec.grid_shape, spec.patch_shape
    if min(D, H, W, pd, ph, pw) < 1 or D % pd or H % ph or W % pw:
        raise ValueError(f"{spec}: the grid is not a positive multiple of the patch")
    if spec.volume not in ("int16", "uint16", "float16", "float32"):
        raise ValueError(f"{spec}: volume must be int16, uint16, float16 or float32")
    strides = {"stride_b": D * H * W, "stride_d": H * W, "stride_h": W, "stride_w": 1}
    patches = {"GRID_D": D // pd, "GRID_H": H // ph, "GRID_W": W // pw}
    return strides, {**patches, "PATCH_D": pd, "PATCH_H": ph, "PATCH_W": pw}


def _sizes(spec: PatchEmbed3dSpec | TissueCountsSpec) -> str:
    return "-".join("x".join(map(str, shape)) for shape in (spec.grid_shape, spec.patch_shape))


def _attention(spec: AttentionSpec, config: AttentionConfig, source: str) -> Specialisation:
    if spec.head_dim not in HEAD_DIMS or spec.heads < 1 or spec.dtype not in ("float16", "bfloat16"):
        raise ValueError(f"{spec}: head dim must be 32, 64 or 96, dtype float16 or bfloat16")
    token = spec.heads * spec.head_dim
    scalars = {"n": Scalar("tokens"), **{f"stride_{x}b": Scalar("tokens", token) for x in "qkvo"}}
    d0, d1 = HEAD_DIMS[spec.head_dim]
    heads = {f"stride_{x}h": spec.head_dim for x in "qkvo"}
    tokens = {f"stride_{x}n": token for x in "qkvo"}
    tiles = {"D0": d0, "D1": d1, "BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    constants: dict[str, int | float] = {**heads, **tokens, "SCALE": softmax_scale(spec.head_dim), **tiles}
    pointers: dict[str, DType] = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), spec.dtype)
    order = ("q_ptr", "k_ptr", "v_ptr", *scalars, *heads, *tokens, "out_ptr", "SCALE", *tiles)
    return Specialisation(
        kernel="attention",
        name=f"attention-{spec.heads}x{spec.head_dim}-{spec.dtype}",
        signature=_signature(order, pointers, scalars, constants),
        constants=constants,
        scalars=scalars,
        grid=(Scalar("tokens", 1, config.block_m), Scalar(None, spec.heads), Scalar("batch")),
        num_warps=config.num_warps,
        num_stages=spec.stages or config.num_stages,
        tuning=source,
        multiples_of_16=tuple(name for name in scalars if name != "n"),
    )


def _signature(
    order: tuple[str, ...],
    pointers: dict[str, DType],
    scalars: dict[str, Scalar],
    constants: dict[str, int | float],
) -> dict[str, str]:
    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        return "i32" if name in scalars else "*" + TRITON_TYPES[pointers[name]]

    return {name: kind(name) for name in order}
