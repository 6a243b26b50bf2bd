"""Figures of a trained model on held-out simulated series: what the model card states."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score

from .data.sample import KINDS
from .first_config import FirstConfig
from .metrics import calibration_error
from .model.first import FirstModel
from .model.heads import SEQUENCES
from .predict import predict
from .samples import SeriesStore


def evaluate(model: FirstModel, test: SeriesStore, config: FirstConfig) -> dict[str, Any]:
    """Return the figures as plain JSON types.

    ``sequence``: accuracy, confusion matrix (rows truth, columns answer, order of ``SEQUENCES``), calibration error.
    ``lesion``: area under the ROC curve, sensitivity and specificity at 0.5, calibration error.
    ``scope``: share of heads refused, and for each other kind the share refused; area under the ROC curve.
    """
    seen = predict(model, test)
    heads = seen.head
    probabilities = torch.softmax(torch.from_numpy(seen.sequence[heads]), dim=-1).numpy()
    truth, answer = seen.sequence_truth[heads], probabilities.argmax(axis=1)
    lesion_truth = seen.lesion_truth[heads]
    lesion = torch.sigmoid(torch.from_numpy(seen.lesion[heads])).numpy()
    with torch.no_grad():
        score = model.scope(torch.from_numpy(seen.embedding)).numpy()
    refused = score < 0
    return {
        "split": f"{int(heads.sum())} heads and {int((~heads).sum())} others, simulated, seed {config.seed}",
        "sequence": {
            "accuracy": _round((truth == answer).mean()),
            "confusion": confusion_matrix(truth, answer, labels=range(len(SEQUENCES))).tolist(),
            "calibration_error": _round(calibration_error(probabilities.max(axis=1), truth == answer)),
        },
        "lesion": {
            "auroc": _round(roc_auc_score(lesion_truth, lesion)) if 0 < lesion_truth.mean() < 1 else None,
            "sensitivity": _share(lesion[lesion_truth] >= 0.5),
            "specificity": _share(lesion[~lesion_truth] < 0.5),
            "calibration_error": _round(
                calibration_error(np.maximum(lesion, 1 - lesion), (lesion >= 0.5) == lesion_truth)
            ),
        },
        "scope": {
            "heads_refused": _share(refused[heads]),
            "others_refused": {name: _share(refused[seen.kind == k]) for k, name in enumerate(KINDS) if k},
            "auroc": _round(roc_auc_score(heads, score)) if 0 < heads.mean() < 1 else None,
        },
    }


def _share(truths: NDArray[np.bool_]) -> float | None:
    return _round(truths.mean()) if truths.size else None


def _round(value: float) -> float:
    return round(float(value), 4)
