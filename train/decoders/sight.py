"""What a frozen segmentation sees in each patch, put beside the patch's token for a decoder that stands upon it.

A token stands for a whole patch; a lesion is smaller. A segmentation that looks at the voxels has learned to tell it
from the tissue around it, and what it has learned serves whoever asks whether there is one, where, or how much of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import fingerprint
from ..shards import SHARD, place_of, rows_of, shard_file
from .contract import REACH
from .kinds.segmentation import Segmentation
from .shards import fill, read_shard
from .stage import images_of
from .tokens import Encoded, Tokens

if TYPE_CHECKING:
    from ..progress import Progress
    from ..sources.example import Examples

BATCH = 4
LAYOUT = 2  # of a shard; a change of what it holds needs another number


class Sight:
    """The view of one segmentation, of the kept patches of a series.

    A patch is seen in cells, the voxels that the segmentation's last doubling starts from, each with the mean of its
    voxels' logits. Of every label the patch's share is told; of the last one, by custom the rarest, the odds in each
    cell of the patch and in those one further along every axis, as what lies at a border is seen from both sides, and
    the strongest of the patch's own: logarithms from ``-REACH`` to ``REACH``, as 0 to 1; 0 where no patch was kept.

    Attributes
    ----------
    segmentation : Segmentation
    size : L + (n + 2)^3 + 1 numbers of a patch of n^3 cells
    """

    def __init__(self, segmentation: Segmentation) -> None:
        self.segmentation = segmentation
        steps = segmentation.last.kernel_size
        self.cells = tuple(p // k for p, k in zip(segmentation.patch_shape, steps, strict=True))
        self.size = len(segmentation.labels) + math.prod(n + 2 for n in self.cells) + 1

    def __call__(self, patch: Tensor, tokens: Tensor, image: Tensor | None) -> Tensor:
        """Put what is seen beside the tokens: (B, K, C + size).

        Parameters
        ----------
        patch : (B, K, C) ; tokens : (B, K) ; image : (B, 1, D, H, W)
            As a decoder takes them.
        """
        return self.beside(patch, tokens, self.segmentation.features(patch, tokens, image))

    def beside(self, patch: Tensor, tokens: Tensor, features: Tensor) -> Tensor:
        """Do the same where the segmentation's ``features`` are there already."""
        seen = self._of_patches(tokens, features)
        return torch.cat([patch, seen.gather(1, tokens.unsqueeze(-1).expand(-1, -1, seen.shape[-1]))], dim=-1)

    def _of_patches(self, tokens: Tensor, features: Tensor) -> Tensor:
        """Return what is seen of every patch of the grid, (B, patches, size)."""
        last, (gd, gh, gw), (nd, nh, nw) = self.segmentation.last, self.segmentation.patch_grid, self.cells
        matrix = last.weight.mean(dim=(2, 3, 4)).T  # (L, C): the mean over a cell's voxels is as linear as they are
        B, _, d, h, w = features.shape
        logits = torch.matmul(matrix, features.flatten(2)) + cast("Tensor", last.bias).unsqueeze(-1)  # (B, L, cells)
        likely = logits.softmax(dim=1)
        shares = likely.reshape(B, -1, gd, nd, gh, nh, gw, nw).mean(dim=(3, 5, 7))
        odds = (likely[:, -1] / likely[:, :-1].sum(dim=1)).log()  # without end where either is 0, which REACH ends
        kept = self.segmentation.kept(tokens, (gd, gh, gw), (nd, nh, nw)).flatten(1)
        odds = torch.where(kept, (odds.clamp(-REACH, REACH) + REACH) / (2 * REACH), torch.zeros_like(odds))
        x = odds.reshape(B, d, h, w)
        strongest = x.reshape(B, gd, nd, gh, nh, gw, nw).amax(dim=(2, 4, 6)).reshape(B, -1, 1)
        for axis, n in ((1, nd), (3, nh), (5, nw)):  # each axis becomes two: patches, and cells of one with its borders
            x = with_borders(x, axis, n)
        around = x.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, gd * gh * gw, -1)
        return torch.cat([shares.flatten(2).transpose(1, 2), around, strongest], dim=-1)


def with_borders(x: Tensor, axis: int, cells: int) -> Tensor:
    """Split an axis into patches, and their cells with one more on either side: that of the neighbour, or none."""
    whole = x.unflatten(axis, (-1, cells))
    first, last = whole.narrow(axis + 1, 0, 1), whole.narrow(axis + 1, cells - 1, 1)
    patches = whole.shape[axis]
    none = torch.zeros_like(first.narrow(axis, 0, 1))
    before = torch.cat([none, last.narrow(axis, 0, patches - 1)], dim=axis)
    after = torch.cat([first.narrow(axis, 1, patches - 1), none], dim=axis)
    return torch.cat([before, whole, after], dim=axis + 1)


class SightedTokens(Tokens):
    """The tokens of one split, each with what is seen beside it, on disk in shards like theirs."""

    def __init__(self, tokens: Tokens, folder: Path) -> None:
        vars(self).update(vars(tokens))
        self._plain, self._sights = tokens, folder
        seen = [read_shard(shard_file(folder, shard), ("mean",))[0] for shard, _ in enumerate(rows_of(len(tokens)))]
        self.mean = np.concatenate([tokens.mean, torch.cat(seen)[: len(tokens)].numpy()], axis=1)

    def __getitem__(self, index: int) -> Encoded:
        """Read one series."""
        one = self._plain[index]
        shard, row = place_of(index)
        (seen,) = read_shard(shard_file(self._sights, shard), (f"seen.{row}",))
        return Encoded(torch.cat([one.patch, seen.float()], dim=-1), one.tokens, one.embedding)


@torch.no_grad()
def sighted(sight: Sight, tokens: Tokens, examples: Examples, cache_dir: Path, progress: Progress) -> SightedTokens:
    """Return a split's tokens with what is seen beside them, looking at what is not on disk yet.

    Parameters
    ----------
    sight : Sight
        Its segmentation's device is where it computes.
    tokens, examples
        Of the same split.
    cache_dir : Path
    progress : Progress
    """
    weights = fingerprint(sight.segmentation.eval().state_dict())
    digest = hashlib.sha256(json.dumps([LAYOUT, SHARD, weights, tokens.folder.name]).encode())
    folder = cache_dir / f"sight-{digest.hexdigest()[:16]}"
    with progress.bar("looking at voxels", len(tokens)) as advance_to:
        fill(folder, len(tokens), "mean", lambda rows: _look(sight, tokens, examples, rows), advance_to)
    return SightedTokens(tokens, folder)


def _look(sight: Sight, tokens: Tokens, examples: Examples, rows: range) -> dict[str, Tensor]:
    """Return ``seen.<i>`` (K, size) float16 of every series of a shard, and their ``mean`` (N, size)."""
    device, C = sight.segmentation.absent.device, sight.segmentation.absent.shape[0]
    found: dict[int, Tensor] = {}
    for K in np.unique(tokens.count[rows.start : rows.stop]):
        members = [i for i in rows if tokens.count[i] == K]
        for first in range(0, len(members), BATCH):
            some = members[first : first + BATCH]
            encoded = [tokens[i] for i in some]
            patch, places = torch.stack([e.patch for e in encoded]), torch.stack([e.tokens for e in encoded])
            image = images_of([examples[i] for i in some])
            beside = sight(patch.to(device), places.to(device), image.to(device)).cpu()
            found |= dict(zip(some, beside[..., C:], strict=True))
    seen = {f"seen.{i - rows.start}": found[i].half() for i in rows}
    return {**seen, "mean": torch.stack([found[i].mean(dim=0) for i in rows])}
