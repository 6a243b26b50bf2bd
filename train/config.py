"""Training configurations: strict YAML to frozen dataclasses, with ``key=value`` on top.

A dataclass with ``PRESETS`` may be given by name (``encoder: tiny``) or by name with changes (``encoder: {preset:
tiny, depth: 6}``). Whatever is unknown, missing, of the wrong type or out of range is refused by its key; but keys of a
class's ``RETIRED``, which older versions wrote, say nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import numpy as np
import yaml

from decipher_rt.errors import DecipherError

C = TypeVar("C")
LARGEST = float(np.finfo(np.float32).max)  # what models compute with


class ConfigError(DecipherError):
    """A training configuration that cannot be used. The message names the file and the key."""


def load_config(cls: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read a configuration.

    Parameters
    ----------
    cls : dataclass type
        If it has a ``check(self)`` method, that method raises ValueError with the key where values contradict each
        other.
    path : Path
        YAML file.
    overrides : sequence of str
        ``key=value`` with dots between levels (``run.rate=3e-4``); values are YAML.

    Raises
    ------
    ConfigError
    """
    document = read_document(path)
    for override in overrides:
        _override(document, override)
    try:
        return build_config(cls, document)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def override_config(config: C, overrides: Sequence[str], key: str) -> C:
    """Return a configuration, known to its user as ``key``, with other values, each given as ``key.name=value``.

    Raises
    ------
    ConfigError
    """
    document = {key: _plain(dataclasses.asdict(typing.cast("Any", config)))}
    for override in overrides:
        _override(document, override)
    try:
        return build_config(type(config), document[key], key)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def build_config(cls: type[C], document: Mapping[str, Any], key: str = "") -> C:
    """Build a configuration, or the part of one that lies under ``key``, from plain keys and values.

    Raises
    ------
    ValueError
        Naming the key.
    """
    config = _build(cls, document, key)
    if hasattr(config, "check"):
        parts = "key" in inspect.signature(config.check).parameters  # it says what it is a part of itself
        try:
            config.check(key) if parts and key else config.check()
        except ValueError as error:
            raise ValueError(str(error) if parts else _join(key, str(error))) from None
    return typing.cast("C", config)


def read_document(path: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file, unchecked.

    ``train/configs/...`` is found in an installed package too.

    Raises
    ------
    ConfigError
    """
    if path.parts[:2] == ("train", "configs") and not path.exists():
        shipped = Path(__file__).parent.joinpath(*path.parts[1:])
        path = shipped if shipped.exists() else path
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__}); give a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2020-13-45
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())[:160]}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds {type(document).__name__}, expected keys and values")
    return document


def dump_config(config: Any, *, but: Collection[str] = ()) -> str:
    """Return a configuration as YAML, presets written out, that ``load_config`` reads back to an equal one.

    The keys ``but`` are left out.
    """
    document = {name: value for name, value in dataclasses.asdict(config).items() if name not in but}
    return yaml.safe_dump(_plain(document), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not key=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{key}={text[:80]!r} is not a YAML value") from None
    *parents, last = key.split(".")
    for parent in parents:
        below = document.setdefault(parent, {})
        if isinstance(below, str):
            below = document[parent] = {"preset": below}
        if not isinstance(below, dict):
            raise ConfigError(f"{override!r}: {parent} holds no further keys")
        document = below
    document[last] = value


def _build(expected: Any, value: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if dataclasses.is_dataclass(expected):
        return _build_dataclass(expected, value, key)
    if expected is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _build(arguments[0], value, key)
    if origin is Literal:
        return _expect(value in arguments, value, key, f"one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        _expect(isinstance(value, list), value, key, "a list")
        if arguments[-1] is Ellipsis:
            return tuple(_build(arguments[0], v, f"{key}[{i}]") for i, v in enumerate(value))
        _expect(len(value) == len(arguments), value, key, f"a list of {len(arguments)}")
        return tuple(_build(a, v, f"{key}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), value, key, "keys and values")
        return {str(k): _build(arguments[1], _text(arguments[1], v), f"{key}.{k}") for k, v in value.items()}
    if expected is float:
        if isinstance(value, str):  # YAML 1.1 reads 3e-4 as text
            try:
                value = float(value)
            except ValueError:
                _expect(False, value, key, "a number")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(_expect(number and abs(value) <= LARGEST, value, key, "a finite number" if number else "a number"))
    good = isinstance(value, expected) and not (expected is int and isinstance(value, bool))
    return _expect(
        good, value, key, {"int": "a whole number", "str": "text", "bool": "true or false"}[expected.__name__]
    )


def _build_dataclass(expected: Any, value: Any, key: str) -> Any:
    presets = getattr(expected, "PRESETS", None)
    start: dict[str, Any] = {}
    if presets is not None and (isinstance(value, str) or (isinstance(value, dict) and "preset" in value)):
        changes = dict(value) if isinstance(value, dict) else {"preset": value}
        name = changes.pop("preset")
        _expect(
            isinstance(name, str) and name in presets,
            name,
            _join(key, "preset") if isinstance(value, dict) else key,
            f"one of {', '.join(presets)}",
        )
        start, value = {f.name: getattr(presets[name], f.name) for f in dataclasses.fields(expected)}, changes
    _expect(isinstance(value, dict), value, key, "keys and values")
    value = {name: one for name, one in value.items() if name not in getattr(expected, "RETIRED", ())}
    hints = typing.get_type_hints(expected)
    fields = {f.name: f for f in dataclasses.fields(expected)}
    for name in value:
        _expect(name in fields, name, _join(key, str(name)), f"no such key; there are {', '.join(fields)}", found=False)
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        _expect(not required or name in value or name in start, None, _join(key, name), "missing", found=False)
    given = {name: _text(hints[name], item) if fields[name].default == "" else item for name, item in value.items()}
    return expected(**start | {name: _build(hints[name], item, _join(key, name)) for name, item in given.items()})


def _text(expected: Any, value: Any) -> Any:
    """Return a value that may be empty text: ``key=`` with nothing after it is null to YAML."""
    return "" if expected is str and value is None else value


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _expect(good: bool, value: Any, key: str, expected: str, *, found: bool = True) -> Any:
    if not good:
        raise ValueError(f"{key} is {value!r}, expected {expected}" if found else f"{key}: {expected}")
    return value
