"""Why lines of a driver were never reached: a file that names each of them, and its check against what has run.

The file is TOML. It says which kinds of reasons there are, and for each whether a device can cause such a line; then it
has excerpts of the driver's functions, in which the lines that were not reached begin with ``>``:

    module = "gve"
    release = "7.3"
    least = 95

    [kinds.memory]
    device = false
    why = "The kernel has no memory left."

    [[unreached]]
    function = "gve_alloc_counter_array"
    kind = "memory"
    code = '''
        if (!priv->counter_array)
    >       return -ENOMEM;
    '''

An excerpt is looked for in its function by its text, without white space at the ends of lines and without empty lines,
and has to be there once: so the file holds for other patch levels of the driver, too. Several excerpts of a function
are parted by a line ``...``; without `code` the whole function is meant. Of a kind with `chance`, it is no mistake if
a run reaches a line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nicmodel import toml_text
from nicmodel.vm.coverage.report import Report, Share
from nicmodel.vm.errors import VmError
from nicmodel.vm.saved import read_bounded

#: A file of more bytes is none of these.
_LARGEST = 1 << 22
_MARK, _PARTS = ">", "..."

Place = tuple[str, int]
"""A source file, as the table of lines names it, and a line."""


@dataclass(frozen=True)
class Kind:
    """A kind of reasons.

    Attributes:
        name: what excerpts call it.
        device: whether a device can cause such a line.
        why: what it says, in a sentence.
        chance: whether some runs reach such a line.
    """

    name: str
    device: bool
    why: str
    chance: bool = False


@dataclass(frozen=True)
class Excerpt:
    """Lines of a function for which there is a reason; all of them where `code` is None."""

    function: str
    kind: Kind
    code: str | None


@dataclass(frozen=True)
class Reasons:
    """The content of a file.

    Attributes:
        module: of which module.
        release: of which kernels: the beginning of what `uname -r` prints there.
        least: how many of 100 lines that a device can cause have to be reached.
        kinds: by name.
        excerpts: in the order of the file.
    """

    module: str
    release: str
    least: float
    kinds: Mapping[str, Kind]
    excerpts: Sequence[Excerpt]

    @classmethod
    def load(cls, path: Path) -> Reasons:
        """From a file.

        Raises:
            VmError: there is none, or it is not as it should be.
        """
        try:
            return cls.parse(read_bounded(path, _LARGEST).decode())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise VmError(f"{path} is no file of reasons: {type(error).__name__}: {error}") from None

    @classmethod
    def parse(cls, text: str) -> Reasons:
        """From its text; ValueError, KeyError, TypeError or AttributeError if it is not as it should be."""
        found = toml_text.loads(text)
        _only(found, "module", "release", "least", "kinds", "unreached")
        kinds = {}
        for name, about in found["kinds"].items():
            _only(about, "device", "why", "chance")
            chance = _a(bool, about.get("chance", False))
            kinds[name] = Kind(name, _a(bool, about["device"]), _a(str, about["why"]), chance)
        excerpts = []
        for about in found.get("unreached", []):
            _only(about, "function", "kind", "code")
            if about["kind"] not in kinds:
                raise ValueError(f"no kind is called {about['kind']!r}")
            code = about.get("code")
            functions = about["function"] if isinstance(about["function"], list) else [about["function"]]
            if len(functions) > 1 and code is not None:
                raise ValueError("an excerpt is of one function")
            for part in (
                [None] if code is None else re.split(rf"^\s*{re.escape(_PARTS)}\s*$", _a(str, code), flags=re.M)
            ):
                excerpts += [Excerpt(_a(str, function), kinds[about["kind"]], part) for function in functions]
        least = found["least"]
        if type(least) not in (int, float) or not 0 <= least <= 100:
            raise ValueError(f"{least!r} is no percentage")
        return cls(_a(str, found["module"]), _a(str, found["release"]), least, kinds, excerpts)

    def is_about(self, name: str, release: str) -> bool:
        """Whether they are about a module of a kernel."""
        return name == self.module and (release == self.release or release.startswith(f"{self.release}."))


@dataclass(frozen=True)
class Check:
    """What comes of holding reasons against what has run.

    Attributes:
        unexplained: lines that were not reached, and have no reason.
        wrong: sentences about reasons that do not hold.
        by_kind: lines of each kind that were not reached.
        by_file: of the lines that a device can cause, how many were reached, by source file.
        least: how many of 100 have to be.
    """

    unexplained: Sequence[Place]
    wrong: Sequence[str]
    by_kind: Mapping[str, int]
    by_file: Mapping[str, Share]
    least: float

    @property
    def total(self) -> Share:
        """Of all the lines that a device can cause."""
        return sum(self.by_file.values(), Share(0, 0))

    @property
    def enough(self) -> bool:
        """Whether as many were reached as have to be."""
        return 100 * self.total.ran >= self.least * self.total.total

    @property
    def passed(self) -> bool:
        """Whether each line that was not reached has a reason that holds, and enough were reached."""
        return self.enough and not self.unexplained and not self.wrong


def check(report: Report, texts: Mapping[str, str], reasons: Reasons) -> Check:
    """Hold reasons against what has run.

    Args:
        report: what has run; its lines are known.
        texts: the module's sources, by the names that the report has for them.
        reasons: what is said of lines that have not.

    Raises:
        VmError: a source is missing.
    """
    missing = [file for file in report.source if file not in texts]
    if missing:
        raise VmError(f"the source of {missing[0]} is not here: --fetch gets Debian's, --source names a folder")
    counts = {(file, line): count for file, lines in report.source.items() for line, count in lines.items()}
    functions = _functions(texts)
    given: dict[Place, Kind] = {}
    wrong = []
    for excerpt in reasons.excerpts:
        try:
            places = _places(excerpt, functions)
        except LookupError as error:
            wrong.append(str(error))
            continue
        places = [place for place in places if place in counts]
        if not places:
            wrong.append(f"{excerpt.function}: no code was made of what is marked in {_first(excerpt)}")
        for place in places:
            if given.setdefault(place, excerpt.kind) is not excerpt.kind:
                wrong.append(f"{_named(place)} has two reasons, {given[place].name} and {excerpt.kind.name}")
    wrong += [
        f"{_named(place)} was reached, and has a reason not to be ({kind.name}): {_text(place, texts)}"
        for place, kind in sorted(given.items())
        if counts[place] and not kind.chance
    ]
    by_kind = dict.fromkeys(reasons.kinds, 0)
    by_file: dict[str, Share] = {}
    unexplained = []
    for place, count in sorted(counts.items()):
        kind = None if count else given.get(place)
        if kind:
            by_kind[kind.name] += 1
        elif not count:
            unexplained.append(place)
        share = Share(int(count > 0), int(kind is None or kind.device))
        by_file[place[0]] = by_file.get(place[0], Share(0, 0)) + share
    return Check(unexplained, wrong, by_kind, by_file, reasons.least)


def _functions(texts: Mapping[str, str]) -> dict[str, list[tuple[str, int, list[str]]]]:
    """Functions by name: file, first line and lines; a name may be that of several.

    By the kernel's style (Documentation/process/coding-style.rst): a body's braces are in the first column.
    """
    found: dict[str, list[tuple[str, int, list[str]]]] = {}
    for file, text in texts.items():
        lines = text.splitlines()
        for opening, line in enumerate(lines):
            if line.rstrip() != "{":
                continue
            first = opening
            while (
                first and lines[first - 1].strip() and lines[first - 1][0] not in "}/#" and lines[first - 1][-1] != ";"
            ):
                first -= 1
            head = re.sub(r"__attribute__\s*\(\(.*?\)\)", "", " ".join(lines[first:opening]))
            name = re.search(r"(\w+)\s*\(", head)
            closing = next((at for at in range(opening, len(lines)) if lines[at].rstrip() == "}"), None)
            if name and closing is not None:
                found.setdefault(name[1], []).append((file, first + 1, lines[first : closing + 1]))
    return found


def _places(excerpt: Excerpt, functions: Mapping[str, list[tuple[str, int, list[str]]]]) -> list[Place]:
    """The lines that an excerpt marks.

    Raises:
        LookupError: it is nowhere, or at several places.
    """
    if excerpt.function not in functions:
        raise LookupError(f"there is no function {excerpt.function} any more")
    if excerpt.code is None:
        return [
            (file, first + number) for file, first, lines in functions[excerpt.function] for number in range(len(lines))
        ]
    wanted = [line.strip() for line in excerpt.code.splitlines() if line.strip()]
    marked = [line.startswith(_MARK) for line in wanted]
    wanted = [line.removeprefix(_MARK).strip() for line in wanted]
    found = []
    for file, first, lines in functions[excerpt.function]:
        present = [(first + number, line.strip()) for number, line in enumerate(lines) if line.strip()]
        for at in range(len(present) - len(wanted) + 1):
            inside = present[at : at + len(wanted)]
            if wanted and [text for _, text in inside] == wanted:
                found.append([(file, number) for (number, _), mark in zip(inside, marked, strict=True) if mark])
    if len(found) != 1:
        where = "at several places of" if found else "not in"
        raise LookupError(f"{_first(excerpt)} is {where} {excerpt.function}")
    return found[0]


def _first(excerpt: Excerpt) -> str:
    """What an excerpt begins with, or what is marked first in it, for people."""
    lines = [line.strip() for line in (excerpt.code or "").splitlines() if line.strip()]
    marked = [line.removeprefix(_MARK).strip() for line in lines if line.startswith(_MARK)]
    return repr((marked or lines or ["all of it"])[0])


def _named(place: Place) -> str:
    return f"{place[0].rpartition('/')[2]}:{place[1]}"


def _text(place: Place, texts: Mapping[str, str]) -> str:
    return texts[place[0]].splitlines()[place[1] - 1].strip()


def _only(table: Mapping[str, Any], *names: str) -> None:
    for name in table:
        if name not in names:
            raise ValueError(f"{name!r} means nothing here")


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{value!r} is no {kind.__name__}")
    return value
