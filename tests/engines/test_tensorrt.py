"""The TensorRT runtime without a GPU: a driver whose device memory is the host's, and an engine that is ONNX.

What cannot be shown so is what a card does. What is shown: every call is one that ``cuda.h`` declares, with its number
of arguments; the kernel is launched with the arguments, grid and addresses that its launch data ask for; buffers,
profiles, graphs and the cache belong to the right bucket; the whole gives what the encoder in PyTorch gives.
"""

# ruff: noqa: N802, N815 - handlers carry the names of cuda.h
from __future__ import annotations

import copy
import ctypes
import gc
import itertools
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from decipher_rt.device_array import DeviceArray
from decipher_rt.engines import cuda, patch_embed
from decipher_rt.engines import tensorrt as module
from decipher_rt.engines.tensorrt import Plan, TensorRtEngine, cache_file
from decipher_rt.errors import EngineError
from decipher_rt.export.tensorrt.files import _kernel_files
from decipher_rt.export.tensorrt.graph import embedded_graph
from decipher_rt.train.model.vit import ViT, ViTConfig

CONFIG = ViTConfig(
    width=48, depth=2, heads=4, embedding_size=16, grid_shape=(16, 16, 24), patch_shape=(4, 4, 4),
    spacing_mm=(15.0,) * 3, token_buckets=(24, 96),
)  # fmt: skip
HALF_STEPS = 2e-2  # two layers of float16 from tokens of order 1


def view(pointer: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer)).view(dtype).reshape(shape)


class FakeCuda:
    """The driver's functions on host memory. Work on a stream is done at once, or recorded while it is captured."""

    def __init__(self, architecture: int = 89) -> None:
        self.calls: list[str] = []
        self.launches: list[dict[str, Any]] = []
        self.live: dict[int, Any] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.fail: str | None = None
        self._attributes = {75: architecture // 10, 76: architecture % 10}
        self._handles = itertools.count(1000)

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)
        handler = getattr(type(self), f"on_{name}", type(self)._nothing)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            expected = cuda._SIGNATURES[name]
            assert len(arguments) == len(expected), name
            if name == self.fail:
                return 2
            handler(self, *arguments)
            return 0

        return call

    def _nothing(self, *_: Any) -> None:
        pass

    def on_cuGetErrorName(self, _status: int, name: Any) -> None:
        name._obj.value = b"CUDA_ERROR_OUT_OF_MEMORY"

    def on_cuDriverGetVersion(self, number: Any) -> None:
        number._obj.value = 13000

    def on_cuDeviceGetName(self, name: Any, _length: int, _device: int) -> None:
        name.value = b"Fake RTX"

    def on_cuDeviceGetAttribute(self, value: Any, attribute: int, _device: int) -> None:
        value._obj.value = self._attributes[attribute]

    def _handle(self, out: Any, *_: Any) -> None:
        out._obj.value = next(self._handles)

    on_cuDevicePrimaryCtxRetain = on_cuStreamCreate = _handle

    def _allocate(self, out: Any, size: int) -> None:
        memory = (ctypes.c_uint8 * (size + 256))()
        address = -(-ctypes.addressof(memory) // 256) * 256
        ctypes.memset(address, 0xFF, size)  # NaN in every float type
        out._obj.value = address
        self.live[address] = memory

    on_cuMemAlloc_v2 = on_cuMemAllocHost_v2 = _allocate

    def _free(self, pointer: Any) -> None:
        self.live.pop(pointer.value)

    on_cuMemFree_v2 = on_cuMemFreeHost = _free

    def enqueue(self, work: Callable[[], None]) -> None:
        self.recording.append(work) if self.recording is not None else work()

    def _copy(self, target: Any, source: Any, size: int, _stream: Any) -> None:
        self.enqueue(lambda: ctypes.memmove(target.value, source.value, size))

    on_cuMemcpyHtoDAsync_v2 = on_cuMemcpyDtoHAsync_v2 = _copy

    def on_cuStreamBeginCapture_v2(self, _stream: Any, mode: int) -> None:
        assert mode == cuda.CAPTURE_THREAD_LOCAL
        self.recording = []

    def on_cuStreamEndCapture(self, _stream: Any, graph: Any) -> None:
        graph._obj.value = next(self._handles)
        self.graphs[graph._obj.value], self.recording = self.recording or [], None

    def on_cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, _flags: int) -> None:
        executable._obj.value = next(self._handles)
        self.graphs[executable._obj.value] = self.graphs[graph.value]

    def on_cuGraphLaunch(self, executable: Any, _stream: Any) -> None:
        for work in self.graphs[executable.value]:
            work()

    def on_cuModuleLoadData(self, out: Any, cubin: bytes) -> None:
        assert cubin.startswith(b"\x7fELF")
        out._obj.value = next(self._handles)

    def on_cuModuleGetFunction(self, out: Any, _module: Any, _name: bytes) -> None:
        out._obj.value = next(self._handles)

    def on_cuLaunchKernel(self, _function: Any, *arguments: Any) -> None:
        *sizes, _stream, pointers, _extra = arguments
        self.launches.append({"grid": sizes[:3], "block": sizes[3:6], "shared": sizes[6]})
        entry, given = self.kernel, {}
        for index, item in enumerate(entry["arguments"]):
            kind = ctypes.c_int32 if "int32" in item else ctypes.c_uint64
            given[item["name"]] = kind.from_address(pointers[index]).value
        self.enqueue(lambda: embed(given, entry["constants"]))


def embed(given: dict[str, int], constants: dict[str, int]) -> None:
    """The patch embedding in numpy, from nothing but the arguments of the launch."""
    assert given["global_scratch"] == given["profile_scratch"] == 0
    grid = (constants["GRID_D"], constants["GRID_H"], constants["GRID_W"])
    patch = (constants["PATCH_D"], constants["PATCH_H"], constants["PATCH_W"])
    rows, per_volume, C = given["rows"], given["tokens_per_volume"], constants["C"]
    assert rows == per_volume  # one volume
    P, N = int(np.prod(patch)), int(np.prod(grid))
    volume = view(given["volume"], tuple(g * p for g, p in zip(grid, patch, strict=True)), np.float32)
    low, high = view(given["window"], (2,), np.float32)
    tokens = view(given["tokens"], (rows,), np.int64)
    weight = view(given["weight"], (C, P), np.float16).astype(np.float32)
    bias, position = view(given["bias"], (C,), np.float32), view(given["position"], (N, C), np.float32)
    split = volume.reshape(grid[0], patch[0], grid[1], patch[1], grid[2], patch[2]).transpose(0, 2, 4, 1, 3, 5)
    patches = np.clip((split.reshape(N, P)[tokens] - low) / (high - low), 0, 1) * 2 - 1
    view(given["out"], (rows, C), np.float16)[...] = patches @ weight.T + bias + position[tokens]


class FakeContext:
    def __init__(self, driver: FakeCuda, session: ort.InferenceSession) -> None:
        self._driver, self._session = driver, session
        self.addresses: dict[str, int] = {}
        self.profile = self.shape = None

    def set_optimization_profile_async(self, profile: int, _stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "embedded"

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, _stream: int) -> bool:
        self._driver.enqueue(self._run)
        return True

    def _run(self) -> None:
        embedded = view(self.addresses["embedded"], self.shape, np.float16)
        for name, array in zip(("patch", "embedding"), self._session.run(None, {"embedded": embedded}), strict=True):
            view(self.addresses[name], array.shape, np.float32)[...] = array


class FakeCache:
    def __init__(self) -> None:
        self.content: bytes | None = None

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return content == b"compiled"

    def serialize(self) -> bytes:
        return b"compiled"


def fake_library(driver: FakeCuda, *, rtx: bool) -> SimpleNamespace:
    contexts: list[FakeContext] = []
    caches: list[FakeCache] = []

    class Logger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    class Engine:
        def __init__(self, content: bytes) -> None:
            self.session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])

        def create_execution_context(self, *_: Any) -> FakeContext:
            contexts.append(FakeContext(driver, self.session))
            return contexts[-1]

    def runtime_config(self: Any) -> SimpleNamespace:
        def create() -> FakeCache:
            caches.append(FakeCache())
            return caches[-1]

        return SimpleNamespace(create_runtime_cache=create, set_runtime_cache=lambda cache: cache in caches)

    if rtx:
        Engine.create_runtime_config = runtime_config  # type: ignore[attr-defined]

    class Runtime:
        def __init__(self, log: Any) -> None:
            self._log = log

        def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
            if content.startswith(b"other"):
                self._log.log(Logger.Severity.ERROR, "Version tag does not match.\n  expected 1.7")
                return None
            return Engine(content)

    return SimpleNamespace(ILogger=Logger, Runtime=Runtime, __version__="1.7.1", contexts=contexts, caches=caches)


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
def driver(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> FakeCuda:
    fake = FakeCuda()
    fake.kernel = json.loads((folder / "kernels" / "kernels.json").read_text())["kernels"][0]
    monkeypatch.setattr(cuda, "_library", lambda: fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake


def load(folder: Path, driver: FakeCuda, monkeypatch: pytest.MonkeyPatch, rtx: bool = True) -> TensorRtEngine:
    library = fake_library(driver, rtx=rtx)
    monkeypatch.setattr(module, "require_library", lambda flavour: library)
    plan = Plan(folder / "encoder.plan", "0" * 64, CONFIG.token_buckets)
    return TensorRtEngine(
        "tensorrt-rtx" if rtx else "tensorrt", [plan], folder / "kernels", CONFIG.preprocessing,
        precision="fp16", embedding_size=CONFIG.embedding_size,
    )  # fmt: skip


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
def test_every_bucket_gives_what_the_encoder_gives(encoder, folder, driver, monkeypatch, rtx) -> None:
    engine = load(folder, driver, monkeypatch, rtx)
    for seed, K in enumerate((24, 96, 24)):
        given = inputs(K, seed)
        outputs = engine.run(given)
        patch, embedding = reference(encoder, given)
        assert np.abs(outputs["patch"] - patch).max() < HALF_STEPS
        assert np.abs(outputs["embedding"] - embedding).max() < HALF_STEPS
    assert engine.device == "cuda:0 Fake RTX"


def test_a_grid_on_the_device_is_read_where_it_lies(encoder, folder, driver, monkeypatch) -> None:
    engine = load(folder, driver, monkeypatch)
    given = inputs(24)
    memory = (ctypes.c_uint8 * (given["volume"].nbytes + 256))()
    address = -(-ctypes.addressof(memory) // 256) * 256
    view(address, given["volume"].shape, np.float32)[...] = given["volume"]
    driver.calls.clear()
    on_device = DeviceArray(address, given["volume"].shape, np.dtype(np.float32))
    outputs = engine.run(given | {"volume": on_device})
    assert np.abs(outputs["embedding"] - reference(encoder, given)[1]).max() < HALF_STEPS
    assert driver.calls.count("cuMemcpyHtoDAsync_v2") == 2  # window and tokens, and no volume


def test_nothing_is_allocated_after_loading_and_the_engine_is_one_graph_launch(folder, driver, monkeypatch) -> None:
    engine = load(folder, driver, monkeypatch)
    driver.calls.clear()
    driver.launches.clear()
    for seed in range(3):
        engine.run(inputs(96, seed))
    assert not {"cuMemAlloc_v2", "cuMemAllocHost_v2", "cuModuleLoadData"} & set(driver.calls)
    assert driver.calls.count("cuGraphLaunch") == driver.calls.count("cuLaunchKernel") == 3
    assert driver.calls.count("cuStreamSynchronize") == 3


def test_the_launch_follows_the_launch_data(folder, driver, monkeypatch) -> None:
    engine = load(folder, driver, monkeypatch)
    driver.launches.clear()
    engine.run(inputs(96))
    entry, launch = driver.kernel, driver.launches[0]
    blocks = -(-96 // entry["constants"]["BLOCK_T"]) * -(-CONFIG.width // entry["constants"]["BLOCK_C"])
    assert launch["grid"] == [blocks, 1, 1]
    assert launch["block"] == [entry["threads"], 1, 1]
    assert launch["shared"] == entry["shared_memory_bytes"]


def test_each_bucket_has_its_profile_and_its_addresses(folder, driver, monkeypatch) -> None:
    load(folder, driver, monkeypatch)
    contexts = module.require_library("tensorrt-rtx").contexts
    assert [(c.profile, c.shape) for c in contexts] == [(0, (1, 24, 48)), (1, (1, 96, 48))]
    addresses = [address for c in contexts for address in c.addresses.values()]
    assert len(set(addresses)) == len(addresses) == 6


def test_memory_is_freed_with_the_engine(folder, driver, monkeypatch) -> None:
    engine = load(folder, driver, monkeypatch)
    assert driver.live
    engine.run(inputs(24))
    del engine
    gc.collect()
    assert not driver.live


def test_rtx_compiles_once_for_a_card(folder, driver, monkeypatch) -> None:
    first = load(folder, driver, monkeypatch)
    second = load(folder, driver, monkeypatch)
    assert (first.compiled, second.compiled) == (True, False)
    caches = module.require_library("tensorrt-rtx").caches
    assert len(caches) == 1  # one for all contexts of an engine
    assert caches[0].content == b"compiled"


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
def test_what_does_not_fit_is_refused_by_name(folder, driver, monkeypatch, change, message) -> None:
    engine = load(folder, driver, monkeypatch)
    with pytest.raises(EngineError, match=message):
        engine.run(inputs(24) | change)


def test_a_call_that_fails_is_named(folder, driver, monkeypatch) -> None:
    engine = load(folder, driver, monkeypatch)
    driver.fail = "cuGraphLaunch"
    with pytest.raises(EngineError, match="cuGraphLaunch gives CUDA_ERROR_OUT_OF_MEMORY"):
        engine.run(inputs(24))


def test_an_engine_of_another_version_says_how_to_rebuild_it(folder, driver, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(module, "require_library", lambda flavour: fake_library(driver, rtx=True))
    (tmp_path / "old.plan").write_bytes(b"other version")
    with pytest.raises(EngineError) as caught:
        TensorRtEngine(
            "tensorrt-rtx", [Plan(tmp_path / "old.plan", "0" * 64, (24,))], folder / "kernels", CONFIG.preprocessing,
            precision="fp16", embedding_size=16,
        )  # fmt: skip
    message = str(caught.value)
    assert "\n" not in message
    assert "Version tag does not match. expected 1.7" in message
    assert message.endswith("decipher-rt export CHECKPOINT -o BUNDLE --fp16 --engine tensorrt-rtx --arch sm_89")


@pytest.mark.parametrize(("card", "cubin"), [(89, 89), (80, None), (120, None), (90, None)])
def test_a_cubin_serves_its_own_generation(folder, card, cubin) -> None:
    if cubin:
        assert patch_embed.find_kernel(folder / "kernels", card)["architecture"] == f"sm_{cubin}"
    else:
        with pytest.raises(EngineError, match=rf"kernels are for sm_89, this card is sm_{card}"):
            patch_embed.find_kernel(folder / "kernels", card)


def header() -> str:
    spec = find_spec("triton")
    path = Path(spec.origin).parent / "backends" / "nvidia" / "include" / "cuda.h" if spec and spec.origin else None
    if path is None or not path.is_file():
        pytest.skip("Triton's wheel, which brings cuda.h, is not installed")
    return path.read_text(encoding="utf-8", errors="replace")


WIDTHS = {"unsigned int": 4, "int": 4, "size_t": 8, "CUdevice": 4, "CUdeviceptr": 8, "unsigned long long": 8}
ENUMS = ("CUdevice_attribute", "CUfunction_attribute", "CUstreamCaptureMode", "CUresult")


@pytest.mark.parametrize("name", sorted(cuda._SIGNATURES))
def test_signatures_are_those_of_the_header(name: str) -> None:
    text = header()
    # The library exports some functions under other names than the header declares: it renames them by macro.
    renamed = re.search(rf"^\s*#\s*define\s+(\w+)\s+(?:__CUDA_API_PT[DS]S?Z?\()?{name}\b", text, re.MULTILINE)
    plain = renamed[1] if renamed else name
    declared = re.findall(rf"CUresult\s+CUDAAPI\s+{plain}\(([^;]*?)\);", text)
    assert declared, f"{plain} is not in cuda.h"
    assert renamed or not re.search(rf"^\s*#\s*define\s+{name}\b", text, re.MULTILINE), f"{name} is renamed"
    parameters = [part.strip() for part in declared[0].split(",")]
    expected = cuda._SIGNATURES[name]
    assert len(parameters) == len(expected)
    for parameter, kind in zip(parameters, expected, strict=True):
        c_type = re.sub(r"\bconst\b|\w+$", "", parameter).strip()
        size = 8 if "*" in parameter else 4 if c_type in ENUMS else WIDTHS.get(c_type, 8)
        assert ctypes.sizeof(kind) == size, f"{name}: {parameter}"
