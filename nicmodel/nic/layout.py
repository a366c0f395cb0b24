"""How structures are declared: once, for the device, the driver in Python, the decoder and the tests alike.

Structures of whole bytes (commands, statistics) are numpy structured types. Descriptors with bit fields are a
`Layout`: a size and named `Bits`. Compiled code takes word numbers and shifts out of these objects as constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Bits:
    """A field of a little-endian descriptor: `width` bits from bit `bit` (0 = least significant bit of byte 0)."""

    bit: int
    width: int

    @property
    def word(self) -> int:
        """Number of the 64-bit word that holds the field."""
        return self.bit // 64

    @property
    def shift(self) -> int:
        """Place of the field's lowest bit in its 64-bit word."""
        return self.bit % 64

    @property
    def mask(self) -> int:
        """The field's ones, not shifted."""
        return (1 << self.width) - 1

    def get(self, raw: bytes) -> int:
        """The field's value in the descriptor `raw`."""
        return int.from_bytes(raw, "little") >> self.bit & self.mask

    def of(self, words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The field's values in many descriptors, shape (n, words); shape (n,)."""
        return words[:, self.word] >> np.uint64(self.shift) & np.uint64(self.mask)

    def counts(self, words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """The same of a field of less than 64 bits, as numbers to calculate with."""
        return self.of(words).astype(np.int64)

    def put(self, value: int) -> int:
        """`value` at the field's place in the descriptor seen as one integer.

        Raises:
            ValueError: the value has more bits than the field.
        """
        if not 0 <= value <= self.mask:
            raise ValueError(f"{value} does not fit {self.width} bits")
        return value << self.bit


def at(byte: int, low: int, width: int) -> Bits:
    """A field given as the contract's tables give it: byte offset and lowest bit counted from that byte."""
    return Bits(byte * 8 + low, width)


class Layout:
    """A descriptor of `size` bytes with named bit fields."""

    def __init__(self, name: str, size: int, **fields: Bits) -> None:
        self.name = name
        self.size = size
        self.fields = fields
        taken = 0
        for field, bits in fields.items():
            ones = bits.mask << bits.bit
            if bits.bit + bits.width > size * 8 or bits.shift + bits.width > 64 or taken & ones:
                raise ValueError(f"{name}.{field} leaves the descriptor, crosses a word or overlaps another field")
            taken |= ones
        #: Bits that belong to no field, of the descriptor seen as one integer.
        self.reserved = ~taken & (1 << size * 8) - 1

    def __getattr__(self, name: str) -> Bits:
        try:
            return self.__dict__["fields"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"{self.__dict__.get('name')} has no field {name}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def encode(self, **values: int) -> bytes:
        """The descriptor's bytes; fields that are not named are 0."""
        return sum(self.fields[name].put(value) for name, value in values.items()).to_bytes(self.size, "little")

    def decode(self, raw: bytes) -> dict[str, int]:
        """All fields by name."""
        return {name: bits.get(raw) for name, bits in self.fields.items()}


#: How a structure is declared: with bit fields, or as a record of whole bytes.
Form = Layout | np.dtype[np.void]


def size_of(form: Form) -> int:
    """Bytes of a structure."""
    return form.size if isinstance(form, Layout) else form.itemsize


def record(*fields: tuple[Any, ...]) -> np.dtype[np.void]:
    """A packed structure of whole bytes."""
    return np.dtype(list(fields), align=False)


def explain(value: np.void) -> dict[str, Any]:
    """A record's fields by name as plain Python values, for logs and traces: numbers, text, bytes in hex, records."""
    return {name: _plain(value[name]) for name in value.dtype.names or ()}


def _plain(value: Any) -> Any:
    if value.dtype.names:
        return explain(value)
    if value.shape:
        return bytes(value).hex()
    return value.item().decode("latin1") if value.dtype.char == "S" else value.item()
