"""State of a model that FSDP shards: gathered to be written, scattered when read. Not run where this was written.

FSDP needs several GPUs to be of use and at least one to start. The files are the same as without it: one safetensors
file with the whole state, by the names of the model's own parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from . import distributed
from .checkpoint import check_same, read_tensors, write_tensors

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
MODEL, OPTIMISER = "model.", "optimiser."


def sharding_strategy(model: nn.Module) -> Any:
    """Return Fabric's FSDP strategy that shards every member of an ``nn.ModuleList`` (transformer blocks) by itself."""
    from lightning_fabric.strategies.fsdp import FSDPStrategy
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    blocks = {type(block) for module in model.modules() if isinstance(module, nn.ModuleList) for block in module}
    return FSDPStrategy(auto_wrap_policy=ModuleWrapPolicy(blocks), state_dict_type="full")


def whole_state(root: nn.Module) -> dict[str, Tensor]:
    """Gather the state of the model in ``root``; every process has to call it, the first gets it."""
    state: dict[str, Any] = get_model_state_dict(root, options=WHOLE)
    return {name.removeprefix(MODEL): value for name, value in state.items()}


def save_sharded(path: Path, root: nn.Module, optimiser: optim.Optimizer, step: int, config: str) -> None:
    """Write the state after ``step`` steps; every process has to call it."""
    tensors = {f"{MODEL}{name}": value for name, value in whole_state(root).items()}
    gathered: dict[str, Any] = get_optimizer_state_dict(root, optimiser, options=WHOLE)
    for name, values in gathered["state"].items():  # its groups follow from the configuration
        tensors |= {f"{OPTIMISER}{name}.{key}": torch.as_tensor(value) for key, value in values.items()}
    if distributed.rank() == 0:
        write_tensors(path, tensors, {"step": step, "config": config})


def load_sharded(path: Path, root: nn.Module, optimiser: optim.Optimizer, config: str) -> int:
    """Restore what `save_sharded` wrote and return the step to go on from.

    Raises
    ------
    CheckpointError
    """
    tensors, metadata = read_tensors(path)
    check_same(path, str(metadata.get("config")), config)
    model: dict[str, Any] = {name: value for name, value in tensors.items() if name.startswith(MODEL)}
    set_model_state_dict(root, model, options=WHOLE)
    state: dict[str, Any] = get_optimizer_state_dict(root, optimiser, options=WHOLE)
    for name, value in tensors.items():
        if name.startswith(OPTIMISER):
            parameter, key = name.removeprefix(OPTIMISER).rsplit(".", 1)
            state["state"].setdefault(parameter, {})[key] = value
    set_optimizer_state_dict(root, optimiser, state, options=WHOLE)
    return int(metadata["step"])
