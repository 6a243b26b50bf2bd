"""The tuner with a clock of its own: it keeps the fastest correct tiles, and what it writes is what is read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from decipher_rt.kernels import tune
from decipher_rt.kernels.config import (
    AttentionConfig,
    PatchEmbed3dConfig,
    Rule,
    Tuning,
    attention_config,
    read_tuning,
    tuning,
    write_tuning,
)

pytestmark = pytest.mark.usefixtures("interpreter")

TILES = [AttentionConfig(16, 16, 4, 2), AttentionConfig(32, 16, 4, 2), AttentionConfig(16, 32, 4, 2)]


def clock(times: list[float]) -> Callable[[Callable[[], object]], float]:
    """Return the given times one after another, running what is measured."""
    left = iter(times)

    def measure(run: Callable[[], object]) -> float:
        run()
        return next(left)

    return measure


def test_the_fastest_tiles_win_and_are_written(tmp_path: Path) -> None:
    case = tune.Case({"head_dim": 32, "n": 64}, (1, 1, 20, 32))
    (rule,) = tune.tune_attention([case], TILES, clock([3.0, 1.0, 2.0]))
    assert rule.config == TILES[1]
    assert rule.measured == {"sizes": [1, 1, 20, 32], "ms": 1.0, "tflops": pytest.approx(51200e-9), "candidates": 3}
    write_tuning(tmp_path / "sm_80.json", Tuning(80, "a card", (), (rule,)))
    assert attention_config(80, 32, 64, 1, tmp_path) == TILES[1]
    assert tuning(80, tmp_path).attention == (rule,)


def test_tiles_with_a_wrong_result_or_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from decipher_rt.kernels import attention as kernel

    right = kernel.attention

    def sometimes(q: Tensor, k: Tensor, v: Tensor, *, config: AttentionConfig, **rest: Any) -> Tensor:
        if config == TILES[0]:
            return right(q, k, v, config=config, **rest) + 1
        if config == TILES[1]:
            raise RuntimeError("out of resource: shared memory")
        return right(q, k, v, config=config, **rest)

    monkeypatch.setattr(kernel, "attention", sometimes)
    case = tune.Case({}, (1, 1, 20, 32))
    (rule,) = tune.tune_attention([case], TILES, clock([5.0]))
    assert rule.config == TILES[2]
    with pytest.raises(ValueError, match="no tiles of 2 run"):
        list(tune.tune_attention([case], TILES[:2], clock([])))


def test_patch_embedding_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "WIDTH", 8)
    tiles = [PatchEmbed3dConfig(16, 16, 16, 1, 4, 2), PatchEmbed3dConfig(16, 16, 32, 1, 4, 2)]
    rules = tune.tune_patch_embed3d([tune.Case({}, (2, 5, 8, 4, item)) for item in (2, 4)], tiles, clock([2, 1, 1, 2]))
    assert [rule.config for rule in rules] == [tiles[1], tiles[0]]


def test_every_problem_finds_a_rule_once_tuned(tmp_path: Path) -> None:
    """The cases of a full run leave no problem without tiles."""
    for cases, sizes in (
        (
            tune.ATTENTION_CASES,
            [{"head_dim": d, "n": n, "batch_heads": b} for d in (32, 64, 96) for n in (1, 5000) for b in (1, 999)],
        ),
        (
            tune.PATCH_CASES,
            [{"rows": r, "volume_bytes": b, "ragged": g} for r in (1, 9999) for b in (2, 4) for g in (0, 1)],
        ),
    ):
        for size in sizes:
            assert any(all(size[name] <= bound for name, bound in case.up_to.items()) for case in cases)


def test_what_was_measured_before_an_interruption_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _index: "a card")
    monkeypatch.setattr(tune, "architecture_of", lambda _device: 80)
    measured, untuned = Rule({"head_dim": 32}, TILES[1], {"ms": 1.0}), tuning(80)

    def interrupted(*_: Any) -> Iterator[Rule[AttentionConfig]]:
        yield measured
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "tune_attention", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune.main(["--out", str(tmp_path)])
    kept = read_tuning(tmp_path / "sm_80.json")
    assert kept.source.startswith("measured on a card")
    assert kept.source.endswith(", in part")
    assert kept.attention == (measured, *untuned.attention)
    assert kept.patch_embed3d == untuned.patch_embed3d

    monkeypatch.setattr(tune, "tune_attention", lambda *_: iter([measured]))
    tune.main(["--out", str(tmp_path), "--only", "attention"])
    half = read_tuning(tmp_path / "sm_80.json")
    assert half.attention == (measured,)
    assert half.source.endswith(", in part")  # the other kernel's tiles were never measured here

    patch = replace(untuned.patch_embed3d[-1], measured={"ms": 1.0})
    monkeypatch.setattr(tune, "tune_patch_embed3d", lambda *_: iter([patch]))
    tune.main(["--out", str(tmp_path), "--only", "patch_embed3d"])
    whole = read_tuning(tmp_path / "sm_80.json")
    assert (whole.attention, whole.patch_embed3d) == ((measured,), (patch,))
    assert not whole.source.endswith(", in part")


def test_the_documented_number_of_compilations() -> None:
    """Triton compiles anew for each constant, each type, and each length that is or is not a multiple of 16."""
    attention = {(d, N % 16 == 0) for _, _, N, d in (case.sizes for case in tune.ATTENTION_CASES)}
    patches = {(grid, patch, item) for _, _, grid, patch, item in (case.sizes for case in tune.PATCH_CASES)}
    compiled = len(attention) * len(tune.ATTENTION_TILES) + len(patches) * len(tune.PATCH_TILES)
    documented = (Path(__file__).resolve().parents[2] / "docs" / "kernels.md").read_text()
    for text in (documented, tune.__doc__):
        assert f"{compiled} compilations" in str(text)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_without_a_gpu_it_ends_with_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "decipher_rt.kernels.tune", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no CUDA GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []
