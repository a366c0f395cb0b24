"""The log of a server: what is printed, and how much of it.

Messages quote names and words of guests, clients and wires, who can also repeat what a message is about as fast as they
like. So they are printed `printable`, and of each kind of warning only so many within a time; how many more there were
is said afterwards.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

from nicmodel.client.text import printable

#: Warnings from one line of the source that are printed within so many seconds.
BURST, SECONDS = 20, 10.0


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


@dataclass
class _Place:
    """What has come from one line of the source since `since`: how often, and the last that was not printed."""

    since: float
    count: int = 0
    last: logging.LogRecord | None = None


class LogHandler(logging.StreamHandler[TextIO]):
    """Prints records; of warnings from one line of the source, at most `BURST` within `SECONDS`.

    Args:
        stream: where to.
        clock: seconds.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self.setFormatter(_Formatter("%(message)s"))
        self._clock = clock
        self._places: dict[tuple[str, int], _Place] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, or count it."""
        if record.levelno < logging.WARNING:
            super().emit(record)
            return
        now = self._clock()
        place = self._places.setdefault((record.pathname, record.lineno), _Place(now))
        if now - place.since >= SECONDS:
            self._tell_rest(place)
            place.since, place.count, place.last = now, 0, None
        place.count += 1
        if place.count <= BURST:
            super().emit(record)
        else:
            place.last = record

    def _tell_rest(self, place: _Place) -> None:
        if place.last is not None:
            place.last.msg = f"{place.count - BURST:,} more like this: {place.last.getMessage()}"
            place.last.args = None
            super().emit(place.last)

    def close(self) -> None:
        """Say what was not printed, and end."""
        for place in self._places.values():
            self._tell_rest(place)
        self._places.clear()
        super().close()


def log_to_stderr(level: int) -> None:
    """Have the server's log printed, from `level` on."""
    logging.basicConfig(level=level, handlers=[LogHandler(sys.stderr)])
    logging.getLogger("numba").setLevel(logging.WARNING)
