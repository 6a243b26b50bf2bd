"""The patch-embedding kernel of a bundle: from the grid in device memory to embedded tokens, in one launch."""

from __future__ import annotations

from pathlib import Path

from decipher_rt.archives import read_arrays
from decipher_rt.device_array import DeviceArray
from decipher_rt.engines.bundle_kernel import BundleKernel
from decipher_rt.engines.cuda import Buffer, Driver, Launch
from decipher_rt.errors import EngineError

CONSTANTS, CONSTANT_NAMES = "patch_embed3d.npz", ("weight", "bias", "position")
MOST_BYTES = 1 << 30


class PatchEmbed:
    """The kernel for one card, with its weights in device memory.

    Parameters
    ----------
    folder : Path
        ``kernels/`` of the bundle: launch data, cubins, and the weights in ``patch_embed3d.npz``: ``weight`` (C, P)
        float16, ``bias`` (C,) float32, ``position`` (N, C) float32.
    driver : Driver

    Raises
    ------
    EngineError
        If the bundle has no kernel for this card.
    """

    def __init__(self, folder: Path, driver: Driver) -> None:
        self._kernel = BundleKernel(folder, driver, "patch_embed3d")
        self._constants = {}
        try:
            with (folder / CONSTANTS).open("rb") as file:
                stored = read_arrays(file, CONSTANT_NAMES, MOST_BYTES)
            constants = {name: stored[name] for name in CONSTANT_NAMES}
        except (OSError, ValueError, KeyError) as error:
            raise EngineError(f"{folder / CONSTANTS}: cannot be read ({error}); export the bundle again") from None
        for name, array in constants.items():
            buffer = Buffer(driver, array.shape, array.dtype)
            buffer.host[...] = array
            buffer.upload(driver.stream)
            self._constants[name] = buffer
        driver.synchronize()

    @property
    def width(self) -> int:
        """Channels C of a token."""
        return int(self._constants["bias"].array.shape[0])

    def bind(self, volume: DeviceArray, window: DeviceArray, tokens: DeviceArray, out: DeviceArray) -> Launch:
        """Return the launch.

        Parameters
        ----------
        volume : (B, 1, D, H, W) float32
        window : (B, 2) float32
        tokens : (B, K) int64
        out : (B, K, C) float16

        Raises
        ------
        EngineError
            If an array is not what the kernel was compiled for.
        """
        given = {"volume": volume, "window": window, "tokens": tokens, "out": out}
        given |= {name: buffer.array for name, buffer in self._constants.items()}
        batch, kept = tokens.shape
        return self._kernel.bind(given, {"batch": batch, "tokens": kept, "rows": batch * kept})
