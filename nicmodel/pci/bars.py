"""Base address registers: the memory that a device has on the bus, declared as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Base address registers of an endpoint; a 64-bit BAR takes two of them.
SLOTS = 6

_SMALLEST = 16
_TYPE_64_BIT = 0b10 << 1
_PREFETCHABLE = 1 << 3
_FLAGS = 0xF


@dataclass(frozen=True)
class MemoryBar:
    """A memory BAR::

           31                                              4   3   2 1   0
          +-------------------------------------------------+---+-----+---+
      +0  | base address                                    | P | type| 0 |
          +-------------------------------------------------+---+-----+---+
      +4  | base address, upper half: only if type is 64-bit              |
          +---------------------------------------------------------------+

    P: prefetchable. Type: 0 is 32-bit, 2 is 64-bit. Address bits below the size read as zero whatever is written, so
    that software learns the size by writing ones.

    Source: PCI Express Base 5.0, section 7.5.1.2.1.

    Attributes:
        size: bytes, a power of two from 16 on.
        width: bits of its address.
        prefetchable: reads have no side effects, and writes may be merged.

    Raises:
        ValueError: the size is not possible.
    """

    size: int
    width: Literal[32, 64] = 32
    prefetchable: bool = False

    def __post_init__(self) -> None:
        if self.size.bit_count() != 1:
            raise ValueError(f"a BAR of {self.size} bytes: the size must be a power of two")
        if not _SMALLEST <= self.size <= 1 << self.width - 1:
            raise ValueError(
                f"a BAR of {self.size} bytes: between {_SMALLEST} and {1 << self.width - 1:#x} "
                f"are possible with {self.width} address bits"
            )

    @property
    def slots(self) -> int:
        """Base address registers that it takes."""
        return self.width // 32

    @property
    def power_on(self) -> bytes:
        """Its registers before software has given it an address."""
        flags = (_TYPE_64_BIT if self.width == 64 else 0) | (_PREFETCHABLE if self.prefetchable else 0)
        return flags.to_bytes(4 * self.slots, "little")

    @property
    def writable(self) -> bytes:
        """Ones where software may write."""
        return ((1 << self.width) - self.size).to_bytes(4 * self.slots, "little")

    def address(self, registers: bytes) -> int:
        """The address that is in its registers."""
        return int.from_bytes(registers, "little") & ~_FLAGS
