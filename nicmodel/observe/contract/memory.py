"""Guest memory as the checker looks at it: what is mapped with which right, and what lies there."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.state import Records
from nicmodel.observe.memory import peek

Addresses = npt.NDArray[np.uint64]


class Memory:
    """The memory map of a NIC's client, as it is at the moment of each call.

    It is what the client has mapped: the device's own view of it may be without some of it, by a fault on demand.
    """

    def __init__(self, nic: Nic) -> None:
        self._nic = nic

    @property
    def _regions(self) -> Records:
        return self._nic.link.dma.regions if self._nic.link is not None else self._nic.state.regions

    def read(self, address: int, count: int) -> bytes | None:
        """Bytes at a guest address; None if some are not mapped into this process."""
        return peek(self._regions, address, count)

    def mapped(self, address: int, count: int, right: int) -> bool:
        """Whether the device may access all of `count` bytes, across borders of regions if need be.

        Args:
            address: guest address.
            count: bytes; of none, any address will do.
            right: READABLE or WRITABLE.
        """
        regions = self._regions
        end = address + count
        while address < end:
            number = int(np.searchsorted(regions["start"], np.uint64(min(address, (1 << 64) - 1)), "right")) - 1
            if number < 0:
                return False
            region = regions[number]
            border = int(region["start"]) + int(region["size"])
            if address >= border or not int(region["flags"]) & right:
                return False
            address = border
        return True

    def all_mapped(self, addresses: Addresses, count: int, right: int) -> npt.NDArray[np.bool_]:
        """As `mapped`, for many pieces of the same length at once."""
        regions = self._regions
        if not len(regions):
            return np.zeros(len(addresses), np.bool_)
        number = np.searchsorted(regions["start"], addresses, "right") - 1
        region = regions[np.maximum(number, 0)]
        offset = addresses - region["start"]
        whole: npt.NDArray[np.bool_] = (
            (number >= 0) & (offset < region["size"]) & (region["size"] - offset >= np.uint64(count))
        )
        whole &= region["flags"] & np.uint32(right) != 0
        for place in np.flatnonzero(~whole):
            whole[place] = self.mapped(int(addresses[place]), count, right)
        return whole
