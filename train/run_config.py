"""Configuration that every stage of the recipe shares: how it is optimised and on what it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16"]
MOST_THREADS = 1024
MOST_SEED = 2**32 - 1  # torch takes seeds of 64 bits, and a step's is this a million times


@dataclass(frozen=True)
class RunConfig:
    """Optimisation, machine and checkpoints of one stage.

    Attributes
    ----------
    steps : optimiser steps
    batch : samples of one step, over all processes and accumulated parts
    accumulate : parts that each process computes its share in, one after the other, for want of memory; losses that
        couple samples see one part of every process at a time
    rate : peak learning rate, reached after ``warmup`` steps; then a cosine to ``final_rate``
    weight_decay : first and last, with a cosine between (the same twice: constant)
    betas : of AdamW (arXiv 1711.05101)
    clip : largest norm of the gradient
    precision : "bf16" computes matrix products in bfloat16 (weights and optimiser stay float32); on a CPU without that
        arithmetic it is "fp32"
    compile : ``torch.compile``
    checkpointing : compute the members of every ``nn.ModuleList`` (transformer blocks) again in the backward pass
        instead of keeping what they gave (arXiv 1604.06174)
    devices, nodes : processes on each machine, one per GPU or on the CPU, and machines
    strategy : "ddp" copies the model into every process, "fsdp" shards it (GPUs only, no distillation)
    threads : CPU threads of a process; results are bit-exact for the same number only
    loaders : threads of a process that make batches ahead, each one; more of them feed a GPU, and change no result
    checkpoint_every : steps
    seed : everything random follows from it and the number of the step
    """

    steps: int
    batch: int
    seed: int = 0
    accumulate: int = 1
    rate: float = 5e-4
    warmup: int = 100
    final_rate: float = 0.0
    weight_decay: tuple[float, float] = (0.05, 0.05)
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    precision: Precision = "bf16"
    compile: bool = False
    checkpointing: bool = False
    devices: int = 1
    nodes: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    threads: int = 2
    loaders: int = 1
    checkpoint_every: int = 100

    @property
    def shares(self) -> int:
        """Parts that the batch of a step is computed in, over all processes."""
        return self.devices * self.nodes * self.accumulate

    @property
    def part(self) -> int:
        """Samples that losses which couple them see at a time: one part of every process."""
        return self.batch // self.accumulate

    def check(self, key: str = "run") -> None:
        """Raise ValueError by key where a value cannot be used."""
        for name in ("steps", "batch", "accumulate", "devices", "nodes", "threads", "loaders", "checkpoint_every"):
            if (count := getattr(self, name)) < 1:
                raise ValueError(f"{key}.{name} is {count}, expected 1 or more")
        for name, most in (("threads", MOST_THREADS), ("loaders", MOST_THREADS), ("seed", MOST_SEED)):
            if (count := getattr(self, name)) > most:
                raise ValueError(f"{key}.{name} is {count}, expected at most {most}")
        for name in ("rate", "clip"):
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{key}.{name} is {value}, expected more than 0")
        for name, low in (("warmup", self.warmup), ("seed", self.seed), ("final_rate", self.final_rate)):
            if low < 0:
                raise ValueError(f"{key}.{name} is {low}, expected 0 or more")
        for place, value in enumerate(self.weight_decay):
            if value < 0:
                raise ValueError(f"{key}.weight_decay[{place}] is {value}, expected 0 or more")
        for place, value in enumerate(self.betas):
            if not 0 <= value < 1:
                raise ValueError(f"{key}.betas[{place}] is {value}, expected 0 to less than 1")
        if self.batch % self.shares:
            raise ValueError(
                f"{key}.batch is {self.batch}, expected a multiple of devices x nodes x accumulate ({self.shares})"
            )
