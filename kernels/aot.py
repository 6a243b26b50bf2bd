"""Compile the kernels for machines that are not here: cubin, PTX and launch data, without a GPU.

Triton's wheel carries ptxas. Each compilation runs in a worker process of its own making, so that neither the
interpreter mode of a test session nor a Triton environment variable of the user reaches the result. Line information is
off (it would carry paths of this machine), and FP fusion is pinned on: its default changes between Triton versions.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import ARCHITECTURES
from .ptx import Entry, Resources, read_entry, read_resources
from .specs import POINTER_ALIGNMENT, Spec, Specialisation, specialise

STATIC_SHARED_MEMORY = 48 * 1024
"""Bytes a block may use on every architecture without asking (CUDA C++ Programming Guide, Technical Specifications)."""
PTX_VERSION = {75: 80, 80: 80, 86: 80, 87: 80, 89: 80, 90: 80, 100: 86, 120: 87, 121: 88}
"""PTX of each architecture, times ten: that of CUDA 12.0, or the lowest that knows the architecture (LLVM's NVPTX.td).
TensorRT's plugins are given PTX, and no driver compiles any that is newer than itself."""
HIDDEN_PARAMETERS = 2
"""Triton 3.9 appends two pointers, global and profile scratch. Both sizes are 0 here, so null pointers are passed."""
CACHE_FORMAT = 1


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel for one architecture.

    Attributes
    ----------
    specialisation : what was compiled: constants, scalars, grid
    architecture : compute capability * 10
    cubin : machine code, for this architecture only
    ptx : the same as text, for TensorRT's ahead-of-time plugins
    entry : entry point and its parameters, the two hidden ones at the end
    threads : of a block
    shared_memory : dynamic, bytes a block
    resources : from ptxas
    global_scratch, profile_scratch : bytes; 0, or the hidden pointers would have to be served
    triton : version that compiled
    ptxas : release of the assembler, as CUDA counts
    """

    specialisation: Specialisation
    architecture: int
    cubin: bytes
    ptx: str
    entry: Entry
    threads: int
    shared_memory: int
    resources: Resources
    global_scratch: int
    profile_scratch: int
    triton: str
    ptxas: str

    @property
    def asks_for_shared_memory(self) -> bool:
        """Whether the launcher must raise the block's limit of dynamic shared memory first."""
        return self.shared_memory > STATIC_SHARED_MEMORY


def compile_kernels(
    specs: Iterable[Spec],
    architectures: Sequence[int] = ARCHITECTURES,
    *,
    workers: int | None = None,
    cache: Path | None = None,
) -> list[CompiledKernel]:
    """Compile every spec for every architecture, in parallel, through the cache on disk.

    Parameters
    ----------
    specs : PatchEmbed3dSpec, AttentionSpec or TissueCountsSpec
    architectures : compute capability * 10
    workers : processes; one for each CPU that this process may use by default
    cache : folder; ``~/.cache/decipher-rt/kernels`` by default (``DECIPHER_RT_CACHE``, ``XDG_CACHE_HOME`` are heeded);
        where that cannot be written nothing is kept

    Returns
    -------
    list of CompiledKernel
        Ordered by spec, then architecture.

    Raises
    ------
    ValueError
        A spec that no kernel serves, an unknown architecture, or a compilation that failed; names both.
    """
    unknown = sorted(set(architectures) - set(ARCHITECTURES))
    if unknown:
        raise ValueError(f"kernels: cannot compile for {unknown}; known: {', '.join(map(str, ARCHITECTURES))}")
    jobs = [(specialise(spec, architecture), architecture) for spec in specs for architecture in architectures]
    keys = [_key(*job) for job in jobs]
    with tempfile.TemporaryDirectory() as passing:
        cache = cache or cache_folder() or Path(passing)
        # What a folder that cannot be written to holds is used all the same: it may be an image's.
        kept = cache if _can_keep(cache) else Path(passing)
        folders = [cache / key if (cache / key).is_dir() else kept / key for key in keys]
        return _compile_missing(jobs, folders, workers)


def _compile_missing(
    jobs: list[tuple[Specialisation, int]], folders: list[Path], workers: int | None
) -> list[CompiledKernel]:
    missing = [(job, folder) for job, folder in zip(jobs, folders, strict=True) if not folder.is_dir()]
    if missing:
        processes = min(workers or len(os.sched_getaffinity(0)), len(missing))
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(processes, context, initializer=_prepare_worker) as pool:
            # Submitted one by one: the slow architectures do not pile up behind one worker.
            futures = {pool.submit(_compile_into, job, folder): job for job, folder in missing}
            for future in concurrent.futures.as_completed(futures):
                if (error := future.exception()) is not None:
                    pool.shutdown(cancel_futures=True)
                    specialisation, architecture = futures[future]
                    raise ValueError(f"{specialisation.name} for sm_{architecture}: {error}") from error
    return [_load(job, folder) for job, folder in zip(jobs, folders, strict=True)]


def cache_folder() -> Path | None:
    """Return the folder of compiled kernels; None where there is no home."""
    if own := os.environ.get("DECIPHER_RT_CACHE"):
        return Path(own) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME") and f"{os.environ['HOME']}/.cache")
    return Path(base) / "decipher-rt" / "kernels" if base else None


def _can_keep(folder: Path) -> bool:
    """Return whether kernels can be left in a folder, which is made."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK | os.X_OK)


@functools.cache
def _source_hash(kernel: str) -> str:
    sources = [Path(__file__).parent / f"{name}.py" for name in (kernel, "aot")]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


def _key(specialisation: Specialisation, architecture: int) -> str:
    description = {
        "format": CACHE_FORMAT,
        "source": _source_hash(specialisation.kernel),
        "triton": importlib.metadata.version("triton"),
        "specialisation": dataclasses.asdict(specialisation),
        "architecture": architecture,
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:32]


def _prepare_worker() -> None:
    """Give the worker a clean Triton environment, before Triton is imported in it."""
    for name in list(os.environ):
        if name.startswith(("TRITON_", "PTXAS_", "NVPTX_", "MLIR_", "LLVM_", "DISABLE_")):
            del os.environ[name]
    os.environ.update(
        TRITON_DEFAULT_FP_FUSION="1",
        TRITON_DISABLE_LINE_INFO="1",
        TRITON_DUMP_PTXAS_LOG="1",
        TRITON_ALWAYS_COMPILE="1",
    )
    # For Hopper and later Triton takes an assembler of CUDA 13, whose cubins need such a driver. Its other one, of CUDA
    # 12, knows these cards too.
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        ptxas = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "ptxas"
        os.environ["TRITON_PTXAS_BLACKWELL_PATH"] = str(ptxas)


def _compile_into(job: tuple[Specialisation, int], folder: Path) -> None:
    """Compile one kernel (in a worker) and leave it in the cache."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    specialisation, architecture = job
    kernel = _kernel_function(specialisation.kernel)
    names = list(specialisation.signature)
    if names != kernel.arg_names:
        raise ValueError(f"signature {names} is not the kernel's {kernel.arg_names}")
    pointers = {name for name, kind in specialisation.signature.items() if kind.startswith("*")}
    aligned = pointers | set(specialisation.multiples_of_16)
    attributes = {(names.index(name),): [["tt.divisibility", POINTER_ALIGNMENT]] for name in aligned}
    source = ASTSource(kernel, specialisation.signature, specialisation.constants, attributes)
    options = {
        "num_warps": specialisation.num_warps,
        "num_stages": specialisation.num_stages,
        "enable_fp_fusion": True,
        "ptx_version": PTX_VERSION[architecture],
    }
    log = io.StringIO()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TRITON_CACHE_DIR"] = scratch
        with contextlib.redirect_stdout(log):
            compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    metadata = compiled.metadata
    document = {
        "threads": metadata.num_warps * 32,
        "shared_memory": metadata.shared,
        "resources": dataclasses.asdict(read_resources(log.getvalue())),
        "global_scratch": metadata.global_scratch_size,
        "profile_scratch": metadata.profile_scratch_size,
        "triton": metadata.triton_version,
        "ptxas": get_ptxas(architecture).version,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=folder.name, dir=folder.parent))
    (beside / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    (beside / "kernel.ptx").write_text(compiled.asm["ptx"])
    (beside / "kernel.json").write_text(json.dumps(document))
    try:
        beside.rename(folder)
    except OSError:  # another process was first with the same kernel
        shutil.rmtree(beside)
        if not folder.is_dir():
            raise


def _kernel_function(kernel: str) -> Any:
    if kernel == "patch_embed3d":
        from .patch_embed3d import patch_embed3d_kernel

        return patch_embed3d_kernel
    if kernel == "tissue_counts":
        from .tissue_counts import tissue_counts_kernel

        return tissue_counts_kernel
    from .attention import attention_kernel

    return attention_kernel


def _load(job: tuple[Specialisation, int], folder: Path) -> CompiledKernel:
    document = json.loads((folder / "kernel.json").read_text())
    ptx = (folder / "kernel.ptx").read_text()
    resources = Resources(**document.pop("resources"))
    cubin = (folder / "kernel.cubin").read_bytes()
    return CompiledKernel(*job, cubin=cubin, ptx=ptx, entry=read_entry(ptx), resources=resources, **document)
