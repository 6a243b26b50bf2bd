"""What a simulated report may state, before it is put into words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..data.sample import Lesion, Sample
from ..data.scene import Scene
from ..data.series.acquired import AcquiredSeries
from ..data.simulator import scene_facts

GHOSTED, NOISY = 0.05, 20.0  # from where on a reader would mention ghosts, and below which SNR noise


@dataclass(frozen=True)
class LesionFinding:
    """One visible lesion: the simulator's kind, lobe or region and side, and its largest extent in whole mm."""

    kind: str
    region: str
    side: str
    size_mm: int


@dataclass(frozen=True)
class Findings:
    """Everything that a report states of one series.

    ``kind`` is one of the simulator's ``KINDS``; for what is not a head, nothing else is stated. ``snr`` is of white
    matter, ``ghost`` a share of the signal, ``removed`` "nothing", "face" or "scalp".
    """

    kind: str
    sequence: str = ""
    family: str = ""
    field_t: float = 0.0
    plane: str = ""
    slices: int = 0
    slice_step_mm: float = 0.0
    ventricles: str = ""
    ghost: float = 0.0
    snr: float = 0.0
    removed: str = "nothing"
    lesions: tuple[LesionFinding, ...] = ()


def sample_findings(sample: Sample) -> Findings:
    """Return what can be said of a simulated sample: of its lesions, those that are visible."""
    if sample.labels.kind != "head" or sample.labels.sequence is None:
        return Findings(sample.labels.kind)
    field_t = float(sample.header.field_strength_t or 0.0)
    return _head(sample.labels.sequence, field_t, sample.facts, _visible(sample.lesions))


def series_findings(series: AcquiredSeries) -> Findings:
    """Return what can be said of a simulated series at its native matrix: of its lesions, those that are visible."""
    protocol = series.scene.protocol
    return _head(protocol.sequence, protocol.field_strength_t, scene_facts(series.scene), _visible(series.lesions))


def scene_findings(scene: Scene) -> Findings:
    """Return what could be said of a scene that nobody has rendered: every lesion drawn counts as visible.

    For text alone: a report of an image must come from ``sample_findings``.
    """
    lesions = tuple(
        LesionFinding(plan.kind, plan.region, plan.side, round(2 * float(plan.radii_mm.max())))
        for plan in scene.lesions
    )
    return _head(scene.protocol.sequence, scene.protocol.field_strength_t, scene_facts(scene), lesions)


def _visible(lesions: tuple[Lesion, ...]) -> tuple[LesionFinding, ...]:
    return tuple(LesionFinding(one.kind, one.region, one.side, round(max(one.size_mm))) for one in lesions)


def _head(
    sequence: str, field_t: float, facts: Mapping[str, str | float], lesions: tuple[LesionFinding, ...]
) -> Findings:
    return Findings(
        kind="head",
        sequence=sequence,
        family=str(facts["family"]),
        field_t=field_t,
        plane=str(facts["plane"]),
        slices=int(facts["slices"]),
        slice_step_mm=float(facts["slice_step_mm"]),
        ventricles=str(facts["ventricles"]),
        ghost=float(facts["ghost"]),
        snr=float(facts["snr"]),
        removed=str(facts["removed"]),
        lesions=lesions,
    )
