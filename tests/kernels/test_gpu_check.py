"""The evidence command: without a GPU its parts are run on the CPU, the kernels interpreted, the clock replaced."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "benchmarks" / "gpu_check.py"


def load_script() -> ModuleType:
    """Import the script, which makes ``benchmarks`` importable."""
    specification = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


gpu_check = load_script()

from benchmarks.gpu import (  # noqa: E402
    attention,
    encoder,
    engines,
    measure,
    numerics,
    onnx_base,
    patch_embed3d,
    report,
    targets,
    tissue_counts,
)
from benchmarks.gpu.measure import Ceilings, Deadline, Row, Timing  # noqa: E402
from decipher_rt.kernels import ops  # noqa: E402

CEILINGS = Ceilings({"float16": 600.0, "bfloat16": 650.0}, 2500.0)


def timed(case: str, method: str, ms: float, **rates: float) -> Row:
    return Row(case, method, Timing(ms, ms * 0.9, ms * 1.1, 50), **rates)


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch, interpreter: None) -> None:
    """Run once instead of measuring; what is computed stays what it is."""

    def once(run: Callable[[], Any], budget_s: float = 0.0) -> Timing:
        run()
        return Timing(1.0, 0.9, 1.1, 1)

    monkeypatch.setattr(measure, "DEVICE", "cpu")
    monkeypatch.setattr(measure, "measure", once)
    monkeypatch.setattr(ops, "_SERVED_DEVICES", ("cpu",))
    monkeypatch.delenv(ops.SWITCH, raising=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_without_a_gpu_it_ends_with_2_and_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no CUDA GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_missing_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_check.why_not_here() == ""
    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert "Triton is not installed" in gpu_check.why_not_here()


def test_unknown_option() -> None:
    with pytest.raises(SystemExit) as error:
        gpu_check.main(["--fast"])
    assert error.value.code == 2


def test_median_and_spread() -> None:
    timing = measure.summarise([float(i) for i in range(100, -1, -1)])
    assert timing == Timing(50.0, 10.0, 90.0, 101)


def test_rates_are_work_over_median() -> None:
    row = measure.rate(timed("c", "m", 2.0), CEILINGS, flops=6e11, moved_bytes=1e9, dtype="float16")
    assert (row.tflops, row.of_gemm, row.gb_s, row.of_copy) == pytest.approx((300.0, 0.5, 500.0, 0.2))
    absent = Row("c", "m", not_run="out of time")
    assert measure.rate(absent, CEILINGS, 1.0, 1.0, "float16") == absent


def test_one_failure_does_not_lose_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Callable[[], Any], budget_s: float) -> Timing:
        raise RuntimeError("CUDA error: no kernel image\nmore")

    monkeypatch.setattr(measure, "measure", broken)
    assert measure.attempt("c", "m", lambda: None, Deadline(60)).not_run == "RuntimeError: CUDA error: no kernel image"
    assert measure.attempt("c", "m", lambda: None, Deadline(0)).not_run == "out of time"


def test_numerics_pass_in_the_interpreter_and_can_fail(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "ATTENTION_SHAPES", ((1, 2, 33),))
    monkeypatch.setattr(numerics, "PATCH_SHAPES", (((2, 3, 2), (5, 3, 4), 3, 7, 40),))
    checks = numerics.run()
    half, counts = checks[: 2 * (3 + 4)], checks[2 * (3 + 4) :]
    assert [check for check in checks if not check.passed] == []
    assert all(check.error > 0 for check in half), "half precision cannot be exact"
    assert [(check.error, check.bound) for check in counts] == 4 * [(0.0, 0.0)]
    assert not dataclasses.replace(counts[0], error=1.0).passed
    assert not dataclasses.replace(checks[0], error=checks[0].bound * 1.01).passed
    assert not dataclasses.replace(checks[0], error=float("nan")).passed


def test_every_method_counts_the_same_tissue(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tissue_counts, "GRIDS", ((8, 4),))
    methods = tissue_counts.methods(8, 4)
    counts = methods[tissue_counts.KERNEL]()
    assert torch.equal(counts, methods[tissue_counts.UNFUSED]())
    assert 0 < counts.sum() < 512
    rows = tissue_counts.run(CEILINGS, Deadline(60))
    assert [row.method for row in rows] == list(methods)
    assert all(row.gb_s == pytest.approx(512 * 4 / 1e6) for row in rows)  # in the one millisecond of the played clock
    assert {row.tflops for row in rows} == {None}


def test_every_method_of_the_patch_embedding_computes_the_same(
    on_the_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all patches kept in order, so that Conv3d and reshape + GEMM, which know no choice, are comparable."""
    monkeypatch.setattr(patch_embed3d, "WIDTH", 8)
    monkeypatch.setattr(patch_embed3d.torch, "randn", zero_position(torch.randn))
    methods = patch_embed3d.methods(2, 8, 8, 4, torch.float32)
    results = {name: run().float() for name, run in methods.items()}
    assert set(results) == {patch_embed3d.KERNEL, patch_embed3d.CONV, patch_embed3d.GEMM, patch_embed3d.UNFUSED}
    for result in results.values():
        torch.testing.assert_close(result, results[patch_embed3d.GEMM], rtol=0, atol=2e-3)


def zero_position(randn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Draw as usual, but a table of 8 positions of 8 channels is zero."""
    return lambda *shape, **options: randn(*shape, **options) * (0 if shape == (8, 8) else 1)


def test_attention_rows(on_the_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "cases", lambda full: [(1, 2, 20, 32, torch.float16)])
    rows = attention.run(CEILINGS, Deadline(600))
    assert [row.method for row in rows] == [attention.KERNEL, *attention.BACKENDS]
    ours, math = rows[0], rows[-1]
    assert ours.timing is not None
    assert ours.tflops == pytest.approx(4 * 2 * 20 * 20 * 32 / 1e-3 / 1e12)
    assert math.timing is not None
    assert "RuntimeError" in next(row for row in rows if row.method == "SDPA cuDNN").not_run


@pytest.fixture
def small_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    from decipher_rt.train.model.vit import ViTConfig

    config = dataclasses.replace(
        ViTConfig.PRESETS["tiny"], grid_shape=(32, 32, 32), patch_shape=(16, 16, 16), token_buckets=(8,), depth=2
    )
    monkeypatch.setattr(encoder, "base_config", lambda: config)
    monkeypatch.setattr(encoder, "GRID", 32)
    monkeypatch.setattr(encoder, "TOKENS", (5,))


def test_encoder_methods_agree_with_fp32(
    on_the_cpu: None, small_encoder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    for name in ("patch_embed3d", "attention"):
        monkeypatch.setattr(ops, name, counted(getattr(ops, name), used, name))
    # Traced as on a GPU, in one graph without a break, but not handed to a code generator.
    traced = functools.partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr(encoder, "in_a_graph", lambda case, method, *_: timed(case, method, 1.0))
    rows, agreements = encoder.run(CEILINGS, Deadline(600))
    assert [row.not_run for row in rows if row.not_run] == []
    methods = [encoder.EAGER, encoder.SDPA, encoder.COMPILED, encoder.KERNELS]
    assert [a.method for a in agreements] == methods * 2
    assert all(a.embedding_cosine > 0.999 for a in agreements)
    assert used.count("attention") == 2 * used.count("patch_embed3d") > 0
    assert {row.case for row in rows} >= set(encoder.floors_ms(CEILINGS))


def counted(function: Any, used: list[str], name: str) -> Callable[..., torch.Tensor]:
    def call(*arguments: Any) -> torch.Tensor:
        used.append(name)
        return function(*arguments)

    return call


def test_methods_leave_the_model_as_it_was(
    on_the_cpu: None, small_encoder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    model = encoder.build().half()
    for use in encoder.variants(model).values():
        with use():
            pass
    assert not any("forward" in vars(module) or "embed" in vars(module) for module in model.modules())


def test_flops_are_what_torch_counts(small_encoder: None) -> None:
    from decipher_rt.train.model.vit import ViT

    config = encoder.base_config()
    with torch.device("meta"):
        model = ViT(config).eval()
        inputs = (torch.empty(1, 1, 32, 32, 32), torch.empty(1, 2), torch.empty(1, 5, dtype=torch.int64))
    with (
        FlopCounterMode(display=False) as counter,
        encoder.attention_of(model, lambda q, k, v: (q @ k.mT).softmax(-1) @ v),
    ):
        model(*inputs)
    head = 2 * 2 * config.width * config.embedding_size  # the projection of the embedding, left out as negligible
    assert counter.get_total_flops() == encoder.flops(config, 5) + head


def test_floor_is_the_larger_of_arithmetic_and_weights(small_encoder: None) -> None:
    config = encoder.base_config()
    slow_gemm = Ceilings({"float16": 1e-3}, 1e9)
    assert encoder.floor_ms(config, 5, 1.0, slow_gemm, "float16") == pytest.approx(encoder.flops(config, 5) / 1e6)
    slow_copy = Ceilings({"float16": 1e9}, 100.0)
    assert encoder.floor_ms(config, 5, 2e9, slow_copy, "float16") == pytest.approx(20.0)


def test_absent_engines_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "installed", lambda module: False)
    sections = engines.run(Deadline(600), CEILINGS)
    assert {name: rows[0].not_run for name, rows in sections.items()} == {
        "onnxruntime": "not installed: onnxruntime, numpy",
        "onnxruntime, ViT-Base": "not installed: onnxruntime, onnx",
        "TensorRT": "not installed: tensorrt, onnx",
        "TensorRT-RTX": "not installed: tensorrt_rtx_bindings, onnx",
        "DALI on the GPU": "not installed: nvidia.dali, numpy",
        "runtime from DICOM": "not installed: nvidia.dali, onnxruntime, pydicom, numpy",
    }
    assert not importlib.util.find_spec("tensorrt_rtx_that_is_nowhere")
    monkeypatch.undo()
    assert engines.installed("nvidia.dali")
    assert not engines.installed("nowhere.at.all")


def test_engine_sections_run_where_the_libraries_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "ROUNDS", 2)
    rows = engines.onnxruntime("CPUExecutionProvider")
    assert [row.not_run for row in rows] == [""] * len(rows)
    assert all("CUDAExecutionProvider" in row.not_run for row in engines.onnxruntime("CUDAExecutionProvider"))
    *stages, passed_over = engines.runtime()
    assert stages[-1].case == "demo series, total"
    assert stages[-1].timing is not None
    parts = sum(row.timing.median_ms for row in stages[:-1] if row.timing is not None)
    assert parts == pytest.approx(stages[-1].timing.median_ms, rel=0.25)  # medians of two runs need not add up exactly
    # The machine's best engine is asked for; here the GPU's are passed over, and each says why.
    assert passed_over.case == "demo series, engines before this one"
    for engine in ("tensorrt: ", "tensorrt-rtx: ", "onnxruntime-cuda: "):
        assert engine in passed_over.not_run


def test_vit_base_runs_on_onnxruntime_in_each_precision(small_encoder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "TOKENS", (5, 8))
    rows = onnx_base.run("CPUExecutionProvider", CEILINGS, Deadline(600))
    assert [(row.case, row.not_run) for row in rows] == [
        (f"ViT-Base {precision} K={k}, from the grid on the device to the host", "")
        for precision in ("fp16", "fp32")
        for k in (5, 8)
    ]
    config = encoder.base_config()
    for row, k in zip(rows, (5, 8, 5, 8), strict=True):
        assert row.timing is not None
        assert row.tflops == pytest.approx(encoder.flops(config, k) / row.timing.median_ms / 1e9)
        assert (row.of_gemm is None) == ("fp32" in row.case), "the ceiling is of half precision"
    absent = onnx_base.run("CUDAExecutionProvider", CEILINGS, Deadline(600))
    assert [row.not_run.split(" is built")[1] for row in absent] == [" without CUDAExecutionProvider"]
    late = onnx_base.run("CPUExecutionProvider", CEILINGS, Deadline(0))
    assert [(row.case, row.not_run) for row in late] == [
        ("ViT-Base fp16", "out of time"),
        ("ViT-Base fp32", "out of time"),
    ]


def test_every_number_of_tokens_is_timed_or_out_of_time(small_encoder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_base, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(onnx_base, "LEAST_CASE_S", 1e9)
    (row,) = onnx_base.run("CPUExecutionProvider", CEILINGS, Deadline(600))
    assert (row.case, row.not_run) == (encoder.from_grid("fp32", 5), "out of time")


def test_rates_of_engines_know_their_precision(small_encoder: None) -> None:
    config = encoder.base_config()
    row = timed("c", "m", 2.0)
    for precision, share, size in (("fp16", 600.0, 2), ("bf16", 650.0, 2), ("int8", None, 1), ("fp32", None, 4)):
        rated = encoder.rated(row, CEILINGS, config, 5, precision)
        assert rated.tflops == pytest.approx(encoder.flops(config, 5) / 2e-3 / 1e12)
        assert rated.of_gemm == (None if share is None else pytest.approx(rated.tflops / share))
        assert rated.gb_s == pytest.approx(size * encoder.weights(config) / 2e-3 / 1e9)
    assert encoder.rated(Row("c", "m", not_run="no"), CEILINGS, config, 5, "fp16").tflops is None


def test_weights_are_those_of_the_modules(small_encoder: None) -> None:
    from decipher_rt.train.model.vit import ViT

    config = encoder.base_config()
    with torch.device("meta"):
        model = ViT(config)
    matrices = sum(
        p.numel() for name, p in model.named_parameters() if p.ndim == 2 and ("blocks" in name or "patch" in name)
    )
    assert encoder.weights(config) == matrices


def test_targets() -> None:
    attention_rows = [
        timed("B=64 H=32 N=512 d=64 float16", attention.KERNEL, 1.0, tflops=350.0),
        timed("B=64 H=32 N=512 d=64 float16", "SDPA flash", 0.96),
        timed("B=64 H=32 N=512 d=64 float16", "SDPA math", 9.0),
        Row("B=1 H=1 N=1 d=64 float16", attention.KERNEL, not_run="out of time"),
    ]
    patch_rows = [
        timed("p", patch_embed3d.KERNEL, 1.0),
        timed("p", patch_embed3d.CONV, 10.9),
        timed("p", patch_embed3d.GEMM, 1.1),
    ]
    encoder_rows = [timed("e", encoder.EAGER, 5.0), timed("e", encoder.KERNELS, 3.0)]
    judged = targets.judge(attention_rows, patch_rows, encoder_rows, {"e": 1.6})
    assert [t.met for t in judged] == [True, True, None, False, True, True]
    assert "1.04 times SDPA flash" in judged[1].measured
    assert judged[2].measured == "not measured: out of time"
    assert "1.88 times (eager, kernels" in judged[-1].measured
    assert [t.met for t in targets.judge([], [], [], {})] == [None]


def test_no_target_is_dropped() -> None:
    """What ran on neither side, on one side only, or in no row at all is told with its reason."""
    no = {"not_run": "RuntimeError: no kernel image"}
    case = "B=64 H=32 N=512 d=64 float16"
    attention_rows = [Row(case, attention.KERNEL, **no), timed(case, "SDPA flash", 1.0)]
    attention_rows += [timed("b", attention.KERNEL, 1.0), Row("b", "SDPA flash", not_run="out of memory")]
    patch_rows = [
        timed("p", patch_embed3d.KERNEL, 1.0),
        Row("p", patch_embed3d.CONV, not_run="out of time"),
        timed("p", patch_embed3d.GEMM, 1.1),
        Row("q", patch_embed3d.KERNEL, **no),
        timed("q", patch_embed3d.CONV, 1.0),
        timed("q", patch_embed3d.GEMM, 1.0),
    ]
    encoder_rows = [Row("e", encoder.EAGER, not_run="out of time")]
    judged = targets.judge(attention_rows, patch_rows, encoder_rows, {"e": 1.6, "f": 1.7})
    assert [(t.claim.split(", ")[-1], t.met, t.measured) for t in judged] == [
        ("large batch", None, "not measured: RuntimeError: no kernel image"),
        (case, None, "not measured: RuntimeError: no kernel image"),
        ("b", None, "not measured: out of memory"),
        ("p", None, "not measured: out of time"),
        ("p", True, "1.1 times"),
        ("q", None, "not measured: RuntimeError: no kernel image"),
        ("q", None, "not measured: RuntimeError: no kernel image"),
        ("e", None, "not measured: out of time"),
        ("f", None, "not measured: not part of this run"),
    ]


@pytest.fixture
def example() -> report.Report:
    return report.Report(
        machine={"card": "NVIDIA H100 80GB HBM3", "PyTorch": "2.13.0"},
        command="python benchmarks/gpu_check.py",
        seconds=301.2,
        ceilings=CEILINGS,
        numerics=[numerics.Check("fine", 0.1, 0.2), numerics.Check("broken", float("inf"), 0.2)],
        sections={
            "attention": [timed("a|b", "m", 1.5, tflops=300.0, of_gemm=0.5), Row("c", "n", not_run="out of memory")]
        },
        agreements=[encoder.Agreement("e", "kernels", 0.99999, 0.01)],
        targets=[targets.Target("fast", "at least 1", "2", True), targets.Target("faster", "at least 3", "2", False)],
    )


def test_report_files(example: report.Report, tmp_path: Path) -> None:
    for path in report.write(example, tmp_path / "results"):
        assert path.parent == tmp_path / "results"
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == [
        "gpu-nvidia-h100-80gb-hbm3.json",
        "gpu-nvidia-h100-80gb-hbm3.md",
    ]
    document = json.loads((tmp_path / "results" / "gpu-nvidia-h100-80gb-hbm3.json").read_text())
    assert document["schema"] == "decipher-rt/gpu-check/1"
    assert [check["passed"] for check in document["numerics"]] == [True, False]
    assert document["sections"]["attention"][0]["timing"]["median_ms"] == 1.5


def test_markdown_tables(example: report.Report) -> None:
    text = report.markdown(example)
    assert "| a\\|b | m | 1.500 | 1.350 to 1.650 | 300.0 | 50% | - | - |" in text
    assert "- c, n: not run: out of memory" in text
    assert "1 of 2 within their bounds" in text
    assert "- FAILED broken: error inf, bound 0.2" in text
    assert "| faster | at least 3 | 2 | **no** |" in text
    lines = text.splitlines()
    for before, rule in itertools.pairwise(lines):
        if rule.startswith("| ---"):
            assert before.replace("\\|", "").count("|") == rule.count("|")
