"""What the kernels take: dtypes, head dims and shapes, checked with one line that names the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

VOLUME_DTYPES = (torch.int16, torch.uint16, torch.float16, torch.float32)
HALF_DTYPES = (torch.float16, torch.bfloat16)
"""Operand types of the tensor cores: weights of the patch embedding, and q, k, v."""
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INDEX_DTYPES = (torch.int32, torch.int64)
HEAD_DIMS = {32: (32, 0), 64: (64, 0), 96: (64, 32)}
"""Supported head dims, and the powers of two that each is split into."""
INT32_MAX = 2**31 - 1


def check_patch_embed3d(
    volume: Tensor,
    window: Tensor,
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor,
    position: Tensor,
    patch: tuple[int, int, int],
) -> None:
    """Raise ValueError, naming the argument, where the arguments of ``patch_embed3d`` do not fit together."""
    tensors = {"volume": volume, "window": window, "tokens": tokens, "weight": weight, "bias": bias}
    tensors["position"] = position
    _same_device("patch_embed3d", tensors)
    if volume.ndim != 4 or tokens.ndim != 2 or weight.ndim != 2:
        found = f"volume {tuple(volume.shape)}, tokens {tuple(tokens.shape)}, weight {tuple(weight.shape)}"
        raise ValueError(f"patch_embed3d: {found}; expected (B, D, H, W), (B, K), (C, P)")
    B, *grid = volume.shape
    _check_patches("patch_embed3d", grid, patch)
    N, P, C = 1, 1, weight.shape[0]
    for g, p in zip(grid, patch, strict=True):
        N, P = N * (g // p), P * p
    expected = {"window": (B, 2), "tokens": (B, tokens.shape[1]), "weight": (C, P), "bias": (C,), "position": (N, C)}
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"patch_embed3d: {name} is {tuple(tensors[name].shape)}, expected {shape}")
    allowed = {
        "volume": VOLUME_DTYPES,
        "window": FLOAT_DTYPES,
        "tokens": INDEX_DTYPES,
        "weight": HALF_DTYPES,
        "bias": FLOAT_DTYPES,
        "position": FLOAT_DTYPES,
    }
    for name, dtypes in allowed.items():
        _dtype("patch_embed3d", name, tensors[name], dtypes)
    # Offsets within one volume, the weights and the table are 32-bit in the kernel; the volume's own start is 64-bit.
    if max(_reach(volume), N * C, C * P, tokens.numel()) > INT32_MAX:
        raise ValueError(f"patch_embed3d: more than {INT32_MAX} elements in one volume, weight, position or tokens")


def check_tissue_counts(volume: Tensor, threshold: Tensor, patch: tuple[int, int, int]) -> None:
    """Raise ValueError, naming the argument, where the arguments of ``tissue_counts`` do not fit together."""
    _same_device("tissue_counts", {"volume": volume, "threshold": threshold})
    if volume.ndim != 4:
        raise ValueError(f"tissue_counts: volume {tuple(volume.shape)}; expected (B, D, H, W)")
    B, *grid = volume.shape
    _check_patches("tissue_counts", grid, patch)
    if tuple(threshold.shape) != (B,):
        raise ValueError(f"tissue_counts: threshold is {tuple(threshold.shape)}, expected {(B,)}")
    _dtype("tissue_counts", "volume", volume, VOLUME_DTYPES)
    _dtype("tissue_counts", "threshold", threshold, (torch.float32,))
    if _reach(volume) > INT32_MAX or volume.numel() // math.prod(patch) > INT32_MAX:
        raise ValueError(f"tissue_counts: more than {INT32_MAX} elements in one volume, or patches in all")


def check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError, naming the argument, where q, k, v do not fit together."""
    _same_device("attention", {"q": q, "k": k, "v": v})
    if q.ndim != 4 or q.shape != k.shape or q.shape != v.shape:
        found = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ValueError(f"attention: {found}; expected three of (B, H, N, d)")
    if q.shape[-1] not in HEAD_DIMS:
        raise ValueError(f"attention: head dim {q.shape[-1]}, expected one of {', '.join(map(str, HEAD_DIMS))}")
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        _dtype("attention", name, tensor, HALF_DTYPES)
        if tensor.dtype != q.dtype:
            raise ValueError(f"attention: {name} is {tensor.dtype}, q is {q.dtype}; expected one dtype")
        if tensor.stride(-1) != 1:
            raise ValueError(f"attention: {name} has stride {tensor.stride(-1)} along the head dim, expected 1")
        if q.shape[2] * tensor.stride(2) > INT32_MAX:
            raise ValueError(f"attention: one head of {name} spans more than {INT32_MAX} elements")
    if max(q.shape[:2]) > 65535:
        raise ValueError(f"attention: {q.shape[0]} volumes of {q.shape[1]} heads, at most 65535 of each")


def _check_patches(kernel: str, grid: Sequence[int], patch: tuple[int, int, int]) -> None:
    if len(patch) != 3 or any(p < 1 or g < 1 or g % p for g, p in zip(grid, patch, strict=True)):
        raise ValueError(f"{kernel}: volume {tuple(grid)} is not a positive multiple of the patch {tuple(patch)}")


def _reach(volume: Tensor) -> int:
    """Return the offset of the last voxel of a volume from its first, in elements."""
    return sum((size - 1) * stride for size, stride in zip(volume.shape[1:], volume.stride()[1:], strict=True))


def _dtype(kernel: str, name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        raise ValueError(f"{kernel}: {name} is {tensor.dtype}, expected one of {', '.join(map(str, allowed))}")


def _same_device(kernel: str, tensors: dict[str, Tensor]) -> None:
    devices = {str(t.device) for t in tensors.values()}
    if len(devices) > 1:
        raise ValueError(f"{kernel}: arguments on {', '.join(sorted(devices))}, expected one device")
