"""A session on a played GPU: what goes where between DALI, the kernels and the engine, and what comes back.

DALI runs its graph on the CPU here, as nothing else can; where it leaves the grid is, to the played driver, the device.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch

from decipher_rt.bundle import DEFAULT_BUNDLE, Bundle, open_bundle, write_bundle
from decipher_rt.engines import tensorrt
from decipher_rt.errors import BundleError, EngineError
from decipher_rt.export.tensorrt.files import _kernel_files
from decipher_rt.export.tensorrt.graph import embedded_graph
from decipher_rt.manifest import EngineFile
from decipher_rt.preprocess import Grid, run
from decipher_rt.preprocess.dali import DaliGraph
from decipher_rt.result import Result
from decipher_rt.session import Session
from decipher_rt.tokens import select_tokens
from decipher_rt.train.checkpoint import DEFAULT_WEIGHTS
from decipher_rt.train.weights import load_weights
from decipher_rt.verify import TOLERANCES, tolerance_of, verify_bundle
from decipher_rt.volume import SeriesInfo, Volume

BUCKETS = (256, 384, 512, 640)  # of the plan; what is tested here fits
FP16_COSINE = 0.999
COUNTED = ["upload", "tissue_counts", "download"]
ENCODED = ["upload", "upload", "patch_embed3d", "engine", "download", "download"]


class PlayedDali(DaliGraph):
    """A graph for the GPU, run on the CPU; ``copies`` counts the grids that came to the host all the same."""

    copies = 0
    made: ClassVar[list[int | None]] = []  # the device of each graph

    def __init__(self, graph: bytes, *, batch: int, threads: int, device_id: int | None = None) -> None:
        assert (b"gpu" in graph) == (device_id is not None), "a graph for one device on the other"
        PlayedDali.made.append(device_id)
        super().__init__(graph.replace(b"gpu", b"cpu"), batch=batch, threads=threads)
        self._played = device_id is not None

    def _copy_out(self, out: np.ndarray) -> None:
        PlayedDali.copies += self._played
        super()._copy_out(out)


@dataclass(frozen=True)
class Machine:
    bundle: Bundle
    driver: Any
    library: Any


def files_of(folder: Path) -> dict[str, bytes | Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("manifest.json", "SHA256SUMS")
    }


@pytest.fixture(scope="module")
def machine(
    tmp_path_factory: pytest.TempPathFactory, play_gpu: Callable[..., Any], play_library: Callable[..., Any]
) -> Iterator[Machine]:
    """A card of sm_89 and TensorRT-RTX, with the shipped model exported for it: an ONNX graph in the plan's place."""
    folder = tmp_path_factory.mktemp("machine")
    shipped, encoder = open_bundle(), load_weights(DEFAULT_WEIGHTS).model.encoder.eval()
    content = files_of(DEFAULT_BUNDLE)
    built = {"architectures": "sm_89", "tokens": " ".join(map(str, BUCKETS))}
    plan = EngineFile("tensorrt-rtx", "fp16", "engines/rtx.plan", built)
    content |= {plan.file: embedded_graph(copy.deepcopy(encoder).to(torch.float16)), **_kernel_files(encoder, [89])}
    write_bundle(folder / "bundle", replace(shipped.manifest, engines=(*shipped.manifest.engines, plan)), content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        driver = play_gpu(folder / "bundle" / "kernels", patch)
        library = play_library(driver, rtx=True)
        patch.setattr(tensorrt, "require_library", lambda flavour: library)
        patch.setattr(run, "DaliGraph", PlayedDali)
        yield Machine(open_bundle(folder / "bundle"), driver, library)


TOKEN_HEADS = ("sequence", "brain_volume_ml")  # they look at no voxel


@pytest.fixture(scope="module")
def session(machine: Machine) -> Session:
    return Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1, heads=TOKEN_HEADS)


@pytest.fixture
def driver(machine: Machine) -> Any:
    machine.driver.done.clear()
    machine.driver.calls.clear()
    PlayedDali.copies = 0
    return machine.driver


def ball(seed: int = 0, dtype: Any = np.uint16, extent_mm: float = 70) -> Volume:
    rng = np.random.default_rng(seed)
    d, h, w = np.indices((24, 48, 48)) - np.array([12, 24, 24]).reshape(3, 1, 1, 1)
    voxels = rng.integers(0, 30, d.shape) + (700 + 50 * seed) * (
        (6 * d) ** 2 + (4 * h) ** 2 + (3 * w) ** 2 < extent_mm**2
    )
    affine = np.array([[0, 0, 3, -72], [0, 4, 0, -96], [6, 0, 0, -72], [0, 0, 0, 1.0]])
    return Volume(voxels.astype(dtype), affine, SeriesInfo(f"1.2.{seed}", Path()))


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
    grid = session.preprocessor(ball(2, dtype if dtype is not np.uint8 else np.uint16))
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


def test_an_engine_that_is_wrong_on_the_golden_case_gives_way_to_fp32(
    machine: Machine, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preprocessing stays on the card; the encoder on the CPU then asks for the grid."""
    run_engine = tensorrt.TensorRtEngine.run
    monkeypatch.setattr(
        tensorrt.TensorRtEngine, "run", lambda self, inputs: {k: -v for k, v in run_engine(self, inputs).items()}
    )
    session = Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)
    result = session.infer_volume(ball())
    assert (result.engine["name"], result.engine["precision"]) == ("onnxruntime", "fp32")
    assert result.engine["fallback"].startswith("tensorrt-rtx fp16 was asked for: on the golden case ")
    assert PlayedDali.copies == 1
    expected = Session(machine.bundle, threads=1).infer_volume(ball())
    np.testing.assert_allclose(result.embedding, expected.embedding, atol=1e-4)  # type: ignore[arg-type]


def with_plans(machine: Machine, folder: Path, *plans: EngineFile) -> Bundle:
    """The same bundle with other plans, each a graph of its own sum."""
    content = files_of(machine.bundle.path)
    for plan in plans:
        model = onnx.load_from_string(machine.bundle.file("engines/rtx.plan").read_bytes())
        model.doc_string = plan.file
        content[plan.file] = model.SerializeToString()
    engines = tuple(entry for entry in machine.bundle.manifest.engines if entry.file != "engines/rtx.plan")
    write_bundle(folder, replace(machine.bundle.manifest, engines=(*engines, *plans)), content)
    return open_bundle(folder)


def test_tensorrt_has_a_plan_a_bucket_and_names_the_one_that_ran(
    machine: Machine, tmp_path: Path, play_library: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its runtime configurations know no cache, which is no reason to fail."""
    library = play_library(machine.driver, rtx=False)
    monkeypatch.setattr(tensorrt, "require_library", lambda flavour: library)
    built = {"architectures": "sm_89", "tensorrt": "10.13.0"}
    plans = [
        EngineFile("tensorrt-sm_89", "fp16", f"engines/{tokens}.plan", built | {"tokens": str(tokens)})
        for tokens in machine.bundle.manifest.preprocessing.token_buckets
    ]
    bundle = with_plans(machine, tmp_path / "bundle", *plans)
    session = Session(bundle, engine="tensorrt", precision="fp16", threads=1)
    assert session.fallback is None
    used = set()
    for extent_mm in (30, 60, 110):
        result = session.infer_volume(ball(extent_mm=extent_mm))
        assert result.engine["sha256"] == bundle.sums[f"engines/{result.tokens['kept']}.plan"]
        used.add(result.tokens["kept"])
    assert len(used) > 1


@pytest.fixture(scope="module")
def brain(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A plan in bfloat16 that was not run at its export: the manifest states nothing for it."""
    built = {"architectures": "sm_89", "tokens": " ".join(map(str, BUCKETS))}
    plan = EngineFile("tensorrt-rtx", "bf16", "engines/bf16.plan", built)
    return with_plans(machine, tmp_path_factory.mktemp("brain") / "bundle", plan)


@pytest.mark.parametrize(("beyond", "passed"), [(0.0, True), (0.3, True), (0.5, False)])
def test_a_plan_that_was_not_run_at_its_export_is_held_to_its_precision(
    brain: Bundle, monkeypatch: pytest.MonkeyPatch, beyond: float, passed: bool
) -> None:
    run_engine = tensorrt.TensorRtEngine.run
    monkeypatch.setattr(
        tensorrt.TensorRtEngine,
        "run",
        lambda self, inputs: {k: v + beyond * (k == "patch") for k, v in run_engine(self, inputs).items()},
    )
    report = verify_bundle(brain, "tensorrt-rtx", "bf16", 1)
    (patch,) = (row for row in report.rows if row.output == "patch")
    assert patch.tolerance == TOLERANCES["bf16"] == 0.4
    assert patch.passed is passed
    if beyond:
        return
    assert report.passed


def test_a_tolerance_is_the_most_particular_that_is_stated(machine: Machine) -> None:
    manifest = machine.bundle.manifest
    plan = EngineFile("tensorrt-sm_89", "bf16", "a.plan")
    beside = replace(plan, built_with={"tolerance": "0.3"})
    assert tolerance_of(manifest, plan) == TOLERANCES["bf16"]
    assert tolerance_of(manifest, beside) == 0.3
    run = replace(manifest.numerics[0], target=plan.target, precision="bf16", tolerance=0.2)
    assert tolerance_of(replace(manifest, numerics=(*manifest.numerics, run)), beside) == 0.2
    for wrong in ("much", "nan", "inf", "0", "-1"):
        with pytest.raises(BundleError, match=rf"a\.plan states tolerance '{wrong}', expected a positive number"):
            tolerance_of(manifest, replace(plan, built_with={"tolerance": wrong}))


def test_such_a_plan_gives_way_where_it_differs_by_more(brain: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    run_engine = tensorrt.TensorRtEngine.run
    monkeypatch.setattr(
        tensorrt.TensorRtEngine,
        "run",
        lambda self, inputs: {k: v + 0.5 * (k == "patch") for k, v in run_engine(self, inputs).items()},
    )
    session = Session(brain, engine="tensorrt-rtx", precision="bf16", threads=1)
    assert session.encoder.precision == "fp32"
    assert session.fallback is not None
    assert re.search(r"on the golden case patch differs by 0\.\d+, the bundle allows 0\.4$", session.fallback)


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


class RefusingDali(PlayedDali):
    """DALI without its GPU part."""

    def __init__(self, graph: bytes, *, batch: int, threads: int, device_id: int | None = None) -> None:
        if device_id is not None:
            raise EngineError("DALI: CUDA allocation failed (daliPipelineBuild)")
        super().__init__(graph, batch=batch, threads=threads)


def test_auto_preprocesses_on_the_cpu_where_the_card_refuses(
    machine: Machine, session: Session, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = session.infer_volume(ball())
    monkeypatch.setattr(run, "DaliGraph", RefusingDali)
    found = Session(machine.bundle, engine="auto", precision="fp16", threads=1)
    result = found.infer_volume(ball())
    assert (result.engine["name"], found.preprocessor.device) == ("tensorrt-rtx", "cpu")
    assert result.engine["fallback"].endswith(
        "; preprocessing on the GPU: DALI: CUDA allocation failed (daliPipelineBuild); it runs on the CPU"
    )
    assert result.tokens == expected.tokens
    assert result.embedding @ expected.embedding > FP16_COSINE  # type: ignore[operator]  # slabs round otherwise


def test_an_engine_asked_for_by_name_does_not_hide_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "DaliGraph", RefusingDali)
    with pytest.raises(EngineError, match="CUDA allocation failed"):
        Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)


def test_a_card_that_fails_the_golden_case_gives_way_with_auto_only(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise EngineError("CUDA: cuGraphLaunch gives CUDA_ERROR_LAUNCH_FAILED")

    monkeypatch.setattr(tensorrt.TensorRtEngine, "run", fail)
    found = Session(machine.bundle, engine="auto", precision="fp16", threads=1)
    assert (found.encoder.name, found.encoder.precision) == ("onnxruntime", "fp32")
    assert found.fallback is not None
    assert found.fallback.endswith("on the golden case it fails: CUDA: cuGraphLaunch gives CUDA_ERROR_LAUNCH_FAILED")
    with pytest.raises(EngineError, match="CUDA_ERROR_LAUNCH_FAILED"):
        Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)


def test_bindings_of_another_api_say_so(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any) -> Any:
        raise AttributeError("'IRuntimeConfig' object has no attribute 'create_runtime_cache'")

    monkeypatch.setattr(tensorrt.TensorRtEngine, "_context", lacking)
    said = r"tensorrt-rtx 1\.7\.1 does not work as this runtime expects \('IRuntimeConfig' object has no attribute"
    with pytest.raises(EngineError, match=said):
        Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)


def test_auto_takes_the_card_and_says_what_it_passed_over(machine: Machine) -> None:
    result = Session(machine.bundle, engine="auto", precision="fp16", threads=1).infer_volume(ball())
    assert (result.engine["name"], result.engine["device"]) == ("tensorrt-rtx", "cuda:0 Fake RTX")
    assert result.engine["fallback"].startswith("tensorrt: bundle ")  # it has no plan of that flavour
    assert "onnxruntime" not in result.engine["fallback"]


ADA = {"name": "Fake Ada", "uuid": "3f0cd1e7-0a44-4f0e-8f52-6c1e9b2ad377"}
OTHERS = ({"name": "Fake Turing", "architecture": 75}, {"name": "Fake Ada, the other"})


@pytest.fixture(params=OTHERS, ids=["one of another kind", "one of the same kind"])
def second(
    request: pytest.FixtureRequest,
    machine: Machine,
    play_gpu: Callable[..., Any],
    play_library: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Any:
    """A machine whose second card is the one that is asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    driver = play_gpu(machine.bundle.path / "kernels", monkeypatch, (request.param, ADA))
    libraries = {flavour: play_library(driver, rtx=flavour == "tensorrt-rtx") for flavour in tensorrt.LIBRARIES}
    monkeypatch.setattr(tensorrt, "require_library", libraries.__getitem__)
    PlayedDali.made.clear()
    return driver


def plan_of(machine: Machine, folder: Path) -> Bundle:
    built = {"architectures": "sm_89", "tensorrt": "10.13.0", "tokens": " ".join(map(str, BUCKETS))}
    return with_plans(machine, folder, EngineFile("tensorrt-sm_89", "fp16", "engines/one.plan", built))


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("engine", ["by name", "auto"])
def test_all_of_a_session_is_on_the_card_that_was_asked_for(
    machine: Machine, second: Any, flavour: str, engine: str, tmp_path: Path
) -> None:
    """DALI, the kernels, the library and the driver's own objects: the played ones refuse what is of another card."""
    bundle = plan_of(machine, tmp_path / "bundle") if flavour == "tensorrt" else machine.bundle
    name = flavour if engine == "by name" else "auto"
    session = Session(bundle, engine=name, precision="fp16", threads=1, device="GPU-3f0cd1")
    result = session.infer_volume(ball())
    assert (result.engine["name"], result.engine["device"]) == (flavour, "cuda:1 Fake Ada")
    assert result.engine["precision"] == "fp16"  # the golden case was right on it
    assert session.preprocessor.device == "gpu"
    assert set(PlayedDali.made) == {1}
    assert second.used == {1}
    assert second.done.count("tissue_counts") > 0
    expected = Session(machine.bundle, threads=1).infer_volume(ball())
    assert result.embedding @ expected.embedding > FP16_COSINE  # type: ignore[operator]
    del session
    assert second.retained == 0
    assert second.strays == []


def test_slices_that_arrive_run_on_that_card_too(machine: Machine, second: Any) -> None:
    session, volume = Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1, device=1), ball()
    stream = session.stream(volume.voxels.shape, np.uint16, volume.affine_lps_mm, volume.series)  # type: ignore[arg-type]
    for index, pixels in enumerate(volume.voxels):
        stream.push(pixels, volume.affine_lps_mm[:3, 3] + index * volume.affine_lps_mm[:3, 0])
    assert stream.finish().engine["device"] == "cuda:1 Fake Ada"
    assert second.used == {1}
    assert set(PlayedDali.made) == {1}


def test_the_golden_case_is_verified_on_that_card(machine: Machine, second: Any) -> None:
    report = verify_bundle(machine.bundle, "tensorrt-rtx", "fp16", 1, "1")
    assert (report.device, report.passed) == ("cuda:1 Fake Ada", True)
    assert second.used == {1}


def test_the_first_card_is_used_where_none_is_asked_for(machine: Machine, second: Any) -> None:
    """It has no plan where it is of another kind, whatever the second could run."""
    kind = second.cards[0].architecture
    if kind == 89:
        session = Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)
        assert session.encoder.device == "cuda:0 Fake Ada, the other"
        assert (second.used, set(PlayedDali.made)) == ({0}, {0})
    else:
        with pytest.raises(EngineError, match=r"fp16 tensorrt-rtx engines for sm_89, this card is sm_75"):
            Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1)
        assert second.used == set()


def test_what_one_card_compiled_is_no_other_cards(
    machine: Machine, second: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    find = tensorrt.cache_file
    monkeypatch.setattr(tensorrt, "cache_file", lambda *key: keys.append(key) or find(*key))
    cards = (1, 1) if second.cards[0].architecture == 75 else (0, 1, 0, 1)
    compiled = []
    for card in cards:
        session = Session(machine.bundle, engine="tensorrt-rtx", precision="fp16", threads=1, device=card)
        compiled.append(session.encoder.compiled)  # type: ignore[attr-defined]
    assert compiled == [index < len(set(cards)) for index in range(len(cards))]
    assert [card for *_, card in keys] == [f"{second.cards[card].name} sm_89" for card in cards]


def test_the_slices_graph_is_examined_before_it_runs(machine: Machine, tmp_path: Path) -> None:
    """On a card it is another file than the one that was examined at loading."""
    graph = (DEFAULT_BUNDLE / "preprocess.cpu.dali").read_bytes()
    content = files_of(machine.bundle.path)
    content["preprocess.cpu.dali"] = graph.replace(b"Squeeze", b"Unknown")
    write_bundle(tmp_path / "bundle", machine.bundle.manifest, content)
    session = Session(open_bundle(tmp_path / "bundle"), engine="tensorrt-rtx", precision="fp16", threads=1)
    with pytest.raises(BundleError, match="holds Unknown, which preprocessing does not use"):
        session.stream((24, 48, 48), np.uint16, np.diag([3.0, 3, 3, 1])[:, [2, 1, 0, 3]], SeriesInfo("1", Path()))


def test_launch_data_of_the_bundle_are_of_both_kernels(machine: Machine) -> None:
    document = json.loads(machine.bundle.file("kernels/kernels.json").read_text())
    assert {item["kernel"] for item in document["kernels"]} == {"patch_embed3d", "tissue_counts"}
