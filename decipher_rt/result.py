"""Result: what one series gave, as a frozen dataclass and as the JSON object of ``schemas/result-1.schema.json``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.boxes import Box
from decipher_rt.dicom.geometry import canonical_ras
from decipher_rt.errors import DecipherError, one_line
from decipher_rt.label_map import LabelMap
from decipher_rt.volume import Volume

SCHEMA = "decipher-rt/result/1"
FAILURE_SCHEMA = "decipher-rt/failure/1"
UNIT_TOLERANCE = 1e-2  # of the length of an embedding, which is said to be one
NOTICE = "Research tool, not a medical device."


@dataclass(frozen=True)
class ScopeAnswer:
    """Whether the series is what the model was made for. ``score`` is None where a rule on the header decided."""

    inside: bool
    score: float | None
    reason: str


@dataclass(frozen=True)
class HeadAnswer:
    """What one head said, or why it was not asked.

    Attributes
    ----------
    kind : a kind of head, as the manifest has them
    label, probabilities : of a classification
    value, unit : of a regression
    label_map : of a segmentation, on the grid; not in the JSON
    volumes_ml : of a segmentation: each label but the background, in the order of their values 1, 2, ...
    file : where the segmentation was written, if it was
    boxes : of a localisation, the best first; empty where nothing was found
    note : what the bundle says of the head
    not_answered : the reason, where there is no answer
    """

    kind: str
    label: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    unit: str | None = None
    not_answered: str | None = None
    label_map: LabelMap | None = None
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    file: str | None = None
    boxes: tuple[Box, ...] = ()
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return only the keys that apply."""
        return {"kind": self.kind, **self._said(), **({"note": self.note} if self.note else {})}

    def _said(self) -> dict[str, Any]:
        if self.not_answered is not None:
            return {"not_answered": self.not_answered}
        if self.kind == "segmentation":
            labels = [
                {"value": value, "label": label, "volume_ml": round(ml, 3)}
                for value, (label, ml) in enumerate(self.volumes_ml.items(), 1)
            ]
            return {"labels": labels, **({"file": as_text(self.file)} if self.file else {})}
        if self.kind == "localisation":
            return {"boxes": [box.to_json() for box in self.boxes]}
        if self.label is not None:
            return {"label": self.label, "probabilities": dict(self.probabilities)}
        return {"value": self.value, "unit": self.unit}


@dataclass(frozen=True)
class PromptAnswer:
    """How near a series is to a prompt.

    Attributes
    ----------
    cosine : -1 to 1, between the embeddings; None where the series is out of scope
    probability : among all prompts given; None where there is only one
    not_answered : the reason, where there is no answer
    """

    cosine: float | None = None
    probability: float | None = None
    not_answered: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return only the keys that apply."""
        if self.not_answered is not None:
            return {"not_answered": self.not_answered}
        probability = {} if self.probability is None else {"probability": self.probability}
        return {"cosine": self.cosine, **probability}


@dataclass(frozen=True)
class Result:
    """The answers for one series.

    Attributes
    ----------
    series : dict
        The ``series`` object of the JSON (see ``describe_series``).
    bundle, engine, tokens : dict
        Which bundle and engine answered, and how many of how many tokens were kept.
    embedding : ndarray, shape (E,), float32, or str
        L2-normalised; or the file it was written to.
    scope : ScopeAnswer
    heads : mapping from head name to HeadAnswer
    timings_ms : dict
        ``read, preprocess, encode, heads, write`` and ``total``, in milliseconds; the total is measured on its own.
    prompts : mapping from prompt to PromptAnswer
        Empty where none were given.
    """

    series: Mapping[str, Any]
    bundle: Mapping[str, str]
    engine: Mapping[str, Any]
    tokens: Mapping[str, int]
    embedding: NDArray[np.float32] | str
    scope: ScopeAnswer
    heads: Mapping[str, HeadAnswer]
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    prompts: Mapping[str, PromptAnswer] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, schema ``decipher-rt/result/1``."""
        vector = self.embedding
        embedding = as_text(vector) if isinstance(vector, str) else [_seven(x) for x in vector.tolist()]
        return {
            "schema": SCHEMA,
            "series": dict(self.series),
            "bundle": dict(self.bundle),
            "engine": dict(self.engine),
            "tokens": dict(self.tokens),
            "embedding": embedding,
            "scope": {"in": self.scope.inside, "score": self.scope.score, "reason": self.scope.reason},
            "heads": {name: answer.to_json() for name, answer in self.heads.items()},
            **({"prompts": {text: near.to_json() for text, near in self.prompts.items()}} if self.prompts else {}),
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings_ms.items()},
            "notice": NOTICE,
        }


@dataclass(frozen=True)
class Failure:
    """A series that could not be answered, and why in one line."""

    path: str
    uid: str | None
    error: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, schema ``decipher-rt/failure/1``."""
        return {"schema": FAILURE_SCHEMA, "series": {"uid": self.uid, "path": as_text(self.path)}, "error": self.error}


class SeriesSeen:
    """The series of one run. Two of one UID, as a study and a changed copy have them, would take each other's place."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], tuple[str, NDArray[np.float32] | str]] = {}

    def require_new(self, result: Result) -> None:
        """Raise DecipherError where another series of the UID was answered for; the very same one may come again."""
        series, embedding = result.series, result.embedding
        key = (series["uid"], series["volume_index"])
        earlier, known = self._seen.setdefault(key, (series["path"], embedding))
        if earlier != series["path"] and not np.array_equal(known, embedding):
            raise DecipherError(
                f"{series['path']}: has the Series Instance UID of {earlier} in the same run; "
                "answer for it in a run of its own"
            )


def describe_series(volume: Volume, more_warnings: Iterable[str] = ()) -> dict[str, Any]:
    """Return the ``series`` object of a result: identity, and geometry in canonical RAS as NIfTI tools state it."""
    series = volume.series
    frame = canonical_ras(volume.affine_lps_mm, volume.voxels.shape)
    described: dict[str, Any] = {
        "uid": series.uid,
        "path": as_text(series.path),
        "manufacturer": series.manufacturer,
        "description": series.description,
        "files": series.files,
        "volume_index": series.volume_index,
        "volumes": series.volumes,
        "shape_ras": list(frame.shape_ras),
        "spacing_mm": [_seven(x) for x in np.linalg.norm(frame.affine_ras_mm[:3, :3], axis=0).tolist()],
        "affine_ras_mm": np.round(frame.affine_ras_mm, 6).tolist(),
        "warnings": [one_line(warning) for warning in (*series.warnings, *more_warnings)],
    }
    if series.patient:
        described["patient"] = dict(series.patient)
    return described


def as_text(path: str | Path) -> str:
    """Return a path as text; bytes that are no UTF-8, which JSON cannot say, as four characters from a backslash on."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _seven(number: float) -> float:
    """Seven significant digits: all that a float32 holds."""
    return float(f"{number:.7g}")
