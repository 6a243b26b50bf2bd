"""Which engine encodes: the one asked for; or the first that this machine can run, and why not those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decipher_rt.bundle import Bundle
from decipher_rt.engines import Engine, available, load_engine
from decipher_rt.engines.cpu import cpu_features
from decipher_rt.engines.select import (
    AUTO,
    AUTO_ORDER,
    CPU_ENGINES,
    GPU_PLANS,
    built_by,
    onnx_encoder,
    plan_entries,
)
from decipher_rt.errors import BundleError, EngineError
from decipher_rt.manifest import EngineFile, Precision

if TYPE_CHECKING:
    from decipher_rt.engines.tensorrt import Plan


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder.

    Attributes
    ----------
    engine : Engine
    entry : EngineFile
        Its file; of several plans, one for each token bucket, the first (``HoldsPlans`` says which one answers).
    fallback : str or None
        Why it is not what was tried before.
    """

    engine: Engine
    entry: EngineFile
    fallback: str | None = None


def load_encoder(bundle: Bundle, engine: str, precision: Precision, threads: int) -> Encoder:
    """Load the encoder of a bundle.

    Parameters
    ----------
    bundle : Bundle
    engine : str
        A name of ``decipher_rt.engines.ENGINES``, which is then what runs or an error; or ``auto``: the first of
        ``AUTO_ORDER`` that this machine can run.
    precision : str
    threads : int
        Of the CPU.

    Raises
    ------
    BundleError, EngineError
        If the bundle has no such encoder or this machine cannot run it; with ``auto``, the reason of the last.
    """
    if engine != AUTO:
        return _load(bundle, engine, precision, threads)
    reasons: list[str] = []
    for name in AUTO_ORDER[:-1]:
        try:
            loaded = _load(bundle, name, precision, threads)
        except (BundleError, EngineError) as error:
            reasons.append(f"{name}: {error}")
            continue
        except Exception as error:  # noqa: BLE001 - whatever a library of the GPU does, the CPU can still answer
            reasons.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        return Encoder(loaded.engine, loaded.entry, "; ".join(reasons) or None)
    loaded = _load(bundle, AUTO_ORDER[-1], precision, threads)
    return Encoder(loaded.engine, loaded.entry, "; ".join(reasons) or None)


def why_not(bundle: Bundle, engine: str, precision: Precision) -> str | None:
    """Say in a line why an engine cannot run a bundle here, found without loading it; None where it may."""
    try:
        if engine in GPU_PLANS:
            from decipher_rt.engines.cuda import Device

            plan_entries(bundle.manifest, engine, precision, Device().architecture)
        else:
            onnx_encoder(bundle.manifest, precision, cpu_features())
    except (BundleError, EngineError) as error:
        return str(error)
    found = next(item for item in available() if item.name == engine)
    return None if found.available else found.detail


def cpu_engine(engine: str) -> str:
    """Return what runs the small graphs beside an encoder: they gain nothing from a GPU."""
    return engine if engine in CPU_ENGINES else "onnxruntime"


def _load(bundle: Bundle, engine: str, precision: Precision, threads: int) -> Encoder:
    manifest = bundle.manifest
    if engine not in GPU_PLANS:
        features = cpu_features() if engine != "onnxruntime-cuda" else ()
        entry = onnx_encoder(manifest, precision, features)
        return Encoder(load_engine(engine, bundle.file(entry.file), precision=precision, threads=threads), entry)
    return _load_plans(bundle, engine, precision)


def _load_plans(bundle: Bundle, engine: str, precision: Precision) -> Encoder:
    from decipher_rt.engines.cuda import Device
    from decipher_rt.engines.tensorrt import TensorRtEngine, require_library

    manifest = bundle.manifest
    architecture = Device().architecture  # first: without a card the library need not be loaded
    library = require_library(engine)
    entries = plan_entries(manifest, engine, precision, architecture)
    plans = [_plan(bundle, entry) for entry in entries]
    kernels = bundle.file("kernels/kernels.json").parent
    try:
        loaded = TensorRtEngine(
            engine,
            plans,
            kernels,
            manifest.preprocessing,
            precision=precision,
            embedding_size=manifest.encoder.embedding_size,
        )
    except (AttributeError, RuntimeError, TypeError) as error:  # of the bindings: another API, or an exception of C++
        said = " ".join(str(error).split())[:300]
        raise EngineError(
            f"{engine} {library.__version__} does not work as this runtime expects ({said}); install the version that "
            f"the bundle's engines were built with: {built_by(entries[0]) or 'the manifest does not say'}"
        ) from error
    return Encoder(loaded, entries[0])


def _plan(bundle: Bundle, entry: EngineFile) -> Plan:
    from decipher_rt.engines.tensorrt import Plan

    return Plan(bundle.file(entry.file), bundle.sums[entry.file], _buckets(entry), built_by(entry))


def _buckets(entry: EngineFile) -> tuple[int, ...]:
    try:
        return tuple(int(tokens) for tokens in entry.built_with["tokens"].split())
    except (KeyError, ValueError):
        raise BundleError(f"manifest.json: {entry.file} does not say its tokens; export the bundle again") from None
