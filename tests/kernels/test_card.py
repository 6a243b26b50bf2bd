"""The wrappers launch on the card that holds their tensors, whichever torch's current one is; tensors are fake ones."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

HALF, CARD = torch.float16, torch.device("cuda", 1)
SHAPES: dict[str, list[tuple[tuple[int, ...], torch.dtype]]] = {
    "patch_embed3d": [
        ((1, 32, 32, 32), torch.float32), ((1, 2), torch.float32), ((1, 5), torch.int64), ((40, 4096), HALF),
        ((40,), torch.float32), ((8, 40), torch.float32),
    ],
    "tissue_counts": [((1, 32, 32, 32), torch.float32), ((1,), torch.float32)],
    "attention": [((1, 4, 37, 64), HALF)] * 3,
}  # fmt: skip


class CurrentDevice:
    """``torch.cuda.device``, which takes an index; -1 leaves the current one, as the real one does."""

    current = 0

    def __init__(self, device: int) -> None:
        self._device = device

    def __enter__(self) -> None:
        self._before, CurrentDevice.current = CurrentDevice.current, max(self._device, 0)

    def __exit__(self, *_: object) -> None:
        CurrentDevice.current = self._before


class Kernel:
    """Of Triton, which launches on the current device."""

    def __init__(self) -> None:
        self.launched_on: list[int] = []

    def __getitem__(self, _grid: Any) -> Kernel:
        return self

    def __call__(self, *_: Any, **__: Any) -> None:
        self.launched_on.append(CurrentDevice.current)


@pytest.fixture
def tuned_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """The cards whose compute capability was asked for."""
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device", CurrentDevice)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: asked.append(device) or (8, 9))
    yield asked
    assert CurrentDevice.current == 0


@pytest.mark.parametrize("name", SHAPES)
def test_kernels_run_where_their_tensors_are(
    name: str, tuned_for: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"decipher_rt.kernels.{name}")
    kernel = Kernel()
    monkeypatch.setattr(module, f"{name}_kernel", kernel)
    with FakeTensorMode():
        tensors = [torch.empty(shape, dtype=dtype, device=CARD) for shape, dtype in SHAPES[name]]
        patch = () if name == "attention" else ((16, 16, 16),)
        out = getattr(module, name)(*tensors, *patch)
    assert out.device == CARD
    assert kernel.launched_on == [1]
    assert tuned_for == ([] if name == "tissue_counts" else [CARD])  # that one has the same tiles everywhere
