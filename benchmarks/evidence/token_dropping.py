"""What dropping background patches costs and saves: every figure of a model with all tokens and with foreground only.

    python benchmarks/evidence/token_dropping.py runs/tiny/model --cache runs/cache

The same held-out series go through the encoder and every decoder twice. Times are of the encoder in PyTorch, one
series at a time, both ways in turns; the ratio is the median of the ratios within a series. The spread of a figure is
its standard deviation over bootstrap samples of the series.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
import typing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import Results, open_heads

from decipher_rt.preprocess import Grid
from decipher_rt.tokens import select_tokens
from decipher_rt.train.checkpoint import fingerprint
from decipher_rt.train.decoders.contract import Decoder, Rows, seen_as_encoder
from decipher_rt.train.decoders.tokens import known_of
from decipher_rt.train.sources import Example
from decipher_rt.train.views import UNIT_WINDOW
from decipher_rt.train.weights import load_weights

# The figure that says most of each kind of decoder.
FIGURES = {
    "classification": ("accuracy", "auroc"),
    "regression": ("mae",),
    "segmentation": ("dice",),
    "localisation": ("presence_auroc", "iou"),
}
BOOTSTRAPS = 200


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(2)
    weights = load_weights(options.model)
    model, config = weights.model, weights.config
    source = next(iter(config.sources.values()))
    test = open_heads(source, config.encoder, "test", options.test, options.cache)
    results = Results(options.json, {"test": options.test, "model": fingerprint(model.state_dict())})
    results.part("figures", lambda: both_ways(model, config.encoder.preprocessing, test))
    print(table(results.parts))


@torch.no_grad()
def both_ways(model: Any, spec: Any, test: list[Example]) -> dict[str, Any]:
    """Encode and answer with foreground tokens and with all of them."""
    ways: dict[str, dict[str, list[Any]]] = {
        way: {name: [] for name in model.decoders} for way in ("foreground", "all")
    }
    seconds: dict[str, list[float]] = {"foreground": [], "all": []}
    counts = []
    for example in test:
        volume = example.volume.astype(np.float32)
        kept = select_tokens(Grid(volume, UNIT_WINDOW, np.eye(4)), spec).indices
        counts.append(len(kept))
        for way, tokens in (("foreground", kept), ("all", np.arange(spec.patches))):
            indices = torch.from_numpy(tokens.astype(np.int64))[None]
            voxels, window = torch.from_numpy(volume)[None, None], torch.from_numpy(UNIT_WINDOW)[None]
            began = time.perf_counter()
            patch, embedding = model.encoder(voxels, window, indices)
            seconds[way].append(time.perf_counter() - began)
            image = seen_as_encoder(voxels, window)
            beside = functools.cache(lambda sight, p=patch, i=indices, x=image: sight(p, i, x))
            for name, module in model.decoders.items():
                decoder = typing.cast("Decoder", module)
                known = known_of(example, example.affine_lps_mm, tissue=example.tissue is not None)
                if not decoder.knows(known):
                    continue
                target = decoder.target(known, example.tissue if decoder.reads_tissue else None, tokens)
                batch = {key: torch.from_numpy(np.asarray(value)[None]) for key, value in target.items()}
                sight = model.sights.get(name)
                raw = decoder.raw(beside(sight) if sight else patch, indices, embedding, image)
                ways[way][name].append(decoder.rows(raw, batch, indices))
    figures: dict[str, Any] = {}
    for name, module in model.decoders.items():
        decoder = typing.cast("Decoder", module)
        rows = {way: {k: np.concatenate([row[k] for row in of[name]]) for k in of[name][0]} for way, of in ways.items()}
        measured = {way: flat(decoder, decoder.figures(some)) for way, some in rows.items()}
        rng = np.random.default_rng(0)
        again = (drawn_again(rows["foreground"], rng) for _ in range(BOOTSTRAPS))
        samples = [flat(decoder, decoder.figures(some)) for some in again]
        for key in measured["all"]:
            drawn = [sample[key] for sample in samples if sample.get(key) is not None]
            figures[f"{name}, {key}"] = {
                **{way: measured[way][key] for way in measured},
                "spread": statistics.stdev(drawn),
            }
    ratios = [a / f for a, f in zip(seconds["all"], seconds["foreground"], strict=True)]
    return {
        "time": {
            "tokens_foreground_median": int(statistics.median(counts)),
            "tokens_all": int(spec.patches),
            "ms_foreground_median": round(1000 * statistics.median(seconds["foreground"]), 1),
            "ms_all_median": round(1000 * statistics.median(seconds["all"]), 1),
            "ratio_median": round(statistics.median(ratios), 2),
            "ratio_spread": [round(float(q), 2) for q in np.percentile(ratios, [10, 90])],
        },
        "figures": figures,
    }


def drawn_again(rows: Rows, rng: np.random.Generator) -> Rows:
    """Return as many rows as there are, drawn with putting back: each as likely as another."""
    n = len(next(iter(rows.values())))
    chosen = rng.integers(n, size=n)
    return {name: values[chosen] for name, values in rows.items()}


def flat(decoder: Decoder, figures: dict[str, Any]) -> dict[str, float]:
    """Return the figures that count, the Dice of each tissue by its name."""
    found: dict[str, float] = {}
    for name in FIGURES[decoder.answer]:
        value = figures[name]
        found |= {f"{name} {key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def table(parts: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    found = parts["figures"]
    time, (fewest, most) = found["time"], found["time"]["ratio_spread"]
    lines = ["| figure | foreground | all | spread |", "|---|---|---|---|"]
    for name, row in found["figures"].items():
        lines.append(f"| {name} | {row['foreground']:.3f} | {row['all']:.3f} | {row['spread']:.3f} |")
    lines += [
        f"| tokens, median | {time['tokens_foreground_median']:.0f} | {time['tokens_all']} | |",
        f"| encoder in PyTorch, median in ms | {time['ms_foreground_median']:.0f} | {time['ms_all_median']:.0f} | "
        f"all take {time['ratio_median']:.1f} times as long ({fewest:.1f} to {most:.1f}) |",
    ]
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of train decoder")
    parser.add_argument("--cache", type=Path, default=Path(".cache/samples"))
    parser.add_argument("--test", type=int, default=128)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-token-dropping.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
