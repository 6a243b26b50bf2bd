"""TensorRT engines of the recipe's ViT-Base at every token bucket, and the runtime from DICOM on them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.gpu.measure import Row, summarise

ROUNDS, WARM_UP = 30, 3


def run(flavour: str) -> list[Row]:
    """Build the engines of a flavour for this card, run each bucket from host to host, then the demo series."""
    with tempfile.TemporaryDirectory() as folder:
        return [*encoder(flavour, Path(folder)), *runtime(flavour, Path(folder))]


def encoder(flavour: str, folder: Path) -> list[Row]:
    """Time ViT-Base with random weights: load (the first ever compiles), then each bucket."""
    import numpy as np
    import torch

    from decipher_rt.engines.cuda import Driver
    from decipher_rt.engines.tensorrt import Plan, TensorRtEngine
    from decipher_rt.export.tensorrt.files import Wanted, plan_files
    from decipher_rt.train.model.vit import ViT, ViTConfig

    torch.manual_seed(0)
    model = ViT(ViTConfig.PRESETS["base"]).eval()
    config, architecture = model.config, Driver().architecture
    begin = time.perf_counter()
    files, entries = plan_files(model, Wanted(flavour, ("fp16",), (architecture,) if "rtx" in flavour else ()))
    built_ms = (time.perf_counter() - begin) * 1e3
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    plans = [
        Plan(folder / e.file, f"{time.time_ns():064x}"[-64:], tuple(map(int, e.built_with["tokens"].split())))
        for e in entries
    ]
    rows = [Row("ViT-Base fp16, build", flavour, summarise([built_ms]))]
    engines = []
    for load in ("first load", "second load"):
        engine = TensorRtEngine(
            flavour, plans, folder / "kernels", config.preprocessing,
            precision="fp16", embedding_size=config.embedding_size,
        )  # fmt: skip
        engines.append(engine)
        rows.append(Row(f"ViT-Base fp16, {load}", flavour, summarise([engine.load_ms])))
    random = np.random.default_rng(0)
    volume = random.normal(500, 300, (1, 1, *config.grid_shape)).astype(np.float32)
    for tokens in config.token_buckets:
        chosen = np.sort(random.permutation(config.preprocessing.patches)[:tokens])[None]
        inputs = {"volume": volume, "window": np.array([[0.0, 1000.0]], np.float32), "tokens": chosen}
        times = []
        for _ in range(WARM_UP + ROUNDS):
            begin = time.perf_counter()
            engine.run(inputs)
            times.append((time.perf_counter() - begin) * 1e3)
        rows.append(Row(f"ViT-Base fp16 K={tokens}, from host to host", flavour, summarise(times[WARM_UP:])))
    return rows


def runtime(flavour: str, folder: Path) -> list[Row]:
    """Answer for the demo series on the shipped model's engine, which the golden case has accepted."""
    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
    from decipher_rt.engines.cuda import Driver
    from decipher_rt.export.bundle import export_bundle
    from decipher_rt.export.tensorrt.files import Wanted
    from decipher_rt.session import Session
    from decipher_rt.train.checkpoint import DEFAULT_WEIGHTS
    from decipher_rt.train.golden import load_golden
    from decipher_rt.train.weights import load_weights

    weights, bundle = load_weights(DEFAULT_WEIGHTS), folder / "bundle"
    wanted = Wanted(flavour, ("fp16",), (Driver().architecture,) if "rtx" in flavour else ())
    export_bundle(weights, load_golden(DEFAULT_WEIGHTS), bundle, fp16=True, plans=wanted)
    session = Session(open_bundle(bundle), engine=flavour, precision="fp16")
    series = DEFAULT_BUNDLE.parent / "demo_series"
    results = [session.infer(series) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    engine = results[0].engine
    method = f"{engine['name']} {engine['precision']} on {engine['device']}"
    if "fallback" in engine:
        return [Row("demo series", flavour, not_run=engine["fallback"])]
    stages = results[0].timings_ms
    return [Row(f"demo series, {stage}", method, summarise([r.timings_ms[stage] for r in results])) for stage in stages]
