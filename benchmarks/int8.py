"""How fast int8 is beside fp32 on this CPU, and what other ways to 8 bits would cost.

    python benchmarks/int8.py [--rounds 15] [--threads 2] [--json benchmarks/results/int8.json] [--others]

The encoder is the recipe's ``base`` (ViT-Base, 128^3 grid, 16^3 patches; ``--preset`` takes another) with random
weights: speed does not depend on them, and how close int8 stays to fp32 says nothing here (``decipher-rt export
--int8`` measures it on trained ones). Both forms of int8 (docs/engines.md) run in the runtime's own onnxruntime engine,
and in its OpenVINO engine where that is installed. Every graph is run twice unmeasured, then the graphs take turns, so
that a busy machine slows all of them; a ratio is the median of the ratios within a round, to fp32 in the same engine.
``--others`` adds static quantisation (QDQ and QOperator), which was tried and not taken. Exit status 1 where int8 on
onnxruntime is less than 1.7 times as fast as fp32; OpenVINO's smallest ratio is only reported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decipher_rt.engines import Engine, available, load_engine
from decipher_rt.engines.cpu import cpu_features, cpuinfo
from decipher_rt.engines.select import FULL_RANGE_FEATURES, INT8_FULL_RANGE, INT8_PORTABLE, int8_targets
from decipher_rt.export.onnx import encoder_graph
from decipher_rt.export.quantize import quantize_encoder
from decipher_rt.train.model.vit import ViT, ViTConfig

WANTED_RATIO = 1.7
FP32 = "fp32"
NAMES = {INT8_PORTABLE: "int8, 7-bit weights", INT8_FULL_RANGE: "int8, 8-bit weights"}
OPENVINO = "openvino "


def inputs(config: ViTConfig, tokens: int) -> dict[str, np.ndarray]:
    """Return a smooth volume with noise and some of its patches."""
    rng = np.random.default_rng(0)
    d, h, w = (np.arange(size) / size for size in config.grid_shape)
    smooth = np.sin(7 * d)[:, None, None] * np.cos(5 * h)[None, :, None] + w / 3
    volume = 500 + 300 * smooth + 30 * rng.standard_normal(config.grid_shape)
    chosen = np.sort(rng.permutation(config.preprocessing.patches)[:tokens])
    return {
        "volume": volume.astype(np.float32)[None, None],
        "window": np.array([[100, 900]], np.float32),
        "tokens": chosen.astype(np.int64)[None],
    }


def write_graphs(folder: Path, preset: str, others: bool) -> tuple[ViTConfig, dict[str, Path]]:
    """Write fp32 and every form of int8 that this CPU computes exactly."""
    torch.manual_seed(0)
    model = ViT(ViTConfig.PRESETS[preset]).eval()
    config = model.config
    example = {name: torch.from_numpy(array) for name, array in inputs(config, config.token_buckets[0]).items()}
    paths = {FP32: folder / "fp32.onnx"}
    paths[FP32].write_bytes(encoder_graph(model, example, "fp32"))
    for target in int8_targets(cpu_features()):
        paths[NAMES[target]] = folder / f"{target}.onnx"
        quantize_encoder(paths[FP32], paths[NAMES[target]], target=target)
    if others:
        paths |= static_graphs(paths[FP32], folder, inputs(config, config.token_buckets[0]))
    return config, paths


def static_graphs(fp32: Path, folder: Path, calibration: dict[str, np.ndarray]) -> dict[str, Path]:
    """Quantise with fixed ranges of the activations, as onnxruntime offers it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Once(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = [calibration]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self._left.pop() if self._left else None

    found = {}
    logging.disable(logging.WARNING)
    for name, form in (("static QDQ", QuantFormat.QDQ), ("static QOperator", QuantFormat.QOperator)):
        found[name] = folder / f"{form.name}.onnx"
        quantize_static(
            fp32, found[name], Once(), quant_format=form, op_types_to_quantize=["MatMul"], per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
    return found


def load_engines(paths: dict[str, Path], threads: int) -> dict[str, Engine]:
    """Load every graph in onnxruntime, and fp32 and the runtime's own int8 in OpenVINO where it is installed."""
    engines = {name: load_engine("onnxruntime", path, precision=name, threads=threads) for name, path in paths.items()}
    if next(found.available for found in available() if found.name == "openvino"):
        for name in (FP32, *(name for name in NAMES.values() if name in paths)):
            engines[OPENVINO + name] = load_engine("openvino", paths[name], precision=name, threads=threads)
    return engines


def measure(engines: dict[str, Engine], given: dict[str, np.ndarray], rounds: int) -> dict[str, Any]:
    """Time the graphs in turns; ratios are the time of fp32 in the same engine over theirs."""
    for engine in engines.values():
        engine.run(given)
    times: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(rounds + 1):
        for name, engine in engines.items():
            begin = time.perf_counter()
            engine.run(given)
            if turn:
                times[name].append((time.perf_counter() - begin) * 1e3)
    exact = {name: times[OPENVINO + FP32 if name.startswith(OPENVINO) else FP32] for name in engines}
    return {
        name: {
            "median_ms": round(statistics.median(values), 1),
            "min_ms": round(min(values), 1),
            "max_ms": round(max(values), 1),
            "ratio": round(statistics.median(a / b for a, b in zip(exact[name], values, strict=True)), 2),
        }
        for name, values in times.items()
    }


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    found = {}
    for name in ("onnxruntime", "openvino", "onnx", "torch", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def smallest_ratio(rows: dict[str, Any], prefix: str) -> float | None:
    """Return the smallest ratio of int8 in an engine, over all numbers of tokens; None where it did not run."""
    wanted = {prefix + name for name in NAMES.values()}
    ratios = [figures["ratio"] for row in rows.values() for name, figures in row.items() if name in wanted]
    return min(ratios, default=None)


def main() -> int:
    """Measure, print a table, write it as JSON where asked; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="base", choices=sorted(ViTConfig.PRESETS), help="encoder (default: base)")
    parser.add_argument("--others", action="store_true", help="static quantisation as well")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # OpenVINO keeps what it compiled, and nobody wants these again
        config, paths = write_graphs(Path(folder), options.preset, options.others)
        sizes = {name: round(path.stat().st_size / 1e6, 1) for name, path in paths.items()}
        buckets = config.token_buckets if not options.others else config.token_buckets[1:2]
        engines = load_engines(paths, options.threads)
        rows = {f"K={k}": measure(engines, inputs(config, k), options.rounds) for k in buckets}
    slowest = smallest_ratio(rows, "") or 0.0
    report = {
        "claim": f"int8 is at least {WANTED_RATIO} times as fast as fp32 on {options.threads} threads",
        "holds": slowest >= WANTED_RATIO,
        "smallest_ratio": slowest,
        "smallest_ratio_openvino": smallest_ratio(rows, OPENVINO),
        "preset": options.preset,
        "machine": {
            "processor": cpuinfo().get("model name", platform.machine()),
            "8-bit dot product": sorted(FULL_RANGE_FEATURES & cpu_features()),
            "system": platform.platform(),
        },
        "load_average": round(load, 2),
        "versions": versions(),
        "command": " ".join(["python", "benchmarks/int8.py", *sys.argv[1:]]),
        "file_mb": sizes,
        "results": rows,
    }
    for bucket, row in rows.items():
        for name, figures in row.items():
            print(
                f"{bucket:<7} {name:<32} {figures['median_ms']:>7.1f} ms ({figures['min_ms']:.1f}-"
                f"{figures['max_ms']:.1f})  {figures['ratio']:>5.2f} x fp32"
            )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if report["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
