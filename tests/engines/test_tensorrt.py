"""The TensorRT runtime without a GPU: a driver whose device memory is the host's, and an engine that is ONNX.

What cannot be shown so is what a card does. What is shown: every call is one that ``cuda.h`` declares, with its number
of arguments; kernels are launched with the arguments, grid and addresses that their launch data ask for; buffers,
profiles, graphs and the cache belong to the right bucket; the whole gives what the encoder in PyTorch gives.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import gc
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from decipher_rt.device_array import DeviceArray
from decipher_rt.engines import cuda
from decipher_rt.engines import tensorrt as module
from decipher_rt.engines.tensorrt import Plan, TensorRtEngine
from decipher_rt.engines.tensorrt_cache import cache_file
from decipher_rt.errors import EngineError
from decipher_rt.export.tensorrt.files import _kernel_files
from decipher_rt.export.tensorrt.graph import embedded_graph
from decipher_rt.preprocess import Grid
from decipher_rt.tokens import tissue_counts, tissue_threshold
from decipher_rt.train.model.vit import ViT, ViTConfig

from .played_tensorrt import FakeEngine

CONFIG = ViTConfig(
    width=48, depth=2, heads=4, embedding_size=16, grid_shape=(16, 16, 24), patch_shape=(4, 4, 4),
    spacing_mm=(15.0,) * 3, token_buckets=(24, 96),
)  # fmt: skip
HALF_STEPS = 2e-2  # two layers of float16 from tokens of order 1


@pytest.fixture(scope="module")
def encoder() -> ViT:
    torch.manual_seed(2)
    return ViT(CONFIG).eval()


@pytest.fixture(scope="module")
def folder(encoder: ViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GPU part of a bundle: kernels compiled for sm_89, and the graph in the plan's place."""
    folder = tmp_path_factory.mktemp("bundle")
    for name, content in _kernel_files(encoder, [89]).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "encoder.plan").write_bytes(embedded_graph(copy.deepcopy(encoder).half()))
    return folder


@pytest.fixture
def driver(play_gpu: Callable[..., Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return play_gpu(folder / "kernels", monkeypatch)


@pytest.fixture
def load(
    folder: Path, driver: Any, monkeypatch: pytest.MonkeyPatch, play_library: Callable[..., SimpleNamespace]
) -> Callable[..., TensorRtEngine]:
    """Load the engine of ``folder``; ``module.require_library`` then gives the library that it was loaded with."""

    def load(
        *, rtx: bool = True, one_each: bool = False, embedding_size: int = CONFIG.embedding_size, **options: bool
    ) -> TensorRtEngine:
        library = play_library(driver, rtx=rtx, **options)
        monkeypatch.setattr(module, "require_library", lambda flavour: library)
        buckets = [(tokens,) for tokens in CONFIG.token_buckets] if one_each else [CONFIG.token_buckets]
        plans = [Plan(folder / "encoder.plan", f"{index:064d}", tokens) for index, tokens in enumerate(buckets)]
        return TensorRtEngine(
            "tensorrt-rtx" if rtx else "tensorrt", plans, folder / "kernels", CONFIG.preprocessing,
            precision="fp16", embedding_size=embedding_size,
        )  # fmt: skip

    return load


@pytest.fixture
def on_device(gpu_memory: Callable[..., np.ndarray]) -> Callable[[np.ndarray], DeviceArray]:
    """Put an array somewhere in the memory of the played GPU."""
    kept = []

    def place(array: np.ndarray) -> DeviceArray:
        kept.append((ctypes.c_uint8 * (array.nbytes + 256))())
        address = -(-ctypes.addressof(kept[-1]) // 256) * 256
        gpu_memory(address, array.shape, array.dtype)[...] = array
        return DeviceArray(address, array.shape, array.dtype)

    return place


def inputs(K: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "volume": rng.normal(500, 300, (1, 1, *CONFIG.grid_shape)).astype(np.float32),
        "window": np.array([[100, 900]], np.float32),
        "tokens": np.sort(rng.choice(96, K, replace=False)).astype(np.int64)[None],
    }


def reference(encoder: ViT, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        return [out.numpy() for out in encoder(*(torch.from_numpy(given[k]) for k in ("volume", "window", "tokens")))]


@pytest.mark.parametrize("rtx", [True, False])
def test_every_bucket_gives_what_the_encoder_gives(encoder, load, rtx) -> None:
    engine = load(rtx=rtx)
    for seed, K in enumerate((24, 96, 24)):
        given = inputs(K, seed)
        outputs = engine.run(given)
        patch, embedding = reference(encoder, given)
        assert np.abs(outputs["patch"] - patch).max() < HALF_STEPS
        assert np.abs(outputs["embedding"] - embedding).max() < HALF_STEPS
    assert engine.device == "cuda:0 Fake RTX"


def test_a_plan_that_would_write_beyond_its_memory_is_refused(load, monkeypatch) -> None:
    said = r"tensorrt-rtx: the engine's embedding is \(1, 16\), not \(1, 8\) of float32 .*; export the bundle again"
    with pytest.raises(EngineError, match=said):
        load(embedding_size=8)
    monkeypatch.setattr(FakeEngine, "get_tensor_dtype", lambda self, name: "half")
    with pytest.raises(EngineError, match=r"the engine's patch is .* export the bundle again"):
        load()


def test_a_grid_on_the_device_is_read_where_it_lies(encoder, driver, load, on_device) -> None:
    engine = load()
    given = inputs(24)
    driver.calls.clear()
    driver.done.clear()
    outputs = engine.run(given | {"volume": on_device(given["volume"])})
    assert np.abs(outputs["embedding"] - reference(encoder, given)[1]).max() < HALF_STEPS
    assert driver.calls.count("cuMemcpyHtoDAsync_v2") == 0  # window and tokens are in the graph, and no volume
    assert driver.done == WHOLE


WHOLE = ["upload", "upload", "patch_embed3d", "engine", "download", "download"]
NO_ALLOCATION = {"cuMemAlloc_v2", "cuMemAllocHost_v2", "cuModuleLoadData", "cuGraphCreate", "cuStreamBeginCapture_v2"}


def test_after_loading_all_is_one_graph_launch_and_nothing_is_allocated(encoder, driver, load, on_device) -> None:
    """The volumes are of one address: then nothing is left to say but "launch" and "wait"."""
    engine = load()
    assert engine.not_recorded is None
    first = inputs(96)
    volume = on_device(first["volume"])
    engine.run(first | {"volume": volume})
    driver.calls.clear()
    driver.launches.clear()
    for seed, K in enumerate((96, 24, 96, 24)):
        given = inputs(K, seed + 1) | {"volume": first["volume"], "window": np.array([[50 * seed, 700]], np.float32)}
        if seed == 1:
            engine.run(given | {"volume": volume})  # the other bucket's graph learns the address
            driver.calls.clear()
        driver.done.clear()
        outputs = engine.run(given | {"volume": volume})
        assert driver.done == WHOLE
        assert np.abs(outputs["patch"] - reference(encoder, given)[0]).max() < HALF_STEPS  # new window, new indices
    assert set(driver.calls) == {
        "cuCtxPushCurrent_v2", "cuGraphLaunch", "cuStreamSynchronize", "cuCtxPopCurrent_v2",
    }  # fmt: skip
    assert len(driver.calls) == 3 * 4
    assert driver.calls.count("cuGraphLaunch") == driver.calls.count("cuStreamSynchronize") == 3
    assert driver.launches == []


def test_a_graph_follows_the_grid_to_another_address(encoder, driver, load, on_device) -> None:
    engine = load()
    places = [on_device(inputs(96, seed)["volume"]) for seed in (0, 1)]
    driver.calls.clear()
    for seed in (0, 0, 1, 1, 0):
        given = inputs(96, seed)
        outputs = engine.run(given | {"volume": places[seed]})
        assert np.abs(outputs["patch"] - reference(encoder, given)[0]).max() < HALF_STEPS
    outputs = engine.run(inputs(96, 2))  # from the host: the engine's own buffer
    assert np.abs(outputs["patch"] - reference(encoder, inputs(96, 2))[0]).max() < HALF_STEPS
    assert driver.calls.count("cuGraphExecKernelNodeSetParams_v2") == 4
    assert driver.calls.count("cuGraphLaunch") == 6
    assert not NO_ALLOCATION & set(driver.calls)


def test_a_grid_that_the_kernel_cannot_read_does_not_leave_the_graph_behind(encoder, driver, load, on_device) -> None:
    engine = load()
    given = inputs(24)
    good = on_device(given["volume"])
    engine.run(given | {"volume": good})
    with pytest.raises(
        EngineError, match=r"patch_embed3d: volume is float32 at address 0x\w+4, .* aligned to 16 bytes"
    ):
        engine.run(given | {"volume": dataclasses.replace(good, pointer=good.pointer + 4)})
    driver.fail.add("cuGraphExecKernelNodeSetParams_v2")
    with pytest.raises(EngineError, match="cuGraphExecKernelNodeSetParams_v2"):
        engine.run(given | {"volume": on_device(np.zeros_like(given["volume"]))})
    driver.fail.clear()
    outputs = engine.run(given | {"volume": good})
    assert np.abs(outputs["embedding"] - reference(encoder, given)[1]).max() < HALF_STEPS


REFUSALS = ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphAddChildGraphNode", "cuGraphAddKernelNode_v2"]
REFUSALS += ["cuGraphCreate", "cuGraphInstantiateWithFlags", "cuGraphExecKernelNodeSetParams_v2", "engine", "context"]


@pytest.mark.parametrize("who", REFUSALS)
def test_where_recording_is_refused_the_parts_run_one_by_one(encoder, driver, load, on_device, who) -> None:
    """By a call of the driver, by the engine within a capture, or by a context that says so before (RTX)."""
    if who.startswith("cu"):
        driver.fail.add(who)
    engine = load(refuses_capture=who in ("engine", "context"), says_so=who == "context")
    assert driver.recording is None  # nobody leaves the stream in its capture
    expected = {"engine": "the engine does not run", "context": "does not let its work be recorded"}.get(who, who)
    assert expected in engine.not_recorded
    for seed, K in enumerate((24, 96)):
        given = inputs(K, seed)
        driver.done.clear()
        outputs = engine.run(given | {"volume": on_device(given["volume"])})
        assert driver.done == WHOLE
        assert np.abs(outputs["embedding"] - reference(encoder, given)[1]).max() < HALF_STEPS
    assert not NO_ALLOCATION & set(driver.calls[-20:])


def test_tissue_is_counted_on_the_device_and_only_the_counts_come_back(driver, load, on_device) -> None:
    engine, spec = load(), dataclasses.replace(CONFIG.preprocessing, tissue_level=0.3)
    for seed in (0, 1, 1):
        given = inputs(24, seed)
        grid = Grid(given["volume"][0, 0], given["window"][0], np.eye(4))
        volume, threshold = on_device(given["volume"]), tissue_threshold(grid.window, spec)
        driver.calls.clear()
        driver.done.clear()
        counts = engine.tissue_counts(volume, threshold)
        assert driver.done == ["upload", "tissue_counts", "download"]
        assert (counts.dtype, counts.shape) == (np.int32, (96,))
        np.testing.assert_array_equal(counts, tissue_counts(grid, spec))
        assert not NO_ALLOCATION & set(driver.calls)
        assert driver.calls.count("cuGraphLaunch") == 1
    with pytest.raises(EngineError, match=r"volume is float32 \(1, 1, 2, 2, 2\)"):
        engine.tissue_counts(on_device(np.zeros((1, 1, 2, 2, 2), np.float32)), np.float32(0))


def test_launches_follow_the_launch_data(driver, load) -> None:
    load()
    embed, count = driver.launch_data["patch_embed3d"], driver.launch_data["tissue_counts"]
    grids = {("tissue_counts", 96)}
    for tokens in CONFIG.token_buckets:
        blocks = -(-tokens // embed["constants"]["BLOCK_T"]) * -(-CONFIG.width // embed["constants"]["BLOCK_C"])
        grids.add(("patch_embed3d", blocks))
    assert {(launch["kernel"], launch["grid"][0]) for launch in driver.launches} == grids
    for launch in driver.launches:
        entry = {"patch_embed3d": embed, "tissue_counts": count}[launch["kernel"]]
        assert launch["grid"][1:] == [1, 1]
        assert launch["block"] == [entry["threads"], 1, 1]
        assert launch["shared"] == entry["shared_memory_bytes"]


def test_each_bucket_has_its_profile_and_its_addresses(load) -> None:
    engine = load()
    contexts = [made() for made in module.require_library("tensorrt-rtx").contexts]
    assert [(c.profile, c.shape) for c in contexts] == [(0, (1, 24, 48)), (1, (1, 96, 48))]
    addresses = [address for c in contexts for address in c.addresses.values()]
    assert len(set(addresses)) == len(addresses) == 6
    assert engine.sha256_of(24) == engine.sha256_of(96)  # two profiles of one plan


def test_memory_and_graphs_are_freed_with_the_last_reference_to_the_engine(driver, load) -> None:
    gc.collect()
    gc.disable()  # a cycle of references would keep what it holds until some later collection
    try:
        engine = load()
        assert driver.live
        assert len(driver.executables) == len(driver.graphs) == 3
        engine.run(inputs(24))
        driver.destroyed.clear()
        del engine
        assert not driver.live | driver.graphs | driver.executables
        assert not driver.handles
        assert driver.retained == 0  # the primary context is released
        order = [kind for kind, _ in itertools.groupby(driver.destroyed)]
        assert order == ["context", "engine", "config", "cache"]
        assert driver.strays == []
    finally:
        gc.enable()


def test_memory_is_freed_in_whatever_thread_the_engine_goes(driver, load) -> None:
    """Another thread has no current context, and the driver frees nothing without one."""
    gc.collect()
    held = [load()]
    assert driver.live
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert not driver.live | driver.graphs | driver.executables
    assert not driver.handles
    assert driver.retained == 0
    assert driver.contexts() == []
    assert driver.strays == []


def test_the_context_of_the_caller_is_current_again(encoder, driver, load, on_device) -> None:
    """Also where it runs in a thread that never saw the engine, and where a run fails."""
    theirs = 999
    driver.contexts().append(theirs)
    engine = load()
    assert driver.contexts() == [theirs]
    given = inputs(24)
    outputs = engine.run(given)
    engine.tissue_counts(on_device(given["volume"]), np.float32(0))
    assert driver.contexts() == [theirs]
    assert np.abs(outputs["embedding"] - reference(encoder, given)[1]).max() < HALF_STEPS
    left = []
    thread = threading.Thread(target=lambda: left.extend([engine.run(given), *driver.contexts()]))
    thread.start()
    thread.join()
    (elsewhere,) = left
    np.testing.assert_array_equal(elsewhere["embedding"], outputs["embedding"])
    driver.fail.add("cuGraphLaunch")
    with pytest.raises(EngineError):
        engine.run(given)
    assert driver.contexts() == [theirs]


def test_a_driver_that_fails_half_way_gives_the_context_back(driver) -> None:
    driver.fail.add("cuStreamCreate")
    with pytest.raises(EngineError, match="cuStreamCreate"):
        cuda.Driver()
    gc.collect()  # the traceback held it
    assert driver.retained == 0


def test_to_ask_a_device_what_it_is_starts_nothing_on_it(driver) -> None:
    device = cuda.Device()
    assert (device.name, device.architecture, device.version) == ("Fake RTX", 89, "13.0")
    assert "cuDevicePrimaryCtxRetain" not in driver.calls


@pytest.mark.parametrize("call", ["run", "tissue_counts"])
def test_a_grid_that_another_stream_still_writes_is_waited_for(driver, load, on_device, call) -> None:
    engine, given = load(), inputs(24)
    theirs, ready = 777, on_device(given["volume"])
    driver.foreign_streams.add(theirs)

    def go(stream: int) -> list[str]:
        driver.done.clear()
        volume = dataclasses.replace(ready, stream=stream)
        engine.run(given | {"volume": volume}) if call == "run" else engine.tissue_counts(volume, np.float32(0))
        return driver.done

    assert "wait" not in go(0)  # ready for any
    assert "wait" not in go(engine.driver.stream_handle)  # its own
    done = go(theirs)
    assert driver.waits == [theirs]
    assert done[0] == "wait"  # before the kernel reads it
    with pytest.raises(EngineError, match="cuEventRecord gives CUDA_ERROR_INVALID_CONTEXT"):
        go(778)


def test_each_plan_is_named_by_its_buckets(load) -> None:
    engine = load(rtx=False, one_each=True)
    assert [engine.sha256_of(tokens) for tokens in CONFIG.token_buckets] == [f"{0:064d}", f"{1:064d}"]
    with pytest.raises(EngineError, match="25 tokens, the engine was built for 24, 96"):
        engine.sha256_of(25)


def test_tensorrt_has_no_cache_and_compiles_nothing(load) -> None:
    engine = load(rtx=False)
    assert not engine.compiled
    assert module.require_library("tensorrt").caches == []


def test_rtx_compiles_once_for_a_card(load) -> None:
    first = load()
    second = load()
    assert (first.compiled, second.compiled) == (True, False)
    caches = module.require_library("tensorrt-rtx").caches
    assert len(caches) == 1  # one for all contexts of an engine
    assert caches[0]().shapes == {"(1, 24, 48)", "(1, 96, 48)"}


def test_rtx_compiles_before_a_graph_is_recorded_and_before_the_cache_is_written(load, tmp_path) -> None:
    engine = load()
    assert engine.not_recorded is None
    assert module.require_library("tensorrt-rtx").fallback_kernels == []
    (written,) = (tmp_path / "cache").rglob("*.cache")
    assert written.read_bytes() == b"compiled:(1, 24, 48);(1, 96, 48)"


def test_what_the_file_of_the_cache_lacks_is_written_too(load, tmp_path) -> None:
    load()
    (written,) = (tmp_path / "cache").rglob("*.cache")
    whole = written.read_bytes()
    written.write_bytes(b"compiled:(1, 24, 48)")  # as of a process that ended early
    assert load().compiled
    assert written.read_bytes() == whole
    written.write_bytes(b"of another machine")
    assert load().compiled
    assert written.read_bytes() == whole


def test_contexts_of_rtx_share_memory_that_is_large_enough_for_each(load) -> None:
    engine = load()
    contexts = [made() for made in module.require_library("tensorrt-rtx").contexts]
    assert {context.memory for context in contexts} == {(engine._scratch[0].pointer, 2 * 4096)}


def test_another_release_of_the_driver_compiles_again(load, monkeypatch) -> None:
    """It can know the same CUDA and compile otherwise."""
    releases = ["580.65.06", "580.65.06", "580.95.05"]
    compiled = []
    for release in releases:
        monkeypatch.setattr(module, "driver_release", lambda release=release: release)
        compiled.append(load().compiled)
    assert compiled == [True, False, True]


def test_the_cache_belongs_to_engine_library_driver_and_card(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    base = ("a" * 64, "1.7.1", "13.0", "Fake RTX")
    others = [cache_file(*(value + "x" if i == j else value for j, value in enumerate(base))) for i in range(4)]
    assert len({cache_file(*base), *others}) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": np.zeros((1, 25), np.int64)}, "25 tokens, the engine was built for 24, 96"),
        ({"tokens": np.zeros((1, 24), np.int32)}, r"tokens is int32 \(1, 24\), expected int64"),
        ({"volume": np.zeros((1, 1, 16, 16, 16), np.float32)}, r"volume is float32 \(1, 1, 16, 16, 16\)"),
        ({"window": np.zeros((2, 2), np.float32)}, r"window is float32 \(2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(load, change, message) -> None:
    engine = load()
    with pytest.raises(EngineError, match=message):
        engine.run(inputs(24) | change)


def test_a_call_that_fails_is_named(driver, load) -> None:
    engine = load()
    driver.fail.add("cuGraphLaunch")
    with pytest.raises(EngineError, match="cuGraphLaunch gives CUDA_ERROR_OUT_OF_MEMORY"):
        engine.run(inputs(24))


def test_an_error_repeats_what_was_said_of_it_and_nothing_older(load) -> None:
    """The library complained at loading, of what it then mended."""
    engine = load(refuses_capture=True)  # its parts are enqueued one by one
    for made in module.require_library("tensorrt-rtx").contexts:
        made().complaint = "no workspace"
    with pytest.raises(EngineError, match=r"tensorrt-rtx: the engine does not run: no workspace$"):
        engine.run(inputs(24))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_an_engine_of_another_version_says_how_to_rebuild_it(
    folder, driver, monkeypatch, tmp_path, play_library, precision
) -> None:
    monkeypatch.setattr(module, "require_library", lambda flavour: play_library(driver, rtx=True))
    (tmp_path / "old.plan").write_bytes(b"other version")
    with pytest.raises(EngineError) as caught:
        TensorRtEngine(
            "tensorrt-rtx", [Plan(tmp_path / "old.plan", "0" * 64, (24,), "tensorrt-rtx 1.6.0")], folder / "kernels",
            CONFIG.preprocessing, precision=precision, embedding_size=16,
        )  # fmt: skip
    message = str(caught.value)
    assert "\n" not in message
    assert "Version tag does not match. expected 1.7" in message
    assert message.startswith("old.plan (built with tensorrt-rtx 1.6.0): tensorrt-rtx 1.7.1 on sm_89 refuses it: ")
    assert message.endswith(
        f"; rebuild it: decipher-rt export CHECKPOINT -o BUNDLE --{precision} --engine tensorrt-rtx --arch sm_89"
    )
