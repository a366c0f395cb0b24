"""Faults of DMA: addresses that the device cannot reach. (Slow memory is felt where packets are moved.)"""

from __future__ import annotations

from collections.abc import Sequence

from nicmodel.faults.fault import Injection
from nicmodel.faults.kinds import DmaFault
from nicmodel.nic.seams import Seams


class DmaFaults:
    """Takes ranges out of a NIC's memory map; the packet path then meets what it checks for anyway."""

    kinds = (DmaFault,)

    def __init__(self, nic: Seams) -> None:
        self._nic = nic

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        ranges = []
        for injection in active:
            if isinstance(injection.fault, DmaFault):
                address, size = injection.fault.address, injection.fault.size
                ranges.append((address, address + size))
                if not injection.hits:
                    injection.strike(address=address, size=size)
        self._nic.dma.set_unreachable(ranges)
