"""The manifest of a bundle as frozen dataclasses, read and written as JSON, every key checked.

Schema ``decipher-rt/bundle/1``. Unknown keys, wrong types and values out of range are refused by name.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union

from decipher_rt.errors import BundleError

SCHEMA = "decipher-rt/bundle/1"

Precision = Literal["fp32", "fp16", "bf16", "int8"]
HeadKind = Literal["classification", "regression", "segmentation", "localisation"]

# What the length of a voxel can be, in mm, of a volume's and of the grid's. Far below it DALI 2.4 divides by zero,
# which ends the process.
SPACING_RANGE_MM = (1e-3, 1e3)
LARGEST_SIZE = 10**15  # of the encoder, in anything
LARGEST_AXIS = 1 << 20  # voxels of the grid: products stay far from overflow
MOST_LABELS = 256  # of a segmentation: its map is uint8
_FILE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # a segmentation is written to a file named after its head


@dataclass(frozen=True)
class Preprocessing:
    """How a volume becomes the encoder's grid and tokens. Grid axes run to (S, A, R); D, H, W name their sizes.

    Attributes
    ----------
    grid_shape, patch_shape : (D, H, W) in voxels; each grid size is a multiple of the patch size
    spacing_mm : (D, H, W) in mm
    window_percentiles : percentiles (0 to 100) of all stored voxels; they are the encoder's ``window``
    tissue_level : a grid voxel is tissue above ``low + tissue_level * (high - low)`` of the window
    min_tissue : a patch is a tissue patch when at least this share of its voxels is tissue
    token_buckets : ascending numbers of tokens K; the last is the number of patches of the grid
    graphs : serialised DALI graph for each device ("cpu", "gpu")
    """

    grid_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    patch_shape: tuple[int, int, int]
    token_buckets: tuple[int, ...]
    window_percentiles: tuple[float, float] = (0.5, 99.5)
    tissue_level: float = 0.1
    min_tissue: float = 0.05
    graphs: Mapping[str, str] = field(default_factory=dict)

    @property
    def patch_grid(self) -> tuple[int, int, int]:
        """Patches along (D, H, W)."""
        (d, h, w), (pd, ph, pw) = self.grid_shape, self.patch_shape
        return d // pd, h // ph, w // pw

    @property
    def patches(self) -> int:
        """Patches in the whole grid."""
        d, h, w = self.patch_grid
        return d * h * w

    def check(self) -> None:
        """Raise BundleError where the numbers contradict each other."""
        sizes = list(zip(self.grid_shape, self.patch_shape, strict=True))
        if any(patch < 1 or not 1 <= grid <= LARGEST_AXIS or grid % patch for grid, patch in sizes):
            raise BundleError(
                f"manifest.json: preprocessing.grid_shape {self.grid_shape} must be a multiple of patch_shape "
                f"{self.patch_shape}"
            )
        least, most = SPACING_RANGE_MM
        if not all(least <= s <= most for s in self.spacing_mm):
            raise BundleError(
                f"manifest.json: preprocessing.spacing_mm {self.spacing_mm} must be {least:g} to {most:g} mm"
            )
        buckets = self.token_buckets
        if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1 or buckets[-1] != self.patches:
            raise BundleError(
                f"manifest.json: preprocessing.token_buckets {buckets} must ascend and end with the number of patches, "
                f"{self.patches}"
            )
        if not 0 <= self.tissue_level <= 1 or not 0 <= self.min_tissue <= 1:
            raise BundleError(
                f"manifest.json: preprocessing.tissue_level {self.tissue_level} and min_tissue {self.min_tissue} must "
                "be shares, 0 to 1"
            )
        low, high = self.window_percentiles
        if not 0 <= low < high <= 100:
            raise BundleError(
                f"manifest.json: preprocessing.window_percentiles {self.window_percentiles} must ascend within 0..100"
            )


@dataclass(frozen=True)
class Encoder:
    """The encoder's sizes. ``config`` is what the training configuration said of the network, for people."""

    width: int
    embedding_size: int
    parameters: int
    config: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise BundleError where a size cannot be."""
        for name, least in (("width", 1), ("embedding_size", 1), ("parameters", 0)):
            if not least <= getattr(self, name) <= LARGEST_SIZE:
                raise BundleError(f"manifest.json: encoder.{name} is {str(getattr(self, name))[:20]}, which cannot be")


@dataclass(frozen=True)
class Head:
    """One decoder. Its graph takes any of ``patch``, ``tokens``, ``embedding``.

    - classification: ``probabilities`` (B, L) in the order of ``labels``.
    - regression: ``value`` (B, 1) in ``unit``.
    - segmentation: ``labels_map`` (B, D, H, W) uint8, indices into ``labels``, whose first is the background; on the
      grid, or on the grid divided by ``stride``. Patches that are no tokens are background.
    - localisation: ``boxes`` (B, M, 7) float32: score 0 to 1, centre (d, h, w) and size (d, h, w) in grid voxels; what
      scores below ``threshold`` is left out.

    ``description`` is shown beside every answer.
    """

    name: str
    kind: HeadKind
    file: str
    description: str = ""
    labels: tuple[str, ...] = ()
    unit: str = ""
    stride: int = 1
    threshold: float = 0.5

    def check(self, spec: Preprocessing) -> None:
        """Raise BundleError where a head cannot be what it says."""
        where = f"manifest.json: head {self.name}"
        if self.kind == "classification" and not self.labels:
            raise BundleError(f"{where} has no labels")
        if len(set(self.labels)) < len(self.labels):
            raise BundleError(f"{where} has two labels of one name")
        if self.kind == "segmentation":
            if not 2 <= len(self.labels) <= MOST_LABELS:
                raise BundleError(f"{where} has {len(self.labels)} labels, expected 2 to {MOST_LABELS}")
            if self.stride < 1 or any(size % self.stride for size in spec.grid_shape):
                raise BundleError(f"{where} has stride {self.stride}, which must divide grid_shape {spec.grid_shape}")
            if _FILE_NAME.fullmatch(self.name) is None:
                raise BundleError(f"{where}: its name must be of letters, digits, '_', '.' and '-': it names a file")
        if self.kind == "localisation" and not 0 <= self.threshold <= 1:
            raise BundleError(f"{where} has threshold {self.threshold}, expected 0 to 1")


@dataclass(frozen=True)
class Text:
    """The text tower: ``file`` takes ``input_ids`` and ``attention_mask`` (B, T), gives ``embedding`` (B, E).

    Attributes
    ----------
    file : ONNX graph
    tokenizer : ``tokenizer.json`` of the library tokenizers
    max_tokens : longest text that the tower reads, special tokens included
    logit_scale : learned; a cosine times it is a logit
    tolerance : largest difference of a value from the fp32 torch reference on the golden prompts
    """

    file: str
    tokenizer: str
    max_tokens: int
    logit_scale: float
    tolerance: float = 1e-3

    def check(self) -> None:
        """Raise BundleError where the numbers cannot be."""
        if self.max_tokens < 1:
            raise BundleError(f"manifest.json: text.max_tokens is {self.max_tokens}, expected at least 1")
        if not 0 < self.logit_scale < math.inf:
            raise BundleError(f"manifest.json: text.logit_scale is {self.logit_scale}, expected a positive number")
        if not 0 < self.tolerance < math.inf:
            raise BundleError(f"manifest.json: text.tolerance is {self.tolerance}, expected a positive number")


@dataclass(frozen=True)
class Scope:
    """When the heads answer: the graph takes ``embedding``, gives ``score`` (B,); in scope where score >= threshold.

    Before that the header is asked: ``modalities`` (0008,0060) and ``body_parts`` (0018,0015, upper case; none: any).
    What it does not say is not judged.
    """

    file: str
    method: str
    threshold: float
    modalities: tuple[str, ...] = ("MR",)
    body_parts: tuple[str, ...] = ()
    subject: str = ""


@dataclass(frozen=True)
class EngineFile:
    """One form of the encoder. ``target`` is ``onnx`` (any ONNX engine) or the flavour and architecture of a plan."""

    target: str
    precision: Precision
    file: str
    built_with: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Numerics:
    """What one encoder gives against the fp32 torch reference on the golden case.

    ``target`` is that of its ``EngineFile``; ``patch_cosine`` the smallest of a token, where it was measured;
    ``metrics`` what the export measured of its heads on simulated series, in percent. ``heads_max_error`` is in the
    units of ``decipher_rt.verify.compare``.
    """

    precision: Precision
    embedding_cosine: float
    embedding_max_error: float
    patch_max_error: float
    heads_max_error: float
    tolerance: float
    target: str = "onnx"
    patch_cosine: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``."""

    name: str
    version: str
    intended_use: str
    licence: str
    preprocessing: Preprocessing
    encoder: Encoder
    engines: tuple[EngineFile, ...]
    heads: tuple[Head, ...] = ()
    scope: Scope | None = None
    text: Text | None = None
    golden: str = "golden"
    numerics: tuple[Numerics, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    schema: str = SCHEMA

    def engine_file(self, target: str, precision: Precision) -> EngineFile:
        """Return the encoder for a target and precision, or raise BundleError naming what there is."""
        for engine in self.engines:
            if (engine.target, engine.precision) == (target, precision):
                return engine
        present = ", ".join(f"{e.target} {e.precision}" for e in self.engines)
        raise BundleError(f"bundle {self.name}: no {precision} encoder for {target}; it holds: {present}")

    def tolerance(self, entry: EngineFile) -> float | None:
        """Return the tolerance that the export stated for an encoder, if any."""
        stated = (row for row in self.numerics if (row.target, row.precision) == (entry.target, entry.precision))
        return next((row.tolerance for row in stated), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: object) -> Manifest:
        """Check every key and build the manifest.

        Raises
        ------
        BundleError
            Naming the key, what was found and what was expected.
        """
        if isinstance(document, Mapping) and document.get("schema") != SCHEMA:
            raise BundleError(f"manifest.json: schema is {document.get('schema')!r}, this runtime reads {SCHEMA!r}")
        manifest = typing.cast("Manifest", _build(cls, document, "manifest"))
        manifest.preprocessing.check()
        manifest.encoder.check()
        for row in manifest.numerics:
            if not 0 < row.tolerance < math.inf:
                raise BundleError(f"manifest.json: numerics: tolerance is {row.tolerance}, expected a positive number")
        for head in manifest.heads:
            head.check(manifest.preprocessing)
        if manifest.text:
            manifest.text.check()
        return manifest


def _build(expected: Any, value: object, key: str) -> Any:
    """Convert plain JSON to a type annotation, checking as it goes."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if dataclasses.is_dataclass(expected):
        return _build_dataclass(expected, value, key)
    if origin in (Union, types.UnionType):
        return None if value is None else _build(arguments[0], value, key)
    if origin is Literal:
        return _expect(value in arguments, value, key, f"one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        _expect(isinstance(value, list), value, key, "a list")
        items = typing.cast("list[object]", value)
        if arguments[-1] is Ellipsis:
            return tuple(_build(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(items))
        _expect(len(items) == len(arguments), value, key, f"{len(arguments)} entries")
        return tuple(_build(a, item, f"{key}[{i}]") for i, (a, item) in enumerate(zip(arguments, items, strict=True)))
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), value, key, "an object")
        entries = typing.cast("dict[str, object]", value)
        return {name: _build(arguments[1], item, f"{key}.{name}") for name, item in entries.items()}
    if expected is Any:
        return value
    if expected is float:
        number = _expect(isinstance(value, int | float) and not isinstance(value, bool), value, key, "a number")
        _expect(abs(number) <= sys.float_info.max, value, key, "a finite number")
        return float(number)
    good = isinstance(value, expected) and not (expected is int and isinstance(value, bool))
    return _expect(good, value, key, f"a {expected.__name__}")


def _build_dataclass(expected: Any, value: object, key: str) -> Any:
    _expect(isinstance(value, dict), value, key, "an object")
    document = typing.cast("dict[str, object]", value)
    hints = typing.get_type_hints(expected)
    unknown = sorted(set(document) - set(hints))
    _expect(not unknown, unknown, key, f"no keys other than {', '.join(hints)}")
    for item in dataclasses.fields(expected):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        _expect(item.name in document or not required, "nothing", f"{key}.{item.name}", "a value")
    return expected(**{name: _build(hints[name], item, f"{key}.{name}") for name, item in document.items()})


def _expect(good: bool, value: object, key: str, expected: str) -> Any:
    if not good:
        raise BundleError(f"manifest.json: {key} is {str(value)[:60]!r}, expected {expected}")
    return value
