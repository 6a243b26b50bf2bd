"""What the driver is: too old, and of which release."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from decipher_rt.bundle import open_bundle
from decipher_rt.encoder import load_encoder, why_not
from decipher_rt.engines import cuda, driver_release
from decipher_rt.errors import EngineError
from decipher_rt.machine import describe_machine

OPEN = """NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22-I3-AE18-23-3)
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
CLOSED = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024
GCC version:  gcc version 9.4.0
"""


class OldDriver:
    """A library without one function, as ctypes shows it."""

    def __init__(self, lacking: str) -> None:
        self._lacking = lacking

    def __getattr__(self, name: str) -> Any:
        if name == self._lacking:
            raise AttributeError(f"{cuda.LIBRARY}: undefined symbol: {name}")
        return SimpleNamespace()


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: OldDriver("cuGraphAddKernelNode_v2"))
    cuda._library.cache_clear()
    yield
    cuda._library.cache_clear()


def test_a_driver_that_is_too_old_says_which_is_needed(old_driver: None) -> None:
    said = r"NVIDIA driver too old \(libcuda\.so\.1 has no cuGraphAddKernelNode_v2\): .* CUDA 12\.0, driver release 525"
    with pytest.raises(EngineError, match=said):
        cuda.Device()


def test_auto_and_doctor_go_on_with_such_a_driver(old_driver: None) -> None:
    bundle = open_bundle()
    said = why_not(bundle, "tensorrt-rtx", "fp16")
    assert said is not None
    assert said.startswith("NVIDIA driver too old")
    chosen = load_encoder(bundle, "auto", "fp32", 1)
    assert chosen.engine.name == "onnxruntime"
    assert chosen.fallback is not None
    assert "tensorrt: NVIDIA driver too old" in chosen.fallback


def test_the_machine_says_what_is_wrong_with_such_a_driver(old_driver: None) -> None:
    machine = describe_machine()
    assert machine.gpus == ()
    assert machine.gpu_note.startswith("NVIDIA driver too old")


@pytest.fixture
def kernel_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "version"
    monkeypatch.setattr(driver_release, "KERNEL_MODULE", path)
    driver_release.driver_release.cache_clear()
    yield path
    driver_release.driver_release.cache_clear()


@pytest.mark.parametrize(("text", "release"), [(OPEN, "580.65.06"), (CLOSED, "470.256.02")])
def test_the_release_is_the_kernel_modules(kernel_module: Path, text: str, release: str) -> None:
    kernel_module.write_text(text)
    assert driver_release.driver_release() == release


class Nvml:
    """libnvidia-ml as ctypes shows it: a function that was not declared takes what it is given."""

    def __init__(self, status: int) -> None:
        self._status = status

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return self._status

    def nvmlShutdown(self) -> int:  # noqa: N802
        return 0

    def nvmlSystemGetDriverVersion(self, version: Any, length: ctypes.c_uint) -> int:  # noqa: N802
        assert length.value == len(version)
        version.value = b"581.29"
        return 0


@pytest.mark.parametrize(("status", "release"), [(0, "581.29"), (9, "")])
def test_without_a_kernel_module_nvml_is_asked(
    kernel_module: Path, monkeypatch: pytest.MonkeyPatch, status: int, release: str
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Nvml(status))
    assert driver_release.driver_release() == release


def test_without_either_the_release_is_not_known(kernel_module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert driver_release.driver_release() == ""
