"""A machine with a GPU, played: a driver whose device memory is the host's, and an engine that is ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decipher_rt.engines import cuda

from .played_cards import FakeCard
from .played_cuda import FakeCuda
from .played_kernels import view
from .played_session import Machine, PlayedDali, play_machine
from .played_tensorrt import FakeLibrary


@pytest.fixture(scope="session")
def gpu_memory() -> Callable[[int, tuple[int, ...], Any], np.ndarray]:
    """An array on what an address of the played GPU holds."""
    return view


@pytest.fixture(scope="session")
def play_gpu() -> Callable[..., FakeCuda]:
    """Put the played driver in the place of the machine's, for the kernels of a folder.

    ``cards`` are the arguments of a ``FakeCard`` each; without them there is one.
    """

    def play(kernels: Path | None, patch: pytest.MonkeyPatch, cards: Sequence[Mapping[str, Any]] = ({},)) -> FakeCuda:
        driver = FakeCuda(kernels, [FakeCard(**card) for card in cards])
        patch.setattr(cuda, "_library", lambda: driver)
        return driver

    return play


@pytest.fixture(scope="session")
def play_library() -> Callable[..., FakeLibrary]:
    """Make a TensorRT, of either flavour, whose plans are ONNX graphs and whose work goes to a played driver."""
    return FakeLibrary


@pytest.fixture(scope="module")
def machine(
    tmp_path_factory: pytest.TempPathFactory, play_gpu: Callable[..., Any], play_library: Callable[..., Any]
) -> Iterator[Machine]:
    """One with a card and TensorRT-RTX, for as long as a module's tests run."""
    with play_machine(tmp_path_factory.mktemp("machine"), play_gpu, play_library) as played:
        yield played


@pytest.fixture
def driver(machine: Machine) -> Any:
    machine.driver.done.clear()
    machine.driver.calls.clear()
    PlayedDali.copies = 0
    return machine.driver
