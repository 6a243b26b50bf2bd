"""A small decoder of every kind."""

from __future__ import annotations

import dataclasses

from decipher_rt.train.decoders.registry import DecoderConfig

LINEAR = DecoderConfig("brightness", "classification", "sequence", options={"labels": ["dark", "light"]})
ATTENTION = dataclasses.replace(LINEAR, options={"labels": ["dark", "light"], "pool": "attention"})
LESION = DecoderConfig("lesion", "classification", "lesion", options={"labels": ["absent", "present"], "pool": "max"})
VOLUME = DecoderConfig("ball", "regression", "ball_volume_ml", options={"unit": "ml", "pool": "sum"})
TISSUE = DecoderConfig("tissue", "segmentation", "tissue", options={"channels": [16, 8]})
MASK = DecoderConfig(
    "tumour",
    "segmentation",
    "mask",
    options={"channels": [16, 8], "labels": ["background", "core", "oedema"], "values": [0, 4, 2]},
)
BOX = DecoderConfig("box", "localisation", "lesion", options={"hidden": 48})
BOXES = dataclasses.replace(BOX, options={"hidden": 48, "boxes": 3})
ALL = {
    "linear": LINEAR,
    "attention": ATTENTION,
    "max": LESION,
    "value": dataclasses.replace(VOLUME, options={"unit": "ml"}),
    "value attention": dataclasses.replace(VOLUME, options={"unit": "ml", "pool": "attention"}),
    "sum": VOLUME,
    "tissue": TISSUE,
    "strided": dataclasses.replace(TISSUE, options={"channels": [16], "stride": 2, "labels": ["background", "lesion"]}),
    "skips": dataclasses.replace(TISSUE, options={"channels": [16, 8], "skips": True}),
    "strided skips": dataclasses.replace(
        TISSUE, options={"channels": [16], "stride": 2, "labels": ["background", "lesion"], "skips": True}
    ),
    "box": BOX,
    "boxes": BOXES,
}
