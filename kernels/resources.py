"""What ptxas says of the kernels, as a Markdown table: ``python -m decipher_rt.kernels.resources``.

The kernels are those of the shipped model (``tiny``: 8^3 patches, 32 channels a head) and of ``base`` (16^3, 64).
"""

from __future__ import annotations

from collections.abc import Iterable

from .aot import CompiledKernel, compile_kernels
from .config import ARCHITECTURES
from .specs import AttentionSpec, PatchEmbed3dSpec, Spec, TissueCountsSpec

PRESETS: tuple[Spec, ...] = (
    PatchEmbed3dSpec((96, 96, 96), (8, 8, 8), 192, rows=256),
    PatchEmbed3dSpec((128, 128, 128), (16, 16, 16), 768),
    TissueCountsSpec((96, 96, 96), (8, 8, 8)),
    TissueCountsSpec((128, 128, 128), (16, 16, 16)),
    AttentionSpec(6, 32),
    AttentionSpec(12, 64),
    AttentionSpec(8, 96),
)


def table(kernels: Iterable[CompiledKernel]) -> str:
    """Return registers, spilled bytes and shared memory: one row a kernel, one column an architecture."""
    rows: dict[str, dict[int, str]] = {}
    for kernel in kernels:
        spilled = kernel.resources.spill_store_bytes + kernel.resources.spill_load_bytes
        text = f"{kernel.resources.registers} / {spilled} / {kernel.shared_memory / 1024:.0f}"
        rows.setdefault(kernel.specialisation.name, {})[kernel.architecture] = text
    header = ["kernel", *(f"sm_{architecture}" for architecture in ARCHITECTURES)]
    lines = [header, ["---"] * len(header)]
    lines += [[name, *(columns.get(a, "") for a in ARCHITECTURES)] for name, columns in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print("registers a thread / bytes spilled / KiB of shared memory a block\n")
    print(table(compile_kernels(PRESETS)))
