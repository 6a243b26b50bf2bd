"""The protocol that every engine follows: one ONNX graph or plan, loaded once, run many times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from decipher_rt.device_array import DeviceArray


class Engine(Protocol):
    """A graph ready to run. ``name``, ``device``, ``precision`` and ``threads`` go into every result."""

    name: str
    device: str
    precision: str
    threads: int

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph on named arrays and return its named outputs."""
        ...


@runtime_checkable
class HoldsPlans(Protocol):
    """An engine that may be several files, one for each number of tokens."""

    def sha256_of(self, tokens: int) -> str:
        """Return the sha256 of the file that encodes this number of tokens."""
        ...


@runtime_checkable
class SaysHowItLoaded(Protocol):
    """An engine whose first load on a card differs from the others.

    Attributes
    ----------
    load_ms : float
    compiled : bool
        Whether this load compiled what a later one finds on disk.
    not_recorded : str or None
        Why its work is not one CUDA graph.
    """

    load_ms: float
    compiled: bool
    not_recorded: str | None


@runtime_checkable
class TakesGridsOnDevice(Protocol):
    """An engine that reads grids where DALI left them on its GPU, and counts their tissue there."""

    def tissue_counts(self, volume: NDArray[Any] | DeviceArray, threshold: np.float32) -> NDArray[np.int32]:
        """Count the voxels of each patch that are above a threshold; shape (patches,), row-major.

        A grid on the host is uploaded first.
        """
        ...
