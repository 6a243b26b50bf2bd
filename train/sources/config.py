"""Which data a stage trains on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

MNI152 = "mni152"
SEQUENCE_OF_SUFFIX = {"T1w": "T1w", "T2w": "T2w", "PDw": "PDw", "FLAIR": "FLAIR", "T2starw": "T2*w"}


@dataclass(frozen=True)
class SourceConfig:
    """One source of examples.

    Attributes
    ----------
    kind : "simulator", "manifest" (CSV or JSONL) or "bids"
    path : of the manifest, or of the BIDS folder; unused by the simulator
    seed : of the simulator, and of the split by patient where a manifest or a BIDS folder gives none
    train, validation, test : series that the simulator makes of each split
    not_heads : share of them that are phantoms, noise, other anatomy or scrambled heads
    anatomy : base of the simulator's heads: "mni152", or a NIfTI file of a skull-stripped T1-weighted image in MNI
        space (such as ch2bet.nii.gz of Debian's mricron-data)
    heads : heads of different build that are made around it
    shares : of the patients, that go to train, validation and test where the data do not say
    sequences : label ``sequence`` by the suffix of a BIDS file, beside those of ``SEQUENCE_OF_SUFFIX``; files with
        other suffixes, and with one whose label is empty, are left out
    device : where a manifest's or BIDS folder's volumes are resampled; "auto" is the GPU where CUDA finds one
    cohort : name of those whose series are listed: keys of patients are compared with earlier stages' within it. Where
        it is empty it is that of the BIDS data set; a manifest's patients are held against everybody's
    listed : SHA-256 of what the manifest or BIDS folder listed when a run began, or of what the simulator was; runs
        write it, and nothing reads it
    """

    kind: Literal["simulator", "manifest", "bids"] = "simulator"
    path: str = ""
    seed: int = 0
    train: int = 4096
    validation: int = 512
    test: int = 512
    not_heads: float = 0.0
    anatomy: str = MNI152
    heads: int = 4
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    sequences: dict[str, str] = field(default_factory=lambda: dict(SEQUENCE_OF_SUFFIX))
    device: Literal["auto", "cpu", "gpu"] = "auto"
    cohort: str = ""
    listed: str = ""

    @property
    def label_map(self) -> Literal["tissue", "mask"]:
        """Return what a segmentation learns from the source: the simulator's tissue map, or a manifest's masks."""
        return "tissue" if self.kind == "simulator" else "mask"

    @property
    def suffixes(self) -> dict[str, str]:
        """Return the label ``sequence`` by the suffixes of a BIDS folder that are read."""
        return {suffix: label for suffix, label in (SEQUENCE_OF_SUFFIX | self.sequences).items() if label}

    def located(self) -> SourceConfig:
        """Return the source with its files' whole paths, by which they are found from any folder."""
        path, anatomy = (
            name if name in ("", MNI152) else str(Path(name).absolute()) for name in (self.path, self.anatomy)
        )
        return replace(self, path=path, anatomy=anatomy)

    def check(self, key: str = "source") -> None:
        """Raise ValueError by key where a value cannot be used."""
        if self.kind != "simulator" and not self.path:
            raise ValueError(f"{key}.path is empty, expected the path of the {self.kind}")
        if self.kind == "simulator" and self.path:
            raise ValueError(f"{key}.path is {self.path!r} and {key}.kind simulator: set {key}.kind=manifest or bids")
        for name in ("train", "validation", "test", "heads"):
            if (count := getattr(self, name)) < 1:
                raise ValueError(f"{key}.{name} is {count}, expected 1 or more")
        if not 0 <= self.not_heads <= 1:
            raise ValueError(f"{key}.not_heads is {self.not_heads}, expected 0 to 1")
        if self.seed < 0:
            raise ValueError(f"{key}.seed is {self.seed}, expected 0 or more")
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"{key}.shares is {list(self.shares)}, expected three shares that add up to 1")

    def check_splits(self, earlier: SourceConfig, where: str) -> None:
        """Raise ValueError where patients that an earlier stage was trained on could be tested on in this one.

        Parameters
        ----------
        earlier : SourceConfig
            What the earlier stage was trained on.
        where : str
            Its folder, for the message.
        """
        drawn = [(source.seed, source.shares) for source in (self, earlier) if source.kind != "simulator"]
        if len(drawn) == 2 and drawn[0] != drawn[1]:
            raise ValueError(
                f"source.seed is {self.seed} and source.shares {list(self.shares)}, but {where} was trained with "
                f"{earlier.seed} and {list(earlier.shares)}: its patients would be in other splits; give the same"
            )
