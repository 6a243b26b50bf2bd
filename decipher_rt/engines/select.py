"""Which of a bundle's encoders an engine gets on this machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from decipher_rt.errors import EngineError
from decipher_rt.manifest import EngineFile, Manifest, Precision

# Targets of ONNX encoders. Int8 has two: 7-bit weights, exact on any CPU, and 8-bit weights, which AVX2 without VNNI
# would saturate.
INT8_PORTABLE = "onnx"
INT8_FULL_RANGE = "onnx-vnni"
ONNX_TARGETS = ("onnx", INT8_FULL_RANGE)
# Engines that run plans, and what is tried in turn where the choice is left to the machine.
CPU_ENGINES = ("onnxruntime", "openvino")
GPU_PLANS = ("tensorrt", "tensorrt-rtx")
RTX_ARCHITECTURES = (75, 80, 86, 89, 120, 121)  # that TensorRT-RTX 1.7 builds for, compute capability times ten
_PLAN_OPTIONS: Mapping[Precision, str] = {"fp32": "fp16", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}
AUTO, AUTO_ORDER = "auto", ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime")
# Any of these adds products of bytes in 32 bits; names as /proc/cpuinfo has them, asimddp on aarch64.
FULL_RANGE_FEATURES = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})


def auto_order(card: int | None) -> tuple[str, ...]:
    """Return what is tried in turn on a card, or without one where the CPU was asked for."""
    return AUTO_ORDER if card is not None else AUTO_ORDER[-1:]


def int8_targets(cpu_features: Collection[str]) -> tuple[str, ...]:
    """Return the forms of int8 that a CPU with these features computes exactly."""
    exact = FULL_RANGE_FEATURES & set(cpu_features)
    return (INT8_PORTABLE, INT8_FULL_RANGE) if exact else (INT8_PORTABLE,)


def plan_target(flavour: str, architecture: int) -> str:
    """Return the target of a plan: an RTX plan serves several architectures, the others one."""
    return flavour if flavour == "tensorrt-rtx" else f"{flavour}-sm_{architecture}"


def plan_entries(
    manifest: Manifest, flavour: str, precision: Precision, architecture: int, name: str | None = None
) -> tuple[EngineFile, ...]:
    """Return the plans of a flavour and precision for a card.

    One that says the ``name`` of the card that it was built on is for that alone: others of the architecture have other
    numbers of processors, and TensorRT warns that on them it may be slow or fail.

    Raises
    ------
    EngineError
        Saying which card they are for, or that there are none, and how to build them.
    """
    stem = plan_target(flavour, architecture).partition("-sm_")[0]
    ours = [e for e in manifest.engines if (e.target.partition("-sm_")[0], e.precision) == (stem, precision)]
    fitting = tuple(e for e in ours if f"sm_{architecture}" in _architectures(e))
    others = [e for e in fitting if name is not None and e.built_with.get("card", name) != name]
    fitting = tuple(e for e in fitting if e not in others)
    if others and not fitting:
        built_on = sorted({e.built_with["card"] for e in others})
        raise EngineError(
            f"bundle {manifest.name} holds {precision} {flavour} engines built on {', '.join(built_on)}, this card is "
            f"{name}, and both are sm_{architecture}; build one: {plan_advice(flavour, precision, architecture)}"
        )
    if not fitting:
        found = " ".join(sorted({name for e in ours for name in _architectures(e)}))
        raise EngineError(
            f"bundle {manifest.name} holds {precision} {flavour} engines for {found or 'no card'}, this card is "
            f"sm_{architecture}; build one: {plan_advice(flavour, precision, architecture)}"
        )
    return fitting


def plan_advice(flavour: str, precision: Precision, architecture: int) -> str:
    """Return the command that builds an engine for a card: TensorRT's where it is none of TensorRT-RTX's.

    There is none in fp32, so then that of float16.
    """
    rtx = flavour == "tensorrt-rtx" and architecture in RTX_ARCHITECTURES
    engine = f"tensorrt-rtx --arch sm_{architecture}" if rtx else "tensorrt on this machine"
    command = f"decipher-rt export CHECKPOINT -o BUNDLE --{_PLAN_OPTIONS[precision]} --engine {engine}"
    return f"{command}, and run it with --precision fp16" if precision == "fp32" else command


def _architectures(entry: EngineFile) -> list[str]:
    return entry.built_with.get("architectures", "").split()


def built_by(entry: EngineFile) -> str:
    """Return which library built a plan, with its version; empty where the manifest does not say."""
    flavour = entry.target.partition("-sm_")[0]
    version = entry.built_with.get(flavour.replace("-", "_"))
    return f"{flavour} {version}" if version else ""


def onnx_encoder(manifest: Manifest, precision: Precision, cpu_features: Collection[str]) -> EngineFile:
    """Return the ONNX encoder of a precision that is best on a CPU with these features.

    Raises
    ------
    BundleError
        Naming what the bundle holds instead.
    """
    if precision == "int8" and INT8_FULL_RANGE in int8_targets(cpu_features):
        for entry in manifest.engines:
            if (entry.target, entry.precision) == (INT8_FULL_RANGE, precision):
                return entry
    return manifest.engine_file("onnx", precision)
