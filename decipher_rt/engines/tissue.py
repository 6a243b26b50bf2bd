"""Tissue of every patch, counted by the bundle's kernel where DALI left the grid: only the counts come to the host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decipher_rt.device_array import DeviceArray
from decipher_rt.engines.bundle_kernel import BundleKernel
from decipher_rt.engines.cuda import Buffer, Driver, Launch
from decipher_rt.engines.cuda_graph import GridStep


class TissueCounter:
    """The kernel for one card, with its two buffers.

    Parameters
    ----------
    folder : Path
        ``kernels/`` of the bundle.
    driver : Driver
    patches : int
        Of the grid.

    Raises
    ------
    EngineError
        If the bundle has no kernel for this card.
    """

    def __init__(self, folder: Path, driver: Driver, patches: int) -> None:
        kernel = BundleKernel(folder, driver, "tissue_counts")
        threshold = Buffer(driver, (1,), np.dtype(np.float32))
        counts = Buffer(driver, (1, patches), np.dtype(np.int32))
        self._driver, self._threshold, self._counts = driver, threshold, counts

        # None of these holds this object: GPU memory is freed with its last reference, not by the garbage collector.
        def bind(volume: DeviceArray) -> Launch:
            given = {"volume": volume, "threshold": threshold.array, "out": counts.array}
            return kernel.bind(given, {"batch": 1})

        upload, download = (lambda: threshold.upload(driver.stream)), (lambda: counts.download(driver.stream))
        self.step = GridStep(driver, upload, bind, download)

    def __call__(self, volume: DeviceArray, threshold: np.float32) -> NDArray[np.int32]:
        """Count the voxels of each patch that are above a threshold.

        Parameters
        ----------
        volume : (1, 1, D, H, W) float32
        threshold : float32

        Returns
        -------
        ndarray, shape (patches,), int32
            Row-major over the patch grid, as ``decipher_rt.tokens.tissue_counts``.

        Raises
        ------
        EngineError
            If CUDA fails.
        """
        self._threshold.host[...] = threshold
        self.step.run(volume)
        self._driver.synchronize()
        counts: NDArray[np.int32] = self._counts.host[0].copy()
        return counts
