"""Bring the committed figures into docs/model-card.md.

python benchmarks/evidence/card.py      reads benchmarks/results, writes docs/model-card.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ablations
import decoders
import lesions
import margins
import pretraining
import probe
import real
import segmentation
import token_dropping
import training
import zero_shot
from arms import pretrained
from pages import rewrite

from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
from decipher_rt.train.checkpoint import DEFAULT_WEIGHTS, fingerprint
from decipher_rt.train.config import load_config
from decipher_rt.train.decoders.config import DecoderRunConfig
from decipher_rt.train.weights import load_weights

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE, RESULTS = REPOSITORY / "docs" / "model-card.md", REPOSITORY / "benchmarks" / "results"
CONFIGS = REPOSITORY / "train" / "configs" / "tiny"
FILES = (
    "training", "held-out", "real", "zero-shot", "token-dropping", "probe", "segmentation", "pretraining", "ablations",
    "decoders", "ch2", "probe-ch2", "margins", "lesions",
)  # fmt: skip
TISSUES = ("grey", "white", "csf", "lesion")
OTHERS = {"phantom": "phantoms", "noise": "noise", "other_anatomy": "other anatomy", "scrambled": "scrambled heads"}
EARLIER = "*Measured on an earlier training of the same recipe.*"


def main() -> None:
    """Write every table."""
    rewrite(PAGE, tables())


def tables() -> dict[str, list[str]]:
    """Return each table of the card by its name there."""
    documents = {name: result(name) for name in FILES}
    here, brain = (documents[name]["parts"]["figures"] for name in ("held-out", "ch2"))
    seen, seeds = documents["real"], documents["decoders"]
    kinds = {name: kind_of(name) for name in dict.fromkeys(part.split("/")[0] for part in seeds["parts"])}
    found = {
        "training": training.table(documents["training"]["parts"]),
        "held-out": evaluations({"": here}),
        "real": real.table(seen["parts"], seen["settings"]["series"]),
        "zero-shot": zero_shot.table(documents["zero-shot"]["parts"]),
        "token-dropping": token_dropping.table(documents["token-dropping"]["parts"]),
        "segmentation": segmentation.table(documents["segmentation"]["parts"]),
        "margins": margins.table(documents["margins"]["parts"]),
        "lesions": lesions.table(documents["lesions"]["parts"]),
        "decoders": decoders.table(seeds["parts"], kinds),
        "ch2": evaluations({"of the training": here, "ch2": brain}),
        "minutes": minutes(documents),
    }
    by_labels = {"probe": probe, "probe-ch2": probe, "pretraining": pretraining, "ablations": ablations}
    for name, script in by_labels.items():
        found[name] = script.table(documents[name]["parts"], documents[name]["settings"]["labels"])
    ships = shipped()
    earlier = [name for name, document in documents.items() if not is_of(document, ships)]
    lines = {name: [*table.splitlines(), *(("", EARLIER) if name in earlier else ())] for name, table in found.items()}
    return {**lines, "confusion": confusion(here["sequence"]["confusion"], probe.SEQUENCES).splitlines()}


def shipped() -> set[str]:
    """Return what tells the weights that ship: of the whole model, of its encoder, and of the bundle."""
    encoder = pretrained(DEFAULT_WEIGHTS)
    model = load_weights(DEFAULT_WEIGHTS).model
    return {fingerprint(model.state_dict()), fingerprint(encoder.state_dict()), open_bundle(DEFAULT_BUNDLE).sha256}


def is_of(document: dict[str, Any], weights: set[str]) -> bool:
    """Whether figures are of these weights, as far as they are of one model and say of which."""
    said = {document.get("settings", {}).get(key) for key in ("model", "encoder", "bundle")}
    said = (said | {document.get("weights", {}).get("pretrained")}) - {None}
    return not said or bool(said & weights)


def result(name: str) -> dict[str, Any]:
    """Read one file of results."""
    found: dict[str, Any] = json.loads((RESULTS / f"evidence-{name}.json").read_text(encoding="utf-8"))
    return found


def kind_of(decoder: str) -> str:
    """Return the kind of a shipped decoder."""
    return load_config(DecoderRunConfig, CONFIGS / f"decoder-{decoder}.yaml", ["encoder=RUN"]).decoder.kind


def evaluations(columns: dict[str, dict[str, Any]]) -> str:
    """Return what ``decipher-rt evaluate`` said, as Markdown: a column for each time."""
    rows = [figures(one) for one in columns.values()]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(row[name] for row in rows) + " |" for name in rows[0]]
    return "\n".join(lines)


def figures(of: dict[str, Any]) -> dict[str, str]:
    """Return the lines of one evaluation."""
    sequence, volume, tissue = of["sequence"], of["brain_volume_ml"], of["tissue"]
    lesion, box, scope = of["lesion"], of["lesion_box"], of["scope"]
    pool, refused = of["retrieval"]["pool"], scope["others_refused"]
    return {
        "`sequence`: accuracy, AUROC, calibration error": (
            f"{sequence['accuracy']:.1%}, {sequence['auroc']:.3f}, {sequence['calibration_error']:.3f}"
        ),
        "`brain_volume_ml`: mean absolute error (of always answering the mean), bias, R squared": (
            f"{volume['mae']:.0f} ml ({volume['mae_of_mean']:.0f}), {volume['bias']:+.0f} ml, {volume['r_squared']:.2f}"
        ),
        "`tissue`: Dice of grey / white / CSF / lesion": " / ".join(f"{tissue['dice'][t]:.2f}" for t in TISSUES),
        "`tissue`: Dice of lesion, voxels of all heads together": f"{tissue['dice_pooled']['lesion']:.2f}",
        "`lesion`: AUROC, calibration error; sensitivity at specificity": (
            f"{lesion['auroc']:.2f}, {lesion['calibration_error']:.3f}; "
            f"{lesion['sensitivity']:.0%} at {lesion['specificity']:.0%}"
        ),
        "`lesion_box`: AUROC of presence; centre error (median), IoU": (
            f"{box['presence_auroc']:.2f}; {box['centre_error_mm']['median']:.0f} mm, {box['iou']:.2f}"
        ),
        f"report for an image, Recall@1 / 5 / 10 of {pool} heads": recall(of, "image_to_text"),
        f"image for a report, Recall@1 / 5 / 10 of {pool} heads": recall(of, "text_to_image"),
        "chance of either": recall(of, "chance"),
        "scope: heads refused; AUROC": f"{scope['heads_refused']:.1%}; {scope['auroc']:.4f}",
        f"scope: refused of {', '.join(OTHERS.values())}": ", ".join(f"{refused[other]:.1%}" for other in OTHERS),
    }


def recall(of: dict[str, Any], way: str) -> str:
    """Return Recall@1, 5 and 10 of one way of retrieval."""
    return " / ".join(f"{of['retrieval'][f'{way}_recall@{k}']:.1%}" for k in (1, 5, 10))


def minutes(documents: dict[str, dict[str, Any]]) -> str:
    """Return how long each table took and on what, as Markdown; those that say it of every part."""
    lines = ["| table | minutes | on |", "|---|---|---|"]
    for name, document in documents.items():
        seconds = document.get("seconds", {})
        if name != "training" and seconds.keys() == document["parts"].keys():
            processors = dict.fromkeys(f"{m['processor']}, {m['cores']} cores" for m in machines(document))
            lines.append(f"| {name} | {sum(seconds.values()) / 60:.0f} | {'; '.join(processors)} |")
    return "\n".join(lines)


def machines(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the parts of a table were measured on."""
    return [run["machine"] for run in document["provenance"]]


def confusion(counts: list[list[int]], names: tuple[str, ...]) -> str:
    """Return a matrix as Markdown: rows truth, columns answer."""
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(map(str, row)) + " |" for name, row in zip(names, counts, strict=True)]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
