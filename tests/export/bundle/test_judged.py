"""Which encoders are judged on known series, and one that loses too much."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from decipher_rt.bundle import Bundle
from decipher_rt.engines import load_engine
from decipher_rt.errors import EngineError
from decipher_rt.export import bundle as export_module
from decipher_rt.export import known as known_module
from decipher_rt.export.evaluate import Judge
from decipher_rt.export.known import KnownSeries
from decipher_rt.manifest import Numerics
from decipher_rt.train.decoders.contract import Known
from decipher_rt.train.weights import Weights


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ([], 0),
        (["--fp16"], 320),
        (["--fp16", "--evaluate", "7"], 7),
        (["--fp16", "--evaluate", "0"], 0),
        (["--int8"], 512),
        (["--bf16", "--engine", "tensorrt-rtx"], 320),
        (["--fp16", "--engine", "tensorrt"], 512),
    ],
)
def test_every_reduced_precision_is_judged(
    monkeypatch: pytest.MonkeyPatch, run_export: Callable[..., Result], arguments: list[str], count: int
) -> None:
    asked: list[int] = []

    def exported(*_: object, judge: Judge | None, **__: object) -> tuple[Numerics, ...]:
        if judge is not None:
            assert list(judge.series()) == []
            assert judge.max_drop == 0.5
        return (Numerics("fp32", 1.0, 0.0, 0.0, 0.0, 1e-3),)

    def series(_config: object, split: str, wanted: int, *_: object) -> list[KnownSeries]:
        assert split == "test"
        asked.append(wanted)
        return []

    monkeypatch.setattr(export_module, "export_bundle", exported)
    monkeypatch.setattr(known_module, "known_series", series)
    monkeypatch.setattr(known_module, "calibration_inputs", lambda *_: [])
    run_export("--json", *arguments)
    assert asked == ([count] if count else [])


def test_half_precision_alone_has_its_figures_and_can_be_refused(
    weights: Weights,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    run_export: Callable[..., Result],
    exported_again: Callable[..., None],
) -> None:
    exported_again()
    rng = np.random.default_rng(3)
    inputs = [
        {
            "volume": rng.normal(1500, 900, (1, 1, *weights.config.encoder.grid_shape)).astype(np.float32),
            "window": np.array([[0, 3000]], np.float32),
            "tokens": np.sort(rng.choice(96, 24, replace=False)).astype(np.int64)[None],
        }
        for _ in range(8)
    ]
    encoder = load_engine("onnxruntime", bundle.file("encoder.onnx"), precision="fp32")
    patches = torch.from_numpy(np.concatenate([encoder.run(one)["patch"] for one in inputs]))
    with torch.no_grad():
        strongest = weights.model.decoders["lesion"].pool(patches)[:, 0].argsort()[4:].tolist()

    def series(*_: object) -> Iterator[KnownSeries]:
        for number, one in enumerate(inputs):
            labels = {"sequence": "T1w", "lesion": "present" if number in strongest else "absent"}
            yield KnownSeries(one, Known(labels, boxes=None, kind="head", tissue=False), heads=("sequence", "lesion"))

    monkeypatch.setattr(known_module, "known_series", series)
    arguments = ("--fp16", "--evaluate", "8", "--json")
    rows = json.loads(run_export(*arguments, "--max-drop", "100").stdout)["numerics"]
    assert [(row["precision"], set(row["metrics"])) for row in rows] == [
        ("fp32", {"sequence", "lesion"}),
        ("fp16", {"sequence", "lesion"}),
    ]
    assert rows[0]["metrics"]["lesion"] == 100.0

    engine = type(encoder)
    whole = engine.run

    def turned(self: Any, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = whole(self, given)
        judged = any(given.get("volume") is one["volume"] for one in inputs)
        return {**outputs, "patch": -outputs["patch"]} if self.precision == "fp16" and judged else outputs

    monkeypatch.setattr(engine, "run", turned)
    with pytest.raises(EngineError, match=r"onnx fp16 encoder loses too much.*lesion falls from 100\.00 to") as caught:
        run_export(*arguments)
    assert " % on 8 series (allowed 0.5 points)" in str(caught.value)
    assert str(caught.value).endswith("; --max-drop allows more, --evaluate 0 judges nothing")
