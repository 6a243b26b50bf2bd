"""A kernel of a bundle on this card, launched as ``kernels/kernels.json`` says; nothing of a kernel is known here."""

from __future__ import annotations

import ctypes
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from decipher_rt.device_array import DeviceArray
from decipher_rt.engines.cuda import Driver, Kernel, Launch
from decipher_rt.errors import EngineError

SCHEMA = "decipher-rt/kernels/1"
# Triton's names of what the launch data calls ``pointer``.
POINTERS = {
    "i16": np.int16,
    "u16": np.uint16,
    "i32": np.int32,
    "i64": np.int64,
    "fp16": np.float16,
    "fp32": np.float32,
}
ELF64_HEADER, ELF64_SECTION = struct.Struct("<16s2HI3QI6H"), struct.Struct("<2I4Q2I2Q")
SHT_NOBITS, SHT_LOOS = 8, 0x60000000
# What reading launch data of another shape ends in.
UNUSABLE = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)


class BundleKernel:
    """A kernel for one card.

    Parameters
    ----------
    folder : Path
        ``kernels/`` of the bundle.
    driver : Driver
    name : str
        Of the kernel, as the launch data has it.

    Raises
    ------
    EngineError
        If the bundle has no such kernel for this card.
    """

    def __init__(self, folder: Path, driver: Driver, name: str) -> None:
        entry = find_kernel(folder, driver.architecture, name)
        self._launch_data = entry
        try:
            check_driver(entry, driver.version)
            code = _inside(folder, entry["cubin"]).read_bytes()
            if not is_whole_cubin(code):
                raise ValueError(f"{entry['cubin']} is not a whole cubin")
            symbol, shared, raise_limit = (
                entry[k] for k in ("entry", "shared_memory_bytes", "raise_shared_memory_limit")
            )
        except (*UNUSABLE, OSError) as error:
            raise EngineError(
                f"{folder}: no usable {name} ({type(error).__name__}: {error}); export the bundle again"
            ) from None
        self._kernel = Kernel(driver, code, symbol, shared, raise_limit=raise_limit)

    def bind(self, given: Mapping[str, DeviceArray], sizes: Mapping[str, int]) -> Launch:
        """Return the launch on arrays, by the names of the launch data, and sizes (``batch``, ``tokens``, ``rows``).

        Raises
        ------
        EngineError
            If an array is not what the kernel was compiled for.
        """
        data = self._launch_data
        try:
            x, y, z = (evaluate(axis, sizes) for axis in data["grid"])
            arguments = tuple(argument(data["kernel"], item, given, sizes) for item in data["arguments"])
            threads = int(data["threads"])
        except UNUSABLE as error:
            raise EngineError(f"kernels.json: not launch data ({error!r}); export the bundle again") from None
        return Launch(self._kernel, (x, y, z), threads, arguments)


def is_whole_cubin(code: bytes) -> bool:
    """Whether all that a cubin says of itself lies in it: the driver, which is not told where it ends, believes it."""
    try:
        header = ELF64_HEADER.unpack_from(code)
        ident, programs_at, sections_at = header[0], header[5], header[6]
        program_size, programs, section_size, sections = header[9:13]
        if ident[:5] != b"\x7fELF\x02" or section_size != ELF64_SECTION.size:
            return False
        ends: list[int] = [programs_at + programs * program_size, sections_at + sections * section_size]
        for number in range(sections):
            _, kind, _, _, offset, size, *_ = ELF64_SECTION.unpack_from(code, sections_at + number * section_size)
            if kind < SHT_LOOS and kind != SHT_NOBITS:  # CUDA's own may have no content
                ends.append(offset + size)
    except struct.error:
        return False
    return max(ends) <= len(code)


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} is not in the bundle")
    return path


def find_kernel(folder: Path, architecture: int, name: str) -> dict[str, Any]:
    """Return the launch data of a kernel for an architecture.

    A cubin runs on its own architecture and on later ones of the same major number, the nearest of which is taken; one
    that is architecture-specific (sm_90a) on its own alone (CUDA Programming Guide, binary compatibility).

    Raises
    ------
    EngineError
        Naming those that there are.
    """
    path = folder / "kernels.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("schema") != SCHEMA:
            raise EngineError(f"{path}: schema is {document.get('schema')!r}, this runtime reads {SCHEMA!r}")
        kernels = {str(item["architecture"]): dict(item) for item in document["kernels"] if item["kernel"] == name}
    except (*UNUSABLE, OSError, RecursionError) as error:
        raise EngineError(f"{path}: cannot be read ({type(error).__name__}); export the bundle again") from None
    for serving in (f"sm_{architecture}a", *(f"sm_{n}" for n in range(architecture, architecture // 10 * 10 - 1, -1))):
        if serving in kernels:
            return kernels[serving]
    known = ", ".join(kernels) or "no card"
    raise EngineError(f"the bundle's {name} is for {known}, this card is sm_{architecture}; export it again")


def check_driver(entry: Mapping[str, Any], version: str) -> None:
    """Hold the CUDA version of the driver against the one that a kernel needs, where the launch data says it.

    Raises
    ------
    EngineError
        Where the driver is older.
    """
    needed = str(entry.get("driver", "0.0"))
    if [int(part) for part in version.split(".")] < [int(part) for part in needed.split(".")]:
        raise EngineError(
            f"the bundle's {entry['kernel']} for {entry['architecture']} needs a driver of CUDA {needed} or later, "
            f"this one is of CUDA {version}: update the driver, or run on the CPU"
        )


def evaluate(scalar: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Return ``times * ceil(size / block)``."""
    size = 1 if scalar["size"] is None else sizes[scalar["size"]]
    return int(scalar["times"]) * -(-size // int(scalar["block"]))


def argument(kernel: str, item: Mapping[str, Any], given: Mapping[str, DeviceArray], sizes: Mapping[str, int]) -> Any:
    """Return one argument of a kernel as a ctypes value.

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
            f"{kernel}: {item['name']} is {array.dtype} at address {array.pointer:#x}, "
            f"the kernel takes {item['pointer']} aligned to {item['align']} bytes"
        )
    return ctypes.c_void_p(array.pointer)
