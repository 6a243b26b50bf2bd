"""What couples processes: two of them compute what one computes, gradients included."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from decipher_rt.train import distributed

PROGRAM = Path(__file__).parent / "programs" / "coupled.py"


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, str(PROGRAM), str(tmp_path), str(rank)], env=environment) for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    here = runpy.run_path(str(PROGRAM))
    x, counted, weight = here["inputs"]()
    loss = here["coupled"](x @ weight, counted)
    loss.backward()
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert int(found["rank"]) == rank
        assert torch.equal(found["gathered"], x)
        assert float(found["loss"]) == pytest.approx(float(loss.detach()), rel=1e-12)
        assert torch.allclose(found["gradient"], weight.grad, rtol=1e-12)


def test_alone_nothing_is_changed() -> None:
    x = torch.arange(6.0).reshape(3, 2).requires_grad_()
    assert torch.equal(distributed.gather(x, with_grad=True), x)
    assert distributed.gather(x, with_grad=True).requires_grad
    assert not distributed.gather(x).requires_grad
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


def test_weighted_mean_of_nothing_is_zero_and_trains_nothing() -> None:
    values = torch.tensor([3.0, 4.0], requires_grad=True)
    mean = distributed.weighted_mean(values, torch.zeros(2))
    mean.backward()
    assert float(mean.detach()) == 0
    assert not values.grad.any()
    assert float(distributed.weighted_mean(values, torch.tensor([1.0, 3.0])).detach()) == pytest.approx(3.75)


def test_shares_in_order_are_everything() -> None:
    items = list(range(12))
    assert [i for rank in range(3) for i in distributed.share(items, rank, 3)] == items
    with pytest.raises(ValueError, match="12 items cannot be shared equally among 5"):
        distributed.share(items, 0, 5)


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, 0),
        ({"RANK": "5", "LOCAL_RANK": "1"}, 5),
        ({"LOCAL_RANK": "2", "WORLD_SIZE": "4"}, 2),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, 3),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "2"}, 2),  # Fabric's launcher in a shell that SLURM gave
        ({"SLURM_PROCID": "3", "SLURM_JOB_NAME": "interactive"}, 0),  # each is a run of its own there
    ],
)
def test_before_they_meet_the_launcher_says_who_is_first(
    environment: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.rank() == rank
