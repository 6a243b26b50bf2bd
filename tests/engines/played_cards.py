"""CUDA cards, played: what a driver says of each, their contexts, and what was made on which."""

# ruff: noqa: N802 - handlers carry the names of cuda.h
from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FIRST_DEVICE, FIRST_PRIMARY = 70, 500  # handles of the first card and of its primary context; neither is an index
OUT_OF_MEMORY, NO_DEVICE, INVALID_DEVICE, INVALID_CONTEXT = 2, 100, 101, 201  # CUresult
ERRORS = {
    OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY", NO_DEVICE: b"CUDA_ERROR_NO_DEVICE",
    INVALID_DEVICE: b"CUDA_ERROR_INVALID_DEVICE", INVALID_CONTEXT: b"CUDA_ERROR_INVALID_CONTEXT",
}  # fmt: skip
# What cuda.h lets a thread call that has no current context.
FREE_OF_CONTEXT = {
    "cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetUuid_v2",
    "cuDeviceTotalMem_v2", "cuDeviceGetAttribute", "cuGetErrorName", "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2",
}  # fmt: skip


@dataclass(frozen=True)
class FakeCard:
    name: str = "Fake RTX"
    architecture: int = 89
    uuid: str = "3f0c8a52-91d7-4c33-b6a0-2b7f3e5d1c90"
    memory_mib: int = 16384


class FakeCards:
    """The cards of a machine. Each has a primary context, which lives while it is retained.

    ``contexts()`` are the calling thread's, the last is current. ``used`` are the cards that had a context. ``owner``
    gives the card of every handle and of all memory, ``live`` is the memory and ``handles`` the streams and events that
    live. ``destroyed`` are the library's objects in the order in which they went, and ``strays`` those that went where
    their card's context was not current: the real library would then start the first card.
    """

    def __init__(self, cards: Sequence[FakeCard]) -> None:
        self.cards = cards
        self.owner: dict[int, int] = {}
        self.used: set[int] = set()
        self.live: dict[int, Any] = {}
        self.handles: set[int] = set()
        self.destroyed: list[str] = []
        self.strays: list[str] = []
        self._retained = [0] * len(cards)
        self._thread = threading.local()
        self._numbers = itertools.count(1000)

    # --- What is current, and what belongs to it

    def contexts(self) -> list[int]:
        if not hasattr(self._thread, "contexts"):
            self._thread.contexts = []
        return self._thread.contexts

    @property
    def retained(self) -> int:
        return sum(self._retained)

    def current(self) -> int | None:
        """The card whose primary context is current in this thread and lives."""
        return self._of_context(self.contexts()[-1]) if self.contexts() else None

    def _of_context(self, context: int) -> int | None:
        card = context - FIRST_PRIMARY
        return card if 0 <= card < len(self.cards) and self._retained[card] else None

    def may(self, name: str, arguments: tuple[Any, ...]) -> bool:
        """Whether this thread may make a call: one in a context is given nothing of another card."""
        if name in FREE_OF_CONTEXT:
            return True
        card = self.current()
        given = (getattr(argument, "value", None) for argument in arguments)
        return card is not None and all(self.owner.get(value, card) == card for value in given if value)

    def new(self, address: int | None = None) -> int:
        """A handle, or a given address, that belongs to the current card."""
        handle = next(self._numbers) if address is None else address
        card = self.current()
        assert card is not None
        self.owner[handle] = card
        return handle

    def gone(self, kind: str, card: int | None) -> None:
        """Note that one of the library's objects went."""
        self.destroyed.append(kind)
        if self.current() != card:
            self.strays.append(kind)

    # --- Primary contexts

    def on_cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:
        card = self._index(device)
        self._retained[card] += 1
        self.used.add(card)
        context._obj.value = FIRST_PRIMARY + card

    def on_cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:
        card = self._index(device)
        if self._retained[card] == 0:
            return INVALID_CONTEXT
        self._retained[card] -= 1
        left = [item for item in (*self.live, *self.handles) if self.owner.get(item) == card]
        assert self._retained[card] or not left, "the context took what was not freed with it"
        return 0

    def on_cuCtxPushCurrent_v2(self, context: Any) -> int:
        if self._of_context(context.value) is None:
            return INVALID_CONTEXT
        self.contexts().append(context.value)
        return 0

    def on_cuCtxPopCurrent_v2(self, context: Any) -> int:
        if not self.contexts():
            return INVALID_CONTEXT
        context._obj.value = self.contexts().pop()
        return 0

    # --- What the driver says

    def on_cuInit(self, flags: int) -> int:
        assert flags == 0
        return 0 if self.cards else NO_DEVICE

    def on_cuDriverGetVersion(self, number: Any) -> None:
        number._obj.value = 13000

    def on_cuGetErrorName(self, status: int, name: Any) -> None:
        name._obj.value = ERRORS[status]

    def on_cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = len(self.cards)

    def on_cuDeviceGet(self, device: Any, ordinal: int) -> int:
        if not 0 <= ordinal < len(self.cards):
            return INVALID_DEVICE
        device._obj.value = FIRST_DEVICE + ordinal
        return 0

    def _index(self, device: int) -> int:
        assert device in range(FIRST_DEVICE, FIRST_DEVICE + len(self.cards)), "not a handle that cuDeviceGet gave"
        return device - FIRST_DEVICE

    def on_cuDeviceGetName(self, name: Any, length: int, device: int) -> None:
        assert length == len(name)
        name.value = self.cards[self._index(device)].name.encode()

    def on_cuDeviceGetUuid_v2(self, number: Any, device: int) -> None:
        number.raw = uuid.UUID(self.cards[self._index(device)].uuid).bytes  # a buffer of another size would be refused

    def on_cuDeviceTotalMem_v2(self, size: Any, device: int) -> None:
        size._obj.value = self.cards[self._index(device)].memory_mib << 20

    def on_cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:
        architecture = self.cards[self._index(device)].architecture
        value._obj.value = {75: architecture // 10, 76: architecture % 10}[attribute]
