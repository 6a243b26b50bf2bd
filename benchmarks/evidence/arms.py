"""What the tables of evidence share: held-out series, features of an encoder, and a file of results that can go on."""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latency.provenance import provenance

from decipher_rt.atomic import write_text
from decipher_rt.train.checkpoint import fingerprint
from decipher_rt.train.config import dump_config
from decipher_rt.train.decoders.tokens import encode
from decipher_rt.train.decoders.train import load_encoder
from decipher_rt.train.model.vit import ViT, ViTConfig
from decipher_rt.train.model.whiten import whiten_patch_embed
from decipher_rt.train.pool import fit_pool
from decipher_rt.train.progress import Progress
from decipher_rt.train.samples import Split
from decipher_rt.train.sources import Example, SourceConfig, open_source
from decipher_rt.train.views import to_patches
from decipher_rt.train.weights import Weights, load_stage

POOL_SERIES = 256  # that fix the mean and variance of an untrained encoder's pooled vectors
BATCH = 32


@dataclass(frozen=True)
class Features:
    """What a linear probe sees of N series (N, E + C), the embedding beside the mean token, and their labels."""

    rows: NDArray[np.float64]
    labels: list[dict[str, Any]]


def open_heads(source: SourceConfig, encoder: ViTConfig, split: Split, count: int, cache: Path) -> list[Example]:
    """Return the first ``count`` series of a split of the simulator, all of them heads."""
    return _open(replace(source, not_heads=0.0, **{split: count}), encoder, split, count, cache)


def open_others(source: SourceConfig, encoder: ViTConfig, split: Split, count: int, cache: Path) -> list[Example]:
    """Return as many that are no heads."""
    return _open(replace(source, not_heads=1.0, **{split: count}), encoder, split, count, cache)


def _open(source: SourceConfig, encoder: ViTConfig, split: Split, count: int, cache: Path) -> list[Example]:
    examples = open_source(source, encoder.preprocessing, split, cache, 2, Progress())
    return [examples[i] for i in range(count)]


def pretrained(folder: Path) -> ViT:
    """Return the encoder of a folder of the recipe."""
    return load_encoder(load_stage(folder), folder)


def untrained(config: ViTConfig, series: Sequence[Example], seed: int, *, whitened: bool) -> ViT:
    """Return an encoder before training: random, or with its patch embedding whitened, much as ``train ssl`` begins."""
    torch.manual_seed(seed)
    encoder = ViT(config)
    if whitened:
        spec = config.preprocessing
        patches = np.concatenate([to_patches(one.volume, spec) for one in series[:64]]).astype(np.float32)
        seen = patches[patches.mean(axis=1) > 0.1].clip(0, 1) * 2 - 1  # as the encoder maps them
        whiten_patch_embed(encoder.patch_embed, torch.from_numpy(seen))
    fit_pool(encoder, (one.volume for one in series[:POOL_SERIES]))
    return encoder.eval().requires_grad_(False)


def features(encoder: ViT, series: Sequence[Example]) -> Features:
    """Encode series as at inference."""
    rows = []
    for first in range(0, len(series), BATCH):
        some = encode(encoder, [one.volume for one in series[first : first + BATCH]])
        rows += [np.concatenate([one.embedding.numpy(), one.patch.mean(dim=0).numpy()]) for one in some]
    return Features(np.stack(rows).astype(np.float64), [dict(one.labels) for one in series])


def described(weights: Weights) -> dict[str, str]:
    """Return what figures of a whole model depend on: its weights, and what its configuration says beside them."""
    return {"model": fingerprint(weights.model.state_dict()), "config": digest(dump_config(weights.config))}


def anatomy_of(file: Path | None) -> str:
    """Return what tells the heads that series are made around: the file's name and content, or the template's."""
    return f"{file.name} {digest(file)[:12]}" if file else "mni152"


def digest(*parts: str | Path) -> str:
    """Return the SHA-256 of what figures follow from: configurations as text, and the code in files."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part.read_bytes() if isinstance(part, Path) else part.encode()).digest())
    return whole.hexdigest()


class Results:
    """A JSON file that is written after every part, so that a killed run goes on with the next one.

    A part is measured again where the settings of all, the ``code`` that measures (this file is added), or the weights
    of its own are others than those in the file;
    ``provenance`` has an entry for each run that measured parts, with their names, and ``seconds`` what each part took,
    the series made before it not counted. ``key`` names settings and code, for what runs leave on disk.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *code: str) -> None:
        settings = {**settings, "code": digest(Path(__file__), *map(Path, code))}
        self.path, self.key = path, digest(json.dumps(settings, sort_keys=True))[:12]
        found = json.loads(path.read_text()) if path.exists() else {}
        kept = found if found.get("settings") == settings else {}
        self.parts: dict[str, Any] = kept.get("parts", {})
        new = {"provenance": [], "settings": settings, "weights": {}, "seconds": {}, "parts": self.parts}
        self.document = new | kept

    def part(self, name: str, make: Callable[[], Any], weights: str | None = None) -> Any:
        """Return a part, measured now unless the file has it of the same ``weights``, or whatever tells them."""
        if name not in self.parts or self.document["weights"].get(name) != weights:
            began = time.monotonic()
            self.parts[name] = make()
            self.document["seconds"][name] = round(time.monotonic() - began)
            if weights is not None:
                self.document["weights"][name] = weights
            self._record(name)
            write_text(self.path, json.dumps(self.document, indent=1) + "\n")
        return self.parts[name]

    def _record(self, name: str) -> None:
        """Say of a part that it is of this run."""
        now, runs = provenance(), self.document["provenance"]
        for run in runs:
            run["parts"] = [part for part in run["parts"] if part != name]
        same = [run for run in runs if all(run[k] == now[k] for k in ("machine", "versions", "commit", "command"))]
        if same:
            same[0]["parts"].append(name)
        else:
            runs.append({**now, "parts": [name]})
        runs[:] = [run for run in runs if run["parts"]]


def spread(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation of what seeds gave."""
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    digits = 1 if max(map(abs, known)) > 2 else 3
    deviation = f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.{digits}f}{deviation}"
