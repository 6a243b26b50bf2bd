"""Training of decoders from an encoder's folder to a model's folder: resumed, composed, proved, evaluated."""

from __future__ import annotations

import dataclasses
import errno
import json
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from decipher_rt.atomic import write_text
from decipher_rt.train import checkpoint, loop
from decipher_rt.train.align.train import measure
from decipher_rt.train.checkpoint import DEFAULT_WEIGHTS, WEIGHTS, CheckpointError, read_tensors, write_tensors
from decipher_rt.train.config import ConfigError, dump_config
from decipher_rt.train.data import anatomy, anatomy_build
from decipher_rt.train.decoders import evaluate as evaluating
from decipher_rt.train.decoders import train as training
from decipher_rt.train.decoders.evaluate import evaluate_model
from decipher_rt.train.decoders.shards import fill, read_shard
from decipher_rt.train.decoders.train import FrozenEncoderError, prove_frozen
from decipher_rt.train.lock import one_at_a_time
from decipher_rt.train.model.vit import ViT
from decipher_rt.train.output import sole_writer
from decipher_rt.train.progress import Progress
from decipher_rt.train.scope import ScopeConfig
from decipher_rt.train.text.tokenizer import load_tokenizer
from decipher_rt.train.weights import load_weights

from .small_runs import BALL, BRIGHTNESS, RUN, SEEN, SOURCE, TEXT, TISSUE, run_config, trained

pytestmark = pytest.mark.usefixtures("small_sources")
CONFIGS = Path(training.__file__).resolve().parents[1] / "configs"


def test_decoders_join_an_encoder_that_stays_what_it_was(aligned: Path, shapes: Callable, tmp_path: Path) -> None:
    before, _ = read_tensors(aligned / WEIGHTS)
    folder, cache = tmp_path / "model", tmp_path / "cache"
    scope = ScopeConfig(neighbours=5, false_refusals=0.05)
    first = trained(run_config(aligned, scope=scope), folder, cache)
    second = trained(run_config(aligned, BALL), folder, cache)
    after, metadata = read_tensors(folder / WEIGHTS)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    assert {name.split(".")[1] for name in after if name.startswith("decoders.")} == {"brightness", "ball"}
    assert set(metadata["metrics"]) == {"recall", "brightness", "ball", "scope"}
    assert set(metadata["provenance"]) == {"encoder", "brightness", "ball"}
    assert metadata["provenance"]["encoder"] == {"steps": 7}
    assert metadata["provenance"]["ball"]["steps_of_this_call"] == RUN.steps

    loaded = load_weights(folder)
    assert loaded.config == second.config
    assert [d.name for d in loaded.config.decoders] == ["brightness", "ball"]
    assert loaded.config.scope == first.config.scope
    assert loaded.config.scope.groups == 2
    assert loaded.config.scope.outliers, "an eighth of the shapes are noise"
    assert float(loaded.model.logit_scale) == 2.0
    figures = evaluate_model(loaded, folder, cache, Progress())
    recalled = figures.pop("retrieval")
    assert figures == {name: metadata["metrics"][name] for name in figures}
    assert set(figures) == {"brightness", "ball", "scope"}
    assert figures["brightness"]["accuracy"] > 0.8
    assert figures["scope"]["others_refused"]["noise"] == 1.0
    tokenizer = load_tokenizer(folder, TEXT.max_tokens)
    again = measure(loaded.model, tokenizer, shapes(12000, 48), 512).to_json()  # type: ignore[arg-type]
    assert recalled == again
    assert recalled["pool"] == 42  # noise has no report
    assert (folder / "golden.npz").read_bytes() == (aligned / "golden.npz").read_bytes()
    for name in ("log.csv", "curve.png"):
        assert (folder / "decoders" / "ball" / name).exists()


def test_a_killed_run_goes_on_and_ends_the_same(aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    whole = trained(run_config(aligned), tmp_path / "whole", cache)
    saved = loop.save_training

    def killed(path: Path, model: object, optimiser: object, step: int, config: str) -> None:
        saved(path, model, optimiser, step, config)  # type: ignore[arg-type]
        if step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_training", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(run_config(aligned), tmp_path / "killed", cache)
    monkeypatch.setattr(loop, "save_training", saved)
    resumed = trained(run_config(aligned), tmp_path / "killed", cache)
    assert resumed.metadata["provenance"]["brightness"]["steps_of_this_call"] == 4
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    again = trained(run_config(aligned), tmp_path / "killed", cache)
    assert again.metadata == resumed.metadata, "what is finished is not trained further"


def test_a_changed_encoder_is_an_error(aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compose = training.compose

    def tampered(*arguments: object) -> object:
        model, left = compose(*arguments)  # type: ignore[arg-type]
        with torch.no_grad():
            model.encoder.norm.bias[0] += 1e-6
        return model, left

    monkeypatch.setattr(training, "compose", tampered)
    with pytest.raises(FrozenEncoderError, match=r"the encoder was [0-9a-f]{12} before decoder training and is"):
        trained(run_config(aligned), tmp_path / "model", tmp_path / "cache")
    _, metadata = read_tensors(tmp_path / "model" / WEIGHTS)
    with pytest.raises(FrozenEncoderError):
        prove_frozen(tmp_path / "model", metadata["encoder_sha256"])


def test_a_decoder_is_trained_anew_in_place_of_the_old(aligned: Path, tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    trained(run_config(aligned), folder, cache)
    attention = dataclasses.replace(BRIGHTNESS, options={"labels": ["dark", "light"], "pool": "attention"})
    with pytest.raises(CheckpointError, match="another configuration"):
        trained(run_config(folder, attention), folder, cache)
    weights = trained(run_config(folder, attention), tmp_path / "other", cache)
    assert [d.options["pool"] for d in weights.config.decoders] == ["attention"]


def test_companions_are_whole_or_not_there(aligned: Path, encoder: ViT, tmp_path: Path) -> None:
    """A disk that is full in the middle of a file stands for the moment at which a run is killed."""
    folder = tmp_path / "model"
    folder.mkdir()
    limit = (aligned / "tokenizer.json").stat().st_size // 2
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            training._accompany(folder, aligned, encoder.config.preprocessing, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert not list(folder.iterdir())
    training._accompany(folder, aligned, encoder.config.preprocessing, 0)
    for name in ("tokenizer.json", "golden.npz"):
        assert (folder / name).read_bytes() == (aligned / name).read_bytes()


def test_an_output_of_another_encoder_is_not_touched(aligned: Path, tmp_path: Path) -> None:
    tensors, metadata = read_tensors(aligned / WEIGHTS)
    tensors["encoder.norm.bias"][0] += 1
    other = tmp_path / "other"
    write_tensors(other / WEIGHTS, tensors, metadata)
    write_text(other / "config.yaml", (aligned / "config.yaml").read_text())
    before = (other / WEIGHTS).read_bytes()
    with pytest.raises(CheckpointError, match="other: holds a model of another encoder"):
        trained(run_config(aligned), other, tmp_path / "cache")
    assert (other / WEIGHTS).read_bytes() == before


def test_what_cannot_be_trained_says_why(aligned: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    unknown = dataclasses.replace(BALL, target="age")
    with pytest.raises(ConfigError, match=r"decoder ball: decoder\.target: no series of the train split has the truth"):
        trained(run_config(aligned, unknown), tmp_path / "model", cache)
    too_many = ScopeConfig(neighbours=100)
    with pytest.raises(ConfigError, match="validation heads are too few"):
        trained(run_config(aligned, scope=too_many), tmp_path / "model", cache)
    with pytest.raises(CheckpointError, match="no such file"):
        trained(run_config(tmp_path / "nowhere"), tmp_path / "model", cache)
    text_only = tmp_path / "text"
    write_tensors(text_only / WEIGHTS, {"text.a": torch.zeros(1)}, {})
    write_text(text_only / "config.yaml", "name: text\n")
    with pytest.raises(CheckpointError, match="holds no image encoder; give the folder of train ssl"):
        trained(run_config(text_only), tmp_path / "model", cache)


def test_a_list_too_short_for_the_scope_is_refused_before_an_image_is_read(
    aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "cohort.csv"
    splits = ("train",) * 12 + ("validation", "test")
    rows = [f"aligned,p{n},{split},{n},{'dark' if n else 'light'}" for n, split in enumerate(splits)]
    manifest.write_text("\n".join(["path,patient,split,volume,sequence", *rows]) + "\n")
    recorded = dataclasses.replace(SOURCE, kind="manifest", path=str(manifest))
    monkeypatch.setattr(training, "encode_split", None)
    said = r"scope: 1 series of the validation split are too few, expected 11 or more; list more series, lower scope\."
    with pytest.raises(ConfigError, match=said):
        trained(run_config(aligned, source=recorded, scope=ScopeConfig()), tmp_path / "model", tmp_path / "cache")


def test_decoders_that_are_not_taken_over_are_named(
    aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, cache = tmp_path / "one", tmp_path / "other", tmp_path / "cache"
    trained(run_config(aligned, TISSUE), one, cache)
    trained(run_config(aligned), other, cache)
    capsys.readouterr()
    trained(run_config(one), other, cache)
    assert f"{other} has no tissue, which {one} has: they are not taken over" in capsys.readouterr().err


def test_the_shipped_model_lends_its_encoder() -> None:
    from decipher_rt.train.weights import load_stage

    stage = load_stage(DEFAULT_WEIGHTS)
    encoder = training.load_encoder(stage, DEFAULT_WEIGHTS)
    shipped = load_weights(DEFAULT_WEIGHTS)
    assert encoder.config == shipped.config.encoder
    assert torch.equal(encoder.projection.weight, shipped.model.encoder.projection.weight)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_what_a_model_says_of_itself_is_the_last_configuration_s_and_trains_nothing_again(
    aligned: Path, tmp_path: Path
) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    scope = ScopeConfig(neighbours=5, false_refusals=0.05)
    first = trained(run_config(aligned, scope=scope, licence="MIT", subject="balls"), folder, cache)
    again = trained(
        run_config(aligned, scope=scope, licence="BSD", intended_use="Play.", subject="balls"), folder, cache
    )
    assert again.metadata["provenance"] == first.metadata["provenance"]
    assert (again.config.licence, again.config.intended_use, again.config.subject) == ("BSD", "Play.", "balls")
    last = trained(run_config(aligned, BALL), folder, cache)
    assert (last.config.licence, last.config.intended_use) == ("", "")
    assert last.config.subject == "balls", "the scope was fitted to them, and is kept"


def test_another_scope_is_fitted_and_trains_nothing_again(aligned: Path, tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    first = trained(run_config(aligned, scope=ScopeConfig(neighbours=5)), folder, cache)
    nearest = ScopeConfig(method="nearest", neighbours=3, among=16)
    again = trained(run_config(aligned, scope=nearest, workers=1), folder, cache)
    assert again.metadata["provenance"] == first.metadata["provenance"]
    loaded = load_weights(folder)
    assert (loaded.config.scope.method, loaded.config.scope.groups) == ("nearest", 16)
    assert len(loaded.model.scope.means) == 16


def test_decoders_are_left_out_with_what_is_upon_them(
    aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, cache = tmp_path / "model", tmp_path / "cache"
    for config in (TISSUE, SEEN, BALL):
        trained(run_config(aligned, config), model, cache)
    capsys.readouterr()
    lean = trained(run_config(model, BRIGHTNESS, without=("tissue", "tissues")), tmp_path / "lean", cache)
    assert capsys.readouterr().err == "decipher-rt: without: the model has no decoder tissues\n"
    assert [d.name for d in lean.config.decoders] == ["ball", "brightness"]
    assert set(lean.config.sources) == set(lean.metadata["metrics"]) - {"recall"} == {"ball", "brightness"}
    assert set(lean.metadata["provenance"]) == {"encoder", "ball", "brightness"}
    load_weights(tmp_path / "lean")


def test_a_target_that_the_source_has_not_is_not_measured(
    aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mask's 1 is not grey matter."""
    folder, cache = tmp_path / "model", tmp_path / "cache"
    for config in (TISSUE, BALL):
        trained(run_config(aligned, config), folder, cache)
    loaded = load_weights(folder)
    manifest = tmp_path / "cohort.csv"
    manifest.write_text("path,patient\naligned,p\n")
    other = evaluating.change_sources(loaded.config, ["source.kind=manifest", f"source.path={manifest}"])
    capsys.readouterr()
    figures = evaluate_model(dataclasses.replace(loaded, config=other), folder, cache, Progress())
    assert figures["tissue"] is None
    assert figures["ball"] is not None
    said = "tissue: not measured: its target is 'tissue', and what the source has is 'mask'"
    assert said in capsys.readouterr().err


def test_a_scope_of_recorded_heads_and_simulated_others_is_warned_of(
    aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, splits = tmp_path / "cohort.csv", ("train",) * 6 + ("validation",) * 6 + ("test",)
    rows = [f"aligned,p{n},{split},{n},{'dark' if n else 'light'}" for n, split in enumerate(splits)]
    manifest.write_text("\n".join(["path,patient,split,volume,sequence", *rows]) + "\n")
    recorded = dataclasses.replace(SOURCE, kind="manifest", path=str(manifest))
    for source, others, warned in ((recorded, 8, True), (recorded, 0, False), (SOURCE, 8, False)):
        scope = ScopeConfig(neighbours=5, others=others)
        folder = tmp_path / f"{source.kind}{others}"
        trained(run_config(aligned, source=source, scope=scope), folder, tmp_path / "cache")
        said = (
            "scope.others is 8: they are simulated and the heads recorded, and the scope learns that difference as well"
        )
        assert (said in capsys.readouterr().err) == warned


def test_a_folder_that_another_command_writes_to_is_refused(aligned: Path, tmp_path: Path) -> None:
    from decipher_rt.train.cli import train

    model = tmp_path / "model"
    path = tmp_path / "decoder.yaml"
    write_text(path, dump_config(run_config(aligned)))
    with sole_writer(model):
        refused = CliRunner().invoke(train, ["decoder", str(path), "-o", str(model)])
        assert isinstance(refused.exception, CheckpointError)
        assert str(refused.exception) == (
            f"{model}: another command is writing to it; wait for its end, or give another output folder"
        )
        assert [file.name for file in model.iterdir()] == [".lock"]
    done = CliRunner().invoke(train, ["decoder", str(path), "-o", str(model)], catch_exceptions=False)
    assert done.exit_code == 0


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system has none."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)


@pytest.mark.usefixtures("no_locks")
def test_a_file_system_without_locks_keeps_nobody_from_training(aligned: Path, tmp_path: Path) -> None:
    with sole_writer(tmp_path / "model"), one_at_a_time(tmp_path / "home" / "anatomy.lock"):
        trained(run_config(aligned), tmp_path / "model", tmp_path / "cache")


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_anatomy_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Path] = []
    monkeypatch.setattr(anatomy_build, "mni152_brain", lambda: None)
    monkeypatch.setattr(anatomy_build, "build_heads", lambda _, files: built.extend(files))
    monkeypatch.setattr(anatomy, "anatomy_from_files", lambda name, files: (name, files))
    assert anatomy.load_anatomy(tmp_path, heads=2) == ("mni152", built)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_two_processes_write_the_same_shard_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one writes it from its first to its last byte before this one's, which is written, has its name."""
    made = {"count": torch.ones(3)}
    save, written = checkpoint.save_file, []

    def overtaken(tensors: dict[str, torch.Tensor], staging: Path, about: dict[str, str]) -> None:
        save(tensors, staging, about)
        written.append(staging)
        if len(written) == 1:
            monkeypatch.setattr("os.getpid", lambda: -1)
            fill(tmp_path, 3, "count", lambda rows: made, lambda done: None)

    monkeypatch.setattr(checkpoint, "save_file", overtaken)
    fill(tmp_path, 3, "count", lambda rows: made, lambda done: None)
    assert len(written) == 2
    assert torch.equal(read_shard(tmp_path / "00000.safetensors", ("count",))[0], made["count"])
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("stage", ["ssl", "text", "align"])
def test_every_stage_keeps_its_folder_to_itself(stage: str, tmp_path: Path) -> None:
    from decipher_rt.train.cli import train

    with sole_writer(tmp_path / "out"):
        refused = CliRunner().invoke(
            train, [stage, str(CONFIGS / "tiny" / f"{stage}.yaml"), "-o", str(tmp_path / "out")]
        )
    assert "another command is writing to it" in str(refused.exception)


def test_the_command_trains_several_and_evaluate_agrees(aligned: Path, tmp_path: Path) -> None:
    from decipher_rt.train.cli import evaluate, train

    paths = []
    for decoder in (BRIGHTNESS, BALL):
        paths.append(tmp_path / f"{decoder.name}.yaml")
        write_text(paths[-1], dump_config(dataclasses.replace(run_config(Path("x")), decoder=decoder, encoder="")))
    model, cache = str(tmp_path / "model"), str(tmp_path / "cache")
    arguments = ["decoder", *map(str, paths), f"encoder={aligned}", "run.steps=6", "-o", model, "--cache", cache]
    done = CliRunner().invoke(train, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)
    assert {"brightness", "ball"} <= set(metrics)
    (tmp_path / "cache").rename(tmp_path / "model" / "samples")  # where it would be without --cache
    before = sorted((tmp_path / "model" / "samples").rglob("*"))
    measured = CliRunner().invoke(evaluate, [model, "--json"], catch_exceptions=False)
    assert sorted((tmp_path / "model" / "samples").rglob("*")) == before
    figures = json.loads(measured.stdout)
    assert figures == {name: metrics[name] for name in ("brightness", "ball")} | {"retrieval": figures["retrieval"]}


def test_evaluate_takes_one_folder_and_changes_only_sources(aligned: Path) -> None:
    from decipher_rt.train.cli import evaluate

    several = CliRunner().invoke(evaluate, ["a", "b"])
    assert several.exit_code == 2
    assert "give one weights folder, not 2" in several.output
    with pytest.raises(CheckpointError, match="a stage of the recipe"):
        CliRunner().invoke(evaluate, [str(aligned), "source.test=10"], catch_exceptions=False)


def test_the_command_names_what_is_missing(tmp_path: Path) -> None:
    from decipher_rt.train.cli import train

    assert "give one or more configurations" in CliRunner().invoke(train, ["decoder", "encoder=x"]).output
    path = tmp_path / "decoder.yaml"
    write_text(path, dump_config(run_config(Path("x"))))
    for override, words in (
        ("encoder=''", "encoder is empty, expected the weights folder of the encoder"),
        ("run.batch=0", "run.batch is 0"),
        ("decoder.kind=guess", "decoder.kind is 'guess'"),
        ("decoder.options={labels: [one]}", "decoder.options.labels"),
        ("scope={method: guess}", "scope.method is 'guess'"),
    ):
        found = CliRunner().invoke(train, ["decoder", str(path), override])
        assert isinstance(found.exception, ConfigError), override
        assert words in str(found.exception)
        assert str(path) in str(found.exception)


def test_evaluation_counts_series_that_are_no_heads(shapes: Callable) -> None:
    assert evaluating.test_count(ScopeConfig(others=1024)) == 256
    assert evaluating.test_count(ScopeConfig(others=1)) == 1
