"""C and Python on the same volumes: the same embedding, tokens, scope and answers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decipher_rt.boxes import Box
from decipher_rt.bundle import open_bundle
from decipher_rt.errors import DecipherError
from decipher_rt.label_map import on_source
from decipher_rt.result import HeadAnswer
from decipher_rt.series import ReadOptions, find_series, read_series
from decipher_rt.session import Session
from decipher_rt.volume import Acquisition, SeriesInfo, Volume

# onnxruntime and OpenVINO sum in another order; half precision rounds after each operator in both; in int8 a value near
# the middle of two steps goes either way.
MIN_COSINE = {"fp32": 0.9999, "fp16": 0.9999, "int8": 0.999}
PROBABILITY_TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "int8": 2e-2}

IN_PROCESS, WORKER = 0, 1  # drt_mode
REAL_SERIES = (
    "ge_epi_fmri_ax",
    "ge_t1_mprage_ax",
    "philips_enhanced_fmap",
    "philips_t1_mprage_sag",
    "siemens_epi_fmri",
    "siemens_t1_fl2d_sag_hfp",
    "siemens_t1_fl2d_sag_hfs",
    "siemens_xa10_enhanced",
)


def precisions(bundle: Path) -> list[str]:
    return [engine.precision for engine in open_bundle(bundle).manifest.engines if engine.target == "onnx"]


@pytest.fixture(scope="module")
def python_sessions(native_bundle: Path) -> dict[str, Session]:
    bundle = open_bundle(native_bundle)
    return {p: Session(bundle, precision=p, threads=2) for p in precisions(native_bundle)}


@pytest.fixture(scope="module")
def native_sessions(sdk: Any, native_bundle: Path) -> Any:
    sessions = {p: sdk.open(native_bundle, precision=p) for p in precisions(native_bundle)}
    yield sessions
    for session in sessions.values():
        session.close()


def agree(native: Any, python: Session, volume: Volume, precision: str) -> None:
    result = python.infer_volume(volume)
    native.run(
        volume.voxels, volume.affine_lps_mm, slope=volume.slope, intercept=volume.intercept,
        modality=volume.series.acquisition.modality, body_part=volume.series.acquisition.body_part,
    )  # fmt: skip
    embedding = native.embedding()
    assert isinstance(result.embedding, np.ndarray)
    cosine = embedding @ result.embedding / np.linalg.norm(embedding) / np.linalg.norm(result.embedding)
    assert cosine >= MIN_COSINE[precision]
    assert len(native.token_indices()) == result.tokens["kept"]
    scope = native.scope()
    assert bool(scope.inside) == result.scope.inside
    for name, answer in result.heads.items():
        if not scope.inside:
            with pytest.raises(Exception, match="out of scope"):
                native.head_values(name)
            assert answer.not_answered
            continue
        if answer.kind == "localisation":
            same_boxes(native.head_boxes(name), answer.boxes)
            continue
        values = native.head_values(name)
        if answer.label_map is not None:
            same_map(native.head_map(name, volume.voxels.shape), values, answer, volume)
            continue
        if answer.label is None:
            assert values[0] == pytest.approx(answer.value, rel=1e-3)
            continue
        labels = [native.label(name, i) for i in range(len(values))]
        assert labels == list(answer.probabilities)
        np.testing.assert_allclose(values, list(answer.probabilities.values()), atol=PROBABILITY_TOLERANCE[precision])
        assert labels[int(values.argmax())] == answer.label


def same_boxes(found: list[Any], boxes: tuple[Box, ...]) -> None:
    assert len(found) == len(boxes)
    for native, python in zip(found, boxes, strict=True):
        assert native.score == pytest.approx(python.score, abs=2e-2)
        # A tenth of a millimetre: the engines' sums differ, and in int8 the tokens do.
        np.testing.assert_allclose(native.center_lps_mm, python.center_lps_mm, atol=0.1)
        np.testing.assert_allclose(native.size_mm, python.size_mm, atol=0.1)


def same_map(labels: np.ndarray, volumes_ml: np.ndarray, answer: HeadAnswer, volume: Volume) -> None:
    assert answer.label_map is not None
    expected = on_source(answer.label_map, volume.affine_lps_mm, volume.voxels.shape)
    # Where two labels are as likely, engines that sum in another order may choose otherwise.
    assert (labels == expected).mean() >= 0.999
    assert volumes_ml[0] == 0
    np.testing.assert_allclose(volumes_ml[1:], list(answer.volumes_ml.values()), rtol=5e-3, atol=0.5)


def test_label_maps_and_boxes(sdk: Any, answering_bundle: Path) -> None:
    """Toy heads whose answers are plain to see, in every axis order, larger and smaller than the grid."""
    python = Session(open_bundle(answering_bundle), threads=2)
    kinds = {head.kind for head in open_bundle(answering_bundle).manifest.heads}
    assert {"segmentation", "localisation"} <= kinds
    for mode in (IN_PROCESS, WORKER):
        native = sdk.open(answering_bundle, mode=mode)
        generator = np.random.default_rng(0)
        for order in permutations(range(3)):
            shape = tuple(generator.integers(12, 60, 3).tolist())
            affine = np.eye(4)
            affine[:3, :3] = (np.diag(generator.choice([-1, 1], 3) * generator.uniform(1.5, 5, 3)))[:, list(order)]
            affine[:3, 3] = generator.uniform(-60, 60, 3)
            voxels = generator.integers(300, 400, shape).astype(np.int16)
            voxels[tuple(slice(n // 4, n // 2) for n in shape)] = 1000
            voxels[0] = 0
            info = SeriesInfo("1.2.3", Path(), acquisition=Acquisition(modality="MR"))
            agree(native, python, Volume(voxels, affine, info), "fp32")
        native.close()


@pytest.mark.parametrize("mode", [IN_PROCESS, WORKER])
def test_only_the_heads_that_were_asked_for_answer(sdk: Any, answering_bundle: Path, mode: int) -> None:
    names = [head.name for head in open_bundle(answering_bundle).manifest.heads]
    voxels = np.random.default_rng(0).integers(300, 400, (32, 32, 32)).astype(np.int16)
    voxels[8:16, 8:16, 8:16] = 1000
    with sdk.open(answering_bundle, mode=mode) as whole:
        whole.run(voxels, np.diag([4.0, 4, 4, 1]))
        expected = whole.embedding()
    for asked in ([], [names[0]], [names[-1], names[0]]):
        with sdk.open(answering_bundle, mode=mode, heads=",".join(asked).encode()) as some:
            assert [head.name.decode() for head in some.heads()] == [name for name in names if name in asked]
            some.run(voxels, np.diag([4.0, 4, 4, 1]))
            np.testing.assert_array_equal(some.embedding(), expected)
            with pytest.raises(Exception, match=names[1]):
                some.head_values(names[1])


@pytest.mark.parametrize("mode", [IN_PROCESS, WORKER])
@pytest.mark.parametrize("asked", ["sequense", ",", "sequence,", " sequence"])
def test_a_head_that_the_bundle_lacks_is_named(sdk: Any, native_bundle: Path, mode: int, asked: str) -> None:
    with pytest.raises(Exception, match=r"no head '.*'; it has sequence, ") as caught:
        sdk.open(native_bundle, mode=mode, heads=asked.encode())
    assert caught.value.status == 1


@pytest.mark.parametrize("name", REAL_SERIES)
def test_real_series(name: str, shared_data: Path, native_sessions: Any, python_sessions: dict[str, Session]) -> None:
    options = ReadOptions()
    for series in find_series(shared_data / "dicom" / name, options):
        try:
            volume = read_series(series, options)
        except DecipherError:  # not one volume: the reader's tests say why
            continue
        for precision, native in native_sessions.items():
            agree(native, python_sessions[precision], volume, precision)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_synthetic_volumes_in_any_orientation(
    seed: int, dtype: Any, native_sessions: Any, python_sessions: dict[str, Session]
) -> None:
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(9, 80, 3).tolist())
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(generator.normal(size=(3, 3)))[0] * generator.uniform(0.7, 5, 3)
    affine[:3, 3] = generator.uniform(-100, 100, 3)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    signal = (sum(axis**2 for axis in axes) < 0.7) * 180.0 + generator.normal(30, 6, shape)
    volume = Volume(np.clip(signal, 0, 255).astype(dtype), affine, SeriesInfo("1.2.3", Path()))
    agree(native_sessions["fp32"], python_sessions["fp32"], volume, "fp32")


def test_simulated_heads(tmp_path: Path, native_sessions: Any, python_sessions: dict[str, Session]) -> None:
    """As ``decipher-rt simulate`` writes them; all but one of these seeds are in scope, so that heads answer."""
    pytest.importorskip("torch", reason="the simulator needs the train extra")
    from click.testing import CliRunner

    from decipher_rt.cli import cli

    run = CliRunner().invoke(cli, ["simulate", "11", "12", "13", "-o", str(tmp_path)])
    assert run.exit_code == 0, run.output
    volumes = [read_series(series) for series in find_series(tmp_path)]
    assert len(volumes) == 3
    inside = 0
    for volume in volumes:
        for precision, native in native_sessions.items():
            agree(native, python_sessions[precision], volume, precision)
        inside += native_sessions["fp32"].scope().inside
    assert inside >= 2


def test_the_header_decides_alike(
    sdk: Any, native_bundle: Path, tmp_path: Path, rewrite_bundle: Callable[..., Path]
) -> None:
    parts = {"body_parts": ["HEAD", "BRAIN"]}
    bundle = rewrite_bundle(native_bundle, tmp_path, change=lambda m: m["scope"].update(parts))
    python = Session(open_bundle(bundle), threads=2)
    voxels = np.random.default_rng(0).integers(0, 120, (20, 40, 44)).astype(np.int16)
    reasons = set()
    for mode in (IN_PROCESS, WORKER):
        native = sdk.open(bundle, mode=mode)
        for modality, part in ((None, None), ("MR", ""), ("MR", "Brain"), (None, "knee"), ("CT", "BRAIN")):
            header = Acquisition(modality=modality, body_part=part or None)
            volume = Volume(voxels, np.diag([4.0, 3.0, 3.0, 1.0]), SeriesInfo("1.2.3", Path(), acquisition=header))
            agree(native, python, volume, "fp32")
            scope = native.scope()
            assert scope.reason.decode() == python.infer_volume(volume).scope.reason
            assert bool(scope.has_score) == (modality != "CT" and part != "knee")
            reasons.add(scope.reason.decode().split(" score")[0])
        native.close()
    assert {"modality CT, made for MR", "body part KNEE, made for HEAD, BRAIN"} < reasons


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint32, np.float64])
def test_types_that_the_graph_does_not_take_are_converted(dtype: Any, native_session: Any) -> None:
    generator = np.random.default_rng(1)
    voxels = generator.integers(0, 120, (20, 40, 44))
    affine = np.diag([4.0, 3.0, 3.0, 1.0])[:, [2, 1, 0, 3]]
    native_session.run(voxels.astype(np.int16), affine)
    expected = native_session.embedding()
    native_session.run(voxels.astype(dtype), affine)
    np.testing.assert_allclose(native_session.embedding(), expected, atol=1e-5)


def test_grid_lies_where_python_lays_it(native_session: Any, native_bundle: Path) -> None:
    from decipher_rt.preprocess import plan

    generator = np.random.default_rng(3)
    for _ in range(20):
        shape = tuple(generator.integers(5, 60, 3).tolist())
        affine = np.eye(4)
        affine[:3, :3] = np.linalg.qr(generator.normal(size=(3, 3)))[0] * generator.uniform(0.5, 6, 3)
        affine[:3, 3] = generator.uniform(-100, 100, 3)
        volume = Volume(generator.integers(0, 999, shape).astype(np.int16), affine, SeriesInfo("1.2.3", Path()))
        native_session.run(volume.voxels, affine)
        expected = plan(volume, open_bundle(native_bundle).manifest.preprocessing).affine_lps_mm
        np.testing.assert_allclose(native_session.grid_affine(), expected, atol=1e-9)
