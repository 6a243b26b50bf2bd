"""The machine's peak, and the encoder's arithmetic against a count by PyTorch's own profiler."""

import time

import numpy as np
import pytest

from decipher_rt.manifest import Encoder, Preprocessing
from decipher_rt.profile import peak as peak_module
from decipher_rt.profile.peak import COPY_BYTES, encoder_gflop, measure_peak
from decipher_rt.profile.report import _shares


def test_the_peak_is_at_least_what_one_product_reaches():
    peak = measure_peak()
    a = np.ones((1024, 1024), np.float32)
    a @ a
    start = time.perf_counter()
    a @ a
    once = 2 * 1024**3 / (time.perf_counter() - start) / 1e9
    # A smaller product on a shared machine: within a factor of three of the best of several larger ones.
    assert peak.gemm_gflops > once / 3
    assert 0.5 < peak.copy_gb_s < 5000


def test_a_stage_that_is_a_copy_reaches_the_whole_of_it(monkeypatch):
    """The measured copy itself, as if it were the reading of a series."""
    monkeypatch.setattr(peak_module, "_best", lambda work: 0.1)
    stages = {stage: {"p50_ms": 100.0} for stage in ("read", "preprocess", "encode")}
    shares = _shares(stages, COPY_BYTES, None, measure_peak(), on_cpu=True)
    assert shares["read"]["share"] == pytest.approx(1.0)
    assert shares["preprocess"]["share"] == pytest.approx(1.0)


def test_the_arithmetic_is_what_torch_counts():
    torch = pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from decipher_rt.train.model.vit import ViT, ViTConfig

    config = ViTConfig.PRESETS["tiny"]
    tokens = config.token_buckets[0]
    inputs = (torch.rand(1, 1, *config.grid_shape), torch.tensor([[0.0, 1.0]]), torch.arange(tokens)[None])
    model = ViT(config).eval()
    # The fused attention of CPUs is unknown to the counter: as two products it is counted.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*inputs)
    described = Encoder(
        config.width,
        config.embedding_size,
        0,
        {"depth": config.depth, "mlp_ratio": config.mlp_ratio, "registers": config.registers},
    )
    # The projection to the embedding, one row, is left out of ours.
    assert encoder_gflop(described, config.preprocessing, tokens) == pytest.approx(
        counter.get_total_flops() / 1e9, rel=0.01
    )


def test_without_sizes_there_is_no_count():
    spec = Preprocessing((8, 8, 8), (1.0, 1.0, 1.0), (4, 4, 4), (8,))
    assert encoder_gflop(Encoder(16, 8, 0), spec, 8) is None
