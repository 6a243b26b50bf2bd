"""NVTX ranges for Nsight Systems, where there are both a GPU and the nvtx package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from decipher_rt.clock import STAGES

DOMAIN = "decipher-rt"


def nvtx_ranges(on_gpu: bool) -> Callable[[str], None] | None:
    """Open a range for the first stage and return what a StageClock calls at the end of each; None where of no use."""
    if not on_gpu or importlib.util.find_spec("nvtx") is None:
        return None
    import nvtx  # type: ignore[import-untyped, unused-ignore]

    nvtx.push_range(STAGES[0], domain=DOMAIN)

    def finish(stage: str) -> None:
        nvtx.pop_range(domain=DOMAIN)
        after = STAGES.index(stage) + 1
        if after < len(STAGES):
            nvtx.push_range(STAGES[after], domain=DOMAIN)

    return finish
