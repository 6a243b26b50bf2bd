"""What this machine is and what it can run, found without loading any engine."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from decipher_rt.engines.cpu import cpu_features, cpuinfo

# What matters to int8 and fp16 on a CPU; names as Linux gives them on x86-64 and on aarch64.
CPU_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip

_CUDA_SUCCESS = 0
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True)
class Gpu:
    """One CUDA device as the driver names it."""

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
    """Ask the CUDA driver for its devices; the note says why there are none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return (), "no NVIDIA driver (libcuda.so.1 is not on this machine)"
    if (status := cuda.cuInit(0)) != _CUDA_SUCCESS:
        return (), f"the NVIDIA driver is there and finds no usable device (cuInit gives {status})"

    def number(function: Callable[..., int], *arguments: object) -> int:
        value = ctypes.c_int()
        function(ctypes.byref(value), *arguments)
        return value.value

    driver = number(cuda.cuDriverGetVersion)
    gpus = []
    for index in range(number(cuda.cuDeviceGetCount)):
        device = ctypes.c_int()
        cuda.cuDeviceGet(ctypes.byref(device), index)
        name, memory = ctypes.create_string_buffer(128), ctypes.c_size_t()
        cuda.cuDeviceGetName(name, len(name), device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        major = number(cuda.cuDeviceGetAttribute, _COMPUTE_CAPABILITY_MAJOR, device)
        minor = number(cuda.cuDeviceGetAttribute, _COMPUTE_CAPABILITY_MINOR, device)
        gpus.append(Gpu(name.value.decode(errors="replace"), f"{major}.{minor}", memory.value >> 20))
    return tuple(gpus), f"CUDA driver {driver // 1000}.{driver % 1000 // 10}"
