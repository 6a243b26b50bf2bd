"""The simulator as a source: number ``i`` of a split is the same series for ever, and there is no last one.

What a run asks for is made once, in worker processes, and kept in shards (about 2 MB a series); what lies beyond it is
simulated when it is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from decipher_rt.manifest import Preprocessing

from .. import data
from ..data import Sample, simulate
from ..data.scene import Scene, draw_scene
from ..data.simulator import simulate_scene
from ..progress import Progress
from ..samples import STORED, Split, draw_kind, sample_seed
from ..text import findings, wordings
from .anatomy import base_anatomy, base_digest
from .config import SourceConfig
from .example import Box, Example, Facts, Label
from .shards import ShardedExamples, make_shards

# Along S in MNI space: where the brain ends, and where the middle of a part of it makes it an upper or a lower one.
BRAIN_MM = (-60.0, 80.0)
LOWER_MM, UPPER_MM = -8.0, 26.0
WHOLE = 0.8  # share of the brain's height that makes a series one of the whole head


@dataclass(frozen=True)
class Simulated:
    """Makes examples of one split by number: everything that decides their content.

    Attributes
    ----------
    seed, not_heads, anatomy, heads : as in `SourceConfig`
    spec : grid, spacing and percentiles
    split : splits never share a seed
    """

    seed: int
    not_heads: float
    anatomy: str
    heads: int
    spec: Preprocessing
    split: Split

    def __call__(self, index: int, /) -> Example:
        """Simulate one."""
        seed = sample_seed(self.seed, self.split, index)
        kind = draw_kind(seed, self.not_heads)
        anatomy = base_anatomy(self.anatomy, self.heads)
        if kind != "head":
            return self._example(simulate(seed, anatomy, self.spec, kind=kind), seed)
        scene = draw_scene(seed, anatomy)
        sample = simulate_scene(scene, anatomy, self.spec)
        boxes = tuple(Box(x.center_lps_mm, x.size_mm, x.kind) for x in sample.lesions)
        return self._example(sample, seed, _labels(scene, sample), boxes, _region(scene, sample))

    def folder(self, cache_dir: Path) -> Path:
        """Return where the shards lie; another source, another base anatomy or another simulator has another folder."""
        spec = self.spec
        decides = (self.seed, self.not_heads, self.heads, spec.grid_shape, spec.spacing_mm, spec.window_percentiles)
        digest = hashlib.sha256(json.dumps(decides).encode() + simulator_digest(self.anatomy).encode())
        return cache_dir / f"simulated-{self.split}-{digest.hexdigest()[:12]}"

    def _example(
        self,
        sample: Sample,
        seed: int,
        labels: Mapping[str, Label] = MappingProxyType({}),
        boxes: tuple[Box, ...] | None = None,
        region: str | None = None,
    ) -> Example:
        low, high = sample.window
        volume = ((sample.volume - low) / max(float(high - low), 1e-6)).clip(*STORED).astype(np.float16)
        # The words of the test split are never trained on.
        words: wordings.Wordings = "held_out" if self.split == "test" else "train"
        return Example(
            volume=volume,
            affine_lps_mm=sample.affine_lps_mm,
            tissue=sample.tissue if sample.labels.kind == "head" else None,
            labels=labels,
            report=wordings.write_report(findings.sample_findings(sample), seed, words),
            boxes=boxes,
            region=region,
            patient=f"simulated-{seed}",
            kind=sample.labels.kind,
        )


@dataclass(frozen=True)
class SimulatedExamples:
    """The series of one split: those on disk, and after them all others, simulated at every call."""

    stored: ShardedExamples
    make: Simulated

    def __len__(self) -> int:
        """Return how many are on disk."""
        return len(self.stored)

    def __getitem__(self, index: int, /) -> Example:
        """Read or simulate one."""
        return self.stored[index] if index < len(self.stored) else self.make(index)

    def facts(self, index: int) -> Facts:
        """Return what is known of one."""
        return self.stored.facts(index) if index < len(self.stored) else self.make(index)


def simulator_digest(anatomy: str) -> str:
    """Return a digest of what series follow from beside a configuration: the base anatomy, and the simulator's code."""
    digest = hashlib.sha256(base_digest(anatomy).encode())
    words = [Path(str(module.__file__)) for module in (findings, wordings)]
    for source in [Path(__file__), *words, *sorted(Path(data.__file__).parent.glob("*.py"))]:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def open_simulator(
    config: SourceConfig, spec: Preprocessing, split: Split, cache_dir: Path, workers: int, progress: Progress
) -> SimulatedExamples:
    """Simulate what is not on disk yet, and return the examples of a split."""
    make = Simulated(config.seed, config.not_heads, config.anatomy, config.heads, spec, split)
    count = getattr(config, split)
    base_anatomy(config.anatomy, config.heads)  # built once here, not by every worker
    with progress.bar(f"simulating {split}", count) as advance_to:
        return SimulatedExamples(make_shards(make, count, make.folder(cache_dir), workers, advance_to), make)


def _labels(scene: Scene, sample: Sample) -> dict[str, Label]:
    labels: dict[str, Label] = {
        "sequence": scene.protocol.sequence,
        "lesion": "present" if sample.lesions else "absent",
        "plane": scene.prescription.plane,
        "ventricles": str(sample.facts["ventricles"]),
        "field_strength_t": scene.protocol.field_strength_t,
    }
    if sample.lesions:
        largest = max(sample.lesions, key=lambda lesion: lesion.volume_ml)
        labels |= {"lesion_region": largest.region, "lesion_side": largest.side, "lesion_kind": largest.kind}
    return labels | {f"{name}_volume_ml": volume for name, volume in sample.volumes_ml.items()}


def _region(scene: Scene, sample: Sample) -> str:
    """Name the lobe of the largest lesion, or without one the slab of the head that lies in the field of view."""
    if sample.lesions:
        return max(sample.lesions, key=lambda lesion: lesion.volume_ml).region
    prescription = scene.prescription
    reach = np.abs(prescription.axes[:, 2]) @ np.array(prescription.fov_mm) / 2  # along S, of a tilted box
    # The middle of the slab, not of an oblique box: heads lie within a few degrees of upright.
    middle = float(scene.subject.to_mni(prescription.centre_mm[None])[0, 2])
    low, high = max(BRAIN_MM[0], middle - reach), min(BRAIN_MM[1], middle + reach)
    if high - low >= WHOLE * (BRAIN_MM[1] - BRAIN_MM[0]):
        return "head"
    middle = (low + high) / 2
    return "upper head" if middle > UPPER_MM else "lower head" if middle < LOWER_MM else "middle head"
