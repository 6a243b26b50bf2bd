"""Tile sizes of the kernels: data in ``kernels/tuned/sm_*.json``, written by ``python -m decipher_rt.kernels.tune``.

A file holds, for each kernel, rules in order; the first that matches is taken. ``source`` says where the numbers come
from: ``untuned default`` until somebody has measured them on a card, and then the card and the versions.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

TUNED = Path(__file__).parent / "tuned"
SCHEMA = "decipher-rt/kernel-tuning/1"
UNTUNED = "untuned default"
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 120, 121)
"""Compute capabilities that the kernels are compiled for: Turing, A100, RTX 30, Orin, RTX 40, H100, B200, RTX 50, and
GB10: Triton's cubins are architecture-specific from sm_90 on (sm_90a), and run on nothing else."""


@dataclass(frozen=True)
class PatchEmbed3dConfig:
    """Tiles of ``patch_embed3d``: rows (tokens), channels, voxels of a patch; row blocks that share weights in L2."""

    block_t: int
    block_c: int
    block_p: int
    group_t: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class AttentionConfig:
    """Tiles of ``attention``: queries and keys."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


TISSUE_COUNTS_WARPS = 4
TISSUE_COUNTS_VOXELS = 4096
"""Voxels that a program of ``tissue_counts`` has in flight: a patch of 16^3, 32 values a thread. Nothing is tuned: the
kernel reads each voxel once and is done."""


def tissue_counts_blocks(patch_shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a tile of ``tissue_counts``: powers of two, a row of the patch in each."""
    depth, height, width = patch_shape
    columns = power_of_two(width)
    return power_of_two(min(depth * height, max(1, TISSUE_COUNTS_VOXELS // columns))), columns


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least ``size``: the length of a Triton range."""
    return 1 << (size - 1).bit_length()


Config = TypeVar("Config", PatchEmbed3dConfig, AttentionConfig)


@dataclass(frozen=True)
class Rule(Generic[Config]):
    """One line of a tuning file: the configuration for problems up to these sizes.

    Attributes
    ----------
    up_to : dict
        Upper bounds, inclusive, by name: ``rows``, ``volume_bytes`` (of one voxel) and ``ragged`` for
        ``patch_embed3d``; ``head_dim``, ``n`` and ``batch_heads`` = B * H for ``attention``. A size that is not named
        is not bounded.
    config : PatchEmbed3dConfig or AttentionConfig
    measured : dict
        What the tuner saw, empty for untuned defaults.
    """

    up_to: dict[str, int]
    config: Config
    measured: dict[str, Any]


@dataclass(frozen=True)
class Tuning:
    """One tuning file."""

    architecture: int
    source: str
    patch_embed3d: tuple[Rule[PatchEmbed3dConfig], ...]
    attention: tuple[Rule[AttentionConfig], ...]


def patch_embed3d_config(
    architecture: int,
    rows: int,
    volume_bytes: int,
    grid_shape: Sequence[int],
    patch_shape: Sequence[int],
    tuned: Path = TUNED,
) -> PatchEmbed3dConfig:
    """Return the tiles for ``rows`` = B * K tokens from voxels of ``volume_bytes`` bytes."""
    rules = tuning(architecture, tuned).patch_embed3d
    return _first_match(rules, rows=rows, volume_bytes=volume_bytes, ragged=ragged(grid_shape, patch_shape))


def ragged(grid_shape: Sequence[int], patch_shape: Sequence[int]) -> int:
    """Return 1 where rows of voxels do not start on vector boundaries.

    Each voxel is then loaded on its own through its own address, and big tiles do not fit the registers.
    """
    _, H, W = grid_shape
    return int(patch_shape[2] % 4 != 0 or W % 4 != 0 or H * W % 16 != 0)


def attention_config(
    architecture: int, head_dim: int, n: int, batch_heads: int, tuned: Path = TUNED
) -> AttentionConfig:
    """Return the tiles for N = ``n`` tokens of ``head_dim`` in ``batch_heads`` = B * H heads."""
    return _first_match(tuning(architecture, tuned).attention, head_dim=head_dim, n=n, batch_heads=batch_heads)


def architecture_of(device: torch.device) -> int:
    """Return the compute capability of a CUDA device as major * 10 + minor; 80 for the CPU (the interpreter)."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


@functools.cache
def tuning(architecture: int, folder: Path = TUNED) -> Tuning:
    """Read the file of an architecture, or of the nearest older one that has a file (sm_103 takes sm_100's).

    Raises
    ------
    ValueError
        No file at or below this architecture, or a file of another schema.
    """
    present = sorted(int(path.stem.removeprefix("sm_")) for path in folder.glob("sm_*.json"))
    older = [a for a in present if a <= architecture]
    if not older:
        raise ValueError(f"kernels: no tile sizes for sm_{architecture}; the oldest served is sm_{min(present)}")
    return read_tuning(folder / f"sm_{older[-1]}.json")


def read_tuning(path: Path) -> Tuning:
    """Read one tuning file."""
    document = json.loads(path.read_text())
    if document.get("schema") != SCHEMA:
        raise ValueError(f"{path.name}: schema is {document.get('schema')!r}, expected {SCHEMA!r}")
    return Tuning(
        document["architecture"],
        document["source"],
        tuple(_rule(PatchEmbed3dConfig, rule) for rule in document["patch_embed3d"]),
        tuple(_rule(AttentionConfig, rule) for rule in document["attention"]),
    )


def _rule(kind: type[Config], rule: dict[str, Any]) -> Rule[Config]:
    return Rule(rule["up_to"], kind(**rule["config"]), rule["measured"])


def write_tuning(path: Path, value: Tuning) -> None:
    """Write one tuning file, beside and renamed."""
    document = {"schema": SCHEMA, **dataclasses.asdict(value)}
    beside = path.with_suffix(".json.part")
    beside.write_text(json.dumps(document, indent=1) + "\n")
    beside.replace(path)


def _first_match(rules: tuple[Rule[Config], ...], **sizes: int) -> Config:
    for rule in rules:
        if all(sizes[name] <= bound for name, bound in rule.up_to.items()):
            return rule.config
    raise ValueError(f"kernels: no tuning rule for {sizes}")
