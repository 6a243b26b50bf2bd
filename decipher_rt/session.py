"""Session: one opened bundle on one engine, and the stages of a series in order, each timed here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decipher_rt.accepted import accept, is_accepted
from decipher_rt.bundle import Bundle
from decipher_rt.clock import StageClock
from decipher_rt.coverage import what_is_cut
from decipher_rt.encoder import Encoder, cpu_engine, load_encoder
from decipher_rt.engines import load_engine
from decipher_rt.engines.base import HoldsPlans, TakesGridsOnDevice
from decipher_rt.engines.card import choose_card
from decipher_rt.engines.select import AUTO, CPU_ENGINES, GPU_PLANS
from decipher_rt.engines.threads import MOST_THREADS, usable_cores
from decipher_rt.errors import BundleError, DecipherError, EngineError, SeriesError, one_line
from decipher_rt.head_graphs import dense_files, load_heads, output_of, wanted
from decipher_rt.heads import answer_of
from decipher_rt.manifest import Precision, Scope
from decipher_rt.pipeline import OpenedSeries, in_memory, located, one_ahead, open_series, read_each
from decipher_rt.preprocess import Grid, Preprocessor, SliceResampler, build_graph, require_same_grid
from decipher_rt.preprocess.graph import Device
from decipher_rt.result import UNIT_TOLERANCE, Failure, HeadAnswer, Result, ScopeAnswer, describe_series
from decipher_rt.series import ReadOptions, find_only_series
from decipher_rt.streaming import SeriesStream, blank_volume
from decipher_rt.tokens import Tokens, rank_patches, select_tokens, tissue_threshold
from decipher_rt.verify import golden_fault
from decipher_rt.volume import Acquisition, SeriesInfo, Volume

if TYPE_CHECKING:
    from decipher_rt.text import Prompts

Outputs = Mapping[str, NDArray[Any]]

Write = Callable[[Result, Volume, StageClock], Result]


@dataclass(frozen=True)
class _Prepared:
    """A series as the encoder takes it."""

    opened: OpenedSeries
    grid: Grid
    tokens: Tokens


class Session:
    """A bundle ready to answer.

    Parameters
    ----------
    bundle : Bundle
        From ``open_bundle``.
    engine : str
        A name of ``decipher_rt.engines.ENGINES``; or ``auto``, the fastest kind that this machine can run, with the
        reasons against the others in every result.
    precision : str
        Which encoder of the bundle.
    threads : int, optional
        CPU threads of the encoder and of preprocessing; default: the cores this process may use.
    device : int or str, optional
        The card of an engine that runs on one: CUDA's index, or its UUID or the beginning of it (``GPU-3f``); or
        ``cpu``. Default: the first card that CUDA shows.
    prompts : sequence of str
        What every series is compared with, in words.
    heads : sequence of str, optional
        Names of those that answer, in the bundle's order; the others are not loaded. Default: all.

    Raises
    ------
    BundleError, EngineError
        If the bundle has no such encoder or head, or no text tower where there are prompts, or this machine cannot run
        it or has no such device.
    DecipherError
        If a prompt is empty, too long, or given twice.

    Notes
    -----
    One session serves one thread at a time.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str = "onnxruntime",
        precision: Precision = "fp32",
        threads: int | None = None,
        device: int | str | None = None,
        prompts: Sequence[str] = (),
        heads: Sequence[str] | None = None,
    ) -> None:
        dense = dense_files(bundle.manifest.heads)
        self.bundle = bundle = bundle if heads is None else bundle.with_heads(_listed(heads))
        self.fallback: str | None = None
        self._auto = engine == AUTO
        self._card = choose_card(engine, device)
        self._slices: SliceResampler | None = None  # made for the first stream
        threads = threads or usable_cores()
        if not 1 <= threads <= MOST_THREADS:
            raise EngineError(f"threads is {threads}, expected 1 to {MOST_THREADS}")
        manifest = bundle.manifest
        self._prompts = _read_prompts(bundle, _listed(prompts), threads)
        small = cpu_engine(engine)
        # What may run on a GPU loads first: whether it does decides where preprocessing runs.
        encoder = None if engine in CPU_ENGINES else load_encoder(bundle, engine, precision, threads, self._card)
        where: Device = "gpu" if encoder and encoder.engine.name in GPU_PLANS else "cpu"
        with ThreadPoolExecutor(1) as pool:  # the two load side by side: neither needs the other
            loading = pool.submit(self._load_preprocessor, threads, where)
            self._use(encoder or load_encoder(bundle, engine, precision, threads))
            self._heads = load_heads(bundle, small, threads, dense)
            scope = manifest.scope
            self._scope = load_engine(small, bundle.file(scope.file), precision="fp32", threads=1) if scope else None
            if precision != "fp32" or self.encoder.name not in CPU_ENGINES:
                self._require_golden(threads)
            self.preprocessor = self._loaded(loading, threads, where)

    def _use(self, encoder: Encoder) -> None:
        self.encoder, self._entry, self.fallback = encoder.engine, encoder.entry, encoder.fallback

    def _require_golden(self, threads: int) -> None:
        """Go back to fp32 on the CPU where a GPU or a reduced precision answers the golden case otherwise here.

        One that was found by ``auto`` gives way also where it fails on it.
        """
        if is_accepted(self.bundle, self._entry, self.encoder):
            return
        try:
            fault = golden_fault(self.bundle, self._entry, self.encoder, self._heads, self._scope)
        except EngineError as error:
            if not self._auto:
                raise
            fault = f"on the golden case it fails: {error}"
        if fault is not None:
            name = self.encoder.name if self.encoder.name in CPU_ENGINES else "onnxruntime"
            left = (
                self._entry.precision if name == self.encoder.name else f"{self.encoder.name} {self._entry.precision}"
            )
            before = self.fallback
            self._use(load_encoder(self.bundle, name, "fp32", threads))
            reason = f"{left} {'was tried' if self._auto else 'was asked for'}: {fault}"
            self.fallback = f"{before}; {reason}" if before else reason
        else:
            accept(self.bundle, self._entry, self.encoder)

    def _describe_engine(self, tokens: int) -> dict[str, Any]:
        """Return the ``engine`` object of a result: what ran on so many tokens, and why not what was asked for."""
        file = self.bundle.sums[self._entry.file]
        described = {
            "name": self.encoder.name,
            "device": self.encoder.device,
            "precision": self.encoder.precision,
            "threads": self.encoder.threads,
            "sha256": self.encoder.sha256_of(tokens) if isinstance(self.encoder, HoldsPlans) else file,
        }
        return described | ({"fallback": self.fallback} if self.fallback else {})

    def _loaded(self, loading: Future[Preprocessor], threads: int, where: Device) -> Preprocessor:
        """Wait for preprocessing; with ``auto`` it runs on the CPU where the GPU refuses it or makes another grid."""
        try:
            return loading.result()
        except EngineError as error:
            if not self._auto or where == "cpu":
                raise
            reason = f"preprocessing on the GPU: {error}; it runs on the CPU"
            self.fallback = f"{self.fallback}; {reason}" if self.fallback else reason
            return self._load_preprocessor(threads, "cpu")

    def _load_preprocessor(self, threads: int, where: Device) -> Preprocessor:
        spec = self.bundle.manifest.preprocessing
        made = Preprocessor(self._read_graph(where), spec, where, threads=threads, card=self._card or 0)
        if where == "gpu":
            require_same_grid(made, self._load_preprocessor(threads, "cpu"), spec)
        return made

    def _read_graph(self, device: Device) -> bytes | None:
        graphs = self.bundle.manifest.preprocessing.graphs
        return self.bundle.file(graphs[device]).read_bytes() if device in graphs else None

    def infer(
        self,
        path: Path | str,
        options: ReadOptions | None = None,
        write: Write | None = None,
        clock: StageClock | None = None,
    ) -> Result:
        """Answer for the one series under a path.

        Parameters
        ----------
        path : path
            A folder, an archive or a file.
        options : ReadOptions, optional
        write : callable, optional
            As for ``infer_each``.
        clock : StageClock, optional
            A clock just started, for a caller who wants to look at its spans.

        Raises
        ------
        SeriesError
            If the path holds no readable series, or several: then use ``infer_each``.
        """
        clock, options = clock or StageClock(), options or ReadOptions()
        series = find_only_series(
            Path(path), "name one of them; infer_each (decipher-rt infer) answers for all", options
        )
        return self._finish(self._prepare(open_series(series, options, clock)), write)

    def infer_each(
        self, paths: Iterable[Path | str] | Path | str, options: ReadOptions | None = None, write: Write | None = None
    ) -> Iterator[Result | Failure]:
        """Answer for every series under the paths, in order; a series that fails is a Failure and the others go on.

        Parameters
        ----------
        paths : iterable of path
            Folders, archives or files; DICOM files in a list may be the slices of one series.
        options : ReadOptions, optional
        write : callable, optional
            Called with the result, the volume and the clock, whose stage ``write`` it ends; returns what it wrote.
        """
        listed = [paths] if isinstance(paths, str | Path) else paths
        return self.answer_each(one_ahead(read_each(listed, options or ReadOptions())), write)

    def answer_each(
        self, opened: Iterable[OpenedSeries | Failure], write: Write | None = None
    ) -> Iterator[Result | Failure]:
        """Answer for series that are already being read (``decipher_rt.pipeline``); otherwise as ``infer_each``.

        Reading may begin before there is a session: ``one_ahead(read_each(...))`` reads while a bundle loads. While
        one series is encoded the next is preprocessed, so that some stages of theirs compete for the cores; a result's
        times leave out where its series only waited.
        """
        prepared: Iterator[_Prepared | Failure] = map(self._prepare_or_fail, opened)
        # On a GPU the next grid would overwrite the one that the encoder still reads.
        # Kept by name: what interrupts the loop must not wait for the thread that works in advance.
        ahead = one_ahead(prepared) if self.preprocessor.device == "cpu" else prepared
        for item in ahead:
            if isinstance(item, Failure):
                yield item
                continue
            item.opened.clock.resume()
            try:
                yield self._finish(item, write)
            except DecipherError as error:
                yield _failure(item.opened, error)

    def infer_volume(self, volume: Volume) -> Result:
        """Answer for a volume already in memory."""
        clock = StageClock()
        result = self._answer_grid(volume, *self._grid_and_tokens(self.preprocessor(volume), clock), clock)
        return replace(result, timings_ms=clock.timings_ms())

    def _prepare_or_fail(self, opened: OpenedSeries | Failure) -> _Prepared | Failure:
        if isinstance(opened, Failure):
            return opened
        opened.clock.resume()
        try:
            return self._prepare(opened)
        except DecipherError as error:
            return _failure(opened, error)

    def _prepare(self, opened: OpenedSeries) -> _Prepared:
        with in_memory(opened.series):
            try:
                grid = self.preprocessor(opened.volume)
            except SeriesError as error:
                raise SeriesError(located(opened.series, str(error))) from None
            return _Prepared(opened, *self._grid_and_tokens(grid, opened.clock))

    def _grid_and_tokens(self, grid: Grid, clock: StageClock) -> tuple[Grid, Tokens]:
        clock.finish("preprocess")
        tokens = self._choose_tokens(grid)
        clock.finish("tokens")
        return grid, tokens

    def _choose_tokens(self, grid: Grid) -> Tokens:
        spec = self.bundle.manifest.preprocessing
        if grid.device is not None and isinstance(self.encoder, TakesGridsOnDevice):  # only the counts leave the GPU
            return rank_patches(self.encoder.tissue_counts(grid.device, tissue_threshold(grid.window, spec)), spec)
        return select_tokens(grid, spec)

    def _finish(self, prepared: _Prepared, write: Write | None) -> Result:
        volume, clock = prepared.opened.volume, prepared.opened.clock
        with in_memory(prepared.opened.series):
            result = self._answer_grid(volume, prepared.grid, prepared.tokens, clock)
            return write(result, volume, clock) if write else replace(result, timings_ms=clock.timings_ms())

    def stream(
        self,
        shape: tuple[int, int, int],
        dtype: Any,
        affine_lps_mm: NDArray[np.float64],
        series: SeriesInfo,
        *,
        slope: float = 1.0,
        intercept: float = 0.0,
    ) -> SeriesStream:
        """Begin a series whose slices arrive one by one, in any order; see `SeriesStream`.

        Parameters
        ----------
        shape : (D, H, W) = (slices that will come, rows, columns)
        dtype : uint8, int16, uint16 or float32
        affine_lps_mm : ndarray, shape (4, 4)
            Maps (d, h, w, 1) to LPS mm; the first slice along its first axis is slice 0.
        series : SeriesInfo
        slope, intercept : float
            As `Volume` has them.

        Raises
        ------
        SeriesError
            Where the geometry or the type cannot be those of a volume.
        """
        volume = blank_volume(shape, dtype, affine_lps_mm, series, slope, intercept)
        if self._slices is None:
            # Slices are resampled on the CPU as they arrive, wherever the rest happens.
            self._slices = SliceResampler(
                self._read_graph("cpu") or build_graph(self.bundle.manifest.preprocessing, "cpu")
            )

        def answer(arrived: Volume, grid: Callable[[], Grid]) -> Result:
            clock = StageClock()
            result = self._answer_grid(arrived, *self._grid_and_tokens(grid(), clock), clock)
            return replace(result, timings_ms=clock.timings_ms())

        return SeriesStream(volume, self.bundle.manifest.preprocessing, self.preprocessor, self._slices, answer)

    def _answer_grid(self, volume: Volume, grid: Grid, tokens: Tokens, clock: StageClock) -> Result:
        spec = self.bundle.manifest.preprocessing
        on_device = grid.device is not None and isinstance(self.encoder, TakesGridsOnDevice)
        volume_in: Any = grid.device if on_device else grid.volume[None, None]
        encoded = self.encoder.run({"volume": volume_in, "window": grid.window[None], "tokens": tokens.indices[None]})
        clock.finish("encode")
        sizes = self.bundle.manifest.encoder
        expected = {"patch": (1, len(tokens.indices), sizes.width), "embedding": (1, sizes.embedding_size)}
        for name, shape in expected.items():
            if (found := output_of(encoded, name, "the encoder").shape) != shape:
                said = f"the encoder gives {name} of shape {found}, expected {shape}"
                raise BundleError(f"{self.bundle.path}: {said}; export the bundle again")
        embedding = encoded["embedding"][0].astype(np.float32)
        if not np.isfinite(embedding).all():
            raise EngineError(
                f"{self.bundle.path}: the encoder gave an embedding that is not finite; use another precision"
            )
        if not abs(float(np.linalg.norm(embedding)) - 1) <= UNIT_TOLERANCE:
            raise BundleError(
                f"{self.bundle.path}: the encoder gives an embedding that is no unit vector; export the bundle again"
            )
        features = {**encoded, "tokens": tokens.indices[None], "window": grid.window[None]}
        scope = self._judge_scope(volume, features)
        if scope.inside and "volume" in self._heads.inputs:
            features["volume"] = grid.volume[None, None]  # from a GPU it is copied
        heads = self._ask(features, scope, grid, volume)
        result = Result(
            series=describe_series(volume, what_is_cut(volume, grid.window, spec)),
            bundle={
                "name": self.bundle.manifest.name,
                "version": self.bundle.manifest.version,
                "sha256": self.bundle.sha256,
            },
            engine=self._describe_engine(len(tokens.indices)),
            tokens={"kept": len(tokens.indices), "total": spec.patches},
            embedding=embedding,
            scope=scope,
            heads=heads,
            prompts=self._prompts.compare(embedding, scope) if self._prompts else {},
        )
        clock.finish("heads")
        return result

    def _judge_scope(self, volume: Volume, features: Outputs) -> ScopeAnswer:
        scope = self.bundle.manifest.scope
        if scope is None or self._scope is None:
            return ScopeAnswer(True, None, "the bundle sets no scope")
        if reason := _against_header(volume.series.acquisition, scope):
            return ScopeAnswer(False, None, reason)
        score = float(output_of(self._scope.run(wanted(self._scope, features)), "score", "the scope")[0])
        if not np.isfinite(score):
            return ScopeAnswer(False, None, f"the {scope.method} score is not finite")
        comparison = "at least" if score >= scope.threshold else "below"
        reason = f"{scope.method} score {score:.3g} is {comparison} the threshold {scope.threshold:.3g}"
        if score < scope.threshold and scope.subject:
            reason += f": unlike the {scope.subject} the model was made for"
        return ScopeAnswer(score >= scope.threshold, score, reason)

    def _ask(self, features: Outputs, scope: ScopeAnswer, grid: Grid, volume: Volume) -> dict[str, HeadAnswer]:
        manifest = self.bundle.manifest
        if not scope.inside:
            reason = f"out of scope: {scope.reason}"
            return {h.name: HeadAnswer(h.kind, not_answered=reason, note=h.description) for h in manifest.heads}
        try:
            outputs = self._heads.run(features)
            return {
                head.name: answer_of(head, outputs[head.name], manifest.preprocessing, grid.affine_lps_mm, volume)
                for head in manifest.heads
            }
        except BundleError as error:
            raise BundleError(f"{self.bundle.path}: {error}") from None


def _failure(opened: OpenedSeries, error: DecipherError) -> Failure:
    return Failure(str(opened.series.path), opened.series.uid or None, located(opened.series, str(error)))


def _listed(texts: Sequence[str]) -> Sequence[str]:
    """Return texts as they are, and one text, a sequence of letters to Python, as a list of it."""
    return [texts] if isinstance(texts, str) else texts


def _read_prompts(bundle: Bundle, prompts: Sequence[str], threads: int) -> Prompts | None:
    if not prompts:
        return None
    from decipher_rt.text import read_prompts

    return read_prompts(bundle, prompts, threads)


def _against_header(header: Acquisition, scope: Scope) -> str:
    """Return what speaks against a series in its header, before any voxel is asked; empty where nothing does."""
    modality, part = ((text or "").strip(" \0") for text in (header.modality, header.body_part))
    if modality and modality not in scope.modalities:
        return f"modality {one_line(modality)}, made for {', '.join(scope.modalities)}"
    part = "".join(c.upper() if c.isascii() else c for c in part)  # a Code String has no others
    if part and scope.body_parts and part not in scope.body_parts:
        return f"body part {one_line(part)}, made for {', '.join(scope.body_parts)}"
    return ""
