"""What the heads' graphs give becomes answers: checked, and brought from the grid to the patient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.boxes import boxes_on_grid
from decipher_rt.errors import BundleError
from decipher_rt.label_map import LabelMap, strided_affine, within_source
from decipher_rt.manifest import Head, Preprocessing
from decipher_rt.result import HeadAnswer
from decipher_rt.volume import Volume

NOT_FINITE = "the head's output holds a value that is no finite number"
SCORE_ROUNDING = 1e-5  # a probability may end so far beyond 0 or 1


def answer_of(
    head: Head,
    output: NDArray[Any],
    spec: Preprocessing,
    grid_affine_lps_mm: NDArray[np.float64],
    volume: Volume,
) -> HeadAnswer:
    """Turn the output of a head for one volume into its answer.

    Parameters
    ----------
    head : Head
        Of the manifest.
    output : ndarray
        Of its graph, batch of one.
    spec : Preprocessing
        Of the manifest.
    grid_affine_lps_mm : ndarray, shape (4, 4)
        Of the grid that was encoded.
    volume : Volume
        The source.

    Returns
    -------
    HeadAnswer
        ``not_answered`` where the graph gave something that is no answer, such as NaN: the other heads stand.

    Raises
    ------
    BundleError
        If the output is not what the manifest promises.
    """
    if head.kind == "segmentation":
        return _segmentation(head, output, spec, grid_affine_lps_mm, volume)
    _require(head, output.dtype == np.float32, f"values of type {output.dtype}, expected float32")
    if not np.isfinite(output).all():
        return HeadAnswer(head.kind, note=head.description, not_answered=NOT_FINITE)
    if head.kind == "localisation":
        return _localisation(head, output, grid_affine_lps_mm)
    if head.kind == "regression":
        _require(head, output.shape == (1, 1), f"a value of shape {output.shape}, expected (1, 1)")
        return HeadAnswer(head.kind, value=float(output[0, 0]), unit=head.unit, note=head.description)
    _require(
        head,
        output.shape == (1, len(head.labels)),
        f"probabilities of shape {output.shape}, expected {(1, len(head.labels))} for its labels",
    )
    if ((output < -SCORE_ROUNDING) | (output > 1 + SCORE_ROUNDING)).any():
        reason = "the head gave a probability outside 0 to 1"
        return HeadAnswer(head.kind, note=head.description, not_answered=reason)
    probabilities = dict(zip(head.labels, output[0].clip(0, 1).tolist(), strict=True))
    best = max(probabilities, key=probabilities.__getitem__)
    return HeadAnswer(head.kind, label=best, probabilities=probabilities, note=head.description)


def _segmentation(
    head: Head,
    output: NDArray[Any],
    spec: Preprocessing,
    grid_affine_lps_mm: NDArray[np.float64],
    volume: Volume,
) -> HeadAnswer:
    expected = (1, *(size // head.stride for size in spec.grid_shape))
    _require(
        head,
        output.shape == expected and output.dtype == np.uint8,
        f"a label map of shape {output.shape} and type {output.dtype}, expected {expected} and uint8",
    )
    most = int(output.max())
    _require(head, most < len(head.labels), f"the label {most}, the manifest names {len(head.labels)}")
    whole = LabelMap(output[0], head.labels, strided_affine(grid_affine_lps_mm, head.stride))
    voxels = within_source(whole, volume.affine_lps_mm, volume.voxels.shape)
    found = LabelMap(voxels, whole.labels, whole.affine_lps_mm)
    return HeadAnswer(head.kind, label_map=found, volumes_ml=found.volumes_ml(), note=head.description)


def _localisation(head: Head, output: NDArray[Any], grid_affine_lps_mm: NDArray[np.float64]) -> HeadAnswer:
    fits = output.ndim == 3 and output.shape[0] == 1 and output.shape[2] == 7
    _require(head, fits, f"boxes of shape {output.shape}, expected (1, M, 7)")
    found = output[0]
    scores, sizes = found[:, 0], found[:, 4:]
    if ((scores < -SCORE_ROUNDING) | (scores > 1 + SCORE_ROUNDING)).any() or (sizes < 0).any():
        reason = "the head gave a box with a score outside 0 to 1 or a negative size"
        return HeadAnswer(head.kind, note=head.description, not_answered=reason)
    return HeadAnswer(head.kind, boxes=boxes_on_grid(found, grid_affine_lps_mm, head.threshold), note=head.description)


def _require(head: Head, good: bool, found: str) -> None:
    if not good:
        raise BundleError(f"head {head.name} gives {found}; export the bundle again")
