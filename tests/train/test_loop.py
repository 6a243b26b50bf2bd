"""The shared loop: killed and resumed it ends with the same bits, and two processes end where one does."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from decipher_rt.train import loop
from decipher_rt.train.checkpoint import CheckpointError, read_tensors
from decipher_rt.train.config import ConfigError, dump_config, load_config
from decipher_rt.train.log import StepLog, draw_curve, last_means
from decipher_rt.train.loop import TrainingError, run
from decipher_rt.train.memory import compute_blocks_again, move
from decipher_rt.train.progress import Progress
from decipher_rt.train.run_config import RunConfig
from decipher_rt.train.schedule import cosine, draw_indices, learning_rate, weight_decay
from decipher_rt.train.sharded import load_sharded, save_sharded, whole_state
from decipher_rt.train.workers import WorkerError, run_jobs

PROGRAM = Path(__file__).parent / "programs" / "toy_run.py"
TOY: dict[str, Any] = runpy.run_path(str(PROGRAM))  # the same stage in this process
SETTINGS = load_config(RunConfig, PROGRAM.with_suffix(".yaml"))
# Sums in another order: a few bits of float32, grown over a dozen steps.
ORDER_RTOL = 1e-4


@pytest.fixture(autouse=True)
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(folder: Path, dropout: float = 0.0, **changes: Any) -> Path:
    settings = dataclasses.replace(SETTINGS, **changes)
    settings.check()
    run(TOY["Toy"](settings, dropout), settings, folder, dump_config(settings), Progress())
    return folder


def program(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(PROGRAM), str(folder), *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "model.safetensors")[0]


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return [{name: v for name, v in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def same(one: Path, other: Path) -> bool:
    mine, theirs = weights(one), weights(other)
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def compare(one: Path, other: Path) -> None:
    for mine, theirs in zip(log(one), log(other), strict=True):
        for name in ("loss", "contrastive", "some", "gradient_norm"):
            assert float(theirs[name]) == pytest.approx(float(mine[name]), rel=ORDER_RTOL, abs=1e-7), name
    expected, found = weights(one), weights(other)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=ORDER_RTOL, atol=1e-6), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("whole"))


def test_a_run_leaves_a_weights_folder(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == ["config.yaml", "curve.png", "log.csv", "model.safetensors"]
    assert (whole / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert load_config(RunConfig, whole / "config.yaml") == SETTINGS
    assert [int(row["step"]) for row in log(whole)] == list(range(12))
    before = TOY["Toy"](SETTINGS, 0.0).model.state_dict()
    assert set(weights(whole)) == set(before)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in weights(whole).items())  # the teacher too


def test_killed_at_any_moment_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    """With dropout, so that what is drawn within the model is drawn again too."""
    killed = tmp_path / "killed"
    process = program(killed, "steps=300", "checkpoint_every=10", "dropout")
    while process.poll() is None and latest(killed) < 20:
        time.sleep(0.02)
    time.sleep(0.02)  # somewhere between two checkpoints
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert 0 < latest(killed) < 300
    train(killed, 0.1, steps=300, checkpoint_every=10)
    train(tmp_path / "whole", 0.1, steps=300, checkpoint_every=10)
    assert same(tmp_path / "whole", killed)
    assert log(tmp_path / "whole") == log(killed)


def latest(folder: Path) -> int:
    """Step of the last checkpoint, which is whole whenever it is looked at."""
    path = folder / "training.safetensors"
    return int(read_tensors(path)[1]["step"]) if path.exists() else 0


def test_two_processes_equal_one(whole: Path, tmp_path: Path) -> None:
    process = program(tmp_path, "devices=2")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert read_tensors(tmp_path / "model.safetensors")[1]["provenance"]["processes"] == 2
    compare(whole, tmp_path)


def test_accumulated_parts_equal_the_whole_where_samples_are_not_coupled(tmp_path: Path) -> None:
    """The toy's own losses couple samples; of the plain mean of their distances, parts have the whole's gradient."""

    class Plain(TOY["Model"]):  # type: ignore[misc]
        def forward(self, batch: Any, step: int) -> dict[str, torch.Tensor]:
            del step
            loss = ((self.encode(self.student, batch.x) - batch.x.roll(1, -1)) ** 2).mean()
            return {"loss": loss, "contrastive": loss, "some": loss}

    for parts in (1, 4):
        settings = dataclasses.replace(SETTINGS, accumulate=parts)
        stage = TOY["Toy"](settings, 0.0)
        stage.model.__class__ = Plain
        run(stage, settings, tmp_path / str(parts), dump_config(settings), Progress())
    compare(tmp_path / "1", tmp_path / "4")


def test_blocks_computed_again_end_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    assert same(whole, train(tmp_path, checkpointing=True))


def test_batches_from_several_threads_end_with_the_same_bits(whole: Path, tmp_path: Path) -> None:
    assert same(whole, train(tmp_path, loaders=3))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "cpu_features", lambda: frozenset(["avx512_bf16"]))  # it may be imitated here
    train(tmp_path, precision="bf16")
    assert all(tensor.dtype is torch.float32 for tensor in weights(tmp_path).values())
    assert not same(whole, tmp_path)
    first, exact = float(log(tmp_path)[0]["loss"]), float(log(whole)[0]["loss"])
    assert first == pytest.approx(exact, rel=0.05)  # 8 bits of mantissa


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes in bfloat16")
def test_a_cpu_without_bfloat16_computes_in_float32(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "cpu_features", lambda: frozenset(["avx2", "avx512f"]))
    assert same(whole, train(tmp_path, precision="bf16"))
    assert read_tensors(tmp_path / "model.safetensors")[1]["provenance"]["precision"] == "fp32"


def test_processes_that_slurm_started_keep_their_number_and_threads(tmp_path: Path) -> None:
    """What follows a run, such as figures, is for the first alone to write."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = (
        "import runpy, torch; from decipher_rt.train.distributed import rank; before = rank(); "
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__'); print(before, rank(), torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONWARNINGS": "error", **SLURM}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), "devices=2", "steps=2", "threads=3"],
            env={**environment, "SLURM_PROCID": number, "SLURM_LOCALID": number},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in ("0", "1")
    ]  # fmt: skip
    said = [process.communicate(timeout=300) for process in processes]
    assert [out for out, _ in said] == ["0 0 3\n", "1 1 3\n"], said


SLURM = {
    "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train",
}  # fmt: skip
SCRIPT = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}  # of sbatch, which runs it once


@pytest.mark.parametrize(
    ("devices", "environment", "said"),
    [
        (1, {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4"}, "is 1 and run.nodes 1, but torchrun or SLURM starts 4"),
        (1, SLURM, "run.devices is 1 and run.nodes 1, but torchrun or SLURM starts 2 processes; set them .*srun"),
        (4, SLURM, "run.devices is 4 and run.nodes 1, but torchrun or SLURM starts 2 processes; set them"),
        (2, {**SCRIPT, "SLURM_NTASKS": "4"}, "run.devices is 2 and run.nodes 1, but torchrun or SLURM starts 4"),
        (2, {"SLURM_NTASKS": "2"}, "the processes do not come together .*--ntasks-per-node"),
        (
            2,
            {**SLURM, "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2"},
            "the processes do not come together .*tasks per",
        ),
    ],
)
def test_a_launcher_of_other_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int, environment: dict[str, str], said: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=said):
        train(tmp_path, devices=devices)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "environment",
    [
        {**SLURM, "SLURM_JOB_NAME": "bash"},
        {**SLURM, "SLURM_JOB_NAME": "interactive", "SLURM_PROCID": "1"},  # one of several that srun starts, each alone
        SCRIPT,
        {name: value for name, value in SCRIPT.items() if name != "SLURM_NTASKS_PER_NODE"},
    ],
)
def test_where_slurm_starts_no_run_of_several_one_process_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    train(tmp_path, steps=2)
    assert (tmp_path / "model.safetensors").exists()


def test_finished_runs_are_left_alone_and_others_refused(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    train(whole)
    assert capsys.readouterr().err == f"decipher-rt: {whole}: already trained\n"
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == before
    with pytest.raises(CheckpointError, match=r"config.yaml: a run of another configuration"):
        train(whole, rate=0.5)


def test_a_gradient_that_is_not_finite_ends_the_run_in_words(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^step \d+: the gradient is not finite; lower run.rate"):
        train(tmp_path, rate=1e30, warmup=0)


def test_fsdp_without_a_gpu_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA finds a GPU")
    with pytest.raises(TrainingError, match=r"run\.strategy is fsdp, which needs GPUs"):
        train(tmp_path, strategy="fsdp")


def test_compiled_it_learns_the_same(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced by torch.compile, run without its code generator, which takes a minute for these few layers."""
    compiled = []
    real = nn.Module.compile

    def without_generator(self: nn.Module) -> None:
        compiled.append(type(self).__name__)
        real(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", without_generator)
    train(tmp_path, compile=True)
    assert compiled == ["Model"]
    compare(whole, tmp_path)


def test_schedules() -> None:
    settings = RunConfig(steps=101, batch=1, rate=2.0, final_rate=0.2, warmup=10, weight_decay=(0.04, 0.4))
    assert learning_rate(settings, 0) == pytest.approx(0.2)  # a tenth of the way up
    assert learning_rate(settings, 10) == pytest.approx(2.0)
    assert learning_rate(settings, 101) == pytest.approx(0.2)
    # Halfway down a cosine lies the mean of its ends.
    assert weight_decay(settings, 0) == pytest.approx(0.04)
    assert weight_decay(settings, 50) == pytest.approx(0.22)
    assert weight_decay(settings, 100) == pytest.approx(0.4)
    assert cosine(1.0, 0.0, 1 / 3) == pytest.approx((1 + math.cos(math.pi / 3)) / 2)
    rates = [learning_rate(settings, step) for step in range(101)]
    assert max(rates) == rates[10] == pytest.approx(2.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_every_epoch_is_a_permutation() -> None:
    seen = [i for step in range(10) for i in draw_indices(7, 25, step, 10)]
    for epoch in range(4):
        assert sorted(seen[epoch * 25 : (epoch + 1) * 25]) == list(range(25))
    assert seen[:25] != seen[25:50]
    assert draw_indices(7, 25, 3, 10) == seen[30:40]


def test_blocks_are_computed_twice() -> None:
    calls = 0

    class Block(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return x**2

    model = nn.Module()
    model.blocks = nn.ModuleList([Block()])
    compute_blocks_again(model)
    x = torch.tensor(3.0, requires_grad=True)
    model.blocks[0](x).backward()
    assert (calls, float(x.grad)) == (2, 6.0)


def test_batches_of_any_nesting_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Part:
        values: torch.Tensor
        name: str

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # which takes a GPU
    moved = move(
        {"a": [torch.zeros(1), (torch.ones(2), "text", Part(torch.ones(3), "b"))], "n": 3}, torch.device("meta")
    )
    outer, (inner, text, part) = moved["a"]
    assert [(one.device.type, *one.shape) for one in (outer, inner, part.values)] == [("meta", n) for n in (1, 2, 3)]
    assert (text, part.name, moved["n"]) == ("text", "b", 3)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps=0", "run.steps is 0"),
        ("batch=6", r"run.batch is 6, expected a multiple of devices x nodes x accumulate \(4\)"),
        ("rate=0", "run.rate"),
        ("warmup=-1", "run.warmup"),
        ("weight_decay=[0.1, -0.1]", r"run.weight_decay\[1\]"),
        ("betas=[0.9, 1.0]", r"run.betas\[1\]"),
        ("clip=.nan", "clip is nan, expected a finite number"),
    ],
)
def test_values_that_cannot_be_used_are_refused_by_key(tmp_path: Path, override: str, said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 2\nbatch: 8\ndevices: 2\naccumulate: 2\n")
    with pytest.raises(ConfigError, match=said):
        load_config(RunConfig, path, [override])


def test_precision_is_one_of_two(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("steps: 2\nbatch: 8\n")
    with pytest.raises(ConfigError, match="precision is 'fp16', expected one of fp32, bf16"):
        load_config(RunConfig, path, ["precision=fp16"])


def test_state_of_sharded_models_is_kept_by_name(tmp_path: Path) -> None:
    """What FSDP needs GPUs for is the sharding; gathering by name, writing and reading are the same without."""

    def stepped(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        root = nn.Module()
        root.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        biases = [p for p in root.parameters() if p.ndim == 1]
        matrices = [p for p in root.parameters() if p.ndim == 2]
        optimiser = torch.optim.AdamW([{"params": biases, "weight_decay": 0.0}, {"params": matrices}], lr=0.1)
        for step in range(steps):
            root.model(torch.full((4, 3), step + 1.0) + torch.eye(4, 3)).sum().square().backward()
            optimiser.step()
            optimiser.zero_grad()
        return root, optimiser

    path = tmp_path / "training.safetensors"
    save_sharded(path, *stepped(2), 2, "text")
    root, optimiser = stepped(0)
    assert load_sharded(path, root, optimiser, "text") == 2
    expected, whole = stepped(2)
    assert set(whole_state(root)) == set(expected.model.state_dict())
    for one, other in zip(root.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(optimiser.state.values(), whole.state.values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("exp_avg", "exp_avg_sq", "step"))
    assert [group["lr"] for group in optimiser.param_groups] == [0.1, 0.1]
    with pytest.raises(CheckpointError, match="another configuration"):
        load_sharded(path, root, optimiser, "other")


def test_a_finished_run_without_its_weights_is_not_called_finished(tmp_path: Path) -> None:
    (train(tmp_path, steps=2) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: the run is finished, but this file is gone"):
        train(tmp_path, steps=2)


@pytest.mark.parametrize("text", ["", "step,loss\n", "a,b\n1,2\n", "step,loss\n0,much\n", "step,loss\n0,1,2\n"])
def test_what_is_no_log_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    for read in (last_means, lambda log: StepLog(log, 1), lambda log: draw_curve(log, tmp_path / "a.png", ["loss"])):
        with pytest.raises(CheckpointError, match=r"log.csv: not the log of a run; remove"):
            read(path)


def test_a_worker_that_is_killed_is_named() -> None:
    with pytest.raises(WorkerError, match="a worker process was ended from outside"):
        run_jobs(os._exit, [(1,), (1,)], 2, lambda job: None)
