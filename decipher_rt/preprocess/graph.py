"""The DALI graph of preprocessing: resample, permute, pad. Written once, run on CPU or GPU, serialised for C."""

from __future__ import annotations

from typing import Any, Literal

from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess.grid import PERMUTATIONS

Device = Literal["cpu", "gpu"]


def build_graph(spec: Preprocessing, device: Device) -> bytes:
    """Serialise the graph for a device. No GPU is needed to do so.

    Inputs, one sample for each slab of the grid (`decipher_rt.preprocess.grid.graph_inputs`): ``voxels``
    (D, H, W, 1) of uint8, int16, uint16 or float32 in acquired axes; ``size``, ``roi_start``, ``roi_end``,
    ``permutation``, ``anchor``, ``shape``, ``low``. Output: slabs of the grid of ``spec``, float32.

    The bytes are the same wherever and whenever they are made, and hold neither path nor source line.

    Parameters
    ----------
    spec : Preprocessing
        Checked, that is all: the graph is the same for every grid, since all geometry comes with the volume.
    device : "cpu" or "gpu"

    Raises
    ------
    BundleError
        Where the numbers of ``spec`` contradict each other.
    """
    from nvidia.dali._utils import dali_trace

    spec.check()
    traced = dali_trace.is_tracing_enabled()
    dali_trace.set_tracing(enabled=False)  # a trace would put this file's path and its lines into the graph
    try:
        return bytes(_pipeline(device).serialize())
    finally:
        dali_trace.set_tracing(enabled=traced)


def _pipeline(device: Device) -> Any:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(  # type: ignore[untyped-decorator]
        batch_size=1,
        num_threads=1,
        device_id=None,  # who loads the graph says which GPU; asking for one here would need one here
        prefetch_queue_depth=1,  # one series at a time: latency, not throughput
        enable_conditionals=True,
    )
    def preprocess() -> Any:
        voxels = fn.external_source(name="voxels", layout="DHWC", ndim=4, no_copy=True)
        size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
        roi_start = fn.external_source(name="roi_start", dtype=types.FLOAT, ndim=1)
        roi_end = fn.external_source(name="roi_end", dtype=types.FLOAT, ndim=1)
        permutation = fn.external_source(name="permutation", dtype=types.INT32, ndim=0)
        anchor = fn.external_source(name="anchor", dtype=types.INT32, ndim=1)
        shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
        low = fn.external_source(name="low", dtype=types.FLOAT, ndim=0)
        if device == "gpu":
            voxels, low = voxels.gpu(), low.gpu()

        # In acquired axes: reorienting the big volume first would copy it for nothing. A region of interest whose ends
        # are exchanged flips its axis, so that flips cost nothing either.
        resampled = fn.resize(
            voxels, size=size, roi_start=roi_start, roi_end=roi_end, antialias=True, dtype=types.FLOAT, name="resample"
        )
        return _orient_and_pad(resampled, permutation, anchor, shape, low)

    return preprocess()


def _orient_and_pad(resampled: Any, permutation: Any, anchor: Any, shape: Any, low: Any) -> Any:
    """Bring resampled voxels (D, H, W, 1) in acquired axes to the grid's axes and size; DALI compiles the branches."""
    from nvidia.dali import fn

    # fn.slice pads with a constant: air is made 0 for it.
    above = fn.squeeze(resampled, axes=[3], name="one_channel") - low
    # fn.transpose takes no permutation per sample.
    if permutation == 0:
        oriented = above
    elif permutation == 1:
        oriented = fn.transpose(above, perm=PERMUTATIONS[1])
    elif permutation == 2:
        oriented = fn.transpose(above, perm=PERMUTATIONS[2])
    elif permutation == 3:
        oriented = fn.transpose(above, perm=PERMUTATIONS[3])
    elif permutation == 4:
        oriented = fn.transpose(above, perm=PERMUTATIONS[4])
    else:
        oriented = fn.transpose(above, perm=PERMUTATIONS[5])
    padded = fn.slice(
        oriented,
        start=anchor,
        shape=shape,
        axes=[0, 1, 2],
        out_of_bounds_policy="pad",
        fill_values=0.0,
        name="pad",
    )
    return padded + low
