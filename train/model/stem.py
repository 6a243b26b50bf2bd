"""A convolutional stem: patches through small convolutions before they become tokens, a CNN-transformer hybrid.

Convolutional stems make vision transformers easier to optimise (arXiv 2106.14881). This one sees one patch at a time,
so that a token depends on its own voxels alone: patches may be dropped before it as well as after it.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

FEWEST_CHANNELS = 8
STAGES = 3  # at most: each halves a patch, and doubles the channels


class ConvStem(nn.Module):
    """Voxels of single patches (..., P) to tokens (..., C).

    Convolutions of 3 x 3 x 3 with stride 2 while every side of the patch is even and longer than 2, each with a norm
    over channels and voxels and a GELU; then one linear map.

    Parameters
    ----------
    patch_shape : (D, H, W) of a patch, in voxels
    width : int
        C.
    """

    def __init__(self, patch_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.patch_shape = patch_shape
        sides, channels, out = list(patch_shape), 1, max(FEWEST_CHANNELS, width // 16)
        stages: list[nn.Module] = []
        while len(stages) < STAGES and all(side % 2 == 0 and side > 2 for side in sides):
            convolution = nn.Conv3d(channels, out, 3, stride=2, padding=1)
            stages.append(nn.Sequential(convolution, nn.GroupNorm(1, out), nn.GELU()))
            sides, channels, out = [side // 2 for side in sides], out, out * 2
        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(channels * math.prod(sides), width)

    def forward(self, patches: Tensor) -> Tensor:
        """Map (..., P), row-major, to (..., C)."""
        x = self.stages(patches.reshape(-1, 1, *self.patch_shape))
        return self.linear(x.flatten(1)).reshape(*patches.shape[:-1], -1)
