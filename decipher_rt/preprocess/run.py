"""Run the preprocessing graph on volumes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.device_array import DeviceArray
from decipher_rt.errors import EngineError
from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess.dali import DaliGraph
from decipher_rt.preprocess.graph import Device, build_graph
from decipher_rt.preprocess.grid import (
    PERMUTATIONS,
    VOXEL_TYPES,
    Grid,
    GridPlan,
    VolumeOnDevice,
    graph_inputs,
    lay_grid,
    plan,
)
from decipher_rt.preprocess.operators import check_operators
from decipher_rt.volume import Volume

# The same on every machine: where a grid is cut decides how its last bits round. More than four slow down volumes whose
# columns run to S, and one already costs 1.6 times as much as four on one thread, for want of cache.
CPU_SLABS = 4
GRID_AXES_LPS = np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]], np.float64)  # S, A, R
# Of the window, between the grids of noise that GPU and CPU make. Both resample in float32, whose roundings stay far
# below; a grid that lies off by a tenth of a voxel does not.
GRID_TOLERANCE = 1e-2
# Voxels of that noise along S, A and R, in grid voxels: thick slices, and fine rows and columns that run to P and L.
NOISE_STEPS = np.array([2.5, -0.6, -0.6])


class Preprocessor:
    """Volumes to grids, on one graph that is made ready once for each type of voxel.

    On a GPU it is made ready for all of them here, and run once in each orientation of an acquisition, so that no
    series waits for it; on the CPU, where to start fast matters more, when the first volume of a type comes.

    Parameters
    ----------
    graph : bytes or None
        The bundle's serialised graph for ``device``; ``None`` builds it from ``spec`` (needs half a second more).
    spec : Preprocessing
    device : "cpu" or "gpu"
    threads : int
        CPU threads, of which four are of use; their number does not change a bit of the result.
    card : int
        CUDA's index of the GPU.

    Raises
    ------
    BundleError
        Where the graph is damaged or holds operators that preprocessing does not use.
    EngineError
        Where DALI is absent or refuses the graph.
    """

    def __init__(
        self, graph: bytes | None, spec: Preprocessing, device: Device = "cpu", threads: int = 2, card: int = 0
    ) -> None:
        self.graph = build_graph(spec, device) if graph is None else graph
        check_operators(self.graph)
        self._spec = spec
        self.device: Device = device
        self._card = None if device == "cpu" else card
        wanted = CPU_SLABS if device == "cpu" else 1  # on the GPU a sample is parallel in itself
        self._slabs = max(n for n in range(1, wanted + 1) if spec.grid_shape[0] % n == 0)
        self._threads = min(threads, self._slabs)
        # DALI's graphs serve one thread at a time; the next series may be prepared while the caller asks for another.
        self._turn = threading.Lock()
        self._pipelines: dict[np.dtype[np.generic], DaliGraph] = {}
        self._unused: DaliGraph | None = self._new_pipeline()  # made while loading, taken by the first type of voxel
        if device == "gpu":
            self._warm_up()

    def __call__(self, volume: Volume) -> Grid:
        """Resample, reorient and pad a volume.

        Raises
        ------
        SeriesError
            As `decipher_rt.preprocess.plan`.
        EngineError
            Where DALI fails, for example for want of memory.
        """
        return self.resample(volume.voxels, plan(volume, self._spec))

    def resample(self, voxels: NDArray[Any], grid_plan: GridPlan) -> Grid:
        """Carry out a plan on voxels (D, H, W).

        Raises
        ------
        EngineError
            Where DALI fails; the next call starts anew.
        """
        voxels = np.ascontiguousarray(voxels)[..., np.newaxis]
        arguments = graph_inputs(grid_plan, self._spec.grid_shape, self._slabs)
        inputs = {name: [values[slab, ...] for slab in range(self._slabs)] for name, values in arguments.items()}
        inputs["voxels"] = [voxels] * self._slabs
        with self._turn:
            pipeline = self._pipeline(voxels.dtype)
            try:
                grid = self._run(pipeline, inputs)
            except EngineError:
                del self._pipelines[voxels.dtype]  # DALI does not go on after an error
                raise
        return Grid(grid, np.asarray(grid_plan.window, np.float32), grid_plan.affine_lps_mm)

    def _warm_up(self) -> None:
        for shape, grid_plan in orientations(self._spec):
            for dtype in VOXEL_TYPES:
                self.resample(np.zeros(shape, dtype), grid_plan)

    def _run(self, pipeline: DaliGraph, inputs: dict[str, list[NDArray[Any]]]) -> NDArray[np.float32] | VolumeOnDevice:
        shape = self._spec.grid_shape
        if self.device == "gpu":
            address, to_host = pipeline.run_on_device(inputs, shape)
            return VolumeOnDevice(DeviceArray(address, (1, 1, *shape), np.dtype(np.float32)), to_host)
        grid = np.empty(shape, np.float32)
        pipeline.run(inputs, grid)
        return grid

    def _pipeline(self, dtype: np.dtype[np.generic]) -> DaliGraph:
        """Return the pipeline for a type of voxel: DALI's inputs keep theirs."""
        if dtype not in self._pipelines:
            self._pipelines[dtype] = self._unused or self._new_pipeline()
            self._unused = None
        return self._pipelines[dtype]

    def _new_pipeline(self) -> DaliGraph:
        return DaliGraph(self.graph, batch=self._slabs, threads=self._threads, device_id=self._card)


def require_same_grid(gpu: Preprocessor, cpu: Preprocessor, spec: Preprocessing) -> None:
    """Hold the grid that a GPU makes of noise against the CPU's.

    Raises
    ------
    EngineError
        Where a voxel differs by more than ``GRID_TOLERANCE``, or is not finite.
    """
    shape = [max(1, round(size)) for size in spec.grid_shape / np.abs(NOISE_STEPS)]
    affine = np.eye(4)
    affine[:3, :3] = (GRID_AXES_LPS * (NOISE_STEPS * spec.spacing_mm)[:, np.newaxis]).T
    noise = np.random.default_rng(0).random(shape, np.float32)
    grid_plan = lay_grid(affine, noise.shape, spec, (0.0, 1.0))
    error = float(np.abs(gpu.resample(noise, grid_plan).volume - cpu.resample(noise, grid_plan).volume).max())
    if not error <= GRID_TOLERANCE:
        raise EngineError(
            f"DALI's grid on the GPU differs from the CPU's by {error:.3g} of the window, allowed {GRID_TOLERANCE:g}"
        )


def orientations(spec: Preprocessing) -> Iterator[tuple[tuple[int, ...], GridPlan]]:
    """Give the shape and the plan of a volume that fills the grid, for each order of acquired axes."""
    for permutation in PERMUTATIONS:
        shape, affine = [0, 0, 0], np.eye(4)
        for axis, acquired in enumerate(permutation):
            shape[acquired] = spec.grid_shape[axis]
            affine[:3, acquired] = GRID_AXES_LPS[axis] * spec.spacing_mm[axis]
        yield tuple(shape), lay_grid(affine, tuple(shape), spec, (0.0, 1.0))
