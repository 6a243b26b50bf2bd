"""InfoNCE: its closed form, its gradient by finite differences, and pairs that are no negatives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from decipher_rt.train.align.infonce import clamp_log_scale, infonce, new_log_scale
from decipher_rt.train.align.texts import sentence_keys, shared_reports, shared_sentences


def unit(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, columns, dtype=torch.float64, generator=generator), dim=-1)


def test_closed_form_of_orthogonal_pairs() -> None:
    # Own cosines are 1 and all others 0: -log(e^s / (e^s + B - 1)) in both directions.
    for size, scale in ((2, 1.0), (5, 3.0), (8, 10.0)):
        eye = torch.eye(size)
        expected = math.log(1 + (size - 1) * math.exp(-scale))
        assert float(infonce(eye, eye, torch.tensor(scale).log())) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    same = torch.ones(6, 4) / 2  # everything is equally near: log B, whatever the scale
    assert float(infonce(same, same, torch.tensor(2.0))) == pytest.approx(math.log(6), rel=1e-6)


def test_both_directions_count_alike() -> None:
    image, text = unit(7, 5, 0), unit(7, 5, 1)
    scale = torch.tensor(5.0).log()
    logits = (5.0 * image @ text.T).numpy()
    rows, columns = (np.log(np.exp(x).sum(axis)) for x, axis in ((logits, 1), (logits, 0)))
    expected = ((rows - np.diag(logits)).mean() + (columns - np.diag(logits)).mean()) / 2
    assert float(infonce(image, text, scale)) == pytest.approx(float(expected), rel=1e-5)
    assert float(infonce(text, image, scale)) == pytest.approx(float(expected), rel=1e-5)


def test_gradient_is_that_of_finite_differences() -> None:
    image, text = unit(5, 4, 2).float(), unit(5, 4, 3).float()
    shared = torch.zeros(5, 5, dtype=torch.bool)
    shared[1, 3] = shared[3, 1] = True
    scale = torch.tensor(2.0)
    inputs = [image.requires_grad_(), text.requires_grad_(), scale.requires_grad_()]
    infonce(image, text, scale, shared).backward()
    for tensor in inputs:
        assert tensor.grad is not None
        numbers = tensor.detach().reshape(-1)
        for place in range(0, len(numbers), 3):
            step = 2e-2
            values = []
            for sign in (1, -1):
                moved = numbers.clone()
                moved[place] += sign * step
                arguments = [moved.view_as(tensor) if t is tensor else t.detach() for t in inputs]
                values.append(float(infonce(arguments[0], arguments[1], arguments[2], shared)))
            found = (values[0] - values[1]) / (2 * step)
            assert float(tensor.grad.reshape(-1)[place]) == pytest.approx(found, abs=2e-3)


def test_a_shared_text_is_no_negative() -> None:
    image, text = unit(4, 6, 4), unit(4, 6, 5)
    text[2] = text[0]  # series 0 and 2 have the same report
    scale = torch.tensor(4.0).log()
    shared = torch.zeros(4, 4, dtype=torch.bool)
    shared[0, 2] = shared[2, 0] = True
    cosines = 4.0 * image @ text.T
    total = 0.0
    for i in range(4):
        for row in (cosines[i], cosines[:, i]):
            others = [j for j in range(4) if j != i and not shared[i, j]]
            total += float(torch.log1p(torch.exp(row[others] - row[i]).sum())) / 8
    assert float(infonce(image, text, scale, shared)) == pytest.approx(total, rel=1e-5)
    everything = torch.ones(4, 4, dtype=torch.bool)
    assert float(infonce(image, text, scale, everything)) == pytest.approx(0.0, abs=1e-6)


def test_which_texts_hold_of_which_series() -> None:
    reports = [
        ("No lesion.", "Normal ventricles."),
        ("no  LESION", "Wide ventricles.", "Ghosts."),
        ("Wide ventricles.",),
        ("Normal ventricles.", "No lesion."),
    ]
    keys = torch.from_numpy(np.stack([sentence_keys(report) for report in reports]))
    assert shared_reports(keys).tolist() == [
        [True, False, False, True],
        [False, True, True, False],
        [False, False, True, False],
        [True, False, False, True],
    ]
    chosen = torch.stack([keys[0, 0], keys[1, 2], keys[2, 0], keys[3, 0]])  # no lesion, ghosts, wide, normal
    assert shared_sentences(keys, chosen).tolist() == [
        [True, False, False, True],
        [True, True, True, False],
        [False, False, True, False],
        [True, False, False, True],
    ]


def test_the_temperature_stays_in_its_bounds_and_keeps_its_gradient() -> None:
    scale = new_log_scale()
    assert float(scale.detach().exp()) == pytest.approx(1 / 0.07)
    for value, expected in ((9.0, 100.0), (-3.0, 1.0)):
        with torch.no_grad():
            scale.fill_(value)
        clamp_log_scale(scale)
        assert float(scale.detach().exp()) == pytest.approx(expected, rel=1e-5)
        scale.grad = None
        infonce(unit(4, 3, 6), unit(4, 3, 7), scale).backward()
        assert scale.grad is not None
        assert abs(float(scale.grad)) > 0
