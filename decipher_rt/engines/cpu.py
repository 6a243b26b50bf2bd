"""What the CPU can do, as Linux says it."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpuinfo(path: Path = CPUINFO) -> dict[str, str]:
    """Return the first processor of /proc/cpuinfo by key; nothing where it cannot be read."""
    try:
        first = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def cpu_features(path: Path = CPUINFO) -> frozenset[str]:
    """Return the features of the first processor: ``flags`` on x86-64, ``Features`` on aarch64."""
    cpu = cpuinfo(path)
    return frozenset((cpu.get("flags") or cpu.get("Features") or "").split())
