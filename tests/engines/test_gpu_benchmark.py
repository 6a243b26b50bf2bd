"""The part of ``make gpu-check`` that builds and times TensorRT engines, on a played GPU with a small encoder."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from onnx import ModelProto

from decipher_rt.engines import tensorrt
from decipher_rt.errors import EngineError
from decipher_rt.export.tensorrt import rtx
from decipher_rt.export.tensorrt.graph import half_type
from decipher_rt.train.model.vit import ViTConfig

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = ViTConfig(
    width=48, depth=2, heads=4, embedding_size=16, grid_shape=(16, 16, 24), patch_shape=(4, 4, 4),
    spacing_mm=(15.0,) * 3, token_buckets=(96,),
)  # fmt: skip


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="the extra tensorrt-rtx is absent"
)
def test_every_precision_is_built_loaded_and_timed_or_says_why_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, play_gpu: Callable[..., Any], play_library: Callable[..., Any]
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks.gpu import encoder, plans
    from benchmarks.gpu.measure import Ceilings, Deadline
    from decipher_rt.export.tensorrt.files import _kernel_files
    from decipher_rt.train.model.vit import ViT

    def build(model: ModelProto, _buckets: object, architectures: Sequence[int]) -> bytes:
        assert list(architectures) == [89]
        if half_type(model) == "bfloat16":
            raise EngineError("TensorRT-RTX builds no engine: no bfloat16 today")
        return model.SerializeToString()

    for name, content in _kernel_files(ViT(CONFIG), [89]).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    driver = play_gpu(tmp_path / "kernels", monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DECIPHER_RT_CACHE", str(Path.home() / ".cache" / "decipher-rt"))
    monkeypatch.setattr(rtx, "build_engine", build)
    monkeypatch.setattr(tensorrt, "require_library", lambda flavour: play_library(driver, rtx=True))
    monkeypatch.setattr(encoder, "base_config", lambda: dataclasses.replace(CONFIG))
    monkeypatch.setattr(encoder, "TOKENS", (96, 24))
    monkeypatch.setattr(plans, "runtime", lambda flavour, folder: [])
    ceilings = Ceilings({"float16": 600.0, "bfloat16": 650.0}, 2500.0)
    rows = plans.run("tensorrt-rtx", Deadline(1000), ceilings)
    timed = [row for row in rows if row.timing is not None]
    assert [row.case for row in timed] == [
        f"ViT-Base {precision}{what}"
        for precision in ("fp16", "int8")
        for what in (
            ", build",
            ", first load",
            ", second load",
            " K=24, from the grid on the device to the host",
            " K=96, from the grid on the device to the host",
        )
    ]
    assert {row.method for row in timed if "K=" in row.case} == {"tensorrt-rtx, one CUDA graph"}
    (failed,) = (row for row in rows if row.timing is None)
    assert failed.case == "ViT-Base bf16"
    assert failed.not_run == "EngineError: TensorRT-RTX builds no engine: no bfloat16 today"
    late = plans.run("tensorrt-rtx", Deadline(0), ceilings)
    assert [(row.case, row.not_run) for row in late] == [
        *((f"ViT-Base {precision}", "out of time") for precision in ("fp16", "bf16", "int8")),
        ("demo series", "out of time"),
    ]
    ran = [row for row in timed if "K=" in row.case]
    for row in ran:
        k = int(row.case.split("K=")[1].split(",")[0])
        assert row.timing is not None
        assert row.tflops == pytest.approx(encoder.flops(CONFIG, k) / row.timing.median_ms / 1e9)
    assert [row.of_gemm is None for row in ran] == [False, False, True, True]  # no ceiling of 8 bits was measured


def test_tensorrt_is_built_bucket_by_bucket_while_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build takes as long as it takes; what is told first is what matters most."""
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks.gpu import encoder, plans
    from benchmarks.gpu.measure import Ceilings, Row

    left = iter([100.0, 100.0, 59.0, *[0.0] * 100])
    built = []

    def build(flavour: str, precision: str, group: tuple[int, ...], *_: Any) -> list[Row]:
        built.append((precision, group))
        return []

    class Clock:
        def left(self) -> float:
            return next(left)

    monkeypatch.setattr(plans, "encoder", build)
    rows = plans.run("tensorrt", Clock(), Ceilings({"float16": 600.0}, 2500.0))
    first, second, *_ = encoder.TOKENS
    assert built == [("fp16", (first,)), ("fp16", (second,))]
    assert [row.not_run for row in rows] == ["out of time"] * (3 * len(encoder.TOKENS) - 2 + 1)
    assert rows[0].case == f"ViT-Base fp16 K={encoder.TOKENS[2]}"
    assert rows[-1].case == "demo series"
