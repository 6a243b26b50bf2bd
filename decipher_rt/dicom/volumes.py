"""Which frames of a series make one volume: duplicates, kinds of image, stacks, and volumes at the same places."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from decipher_rt.dicom.image import Frame, Kind, VolumeKeys
from decipher_rt.dicom.source import Source
from decipher_rt.dicom.stack import SAME_POSITION_MM, STACK_TOLERANCE, place, stack_normal
from decipher_rt.errors import SeriesError

# Volumes are numbered kind by kind in this order: without being asked, one wants the magnitude.
KINDS: Final[tuple[Kind, ...]] = ("magnitude", "field map", "phase", "real", "imaginary")
# Stacks of the same orientation whose images begin further apart than this within the plane are different stacks.
SAME_STACK_MM: Final = 1.0
CONTRAST: Final = ("echo_time", "b_value", "inversion_time", "flip_angle")
ALIKE: Final = 0.01  # share by which these may differ from image to image of one contrast
# A localiser has three, a rotated projection some hundred; to tell one image from each takes time.
MOST_STACKS: Final = 500


@dataclass(frozen=True)
class VolumeFrames:
    """The frames of one volume, in any order.

    ``absent``: how many places other volumes of the stack have that this one has not; ``first_absent`` is the first of
    them (LPS mm).
    """

    frames: tuple[Frame, ...]
    kind: Kind
    absent: int = 0
    first_absent: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class _Stack:
    frames: list[Frame]
    slots: NDArray[np.intp]


def drop_duplicates(frames: Sequence[Frame], digest_of: Callable[[Frame], bytes]) -> tuple[list[Frame], list[str]]:
    """Leave out images that are there twice: the same SOP instance, or the same place, keys and pixels.

    Parameters
    ----------
    frames : sequence of Frame
    digest_of : callable
        Gives a digest of a frame's pixels; asked only of images that look like duplicates.

    Raises
    ------
    SeriesError
        Where two files claim to be the same SOP instance at the same place, with different pixels.
    """

    def pixels(frame: Frame) -> Hashable:
        return frame.shape, frame.slope, frame.intercept, digest_of(frame)

    kept: list[Frame] = []
    instances: dict[Hashable, Frame] = {}
    first_alike: dict[Hashable, Frame] = {}
    pixels_alike: dict[Hashable, set[Hashable]] = {}
    dropped: list[Frame] = []
    reused = 0
    same_file = cache(_same_file)  # asked of every frame of two multi-frame files
    for frame in frames:
        where = (frame.position, frame.orientation, frame.tile)
        instance = (frame.sop_uid, frame.index, frame.tile)
        same = instances.get(instance) if frame.sop_uid else None
        if same is not None and (same.position, same.orientation, same.tile) == where:
            if not (same_file(same.source, frame.source) or pixels(same) == pixels(frame)):
                raise SeriesError(
                    f"{frame.source.name} and {same.source.name} claim to be the same image (SOP Instance UID), "
                    "with different pixels; remove one"
                )
            dropped.append(frame)
            continue
        reused += same is not None
        likeness = (where, frame.keys, frame.kind, frame.instance)
        twin = first_alike.setdefault(likeness, frame)
        if twin is not frame:
            if likeness not in pixels_alike:
                pixels_alike[likeness] = {pixels(twin)}
            if (told := pixels(frame)) in pixels_alike[likeness]:
                dropped.append(frame)
                continue
            pixels_alike[likeness].add(told)
        instances.setdefault(instance, frame)
        kept.append(frame)
    warnings = []
    if dropped:
        warnings.append(f"{len(dropped)} duplicate images were left out (first: {dropped[0].source.name})")
    if reused:
        warnings.append(f"{reused} images share their SOP Instance UID with another one; told apart by position")
    return kept, warnings


def _same_file(one: Source, other: Source) -> bool:
    try:
        return one.same_bytes(other)
    except OSError:  # whoever reads the pixels says so
        return False


def split_volumes(frames: Sequence[Frame]) -> tuple[list[VolumeFrames], list[str]]:
    """Sort the frames of one series into volumes; the first is the one to take by default.

    Parameters
    ----------
    frames : sequence of Frame
        Without duplicates (`drop_duplicates`).

    Returns
    -------
    volumes : list of VolumeFrames
        Magnitude first; within a kind in the order of acquisition.
    warnings : list of str

    Raises
    ------
    SeriesError
        Where images at one place cannot be told apart into volumes.
    """
    warnings: list[str] = []
    by_kind: dict[Kind, list[Frame]] = defaultdict(list)
    for frame in frames:
        by_kind[frame.kind].append(frame)
    kinds = [kind for kind in KINDS if kind in by_kind]
    volumes: list[VolumeFrames] = []
    for kind in kinds:
        stack, left_out = _largest_stack(by_kind[kind])
        if left_out:
            warnings.append(left_out)
        if kind != kinds[0]:
            first = len(volumes)
            warnings.append(f"{len(by_kind[kind])} {kind} images are in the series too (--volume {first})")
        volumes += _volumes(stack, kind)
    if kinds[0] != "magnitude":
        warnings.append(f"the images are {kinds[0]} images, not magnitude")
    return volumes, warnings


def _largest_stack(frames: list[Frame]) -> tuple[_Stack, str]:
    stacks = [stack for group in _by_orientation(frames) for stack in _by_place(group)]
    largest = max(stacks, key=lambda stack: (int(stack.slots.max()), len(stack.frames)))
    others = len(frames) - len(largest.frames)
    if not others:
        return largest, ""
    return largest, (
        f"{others} images in {len(stacks) - 1} other stacks (another orientation or place) were left out; "
        f"the largest stack has {len(largest.frames)}"
    )


def _by_orientation(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Group by orientation, and by the name of the stack where files name one."""
    groups: dict[tuple[tuple[float, ...], str], list[Frame]] = {}
    known: dict[tuple[tuple[float, ...], str], list[Frame]] = {}
    for frame in frames:
        exactly = (frame.orientation, frame.stack)
        if exactly not in known:
            near: Iterator[list[Frame]] = (
                members
                for (orientation, stack), members in reversed(groups.items())
                if stack == frame.stack
                and max(abs(a - b) for a, b in zip(orientation, frame.orientation, strict=True)) <= STACK_TOLERANCE
            )
            known[exactly] = next(near, []) or groups.setdefault(exactly, [])
            _require_few(groups)
        known[exactly].append(frame)
    return list(groups.values())


def _require_few(stacks: Sized) -> None:
    if len(stacks) > MOST_STACKS:
        raise SeriesError(
            f"the images lie in more than {MOST_STACKS} stacks, each of another orientation or place: "
            "no volume; export parallel slices as a series of their own"
        )


def _by_place(frames: list[Frame]) -> list[_Stack]:
    """Give each image its place along the normal; split where images at one place begin far apart in the plane."""
    positions = np.array([frame.position for frame in frames])
    slots = _slots(frames, positions)
    first_at = np.zeros(int(slots.max()) + 1, dtype=np.intp)
    first_at[slots[::-1]] = np.arange(len(frames))[::-1]
    if np.linalg.norm(positions - positions[first_at[slots]], axis=1).max() <= SAME_STACK_MM:
        return [_Stack(frames, slots)]
    orientation = np.array(frames[0].orientation)
    in_plane = positions @ np.stack([orientation[:3], orientation[3:]], axis=1)
    origins: list[tuple[float, float]] = []
    parts: list[list[Frame]] = []
    for frame, (x, y) in zip(frames, in_plane.tolist(), strict=True):
        near = (i for i, (u, v) in enumerate(origins) if max(abs(x - u), abs(y - v)) <= SAME_STACK_MM)
        if (found := next(near, None)) is None:
            origins.append((x, y))
            parts.append([frame])
            _require_few(parts)
        else:
            parts[found].append(frame)
    return [_Stack(part, _slots(part, np.array([frame.position for frame in part]))) for part in parts]


def _slots(frames: Sequence[Frame], positions: NDArray[np.float64]) -> NDArray[np.intp]:
    locations = positions @ stack_normal(np.array(frames[0].orientation))
    order = np.argsort(locations, kind="stable")
    slots = np.empty(len(frames), dtype=np.intp)
    slots[order] = np.concatenate([[0], np.cumsum(np.diff(locations[order]) > SAME_POSITION_MM)])
    return slots


def _volumes(stack: _Stack, kind: Kind) -> list[VolumeFrames]:
    """Tell volumes at the same places apart by what the header says of them, else by their order at each place."""
    frames, slots = stack.frames, stack.slots
    per_slot = np.bincount(slots)
    if per_slot.max() == 1:
        _require_one_contrast(frames, slots)
        return [VolumeFrames(tuple(frames), kind)]
    groups = (
        _by_keys(frames, slots, per_slot, ALIKE)
        or _by_keys(frames, slots, per_slot, alike=0)
        or _by_rank(frames, slots, per_slot)
    )
    groups.sort(key=lambda members: min(frames[index].instance for index in members))
    position_of = {int(slot): frame.position for slot, frame in zip(slots, frames, strict=True)}
    volumes = []
    for members in groups:
        filled = {int(slots[index]) for index in members}
        first_empty = next(slot for slot in range(len(filled) + 1) if slot not in filled)
        absent, first_absent = len(position_of) - len(filled), position_of.get(first_empty)
        volumes.append(VolumeFrames(tuple(frames[index] for index in members), kind, absent, first_absent))
    return volumes


def _require_one_contrast(frames: Sequence[Frame], slots: NDArray[np.intp]) -> None:
    """Raise SeriesError where images of different contrast lie between one another: volumes that are shifted."""
    told = [_told(frames, name, ALIKE) for name in CONTRAST]
    places: dict[Hashable, list[int]] = defaultdict(list)
    for contrast, slot in zip(zip(*told, strict=True), slots, strict=True):
        places[contrast].append(int(slot))
    stretches = sorted((min(members), max(members)) for members in places.values() if len(members) > 1)
    if any(after[0] < before[1] for before, after in pairwise(stretches)):
        raise SeriesError(
            f"images of {len(stretches)} contrasts (echo, inversion time, b-value, flip angle) lie between each other: "
            "volumes that are shifted; export each as a series of its own"
        )


def _told(frames: Sequence[Frame], key: str, alike: float) -> Sequence[Hashable]:
    """Return what a key says of each image: levels, where it is of the contrast."""
    values = [getattr(frame.keys, key) for frame in frames]
    return _levels(values, alike) if key in CONTRAST else values


def _levels(values: Sequence[float | None], alike: float) -> list[int]:
    """Return numbers for values, the same for those that a scanner varies from image to image; 0 for None."""
    level, level_of = 0, {}
    for before, value in pairwise([-math.inf, *sorted({value for value in values if value is not None})]):
        level += value - before > alike * abs(value)
        level_of[value] = level
    return [0 if value is None else level_of[value] for value in values]


def _by_keys(
    frames: Sequence[Frame], slots: NDArray[np.intp], per_slot: NDArray[np.intp], alike: float
) -> list[list[int]] | None:
    """Group by the first keys that put each place into each volume at most once.

    A key can number volumes only where it varies at one place, and takes no values elsewhere that it does not take at
    the place with the most images (a time of acquisition, say, differs everywhere and numbers nothing).
    """
    fullest = int(per_slot.argmax())
    chosen: list[Sequence[Hashable]] = []
    for key in fields(VolumeKeys):
        values = _told(frames, key.name, alike)
        at_fullest = {value for value, slot in zip(values, slots, strict=True) if slot == fullest}
        if len(at_fullest) < 2 or not set(values) <= at_fullest:
            continue
        chosen.append(values)
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for index, volume in enumerate(zip(*chosen, strict=True)):
            groups[volume].append(index)
        if all(len({int(slots[index]) for index in members}) == len(members) for members in groups.values()):
            return list(groups.values())
    return None


def _by_rank(frames: Sequence[Frame], slots: NDArray[np.intp], per_slot: NDArray[np.intp]) -> list[list[int]]:
    """Put the n-th image of each place, by instance number, into the n-th volume; only where all have as many."""
    instances = Counter((int(slot), frame.instance) for slot, frame in zip(slots, frames, strict=True))
    if per_slot.min() != per_slot.max() or max(instances.values()) > 1:
        few, many = int(per_slot.argmin()), int(per_slot.argmax())
        places = {int(slot): np.array(frame.position) for slot, frame in zip(slots, frames, strict=True)}
        raise SeriesError(
            f"the images cannot be told apart into volumes: {per_slot[few]} at {place(places[few])}, "
            f"{per_slot[many]} at {place(places[many])}, and neither time, echo nor number says which belong together"
        )
    volumes: list[list[int]] = [[] for _ in range(int(per_slot.max()))]
    seen: Counter[int] = Counter()
    for index in sorted(range(len(frames)), key=lambda index: frames[index].instance):
        slot = int(slots[index])
        volumes[seen[slot]].append(index)
        seen[slot] += 1
    return volumes
