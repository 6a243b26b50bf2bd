"""The ViT-Base encoder of the recipe at batch 1: eager, compiled, with the kernels, and each in a CUDA graph.

Weights are random: times do not depend on them, and the outputs are compared with the same weights in fp32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Ceilings, Deadline, Row, Timing, attempt, rate, reason, summarise
from decipher_rt.kernels import ops

TOKENS = (512, 128, 4096, 256, 1024, 2048)
GRID = 256
"""Voxels along each axis: 4096 patches of 16^3, so that one encoder serves every K."""
EAGER, SDPA, COMPILED, KERNELS = "eager", "eager, SDPA", "blocks compiled", "eager, kernels"
GRAPH = " in a CUDA graph"
ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How near a method's embedding and tokens come to fp32 eager."""

    case: str
    method: str
    embedding_cosine: float
    patch_largest_error: float


def run(ceilings: Ceilings, deadline: Deadline, full: bool = True) -> tuple[list[Row], list[Agreement]]:
    """Measure the encoder; also returns how its outputs compare with fp32."""
    try:
        import decipher_rt.train.model.vit  # noqa: F401
    except ImportError as error:
        return [Row("ViT-Base", "every", not_run=reason(error))], []
    agreements: list[Agreement] = []
    model = build()
    inputs = {k: make_inputs(k) for k in TOKENS}
    with torch.inference_mode():
        reference = {k: model(*inputs[k]) for k in TOKENS}
    torch.backends.cuda.matmul.allow_tf32 = True
    rows = [attempt(case_name(k, "fp32 (TF32)"), EAGER, bind(model, inputs[k]), deadline) for k in TOKENS]
    dtypes = [d for d in (torch.float16, torch.bfloat16) if str(d).removeprefix("torch.") in ceilings.gemm_tflops]
    for dtype in dtypes if full else dtypes[:1]:
        precision = str(dtype).removeprefix("torch.")
        half = build().to(dtype)
        half.load_state_dict(model.state_dict())
        for k in TOKENS:
            case = case_name(k, precision)
            timed: list[Row] = []
            for method, use in variants(half).items():
                with use():
                    timed.append(attempt(case, method, bind(half, inputs[k]), deadline))
                    if timed[-1].timing is not None:
                        agreements.append(agreement(case, method, half, inputs[k], reference[k]))
                        if method in (SDPA, KERNELS):
                            timed.append(in_a_graph(case, method + GRAPH, half, inputs[k], deadline))
            weights = sum(p.numel() * p.element_size() for p in half.parameters())
            rows += [rate(row, ceilings, flops(half.config, k), weights, precision) for row in timed]
    return rows, agreements


def base_config() -> Any:
    """Return ViT-Base for a grid of ``GRID`` voxels."""
    from decipher_rt.train.model.vit import ViTConfig

    patches = (GRID // 16) ** 3
    grid = {"grid_shape": (GRID,) * 3, "spacing_mm": (1.0,) * 3, "token_buckets": (patches,)}
    return dataclasses.replace(ViTConfig.PRESETS["base"], **grid)


def build() -> Any:
    """Return the encoder on the device, seeded."""
    from decipher_rt.train.model.vit import ViT

    torch.manual_seed(0)
    return ViT(base_config()).to(measure.DEVICE).eval()


def make_inputs(k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return volume, window and ``k`` patch indices."""
    torch.manual_seed(k)
    with torch.device(measure.DEVICE):
        volume = torch.rand(1, 1, GRID, GRID, GRID) * 1500
        tokens = torch.randperm((GRID // 16) ** 3)[:k].sort().values.unsqueeze(0)
        return volume, torch.tensor([[20.0, 1200.0]]), tokens


def case_name(k: int, precision: str) -> str:
    """Return how a case is called in the tables."""
    return f"ViT-Base B=1 K={k} {precision}"


def from_grid(precision: str, k: int) -> str:
    """Return how a case of an engine is called: it starts where the runtime's does."""
    return f"ViT-Base {precision} K={k}, from the grid on the device to the host"


def rated(row: Row, ceilings: Ceilings, config: Any, k: int, precision: str) -> Row:
    """Fill in an engine's rates; the share of the GEMM ceiling only where that was measured in this precision.

    The bytes are those of the weights, which each run must read.
    """
    dtype = {"fp16": "float16", "bf16": "bfloat16"}.get(precision, "")
    measured = dtype in ceilings.gemm_tflops
    moved = ITEM_BYTES[precision] * weights(config)
    rates = rate(row, ceilings, flops(config, k), moved, dtype if measured else next(iter(ceilings.gemm_tflops)))
    return rates if measured else dataclasses.replace(rates, of_gemm=None)


def weights(config: Any) -> int:
    """Return how many weights of matrices a run reads: patch projection, and four products of each layer."""
    C, voxels = config.width, config.patch_shape[0] * config.patch_shape[1] * config.patch_shape[2]
    return int(voxels * C + config.depth * C * C * (4 + 2 * config.mlp_ratio))


def wall(run: Callable[[], Any], rounds: int = 9) -> Timing:
    """Time on the wall clock: these calls return when the result is in the host's memory."""
    run()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e3)
    return summarise(times)


def bind(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Return the model on its inputs, without gradients."""

    def call() -> Any:
        with torch.inference_mode():
            return model(*inputs)

    return call


def flops(config: Any, k: int) -> float:
    """Count multiply-adds twice: patch projection; per layer QKV, output, MLP and the two products of attention."""
    C, T = config.width, k + 1 + config.registers
    voxels = config.patch_shape[0] * config.patch_shape[1] * config.patch_shape[2]
    layer = 2 * T * C * C * (4 + 2 * config.mlp_ratio) + 4 * T * T * C
    return float(2 * k * voxels * C + config.depth * layer)


def floor_ms(config: Any, k: int, weight_bytes: float, ceilings: Ceilings, precision: str) -> float:
    """Return the least time that the ceilings allow: the larger of its arithmetic and of reading its weights."""
    arithmetic = flops(config, k) / ceilings.gemm_tflops[precision] / 1e9
    return max(arithmetic, weight_bytes / ceilings.copy_gb_s / 1e6)


def variants(model: Any) -> dict[str, Callable[[], contextlib.AbstractContextManager[None]]]:
    """Return the ways of running the model, by name; each is in force within its context."""
    return {
        EAGER: ops.disabled,
        SDPA: lambda: attention_of(model, F.scaled_dot_product_attention),
        COMPILED: lambda: compiled_blocks(model),
        KERNELS: contextlib.nullcontext,  # where they are active the model takes them by itself
    }


@contextlib.contextmanager
def attention_of(model: Any, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Replace what every attention layer computes between its two projections; no kernel is used."""

    def forward(self: Any, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(B, T, C))

    layers = [block.attention for block in model.blocks]
    for layer in layers:
        layer.forward = types.MethodType(forward, layer)
    try:
        with ops.disabled():
            yield
    finally:
        for layer in layers:
            del layer.forward


@contextlib.contextmanager
def compiled_blocks(model: Any) -> Iterator[None]:
    """Compile the transformer layers; the twelve share one compilation for each K."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return type(self).forward(self, x)

    fast = torch.compile(forward, dynamic=False)
    for block in model.blocks:
        block.forward = types.MethodType(fast, block)
    try:
        with attention_of(model, F.scaled_dot_product_attention):
            yield
    finally:
        for block in model.blocks:
            del block.forward


def agreement(
    case: str, method: str, model: nn.Module, inputs: tuple[Tensor, ...], reference: tuple[Tensor, Tensor]
) -> Agreement:
    """Compare one run with fp32."""
    with torch.inference_mode():
        patch, embedding = model(*inputs)
    cosine = F.cosine_similarity(embedding.double(), reference[1].double(), dim=-1).min()
    return Agreement(case, method, float(cosine), float((patch - reference[0]).abs().max()))


def in_a_graph(case: str, method: str, model: nn.Module, inputs: tuple[Tensor, ...], deadline: Deadline) -> Row:
    """Measure replays of a CUDA graph: the time without launching from Python."""
    if deadline.left() < 1:
        return Row(case, method, not_run="out of time")
    call = bind(model, inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        return Row(case, method, not_run=reason(error))
    return attempt(case, method, graph.replay, deadline)


def floors_ms(ceilings: Ceilings) -> dict[str, float]:
    """Return the floor of every half-precision case of this run."""
    try:
        from decipher_rt.train.model.vit import ViT
    except ImportError:
        return {}
    with torch.device("meta"):
        model = ViT(base_config())
    parameters = sum(p.numel() for p in model.parameters())
    return {
        case_name(k, precision): floor_ms(model.config, k, 2.0 * parameters, ceilings, precision)
        for precision in ceilings.gemm_tflops
        for k in TOKENS
    }
