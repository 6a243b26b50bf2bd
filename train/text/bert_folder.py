"""A local BERT folder as Hugging Face lays it out: ``config.json``, ``model.safetensors``, tokenizer files.

Read without the library ``transformers``: BERT's layers have had the same names since 2018, and pickled weights
(``pytorch_model.bin``) are never opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoint import WEIGHTS, CheckpointError
from ..config import ConfigError
from ..model.text import TextConfig

LAYER_NAMES = {
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
    "norm2": "output.LayerNorm",
}
SIZES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "vocabulary": "vocab_size",
    "max_tokens": "max_position_embeddings",
}
HEAD_NAMES = {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm"}
TABLES = ("position_embeddings.weight", "token_type_embeddings.weight")  # of which the first rows are read
# What the encoder here does not have a switch for.
EXPECTED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


def is_bert_folder(folder: Path) -> bool:
    """Whether a folder is laid out as Hugging Face does."""
    return (folder / "config.json").exists()


def read_bert_config(folder: Path) -> TextConfig:
    """Read the sizes of a BERT.

    Raises
    ------
    ConfigError
        Naming the file and the key.
    """
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not a JSON object; give a BERT folder of Hugging Face's layout")
    for key, expected in EXPECTED.items():
        found = document.get(key, expected)
        if found != expected:
            raise ConfigError(f"{path}: {key} is {found!r}, expected {expected!r}; only BERT itself can be read")
    sizes: dict[str, Any] = {ours: document.get(theirs) for ours, theirs in SIZES.items()}
    for ours, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ConfigError(f"{path}: {SIZES[ours]} is {size!r}, expected a whole number")
    epsilon = document.get("layer_norm_eps", 1e-12)
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        raise ConfigError(f"{path}: layer_norm_eps is {epsilon!r}, expected a number above 0 and below 1")
    config = TextConfig(**sizes, norm_epsilon=float(epsilon))
    try:
        config.check(str(path))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return config


def checked_bert_config(folder: Path) -> TextConfig:
    """Read the sizes of a BERT whose weights have them: memory is never taken for what ``config.json`` alone says.

    Raises
    ------
    ConfigError, CheckpointError
    """
    config = read_bert_config(folder)
    read_bert_weights(folder, config)
    return config


def read_bert_weights(folder: Path, config: TextConfig) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Read weights.

    Returns
    -------
    encoder : state of a ``TextEncoder``
    head : state of a ``MaskedLanguageHead``, or None where the folder has none

    Raises
    ------
    CheckpointError
    """
    path = folder / WEIGHTS
    if not path.exists() and (folder / "pytorch_model.bin").exists():
        raise CheckpointError(f"{path}: no such file; pytorch_model.bin is a pickle and not read: save as safetensors")
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give a BERT folder of Hugging Face's layout") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({str(error)[:100]}); copy it again") from None
    tensors = {_modern(name): tensor.float() for name, tensor in tensors.items()}

    def take(name: str, *least: int) -> Tensor:
        """Return a tensor of this shape; the first axis of a table may be longer."""
        if name not in tensors:
            raise CheckpointError(f"{path}: has no tensor {name}; expected BERT weights")
        found = tuple(tensors[name].shape)
        longer = len(found) == len(least) and found[0] >= least[0] and name.endswith(TABLES)
        if found != least and not (longer and found[1:] == least[1:]):
            raise CheckpointError(f"{path}: {name} is {list(found)}, expected {list(least)} as config.json says")
        return tensors[name]

    C, H = config.width, config.hidden
    # There is one segment: its code is part of every position's.
    positions = take("embeddings.position_embeddings.weight", config.max_tokens, C)[: config.max_tokens]
    encoder = {
        "words.weight": take("embeddings.word_embeddings.weight", config.vocabulary, C),
        "positions": positions + take("embeddings.token_type_embeddings.weight", 1, C)[0],
        "norm.weight": take("embeddings.LayerNorm.weight", C),
        "norm.bias": take("embeddings.LayerNorm.bias", C),
    }
    sizes = {"out": (C, C), "norm1": (C,), "mlp.0": (H, C), "mlp.2": (C, H), "norm2": (C,)}
    for layer in range(config.depth):
        prefix = f"encoder.layer.{layer}"
        for kind in ("weight", "bias"):
            square = (C, C) if kind == "weight" else (C,)
            parts = [take(f"{prefix}.attention.self.{part}.{kind}", *square) for part in ("query", "key", "value")]
            encoder[f"blocks.{layer}.qkv.{kind}"] = torch.cat(parts)
            for ours, theirs in LAYER_NAMES.items():
                size = sizes[ours] if kind == "weight" else sizes[ours][:1]
                encoder[f"blocks.{layer}.{ours}.{kind}"] = take(f"{prefix}.{theirs}.{kind}", *size)
    return encoder, _head(tensors)


def _head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    found = {
        f"{ours}.{kind}": tensors.get(f"{theirs}.{kind}")
        for ours, theirs in HEAD_NAMES.items()
        for kind in ("weight", "bias")
    }
    found["bias"] = tensors.get("cls.predictions.bias", tensors.get("cls.predictions.decoder.bias"))
    complete = {name: tensor for name, tensor in found.items() if tensor is not None}
    return complete if len(complete) == len(found) else None


def _modern(name: str) -> str:
    """Return the name without the prefix of a model with a head; the first releases called a norm's gain gamma."""
    name = name.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
