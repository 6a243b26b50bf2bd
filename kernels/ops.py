"""The kernels as PyTorch operators ``decipher_rt::patch_embed3d`` and ``decipher_rt::attention``.

On a CUDA device they launch Triton; on the CPU they are the plain reference in fp32; fake tensors know their shapes.
A model asks :func:`active` and otherwise runs its own plain operators:

    if ops.active(q, k, v):
        return ops.attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)

``active`` is false while gradients are needed (the kernels are forward only), while anything is traced, compiled or
exported (a graph must hold plain operators), without Triton, in fp32, on a card before Turing (in bfloat16: before
Ampere), and where the switch is off: the environment variable ``DECIPHER_RT_KERNELS=0``, or
``with ops.disabled(): ...``.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .arguments import HALF_DTYPES, check_attention, check_patch_embed3d
from .config import ARCHITECTURES, architecture_of
from .reference import attention_reference, patch_embed3d_reference

SWITCH = "DECIPHER_RT_KERNELS"
FIRST_WITH_BF16 = 80  # Ampere; Triton compiles none for Turing
_SERVED_DEVICES = ("cuda",)
_enabled = contextvars.ContextVar("decipher_rt_kernels_enabled", default=True)


def active(operand: Tensor, *others: Tensor) -> bool:
    """Return whether the kernels serve these tensors here and now.

    Parameters
    ----------
    operand : Tensor
        The one whose device and dtype decide: ``weight`` of the patch embedding, ``q`` of attention.
    *others : Tensor
        Further inputs; none of them may need a gradient either.
    """
    return (
        operand.device.type in _SERVED_DEVICES
        and operand.dtype in HALF_DTYPES
        and enabled()
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (operand, *others)))
        and not _in_a_graph()
        and _triton_present()
        and _served_by(operand.device, operand.dtype)
    )


def enabled() -> bool:
    """Return whether the switch is on."""
    return _enabled.get() and os.environ.get(SWITCH, "1") != "0"


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Run plain operators within this block (and this thread or task)."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


def _in_a_graph() -> bool:
    return bool(
        torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or torch.onnx.is_in_onnx_export()
    )


@functools.cache
def _served_by(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the card computes in this type and there are tiles for it."""
    oldest = FIRST_WITH_BF16 if dtype == torch.bfloat16 else min(ARCHITECTURES)
    return architecture_of(device) >= oldest


@functools.cache
def _triton_present() -> bool:
    return importlib.util.find_spec("triton") is not None


@torch.library.custom_op("decipher_rt::patch_embed3d", mutates_args=(), device_types="cpu")
def patch_embed3d(
    volume: Tensor, window: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor, position: Tensor, patch: Sequence[int]
) -> Tensor:
    """Embed chosen patches, (B, K, C) in weight's dtype; arguments as in :func:`.reference.patch_embed3d_reference`."""
    size = _patch_size(patch)
    check_patch_embed3d(volume, window, tokens, weight, bias, position, size)
    out = patch_embed3d_reference(volume, window, tokens, weight, bias, position, size, dtype=torch.float32)
    return out.to(weight.dtype)


@patch_embed3d.register_kernel("cuda")
def _patch_embed3d_cuda(
    volume: Tensor, window: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor, position: Tensor, patch: Sequence[int]
) -> Tensor:
    from . import patch_embed3d as kernel

    return kernel.patch_embed3d(volume, window, tokens, weight, bias, position, _patch_size(patch))


@patch_embed3d.register_fake
def _patch_embed3d_fake(volume: Tensor, _window: Tensor, tokens: Tensor, weight: Tensor, *_: object) -> Tensor:
    return weight.new_empty((volume.shape[0], tokens.shape[1], weight.shape[0]))


@torch.library.custom_op("decipher_rt::attention", mutates_args=(), device_types="cpu")
def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend; shapes as in :func:`.reference.attention_reference`, result in q's dtype, laid out as (B, N, H, d)."""
    check_attention(q, k, v)
    return _like_kernel(q).copy_(attention_reference(q, k, v, dtype=torch.float32))


@attention.register_kernel("cuda")
def _attention_cuda(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from . import attention as kernel

    return kernel.attention(q, k, v)


@attention.register_fake
def _attention_fake(q: Tensor, *_: object) -> Tensor:
    return _like_kernel(q)


def _like_kernel(q: Tensor) -> Tensor:
    B, H, N, d = q.shape
    return q.new_empty((B, N, H, d)).transpose(1, 2)


def _patch_size(patch: Sequence[int]) -> tuple[int, int, int]:
    if len(patch) != 3:
        raise ValueError(f"patch_embed3d: patch has {len(patch)} sizes, expected (pd, ph, pw)")
    return patch[0], patch[1], patch[2]
