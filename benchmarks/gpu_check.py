"""Evidence from a machine with a CUDA GPU: kernel numerics, and speed beside every baseline, in under eight minutes.

    python benchmarks/gpu_check.py [--minutes 7.5] [--quick] [--out benchmarks/results]

Needs PyTorch and Triton; what else is absent is listed as not run. Writes ``gpu-<card>.json`` and ``gpu-<card>.md``.
Exit status: 0; 1 where a kernel's result is outside its bounds (the files are written all the same); 2 without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # the package need not be installed on such a machine


def main(arguments: list[str] | None = None) -> int:
    """Run the check and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=7.5, help="stop measuring after this long (default: 7.5)")
    parser.add_argument("--quick", action="store_true", help="fewer cases: head dim 64, fp16, the main grids")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of the results")
    options = parser.parse_args(arguments)
    missing = why_not_here()
    if missing:
        print(f"gpu-check: {missing}", file=sys.stderr)
        return 2
    return check(options, shlex.join(["python", "benchmarks/gpu_check.py", *(arguments or sys.argv[1:])]))


def why_not_here() -> str:
    """Return in one line why this machine cannot run the check; empty where it can."""
    try:
        import torch
    except ModuleNotFoundError:
        return "PyTorch is not installed; install torch and triton on a machine with a CUDA GPU"
    if not torch.cuda.is_available():
        return "no CUDA GPU that PyTorch can use (torch.cuda.is_available() is False); run it on a machine with one"
    try:
        importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "Triton is not installed; pip install triton"
    return ""


def check(options: argparse.Namespace, command: str) -> int:
    """Measure, judge and write."""
    from benchmarks.gpu import attention, encoder, engines, numerics, patch_embed3d, report, targets, tissue_counts
    from benchmarks.gpu.measure import Deadline, measure_ceilings

    begin = time.monotonic()
    deadline = Deadline(options.minutes * 60)
    full = not options.quick
    say("ceilings: a large GEMM and a large copy")
    ceilings = measure_ceilings(deadline)
    say("numerics: the kernels against fp64")
    checks = numerics.run()
    say("patch embedding")
    patch_rows = patch_embed3d.run(ceilings, deadline, full)
    say("tissue counts")
    tissue_rows = tissue_counts.run(ceilings, deadline)
    say("attention")
    attention_rows = attention.run(ceilings, deadline, full)
    say("encoder")
    encoder_rows, agreements = encoder.run(ceilings, deadline, full)
    say("engines and runtime")
    other = engines.run(deadline, ceilings)
    result = report.Report(
        machine=describe_machine(),
        command=command,
        seconds=time.monotonic() - begin,
        ceilings=ceilings,
        numerics=checks,
        sections={
            "patch embedding": patch_rows,
            "tissue counts": tissue_rows,
            "attention": attention_rows,
            "encoder": encoder_rows,
            **other,
        },
        agreements=agreements,
        targets=targets.judge(attention_rows, patch_rows, encoder_rows, encoder.floors_ms(ceilings)),
    )
    for path in report.write(result, options.out):
        print(path)
    return 0 if all(item.passed for item in checks) else 1


def describe_machine() -> dict[str, Any]:
    """Return the card and what the numbers depend on."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    versions = {
        "PyTorch": torch.__version__,
        "CUDA": torch.version.cuda,
        "Triton": importlib.metadata.version("triton"),
    }
    from decipher_rt.kernels.config import architecture_of, tuning

    return {
        "card": properties.name,
        "architecture": f"sm_{properties.major}{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "python": platform.python_version(),
        **versions,
        "kernel_tuning": tuning(architecture_of(torch.device("cuda", 0))).source,
    }


def say(stage: str) -> None:
    """Tell whoever waits which part is running."""
    print(f"[{time.strftime('%H:%M:%S')}] {stage}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
