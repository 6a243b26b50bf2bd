"""Which of a bundle's encoders an engine gets on this machine."""

from __future__ import annotations

from collections.abc import Collection

from decipher_rt.manifest import EngineFile, Manifest, Precision

# Targets of ONNX encoders. Int8 has two: 7-bit weights, exact on any CPU, and 8-bit weights, which AVX2 without VNNI
# would saturate.
INT8_PORTABLE = "onnx"
INT8_FULL_RANGE = "onnx-vnni"
ONNX_TARGETS = ("onnx", INT8_FULL_RANGE)
# Any of these adds products of bytes in 32 bits; names as /proc/cpuinfo has them, asimddp on aarch64.
FULL_RANGE_FEATURES = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})


def int8_targets(cpu_features: Collection[str]) -> tuple[str, ...]:
    """Return the forms of int8 that a CPU with these features computes exactly."""
    exact = FULL_RANGE_FEATURES & set(cpu_features)
    return (INT8_PORTABLE, INT8_FULL_RANGE) if exact else (INT8_PORTABLE,)


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
