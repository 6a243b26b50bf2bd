"""Simulated series on disk: what is read is what was simulated, and what is there is not made again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from decipher_rt.manifest import Preprocessing
from decipher_rt.train import samples as module
from decipher_rt.train.checkpoint import CheckpointError, write_safetensors
from decipher_rt.train.data import load_anatomy, simulate
from decipher_rt.train.model.heads import SEQUENCES
from decipher_rt.train.samples import SampleSource, Split, draw_kind, make_samples, sample_seed

SPEC = Preprocessing(grid_shape=(24,) * 3, spacing_mm=(10.0,) * 3, patch_shape=(8,) * 3, token_buckets=(27,))
SOURCE = SampleSource(seed=5, not_heads=0.4, spec=SPEC)
COUNT = 6


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards of three series, made in this process."""
    monkeypatch.setattr(module, "SHARD", 3)
    monkeypatch.setattr(module, "_anatomy", lambda: load_anatomy(heads=1))
    folder = SOURCE.folder(tmp_path, "train")
    folder.mkdir()
    for shard in range(2):
        module._write_shard(SOURCE, "train", shard, folder)
    return tmp_path


def test_a_series_is_read_as_it_was_simulated(cache_dir: Path) -> None:
    counts: list[int] = []
    series = make_samples(SOURCE, "train", COUNT, cache_dir, workers=1, progress=counts.append)
    assert counts == [COUNT]
    assert len(series) == COUNT
    for index in range(COUNT):
        seed = sample_seed(5, "train", index)
        sample = simulate(seed, load_anatomy(heads=1), SPEC, kind=draw_kind(seed, 0.4))
        low, high = sample.window
        unit = ((sample.volume - low) / (high - low)).clip(-0.5, 2.0)
        assert np.abs(series[index].volume - unit).max() <= 2**-11 * 2.0  # half precision, of values up to 2
        assert series[index].head == (sample.labels.kind == "head")
        if series[index].head:
            assert SEQUENCES[series[index].sequence] == sample.labels.sequence
            assert series[index].lesion == sample.labels.lesion
            assert np.array_equal(series[index].tissue, sample.tissue)
        else:
            assert series[index].sequence == -1
            assert not series[index].tissue.any()


def test_only_missing_shards_are_made_and_they_are_the_same(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SOURCE.folder(cache_dir, "train")
    first, second = sorted(folder.glob("*.safetensors"))
    before, kept = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    (folder / ".00001.safetensors.99").write_bytes(b"half a shard of a killed run")
    made: list[int] = []
    write_shard = module._write_shard

    def counted(source: SampleSource, split: Split, shard: int, folder: Path) -> None:
        made.append(shard)
        write_shard(source, split, shard, folder)

    monkeypatch.setattr(module, "_write_shard", counted)
    make_samples(SOURCE, "train", COUNT, cache_dir, workers=1, progress=lambda done: None)
    assert made == [1]
    assert second.read_bytes() == before
    assert first.stat().st_mtime_ns == kept


def test_the_folder_follows_what_decides_the_content(tmp_path: Path) -> None:
    folders = {
        SOURCE.folder(tmp_path, "train"),
        SOURCE.folder(tmp_path, "test"),
        dataclasses.replace(SOURCE, seed=6).folder(tmp_path, "train"),
        dataclasses.replace(SOURCE, not_heads=0.3).folder(tmp_path, "train"),
        dataclasses.replace(SOURCE, spec=dataclasses.replace(SPEC, spacing_mm=(9.0,) * 3)).folder(tmp_path, "train"),
    }
    assert len(folders) == 5
    patches = dataclasses.replace(SPEC, patch_shape=(4,) * 3, token_buckets=(216,))
    assert dataclasses.replace(SOURCE, spec=patches).folder(tmp_path, "train") in folders


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    """What safetensors raises there is no OSError."""

    def full(staging):
        staging.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(CheckpointError, match=r"file: cannot be written \(I/O error: No space left"):
        write_safetensors(tmp_path / "file", full)
    assert list(tmp_path.iterdir()) == []
