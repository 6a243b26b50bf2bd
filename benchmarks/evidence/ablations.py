"""What each stage gives: the alignment without self-supervision, without region-wise batches, and no alignment at all.

    python benchmarks/evidence/ablations.py train/configs/tiny/align.yaml --ssl runs/tiny/ssl --text runs/tiny/text \
        --cache runs/cache

Every arm is ``decipher-rt train align`` with one key changed, for ``--steps`` steps and every seed, and goes on where
it was killed. Retrieval is between held-out series and their reports in wordings never trained on; probes are those of
``probe.py``, each seed's on its own ``--labels`` labelled series. Without alignment there is one training, that of
``--ssl``: its rows differ in their labelled series alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import probe
import torch
from arms import Results, digest, open_heads, pretrained, spread
from probe import METRICS, probes
from sklearn.exceptions import ConvergenceWarning

from decipher_rt.train.align.config import AlignConfig
from decipher_rt.train.align.train import align
from decipher_rt.train.checkpoint import fingerprint, folder_fingerprint
from decipher_rt.train.config import dump_config, load_config
from decipher_rt.train.model.vit import ViT
from decipher_rt.train.progress import Progress

RECALLS = {
    **{f"image_to_text_recall@{k}": f"report for an image, Recall@{k}" for k in (1, 5, 10)},
    "text_to_image_recall@10": "image for a report, Recall@10",
}


def main() -> None:
    """Measure and print."""
    options = arguments()
    warnings.simplefilter("ignore", ConvergenceWarning)
    torch.set_num_threads(2)
    base = load_config(AlignConfig, options.config, [])
    started_from = pretrained(options.ssl)
    config = started_from.config
    pool = open_heads(base.source, config, "train", options.pool, options.cache)
    test = open_heads(base.source, config, "test", options.test, options.cache)
    started = [f"encoder_from={options.ssl}", f"text_from={options.text}", f"run.steps={options.steps}"]
    started += [f"run.warmup={options.steps // 10}", f"run.checkpoint_every={options.steps}"]
    # The sizes are those of the encoder of --ssl, which else come with its weights.
    sizes = f"encoder={json.dumps(dataclasses.asdict(config))}"
    arms = {
        "all": [],
        "without self-supervision": ["encoder_from=", sizes],
        "without region-wise batches": ["by_region=0"],
    }
    results = Results(options.json, settings_of(options, base, started_from), __file__, probe.__file__)
    for seed in range(options.seeds):

        def begin(seed: int = seed) -> dict[str, Any]:
            return {"probe": probes(started_from, pool, test, options, [seed])}

        results.part(f"without alignment/{seed}", begin)
        for name, changed in arms.items():

            def measure(seed: int = seed, name: str = name, changed: list[str] = changed) -> dict[str, Any]:
                settings = load_config(AlignConfig, options.config, [*started, f"run.seed={seed}", *changed])
                folder = options.runs / results.key / f"{name.replace(' ', '-')}-{seed}"
                recall = align(settings, folder, options.cache, Progress())
                return {"retrieval": recall, "probe": probes(pretrained(folder), pool, test, options, [seed])}

            results.part(f"{name}/{seed}", measure)
    print(table(results.parts, options.labels))


def settings_of(options: argparse.Namespace, base: AlignConfig, started_from: ViT) -> dict[str, Any]:
    """Return what figures depend on."""
    return {
        **{name: getattr(options, name) for name in ("steps", "labels", "pool", "test")},
        "config": digest(dump_config(base), dump_config(started_from.config)),
        "ssl": fingerprint(started_from.state_dict()),
        "text": folder_fingerprint(options.text),
    }


def table(parts: dict[str, Any], labels: list[int]) -> str:
    """Return the figures as Markdown: a row for each arm and number of labels."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for name, figures in parts.items():
        arms.setdefault(name.split("/")[0], []).append(figures)
    heads = [*RECALLS.values(), "labels", *METRICS.values()]
    lines = ["| arm | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, seeds in arms.items():
        recalls = [spread([one["retrieval"][r] for one in seeds]) if "retrieval" in seeds[0] else "-" for r in RECALLS]
        for n in labels:
            of_n = [v for one in seeds for key, v in one["probe"].items() if key.endswith(f"/{n}")]
            cells = [spread([one[metric] for one in of_n]) for metric in METRICS]
            lines.append(f"| {name} | " + " | ".join([*recalls, str(n), *cells]) + " |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="of train align")
    parser.add_argument("--ssl", type=Path, required=True, help="folder of train ssl")
    parser.add_argument("--text", type=Path, required=True, help="folder of train text")
    parser.add_argument("--cache", type=Path, default=Path(".cache/samples"))
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--labels", type=int, nargs="+", default=[64])
    parser.add_argument("--pool", type=int, default=256)
    parser.add_argument("--test", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-ablations.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
