"""Sources of training data: shards on disk, and the simulator by number, with everything that is true of a series."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from safetensors.numpy import save_file

from decipher_rt.manifest import Preprocessing
from decipher_rt.train import shards as layout
from decipher_rt.train.checkpoint import CheckpointError
from decipher_rt.train.config import ConfigError, load_config
from decipher_rt.train.data import Anatomy, anatomy_build, load_anatomy
from decipher_rt.train.data.anatomy import Map, write_head
from decipher_rt.train.data.sample import LABELS
from decipher_rt.train.data.tissues import TISSUES
from decipher_rt.train.progress import Progress
from decipher_rt.train.shards import shard_file
from decipher_rt.train.sources import Box, Example, Examples, SourceConfig, open_source, shards
from decipher_rt.train.sources.anatomy import AnatomyError, base_anatomy
from decipher_rt.train.sources.shards import ShardedExamples, make_shards
from decipher_rt.train.sources.simulated import Simulated

SPEC = Preprocessing(grid_shape=(24,) * 3, spacing_mm=(10.0,) * 3, patch_shape=(8,) * 3, token_buckets=(27,))
PIECES = Preprocessing(grid_shape=(16,) * 3, spacing_mm=(2.0,) * 3, patch_shape=(8,) * 3, token_buckets=(8,))


def opened(config: SourceConfig, folder: Path, split: Any = "train", spec: Preprocessing = PIECES) -> Examples:
    return open_source(config, spec, split, folder, 1, Progress())


# ---- shards ----------------------------------------------------------------------------------------------------------


def drawn(index: int) -> Example:
    rng = np.random.default_rng(index)
    boxes = (None, (), (Box((1.0, -2.5, 3.0), (4.0, 5.0, 6.0), "plaque"),))[index % 3]
    return Example(
        volume=rng.random((4, 4, 4)).astype(np.float16),
        affine_lps_mm=rng.normal(size=(4, 4)),
        tissue=rng.integers(0, 5, (4, 4, 4), np.uint8) if index % 2 else None,
        labels={"sequence": "T2*w", "age": 0.1 * index},
        report=("Größe 3 mm.", 'She said "no".') if index % 4 else (),
        boxes=boxes,
        region="head" if index % 5 else None,
        patient=f"p{index}",
        kind="head",
    )


def same(one: Example, other: Example) -> bool:
    facts = all(
        getattr(one, f) == getattr(other, f) for f in ("labels", "report", "boxes", "region", "patient", "kind")
    )
    tissue = (one.tissue is None) == (other.tissue is None) and (
        one.tissue is None or (one.tissue == other.tissue).all()
    )
    return (
        facts
        and bool(tissue)
        and (one.volume == other.volume).all()
        and (one.affine_lps_mm == other.affine_lps_mm).all()
    )


def test_what_is_read_is_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD", 4)
    told: list[int] = []
    stored = make_shards(drawn, 10, tmp_path, 1, told.append)
    assert told == [0, 4, 8, 10]
    assert len(stored) == 10
    for index in range(10):
        assert same(stored[index], drawn(index))
        facts = stored.facts(index)
        assert (facts.labels, facts.boxes, facts.patient) == (drawn(index).labels, drawn(index).boxes, f"p{index}")
    with pytest.raises(IndexError):
        stored[10]


def test_examples_are_views_that_nobody_can_write_to(tmp_path: Path) -> None:
    stored = make_shards(drawn, 2, tmp_path, 1, lambda done: None)
    example = stored[1]
    assert np.shares_memory(example.volume, stored[1].volume)
    for array in (example.volume, example.affine_lps_mm, example.tissue):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    shard_file(tmp_path, 0).unlink()
    assert same(example, drawn(1))  # whoever holds one may go on


def test_only_what_is_missing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD", 4)
    made: list[int] = []

    def counted(index: int) -> Example:
        made.append(index)
        return drawn(index)

    make_shards(counted, 8, tmp_path, 1, lambda done: None)
    shard_file(tmp_path, 0).unlink()
    (tmp_path / ".00000.safetensors.1").write_bytes(b"what a killed run left")
    made.clear()
    stored = make_shards(counted, 10, tmp_path, 1, lambda done: None)
    assert made == [0, 1, 2, 3, 8, 9]
    made.clear()
    stored = make_shards(counted, 12, tmp_path, 1, lambda done: None)  # the last shard grows
    assert made == [8, 9, 10, 11]
    assert all(same(stored[i], drawn(i)) for i in range(12))


def test_workers_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process of its own each: what matters is that jobs may end in any order."""
    monkeypatch.setattr(layout, "SHARD", 2)

    def backwards(function: Any, jobs: Any, workers: int, done: Callable[[int], Any]) -> list[Any]:
        results = []
        for number in reversed(range(len(jobs))):
            results.append(function(*jobs[number]))
            done(number)
        return results[::-1]

    monkeypatch.setattr(shards, "run_jobs", backwards)
    told: list[int] = []
    stored = make_shards(drawn, 5, tmp_path, 3, told.append)
    assert told == [0, 1, 3, 5]
    assert all(same(stored[i], drawn(i)) for i in range(5))


def test_damaged_shards_are_refused_in_one_line(tmp_path: Path) -> None:
    make_shards(drawn, 2, tmp_path, 1, lambda done: None)
    save_file({"volume": np.zeros((2, 4, 4, 4), np.float16)}, shard_file(tmp_path, 0))  # whole, and no shard
    with pytest.raises(CheckpointError, match=r"00000\.safetensors: a damaged shard"):
        ShardedExamples(tmp_path, 2)[0]
    shard_file(tmp_path, 0).write_bytes(b"\x80\x04pickle?")
    with pytest.raises(CheckpointError, match=r"00000\.safetensors: a damaged shard"):
        ShardedExamples(tmp_path, 2)[0]
    with pytest.raises(CheckpointError, match=r"00000\.safetensors: a damaged shard"):
        make_shards(drawn, 2, tmp_path, 1, lambda done: None)


# ---- the simulator ---------------------------------------------------------------------------------------------------

SIMULATOR = SourceConfig(seed=5, train=6, validation=2, test=2, not_heads=0.3, heads=1)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Path]:
    folder = tmp_path_factory.mktemp("simulated")
    return opened(SIMULATOR, folder, spec=SPEC), folder


def test_simulated_examples_hold_the_truth(simulated: tuple[Examples, Path]) -> None:
    examples, _ = simulated
    assert len(examples) == 6
    heads = 0
    for index in range(10):  # four beyond those on disk
        example = examples[index]
        assert (example.volume.shape, example.volume.dtype) == ((24, 24, 24), np.float16)
        assert -0.5 <= example.volume.min() <= example.volume.max() <= 2.0
        assert example.report
        if example.kind != "head":
            assert (example.labels, example.boxes, example.tissue, example.region) == ({}, None, None, None)
            continue
        heads += 1
        labels, tissue = example.labels, example.tissue
        assert tissue is not None
        assert example.boxes is not None
        # Volumes counted in the tissue map itself: 10 mm voxels are 1 ml.
        counts = {name: int((tissue == i).sum()) for i, name in enumerate(LABELS)}
        assert labels["grey_volume_ml"] == pytest.approx(counts["grey"])
        assert labels["brain_volume_ml"] == pytest.approx(counts["grey"] + counts["white"] + counts["lesion"])
        assert (labels["lesion"] == "present") == bool(example.boxes) == bool(counts["lesion"])
        assert ("lesion_region" in labels) == bool(example.boxes)
        inverse = np.linalg.inv(example.affine_lps_mm)
        for box in example.boxes:
            low, high = (
                (inverse @ [*box.center_lps_mm, 1])[:3] + sign * np.array(box.size_mm) / 2 / 10 for sign in (-1, 1)
            )
            place = tuple(slice(round(a + 0.5), round(b + 0.5)) for a, b in zip(low, high, strict=True))
            assert (tissue[place] == LABELS.index("lesion")).any()
    assert 3 <= heads < 10


def test_the_same_number_is_the_same_series(simulated: tuple[Examples, Path]) -> None:
    examples, folder = simulated
    assert same(examples[8], examples[8])
    assert not same(examples[8], examples[9])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    again = opened(SIMULATOR, folder, spec=SPEC)
    assert same(again[2], examples[2])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


def test_splits_share_no_series_and_the_test_split_no_sentence(simulated: tuple[Examples, Path]) -> None:
    examples, folder = simulated
    test = opened(SIMULATOR, folder, "test", SPEC)
    assert {examples.facts(i).patient for i in range(6)}.isdisjoint({test.facts(i).patient for i in range(2)})
    said = {sentence for i in range(6) for sentence in examples.facts(i).report}
    assert said.isdisjoint({sentence for i in range(2) for sentence in test.facts(i).report})


def test_the_folder_follows_what_decides_the_content(tmp_path: Path) -> None:
    source = Simulated(seed=5, not_heads=0.4, anatomy="mni152", heads=4, spec=SPEC, split="train")
    changes: tuple[dict[str, Any], ...] = (
        {}, {"split": "test"}, {"seed": 6}, {"not_heads": 0.3}, {"heads": 1},
        {"spec": dataclasses.replace(SPEC, spacing_mm=(9.0,) * 3)},
    )  # fmt: skip
    folders = {dataclasses.replace(source, **change).folder(tmp_path) for change in changes}
    assert len(folders) == len(changes)
    patches = dataclasses.replace(SPEC, patch_shape=(4,) * 3, token_buckets=(216,))
    assert dataclasses.replace(source, spec=patches).folder(tmp_path) in folders


def test_another_brain_can_be_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any skull-stripped T1 image in MNI space: here the default's own template at 2 mm, with its contrast bent.

    The heads around it are painted by what paints the default's, in half a minute each: not here.
    """
    from nilearn import datasets

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    template = datasets.load_mni152_template(resolution=2)
    values = np.asarray(template.dataobj, np.float32) ** 1.2 * 900
    path = tmp_path / "other.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), template.affine), path)
    brains: list[np.ndarray] = []
    one_voxel = Map(np.zeros((2, 2, 2), np.uint16), np.eye(1, len(TISSUES), dtype=np.float32), (0.0, 0.0, 0.0), 2.0)

    def build_heads(brain: np.ndarray, files: list[Path]) -> None:
        brains.append(brain)
        for file in files:
            write_head(file, one_voxel, one_voxel, np.zeros((2, 2, 2)))

    monkeypatch.setattr(anatomy_build, "build_heads", build_heads)
    other = base_anatomy(str(path), 2)
    assert (other.name, len(other.heads), len(brains)) == ("other.nii.gz", 2, 1)
    base_anatomy.cache_clear()
    base_anatomy(str(path), 2)
    assert len(brains) == 1  # kept
    _, S, A, R = brains[0].shape
    white = brains[0][1].reshape(S // 2, 2, A // 2, 2, R // 2, 2).mean((1, 3, 5)) > 0.5
    expected = load_anatomy_of(monkeypatch).heads[0].coarse.fractions("white") > 0.5
    assert 2 * (white & expected).sum() / (white.sum() + expected.sum()) > 0.75  # Dice: the same brain, found anew


def load_anatomy_of(monkeypatch: pytest.MonkeyPatch) -> Anatomy:
    """The default anatomy of the machine's own cache."""
    monkeypatch.undo()
    return load_anatomy(heads=1)


def test_what_is_no_brain_is_no_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(AnatomyError, match=r"absent.nii: cannot be read"):
        base_anatomy(str(tmp_path / "absent.nii"), 1)
    text = tmp_path / "text.nii"
    text.write_text("no image")
    with pytest.raises(AnatomyError, match=r"text.nii: not a readable NIfTI image"):
        base_anatomy(str(text), 1)
    series = tmp_path / "series.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8, 3), np.int16), np.eye(4)), series)
    with pytest.raises(
        AnatomyError, match=r"series.nii: not a readable NIfTI image of a head \(has 4 axes, expected 3\)"
    ):
        base_anatomy(str(series), 1)
    odd = tmp_path / "odd.nii"
    odd.write_bytes(series.read_bytes()[:70] + b"\xff\x7f" + series.read_bytes()[72:])  # of a type that nobody knows
    with pytest.raises(AnatomyError, match=r"odd.nii: not a readable NIfTI image of a head"):
        base_anatomy(str(odd), 1)
    ball = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0) < 12
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -40
    small = tmp_path / "small.nii"
    texture = np.random.default_rng(0).uniform(200, 900, ball.shape)
    image = (texture * ball).astype(np.int16)[..., None]  # as some programs write a volume
    nibabel.save(nibabel.Nifti1Image(image, affine), small)
    with pytest.raises(AnatomyError, match=r"small.nii: \d+ ml lie where a brain in MNI space does"):
        base_anatomy(str(small), 1)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("kind=bids", "source.path is empty"),
        ("path=series.csv", "source.path is 'series.csv' and source.kind simulator"),
        ("train=0", "source.train is 0"),
        ("not_heads=2", "source.not_heads"),
        ("shares=[0.5, 0.1, 0.1]", "source.shares"),
        ("kind=folder", "kind is 'folder', expected one of simulator, manifest, bids"),
    ],
)
def test_source_configs_are_refused_by_key(tmp_path: Path, override: str, said: str) -> None:
    path = tmp_path / "source.yaml"
    path.write_text("kind: simulator\n")
    with pytest.raises(ConfigError, match=said):
        load_config(SourceConfig, path, [override])
