"""How far figures move from training to training: every decoder of a model, trained again from other seeds.

    python benchmarks/evidence/decoders.py runs/tiny/model --cache runs/cache

Each is trained as ``decipher-rt train decoder`` trains it, on the same frozen encoder and the same series; what differs
is where its weights start and the order of the batches. Figures are of the test split. A segmentation has its own
table (``segmentation.py``).
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from arms import Results, spread

from decipher_rt.train.checkpoint import fingerprint
from decipher_rt.train.config import dump_config, load_config
from decipher_rt.train.decoders.config import DecoderRunConfig
from decipher_rt.train.decoders.registry import SEGMENTATION
from decipher_rt.train.decoders.train import load_encoder, train_decoder
from decipher_rt.train.progress import Progress
from decipher_rt.train.weights import load_stage

FIGURES = {
    "classification": ("accuracy", "auroc", "calibration_error"),
    "regression": ("mae", "r_squared"),
    "localisation": ("presence_auroc", "centre_error_mm/median", "centre_error_mm/mean", "iou"),
}


def main() -> None:
    """Measure and print."""
    options = arguments()
    configs = [
        load_config(DecoderRunConfig, options.configs / f"decoder-{name}.yaml", [f"encoder={options.encoder}"])
        for name in options.decoders
    ]
    results = Results(options.json, settings_of(options.encoder, options.configs), __file__)
    for config in configs:
        for seed in range(options.seeds):

            def measure(config: DecoderRunConfig = config, seed: int = seed) -> dict[str, Any]:
                return figures_of(config, seed, options.cache)

            results.part(f"{config.decoder.name}/{seed}", measure)
    print(table(results.parts, {config.decoder.name: config.decoder.kind for config in configs}))


def settings_of(folder: Path, configs: Path) -> dict[str, Any]:
    """Return what figures depend on: the encoder, the segmentations to stand upon, and the others' configurations."""
    stage = load_stage(folder)
    upon = [f"decoders.{d.name}." for d in (stage.recipe.decoders if stage.recipe else ()) if d.kind == SEGMENTATION]
    found = [load_config(DecoderRunConfig, path, ["encoder=RUN"]) for path in sorted(configs.glob("decoder-*.yaml"))]
    texts = {one.decoder.name: dump_config(one, but=one.UNTRAINED) for one in found if one.decoder.kind != SEGMENTATION}
    return {
        "encoder": fingerprint(load_encoder(stage, folder).state_dict()),
        "segmentations": fingerprint({n: t for n, t in stage.tensors.items() if n.startswith(tuple(upon))}),
        "configs": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
    }


def figures_of(config: DecoderRunConfig, seed: int, cache: Path) -> dict[str, Any]:
    """Train a decoder from a seed, without a scope, and return its figures on the test split."""
    seeded = replace(config, run=replace(config.run, seed=seed), scope=None)
    with tempfile.TemporaryDirectory() as folder:
        trained = train_decoder(seeded, Path(folder) / "model", cache, Progress())
    if trained is None:
        raise SystemExit("run this in one process")
    return dict(trained.metadata["metrics"][config.decoder.name])


def table(parts: dict[str, Any], kinds: dict[str, str]) -> str:
    """Return the figures as Markdown: a row for each figure of each decoder."""
    lines = ["| decoder | figure | mean and spread |", "|---|---|---|"]
    for name, kind in kinds.items():
        seeds = [figures for part, figures in parts.items() if part.split("/")[0] == name]
        lines += [
            f"| {name} | {figure} | {spread([value(one, figure) for one in seeds])} |" for figure in FIGURES[kind]
        ]
    return "\n".join(lines)


def value(figures: dict[str, Any], name: str) -> float:
    """Return a figure; of one within another, both names with a slash between."""
    for part in name.split("/"):
        figures = figures[part]
    return float(figures)  # type: ignore[arg-type]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="folder of train ssl, align or decoder")
    parser.add_argument("--configs", type=Path, default=Path("train/configs/tiny"), help="folder of decoder-NAME.yaml")
    parser.add_argument("--decoders", nargs="+", default=["sequence", "brain_volume_ml", "lesion", "lesion_box"])
    parser.add_argument("--cache", type=Path, default=Path(".cache/samples"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-decoders.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
