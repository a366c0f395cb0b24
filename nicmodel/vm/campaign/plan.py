"""A campaign's file, and the cells that it means.

command = "conform --kernel {kernel} --weather {seed} --faults none --json {result}"
timeout = 900                       # seconds that a cell may take

[axes]                              # a cell for each combination of their values
kernel = ["bookworm", "trixie-backports"]
seed = { first = 1, last = 20 }     # whole numbers

[[leave-out]]                       # combinations that make no sense
kernel = "bookworm"
seed = ["19", "20"]

[files]                             # what a worker is given besides: a file, or a folder
gve = "gve.ko"                      # {gve}, in the command or in a value, is where it has it
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import re
import shlex
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nicmodel import toml_text
from nicmodel.nearest import did_you_mean
from nicmodel.vm.errors import VmError
from nicmodel.vm.saved import read_bounded

#: Cells of a campaign, bytes of its file, and of what it gives to its workers.
MAX_CELLS, MAX_TEXT, MAX_FILES = 100_000, 1 << 20, 64 << 20
#: Seconds that a cell may take: unless the file says so, and at most.
TIMEOUT, MAX_TIMEOUT = 900.0, 86_400.0

#: What stands in a command for a file that the command may write its result to, as JSON.
RESULT = "result"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}", re.ASCII)
_PLACE = re.compile(r"\{([^{}]*)\}")
_KEYS = ("command", "timeout", "axes", "leave-out", "files")


class PlanError(VmError):
    """A campaign's file does not say what to do; the text says where."""


@dataclass(frozen=True)
class Cell:
    """One run of the command.

    Attributes:
        values: By axis.
        words: Of the command, with the values; ``{result}`` and ``{FILE}`` are still in them.
        timeout: Seconds that it may take.
        key: What tells it from all others: of what is run, and of what with.
    """

    values: Mapping[str, str]
    words: tuple[str, ...]
    timeout: float
    key: str

    @property
    def name(self) -> str:
        """For people: the values."""
        return ", ".join(f"{axis} {value}" for axis, value in self.values.items()) or shlex.join(self.words)


@dataclass(frozen=True)
class File:
    """What a worker is given.

    Attributes:
        name: Of the file or the folder itself.
        content: The file's; a folder's is an archive (tar).
        is_folder: Which of the two it is.
    """

    name: str
    content: bytes
    is_folder: bool


@dataclass(frozen=True)
class Plan:
    """What a campaign's file says.

    Attributes:
        command: The words of the command, without ``nicmodel``.
        axes: Values by axis, in order.
        left_out: Combinations, as values by axis.
        files: What workers are given, by the name that it has in the command.
        timeout: Seconds that a cell may take.
    """

    command: tuple[str, ...]
    axes: Mapping[str, tuple[str, ...]]
    left_out: tuple[Mapping[str, frozenset[str]], ...]
    files: Mapping[str, File]
    timeout: float

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a campaign's file; its files are looked for beside it.

        Raises:
            PlanError: It cannot be read, or does not say what to do.
        """
        try:
            text = read_bounded(path, MAX_TEXT)
        except VmError as error:
            raise PlanError(str(error)) from None
        try:
            found = toml_text.loads(text.decode())
        except ValueError as error:
            raise PlanError(f"{path}: {error}") from None
        try:
            return cls._of(found, path.parent)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None

    @classmethod
    def _of(cls, found: dict[str, Any], folder: Path) -> Self:
        for name in found:
            if name not in _KEYS:
                raise PlanError(f"there is no {name!r} in a campaign{did_you_mean(name, _KEYS)}")
        command = found.get("command")
        if not isinstance(command, str) or not command.strip():
            raise PlanError('command = "..." is missing: what each cell runs, such as "conform --weather {seed}"')
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            raise PlanError(f"command: {error}") from None
        timeout = found.get("timeout", TIMEOUT)
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= MAX_TIMEOUT:
            raise PlanError(f"timeout is a number of seconds, {MAX_TIMEOUT:,.0f} at most")
        axes = {name: _values(name, value) for name, value in _table(found, "axes").items()}
        files = _files(_table(found, "files"), folder)
        for name in (*axes, *files):
            if not _NAME.fullmatch(name) or name == RESULT or (name in axes and name in files):
                raise PlanError(f"{name!r} cannot be the name of an axis or a file: one word, once, not {RESULT!r}")
        in_command = _places(words, {*axes, *files, RESULT}, "the name of an axis or of a file")
        in_values = _places(itertools.chain(*axes.values()), {*files, RESULT}, "the name of a file")
        for name in (*axes, *files):
            if name not in in_command and not (name in files and name in in_values):
                raise PlanError(f"{name} is not in the command: {{{name}}} would be its place there")
        plan = cls(words, axes, _left_out(found.get("leave-out", []), axes), files, float(timeout))
        if (count := math.prod(map(len, axes.values()))) > MAX_CELLS:
            raise PlanError(f"its axes make {count:,} combinations: {MAX_CELLS:,} at most")
        return plan

    def cells(self) -> Iterator[Cell]:
        """All of them; the last axis changes first."""
        contents = {name: hashlib.sha256(file.content).hexdigest() for name, file in self.files.items()}
        for combination in itertools.product(*self.axes.values()):
            values = dict(zip(self.axes, combination, strict=True))
            if any(all(values[axis] in out for axis, out in one.items()) for one in self.left_out):
                continue
            words = tuple(word for place in self.command for word in _filled(place, values))
            identity = json.dumps([words, values, contents], sort_keys=True)
            yield Cell(values, words, self.timeout, hashlib.sha256(identity.encode()).hexdigest()[:32])


def _places(texts: Iterable[str], known: set[str], what: str) -> set[str]:
    """Names in braces; each has to be a known one."""
    named = set(_PLACE.findall(" ".join(texts)))
    for name in sorted(named - known):
        raise PlanError(f"{{{name}}} is not {what}{did_you_mean(name, known)}")
    return named


def _filled(word: str, values: Mapping[str, str]) -> list[str]:
    """A word of the command with the values; one that is nothing but an axis may become several words, or none."""
    alone = _PLACE.fullmatch(word)
    if alone and alone[1] in values:
        return shlex.split(values[alone[1]])
    return [_PLACE.sub(lambda place: values.get(place[1], place[0]), word)]


def _table(found: dict[str, Any], name: str) -> dict[str, Any]:
    table = found.get(name, {})
    if not isinstance(table, dict):
        raise PlanError(f"[{name}] is a table")
    return table


def _values(axis: str, value: Any) -> tuple[str, ...]:
    """Of an axis: strings or whole numbers, or the first and the last of these."""
    if isinstance(value, dict):
        first, last = value.get("first"), value.get("last")
        if value.keys() == {"first", "last"} and type(first) is type(last) is int and 0 <= last - first < MAX_CELLS:
            return tuple(map(str, range(first, last + 1)))
        raise PlanError(f"axes.{axis}: a range is {{ first = 1, last = 20 }}, {MAX_CELLS:,} numbers at most")
    if not isinstance(value, list) or not value:
        raise PlanError(f"axes.{axis}: values are a list, and not an empty one")
    for one in value:
        if isinstance(one, bool) or not isinstance(one, str | int):
            raise PlanError(f"axes.{axis}: {one!r} is neither a string nor a whole number")
        try:
            shlex.split(str(one))
        except ValueError as error:
            raise PlanError(f"axes.{axis}: {one!r}: {error}") from None
    values = tuple(map(str, value))
    if len(set(values)) < len(values):
        raise PlanError(f"axes.{axis}: a value is there twice")
    return values


def _left_out(found: Any, axes: Mapping[str, tuple[str, ...]]) -> tuple[Mapping[str, frozenset[str]], ...]:
    if not isinstance(found, list) or not all(isinstance(one, dict) and one for one in found):
        raise PlanError("[[leave-out]] has values by axis")
    combinations = []
    for one in found:
        combination = {}
        for axis, value in one.items():
            if axis not in axes:
                raise PlanError(f"leave-out: there is no axis {axis!r}{did_you_mean(axis, axes)}")
            values = frozenset(map(str, value if isinstance(value, list) else [value]))
            for missing in sorted(values - set(axes[axis])):
                raise PlanError(f"leave-out: axis {axis} has no {missing!r}{did_you_mean(missing, axes[axis])}")
            combination[axis] = values
        combinations.append(combination)
    return tuple(combinations)


def _files(table: dict[str, Any], folder: Path) -> dict[str, File]:
    files, room = {}, MAX_FILES
    for name, value in table.items():
        if not isinstance(value, str):
            raise PlanError(f"files.{name} is the path of a file or of a folder")
        path = (folder / value).resolve()
        try:
            if path.is_dir():
                content = _archive(path, room)
            else:
                with path.open("rb") as file:
                    content = file.read(room + 1)
        except OSError as error:
            raise PlanError(f"files.{name}: {error.filename}: {error.strerror}") from None
        room -= len(content)
        if room < 0:
            raise PlanError(_TOO_MUCH)
        files[name] = File(path.name or "folder", content, path.is_dir())
    return files


_TOO_MUCH = f"files are more than {MAX_FILES >> 20} MiB: workers are given drivers, not systems"


def _archive(folder: Path, room: int) -> bytes:
    """A folder's files; the same for the same files, whenever they were written."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            if not path.is_file():
                continue
            member = tarfile.TarInfo(str(path.relative_to(folder)))
            member.size = path.stat().st_size
            if written.tell() + member.size > room:
                raise PlanError(_TOO_MUCH)
            with path.open("rb") as file:
                archive.addfile(member, file)
    return written.getvalue()
