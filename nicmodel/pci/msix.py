"""The MSI-X table and the pending bit array: where they lie in a BAR, and what software reads there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: The most vectors that a function can have.
MAX_VECTORS = 2048

_ENTRY = 16
_ALIGNMENT = 8


@dataclass(frozen=True)
class MsixTable:
    """Table and pending bit array of a function::

                  31                           1     0
                 +-------------------------------+-----+
       table + 0 | message address                     |  vector 0
             + 4 | message address, upper half         |
             + 8 | message data                        |
            + 12 | reserved                      | mask|
                 +-------------------------------+-----+
            + 16 | message address                     |  vector 1
                 | ...                                 |
                 +-------------------------------------+

                  63                           1     0
                 +-----+-------------------------+-----+
         pba + 0 |  63 | ...                     |  0  |  pending bits of vectors 63 to 0
         pba + 8 | 127 | ...                     |  64 |
                 +-----+-------------------------+-----+

    The client of the device (QEMU) keeps the table: what a driver writes there does not arrive here, and whoever does
    read it here finds zeros. Pending bits are what the device knows.

    Source: PCI Express Base 5.0, section 7.7.2.

    Attributes:
        vectors: how many.
        bar: the BAR in which both lie; there may be other registers around them.
        table: offset of the table in the BAR.
        pba: offset of the pending bit array.

    Raises:
        ValueError: this cannot be said in an MSI-X capability, or the two overlap.
    """

    vectors: int
    bar: int
    table: int
    pba: int

    def __post_init__(self) -> None:
        if not 1 <= self.vectors <= MAX_VECTORS:
            raise ValueError(f"{self.vectors} MSI-X vectors: between 1 and {MAX_VECTORS} are possible")
        if self.table % _ALIGNMENT or self.pba % _ALIGNMENT:
            raise ValueError(f"MSI-X table at {self.table:#x}, pending bits at {self.pba:#x}: no multiples of 8")
        if self.table < self.pba + self._pba_size and self.pba < self.table + self._table_size:
            raise ValueError(
                f"MSI-X table at {self.table:#x} and pending bits at {self.pba:#x} of {self.vectors} vectors overlap"
            )

    @property
    def _table_size(self) -> int:
        return _ENTRY * self.vectors

    @property
    def _pba_size(self) -> int:
        return -(-self.vectors // 64) * 8

    @property
    def end(self) -> int:
        """The first offset in the BAR behind both."""
        return max(self.table + self._table_size, self.pba + self._pba_size)

    def read(self, offset: int, beneath: bytes, pending: Callable[[int], bool]) -> bytes:
        """What software reads in the BAR.

        Args:
            offset: where.
            beneath: what other registers of the BAR say there, as many bytes as are read.
            pending: whether a vector is pending.
        """
        image = bytearray(beneath)
        bits = sum(1 << vector for vector in range(self.vectors) if pending(vector))
        for start, content in (
            (self.table, bytes(self._table_size)),
            (self.pba, bits.to_bytes(self._pba_size, "little")),
        ):
            first, last = max(start, offset), min(start + len(content), offset + len(image))
            if first < last:
                image[first - offset : last - offset] = content[first - start : last - start]
        return bytes(image)
