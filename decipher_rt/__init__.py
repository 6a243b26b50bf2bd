"""Runtime for 3D MRI foundation models: DICOM in, embeddings and decoder answers out, without PyTorch.

>>> import decipher_rt
>>> session = decipher_rt.load()  # the bundle that ships with the package
>>> result = session.infer("series/")  # doctest: +SKIP
>>> result.heads["sequence"].label  # doctest: +SKIP
'T1w'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from decipher_rt.manifest import Precision
    from decipher_rt.session import Session

__version__ = "0.1.0"


def load(
    bundle: Path | str | None = None,
    *,
    engine: str = "onnxruntime",
    precision: Precision = "fp32",
    threads: int | None = None,
    device: int | str | None = None,
    prompts: Sequence[str] = (),
    heads: Sequence[str] | None = None,
) -> Session:
    """Open a bundle and make it ready to answer.

    Parameters
    ----------
    bundle : path, optional
        Folder of a bundle; default: the one that ships with the package.
    engine : {"onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx", "auto"}
        What runs the encoder; ``auto`` is the fastest kind that this machine can run.
    precision : {"fp32", "fp16", "bf16", "int8"}
        Which encoder of the bundle to run.
    threads : int, optional
        CPU threads; default: the cores this process may use.
    device : int or str, optional
        The card of an engine that runs on one: CUDA's index, or its UUID or the beginning of it (``GPU-3f``); or
        ``cpu``. Default: the first card that CUDA shows.
    prompts : sequence of str
        Texts that every series is compared with; the bundle must have a text tower.
    heads : sequence of str, optional
        Names of the heads that answer; the others are not loaded. Default: all of the bundle.

    Raises
    ------
    decipher_rt.errors.BundleError, decipher_rt.errors.EngineError
    """
    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
    from decipher_rt.session import Session

    opened = open_bundle(bundle or DEFAULT_BUNDLE, only_used=True)
    return Session(
        opened, engine=engine, precision=precision, threads=threads, device=device, prompts=prompts, heads=heads
    )
