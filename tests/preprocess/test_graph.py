"""The serialised graph: what is in it, that it runs as DALI's own Python runs it, and how it fails."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from decipher_rt.errors import BundleError, EngineError
from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Preprocessor, build_graph, dali, plan, run
from decipher_rt.preprocess.grid import PERMUTATIONS, graph_inputs
from decipher_rt.preprocess.operators import check_operators
from decipher_rt.volume import SeriesInfo, Volume

REPOSITORY = Path(__file__).parents[2]
SPEC = Preprocessing((24, 32, 16), (2.0, 2.0, 2.5), (8, 8, 8), (24,))
GRAPH = build_graph(SPEC, "cpu")


def make_volume(permutation: tuple[int, ...] = (0, 1, 2), dtype: type = np.int16) -> Volume:
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    for lps, (acquired, step) in zip((2, 1, 0), zip(permutation, (1.1, -1.7, 1.3), strict=True), strict=True):
        affine[lps, acquired] = step
    voxels = np.random.default_rng(1).integers(0, 200, (30, 44, 21)).astype(dtype)
    return Volume(voxels, affine, SeriesInfo("2.25.1", Path("series")))


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_graph_tells_nothing_of_where_it_was_made(device: str, tmp_path: Path) -> None:
    """Same bytes from another process in another folder, and no path, file name or source line among them."""
    graph = build_graph(SPEC, device)  # type: ignore[arg-type]
    code = (
        "import sys; from decipher_rt.manifest import Preprocessing; from decipher_rt.preprocess import build_graph;"
        f"sys.stdout.buffer.write(build_graph({SPEC!r}, {device!r}))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, check=True,
    )  # fmt: skip
    assert elsewhere.stdout == graph
    assert elsewhere.stderr == b""
    for trace in (b"/", b".py", b"def ", b"return", b"origin_stack", os.fsencode(REPOSITORY.name + os.sep)):
        assert trace not in graph


def test_graph_for_the_gpu_has_the_same_operators() -> None:
    """Made here without a GPU; only the devices of the operators differ, and the geometry stays on the CPU."""
    gpu = build_graph(SPEC, "gpu")
    assert gpu.replace(b"gpu", b"cpu") == GRAPH
    assert b"gpu" not in GRAPH
    assert gpu.count(b"gpu") > 20
    check_operators(gpu)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_c_interface_is_bit_identical_to_dali_in_python(permutation: tuple[int, ...], dtype: type) -> None:
    from nvidia.dali import Pipeline

    volume = make_volume(permutation, dtype)
    grid_plan = plan(volume, SPEC)
    assert grid_plan.permutation == permutation
    slabs = 4
    pipeline = Pipeline.deserialize(GRAPH, batch_size=slabs, num_threads=2, prefetch_queue_depth=1)
    pipeline.feed_input("voxels", [volume.voxels[..., None]] * slabs)
    for name, values in graph_inputs(grid_plan, SPEC.grid_shape, slabs).items():
        pipeline.feed_input(name, [np.asarray(value) for value in values])
    (grids,) = pipeline.run()
    expected = np.concatenate([np.asarray(grids.at(slab)) for slab in range(slabs)])
    np.testing.assert_array_equal(Preprocessor(GRAPH, SPEC)(volume).volume, expected)


def test_graph_built_when_needed_equals_the_serialised_one() -> None:
    volume = make_volume()
    np.testing.assert_array_equal(Preprocessor(None, SPEC)(volume).volume, Preprocessor(GRAPH, SPEC)(volume).volume)


def test_what_is_held_goes_before_its_graph() -> None:
    """A graph for the GPU keeps its last output until the next run, and there may be none."""
    freed: list[tuple[str, int]] = []
    library = SimpleNamespace(
        daliPipelineOutputsDestroy=lambda handle: freed.append(("outputs", handle)),
        daliPipelineDestroy=lambda handle: freed.append(("pipeline", handle)),
    )
    held = [7]
    dali._destroy(library, 3, held)  # type: ignore[arg-type]
    assert (freed, held) == ([("outputs", 7), ("pipeline", 3)], [])


def test_one_preprocessor_takes_volumes_of_changing_type_and_shape() -> None:
    preprocess = Preprocessor(GRAPH, SPEC)
    for dtype in (np.int16, np.float32, np.int16, np.uint8):
        for volume in (make_volume((0, 1, 2), dtype), make_volume((2, 0, 1), dtype)):
            fresh = Preprocessor(GRAPH, SPEC)(volume)
            np.testing.assert_array_equal(preprocess(volume).volume, fresh.volume)


def test_a_failure_of_dali_is_one_line_and_the_next_volume_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = Preprocessor(GRAPH, SPEC)
    expected = preprocess(make_volume()).volume

    def negative_shape(*arguments: object) -> dict[str, np.ndarray]:
        inputs = graph_inputs(*arguments)  # type: ignore[arg-type]
        return {**inputs, "shape": -inputs["shape"]}

    with monkeypatch.context() as patched:
        patched.setattr(run, "graph_inputs", negative_shape)
        with pytest.raises(EngineError, match=r"^DALI: shape value out of range .* Got: -6") as caught:
            preprocess(make_volume())
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(preprocess(make_volume()).volume, expected)


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (b"", BundleError, "holds no operator"),
        (b"no graph", BundleError, "damaged"),
        (GRAPH[:-7], BundleError, "damaged"),
        (GRAPH[: len(GRAPH) // 2], BundleError, "damaged"),
        (GRAPH.replace(b"\x06Resize", b"\x06Rotate"), BundleError, "holds Rotate, which preprocessing does not use"),
        (GRAPH.replace(b"DHWC", b"QQQQ"), EngineError, "DALI: "),
    ],
    ids=["empty", "foreign", "cut", "half", "operator", "layout"],
)
def test_damaged_and_hostile_graphs_are_refused(graph: bytes, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Preprocessor(graph, SPEC)(make_volume())
    assert "\n" not in str(caught.value)


def test_graph_that_reads_files_is_refused(tmp_path: Path) -> None:
    """A graph that DALI itself would run."""
    from nvidia.dali import fn, pipeline_def

    (tmp_path / "secret").write_bytes(b"secret")

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def reader() -> object:
        return fn.readers.file(files=[str(tmp_path / "secret")])[0]

    with pytest.raises(BundleError, match=r"holds .*readers__File"):
        check_operators(reader().serialize())


def operator(name: bytes, key: bytes = b"\x2a") -> bytes:
    """Return an operator of a serialised graph; ``key`` is that of a graph's operators unless it is given."""
    return key + bytes([len(name) + 2]) + b"\x0a" + bytes([len(name)]) + name


@pytest.mark.parametrize(
    "key",
    [b"\xaa\x80\x80\x80\x10", b"\x02", b"\x80" * 10 + b"\x01"],
    ids=["more than 32 bits", "of no field", "without end"],
)
def test_operators_behind_keys_that_others_read_otherwise_are_refused(key: bytes) -> None:
    """Of the first key DALI keeps 32 bits: those of an operator."""
    check_operators(operator(b"Resize"))
    with pytest.raises(BundleError, match="the preprocessing graph is damaged"):
        check_operators(operator(b"Resize") + operator(b"readers__File", key))


def test_absent_dali_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    dali.load_library.cache_clear()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("nvidia") else found(name))
    with pytest.raises(EngineError, match="DALI is not installed: pip install nvidia-dali-cuda130"):
        Preprocessor(GRAPH, SPEC)


def test_contradictory_spec_is_refused() -> None:
    with pytest.raises(BundleError, match="must be a multiple of patch_shape"):
        build_graph(Preprocessing((24, 32, 15), (2.0, 2.0, 2.5), (8, 8, 8), (24,)), "cpu")


FRESH_PROCESS = """
import sys
import numpy as np
from pathlib import Path
from decipher_rt.manifest import Preprocessing
from decipher_rt.preprocess import Preprocessor
from decipher_rt.volume import SeriesInfo, Volume
preprocess = Preprocessor(Path(sys.argv[1]).read_bytes(), Preprocessing((24, 32, 16), (2.0, 2.0, 2.5), (8, 8, 8), (24,)))
for dtype in (np.int16, np.uint8):
    preprocess(Volume(np.arange(4 * 5 * 6, dtype=dtype).reshape(4, 5, 6), np.eye(4), SeriesInfo("2.25.1", Path("x"))))
assert not {"nvidia.dali", "torch", "onnxruntime"} & set(sys.modules)
"""


def test_a_fresh_process_needs_no_dali_in_python_and_ends_quietly(tmp_path: Path) -> None:
    (tmp_path / "preprocess.cpu.dali").write_bytes(GRAPH)
    finished = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", FRESH_PROCESS, str(tmp_path / "preprocess.cpu.dali")],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_two_threads_that_ask_at_once_get_their_own_grids() -> None:
    """As one does that asks for a series while the next of many is prepared ahead."""
    preprocessor, bright = Preprocessor(GRAPH, SPEC), make_volume()
    dark = replace(bright, voxels=bright.voxels // 2 * 2)
    expected = {id(volume): preprocessor(volume).volume.copy() for volume in (bright, dark)}

    def ask(volume: Volume) -> bool:
        return all(np.array_equal(preprocessor(volume).volume, expected[id(volume)]) for _ in range(100))

    assert not np.array_equal(expected[id(bright)], expected[id(dark)])
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(ask, (bright, dark)))
