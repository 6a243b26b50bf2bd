"""ViT-Base on onnxruntime's CUDA provider, in each precision that it has there, from K = 128 to 4096."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu import encoder
from benchmarks.gpu.encoder import from_grid, wall
from benchmarks.gpu.measure import Ceilings, Deadline, Row, reason

if TYPE_CHECKING:
    from decipher_rt.manifest import Precision

PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32")
LEAST_S, LEAST_CASE_S = 45.0, 3.0
"""What must be left of the time for exporting one more precision, and for timing one more number of tokens."""


def run(provider: str, ceilings: Ceilings, deadline: Deadline) -> list[Row]:
    """Export and time every precision; the most telling numbers of tokens come first."""
    import onnxruntime as ort

    if provider not in ort.get_available_providers():
        return [Row("ViT-Base", provider, not_run=f"onnxruntime {ort.__version__} is built without {provider}")]
    rows: list[Row] = []
    for precision in PRECISIONS:
        if deadline.left() < LEAST_S:
            rows.append(Row(f"ViT-Base {precision}", provider, not_run="out of time"))
            continue
        try:
            rows += _precision(provider, precision, ceilings, deadline)
        except Exception as error:  # noqa: BLE001 (one precision that fails must not lose the other)
            rows.append(Row(f"ViT-Base {precision}", provider, not_run=reason(error)))
    return rows


def _precision(provider: str, precision: Precision, ceilings: Ceilings, deadline: Deadline) -> list[Row]:
    import numpy as np
    import onnxruntime as ort
    import torch

    from decipher_rt.engines.onnxruntime import CUDA_PROVIDER, cuda_provider, why_no_cuda
    from decipher_rt.export.onnx import encoder_graph
    from decipher_rt.train.model.vit import ViT

    torch.manual_seed(0)
    config = dataclasses.replace(encoder.base_config(), token_buckets=tuple(sorted(encoder.TOKENS)))
    model, random = ViT(config).eval(), np.random.default_rng(0)
    volume = random.normal(500, 300, (1, 1, *config.grid_shape)).astype(np.float32)
    window = np.array([[0.0, 1000.0]], np.float32)

    def inputs(k: int) -> dict[str, Any]:
        chosen = np.sort(random.permutation(config.preprocessing.patches)[:k])[None]
        return {"volume": volume, "window": window, "tokens": chosen}

    example = {name: torch.from_numpy(array) for name, array in inputs(config.token_buckets[0]).items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        path.write_bytes(encoder_graph(model, example, precision))
        providers = [cuda_provider(0) if provider == CUDA_PROVIDER else provider]
        session = ort.InferenceSession(path, providers=providers)
    if session.get_providers()[0] != provider:
        return [Row(f"ViT-Base {precision}", provider, not_run=f"{provider} did not load: {why_no_cuda()}")]
    device = "cuda" if provider.startswith("CUDA") else "cpu"
    grid = ort.OrtValue.ortvalue_from_numpy(volume, device, 0)
    rows = []
    for k in encoder.TOKENS:
        if deadline.left() < LEAST_CASE_S:
            rows.append(Row(from_grid(precision, k), provider, not_run="out of time"))
            continue
        given = inputs(k)
        binding = session.io_binding()
        binding.bind_ortvalue_input("volume", grid)
        for name in ("window", "tokens"):
            binding.bind_cpu_input(name, given[name])
        for output in session.get_outputs():
            binding.bind_output(output.name, "cpu")
        timing = wall(lambda binding=binding: session.run_with_iobinding(binding))
        rows.append(encoder.rated(Row(from_grid(precision, k), provider, timing), ceilings, config, k, precision))
    return rows
