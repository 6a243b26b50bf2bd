"""The kernels run in Triton's interpreter on the CPU; its bfloat16 is brought to what the hardware does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def interpreter() -> Iterator[None]:
    """Interpreted kernels, with bfloat16 as tensor cores have it.

    Triton 3.9's interpreter keeps bfloat16 as raw uint16: its ``dot`` multiplies the bit patterns, and its conversion from
    fp32 cuts off instead of rounding to nearest even. Products of two bfloat16 are exact in fp32, so fp32 is used there.
    """
    import triton
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

    @triton.jit
    def probe() -> None:
        pass

    assert isinstance(probe, InterpretedFunction), "TRITON_INTERPRET=1 must be set before Triton is first imported"
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def widen(handle: TensorHandle) -> np.ndarray:
        if handle.dtype.scalar != tl.bfloat16:
            return handle.data
        return (handle.data.astype(np.uint32) << 16).view(np.float32)

    def exact_cast(self: InterpreterBuilder, source: TensorHandle, to: tl.dtype) -> TensorHandle:
        scalar = to.scalar
        if source.dtype.scalar == tl.bfloat16 and scalar == tl.float32:
            return TensorHandle(widen(source), scalar)
        if source.dtype.scalar == tl.float32 and scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).to(torch.bfloat16)
            return TensorHandle(rounded.view(torch.uint16).numpy(), scalar)
        return cast(self, source, to)

    def exact_dot(
        self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, d: TensorHandle, *rest: object
    ) -> TensorHandle:
        if a.dtype.scalar == tl.bfloat16:
            a, b = TensorHandle(widen(a), tl.float32), TensorHandle(widen(b), tl.float32)
        return dot(self, a, b, d, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "cast_impl", exact_cast)
        patch.setattr(InterpreterBuilder, "create_dot", exact_dot)
        yield


def poison(dtype: torch.dtype) -> float:
    """A value that would show in any sum: NaN, or the largest integer."""
    return float("nan") if dtype.is_floating_point else float(torch.iinfo(dtype).max)


@pytest.fixture(scope="session")
def guarded() -> Callable[[Tensor], Tensor]:
    """Copy a tensor into the middle of a buffer of poison: what is read beside it shows in the result."""

    def embed(tensor: Tensor) -> Tensor:
        margin = 256
        buffer = torch.full((tensor.numel() + 2 * margin,), poison(tensor.dtype)).to(tensor.dtype)
        inside = buffer[margin : margin + tensor.numel()].view(tensor.shape)
        return inside.copy_(tensor)

    return embed


@pytest.fixture(scope="session")
def cropped() -> Callable[[Tensor], Tensor]:
    """Copy a tensor into a larger one as a crop: strides differ from the shape, neighbours along every axis are poison."""

    def embed(tensor: Tensor) -> Tensor:
        buffer = torch.full([size + 3 for size in tensor.shape], poison(tensor.dtype)).to(tensor.dtype)
        inside = buffer[tuple(slice(1, size + 1) for size in tensor.shape)]
        return inside.copy_(tensor)

    return embed


@pytest.fixture(scope="session")
def output_buffer() -> Callable[[Sequence[int], torch.dtype], tuple[Tensor, Callable[[], bool]]]:
    """An output full of NaN between two guards, and a check that the guards are as they were."""

    def make(shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Callable[[], bool]]:
        margin, size = 256, int(np.prod(shape))
        buffer = torch.full((size + 2 * margin,), -77.0, dtype=dtype)
        inside = buffer[margin : margin + size].view(*shape).fill_(float("nan"))

        def untouched() -> bool:
            return bool((buffer[:margin] == -77).all() and (buffer[-margin:] == -77).all())

        return inside, untouched

    return make


@pytest.fixture
def only_touching(interpreter: None) -> Callable[..., contextlib.AbstractContextManager[None]]:
    """A context within which kernels may read and write the elements of the tensors named, and no address beside them."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    @contextlib.contextmanager
    def allow(reads: Sequence[Tensor], writes: Sequence[Tensor]) -> Iterator[None]:
        allowed = {"read": [addresses(t) for t in reads], "write": [addresses(t) for t in writes]}

        def check(kind: str, pointers: TensorHandle, mask: TensorHandle) -> None:
            used = np.broadcast_to(pointers.data, mask.data.shape)[mask.data]
            beside = used[~np.isin(used, np.concatenate(allowed[kind]))]
            assert beside.size == 0, f"{kind} of {beside.size} elements beside the arguments"

        def checked_load(
            self: InterpreterBuilder, pointers: TensorHandle, mask: TensorHandle, *rest: object
        ) -> TensorHandle:
            check("read", pointers, mask)
            return load(self, pointers, mask, *rest)

        def checked_store(
            self: InterpreterBuilder, pointers: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: object
        ) -> None:
            check("write", pointers, mask)
            store(self, pointers, value, mask, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(InterpreterBuilder, "create_masked_load", checked_load)
            patch.setattr(InterpreterBuilder, "create_masked_store", checked_store)
            yield

    return allow


def addresses(tensor: Tensor) -> np.ndarray:
    """Address of every element."""
    storage = tensor.untyped_storage()
    offsets = torch.arange(storage.nbytes() // tensor.element_size())
    elements = offsets.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return (storage.data_ptr() + elements * tensor.element_size()).numpy().ravel().astype(np.uint64)
