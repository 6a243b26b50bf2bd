"""Weights and training state as safetensors: written beside and renamed, never pickled.

A *weights folder* holds ``model.safetensors`` and ``config.yaml``; it is what ``decipher-rt export`` takes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

import decipher_rt
from decipher_rt.atomic import whole_file
from decipher_rt.errors import DecipherError

WEIGHTS, CONFIG = "model.safetensors", "config.yaml"
NAMED = 5  # keys in a message
# Keys that change nothing of what a run trains, with all below them: where its source lies, by how many processes and
# threads series and batches are made, how often the state is kept, the scope, which is fitted after every run, a
# segmentation's margins, which are chosen after it, and what older versions said of the encoder.
UNTRAINED = (
    "source.path", "workers", "run.loaders", "run.checkpoint_every", "scope", "decoder.options.margins", "encoder.pool",
)  # fmt: skip
DEFAULT_WEIGHTS = Path(decipher_rt.__file__).parent / "default" / "weights"


class CheckpointError(DecipherError):
    """A checkpoint that is absent, damaged, or of another configuration. The message names the file."""


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights: names, types, shapes and every byte."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """Return the SHA-256 of the tensors in a weights folder, whatever its other files and metadata say.

    Raises
    ------
    CheckpointError
    """
    return fingerprint(_read(folder / WEIGHTS)[0])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], *, writer: str = "") -> None:
    """Write tensors and JSON metadata; after a crash the file is the old one or the new one, whole.

    ``writer`` is as ``whole_file`` has it.
    """
    # Contiguous copies: safetensors refuses tensors that share memory.
    contiguous = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
    about = {k: json.dumps(v) for k, v in metadata.items()}
    write_safetensors(path, lambda staging: save_file(contiguous, staging, about), writer=writer)


def write_safetensors(path: Path, save: Callable[[Path], object], *, writer: str = "") -> None:
    """Let ``save`` write a file beside ``path``, then rename it; ``writer`` as ``whole_file`` has it.

    Raises
    ------
    CheckpointError
        If it cannot be written: what safetensors says of a full disk is no OSError.
    """
    with whole_file(path, writer=writer) as staging:
        try:
            save(staging)
        except SafetensorError as error:
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"{path}: cannot be written ({reason}); make room or choose another folder") from None
        with staging.open("rb") as file:
            os.fsync(file.fileno())


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``write_tensors`` wrote.

    Raises
    ------
    CheckpointError
    """
    tensors, metadata = _read(path)
    return tensors, _parsed(path, metadata)


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata alone of what ``write_tensors`` wrote, as `read_tensors` does."""
    return _parsed(path, _read(path, tensors=False)[1])


def _parsed(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        return {k: json.loads(v) for k, v in metadata.items()}
    except (ValueError, RecursionError):
        raise CheckpointError(
            f"{path}: its metadata is not what 'decipher-rt train' writes; give a folder that it wrote"
        ) from None


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata as text: Hugging Face's files say ``pt`` there, which is no JSON."""
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if tensors else ()
            return {k: file.get_tensor(k) for k in names}, dict(file.metadata() or {})
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; train a model first, or give a folder with {WEIGHTS}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file ({str(error)[:100]}); copy it again, or remove it and train again"
        ) from None


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into a module, every name and shape checked, or raise CheckpointError."""
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: does not fit its configuration: {reason}") from None


def check_same(path: Path, found: str, config: str) -> None:
    """Raise CheckpointError, naming the keys, unless what a run was written under is its configuration now.

    Both are YAML. Keys of ``UNTRAINED`` do not matter: ``source.listed`` is of what a source lists. A key that one of
    them does not have is one that says nothing.
    """
    one, other = _flat(found), _flat(config)
    keys = [key for key in {**one, **other} if _trains(key) and one.get(key, "") != other.get(key, "")]
    if keys:
        named = ", ".join(keys[:NAMED]).replace("source.listed", "what source.path lists")
        raise CheckpointError(
            f"{path}: a run of another configuration, which differs in {named}{', ...' if keys[NAMED:] else ''}; give "
            "another output folder or remove it"
        )


def _trains(key: str) -> bool:
    return not f"{key}.".startswith(tuple(f"{name}." for name in UNTRAINED))


def _flat(text: str) -> dict[str, Any]:
    """Return the values of a configuration by their whole keys; that of what is none is ``config``."""

    def values(document: Any, *keys: str) -> dict[str, Any]:
        if not isinstance(document, dict):
            return {".".join(keys) or "config": "" if document is None else document}
        return {k: v for name, below in document.items() for k, v in values(below, *keys, str(name)).items()}

    try:
        return values(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError):
        return values(text)


def save_training(path: Path, model: nn.Module, optimiser: optim.Optimizer, step: int, config: str) -> None:
    """Write the state after ``step`` steps. There is no random state: every step seeds a generator with its number."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
    write_tensors(path, tensors, {"step": step, "config": config})


def load_training(path: Path, model: nn.Module, optimiser: optim.Optimizer, config: str) -> int:
    """Restore what ``save_training`` wrote and return the step to go on from.

    Raises
    ------
    CheckpointError
        Also where the checkpoint was written under another configuration.
    """
    tensors, metadata = read_tensors(path)
    check_same(path, str(metadata.get("config")), config)
    load_state(model, {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}, path)
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".")
            states.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": states})
    return int(metadata["step"])
