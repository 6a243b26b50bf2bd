"""What a decoder sees of the voxels beside the tokens: features at every size from the grid down to the token grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Steps = Sequence[tuple[int, int, int]]
EPSILON = 1e-5


class ImageBranch(nn.Module):
    """The way down of a U-Net (arXiv 1505.04597), each halving a strided convolution.

    The largest size, where a block would cost more than all others, has two convolutions straight from the voxels: the
    halving keeps all that they hold, and beside it one that reaches a voxel further sees what is small.

    Parameters
    ----------
    channels : of the token grid first, then of each size above it
    steps : voxels to one of the next size, in the same order; the last is from the grid itself
    """

    def __init__(self, channels: Sequence[int], steps: Steps) -> None:
        super().__init__()
        finest_first = list(reversed(channels))
        before = [1, *finest_first[:-1]]
        self.halvings = nn.ModuleList(
            nn.Conv3d(above, width, step, stride=step)
            for above, width, step in zip(before, finest_first, reversed(steps), strict=True)
        )
        d, h, w = steps[-1]
        self.around = nn.Conv3d(1, finest_first[0], (d + 2, h + 2, w + 2), stride=(d, h, w), padding=1)
        self.blocks = nn.ModuleList(Block(width) for width in finest_first[1:])

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, 1, D, H, W) to (B, C, d, h, w) of each size, the token grid's first."""
        finest, *others = self.halvings
        x = finest(image) + F.gelu(self.around(image))
        found = [x]
        for halve, block in zip(others, self.blocks, strict=True):
            x = block(halve(x))
            found.append(x)
        return found[::-1]


class Block(nn.Module):
    """A 3 x 3 x 3 convolution in a residual branch, each voxel's channels normalised first.

    Norms over space would mix a voxel's answer with how much of the grid is air.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.convolution = nn.Conv3d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, D, H, W) to the same shape."""
        return x + F.gelu(self.convolution(self._normalise(x)))

    def _normalise(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            last = F.layer_norm(x.movedim(1, -1), self.gain.shape, self.gain, self.shift, EPSILON)
            return last.movedim(-1, 1)
        # Engines would move the axis to and fro: in the graph it stays where it is.
        centred = x - x.mean(dim=1, keepdim=True)
        spread = (centred * centred).mean(dim=1, keepdim=True)
        gain, shift = self.gain.reshape(-1, 1, 1, 1), self.shift.reshape(-1, 1, 1, 1)
        return centred * (spread + EPSILON).rsqrt() * gain + shift


def doublings(patch_shape: tuple[int, int, int], stride: int) -> list[tuple[int, int, int]]:
    """Return the factors of each step from a patch to ``stride``; an axis with fewer doublings begins later."""
    fitting = [
        s for s in range(1, max(patch_shape)) if all(p % s == 0 and (p // s).bit_count() == 1 for p in patch_shape)
    ]
    if stride not in fitting:
        expected = " or ".join(map(str, fitting)) or "another encoder.patch_shape"
        raise ValueError(
            f"decoder.options.stride is {stride}, expected {expected}: the sides of a patch, {patch_shape} voxels, are "
            "powers of 2 times the stride"
        )
    factors = [(p // stride).bit_length() - 1 for p in patch_shape]
    steps = max(factors)
    d, h, w = ([1] * (steps - n) + [2] * n for n in factors)
    return list(zip(d, h, w, strict=True))
