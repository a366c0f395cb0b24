"""Where the rings of the queues are, and which page lists the queues use: what commands have said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.device import Nic
from nicmodel.nic.layout import Form, size_of


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

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._rings: dict[str, tuple[Sequence[Ring], int]] = {}

    def expect(self, queue: str, rings: Sequence[Ring], page_list: int) -> None:
        """A queue is about to be created."""
        self._rings[queue] = (rings, page_list)

    def extend(self, queue: str, rings: Sequence[Ring]) -> None:
        """A queue that exists has been given more rings."""
        there, page_list = self._rings.get(queue, ((), 0))
        self._rings[queue] = ((*there, *rings), page_list)

    def queues(self) -> list[str]:
        """Names of the queues that exist."""
        state = self._nic.state
        return [f"{way}{number}" for way, queues in (("rx", state.rx), ("tx", state.tx))
                for number in np.flatnonzero(queues["active"])]  # fmt: skip

    def of(self, queue: str) -> Sequence[Ring]:
        """The rings of one queue; none if its creation was not seen."""
        return self._rings.get(queue, ((), 0))[0]

    def all(self) -> list[tuple[str, Ring]]:
        """Every ring with the name of its queue."""
        return [(queue, ring) for queue in self.queues() for ring in self.of(queue)]

    def page_list(self, queue: str) -> int | None:
        """Number of the page list that the queue uses, if its format has them and the list is registered."""
        number = self._rings.get(queue, ((), -1))[1]
        return number if number in self._nic.pages else None

    def users(self, page_list: int) -> list[str]:
        """Names of the queues that use a page list."""
        return [queue for queue in self.queues() if self.page_list(queue) == page_list]

    def borders(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """Start and end of every ring, ascending."""
        spans = sorted((ring.address, ring.address + ring.size) for _, ring in self.all())
        return np.array([start for start, _ in spans], np.uint64), np.array([end for _, end in spans], np.uint64)
