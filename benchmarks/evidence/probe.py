"""Few labels: linear probes on frozen encoders beside the same network trained from scratch on those labels.

    python benchmarks/evidence/probe.py runs/tiny/model --cache runs/cache [--anatomy FILE] [--also NAME=FOLDER ...]

At 16, 64 and 256 labelled series, for every seed: which series are labelled, and the start of what is untrained. The
pretrained encoders are one training each. Probes see the embedding beside the mean token, standardised; their penalty
is the same for all encoders (logistic regression C = 0.05, ridge by leave-one-out). From scratch, one network learns
all four tasks at once, ``--steps`` steps of 16 series, on views with as few tokens as those of the alignment: minutes,
beside an hour and a half of pretraining.
Tasks on held-out series: ``lesion`` (AUROC), ``region`` of the largest lesion (AUROC, mean over regions), ``sequence``
(accuracy), ``brain_volume`` (mean absolute error, ml). ``--anatomy`` measures on heads around another brain.
"""

from __future__ import annotations

import argparse
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from arms import Features, Results, anatomy_of, digest, features, open_heads, pretrained, spread, untrained
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from torch import nn

from decipher_rt.train.align.batch import draw_view
from decipher_rt.train.checkpoint import fingerprint
from decipher_rt.train.config import dump_config
from decipher_rt.train.metrics import accuracy, auroc, mean_absolute_error
from decipher_rt.train.model.vit import ViT, ViTConfig
from decipher_rt.train.sources import Example, SourceConfig
from decipher_rt.train.views import ViewConfig

SEQUENCES = ("T1w", "T2w", "PDw", "FLAIR", "T2*w")
REGIONS = (
    "frontal lobe", "parietal lobe", "temporal lobe", "occipital lobe", "cerebellum", "brainstem", "deep grey nuclei",
)  # fmt: skip
METRICS = {
    "sequence": "sequence, accuracy", "lesion": "lesion, AUROC", "region": "region, AUROC",
    "brain_volume": "brain volume, MAE ml",
}  # fmt: skip
ML = 300.0  # brain volumes are learnt in units of this


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore", ConvergenceWarning)
    encoder = pretrained(options.model)
    config = encoder.config
    source = SourceConfig(seed=options.source_seed)
    pool = open_heads(source, config, "train", options.pool, options.cache)
    of_test = replace(source, anatomy=str(options.anatomy)) if options.anatomy else source
    test = open_heads(of_test, config, "test", options.test, options.cache)
    settings = {
        **{name: getattr(options, name) for name in ("labels", "pool", "test", "seeds", "source_seed")},
        "anatomy": anatomy_of(options.anatomy),
        "config": digest(dump_config(config)),
    }
    results = Results(options.json, settings, __file__)
    for name, folder in {"pretrained": options.model, **dict(item.split("=", 1) for item in options.also)}.items():
        trained = pretrained(Path(folder))
        weights = fingerprint(trained.state_dict())
        results.part(name, lambda trained=trained: probes(trained, pool, test, options), weights)
    for name, whitened in (("untrained", False), ("untrained, whitened", True)):
        for seed in range(options.seeds):
            start = untrained(config, pool, seed, whitened=whitened)
            results.part(
                f"{name}/{seed}",
                lambda start=start, seed=seed: probes(start, pool, test, options, [seed]),
                fingerprint(start.state_dict()),
            )
    for seed in range(options.seeds):
        for n in options.labels:
            results.part(
                f"from scratch/{seed}/{n}",
                lambda n=n, seed=seed: {f"{seed}/{n}": from_scratch(config, pool, test, n, seed, options.steps)},
                f"{options.steps} steps",
            )
    print(table(results.parts, options.labels))


def probes(
    encoder: ViT, pool: list[Example], test: list[Example], options: argparse.Namespace, seeds: list[int] | None = None
) -> dict[str, Any]:
    """Return the figures of one encoder by seed and number of labels."""
    train, held_out = features(encoder, pool), features(encoder, test)
    figures = {}
    for seed in range(options.seeds) if seeds is None else seeds:
        for n in options.labels:
            figures[f"{seed}/{n}"] = probe(train, held_out, labelled(len(pool), n, seed), seed)
    return figures


def labelled(pool: int, n: int, seed: int) -> NDArray[np.int64]:
    """Return which series of the pool are labelled: a smaller number of labels is a part of a larger one."""
    return np.random.default_rng([seed, 5]).permutation(pool)[:n]


def probe(train: Features, test: Features, chosen: NDArray[np.int64], seed: int) -> dict[str, float | None]:
    """Fit a probe for every task on the labelled series, and measure it on all of ``test``."""
    mean, scale = train.rows[chosen].mean(axis=0), train.rows[chosen].std(axis=0)
    scale = np.maximum(scale, 1e-3 * scale.max())
    x, x_test = (train.rows[chosen] - mean) / scale, (test.rows - mean) / scale
    labels = [train.labels[i] for i in chosen]

    def scores(name: str, names: tuple[str, ...]) -> NDArray[np.float64]:
        known = [i for i, label in enumerate(labels) if label.get(name) in names]
        y = np.array([names.index(labels[i][name]) for i in known])
        found = np.zeros((len(x_test), len(names)))
        if len(np.unique(y)) < 2:  # so few labels that only one answer was seen
            return found
        fit = LogisticRegression(C=0.05, max_iter=500, random_state=seed).fit(x[known], y)
        found[:, fit.classes_] = fit.predict_proba(x_test)
        return found

    volumes = np.array([label["brain_volume_ml"] for label in labels])
    volume = RidgeCV(np.logspace(0, 5, 11)).fit(x, volumes).predict(x_test)
    return measured(
        test.labels, scores("sequence", SEQUENCES), scores("lesion", ("absent", "present")),
        scores("lesion_region", REGIONS), volume,
    )  # fmt: skip


def measured(
    labels: list[dict[str, Any]],
    sequence: NDArray[np.floating],
    lesion: NDArray[np.floating],
    region: NDArray[np.floating],
    volume: NDArray[np.floating],
) -> dict[str, float | None]:
    """Return the figure of each task."""
    with_lesion = [i for i, label in enumerate(labels) if label.get("lesion_region") in REGIONS]
    truth = np.array([REGIONS.index(labels[i]["lesion_region"]) for i in with_lesion])
    found = {
        "sequence": accuracy(np.array([SEQUENCES.index(x["sequence"]) for x in labels]), sequence),
        "lesion": auroc(np.array([x["lesion"] == "present" for x in labels]), lesion),
        "region": auroc(truth, region[with_lesion]),
        "brain_volume": mean_absolute_error(np.array([x["brain_volume_ml"] for x in labels]), volume),
    }
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


def from_scratch(
    config: ViTConfig, pool: list[Example], test: list[Example], n: int, seed: int, steps: int
) -> dict[str, float | None]:
    """Train encoder and answers on the labelled series alone."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 6])
    chosen = [pool[i] for i in labelled(len(pool), n, seed)]
    encoder = untrained(config, pool, seed, whitened=True).requires_grad_(True)
    width = config.width + config.embedding_size
    answers = nn.Linear(width, len(SEQUENCES) + 1 + len(REGIONS) + 1)
    parameters = [*encoder.parameters(), *answers.parameters()]
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.05, betas=(0.9, 0.98))
    encoder.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 5e-4 * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = [chosen[i] for i in rng.integers(len(chosen), size=16)]
        K = int(rng.integers(96, 289))
        views = [draw_view(one.volume, K, config.preprocessing, ViewConfig(), rng) for one in batch]
        patches, tokens = (torch.from_numpy(np.stack(x)) for x in zip(*views, strict=True))
        patch, embedding = encoder.encode(encoder.project(patches, tokens))
        loss = scratch_loss(answers(torch.cat([embedding, patch.mean(dim=1)], dim=-1)), batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
    seen = features(encoder.eval().requires_grad_(False), test)
    with torch.no_grad():
        said = answers(torch.from_numpy(seen.rows).float())
    sequence, lesion, region, volume = (x.numpy() for x in said.split([len(SEQUENCES), 1, len(REGIONS), 1], dim=1))
    return measured(seen.labels, sequence, lesion[:, 0], region, volume[:, 0] * ML + 2 * ML)


def scratch_loss(said: torch.Tensor, batch: list[Example]) -> torch.Tensor:
    """Return the sum of the losses of the four tasks; region counts where there is a lesion."""
    sequence, lesion, region, volume = said.split([len(SEQUENCES), 1, len(REGIONS), 1], dim=1)
    labels = [one.labels for one in batch]
    where = torch.tensor([REGIONS.index(str(x["lesion_region"])) if "lesion_region" in x else -1 for x in labels])
    loss = F.cross_entropy(sequence, torch.tensor([SEQUENCES.index(str(x["sequence"])) for x in labels]))
    present = torch.tensor([float(x["lesion"] == "present") for x in labels])
    loss = loss + F.binary_cross_entropy_with_logits(lesion[:, 0], present)
    if (where >= 0).any():
        loss = loss + F.cross_entropy(region, where, ignore_index=-1)
    ml = torch.tensor([float(x["brain_volume_ml"]) for x in labels])
    return loss + F.smooth_l1_loss(volume[:, 0], (ml - 2 * ML) / ML)


def table(parts: dict[str, Any], labels: list[int]) -> str:
    """Return the figures as Markdown: a row for each encoder and number of labels."""
    arms: dict[str, dict[str, Any]] = {}
    for name, figures in parts.items():
        arms.setdefault(name.split("/")[0], {}).update(figures)
    heads = ["encoder", "labels", *METRICS.values()]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, figures in arms.items():
        for n in labels:
            of_n = [value for key, value in figures.items() if key.endswith(f"/{n}")]
            cells = [spread([one[metric] for one in of_n]) for metric in METRICS]
            lines.append(f"| {name} | {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of train align or train decoder")
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=FOLDER", help="further pretrained encoders")
    parser.add_argument("--cache", type=Path, default=Path(".cache/samples"))
    parser.add_argument("--anatomy", type=Path, help="skull-stripped T1w NIfTI that test heads are made around")
    parser.add_argument("--labels", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--pool", type=int, default=512, help="training series that the labelled ones are drawn from")
    parser.add_argument("--test", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of a training from scratch")
    parser.add_argument("--source-seed", type=int, default=20)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-probe.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
