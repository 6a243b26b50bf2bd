"""The PyTorch operators: schema, shapes of fake tensors, when they are used, and that graphs hold plain operators."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from decipher_rt.kernels import ops
from decipher_rt.kernels.reference import patch_embed3d_reference

HALF_ROUNDING = 2.0**-10
"""Relative: one rounding to fp16 (2^-11) and fp32 sums in another order."""


def patch_arguments(weight: torch.dtype = torch.float16) -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(0)
    return (
        torch.randint(0, 1000, (2, 4, 6, 4), generator=random, dtype=torch.int16),
        torch.tensor([[0.0, 900.0], [100.0, 800.0]]),
        torch.randint(8, (2, 3), generator=random),
        torch.randn(5, 12, generator=random).to(weight),
        torch.randn(5, generator=random),
        torch.randn(8, 5, generator=random),
        [2, 3, 2],
    )


def qkv(dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor, Tensor]:
    packed = torch.randn(2, 9, 3, 2, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


@pytest.fixture
def served_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CUDA device: the operators are in use (here, with their CPU implementation)."""
    monkeypatch.setattr(ops, "_SERVED_DEVICES", ("cpu",))
    monkeypatch.delenv(ops.SWITCH, raising=False)


# Training is torch's own: the operators have no gradient, so opcheck's tests of one are left out.
OPCHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.decipher_rt.patch_embed3d.default, patch_arguments(), test_utils=OPCHECKS)
    torch.library.opcheck(torch.ops.decipher_rt.attention.default, qkv(), test_utils=OPCHECKS)


def test_values_on_the_cpu() -> None:
    arguments = patch_arguments()
    out = ops.patch_embed3d(*arguments)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), patch_embed3d_reference(*arguments), rtol=HALF_ROUNDING, atol=1e-5)
    q, k, v = qkv()
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(ops.attention(q, k, v).double(), expected, rtol=HALF_ROUNDING, atol=1e-5)


def test_fake_tensors_have_the_kernels_shape_dtype_and_layout() -> None:
    with FakeTensorMode():
        out = ops.patch_embed3d(*patch_arguments(torch.bfloat16))
        assert (out.shape, out.dtype) == ((2, 3, 5), torch.bfloat16)
        q, k, v = qkv()
        out = ops.attention(q, k, v)
        assert (out.shape, out.dtype) == (q.shape, torch.float16)
        assert out.transpose(1, 2).is_contiguous()


def test_cuda_tensors_reach_triton(interpreter: None) -> None:
    """What the CUDA registration runs is the kernel: called here with CPU tensors, interpreted."""
    for name in ("patch_embed3d", "attention"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"decipher_rt::{name}", "CUDA")
    arguments = patch_arguments()
    out = ops._patch_embed3d_cuda(*arguments)
    torch.testing.assert_close(out.float(), ops.patch_embed3d(*arguments).float(), rtol=0, atol=0.02)
    q, k, v = qkv()
    torch.testing.assert_close(ops._attention_cuda(q, k, v), ops.attention(q, k, v), rtol=0, atol=4e-3)


def test_never_active_on_the_cpu() -> None:
    assert not ops.active(*qkv())


def test_active_only_in_half_precision_without_gradients(served_on_the_cpu: None) -> None:
    q, k, v = qkv()
    assert ops.active(q, k, v)
    assert not ops.active(q.float(), k, v)
    k.requires_grad_()
    assert not ops.active(q, k, v)
    with torch.no_grad():
        assert ops.active(q, k, v)
    with torch.inference_mode():
        assert ops.active(q, k, v)


@pytest.mark.parametrize(
    ("capability", "half", "brain"),
    [
        ((7, 0), False, False),
        ((7, 2), False, False),
        ((7, 5), True, False),
        ((8, 0), True, True),
        ((12, 1), True, True),
    ],
)
def test_only_on_cards_that_the_kernels_serve(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], half: bool, brain: bool
) -> None:
    """The tensors are fake ones on a CUDA device, which torch allows without a card."""
    monkeypatch.delenv(ops.SWITCH, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    ops._served_by.cache_clear()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            for dtype, expected in ((torch.float16, half), (torch.bfloat16, brain), (torch.float32, False)):
                assert ops.active(torch.empty(1, dtype=dtype, device="cuda")) is expected
    finally:
        ops._served_by.cache_clear()


def test_the_switch(served_on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = qkv()
    with ops.disabled():
        assert not ops.active(q, k, v)
        with ops.disabled():
            pass
        assert not ops.active(q, k, v)
    assert ops.active(q, k, v)
    monkeypatch.setenv(ops.SWITCH, "0")
    assert not ops.active(q, k, v)


class Attention(nn.Module):
    """As a model uses the operator."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if ops.active(q, k, v):
            return ops.attention(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)


def calls(graph: torch.fx.Graph) -> str:
    return " ".join(str(node.target) for node in graph.nodes if node.op == "call_function")


def test_graphs_hold_plain_operators(served_on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(ops, "attention", lambda *qkv: used.append(1) or F.scaled_dot_product_attention(*qkv))
    inputs = qkv()
    Attention()(*inputs)
    assert used == [1], "eager code must use the operator, or this test shows nothing"
    exported = torch.export.export(Attention(), inputs)
    assert "scaled_dot_product_attention" in calls(exported.graph)
    assert "decipher_rt" not in calls(exported.graph)
    graphs: list[str] = []

    def keep(module: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(calls(module.graph))
        return module.forward

    torch.compile(Attention(), backend=keep)(*inputs)
    assert graphs
    assert all("scaled_dot_product_attention" in graph and "decipher_rt" not in graph for graph in graphs)
    assert used == [1]


def test_importing_the_operators_imports_no_triton() -> None:
    """So that a machine without Triton can train, and a CPU process does not pay for it."""
    code = "import decipher_rt.kernels.ops, sys; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
