"""Answer for a volume through ctypes: nothing but the library, numpy and a bundle.

    python answer_volume.py libdecipher_rt.so BUNDLE VOLUME.npy

The volume is (slices, rows, columns), axial, feet to head, 1 mm.
"""

import ctypes
import os
import sys
from ctypes import byref, c_char_p, c_double, c_float, c_int, c_int64, c_size_t, c_void_p

import numpy as np

TYPES = {"uint8": 0, "int8": 1, "uint16": 2, "int16": 3, "uint32": 4, "int32": 5, "float32": 6, "float64": 7}


class Volume(ctypes.Structure):
    """``drt_volume``."""

    _fields_ = [
        ("struct_size", c_size_t),
        ("voxels", c_void_p),
        ("memory", c_int),
        ("type", c_int),
        ("shape", c_int64 * 3),
        ("strides", c_int64 * 3),
        ("affine_lps_mm", c_double * 16),
        ("slope", c_double),
        ("intercept", c_double),
        ("modality", c_char_p),
    ]


def main(library: str, bundle: str, path: str) -> None:
    """Print the embedding."""
    drt = ctypes.CDLL(library)
    drt.drt_last_error.restype = c_char_p

    def call(name: str, *arguments: object) -> None:
        if getattr(drt, name)(*arguments):
            sys.exit(f"{name}: {drt.drt_last_error().decode()}")

    session = c_void_p()
    call("drt_session_open", os.fsencode(bundle), None, byref(session))  # NULL: default parameters
    voxels = np.load(path)
    voxels = voxels.astype(voxels.dtype.newbyteorder("="), copy=False)
    volume = Volume()
    drt.drt_default_volume(byref(volume), c_size_t(ctypes.sizeof(volume)))
    volume.voxels, volume.type = voxels.ctypes.data, TYPES[voxels.dtype.name]
    volume.shape[:], volume.strides[:] = voxels.shape, voxels.strides
    volume.affine_lps_mm[:] = [0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    call("drt_session_run", session, byref(volume))

    size = c_size_t()
    call("drt_embedding", session, None, c_size_t(0), byref(size))
    embedding = (c_float * size.value)()
    call("drt_embedding", session, embedding, size, byref(size))
    print("embedding", *(f"{value:.7g}" for value in embedding))
    drt.drt_session_close(session)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} LIBRARY BUNDLE VOLUME.npy")
    main(*sys.argv[1:])
