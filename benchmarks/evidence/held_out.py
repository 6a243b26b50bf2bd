"""What ``decipher-rt evaluate`` says of a model, on held-out series or on those of another anatomy.

python benchmarks/evidence/held_out.py runs/tiny/model --cache runs/tiny/cache [--anatomy FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from arms import Results, anatomy_of, described

from decipher_rt.train.decoders.evaluate import change_sources, evaluate_model
from decipher_rt.train.progress import Progress
from decipher_rt.train.weights import load_weights


def main() -> None:
    """Measure and keep."""
    options = arguments()
    torch.set_num_threads(2)
    weights = load_weights(options.model)
    results = Results(options.json, {**described(weights), "anatomy": anatomy_of(options.anatomy)}, __file__)
    if options.anatomy:
        changed = change_sources(weights.config, [f"source.anatomy={options.anatomy}"])
        weights = replace(weights, config=changed)
    results.part("figures", lambda: evaluate_model(weights, options.model, options.cache, Progress()))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of train decoder")
    parser.add_argument("--cache", type=Path, default=Path(".cache/samples"))
    parser.add_argument("--anatomy", type=Path, help="NIfTI of a head that the series are made around")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/evidence-held-out.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
