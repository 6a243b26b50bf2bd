"""Segmentation on frozen tokens beside a small 3D U-Net on the voxels: same series, same time.

    python benchmarks/evidence/segmentation.py runs/tiny/align --cache runs/cache

The decoder of ``--config`` is trained on the cached tokens of ``--train`` series, one epoch and then to ``--epochs``;
the U-Net gets the wall time that the decoder had taken at each of the two points, encoding the series included, with
the same loss and optimiser. It learns from crops and answers for tiles of the same size, and its layers are laid out as
the CPU computes them fastest: it takes many times the steps that it would with whole grids. Dice is the mean over
held-out series that have the tissue. For every seed.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from arms import Results, open_heads, pretrained, spread
from torch import Tensor, nn

from decipher_rt.train.checkpoint import fingerprint
from decipher_rt.train.config import load_config
from decipher_rt.train.data.sample import LABELS
from decipher_rt.train.decoders.config import DecoderRunConfig
from decipher_rt.train.decoders.kinds.segmentation import Segmentation
from decipher_rt.train.decoders.registry import build_decoder
from decipher_rt.train.decoders.tokens import Encoded, encode
from decipher_rt.train.metrics import dice, overlap_counts
from decipher_rt.train.sources import Example

TISSUES = LABELS[1:]
Dice = dict[str, float]
CROP, CROPS = 48, 4  # grid voxels along each axis of what the U-Net sees at once, and how many of them a step takes


class UNet(nn.Module):
    """Three levels, two convolutions each, instance norm, as small U-Nets are (arXiv 1606.06650)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        w = width
        self.down = nn.ModuleList([double(1, w), double(w, 2 * w), double(2 * w, 4 * w)])
        self.up = nn.ModuleList([double(6 * w, 2 * w), double(3 * w, w)])
        self.out = nn.Conv3d(w, len(LABELS), 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 1, D, H, W) to logits (B, L, D, H, W)."""
        kept = []
        for block in self.down:
            x = block(F.max_pool3d(x, 2) if kept else x)
            kept.append(x)
        for block, skip in zip(self.up, reversed(kept[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1))
        return self.out(x)


def double(before: int, after: int) -> nn.Sequential:
    """Return two convolutions, each with norm and activation."""
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv3d(channels, after, 3, padding=1), nn.InstanceNorm3d(after, affine=True), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(2)
    encoder = pretrained(options.encoder)
    config = load_config(DecoderRunConfig, options.config, [f"encoder={options.encoder}"])
    train = open_heads(config.source, encoder.config, "train", options.train, options.cache)
    test = open_heads(config.source, encoder.config, "test", options.test, options.cache)
    settings = {name: getattr(options, name) for name in ("train", "test", "epochs", "batch")}
    results = Results(options.json, {**settings, "encoder": fingerprint(encoder.state_dict())})
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        decoder = build_decoder(config.decoder, encoder.config)
        if not isinstance(decoder, Segmentation):
            raise SystemExit(f"{options.config}: decoder.kind is not segmentation")
        key = f"decoder on frozen tokens/{seed}"
        ours = results.part(key, lambda d=decoder, s=seed: on_tokens(d, encoder, train, test, options, s))
        results.part(f"U-Net/{seed}", lambda s=seed, o=ours: on_voxels(train, test, s, o))
    print(table(results.parts))


def on_tokens(
    decoder: Segmentation,
    encoder: Any,
    train: list[Example],
    test: list[Example],
    options: argparse.Namespace,
    seed: int,
) -> dict[str, Any]:
    """Train the decoder; return seconds and Dice after one epoch and at the end."""
    began = time.monotonic()
    encoded = [one for first in range(0, len(train), 32) for one in encode(encoder, volumes(train[first : first + 32]))]
    held_out = encode(encoder, volumes(test))
    groups: dict[int, list[int]] = {}
    for i, one in enumerate(encoded):
        groups.setdefault(len(one.tokens), []).append(i)
    rng = np.random.default_rng([seed, 7])
    by_size = list(groups.values())
    share = np.array([len(group) for group in by_size]) / len(encoded)

    def loss_of() -> Tensor:
        group = by_size[rng.choice(len(by_size), p=share)]
        chosen = rng.choice(group, options.batch, replace=len(group) < options.batch)
        patch, tokens = (torch.stack([getattr(encoded[i], name) for i in chosen]) for name in ("patch", "tokens"))
        truth = torch.from_numpy(np.stack([tissue_of(train[i]) for i in chosen]))
        return decoder.losses(decoder.raw(patch, tokens, patch), {"map": truth}, tokens)["loss"]

    def answer(i: int) -> np.ndarray:
        one: Encoded = held_out[i]
        return decoder.finish(decoder.raw(one.patch[None], one.tokens[None], one.patch))[0].numpy()

    steps = len(train) // options.batch
    found: dict[str, Any] = {}
    optimise = Optimiser(decoder, steps * options.epochs)
    for name, until in (("one epoch", steps), ("end", steps * options.epochs)):
        while optimise.step < until:
            optimise(loss_of(), optimise.step / optimise.steps)
        found[name] = {"seconds": round(time.monotonic() - began), "dice": mean_dice(answer, test)}
    return found


def on_voxels(train: list[Example], test: list[Example], seed: int, ours: dict[str, Any]) -> dict[str, Any]:
    """Train a U-Net for as long as the decoder took, by the decoder's loss."""
    torch.manual_seed(seed)
    network = UNet().to(memory_format=torch.channels_last_3d)
    rng = np.random.default_rng([seed, 8])

    def loss_of() -> Tensor:
        voxels, truths = [], []
        for i in rng.integers(len(train), size=CROPS):
            inside = crop_at(rng.integers(0, np.array(train[i].volume.shape) - CROP + 1))
            voxels.append(voxels_of(train[i])[inside])
            truths.append(tissue_of(train[i])[inside])
        return map_loss(network(as_input(np.stack(voxels))), torch.from_numpy(np.stack(truths)).long())

    def answer(i: int) -> np.ndarray:
        voxels = voxels_of(test[i])
        logits = torch.zeros(len(LABELS), *voxels.shape)
        for corner in itertools.product(*(range(0, n, CROP) for n in voxels.shape)):
            inside = crop_at(corner)
            logits[(slice(None), *inside)] = network(as_input(voxels[inside][None]))[0]
        return logits.argmax(dim=0).byte().numpy()

    found: dict[str, Any] = {}
    spent, whole = 0.0, ours["end"]["seconds"]
    optimise = Optimiser(network, 0)
    for name in ("one epoch", "end"):
        while spent < ours[name]["seconds"]:
            began = time.monotonic()
            optimise(loss_of(), spent / whole)
            spent += time.monotonic() - began
        found[name] = {"seconds": round(spent), "steps": optimise.step, "dice": mean_dice(answer, test)}
    return found


def crop_at(corner: Sequence[int]) -> tuple[slice, ...]:
    """Return where a crop lies in a grid."""
    return tuple(slice(int(first), int(first) + CROP) for first in corner)


def as_input(voxels: np.ndarray) -> Tensor:
    """Return voxels (B, D, H, W) as the U-Net takes them."""
    return torch.from_numpy(voxels)[:, None].to(memory_format=torch.channels_last_3d)


def map_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Return cross-entropy and soft Dice of logits (B, L, D, H, W), as the decoder's loss has them."""
    right = F.one_hot(truth, len(LABELS)).movedim(-1, 1)[:, 1:].float()
    likely = logits.softmax(dim=1)[:, 1:]
    voxels = right.sum(dim=(2, 3, 4))
    overlap = (2 * (likely * right).sum(dim=(2, 3, 4)) + 1) / (likely.sum(dim=(2, 3, 4)) + voxels + 1)
    there = (voxels > 0).float()
    dice_loss = ((1 - overlap) * there).sum(dim=1) / there.sum(dim=1).clamp_min(1)
    return F.cross_entropy(logits, truth) + dice_loss.mean()


class Optimiser:
    """AdamW with a warm-up and a cosine over the run."""

    def __init__(self, network: nn.Module, steps: int) -> None:
        self.network, self.steps, self.step = network.train(), steps, 0
        self.adam = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)

    def __call__(self, loss: Tensor, done: float) -> None:
        """Take a step; ``done`` is the share of the run that lies behind."""
        for group in self.adam.param_groups:
            group["lr"] = 2e-3 * min(1.0, (self.step + 1) / 30) * 0.5 * (1 + np.cos(np.pi * min(1.0, done)))
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.adam.step()
        self.step += 1


@torch.no_grad()
def mean_dice(answer: Callable[[int], np.ndarray], test: list[Example]) -> Dice:
    """Return Dice of each tissue, the mean over the series that have it."""
    counts = np.stack([overlap_counts(tissue_of(one), answer(i), len(LABELS)) for i, one in enumerate(test)])
    each = {name: counts[counts[:, k, 1] > 0, k] for k, name in enumerate(LABELS) if k}
    return {name: round(float(dice(rows).mean()), 4) for name, rows in each.items()}


def volumes(series: list[Example]) -> list[np.ndarray]:
    """Return their voxels as they are kept."""
    return [one.volume for one in series]


def voxels_of(one: Example) -> np.ndarray:
    """Return voxels in -1..1, as the encoder sees them."""
    return one.volume.astype(np.float32).clip(0, 1) * 2 - 1


def tissue_of(one: Example) -> np.ndarray:
    """Return the tissue map of a simulated head."""
    if one.tissue is None:
        raise ValueError("a simulated head has a tissue map")
    return one.tissue


def table(parts: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for name, figures in parts.items():
        arms.setdefault(name.split("/")[0], []).append(figures)
    lines = ["| | after | seconds | " + " | ".join(f"Dice, {t}" for t in TISSUES) + " |", "|---" * 7 + "|"]
    for name, seeds in arms.items():
        for point in ("one epoch", "end"):
            cells = [spread([one[point]["dice"][t] for one in seeds]) for t in TISSUES]
            seconds = spread([one[point]["seconds"] for one in seeds])
            lines.append(f"| {name} | {point} | {seconds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="folder of train ssl, align or decoder")
    parser.add_argument("--config", type=Path, default=Path("train/configs/tiny/decoder-tissue.yaml"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/samples"))
    parser.add_argument("--train", type=int, default=256)
    parser.add_argument("--test", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-segmentation.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
