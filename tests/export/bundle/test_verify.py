"""The golden case of a bundle: it passes, and what of it is damaged is found."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decipher_rt.bundle import Bundle, open_bundle
from decipher_rt.errors import BundleError
from decipher_rt.manifest import Precision
from decipher_rt.verify import read_case, verify_bundle

Case = dict[str, np.ndarray]


@pytest.fixture
def damaged(
    bundle: Bundle, tmp_path: Path, rewrite_bundle: Callable[..., Path]
) -> Callable[[Callable[[Case], Any]], Bundle]:
    """A function that gives a bundle whose golden case was changed, sums and all."""

    def damage(change: Callable[[Case], Any]) -> Bundle:
        with np.load(bundle.file("golden/case.npz")) as stored:
            case = dict(stored)
        change(case)
        buffer = io.BytesIO()
        np.savez(buffer, **case)
        return open_bundle(rewrite_bundle(bundle.path, tmp_path, {"golden/case.npz": buffer.getvalue()}))

    return damage


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_verify_passes(bundle: Bundle, engine: str, precision: Precision) -> None:
    report = verify_bundle(bundle, engine, precision)
    assert report.passed, report
    assert [row.output for row in report.rows] == ["patch", "embedding", "heads.sequence", "heads.lesion", "scope"]
    assert report.embedding_cosine > 0.9999


def test_verify_fails_where_an_output_differs(damaged: Callable[..., Bundle]) -> None:
    def change(case: Case) -> None:
        case["heads.sequence"] = case["heads.sequence"][:, ::-1]

    report = verify_bundle(damaged(change), "onnxruntime", "fp32")
    assert not report.passed
    assert [row.output for row in report.rows if not row.passed] == ["heads.sequence"]


def test_verify_says_what_the_golden_case_lacks(damaged: Callable[..., Bundle]) -> None:
    with pytest.raises(BundleError, match=r"golden/case.npz has no array scope"):
        verify_bundle(damaged(lambda case: case.pop("scope")), "onnxruntime", "fp32")


def test_verify_refuses_pickled_arrays(damaged: Callable[..., Bundle]) -> None:
    def change(case: Case) -> None:
        case["scope"] = np.array([{"a": 1}], dtype=object)

    with pytest.raises(BundleError, match="not an archive of arrays"):
        verify_bundle(damaged(change), "onnxruntime", "fp32")


def test_a_golden_case_that_is_no_archive_is_one_line(
    bundle: Bundle, tmp_path: Path, rewrite_bundle: Callable[..., Path]
) -> None:
    plain = io.BytesIO()
    np.save(plain, np.zeros(3))
    whole = bundle.file("golden/case.npz").read_bytes()
    for number, content in enumerate((b"", plain.getvalue(), whole[:1000], b"PK\x03\x04" + bytes(100))):
        folder = tmp_path / str(number)
        folder.mkdir()
        broken = open_bundle(rewrite_bundle(bundle.path, folder, {"golden/case.npz": content}))
        with pytest.raises(BundleError, match="not an archive of arrays"):
            read_case(broken)


def test_a_golden_case_of_text_is_one_line(damaged: Callable[..., Bundle]) -> None:
    with pytest.raises(BundleError, match="has a volume of <U1"):
        read_case(damaged(lambda case: case.update(volume=np.array(["a"]))))
