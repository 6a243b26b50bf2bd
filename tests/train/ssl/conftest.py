"""A small encoder, and balls to train it on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from decipher_rt.train.config import load_config
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.sources import ListedExamples
from decipher_rt.train.ssl.config import SSLConfig

PROGRAM = Path(__file__).parents[1] / "programs" / "ssl_run.py"


@pytest.fixture(scope="session")
def program() -> ModuleType:
    """The run that the tests start, as a module; its file is what a process is started with."""
    spec = importlib.util.spec_from_file_location("ssl_run", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def config() -> SSLConfig:
    """The run's configuration."""
    return load_config(SSLConfig, PROGRAM.with_suffix(".yaml"))


@pytest.fixture(scope="session")
def encoder(config: SSLConfig) -> ViTConfig:
    """Its encoder: 6 x 6 x 6 patches of 4 voxels."""
    return config.encoder


@pytest.fixture(scope="session")
def balls(program: ModuleType) -> Callable[[int, int], ListedExamples]:
    """A function ``(first, last)`` that gives balls by number; the texture is the number modulo 5."""
    return lambda first, last: ListedExamples([program.ball(i) for i in range(first, last)])
