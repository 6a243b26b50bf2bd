"""What couples the processes of a run. Alone, every function here is the identity, so that a loss is written once.

The rule that makes N processes equal to one: the loss of a step is the mean over processes of what each returns
(PyTorch averages their gradients). A loss that is a plain mean over the samples obeys it as it is, because shares are
of equal size. One that couples samples (InfoNCE, KoLeo, Sinkhorn-Knopp) is computed on `gather`-ed tensors by every
process; one that is a mean over some of the samples only uses `weighted_mean`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
_met_as: int | None = None  # number of this process in the last run of several, which may have parted


def joined() -> bool:
    """Whether this process is one of several that compute together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return the number of this process among all, from 0.

    Before the processes have met it is what the launcher (torchrun, SLURM or Fabric's own) says in the environment;
    once they have parted, what it was.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    if _met_as is not None:
        return _met_as
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if "LOCAL_RANK" not in os.environ and "SLURM_PROCID" in os.environ and not _in_shell():
        return int(os.environ["SLURM_PROCID"])
    # Fabric's launcher says no more than these two. Only whether it is the first matters before the processes meet.
    return int(os.environ.get("NODE_RANK", "0")) * int(os.environ.get("WORLD_SIZE", "1")) + int(
        os.environ.get("LOCAL_RANK", "0")
    )


def remember_rank() -> None:
    """Keep the number that this process has among those that have met, for when they have parted."""
    global _met_as
    if joined():
        _met_as = dist.get_rank()


def world_size() -> int:
    """Return how many processes compute together; 1 where none have met."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def started(asked: int) -> int | None:
    """Return how many processes torchrun or SLURM starts as one run; None where neither started this one.

    SLURM's script itself is run once, whatever number of tasks its job has: one process that is ``asked`` for in it,
    and not by srun, is alone.
    """
    if dist.is_available() and dist.is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    if _in_shell() or (asked == 1 and "SLURM_STEP_ID" not in os.environ):
        return None
    return int(os.environ["SLURM_NTASKS"]) if "SLURM_NTASKS" in os.environ else None


def _in_shell() -> bool:
    """Whether Fabric takes SLURM's job, by its name, for a shell in which nothing was started."""
    return os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")


def share(items: Sequence[T], rank: int, world_size: int) -> Sequence[T]:
    """Return the stretch of a step's items that one process computes; the stretches in order are all of them.

    Raises
    ------
    ValueError
        Where the items cannot be shared equally.
    """
    if len(items) % world_size:
        raise ValueError(f"{len(items)} items cannot be shared equally among {world_size}")
    size = len(items) // world_size
    return items[rank * size : (rank + 1) * size]


def gather(tensor: Tensor, with_grad: bool = False) -> Tensor:
    """Return the rows of all processes, in the order of one process's batch.

    Parameters
    ----------
    tensor : Tensor, shape (B, ...)
        Of the same shape and type in every process.
    with_grad : bool
        Gradients flow back to the process that a row came from, summed over the processes that used it.

    Returns
    -------
    Tensor, shape (processes * B, ...)
    """
    if not joined():
        return tensor if with_grad else tensor.detach()
    if with_grad and torch.is_grad_enabled():
        gathered: Tensor = _Gather.apply(tensor)
        return gathered
    return _all_gather(tensor.detach())


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum over processes of a tensor, without gradient: counts, moments, prototypes' marginals."""
    total = tensor.detach().clone()
    if joined():
        dist.all_reduce(total)
    return total


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return this process's part of the weighted mean over all processes' samples; 0 where all weights are 0.

    The mean over processes of what this returns is ``sum(values * weights) / sum(weights)`` over everything, which a
    mean over each share alone is not: one share may hold more of the samples that count.

    Parameters
    ----------
    values, weights : Tensor, the same shape
        ``weights`` are not negative and carry no gradient.
    """
    weights = weights.detach().to(values.dtype)
    total = all_sum(weights.sum())
    return world_size() * (values * weights).sum() / torch.where(total > 0, total, torch.ones_like(total))


def barrier() -> None:
    """Wait for all processes."""
    if joined():
        dist.barrier()


def _all_gather(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """All-gather whose backward is the sum over processes, cut to the rows that came from here."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = len(tensor)
        return _all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]
