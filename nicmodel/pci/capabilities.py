"""Capabilities, a class each: what is in their registers after power-on, and what software may write there.

`nicmodel.pci.config.ConfigSpace` places them and fills in where the next one is. Sections are those of PCI Express Base
5.0. Dwords are little-endian, as all of the configuration space is.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct

from nicmodel.pci.bars import MemoryBar
from nicmodel.pci.msix import MsixTable


class Capability:
    """Registers that begin with an ID and, in the second byte, the offset of the next capability.

    Attributes:
        power_on: their bytes after power-on; the second is 0.
        writable: ones where software may write.
        resets: ones where writing a one asks for a function level reset; these bits read as zero.
    """

    def __init__(self, power_on: bytes, writable: bytes, resets: bytes | None = None) -> None:
        self.power_on = power_on
        self.writable = writable
        self.resets = bytes(len(power_on)) if resets is None else resets

    @property
    def length(self) -> int:
        """Bytes."""
        return len(self.power_on)

    def check(self, bars: Mapping[int, MemoryBar]) -> None:
        """See whether it fits the device's BARs.

        Raises:
            ValueError: it does not.
        """


class PowerManagement(Capability):
    """Power management 1.2, section 7.5.2: D0 and D3hot, no power management events::

             31        24 23        16 15         8 7          0
            +------------+------------+------------+------------+
       0x00 |      capabilities       |    next    |  ID: 0x01  |
            +------------+------------+------------+------------+
       0x04 |    data    |  reserved  |     control, status     |
            +------------+------------+-------------------------+

    Capabilities: bits 2:0 version, here 3, which is 1.2. Control: bits 1:0 power state, **writable**; bit 3 no soft
    reset, here 1: the function keeps its state on the way from D3hot to D0.
    """

    _REGISTERS = Struct("<BBHHBB")
    _VERSION_1_2 = 3
    _POWER_STATE, _NO_SOFT_RESET = 0x3, 1 << 3

    def __init__(self) -> None:
        super().__init__(
            power_on=self._REGISTERS.pack(0x01, 0, self._VERSION_1_2, self._NO_SOFT_RESET, 0, 0),
            writable=self._REGISTERS.pack(0, 0, 0, self._POWER_STATE, 0, 0),
        )


class Msix(Capability):
    """MSI-X, section 7.7.2::

             31        24 23        16 15         8 7          0
            +------------+------------+------------+------------+
       0x00 |     message control     |    next    |  ID: 0x11  |
            +------------+------------+------------+-----+------+
       0x04 | table offset / 8                           | BAR  |
            +--------------------------------------------+------+
       0x08 | pending bit array offset / 8               | BAR  |
            +--------------------------------------------+------+
             31                                         3 2    0

    Message control: bit 15 enable and bit 14 function mask, both **writable**; bits 10:0 number of vectors - 1.

    Args:
        table: table and pending bit array.
    """

    _REGISTERS = Struct("<BBHII")
    _ENABLE, _FUNCTION_MASK = 1 << 15, 1 << 14

    def __init__(self, table: MsixTable) -> None:
        self.table = table
        super().__init__(
            power_on=self._REGISTERS.pack(0x11, 0, table.vectors - 1, table.table | table.bar, table.pba | table.bar),
            writable=self._REGISTERS.pack(0, 0, self._ENABLE | self._FUNCTION_MASK, 0, 0),
        )

    def check(self, bars: Mapping[int, MemoryBar]) -> None:
        """See `Capability.check`."""
        bar, end = self.table.bar, self.table.end
        if bar not in bars:
            raise ValueError(f"the MSI-X table is in BAR {bar}, which the device does not have")
        if end > bars[bar].size:
            raise ValueError(f"MSI-X table and pending bits need {end} bytes of BAR {bar}, which has {bars[bar].size}")


class Express(Capability):
    """PCI Express, version 2, of an endpoint, section 7.5.3::

             31        24 23        16 15         8 7          0
            +------------+------------+------------+------------+
       0x00 |      capabilities       |    next    |  ID: 0x10  |
            +------------+------------+------------+------------+
       0x04 |                device capabilities                |
            +-------------------------+-------------------------+
       0x08 |      device status      |     device control      |
            +-------------------------+-------------------------+
       0x0c |                 link capabilities                 |
            +-------------------------+-------------------------+
       0x10 |       link status       |      link control       |
            +-------------------------+-------------------------+
       0x14 |                 slot capabilities                 |
            +-------------------------+-------------------------+
       0x18 |       slot status       |      slot control       |
            +-------------------------+-------------------------+
       0x1c |    root capabilities    |      root control       |
            +-------------------------+-------------------------+
       0x20 |                    root status                    |
            +-------------------------+-------------------------+
       0x24 |               device capabilities 2               |
            +-------------------------+-------------------------+
       0x28 |     device status 2     |    device control 2     |
            +-------------------------+-------------------------+
       0x2c |                link capabilities 2                |
            +-------------------------+-------------------------+
       0x30 |      link status 2      |     link control 2      |
            +-------------------------+-------------------------+
       0x34 |                slot capabilities 2                |
            +-------------------------+-------------------------+
       0x38 |      slot status 2      |     slot control 2      |
            +-------------------------+-------------------------+

    Capabilities: bits 3:0 version, bits 7:4 device type, 0 for an endpoint.

    Device capabilities: bits 2:0 largest payload, here 512 bytes; bit 15 role-based error reporting; bit 28 function
    level reset.

    Device control, all of it **writable**: bit 4 relaxed ordering and bit 11 no snoop are enabled; bits 14:12 largest
    read request, here 512 bytes. Bit 15 reads as zero; writing a one **asks for a function level reset** (section
    6.6.2).

    Link capabilities and status: bits 3:0 speed, here 4, which is 16 GT/s; bits 9:4 width, here 16 lanes.

    The rest, from 0x14 on, is zero: it is for slots and roots, and for features that this endpoint does not have.
    """

    _REGISTERS = Struct("<BBHIHHIHH40x")
    _VERSION_2 = 2
    _PAYLOAD_512, _ROLE_BASED_ERRORS, _HAS_FLR = 2, 1 << 15, 1 << 28
    _RELAXED_ORDERING, _NO_SNOOP, _READ_512, _INITIATE_FLR = 1 << 4, 1 << 11, 2 << 12, 1 << 15
    _16_GT_X16 = 16 << 4 | 4

    def __init__(self) -> None:
        can = self._PAYLOAD_512 | self._ROLE_BASED_ERRORS | self._HAS_FLR
        control = self._RELAXED_ORDERING | self._NO_SNOOP | self._READ_512
        link = self._16_GT_X16
        super().__init__(
            power_on=self._REGISTERS.pack(0x10, 0, self._VERSION_2, can, control, 0, link, 0, link),
            writable=self._REGISTERS.pack(0, 0, 0, 0, 0xFFFF & ~self._INITIATE_FLR, 0, 0, 0, 0),
            resets=self._REGISTERS.pack(0, 0, 0, 0, self._INITIATE_FLR, 0, 0, 0, 0),
        )
