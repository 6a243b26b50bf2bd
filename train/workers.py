"""Jobs in worker processes, a core each."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from decipher_rt.errors import DecipherError


class WorkerError(DecipherError):
    """A worker process that is gone, with what it was to do."""


def run_jobs(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int, done: Callable[[int], Any]
) -> list[Any]:
    """Call a function for every job's arguments, and return what it returned, in the order of the jobs.

    Parameters
    ----------
    function : callable
        At the top level of a module, so that a process can import it.
    jobs : sequence of tuple
        Arguments, which can be pickled.
    workers : int
        Processes; with one, or one job, everything is done in this process.
    done : callable
        Told the number of each job that is done, in the order in which they end. The first error stops everything.
    """
    if min(workers, len(jobs)) <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in the order of the workers' own, whoever computes
        try:
            results = []
            for number, job in enumerate(jobs):
                results.append(function(*job))
                done(number)
            return results
        finally:
            torch.set_num_threads(threads)
    # "spawn": a fork of a process that has run torch can hang in its thread pool.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=start_worker) as pool:
        submitted = [pool.submit(function, *job) for job in jobs]
        numbers = {future: number for number, future in enumerate(submitted)}
        try:
            for future in as_completed(numbers):
                future.result()
                done(numbers[future])
            return [future.result() for future in submitted]
        except BrokenProcessPool:
            raise WorkerError(
                "a worker process was ended from outside, as for want of memory; set workers to fewer, or give this "
                "machine more"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def start_worker() -> None:
    """Compute on one thread: there is a worker a core. End when the parent is killed: the work would never come."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
