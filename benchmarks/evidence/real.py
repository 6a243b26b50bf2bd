"""What a bundle answers on real series, beside what they are: contrasts named, phantoms refused, and pictures.

    python benchmarks/evidence/real.py runs/tiny/bundle --out runs/tiny/real \
        series/philips_t1_mprage_sag=T1w series/ge_epi_fmri_ax=T2*w series/siemens_epi_fmri=other

Each series is ``PATH=TRUTH``: a label of the head ``sequence``, or ``other`` for what is no human head. Results and
pictures lie in ``--out`` as ``decipher-rt infer -o OUT --png`` leaves them; the answers in ``--json``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arms import Results

import decipher_rt
from decipher_rt.result import Failure
from decipher_rt.writers.folder import folder_writer

OTHER = "other"  # what is no human head: right where it is out of scope


def main() -> None:
    """Infer, compare and print."""
    options = arguments()
    session = decipher_rt.load(options.bundle)
    truths = truths_of(options.series)
    settings = {"bundle": session.bundle.sha256, "series": {Path(path).name: truth for path, truth in truths.items()}}
    results = Results(options.json, settings, __file__)
    for path, truth in truths.items():

        def answer(path: str = path, truth: str = truth) -> dict[str, Any]:
            outcome = next(session.infer_each([Path(path)], write=folder_writer(options.out, png=True)))
            if isinstance(outcome, Failure):
                raise SystemExit(outcome.error)
            sequence = outcome.heads["sequence"]
            named = None if sequence.label is None else [sequence.label, round(max(sequence.probabilities.values()), 3)]
            right = not outcome.scope.inside if truth == OTHER else bool(named) and named[0] == truth
            said = {name: head.to_json() for name, head in outcome.heads.items() if name != "sequence"}
            others = {name: {k: v for k, v in head.items() if k != "file"} for name, head in said.items()}
            return {
                "scope": outcome.scope.score,
                "in": outcome.scope.inside,
                "sequence": named,
                "right": right,
                **others,
            }

        results.part(Path(path).name, answer)
    print(table(results.parts, settings["series"]))


def table(parts: dict[str, Any], truths: dict[str, str]) -> str:
    """Return the answers as Markdown: a row for each series."""
    lines = [
        "| series | is | scope (score) | `sequence` | right | brain, ml: `brain_volume_ml`, map |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in parts.items():
        named = "not answered" if row["sequence"] is None else "{}, {:.1%}".format(*row["sequence"])
        where = "in" if row["in"] else "out"
        score = "by its header" if row["scope"] is None else f"{row['scope']:.2f}"
        of_map = sum(label["volume_ml"] for label in row["tissue"].get("labels", ()) if label["label"] != "csf")
        brain = f"{row['brain_volume_ml']['value']:.0f}, {of_map:.0f}" if of_map else ""
        cells = [name, truths[name], f"{where} ({score})", named, "yes" if row["right"] else "**no**", brain]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def truths_of(listed: Sequence[str]) -> dict[str, str]:
    """Return what each path is; refuse two series of one name, by which answers and pictures are kept."""
    pairs = [item.rsplit("=", 1) for item in listed]
    names = Counter(Path(path).name for path, _ in pairs)
    if twice := [name for name, count in names.items() if count > 1]:
        raise SystemExit(f"{', '.join(twice)}: several series have this name; give each its own, as by a link")
    return dict(pairs)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("series", nargs="+", metavar="PATH=TRUTH")
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-real.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
