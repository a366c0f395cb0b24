"""PCI configuration space of an endpoint: its header, and the BARs and capabilities that a device declares.

What software may write is a mask beside each byte (PCI Local Bus 3.0, chapter 6; PCI Express Base 5.0, section 7.5).
QEMU keeps BARs and MSI-X to itself and forwards the writes; the copy here follows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from enum import IntFlag

from nicmodel.pci.bars import SLOTS, MemoryBar
from nicmodel.pci.capabilities import Capability

SIZE = 4096

#: Offset of the command register.
COMMAND = 0x04
_BAR0 = 0x10
_SUBSYSTEM = 0x2C
_CAPABILITIES = 0x34
_STATUS_CAPABILITY_LIST = 0x10

#: Capabilities lie behind the header, each at a multiple of 16 so that a dump is easy to read; those of this kind have
#: to be in the first 256 bytes.
_FIRST, _STEP, _END = 0x40, 0x10, 0x100


class Command(IntFlag):
    """Bits of the command register that matter here."""

    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2


_BUS_MASTER = int(Command.BUS_MASTER)


class ConfigSpace:
    """The 4096 bytes of a PCI Express endpoint::

             31        24 23        16 15         8 7          0
            +------------+------------+------------+------------+
       0x00 |         device          |         vendor          |
            +-------------------------+-------------------------+
       0x04 |         status          |         command         |
            +-------------------------+------------+------------+
       0x08 |              class code              |  revision  |
            +------------+------------+------------+------------+
       0x0c |    BIST    | header type|  latency   | cache line |
            +------------+------------+------------+------------+
       0x10 |                       BAR 0                       |
        ... |                        ...                        |
       0x24 |                       BAR 5                       |
            +---------------------------------------------------+
       0x28 |                     reserved                      |
            +-------------------------+-------------------------+
       0x2c |        subsystem        |    subsystem vendor     |
            +-------------------------+-------------------------+
       0x30 |                   expansion ROM                   |
            +--------------------------------------+------------+
       0x34 |               reserved               | first cap. |
            +--------------------------------------+------------+
       0x38 |                     reserved                      |
            +------------+------------+------------+------------+
       0x3c |  max_lat   |  min_gnt   |  INTx pin  | INTx line  |
            +------------+------------+------------+------------+
       0x40 |         capabilities, one after the other         |
            +---------------------------------------------------+

    **Writable**: command, latency, cache line, INTx line, and what BARs and capabilities say.

    Args:
        vendor, device, subsystem, class_code, revision: the identity (24-bit class code).
        bars: by number; that of a 64-bit BAR is its lower half's.
        capabilities: in the order in which they are linked.
        on_reset: called when software asks for a function level reset.

    Raises:
        ValueError: BARs or capabilities do not fit.
    """

    def __init__(
        self,
        *,
        vendor: int,
        device: int,
        subsystem: int,
        class_code: int,
        revision: int,
        bars: Mapping[int, MemoryBar],
        capabilities: Sequence[Capability],
        on_reset: Callable[[], None],
    ) -> None:
        self._bytes = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._resets = bytearray(SIZE)
        self._bars = bars
        self._on_reset = on_reset
        self._put(0x00, struct.pack("<HH", vendor, device))
        self._put(COMMAND, struct.pack("<HH", 0, _STATUS_CAPABILITY_LIST), writable=struct.pack("<HH", 0x0547, 0))
        self._put(0x08, struct.pack("<I", class_code << 8 | revision))
        self._put(0x0C, bytes(2), writable=b"\xff\xff")
        self._put_bars()
        self._put(_SUBSYSTEM, struct.pack("<HH", vendor, subsystem))
        self._put(0x3C, bytes(1), writable=b"\xff")
        self._put_capabilities(capabilities)
        self._power_on = bytes(self._bytes)

    def _put(self, offset: int, power_on: bytes, writable: bytes = b"") -> None:
        self._bytes[offset : offset + len(power_on)] = power_on
        self._writable[offset : offset + len(writable)] = writable

    def _put_bars(self) -> None:
        for number, bar in self._bars.items():
            if not 0 <= number <= SLOTS - bar.slots:
                raise ValueError(f"a {bar.width}-bit BAR {number}: there are only registers 0 to {SLOTS - 1}")
            if bar.slots == 2 and number + 1 in self._bars:
                raise ValueError(f"BAR {number + 1} lies where the upper half of BAR {number} is")
            self._put(_BAR0 + 4 * number, bar.power_on, bar.writable)

    def _put_capabilities(self, capabilities: Sequence[Capability]) -> None:
        offset, link = _FIRST, _CAPABILITIES
        for capability in capabilities:
            capability.check(self._bars)
            end = offset + capability.length
            if end > _END:
                raise ValueError(f"no room for {type(capability).__name__}: capabilities would end at {end:#x}")
            self._put(offset, capability.power_on, capability.writable)
            self._resets[offset:end] = capability.resets
            self._bytes[link] = offset
            link = offset + 1
            offset = -(-end // _STEP) * _STEP

    @property
    def command(self) -> Command:
        """The command register."""
        return Command(struct.unpack_from("<H", self._bytes, COMMAND)[0])

    @property
    def bus_master(self) -> bool:
        """Whether the device may do DMA, of which MSI-X is a part; looked at for each interrupt."""
        return self._bytes[COMMAND] & _BUS_MASTER != 0

    def bar(self, number: int) -> int:
        """The address that software has given a BAR; 0 while it has none."""
        bar, offset = self._bars[number], _BAR0 + 4 * number
        return bar.address(self.read(offset, 4 * bar.slots))

    def reset(self) -> None:
        """Back to power-on values."""
        self._bytes[:] = self._power_on

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`."""
        return bytes(self._bytes[offset : offset + count])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Change what is writable; the rest of the bits keeps its value."""
        asks_reset = 0
        for position, value in enumerate(bytes(data), offset):
            mask = self._writable[position]
            self._bytes[position] = self._bytes[position] & ~mask | value & mask
            asks_reset |= value & self._resets[position]
        if asks_reset:
            self._on_reset()
