"""Preprocessing of slices as they arrive: in plane for each one, and what is left once all are there.

Both run on the bundle's one graph. A slice is a volume of one slice that nothing permutes or pads; the resampled slices
together are a volume of float32 whose rows and columns lie on the grid already, where resampling copies.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.errors import EngineError
from decipher_rt.preprocess.dali import DaliGraph
from decipher_rt.preprocess.grid import GridPlan
from decipher_rt.preprocess.operators import check_operators


class SliceResampler:
    """Slices to slices whose pixels lie on the grid's rows and columns.

    Parameters
    ----------
    graph : bytes
        The bundle's serialised graph for the CPU.

    Raises
    ------
    BundleError
        Where the graph is damaged or holds operators that preprocessing does not use.
    """

    def __init__(self, graph: bytes) -> None:
        check_operators(graph)
        self._graph = graph
        self._pipelines: dict[np.dtype[np.generic], DaliGraph] = {}

    def __call__(self, pixels: NDArray[Any], plan: GridPlan, out: NDArray[np.float32]) -> None:
        """Resample a slice.

        Parameters
        ----------
        pixels : ndarray, shape (H, W), C-contiguous
            A slice of the series that ``plan`` was laid over.
        plan : GridPlan
        out : ndarray, shape plan.size[1:], float32, C-contiguous

        Raises
        ------
        EngineError
            Where DALI fails; the next call starts anew.
        """
        height, width = plan.size[1:]
        inputs: dict[str, NDArray[Any]] = {
            "voxels": pixels[np.newaxis, ..., np.newaxis],
            "size": np.array((1, height, width), np.float32),
            "roi_start": np.array((0, *plan.start[1:]), np.float32),
            "roi_end": np.array((1, *plan.end[1:]), np.float32),
            "permutation": np.array(0, np.int32),
            "anchor": np.zeros(3, np.int32),
            "shape": np.array((1, height, width), np.int32),
            "low": np.array(0, np.float32),
        }
        if pixels.dtype not in self._pipelines:
            self._pipelines[pixels.dtype] = DaliGraph(self._graph, batch=1, threads=1)
        try:
            self._pipelines[pixels.dtype].run({name: [values] for name, values in inputs.items()}, out)
        except EngineError:
            del self._pipelines[pixels.dtype]
            raise


def after_in_plane(plan: GridPlan) -> GridPlan:
    """Return what is left of a plan once every slice has been resampled in plane."""
    height, width = plan.size[1:]
    return dataclasses.replace(plan, start=(plan.start[0], 0.0, 0.0), end=(plan.end[0], float(height), float(width)))
