"""Field shift that the head's own air makes in the scanner's field."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

CHI_TISSUE_TO_AIR_PPM = -9.4  # tissue about -9.05 ppm, air +0.36 ppm (Schenck 1996, Med Phys 23:815)


def field_shift_ppm(air: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the field shift in ppm, (S, A, R), for a main field along S.

    Convolution of the susceptibility with the unit dipole in k-space, 1/3 - kz^2 / k^2
    (Salomir 2003, Concepts MR B 19:26; Marques 2005, Concepts MR B 25:65). The mean is removed as a shim would, with
    its linear terms, inside the head.
    """
    tissue = ndimage.gaussian_filter(1 - air, 0.5)
    size = [fft.next_fast_len(round(1.4 * n)) for n in tissue.shape]
    spectrum = fft.rfftn(CHI_TISSUE_TO_AIR_PPM * tissue, size, workers=1)
    kz = fft.fftfreq(size[0])[:, None, None].astype(np.float32)
    ky = fft.fftfreq(size[1])[None, :, None].astype(np.float32)
    kx = fft.rfftfreq(size[2])[None, None, :].astype(np.float32)
    square = kx**2 + ky**2 + kz**2
    square[0, 0, 0] = 1.0
    dipole = np.float32(1 / 3) - kz**2 / square
    dipole[0, 0, 0] = 0.0
    shift = fft.irfftn(spectrum * dipole, size, workers=1)[tuple(slice(0, n) for n in tissue.shape)]
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in tissue.shape)
    # Shim over the upper half, where the brain is, with polynomials up to second order.
    terms = [
        np.ones_like(shift),
        *(np.broadcast_to(t, shift.shape) for t in (z[:, None, None], y[None, :, None], x[None, None, :])),
        *(np.broadcast_to(t**2, shift.shape) for t in (z[:, None, None], y[None, :, None], x[None, None, :])),
    ]
    where = (tissue > 0.5) & (z > 0.3)[:, None, None]
    matrix = np.stack([t[where][::17] for t in terms], 1)
    weights, *_ = np.linalg.lstsq(matrix, shift[where][::17], rcond=None)
    return np.asarray(shift - sum(w * t for w, t in zip(weights, terms, strict=True)), np.float32)
