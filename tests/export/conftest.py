"""Small untrained models, and a TensorRT that builds nothing, played: it refuses what NVIDIA's Python part refuses.

The rules of plugins are those of ``tensorrt.plugin`` (NVIDIA/TensorRT, python/packaging/bindings_wheel/tensorrt/plugin,
10.9 to 10.14); which creators the ONNX parser finds, those of onnx-tensorrt. A plan is the graph that it was built from.
"""

# ruff: noqa: TRY004 - the exceptions are of the types that the library raises
from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

Sizes = dict[str, int]
LAUNCH = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")


class SymInt32:
    """An integer that is worked out when the shapes are known."""

    def __init__(self, value: int | SymInt32 | Callable[[Sizes], int]) -> None:
        if isinstance(value, SymInt32):
            self.evaluate: Callable[[Sizes], int] = value.evaluate
        elif isinstance(value, int):
            self.evaluate = lambda _: value
        else:
            assert callable(value), f"{value!r} is no size"
            self.evaluate = value

    def __call__(self) -> Callable[[Sizes], int]:
        return self.evaluate

    def __mul__(self, other: int | SymInt32) -> SymInt32:
        right = SymInt32(other)
        return type(self)(lambda sizes: self.evaluate(sizes) * right.evaluate(sizes))


class ShapeExpr(SymInt32):
    pass


def cdiv(first: int | SymInt32, second: int | SymInt32) -> ShapeExpr:
    if isinstance(first, int) and isinstance(second, int):
        raise ValueError("Both arguments cannot be 'int's")
    a, b = SymInt32(first), SymInt32(second)
    return ShapeExpr(lambda sizes: -(-a.evaluate(sizes) // b.evaluate(sizes)))


class SymExprs:
    def __init__(self, length: int) -> None:
        self._items: list[Any] = [None] * length

    def __setitem__(self, index: int, value: int | SymInt32) -> None:
        if not isinstance(value, SymInt32 | int):
            raise ValueError(f"Value should be int or ShapeExpr. Got '{type(value)}'")
        self._items[index] = value

    def __getitem__(self, index: int) -> Any:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)


class SymIntExprs(SymExprs):
    pass


class KernelLaunchParams:
    def __init__(self) -> None:
        for name in LAUNCH:
            setattr(self, name, 0 if name == "shared_mem" else 1)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in LAUNCH:
            raise AttributeError(f"KernelLaunchParams object has no attribute '{name}'")
        self.__dict__[name] = SymInt32(value)


class TensorDesc:
    def __init__(self, shape_expr: list[ShapeExpr]) -> None:
        self.shape_expr = shape_expr

    def like(self) -> TensorDesc:
        return TensorDesc(list(self.shape_expr))


@dataclass
class Definition:
    describe: Callable[..., Any]
    inputs: list[str]
    aot: Callable[..., Any] | None = None


@dataclass
class Launched:
    """What one plugin node of an engine launches."""

    name: bytes
    ptx: bytes
    grid: tuple[Callable[[Sizes], int], ...]
    threads: int
    shared_memory: int
    scalars: list[Callable[[Sizes], int]]


@dataclass
class PlayedTensorRt:
    """The library, and what it was told: ``launched`` has every plugin node that was built, in order."""

    trt: ModuleType
    plugin: ModuleType
    definitions: dict[str, Definition] = field(default_factory=dict)
    creators: set[tuple[str, str]] = field(default_factory=set)
    launched: list[Launched] = field(default_factory=list)

    def register(self, plugin_id: str, lazy_register: bool = False) -> Callable[[Any], Any]:
        def decorate(describe: Any) -> Any:
            namespace, name = plugin_id.split("::")
            if plugin_id in self.definitions:
                raise ValueError(f"'_Op' already has a defintion for '{name}'")
            signature = inspect.signature(describe)
            for parameter in signature.parameters.values():
                if parameter.annotation is parameter.empty:
                    raise ValueError(f"Argument {parameter.name} does not have a type annotation.")
                if not issubclass(parameter.annotation, TensorDesc):
                    raise ValueError(f"Attribute '{parameter.name}' is not a supported serializable type.")
            if signature.return_annotation is signature.empty:
                raise ValueError(f"No return annotation found for register function. Received signature {signature}.")
            if not inspect.isclass(signature.return_annotation) or not issubclass(
                signature.return_annotation, TensorDesc
            ):
                raise ValueError(f"Return argument is of type {signature.return_annotation}.")
            self.definitions[plugin_id] = Definition(describe, list(signature.parameters))
            setattr(vars(self.plugin.op).setdefault(namespace, SimpleNamespace()), name, self.definitions[plugin_id])
            if not lazy_register:
                self.creators.add((namespace, name))
            return describe

        return decorate

    def aot_impl(self, plugin_id: str) -> Callable[[Any], Any]:
        def decorate(implement: Any) -> Any:
            if plugin_id not in self.definitions:
                raise ValueError(f"Plugin {plugin_id} is not registered.")
            definition, signature = self.definitions[plugin_id], inspect.signature(implement)
            if list(signature.parameters) != [*definition.inputs, "outputs", "tactic"]:
                raise ValueError(f"Signature of the aot_impl function '{signature}' does not match")
            if signature.return_annotation is signature.empty:
                raise ValueError(f"No return annotation found for aot_impl function. Received signature {signature}.")
            check_result_annotation(signature.return_annotation)
            definition.aot = implement
            return implement

        return decorate

    def build(self, model: onnx.ModelProto) -> bytes:
        for node in plugin_nodes(model):
            self.launched.append(self._launch(f"{attribute(node, 'plugin_namespace')}::{node.op_type}"))
        return model.SerializeToString()

    def _launch(self, plugin_id: str) -> Launched:
        definition = self.definitions[plugin_id]
        assert definition.aot is not None
        shape = [ShapeExpr(lambda sizes, name=name: sizes[name]) for name in ("batch", "tokens", "heads", "head_dim")]
        given = [TensorDesc(list(shape)) for _ in definition.inputs]
        assert isinstance(definition.describe(*given), TensorDesc)
        name, ptx, launch, extra = definition.aot(*given, (TensorDesc(list(shape)),), 0)
        if not isinstance(name, str | bytes) or not isinstance(ptx, str | bytes):
            raise TypeError("Kernel name and PTX must be 'str' or 'bytes'.")
        if not isinstance(launch, KernelLaunchParams) or not isinstance(extra, SymExprs):
            raise TypeError("Launch params must be a 'tensorrt.plugin.KernelLaunchParams'.")
        for index in range(len(extra)):
            if not isinstance(extra[index], SymInt32):
                raise TypeError(f"Extra args must be a 'tensorrt.plugin.SymInt32'.  Got: {type(extra[index])}.")
        axes = (launch.grid_x(), launch.grid_y(), launch.grid_z())
        scalars = [extra[index]() for index in range(len(extra))]
        return Launched(name, ptx, axes, launch.block_x()({}), launch.shared_mem()({}), scalars)


def check_result_annotation(annotation: Any) -> None:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is not tuple or len(arguments) != 4:
        raise ValueError(f"Return annotation is {annotation}. Expected tuple[str | bytes, str | bytes, ...].")
    for argument in arguments[:2]:
        union = typing.get_origin(argument) in (typing.Union, types.UnionType)
        if not set(typing.get_args(argument) if union else [argument]) <= {str, bytes}:
            raise ValueError(f"Return annotation for argument is '{argument}'. Expected 'str' or 'bytes'.")
    if not issubclass(arguments[2], KernelLaunchParams) or not issubclass(arguments[3], SymExprs):
        raise ValueError(f"Arguments of return annotation are {arguments[2:]}.")


def plugin_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes that are no operators of ONNX: a parser looks for a plugin of that name."""
    return [node for node in model.graph.node if not onnx.defs.has(node.op_type, node.domain)]


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    found = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}.get(name, default)
    return found.decode() if isinstance(found, bytes) else found


def play_builder(played: PlayedTensorRt) -> dict[str, Any]:
    """What of ``tensorrt`` itself builds an engine."""

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    class Builder:
        def __init__(self, log: ILogger) -> None:
            self._log = log

        def create_network(self, flags: int) -> SimpleNamespace:
            assert flags == 1 << 1, "a graph of half types needs a strongly typed network"
            return SimpleNamespace(model=None)

        def create_builder_config(self) -> SimpleNamespace:
            return SimpleNamespace()

        def build_serialized_network(self, network: SimpleNamespace, _config: SimpleNamespace) -> bytes:
            return played.build(network.model)

    class OnnxParser:
        def __init__(self, network: SimpleNamespace, log: Any) -> None:
            self._network, self._log = network, log

        def parse(self, content: bytes) -> bool:
            model = onnx.load_from_string(content)
            for node in plugin_nodes(model):
                namespace = attribute(node, "plugin_namespace", "")
                definition = played.definitions.get(f"{namespace}::{node.op_type}")
                if (namespace, node.op_type) not in played.creators or definition is None:
                    self._log.log(ILogger.Severity.ERROR, f"Plugin not found, searched: {node.op_type} version 1")
                    return False
                if not attribute(node, "aot", 0) or definition.aot is None:
                    self._log.log(ILogger.Severity.ERROR, "AOT implementation requested, but not defined")
                    return False
            self._network.model = model
            return True

    flags = SimpleNamespace(STRONGLY_TYPED=1)
    return {
        "ILogger": ILogger,
        "Builder": Builder,
        "OnnxParser": OnnxParser,
        "Runtime": object,
        "NetworkDefinitionCreationFlag": flags,
    }


@pytest.fixture
def tensorrt_library(monkeypatch: pytest.MonkeyPatch) -> PlayedTensorRt:
    """Install the played library, as of a process that has just imported it."""
    played = PlayedTensorRt(ModuleType("tensorrt"), ModuleType("tensorrt.plugin"))
    for name in ("TensorDesc", "ShapeExpr", "SymInt32", "SymExprs", "SymIntExprs", "KernelLaunchParams", "cdiv"):
        setattr(played.plugin, name, globals()[name])
    played.plugin.op = SimpleNamespace()
    played.plugin.register, played.plugin.aot_impl = played.register, played.aot_impl
    for name, value in play_builder(played).items():
        setattr(played.trt, name, value)
    played.trt.plugin = played.plugin
    monkeypatch.setitem(sys.modules, "tensorrt", played.trt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", played.plugin)
    return played


@pytest.fixture(scope="session")
def untrained() -> Callable[..., Any]:
    """A function that gives the `Weights` of a model with random weights, none of which are all zero, as of a trained one.

    ``untrained(encoder, decoders=..., text=..., scope=..., metadata=...)``: as `RecipeConfig` has them; by default a
    head for the contrast and one for lesions, no text tower, and a scope of both its opinions.
    """
    import torch

    from decipher_rt.train.data.protocol import SEQUENCES
    from decipher_rt.train.decoders.registry import DecoderConfig
    from decipher_rt.train.model.recipe import RecipeConfig, RecipeModel
    from decipher_rt.train.scope import ScopeConfig
    from decipher_rt.train.sources import SourceConfig
    from decipher_rt.train.weights import Weights

    classifiers = (
        DecoderConfig("sequence", "classification", "sequence", "Contrast.", {"labels": list(SEQUENCES)}),
        DecoderConfig(
            "lesion", "classification", "lesion", "Lesion.", {"labels": ["absent", "present"], "pool": "max"}
        ),
    )

    both = ScopeConfig(groups=5, outliers=True)

    def build(encoder, *, decoders=classifiers, text=None, scope=both, metadata=None):
        torch.manual_seed(11)
        sources = {decoder.name: SourceConfig() for decoder in decoders}
        config = RecipeConfig("recipe", "test", "0", encoder, text, decoders, sources, scope)
        model = RecipeModel(config).eval()
        with torch.no_grad():
            model.scope.means.normal_()
            for parameter in model.decoders.parameters():
                if not parameter.abs().max() > 0:
                    parameter.normal_(std=0.1)
        return Weights(model, config, metadata or {})

    return build
