"""Which series meet in a batch: some batches hold series of one body region, which are hard to tell apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ORDER = 1  # what a generator is for


def batch_indices(regions: Sequence[str | None], batch: int, seed: int, step: int, by_region: float) -> list[int]:
    """Return the series of a step, a function of the seed and the step alone.

    Every epoch is a new permutation of all series, cut into batches. What is left of it, less than a batch, sits the
    epoch out.

    Parameters
    ----------
    regions : sequence of str or None
        Of every series; those without one are in batches of any series alone.
    batch : int
        Series in the whole batch; at most as many as there are.
    step : int
    by_region : float
        Share of the series that are cut into batches of one region each. Batches of one region alone would never ask
        which region it is: no frontal lesion would ever be compared with an occipital one.
    """
    per_epoch = len(regions) // batch
    if not per_epoch:
        raise ValueError(f"run.batch is {batch}, expected at most the number of series with a report, {len(regions)}")
    epoch, place = divmod(step, per_epoch)
    return epoch_batches(regions, batch, np.random.default_rng([seed, ORDER, epoch]), by_region)[place]


def epoch_batches(
    regions: Sequence[str | None], batch: int, rng: np.random.Generator, by_region: float
) -> list[list[int]]:
    """Cut all series into ``len(regions) // batch`` batches in random order.

    What is left of each region, less than a batch, goes to the batches of any series.
    """
    order = [int(i) for i in rng.permutation(len(regions))]
    apart, rest = order[: round(by_region * len(order))], order[round(by_region * len(order)) :]
    members: dict[str, list[int]] = {}
    for i in apart:
        region = regions[i]
        if region is None:
            rest.append(i)
        else:
            members.setdefault(region, []).append(i)
    batches: list[list[int]] = []
    for found in members.values():
        full = len(found) // batch * batch
        batches += [found[first : first + batch] for first in range(0, full, batch)]
        rest += found[full:]
    rest = [rest[i] for i in rng.permutation(len(rest))]
    batches += [rest[first : first + batch] for first in range(0, len(rest) // batch * batch, batch)]
    return [batches[i] for i in rng.permutation(len(batches))]
