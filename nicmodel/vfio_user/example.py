"""A whole PCI device: a BAR of registers that keep what the guest writes.

Run ``python -m nicmodel.vfio_user.example SOCKET``, then start QEMU with
``-device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"SOCKET"}}'``.
"""

from __future__ import annotations

import signal
import struct
import sys

from nicmodel.vfio_user import Device, PciRegion, Poller, RegionInfo, Server, Signals

SIZES = {PciRegion.BAR0: 4096, PciRegion.CONFIG: 256}


class Scratch(Device):
    """PCI device 1234:5678 with 4 KiB of scratch registers in BAR 0."""

    regions = tuple(RegionInfo(SIZES.get(index, 0)) for index in PciRegion)

    def __init__(self) -> None:
        self.memory = {index: bytearray(size) for index, size in SIZES.items()}
        # Vendor, device, command, status, class "unassigned" and revision 1. A BAR of zeros is 32-bit memory.
        struct.pack_into("<HHHHI", self.memory[PciRegion.CONFIG], 0, 0x1234, 0x5678, 0, 0, 0xFF000001)

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read registers or configuration space."""
        return bytes(self.memory[PciRegion(region)][offset : offset + count])

    def region_write(self, region: int, offset: int, data: bytes | memoryview) -> None:
        """Write them. QEMU itself looks after the addresses of BARs and the read-only fields."""
        self.memory[PciRegion(region)][offset : offset + len(data)] = data


if __name__ == "__main__":
    poller = Poller()
    stop = {signal.SIGTERM: poller.stop, signal.SIGINT: poller.stop}
    with Signals(poller, stop), Server(sys.argv[1], Scratch(), poller=poller):
        poller.serve_forever()
