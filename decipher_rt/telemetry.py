"""Keep the engines from reporting to their makers.

The official onnxruntime 1.32 writes a device identifier under ``~/.cache/Microsoft`` and uploads events about sessions
and models, on Linux too; ``import openvino`` writes an identifier under ``~/intel`` and reports the import. Neither may
happen beside a scanner.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

OPENVINO_CONVERTER = "openvino.tools.ovc"


def silence_onnxruntime() -> None:
    """Opt out as onnxruntime's Privacy.md says; call it before onnxruntime is imported in this process."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


@contextmanager
def silence_openvino() -> Iterator[None]:
    """Import openvino in this context: it goes without its model converter, whose import is what reports."""
    absent = object()
    before = sys.modules.get(OPENVINO_CONVERTER, absent)
    sys.modules[OPENVINO_CONVERTER] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is absent:
            del sys.modules[OPENVINO_CONVERTER]
        else:
            sys.modules[OPENVINO_CONVERTER] = before  # type: ignore[assignment]
