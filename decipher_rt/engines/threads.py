"""How many threads an engine gets: more than there are physical cores only slows matrix products down."""

from __future__ import annotations

import math
import os
from pathlib import Path

CPU_FOLDER = Path("/sys/devices/system/cpu")
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "quota period" in microseconds, or "max period"
MOST_THREADS = 1024  # more are a mistake, which the machine would not survive


def usable_cores(cpu_folder: Path = CPU_FOLDER, cgroup_quota: Path = CGROUP_QUOTA) -> int:
    """Count the physical cores that this process may use: its affinity without hyper-threads, within its CPU quota."""
    cpus = os.sched_getaffinity(0)
    siblings = (cpu_folder / f"cpu{cpu}" / "topology" / "thread_siblings_list" for cpu in cpus)
    try:
        cores = len({path.read_text() for path in siblings})
    except OSError:  # some containers hide it
        cores = len(cpus)
    try:
        quota, period = cgroup_quota.read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        pass
    return max(1, cores)
