"""What coverage comes to: functions, basic blocks and lines of a module that ran, in total and by context."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nicmodel.vm.coverage.data import Block, Recorded
from nicmodel.vm.coverage.lines import Lines
from nicmodel.vm.coverage.module import Function, Module


@dataclass(frozen=True)
class Share:
    """How many of how many ran."""

    ran: int
    total: int

    def __add__(self, other: Share) -> Share:
        return Share(self.ran + other.ran, self.total + other.total)

    def __str__(self) -> str:
        return f"{self.ran}/{self.total}"

    @property
    def percent(self) -> str:
        """As text; 100 % only if all ran, and 0 % only if none did."""
        if not self.total:
            return ""
        percent = 100 * self.ran / self.total
        if 0 < self.ran < self.total:
            percent = min(max(percent, 0.1), 99.9)
        return f"{percent:.1f} %"


NOTHING = Share(0, 0)

BETWEEN = "(between tests)"
"""What the context "" is called, for people: code that ran in no test."""


@dataclass(frozen=True)
class FunctionReport:
    """What ran of a function.

    Attributes:
        function: it.
        file, line: where its source is; "" and 0 where lines are not known.
        calls: how often it was entered.
        blocks: basic blocks.
        lines: the module's own, those inlined into it included; `NOTHING` where lines are not known.
        missing: ranges of lines of `file`, first and last, that did not run.
    """

    function: Function
    file: str
    line: int
    calls: int
    blocks: Share
    lines: Share
    missing: tuple[tuple[int, int], ...]

    @property
    def reached(self) -> bool:
        """Whether any of it ran."""
        return bool(self.blocks.ran)

    @property
    def place(self) -> str:
        """Its source file, without folders, and line; empty where lines are not known."""
        return f"{self.file.rpartition('/')[2]}:{self.line}" if self.file else ""


@dataclass(frozen=True)
class Totals:
    """What ran of a module, or of one source file of it."""

    functions: Share
    blocks: Share
    lines: Share


@dataclass(frozen=True)
class ContextReport:
    """What ran in a context, and what ran in no other."""

    name: str
    functions: int
    blocks: int
    lines: int
    only_here: tuple[str, ...]


class Report:
    """What ran of one module.

    Args:
        record: what was recorded.
        module: the module's file, of the same build.
        lines: the lines of its source, if they are known.
        contexts: which contexts count; None: all.

    Attributes:
        contexts: those that there are, in the order in which they were recorded.
    """

    def __init__(
        self, record: Recorded, module: Module, lines: Lines | None, contexts: Iterable[str] | None = None
    ) -> None:
        self.record, self.module, self.lines = record, module, lines
        chosen = set(record.contexts if contexts is None else contexts)
        self.contexts = [name for name in record.contexts if name in chosen]

    @functools.cached_property
    def entered(self) -> NDArray[np.int64]:
        """How often each byte of the code ran."""
        total = np.zeros(len(self.module.text), np.int64)
        for name in self.contexts:
            total += self._count(self.record.contexts[name])
        return total

    def _count(self, entered: dict[Block, int]) -> NDArray[np.int64]:
        steps = np.zeros(len(self.module.text) + 1, np.int64)
        if entered:
            blocks = np.array([(begin, begin + size, count) for (begin, size), count in entered.items()], np.int64)
            np.add.at(steps, np.minimum(blocks[:, 0], len(steps) - 1), blocks[:, 2])
            np.subtract.at(steps, np.minimum(blocks[:, 1], len(steps) - 1), blocks[:, 2])
        return steps.cumsum()[:-1]

    @functools.cached_property
    def by_context(self) -> dict[str, NDArray[np.bool_]]:
        """Which bytes of the code ran, by context."""
        return {name: self._count(self.record.contexts[name]) > 0 for name in self.contexts}

    def missing_blocks(self, function: Function) -> list[int]:
        """Where the basic blocks of a function begin that did not run."""
        starts = self._starts(function)
        missing: list[int] = starts[self.entered[starts] == 0].tolist()
        return missing

    def _starts(self, function: Function) -> NDArray[np.int64]:
        """Where the basic blocks of a function begin."""
        starts = self.module.code.blocks[:, 0]
        return np.concatenate([starts[(starts >= begin) & (starts < end)] for begin, end in function.parts])

    @functools.cached_property
    def functions(self) -> list[FunctionReport]:
        """One for each function, in the order of the code."""
        ran = self.entered > 0
        found = []
        for function in self.module.functions:
            inside = self._starts(function)
            share = Share(int(ran[inside].sum()), len(inside))
            file, line, lines, missing = self._source(function)
            calls = int(self.entered[function.start])
            found.append(FunctionReport(function, file, line, calls, share, lines, missing))
        return found

    def _source(self, function: Function) -> tuple[str, int, Share, tuple[tuple[int, int], ...]]:
        """Where a function's source is, and what of its lines ran and did not."""
        if self.lines is None:
            return "", 0, NOTHING, ()
        rows = self._rows(function)
        table = self.lines
        first = rows[table.place[rows] == function.start]
        home = int(table.file[first[0]]) if len(first) else -1
        ran: dict[tuple[int, int], bool] = {}
        for row in rows[self._own[table.file[rows]]].tolist():
            key = int(table.file[row]), int(table.line[row])
            ran[key] = ran.get(key, False) or bool(self.entered[table.place[row]])
        missing = [line for (file, line), did in sorted(ran.items()) if file == home and not did]
        present = sorted(line for file, line in ran if file == home)
        share = Share(sum(ran.values()), len(ran))
        if home < 0:
            return "", 0, share, ()
        return table.files[home], int(table.line[first[0]]), share, ranges(missing, present)

    @functools.cached_property
    def _own(self) -> NDArray[np.bool_]:
        return np.array(self.lines.own if self.lines else (), np.bool_)

    @functools.cached_property
    def _order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self.lines
        order = np.argsort(self.lines.place, kind="stable")
        return order, self.lines.place[order]

    def _rows(self, function: Function) -> NDArray[np.int64]:
        """The rows of the table of lines that are about a function."""
        order, places = self._order
        return np.concatenate(
            [order[np.searchsorted(places, begin) : np.searchsorted(places, end)] for begin, end in function.parts]
        )

    @functools.cached_property
    def source(self) -> dict[str, dict[int, int]]:
        """How often each line ran, by source file; a line of several instructions as often as the one that ran most.

        The module's own files only. Empty where lines are not known.
        """
        found: dict[str, dict[int, int]] = {}
        table = self.lines
        if table is None:
            return found
        own = np.flatnonzero(self._own[table.file])
        keys = np.stack([table.file[own], table.line[own]], axis=1)
        unique, which = np.unique(keys, axis=0, return_inverse=True)
        most = np.zeros(len(unique), np.int64)
        np.maximum.at(most, which.reshape(-1), self.entered[table.place[own]])
        for (file, line), count in zip(unique.tolist(), most.tolist(), strict=True):
            found.setdefault(table.files[file], {})[line] = count
        return dict(sorted(found.items()))

    @functools.cached_property
    def contexts_of_lines(self) -> dict[str, dict[int, list[str]]]:
        """In which contexts each line ran, by source file."""
        found: dict[str, dict[int, list[str]]] = {}
        table = self.lines
        if table is None:
            return found
        own = self._own[table.file]
        for name, ran in self.by_context.items():
            rows = np.flatnonzero(own & ran[table.place])
            for file, line in sorted({*zip(table.file[rows].tolist(), table.line[rows].tolist(), strict=True)}):
                found.setdefault(table.files[file], {}).setdefault(line, []).append(name)
        return found

    @property
    def total(self) -> Totals:
        """Of the whole module."""
        lines = [Share(sum(map(bool, counts.values())), len(counts)) for counts in self.source.values()]
        return self._totals(self.functions, lines)

    @property
    def files(self) -> dict[str, Totals]:
        """By source file: functions and blocks where the function is, lines where they are written."""
        found = {}
        for file, counts in self.source.items():
            inside = [function for function in self.functions if function.file == file]
            found[file] = self._totals(inside, [Share(sum(map(bool, counts.values())), len(counts))])
        return found

    @staticmethod
    def _totals(functions: Sequence[FunctionReport], lines: Iterable[Share]) -> Totals:
        reached = Share(sum(function.reached for function in functions), len(functions))
        return Totals(reached, sum((function.blocks for function in functions), NOTHING), sum(lines, NOTHING))

    @functools.cached_property
    def by_test(self) -> list[ContextReport]:
        """One for each context, in the order in which they were recorded."""
        starts = self.module.code.blocks[:, 0]
        reached = {name: self._reached(ran) for name, ran in self.by_context.items()}
        found = []
        for name, ran in self.by_context.items():
            others: set[int] = set().union(*(numbers for other, numbers in reached.items() if other != name))
            only = sorted(reached[name] - others)
            lines = sum(name in names for file in self.contexts_of_lines.values() for names in file.values())
            names = tuple(self.module.functions[number].name for number in only)
            found.append(ContextReport(name, len(reached[name]), int(ran[starts].sum()), lines, names))
        return found

    def _reached(self, ran: NDArray[np.bool_]) -> set[int]:
        """Numbers of the functions of which any block ran."""
        blocks = self.module.code.blocks[:, 0]
        return {number for place in blocks[ran[blocks]].tolist() if (number := self._number(place)) is not None}

    @functools.cached_property
    def _parts(self) -> list[tuple[int, int, int]]:
        parts = [
            (begin, end, number)
            for number, function in enumerate(self.module.functions)
            for begin, end in function.parts
        ]
        return sorted(parts)

    def _number(self, place: int) -> int | None:
        """Of the function that an instruction belongs to."""
        at = bisect.bisect_right(self._parts, (place, 1 << 62, 0)) - 1
        if at >= 0 and self._parts[at][0] <= place < self._parts[at][1]:
            return self._parts[at][2]
        return None

    def tests_of(self, function: Function) -> dict[str, int]:
        """The contexts that reach a function, and how often each entered it."""
        found = {}
        for name, ran in self.by_context.items():
            if any(ran[begin:end].any() for begin, end in function.parts):
                found[name] = int(self._count(self.record.contexts[name])[function.start])
        return found


def ranges(chosen: Sequence[int], among: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """First and last of runs of numbers that follow each other in `among`; both are sorted."""
    numbers = {value: number for number, value in enumerate(among)}
    found: list[list[int]] = []
    for value in chosen:
        if found and numbers[value] == numbers[found[-1][1]] + 1:
            found[-1][1] = value
        else:
            found.append([value, value])
    return tuple((first, last) for first, last in found)


def lcov(reports: Iterable[Report]) -> str:
    """A tracefile of lcov's (geninfo(1), "TRACEFILE FORMAT"): functions and lines of the modules' own sources."""
    words = []
    for report in reports:
        for file, counts in report.source.items():
            inside = [function for function in report.functions if function.file == file]
            words += ["TN:", f"SF:{file}"]
            words += [f"FN:{function.line},{function.function.name}" for function in inside]
            words += [f"FNDA:{function.calls},{function.function.name}" for function in inside]
            words += [f"FNF:{len(inside)}", f"FNH:{sum(function.calls > 0 for function in inside)}"]
            words += [f"DA:{line},{count}" for line, count in sorted(counts.items())]
            words += [f"LF:{len(counts)}", f"LH:{sum(map(bool, counts.values()))}", "end_of_record"]
    return "".join(f"{word}\n" for word in words)
