"""Segmentation on frozen tokens, with and without the voxels beside them, and by a U-Net: same series, same time.

    python benchmarks/evidence/segmentation.py runs/tiny/align --cache runs/cache

Three networks on the ``--train`` first heads: the decoder of ``--config``; the same without its image branch, on tokens
alone, which sees whole series; and a small 3D U-Net on the voxels, which sees the crops that the decoder sees. The
second sets the wall times, of one epoch and of ``--epochs``, encoding the series included; the others get as long,
encoding included where there is any. Loss, weights of labels, optimiser and precision are the decoder's. Dice is the
mean over held-out series that have the tissue. For every seed.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from arms import Results, digest, open_heads, pretrained, spread
from torch import Tensor, nn

from decipher_rt.preprocess import Grid
from decipher_rt.tokens import select_tokens
from decipher_rt.train.checkpoint import fingerprint
from decipher_rt.train.config import dump_config, load_config
from decipher_rt.train.data.sample import LABELS
from decipher_rt.train.decoders.config import DecoderRunConfig
from decipher_rt.train.decoders.contract import Batch, Known
from decipher_rt.train.decoders.kinds.segmentation import Segmentation
from decipher_rt.train.decoders.registry import DecoderConfig, build_decoder
from decipher_rt.train.decoders.tokens import Encoded, encode
from decipher_rt.train.loop import precision_here
from decipher_rt.train.metrics import dice, overlap_counts
from decipher_rt.train.model.vit import ViT, ViTConfig
from decipher_rt.train.sources import Example
from decipher_rt.train.views import UNIT_WINDOW

TISSUES = LABELS[1:]
HEAD = Known({}, None, "head", tissue=True)
POINTS = ("one epoch", "end")
Dice = dict[str, float | None]


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
        x = x.to(memory_format=torch.channels_last_3d)  # what the CPU computes fastest
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


class Arm:
    """A network that learns to segment, and what of a batch it looks at.

    Parameters
    ----------
    network : nn.Module
        The U-Net, or the decoder itself.
    decoder : Segmentation
        Its crops, its loss, and which voxels lie in kept patches.
    precision : "fp32" or "bf16"
    """

    def __init__(self, network: nn.Module, decoder: Segmentation, precision: str) -> None:
        self.network, self.decoder, self.precision = network, decoder, precision

    def logits(self, batch: Batch) -> Tensor:
        """Return (B, L, D, H, W) float32."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            if self.network is self.decoder:
                logits = self.decoder.raw(batch["patch"], batch["tokens"], batch["patch"], batch["image"])
            else:
                logits = self.network(batch["image"])
        return logits.float()

    def answer(self, batch: Batch) -> np.ndarray:
        """Return the labels of one series (D, H, W); a U-Net, which learns from crops, answers for tiles."""
        if self.network is self.decoder:
            return self.decoder.finish(self.logits(batch))[0].numpy()
        image, size = batch["image"], [self.decoder.crop * n for n in self.decoder.seen_shape]
        labels = torch.zeros(image.shape[2:], dtype=torch.uint8)
        for corner in itertools.product(*(range(0, n, tile) for n, tile in zip(labels.shape, size, strict=True))):
            tile = tuple(slice(a, a + n) for a, n in zip(corner, size, strict=True))
            labels[tile] = self.decoder.finish(self.logits({"image": image[(..., *tile)]}))[0]
        kept = self.decoder.kept(batch["tokens"], self.decoder.patch_grid, self.decoder.patch_shape)[0]
        return (labels * kept).numpy()


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(2)
    encoder = pretrained(options.encoder)
    config = load_config(DecoderRunConfig, options.config, [f"encoder={options.encoder}"])
    train = open_heads(config.source, encoder.config, "train", options.train, options.cache)
    test = open_heads(config.source, encoder.config, "test", options.test, options.cache)
    results = Results(options.json, settings_of(options, config, encoder), __file__)
    steps = len(train) // options.batch
    for seed in range(options.seeds):

        def part(name: str, limits: list[dict[str, int]], size: int, seed: int = seed) -> dict[str, Any]:
            arm = make_arm(name, config.decoder, encoder.config, precision_here(config.run), seed)
            return results.part(f"{name}/{seed}", lambda: learn(arm, encoder, (train, test), limits, size, seed))

        ours = part("tokens", [{"steps": steps}, {"steps": steps * options.epochs}], options.batch)
        limits = [{"seconds": ours[point]["seconds"]} for point in POINTS]
        part("tokens and voxels", limits, options.crops)
        part("U-Net", limits, options.crops)
    print(table(results.parts))


def settings_of(options: argparse.Namespace, config: DecoderRunConfig, encoder: ViT) -> dict[str, Any]:
    """Return what figures depend on."""
    learned = dump_config(config, but=(*config.UNTRAINED, "encoder"))  # not where the encoder lies
    return {
        **{name: getattr(options, name) for name in ("train", "test", "epochs", "batch", "crops")},
        "config": digest(learned, dump_config(encoder.config)),
        "encoder": fingerprint(encoder.state_dict()),
    }


def make_arm(name: str, config: DecoderConfig, encoder: ViTConfig, precision: str, seed: int) -> Arm:
    """Return an untrained arm."""
    torch.manual_seed(seed)
    alone = {**config.options, "skips": False, "crop": 0, "rarity": 0}
    decoder = build_decoder(replace(config, options=alone) if name == "tokens" else config, encoder)
    if not isinstance(decoder, Segmentation) or (name != "tokens" and not decoder.crop):
        raise SystemExit("the configuration's decoder is no segmentation with skips that learns from crops")
    return Arm(UNet() if name == "U-Net" else decoder, decoder, precision)


def learn(
    arm: Arm,
    encoder: Any,
    splits: tuple[list[Example], list[Example]],
    limits: list[dict[str, int]],
    size: int,
    seed: int,
) -> dict[str, Any]:
    """Train until each of two limits, of steps or of seconds; return steps, seconds and Dice at both."""
    began = time.monotonic()
    blind = arm.network is not arm.decoder  # to tokens, but not to where they lie
    seen = Series(encoder, splits[0], arm.decoder, encode_all=not blind)
    spent = 0.0 if blind else time.monotonic() - began
    held_out = Series(encoder, splits[1], arm.decoder, encode_all=not blind)
    rng = np.random.default_rng([seed, 7])
    found: dict[str, Any] = {}
    optimise = Optimiser(arm.network)
    for point, limit in zip(POINTS, limits, strict=True):
        while optimise.step < limit["steps"] if "steps" in limit else spent < limit["seconds"]:
            began = time.monotonic()
            batch = arm.decoder.narrow(seen.batch(seen.draw(size, rng)), rng.spawn(size))
            losses = arm.decoder.losses(arm.logits(batch), batch["target"], batch["tokens"])
            whole = limits[-1]
            optimise(losses["loss"], optimise.step / whole["steps"] if "steps" in whole else spent / whole["seconds"])
            spent += time.monotonic() - began
        found[point] = {"seconds": round(spent), "steps": optimise.step, "dice": mean_dice(arm, held_out)}
    return found


class Series:
    """Heads with their tokens; a U-Net's are not encoded, and it is told only which patches were kept."""

    def __init__(self, encoder: Any, series: list[Example], decoder: Segmentation, *, encode_all: bool) -> None:
        self.series, self.decoder = series, decoder
        self.encoded: list[Encoded] = []
        for first in range(0, len(series), 32):
            volumes = [one.volume for one in series[first : first + 32]]
            self.encoded += encode(encoder, volumes) if encode_all else places(encoder, volumes)
        groups: dict[int, list[int]] = {}
        for i, one in enumerate(self.encoded):
            groups.setdefault(len(one.tokens), []).append(i)
        self._groups = list(groups.values())

    def draw(self, size: int, rng: np.random.Generator) -> list[int]:
        """Return the numbers of some series that have as many tokens."""
        share = [len(group) / len(self.series) for group in self._groups]
        group = self._groups[rng.choice(len(self._groups), p=share)]
        return [int(i) for i in rng.choice(group, size, replace=len(group) < size)]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return whole series as the decoder's training reads them."""
        encoded, some = [self.encoded[i] for i in indices], [self.series[i] for i in indices]
        maps = [self.decoder.target(HEAD, one.tissue, np.zeros(0, np.int64))["map"] for one in some]
        image = torch.from_numpy(np.stack([one.volume for one in some]).astype(np.float32))[:, None]
        return {
            "patch": torch.stack([one.patch for one in encoded]),
            "tokens": torch.stack([one.tokens for one in encoded]),
            "image": image.clamp(0, 1) * 2 - 1,
            "target": {"map": torch.from_numpy(np.stack(maps))},
        }


def places(encoder: Any, volumes: list[np.ndarray]) -> list[Encoded]:
    """Return the kept patches of series without encoding them."""
    spec, found = encoder.config.preprocessing, []
    for volume in volumes:
        tokens = torch.from_numpy(select_tokens(Grid(volume.astype(np.float32), UNIT_WINDOW, np.eye(4)), spec).indices)
        found.append(Encoded(torch.zeros(len(tokens), 1), tokens, torch.zeros(1)))
    return found


class Optimiser:
    """AdamW with a warm-up of a tenth of the run, however many steps that is, and a cosine over all of it."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.step = network.train(), 0
        self.adam = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)

    def __call__(self, loss: Tensor, done: float) -> None:
        """Take a step; ``done`` is the share of the run that lies behind."""
        for group in self.adam.param_groups:
            group["lr"] = 2e-3 * min(1.0, 10 * done + 0.1) * 0.5 * (1 + np.cos(np.pi * min(1.0, done)))
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.adam.step()
        self.step += 1


@torch.no_grad()
def mean_dice(arm: Arm, held_out: Series) -> Dice:
    """Return Dice of each tissue, the mean over the series that have it."""
    rows = []
    for i in range(len(held_out.series)):
        batch = held_out.batch([i])
        rows.append(overlap_counts(batch["target"]["map"][0].numpy(), arm.answer(batch), len(LABELS)))
    counts = np.stack(rows)
    each = {name: counts[counts[:, k, 1] > 0, k] for k, name in enumerate(LABELS) if k}
    return {name: round(float(dice(rows).mean()), 4) if len(rows) else None for name, rows in each.items()}


def table(parts: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for name, figures in parts.items():
        arms.setdefault(name.split("/")[0], []).append(figures)
    lines = ["| | after | seconds | " + " | ".join(f"Dice, {t}" for t in TISSUES) + " |", "|---" * 7 + "|"]
    for name, seeds in arms.items():
        for point in POINTS:
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
    parser.add_argument("--batch", type=int, default=4, help="series a step, of the decoder on tokens alone")
    parser.add_argument("--crops", type=int, default=8, help="crops a step, of the others")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-segmentation.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
