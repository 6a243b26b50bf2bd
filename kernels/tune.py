"""Measure tile sizes on the GPU at hand and write them to ``kernels/tuned/sm_*.json``.

    python -m decipher_rt.kernels.tune [--out kernels/tuned] [--only attention|patch_embed3d]

Every candidate's result is compared with the fp64 reference before its time counts; candidates that do not fit the card
are skipped. That is 837 compilations; the file is written after each case.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import (
    TUNED,
    AttentionConfig,
    Config,
    PatchEmbed3dConfig,
    Rule,
    architecture_of,
    read_tuning,
    tuning,
    write_tuning,
)
from .reference import attention_reference, patch_embed3d_reference

Measure = Callable[[Callable[[], object]], float]
"""Returns the median time of a call in ms."""
TOLERANCE = 0.02
"""Largest absolute error of a candidate on inputs of about 1: far above rounding to half, far below a wrong index."""

ATTENTION_TILES = [
    AttentionConfig(*sizes)
    for sizes in itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
    if not (sizes[0] == 32 and sizes[2] == 8)
]
PATCH_TILES = [
    PatchEmbed3dConfig(t, c, p, 8, warps, stages)
    for t, c, p, warps, stages in itertools.product(
        (16, 32, 64, 128), (32, 64, 128, 256), (32, 64, 128), (4, 8), (2, 3, 4)
    )
    if 2048 <= t * c <= 128 * 128 and not (t * c < 64 * 64 and warps == 8)
]


@dataclass(frozen=True)
class Case:
    """One problem to tune for, and the problems that its winner will serve (see :class:`.config.Rule`)."""

    up_to: dict[str, int]
    sizes: tuple[int, ...]


# sizes: B, H, N, d. A scanner's one volume first, then large batches.
ATTENTION_CASES = [
    *(Case({"head_dim": d, "n": 1024, "batch_heads": 24}, (1, h, 517, d)) for d, h in ((32, 6), (64, 12), (96, 8))),
    *(Case({"head_dim": d, "n": 1024}, (64, 2048 // d, 512, d)) for d in (32, 64, 96)),
    *(Case({"head_dim": d}, (8, 2048 // d, 4096, d)) for d in (32, 64, 96)),
]
# sizes: B, K, side of the grid, side of a patch, bytes of a voxel. C = 768.
PATCH_CASES = [
    *(Case({"rows": 256, "volume_bytes": b, "ragged": 0}, (1, 192, 128, 16, b)) for b in (2, 4)),
    *(Case({"rows": 1024, "volume_bytes": b, "ragged": 0}, (1, 512, 128, 16, b)) for b in (2, 4)),
    *(Case({"volume_bytes": b, "ragged": 0}, (16, 512, 128, 16, b)) for b in (2, 4)),
    Case({}, (1, 216, 90, 15, 4)),
]
WIDTH = 768


def tune_attention(
    cases: Iterable[Case], tiles: Sequence[AttentionConfig], measure: Measure
) -> Iterator[Rule[AttentionConfig]]:
    """Yield the fastest correct tiles of each case."""
    from .attention import attention

    for case in cases:
        B, H, N, d = case.sizes
        packed = torch.randn(B, N, 3, H, d, device=_device(), dtype=torch.float16)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        expected = attention_reference(q[:1, :1], k[:1, :1], v[:1, :1])

        def run(config: AttentionConfig, q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return attention(q, k, v, config=config)

        flops = 4.0 * B * H * N * N * d
        yield _fastest(case, tiles, run, functools.partial(_error, expected), flops, measure)


def tune_patch_embed3d(
    cases: Iterable[Case], tiles: Sequence[PatchEmbed3dConfig], measure: Measure
) -> Iterator[Rule[PatchEmbed3dConfig]]:
    """Yield the fastest correct tiles of each case."""
    from .patch_embed3d import patch_embed3d

    for case in cases:
        B, K, grid, patch, item = case.sizes
        with torch.device(_device()):
            volume = (torch.rand(B, grid, grid, grid) * 1500).to(torch.int16 if item == 2 else torch.float32)
            window = torch.tensor([[20.0, 1200.0]]).repeat(B, 1)
            patches, voxels = (grid // patch) ** 3, patch**3
            tokens = torch.stack([torch.randperm(patches)[:K].sort().values for _ in range(B)])
            weight = (torch.randn(WIDTH, voxels) / voxels**0.5).half()
            bias, position = torch.randn(WIDTH), torch.randn(patches, WIDTH)
        arguments = (volume, window, tokens, weight, bias, position, (patch, patch, patch))
        expected = patch_embed3d_reference(
            volume[:1], window[:1], tokens[:1], weight, bias, position, (patch, patch, patch)
        )

        def run(config: PatchEmbed3dConfig, arguments: Any = arguments) -> Tensor:
            return patch_embed3d(*arguments, config=config)

        flops = 2.0 * B * K * voxels * WIDTH
        yield _fastest(case, tiles, run, functools.partial(_error, expected), flops, measure)


def _fastest(
    case: Case,
    tiles: Sequence[Config],
    run: Callable[[Config], Tensor],
    error: Callable[[Tensor], float],
    flops: float,
    measure: Measure,
) -> Rule[Config]:
    times: dict[Config, float] = {}
    for config in tiles:
        try:
            if not error(run(config)) <= TOLERANCE:
                print(f"  {config}: wrong result, left out", file=sys.stderr)
                continue
            times[config] = measure(functools.partial(run, config))
        except Exception as problem:  # noqa: BLE001 (too large for this card: what Triton raises differs by version)
            print(f"  {config}: {type(problem).__name__}, left out", file=sys.stderr)
    if not times:
        raise ValueError(f"no tiles of {len(tiles)} run {case.sizes} correctly on this device")
    best = min(times, key=lambda config: times[config])
    figures = {
        "sizes": list(case.sizes),
        "ms": times[best],
        "tflops": flops / times[best] / 1e9,
        "candidates": len(times),
    }
    print(f"{case.up_to or 'otherwise'}: {best}, {times[best]:.4f} ms", file=sys.stderr)
    return Rule(case.up_to, best, figures)


def _error(expected: Tensor, out: Tensor) -> float:
    """Return the largest error of what the reference holds: the first volume, or its first head."""
    return float((out[tuple(slice(size) for size in expected.shape)].double() - expected).abs().max())


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _measure_on_gpu(run: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(run, warmup=10, rep=60, return_mode="median"))


def _growing(measured: Iterable[Rule[Config]], old: tuple[Rule[Config], ...]) -> Iterator[tuple[Rule[Config], ...]]:
    """Yield what is measured so far with the old rules behind it, after each case; last, without the old ones."""
    done: list[Rule[Config]] = []
    for rule in measured:
        done.append(rule)
        yield tuple(done) + old
    yield tuple(done)


def main(arguments: list[str] | None = None) -> int:
    """Tune for the first CUDA device; 2 where there is none."""
    parser = argparse.ArgumentParser(
        prog="python -m decipher_rt.kernels.tune", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, default=TUNED, help="folder of the tuning files")
    parser.add_argument(
        "--only", choices=("attention", "patch_embed3d"), help="tune one kernel, keep the other's tiles"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tune: no CUDA GPU that PyTorch can use; tile sizes can only be measured on one", file=sys.stderr)
        return 2
    architecture = architecture_of(torch.device("cuda", 0))
    path = options.out / f"sm_{architecture}.json"
    old = read_tuning(path) if path.is_file() else tuning(architecture)
    card = torch.cuda.get_device_name(0)
    source = f"measured on {card}, torch {torch.__version__}, triton {importlib.metadata.version('triton')}"
    tuned = replace(old, architecture=architecture, source=f"{source}, in part")
    if options.only != "patch_embed3d":
        for attention in _growing(tune_attention(ATTENTION_CASES, ATTENTION_TILES, _measure_on_gpu), old.attention):
            tuned = replace(tuned, attention=attention)
            write_tuning(path, tuned)
    if options.only != "attention":
        for patch in _growing(tune_patch_embed3d(PATCH_CASES, PATCH_TILES, _measure_on_gpu), old.patch_embed3d):
            tuned = replace(tuned, patch_embed3d=patch)
            write_tuning(path, tuned)
    rules: list[Rule[Any]] = [*tuned.attention, *tuned.patch_embed3d]
    if all(rule.measured for rule in rules):
        write_tuning(path, replace(tuned, source=source))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
