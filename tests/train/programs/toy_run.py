"""A small stage run by the shared loop, as a program: ``toy_run.py FOLDER [key=value ...]``.

Everything that couples processes is in its losses: rows gathered with gradient (contrastive), gathered statistics, a
mean over some of the samples only, a frozen EMA teacher, and a parameter that not every step uses.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from decipher_rt.train import distributed
from decipher_rt.train.config import dump_config, load_config
from decipher_rt.train.loop import ParameterGroup, run
from decipher_rt.train.progress import Progress
from decipher_rt.train.run_config import RunConfig
from decipher_rt.train.schedule import draw_indices

COUNT, WIDTH = 40, 12


@dataclass(frozen=True)
class Batch:
    x: Tensor
    counted: Tensor
    names: tuple[str, ...]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.linear(x))


class Model(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.student = nn.ModuleList(Block() for _ in range(3))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.dropout = nn.Dropout(dropout)
        self.sometimes = nn.Parameter(torch.zeros(WIDTH))

    def encode(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x)
        return x

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        x = batch.x + (self.sometimes if step % 2 else 0)
        z = self.dropout(self.encode(self.student, x)).float()
        with torch.no_grad():
            target = self.encode(self.teacher, batch.x).float()
        rows = F.normalize(distributed.gather(z, with_grad=True), dim=-1)
        columns = F.normalize(distributed.gather(target), dim=-1)
        contrastive = F.cross_entropy(rows @ columns.T / 0.2, torch.arange(len(rows), device=rows.device))
        distance = ((z - target) ** 2).mean(-1)
        some = distributed.weighted_mean(distance, batch.counted)
        return {"loss": contrastive + 0.1 * distance.mean() + 0.1 * some, "contrastive": contrastive, "some": some}


class Toy:
    curve = ("loss", "contrastive")

    def __init__(self, settings: RunConfig, dropout: float) -> None:
        torch.manual_seed(settings.seed)
        self.model = Model(dropout)
        self.settings = settings

    def batch(self, step: int, rank: int, world_size: int) -> Batch:
        chosen = draw_indices(self.settings.seed, COUNT, step, self.settings.batch)
        mine = distributed.share(list(enumerate(chosen)), rank, world_size)
        x = [np.random.default_rng([i, step, place]).normal(size=WIDTH) for place, i in mine]
        counted = [float(i % 3 == 0) for _, i in mine]
        return Batch(torch.tensor(np.array(x), dtype=torch.float32), torch.tensor(counted), tuple("n" for _ in mine))

    def parameter_groups(self) -> list[ParameterGroup]:
        matrices = [p for p in self.model.student.parameters() if p.ndim == 2]
        others = [p for p in self.model.student.parameters() if p.ndim != 2]
        return [
            {"params": matrices, "rate_scale": 1.0, "decays": True},
            {"params": [*others, self.model.sometimes], "rate_scale": 0.5, "decays": False},
        ]

    def after_step(self, step: int) -> None:
        del step
        with torch.no_grad():
            for mine, theirs in zip(self.model.teacher.parameters(), self.model.student.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)

    def weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return state


if __name__ == "__main__":
    folder, *overrides = sys.argv[1:]
    dropout = 0.1 if "dropout" in overrides else 0.0
    base = Path(__file__).with_suffix(".yaml")
    settings = load_config(RunConfig, base, [o for o in overrides if "=" in o])
    settings.check()
    run(Toy(settings, dropout), settings, Path(folder), dump_config(settings), Progress())
