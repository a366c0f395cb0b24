"""A whole PCI device: one BAR with a scratch register that the guest can read and write.

Run ``python -m nicmodel.vfio_user.example SOCKET``, then start QEMU with
``-device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"SOCKET"}}'``.
"""

from __future__ import annotations

import struct
import sys

from . import Device, PciRegion, Poller, RegionInfo, Server

BAR_SIZE = 4096


class Scratch(Device):
    """Vendor 1234, device 5678, and 4 KiB of registers behind BAR 0 that keep what is written."""

    regions = tuple(RegionInfo({PciRegion.BAR0: BAR_SIZE, PciRegion.CONFIG: 256}.get(index, 0)) for index in PciRegion)

    def __init__(self) -> None:
        self.memory = {region: bytearray(info.size) for region, info in enumerate(self.regions)}
        # Vendor, device, command, status, class "unassigned", revision 1. BARs of zeros mean 32-bit memory.
        struct.pack_into("<HHHHI", self.memory[PciRegion.CONFIG], 0, 0x1234, 0x5678, 0, 0, 0xFF000001)

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read registers or configuration space."""
        return bytes(self.memory[region][offset : offset + count])

    def region_write(self, region: int, offset: int, data: bytes | memoryview) -> None:
        """Write registers or configuration space; the client itself keeps BAR addresses and read-only fields."""
        self.memory[region][offset : offset + len(data)] = data


if __name__ == "__main__":
    poller = Poller()
    with Server(sys.argv[1], Scratch(), poller=poller):
        poller.serve_forever()
