"""No engine reports to its maker, whoever imports it first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

WATCHED = """
import os, sys
from importlib.abc import MetaPathFinder

class Watch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
"""


@pytest.mark.parametrize(
    "first",
    [
        "import decipher_rt; decipher_rt.load()",
        "import decipher_rt.export.quantize",
        "import decipher_rt.export.bundle",
    ],
)
def test_onnxruntime_finds_its_reporting_turned_off(first: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    run = subprocess.run(
        [sys.executable, "-c", WATCHED + first],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert run.stdout.split()[-1] == "1"  # first it may be looked for, and not imported
