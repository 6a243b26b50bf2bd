"""The played libraries beside the real ones, as far as those can be looked at without a GPU."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def public(played: type) -> dict[str, list[str]]:
    """Return the methods of a played class, with the names of their parameters."""
    methods = {name: value for name, value in inspect.getmembers(played, inspect.isfunction) if name[0] != "_"}
    return {name: list(inspect.signature(method).parameters)[1:] for name, method in methods.items()}


def stubs() -> ast.Module:
    spec = find_spec("tensorrt_bindings")
    places = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(places[0]) / "tensorrt.pyi" if places else Path("absent")
    if not path.is_file():
        pytest.skip("tensorrt-stubs is not installed")
    # Two things in the stubs are no Python: a parameter called "in", and one without a default after one with.
    text = re.sub(r"\bin: ", "in_: ", path.read_text(encoding="utf-8"))
    return ast.parse(text.replace("channel_axis: int) ->", "channel_axis: int = ...) ->"))


def test_the_played_tensorrt_is_no_more_than_the_real_one(play_library: Callable[..., SimpleNamespace]) -> None:
    classes = {node.name: node for node in stubs().body if isinstance(node, ast.ClassDef)}
    assert "IRuntimeCache" not in classes
    for name, played in play_library(None, rtx=False).parts.items():
        declared: dict[str, list[list[str]]] = {}
        for method in classes[name].body:
            if isinstance(method, ast.FunctionDef):
                declared.setdefault(method.name, []).append([argument.arg for argument in method.args.args[1:]])
        for method, parameters in public(played).items():
            assert parameters in declared.get(method, []), f"{name}.{method}"


def test_the_played_tensorrt_rtx_is_no_more_than_the_real_one(play_library: Callable[..., SimpleNamespace]) -> None:
    real: Any = pytest.importorskip("tensorrt_rtx_bindings")
    for name, played in play_library(None, rtx=True).parts.items():
        for method, parameters in public(played).items():
            text = getattr(getattr(real, name), method).__doc__
            signatures = re.findall(rf"\b{method}\(self: [\w.]+(?:, )?(.*?)\) ->", text)
            names = [re.findall(r"(?:^|, )(\w+): ", signature) for signature in signatures]
            assert parameters in names, f"{name}.{method}: {text}"
