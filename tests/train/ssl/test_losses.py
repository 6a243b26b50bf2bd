"""Every loss against a slow reference written from its paper, or a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from decipher_rt.train.ssl.losses import dino_loss, ibot_loss, koleo_loss, reconstruction_loss, sinkhorn


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def cosines(rows: int, prototypes: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand((rows, prototypes), generator=generator) * 2 - 1


def sinkhorn_reference(logits: np.ndarray, temperature: float, iterations: int) -> np.ndarray:
    """SwAV's algorithm 1 (arXiv 2006.09882, appendix A), in double precision and element by element."""
    B, K = logits.shape
    Q = np.exp(logits.astype(np.float64) / temperature).T
    Q /= Q.sum()
    for _ in range(iterations):
        for k in range(K):
            Q[k] /= Q[k].sum()
        Q /= K
        for b in range(B):
            Q[:, b] /= Q[:, b].sum()
        Q /= B
    return (Q * B).T


@pytest.mark.parametrize("temperature", [0.02, 0.04, 0.07])
@pytest.mark.parametrize("shape", [(8, 32), (64, 16), (1, 5)])
def test_sinkhorn_is_the_papers_algorithm(
    generator: torch.Generator, shape: tuple[int, int], temperature: float
) -> None:
    logits = cosines(*shape, generator)
    found = sinkhorn(logits, temperature)
    np.testing.assert_allclose(found, sinkhorn_reference(logits.numpy(), temperature, 3), rtol=2e-4, atol=1e-7)


def test_sinkhorn_shares_samples_equally_among_prototypes(generator: torch.Generator) -> None:
    logits = cosines(96, 24, generator)
    logits[:, 0] += 0.5  # a prototype that most samples are nearest to
    found = sinkhorn(logits, 0.1, iterations=500)
    assert torch.allclose(found.sum(dim=1), torch.ones(96), atol=1e-5)
    assert torch.allclose(found.sum(dim=0), torch.full((24,), 96 / 24), atol=1e-3)
    # The plan of least cost under an entropy: scaled rows and columns of exp(logits / temperature), nothing else.
    scaling = found.double().log() - logits.double() / 0.1
    centred = scaling - scaling.mean(0) - scaling.mean(1, keepdim=True) + scaling.mean()
    assert centred.abs().max() < 1e-3
    # Without it that prototype would hold more than five times its share.
    assert torch.softmax(logits / 0.1, dim=1).sum(dim=0)[0] > 5 * 96 / 24


def test_sinkhorn_takes_no_samples_and_keeps_no_gradient(generator: torch.Generator) -> None:
    assert sinkhorn(torch.zeros(0, 7), 0.1).shape == (0, 7)
    logits = cosines(4, 7, generator).requires_grad_()
    assert not sinkhorn(logits, 0.1).requires_grad


def test_dino_loss_is_the_mean_over_pairs_of_different_crops(generator: torch.Generator) -> None:
    S, V, B, P, temperature = 5, 2, 3, 11, 0.1
    student = cosines(S * B, P, generator).reshape(S, B, P)
    teacher = torch.softmax(cosines(V * B, P, generator) / 0.05, dim=-1).reshape(V, B, P)
    terms = []
    for v in range(V):
        for s in range(S):
            if v == s:
                continue
            for b in range(B):
                e = [math.exp(float(x) / temperature) for x in student[s, b]]
                terms.append(-sum(float(teacher[v, b, p]) * math.log(e[p] / sum(e)) for p in range(P)))
    assert len(terms) == (V * S - V) * B
    assert dino_loss(student, teacher, temperature).item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_dino_loss_of_one_prototype_too_many_is_that_of_even_odds() -> None:
    even = torch.zeros(4, 2, 64)
    assert dino_loss(even, torch.full((2, 2, 64), 1 / 64), 0.1).item() == pytest.approx(math.log(64), rel=1e-6)


def test_ibot_loss_counts_every_crop_alike(generator: torch.Generator) -> None:
    """iBOT's equation 2, crop by crop; crops without a mask count as zero."""
    P, temperature, masked_of = 9, 0.1, [3, 0, 1, 5]
    student = cosines(sum(masked_of), P, generator)
    teacher = torch.softmax(cosines(sum(masked_of), P, generator) / 0.05, dim=-1)
    log_p = torch.log_softmax(student.double() / temperature, dim=-1)
    row, per_crop = 0, []
    for masked in masked_of:
        terms = [-float(teacher[r].double() @ log_p[r]) for r in range(row, row + masked)]
        per_crop.append(sum(terms) / masked if masked else 0.0)
        row += masked
    counts = torch.tensor([n for n in masked_of for _ in range(n)])
    found = ibot_loss(student, teacher, counts, temperature, len(masked_of))
    assert found.item() == pytest.approx(np.mean(per_crop), rel=1e-5)


def test_ibot_loss_of_nothing_is_zero_with_a_gradient() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    found = ibot_loss(student, torch.zeros(0, 5), torch.zeros(0), 0.1, 4)
    found.backward()
    assert found.item() == 0.0


def test_koleo_loss_of_points_on_a_circle() -> None:
    """n points evenly on the unit circle are 2 sin(pi / n) from their neighbours, whatever their length was."""
    n = 7
    angles = torch.arange(n) * 2 * math.pi / n
    lengths = torch.linspace(0.5, 3.0, n).unsqueeze(1)
    points = torch.stack([angles.cos(), angles.sin()], dim=1) * lengths
    assert koleo_loss(points).item() == pytest.approx(-math.log(2 * math.sin(math.pi / n)), rel=1e-5)


def test_koleo_loss_is_the_mean_over_nearest_neighbours(generator: torch.Generator) -> None:
    features = torch.randn((20, 6), generator=generator)
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    nearest = [min(float((unit[i] - unit[j]).norm()) for j in range(20) if j != i) for i in range(20)]
    assert koleo_loss(features).item() == pytest.approx(-np.mean(np.log(nearest)), rel=1e-4)


def test_koleo_loss_drives_points_apart(generator: torch.Generator) -> None:
    points = (torch.ones(8, 3) + 0.01 * torch.randn((8, 3), generator=generator)).requires_grad_()
    before = torch.pdist(torch.nn.functional.normalize(points.detach(), dim=1)).min()
    for _ in range(50):
        (gradient,) = torch.autograd.grad(koleo_loss(points), points)
        assert torch.isfinite(gradient).all()
        with torch.no_grad():
            points -= 0.02 * gradient
    assert torch.pdist(torch.nn.functional.normalize(points.detach(), dim=1)).min() > 5 * before


def test_koleo_loss_of_equal_points_is_finite() -> None:
    points = torch.ones(4, 3, requires_grad=True)
    koleo_loss(points).backward()
    assert torch.isfinite(points.grad).all()


def test_reconstruction_loss_looks_past_brightness_and_contrast(generator: torch.Generator) -> None:
    patches = torch.randn((5, 64), generator=generator)
    target = (patches - patches.mean(1, keepdim=True)) / patches.std(1, keepdim=True)
    found = reconstruction_loss(torch.zeros_like(patches), patches * 0.3 + 0.4)
    assert found.item() == pytest.approx(63 / 64, rel=5e-3)  # what was brought to variance 1 (of n - 1) is 1 from 0
    assert reconstruction_loss(target, patches * 0.3 + 0.4).item() < 1e-5
    assert reconstruction_loss(torch.zeros(3, 8), torch.full((3, 8), 0.7)).item() == 0.0  # air
