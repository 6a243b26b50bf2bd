"""How the better attention is found, on a played GPU: as the runtime runs, through the CUDA graph of each bucket."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from decipher_rt.engines import tensorrt
from decipher_rt.errors import EngineError
from decipher_rt.export.tensorrt import builder
from decipher_rt.export.tensorrt.files import _kernel_files
from decipher_rt.export.tensorrt.graph import embedded_graph
from decipher_rt.train.model.vit import ViT, ViTConfig

CONFIG = ViTConfig(
    width=48, depth=2, heads=4, embedding_size=16, grid_shape=(16, 16, 24), patch_shape=(4, 4, 4),
    spacing_mm=(15.0,) * 3, token_buckets=(24, 96),
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> ViT:
    torch.manual_seed(2)
    return ViT(CONFIG).eval()


@pytest.fixture
def kernels(encoder: ViT, tmp_path: Path) -> Path:
    for name, content in _kernel_files(encoder, [89]).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path / "kernels"


@pytest.mark.parametrize("refuses_capture", [False, True])
def test_engines_take_turns_as_at_inference(
    encoder: ViT,
    kernels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    play_gpu: Callable[..., Any],
    play_library: Callable[..., Any],
    refuses_capture: bool,
) -> None:
    driver = play_gpu(kernels, monkeypatch)
    library = play_library(driver, rtx=False, refuses_capture=refuses_capture)
    monkeypatch.setattr(tensorrt, "require_library", lambda flavour: library)
    plan = embedded_graph(copy.deepcopy(encoder).half())
    surroundings = builder.Surroundings(kernels, CONFIG.preprocessing, CONFIG.embedding_size, "fp16")
    engines = {name: builder._load(tmp_path / name, plan, 24, surroundings) for name in ("native", "kernel")}
    builder.require_same(engines["native"], engines["kernel"], 24, surroundings)
    other = embedded_graph(ViT(CONFIG).eval().half())
    with pytest.raises(EngineError, match=r"patch differs by \S+ from that of TensorRT's attention, allowed 0\.05"):
        builder.require_same(
            engines["native"], builder._load(tmp_path / "other", other, 24, surroundings), 24, surroundings
        )
    ran = []
    for name, engine in engines.items():
        run = engine.run
        monkeypatch.setattr(engine, "run", lambda given, name=name, run=run: (ran.append(name), run(given))[1])
    driver.done.clear()
    driver.launches.clear()
    before = driver.calls.count("cuGraphLaunch")
    times = builder.measure(engines, 24, CONFIG.preprocessing)
    rounds = builder.WARM_UP + builder.ROUNDS
    assert ran == ["native", "kernel"] * rounds
    assert set(times) == set(engines)
    assert all(ms > 0 for ms in times.values())
    # One upload puts the grid where it stays; then each run is one graph, and nothing is launched beside it.
    step = ["upload", "upload", "patch_embed3d", "engine", "download", "download"]
    assert driver.done == ["upload"] + step * 2 * rounds
    launched = driver.calls.count("cuGraphLaunch") - before
    assert (launched, len(driver.launches)) == ((0, 2 * rounds) if refuses_capture else (2 * rounds, 0))
    assert all((engine.not_recorded is not None) == refuses_capture for engine in engines.values())
