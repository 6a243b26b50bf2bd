"""Every bar of the waterfall: from (a) to (e), one technique more at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from latency.peers import PATCHES, Answer, careful, monai_torch, monai_transforms


@dataclass(frozen=True)
class Step:
    """One way from a series to an embedding.

    Attributes
    ----------
    name : str
    what : str
    make : callable
        (series, models, threads) -> Answer; what it does before it returns is loading.
    command : tuple of str or None
        Arguments of ``decipher-rt`` where the cold run is a command of its own.
    """

    name: str
    what: str
    make: Callable[[Path, Path, int], Answer]
    command: tuple[str, ...] | None = None


def our_reader(series: Path, models: Path, threads: int) -> Answer:
    """Read with decipher-rt, otherwise as (a)."""
    import torch
    from latency.base_model import torch_encoder
    from monai.data import MetaTensor
    from monai.transforms import Compose

    from decipher_rt.series import find_series, read_series

    torch.set_num_threads(threads)
    transforms, encoder = Compose(monai_transforms().transforms[2:]), torch_encoder(models)
    window, tokens = torch.tensor([[-1.0, 1.0]]), torch.arange(PATCHES)[None]
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])

    @torch.inference_mode()
    def answer() -> np.ndarray:
        read = read_series(find_series(series)[0])
        image = MetaTensor(torch.from_numpy(read.voxels.astype(np.float32))[None], to_ras @ read.affine_lps_mm)
        return encoder(transforms(image).as_tensor()[None], window, tokens)[1][0].numpy()

    return answer


def our_preprocessing(series: Path, models: Path, threads: int) -> Answer:
    """Read and preprocess with decipher-rt, encode with torch."""
    import torch
    from latency.base_model import torch_encoder

    from decipher_rt.bundle import open_bundle
    from decipher_rt.preprocess import Preprocessor
    from decipher_rt.series import find_series, read_series

    torch.set_num_threads(threads)
    bundle, encoder = open_bundle(models / "all-fp32"), torch_encoder(models)
    spec = bundle.manifest.preprocessing
    preprocess = Preprocessor(bundle.file(spec.graphs["cpu"]).read_bytes(), spec, threads=threads)
    tokens = torch.arange(PATCHES)[None]

    @torch.inference_mode()
    def answer() -> np.ndarray:
        grid = preprocess(read_series(find_series(series)[0]))
        volume, window = torch.from_numpy(grid.volume), torch.from_numpy(grid.window)
        return encoder(volume[None, None], window[None], tokens)[1][0].numpy()

    return answer


def decipher(bundle: str, precision: str) -> Callable[[Path, Path, int], Answer]:
    """Return decipher-rt on one of the bundles."""

    def make(series: Path, models: Path, threads: int) -> Answer:
        import decipher_rt
        from decipher_rt.profile.measure import json_writer

        session = decipher_rt.load(models / bundle, precision=precision, threads=threads)
        if session.fallback:
            raise SystemExit(f"{bundle}: {session.fallback}")

        def answer() -> np.ndarray:
            result = session.infer(series, write=json_writer)
            answer.timings_ms = result.timings_ms
            return result.embedding

        return answer

    return make


STEPS = (
    Step("a", "MONAI + torch eager", lambda s, m, t: monai_torch(s, m, t, compiled=False)),
    Step("b", "MONAI + torch.compile", lambda s, m, t: monai_torch(s, m, t, compiled=True)),
    Step("c", "dicomsdl + MONAI lazy resampling + onnxruntime", careful),
    Step("a1", "(a) with decipher-rt's reader", our_reader),
    Step("a2", "... and its preprocessing", our_preprocessing),
    Step("d", "... and onnxruntime: decipher-rt, fp32, all tokens", decipher("all-fp32", "fp32"), ("all-fp32", "fp32")),
    Step("d1", "... foreground tokens", decipher("foreground-fp32", "fp32"), ("foreground-fp32", "fp32")),
    Step("d2", "(d) in int8, all tokens", decipher("all-int8", "int8"), ("all-int8", "int8")),
    Step(
        "e",
        "... foreground tokens and int8",
        decipher("foreground-int8", "int8"),
        ("foreground-int8", "int8"),
    ),
)
BY_NAME = {step.name: step for step in STEPS}
