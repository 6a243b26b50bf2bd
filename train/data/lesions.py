"""Lesions: where they may lie, how they are shaped, and how they enter an image and a label map in MNI space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .anatomy import Map
from .tissues import INDEX, TISSUES

KINDS = ("plaque", "tumour", "lacune", "infarct")
VENTRICLES = ((-15.0, -18.0, 14.0), (15.0, -18.0, 14.0))  # what the white matter beside them is near to
LABEL = 4  # of the first lesion in the label map; the next ones follow while they are told apart
GREY, WHITE = TISSUES.index("grey"), TISSUES.index("white")


@dataclass(frozen=True)
class LesionPlan:
    """One lesion in MNI space.

    Attributes
    ----------
    kind : one of ``KINDS``
    centre_mm : MNI, RAS
    radii_mm : half axes of the lesion's own frame
    frame : (3, 3) rows are its axes in MNI RAS
    waves : (K, 5) wave vectors (rad per mm), phases and amplitudes of the irregular border
    layers : ((tissue, from, to) ...) in units of the radius, from the outside in
    severity : how far the tissue is replaced, 0 to 1
    """

    kind: str
    centre_mm: NDArray[np.float64]
    radii_mm: NDArray[np.float64]
    frame: NDArray[np.float64]
    waves: NDArray[np.float64]
    layers: tuple[tuple[str, float], ...]
    severity: float

    @property
    def side(self) -> str:
        """Patient's side, from the MNI position."""
        x = self.centre_mm[0]
        return "midline" if abs(x) < 4 else ("right" if x > 0 else "left")

    @property
    def region(self) -> str:
        """Lobe or region, from the MNI position."""
        return region_at(self.centre_mm)


def region_at(mni_mm: NDArray[np.float64]) -> str:
    """Name the region of an MNI position (RAS mm) by planes between lobes; coarse, meant for report wording."""
    x, y, z = (float(v) for v in mni_mm)
    if abs(x) < 14 and -44 < y < -8 and z < -8:
        return "brainstem"
    tentorium = (-14 if y > -60 else -8) - 0.28 * max(0.0, abs(x) - 15)
    if y < -34 and z < tentorium:
        return "cerebellum"
    if abs(x) < 34 and -32 < y < 20 and -8 < z < 18 and abs(x) > 5:
        return "deep grey nuclei"
    if y < -62 and z < 30 + 0.9 * (y + 62):
        return "occipital lobe"
    if -62 < y < 16 and z < 4 + max(0.0, -0.45 * (y + 20)) and abs(x) > 18:
        return "temporal lobe"
    if y > -8 - 0.35 * max(0.0, z - 10):  # the central sulcus runs backwards as it rises
        return "frontal lobe"
    return "parietal lobe" if z > 16 else ("occipital lobe" if y < -50 else "temporal lobe")


def draw_lesions(rng: np.random.Generator, base: Map) -> tuple[LesionPlan, ...]:
    """Draw none (a little under half of the time) to four lesions, of one kind or mixed."""
    if rng.random() < 0.42:
        return ()
    kind = str(rng.choice(KINDS, p=[0.38, 0.26, 0.16, 0.20]))
    limit = {"plaque": 4, "tumour": 1, "lacune": 3, "infarct": 1}[kind]
    plans = []
    for _ in range(int(rng.integers(1, limit + 1))):
        plan = _draw_one(rng, base, kind)
        if plan is not None:
            plans.append(plan)
    if rng.random() < 0.12 and len(plans) < 4:
        other = _draw_one(rng, base, str(rng.choice(KINDS)))
        plans += [] if other is None else [other]
    return tuple(plans)


def paint(
    plan: LesionPlan,
    base: Map,
    signals: NDArray[np.float64],
    image: NDArray[np.float32],
    labels: NDArray[np.float32],
    label: int,
) -> float:
    """Paint a lesion into an image and a label map of ``base``'s shape, in place.

    Parameters
    ----------
    signals : signal of every row of ``tissues.RELAXATION``
    image : (S, A, R) signals; labels : (S, A, R) tissue labels; label : what the lesion's voxels get

    Returns
    -------
    float
        Mean change of the signal over the lesion, relative to nothing: its contrast in the units of ``signals``.
    """
    reach = float(plan.radii_mm.max()) * 1.6 + 2
    low = np.array(base.origin_mm)
    first = np.maximum(np.floor((plan.centre_mm - reach - low) / base.step_mm).astype(int), 0)[::-1]
    last = np.minimum(np.ceil((plan.centre_mm + reach - low) / base.step_mm).astype(int) + 1, image.shape[::-1])[::-1]
    if (last <= first).any():
        return 0.0
    block = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    axes = [low[2 - i] + base.step_mm * np.arange(first[i], last[i]) - plan.centre_mm[2 - i] for i in range(3)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    points = np.stack([x, y, z], -1)
    radius = _radius(plan, points)
    brain = (base.palette[:, GREY] + base.palette[:, WHITE])[base.codes[block]]
    edge = float(plan.radii_mm.min())
    before = image[block].copy()
    for tissue, share in plan.layers:
        occupied = np.clip(0.5 + (share - radius) * edge / 1.5, 0, 1) * brain * plan.severity
        image[block] += (occupied * (signals[INDEX[tissue]] - image[block])).astype(np.float32)
    inside = (radius < plan.layers[0][1]) & (brain > 0.5)
    labels[block][inside] = label
    return float(np.mean(image[block][inside] - before[inside])) if inside.any() else 0.0


def _radius(plan: LesionPlan, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from the centre in units of the irregular border's."""
    own = points @ plan.frame.T
    if plan.kind == "infarct":  # a wedge: narrow at the ventricle's end of its first axis, wide at the cortex
        along = own[..., 0] / plan.radii_mm[0]
        width = np.clip(0.55 + 0.45 * along, 0.12, 1.0)
        across = np.sqrt(((own[..., 1:] / plan.radii_mm[1:]) ** 2).sum(-1)) / width
        radius = np.maximum(np.abs(along), across)
    else:
        radius = np.sqrt(((own / plan.radii_mm) ** 2).sum(-1))
    waves = plan.waves
    border = (np.sin(points @ waves[:, :3].T + waves[:, 3]) * waves[:, 4]).sum(-1)
    return radius * (1 + border)


def _draw_one(rng: np.random.Generator, base: Map, kind: str) -> LesionPlan | None:
    centre = _draw_centre(rng, base, kind)
    if centre is None:
        return None
    u = rng.uniform
    frame = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    outward = centre - np.array(VENTRICLES[int(centre[0] > 0)])
    if kind in ("plaque", "infarct"):  # fingers of Dawson and wedges point away from the ventricle
        q, _ = np.linalg.qr(np.column_stack([outward + rng.normal(0, 4, 3), frame[:, 0], frame[:, 1]]))
        frame = (q * np.where(q[:, 0] @ outward < 0, -1.0, 1.0)).T
    size = {"plaque": u(3, 7.5), "tumour": u(8, 17), "lacune": u(3, 6), "infarct": u(9, 18)}[kind]
    radii = size * np.exp(rng.normal(0, 0.16, 3))
    if kind == "plaque":
        radii *= np.array([1.35, 0.85, 0.85])
    layers: tuple[tuple[str, float], ...] = ((kind, 1.0),)
    if kind == "tumour":
        layers = (("tumour", 1.0),)
        if rng.random() < 0.7:
            layers = (("oedema", 1.0), ("tumour", u(0.5, 0.75)))
            radii *= 1.25
        if rng.random() < 0.5:
            layers = (*layers, ("necrosis", layers[-1][1] * u(0.35, 0.7)))
    if kind == "lacune" and rng.random() < 0.7:
        layers = (("plaque", 1.0), ("lacune", u(0.55, 0.75)))
    radii = np.clip(radii, 3.0, 24.0)
    count = 5
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wave = direction * (u(1.2, 4.0, (count, 1)) / radii.mean())
    rough = {"plaque": 0.10, "tumour": 0.15, "lacune": 0.07, "infarct": 0.10}[kind]
    waves = np.column_stack([wave, u(0, 2 * np.pi, count), rng.normal(0, rough, count)])
    return LesionPlan(kind, centre, radii, frame, waves, layers, u(0.75, 1.0))


def _draw_centre(rng: np.random.Generator, base: Map, kind: str) -> NDArray[np.float64] | None:
    """Draw a position whose tissue and distance from the ventricles suit the kind; None where no try does."""
    points = rng.uniform([-66, -100, -55], [66, 66, 74], (400, 3))
    index = np.round((points - np.array(base.origin_mm)) / base.step_mm).astype(int)
    mixture = base.palette[base.codes[index[:, 2], index[:, 1], index[:, 0]]]
    white, grey = mixture[:, WHITE], mixture[:, GREY]
    x, y, z = points.T
    near = np.min([(((points - np.array(c)) / np.array([20, 48, 25])) ** 2).sum(1) for c in VENTRICLES], 0)
    if kind == "plaque":
        good = (white > 0.7) & ((near < 2.0) | (rng.random(400) < 0.15)) & (z > -45)
    elif kind == "lacune":
        deep = (np.abs(x) < 36) & (y > -35) & (y < 25) & (z > -30) & (z < 32)
        good = (white + grey > 0.9) & deep & (np.abs(x) > 5)
    elif kind == "infarct":
        good = (white + grey > 0.8) & (near > 1.8)
    else:
        good = white + grey > 0.85
    found = np.flatnonzero(good)
    return points[found[0]].copy() if len(found) else None
