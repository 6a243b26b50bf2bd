"""The kernels of a bundle in numpy, from nothing but the arguments of a launch. Memory of a device is the host's."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

Given = dict[str, int]  # arguments and constants, by the names of the launch data
Shape = tuple[int, ...]


def view(pointer: int, shape: Shape, dtype: Any) -> np.ndarray:
    """An array on what an address holds."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer)).view(dtype).reshape(shape)


def volume(given: Given, constants: Given) -> tuple[np.ndarray, Shape, Shape]:
    """The volume (D, H, W) in float32, its grid of patches, and the shape of one patch."""
    assert given["global_scratch"] == given["profile_scratch"] == 0
    grid, patch = (tuple(constants[f"{kind}_{axis}"] for axis in "DHW") for kind in ("GRID", "PATCH"))
    return view(given["volume"], tuple(g * p for g, p in zip(grid, patch, strict=True)), np.float32), grid, patch


def embed(given: Given, constants: Given) -> None:
    """The patch embedding."""
    voxels, grid, patch = volume(given, constants)
    rows, per_volume, C = given["rows"], given["tokens_per_volume"], constants["C"]
    assert rows == per_volume  # one volume
    P, N = int(np.prod(patch)), int(np.prod(grid))
    low, high = view(given["window"], (2,), np.float32)
    tokens = view(given["tokens"], (rows,), np.int64)
    weight = view(given["weight"], (C, P), np.float16).astype(np.float32)
    bias, position = view(given["bias"], (C,), np.float32), view(given["position"], (N, C), np.float32)
    split = voxels.reshape(grid[0], patch[0], grid[1], patch[1], grid[2], patch[2]).transpose(0, 2, 4, 1, 3, 5)
    patches = np.clip((split.reshape(N, P)[tokens] - low) / (high - low), 0, 1) * 2 - 1
    view(given["out"], (rows, C), np.float16)[...] = patches @ weight.T + bias + position[tokens]


def count(given: Given, constants: Given) -> None:
    """The tissue counts, by a loop over patches."""
    voxels, grid, patch = volume(given, constants)
    (threshold,) = view(given["threshold"], (1,), np.float32)
    out = view(given["out"], (int(np.prod(grid)),), np.int32)
    for index, corner in enumerate(np.ndindex(*grid)):
        block = tuple(slice(c * p, (c + 1) * p) for c, p in zip(corner, patch, strict=True))
        out[index] = np.count_nonzero(voxels[block] > threshold)


KERNELS = {"patch_embed3d": embed, "tissue_counts": count}
