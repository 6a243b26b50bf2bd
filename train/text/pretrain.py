"""The text encoder from its configuration to a weights folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..checkpoint import WEIGHTS, CheckpointError, folder_fingerprint, load_state, read_tensors, write_tensors
from ..config import ConfigError, dump_config
from ..distributed import rank
from ..loop import run
from ..model.text import TextConfig
from ..progress import Progress
from ..sources import pinned
from ..weights import trained_on
from .bert_folder import checked_bert_config, is_bert_folder, read_bert_weights
from .config import TextPretrainingConfig
from .corpus import read_reports, texts_of
from .kept import keep_tokenizer, tokenizer_of
from .stage import MaskedLanguageModel, TextStage, hide, special_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MEASURED = 512  # reports that the figures are of
BATCH = 32


def pretrain(config: TextPretrainingConfig, folder: Path, progress: Progress) -> dict[str, Any]:
    """Train a text encoder by masked language modelling; leave a weights folder with its ``tokenizer.json``.

    Parameters
    ----------
    config : TextPretrainingConfig
    folder : Path
        What is in it: see `decipher_rt.train.loop.run`. Killed at any moment, the same call goes on. Weights are
        ``text.encoder.*`` and ``mlm.*``.
    progress : Progress

    Returns
    -------
    dict
        ``perplexity`` and ``accuracy`` on hidden ``tokens`` of test reports, which the simulator words otherwise; empty
        in all processes but the first.

    Raises
    ------
    ConfigError
        Also where no report is to train on.
    """
    torch.set_num_threads(config.run.threads)
    config = resolved(config)
    reports = read_reports(config.source, "train", config.reports, progress)
    if not reports:
        raise ConfigError(f"{config.source.path}: no series of the train split has a report; give some in its column")
    tokenizer = tokenizer_of(folder, config.text_from, config.text, lambda: texts_of(reports))
    special = set(special_ids(tokenizer).tolist())
    if all(special.issuperset(tokenizer.encode(text).ids) for text in texts_of(reports)):
        raise ConfigError(f"{config.source.path}: no report of the train split holds a word that the tokenizer knows")
    torch.manual_seed(config.run.seed)
    stage = TextStage(config, reports, tokenizer)
    if config.text_from:
        start_from_bert(stage.network, Path(config.text_from), config.text)
    keep_tokenizer(folder, tokenizer)
    run(stage, config.run, folder, dump_config(_pinned(config)), progress, trained_on(config.source))
    if rank():
        return {}
    tensors, metadata = read_tensors(folder / WEIGHTS)
    if "metrics" not in metadata:
        load_state(stage.network, tensors, folder / WEIGHTS)
        test = read_reports(config.source, "test", MEASURED, progress)[:MEASURED]
        figures = measure(stage.network, tokenizer, test, config)
        metadata = {**metadata, "metrics": {"text": figures}}
        write_tensors(folder / WEIGHTS, tensors, metadata)
    return dict(metadata["metrics"]["text"])


def resolved(config: TextPretrainingConfig) -> TextPretrainingConfig:
    """Return the configuration with the sizes of the folder that it starts from."""
    if not config.text_from:
        return config
    folder = Path(config.text_from)
    if not is_bert_folder(folder):
        raise ConfigError(f"text_from: {folder} holds no config.json; give a BERT folder of Hugging Face's layout")
    return dataclasses.replace(config, text=checked_bert_config(folder))


def _pinned(config: TextPretrainingConfig) -> TextPretrainingConfig:
    """Return what a run belongs to: the reports that are listed, and weights wherever they lie."""
    start = config.text_from and folder_fingerprint(Path(config.text_from))
    return dataclasses.replace(config, source=pinned(config.source, images=False), text_from=start)


def start_from_bert(model: MaskedLanguageModel, folder: Path, config: TextConfig) -> None:
    """Load a BERT into the model; a head that the folder lacks starts untrained."""
    encoder, head = read_bert_weights(folder, config)
    load_state(model.encoder, encoder, folder / WEIGHTS)
    if head is not None:
        load_state(model.mlm, head, folder / WEIGHTS)


@torch.no_grad()
def measure(
    model: MaskedLanguageModel,
    tokenizer: Tokenizer,
    reports: Sequence[tuple[str, ...]],
    config: TextPretrainingConfig,
) -> dict[str, float]:
    """Return perplexity and accuracy on the hidden tokens of reports, the same ones at every call."""
    model.eval().cpu()
    if not reports:
        return {"tokens": 0}
    texts = texts_of(reports)
    special = special_ids(tokenizer)
    loss = right = count = 0.0
    for first in range(0, len(texts), BATCH):
        some = texts[first : first + BATCH]
        generators = [np.random.default_rng([config.run.seed, first + place]) for place in range(len(some))]
        batch = hide(tokenizer, some, special, config.mask, generators)
        hidden = float(batch.hidden.sum())
        losses = model(batch, 0)
        loss, right, count = (
            loss + hidden * float(losses["loss"]),
            right + hidden * float(losses["accuracy"]),
            count + hidden,
        )
    if not count:  # no word that the tokenizer knows
        return {"tokens": 0}
    return {
        "perplexity": round(float(np.exp(loss / count)), 3),
        "accuracy": round(right / count, 4),
        "tokens": int(count),
    }


def load_text_encoder(folder: Path, config: TextConfig) -> dict[str, torch.Tensor]:
    """Return the state of the ``TextEncoder`` in a folder that ``train text`` or Hugging Face wrote.

    Raises
    ------
    CheckpointError
    """
    if is_bert_folder(folder):
        return read_bert_weights(folder, config)[0]
    path = folder / WEIGHTS
    prefix = "text.encoder."
    tensors, _ = read_tensors(path)
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not found:
        raise CheckpointError(f"{path}: holds no text encoder ({prefix}*); give a folder that 'train text' wrote")
    return found
