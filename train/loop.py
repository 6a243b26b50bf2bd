"""The loop that every stage of the recipe is optimised by: one process or many, resumable to the step.

A stage says what is learned (`Stage`); the loop owns everything else: processes and precision through Lightning
Fabric, AdamW and its schedules, accumulation, clipping, checkpoints, log and curve. Everything random follows from the
seed and the number of the step, so a run that is killed at any moment and started again ends with the same weights.

Several processes on one machine are started by the loop itself (``run.devices``); on several machines by ``torchrun``
or SLURM, which Fabric finds in the environment, with ``run.devices`` and ``run.nodes`` saying what they start and the
run's folder on a disk that all of them see. FSDP and CUDA have not been run where this was written: the tests cover one
process and DDP on CPUs.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import torch
from torch import Tensor, nn

from decipher_rt.atomic import write_text
from decipher_rt.engines.cpu import cpu_features
from decipher_rt.errors import DecipherError

from . import distributed
from .checkpoint import CONFIG, WEIGHTS, CheckpointError, check_same, load_training, save_training, write_tensors
from .log import StepLog, draw_curve
from .memory import Held, compute_blocks_again, move
from .progress import Progress
from .run_config import Precision, RunConfig
from .schedule import learning_rate, weight_decay

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TRAINING = "training.safetensors"
PACKAGES = ("torch", "numpy", "lightning-fabric")
PRECISIONS: dict[Precision, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}
BF16_FEATURES = frozenset(["amx_bf16", "avx512_bf16", "bf16"])  # as /proc/cpuinfo has them, the last on aarch64


class TrainingError(DecipherError):
    """A run that cannot go on. The message names the step and what to change."""


class ParameterGroup(TypedDict):
    """Parameters that share how they are optimised: ``rate_scale`` times the rate, with weight decay or without."""

    params: list[nn.Parameter]
    rate_scale: float
    decays: bool


class Stage(Protocol):
    """What is learned, and from what."""

    @property
    def model(self) -> nn.Module:
        """Everything that is optimised or kept in checkpoints.

        Called as ``model(batch, step)``, it returns every loss as a scalar, the one to minimise as ``"loss"``. The mean
        over processes of each is what is logged and minimised: see `decipher_rt.train.distributed`.
        """
        ...

    @property
    def curve(self) -> tuple[str, ...]:
        """Names of the losses that the curve shows."""
        ...

    def batch(self, step: int, rank: int, world_size: int) -> Any:
        """Return share ``rank`` of ``world_size`` of a step's batch: tensors in dataclasses, mappings or sequences.

        A function of the stage's seed and its arguments alone, called on a thread while an earlier step computes. For
        N processes to equal one, what is drawn for a sample must follow from its place in the whole batch. Where
        gradients are accumulated, a process asks for several shares of a step.
        """
        ...

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return what AdamW optimises."""
        ...

    def after_step(self, step: int) -> None:
        """Do what follows an optimiser step (an EMA teacher)."""
        ...

    def weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Choose and name what ``model.safetensors`` gets, from the model's state after the last step."""
        ...


def run(
    stage: Stage,
    settings: RunConfig,
    folder: Path,
    config_text: str,
    progress: Progress,
    metadata: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Optimise a stage, from the last checkpoint in ``folder`` if there is one, and leave a weights folder.

    Parameters
    ----------
    stage : Stage
    settings : RunConfig
    folder : Path
        Gets ``model.safetensors``, ``config.yaml`` (last: a folder that has it is finished, and nothing is done),
        ``log.csv``, ``curve.png``, and while it runs ``training.safetensors``. The trained state is in these files;
        ``stage.model`` holds it only where this call trained.
    config_text : str
        The whole configuration as YAML; a checkpoint of another one is refused.
    progress : Progress
    metadata : mapping
        What ``model.safetensors`` is to say of itself beside its provenance.

    Raises
    ------
    CheckpointError
        Where the folder holds a run of another configuration, or a damaged checkpoint.
    TrainingError
        Where the gradient is not finite, or the machine or its launcher is not what ``settings`` asks for.
    """
    if _finished(folder, config_text):
        progress.warn(f"{folder}: already trained")
        return
    if (computed := precision_here(settings)) != settings.precision:
        progress.say(f"this CPU does not compute in {settings.precision}: {computed}")
    fabric = _launched(stage.model, settings)
    distributed.remember_rank()
    torch.set_num_threads(settings.threads)  # after the launch, which sets another number
    try:
        _optimise(stage, settings, folder, config_text, fabric, progress, metadata)
    finally:
        # Those that fail leave at once: the others would wait for them.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def warn_of_parts(settings: RunConfig, losses: str, progress: Progress) -> None:
    """Say where losses that couple samples see fewer of them than a step has."""
    if settings.accumulate > 1:
        progress.warn(
            f"run.accumulate is {settings.accumulate}: {losses} see parts of {settings.part} series, and not the "
            f"{settings.batch} of run.batch; run.checkpointing and run.devices make room for whole ones"
        )


def begun(folder: Path) -> bool:
    """Whether a run was begun in a folder, finished or not."""
    return any((folder / name).exists() for name in (TRAINING, CONFIG))


def _finished(folder: Path, config_text: str) -> bool:
    try:
        found = (folder / CONFIG).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    check_same(folder / CONFIG, found, config_text)
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder / WEIGHTS}: the run is finished, but this file is gone; remove {folder}")
    return True


def _launched(model: nn.Module, settings: RunConfig) -> Fabric:
    """Return Fabric, its processes started and met."""
    asked = f"run.devices is {settings.devices} and run.nodes {settings.nodes}"
    started = distributed.started(settings.devices * settings.nodes)
    if started is not None and started != settings.devices * settings.nodes:
        raise TrainingError(
            f"{asked}, but torchrun or SLURM starts {started} processes; set them to the processes of a machine and "
            "the machines, or start each of several runs by itself (srun --ntasks=1)"
        )
    try:
        fabric = _fabric(model, settings)
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:240]
        raise TrainingError(
            f"{asked}: the processes do not come together ({reason}); have torchrun or srun start the same"
        ) from None
    return fabric


def _fabric(model: nn.Module, settings: RunConfig) -> Fabric:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # who joined whom is no news
    cuda = torch.cuda.is_available()
    if settings.strategy == "fsdp" and not cuda:
        raise TrainingError("run.strategy is fsdp, which needs GPUs, and CUDA finds none; set run.strategy=ddp")
    if cuda and settings.devices > torch.cuda.device_count():
        raise TrainingError(
            f"run.devices is {settings.devices}, but CUDA finds {torch.cuda.device_count()} GPUs; set run.devices"
        )
    strategy: Any = "auto"
    if settings.strategy == "fsdp":
        from .sharded import sharding_strategy

        strategy = sharding_strategy(model)
    elif settings.devices * settings.nodes > 1:
        strategy = DDPStrategy(find_unused_parameters=True)  # a step may use no mask token, or one decoder of several
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=strategy,
        # One alone asks no launcher: SLURM's variables are in a script that is run once as well.
        plugins=[LightningEnvironment()] if settings.devices * settings.nodes == 1 else None,
        precision=PRECISIONS[precision_here(settings)],
    )


def precision_here(settings: RunConfig) -> Precision:
    """Return what matrix products are computed in: without bfloat16 a CPU imitates it, far slower than fp32."""
    imitated = not torch.cuda.is_available() and not BF16_FEATURES & cpu_features()
    return "fp32" if imitated else settings.precision


def _optimise(
    stage: Stage,
    settings: RunConfig,
    folder: Path,
    config_text: str,
    fabric: Fabric,
    progress: Progress,
    metadata: Mapping[str, Any],
) -> None:
    model, steps = stage.model, settings.steps
    if settings.checkpointing:
        compute_blocks_again(model)
    if settings.compile:
        model.compile()
    optimiser = _adamw(stage.parameter_groups(), settings)
    module, fabric_optimiser = fabric.setup(_Losses(model), optimiser)
    checkpoint = folder / TRAINING
    sharded = settings.strategy == "fsdp"
    holder: Any = model
    load: Any = load_training
    save: Any = save_training
    whole_state: Any = nn.Module.state_dict
    if sharded:  # what torch needs for it takes a second to import
        from .sharded import load_sharded, save_sharded
        from .sharded import whole_state as gathered_state

        load, save, whole_state = load_sharded, save_sharded, gathered_state
        holder = module._forward_module  # knows where the parts are
    first = load(checkpoint, holder, optimiser, config_text) if checkpoint.exists() else 0
    main = distributed.rank() == 0
    log = StepLog(folder / "log.csv", first)
    began = time.monotonic()
    batches = _batches(stage, settings, first)
    with progress.bar("training", steps) as advance_to:
        advance_to(first)
        for step in range(first, steps):
            start = time.monotonic()
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(settings, step) * group["rate_scale"]
                group["weight_decay"] = weight_decay(settings, step) if group["decays"] else 0.0
            # Dropout follows from the step too, whatever was drawn before it.
            torch.manual_seed(settings.seed * 1_000_003 + step * settings.shares + distributed.rank())
            losses = _backward(fabric, module, batches, settings, step)
            # Fabric's own check is not made under FSDP.
            norm = fabric.clip_gradients(module, fabric_optimiser, max_norm=settings.clip, error_if_nonfinite=False)
            if norm is not None and not norm.isfinite():
                raise TrainingError(
                    f"step {step}: the gradient is not finite; lower run.rate, lengthen run.warmup, or set "
                    "run.precision=fp32"
                )
            fabric_optimiser.step()
            stage.after_step(step)
            if main:
                values = {name: float(value) for name, value in losses.items()}
                log.add(
                    step,
                    {
                        **values,
                        "gradient_norm": float(norm) if norm is not None else float("nan"),
                        "rate": learning_rate(settings, step),
                        "seconds": time.monotonic() - start,
                    },
                )
            advance_to(step + 1)
            if (step + 1) % settings.checkpoint_every == 0 or step + 1 == steps:
                if main:
                    log.write()
                if main or sharded:
                    save(checkpoint, holder, optimiser, step + 1, config_text)
    model.eval()
    tensors = whole_state(holder)
    if main:
        provenance = {
            "steps_of_this_call": steps - first,  # a resumed run says less than the whole took
            "seconds": round(time.monotonic() - began),
            "processes": distributed.world_size(),
            "device": str(fabric.device),
            "precision": precision_here(settings),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        draw_curve(folder / "log.csv", folder / "curve.png", stage.curve)
        write_tensors(folder / WEIGHTS, stage.weights(tensors), {**metadata, "provenance": provenance})
        write_text(folder / CONFIG, config_text)
        checkpoint.unlink(missing_ok=True)
    distributed.barrier()


def _backward(fabric: Fabric, module: Any, batches: Iterator[Any], settings: RunConfig, step: int) -> dict[str, Tensor]:
    """Add up the gradients of a step; return the mean of every loss over all parts and processes."""
    module.train()
    module.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for part in range(settings.accumulate):
        batch = move(next(batches), fabric.device)
        with fabric.no_backward_sync(module, enabled=part + 1 < settings.accumulate):
            losses = module(Held(batch), step)
            fabric.backward(losses["loss"] / settings.accumulate)
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()
    means = torch.stack(list(sums.values())) / settings.accumulate
    means = distributed.all_sum(means) / distributed.world_size()
    return dict(zip(sums, means.unbind(), strict=True))


def _batches(stage: Stage, settings: RunConfig, first: int) -> Iterator[Any]:
    """Yield the parts of every step from ``first`` on; the next ones are made in threads while one computes."""
    parts = ((step, part) for step in range(first, settings.steps) for part in range(settings.accumulate))
    rank, processes = distributed.rank(), distributed.world_size()

    def make(step: int, part: int) -> Any:
        return stage.batch(step, rank * settings.accumulate + part, processes * settings.accumulate)

    with ThreadPoolExecutor(settings.loaders, thread_name_prefix="batches") as pool:
        coming = deque(pool.submit(make, *part) for part in itertools.islice(parts, settings.loaders))
        while coming:
            ready = coming.popleft().result()
            coming.extend(pool.submit(make, *part) for part in itertools.islice(parts, 1))
            yield ready


class _Losses(nn.Module):
    """Calls a stage's model the way that Fabric and DDP can pass on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Held, step: int) -> dict[str, Tensor]:
        losses = self.model(batch.content, step)
        # DDP waits for the gradient of whatever any output leads to.
        return {name: value if name == "loss" else value.detach() for name, value in losses.items()}


def _adamw(groups: list[ParameterGroup], settings: RunConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW([dict(group) for group in groups], lr=settings.rate, betas=settings.betas)
