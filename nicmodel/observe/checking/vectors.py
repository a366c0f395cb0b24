"""Vectors whose driver does not come back to them (rule INT-005)."""

from __future__ import annotations

import numpy as np

from nicmodel.nic.view import View
from nicmodel.observe.findings import Journal

#: Seconds that a vector waits masked, while the driver is seen to live, until it counts as forgotten.
_FORGOTTEN_SECONDS = 30
_SECOND_NS = 1_000_000_000


class Vectors:
    """Looks at vectors that wait to be enabled.

    Attributes:
        excused: interrupts may have been lost by a fault on demand, so that the driver waits in good faith.
    """

    def __init__(self, nic: View, journal: Journal, called: str) -> None:
        """`called` is what a vector of queues is called in findings."""
        self._nic = nic
        self._journal = journal
        self._called = called
        self._enabled: set[int] = set()  # vectors that the driver has enabled
        self._waiting: dict[int, int] = {}  # seconds that a vector with something to tell has waited, masked
        self._looked = 0
        self.excused = False

    def reset(self) -> None:
        """No vector is enabled any more."""
        self._enabled.clear()
        self._waiting.clear()
        self.excused = False

    def enabled(self, vector: int) -> None:
        """The driver enables a vector."""
        self._enabled.add(vector)

    def polled(self, vector: int) -> None:
        """The driver has worked on the queue of a vector, or has written to its control: it is there."""
        self._waiting.pop(vector, None)

    def look(self) -> None:
        """The driver lives: is there a vector that it has forgotten?"""
        now = self._nic.clock()
        if self.excused or now - self._looked < _SECOND_NS:
            return
        self._looked = now
        vectors = self._nic.state.vectors
        stuck = set(np.flatnonzero((vectors["pending"] != 0) & (vectors["enabled"] == 0)).tolist()) & self._enabled
        self._waiting = {vector: self._waiting.get(vector, 0) + 1 for vector in stuck}
        for vector, seconds in self._waiting.items():
            queue = self.queue_of(vector)
            if seconds > _FORGOTTEN_SECONDS and queue is not None:
                self._journal.report(
                    "INT-005", f"{self._called} {vector} has waited for {seconds} s to be enabled", queue,
                    **{self._called: vector},
                )  # fmt: skip

    def queue_of(self, vector: int) -> str | None:
        """A queue that the vector serves."""
        for way, queues in (("rx", self._nic.state.rx), ("tx", self._nic.state.tx)):
            for number in np.flatnonzero((queues["active"] != 0) & (queues["vector"] == vector)):
                return f"{way}{number}"
        return None
