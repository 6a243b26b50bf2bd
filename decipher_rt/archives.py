"""Archives of arrays (``.npz``), which are read without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def read_arrays(
    file: BinaryIO, names: Collection[str], most_bytes: int, *, compressed: bool = True
) -> dict[str, NDArray[Any]]:
    """Read arrays of an archive by name; of those that it does not hold there is none in what comes back.

    Parameters
    ----------
    file : binary file
    names : collection of str
        What else the archive holds is not looked at.
    most_bytes : int
        Of all of them together, unpacked.
    compressed : bool
        Whether they may be.

    Raises
    ------
    ValueError
        Whatever is wrong with the archive.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            wanted = [part for part in stored.zip.infolist() if part.filename.removesuffix(".npy") in names]
            _refuse(wanted, most_bytes, compressed=compressed)
            return {name: stored[name] for name in names if name in stored.files}
    except Exception as error:  # noqa: BLE001 - zip, zlib, lzma and NumPy's parser raise their own on altered bytes
        raise ValueError(str(error) or type(error).__name__) from None


def _refuse(members: list[zipfile.ZipInfo], most_bytes: int, *, compressed: bool) -> None:
    """Raise ValueError by what the archive's directory says; zipfile never unpacks more than that."""
    if not compressed and any(part.compress_type != zipfile.ZIP_STORED for part in members):
        raise ValueError("compressed, which this file never is")
    if sum(part.file_size for part in members) > most_bytes:
        raise ValueError(f"more than {most_bytes >> 20} MiB of arrays")
