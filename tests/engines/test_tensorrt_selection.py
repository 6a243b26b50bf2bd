"""Which engine encodes: what is asked for or an error, and with ``auto`` the first that can, with reasons."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

from decipher_rt import encoder as module
from decipher_rt.bundle import Bundle, open_bundle
from decipher_rt.encoder import Encoder, cpu_engine, load_encoder, why_not
from decipher_rt.engines import cuda, load_engine
from decipher_rt.engines.select import AUTO_ORDER, built_by, plan_entries
from decipher_rt.errors import BundleError, EngineError
from decipher_rt.manifest import EngineFile
from decipher_rt.session import Session

BUILT = {"architectures": "sm_86 sm_89", "tokens": "128 256"}
PLANS = (
    EngineFile("tensorrt-rtx", "fp16", "engines/rtx.plan", BUILT),
    EngineFile("tensorrt-sm_89", "fp16", "engines/a.plan", {"architectures": "sm_89", "tokens": "128"}),
    EngineFile("tensorrt-sm_89", "fp16", "engines/b.plan", {"architectures": "sm_89", "tokens": "256"}),
)


@pytest.fixture
def bundle() -> Bundle:
    return open_bundle()


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise EngineError("no NVIDIA driver")

    monkeypatch.setattr(cuda, "_library", absent)


def with_plans(bundle: Bundle) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, engines=bundle.manifest.engines + PLANS))


def test_auto_without_a_gpu_runs_on_the_cpu_and_says_why(bundle: Bundle, no_driver: None) -> None:
    chosen = load_encoder(bundle, "auto", "fp32", 1)
    assert (chosen.engine.name, chosen.engine.device) == ("onnxruntime", "cpu")
    assert chosen.fallback is not None
    reasons = dict(reason.split(": ", 1) for reason in chosen.fallback.split("; "))
    assert list(reasons) == list(AUTO_ORDER[:-1])
    assert reasons["tensorrt"] == reasons["tensorrt-rtx"] == "no NVIDIA driver"


def test_the_reasons_are_in_every_result(bundle: Bundle, no_driver: None) -> None:
    described = Session(bundle, engine="auto", threads=1)._describe_engine(512)
    schema = json.loads((files("decipher_rt") / "schemas" / "result-1.schema.json").read_text())
    jsonschema.validate(described, schema["properties"]["engine"])
    assert "tensorrt: no NVIDIA driver" in described["fallback"]
    assert described["sha256"] == bundle.sums["encoder.onnx"]


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_that_was_asked_for_runs_or_is_an_error(bundle: Bundle, no_driver: None, engine: str) -> None:
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        load_encoder(bundle, engine, "fp32", 1)


@pytest.mark.parametrize("best", ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda"])
def test_auto_takes_the_first_that_loads(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, best: str) -> None:
    tried = []

    def load(_bundle: Bundle, engine: str, *_: Any) -> Encoder:
        tried.append(engine)
        if engine != best:
            raise (BundleError if engine == "tensorrt" else EngineError)(f"not {engine}")
        return Encoder(engine, bundle.manifest.engines[0])  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_load", load)
    chosen = load_encoder(bundle, "auto", "fp16", 1)
    assert chosen.engine == best
    assert tried == list(AUTO_ORDER[: AUTO_ORDER.index(best) + 1])
    expected = "; ".join(f"{name}: not {name}" for name in tried[:-1])
    assert chosen.fallback == (expected or None)


def test_a_library_that_fails_in_its_own_way_does_not_end_auto(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    load = module._load

    def fail(bundle: Bundle, engine: str, *others: Any) -> Encoder:
        if engine == "onnxruntime":
            return load(bundle, engine, *others)
        raise {"tensorrt": AttributeError, "tensorrt-rtx": RuntimeError}.get(engine, ValueError)("no\nsuch thing")

    monkeypatch.setattr(module, "_load", fail)
    chosen = load_encoder(bundle, "auto", "fp32", 1)
    assert chosen.engine.name == "onnxruntime"
    assert chosen.fallback == (
        "tensorrt: AttributeError: no such thing; tensorrt-rtx: RuntimeError: no such thing; "
        "onnxruntime-cuda: ValueError: no such thing"
    )


def test_plans_of_a_card_are_all_its_buckets(bundle: Bundle) -> None:
    manifest = with_plans(bundle).manifest
    assert [entry.file for entry in plan_entries(manifest, "tensorrt", "fp16", 89)] == [
        "engines/a.plan",
        "engines/b.plan",
    ]
    assert [entry.file for entry in plan_entries(manifest, "tensorrt-rtx", "fp16", 86)] == ["engines/rtx.plan"]
    with pytest.raises(
        EngineError, match=r"for sm_89, this card is sm_86; build one: .* --engine tensorrt on this machine"
    ):
        plan_entries(manifest, "tensorrt", "fp16", 86)
    with pytest.raises(EngineError, match=r"for no card, .* --bf16 --engine tensorrt-rtx --arch sm_86$"):
        plan_entries(manifest, "tensorrt-rtx", "bf16", 86)
    with pytest.raises(
        EngineError, match=r"--fp16 --engine tensorrt on this machine, and run it with --precision fp16"
    ):
        plan_entries(manifest, "tensorrt", "fp32", 86)


def test_a_plan_is_for_the_card_that_it_was_built_on(bundle: Bundle) -> None:
    manifest = with_plans(bundle).manifest
    about = {
        entry.file: {**entry.built_with, "card": "NVIDIA L4"} for entry in manifest.engines if "sm_89" in entry.target
    }
    built = tuple(replace(one, built_with=about.get(one.file, one.built_with)) for one in manifest.engines)
    named = replace(manifest, engines=built)
    ours = plan_entries(manifest, "tensorrt", "fp16", 89, "NVIDIA L4")  # of an older export: nothing is said
    assert [one.file for one in plan_entries(named, "tensorrt", "fp16", 89, "NVIDIA L4")] == [one.file for one in ours]
    with pytest.raises(
        EngineError, match=r"engines built on NVIDIA L4, this card is NVIDIA RTX 6000 Ada .* sm_89; build"
    ):
        plan_entries(named, "tensorrt", "fp16", 89, "NVIDIA RTX 6000 Ada Generation")


@pytest.mark.parametrize("architecture", [87, 90, 100])
def test_a_card_that_rtx_does_not_know_is_advised_to_build_with_tensorrt(bundle: Bundle, architecture: int) -> None:
    with pytest.raises(
        EngineError, match=rf"this card is sm_{architecture}; build one: .* --int8 --engine tensorrt on this machine$"
    ):
        plan_entries(bundle.manifest, "tensorrt-rtx", "int8", architecture)


@pytest.mark.parametrize(
    ("target", "built", "expected"),
    [
        ("tensorrt-sm_89", {"tensorrt": "10.13.0"}, "tensorrt 10.13.0"),
        ("tensorrt-rtx", {"tensorrt_rtx": "1.7.1", "onnx": "1.19"}, "tensorrt-rtx 1.7.1"),
        ("tensorrt-rtx", {"onnx": "1.19"}, ""),
    ],
)
def test_what_built_a_plan(target: str, built: dict[str, str], expected: str) -> None:
    assert built_by(EngineFile(target, "fp16", "a.plan", built)) == expected


@pytest.mark.parametrize(("architecture", "reason"), [(89, None), (90, "this card is sm_90")])
def test_doctor_can_say_so_without_loading(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, architecture: int, reason: str | None
) -> None:
    class Card:
        def __init__(self, index: int) -> None:
            self.architecture = architecture if index == 0 else None
            self.name = "NVIDIA L4"

    monkeypatch.setattr(cuda, "Device", Card)
    monkeypatch.setattr(module, "available", lambda: [type("A", (), {"name": "tensorrt", "available": True})()])
    said = why_not(with_plans(bundle), "tensorrt", "fp16")
    assert said is None if reason is None else reason in said


def test_a_plan_is_no_onnx_graph(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"tensorrt runs the plans of a bundle, not the ONNX graph encoder\.onnx"):
        load_engine("tensorrt", bundle.file("encoder.onnx"), precision="fp32")


def test_int8_is_left_to_the_cpu_where_only_cuda_would_run_it(bundle: Bundle, no_driver: None) -> None:
    refusal = "onnxruntime-cuda runs no int8: "
    with pytest.raises(EngineError, match=refusal):
        load_encoder(bundle, "onnxruntime-cuda", "int8", 1)
    said = why_not(bundle, "onnxruntime-cuda", "int8")
    assert said is not None
    assert said.startswith(refusal)
    chosen = load_encoder(bundle, "auto", "int8", 1)
    assert (chosen.engine.name, chosen.engine.precision) == ("onnxruntime", "int8")
    assert f"; onnxruntime-cuda: {said}" in str(chosen.fallback)


def test_onnxruntime_does_not_go_on_silently_without_cuda(bundle: Bundle) -> None:
    import onnxruntime

    from decipher_rt.engines.onnxruntime import OnnxRuntimeEngine

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has its CUDA provider")
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(EngineError, match="no usable CUDA"):
        OnnxRuntimeEngine(bundle.file("encoder.onnx"), precision="fp32", card=0)


def test_heads_run_on_the_cpu_beside_a_gpu() -> None:
    assert [cpu_engine(name) for name in ("openvino", "tensorrt", "onnxruntime-cuda", "auto")] == [
        "openvino", "onnxruntime", "onnxruntime", "onnxruntime",
    ]  # fmt: skip
