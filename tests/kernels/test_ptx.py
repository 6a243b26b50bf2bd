"""Reading PTX and the log of ptxas."""

from __future__ import annotations

import pytest

from decipher_rt.kernels.ptx import Entry, Resources, read_entry, read_resources

PTX = """
.version 8.8
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry scale(
	.param .u64 .ptr .global .align 1 scale_param_0,
	.param .u32 scale_param_1,
	.param .f32 scale_param_2,
	.param .u64 .ptr .global .align 1 scale_param_3
)
.reqntid 128
{ ret; }
"""
LOG = """ptxas info    : 11 bytes gmem
ptxas info    : Compiling entry function 'scale' for 'sm_90a'
ptxas info    : Function properties for scale
    104 bytes stack frame, 96 bytes spill stores, 88 bytes spill loads
ptxas info    : Used 232 registers, used 1 barriers, 104 bytes cumulative stack size
"""


def test_entry() -> None:
    assert read_entry(PTX) == Entry("scale", "sm_90a", ("ptr", "u32", "f32", "ptr"))


def test_resources() -> None:
    assert read_resources(LOG) == Resources(registers=232, stack_bytes=104, spill_store_bytes=96, spill_load_bytes=88)


def test_anything_but_one_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="0 visible entries"):
        read_entry(PTX.replace(".visible", ".weak"))
    with pytest.raises(ValueError, match="2 visible entries"):
        read_entry(PTX + PTX)
    with pytest.raises(ValueError, match="reported on 0 functions"):
        read_resources("ptxas fatal: no")
    with pytest.raises(ValueError, match="reported on 2 functions"):
        read_resources(LOG + LOG)
