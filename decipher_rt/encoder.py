"""Which engine encodes: the one asked for; or the first that this machine can run, and why not those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decipher_rt.bundle import Bundle
from decipher_rt.engines import Engine, available, load_engine
from decipher_rt.engines.cpu import cpu_features
from decipher_rt.engines.select import (
    AUTO,
    CPU_ENGINES,
    GPU_PLANS,
    auto_order,
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


def load_encoder(bundle: Bundle, engine: str, precision: Precision, threads: int, card: int | None = 0) -> Encoder:
    """Load the encoder of a bundle.

    Parameters
    ----------
    bundle : Bundle
    engine : str
        A name of ``decipher_rt.engines.ENGINES``, which is then what runs or an error; or ``auto``: the first of
        ``auto_order`` that this machine can run.
    precision : str
    threads : int
        Of the CPU.
    card : int or None
        CUDA's index of the card for engines that run on one; None leaves them out of ``auto``.

    Raises
    ------
    BundleError, EngineError
        If the bundle has no such encoder or this machine cannot run it; with ``auto``, the reason of the last.
    """
    if engine != AUTO:
        return _load(bundle, engine, precision, threads, card)
    reasons: list[str] = []
    *gpu, last = auto_order(card)
    for name in gpu:
        try:
            loaded = _load(bundle, name, precision, threads, card)
        except (BundleError, EngineError) as error:
            reasons.append(f"{name}: {error}")
            continue
        except Exception as error:  # noqa: BLE001 - whatever a library of the GPU does, the CPU can still answer
            reasons.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        return Encoder(loaded.engine, loaded.entry, "; ".join(reasons) or None)
    loaded = _load(bundle, last, precision, threads, card)
    return Encoder(loaded.engine, loaded.entry, "; ".join(reasons) or None)


def why_not(bundle: Bundle, engine: str, precision: Precision, card: int = 0) -> str | None:
    """Say in a line why an engine cannot run a bundle here, found without loading it; None where it may.

    ``card`` is CUDA's index of the card, for engines that run on one.
    """
    try:
        if engine in GPU_PLANS:
            _plan_entries(bundle, engine, precision, card)
        else:
            _onnx_encoder(bundle, engine, precision)
        found = next(item for item in available() if item.name == engine)
        if not found.available:
            return found.detail
        if engine not in CPU_ENGINES:
            _architecture(card)
    except (BundleError, EngineError) as error:
        return str(error)
    return None


def cpu_engine(engine: str) -> str:
    """Return what runs the small graphs beside an encoder: they gain nothing from a GPU."""
    return engine if engine in CPU_ENGINES else "onnxruntime"


def _architecture(card: int) -> int:
    from decipher_rt.engines.cuda import Device

    return Device(card).architecture


def _plan_entries(bundle: Bundle, engine: str, precision: Precision, card: int) -> tuple[EngineFile, ...]:
    from decipher_rt.engines.cuda import Device

    device = Device(card)
    return plan_entries(bundle.manifest, engine, precision, device.architecture, device.name)


def _load(bundle: Bundle, engine: str, precision: Precision, threads: int, card: int | None) -> Encoder:
    if engine in GPU_PLANS:
        return _load_plans(bundle, engine, precision, card or 0)
    entry = _onnx_encoder(bundle, engine, precision)
    graph = bundle.file(entry.file)
    return Encoder(load_engine(engine, graph, precision=precision, threads=threads, card=card or 0), entry)


def _onnx_encoder(bundle: Bundle, engine: str, precision: Precision) -> EngineFile:
    if engine == "onnxruntime-cuda" and precision == "int8":
        raise EngineError(
            "onnxruntime-cuda runs no int8: its CUDA provider lacks DynamicQuantizeLinear and products of uint8 and "
            "int8, which would go to the CPU and back; choose precision fp16, or engine onnxruntime"
        )
    return onnx_encoder(bundle.manifest, precision, cpu_features())


def _load_plans(bundle: Bundle, engine: str, precision: Precision, card: int) -> Encoder:
    from decipher_rt.engines.tensorrt import TensorRtEngine, require_library

    manifest = bundle.manifest
    entries = _plan_entries(bundle, engine, precision, card)  # first: without a card the library need not be loaded
    library = require_library(engine)
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
            device=card,
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
