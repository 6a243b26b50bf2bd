"""TensorRT engines of ViT-Base in every precision from K = 128 to 4096, and the runtime from DICOM on them."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu import encoder as base
from benchmarks.gpu.measure import Ceilings, Deadline, Row, reason, summarise

if TYPE_CHECKING:
    from decipher_rt.manifest import Precision

ROUNDS, WARM_UP = 30, 3
PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "int8")
LEAST_S = 60.0
"""What must be left of the time for one more build, or for the demo series."""


def run(flavour: str, deadline: Deadline, ceilings: Ceilings) -> list[Row]:
    """Build the engines of a flavour for this card, run each bucket on the device, then the demo series."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            for group in groups(flavour):
                case = case_of(flavour, precision, group)
                if deadline.left() < LEAST_S:
                    rows.append(Row(case, flavour, not_run="out of time"))
                    continue
                try:
                    rows += encoder(flavour, precision, group, Path(folder) / precision, ceilings)
                except Exception as error:  # noqa: BLE001 (one build that fails must not lose the others)
                    rows.append(Row(case, flavour, not_run=reason(error)))
        if deadline.left() < LEAST_S:
            return [*rows, Row("demo series", flavour, not_run="out of time")]
        try:
            return [*rows, *runtime(flavour, Path(folder))]
        except Exception as error:  # noqa: BLE001 (as above)
            return [*rows, Row("demo series", flavour, not_run=reason(error))]


def groups(flavour: str) -> list[tuple[int, ...]]:
    """Return the buckets that are built at once: RTX has one plan for all, TensorRT one for each, by importance."""
    if flavour == "tensorrt-rtx":
        return [tuple(sorted(base.TOKENS))]
    return [(tokens,) for tokens in base.TOKENS]


def case_of(flavour: str, precision: str, group: tuple[int, ...]) -> str:
    """Return how the builds of a group are called."""
    return f"ViT-Base {precision}" + ("" if flavour == "tensorrt-rtx" else f" K={group[0]}")


def encoder(flavour: str, precision: Precision, group: tuple[int, ...], folder: Path, ceilings: Ceilings) -> list[Row]:
    """Time ViT-Base with random weights: load (the first ever compiles), then each number of tokens of a group."""
    import numpy as np
    import torch

    from decipher_rt.device_array import DeviceArray
    from decipher_rt.engines.cuda import Buffer, Driver
    from decipher_rt.engines.tensorrt import Plan, TensorRtEngine
    from decipher_rt.export.tensorrt.files import Wanted, plan_files
    from decipher_rt.train.model.vit import ViT

    torch.manual_seed(0)
    model = ViT(dataclasses.replace(base.base_config(), token_buckets=group)).eval()
    config, driver = model.config, Driver()
    random = np.random.default_rng(0)
    volume = random.normal(500, 300, (1, 1, *config.grid_shape)).astype(np.float32)
    window = np.array([[0.0, 1000.0]], np.float32)

    def inputs(tokens: int) -> dict[str, Any]:
        chosen = np.sort(random.permutation(config.preprocessing.patches)[:tokens])[None]
        return {"volume": volume, "window": window, "tokens": chosen}

    begin = time.perf_counter()
    wanted = Wanted(flavour, (precision,), (driver.architecture,) if "rtx" in flavour else ())
    files, entries = plan_files(model, wanted, [inputs(min(512, config.preprocessing.patches))])
    case = case_of(flavour, precision, group)
    rows = [Row(f"{case}, build", flavour, summarise([(time.perf_counter() - begin) * 1e3]))]
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    plans = [
        Plan(folder / e.file, f"{time.time_ns():064x}"[-64:], tuple(map(int, e.built_with["tokens"].split())))
        for e in entries
    ]
    for load in ("first load", "second load"):
        engine = TensorRtEngine(
            flavour, plans, folder / "kernels", config.preprocessing,
            precision=precision, embedding_size=config.embedding_size,
        )  # fmt: skip
        rows.append(Row(f"{case}, {load}", flavour, summarise([engine.load_ms])))
    grid = Buffer(driver, volume.shape, volume.dtype)
    grid.host[...] = volume
    grid.upload(driver.stream)
    driver.synchronize()
    on_device: DeviceArray = grid.array
    how = "one CUDA graph" if engine.not_recorded is None else f"no CUDA graph ({engine.not_recorded})"
    for tokens in config.token_buckets:
        given = inputs(tokens) | {"volume": on_device}
        times = []
        for _ in range(WARM_UP + ROUNDS):
            begin = time.perf_counter()
            engine.run(given)
            times.append((time.perf_counter() - begin) * 1e3)
        row = Row(base.from_grid(precision, tokens), f"{flavour}, {how}", summarise(times[WARM_UP:]))
        rows.append(base.rated(row, ceilings, config, tokens, precision))
    return rows


def runtime(flavour: str, folder: Path) -> list[Row]:
    """Answer for the demo series on the shipped model's engine, which the golden case has accepted."""
    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
    from decipher_rt.engines.cuda import Driver
    from decipher_rt.export.bundle import export_bundle
    from decipher_rt.export.parts import TOKENIZER
    from decipher_rt.export.tensorrt.files import Wanted
    from decipher_rt.session import Session
    from decipher_rt.train.checkpoint import DEFAULT_WEIGHTS
    from decipher_rt.train.golden import load_golden
    from decipher_rt.train.weights import load_weights

    weights, bundle, tokenizer = load_weights(DEFAULT_WEIGHTS), folder / "bundle", DEFAULT_WEIGHTS / TOKENIZER
    words = tokenizer.read_bytes() if tokenizer.is_file() else None
    wanted = Wanted(flavour, ("fp16",), (Driver().architecture,) if "rtx" in flavour else ())
    export_bundle(weights, load_golden(DEFAULT_WEIGHTS), bundle, fp16=True, plans=wanted, tokenizer=words)
    session = Session(open_bundle(bundle), engine=flavour, precision="fp16")
    series = DEFAULT_BUNDLE.parent / "demo_series"
    results = [session.infer(series) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    engine = results[0].engine
    method = f"{engine['name']} {engine['precision']} on {engine['device']}"
    if "fallback" in engine:
        return [Row("demo series", flavour, not_run=engine["fallback"])]
    stages = results[0].timings_ms
    return [Row(f"demo series, {stage}", method, summarise([r.timings_ms[stage] for r in results])) for stage in stages]
