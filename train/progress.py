"""Progress on a terminal, silence in a pipe; of several processes the first speaks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from decipher_rt.errors import one_line

from .distributed import rank


class Progress:
    """Says how far a run is, on standard error, if that is a terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._warned: set[str] = set()
        self._speaks = self._console.is_terminal and rank() == 0

    def say(self, line: str) -> None:
        """Say what begins."""
        if self._speaks:
            self._console.print(line, highlight=False)

    def warn(self, line: str) -> None:
        """Say what somebody has to know, also in a pipe; what was said already is not said again."""
        if rank() == 0 and line not in self._warned:
            self._warned.add(line)
            sys.stderr.write(f"decipher-rt: {one_line(line)}\n")

    @contextlib.contextmanager
    def bar(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar; the function that it yields is told how much is done."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with RichProgress(*columns, console=self._console, disable=not self._speaks) as bars:
            task = bars.add_task(name, total=total)
            yield lambda done: bars.update(task, completed=min(done, total))
