"""Configurations: whatever cannot be used is refused by its key, in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from decipher_rt.train.config import ConfigError, dump_config, load_config, read_document
from decipher_rt.train.decoders.evaluate import change_sources
from decipher_rt.train.model.recipe import RecipeConfig
from decipher_rt.train.model.vit import ViTConfig
from decipher_rt.train.sources import SourceConfig
from decipher_rt.train.ssl.config import SSLConfig

GOOD = "name: a\nversion: '1'\nencoder: tiny\nsource: {}\nrun: {steps: 10, batch: 16}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    return path


def test_presets_by_name_and_with_changes(config: Path) -> None:
    assert load_config(SSLConfig, config).encoder.width == 192
    changed = load_config(SSLConfig, config, ["encoder.depth=3", "run.rate=3e-4", "run.compile=true"])
    assert (changed.encoder.depth, changed.encoder.width) == (3, 192)
    assert (changed.run.rate, changed.run.compile) == (3e-4, True)
    assert load_config(SSLConfig, config, ["encoder=base"]).encoder.width == 768


@pytest.mark.parametrize("encoder", ["{preset: tiny, pool: fixed}", "{preset: tiny, pool: batch}"])
def test_keys_that_older_versions_wrote_say_nothing(config: Path, encoder: str) -> None:
    expected = load_config(SSLConfig, config)
    config.write_text(GOOD.replace("tiny", encoder))
    assert load_config(SSLConfig, config) == expected
    assert "pool:" not in dump_config(expected)


def test_dump_and_load_give_the_same(config: Path, tmp_path: Path) -> None:
    loaded = load_config(SSLConfig, config, ["encoder.token_buckets=[64, 1728]", "crops.global_share=[0.25, 0.5]"])
    (tmp_path / "dumped.yaml").write_text(dump_config(loaded))
    assert load_config(SSLConfig, tmp_path / "dumped.yaml") == loaded


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("run.stepz=1", "run.stepz"),
        ("run.steps=many", "run.steps"),
        ("run.steps=1.5", "run.steps"),
        ("run.steps=0", "run.steps"),
        ("run.rate=fast", "run.rate"),
        ("source.not_heads=1.5", "source.not_heads"),
        ("run.compile=1", "run.compile"),
        ("run.seed=true", "run.seed"),
        ("name=3", "name"),
        ("encoder=huge", "encoder"),
        ("encoder.preset=huge", "encoder.preset"),
        ("encoder.width=100", "encoder.width"),
        ("encoder.patch_shape=[12, 12]", "encoder.patch_shape"),
        ("encoder.patch_shape=[12, 12, 7]", "encoder.patch_shape"),
        ("encoder.token_buckets=[512, 128]", "encoder.token_buckets"),
        ("augment=3", "augment"),
        ("augment.noise=-1", "augment.noise"),
        ("run.seed.deep=3", "run.seed"),
        ("run.threads=0", "run.threads"),
        ("steps", "steps"),
        ("run.seed=[", "run.seed"),
        ("name=2020-13-45", "name='2020-13-45' is not a YAML value"),
        ("name=" + "[" * 100_000, "is not a YAML value"),
        ("encoder.preset=[1]", "encoder.preset is [1], expected one of"),
        ("run.rate=.inf", "run.rate is inf, expected a finite number"),
        ("run.final_rate=.nan", "run.final_rate is nan, expected a finite number"),
        ("run.rate=1" + "0" * 400, "run.rate is 1"),
        ("run.seed=4294967296", "run.seed is 4294967296, expected at most 4294967295"),
        ("run.threads=1025", "run.threads is 1025, expected at most 1024"),
        ("run.loaders=1025", "run.loaders is 1025, expected at most 1024"),
    ],
)
def test_errors_name_the_key(config: Path, override: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SSLConfig, config, [override])
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("version: '1'\n", ""), "version"),
        ("- 1\n", "list"),
        ("a: [", "not YAML"),
        ("a: 2020-13-45", "not YAML"),
        ("a: !!python/object:os.x {}", "not YAML"),
    ],
)
def test_broken_files_are_refused(config: Path, text: str, said: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(SSLConfig, config)


def test_a_shipped_configuration_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_document(Path("train/configs/tiny/ssl.yaml"))["name"] == "tiny-ssl"


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        load_config(SSLConfig, tmp_path / "absent.yaml")


def test_nothing_after_the_equals_sign_is_empty_text(config: Path) -> None:
    changed = load_config(SSLConfig, config, ["source.listed=", "source.sequences.FLAIR="])
    assert (changed.source.listed, changed.source.sequences) == ("", {"FLAIR": ""})
    for override, said in (("name=", "name is None, expected text"), ("source.kind=", "source.kind is None")):
        with pytest.raises(ConfigError, match=said):
            load_config(SSLConfig, config, [override])


def test_files_of_a_source_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = SourceConfig(kind="manifest", path="a/b.csv", anatomy="other.nii.gz").located()
    assert (source.path, source.anatomy) == (str(tmp_path / "a/b.csv"), str(tmp_path / "other.nii.gz"))
    assert SourceConfig().located() == SourceConfig()
    (tmp_path / "annex").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "annex" / "b.csv")  # its rows are found from where the link lies
    assert SourceConfig(kind="manifest", path="link.csv").located().path == str(tmp_path / "link.csv")


def test_sources_change_and_the_model_does_not() -> None:
    source = SourceConfig(test=512)
    config = RecipeConfig("recipe", "m", "1.0.0", ViTConfig.PRESETS["tiny"], sources={"a": source}, scope_source=source)
    changed = change_sources(config, ["source.test=7", "source.anatomy=other.nii.gz"])
    assert changed.sources["a"] == changed.scope_source == SourceConfig(test=7, anatomy="other.nii.gz")
    for wrong, said in (
        ("encoder.width=6", "source.KEY=VALUE"),
        ("source.tests=7", "source.tests"),
        ("source.test=0", "^source.test is 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            change_sources(config, [wrong])


def test_recorded_patients_are_not_drawn_anew_to_be_tested_on() -> None:
    recorded = SourceConfig(kind="manifest", path="a.csv", seed=20)
    config = RecipeConfig("recipe", "m", "1.0.0", ViTConfig.PRESETS["tiny"], sources={"age": recorded})
    for change in ("source.seed=1", "source.shares=[0.0, 0.0, 1.0]"):
        with pytest.raises(ConfigError, match=r"source.seed is .*, but age was trained with 20 and \[0.8, 0.1, 0.1\]"):
            change_sources(config, [change])
    assert change_sources(config, ["source.path=b.csv"]).sources["age"].path == "b.csv"
    simulated = dataclasses.replace(config, sources={"age": SourceConfig()})
    changes = ["source.kind=manifest", "source.path=b.csv", "source.shares=[0.0, 0.0, 1.0]"]
    assert change_sources(simulated, changes).sources["age"].shares == (0.0, 0.0, 1.0)
