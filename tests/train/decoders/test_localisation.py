"""Localisations: which token has which box, what it costs, and which boxes are told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from decipher_rt.train.decoders.contract import Known
from decipher_rt.train.decoders.registry import build_decoder
from decipher_rt.train.decoders.tokens import known_of
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.sources import Box, Facts

from .every_kind import BOX, BOXES


def test_one_lesion_gives_one_box(vit_config: ViTConfig) -> None:
    decoder = build_decoder(BOXES, vit_config).eval()
    raw = torch.zeros(1, 64, 7)
    raw[..., 0] = -9.0
    tokens = torch.arange(64)[None]
    raw[0, [0, 1, 4], 0] = torch.tensor([3.0, 2.5, 2.0])  # neighbours: 1 beside 0, 4 above both
    raw[0, 63, 0] = 1.0
    kept = decoder.finish(decoder.suppress(raw, tokens))[0, :, 0]
    assert kept[:2] == pytest.approx(torch.sigmoid(torch.tensor([3.0, 1.0])))
    assert kept[2] < 1e-3


def test_targets_of_localisation_name_the_token_of_the_box(vit_config: ViTConfig) -> None:
    decoder = build_decoder(BOX, vit_config)
    boxes = np.array([[5.5, 5.5, 5.5, 4, 4, 4], [12.5, 1.5, 1.5, 2, 2, 2]], np.float32)
    known = Known({}, boxes, "head", tissue=False)
    tokens = np.array([21, 22, 48, 63])  # patch (1, 1, 1), its neighbour, (3, 0, 0), the far corner
    target = decoder.target(known, None, tokens)
    assert target["positive"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert target["box"][0] == pytest.approx(boxes[0])
    assert target["box"][2] == pytest.approx(boxes[1])
    shifted = dataclasses.replace(known, boxes=boxes + np.array([0, 0, 1, 0, 0, 0], np.float32))
    assert decoder.target(shifted, None, tokens)["positive"].tolist() == [1.0, -1.0, 1.0, 0.0]


def test_localisation_learns_the_boxes_of_its_target(vit_config: ViTConfig) -> None:
    """In the order of their labels the boxes lie in patches (1, 1, 1), (3, 0, 0) and (0, 0, 0)."""
    places = ((5.5, 5.5, 5.5), (13.5, 1.5, 1.5), (1.5, 1.5, 1.5))
    boxes = tuple(Box(p, (4.0, 4.0, 4.0), label) for p, label in zip(places, ("plaque", "cyst", ""), strict=True))
    known = known_of(Facts(patient="p", boxes=boxes), np.eye(4), tissue=False)
    tokens = np.array([0, 21, 48])
    for target, expected in (("plaque", [1, 1, 0]), ("cyst", [1, 0, 1]), ("lesion", [1, 1, 1]), ("tumour", [1, 0, 0])):
        decoder = build_decoder(dataclasses.replace(BOX, target=target), vit_config)
        assert decoder.target(known, None, tokens)["positive"].tolist() == expected, target
        decoder.check_truth([known])
    labelled = known_of(Facts(patient="p", boxes=boxes[:2]), np.eye(4), tissue=False)
    with pytest.raises(ValueError, match=r"decoder.target is 'tumour', which no box .*: cyst, plaque; 'lesion' takes"):
        build_decoder(dataclasses.replace(BOX, target="tumour"), vit_config).check_truth([labelled])
    healthy = known_of(Facts(patient="p", boxes=()), np.eye(4), tissue=False)
    with pytest.raises(ValueError, match=r"decoder.target: no series of the train split has a box"):
        build_decoder(BOX, vit_config).check_truth([healthy])


def test_a_perfect_box_has_no_box_loss(vit_config: ViTConfig) -> None:
    decoder = build_decoder(BOX, vit_config)
    box = torch.tensor([5.0, 6.0, 7.0, 2.0, 3.0, 4.0])
    raw = torch.cat([torch.tensor([20.0]), box]).expand(1, 1, 7)
    truth = torch.zeros(1, 8, 6)
    truth[0, 0] = box
    target = {"positive": torch.ones(1, 1), "box": box.expand(1, 1, 6), "truth": truth}
    losses = decoder.losses(raw, target, torch.zeros(1, 1, dtype=torch.int64))
    assert all(float(value) == pytest.approx(0.0, abs=1e-5) for value in losses.values())
    moved = raw.clone()
    moved[..., 1] += 2.0  # half a patch
    losses = decoder.losses(moved, target, torch.zeros(1, 1, dtype=torch.int64))
    assert float(losses["l1"]) == pytest.approx(0.5)
    assert float(losses["giou"]) == pytest.approx(1.0)  # they touch: nothing shared, nothing between
