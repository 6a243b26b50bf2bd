"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

Command = TypeVar("Command", bound=Callable[..., Any])
NO_HEADS = "none"
READ_OPTIONS = ("volume", "allow_gaps", "any_modality")


def given(*names: str) -> str:
    """Return which of some options stand on the command line, as they are written there; "" for none."""
    context = click.get_current_context()
    there = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    return ", ".join("--" + name.replace("_", "-") for name in there)


bundle_option = click.option(
    "-b", "--bundle", type=click.Path(path_type=Path), help="Folder of a bundle; default: the one that ships."
)


def _names(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return () if text == NO_HEADS else tuple(name.strip() for name in text.split(","))


heads_option = click.option(
    "--heads",
    metavar="NAME,...",
    callback=_names,
    help=f"Which heads answer, '{NO_HEADS}' for the embedding alone; others cost no time. Default: all.",
)


def read_options(command: Command) -> Command:
    """Add ``--volume``, ``--allow-gaps`` and ``--any-modality``: what every command that reads series can be told."""
    for option in (
        click.option("--any-modality", is_flag=True, help="Go on where the series is not MR."),
        click.option("--allow-gaps", is_flag=True, help="Go on where slices are missing."),
        click.option(
            "--volume", default=0, show_default=True, type=click.IntRange(0), help="Which of several volumes."
        ),
    ):
        command = option(command)
    return command


device_option = click.option(
    "--device",
    metavar="GPU|cpu",
    help="Which GPU, for an engine that runs on one: its index or its UUID (GPU-..., the beginning will do). With cpu "
    "none is used. Default: the first that CUDA shows.",
)


def engine_options(command: Command) -> Command:
    """Add ``--engine``, ``--device``, ``--precision`` and ``--threads``."""
    for option in (
        # As engines.threads.MOST_THREADS, whose package loads numpy.
        click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads; default: the cores at hand."),
        click.option(
            "--precision",
            default="fp32",
            show_default=True,
            type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
            help="Which encoder of the bundle.",
        ),
        device_option,
        click.option(
            "--engine",
            default="onnxruntime",
            show_default=True,
            type=click.Choice(["auto", "onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]),
            help="What runs the encoder; auto is the fastest kind that this machine can run.",
        ),
    ):
        command = option(command)
    return command
