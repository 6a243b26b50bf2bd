"""Zero-shot answers: series are told by words that no report of the training ever had, beside chance.

    python benchmarks/evidence/zero_shot.py runs/tiny/model --cache runs/cache

For each task every held-out series is compared with one prompt a class; the nearest is the answer. Prompts are written
below, and none is a template of the simulator's reports (a test holds them against those).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import Results, features, open_heads
from scipy.special import softmax

from decipher_rt.train.align.embed import embed_texts
from decipher_rt.train.checkpoint import fingerprint
from decipher_rt.train.metrics import accuracy, auroc
from decipher_rt.train.text.tokenizer import load_tokenizer
from decipher_rt.train.weights import load_weights

PROMPTS: Mapping[str, Mapping[str, str]] = {
    "sequence": {
        "T1w": "this picture has T1-weighted contrast",
        "T2w": "this picture has T2-weighted contrast",
        "PDw": "this picture has proton density weighted contrast",
        "FLAIR": "this picture has FLAIR contrast",
        "T2*w": "this picture has T2*-weighted contrast",
    },
    "plane": {
        "axial": "what we look at was cut in the axial direction",
        "coronal": "what we look at was cut in the coronal direction",
        "sagittal": "what we look at was cut in the sagittal direction",
    },
    "lesion": {
        "absent": "a healthy brain with no lesion anywhere",
        "present": "a sick brain, a lesion can be made out",
    },
    "ventricles": {
        "narrow": "the fluid spaces inside this brain are narrow",
        "normal": "the fluid spaces inside this brain are normal in width",
        "enlarged": "the fluid spaces inside this brain are enlarged",
    },
}


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(2)
    weights = load_weights(options.model)
    if weights.model.text is None:
        raise SystemExit(f"{options.model}: a model without a text tower")
    source = next(iter(weights.config.sources.values()))
    test = open_heads(source, weights.config.encoder, "test", options.test, options.cache)
    prompts_of = {name: list(prompts.values()) for name, prompts in PROMPTS.items()}
    settings = {"test": options.test, "prompts": prompts_of, "model": fingerprint(weights.model.state_dict())}
    results = Results(options.json, settings, __file__)
    tokenizer = load_tokenizer(options.model, weights.model.text.config.max_tokens)
    seen = features(weights.model.encoder, test)
    image = seen.rows[:, : weights.config.encoder.embedding_size]
    for name, prompts in PROMPTS.items():
        text = embed_texts(weights.model.text, tokenizer, list(prompts.values()))
        logits = float(weights.model.logit_scale.exp()) * image @ text.T.astype(np.float64)
        results.part(name, lambda n=name, p=prompts, x=logits: measured(n, list(p), x, seen.labels))
    print(table(results.parts))


def measured(name: str, classes: list[str], logits: np.ndarray, labels: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how often the nearest prompt is the right one; probabilities are those of ``infer --prompt``."""
    known = [i for i, label in enumerate(labels) if label.get(name) in classes]
    truth = np.array([classes.index(labels[i][name]) for i in known])
    probabilities = softmax(logits[known], axis=1)
    found = {"accuracy": accuracy(truth, probabilities), "auroc": auroc(truth, probabilities)}
    found["most_frequent"] = float(np.bincount(truth).max() / len(truth))
    return {"series": len(known), **{key: None if v is None else round(v, 4) for key, v in found.items()}}


def table(parts: dict[str, Any]) -> str:
    """Return the figures as Markdown: a row for each task."""
    lines = ["| task | series | accuracy | of the most frequent class | AUROC |", "|---|---|---|---|---|"]
    for name, row in parts.items():
        figures = (row["accuracy"], row["most_frequent"], row["auroc"])
        lines.append(f"| {name} | {row['series']} | " + " | ".join(f"{value:.3f}" for value in figures) + " |")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of train decoder")
    parser.add_argument("--cache", type=Path, default=Path(".cache/samples"))
    parser.add_argument("--test", type=int, default=512)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-zero-shot.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
