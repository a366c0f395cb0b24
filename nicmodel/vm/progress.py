"""Tell the person at the terminal what is being fetched or built, and how far it is."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Advance = Callable[[float], None]


@contextmanager
def step(what: str) -> Iterator[Advance]:
    """Show one step of work on standard error while the block runs.

    On a terminal it is a bar which the yielded function sets, in percent, and which disappears when done; elsewhere
    (a log, CI) it is one plain line at the start.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"nicmodel: {what}", file=sys.stderr, flush=True)
        yield lambda percent: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda percent: progress.update(task, completed=percent, total=100)
