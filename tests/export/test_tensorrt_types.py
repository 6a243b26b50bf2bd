"""Calls of TensorRT against the type stubs of its publisher: what the library would refuse is found without it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

MYPY = """
[mypy]
python_version = 3.11
strict = true
mypy_path = {stubs}
follow_imports = silent
[mypy-tensorrt.plugin,onnx.*,onnxruntime.*,nvidia.*,tensorrt_rtx_bindings.*,triton.*,openvino.*,yaml.*,sklearn.*]
ignore_missing_imports = true
follow_imports = skip
[mypy-tensorrt,tensorrt_bindings.*]
ignore_errors = true
"""
WRONG = """
import tensorrt as trt
def launch(context: trt.IExecutionContext) -> bool:
    return context.execute_async_v3("stream")
"""


@pytest.mark.slow
def test_calls_fit_the_stubs_of_tensorrt(tmp_path: Path) -> None:
    """mypy with tensorrt-stubs; a call that is wrong on purpose shows that they are seen."""
    spec = importlib.util.find_spec("tensorrt_stubs")
    if spec is None or spec.origin is None:
        pytest.skip("tensorrt-stubs is not installed")
    site = Path(spec.origin).parents[1]
    for name in ("tensorrt/__init__.pyi", "tensorrt_bindings/__init__.pyi", "tensorrt_bindings/tensorrt.pyi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = (site / name).read_text(encoding="utf-8")
        # Two things in the stubs are no Python: a parameter called "in", and one without a default after one with.
        text = re.sub(r"\bin: ", "in_: ", text).replace("channel_axis: int) ->", "channel_axis: int = ...) ->")
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(MYPY.format(stubs=tmp_path))
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "mypy", "--config-file", tmp_path / "mypy.ini", "--cache-dir", tmp_path / "cache"]
    modules = ["-m", "decipher_rt.engines.tensorrt", "-m", "decipher_rt.export.tensorrt.builder"]
    good = subprocess.run([*command, *modules], capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout
    bad = subprocess.run([*command, tmp_path / "wrong.py"], capture_output=True, text=True, check=False)
    assert '"execute_async_v3" of "IExecutionContext" has incompatible type "str"; expected "int"' in bad.stdout
