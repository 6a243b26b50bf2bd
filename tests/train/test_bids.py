"""BIDS folders: images of known suffixes and their magnitude are read, and what is broken is named."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from decipher_rt.manifest import Preprocessing
from decipher_rt.train.config import override_config
from decipher_rt.train.progress import Progress
from decipher_rt.train.sources import Examples, SourceConfig, open_source, patients_of, seen_again
from decipher_rt.train.sources.recorded import rows_of_split
from decipher_rt.train.sources.rows import SourceError
from decipher_rt.train.weights import check_patients

SPEC = Preprocessing(grid_shape=(16,) * 3, spacing_mm=(2.0,) * 3, patch_shape=(8,) * 3, token_buckets=(8,))


def opened(config: SourceConfig, folder: Path) -> Examples:
    return open_source(dataclasses.replace(config), SPEC, "train", folder, 1, Progress())  # as the next command does


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    folder = tmp_path / "bids"
    names = (
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_angio.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_part-phase_T2starw.nii",
        "sub-02/ses-a/anat/sub-02_ses-a_run-1_T2starw.nii",
        "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz",
    )
    voxels = np.random.default_rng(2).integers(0, 900, (12, 10, 8), np.int16)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), folder / name)
    (folder / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    (folder / "participants.tsv").write_text(
        "participant_id\tage\tsex\tsplit\nsub-01\t34\tF\ttrain\nsub-02\tn/a\tM\ttrain\nsub-03\t40\tM\ttest\n"
    )
    return folder


def test_equal_keys_are_one_patient_where_the_cohorts_are_not_known_to_differ(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = SourceConfig(kind="bids", path=str(bids))
    earlier = patients_of(first, "train")
    assert len(earlier) == 2
    copy = SourceConfig(kind="bids", path=str(shutil.copytree(bids, tmp_path / "copy")))
    assert seen_again(copy, earlier, "train") == earlier
    (tmp_path / "copy" / "dataset_description.json").write_text('{"Name": "y", "BIDSVersion": "1.10.0"}')
    others = patients_of(copy, "train")
    assert seen_again(copy, earlier, "train") == set()
    metadata: dict[str, Any] = {"patients": sorted(earlier)}
    check_patients(copy, metadata, "align", "train")  # the next version of a data set may have another Name
    assert "2 patients of its train split have the keys of some that align was trained on" in capsys.readouterr().err
    check_patients(dataclasses.replace(copy, cohort="y"), metadata, "align", "train")
    assert capsys.readouterr().err == ""
    assert (
        seen_again(dataclasses.replace(copy, cohort="x"), earlier, "train") == earlier
    )  # a derivative says whose it is
    image = "bids/sub-01/anat/sub-01_T1w.nii.gz"
    path = tmp_path / "cohort.csv"
    path.write_text(f"path,patient,split\n{image},01,train\n")
    manifest = SourceConfig(kind="manifest", path=str(path))
    for there in (earlier, others, patients_of(manifest, "train")):
        assert len(seen_again(manifest, there, "train")) == 1  # it does not say whose they are
    assert len(seen_again(first, patients_of(manifest, "train"), "train")) == 1
    stated = dataclasses.replace(manifest, cohort="x")
    assert len(seen_again(stated, earlier, "train")) == 1
    assert not seen_again(stated, others, "train")
    assert not seen_again(stated, patients_of(manifest, "train"), "train")
    (bids / "dataset_description.json").write_text("{")
    with pytest.raises(SourceError, match=r"dataset_description.json: not JSON .*; mend it, or give source.cohort"):
        patients_of(first, "train")


def test_line_separators_of_unicode_end_no_line(bids: Path, tmp_path: Path) -> None:
    with (bids / "participants.tsv").open("a", encoding="utf-8") as file:
        file.write("sub-04\t3\tF\u2028M\ttrain\r\n")
    assert len(opened(SourceConfig(kind="bids", path=str(bids)), tmp_path / "cache")) == 2


def test_a_bids_folder_is_read(bids: Path, tmp_path: Path) -> None:
    examples = opened(SourceConfig(kind="bids", path=str(bids)), tmp_path / "cache")
    assert len(examples) == 2
    assert {facts.patient: facts.labels for facts in map(examples.facts, range(2))} == {
        "sub-01": {"sequence": "T1w", "age": 34.0, "sex": "F"},
        "sub-02": {"sequence": "T2*w", "sex": "M"},
    }
    assert examples[1].volume.shape == SPEC.grid_shape


def test_folders_that_are_links_are_read(bids: Path, tmp_path: Path) -> None:
    image = bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    stored = tmp_path / "raw" / "anat"
    stored.mkdir(parents=True)
    shutil.copy(image, stored / image.name.replace("sub-01", "sub-05_ses-1"))
    (bids / "sub-05").mkdir()
    (bids / "sub-05" / "ses-1").symlink_to(stored.parent)
    examples = opened(SourceConfig(kind="bids", path=str(bids), shares=(1, 0, 0)), tmp_path / "cache")
    assert "sub-05" in {examples.facts(i).patient for i in range(len(examples))}


def test_suffixes_are_added_and_what_is_left_out_is_counted_once(
    bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, progress = SourceConfig(kind="bids", path=str(bids)), Progress()
    for _ in ("once", "again"):
        assert len(open_source(config, SPEC, "train", tmp_path / "cache", 1, progress)) == 2
    said = f"decipher-rt: {bids}: images whose suffix source.sequences lacks are left out: 1 (angio 1)\n"
    assert capsys.readouterr().err == said
    more = override_config(config, ["source.sequences.angio=TOF", "source.sequences.T2starw="], "source")
    labels = [row.facts.labels["sequence"] for row in rows_of_split(more, "train")]
    assert sorted(labels) == ["T1w", "TOF"]
    opened(more, tmp_path / "cache")
    assert "left out: 1 (T2starw 1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sub-04\t3\tF", r"participants.tsv, line 5: 3 columns, expected 4"),
        ("sub-01\t3\tF\ttrain", r"participants.tsv, line 5, column participant_id: also in .*line 2"),
        ("04\t3\tF\ttrain", r"participants.tsv, line 5, column participant_id: expected sub-"),
        ("sub-04\t3\tF\tdev", r"participants.tsv, line 5, column split: 'dev'"),
    ],
)
def test_broken_participants_are_named(bids: Path, tmp_path: Path, line: str, said: str) -> None:
    with (bids / "participants.tsv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(SourceError, match=said):
        opened(SourceConfig(kind="bids", path=str(bids)), tmp_path / "cache")


def test_what_is_listed_of_those_without_images_changes_no_label(bids: Path, tmp_path: Path) -> None:
    table = bids / "participants.tsv"
    text = table.read_text()
    table.write_text(f"{text}sub-04\t89+\tF\ttrain\nsub-05\tinf\tF\ttest\n")
    examples = opened(SourceConfig(kind="bids", path=str(bids)), tmp_path / "cache")
    assert sorted(str(examples.facts(i).labels.get("age")) for i in range(2)) == ["34.0", "None"]
    table.write_text(text.replace("34", "inf"))
    with pytest.raises(SourceError, match=r"participants.tsv, line 2, column age: 'inf', expected a finite number"):
        opened(SourceConfig(kind="bids", path=str(bids)), tmp_path / "cache")


def test_broken_bids_folders_are_refused(bids: Path, tmp_path: Path) -> None:
    (bids / "sub-01/anat/sub-09_T1w.nii").write_bytes(b"")
    with pytest.raises(SourceError, match=r"sub-09_T1w.nii: lies in the folder of sub-01"):
        opened(SourceConfig(kind="bids", path=str(bids)), tmp_path / "cache")
    (bids / "sub-01/anat/sub-09_T1w.nii").rename(bids / "sub-01/anat/sub-01_T2w.nii")
    with pytest.raises(SourceError, match=r"^\S*sub-01_T2w.nii: (?!.*sub-01_T2w.nii: .*sub-01_T2w.nii: )"):
        opened(SourceConfig(kind="bids", path=str(bids)), tmp_path / "cache")
    (bids / "sub-01/anat/sub-01_T2w.nii").unlink()
    (bids / "sub-01/anat/sub-01_T2w.nii").symlink_to("../../.git/annex/objects/x")
    with pytest.raises(SourceError, match=r"sub-01_T2w.nii: a link to nothing; fetch what it stands for"):
        opened(SourceConfig(kind="bids", path=str(bids)), tmp_path / "cache")
    for image in bids.glob("sub-*/**/anat/*_T*"):
        image.unlink()
    with pytest.raises(SourceError, match="with one of the suffixes T1w, T2w, PDw, FLAIR, T2starw, bold"):
        opened(SourceConfig(kind="bids", path=str(bids), sequences={"bold": "T2*w"}), tmp_path / "cache")
    (bids / "dataset_description.json").unlink()
    with pytest.raises(SourceError, match="give the root of a BIDS dataset"):
        opened(SourceConfig(kind="bids", path=str(bids)), tmp_path / "cache")
