"""What the alignment starts from: an image encoder and a text encoder, each from a folder or untrained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..checkpoint import CONFIG, WEIGHTS, CheckpointError, folder_fingerprint, load_state, read_tensors
from ..config import ConfigError, build_config, read_document
from ..model.text import TextConfig
from ..model.vit import ViT, ViTConfig
from ..model.whiten import whiten_patch_embed
from ..pool import fit_pool
from ..sources import Examples, Split, listed_rows, pinned
from ..text.bert_folder import checked_bert_config, is_bert_folder
from ..text.pretrain import load_text_encoder
from ..text.tokenizer import encode
from ..weights import check_splits
from .batch import draw_view
from .config import AlignConfig
from .retrieval import KS
from .stage import AlignModel, with_report

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 64
WHITENED_SERIES = 64  # that an untrained patch embedding is fitted to
C = TypeVar("C")


def resolved(config: AlignConfig) -> AlignConfig:
    """Return the configuration with the sizes of the folders that it starts from; checked again.

    Raises
    ------
    ConfigError
    """
    encoder, text = config.encoder, config.text
    for key, start, stage in (("encoder_from", config.encoder_from, "ssl"), ("text_from", config.text_from, "text")):
        if start and not Path(start).is_dir():
            raise ConfigError(
                f"{key}: {start} is no folder; give one that 'decipher-rt train {stage}' wrote, or '{key}=' to start "
                "untrained"
            )
        if start:
            check_splits(config.source, Path(start))
    if config.encoder_from:
        encoder = _read_section(ViTConfig, Path(config.encoder_from), "encoder")
    if config.text_from:
        folder = Path(config.text_from)
        text = checked_bert_config(folder) if is_bert_folder(folder) else _read_section(TextConfig, folder, "text")
    found = dataclasses.replace(config, encoder=encoder, text=text)
    try:
        found.check()
    except ValueError as error:  # such as more tokens than the encoder's grid has
        raise ConfigError(str(error)) from None
    return found


def pinned_start(config: AlignConfig) -> AlignConfig:
    """Return what a run belongs to: the series that are listed, and the weights of both folders wherever they lie."""
    encoder, text = (start and folder_fingerprint(Path(start)) for start in (config.encoder_from, config.text_from))
    return dataclasses.replace(config, source=pinned(config.source), encoder_from=encoder, text_from=text)


def check_reports(config: AlignConfig) -> None:
    """Refuse a manifest or BIDS folder that lists too few reports, before an image of it is read.

    Raises
    ------
    ConfigError
    """
    needed: dict[Split, tuple[int, str]] = {"train": (config.run.batch, "run.batch"), "test": (max(KS), "recall")}
    for split, (least, what) in needed.items():
        listed = listed_rows(config.source, split)
        if listed is None:
            return
        found = sum(bool(row.facts.report) for row in listed)
        if found < least:
            bids = config.source.kind == "bids"
            where = "a BIDS folder lists none: make a manifest" if bids else "give them in its column report"
            raise ConfigError(
                f"{config.source.path}: {found} of {len(listed)} series of the {split} split have a report, {what} "
                f"needs {least}; {where}"
            )


def reports_of(examples: Examples) -> list[str]:
    """Return the reports of all examples that have one."""
    return [" ".join(examples.facts(i).report) for i in with_report(examples)[0]]


def start(model: AlignModel, config: AlignConfig, examples: Examples, tokenizer: Tokenizer) -> None:
    """Load what training starts from, and measure what both projections take out of pooled vectors."""
    members = with_report(examples)[0][: config.pool_series]
    if config.encoder_from:
        load_encoder(model.encoder, Path(config.encoder_from))
    elif isinstance(model.encoder.patch_embed, nn.Linear):
        whiten(model.encoder.patch_embed, config, [examples[i].volume for i in members[:WHITENED_SERIES]])
    fit_pool(model.encoder, (examples[i].volume for i in members))
    if config.text_from:
        folder = Path(config.text_from)
        load_state(model.text.encoder, load_text_encoder(folder, config.text), folder / WEIGHTS)
    reports = [examples.facts(i).report for i in members]
    fit_text_pool(model, tokenizer, [" ".join(r) for r in reports] + [sentence for r in reports for sentence in r[:2]])


def whiten(embed: nn.Linear, config: AlignConfig, volumes: Sequence[NDArray[np.float16]]) -> None:
    """Let an untrained patch embedding begin from whitened patches, as ``train ssl`` does."""
    spec, rng = config.encoder.preprocessing, np.random.default_rng(config.run.seed)
    seen = [draw_view(volume, config.tokens[1], spec, config.augment, rng)[0] for volume in volumes]
    whiten_patch_embed(embed, torch.from_numpy(np.concatenate(seen)))


def load_encoder(encoder: ViT, folder: Path) -> None:
    """Load the image encoder of any weights folder that has one (``encoder.*``).

    Raises
    ------
    CheckpointError
    """
    path = folder / WEIGHTS
    tensors, _ = read_tensors(path)
    found = {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
    if not found:
        raise CheckpointError(f"{path}: holds no image encoder (encoder.*); give a folder that 'train ssl' wrote")
    load_state(encoder, found, path)


@torch.no_grad()
def fit_text_pool(model: AlignModel, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Set the text tower's ``pooled_mean`` and ``pooled_var`` from texts."""
    tower = model.text.eval()
    pooled = []
    for first in range(0, len(texts), BATCH):
        ids, mask = (torch.from_numpy(x) for x in encode(tokenizer, texts[first : first + BATCH]))
        pooled.append(tower.pool(tower.encoder(ids, mask), mask))
    var, mean = torch.var_mean(torch.cat(pooled).double(), dim=0, correction=0)
    tower.pooled_mean.copy_(mean)
    tower.pooled_var.copy_(var)


def _read_section(cls: type[C], folder: Path, key: str) -> C:
    """Read one part of the configuration that a weights folder was trained by."""
    path = folder / CONFIG
    document = read_document(path)
    if key not in document:
        raise ConfigError(f"{path}: has no {key}; give a weights folder that holds one")
    try:
        return build_config(cls, document[key], key)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
