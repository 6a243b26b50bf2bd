"""Tokens of the frozen encoder, computed once for every series and kept on disk.

A shard of ``shards.py`` holds ``patch.<i>`` (K, C) float16, ``tokens.<i>`` (K,) int32, ``mean`` and ``embedding``
float32, ``affine_lps_mm`` of each grid, and whether it has a tissue map. A folder belongs to the weights of one encoder
and to one split of one source: whatever kills the run, the shards that are there are whole, and only missing ones are
made again. Labels and boxes are the source's to say, at every start: one that was corrected encodes nothing again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decipher_rt.preprocess import Grid
from decipher_rt.tokens import select_tokens

from ..checkpoint import fingerprint
from ..model.vit import ViT
from ..shards import SHARD, place_of, rows_of, shard_file
from ..views import UNIT_WINDOW
from .boxes import box_to_voxels
from .contract import Known
from .shards import fill, read_shard

if TYPE_CHECKING:
    from ..sources.example import Example, Examples, Facts

PER_SERIES = ("mean", "embedding", "count", "affine_lps_mm", "tissue")  # first axis N, of every series of a shard
LAYOUT = 2  # of a shard; a change of what it holds needs another number


@dataclass(frozen=True)
class Encoded:
    """One series as a decoder takes it: patch (K, C) float32, tokens (K,) int64, embedding (E,) float32."""

    patch: Tensor
    tokens: Tensor
    embedding: Tensor


class Tokens:
    """The tokens of one split, on disk.

    Attributes
    ----------
    known : of each series
    count : (N,) number of tokens K of each
    mean, embedding : (N, C) and (N, E) float32, of all series
    """

    def __init__(self, folder: Path, examples: Examples) -> None:
        self.folder = folder
        count = len(examples)
        found = [read_shard(shard_file(folder, shard), PER_SERIES) for shard, _ in enumerate(rows_of(count))]
        self.mean, self.embedding, self.count, affines, tissue = (
            torch.cat(tensors)[:count].numpy() for tensors in zip(*found, strict=True)
        )
        self.known = [known_of(examples.facts(i), affines[i], tissue=bool(tissue[i])) for i in range(count)]

    @property
    def head(self) -> NDArray[np.bool_]:
        """Return which series are heads, (N,)."""
        return np.array([known.kind == "head" for known in self.known], bool)

    def __len__(self) -> int:
        """Return how many series there are."""
        return len(self.known)

    def __getitem__(self, index: int) -> Encoded:
        """Read one series."""
        shard, row = place_of(index)
        patch, tokens = read_shard(shard_file(self.folder, shard), (f"patch.{row}", f"tokens.{row}"))
        return Encoded(patch.float(), tokens.long(), torch.from_numpy(self.embedding[index]))


def source_key(examples: Examples, split: str) -> str:
    """Return what says which split of which source this is: a digest of everything that decides what its series are."""
    stored: Any = getattr(examples, "stored", examples)
    return f"{split} {stored.name}"


def cache_tokens(
    encoder: ViT,
    examples: Examples,
    source: str,
    cache_dir: Path,
    progress: Callable[[int], Any],
    *,
    batch: int = 8,
) -> Tokens:
    """Encode whatever of a split is not on disk yet, as at inference: foreground tokens, one bucket each.

    Parameters
    ----------
    encoder : ViT
        Its device is where it computes.
    examples : Examples
    source : str
        Says which split of which source this is: another content has another string.
    cache_dir : Path
    progress : callable
        Told how many series are there.
    batch : int
        Series that are encoded at once.
    """
    digest = hashlib.sha256(json.dumps([LAYOUT, SHARD, fingerprint(encoder.state_dict()), source]).encode())
    folder = cache_dir / f"tokens-{digest.hexdigest()[:16]}"

    def make(rows: range) -> dict[str, Tensor]:
        return _encoded(encoder, [examples[i] for i in rows], batch)

    fill(folder, len(examples), "count", make, progress)
    return Tokens(folder, examples)


@torch.no_grad()
def encode(encoder: ViT, volumes: Sequence[NDArray[np.float16]], batch: int = 8) -> list[Encoded]:
    """Encode volumes (D, H, W) whose window is 0..1, each with the tokens that the runtime would choose.

    Series of one bucket go together; the answers come in the order of ``volumes``.
    """
    encoder.eval()
    device, spec = encoder.class_token.device, encoder.config.preprocessing
    grids = [v.astype(np.float32) for v in volumes]
    tokens = [select_tokens(Grid(v, UNIT_WINDOW, np.eye(4)), spec).indices for v in grids]
    encoded: dict[int, Encoded] = {}
    for K in sorted({len(t) for t in tokens}):
        members = [i for i, t in enumerate(tokens) if len(t) == K]
        for first in range(0, len(members), batch):
            some = members[first : first + batch]
            volume = torch.from_numpy(np.stack([grids[i] for i in some]))[:, None].to(device)
            window = torch.from_numpy(UNIT_WINDOW).expand(len(some), -1).to(device)
            indices = torch.from_numpy(np.stack([tokens[i] for i in some]))
            patch, embedding = encoder(volume, window, indices.to(device))
            for place, i in enumerate(some):
                encoded[i] = Encoded(patch[place].float().cpu(), indices[place], embedding[place].float().cpu())
    return [encoded[i] for i in range(len(volumes))]


def known_of(facts: Facts, affine_lps_mm: NDArray[np.float64], *, tissue: bool) -> Known:
    """Return what is known of a series on a grid, its boxes in grid voxels, largest first."""
    if facts.boxes is None:
        return Known(dict(facts.labels), None, facts.kind, tissue)
    found = [(box_to_voxels(b.center_lps_mm, b.size_mm, affine_lps_mm), b.label) for b in facts.boxes]
    found.sort(key=lambda one: -float(one[0][3:].prod()))
    boxes = np.array([box for box, _ in found], np.float32).reshape(-1, 6)
    return Known(dict(facts.labels), boxes, facts.kind, tissue, tuple(label for _, label in found))


def _encoded(encoder: ViT, examples: Sequence[Example], batch: int) -> dict[str, Tensor]:
    """Return the tensors of a shard."""
    encoded = encode(encoder, [example.volume for example in examples], batch)
    tensors: dict[str, Tensor] = {}
    for row, one in enumerate(encoded):
        tensors[f"patch.{row}"] = one.patch.half()
        tensors[f"tokens.{row}"] = one.tokens.int()
    tensors["mean"] = torch.stack([one.patch.mean(dim=0) for one in encoded])
    tensors["embedding"] = torch.stack([one.embedding for one in encoded])
    tensors["count"] = torch.tensor([len(one.tokens) for one in encoded], dtype=torch.int64)
    tensors["affine_lps_mm"] = torch.from_numpy(np.stack([example.affine_lps_mm for example in examples]))
    tensors["tissue"] = torch.tensor([example.tissue is not None for example in examples], dtype=torch.uint8)
    return tensors
