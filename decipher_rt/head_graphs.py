"""The graphs of a bundle's heads: heads that share a file share one graph, which runs once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from decipher_rt.bundle import Bundle
from decipher_rt.engines import Engine, load_engine
from decipher_rt.errors import BundleError
from decipher_rt.manifest import Head

# The output of a head in its graph, by kind.
OUTPUTS = {
    "classification": "probabilities",
    "regression": "value",
    "segmentation": "labels_map",
    "localisation": "boxes",
}
# Heads that answer for every voxel: as large as their graphs are, more threads help.
DENSE = ("segmentation",)

Features = Mapping[str, NDArray[Any]]


def dense_files(heads: Iterable[Head]) -> frozenset[str]:
    """Return the graphs in which a head answers for every voxel."""
    return frozenset(head.file for head in heads if head.kind in DENSE)


def output_of(outputs: Features, name: str, graph: str) -> NDArray[Any]:
    """Return an output of a graph, or raise BundleError where it gives none of that name."""
    if name not in outputs:
        raise BundleError(f"{graph} gives no output {name}; export the bundle again")
    return outputs[name]


class HeadGraphs:
    """Heads, ready to run.

    Parameters
    ----------
    heads : sequence of Head
        Of the manifest.
    load : callable
        Given a file of the bundle and a number of threads, returns its engine.
    threads : mapping
        How many a graph gets, by its file; those that are not there get one.

    Attributes
    ----------
    inputs : set of str
        What any of the graphs looks at.
    """

    def __init__(self, heads: Sequence[Head], load: Callable[[str, int], Engine], threads: Mapping[str, int]) -> None:
        self._heads = tuple(heads)
        self._engines = {file: load(file, threads.get(file, 1)) for file in dict.fromkeys(head.file for head in heads)}
        self.inputs = {name for engine in self._engines.values() for name in engine.inputs}

    def run(self, features: Features) -> dict[str, NDArray[Any]]:
        """Return the output of every head, by its name.

        Parameters
        ----------
        features : mapping
            ``patch``, ``tokens``, ``embedding``, ``volume`` and ``window``, as far as the graphs look at them.

        Raises
        ------
        BundleError
            If a graph takes what is not there, or does not give the output of a head.
        """
        given = {file: engine.run(wanted(engine, features)) for file, engine in self._engines.items()}
        return {
            head.name: output_of(given[head.file], OUTPUTS[head.kind], f"head {head.name}: {head.file}")
            for head in self._heads
        }


def load_heads(bundle: Bundle, engine: str, threads: int, dense: Iterable[str] | None = None) -> HeadGraphs:
    """Load the heads of a bundle on an engine of the CPU.

    Parameters
    ----------
    bundle : Bundle
    engine : str
    threads : int
        That a graph may have which answers for every voxel.
    dense : iterable of str, optional
        Those graphs; default: those of the bundle's heads. Where some heads are left out, a graph may be large still.

    Raises
    ------
    BundleError, EngineError
    """

    def load(file: str, threads: int) -> Engine:
        return load_engine(engine, bundle.file(file), precision="fp32", threads=threads)

    heads = bundle.manifest.heads
    return HeadGraphs(heads, load, dict.fromkeys(dense_files(heads) if dense is None else dense, threads))


def wanted(engine: Engine, features: Features) -> dict[str, NDArray[Any]]:
    """Return of the features those that a graph takes.

    Raises
    ------
    BundleError
        If it takes another.
    """
    unknown = sorted(set(engine.inputs) - set(features))
    if unknown:
        raise BundleError(
            f"a graph takes {', '.join(unknown)}, which neither encoder nor preprocessing gives; export it again"
        )
    return {name: features[name] for name in engine.inputs}
