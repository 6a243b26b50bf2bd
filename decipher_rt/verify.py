"""Verify a bundle on this machine: run its golden case and compare with what the fp32 torch reference gave.

The golden case is ``case.npz`` in the bundle's golden folder, arrays only: the encoder's inputs ``volume`` (int16 or
float32), ``window`` and ``tokens``, and the reference outputs ``patch``, ``embedding``, ``heads.<name>`` for every
head and ``scope``; where the bundle has a text tower also ``prompts``, an array of text, and their embeddings ``text``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.archives import read_arrays
from decipher_rt.bundle import Bundle
from decipher_rt.encoder import cpu_engine, load_encoder
from decipher_rt.engines import Engine, load_engine
from decipher_rt.engines.base import TakesGridsOnDevice
from decipher_rt.engines.card import choose_card
from decipher_rt.engines.threads import usable_cores
from decipher_rt.errors import BundleError
from decipher_rt.head_graphs import HeadGraphs, load_heads, output_of, wanted
from decipher_rt.manifest import EngineFile, Head, Manifest, Precision, Preprocessing
from decipher_rt.tokens import count_in_patches, tissue_threshold

CASE = "case.npz"
INPUTS = ("volume", "window", "tokens")
SCOPE = "scope"
PROMPTS, TEXT = "prompts", "text"
MOST_CASE_BYTES = 1 << 30
MIN_EMBEDDING_COSINE = 0.99  # between a reduced precision and fp32
# What is allowed of an encoder for which the export stated nothing: a plan for a card that it did not have. Largest
# absolute difference of tokens (of order 1), embedding, probabilities and scope margin. fp32: orders of summation
# differ between engines. fp16: 11 bits of mantissa through every layer; bf16: 8. int8: single tokens move by this much;
# what is asked of it beside the golden case's answers is the embedding's cosine and the heads' metrics.
TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 0.4, "int8": 0.5}
ANSWER_TOLERANCE = 0.1  # of what heads and scope give, however far single tokens may move

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class VerifyRow:
    """One output beside its reference. ``error`` is as ``compare`` defines it, infinite if a value is not finite."""

    output: str
    error: float
    tolerance: float
    answer: str = ""
    expected: str = ""

    @property
    def passed(self) -> bool:
        """Within the tolerance, and the same answer."""
        return self.error <= self.tolerance and self.answer == self.expected


@dataclass(frozen=True)
class VerifyReport:
    """What the golden case gave on one engine.

    Attributes
    ----------
    engine, precision, device : which were run, and where
    embedding_cosine : float
        Smallest cosine between an embedding, of a series or a text, and its reference.
    rows : tuple of VerifyRow
        ``tissue_counts`` where a GPU counts them, ``patch``, ``embedding``, every head, ``scope``, ``text``.
    """

    engine: str
    precision: str
    device: str
    embedding_cosine: float
    rows: tuple[VerifyRow, ...]

    @property
    def passed(self) -> bool:
        """All rows within tolerance, and the embedding near its own."""
        return all(row.passed for row in self.rows) and self.embedding_cosine >= MIN_EMBEDDING_COSINE


def verify_bundle(
    bundle: Bundle,
    engine: str,
    precision: Precision,
    threads: int | None = None,
    device: int | str | None = None,
) -> VerifyReport:
    """Run the golden case of a bundle on an engine of this machine.

    Parameters
    ----------
    bundle : Bundle
        From ``open_bundle``.
    engine : str
        A name of ``decipher_rt.engines.ENGINES``, or ``auto``.
    precision : str
        Which encoder. Its tolerance is ``tolerance_of``.
    threads : int, optional
    device : int or str, optional
        As for ``Session``.

    Raises
    ------
    BundleError
        If the bundle has no golden case or no such encoder.
    EngineError
        If this machine cannot run it or has no such device.
    ModuleNotFoundError
        If the bundle reads words, and ``tokenizers`` is not installed.
    """
    manifest = bundle.manifest
    threads = threads or usable_cores()
    loaded = load_encoder(bundle, engine, precision, threads, choose_card(engine, device))
    case, small = read_case(bundle), cpu_engine(engine)
    heads = load_heads(bundle, small, threads)
    scope = (
        load_engine(small, bundle.file(manifest.scope.file), precision="fp32", threads=1) if manifest.scope else None
    )
    outputs = run_case(case, loaded.engine, heads, scope)
    if manifest.text:
        from decipher_rt.text import TextTower

        outputs[TEXT] = TextTower(bundle, threads).embed([str(prompt) for prompt in case[PROMPTS]])
    cosine, rows = compare(outputs, case, manifest, tolerance_of(manifest, loaded.entry))
    rows = (*tissue_rows(case, loaded.engine, manifest.preprocessing), *rows)
    return VerifyReport(loaded.engine.name, precision, loaded.engine.device, cosine, rows)


def tolerance_of(manifest: Manifest, entry: EngineFile) -> float:
    """Return what an encoder may differ by.

    That is what the export stated in ``numerics``; of a plan that it did not run, what it wrote beside the plan; or
    else what the precision is allowed.

    Raises
    ------
    BundleError
        If what stands beside the plan is no positive number.
    """
    stated = manifest.tolerance(entry)
    if stated is not None:
        return stated
    written = entry.built_with.get("tolerance")
    if written is None:
        return TOLERANCES[entry.precision]
    try:
        tolerance = float(written)
    except ValueError:
        tolerance = 0.0
    if not 0 < tolerance < float("inf"):
        raise BundleError(
            f"manifest.json: {entry.file} states tolerance {written!r}, expected a positive number; export again"
        )
    return tolerance


def golden_fault(
    bundle: Bundle, entry: EngineFile, encoder: Engine, heads: HeadGraphs, scope: Engine | None
) -> str | None:
    """Say in a line what an encoder gets wrong on the golden case on this machine; None where it is right.

    Wrong is another answer than that of the fp32 reference, an embedding far from its own, a difference beyond
    ``tolerance_of`` this encoder, or a voxel of tissue that a GPU counts otherwise than numpy.

    Raises
    ------
    BundleError
        If the bundle has no golden case.
    """
    case = read_case(bundle)
    outputs = run_case(case, encoder, heads, scope)
    cosine, rows = compare(outputs, case, bundle.manifest, tolerance_of(bundle.manifest, entry))
    for row in (*tissue_rows(case, encoder, bundle.manifest.preprocessing), *rows):
        if row.answer != row.expected:
            return f"on the golden case {row.output} answers {row.answer} instead of {row.expected}"
        if not row.passed:
            return f"on the golden case {row.output} differs by {row.error:.3g}, the bundle allows {row.tolerance:.3g}"
    if cosine < MIN_EMBEDDING_COSINE:
        return f"on the golden case the embedding has cosine {cosine:.4f} to fp32, expected {MIN_EMBEDDING_COSINE}"
    return None


def read_case(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """Read the golden case; ``volume`` comes back as float32.

    Raises
    ------
    BundleError
        Naming the array that is missing.
    """
    name = f"{bundle.manifest.golden}/{CASE}"
    expected = [*INPUTS, "patch", "embedding", *(f"heads.{head.name}" for head in bundle.manifest.heads)]
    expected += [SCOPE] if bundle.manifest.scope else []
    expected += [PROMPTS, TEXT] if bundle.manifest.text else []
    try:
        with bundle.file(name).open("rb") as file:
            case = read_arrays(file, expected, MOST_CASE_BYTES)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"bundle {bundle.path}: {name} is not an archive of arrays ({error}); export it again"
        ) from None
    for key in expected:
        if key not in case:
            raise BundleError(f"bundle {bundle.path}: {name} has no array {key}; export it again")
        if case[key].dtype.kind not in ("U" if key == PROMPTS else "biuf"):
            raise BundleError(f"bundle {bundle.path}: {name} has a {key} of {case[key].dtype}; export it again")
    return case | {"volume": case["volume"].astype(np.float32)}


def run_case(case: Arrays, encoder: Engine, heads: HeadGraphs, scope: Engine | None) -> dict[str, NDArray[Any]]:
    """Run encoder, heads and scope on a case's inputs; the outputs are named as in the case."""
    encoded = encoder.run({name: case[name] for name in INPUTS})
    features = {name: case[name] for name in INPUTS} | encoded
    outputs = {name: output_of(encoded, name, "the encoder") for name in ("patch", "embedding")}
    outputs |= {f"heads.{name}": output for name, output in heads.run(features).items()}
    if scope is not None:
        outputs[SCOPE] = output_of(scope.run(wanted(scope, features)), "score", "the scope")
    return outputs


def tissue_rows(case: Arrays, encoder: Engine, spec: Preprocessing) -> tuple[VerifyRow, ...]:
    """Compare the tissue of a case's patches with numpy's, to the last voxel, where the encoder's GPU counts it."""
    if not isinstance(encoder, TakesGridsOnDevice):
        return ()
    threshold = tissue_threshold(case["window"][0], spec)
    expected = count_in_patches(case["volume"][0, 0] > threshold, spec)
    error = np.abs(encoder.tissue_counts(case["volume"], threshold) - expected).max()
    return (VerifyRow("tissue_counts", float(error), 0.0),)


def compare(
    outputs: Arrays, expected: Arrays, manifest: Manifest, tolerance: float
) -> tuple[float, tuple[VerifyRow, ...]]:
    """Compare a case's outputs with their reference.

    Returns
    -------
    cosine : float
        The smallest between an embedding, of a series or a text, and its reference.
    rows : tuple of VerifyRow
        One tolerance serves all outputs, as each error is of what is of order 1, but the text tower's, which has its
        own; heads and scope are allowed no more than ``ANSWER_TOLERANCE``. Tokens after the last norm, embeddings of
        length 1 and probabilities are compared by their largest absolute difference; a regression's value by its
        difference over the larger of 1 and the reference; boxes by scores, and those that are found by centres and
        sizes in parts of the grid; a label map by the share of voxels that differ among those that are not background
        in both. What a user would be told (label, number of boxes, in or out of scope) must be the same as well.
    """
    heads = {f"heads.{head.name}": head for head in manifest.heads}
    rows = []
    for name, output in outputs.items():
        reference = expected[name]
        if output.shape != reference.shape:
            raise BundleError(
                f"{name} has shape {output.shape}, the golden case {reference.shape}; export the bundle again"
            )
        error = _error(heads.get(name), output, reference, manifest.preprocessing)
        answers = ["", ""]
        if name in heads:
            answers = [_answer(heads[name], array) for array in (output, reference)]
        elif name == SCOPE and manifest.scope:
            answers = [
                ", ".join(("out", "in")[int(s >= manifest.scope.threshold)] for s in array)
                for array in (output, reference)
            ]
        allowed = manifest.text.tolerance if name == TEXT and manifest.text else tolerance
        if name in heads or name == SCOPE:
            allowed = min(allowed, ANSWER_TOLERANCE)
        rows.append(VerifyRow(name, error, allowed, *answers))
    cosines = [least_cosine(outputs[name], expected[name]) for name in ("embedding", TEXT) if name in outputs]
    return min(cosines), tuple(rows)


def least_cosine(output: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the smallest cosine between vectors, along the last axis, and their reference."""
    a, b = (vectors.astype(np.float64) for vectors in (output, reference))
    cosine = (a * b).sum(axis=-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)
    return float(cosine.min())


def _error(head: Head | None, output: NDArray[Any], reference: NDArray[Any], spec: Preprocessing) -> float:
    """Return how far an output is from its reference, as ``compare`` says."""
    if head is not None and head.kind == "segmentation":
        either = int(((output != 0) | (reference != 0)).sum())
        return float((output != reference).sum() / max(either, 1))
    difference = np.abs(output.astype(np.float64) - reference)
    if head is not None and head.kind == "regression":
        difference /= np.maximum(np.abs(reference.astype(np.float64)), 1)
    if not np.isfinite(difference).all():
        return float("inf")
    if head is not None and head.kind == "localisation":
        return max((_boxes_error(head, *pair, spec) for pair in zip(output, reference, strict=True)), default=0.0)
    return float(difference.max(initial=0))


def _boxes_error(head: Head, output: NDArray[Any], reference: NDArray[Any], spec: Preprocessing) -> float:
    """Return how far boxes (M, 7) are from their reference: which of two likely ones comes first is no difference."""
    scores = [np.sort(boxes[:, 0].astype(np.float64)) for boxes in (output, reference)]
    scale = np.array([1, *spec.grid_shape, *spec.grid_shape], np.float64)
    found = reference[reference[:, 0] >= head.threshold]
    from_each = np.abs(output[None].astype(np.float64) - found[:, None]) / scale  # (found, M, 7)
    nearest = from_each.max(axis=2).min(axis=1, initial=np.inf)
    return float(max(np.abs(scores[0] - scores[1]).max(initial=0), nearest.max(initial=0)))


def _answer(head: Head, output: NDArray[Any]) -> str:
    """Say what a user would be told, for each of the batch; nothing where numbers alone are told."""
    if head.kind == "classification":
        if output.shape[-1] != len(head.labels):
            found = f"{output.shape[-1]} probabilities for {len(head.labels)} labels"
            raise BundleError(f"head {head.name} gives {found}; export the bundle again")
        return ", ".join(head.labels[i] for i in output.argmax(axis=-1))
    if head.kind == "localisation":
        return ", ".join(f"{int(n)} found" for n in (output[..., 0] >= head.threshold).sum(axis=-1))
    return ""
