"""Where the rings of the queues are: what commands have said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nicmodel.nic.layout import Form, size_of
from nicmodel.nic.view import View

#: Start and end of rings.
Borders = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]


@dataclass(frozen=True)
class Ring:
    """A ring: what it is, its guest address, entries, the structure of each, and the right that the device needs."""

    name: str
    address: int
    entries: int
    entry: Form
    right: int

    @property
    def entry_size(self) -> int:
        """Bytes of an entry."""
        return size_of(self.entry)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.entries * self.entry_size

    def overlaps(self, address: int, count: int) -> bool:
        """Whether it shares memory with `count` bytes at `address`."""
        return address < self.address + self.size and self.address < address + count


class Rings:
    """The rings of the queues that exist, by the queues' names."""

    def __init__(self, nic: View) -> None:
        self._nic = nic
        self._rings: dict[str, Sequence[Ring]] = {}
        #: What `borders` has found, and for which queues: it is asked at each doorbell.
        self._borders = _sorted([])
        self._borders_of: tuple[bytes, bytes] | None = None

    def expect(self, queue: str, rings: Sequence[Ring]) -> None:
        """A queue is about to be created."""
        self._rings[queue] = rings
        self._borders_of = None

    def queues(self) -> list[str]:
        """Names of the queues that exist."""
        state = self._nic.state
        return [f"{way}{number}" for way, queues in (("rx", state.rx), ("tx", state.tx))
                for number in np.flatnonzero(queues["active"])]  # fmt: skip

    def of(self, queue: str) -> Sequence[Ring]:
        """The rings of one queue; none if its creation was not seen."""
        return self._rings.get(queue, ())

    def all(self) -> list[tuple[str, Ring]]:
        """Every ring with the name of its queue."""
        return [(queue, ring) for queue in self.queues() for ring in self.of(queue)]

    def borders(self) -> Borders:
        """Start and end of every ring, ascending."""
        state = self._nic.state
        queues = state.rx["active"].tobytes(), state.tx["active"].tobytes()
        if queues != self._borders_of:
            self._borders_of, self._borders = queues, _sorted([ring for _, ring in self.all()])
        return self._borders


def _sorted(rings: Sequence[Ring]) -> Borders:
    spans = sorted((ring.address, ring.address + ring.size) for ring in rings)
    return np.array([start for start, _ in spans], np.uint64), np.array([end for _, end in spans], np.uint64)
