"""Which card an engine of the GPU runs on: the one that was asked for, or the first that CUDA shows."""

from __future__ import annotations

import re

from decipher_rt.engines.select import AUTO, CPU_ENGINES
from decipher_rt.errors import EngineError

CPU = "cpu"
_INDEX = re.compile(r"[0-9]{1,9}")
# The hexadecimal part of what nvidia-smi -L prints of a card, or of an instance of one (MIG).
_UUID = re.compile(r"(?:GPU|MIG)-([0-9a-f-]+)", re.IGNORECASE)


def choose_card(engine: str, device: int | str | None) -> int | None:
    """Return the CUDA index of the card that an engine runs on; None where only the CPU may be used.

    The driver is asked only where a card is asked for, so that whoever asks for none needs no driver.

    Parameters
    ----------
    engine : str
        A name of ``decipher_rt.engines.ENGINES``, or ``auto``.
    device : int, str or None
        A card's index as ``CUDA_VISIBLE_DEVICES`` leaves it, its UUID or the beginning of it (``GPU-3f``), or ``cpu``;
        None is the first card for what runs on one.

    Raises
    ------
    EngineError
        If there is no such card, or the engine does not run on it.
    """
    asked = None if device is None else str(device)
    if engine in CPU_ENGINES:
        if asked not in (None, CPU):
            raise EngineError(
                f"engine {engine} runs on the CPU, not on device {asked!r}: choose engine auto, onnxruntime-cuda, "
                "tensorrt or tensorrt-rtx, or leave the device out"
            )
        return None
    if asked == CPU:
        if engine != AUTO:
            raise EngineError(
                f"engine {engine} runs on a GPU, not on device 'cpu': choose engine {', '.join(CPU_ENGINES)} or auto, "
                "or leave the device out"
            )
        return None
    return 0 if asked is None else find_card(asked)


def find_card(asked: str) -> int:
    """Return the CUDA index of a card from its index or its UUID, or the beginning of that.

    Raises
    ------
    EngineError
        If there is no driver, or not exactly one such card: then which there are.
    """
    index = int(asked) if _INDEX.fullmatch(asked) else None
    uuid = _UUID.fullmatch(asked)
    if index is None and uuid is None:
        raise EngineError(
            f"device {asked!r} is none: give 'cpu', a GPU's index, or its UUID (GPU-...) as 'nvidia-smi -L' prints it"
        )
    from decipher_rt.engines.cuda import devices

    cards = devices()
    found = [
        card.index
        for card in cards
        if card.index == index or (uuid and card.uuid.partition("-")[2].startswith(uuid[1].lower()))
    ]
    if len(found) == 1:
        return found[0]
    shown = f"CUDA shows {len(cards)}: " + ", ".join(f"{card.index} {card.name} ({card.uuid})" for card in cards)
    if found:
        raise EngineError(f"device {asked} may be several of them, {shown}; give more of the UUID")
    raise EngineError(f"there is no device {asked}, {shown}; give the index or the UUID of one of them")
