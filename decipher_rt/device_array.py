"""DeviceArray: memory on a GPU as one stage hands it to the next, without a copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class DeviceArray:
    """Memory on a GPU that someone else owns, C-contiguous; ``__cuda_array_interface__`` (version 3) for others.

    Attributes
    ----------
    pointer : int
    shape : tuple of int
    dtype : numpy dtype
    stream : int
        On which it is ready; 0 where it is ready for any.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int = 0

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Numba's protocol, which CuPy, PyTorch and DALI read."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
            "stream": self.stream or None,
        }
