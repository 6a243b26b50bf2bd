"""Archives of arrays (``.npz``), which are read without pickle."""

from __future__ import annotations

import struct
import zipfile
import zlib

# What reading an archive can raise where bytes of it are other than they were written.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
