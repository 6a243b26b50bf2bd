"""The encoders of a bundle that this machine can run, so that each is checked before it is taken into the bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from decipher_rt.bundle import Bundle
from decipher_rt.encoder import load_encoder
from decipher_rt.engines import Engine, load_engine
from decipher_rt.engines.cuda import Driver
from decipher_rt.engines.select import INT8_FULL_RANGE, ONNX_TARGETS
from decipher_rt.engines.threads import usable_cores
from decipher_rt.errors import EngineError
from decipher_rt.manifest import EngineFile, Manifest


def write_files(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    """Write the content of a bundle to a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def runnable_encoders(folder: Path, manifest: Manifest) -> Iterator[tuple[EngineFile, Engine]]:
    """Load, one after the other, the encoders that this machine can run; of several plans of a kind the first stands.

    A plan for another card, or where there is no card, is left out: it is checked on the golden case whenever it is
    loaded. Each keeps the memory of its largest run for as long as it lives.

    Raises
    ------
    EngineError
        If one that is for this machine does not load.
    """
    found: set[tuple[str, str]] = set()
    card = _card()
    for entry in manifest.engines:
        key = (entry.target, entry.precision)
        if key in found:
            continue
        if entry.target in ONNX_TARGETS:
            found.add(key)
            exact = entry.target == INT8_FULL_RANGE  # which this machine's CPU may saturate
            yield entry, load_engine("onnxruntime", folder / entry.file, precision=entry.precision, exact_int8=exact)
        elif card in entry.built_with.get("architectures", "").split():
            found.add(key)
            sums = {
                e.file: hashlib.sha256((folder / e.file).read_bytes()).hexdigest()
                for e in manifest.engines
                if (e.target, e.precision) == key
            }
            flavour = entry.target.partition("-sm_")[0]
            bundle = Bundle(folder, manifest, "", sums)
            yield entry, load_encoder(bundle, flavour, entry.precision, usable_cores()).engine


def _card() -> str | None:
    try:
        return f"sm_{Driver().architecture}"
    except EngineError:
        return None
