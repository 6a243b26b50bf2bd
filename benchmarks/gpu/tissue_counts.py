"""Counting tissue where the grid lies, beside the same in PyTorch, and beside a copy of the whole grid to the host.

The copy, to page-locked memory, is what the counts take the place of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Ceilings, Deadline, Row, attempt, rate

KERNEL, UNFUSED, COPY = "decipher-rt", "compare + reshape + sum", "copy of the grid to the host"
GRIDS = ((128, 16), (96, 8), (256, 16))
"""Sides of the grid and of a patch, in voxels: the base preset, the shipped model, and the largest."""


def run(ceilings: Ceilings, deadline: Deadline) -> list[Row]:
    """Measure one volume of each grid, in fp32, by every method."""
    rows = []
    for grid, patch in GRIDS:
        case = f"{grid}^3 float32, {(grid // patch) ** 3} patches of {patch}^3"
        for method, call in methods(grid, patch).items():
            row = rate(attempt(case, method, call, deadline), ceilings, 0.0, 4.0 * grid**3, "float16")
            rows.append(dataclasses.replace(row, tflops=None, of_gemm=None))
    return rows


def methods(grid: int, patch: int) -> dict[str, Callable[[], Tensor]]:
    """Return what computes a case, by name; the last gives the grid itself."""
    from decipher_rt.kernels.tissue_counts import tissue_counts

    side, size = grid // patch, (patch, patch, patch)
    with torch.device(measure.DEVICE):
        volume, threshold = torch.rand(1, grid, grid, grid) * 1500, torch.tensor([150.0])
    host = torch.empty(volume.shape, pin_memory=measure.DEVICE == "cuda")

    def unfused() -> Tensor:
        above = (volume > threshold.view(1, 1, 1, 1)).view(1, side, patch, side, patch, side, patch)
        return above.sum(dim=(2, 4, 6), dtype=torch.int32).flatten(1)

    return {
        KERNEL: lambda: tissue_counts(volume, threshold, size),
        UNFUSED: unfused,
        COPY: lambda: host.copy_(volume, non_blocking=True),
    }
