"""Other ways to pretrain on images alone: a masked autoencoder, and a convolutional stem, beside the shipped recipe's.

    python benchmarks/evidence/pretraining.py train/configs/tiny/ssl.yaml --cache runs/tiny/cache

Every arm is ``decipher-rt train ssl`` with keys changed, for ``--steps`` steps and every seed, and goes on where it
was killed. A step of a masked autoencoder takes half as long, so that it gets ``--mae-steps``. Probes are those of
``probe.py``, each seed's on its own labelled series; beside them is the encoder as training finds it.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import probe
import torch
from arms import Results, digest, open_heads, pretrained, spread, untrained
from probe import METRICS, probes
from sklearn.exceptions import ConvergenceWarning

from decipher_rt.train.checkpoint import fingerprint
from decipher_rt.train.config import dump_config, load_config
from decipher_rt.train.model.vit import ViT
from decipher_rt.train.progress import Progress
from decipher_rt.train.ssl.config import SSLConfig
from decipher_rt.train.ssl.pretrain import pretrain

UNTRAINED = "untrained, whitened"
CONV = "encoder.stem=conv"
MAE = "method=mae"


def main() -> None:
    """Measure and print."""
    options = arguments()
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(2)
    base = load_config(SSLConfig, options.config, [])
    pool = open_heads(base.source, base.encoder, "train", options.pool, options.cache)
    test = open_heads(base.source, base.encoder, "test", options.test, options.cache)
    arms: dict[str, tuple[int, list[str]]] = {
        "distillation": (options.steps, []),
        "distillation, convolutional stem": (options.steps, [CONV]),
        "masked autoencoder": (options.mae_steps, [MAE]),
        "masked autoencoder, convolutional stem": (options.mae_steps, [MAE, CONV]),
    }
    results = Results(options.json, settings_of(options, base), __file__, probe.__file__)
    for seed in range(options.seeds):
        start = untrained(base.encoder, pool, seed, whitened=True)

        def begin(seed: int = seed, start: ViT = start) -> dict[str, Any]:
            return {"steps": 0, "seconds": 0, "probe": probes(start, pool, test, options, [seed])}

        results.part(f"{UNTRAINED}/{seed}", begin, fingerprint(start.state_dict()))
        for name, (steps, changed) in arms.items():

            def measure(seed: int = seed, name: str = name, steps: int = steps, keys: list[str] = changed) -> Any:
                folder = options.runs / results.key / f"{name.replace(',', '').replace(' ', '-')}-{seed}"
                config = load_config(SSLConfig, options.config, keys)
                every = {"steps": steps, "warmup": max(1, steps // 10), "checkpoint_every": steps}
                run = replace(config.run, seed=seed, **every)
                pretrain(replace(config, run=run), folder, options.cache, Progress())
                figures = probes(pretrained(folder), pool, test, options, [seed])
                return {"steps": steps, "seconds": seconds(folder), "probe": figures}

            results.part(f"{name}/{seed}", measure)
    print(table(results.parts, options.labels))


def settings_of(options: argparse.Namespace, base: SSLConfig) -> dict[str, Any]:
    """Return what figures depend on."""
    return {
        **{name: getattr(options, name) for name in ("steps", "mae_steps", "labels", "pool", "test")},
        "config": digest(dump_config(base)),
    }


def seconds(folder: Path) -> float:
    """Return how long the steps of a run took."""
    with (folder / "log.csv").open(newline="") as log:
        return round(sum(float(row["seconds"]) for row in csv.DictReader(log)), 1)


def table(parts: dict[str, Any], labels: list[int]) -> str:
    """Return the figures as Markdown: a row for each arm and number of labels."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for name, figures in parts.items():
        arms.setdefault(name.rsplit("/", 1)[0], []).append(figures)
    heads = ["arm", "seeds", "steps", "seconds", "labels", *METRICS.values()]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, seeds in arms.items():
        took = [str(len(seeds)), str(seeds[0]["steps"]), spread([one["seconds"] for one in seeds])]
        for n in labels:
            of_n = [v for one in seeds for key, v in one["probe"].items() if key.endswith(f"/{n}")]
            cells = [spread([one[metric] for one in of_n]) for metric in METRICS]
            lines.append("| " + " | ".join([name, *took, str(n), *cells]) + " |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="of train ssl")
    parser.add_argument("--cache", type=Path, default=Path(".cache/samples"))
    parser.add_argument("--runs", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--mae-steps", type=int, default=200)
    parser.add_argument("--labels", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--pool", type=int, default=256)
    parser.add_argument("--test", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-pretraining.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
