"""A session on a played GPU: what goes where between DALI, the kernels and the engine, and what comes back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle, write_bundle
from decipher_rt.errors import BundleError, EngineError
from decipher_rt.preprocess import Grid
from decipher_rt.result import Result
from decipher_rt.session import Session
from decipher_rt.tokens import select_tokens

from .played_session import FP16_COSINE, Machine, PlayedDali, ball, files_of

COUNTED = ["upload", "tissue_counts", "download"]
ENCODED = ["upload", "upload", "patch_embed3d", "engine", "download", "download"]
TOKEN_HEADS = ("sequence",)  # they look at no voxel


@pytest.fixture(scope="module")
def session(machine: Machine) -> Session:
    return Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1, heads=TOKEN_HEADS)


def same_answers(found: Result, expected: Result) -> None:
    assert found.tokens == expected.tokens
    assert found.embedding is not None
    np.testing.assert_allclose(found.embedding, expected.embedding, atol=1e-5)  # type: ignore[arg-type]
    assert {name: head.label for name, head in found.heads.items()} == {n: h.label for n, h in expected.heads.items()}


def test_the_card_answers_as_the_cpu_does(machine: Machine, session: Session, driver: Any) -> None:
    assert (session.encoder.name, session.encoder.precision) == ("tensorrt-rtx", "fp16")
    assert session.fallback is None  # the golden case was right
    assert session.preprocessor.device == "gpu"
    on_cpu = Session(machine.bundle, threads=1, heads=TOKEN_HEADS)
    found, expected = session.infer_volume(ball()), on_cpu.infer_volume(ball())
    assert found.tokens["total"] == expected.tokens["total"]
    assert found.embedding @ expected.embedding > FP16_COSINE  # type: ignore[operator]
    assert {n: h.label for n, h in found.heads.items()} == {n: h.label for n, h in expected.heads.items()}
    assert found.engine["sha256"] == machine.bundle.sums["engines/rtx.plan"]


def test_of_the_grid_only_counts_and_outputs_come_to_the_host(session: Session, driver: Any) -> None:
    session.infer_volume(ball())
    assert driver.done == COUNTED + ENCODED
    assert PlayedDali.copies == 0
    driver.calls.clear()
    session.infer_volume(ball())
    again = set(driver.calls) - {"cuGraphExecKernelNodeSetParams_v2"}  # where DALI leaves a grid is its own affair
    assert again == {"cuCtxPushCurrent_v2", "cuGraphLaunch", "cuStreamSynchronize", "cuCtxPopCurrent_v2"}


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32], ids=lambda dtype: dtype.__name__)
def test_tokens_are_those_that_the_host_would_choose(session: Session, driver: Any, dtype: Any) -> None:
    volume = ball(2, np.uint16)
    grid = session.preprocessor(replace(volume, voxels=(volume.voxels % 200).astype(dtype)))
    chosen = session._choose_tokens(grid)
    assert PlayedDali.copies == 0
    expected = select_tokens(Grid(grid.volume, grid.window, grid.affine_lps_mm), session.bundle.manifest.preprocessing)
    assert PlayedDali.copies == 1  # now it was asked for
    np.testing.assert_array_equal(chosen.indices, expected.indices)
    assert (chosen.kept, chosen.total) == (expected.kept, expected.total)
    assert 0 < chosen.kept < chosen.total


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32], ids=lambda dtype: dtype.__name__)
def test_slices_that_arrive_one_by_one_answer_as_the_volume(session: Session, driver: Any, dtype: Any) -> None:
    """Slices are resampled in plane on the CPU; what is left runs where the rest does."""
    volume = ball(1, dtype)
    expected = session.infer_volume(volume)
    driver.done.clear()
    stream = session.stream(volume.voxels.shape, dtype, volume.affine_lps_mm, volume.series)  # type: ignore[arg-type]
    for index in np.random.default_rng(0).permutation(len(volume.voxels)):
        stream.push(volume.voxels[index], volume.affine_lps_mm[:3, 3] + index * volume.affine_lps_mm[:3, 0])
    assert driver.done == []
    same_answers(stream.finish(), expected)
    assert driver.done == COUNTED + ENCODED
    assert PlayedDali.copies == 0


def test_streams_that_are_open_together_do_not_mix(session: Session, driver: Any) -> None:
    volumes = [ball(0), ball(3)]
    expected = [session.infer_volume(volume) for volume in volumes]
    streams = [session.stream(v.voxels.shape, np.uint16, v.affine_lps_mm, v.series) for v in volumes]  # type: ignore[arg-type]
    for index in range(len(volumes[0].voxels)):
        for stream, volume in zip(streams, volumes, strict=True):
            stream.push(volume.voxels[index], volume.affine_lps_mm[:3, 3] + index * volume.affine_lps_mm[:3, 0])
    for stream, wanted in zip(streams, expected, strict=True):
        same_answers(stream.finish(), wanted)


def test_successive_series_do_not_overwrite_the_grid_that_is_read(session: Session, driver: Any) -> None:
    series = DEFAULT_BUNDLE.parent / "demo_series"
    alone = session.infer(series)
    driver.done.clear()
    for result in session.infer_each([series, series, series]):
        assert isinstance(result, Result)
        same_answers(result, alone)
    assert driver.done == 3 * (COUNTED + ENCODED)
    assert PlayedDali.copies == 0


def test_a_head_that_looks_at_voxels_gets_each_grid_once(machine: Machine, driver: Any) -> None:
    """All of them share the copy."""
    series = DEFAULT_BUNDLE.parent / "demo_series"
    expected = Session(machine.bundle, threads=1).infer(series).heads["tissue"].volumes_ml
    session = Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)
    PlayedDali.copies = 0
    for result in session.infer_each([series, series]):
        assert isinstance(result, Result)
        assert result.heads["tissue"].volumes_ml == pytest.approx(expected, rel=0.02)
    assert PlayedDali.copies == 2


def test_a_grid_that_the_next_volume_replaced_is_not_copied(session: Session) -> None:
    first = session.preprocessor(ball(0))
    second = session.preprocessor(ball(1))
    with pytest.raises(EngineError, match="the next volume has taken its place"):
        _ = first.volume
    kept = second.volume
    session.preprocessor(ball(0))
    assert second.volume is kept  # what was copied in time stays


def test_nothing_is_made_ready_after_loading(session: Session, driver: Any) -> None:
    """Every type of voxel has had its graph at loading, whatever it comes as, and has run in every orientation."""
    PlayedDali.made.clear()
    for dtype in (np.uint8, np.int16, np.uint16, np.float32):
        volume = ball(2, np.uint16)
        session.infer_volume(replace(volume, voxels=(volume.voxels % 200).astype(dtype)))
    assert PlayedDali.made == []
    assert len(session.preprocessor._pipelines) == 4


def test_on_the_cpu_a_graph_waits_for_its_first_volume(machine: Machine) -> None:
    PlayedDali.made.clear()
    session = Session(machine.bundle, threads=1)
    assert PlayedDali.made == [None]
    assert session.preprocessor._pipelines == {}


def test_the_slices_graph_is_examined_before_it_runs(machine: Machine, tmp_path: Path) -> None:
    """On a card it is another file than the one that makes the grids there, which are compared at loading."""
    graph = (DEFAULT_BUNDLE / "preprocess.cpu.dali").read_bytes()
    content = files_of(machine.bundle.path)
    content["preprocess.cpu.dali"] = graph.replace(b"Squeeze", b"Unknown")
    write_bundle(tmp_path / "bundle", machine.bundle.manifest, content)
    with pytest.raises(BundleError, match="holds Unknown, which preprocessing does not use"):
        Session(open_bundle(tmp_path / "bundle"), engine="tensorrt-rtx", precision="fp16", threads=1)


def test_launch_data_of_the_bundle_are_of_both_kernels(machine: Machine) -> None:
    document = json.loads(machine.bundle.file("kernels/kernels.json").read_text())
    assert {item["kernel"] for item in document["kernels"]} == {"patch_embed3d", "tissue_counts"}
