"""The patch-embedding kernel beside Conv3d, reshape + GEMM, and the operators of the encoder one after another.

Conv3d and reshape + GEMM get a volume that is already clipped, normalised and in half precision, and embed all patches
without position: they do less than the kernel, which starts from the grid as it comes from preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Ceilings, Deadline, Row, attempt, rate

KERNEL, CONV, GEMM, UNFUSED = "decipher-rt", "Conv3d, stride = kernel", "reshape + GEMM", "unfused sequence"
WIDTH = 768


def cases(full: bool) -> Iterator[tuple[int, int, int, int, torch.dtype]]:
    """Yield (B, K, grid side, patch side, dtype of the volume)."""
    yield 1, 512, 128, 16, torch.float32
    yield 1, 256, 128, 16, torch.float32
    yield 1, 512, 128, 16, torch.int16
    yield 16, 512, 128, 16, torch.float32
    yield 1, 4096, 256, 16, torch.float32
    if full:
        yield 1, 128, 128, 16, torch.float32
        yield 1, 512, 96, 8, torch.float32
        yield 16, 512, 128, 16, torch.float16


def run(ceilings: Ceilings, deadline: Deadline, full: bool = True) -> list[Row]:
    """Measure every case by every method, in half precision."""
    rows = []
    for B, K, grid, patch, dtype in cases(full):
        case = f"B={B} K={K} of {(grid // patch) ** 3}, {grid}^3 {str(dtype).removeprefix('torch.')}, {patch}^3 patches"
        timed = [attempt(case, *method, deadline) for method in methods(B, K, grid, patch, dtype).items()]
        voxels = patch**3
        flops = 2.0 * B * K * voxels * WIDTH
        moved = B * K * voxels * dtype.itemsize + 2.0 * WIDTH * (voxels + B * K)
        rows += [rate(row, ceilings, flops, moved, "float16") for row in timed]
    return rows


def methods(B: int, K: int, grid: int, patch: int, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """Return what computes a case, by name."""
    from decipher_rt.kernels.patch_embed3d import patch_embed3d

    side = grid // patch
    patches, size = side**3, (patch, patch, patch)
    with torch.device(measure.DEVICE):
        volume = (torch.rand(B, grid, grid, grid) * 1500).to(dtype)
        window = torch.tensor([[20.0, 1200.0]]).repeat(B, 1)
        tokens = torch.stack([torch.randperm(patches)[:K].sort().values for _ in range(B)])
        weight = torch.randn(WIDTH, patch**3, dtype=torch.float16) / 64
        bias = torch.randn(WIDTH, dtype=torch.float16)
        position = torch.randn(patches, WIDTH, dtype=torch.float16)
    normal = normalise(volume, window.view(B, 2, 1, 1, 1)).half()
    kernel = weight.view(WIDTH, 1, *size)

    def unfused() -> Tensor:
        rows = as_patches(volume, side, patch)
        kept = torch.gather(rows, 1, tokens.unsqueeze(-1).expand(-1, -1, patch**3))
        return F.linear(normalise(kept, window.view(B, 2, 1, 1)).half(), weight, bias) + position[tokens]

    return {
        KERNEL: lambda: patch_embed3d(volume, window, tokens, weight, bias, position, size),
        CONV: lambda: F.conv3d(normal.unsqueeze(1), kernel, bias, stride=patch).flatten(2).transpose(1, 2),
        GEMM: lambda: F.linear(as_patches(normal, side, patch), weight, bias),
        UNFUSED: unfused,
    }


def as_patches(volume: Tensor, side: int, patch: int) -> Tensor:
    """Reorder (B, D, H, W) into rows (B, N, P)."""
    split = volume.view(volume.shape[0], side, patch, side, patch, side, patch)
    return split.permute(0, 1, 3, 5, 2, 4, 6).reshape(volume.shape[0], side**3, patch**3)


def normalise(x: Tensor, window: Tensor) -> Tensor:
    """Clip to the window along axis 1 and map to -1..1."""
    low, high = window.unbind(1)
    return ((x.float() - low) / (high - low).clamp_min(1e-6)).clamp(0.0, 1.0) * 2.0 - 1.0
