"""The wrappers' way through Triton's just-in-time compiler, as on a card: everything but the launch.

A driver that only names a target stands in for CUDA. It shows that what the wrappers pass (dtypes, odd and permuted
strides, options) is what the compiler takes, which neither the interpreter nor ahead-of-time compilation does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import json, sys
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class OnlyATarget:
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", int(sys.argv[1]), 32)

driver.set_active(OnlyATarget())
run = JITFunction.run

def compile_only(self, *arguments, grid, warmup, **options):
    kernel = run(self, *arguments, grid=grid, warmup=True, **options)
    compiled.append({"kernel": self.__name__, "fp_fusion": kernel.metadata.enable_fp_fusion, "grid": grid,
                     "global_scratch": kernel.metadata.global_scratch_size, "cubin": len(kernel.asm["cubin"])})

compiled = []
JITFunction.run = compile_only

from decipher_rt.kernels.attention import attention
from decipher_rt.kernels.patch_embed3d import patch_embed3d
from decipher_rt.kernels.tissue_counts import tissue_counts

half, zeros = torch.float16, torch.zeros
volume = zeros(2, 32, 32, 32, dtype=torch.uint16)
rest = (zeros(2, 2), zeros(2, 5, dtype=torch.int32), zeros(40, 4096, dtype=torch.bfloat16), zeros(40), zeros(8, 40, dtype=half))
patch_embed3d(volume, *rest, (16, 16, 16))
patch_embed3d(zeros(2, 32, 32, 32).permute(0, 3, 1, 2), *rest, (16, 16, 16), torch.float32)
q, k, v = zeros(2, 37, 3, 4, 96, dtype=half).permute(2, 0, 3, 1, 4).unbind(0)
attention(q, k, v)
tissue_counts(volume, zeros(2), (16, 16, 16))
tissue_counts(zeros(1, 30, 30, 30).permute(0, 2, 1, 3), zeros(1), (15, 15, 15))
print(json.dumps(compiled))
"""


@pytest.mark.parametrize("architecture", [80, 90])
def test_wrappers_compile_just_in_time(architecture: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "0"}
    command = [sys.executable, "-c", PROGRAM, str(architecture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    compiled: list[dict[str, Any]] = json.loads(done.stdout)
    assert [(c["kernel"], c["grid"]) for c in compiled] == [
        ("patch_embed3d_kernel", [1]),
        ("patch_embed3d_kernel", [1]),
        ("attention_kernel", [1, 4, 2]),
        ("tissue_counts_kernel", [16]),
        ("tissue_counts_kernel", [8]),
    ]
    assert all(c["fp_fusion"] for c in compiled[:3])  # the counts have nothing to fuse
    assert all(c["global_scratch"] == 0 and c["cubin"] > 0 for c in compiled)
