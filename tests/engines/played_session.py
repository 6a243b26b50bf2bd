"""A machine on which a session runs on a played GPU: the shipped model exported for it, and DALI.

DALI runs its graph on the CPU here, as nothing else can; where it leaves the grid is, to the played driver, the device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch

from decipher_rt.bundle import DEFAULT_BUNDLE, Bundle, open_bundle, write_bundle
from decipher_rt.engines import tensorrt
from decipher_rt.export.tensorrt.files import _kernel_files
from decipher_rt.export.tensorrt.graph import embedded_graph
from decipher_rt.manifest import EngineFile
from decipher_rt.preprocess import run
from decipher_rt.preprocess.dali import DaliGraph
from decipher_rt.train.checkpoint import DEFAULT_WEIGHTS
from decipher_rt.train.weights import load_weights
from decipher_rt.volume import SeriesInfo, Volume

BUCKETS = (256, 384, 512, 640)  # of the plan; what is tested here fits
FP16_COSINE = 0.999


class PlayedDali(DaliGraph):
    """A graph for the GPU, run on the CPU; ``copies`` counts the grids that came to the host all the same."""

    copies = 0
    made: ClassVar[list[int | None]] = []  # the device of each graph

    def __init__(self, graph: bytes, *, batch: int, threads: int, device_id: int | None = None) -> None:
        assert (b"gpu" in graph) == (device_id is not None), "a graph for one device on the other"
        PlayedDali.made.append(device_id)
        super().__init__(graph.replace(b"gpu", b"cpu"), batch=batch, threads=threads)
        self._played = device_id is not None

    def _copy_out(self, out: np.ndarray) -> None:
        PlayedDali.copies += self._played
        super()._copy_out(out)


@dataclass(frozen=True)
class Machine:
    bundle: Bundle
    driver: Any
    library: Any


def files_of(folder: Path) -> dict[str, bytes | Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "SHA256SUMS")
    }


@contextmanager
def play_machine(folder: Path, play_gpu: Callable[..., Any], play_library: Callable[..., Any]) -> Iterator[Machine]:
    """A card of sm_89 and TensorRT-RTX, with the shipped model exported for it: an ONNX graph in the plan's place."""
    shipped, encoder = open_bundle(), load_weights(DEFAULT_WEIGHTS).model.encoder.eval()
    content = files_of(DEFAULT_BUNDLE)
    built = {"architectures": "sm_89", "tokens": " ".join(map(str, BUCKETS))}
    plan = EngineFile("tensorrt-rtx", "fp16", "engines/rtx.plan", built)
    content |= {plan.file: embedded_graph(copy.deepcopy(encoder).to(torch.float16)), **_kernel_files(encoder, [89])}
    write_bundle(folder / "bundle", replace(shipped.manifest, engines=(*shipped.manifest.engines, plan)), content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        driver = play_gpu(folder / "bundle" / "kernels", patch)
        library = play_library(driver, rtx=True)
        patch.setattr(tensorrt, "require_library", lambda flavour: library)
        patch.setattr(run, "DaliGraph", PlayedDali)
        yield Machine(open_bundle(folder / "bundle"), driver, library)


def ball(seed: int = 0, dtype: Any = np.uint16, extent_mm: float = 70) -> Volume:
    rng = np.random.default_rng(seed)
    d, h, w = np.indices((24, 48, 48)) - np.array([12, 24, 24]).reshape(3, 1, 1, 1)
    voxels = rng.integers(0, 30, d.shape) + (700 + 50 * seed) * (
        (6 * d) ** 2 + (4 * h) ** 2 + (3 * w) ** 2 < extent_mm**2
    )
    affine = np.array([[0, 0, 3, -72], [0, 4, 0, -96], [6, 0, 0, -72], [0, 0, 0, 1.0]])
    return Volume(voxels.astype(dtype), affine, SeriesInfo(f"1.2.{seed}", Path()))


def with_plans(machine: Machine, folder: Path, *plans: EngineFile) -> Bundle:
    """The same bundle with other plans, each a graph of its own sum."""
    content = files_of(machine.bundle.path)
    for plan in plans:
        model = onnx.load_from_string(machine.bundle.file("engines/rtx.plan").read_bytes())
        model.doc_string = plan.file
        content[plan.file] = model.SerializeToString()
    engines = tuple(entry for entry in machine.bundle.manifest.engines if entry.file != "engines/rtx.plan")
    write_bundle(folder, replace(machine.bundle.manifest, engines=(*engines, *plans)), content)
    return open_bundle(folder)
