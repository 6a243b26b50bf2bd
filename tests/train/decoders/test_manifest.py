"""Decoders from a manifest, end to end from the command line: demographics, masks and boxes of recorded series."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from decipher_rt.train.checkpoint import WEIGHTS, CheckpointError, read_tensors, write_tensors
from decipher_rt.train.cli import evaluate, train
from decipher_rt.train.config import ConfigError, dump_config
from decipher_rt.train.decoders import train as training
from decipher_rt.train.model.vit import ViT, ViTConfig
from decipher_rt.train.sources import SourceConfig, patients_of, recorded
from decipher_rt.train.sources.manifest import read_manifest
from decipher_rt.train.sources.rows import SourceError
from decipher_rt.train.weights import load_weights, trained_on

CONFIGS = Path(training.__file__).resolve().parents[1] / "configs" / "tiny"
AFFINE = np.diag([12.0, 12.0, 12.0, 1.0])
PATIENTS = 24
MASK = """\
name: decipher-test
version: 1.0.0
decoder:
  name: cyst
  kind: segmentation
  target: mask
  options: {channels: [8, 8], labels: [background, cyst], values: [0, 3]}
source: {kind: manifest, path: manifest.csv, seed: 20}
run: {steps: 2, batch: 2, rate: 1.0e-3, warmup: 1, precision: fp32}
"""


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """What the folder of a stage says of itself."""

    name: str
    encoder: ViTConfig
    source: SourceConfig


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Bright and dark blocks with a cyst or none, of both sexes, and their manifest."""
    rng = np.random.default_rng(0)
    (tmp_path / "mask.yaml").write_text(MASK)
    rows = ["path,patient,sex,age,mask,boxes"]
    for number in range(PATIENTS):
        voxels = np.zeros((20, 20, 20), np.float32)
        voxels[3:17, 3:17, 3:17] = 400 + 200 * (number % 2)
        labels = np.zeros(voxels.shape, np.uint8)
        labels[8:12, 8:12, 8:12] = 3
        voxels += rng.normal(0, 10, voxels.shape)
        for name, array in (("series", voxels.astype(np.int16)), ("mask", labels)):
            nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / f"{name}{number}.nii.gz")
        box = '"[{""center_lps_mm"": [-114, -114, 114], ""size_mm"": [48, 48, 48]}]"' if number % 3 else "[]"
        rows.append(f"series{number}.nii.gz,p{number},{number % 2},{50 + number % 2},mask{number}.nii.gz,{box}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def stage(encoder: ViT, tmp_path: Path) -> Path:
    """An encoder as a stage leaves it that was trained on another manifest with the same seed."""
    torch.set_num_threads(1)
    folder = tmp_path / "ssl"
    write_tensors(folder / WEIGHTS, {f"encoder.{k}": v for k, v in encoder.state_dict().items()}, {})
    source = SourceConfig(kind="manifest", path="elsewhere.csv", seed=20)
    (folder / "config.yaml").write_text(dump_config(StageConfig("ssl", encoder.config, source)))
    return folder


def knows_simulated_heads(stage: Path) -> None:
    """Let it be a stage that was trained on the simulator."""
    said = (stage / "config.yaml").read_text()
    simulated = said.replace("kind: manifest", "kind: simulator").replace("path: elsewhere.csv", "path: ''")
    (stage / "config.yaml").write_text(simulated)


def train_decoder(config: Path, cohort: Path, stage: Path, *overrides: str) -> Any:
    """Return the figures."""
    return json.loads(run_decoder(config, cohort, stage, *overrides).stdout)


def run_decoder(config: Path, cohort: Path, stage: Path, *overrides: str) -> Result:
    arguments = [
        "decoder", str(config), "-o", str(cohort / "model"), "--cache", str(cohort / "cache"), "--json",
        f"encoder={stage}", f"source.path={cohort / 'manifest.csv'}", "source.shares=[0.5,0.25,0.25]", "workers=1",
        "run.steps=2", "run.batch=2", "run.threads=1", "run.warmup=1", *overrides,
    ]  # fmt: skip
    ran = CliRunner().invoke(train, arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran


def test_demographics_masks_and_boxes_of_recorded_series(cohort: Path, stage: Path) -> None:
    stage_source = stage / "config.yaml"
    stage_source.write_text(stage_source.read_text().replace("- 0.8\n  - 0.1\n  - 0.1", "- 0.5\n  - 0.25\n  - 0.25"))
    heads = "decoder.options={labels: ['0', '1'], pool: attention, heads: 4}"
    train_decoder(CONFIGS / "decoder-sex.yaml", cohort, stage, heads)
    train_decoder(CONFIGS / "decoder-age.yaml", cohort, stage, "decoder.options={unit: years}")
    train_decoder(cohort / "mask.yaml", cohort, stage)
    figures = train_decoder(
        CONFIGS / "decoder-lesion_box.yaml",
        cohort,
        stage,
        "source.kind=manifest",
        "source.seed=20",
        "decoder.upon=cyst",
    )
    tested = figures["sex"]["series"]
    assert 0 < tested < PATIENTS / 2
    assert figures["age"]["series"] == figures["cyst"]["series"] == figures["lesion_box"]["series"] == tested
    assert figures["cyst"]["dice"].keys() == {"cyst"}
    model = load_weights(cohort / "model")
    assert sorted(model.config.sources) == ["age", "cyst", "lesion_box", "sex"]
    trained = sorted(patients_of(model.config.sources["age"], "train"))
    assert model.metadata["patients_of_decoders"] == dict.fromkeys(["age", "cyst", "lesion_box", "sex"], trained)
    assert "patients" not in model.metadata  # the encoder has seen none
    rows = (cohort / "manifest.csv").read_text().splitlines()
    all_test = cohort / "all_test.csv"
    all_test.write_text("\n".join([f"{rows[0]},split", *(f"{row},test" for row in rows[1:])]))
    arguments = [str(cohort / "model"), "--cache", str(cohort / "cache"), "--json", f"source.path={all_test}"]
    said = (
        rf"all_test.csv: {len(trained)} patients of its test split were trained on in .*model; .* source.cohort=NAME$"
    )
    with pytest.raises(ConfigError, match=said):
        CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    others = CliRunner().invoke(evaluate, [*arguments, "source.cohort=elsewhere"], catch_exceptions=False)
    assert json.loads(others.stdout)["age"]["series"] == PATIENTS  # other people, who have the same keys


def test_patients_of_an_earlier_stage_are_not_tested_on(cohort: Path, stage: Path) -> None:
    """Their split is listed, or their keys are spelt otherwise: seed and shares say nothing then."""
    knows_simulated_heads(stage)
    tensors, _ = read_tensors(stage / WEIGHTS)
    manifest = str(cohort / "manifest.csv")
    everybody = trained_on(SourceConfig(kind="manifest", path=manifest, shares=(1.0, 0.0, 0.0)))
    assert len(everybody["patients"]) == PATIENTS
    assert trained_on(SourceConfig(), everybody) == everybody  # a stage on the simulator passes them on
    write_tensors(stage / WEIGHTS, tensors, everybody)
    sex = CONFIGS / "decoder-sex.yaml"
    with pytest.raises(
        ConfigError, match=r"manifest.csv: \d+ patients of its validation or test split were trained on"
    ):
        train_decoder(sex, cohort, stage)
    (cohort / "manifest.csv").write_text(Path(manifest).read_text().replace("gz,p", "gz,sub-p"))
    with pytest.raises(
        ConfigError, match=r"validation or test split were trained on in .*ssl; list them in split train"
    ):
        train_decoder(sex, cohort, stage)
    assert not (cohort / "cache").exists()


def test_patients_of_what_the_output_has_are_not_tested_on(cohort: Path, stage: Path) -> None:
    knows_simulated_heads(stage)
    train_decoder(cohort / "mask.yaml", cohort, stage)
    upon = ("source.kind=manifest", "source.seed=0", "decoder.upon=cyst")
    with pytest.raises(ConfigError, match=r"\d+ patients of its validation or test split were trained on in .*model;"):
        train_decoder(CONFIGS / "decoder-lesion_box.yaml", cohort, stage, *upon)


def test_who_taught_the_segmentation_as_well_is_told(cohort: Path, stage: Path) -> None:
    knows_simulated_heads(stage)
    train_decoder(cohort / "mask.yaml", cohort, stage)
    upon = ("source.kind=manifest", "source.seed=20", "decoder.upon=cyst")
    others = run_decoder(CONFIGS / "decoder-lesion_box.yaml", cohort, stage, *upon, "source.cohort=elsewhere")
    assert "cyst was trained on" not in others.stderr
    shutil.rmtree(cohort / "model" / "decoders" / "lesion_box")
    same = run_decoder(CONFIGS / "decoder-lesion_box.yaml", cohort, stage, *upon)
    trained = len(patients_of(load_weights(cohort / "model").config.sources["cyst"], "train"))
    assert f"decoder lesion_box: cyst was trained on {trained} patients of its train split" in same.stderr


def test_a_patient_who_becomes_one_to_test_on_goes_with_the_decoder(cohort: Path, stage: Path) -> None:
    """Decoders do not know of each other: what one was trained on, and the seed that drew it, binds no other."""
    knows_simulated_heads(stage)
    manifest = cohort / "manifest.csv"
    header, *rows = manifest.read_text().splitlines()
    rows = [f"{row},{('train', 'validation', 'test')[max(0, n - 9) // 5]}" for n, row in enumerate(rows)]
    manifest.write_text("\n".join([f"{header},split", *rows]) + "\n")
    sex = (CONFIGS / "decoder-sex.yaml", cohort, stage, "decoder.options={labels: ['0', '1'], pool: linear}")
    age = (CONFIGS / "decoder-age.yaml", cohort, stage, "decoder.options={unit: years, pool: linear}", "source.seed=7")
    train_decoder(*sex)
    train_decoder(*age)
    before = read_tensors(cohort / "model" / WEIGHTS)[1]["patients_of_decoders"]
    manifest.write_text("\n".join([f"{header},split", rows[0].replace("train", "test"), *rows[1:]]) + "\n")
    shutil.rmtree(cohort / "model" / "decoders" / "sex")
    train_decoder(*sex)
    after = read_tensors(cohort / "model" / WEIGHTS)[1]["patients_of_decoders"]
    assert after["age"] == before["age"] == before["sex"]
    assert len(before["sex"]) - 1 == len(after["sex"])
    arguments = [str(cohort / "model"), "--cache", str(cohort / "cache")]
    with pytest.raises(ConfigError, match="1 patients of its test split were trained on"):
        CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    shutil.rmtree(cohort / "model" / "decoders" / "age")
    train_decoder(*age)
    assert CliRunner().invoke(evaluate, arguments, catch_exceptions=False).exit_code == 0


def test_a_run_is_finished_wherever_its_series_were_moved(cohort: Path, stage: Path) -> None:
    knows_simulated_heads(stage)
    figures = train_decoder(cohort / "mask.yaml", cohort, stage)
    moved = cohort / "mounted"
    moved.mkdir()
    for file in (cohort / "manifest.csv", *cohort.glob("*.nii.gz")):
        shutil.copyfile(file, moved / file.name)
    ran = run_decoder(cohort / "mask.yaml", cohort, stage, f"source.path={moved / 'manifest.csv'}")
    assert ran.stderr == f"decipher-rt: {cohort / 'model' / 'decoders' / 'cyst'}: already trained\n"
    assert json.loads(ran.stdout) == figures


def test_a_manifest_is_read_once(cohort: Path, stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knows_simulated_heads(stage)
    read: list[Path] = []
    monkeypatch.setattr(recorded, "read_manifest", lambda path: read.append(path) or read_manifest(path))
    train_decoder(cohort / "mask.yaml", cohort, stage)
    assert len(read) == 1


def test_splits_without_truth_are_told_and_empty_ones_refused(cohort: Path, stage: Path) -> None:
    knows_simulated_heads(stage)
    manifest = cohort / "manifest.csv"
    header, *rows = manifest.read_text().splitlines()
    listed = [(row, ("train", "validation", "test")[max(0, n - 9) // 5]) for n, row in enumerate(rows)]
    unknown = [row if split == "train" else row.replace(",0,5", ",,5").replace(",1,5", ",,5") for row, split in listed]
    lines = [f"{row},{split}" for row, (_, split) in zip(unknown, listed, strict=True)]
    manifest.write_text("\n".join([f"{header},split", *lines]) + "\n")
    heads = "decoder.options={labels: ['0', '1'], pool: linear}"
    ran = run_decoder(CONFIGS / "decoder-sex.yaml", cohort, stage, heads)
    assert json.loads(ran.stdout) == {"sex": None}
    assert ran.stderr == "".join(
        f"decipher-rt: decoder sex: no series of the {split} split has the truth that it needs: it is not {what}\n"
        for split, what in (("validation", "calibrated"), ("test", "measured"))
    )
    manifest.write_text(manifest.read_text().replace(",test", ",train"))
    with pytest.raises(SourceError, match=r"none of its 24 series is of the split test"):
        run_decoder(CONFIGS / "decoder-sex.yaml", cohort, stage, heads, "--cache", str(cohort / "none"))
    assert not (cohort / "none").exists()  # it is said before anything is read


def test_mistakes_with_a_manifest_are_named(cohort: Path, stage: Path) -> None:
    sex = CONFIGS / "decoder-sex.yaml"
    with pytest.raises(ConfigError, match=r"source.seed is 20 and source.shares .* was trained with 20 and \[0.8"):
        train_decoder(sex, cohort, stage)
    knows_simulated_heads(stage)
    with pytest.raises(
        ConfigError, match=r"decoder.target: no series of the train split .*; the labels 'sex' are 0, 1"
    ):
        train_decoder(sex, cohort, stage)
    three = "decoder.options={labels: ['0', '1', '2'], pool: linear}"
    with pytest.raises(ConfigError, match=r"decoder.options.labels holds '2', which no series .* has of them: 0, 1"):
        train_decoder(sex, cohort, stage, three)
    with pytest.raises(ConfigError, match=r"decoder.target is 'tissue', expected 'mask', the manifest's column"):
        train_decoder(CONFIGS / "decoder-tissue.yaml", cohort, stage, "source.kind=manifest")
    with pytest.raises(ConfigError, match=r"decoder.target is 'mask', expected 'tissue', the simulator's map"):
        train_decoder(cohort / "mask.yaml", cohort, stage, "source.kind=simulator", "source.path=")
    for config in (cohort / "mask.yaml", CONFIGS / "decoder-lesion_box.yaml"):
        with pytest.raises(ConfigError, match=r"source.kind is 'bids', which has neither masks nor boxes; list the"):
            train_decoder(config, cohort, stage, "source.kind=bids")
    upon = ("source.kind=manifest", "source.seed=20", "decoder.upon=cyst")
    with pytest.raises(ConfigError, match=r"decoder.upon is 'cyst', expected a segmentation that the model has"):
        train_decoder(CONFIGS / "decoder-lesion_box.yaml", cohort, stage, *upon)
    assert not (cohort / "cache").exists()  # nothing was read to find that out


def test_the_cell_that_turns_an_age_to_text_is_named(cohort: Path, stage: Path) -> None:
    """Wherever it is listed: a test patient's cell is one of the column too."""
    knows_simulated_heads(stage)
    manifest = cohort / "manifest.csv"
    lines = [f"{line},{'split' if n == 0 else 'train'}" for n, line in enumerate(manifest.read_text().splitlines())]
    lines[5] = lines[5].replace(",50,", ",50y,").replace("train", "test")
    lines[6] = lines[6].replace("train", "validation")
    manifest.write_text("\n".join(lines) + "\n")
    said = r"no series of the train split has the truth .* are 50, 51; .*manifest.csv, line 6 it is '50y': leave empty"
    with pytest.raises(ConfigError, match=said):
        train_decoder(CONFIGS / "decoder-age.yaml", cohort, stage, "decoder.options={unit: years}")


def test_boxes_are_learned_without_masks(cohort: Path, stage: Path) -> None:
    """As the docs say it: nothing after the equals sign."""
    knows_simulated_heads(stage)
    alone = ("source.kind=manifest", "decoder.upon=", "decoder.options.odds=false")
    assert train_decoder(CONFIGS / "decoder-lesion_box.yaml", cohort, stage, *alone)["lesion_box"]["series"] > 0
    assert load_weights(cohort / "model").config.decoders[0].upon == ""


def test_a_label_that_no_mask_has_is_told_before_training(cohort: Path, stage: Path) -> None:
    knows_simulated_heads(stage)
    with pytest.raises(ConfigError, match=r"decoder cyst: decoder.options.labels holds 'cyst' \(value 2\), which no"):
        train_decoder(cohort / "mask.yaml", cohort, stage, "decoder.options.values=[0,2]")
    assert not (cohort / "model" / "decoders").exists()


def test_a_model_finds_its_series_from_any_folder(cohort: Path, stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knows_simulated_heads(stage)
    monkeypatch.chdir(cohort)
    figures = train_decoder(cohort / "mask.yaml", cohort, stage, "source.path=manifest.csv")
    monkeypatch.chdir(stage)
    arguments = [str(cohort / "model"), "--cache", str(cohort / "cache"), "--json"]
    measured = CliRunner().invoke(evaluate, arguments, catch_exceptions=False)
    assert json.loads(measured.stdout) == figures
    config = load_weights(cohort / "model").config
    assert config.sources["cyst"].path == str(cohort / "manifest.csv")


def test_too_few_heads_for_a_scope_name_what_a_manifest_reads(cohort: Path, stage: Path) -> None:
    knows_simulated_heads(stage)
    scope = ("decoder.options={labels: ['0', '1'], pool: linear}", "scope={neighbours: 20}")
    with pytest.raises(
        ConfigError, match=r"scope: \d+ series of the train split are too few, expected 21 or more; list more series"
    ):
        run_decoder(CONFIGS / "decoder-sex.yaml", cohort, stage, *scope)


def test_labels_that_teach_nothing_are_told(cohort: Path, stage: Path) -> None:
    knows_simulated_heads(stage)
    manifest = cohort / "manifest.csv"
    header, *rows = manifest.read_text().replace(",0,50,", ",female,50,").replace(",1,51,", ",male,51,").splitlines()
    rows = [f"{row},{('train', 'validation', 'test')[max(0, n - 9) // 5]}" for n, row in enumerate(rows)]
    text = "\n".join([f"{header},split", *rows]) + "\n"
    manifest.write_text(text.replace("p1,male", "p1,Male").replace("p3,male", "p3,Male").replace("p5,male", "p5,M"))
    heads = "decoder.options={labels: [female, male], pool: linear}"
    ran = run_decoder(CONFIGS / "decoder-sex.yaml", cohort, stage, heads)
    assert json.loads(ran.stdout).keys() == {"sex"}
    assert ran.stderr == (
        "decipher-rt: decoder sex: 3 of 14 series of the train split teach nothing, as their 'sex' is another: "
        "'Male' (2), 'M' (1)\n"
    )


def test_another_label_is_another_run(cohort: Path, stage: Path) -> None:
    knows_simulated_heads(stage)
    heads = "decoder.options={labels: ['0', '1'], pool: linear}"
    train_decoder(CONFIGS / "decoder-sex.yaml", cohort, stage, heads)
    manifest = cohort / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",p1,1,", ",p1,0,"))
    said = "a run of another configuration, which differs in what source.path lists; give another"
    with pytest.raises(CheckpointError, match=said):
        train_decoder(CONFIGS / "decoder-sex.yaml", cohort, stage, heads)


def test_a_stage_is_no_model(stage: Path) -> None:
    with pytest.raises(CheckpointError, match="a stage of the recipe, which answers nothing yet"):
        load_weights(stage)


def test_boxes_that_lie_outside_the_grid_are_told_of(cohort: Path, stage: Path) -> None:
    """In cm, say, or of another system of coordinates: nothing of them is seen, and the series count as present."""
    knows_simulated_heads(stage)
    manifest = cohort / "manifest.csv"
    boxes = ("decoder.upon=", "decoder.options.odds=false", "source.kind=manifest", "source.shares=[0.5, 0.25, 0.25]")
    inside = run_decoder(CONFIGS / "decoder-lesion_box.yaml", cohort, stage, *boxes)
    assert "outside the grid" not in inside.stderr
    manifest.write_text(manifest.read_text().replace("[-114, -114, 114]", "[-114, -114, 1140]"))
    shutil.rmtree(cohort / "model")
    ran = run_decoder(CONFIGS / "decoder-lesion_box.yaml", cohort, stage, *boxes)
    told = re.findall(r"lesion_box: all boxes of (\d+) series of the (\w+) split lie outside the grid", ran.stderr)
    assert [split for _, split in told] == ["train", "validation", "test"]
    assert sum(int(series) for series, _ in told) == sum(number % 3 > 0 for number in range(PATIENTS))
