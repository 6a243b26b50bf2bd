"""Why lesions are found or missed: their size and contrast, and what the tokens of their patches say.

    python benchmarks/evidence/lesions.py runs/tiny/model --cache runs/tiny/cache

``heads``: held-out heads by the volume of all their lesions, and by their contrast: how far the mean of the lesions
lies from that of the tissue within 5 mm around, in standard deviations of that tissue. For each group, AUROC against
the heads without lesions, by what the decoder `lesion` answers and by the surest voxel of `tissue`.
``patches``: a linear probe that tells patches with at least `LESION_VOXELS` of lesion from patches of tissue without,
on the tokens of the frozen encoder, of an untrained one, and on the voxels of the patch; AUROC over patches, and over
heads by their surest patch.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import Results, described, open_heads, untrained
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from decipher_rt.train.data.sample import LABELS
from decipher_rt.train.decoders.contract import Decoder, seen_as_encoder
from decipher_rt.train.decoders.tokens import encode
from decipher_rt.train.metrics import auroc
from decipher_rt.train.model.vit import ViT
from decipher_rt.train.sources import Example
from decipher_rt.train.views import UNIT_WINDOW, patches_at
from decipher_rt.train.weights import load_weights

LESION = LABELS.index("lesion")
VOLUMES_ML = (0.0, 0.5, 2.0, 8.0, np.inf)
CONTRASTS = (0.0, 0.75, 1.5, np.inf)
AROUND = 2  # voxels of 2.5 mm
LESION_VOXELS = 16  # of the 512 of a patch
OTHERS = 24  # patches without lesions that are drawn of each head
BATCH = 32


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(2)
    warnings.simplefilter("ignore", ConvergenceWarning)
    weights = load_weights(options.model)
    model, spec = weights.model, weights.config.encoder
    source = weights.config.sources["tissue"]
    test = open_heads(source, spec, "test", options.test, options.cache)
    train = open_heads(source, spec, "train", options.train, options.cache)
    results = Results(options.json, {"train": options.train, "test": options.test, **described(weights)}, __file__)
    results.part("heads", lambda: by_group(model, test))
    encoders = {"tokens": model.encoder, "untrained tokens": untrained(spec, train, 0, whitened=True)}
    for name, encoder in encoders.items():
        results.part(name, lambda encoder=encoder: probe(encoder, train, test, lambda seen: seen.tokens))
    results.part("voxels", lambda: probe(model.encoder, train, test, lambda seen: seen.voxels))
    print(table(results.parts))


@torch.no_grad()
def by_group(model: Any, heads: list[Example]) -> dict[str, Any]:
    """Return how many heads each group has, and how well each is told from those without lesions."""
    voxel_ml = float(np.prod(model.encoder.config.preprocessing.spacing_mm)) / 1000
    found = [(head, *answers(model, head)) for head in heads]
    without = [scores for head, *scores in found if not (head.tissue == LESION).any()]
    ill = [(head.tissue, contrast(head), scores) for head, *scores in found if (head.tissue == LESION).any()]
    sizes = np.array([(tissue == LESION).sum() * voxel_ml for tissue, _, _ in ill])
    contrasts = np.array([one for _, one, _ in ill])
    groups = {"all": np.full(len(ill), True)}
    for name, values, edges in (("ml", sizes, VOLUMES_ML), ("contrast", contrasts, CONTRASTS)):
        for low, high in itertools.pairwise(edges):
            label = f"over {low:g}" if high == np.inf else f"{low:g} to {high:g}"
            groups[f"{name}, {label}"] = (values > low) & (values <= high)
    measured: dict[str, Any] = {"without": len(without)}
    for name, chosen in groups.items():
        truth = np.array([1] * int(chosen.sum()) + [0] * len(without))
        row: dict[str, Any] = {"heads": int(chosen.sum())}
        for k, decoder in enumerate(("lesion", "tissue")):
            scores = [one[2][k] for one, inside in zip(ill, chosen, strict=True) if inside] + [
                one[k] for one in without
            ]
            row[decoder] = rounded(auroc(truth, np.array(scores)))
        measured[name] = row
    return measured


def answers(model: Any, head: Example) -> tuple[float, float]:
    """Return how sure `lesion` is of one, and how sure `tissue` is in the voxel where it is surest."""
    (one,) = encode(model.encoder, [head.volume])
    patch, tokens, embedding = one.patch[None], one.tokens[None], one.embedding[None]
    voxels = torch.from_numpy(head.volume.astype(np.float32))[None, None]
    image = seen_as_encoder(voxels, torch.from_numpy(UNIT_WINDOW)[None])
    sight = model.sights["lesion"]
    said = model.decoders["lesion"].raw(sight(patch, tokens, image), tokens, embedding, image)[0]
    decoder = typing.cast("Decoder", model.decoders["tissue"])
    of_voxels = decoder.raw(patch, tokens, embedding, image)[0]
    return float(said[1] - said[0]), float((of_voxels[LESION] - of_voxels[:LESION].amax(dim=0)).max())


def contrast(head: Example) -> float:
    """Return how far the lesions of a head stand out from the tissue around them."""
    lesion = head.tissue == LESION
    around = binary_dilation(lesion, iterations=AROUND) & ~lesion & (head.tissue > 0)
    volume = head.volume.astype(np.float32)
    if not around.any():
        return 0.0
    return float(abs(volume[lesion].mean() - volume[around].mean()) / max(volume[around].std(), 1e-6))


@dataclass(frozen=True)
class Seen:
    """Patches of one head, (K, ...): tokens, voxels, and how many voxels of each are lesion."""

    tokens: NDArray[np.float32]
    voxels: NDArray[np.float32]
    lesion: NDArray[np.int64]


def probe(
    encoder: ViT, train: list[Example], test: list[Example], rows_of: Callable[[Seen], NDArray[np.float32]]
) -> dict[str, Any]:
    """Fit on some patches of the training heads, measure on all patches of the test heads."""
    rng = np.random.default_rng(0)
    rows, labels = [], []
    for seen in patches(encoder, train):
        ill = np.flatnonzero(seen.lesion >= LESION_VOXELS)
        others = rng.permutation(np.flatnonzero(seen.lesion == 0))[:OTHERS]
        rows.append(rows_of(seen)[np.concatenate([ill, others])])
        labels += [1] * len(ill) + [0] * len(others)
    x = np.concatenate(rows)
    mean, scale = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    fit = LogisticRegression(C=0.05, max_iter=500).fit((x - mean) / scale, labels)
    of_patches, truths, surest, any_lesion = [], [], [], []
    for seen in patches(encoder, test):
        scores = fit.decision_function((rows_of(seen) - mean) / scale)
        known = (seen.lesion >= LESION_VOXELS) | (seen.lesion == 0)
        of_patches.append(scores[known])
        truths.append(seen.lesion[known] > 0)
        surest.append(scores.max())
        any_lesion.append(bool((seen.lesion > 0).any()))
    return {
        "patches with lesions": int(sum(labels)),
        "patches": rounded(auroc(np.concatenate(truths), np.concatenate(of_patches))),
        "heads": rounded(auroc(np.array(any_lesion), np.array(surest))),
    }


def patches(encoder: ViT, heads: list[Example]) -> list[Seen]:
    """Encode heads, and see their kept patches."""
    spec, found = encoder.config.preprocessing, []
    for first in range(0, len(heads), BATCH):
        some = heads[first : first + BATCH]
        for head, one in zip(some, encode(encoder, [head.volume for head in some]), strict=True):
            at = functools.partial(patches_at, tokens=one.tokens.numpy(), spec=spec)
            voxels = at(head.volume).astype(np.float32).clip(0, 1)
            found.append(Seen(one.patch.numpy(), voxels, (at(head.tissue) == LESION).sum(axis=1)))
    return found


def rounded(value: float | None) -> float | None:
    """Return a figure as it is kept."""
    return None if value is None else round(value, 3)


def table(parts: dict[str, Any]) -> str:
    """Return both tables as Markdown."""
    groups = {name: row for name, row in parts["heads"].items() if name != "without"}
    lines = ["| heads with lesions | how many | `lesion`, AUROC | `tissue`, surest voxel, AUROC |", "|---|---|---|---|"]
    for name, row in groups.items():
        figures = [f"{row[key]:.2f}" if row[key] is not None else "-" for key in ("lesion", "tissue")]
        lines.append(f"| {name} | {row['heads']} | {' | '.join(figures)} |")
    lines += [
        "",
        "| linear probe of patches on | patches, AUROC | heads by their surest patch, AUROC |",
        "|---|---|---|",
    ]
    for name in ("tokens", "untrained tokens", "voxels"):
        lines.append(f"| {name} | {parts[name]['patches']:.2f} | {parts[name]['heads']:.2f} |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of train decoder")
    parser.add_argument("--cache", type=Path, default=Path(".cache/samples"))
    parser.add_argument("--train", type=int, default=256)
    parser.add_argument("--test", type=int, default=256)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-lesions.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
