"""One of two processes that compute a loss together, as a program: ``coupled.py FOLDER RANK``."""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from torch import Tensor

from decipher_rt.train import distributed

ROWS, WIDTH = 6, 3


def coupled(x: Tensor, counted: Tensor) -> Tensor:
    """Return a loss in which every row meets every other, and one over some of the rows only."""
    rows, columns = distributed.gather(x, with_grad=True), distributed.gather(x**2)
    likeness = (rows @ columns.T).logsumexp(1).mean()
    return likeness + distributed.weighted_mean(x.sum(1) ** 3, counted)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, what counts (all of it in the first share), and the weight to be learned."""
    x = torch.linspace(-1, 1, ROWS * WIDTH, dtype=torch.float64).reshape(ROWS, WIDTH).sin()
    counted = torch.tensor([1.0, 0.0, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64)
    return x, counted, torch.eye(WIDTH, dtype=torch.float64).requires_grad_()


if __name__ == "__main__":
    folder, rank = sys.argv[1], int(sys.argv[2])
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    x, counted, weight = inputs()
    mine = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    loss = coupled(x[mine] @ weight, counted[mine])
    loss.backward()
    found = {
        "rank": torch.tensor(distributed.rank()),
        "gathered": distributed.gather(x[mine]),
        # What the loop does with losses, and DDP with gradients.
        "loss": distributed.all_sum(loss) / distributed.world_size(),
        "gradient": distributed.all_sum(weight.grad) / distributed.world_size(),
    }
    save_file(found, f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()
