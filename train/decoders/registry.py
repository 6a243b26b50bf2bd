"""Kinds of decoder by name: the name of a kind is that of its file in ``kinds/``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ..config import build_config
from ..model.vit import ViTConfig
from . import kinds
from .contract import Decoder

SEGMENTATION, LOCALISATION = "segmentation", "localisation"


@dataclass(frozen=True)
class DecoderConfig:
    """One decoder.

    Attributes
    ----------
    name : of the answer, as the bundle and the result call it
    kind : file in ``train/decoders/kinds`` without ``.py``
    target : what it answers for: the name of a label, or of the lesion or tissue map
    description : one line for the bundle's manifest
    options : what the kind's ``Settings`` hold
    upon : name of a segmentation of the same model; what it sees in a patch is put beside the patch's token. It is as
        frozen as the encoder
    """

    name: str
    kind: str
    target: str
    description: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    upon: str = ""

    def check(self, key: str = "decoder") -> None:
        """Raise ValueError by key where a value cannot be used."""
        if not self.name.isidentifier():  # it becomes a file name and part of tensor names
            raise ValueError(f"{key}.name is {self.name!r}, expected letters, digits and underscores")
        if hasattr(nn.ModuleDict(), self.name):  # as ``type`` and ``keys``
            raise ValueError(f"{key}.name is {self.name!r}, which torch keeps for itself; give another name")
        if self.kind not in names():
            raise ValueError(f"{key}.kind is {self.kind!r}, expected one of {', '.join(names())}")
        if self.upon and kind_of(self.kind).answer == SEGMENTATION:
            raise ValueError(f"{key}.upon is {self.upon!r}, expected nothing: a segmentation stands upon tokens alone")
        settings: Any = build_config(kind_of(self.kind).settings, dict(self.options), f"{key}.options")
        if getattr(settings, "odds", False) and not self.upon:
            raise ValueError(f"{key}.options.odds is true, expected a segmentation that sees them ({key}.upon)")


def names() -> tuple[str, ...]:
    """Return the kinds that there are."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(kinds.__path__)))


def kind_of(name: str) -> type[Decoder]:
    """Return the decoder class of a kind: the one that its file defines."""
    module = importlib.import_module(f"{kinds.__name__}.{name}")
    (found,) = (
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Decoder) and value.__module__ == module.__name__
    )
    return found


def build_decoder(config: DecoderConfig, encoder: ViTConfig, beside: int = 0) -> Decoder:
    """Build a decoder, untrained; ``beside`` is how many numbers it finds beside each token.

    Raises
    ------
    ValueError
        Naming the key, where its configuration does not fit itself or the encoder.
    """
    config.check()
    kind = kind_of(config.kind)
    settings: Any = build_config(kind.settings, dict(config.options), "decoder.options")
    return kind(config.target, settings, replace(encoder, width=encoder.width + beside))
