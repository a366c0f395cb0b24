"""Diagrams of registers, commands and descriptors: boxes of bits, 32 to a row, as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

#: Pixels: of one bit, of the margin with the byte offsets, of a row, of the line of bit numbers.
_BIT, _MARGIN, _ROW, _NUMBERS = 22, 44, 34, 18
_COLUMNS = 32
#: Widths of a character of the two sizes of text, and the height of a line of the smaller one.
_LARGE, _SMALL, _LINE = 6.6, 5.6, 11
#: Rows of one field beyond which they are drawn as one.
_TALL = 2


@dataclass(frozen=True)
class Field:
    """A field to be drawn: its first bit and its width, counted from the start of the structure.

    In a little-endian structure bit 0 is the lowest bit of byte 0, in a big-endian one the highest.
    """

    name: str
    bit: int
    width: int


@dataclass(frozen=True)
class _Box:
    """A piece of a field in one row: columns from the left; `rows` more than 1 only for a whole row."""

    name: str
    column: int
    columns: int
    rows: int = 1

    @property
    def width(self) -> int:
        return self.columns * _BIT

    def lines(self) -> tuple[list[str], bool]:
        """The lines of its label, and whether they are upright (read from below)."""
        if len(self.name) * _LARGE <= self.width - 4:
            return [self.name], False
        wrapped = _wrap(self.name, int((self.width - 2) / _SMALL))
        if len(wrapped) <= _ROW // _LINE and max(map(len, wrapped)) * _SMALL <= self.width - 2:
            return wrapped, False
        longest = max(map(len, self.name.split("_")))
        fitting = max(1, (self.width - 2) // _LINE)
        for length in range(longest, len(self.name) + 1):
            wrapped = _wrap(self.name, length)
            if len(wrapped) <= fitting:
                return wrapped, True
        return [self.name], True

    def height(self) -> int:
        """Pixels that it needs."""
        lines, upright = self.lines()
        return int(max(map(len, lines)) * _SMALL) + 10 if upright else _ROW


def _wrap(name: str, length: int) -> list[str]:
    """A name in lines of at most `length` characters, broken behind underscores."""
    lines = [""]
    for word in name.replace("_", "_\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(word) > length:
            lines.append("")
        lines[-1] += word
    return lines


def _rows(fields: Iterable[Field], size: int, big_endian: bool) -> Iterator[tuple[int, int, list[_Box]]]:
    """First byte, rows taken, boxes of each row that is drawn; gaps between fields are boxes without a name."""
    owners: list[Field | None] = [None] * (-(-size * 8 // _COLUMNS) * _COLUMNS)
    for field in fields:
        owners[field.bit : field.bit + field.width] = [field] * field.width
    row, rows = 0, len(owners) // _COLUMNS
    while row < rows:
        here = owners[row * _COLUMNS : (row + 1) * _COLUMNS]
        taken = 1
        if all(owner is here[0] for owner in here):
            while row + taken < rows and owners[(row + taken) * _COLUMNS :][:_COLUMNS] == here:
                taken += 1
        boxes = []
        end = min(_COLUMNS, size * 8 - row * _COLUMNS)
        start = 0
        for column in range(1, end + 1):
            if column == end or here[column] is not here[start]:
                owner = here[start]
                left = start if big_endian else _COLUMNS - column
                boxes.append(_Box(owner.name if owner else "", left, column - start, min(taken, _TALL)))
                start = column
        yield row * 4, taken, boxes
        row += taken


def draw(fields: Iterable[Field], size: int, *, big_endian: bool, title: str) -> str:
    """An SVG of a structure of `size` bytes.

    Args:
        fields: its fields; they do not overlap. What is between them is drawn as reserved.
        size: bytes.
        big_endian: whether the first byte of a row is at its left.
        title: for those who cannot see it.
    """
    width = _MARGIN + _COLUMNS * _BIT + 2
    parts = [
        f'<text class="number" text-anchor="middle" x="{_MARGIN + (_COLUMNS - bit - 0.5) * _BIT:g}" y="12">{bit}</text>'
        for bit in range(_COLUMNS)
    ]
    top = _NUMBERS
    for byte, taken, boxes in _rows(fields, size, big_endian):
        height = max(box.height() for box in boxes) if taken == 1 else _ROW * min(taken, _TALL)
        last = f"–{byte + taken * 4 - 1}" if taken > 1 else ""
        parts.append(f'<text class="number" x="0" y="{top + 14}">{byte}{last}</text>')
        parts += (_box(box, top, height) for box in boxes)
        top += height
    return (
        f'<div class="bits"><svg viewBox="0 0 {width} {top + 2}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg></div>"
    )


def _box(box: _Box, top: int, height: int) -> str:
    left = _MARGIN + box.column * _BIT
    shape = "edge" if box.name else "reserved"
    rectangle = f'<rect class="{shape}" x="{left}" y="{top}" width="{box.width}" height="{height}"/>'
    if not box.name:
        return rectangle
    lines, upright = box.lines()
    small = upright or len(box.name) * _LARGE > box.width - 4
    step = _LINE if small else 14
    middle, centre = left + box.width / 2, top + height / 2
    texts = []
    for number, line in enumerate(lines):
        shift = (number - (len(lines) - 1) / 2) * step + 4
        turned = ""
        if upright:
            x, y = middle + shift - 0.5, centre
            turned = f' transform="rotate(-90 {x:g} {y:g})"'
        else:
            x, y = middle, centre + shift
        kind = "small" if small else "label"
        texts.append(f'<text class="{kind}" text-anchor="middle" x="{x:g}" y="{y:g}"{turned}>{escape(line)}</text>')
    return rectangle + "".join(texts)
