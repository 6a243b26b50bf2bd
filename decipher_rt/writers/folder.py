"""One folder for each series, whole or not there: ``result.json``, ``embedding.npy``, segmentations, ``views.png``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from decipher_rt.atomic import require_place, whole_folder
from decipher_rt.clock import StageClock
from decipher_rt.errors import DecipherError
from decipher_rt.result import SCHEMA, Result, SeriesSeen
from decipher_rt.volume import Volume

RESULT, EMBEDDING, VIEWS = "result.json", "embedding.npy", "views.png"
HIDDEN = (".DS_Store", "Thumbs.db")  # of those who look at the folder


def folder_writer(out: Path, *, png: bool) -> Callable[[Result, Volume, StageClock], Result]:
    """Return the function that writes a result into its own folder below ``out``.

    Raises
    ------
    DecipherError
        At once, if ``out`` exists and is no folder.
    OSError
        At once, if nothing can be written there.
    """
    if out.exists() and not out.is_dir():
        raise DecipherError(f"{out}: exists and is not a folder; choose another name for -o")
    require_place(out / RESULT)
    seen = SeriesSeen()

    def write(result: Result, volume: Volume, clock: StageClock) -> Result:
        target = out / folder_name(result.series["uid"], result.series["volume_index"])
        seen.require_new(result)
        try:
            with suppress(FileNotFoundError):  # another process takes it away to put its own there
                _require_ours(target)
            with whole_folder(target) as staging:
                return _fill(staging, target, result, volume, clock, png=png)
        except OSError as error:
            raise DecipherError(f"{error.filename}: cannot be written ({error.strerror or error})") from None

    return write


def _fill(staging: Path, target: Path, result: Result, volume: Volume, clock: StageClock, *, png: bool) -> Result:
    """Write all files of a result; return the result that says where."""
    np.save(staging / EMBEDDING, result.embedding, allow_pickle=False)
    filed = _write_segmentations(result, volume, staging, target)
    if png:
        from decipher_rt.writers.views import draw_views

        timed = replace(filed, timings_ms=clock.timings_ms("write"))
        (staging / VIEWS).write_bytes(draw_views(timed, volume))
    clock.finish("write")
    written = replace(filed, embedding=str(target / EMBEDDING), timings_ms=clock.timings_ms())
    (staging / RESULT).write_text(json.dumps(written.to_json(), indent=2) + "\n", encoding="utf-8")
    return written


def _write_segmentations(result: Result, volume: Volume, staging: Path, target: Path) -> Result:
    """Write each label map as NIfTI in the source's geometry; return the result that says where."""
    heads = dict(result.heads)
    for name, answer in result.heads.items():
        if answer.label_map is None:
            continue
        from decipher_rt.writers.segmentation import nifti_name, segmentation_nifti

        (staging / nifti_name(name)).write_bytes(segmentation_nifti(answer.label_map, volume, name))
        heads[name] = replace(answer, file=str(target / nifti_name(name)))
    return replace(result, heads=heads)


def has_answer(out: Path, uid: str, volume_index: int) -> bool:
    """Whether a result of this series is below ``out``, whatever bundle gave it: a whole one, as after a power cut."""
    folder = out / folder_name(uid, volume_index)
    document = _read_result(folder)
    try:
        return document is not None and all((folder / name).stat().st_size for name in _files_beside(document))
    except (OSError, ValueError):  # ValueError: a name that no file has
        return False


def _read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result that lies in a folder, None where there is none that can be read."""
    try:
        document = json.loads((folder / RESULT).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return None
    heads = document.get("heads")
    return document if isinstance(heads, dict) and all(isinstance(answer, dict) for answer in heads.values()) else None


def _files_beside(document: dict[str, Any]) -> list[str]:
    """Return the names of the files that were written with a result."""
    from decipher_rt.writers.segmentation import nifti_name

    return [EMBEDDING, *(nifti_name(name) for name, answer in document["heads"].items() if "file" in answer)]


def _require_ours(folder: Path) -> None:
    """Raise DecipherError where a folder holds what no earlier run wrote: it would go with what did."""
    if not (folder / RESULT).is_file() and folder.exists() and not (folder / RESULT).is_file():
        raise DecipherError(f"{folder}: exists and holds no {RESULT}; move it away or choose another -o")
    if not (folder / RESULT).read_bytes().strip(b"\0"):  # what a power cut left
        return
    ours = {RESULT, VIEWS, *_files_beside(_read_result(folder) or {"heads": {}})}
    if foreign := next((p.name for p in folder.iterdir() if p.name not in ours and p.name not in HIDDEN), None):
        raise DecipherError(f"{folder}: holds {foreign}, which is none of its result; move it away")


def folder_name(uid: str, volume_index: int) -> str:
    """Return the series UID as a safe name, with the volume's index where it is not the first."""
    if not re.fullmatch(r"[0-9.]{1,64}", uid) or not uid.strip("."):
        uid = "series-" + hashlib.sha256(uid.encode()).hexdigest()[:16]
    return f"{uid}-volume{volume_index}" if volume_index else uid
