"""What a graph takes, and the check of what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.errors import EngineError


@dataclass(frozen=True)
class Input:
    """One input of a graph. ``None`` in ``shape`` is a size that the graph leaves open."""

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} ({sizes})"


def check_inputs(graph: str, signature: Mapping[str, Input], inputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise EngineError, naming the input, where the arrays are not what the graph takes."""
    if set(inputs) != set(signature):
        raise EngineError(f"{graph}: takes {', '.join(sorted(signature))}; given were {', '.join(sorted(inputs))}")
    for name, expected in signature.items():
        array = inputs[name]
        fits = len(array.shape) == len(expected.shape) and all(
            wanted in (None, size) for wanted, size in zip(expected.shape, array.shape, strict=True)
        )
        if array.dtype != expected.dtype or not fits:
            found = Input(array.dtype, array.shape)
            raise EngineError(f"{graph}: input {name} is {found}, expected {expected}")
