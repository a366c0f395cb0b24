"""Tell the person at the terminal what is being fetched or built, and how far it is."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[float], None]

#: Seconds between two lines of progress where there is no terminal.
_PAUSE = 10.0


@contextmanager
def step(what: str) -> Iterator[Advance]:
    """Show one step of work on standard error while the block runs.

    On a terminal it is a bar which the yielded function sets, in percent, and which disappears when done; elsewhere
    (a log, CI) it is a plain line at the start, and one now and then if it takes long.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        _say(what)
        said = time.monotonic()

        def advance(percent: float) -> None:
            nonlocal said
            if time.monotonic() - said >= _PAUSE:
                said = time.monotonic()
                _say(f"  {percent:.0f} %")

        yield advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda percent: progress.update(task, completed=percent, total=100)


def still(what: str) -> None:
    """Say how far a step is, in words, where no bar shows it."""
    if not Console(stderr=True).is_terminal:
        _say(f"  {what}")


def _say(what: str) -> None:
    print(f"nicmodel: {what}", file=sys.stderr, flush=True)
