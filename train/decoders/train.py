"""Training of decoders on a frozen encoder: tokens once, then the loop, calibration, figures, and a weights folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from decipher_rt.atomic import write_bytes
from decipher_rt.errors import DecipherError
from decipher_rt.manifest import Preprocessing

from .. import distributed
from ..checkpoint import CONFIG, WEIGHTS, CheckpointError, fingerprint, load_state, read_tensors
from ..config import ConfigError, dump_config
from ..golden import GOLDEN, golden_case, save_golden
from ..loop import run
from ..model.recipe import RecipeConfig, RecipeModel
from ..model.scope import Scope
from ..model.vit import ViT, ViTConfig
from ..progress import Progress
from ..samples import SPLITS, Split
from ..scope import ScopeConfig, Seen, fit_scope
from ..sources import SourceConfig, listed_rows, patients_of, pinned, seen_again
from ..weights import (
    PATIENTS_OF_DECODERS,
    SCOPE,
    Stage,
    Weights,
    check_patients,
    check_splits,
    load_stage,
    save_weights,
    trained_on,
)
from .config import DecoderRunConfig
from .contract import Decoder
from .evaluate import scope_figures, test_count
from .kinds.segmentation import Segmentation
from .registry import LOCALISATION, SEGMENTATION, build_decoder
from .sight import Sight
from .splits import EncodedSplit, best_device, encode_others, encode_split
from .stage import DecoderStage, answer_rows
from .truth import check_listed, warn_of_boxes

FITTED_ON: tuple[Split, ...] = ("train", "validation")  # a scope
MORE_HEADS = "list more series, lower scope.neighbours, or fit none (scope=)"
RUNS = "decoders"  # folder of the runs, in the output
TOKENIZER = "tokenizer.json"
BY_DECODER = ("metrics", "provenance", PATIENTS_OF_DECODERS)  # keys of the metadata that hold something for each


class FrozenEncoderError(DecipherError):
    """The encoder's weights are not what they were before a decoder was trained. The message names both sums."""


def train_decoder(config: DecoderRunConfig, folder: Path, cache_dir: Path, progress: Progress) -> Weights | None:
    """Train one decoder and leave a model that has it.

    Parameters
    ----------
    config : DecoderRunConfig
    folder : Path
        Becomes a weights folder, or is one of the same encoder, whose other decoders are kept; ``decoders/<name>`` in
        it holds the run, with its log and curve.
    cache_dir : Path
        Where series and tokens are kept.
    progress : Progress

    Returns
    -------
    Weights or None
        None in all processes of a run but the first.

    Raises
    ------
    FrozenEncoderError
        If the encoder's weights differ from those before.
    CheckpointError
        If the folder holds a model of another encoder.
    ConfigError
        Where no series has the truth that the decoder needs, the scope cannot be fitted, or a patient would be tested
        on whom the encoder, or the segmentation that the decoder stands upon, was trained on.
    """
    torch.set_num_threads(config.run.threads)
    source = Path(config.encoder)
    base = load_stage(source)
    check_splits(config.source, source)
    encoder = load_encoder(base, source)
    before = fingerprint(encoder.state_dict())
    grown = _grown(folder, before)
    whom = trained_on(SourceConfig(), base.metadata, grown.metadata if grown else {})  # what the encoder saw
    if grown and base.recipe and (lacking := _names(base) - _names(grown)):
        progress.warn(f"{folder} has no {', '.join(sorted(lacking))}, which {source} has: they are not taken over")
    base = leave_out(grown or base, config.without, progress)
    where = str(folder if grown else source)
    check_patients(config.source, base.metadata, where, "validation", "test", decoders=[config.decoder.upon])
    _warn_of_overlap(config, base, progress)
    sight = _sight(config, base, source)
    try:
        check_listed(config.decoder, config.source, base.encoder, sight.size if sight else 0, progress)
    except ValueError as error:
        raise ConfigError(f"decoder {config.decoder.name}: {error}") from None
    _check_scope(config)
    splits = {
        split: encode_split(encoder, config.source, split, cache_dir, config.workers, progress) for split in SPLITS
    }
    if config.decoder.kind == LOCALISATION and config.source.kind != "simulator":
        for split, one in splits.items():
            warn_of_boxes(config.decoder.name, split, one.tokens.known, base.encoder.preprocessing.grid_shape, progress)
    if sight:
        splits = {split: one.sighted(sight, cache_dir, progress) for split, one in splits.items()}
    decoder, provenance = _optimise(config, base.encoder, sight, splits["train"], folder, before, progress)
    if distributed.rank() != 0:
        return None
    progress.say(f"calibrating and measuring {config.decoder.name}")
    validation = answer_rows(decoder, splits["validation"].tokens, splits["validation"].examples)
    if validation:
        decoder.calibrate(validation)
    test = answer_rows(decoder, splits["test"].tokens, splits["test"].examples)
    metrics = {**base.metadata.get("metrics", {}), config.decoder.name: decoder.figures(test) if test else None}
    model, left = compose(config, base, source, decoder)
    if left:
        progress.warn(f"{', '.join(left)} left out: upon another {config.decoder.name}; train again")
        metrics = {name: figures for name, figures in metrics.items() if name not in left}
    if config.scope is not None:
        settings, heads, tests = config.scope, config.source, [splits["test"]]
        train = splits["train"].seen(settings.label)
        if settings.others and config.source.kind != "simulator":
            progress.warn(
                f"scope.others is {settings.others}: they are simulated and the heads recorded, and the scope learns "
                "that difference as well; set scope.others=0"
            )
        if settings.others:
            others = encode_others(encoder, settings.others, heads, "train", cache_dir, config.workers, progress)
            train += others.seen("")
            tests.append(
                encode_others(encoder, test_count(settings), heads, "test", cache_dir, config.workers, progress)
            )
        validated = splits["validation"].seen(settings.label)
        found, model.scope = _fit_scope(config, settings, train, validated, progress)
        model.config = replace(model.config, scope=found, scope_source=config.source.located(), subject=config.subject)
        metrics["scope"] = scope_figures(model.scope, tests)
    written = Weights(
        model,
        model.config,
        {
            "metrics": metrics,
            "provenance": {n: p for n, p in _provenance(base).items() if n not in left}
            | {config.decoder.name: provenance},
            "encoder_sha256": before,
            **whom,
            PATIENTS_OF_DECODERS: _patients(config, base, left),
        },
    )
    save_weights(folder, written)
    prove_frozen(folder, before)
    _accompany(folder, source, base.encoder.preprocessing, config.source.seed)
    return written


def load_encoder(stage: Stage, folder: Path) -> ViT:
    """Return a stage's encoder, frozen, on the GPU where there is one."""
    encoder = ViT(stage.encoder)
    own = {n.removeprefix("encoder."): t for n, t in stage.tensors.items() if n.startswith("encoder.")}
    load_state(encoder, own, folder / WEIGHTS)
    return encoder.requires_grad_(False).eval().to(best_device())


def _grown(folder: Path, encoder: str) -> Stage | None:
    """Return what the output folder holds already; None where there is nothing yet."""
    if not (folder / WEIGHTS).exists() or not (folder / CONFIG).exists():
        return None
    stage = load_stage(folder)
    if _fingerprint_of(stage.tensors) != encoder:
        raise CheckpointError(f"{folder}: holds a model of another encoder; give another output folder or remove it")
    return stage


def _names(stage: Stage) -> set[str]:
    """Return the names of a stage's decoders."""
    return {decoder.name for decoder in stage.recipe.decoders} if stage.recipe else set()


def _fingerprint_of(tensors: Mapping[str, Tensor]) -> str:
    return fingerprint({n.removeprefix("encoder."): t for n, t in tensors.items() if n.startswith("encoder.")})


def prove_frozen(folder: Path, before: str) -> None:
    """Raise FrozenEncoderError unless the encoder in a weights folder has the fingerprint ``before``."""
    tensors, _ = read_tensors(folder / WEIGHTS)
    after = _fingerprint_of(tensors)
    if after != before:
        raise FrozenEncoderError(
            f"{folder / WEIGHTS}: the encoder was {before[:12]} before decoder training and is {after[:12]} after it; "
            "do not use these weights, and report it"
        )


def compose(
    config: DecoderRunConfig, base: Stage, source: Path, decoder: Decoder
) -> tuple[RecipeModel, tuple[str, ...]]:
    """Return the model that a stage and one more decoder make; a decoder of the same name is replaced.

    What stood upon the replaced one is left out, by the names that are returned, unless the new one is the same. So is
    what has no tensors: the command that left it out was killed before the configuration was written. The scope goes
    where another one is to be fitted.
    """
    name, recipe, prefix = config.decoder.name, base.recipe, f"decoders.{config.decoder.name}."
    added = {f"{prefix}{n}": t.cpu() for n, t in decoder.state_dict().items()}
    replaced = {n: t for n, t in base.tensors.items() if n.startswith(prefix)}
    same = fingerprint(replaced) == fingerprint(added)
    there = recipe.decoders if recipe else ()
    absent = {d.name for d in there if not any(n.startswith(f"decoders.{d.name}.") for n in base.tensors)} - {name}
    left = tuple(d.name for d in there if d.name in absent or (d.upon == name and not same))
    decoders = tuple(config.decoder if d.name == name else d for d in there if d.name not in left)
    if not same or config.decoder not in decoders:  # what it stands upon may come after its old place
        decoders = (*(d for d in decoders if d.name != name), config.decoder)
    composed = RecipeConfig(
        model="recipe",
        name=config.name,
        version=config.version,
        encoder=base.encoder,
        text=base.text,
        decoders=decoders,
        sources={d.name: recipe.sources[d.name] for d in decoders if recipe and d.name != name}
        | {name: config.source.located()},
        scope=recipe.scope if recipe and not config.scope else None,
        scope_source=recipe.scope_source if recipe else None,
        threads=config.run.threads,
        workers=config.workers,
        licence=config.licence,
        intended_use=config.intended_use,
        subject=recipe.subject if recipe else "",
    )
    model = RecipeModel(composed)
    wanted = model.state_dict()
    kept = {n: t for n, t in base.tensors.items() if n in wanted and not n.startswith(prefix)}
    load_state(model, kept | added, source / WEIGHTS)
    return model.eval(), left


def leave_out(stage: Stage, names: Sequence[str], progress: Progress) -> Stage:
    """Return a stage without some of its decoders, and without those that stand upon them."""
    if unknown := set(names).difference(d.name for d in (stage.recipe.decoders if stage.recipe else ())):
        progress.warn(f"without: the model has no decoder {', '.join(sorted(unknown))}")
    if stage.recipe is None:
        return stage
    gone = {d.name for d in stage.recipe.decoders if d.name in names or d.upon in names}
    kept = tuple(d for d in stage.recipe.decoders if d.name not in gone)
    about = {
        key: {n: v for n, v in value.items() if n not in gone} if key in BY_DECODER else value
        for key, value in stage.metadata.items()
    }
    return replace(stage, recipe=replace(stage.recipe, decoders=kept), metadata=about)


def _warn_of_overlap(config: DecoderRunConfig, base: Stage, progress: Progress) -> None:
    """Say where a decoder would learn from what a segmentation answers of its own training patients."""
    upon = config.decoder.upon
    learned = base.metadata.get(PATIENTS_OF_DECODERS, {}).get(upon, ())
    if learned and (again := seen_again(config.source, learned, "train")):
        progress.warn(
            f"decoder {config.decoder.name}: {upon} was trained on {len(again)} patients of its train split, and is "
            "surer of them than of others, which it learns to rely on; list other patients for one of the two"
        )


def _sight(config: DecoderRunConfig, base: Stage, source: Path) -> Sight | None:
    """Return what the decoder finds beside the tokens: what the segmentation sees that it stands upon."""
    upon, recipe = config.decoder.upon, base.recipe
    if not upon:
        return None
    there = {d.name: d for d in recipe.decoders if d.kind == SEGMENTATION} if recipe else {}
    if upon not in there:
        raise ConfigError(
            f"decoder.upon is {upon!r}, expected a segmentation that the model has: "
            f"{', '.join(there) or 'it has none'}; train it first"
        )
    prefix = f"decoders.{upon}."
    segmentation = build_decoder(there[upon], base.encoder)
    own = {n.removeprefix(prefix): t for n, t in base.tensors.items() if n.startswith(prefix)}
    load_state(segmentation, own, source / WEIGHTS)
    return Sight(cast("Segmentation", segmentation.requires_grad_(False).eval().to(best_device())))


def _optimise(
    config: DecoderRunConfig,
    encoder: ViTConfig,
    sight: Sight | None,
    train: EncodedSplit,
    folder: Path,
    before: str,
    progress: Progress,
) -> tuple[Decoder, Mapping[str, Any]]:
    """Run the loop, or find that it has been run, and return the trained decoder and where it comes from."""
    torch.manual_seed(config.run.seed)
    beside = sight.size if sight else 0
    try:
        decoder = build_decoder(config.decoder, encoder, beside)
        stage = DecoderStage(decoder, train.tokens, train.examples, config.run.batch, config.run.seed)
        stage.start()
    except ValueError as error:
        raise ConfigError(f"decoder {config.decoder.name}: {error}") from None
    run_folder = folder / RUNS / config.decoder.name
    # The run belongs to the weights of what it stands upon and to what the source lists, wherever these lie.
    below = fingerprint(sight.segmentation.state_dict()) if sight else ""
    identity = replace(
        config, encoder=before, decoder=replace(config.decoder, upon=below), source=pinned(config.source)
    )
    run(stage, config.run, run_folder, dump_config(identity, but=config.UNTRAINED), progress)
    if distributed.rank() != 0:
        return decoder, {}
    tensors, metadata = read_tensors(run_folder / WEIGHTS)
    trained = build_decoder(config.decoder, encoder, beside)
    load_state(trained, tensors, run_folder / WEIGHTS)
    return trained.eval().to(best_device()), metadata.get("provenance", {})


def _check_scope(config: DecoderRunConfig) -> None:
    """Refuse a manifest or BIDS folder that lists too few series to fit the scope to, before any of them is read."""
    least = config.scope.neighbours + 1 if config.scope else 0
    for split in FITTED_ON:
        listed = listed_rows(config.source, split)
        if listed is not None and len(listed) < least:
            raise ConfigError(
                f"scope: {len(listed)} series of the {split} split are too few, expected {least} or more; {MORE_HEADS}"
            )


def _fit_scope(
    config: DecoderRunConfig, settings: ScopeConfig, train: Seen, validation: Seen, progress: Progress
) -> tuple[ScopeConfig, Scope]:
    try:
        return fit_scope(settings, train, validation, progress)
    except ValueError as error:
        simulated = config.source.kind == "simulator"
        more = "raise source.train and source.validation" if simulated else MORE_HEADS
        raise ConfigError(f"{error}; {more}") from None


def _provenance(base: Stage) -> dict[str, Any]:
    """Return where a stage comes from: that of every decoder so far, or that of the encoder."""
    provenance = dict(base.metadata.get("provenance", {}))
    return provenance if base.recipe else {"encoder": provenance}


def _patients(config: DecoderRunConfig, base: Stage, left: Sequence[str]) -> dict[str, list[str]]:
    """Return hashes of the patients that each decoder of the model was trained on, and its scope, by name."""
    trained = {config.decoder.name, SCOPE} if config.scope else {config.decoder.name}
    kept = base.metadata.get(PATIENTS_OF_DECODERS, {})
    found = sorted(patients_of(config.source, "train"))
    return {n: p for n, p in kept.items() if n not in trained.union(left)} | dict.fromkeys(sorted(trained), found)


def _accompany(folder: Path, source: Path, spec: Preprocessing, seed: int) -> None:
    """Put what an export needs beside the weights: the tokenizer of the text tower, and the golden case."""
    for name in (TOKENIZER, GOLDEN):
        if (source / name).exists() and not (folder / name).exists():
            write_bytes(folder / name, (source / name).read_bytes())
    if not (folder / GOLDEN).exists():
        save_golden(folder, golden_case(spec, seed))
