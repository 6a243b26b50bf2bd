"""Every graph of a bundle beside the fp32 torch model it came from: refused, before writing, where they differ."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decipher_rt.bundle import Bundle
from decipher_rt.engines import Engine, load_engine
from decipher_rt.engines.select import ONNX_TARGETS
from decipher_rt.engines.threads import usable_cores
from decipher_rt.errors import EngineError
from decipher_rt.head_graphs import HeadGraphs, dense_files
from decipher_rt.manifest import EngineFile, Manifest, Numerics
from decipher_rt.text import TextTower
from decipher_rt.verify import (
    MIN_EMBEDDING_COSINE,
    SCOPE,
    TEXT,
    TOLERANCES,
    VerifyRow,
    compare,
    least_cosine,
    run_case,
)
from decipher_rt.verify import PROMPTS as GOLDEN_PROMPTS

from .parts import PROMPTS, SHORTEST_PROMPT, TOKENIZER, Parts, TextPart
from .runnable import runnable_encoders, write_files

Arrays = Mapping[str, NDArray[Any]]


@torch.no_grad()
def reference_outputs(parts: Parts, inputs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Run the torch model in float32 on the encoder's inputs; inputs and outputs together make a golden case."""
    patch, embedding = parts.encoder(inputs["volume"], inputs["window"], inputs["tokens"])
    features = {**inputs, "patch": patch, "embedding": embedding}
    outputs = dict(features)
    for graph in parts.graphs:
        answers = graph.module(*(features[name] for name in graph.module.inputs))
        outputs |= {f"heads.{head.entry.name}": answer for head, answer in zip(graph.heads, answers, strict=True)}
    if parts.scope:
        outputs[SCOPE] = parts.scope.module(embedding)
    arrays = {name: tensor.numpy() for name, tensor in outputs.items()}
    return arrays | (_text_reference(parts.text) if parts.text else {})


def _text_reference(text: TextPart) -> dict[str, NDArray[Any]]:
    """Embed the golden prompts with the torch tower, each alone, as the runtime does."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(text.tokenizer)
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception
        raise EngineError(
            f"{TOKENIZER} of the model's folder: not a tokenizer ({' '.join(str(error).split())[:100]}); copy it again "
            "from the text stage"
        ) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    spelt = {prompt: tokenizer.encode(prompt).ids for prompt in (*PROMPTS, SHORTEST_PROMPT)}
    read = [prompt for prompt in PROMPTS if len(spelt[prompt]) <= text.entry.max_tokens] or [SHORTEST_PROMPT]
    rows = []
    for prompt in read:
        ids = torch.tensor([spelt[prompt]])
        rows.append(text.module(ids, torch.ones_like(ids))[0].numpy())
    return {GOLDEN_PROMPTS: np.array(read), TEXT: np.stack(rows)}


def check_graphs(
    files: Mapping[str, bytes | Path],
    manifest: Manifest,
    cases: Sequence[Arrays],
    of_bucket: Callable[[int], Arrays] | None = None,
) -> tuple[Numerics, ...]:
    """Run the graphs on this machine and compare with the reference.

    Parameters
    ----------
    files : mapping
        The bundle's content so far.
    manifest : Manifest
        Names graphs, labels and threshold.
    cases : sequence
        Inputs with the outputs of ``reference_outputs``; the first is the golden case.
    of_bucket : callable, optional
        Gives such a case of one volume for a number of tokens. Each bucket of a plan is a build of its own, so that
        each is run; without this, only the golden case's.

    Returns
    -------
    tuple of Numerics
        One for each encoder of the manifest, over all cases.

    Raises
    ------
    EngineError
        Naming every output that is beyond the tolerance or changes an answer, with both numbers.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, files)

        def load(file: str, threads: int = 1) -> Engine:
            return load_engine("onnxruntime", folder / file, precision="fp32", threads=threads)

        if manifest.text:
            rows, cosine = _text_rows(folder, manifest, cases[0])
            _refuse(rows, "text", cosine)
        heads = HeadGraphs(manifest.heads, load, dict.fromkeys(dense_files(manifest.heads), usable_cores()))
        scope = load(manifest.scope.file) if manifest.scope else None
        numerics = []
        for entry, encoder in runnable_encoders(folder, manifest):
            tolerance = TOLERANCES[entry.precision]
            # Int8 takes one range for all that is in a run, and plans take one volume: no pairs for them.
            single = entry.precision == "int8" or entry.target not in ONNX_TARGETS
            judged = [("", case) for case in (cases[:1] if single else cases)]
            if of_bucket is not None and entry.target not in ONNX_TARGETS:
                others = _buckets(manifest, entry) - {cases[0]["tokens"].shape[-1]}
                judged += [(f" of {tokens} tokens", of_bucket(tokens)) for tokens in sorted(others)]
            cosines, rows = [], []
            for place, case in judged:
                cosine, compared = compare(run_case(case, encoder, heads, scope), case, manifest, tolerance)
                cosines.append(cosine)
                rows += [replace(row, output=row.output + place) for row in compared]
            _refuse(rows, f"{entry.target} {entry.precision}" if single else entry.precision, min(cosines))
            numerics.append(_numerics(entry, min(cosines), rows, tolerance))
    return tuple(numerics)


def _buckets(manifest: Manifest, entry: EngineFile) -> set[int]:
    """Return the numbers of tokens that the plans of a card and precision are built for."""
    ours = (e for e in manifest.engines if (e.target, e.precision) == (entry.target, entry.precision))
    return {int(tokens) for e in ours for tokens in e.built_with["tokens"].split()}


def _text_rows(folder: Path, manifest: Manifest, case: Arrays) -> tuple[list[VerifyRow], float]:
    """Compare the runtime's text tower with torch's; it has one form, whatever the encoder's precision is.

    The second value is the smallest cosine between the two.
    """
    tower = TextTower(Bundle(folder, manifest, ""), usable_cores())
    embedded = tower.embed([str(prompt) for prompt in case[GOLDEN_PROMPTS]])
    error = float(np.nan_to_num(np.abs(embedded - case[TEXT]), nan=np.inf).max())
    rows = [VerifyRow(TEXT, error, manifest.text.tolerance if manifest.text else 0.0)]
    return rows, least_cosine(embedded, case[TEXT])


def _refuse(rows: Sequence[VerifyRow], encoder: str, cosine: float) -> None:
    failed = [
        f"{row.output} differs by {row.error:.3g} (tolerance {row.tolerance:g})"
        + (f" and answers {row.answer} instead of {row.expected}" if row.answer != row.expected else "")
        for row in rows
        if not row.passed
    ]
    if not cosine >= MIN_EMBEDDING_COSINE:
        failed.append(f"embedding has cosine {cosine:.4f} to it (at least {MIN_EMBEDDING_COSINE})")
    if failed:
        raise EngineError(
            f"the {encoder} graphs differ from the fp32 torch model, no bundle was written: {'; '.join(failed)}"
        )


def _numerics(entry: EngineFile, cosine: float, rows: Sequence[VerifyRow], tolerance: float) -> Numerics:
    def largest(*names: str) -> float:
        return max((row.error for row in rows if row.output.startswith(names)), default=0.0)

    return Numerics(
        precision=entry.precision,
        target=entry.target,
        embedding_cosine=min(cosine, 1.0),
        embedding_max_error=largest("embedding"),
        patch_max_error=largest("patch"),
        heads_max_error=largest("heads.", SCOPE),
        tolerance=tolerance,
    )
