"""Guest memory as the checker looks at it: what is mapped with which right, and what lies there."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import compiled, u64
from nicmodel.nic.dma import find
from nicmodel.nic.peek import LAST_ADDRESS, peek
from nicmodel.nic.state import Records
from nicmodel.vfio_user.regions import RegionMap

if TYPE_CHECKING:
    from nicmodel.nic.view import View

Addresses = npt.NDArray[np.uint64]


class MappedMemory:
    """The memory map of a NIC's client, as it is at the moment of each call.

    It is what the client has mapped: the device's own view of it may be without some of it, by a fault on demand.
    """

    def __init__(self, nic: View) -> None:
        self._nic = nic
        self._seen = (0, 0)
        #: The region of the last access, which is nearly always that of the next: start, end, host address, rights.
        self._last = (0, 0, 0, 0)

    @property
    def _map(self) -> RegionMap:
        return self._nic.link.dma.view if self._nic.link is not None else self._nic.state.memory_map

    def _region(self, address: int) -> tuple[int, int, int, int]:
        """The region that has the address: start, end, host address, rights; all 0 if there is none."""
        link = self._nic.link
        seen = (id(link), link.dma.generation if link is not None else 0)
        if seen != self._seen:
            self._seen, self._last = seen, (0, 0, 0, 0)
        if not self._last[0] <= address < self._last[1]:
            leaves, regions = self._map
            number = find(leaves, regions, u64(address)) if address <= LAST_ADDRESS else -1
            if number < 0:
                return (0, 0, 0, 0)
            start, size, host, flags, _ = regions[number].item()
            self._last = (start, start + size, host, flags)
        return self._last

    def read(self, address: int, count: int) -> bytes | None:
        """Bytes at a guest address; None if some are not mapped into this process."""
        start, end, host, _ = self._region(address)
        if host and start <= address and address + count <= end:
            return ctypes.string_at(host + address - start, count)
        return peek(self._map, address, count)

    def entries(self, ring: int, entries: int, size: int, first: int, count: int) -> bytes | None:
        """`count` entries of a ring, `size` bytes each, from index `first` on; as `read`."""
        whole = min(count, entries - first)
        head = self.read(ring + first * size, whole * size)
        rest = self.read(ring, (count - whole) * size) if count > whole else b""
        return None if head is None or rest is None else head + rest

    def mapped(self, address: int, count: int, right: int) -> bool:
        """Whether the device may access all of `count` bytes, across borders of regions if need be.

        Args:
            address: guest address.
            count: bytes; of none, any address will do.
            right: READABLE or WRITABLE.
        """
        end = address + count
        while address < end:
            start, border, _, rights = self._region(address)
            if not start <= address < border or not rights & right:
                return False
            address = border
        return True

    def all_mapped(self, addresses: Addresses, count: int, right: int) -> npt.NDArray[np.bool_]:
        """Do what `mapped` does, for many pieces of the same length at once."""
        whole = np.zeros(len(addresses), np.bool_)
        _in_one_region(*self._map, np.ascontiguousarray(addresses, np.uint64), count, right, whole)
        for place in np.flatnonzero(~whole):
            whole[place] = self.mapped(int(addresses[place]), count, right)
        return whole


@compiled
def _in_one_region(
    leaves: Records, regions: Records, addresses: Addresses, count: int, right: int, whole: npt.NDArray[np.bool_]
) -> None:
    """Set `whole` where a region with that right has all of `count` bytes."""
    for number in range(len(addresses)):
        place = find(leaves, regions, addresses[number])
        if place >= 0:
            region = regions[place]
            rest = region.size - (addresses[number] - region.start)
            whole[number] = rest >= u64(count) and region.flags & right != 0
