"""The protocol that every engine follows: one ONNX graph or plan, loaded once, run many times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray


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
