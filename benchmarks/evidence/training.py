"""What a model took to train: steps, series or reports to a step, and the seconds of its training loops.

    python benchmarks/evidence/training.py runs/tiny

Read from the logs that ``make model`` leaves; simulation, encoding, looking at voxels and export come on top.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import yaml
from arms import Results, digest

from decipher_rt.train.decoders.train import RUNS

STAGES = {
    "self-supervision": "ssl",
    "text, masked language modelling": "text",
    "alignment": "align",
    **{
        f"decoder `{name}`": f"model/{RUNS}/{name}"
        for name in ("sequence", "tissue", "brain_volume_ml", "lesion", "lesion_box")
    },
}


def main() -> None:
    """Read and print."""
    options = arguments()
    logs = {name: options.runs / folder / "log.csv" for name, folder in STAGES.items()}
    if gone := [str(log) for log in logs.values() if not log.exists()]:
        raise SystemExit(f"{gone[0]}: not there; 'make model' leaves it when that stage is trained")
    results = Results(options.json, {"logs": digest(*logs.values())}, __file__)
    for name, log in logs.items():
        results.part(name, lambda log=log: took(log))
    print(table(results.parts))


def took(log: Path) -> dict[str, Any]:
    """Return what one stage took."""
    with log.open(encoding="utf-8", newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    run = yaml.safe_load(log.with_name("config.yaml").read_text(encoding="utf-8"))["run"]
    return {"steps": len(seconds), "batch": run["batch"], "seconds": round(sum(seconds))}


def table(parts: dict[str, Any]) -> str:
    """Return it as Markdown: a row for each stage, and all of them."""
    lines = ["| stage | steps | of so many at once | seconds |", "|---|---|---|---|"]
    lines += [f"| {name} | {row['steps']} | {row['batch']} | {row['seconds']} |" for name, row in parts.items()]
    return "\n".join([*lines, f"| all | | | {sum(row['seconds'] for row in parts.values())} |"])


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the stages, as 'make model' leaves it")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-training.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
