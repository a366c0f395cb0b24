"""Tables and lines that fit the terminal: what has too many columns for it is put below one another."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from nicmodel.client.text import is_reserved, value_text

#: Characters between two columns of a table, with its box, and of a list of pairs; what such a list is indented by.
_GAP, _PAIRS_GAP, _INDENT = 3, 2, 2
#: Values that are longer than that have lines of their own.
_LONG = 24


def plain_table(*headings: str) -> Table:
    """An empty table without lines between columns; what is too wide for its column is continued below, not cut."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in headings:
        table.add_column(title, overflow="fold")
    return table


def wrapped(text: str) -> str:
    """Lines, wrapped at words if they go to a terminal; for other programs a line stays a line."""
    if sys.stdout is None or not sys.stdout.isatty():
        return text
    width = max(shutil.get_terminal_size().columns, 20)
    return "\n".join(_wrap(line, width) for line in text.split("\n"))


def _wrap(line: str, width: int) -> str:
    indent = " " * min(len(line) - len(line.lstrip()) + 4, width // 2)
    return "\n".join(textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False)) or line


def as_many_as_fit(console: Console, build: Callable[[int], RenderableType], count: int, height: int) -> RenderableType:
    """What `build` makes of as many of `count` things as `height` lines have room for, and of one at least."""
    if lines_of(console, build(count)) <= height:
        return build(count)
    low, high = 1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if lines_of(console, build(middle)) <= height else (low, middle)
    return build(low)


def lines_of(console: Console, what: RenderableType) -> int:
    """How many lines it takes."""
    return len(console.render_lines(what))


def heading(console: Console, text: str) -> None:
    """Print a heading, apart from what is above."""
    console.print()
    console.print(Text(text, style="bold"))


def pairs(console: Console, values: Mapping[str, Any]) -> None:
    """Print names and values, short ones side by side as there is room for; nothing of what is reserved."""
    cells = [(_title(name), _cell(name, value)) for name, value in values.items() if not is_reserved(name)]
    for chosen in ([one for one in cells if len(one[1]) <= _LONG], [one for one in cells if len(one[1]) > _LONG]):
        if chosen:
            _print_pairs(console, chosen)


def _print_pairs(console: Console, cells: Sequence[tuple[str, str]]) -> None:
    for abreast in (3, 2, 1):
        lines = [cells[first : first + abreast] for first in range(0, len(cells), abreast)]
        grid = Table.grid(padding=(0, _PAIRS_GAP, 0, 0), pad_edge=True)
        grid.add_column(width=0)
        width = _INDENT
        for column in range(abreast):
            there = [line[column] for line in lines if column < len(line)]
            width += sum(max((cell_len(pair[part]) for pair in there), default=0) + _PAIRS_GAP for part in (0, 1))
            grid.add_column(no_wrap=True)
            grid.add_column(overflow="fold")
        if width <= console.width:
            break
    for line in lines:
        grid.add_row("", *(text for pair in line for text in pair))
    console.print(grid)


def rows(console: Console, found: Sequence[Mapping[str, Any]], *, once: bool = False) -> None:
    """Print records that all have the same names, which become the headings.

    Columns that do not fit beside the others get a table of their own, with the first column before them.

    Args:
        console: where to print.
        found: the records; there is one at least.
        once: tell what is the same in all records once, below the table.
    """
    names = [name for name in found[0] if not is_reserved(name)]
    cells = {name: [_cell(name, row[name]) for row in found] for name in names}
    same = [name for name in names[1:] if len(set(cells[name])) == 1] if once else []
    first, *others = [name for name in names if name not in same]
    most = console.width // 2  # long text is wrapped
    widths = {name: min(most, max(map(cell_len, [*_title(name).split(), *cells[name]]))) + _GAP for name in names}

    chosen: list[str] = []
    while True:
        room = console.width - widths[first] - sum(widths[name] for name in chosen)
        if others and (not chosen or widths[others[0]] <= room):
            chosen.append(others.pop(0))
            continue
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for name in (first, *chosen):
            numbers = isinstance(found[0][name], int) and not isinstance(found[0][name], bool)
            table.add_column(_title(name).replace(" ", "\n"), justify="right" if numbers else "left",
                             no_wrap=widths[name] < most + _GAP, overflow="fold")  # fmt: skip
        for number in range(len(found)):
            table.add_row(*(cells[name][number] for name in (first, *chosen)))
        console.print(table)
        if not others:
            break
        console.print()
        chosen = []
    if same:
        told = ", ".join(f"{_title(name)} {cells[name][0]}" for name in same)
        console.print(Text(f"the same for all: {told}" if len(found) > 1 else told))


def _title(name: str) -> str:
    return name.replace("_", " ")


def _cell(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value_text(name, value)
