"""The driver's functions and structures as ctypes has them, against the ``cuda.h`` that comes with Triton."""

from __future__ import annotations

import ctypes
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from decipher_rt.engines import cuda


def header() -> str:
    spec = find_spec("triton")
    path = Path(spec.origin).parent / "backends" / "nvidia" / "include" / "cuda.h" if spec and spec.origin else None
    if path is None or not path.is_file():
        pytest.skip("Triton's wheel, which brings cuda.h, is not installed")
    return path.read_text(encoding="utf-8", errors="replace")


WIDTHS = {"unsigned int": 4, "int": 4, "size_t": 8, "CUdevice": 4, "CUdeviceptr": 8, "unsigned long long": 8}
ENUMS = ("CUdevice_attribute", "CUfunction_attribute", "CUstreamCaptureMode", "CUresult")


@pytest.mark.parametrize("name", sorted(cuda._SIGNATURES))
def test_signatures_are_those_of_the_header(name: str) -> None:
    text = header()
    # The library exports some functions under other names than the header declares: it renames them by macro.
    renamed = re.search(rf"^\s*#\s*define\s+(\w+)\s+(?:__CUDA_API_PT[DS]S?Z?\()?{name}\b", text, re.MULTILINE)
    plain = renamed[1] if renamed else name
    declared = re.findall(rf"CUresult\s+CUDAAPI\s+{plain}\(([^;]*?)\);", text)
    assert declared, f"{plain} is not in cuda.h"
    assert renamed or not re.search(rf"^\s*#\s*define\s+{name}\b", text, re.MULTILINE), f"{name} is renamed"
    parameters = [part.strip() for part in declared[0].split(",")]
    expected = cuda._SIGNATURES[name]
    assert len(parameters) == len(expected)
    for parameter, kind in zip(parameters, expected, strict=True):
        c_type = re.sub(r"\bconst\b|\w+$", "", parameter).strip()
        size = 8 if "*" in parameter else 4 if c_type in ENUMS else WIDTHS.get(c_type, 8)
        assert ctypes.sizeof(kind) == size, f"{name}: {parameter}"


def test_the_parameters_of_a_kernel_node_are_those_of_the_header() -> None:
    body = re.search(r"typedef struct CUDA_KERNEL_NODE_PARAMS_v2_st \{(.*?)\}", header(), re.DOTALL)
    assert body is not None
    fields = re.findall(r"^\s*([\w ]+?)\s*(\**)(\w+);", body[1], re.MULTILINE)
    assert [name for _, _, name in fields] == [name for name, _ in cuda.KernelNodeParams._fields_]
    for (c_type, stars, name), (_, kind) in zip(fields, cuda.KernelNodeParams._fields_, strict=True):
        assert ctypes.sizeof(kind) == (8 if stars else WIDTHS.get(c_type, 8)), name
    assert ctypes.sizeof(cuda.KernelNodeParams) == 72
