"""Telling the person at the terminal that the packet path is being compiled, whenever it is.

That happens at the first start of these sources with this Python, and takes a while: nobody should have to wonder.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from nicmodel.jit.cache import CACHE
from nicmodel.jit.compiled import Compilation, watch

#: Of the first line, and of those that follow; `nicmodel.vm.server` looks for them in what a server prints.
BEGINS, PROGRESS = "compiling the packet path", "functions compiled"
#: On two processors that are idle, or busy with other things.
DURATION = "ten to thirty seconds"
#: Seconds between two lines of progress where lines cannot be overwritten.
_PAUSE = 10.0


class _Progress:
    """Says what a `Compilation` does: lines that replace each other on a terminal, now and then a line elsewhere."""

    def __init__(self, say: Callable[[str], None], terminal: bool) -> None:
        self._say = say
        self._terminal = terminal
        self._begun = False
        self._said = 0.0

    def __call__(self, compilation: Compilation) -> None:
        now = time.monotonic()
        if not self._begun:
            self._begun = True
            self._said = now
            kept = "once for these sources" if CACHE else "at every start, as the cache folder cannot be written"
            self._say(f"{BEGINS}: {kept}, {DURATION}\n")
        so_far = f"  {compilation.functions} {PROGRESS}, {compilation.seconds:.0f} s"
        if self._terminal:
            self._say(f"\r{so_far}" if compilation.running else "\r\x1b[K")
        elif now - self._said >= _PAUSE:
            self._said = now
            self._say(f"{so_far}\n")


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def announce(say: Callable[[str], None] = _to_stderr, *, terminal: bool | None = None) -> None:
    """From now on, say what is being compiled in this process, as it happens.

    Args:
        say: prints a text; standard error if not given.
        terminal: whether that is a terminal; standard error is asked if not given.
    """
    watch(Compilation(_Progress(say, sys.stderr.isatty() if terminal is None else terminal)))
