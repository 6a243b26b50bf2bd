"""Draw the sheets of docs/simulator.md and time the simulator.

python -m decipher_rt.train.data.series.sheet FOLDER
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decipher_rt.manifest import Preprocessing

from .. import load_anatomy, simulate
from ..anatomy import Anatomy
from ..sample import Sample
from ..scene import Scene, draw_scene

GRID = Preprocessing((96, 96, 96), (2.5, 2.5, 2.5), (12, 12, 12), (128, 256, 512))
FAMILIES = ("mprage", "flash2d", "tse", "flair", "epi", "gre2d")
TIMED = 100


def main() -> None:
    """Write ``simulator-heads.png`` and ``simulator-others.png`` into the folder and print CPU times."""
    folder = Path(sys.argv[1])
    anatomy = load_anatomy()
    wanted = [_wanted(family, lesion) for family in FAMILIES for lesion in (False, True)]
    heads = [_row(_first(anatomy, good), overlay=True) for good in wanted]
    _write(folder / "simulator-heads.png", heads)
    others = [
        _row(simulate(seed, anatomy, GRID, kind=kind), overlay=False)
        for kind in ("phantom", "other_anatomy", "scrambled")
        for seed in (0, 2, 3)
    ]
    _write(folder / "simulator-others.png", others)
    times = []
    for seed in range(TIMED):
        start = time.process_time()
        simulate(seed, anatomy, GRID, kind="head")
        times.append(time.process_time() - start)
    median, p90 = np.quantile(times, (0.5, 0.9))
    print(f"{TIMED} heads of 96^3: {median:.3f} s CPU time median, {p90:.3f} s 90th percentile")


def _wanted(family: str, lesion: bool) -> Callable[[Scene], bool]:
    plane = "sagittal" if family in ("mprage", "flash2d") else "axial"

    def good(scene: Scene) -> bool:
        whole = scene.look.removed == "nothing" and not scene.look.wrap
        return (
            whole
            and scene.protocol.family == family
            and scene.prescription.plane == plane
            and bool(scene.lesions) == lesion
        )

    return good


def _first(anatomy: Anatomy, good: Callable[[Scene], bool]) -> Sample:
    for seed in range(10_000):
        scene = draw_scene(seed, anatomy)
        if good(scene):
            sample = simulate(seed, anatomy, GRID, kind="head")
            if sample.labels.lesion == bool(scene.lesions) and sample.volumes_ml["brain"] > 600:
                return sample
    raise ValueError("no seed gives such a scene")


def _row(sample: Sample, *, overlay: bool) -> NDArray[np.uint8]:
    """Three orthogonal planes, through the largest lesion where there is one, and the labels beside them."""
    low, high = sample.window
    grey = np.clip((sample.volume - low) / (high - low), 0, 1)
    middle = [n // 2 for n in grey.shape]
    if sample.lesions:
        largest = max(sample.lesions, key=lambda lesion: lesion.volume_ml)
        middle = [round(c) for c in largest.center_voxel]
    else:
        rows = np.flatnonzero((sample.volume > low).any((1, 2)))
        middle[0] = int(rows.mean()) if len(rows) else middle[0]
    colours = np.array([[0, 0, 0], [110, 160, 220], [235, 235, 235], [60, 90, 200], [240, 80, 60]], np.uint8)
    panels = []
    for image in (np.repeat((255 * grey).astype(np.uint8)[..., None], 3, -1), colours[sample.tissue]):
        panels += [
            image[:, :, middle[2]][::-1, ::-1],  # from the left: the face to the left
            image[middle[0]][::-1, ::-1],  # from below: the patient's right on the left
            image[:, middle[1]][::-1, ::-1],
        ]
        if not overlay:
            break
    return np.concatenate(panels, 1)


def _write(path: Path, rows: list[NDArray[np.uint8]]) -> None:
    from PIL import Image

    half = (len(rows) + 1) // 2
    columns = [np.concatenate(part, 0) for part in (rows[:half], rows[half:])]
    tallest = max(len(c) for c in columns)
    columns = [np.pad(c, ((0, tallest - len(c)), (0, 0), (0, 0))) for c in columns]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(columns, 1)).quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main()
