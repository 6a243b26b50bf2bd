"""The log of a training run: a CSV row a step, and its curve."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from decipher_rt.atomic import whole_file, write_text

from .checkpoint import CheckpointError

SMOOTH = 25  # steps that the curve averages over


class StepLog:
    """Rows of ``log.csv``. A resumed run keeps the rows before its first step and writes the others again."""

    def __init__(self, path: Path, first_step: int) -> None:
        self._path = path
        self._rows: list[dict[str, str]] = []
        if first_step and path.exists():
            self._rows = [row for row in _read(path) if int(row["step"]) < first_step]

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add one step."""
        self._rows.append({"step": str(step), **{name: f"{value:.5g}" for name, value in values.items()}})

    def write(self) -> None:
        """Write the file anew, beside and renamed; without rows there is none."""
        if not self._rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self._rows[-1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._path, text.getvalue())


def last_means(log: Path, steps: int = SMOOTH) -> dict[str, float]:
    """Return the means of a log's columns over its last ``steps`` steps."""
    rows = _read(log)[-steps:]
    return {name: sum(float(row[name]) for row in rows) / len(rows) for name in rows[0] if name != "step"}


def draw_curve(log: Path, picture: Path, names: Sequence[str]) -> None:
    """Draw losses of a log against the step, as PNG; on a logarithmic scale where all are positive."""
    import matplotlib as mpl

    mpl.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt

    rows = _read(log)
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    window = max(1, min(SMOOTH, len(rows) // 4))
    steps = np.array([int(row["step"]) for row in rows])[window - 1 :]
    lowest = np.inf
    for name in names:
        values = np.convolve([float(row[name]) for row in rows], np.ones(window) / window, mode="valid")
        lowest = min(lowest, float(values.min()))
        axes.plot(steps, values, label=name, linewidth=2.0 if name == "loss" else 1.2)
    scale = "log" if lowest > 0 else "linear"
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} steps", yscale=scale)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with whole_file(picture) as staging:
        figure.savefig(staging, format="png", metadata={"Software": None})
    plt.close(figure)


def _read(log: Path) -> list[dict[str, str]]:
    """Return the rows of a log; raise CheckpointError where it is none, as after an edit."""
    try:
        with log.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            int(row["step"]), [float(value) for value in row.values()]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        rows = []
    if not rows:
        raise CheckpointError(f"{log}: not the log of a run; remove the run's folder and train again")
    return rows
