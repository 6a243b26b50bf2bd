"""A small alignment on made-up series, as a program: ``align_run.py FOLDER [key=value ...]``.

A series is a ball whose shade, size and stripes are told by its report, in words that vary.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from decipher_rt.train.align.config import AlignConfig
from decipher_rt.train.align.stage import AlignStage
from decipher_rt.train.align.start import reports_of, start
from decipher_rt.train.config import dump_config, load_config
from decipher_rt.train.loop import TRAINING, run
from decipher_rt.train.progress import Progress
from decipher_rt.train.sources import Example, ListedExamples
from decipher_rt.train.text.kept import tokenizer_of
from decipher_rt.train.text.tokenizer import save_tokenizer

SIZES, STRIPES, SHADES = ("small", "large"), ("smooth", "striped"), ("dark", "grey", "bright")
WORDS = {
    "train": ("A {shade} ball.", "The ball is {shade}.", "It is {size} and {stripes}.", "Size {size}, {stripes}."),
    "held_out": ("There is a {shade} ball.", "Shade: {shade}.", "{stripes}, {size}.", "The {size} ball is {stripes}."),
}


def series(index: int, wordings: str = "train") -> Example:
    rng = np.random.default_rng([index, wordings == "train"])
    axes = np.meshgrid(*[np.arange(16) - 7.5] * 3, indexing="ij")
    radius = np.sqrt(sum(a**2 for a in axes))
    shade, size, stripes = int(rng.integers(3)), int(rng.integers(2)), int(rng.integers(2))
    bright = (0.3 + 0.25 * shade) * (1 - 0.3 * stripes * (axes[0] % 4 < 2))
    volume = np.where(radius < 4.5 + 2.5 * size, bright, 0.0) + rng.normal(0, 0.02, radius.shape)
    first, other, second, another = WORDS[wordings]
    words = {"shade": SHADES[shade], "size": SIZES[size], "stripes": STRIPES[stripes]}
    sentences = (first, other)[int(rng.integers(2))], (second, another)[int(rng.integers(2))]
    return Example(
        volume=volume.astype(np.float16), affine_lps_mm=np.eye(4),
        report=tuple(sentence.format(**words) for sentence in sentences), region="ab"[index % 2],
        patient=f"{wordings}-{index}",
    )  # fmt: skip


CONFIG = Path(__file__).with_suffix(".yaml")


def train(config: AlignConfig, folder: Path) -> AlignStage:
    examples = ListedExamples([series(i) for i in range(192)])
    tokenizer = tokenizer_of(folder, config.text_from, config.text, lambda: reports_of(examples))
    torch.manual_seed(config.run.seed)
    stage = AlignStage(config, examples, tokenizer)
    if not (folder / TRAINING).exists():
        start(stage.network, config, examples, tokenizer)
    run(stage, config.run, folder, dump_config(config), Progress())
    save_tokenizer(folder, tokenizer)
    return stage


if __name__ == "__main__":
    train(load_config(AlignConfig, CONFIG, sys.argv[2:]), Path(sys.argv[1]))
