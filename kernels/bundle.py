"""Write compiled kernels into a bundle: ``<arch>/<name>.cubin``, and ``kernels.json`` that says how to launch each."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .aot import HIDDEN_PARAMETERS, CompiledKernel, compile_kernels
from .config import ARCHITECTURES
from .specs import POINTER_ALIGNMENT, PatchEmbed3dSpec, Scalar, TissueCountsSpec

SCHEMA = "decipher-rt/kernels/1"


def write_kernels(
    folder: Path,
    specs: Iterable[PatchEmbed3dSpec | TissueCountsSpec],
    architectures: Sequence[int] = ARCHITECTURES,
) -> list[Path]:
    """Compile and write the kernels of a bundle.

    Parameters
    ----------
    folder : Path
        ``kernels/`` of the bundle; made where absent.
    specs : PatchEmbed3dSpec or TissueCountsSpec
    architectures : compute capability * 10

    Returns
    -------
    list of Path
        The files written, ``kernels.json`` last. Each is written beside and renamed.

    Raises
    ------
    ValueError
        As :func:`.aot.compile_kernels`; also two specs of one name, and a kernel that needs scratch memory.
    """
    kernels = compile_kernels(specs, architectures)
    twice = [name for name, count in Counter(_file(k) for k in kernels).items() if count > 1]
    if twice:
        raise ValueError(f"kernels: two specs give {twice[0]}; ask for each once")
    written = []
    for kernel in kernels:
        path = folder / _file(kernel)
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, kernel.cubin)
        written.append(path)
    document = {"schema": SCHEMA, "kernels": [describe(kernel) for kernel in kernels]}
    _replace(folder / "kernels.json", (json.dumps(document, indent=1) + "\n").encode())
    return [*written, folder / "kernels.json"]


def describe(kernel: CompiledKernel) -> dict[str, Any]:
    """Return the launch data of one kernel as plain JSON types.

    An argument is a pointer (``pointer``: dtype of its elements; ``align`` bytes), an int32 that follows from the sizes
    of the call, or ``null``: a null pointer, for the two scratch areas that the kernel does not use. Sizes are
    ``batch`` = B, ``tokens`` = K, ``rows`` = B * K. A number that follows from a size is
    ``times * ceil(size / block)``; with ``size`` null it is ``times``.
    """
    if kernel.global_scratch or kernel.profile_scratch:
        raise ValueError(f"{_file(kernel)}: needs scratch memory, which no launcher provides")
    specialisation = kernel.specialisation
    arguments: list[dict[str, Any]] = []
    for name, kind in specialisation.signature.items():
        if kind.startswith("*"):
            arguments.append({"name": name.removesuffix("_ptr"), "pointer": kind[1:], "align": POINTER_ALIGNMENT})
        elif kind == "i32":
            arguments.append({"name": name, "int32": _scalar(specialisation.scalars[name])})
    arguments += [{"name": name, "null": True} for name in ("global_scratch", "profile_scratch")]
    if len(arguments) != len(kernel.entry.parameters):  # another Triton: its launch convention has to be read again
        found = f"{len(kernel.entry.parameters)} parameters, expected {len(arguments)} ({HIDDEN_PARAMETERS} hidden)"
        raise ValueError(f"{_file(kernel)}: {found}")
    return {
        "kernel": specialisation.kernel,
        "name": specialisation.name,
        "architecture": kernel.entry.target,
        "cubin": _file(kernel),
        "sha256": hashlib.sha256(kernel.cubin).hexdigest(),
        "entry": kernel.entry.name,
        "arguments": arguments,
        "grid": [_scalar(axis) for axis in specialisation.grid],
        "threads": kernel.threads,
        "shared_memory_bytes": kernel.shared_memory,
        "raise_shared_memory_limit": kernel.asks_for_shared_memory,
        "constants": specialisation.constants,
        "registers": kernel.resources.registers,
        "spilled_bytes": kernel.resources.spill_store_bytes + kernel.resources.spill_load_bytes,
        "fp_fusion": True,
        "tuning": specialisation.tuning,
        # Cubins run on every driver of the assembler's major CUDA version or a later one (minor version compatibility).
        "driver": f"{kernel.ptxas.split('.')[0]}.0",
        "built_with": {"triton": kernel.triton, "ptxas": kernel.ptxas},
    }


def _file(kernel: CompiledKernel) -> str:
    return f"sm_{kernel.architecture}/{kernel.specialisation.name}.cubin"


def _scalar(scalar: Scalar) -> dict[str, Any]:
    return {"size": scalar.size, "times": scalar.times, "block": scalar.block}


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(content)
    beside.replace(path)
