"""Where tensors lie: batches on their way to the device, activations that are not kept."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Held:
    """A batch in a box. Fabric takes arguments apart to cast them, and refuses frozen dataclasses."""

    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content


def move(batch: Any, device: torch.device) -> Any:
    """Return a batch (tensors in dataclasses, mappings and sequences) with its tensors on ``device``."""
    if isinstance(batch, Tensor):
        if batch.device == device or device.type == "cpu":
            return batch.to(device)
        return batch.pin_memory().to(device, non_blocking=True)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        changed = {f.name: move(getattr(batch, f.name), device) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **changed)
    if isinstance(batch, Mapping):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(move(value, device) for value in batch)
    return batch


def compute_blocks_again(model: nn.Module) -> None:
    """Keep no activations within the members of any ``nn.ModuleList``; the backward pass computes them again."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                again = functools.partial(checkpoint, block.forward, use_reentrant=False)
                block.forward = again
