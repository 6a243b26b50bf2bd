"""Training of the first model: supervised by the simulator's labels, all heads at once.

simulate -> train -> fit temperatures and scope on validation series -> evaluate on test series -> weights folder.
Every stage goes on where it was killed. Everything random follows from the seed and the number of the sample or step,
so no random state is kept.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .checkpoint import load_training, save_training
from .config import dump_config
from .evaluate import evaluate
from .first_config import FirstConfig, LossConfig, OptimiserConfig
from .golden import save_golden, simulate_golden
from .log import StepLog, draw_curve
from .model.first import FirstModel
from .model.whiten import whiten_patch_embed
from .progress import Progress
from .samples import SPLITS, Samples, SampleSource, SeriesStore, Split, make_samples
from .schedule import draw_indices
from .scope import fit_scope, fit_temperatures
from .views import Batch, training_batch
from .weights import Weights, save_weights

_MATRIX_AXES = (2, 5)  # of a linear map and of a convolution
EVIDENCE_WEIGHT = 8.0  # of a lesion token: about one token in fifty holds one
WHITEN_BATCHES = 8
VIEW = 2  # what the generator is for, beside the seed


def train_first(config: FirstConfig, folder: Path, cache_dir: Path, progress: Progress) -> Weights:
    """Train, calibrate, evaluate, and leave a weights folder.

    Parameters
    ----------
    config : FirstConfig
    folder : Path
        Gets ``model.safetensors``, ``config.yaml``, ``golden.npz``, ``log.csv``, ``curve.png``, and while it runs
        ``training.safetensors``.
    cache_dir : Path
        Where simulated series are kept.
    progress : Progress

    Raises
    ------
    CheckpointError
        If the folder holds a run of another configuration.
    """
    torch.set_num_threads(config.threads)
    start = time.monotonic()
    splits = simulated(config, cache_dir, progress)
    simulated_s = time.monotonic() - start
    model = optimise(config, splits["train"], folder, progress)
    trained_s = time.monotonic() - start - simulated_s
    progress.say("fitting temperatures and scope")
    fit_temperatures(model, splits["validation"])
    fit_scope(model, splits["train"], splits["validation"], config.false_refusals)
    metrics = evaluate(model, splits["test"], config)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "nilearn")}
    # Only what this call did: a resumed run says less than the whole took.
    provenance = {
        "simulated_s": round(simulated_s),
        "trained_s": round(trained_s),
        "threads": config.threads,
        "packages": versions,
    }
    weights = Weights(model, config, {"metrics": metrics, "provenance": provenance})
    save_weights(folder, weights)
    save_golden(folder, simulate_golden(config))
    draw_curve(folder / "log.csv", folder / "curve.png")
    (folder / "training.safetensors").unlink(missing_ok=True)
    return weights


def simulated(
    config: FirstConfig, cache_dir: Path, progress: Progress, splits: Sequence[Split] = SPLITS
) -> dict[Split, Samples]:
    """Return the configuration's series by split, simulating those that are not on disk."""
    source = SampleSource(config.seed, config.samples.not_heads, config.encoder.preprocessing)
    found: dict[Split, Samples] = {}
    for split in splits:
        count = getattr(config.samples, split)
        with progress.bar(f"simulating {split}", count) as advance_to:
            found[split] = make_samples(source, split, count, cache_dir, config.workers, advance_to)
    return found


def optimise(config: FirstConfig, samples: SeriesStore, folder: Path, progress: Progress) -> FirstModel:
    """Run the optimisation steps, from the last checkpoint in ``folder`` if there is one."""
    torch.manual_seed(config.seed)
    model = FirstModel(config.encoder)
    optimiser = _adamw(model, config.optimiser)
    checkpoint = folder / "training.safetensors"
    text = dump_config(config)
    if checkpoint.exists():
        first = load_training(checkpoint, model, optimiser, text)
    else:
        first = 0
        _whiten(model, samples, config)
    log = StepLog(folder / "log.csv", first)
    batches = _batches(samples, config, first)
    with progress.bar("training", config.optimiser.steps) as advance_to:
        for step in range(first, config.optimiser.steps):
            start = time.monotonic()
            losses = _step(model, optimiser, next(batches), config, step)
            log.add(step, {**losses, "rate": _rate(config.optimiser, step), "seconds": time.monotonic() - start})
            advance_to(step + 1)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.optimiser.steps:
                log.write()
                save_training(checkpoint, model, optimiser, step + 1, text)
    return model.eval()


def _whiten(model: FirstModel, samples: SeriesStore, config: FirstConfig) -> None:
    """Start the patch embedding from what the first batches hold."""
    if isinstance(model.encoder.patch_embed, nn.Linear):
        batches = itertools.islice(_batches(samples, config, 0), WHITEN_BATCHES)
        whiten_patch_embed(model.encoder.patch_embed, torch.cat([batch.patches.flatten(0, 1) for batch in batches]))


def losses(model: FirstModel, batch: Batch, weights: LossConfig, *, bf16: bool) -> dict[str, Tensor]:
    """Return every loss of a batch and their weighted sum ``loss``.

    ``sequence`` and ``lesion`` are asked of heads only; ``headness`` of everything. A batch without heads gives
    zeros.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = model(model.encoder.project(batch.patches, batch.tokens))
    out = {name: tensor.float() for name, tensor in out.items()}
    head = batch.head
    heads = head.sum().clamp_min(1.0)
    sequence = F.cross_entropy(out["sequence"], batch.sequence.clamp_min(0), reduction="none", label_smoothing=0.02)
    lesion = F.binary_cross_entropy_with_logits(out["lesion"], batch.lesion, reduction="none")
    known = (batch.lesion_tokens >= 0).float() * head.unsqueeze(1)
    evidence = F.binary_cross_entropy_with_logits(
        out["evidence"], batch.lesion_tokens.clamp_min(0), pos_weight=torch.tensor(EVIDENCE_WEIGHT), reduction="none"
    )
    tissue = F.binary_cross_entropy_with_logits(out["tissue"], batch.tissue, reduction="none").mean(dim=(1, 2))
    parts = {
        "sequence": (sequence * head).sum() / heads,
        "lesion": (lesion * head).sum() / heads,
        "evidence": (evidence * known).sum() / known.sum().clamp_min(1.0),
        "tissue": (tissue * head).sum() / heads,
        "headness": F.binary_cross_entropy_with_logits(out["headness"], head),
    }
    total = parts["sequence"] + sum(getattr(weights, name) * part for name, part in parts.items() if name != "sequence")
    return {"loss": total, **parts}


def _batches(samples: SeriesStore, config: FirstConfig, first: int) -> Iterator[Batch]:
    """Yield the batch of every step from ``first`` on; the next one is made in a thread while a step computes."""
    settings = config.optimiser

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([config.seed, VIEW, step])
        series = [samples[i] for i in draw_indices(config.seed, len(samples), step, settings.batch)]
        whole = step >= settings.whole_from * settings.steps
        return training_batch(series, config.encoder.preprocessing, config.augment, rng, whole=whole)

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(batch, first)
        for step in range(first, settings.steps):
            ready = coming.result()
            if step + 1 < settings.steps:
                coming = pool.submit(batch, step + 1)
            yield ready


def _step(
    model: FirstModel, optimiser: torch.optim.Optimizer, batch: Batch, config: FirstConfig, step: int
) -> dict[str, float]:
    settings = config.optimiser
    for group in optimiser.param_groups:
        group["lr"] = _rate(settings, step) * group["scale"]
    model.train()
    parts = losses(model, batch, config.losses, bf16=config.bf16)
    optimiser.zero_grad(set_to_none=True)
    parts["loss"].backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip, error_if_nonfinite=True)
    optimiser.step()
    return {name: float(value.detach()) for name, value in {**parts, "gradient_norm": norm}.items()}


def _rate(settings: OptimiserConfig, step: int) -> float:
    warm = min(1.0, (step + 1) / max(settings.warmup, 1))
    done = max(0, step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.rate * warm * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _adamw(model: FirstModel, settings: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW; biases, gains, norms and learned tokens are not decayed, and the patch projection learns more slowly.

    Adam moves every weight by the same amount, and the 512 voxels of a patch mostly rise and fall together: at the
    full rate one step moves every token by about its own size (arXiv 2203.03466: rates fall with fan-in; 2104.02057).
    """
    stem = model.encoder.patch_embed
    embed = [stem.weight] if isinstance(stem, nn.Linear) else []
    matrices = [p for p in model.parameters() if p.ndim in _MATRIX_AXES and not any(p is e for e in embed)]
    others = [p for p in model.parameters() if p.ndim not in _MATRIX_AXES]
    scale = min(1.0, embed[0].shape[0] / embed[0].shape[1]) if embed else 1.0
    groups = [
        {"params": embed, "weight_decay": settings.weight_decay, "scale": scale},
        {"params": matrices, "weight_decay": settings.weight_decay, "scale": 1.0},
        {"params": others, "weight_decay": 0.0, "scale": 1.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98))
