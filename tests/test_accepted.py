"""The golden case runs once for each bundle, encoder, engine and machine, and again when any of them changes."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest

import decipher_rt.accepted as accepted
from decipher_rt.bundle import DEFAULT_BUNDLE, Bundle, open_bundle
from decipher_rt.manifest import EngineFile

ENTRY = EngineFile("onnx", "int8", "encoder.int8.onnx")
ENGINE = SimpleNamespace(name="onnxruntime", device="cpu", precision="int8", threads=2)


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.32.0"))
    monkeypatch.setattr(accepted, "cpuinfo", lambda: {"model name": "CPU X", "microcode": "0x1"})
    monkeypatch.setattr(accepted, "cpu_features", lambda: frozenset({"avx2"}))


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    manifest = open_bundle(DEFAULT_BUNDLE, only_used=True).manifest
    return Bundle(tmp_path, manifest, "a" * 64, {ENTRY.file: "b" * 64})


def test_nothing_is_accepted_before_it_was_right(bundle):
    assert not accepted.is_accepted(bundle, ENTRY, ENGINE)
    accepted.accept(bundle, ENTRY, ENGINE)
    assert accepted.is_accepted(bundle, ENTRY, ENGINE)


@pytest.mark.parametrize(
    "change",
    [
        lambda b, m: (dataclasses.replace(b, sha256="c" * 64), ENGINE),
        lambda b, m: (dataclasses.replace(b, sums={ENTRY.file: "d" * 64}), ENGINE),
        lambda b, m: (b.with_heads(["sequence"]), ENGINE),
        lambda b, m: (b, SimpleNamespace(**{**vars(ENGINE), "threads": 4})),
        lambda b, m: (b, SimpleNamespace(**{**vars(ENGINE), "precision": "fp16"})),
        lambda b, m: m.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.33.0")) or (b, ENGINE),
        lambda b, m: m.setattr(accepted, "cpuinfo", lambda: {"model name": "CPU Y", "microcode": "0x1"}) or (b, ENGINE),
        lambda b, m: m.setattr(accepted, "cpuinfo", lambda: {"model name": "CPU X", "microcode": "0x2"}) or (b, ENGINE),
        lambda b, m: m.setattr(accepted, "cpu_features", lambda: frozenset({"avx2", "avx512_vnni"})) or (b, ENGINE),
        lambda b, m: m.setattr(accepted, "__version__", "9.9.9") or (b, ENGINE),
    ],
    ids=[
        "bundle",
        "encoder",
        "heads",
        "threads",
        "precision",
        "engine version",
        "cpu",
        "microcode",
        "features",
        "runtime",
    ],
)
def test_whatever_changes_it_must_be_right_again(bundle, monkeypatch, change):
    accepted.accept(bundle, ENTRY, ENGINE)
    other, engine = change(bundle, monkeypatch)
    assert not accepted.is_accepted(other, ENTRY, engine)


def test_an_engine_on_a_gpu_is_never_taken_as_accepted(bundle):
    plan = SimpleNamespace(name="tensorrt", device="cuda:0", precision="fp16", threads=1)
    accepted.accept(bundle, ENTRY, plan)
    assert not accepted.is_accepted(bundle, ENTRY, plan)


def test_without_a_cache_it_is_asked_every_time(bundle, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    accepted.accept(bundle, ENTRY, ENGINE)
    assert not accepted.is_accepted(bundle, ENTRY, ENGINE)


@pytest.mark.parametrize("folder", [None, "x" * 300])
def test_a_cache_that_cannot_be_used_is_no_error(bundle, tmp_path, monkeypatch, folder):
    """As that of another account, whose folder cannot be entered: here its name is too long."""
    monkeypatch.delenv("HOME", raising=False)
    if folder:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
    accepted.accept(bundle, ENTRY, ENGINE)
    assert not accepted.is_accepted(bundle, ENTRY, ENGINE)
