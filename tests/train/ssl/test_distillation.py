"""Student and teacher: who learns, who follows, and what each of them sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.sources.example import ListedExamples
from decipher_rt.train.ssl.config import CropConfig, DistillationConfig, LossWeights
from decipher_rt.train.ssl.crops import CropBatch, crop_batch
from decipher_rt.train.ssl.distillation import Distillation
from decipher_rt.train.ssl.heads import PrototypeHead
from decipher_rt.train.ssl.losses import dino_loss, ibot_loss, koleo_loss, sinkhorn
from decipher_rt.train.ssl.masks import plan_blocks
from decipher_rt.train.views import ViewConfig

CONFIG = DistillationConfig(
    prototypes=32, head_hidden=24, head_bottleneck=12, temperature_warmup=10, freeze_prototypes=2, momentum=(0.9, 1.0)
)


@pytest.fixture
def batch(encoder: ViTConfig, balls: Callable[[int, int], ListedExamples]) -> CropBatch:
    volumes = [balls(i, i + 1)[0].volume for i in range(4)]
    return crop_batch(
        volumes,
        [np.random.default_rng(i) for i in range(4)],
        (30, 8),
        plan_blocks(2, 4, 0.5, (0.2, 0.75), np.random.default_rng(9)),
        encoder.preprocessing,
        CropConfig(local_crops=3),
        ViewConfig(shift_voxels=2),
    )


@pytest.fixture
def model(encoder: ViTConfig) -> Distillation:
    torch.manual_seed(2)
    return Distillation(encoder, CONFIG, steps=21)


def test_the_teacher_gets_no_gradient_and_the_rest_gets_one(model: Distillation, batch: CropBatch) -> None:
    model(batch, 5)["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    for name, parameter in model.learned():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    learned = {name for name, _ in model.learned()}
    assert not any(name.startswith("teacher") for name in learned)
    assert "student.encoder.projection.weight" not in learned  # it is for reports, in the next stage
    assert {"mask_token", "student.whole.prototypes", "student.patch.prototypes"} <= learned


def test_the_loss_is_the_weighted_sum_of_losses_put_together_by_hand(model: Distillation, batch: CropBatch) -> None:
    """The same from plain calls, crop by crop."""
    step, t = 5, 0.04 + 0.03 * 5 / 10
    weights = LossWeights(dino=0.7, ibot=1.3, koleo=0.2)
    model.config = dataclasses.replace(CONFIG, losses=weights)
    found = model(batch, step)
    with torch.no_grad():
        teacher, student = model.teacher, model.student
        whole_logits, patch_logits, student_logits, student_patch, per_crop, classes = [], [], [], [], [], []
        for v in range(2):
            whole, patch = teacher.encoder.features(
                teacher.encoder.project(batch.global_patches[v], batch.global_tokens[v])
            )
            whole_logits.append(teacher.whole(whole))
            mask = batch.masks[v]
            patch_logits.append(teacher.patch(patch[mask]))
            embedded = student.encoder.project(batch.global_patches[v], batch.global_tokens[v])
            for b in range(4):
                for k in range(30):
                    if mask[b, k]:
                        embedded[b, k] = model.mask_token + student.encoder.position[batch.global_tokens[v, b, k]]
            seen, seen_patch = student.encoder.features(embedded)
            classes.append(seen)
            student_logits.append(student.whole(seen))
            student_patch.append(student.patch(seen_patch[mask]))
            per_crop += [int(mask[b].sum()) for b in range(4) for _ in range(int(mask[b].sum()))]
        for i in range(3):
            local, _ = student.encoder.features(student.encoder.project(batch.local_patches[i], batch.local_tokens[i]))
            student_logits.append(student.whole(local))
        targets = sinkhorn(torch.cat(whole_logits), t).reshape(2, 4, -1)
        dino = dino_loss(torch.stack(student_logits), targets, 0.1)
        ibot = ibot_loss(torch.cat(student_patch), sinkhorn(torch.cat(patch_logits), t), torch.tensor(per_crop), 0.1, 8)
        koleo = [koleo_loss(view) for view in classes]
    expected = 0.7 * dino + 1.3 * ibot + 0.2 * (koleo[0] + koleo[1])
    assert found["dino"].item() == pytest.approx(dino.item(), rel=1e-4)
    assert found["ibot"].item() == pytest.approx(ibot.item(), rel=1e-4)
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_student_does_not_see_what_is_masked_and_the_teacher_does(model: Distillation, batch: CropBatch) -> None:
    patches = batch.global_patches.clone().requires_grad_()
    model(dataclasses.replace(batch, global_patches=patches), 5)["loss"].backward()
    assert patches.grad[batch.masks].abs().max() == 0
    assert (patches.grad[~batch.masks].abs().sum(dim=1) > 0).all()
    changed = batch.global_patches.clone()
    changed[batch.masks] = -changed[batch.masks]
    other = model(dataclasses.replace(batch, global_patches=changed), 5)
    assert other["ibot"].item() != model(batch, 5)["ibot"].item()


def test_without_local_crops_the_globals_still_teach_each_other(model: Distillation, batch: CropBatch) -> None:
    alone = dataclasses.replace(batch, local_patches=batch.local_patches[:0], local_tokens=batch.local_tokens[:0])
    assert torch.isfinite(model(alone, 0)["loss"])


def test_the_teacher_is_an_exponential_average(model: Distillation) -> None:
    before = [p.clone() for p in model.teacher.parameters()]
    with torch.no_grad():
        for p in model.student.parameters():
            p += torch.randn_like(p)
    model.after_step(0)
    for was, now, student in zip(before, model.teacher.parameters(), model.student.parameters(), strict=True):
        assert torch.allclose(now, 0.9 * was + 0.1 * student, atol=1e-6)


def test_momentum_is_a_cosine_to_one(model: Distillation) -> None:
    assert [model.momentum(s) for s in (0, 10, 20)] == pytest.approx([0.9, 0.95, 1.0])
    assert model.momentum(5) == pytest.approx(1 - 0.05 * (1 + np.cos(np.pi / 4)))
    before = [p.clone() for p in model.teacher.parameters()]
    with torch.no_grad():
        for p in model.student.parameters():
            p += 1.0
    model.after_step(20)
    assert all(torch.equal(a, b) for a, b in zip(before, model.teacher.parameters(), strict=True))


def test_the_teachers_temperature_rises_and_stays(model: Distillation) -> None:
    assert [model.teacher_temperature(s) for s in (0, 5, 10, 20)] == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_prototypes_stay_where_they_are_at_the_start(model: Distillation, batch: CropBatch) -> None:
    model(batch, 1)["loss"].backward()
    for head in (model.student.whole, model.student.patch):
        assert head.prototypes.grad.abs().max() == 0
        assert head.mlp[0].weight.grad.abs().max() > 0
    model.zero_grad()
    model(batch, 2)["loss"].backward()
    assert model.student.whole.prototypes.grad.abs().max() > 0


def test_heads_give_cosines() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(12, 20, 8, 50)
    tokens = torch.randn(6, 12) * 100
    logits = head(tokens)
    point = head.mlp(tokens)
    for i in range(6):
        for p in range(50):
            expected = torch.nn.functional.cosine_similarity(point[i], head.prototypes[p], dim=0)
            assert logits[i, p].item() == pytest.approx(expected.item(), abs=1e-5)


def test_in_bfloat16_the_losses_stay_near(model: Distillation, batch: CropBatch) -> None:
    full = model(batch, 5)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(batch, 5)
    for name in ("dino", "ibot", "koleo"):
        assert half[name].dtype is torch.float32
        assert half[name].item() == pytest.approx(full[name].item(), rel=0.05), name
