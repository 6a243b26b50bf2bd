"""The release of NVIDIA's driver, which decides what it compiles.

``cuDriverGetVersion`` only says which CUDA the driver knows.
"""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path

KERNEL_MODULE = Path("/proc/driver/nvidia/version")
LIBRARY = "libnvidia-ml.so.1"
LONGEST = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
_RELEASE = re.compile(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", re.MULTILINE)


@functools.cache
def driver_release() -> str:
    """Return the release, such as ``580.65.06``: the kernel module's, or where that shows none (WSL) what NVML says.

    Empty where neither says it.
    """
    try:
        found = _RELEASE.search(KERNEL_MODULE.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        found = None
    return found[1] if found else _from_nvml()


def _from_nvml() -> str:
    try:
        library = ctypes.CDLL(LIBRARY)
        if library.nvmlInit_v2() != 0:
            return ""
        release = ctypes.create_string_buffer(LONGEST)
        good = library.nvmlSystemGetDriverVersion(release, ctypes.c_uint(LONGEST)) == 0
        library.nvmlShutdown()
    except (OSError, AttributeError):  # no library, or one without these functions
        return ""
    return release.value.decode(errors="replace") if good else ""
