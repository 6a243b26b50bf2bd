"""The attention kernel as an ahead-of-time, quick-deployable plugin (``tensorrt.plugin``, TensorRT 10.9 and later).

TensorRT embeds the PTX in the engine and launches it with the inputs' addresses, int32 scalars and the outputs'
addresses, in this order, and nothing else. Triton appends two pointers to scratch memory that these kernels do not
use; they are taken out of the PTX here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from decipher_rt.errors import EngineError
from decipher_rt.kernels.aot import HIDDEN_PARAMETERS, CompiledKernel, compile_kernels
from decipher_rt.kernels.specs import AttentionSpec, Scalar

from .graph import PLUGIN_NAME, PLUGIN_NAMESPACE, HalfType

PLUGIN_ID = f"{PLUGIN_NAMESPACE}::{PLUGIN_NAME}"
_ENTRY = re.compile(r"(\.visible\s+\.entry\s+\w+\s*\()(.*?)(\))", re.DOTALL)


def plugin_kernel(
    heads: int, head_dim: int, tokens: int, architecture: int, dtype: HalfType = "float16"
) -> CompiledKernel:
    """Compile the attention kernel as the plugin launches it: one bucket's tiles, and as many stages as fit.

    ``dtype`` is the graph's (``half_type``): TensorRT hands over what the graph computes in, and converts nothing.

    Raises
    ------
    EngineError
        If a plugin cannot launch the kernel: it would need scratch memory, or more shared memory than a launch gets
        without asking.
    """
    spec = AttentionSpec(heads, head_dim, dtype, tokens)
    (kernel,) = compile_kernels([spec], [architecture])
    # More than it gets without asking a plugin does not get, and fewer stages of the pipeline take less.
    while kernel.asks_for_shared_memory and kernel.specialisation.num_stages > 1:
        fewer = replace(spec, stages=kernel.specialisation.num_stages - 1)
        (kernel,) = compile_kernels([fewer], [architecture])
    if kernel.global_scratch or kernel.profile_scratch:
        raise EngineError(
            f"attention for sm_{architecture} needs scratch memory, which a TensorRT plugin does not give"
        )
    if kernel.asks_for_shared_memory:
        raise EngineError(
            f"attention for sm_{architecture} uses {kernel.shared_memory} bytes of shared memory, more than a TensorRT "
            "plugin gets without asking"
        )
    return kernel


def without_hidden_parameters(ptx: str) -> str:
    """Return the PTX without the two trailing scratch pointers of its entry.

    Raises
    ------
    EngineError
        If the entry has no such parameters, or its code reads one of them.
    """
    found = _ENTRY.search(ptx)
    parameters = [part.strip() for part in found[2].split(",")] if found else []
    hidden = parameters[-HIDDEN_PARAMETERS:]
    if found is None or len(parameters) <= HIDDEN_PARAMETERS or not all(".ptr" in text for text in hidden):
        raise EngineError("the PTX does not end its parameters with two scratch pointers: another Triton made it")
    body = ptx[found.end() :]
    for text in hidden:
        name = text.split()[-1]
        if re.search(rf"\b{re.escape(name)}\b", body):
            raise EngineError(f"the PTX reads its scratch pointer {name}: it cannot be a TensorRT plugin")
    kept = ",\n\t".join(parameters[:-HIDDEN_PARAMETERS])
    return f"{ptx[: found.start(2)]}\n\t{kept}\n{ptx[found.start(3) :]}"


def symbolic(scalar: Scalar, sizes: Mapping[str, Any], ceil_div: Callable[[Any, int], Any]) -> Any:
    """Return ``times * ceil(size / block)`` on numbers or on TensorRT's symbolic sizes.

    Parameters
    ----------
    scalar : Scalar
    sizes : mapping
        ``batch`` and ``tokens``.
    ceil_div : callable
        ``tensorrt.plugin.cdiv`` for symbolic sizes.
    """
    if scalar.size is None:
        return scalar.times
    size = sizes[scalar.size]
    blocks = size if scalar.block == 1 else ceil_div(size, scalar.block)
    return blocks if scalar.times == 1 else blocks * scalar.times


def use_kernel(trtp: Any, kernel: CompiledKernel) -> None:
    """Let the engines that are built from now on launch a kernel as their attention nodes.

    TensorRT defines a plugin once in a process; what it launches is looked up when an engine is built.

    Parameters
    ----------
    trtp : module
        ``tensorrt.plugin``.
    kernel : CompiledKernel
        From ``plugin_kernel``.

    Raises
    ------
    EngineError
        If this TensorRT has no ahead-of-time plugins, or the kernel's PTX cannot be one.
    ValueError
        If TensorRT refuses the definition.
    """
    global _in_use
    if not hasattr(trtp, "aot_impl"):
        raise EngineError("this TensorRT has no ahead-of-time plugins (tensorrt.plugin.aot_impl, 10.9 and later)")
    ptx = without_hidden_parameters(kernel.ptx).encode()
    _define(trtp)
    _in_use = _InUse(kernel, ptx)


@dataclass(frozen=True)
class _InUse:
    """What the plugin launches: a kernel, and its PTX as TensorRT takes it."""

    kernel: CompiledKernel
    ptx: bytes


_in_use: _InUse | None = None


@functools.cache
def _define(trtp: Any) -> None:
    """Define the plugin in this process.

    It is registered at once: the ONNX parser looks for creators in the registry, where a lazy one is only after a
    network was made with ``tensorrt.plugin.op``.
    """

    # Annotations are objects and not text, because TensorRT reads them; without that of a result it refuses.
    def describe(q: Any, k: Any, v: Any) -> Any:  # noqa: ARG001 - TensorRT takes the names from here
        return q.like()

    def implement(q: Any, k: Any, v: Any, outputs: Any, tactic: Any) -> Any:  # noqa: ARG001
        return _launch(trtp, q)

    Desc = trtp.TensorDesc
    describe.__annotations__ = {"q": Desc, "k": Desc, "v": Desc, "return": Desc}
    implement.__annotations__ = {"return": tuple[bytes, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]}
    # A definition that failed half-way is not begun twice: TensorRT refuses a second one of the same name.
    if not hasattr(getattr(trtp.op, PLUGIN_NAMESPACE, None), PLUGIN_NAME):
        trtp.register(PLUGIN_ID, lazy_register=False)(describe)
    trtp.aot_impl(PLUGIN_ID)(implement)


def _launch(trtp: Any, q: Any) -> tuple[bytes, bytes, Any, Any]:
    """Return name, PTX, launch and int32 arguments of the kernel in use, by the symbolic shape of q (B, N, H, d)."""
    if _in_use is None:
        raise EngineError("no kernel was chosen for the attention plugin")
    kernel = _in_use.kernel
    specialisation = kernel.specialisation
    sizes = {"batch": q.shape_expr[0], "tokens": q.shape_expr[1]}
    launch = trtp.KernelLaunchParams()
    launch.grid_x, launch.grid_y, launch.grid_z = (symbolic(axis, sizes, trtp.cdiv) for axis in specialisation.grid)
    launch.block_x, launch.shared_mem = kernel.threads, kernel.shared_memory
    scalars = list(specialisation.scalars.values())
    extra = trtp.SymIntExprs(len(scalars))
    for index, scalar in enumerate(scalars):
        extra[index] = trtp.SymInt32(symbolic(scalar, sizes, trtp.cdiv))
    return kernel.entry.name.encode(), _in_use.ptx, launch, extra
