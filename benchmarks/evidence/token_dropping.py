"""What dropping background patches costs and saves: every figure of a model with all tokens and with foreground only.

    python benchmarks/evidence/token_dropping.py runs/tiny/model --cache runs/cache

The same held-out series go through the encoder and every decoder, the scope and retrieval twice. Times are of the
encoder in PyTorch, one head at a time, both ways in turns; the ratio is the median of the ratios within a series. The
spread of a figure is its standard deviation over bootstrap samples of the series; that of recall is the binomial one.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import Results, described, open_heads, open_others
from numpy.typing import NDArray
from torch import Tensor

from decipher_rt.preprocess import Grid
from decipher_rt.tokens import select_tokens
from decipher_rt.train.align.embed import embed_texts
from decipher_rt.train.align.retrieval import retrieval
from decipher_rt.train.decoders.contract import Decoder, Rows, seen_as_encoder
from decipher_rt.train.decoders.tokens import known_of
from decipher_rt.train.metrics import auroc
from decipher_rt.train.model.scope import Scope
from decipher_rt.train.sources import Example
from decipher_rt.train.text.tokenizer import load_tokenizer
from decipher_rt.train.views import UNIT_WINDOW
from decipher_rt.train.weights import Weights, load_weights

# The figure that says most of each kind of decoder.
FIGURES = {
    "classification": ("accuracy", "auroc"),
    "regression": ("mae",),
    "segmentation": ("dice",),
    "localisation": ("presence_auroc", "centre_error_mm", "iou"),
}
WAYS = ("foreground", "all")
BOOTSTRAPS = 200


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(2)
    weights = load_weights(options.model)
    model, config = weights.model, weights.config
    source = next(iter(config.sources.values()))
    heads = open_heads(source, config.encoder, "test", options.test, options.cache)
    others = open_others(source, config.encoder, "test", options.others, options.cache)
    tokenizer = load_tokenizer(options.model, model.text.config.max_tokens) if model.text is not None else None
    counts = {"test": options.test, "others": options.others}
    results = Results(options.json, {**counts, **described(weights)}, __file__)
    results.part("figures", lambda: both_ways(weights, tokenizer, heads, others))
    print(table(results.parts))


@torch.no_grad()
def both_ways(weights: Weights, tokenizer: Any, heads: list[Example], others: list[Example]) -> dict[str, Any]:
    """Encode and answer with foreground tokens and with all of them; ``others`` are no heads, for the scope alone."""
    model, spec = weights.model, weights.config.encoder.preprocessing
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    embeddings: dict[str, list[NDArray[np.float32]]] = {way: [] for way in WAYS}
    rows: dict[str, dict[str, list[Any]]] = {way: {name: [] for name in model.decoders} for way in WAYS}
    counts = []
    for example in [*heads, *others]:
        voxels, window = (
            torch.from_numpy(example.volume.astype(np.float32))[None, None],
            torch.from_numpy(UNIT_WINDOW)[None],
        )
        kept = select_tokens(Grid(voxels[0, 0].numpy(), UNIT_WINDOW, np.eye(4)), spec).indices
        for way, tokens in zip(WAYS, (kept, np.arange(spec.patches)), strict=True):
            indices = torch.from_numpy(tokens.astype(np.int64))[None]
            began = time.perf_counter()
            patch, embedding = model.encoder(voxels, window, indices)
            took = time.perf_counter() - began
            embeddings[way].append(embedding[0].numpy())
            if example.kind != "head":
                continue
            seconds[way].append(took)
            seen = Seen(patch, indices, embedding, seen_as_encoder(voxels, window))
            for name, found in answers(model, example, seen, tokens):
                rows[way][name].append(found)
        if example.kind == "head":
            counts.append(len(kept))
    ratios = [a / f for f, a in zip(*(seconds[way] for way in WAYS), strict=True)]
    figures = {}
    for name, module in model.decoders.items():
        figures |= of_decoder(name, typing.cast("Decoder", module), {way: rows[way][name] for way in WAYS})
    found = {way: np.stack(some) for way, some in embeddings.items()}
    if model.text is not None:
        texts = [" ".join(head.report) for head in heads]
        figures |= of_retrieval(embed_texts(model.text, tokenizer, texts), texts, found)
    if model.scope is not None:
        figures |= of_scope(model.scope, np.arange(len(heads) + len(others)) < len(heads), found)
    return {
        "time": {
            "tokens_foreground_median": int(statistics.median(counts)),
            "tokens_all": int(spec.patches),
            **{f"ms_{way}_median": round(1000 * statistics.median(seconds[way]), 1) for way in WAYS},
            "ratio_median": round(statistics.median(ratios), 2),
            "ratio_spread": [round(float(q), 2) for q in np.percentile(ratios, [10, 90])],
        },
        "figures": figures,
    }


@dataclass(frozen=True)
class Seen:
    """What the encoder made of one series (B = 1), and the image that decoders see."""

    patch: Tensor
    indices: Tensor
    embedding: Tensor
    image: Tensor


def answers(model: Any, example: Example, seen: Seen, tokens: NDArray[np.int64]) -> Iterator[tuple[str, Rows]]:
    """Yield what every decoder that knows of the series said of it."""
    beside = functools.cache(lambda sight: sight(seen.patch, seen.indices, seen.image))
    known = known_of(example, example.affine_lps_mm, tissue=example.tissue is not None)
    for name, module in model.decoders.items():
        decoder = typing.cast("Decoder", module)
        if not decoder.knows(known):
            continue
        target = decoder.target(known, example.tissue if decoder.reads_tissue else None, tokens)
        batch = {key: torch.from_numpy(np.asarray(value)[None]) for key, value in target.items()}
        sight = model.sights.get(name)
        raw = decoder.raw(beside(sight) if sight else seen.patch, seen.indices, seen.embedding, seen.image)
        yield name, decoder.rows(raw, batch, seen.indices)


def of_decoder(name: str, decoder: Decoder, answered: dict[str, list[Rows]]) -> dict[str, Any]:
    """Return the figures that count of one decoder."""
    rows = {way: {k: np.concatenate([row[k] for row in some]) for k in some[0]} for way, some in answered.items()}
    measured = {way: flat(decoder, decoder.figures(some)) for way, some in rows.items()}
    rng = np.random.default_rng(0)
    again = (drawn_again(rows[WAYS[0]], rng) for _ in range(BOOTSTRAPS))
    samples = [flat(decoder, decoder.figures(some)) for some in again]
    figures = {}
    for key in measured[WAYS[1]]:
        drawn = [sample[key] for sample in samples if sample.get(key) is not None]
        figures[f"{name}, {key}"] = {**{way: measured[way][key] for way in WAYS}, "spread": statistics.stdev(drawn)}
    return figures


def of_retrieval(
    text: NDArray[np.float32], texts: list[str], embeddings: dict[str, NDArray[np.float32]]
) -> dict[str, Any]:
    """Return recall among the first ten in both directions; the spread is that of a share of so many."""
    found = {way: retrieval(some[: len(texts)], text, texts, [10]) for way, some in embeddings.items()}
    figures = {}
    for direction, words in (("image_to_text", "report for an image"), ("text_to_image", "image for a report")):
        shares = {way: getattr(one, direction)[10] for way, one in found.items()}
        spread = float(np.sqrt(shares[WAYS[0]] * (1 - shares[WAYS[0]]) / len(texts)))
        figures[f"{words}, Recall@10"] = {**shares, "spread": spread}
    return figures


def of_scope(scope: Scope, head: NDArray[np.bool_], embeddings: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    """Return how well heads are told from what is none, and the share of heads that is refused."""
    scores = {way: scope(torch.from_numpy(some)).numpy() for way, some in embeddings.items()}
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(head), size=len(head)) for _ in range(BOOTSTRAPS)]
    figures = {}
    for name, figure in (("auroc", auroc), ("heads refused", lambda truth, score: float((score[truth] < 0).mean()))):
        samples = [figure(head[chosen], scores[WAYS[0]][chosen]) for chosen in drawn]
        found = {way: figure(head, some) for way, some in scores.items()}
        figures[f"scope, {name}"] = {**found, "spread": statistics.stdev(samples)}
    return figures


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
    parser.add_argument("--test", type=int, default=256)
    parser.add_argument("--others", type=int, default=64, help="series that are no heads, for the scope")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-token-dropping.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
