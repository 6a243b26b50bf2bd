"""Encoders that this machine has accepted: what was right on the golden case here need not prove it at every start.

A record stands for exactly this bundle with the heads that were loaded, this encoder, engine version, number of threads
and processor; with any other, the golden case runs again. ``decipher-rt verify`` always runs it.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from decipher_rt import __version__
from decipher_rt.bundle import Bundle
from decipher_rt.caches import cache_folder
from decipher_rt.engines import Engine
from decipher_rt.engines.cpu import cpu_features, cpuinfo
from decipher_rt.manifest import EngineFile

# Engines whose answers depend on nothing but what a record names; a GPU has drivers and caches of its own.
MODULES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}


def is_accepted(bundle: Bundle, entry: EngineFile, engine: Engine) -> bool:
    """Say whether the golden case of a bundle was right with this encoder on this machine before."""
    record = _record(bundle, entry, engine)
    try:
        return record is not None and record.is_file()
    except OSError:  # a folder that this account cannot enter
        return False


def accept(bundle: Bundle, entry: EngineFile, engine: Engine) -> None:
    """Remember that it was right. Where no cache can be written the golden case just runs again."""
    record = _record(bundle, entry, engine)
    if record is None:
        return
    try:
        record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        record.touch(mode=0o600)
    except OSError:
        return


def _record(bundle: Bundle, entry: EngineFile, engine: Engine) -> Path | None:
    version = getattr(sys.modules.get(MODULES.get(engine.name, "")), "__version__", None)
    if version is None or not bundle.sha256:
        return None
    cpu = cpuinfo()
    named = (
        __version__,
        bundle.sha256,
        " ".join(head.name for head in bundle.manifest.heads),
        bundle.sums[entry.file],
        f"{engine.name} {version} {engine.precision} {engine.device} {engine.threads}",
        cpu.get("model name", ""),
        cpu.get("microcode", ""),
        " ".join(sorted(cpu_features())),
    )
    key = hashlib.sha256("\n".join(named).encode()).hexdigest()
    folder = cache_folder("accepted")
    return folder and folder / key
