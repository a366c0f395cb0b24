"""Steps of a command that takes a while, as they are done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

console = Console(highlight=False)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, then that it is done and how long it took."""
    started = time.monotonic()
    if console.is_terminal:
        console.print(f"  [dim]…[/dim] {what}", end="\r")
    yield
    console.print(f"  [green]✓[/green] {what} [dim]{time.monotonic() - started:.1f} s[/dim]")
