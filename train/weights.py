"""Weights folders: ``model.safetensors`` and ``config.yaml``; training ends with one and export starts from one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from decipher_rt.atomic import write_text

from .checkpoint import CONFIG, WEIGHTS, CheckpointError, load_state, read_metadata, read_tensors, write_tensors
from .config import ConfigError, build_config, dump_config, load_config, read_document
from .model.recipe import RecipeConfig, RecipeModel
from .model.text import TextConfig
from .model.vit import ViTConfig
from .progress import Progress
from .sources import SourceConfig, Split, keys_of_others, patients_of, seen_again

KIND = "model"  # key of ``config.yaml`` that a whole model has, and no single stage
# Keys of the metadata: hashes of the patients that a stage, or one that it stands upon, was trained on; and of those
# that each decoder of a model was, and its scope.
PATIENTS, PATIENTS_OF_DECODERS, SCOPE = "patients", "patients_of_decoders", "scope"


@dataclass(frozen=True)
class Weights:
    """A model, its configuration, and what was measured of it and whence it comes in ``metadata``."""

    model: RecipeModel
    config: RecipeConfig
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """What a stage of the recipe left that later ones build on.

    Attributes
    ----------
    encoder : sizes of the encoder
    text : sizes of the text tower, where the folder has one
    recipe : the whole configuration, where ``train decoder`` wrote the folder
    tensors : of the weights file
    metadata : of the weights file
    """

    encoder: ViTConfig
    text: TextConfig | None
    recipe: RecipeConfig | None
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]


def save_weights(folder: Path, weights: Weights) -> None:
    """Write a weights folder."""
    write_tensors(folder / WEIGHTS, weights.model.state_dict(), weights.metadata)
    write_text(folder / CONFIG, dump_config(weights.config))


def load_weights(folder: Path) -> Weights:
    """Read the weights folder of a model that can be exported.

    Raises
    ------
    CheckpointError, ConfigError
        Naming the file, and the key or tensor that does not fit.
    """
    tensors, metadata = read_tensors(folder / WEIGHTS)
    document = read_document(folder / CONFIG)
    if KIND not in document:
        what = "a stage of the recipe, which answers nothing yet" if "source" in document else "no model"
        raise CheckpointError(f"{folder}: {what} ({CONFIG} has no key {KIND!r}); give the folder of 'train decoder'")
    config = load_config(RecipeConfig, folder / CONFIG)
    try:
        model = RecipeModel(config)
    except ValueError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from None
    load_state(model, tensors, folder / WEIGHTS)
    return Weights(model.eval().requires_grad_(False), config, metadata)


def check_splits(source: SourceConfig, folder: Path) -> None:
    """Raise ConfigError where a source would test or validate on patients that a folder's stage was trained on.

    What was trained elsewhere, such as a BERT, says nothing of its patients. Where a stage does not say them, what was
    drawn for it has to be drawn again.
    """
    if not (folder / CONFIG).exists():
        return
    document = read_document(folder / CONFIG)
    sources = document.get("sources") or {}
    if not isinstance(sources, dict):
        raise ConfigError(f"{folder / CONFIG}: sources is {type(sources).__name__}, expected keys and values")
    listed = [one for one in (document.get("source"), *sources.values()) if one is not None]
    try:
        earlier = [build_config(SourceConfig, one, "source") for one in listed]
    except ValueError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from None
    metadata = stage_metadata(folder)
    if not metadata.keys() & {PATIENTS, PATIENTS_OF_DECODERS}:
        try:
            for one in earlier:
                source.check_splits(one, str(folder))
        except ValueError as error:
            raise ConfigError(str(error)) from None
    check_patients(source, metadata, str(folder), "validation", "test")


def check_patients(
    source: SourceConfig, metadata: Mapping[str, Any], where: str, *splits: Split, decoders: Iterable[str] = ()
) -> None:
    """Raise ConfigError where splits of a source hold patients that a stage, or some of its decoders, was trained on.

    Parameters
    ----------
    metadata, where : of the stage's weights, and its folder
    decoders : names of those that what is tested hangs on, or ``SCOPE``
    """
    of_decoders = metadata.get(PATIENTS_OF_DECODERS, {})
    earlier = {*metadata.get(PATIENTS, ())}.union(*(of_decoders.get(name, ()) for name in decoders))
    if not earlier:
        return
    if again := seen_again(source, earlier, *splits):
        raise ConfigError(
            f"{source.path}: {len(again)} patients of its {' or '.join(splits)} split were trained on in {where}; list "
            "them in split train, leave them out, or give the source.seed and source.shares they were drawn by; if "
            "they are other people with the same keys, name them: source.cohort=NAME"
        )
    if alike := keys_of_others(source, earlier, *splits):
        Progress().warn(
            f"{source.path}: {alike} patients of its {' or '.join(splits)} split have the keys of some that {where} "
            "was trained on, in a data set of another Name (dataset_description.json); if they are the same people, "
            "give that Name: source.cohort=NAME"
        )


def stage_metadata(folder: Path) -> Mapping[str, Any]:
    """Return the metadata of a stage's weights; none of what was trained elsewhere, such as a BERT."""
    return read_metadata(folder / WEIGHTS) if (folder / CONFIG).exists() else {}


def trained_on(source: SourceConfig, *earlier: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the metadata that say whom a stage was trained on; empty where these are nobody, as the simulator's.

    Parameters
    ----------
    earlier : metadata of the stages that it stands upon
    """
    found = patients_of(source, "train").union(*(metadata.get(PATIENTS, ()) for metadata in earlier))
    return {PATIENTS: sorted(found)} if found else {}


def load_stage(folder: Path) -> Stage:
    """Read what a decoder is trained on top of: the folder of any stage that has an image encoder.

    Raises
    ------
    CheckpointError, ConfigError
        Naming the file and what is missing.
    """
    tensors, metadata = read_tensors(folder / WEIGHTS)
    document = read_document(folder / CONFIG)
    if not any(name.startswith("encoder.") for name in tensors) or "encoder" not in document:
        raise CheckpointError(
            f"{folder / WEIGHTS}: holds no image encoder; give the folder of train ssl, align or decoder"
        )
    if KIND in document:
        recipe = load_config(RecipeConfig, folder / CONFIG)
        return Stage(recipe.encoder, recipe.text, recipe, tensors, metadata)
    has_text = any(name.startswith("text.") for name in tensors)
    try:
        encoder = build_config(ViTConfig, document["encoder"], "encoder")
        text = build_config(TextConfig, document["text"], "text") if has_text and "text" in document else None
    except ValueError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from None
    return Stage(encoder, text, None, tensors, metadata)
