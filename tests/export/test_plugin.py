"""The attention plugin on a played TensorRT that is as strict as NVIDIA's: defined once, built for every engine."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto

from decipher_rt.errors import EngineError
from decipher_rt.export.tensorrt import builder, files, plugin
from decipher_rt.export.tensorrt.files import Wanted, plan_files
from decipher_rt.export.tensorrt.graph import embedded_graph, half_type
from decipher_rt.export.tensorrt.int8 import weight_only
from decipher_rt.kernels.config import attention_config
from decipher_rt.kernels.specs import Scalar
from decipher_rt.train.model.vit import ViT, ViTConfig

CONFIG = ViTConfig(
    width=192, depth=2, heads=6, embedding_size=32, grid_shape=(32, 32, 32), patch_shape=(8, 8, 8),
    spacing_mm=(6.0,) * 3, token_buckets=(32, 64),
)  # fmt: skip
HEAD_DIM = CONFIG.width // CONFIG.heads


@pytest.fixture(scope="module")
def encoder() -> ViT:
    torch.manual_seed(0)
    return ViT(CONFIG).eval()


@pytest.fixture(scope="module")
def models(encoder: ViT) -> dict[str, ModelProto]:
    halves = {"fp16": copy.deepcopy(encoder).half(), "bf16": copy.deepcopy(encoder).bfloat16()}
    return {name: onnx.load_from_string(embedded_graph(half)) for name, half in halves.items()}


@pytest.fixture(scope="module")
def kernel() -> Any:
    return plugin.plugin_kernel(CONFIG.heads, HEAD_DIM, 64, 89)


def played_engine(off: float = 0.0) -> SimpleNamespace:
    """An engine whose outputs are all the same number."""
    outputs = {name: np.full((1, 4), off, np.float32) for name in ("patch", "embedding")}
    return SimpleNamespace(not_recorded=None, run=lambda given: outputs)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A card of sm_89 on which each attention takes the time given here."""
    times = {"native": 2.0, "kernel": 1.0}
    monkeypatch.setattr(builder, "Driver", lambda: SimpleNamespace(architecture=89))
    monkeypatch.setattr(files, "Driver", lambda: SimpleNamespace(architecture=89, name="NVIDIA L4"))
    monkeypatch.setattr(files, "require_library", lambda _: SimpleNamespace(__version__="10.14"))
    monkeypatch.setattr(builder, "_load", lambda path, plan, tokens, surroundings: played_engine())
    monkeypatch.setattr(builder, "measure", lambda engines, tokens, spec: {name: times[name] for name in engines})
    return times


def build(model: ModelProto) -> list[builder.BuiltEngine]:
    surroundings = builder.Surroundings(Path(), CONFIG.preprocessing, CONFIG.embedding_size, "fp16")
    return builder.build_engines(model, CONFIG.heads, CONFIG.token_buckets, surroundings)


def test_every_bucket_and_precision_of_one_process_is_built_with_the_kernel(
    models: dict[str, ModelProto], card: dict[str, float], tensorrt_library: Any
) -> None:
    """A kernel of the other half type would read the bits of one as the other."""
    for model in models.values():
        engines = build(model)
        assert [(e.tokens, e.attention, e.kernel_refused) for e in engines] == [
            (32, "kernel", None),
            (64, "kernel", None),
        ]
    dtypes = ["fp16"] * 2 * CONFIG.depth + ["bf16"] * 2 * CONFIG.depth
    assert len(tensorrt_library.launched) == len(dtypes)
    for launched, dtype in zip(tensorrt_library.launched, dtypes, strict=True):
        product = rf"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.{dtype.replace('fp', 'f')}"
        assert re.search(product, launched.ptx.decode())


def test_the_faster_attention_is_kept_and_both_times_are_in_the_manifest(
    encoder: ViT, card: dict[str, float], tensorrt_library: Any
) -> None:
    card["kernel"] = 3.0
    contents, entries = plan_files(encoder, Wanted("tensorrt", ("fp16",)))
    assert [(e.built_with["attention"], e.built_with["kernel_ms"]) for e in entries] == [("native", "3.0000")] * 2
    assert all("kernel_refused" not in e.built_with for e in entries)
    assert not any(n.op_type == "attention" for n in onnx.load_from_string(contents[entries[0].file]).graph.node)


def test_types_that_graphs_compute_in(models: dict[str, ModelProto]) -> None:
    assert (half_type(models["fp16"]), half_type(weight_only(models["fp16"]))) == ("float16", "float16")
    assert half_type(models["bf16"]) == "bfloat16"
    with pytest.raises(ValueError, match="sm_75 has no bfloat16"):
        plugin.plugin_kernel(CONFIG.heads, HEAD_DIM, 64, 75, "bfloat16")


@pytest.mark.parametrize(
    ("architecture", "heads", "head_dim"), [(90, 12, 64), (90, 8, 96), (100, 12, 64), (100, 8, 96)]
)
def test_where_the_tiles_take_too_much_shared_memory_the_plugin_has_fewer_stages(
    architecture: int, heads: int, head_dim: int
) -> None:
    kernel = plugin.plugin_kernel(heads, head_dim, 512, architecture)
    assert kernel.shared_memory <= 48 * 1024
    assert kernel.specialisation.num_stages < attention_config(architecture, head_dim, 512, heads).num_stages
    assert kernel.resources.spill_store_bytes == 0


def without_aot(library: Any) -> None:
    del library.plugin.aot_impl


def that_refuses_the_annotations(library: Any) -> None:
    library.plugin.SymIntExprs = int


def whose_parser_finds_no_creator(library: Any) -> None:
    register = library.register
    library.plugin.register = lambda plugin_id, lazy_register: register(plugin_id, lazy_register=True)


def without_plugins(library: Any) -> None:
    sys.modules["tensorrt.plugin"] = None  # type: ignore[assignment]  # the fixture puts back what was there


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_aot, "this TensorRT has no ahead-of-time plugins"),
        (that_refuses_the_annotations, "Arguments of return annotation are"),
        (whose_parser_finds_no_creator, "TensorRT refuses the graph: Plugin not found, searched: attention version 1"),
        (without_plugins, "this TensorRT has no tensorrt.plugin"),
    ],
)
def test_a_refusal_is_in_the_manifest_of_every_bucket(
    encoder: ViT, card: dict[str, float], tensorrt_library: Any, spoil: Callable[[Any], None], said: str
) -> None:
    spoil(tensorrt_library)
    _, entries = plan_files(encoder, Wanted("tensorrt", ("fp16",)))
    for entry in entries:
        assert entry.built_with["attention"] == "native"
        assert "kernel_ms" not in entry.built_with
        assert entry.built_with["kernel_refused"].startswith(said)
        assert "\n" not in entry.built_with["kernel_refused"]


def test_an_engine_with_the_kernel_that_does_not_run_is_left_out(
    models: dict[str, ModelProto], card: dict[str, float], tensorrt_library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path, *_: Any) -> Any:
        if path.name == "kernel":
            raise EngineError("tensorrt: the engine does not run:\n no such kernel")
        return SimpleNamespace(not_recorded="capture refused")

    monkeypatch.setattr(builder, "_load", load)
    for built in build(models["fp16"]):
        assert (built.attention, built.times_ms) == ("native", {"native": 2.0})
        assert built.kernel_refused == "tensorrt: the engine does not run: no such kernel"
        assert built.not_recorded == "capture refused"


@pytest.mark.parametrize(("off", "attention"), [(0.04, "kernel"), (-0.06, "native"), (np.nan, "native")])
def test_a_kernel_that_gives_something_else_is_left_out_however_fast_it_is(
    models: dict[str, ModelProto],
    card: dict[str, float],
    tensorrt_library: Any,
    monkeypatch: pytest.MonkeyPatch,
    off: float,
    attention: str,
) -> None:
    monkeypatch.setattr(builder, "_load", lambda path, *_: played_engine(off if path.name == "kernel" else 0.0))
    for built in build(models["fp16"]):
        assert built.attention == attention
        assert set(built.times_ms) == {"native", attention}
        assert str(built.kernel_refused).startswith("patch differs by ") == (attention == "native")


def test_the_switch_of_the_kernels_leaves_the_plugin_out(
    models: dict[str, ModelProto], card: dict[str, float], tensorrt_library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DECIPHER_RT_KERNELS", "0")
    for built in build(models["fp16"]):
        assert (built.attention, built.kernel_refused) == ("native", "switched off (DECIPHER_RT_KERNELS=0)")
    assert tensorrt_library.launched == []


def test_an_engine_that_tensorrt_refuses_with_its_own_attention_is_an_error(
    models: dict[str, ModelProto], card: dict[str, float], tensorrt_library: Any
) -> None:
    broken = ModelProto()
    broken.CopyFrom(models["fp16"])
    for node in broken.graph.node:
        if node.op_type == "Softmax":
            node.domain = "elsewhere"
    with pytest.raises(EngineError, match="TensorRT refuses the graph"):
        builder.build_one(broken)


def test_the_played_library_refuses_what_nvidia_s_does(tensorrt_library: Any) -> None:
    """What was wrong before, and the fake let pass."""
    trtp = tensorrt_library.plugin

    def describe(q: Any) -> Any:
        return q.like()

    def implement(q: Any, outputs: Any, tactic: Any) -> Any:
        raise AssertionError

    def reordered(outputs: Any, q: Any, tactic: Any) -> Any:
        raise AssertionError

    describe.__annotations__ = {"q": trtp.TensorDesc, "return": trtp.TensorDesc}
    implement.__annotations__ = {}
    trtp.register("other::attention", lazy_register=True)(describe)
    assert not tensorrt_library.creators
    with pytest.raises(ValueError, match="already has a defintion"):
        trtp.register("other::attention")(describe)
    with pytest.raises(ValueError, match="No return annotation"):
        trtp.aot_impl("other::attention")(implement)
    with pytest.raises(ValueError, match="does not match"):
        trtp.aot_impl("other::attention")(reordered)


@pytest.mark.parametrize("sizes", [{"batch": 1, "tokens": 37}, {"batch": 3, "tokens": 64}, {"batch": 2, "tokens": 517}])
def test_what_the_plugin_launches_is_what_the_launch_data_say(
    kernel: Any, sizes: dict[str, int], tensorrt_library: Any
) -> None:
    plugin.use_kernel(tensorrt_library.plugin, kernel)
    launched = tensorrt_library._launch("decipher_rt::attention")
    assert launched.name.decode() == kernel.entry.name
    assert f".entry {launched.name.decode()}".encode() in launched.ptx.replace(b"\t", b" ")
    block = kernel.specialisation.constants["BLOCK_M"]
    assert [axis(sizes) for axis in launched.grid] == [-(-sizes["tokens"] // block), CONFIG.heads, sizes["batch"]]
    assert (launched.threads, launched.shared_memory) == (kernel.threads, kernel.shared_memory)
    stride = sizes["tokens"] * CONFIG.width  # of one volume in q, k, v and the result, each (B, N, H, d)
    expected = {"n": sizes["tokens"], **{f"stride_{x}b": stride for x in "qkvo"}}
    found = [scalar(sizes) for scalar in launched.scalars]
    assert dict(zip(kernel.specialisation.scalars, found, strict=True)) == expected


@pytest.mark.parametrize(
    ("scalar", "expected"), [(Scalar(None, 7), 7), (Scalar("tokens"), 37), (Scalar("tokens", 3, 16), 9)]
)
def test_symbolic_sizes_also_work_on_numbers(scalar: Scalar, expected: int) -> None:
    assert plugin.symbolic(scalar, {"tokens": 37, "batch": 1}, lambda a, b: -(-a // b)) == expected
