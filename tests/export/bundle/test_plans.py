"""TensorRT engines in a bundle, whose buckets are builds of their own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import Result

from decipher_rt.bundle import Bundle, open_bundle
from decipher_rt.engines import load_engine
from decipher_rt.engines.select import plan_entries
from decipher_rt.errors import EngineError
from decipher_rt.export import bundle as export_module
from decipher_rt.export import runnable as runnable_module
from decipher_rt.export import verify as verify_module
from decipher_rt.export.bundle import export_bundle
from decipher_rt.export.runnable import runnable_encoders, write_files
from decipher_rt.export.tensorrt.files import Wanted
from decipher_rt.manifest import EngineFile
from decipher_rt.train.golden import GoldenCase
from decipher_rt.train.weights import Weights


class Bucketed:
    """The fp32 graph in a plan's place; from the bucket of ``broken`` tokens come other tokens."""

    def __init__(self, graph: Path, broken: int) -> None:
        self._engine, self._broken, self.ran = load_engine("onnxruntime", graph, precision="fp32"), broken, list[int]()

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert inputs["volume"].shape[0] == 1, "a plan takes one volume"
        self.ran.append(inputs["tokens"].shape[1])
        outputs = self._engine.run(inputs)
        return {**outputs, "patch": outputs["patch"] * 1.5} if self.ran[-1] == self._broken else outputs


@pytest.mark.parametrize("broken", [0, 24, 48, 96])
def test_every_bucket_of_a_plan_is_compared_with_fp32(
    weights: Weights,
    case: GoldenCase,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exported_again: Callable[..., None],
    broken: int,
) -> None:
    exported_again()
    about = {"architectures": "sm_89"}
    plans = [
        EngineFile("tensorrt-sm_89", "fp16", f"engines/{name}.plan", about | {"tokens": tokens})
        for name, tokens in (("a", "24"), ("b", "48 96"))
    ]
    engine = Bucketed(bundle.file("encoder.onnx"), broken)
    fp32 = load_engine("onnxruntime", bundle.file("encoder.onnx"), precision="fp32")
    monkeypatch.setattr(export_module, "plan_files", lambda *_: ({p.file: b"plan" for p in plans}, plans))
    monkeypatch.setattr(
        verify_module, "runnable_encoders", lambda _, manifest: [(manifest.engines[0], fp32), (plans[0], engine)]
    )
    wanted = Wanted("tensorrt", ("fp16",))
    if broken:
        said = rf"tensorrt-sm_89 fp16 graphs .*patch{'' if broken == 24 else f' of {broken} tokens'} differs by"
        with pytest.raises(EngineError, match=said):
            export_bundle(weights, case, tmp_path / "bundle", fp16=False, plans=wanted)
        return
    numerics = export_bundle(weights, case, tmp_path / "bundle", fp16=False, plans=wanted)
    assert engine.ran == [24, 48, 96]
    assert [row.target for row in numerics] == ["onnx", "tensorrt-sm_89"]


def test_plans_are_read_from_a_bundle_that_is_being_made(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no ``SHA256SUMS`` yet, and what is loaded is named by its sum."""
    entry = EngineFile("tensorrt-sm_89", "fp16", "engines/a.plan", {"architectures": "sm_89", "tokens": "24"})
    write_files(tmp_path, {entry.file: b"plan"})
    manifest = dataclasses.replace(bundle.manifest, engines=(entry,))
    loaded: list[tuple[bytes, str]] = []

    def load(bundle: Bundle, flavour: str, precision: str, threads: int) -> SimpleNamespace:
        loaded.append((bundle.file(entry.file).read_bytes(), bundle.sums[entry.file]))
        return SimpleNamespace(engine=f"{flavour} {precision}")

    monkeypatch.setattr(runnable_module, "_card", lambda: "sm_89")
    monkeypatch.setattr(runnable_module, "load_encoder", load)
    assert list(runnable_encoders(tmp_path, manifest)) == [(entry, "tensorrt fp16")]
    assert loaded == [(b"plan", hashlib.sha256(b"plan").hexdigest())]


def test_other_buckets_of_the_golden_case_are_of_it(weights: Weights, case: GoldenCase) -> None:
    inputs = {"tokens": torch.from_numpy(case.tokens)[None]}
    for K in (8, 24, 40, 96):
        found = export_module._of_bucket(inputs, weights.config.encoder.preprocessing, K)["tokens"][0].tolist()
        assert len(set(found)) == K
        assert found == sorted(found)
        assert len(set(found) & set(case.tokens.tolist())) == min(K, 24)


@pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="the extra tensorrt-rtx is absent")
def test_command_builds_an_engine_for_a_card_that_is_not_here(
    tmp_path: Path, run_export: Callable[..., Result], exported_again: Callable[..., None]
) -> None:
    exported_again()
    run = run_export("--engine", "tensorrt-rtx", "--arch", "sm_89", "--fp16", "--evaluate", "0")
    assert "tensorrt-rtx engines are built and not run: no card for them here." in run.output
    opened = open_bundle(tmp_path / "bundle")
    (entry,) = plan_entries(opened.manifest, "tensorrt-rtx", "fp16", 89)
    assert opened.file(entry.file).read_bytes()[1:4] == b"trt"
    assert (entry.built_with["tokens"], entry.built_with["tolerance"]) == ("24 96", "0.05")
    kernels = json.loads(opened.file("kernels/kernels.json").read_text())["kernels"]
    assert {(kernel["kernel"], kernel["architecture"]) for kernel in kernels} == {
        ("patch_embed3d", "sm_89"),
        ("tissue_counts", "sm_89"),
    }
    assert opened.file("kernels/patch_embed3d.npz").is_file()
