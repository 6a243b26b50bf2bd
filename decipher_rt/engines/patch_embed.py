"""The patch-embedding kernel of a bundle: from the grid in device memory to embedded tokens, in one launch.

``kernels/kernels.json`` (schema "decipher-rt/kernels/1") says how each cubin is launched; nothing of it is known here.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from decipher_rt.device_array import DeviceArray
from decipher_rt.engines.cuda import Buffer, Driver, Kernel
from decipher_rt.errors import EngineError

SCHEMA = "decipher-rt/kernels/1"
KERNEL = "patch_embed3d"
CONSTANTS = "patch_embed3d.npz"
# Triton's names of what the launch data calls ``pointer``.
POINTERS = {"i16": np.int16, "u16": np.uint16, "fp16": np.float16, "fp32": np.float32, "i64": np.int64}


class PatchEmbed:
    """The kernel for one card, with its weights in device memory.

    Parameters
    ----------
    folder : Path
        ``kernels/`` of the bundle: launch data, cubins, and the weights in ``patch_embed3d.npz``: ``weight`` (C, P)
        float16, ``bias`` (C,) float32, ``position`` (N, C) float32.
    driver : Driver

    Raises
    ------
    EngineError
        If the bundle has no kernel for this card.
    """

    def __init__(self, folder: Path, driver: Driver) -> None:
        entry = find_kernel(folder, driver.architecture)
        self._launch_data, self._driver = entry, driver
        self._kernel = Kernel(
            driver,
            (folder / entry["cubin"]).read_bytes(),
            entry["entry"],
            entry["shared_memory_bytes"],
            raise_limit=entry["raise_shared_memory_limit"],
        )
        self._constants = {}
        with np.load(folder / CONSTANTS, allow_pickle=False) as stored:
            for name in ("weight", "bias", "position"):
                buffer = Buffer(driver, stored[name].shape, stored[name].dtype)
                buffer.host[...] = stored[name]
                buffer.upload(driver.stream)
                self._constants[name] = buffer
        driver.synchronize()

    @property
    def width(self) -> int:
        """Channels C of a token."""
        return int(self._constants["bias"].array.shape[0])

    def __call__(self, volume: DeviceArray, window: DeviceArray, tokens: DeviceArray, out: DeviceArray) -> None:
        """Launch on the driver's stream.

        Parameters
        ----------
        volume : (B, 1, D, H, W) float32
        window : (B, 2) float32
        tokens : (B, K) int64
        out : (B, K, C) float16
        """
        given = {"volume": volume, "window": window, "tokens": tokens, "out": out}
        given |= {name: buffer.array for name, buffer in self._constants.items()}
        batch, kept = tokens.shape
        sizes = {"batch": batch, "tokens": kept, "rows": batch * kept}
        grid = tuple(evaluate(axis, sizes) for axis in self._launch_data["grid"])
        arguments = [argument(item, given, sizes) for item in self._launch_data["arguments"]]
        self._kernel.launch((grid[0], grid[1], grid[2]), self._launch_data["threads"], arguments)


def find_kernel(folder: Path, architecture: int) -> dict[str, Any]:
    """Return the launch data of the patch embedding for an architecture.

    A cubin runs on its own architecture and on later ones of the same major number (CUDA Programming Guide, binary
    compatibility); the nearest is taken.

    Raises
    ------
    EngineError
        Naming those that there are.
    """
    path = folder / "kernels.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: cannot be read ({type(error).__name__}); export the bundle again") from None
    if document.get("schema") != SCHEMA:
        raise EngineError(f"{path}: schema is {document.get('schema')!r}, this runtime reads {SCHEMA!r}")
    found = {int(item["architecture"][3:]): item for item in document["kernels"] if item["kernel"] == KERNEL}
    fitting = [known for known in found if known // 10 == architecture // 10 and known <= architecture]
    if not fitting:
        known = ", ".join(f"sm_{a}" for a in sorted(found)) or "none"
        raise EngineError(f"the bundle's kernels are for {known}, this card is sm_{architecture}; export it again")
    return dict(found[max(fitting)])


def evaluate(scalar: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Return ``times * ceil(size / block)``."""
    size = 1 if scalar["size"] is None else sizes[scalar["size"]]
    return int(scalar["times"]) * -(-size // int(scalar["block"]))


def argument(item: Mapping[str, Any], given: Mapping[str, DeviceArray], sizes: Mapping[str, int]) -> Any:
    """Return one argument of the kernel as a ctypes value.

    Raises
    ------
    EngineError
        If an array is not what the kernel was compiled for.
    """
    if item.get("null"):
        return ctypes.c_void_p(None)
    if "int32" in item:
        return ctypes.c_int32(evaluate(item["int32"], sizes))
    array = given[item["name"]]
    if array.dtype != POINTERS[item["pointer"]] or array.pointer % item["align"]:
        raise EngineError(
            f"{KERNEL}: {item['name']} is {array.dtype} at address {array.pointer:#x}, "
            f"the kernel takes {item['pointer']} aligned to {item['align']} bytes"
        )
    return ctypes.c_void_p(array.pointer)
