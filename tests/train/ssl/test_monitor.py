"""What a collapse shows in, for answers that have collapsed and for some that have not."""

from __future__ import annotations

import math

import pytest
import torch

from decipher_rt.train.ssl import monitor
from decipher_rt.train.ssl.monitor import watch


def figures(features: torch.Tensor, logits: torch.Tensor) -> dict[str, float]:
    return {name: float(value) for name, value in watch(features, logits, 0.1).items()}


def test_all_samples_alike() -> None:
    same = torch.randn((1, 16), generator=torch.Generator().manual_seed(1)).expand(32, -1)
    logits = torch.zeros(32, 8)
    logits[:, 3] = 5.0
    found = figures(same, logits)
    assert found["embedding_std"] == pytest.approx(0, abs=1e-3)
    assert found["teacher_entropy"] == pytest.approx(0, abs=1e-6)
    assert found["marginal_entropy"] == pytest.approx(0, abs=1e-6)


def test_nothing_said_of_any_sample() -> None:
    found = figures(torch.eye(16), torch.zeros(16, 8))
    assert found["teacher_entropy"] == pytest.approx(math.log(8), rel=1e-5)
    assert found["marginal_entropy"] == pytest.approx(math.log(8), rel=1e-5)


def test_every_sample_another_prototype() -> None:
    found = figures(torch.eye(8), 10 * torch.eye(8))
    assert found["teacher_entropy"] == pytest.approx(0, abs=1e-4)
    assert found["marginal_entropy"] == pytest.approx(math.log(8), rel=1e-5)
    # Eight corners of a simplex, centred: seven equal singular values; each is sqrt(7/8) from the mean.
    assert found["embedding_rank"] == pytest.approx(7, rel=1e-3)
    assert found["embedding_std"] == pytest.approx(math.sqrt(7 / 8), rel=1e-5)


def test_features_along_one_line_have_rank_one() -> None:
    along = torch.linspace(-1, 1, 20).unsqueeze(1) * torch.tensor([[0.0, 0.3, 0.0]]) + torch.tensor([[1.0, 0.0, 0.0]])
    found = figures(along, torch.zeros(20, 4))
    assert 1.0 <= found["embedding_rank"] < 1.5


def test_what_has_diverged_is_left_to_the_loop() -> None:
    """Its message says which setting to change; that of LAPACK would be a traceback."""
    found = figures(torch.full((4, 3), torch.nan), torch.zeros(4, 5))
    assert math.isnan(found["embedding_rank"])


def test_two_processes_tell_what_one_does_and_exchange_no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that stand for processes: what each sums is kept in the first round and added up in the second."""
    rng = torch.Generator().manual_seed(2)
    features, logits = torch.randn((12, 4), generator=rng), torch.randn((12, 6), generator=rng)
    alone = figures(features, logits)
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(monitor, "gather", lambda own: features if own.shape[1] == 4 else pytest.fail("answers"))
    monkeypatch.setattr(monitor, "all_sum", lambda own: sums.append(own) or own)
    monkeypatch.setattr(monitor, "world_size", lambda: 2)
    for part in (slice(0, 6), slice(6, 12)):
        figures(features[part], logits[part])
    monkeypatch.setattr(monitor, "all_sum", lambda own: sums[0] + sums[1])
    assert figures(features[:6], logits[:6]) == pytest.approx(alone, rel=1e-5)
