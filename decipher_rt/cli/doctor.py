"""``decipher-rt doctor``: what this machine can run, and what is missing for more."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import click

from decipher_rt.cli.options import device_option

if TYPE_CHECKING:
    from decipher_rt.machine import Machine

PACKAGES = (
    "numpy",
    "pydicom",
    "nibabel",
    "nvidia-dali-cuda130",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "torch",
    "triton",
)
DECODERS = {"JPEG lossless": "python-gdcm", "JPEG-LS": "pyjpegls", "JPEG 2000": "pylibjpeg-openjpeg"}
TEXT = {"prompts": "tokenizers", "search": "usearch"}


@click.command(short_help="Say what this machine can run.", epilog="Example: decipher-rt doctor --json | jq .engines")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(device: str | None, as_json: bool) -> None:
    """Say what this machine can run (CPU, GPU, engines, bundle) and what is missing for more.

    With --device it says so for that device.
    """
    report = examine(device)
    if as_json:
        click.echo(json.dumps(report))
        return
    machine = report["machine"]
    click.echo(f"decipher-rt {report['version']} on {machine['system']}")
    features = ", ".join(machine["cpu_features"]) or "none of those that matter here"
    _row(True, "CPU", f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {features}")
    for gpu in machine["gpus"]:
        what = f"compute {gpu['compute_capability']}, {gpu['memory_mib']} MiB, {gpu['uuid']}"
        _row(True, f"GPU {gpu['index']}", f"{gpu['name']}, {what}")
    _row(bool(machine["gpus"]), "driver", machine["gpu_note"])
    _row(True, "device", f"{report['device']['name']}: {report['device']['why']}")
    for engine in report["engines"]:
        idle = engine["available"] and not engine["runs_here"]
        _row(engine["runs_here"], engine["name"], engine["detail"] + ", no GPU to run it on" * idle)
    wanted = {name: (package, package) for name, package in DECODERS.items()}
    wanted |= {name: (package, "'decipher-rt[text]'") for name, package in TEXT.items()}
    for name, (package, install) in wanted.items():
        version = report["packages"][package]
        _row(version is not None, name, f"{package} {version}" if version else f"pip install {install}")
    _row(report["bundle"]["error"] is None, "bundle", report["bundle"]["error"] or report["bundle"]["detail"])
    for precision, order in report["auto"].items():
        chosen = next((item["engine"] for item in order if item["why_not"] is None), None)
        _row(chosen is not None, f"auto {precision}", chosen or "no engine")
        for item in order[: [i["engine"] for i in order].index(chosen) if chosen else len(order)]:
            click.echo(f"     not {item['engine']}: {item['why_not']}")
    for advice in report["advice"]:
        click.echo(f"  - {advice}")


def examine(device: str | None = None) -> dict[str, Any]:
    """Return what doctor prints, as plain JSON types.

    Raises
    ------
    EngineError
        If there is no such device.
    """
    from decipher_rt import __version__
    from decipher_rt.engines import CPU_ENGINES, available
    from decipher_rt.engines.card import choose_card
    from decipher_rt.engines.select import AUTO
    from decipher_rt.machine import describe_machine, package_version

    card = choose_card(AUTO, device)
    machine = describe_machine()
    engines = [
        {**dataclasses.asdict(one), "runs_here": one.available and (one.name in CPU_ENGINES or bool(machine.gpus))}
        for one in available()
    ]
    return {
        "version": __version__,
        "machine": dataclasses.asdict(machine),
        "engines": engines,
        "packages": {name: package_version(name) for name in (*PACKAGES, *DECODERS.values(), *TEXT.values())},
        "bundle": _examine_bundle(),
        "device": _examine_device(device, card, machine),
        "auto": _examine_order(card),
        "advice": _advice(bool(machine.gpus), machine.cpu_features, engines),
    }


def _examine_bundle() -> dict[str, Any]:
    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
    from decipher_rt.errors import BundleError

    try:
        manifest = open_bundle(DEFAULT_BUNDLE).manifest
    except BundleError as error:
        return {"detail": None, "error": str(error)}
    encoders = ", ".join(f"{engine.target} {engine.precision}" for engine in manifest.engines)
    return {"detail": f"{manifest.name} {manifest.version}, sums good; encoders: {encoders}", "error": None}


def _examine_device(asked: str | None, card: int | None, machine: Machine) -> dict[str, str]:
    """Return where engines of the GPU, and ``--engine auto``, run, and why there."""
    if card is None or not machine.gpus:
        return {"name": "cpu", "why": "asked for" if card is None else "there is no GPU that CUDA can use"}
    if asked is not None:
        why = "asked for"
    elif len(machine.gpus) == 1:
        why = "the only GPU that CUDA shows"
    else:
        why = f"the first of {len(machine.gpus)} GPUs that CUDA shows; --device chooses another"
    return {"name": f"cuda:{card} {machine.gpus[card].name}", "why": why}


def _examine_order(card: int | None) -> dict[str, list[dict[str, str | None]]]:
    """Return, for each precision of the shipped bundle, what ``--engine auto`` tries and what speaks against it."""
    from decipher_rt.bundle import DEFAULT_BUNDLE, open_bundle
    from decipher_rt.encoder import why_not
    from decipher_rt.engines.select import auto_order
    from decipher_rt.errors import BundleError

    try:
        bundle = open_bundle(DEFAULT_BUNDLE)
    except BundleError:
        return {}
    precisions = dict.fromkeys(entry.precision for entry in bundle.manifest.engines)
    return {
        precision: [
            {"engine": name, "why_not": why_not(bundle, name, precision, card or 0)} for name in auto_order(card)
        ]
        for precision in precisions
    }


def _advice(has_gpu: bool, cpu_features: tuple[str, ...], engines: list[dict[str, Any]]) -> list[str]:
    advice = [f"{engine['name']}: {engine['detail']}" for engine in engines if not engine["available"]]
    if not has_gpu:
        advice.append("no GPU: series run on the CPU, which is the tested default")
    if not {"avx512_vnni", "avx_vnni", "asimddp"} & set(cpu_features):
        advice.append("the CPU has no 8-bit dot product (VNNI): expect less from int8")
    return advice


def _row(good: bool, label: str, text: str) -> None:
    mark = click.style("ok", fg="green") if good else click.style("--", fg="yellow")
    click.echo(f"  {mark} {label:<13} {text}")
