"""What an export refuses to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from decipher_rt.errors import EngineError
from decipher_rt.export.bundle import export_bundle
from decipher_rt.train.golden import GoldenCase
from decipher_rt.train.weights import Weights


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("encoder.onnx", "the fp32 graphs differ.*patch differs by .*tolerance 0.001"),
        ("encoder.fp16.onnx", "the fp16 graphs differ.*patch differs by .*tolerance 0.05"),
        ("heads/lesion.onnx", "the fp32 graphs differ.*heads.lesion differs by"),
        ("scope.onnx", "the fp32 graphs differ.*scope differs by"),
    ],
)
def test_a_graph_that_differs_is_refused_and_nothing_is_written(
    weights: Weights, case: GoldenCase, tmp_path: Path, exported_again: Callable[..., None], file: str, said: str
) -> None:
    def change(values: np.ndarray) -> None:
        values.flat[: values.size // 2] *= 3

    exported_again(file, change)
    with pytest.raises(EngineError, match=said) as caught:
        export_bundle(weights, case, tmp_path / "bundle", fp16=True)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_output_that_is_not_finite_is_refused(
    weights: Weights, case: GoldenCase, tmp_path: Path, exported_again: Callable[..., None]
) -> None:
    exported_again("heads/sequence.onnx", lambda values: values.fill(np.nan))
    with pytest.raises(EngineError, match=r"heads.sequence differs by inf"):
        export_bundle(weights, case, tmp_path / "bundle", fp16=True)
    assert not list(tmp_path.iterdir())
