"""DMA of the device itself: commands, answers, statistics. The packet path does its own (`nicmodel.nic.dma`).

Both know guest memory by one map, which is kept here, and both book their accesses in one ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nicmodel.jit.compiled import u64
from nicmodel.nic.dma import find
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import State
from nicmodel.vfio_user.dma import DmaFault, DmaTable, without
from nicmodel.vfio_user.regions import RegionMap


class DmaEngine:
    """Reaches the memory of the client, while there is one.

    Args:
        state: the NIC's, whose memory map and ledger are kept here.
        allowed: whether the device may reach memory at all: bus mastering is on.

    Attributes:
        table: the client's memory; None: there is no client.
        kinds: names of the kinds of memory in the ledger, of the client that is or was the last.
        unreachable: guest memory that the device cannot reach although it is mapped: addresses, first and one past the
            last.
    """

    def __init__(self, state: State, allowed: Callable[[], bool] = lambda: True) -> None:
        self._allowed = allowed
        self.table: DmaTable | None = None
        self.kinds = ["ram"]
        self.unreachable: tuple[tuple[int, int], ...] = ()
        self._state = state

    def attach(self, table: DmaTable) -> None:
        """A client has come: the ledger begins anew, with its kinds of memory."""
        self.table = table
        self.kinds = table.kinds
        self._state.ledger[:] = 0
        self.update()

    def detach(self) -> None:
        """The client has gone, and its memory."""
        self.table = None
        self._state.memory_map = RegionMap.empty()

    def update(self) -> None:
        """The client's memory map is another."""
        assert self.table is not None
        if self.unreachable:
            regions = self.table.regions
            for start, end in self.unreachable:
                regions = without(regions, start, end)
            self._state.memory_map = RegionMap.of(regions)
        else:
            self._state.memory_map = self.table.view
        self._state.device["remote"] = self.table.by_message > 0

    def set_unreachable(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Have the device reach nothing in these ranges of addresses: each access there is a DMA fault."""
        self.unreachable = tuple(ranges)
        if self.table is not None:
            self.update()

    def lost(self) -> bool:
        """Whether compiled code, which has just run, met memory that was taken away."""
        return self.table is not None and self.table.check()

    def read(self, address: int, count: int) -> bytes:
        """Read guest memory for a command.

        Raises:
            DmaFault: not all of it is mapped and readable.
        """
        table = self._reach(address, count)
        data = table.read(address, count)
        self._book(Purpose.COMMAND, address, count)
        return data

    def write(self, address: int, data: bytes, purpose: Purpose = Purpose.ANSWER) -> None:
        """Write guest memory for an answer, or for another `purpose`; else as `read`."""
        table = self._reach(address, len(data))
        table.write(address, data)
        self._book(purpose, address, len(data))

    def _reach(self, address: int, count: int) -> DmaTable:
        """The client's memory, unless the device may reach none, or these bytes have been made unreachable."""
        assert self.table is not None
        if not self._allowed():
            raise self.table.fault(DmaFault(address, count, "bus mastering is off"))
        if any(address < end and start < address + count for start, end in self.unreachable):
            raise self.table.fault(DmaFault(address, count, "made unreachable"))
        return self.table

    def _book(self, purpose: Purpose, address: int, count: int) -> None:
        """Book an access, which may cross regions."""
        leaves, regions = self._state.memory_map
        while count > 0:
            region = regions[find(leaves, regions, u64(address))]
            piece = min(count, int(region["start"]) + int(region["size"]) - address)
            self._state.ledger[-1, purpose, region["kind"]] += piece
            address += piece
            count -= piece
