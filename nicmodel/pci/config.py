"""PCI configuration space of an endpoint: header, BARs, and the capabilities PM, MSI-X and PCI Express.

What software may write is a mask beside each byte (PCI Local Bus 3.0, chapter 6; PCI Express Base 5.0, section 7.5).
QEMU keeps BARs and MSI-X to itself and forwards the writes; the copy here follows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntFlag

SIZE = 4096

#: Offset of the command register.
COMMAND = 0x04
_STATUS = 0x06
_BAR0 = 0x10
_SUBSYSTEM = 0x2C
_CAPABILITIES = 0x34
_STATUS_CAPABILITY_LIST = 0x10

_PM = 0x40
_MSIX = 0x50
_EXPRESS = 0x60
_CAP_PM, _CAP_EXPRESS, _CAP_MSIX = 0x01, 0x10, 0x11
_DEVICE_CONTROL = _EXPRESS + 0x08
_INITIATE_FLR = 0x8000


class Command(IntFlag):
    """Bits of the command register that matter here."""

    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2


@dataclass(frozen=True)
class MsixTable:
    """Where the MSI-X table and the pending bits lie: vectors, BAR, byte offsets in it (multiples of 8)."""

    vectors: int
    bar: int
    table: int
    pending: int


class ConfigSpace:
    """The 4096 bytes of a PCI Express endpoint.

    Args:
        vendor, device, subsystem, class_code, revision: the identity (24-bit class code).
        bars: size in bytes of each 32-bit memory BAR, 0 where there is none; powers of two.
        msix: the interrupt table.
        on_reset: called when software asks for a function level reset.
    """

    def __init__(
        self,
        *,
        vendor: int,
        device: int,
        subsystem: int,
        class_code: int,
        revision: int,
        bars: Sequence[int],
        msix: MsixTable,
        on_reset: Callable[[], None],
    ) -> None:
        self._bytes = bytearray(SIZE)
        self._writable = bytearray(SIZE)
        self._on_reset = on_reset
        self._put(0x00, "<HH", vendor, device)
        self._put(COMMAND, "<HH", 0, _STATUS_CAPABILITY_LIST, writable=struct.pack("<HH", 0x0547, 0))
        self._put(0x08, "<I", class_code << 8 | revision)
        self._put(0x0C, "<BB", 0, 0, writable=b"\xff\xff")
        for number, size in enumerate(bars):
            if size:
                self._put(_BAR0 + 4 * number, "<I", 0, writable=struct.pack("<I", 0x100000000 - size))
        self._put(_SUBSYSTEM, "<HH", vendor, subsystem)
        self._put(_CAPABILITIES, "<B", _PM)
        self._put(0x3C, "<BB", 0, 0, writable=b"\xff\0")
        # Power management 1.2, no PME, D0 and D3hot; the power state is writable.
        self._put(_PM, "<BBHH", _CAP_PM, _MSIX, 0x0003, 0x0008, writable=struct.pack("<BBHH", 0, 0, 0, 0x0003))
        self._put(
            _MSIX, "<BBHII", _CAP_MSIX, _EXPRESS, msix.vectors - 1, msix.table | msix.bar, msix.pending | msix.bar,
            writable=struct.pack("<BBHII", 0, 0, 0xC000, 0, 0),
        )  # fmt: skip
        # Endpoint, version 2; role-based errors, function level reset, payload up to 512 bytes; link 16 GT/s, x16.
        self._put(_EXPRESS, "<BBHIHHIHH", _CAP_EXPRESS, 0, 0x0002, 0x10008002, 0x2810, 0, 0x104, 0, 0x104)
        self._writable[_DEVICE_CONTROL : _DEVICE_CONTROL + 2] = b"\xff\x7f"
        self._power_on = bytes(self._bytes)

    def _put(self, offset: int, form: str, *values: int, writable: bytes = b"") -> None:
        struct.pack_into(form, self._bytes, offset, *values)
        self._writable[offset : offset + len(writable)] = writable

    @property
    def command(self) -> Command:
        """The command register."""
        return Command(struct.unpack_from("<H", self._bytes, COMMAND)[0])

    def bar(self, number: int) -> int:
        """The address that software has given a BAR; 0 while it has none."""
        return int(struct.unpack_from("<I", self._bytes, _BAR0 + 4 * number)[0])

    def reset(self) -> None:
        """Back to power-on values."""
        self._bytes[:] = self._power_on

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`."""
        return bytes(self._bytes[offset : offset + count])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Change what is writable; the rest of the bits keeps its value."""
        for position, value in enumerate(bytes(data), offset):
            mask = self._writable[position]
            self._bytes[position] = self._bytes[position] & ~mask | value & mask
        # The FLR bit is not kept: it reads as zero.
        high = _DEVICE_CONTROL + 1 - offset
        if 0 <= high < len(data) and bytes(data)[high] << 8 & _INITIATE_FLR:
            self._on_reset()
