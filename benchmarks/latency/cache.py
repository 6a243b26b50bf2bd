"""Where the benchmarks keep what takes long to make: the base model's bundles and synthetic series."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# What the bundles are made by: another text makes others.
SOURCES = (
    "benchmarks/latency/base_model.py",
    "benchmarks/latency/series.py",
    "export/onnx.py",
    "export/quantize.py",
    "train/model/vit.py",
    "decipher_rt/manifest.py",
    "decipher_rt/preprocess/graph.py",
)
PACKAGES = ("torch", "onnx", "onnxruntime", "nvidia-dali-cuda130")


def cache_folder() -> Path:
    """Return a folder that is new whenever the sources or packages are, or the processor wants other forms of int8."""
    from decipher_rt.engines.cpu import cpu_features
    from decipher_rt.engines.select import int8_targets

    key = hashlib.sha256()
    for name in SOURCES:
        key.update((REPOSITORY / name).read_bytes())
    key.update(" ".join(f"{name} {version(name)}" for name in PACKAGES).encode())
    key.update(" ".join(sorted(int8_targets(cpu_features()))).encode())
    return _base() / key.hexdigest()[:12]


def series_folder() -> Path:
    """Return the folder of synthetic series, which no package changes."""
    key = hashlib.sha256((REPOSITORY / "benchmarks/latency/series.py").read_bytes()).hexdigest()[:12]
    return _base() / f"series-{key}"


def _base() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "decipher-rt" / "benchmarks"
