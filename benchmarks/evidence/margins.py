"""How much surer a label must be of itself before it is chosen: a segmentation's last label, on validation heads.

    python benchmarks/evidence/margins.py runs/tiny/model --cache runs/tiny/cache

For every whole number that the label's logit is lowered by: its Dice as a mean over the heads that have it and of all
voxels together, and how much of it there is in heads that have none. Whatever ``decoder.options.margins`` the model has
does not count.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import Results, described, open_heads

from decipher_rt.train.decoders.stage import images_of
from decipher_rt.train.decoders.tokens import encode
from decipher_rt.train.weights import load_weights


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(2)
    weights = load_weights(options.model)
    spec, source = weights.config.encoder, weights.config.sources[options.decoder]
    heads = open_heads(source, spec, "validation", options.heads, options.cache)
    settings = {name: getattr(options, name) for name in ("heads", "most", "decoder")}
    results = Results(options.json, {**settings, **described(weights)}, __file__)
    results.part("margins", lambda: measure(weights.model, options.decoder, heads, range(options.most + 1)))
    print(table(results.parts))


@torch.no_grad()
def measure(model: Any, name: str, heads: list[Any], margins: range) -> dict[str, Any]:
    """Return the figures of each margin."""
    decoder, spec = model.decoders[name], model.encoder.config.preprocessing
    last, voxel_ml = len(decoder.labels) - 1, float(np.prod(spec.spacing_mm)) / 1000
    overlaps: dict[int, list[list[int]]] = {margin: [] for margin in margins}  # in both, in either counted twice
    for head in heads:
        (one,) = encode(model.encoder, [head.volume])
        raw = decoder.raw(one.patch[None], one.tokens[None], one.embedding[None], images_of([head]))[0]
        ahead, truth = (raw[-1] - raw[:-1].amax(dim=0)).numpy(), head.tissue == last
        for margin, counts in overlaps.items():
            found = ahead > margin
            counts.append([int((found & truth).sum()), int(found.sum()), int(truth.sum())])
    figures = {}
    for margin, counts in overlaps.items():
        both, found, true = np.array(counts, np.float64).T
        there = true > 0
        figures[str(margin)] = {
            "dice": round(float((2 * both / np.maximum(found + true, 1))[there].mean()), 4),
            "dice_pooled": round(float(2 * both.sum() / max((found + true).sum(), 1)), 4),
            "ml_where_none": round(float(found[~there].mean() * voxel_ml), 3),
        }
    return figures


def table(parts: dict[str, Any]) -> str:
    """Return the figures as Markdown: a row for each margin."""
    lines = ["| margin | Dice, mean over heads | Dice, all voxels | ml in heads without |", "|---|---|---|---|"]
    for margin, row in parts["margins"].items():
        cells = [margin, f"{row['dice']:.3f}", f"{row['dice_pooled']:.3f}", f"{row['ml_where_none']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of train decoder")
    parser.add_argument("--decoder", default="tissue")
    parser.add_argument("--cache", type=Path, default=Path(".cache/samples"))
    parser.add_argument("--heads", type=int, default=96)
    parser.add_argument("--most", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-margins.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
