"""What this machine is and what it can run, found without loading any engine."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from decipher_rt.engines.cpu import cpu_features, cpuinfo
from decipher_rt.errors import EngineError

# What matters to int8 and fp16 on a CPU; names as Linux gives them on x86-64 and on aarch64.
CPU_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """One CUDA device as the driver names it. ``index`` and ``uuid`` are what ``--device`` takes."""

    index: int
    uuid: str
    name: str
    compute_capability: str
    memory_mib: int


@dataclass(frozen=True)
class Machine:
    """Processor, memory and GPUs. ``cores`` are those that this process may use."""

    system: str
    processor: str
    cores: int
    memory_gib: float
    cpu_features: tuple[str, ...]
    gpus: tuple[Gpu, ...]
    gpu_note: str


def describe_machine() -> Machine:
    """Look at the machine; nothing is started on a GPU."""
    cpu, present = cpuinfo(), cpu_features()
    gpus, note = _cuda_devices()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        processor=cpu.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        cpu_features=tuple(feature for feature in CPU_FEATURES if feature in present),
        gpus=gpus,
        gpu_note=note,
    )


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cuda_devices() -> tuple[tuple[Gpu, ...], str]:
    """Ask the CUDA driver for its devices; the note says which driver it is, or why there are none."""
    from decipher_rt.engines.cuda import devices
    from decipher_rt.engines.driver_release import driver_release

    try:
        cards = devices()
        gpus = tuple(Gpu(c.index, c.uuid, c.name, _dotted(c.architecture), c.memory_mib) for c in cards)
        release = driver_release()
        return gpus, f"CUDA {cards[0].version}" + (f", driver release {release}" if release else "")
    except EngineError as error:
        return (), str(error)


def _dotted(architecture: int) -> str:
    return f"{architecture // 10}.{architecture % 10}"
