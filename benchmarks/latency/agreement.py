"""Whether (a) and (d) are the same computation, and how much their preprocessings differ.

python benchmarks/latency/agreement.py SERIES MODELS [OTHER_SERIES]     prints one JSON object
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from latency.base_model import torch_encoder
from latency.peers import AXES, LABELS, PATCHES, monai_transforms


def main() -> None:
    """Compare embeddings on one grid, then grids, then whole ways."""
    warnings.simplefilter("ignore")
    import torch

    import decipher_rt
    from decipher_rt.series import find_series, read_series

    series, models, *others = map(Path, sys.argv[1:])
    encoder, session = torch_encoder(models), decipher_rt.load(models / "all-fp32")
    shipped = decipher_rt.load(models / "foreground-int8", precision="int8")
    tokens = torch.arange(PATCHES)[None]

    @torch.inference_mode()
    def by_torch(volume: np.ndarray, window: np.ndarray) -> np.ndarray:
        volume = torch.from_numpy(np.ascontiguousarray(volume))[None, None]
        return encoder(volume, torch.from_numpy(window)[None], tokens)[1][0].numpy()

    def by_engine(volume: np.ndarray, window: np.ndarray) -> np.ndarray:
        inputs = {"volume": volume[None, None], "window": window[None], "tokens": tokens.numpy()}
        return session.encoder.run(inputs)["embedding"][0]

    grid = session.preprocessor(read_series(find_series(series)[0]))
    ours = by_engine(grid.volume, grid.window)
    theirs = by_torch(grid.volume, grid.window)
    low, high = grid.window
    normalised = np.clip((grid.volume - low) / (high - low), 0, 1) * 2 - 1
    image = monai_transforms()(str(series))
    loaded = image.as_tensor()[0].numpy()
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    corner = to_ras @ grid.affine_lps_mm @ [0, 0, 0, 1] - image.affine.numpy() @ [0, 0, 0, 1]
    unit = np.array([-1.0, 1.0], np.float32)
    difference = np.abs(normalised - loaded) / 2  # of the window's width
    tissue = normalised > -0.8
    report = {
        "a_and_d_on_the_same_grid": {
            "cosine": cosine(ours, theirs),
            "max_abs_difference": float(np.abs(ours - theirs).max()),
        },
        "preprocessing_of_a_and_d": {
            "axes": AXES,
            "labels": [list(pair) for pair in LABELS],
            "grids_apart_mm": float(np.linalg.norm(corner)),
            "mean_difference_of_window": float(difference.mean()),
            "mean_difference_of_window_in_tissue": float(difference[tissue].mean()),
            "p99_difference_of_window": float(np.percentile(difference, 99)),
            "correlation": float(np.corrcoef(normalised.ravel(), loaded.ravel())[0, 1]),
            "embedding_cosine": cosine(ours, by_torch(loaded, unit)),
        },
        "d_and_e": {"embedding_cosine": cosine(ours, shipped.infer(series).embedding)},
    }
    if others:
        report["another_series"] = {"embedding_cosine": cosine(ours, session.infer(others[0]).embedding)}
    print(json.dumps(report))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine between two vectors, in double precision."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


if __name__ == "__main__":
    main()
