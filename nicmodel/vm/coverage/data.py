"""What has run of which modules, by contexts: the coverage file.

It is JSON: for each module its name, its build id, and the blocks of code that QEMU's emulator has made of it; for each
context (a test, for one) which of them were entered, and how often. A block here is what the emulator translates at
once, `[begin, size]` in bytes: they overlap where code is jumped into from several places. `report.py` makes
functions, basic blocks and lines of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nicmodel.vm.errors import VmError
from nicmodel.vm.packages import write_whole
from nicmodel.vm.saved import read_bounded

_VERSION = 1
#: A file of more bytes is none of these: a whole test suite's is a few megabytes.
_LARGEST = 1 << 30

Block = tuple[int, int]
"""Begin in the module's code, and size, in bytes."""


@dataclass
class Recorded:
    """What has run of one module.

    Attributes:
        name: the module's, such as "gve".
        build_id: its linker's, in hexadecimal digits: it stands for exactly this file.
        release: of the kernel that it was loaded into, as `uname -r` prints it.
        file: where it was found, if it is the user's own; else "".
        contexts: how often each block was entered, by context.
    """

    name: str
    build_id: str
    release: str
    file: str = ""
    contexts: dict[str, dict[Block, int]] = field(default_factory=dict)

    def add(self, context: str, entered: Mapping[Block, int]) -> None:
        """Count what was entered in a context, besides what is known of it."""
        if entered:
            counts = self.contexts.setdefault(context, {})
            for block, count in entered.items():
                counts[block] = counts.get(block, 0) + count


@dataclass
class Coverage:
    """What has run of modules; one that was built twice is two.

    Attributes:
        modules: by build id.
        lost: how many blocks were translated and not recorded, for want of room.
    """

    modules: dict[str, Recorded] = field(default_factory=dict)
    lost: int = 0

    def module(self, name: str, build_id: str, release: str, file: str = "") -> Recorded:
        """The record of a module; a new one if there is none."""
        return self.modules.setdefault(build_id, Recorded(name, build_id, release, file))

    def add(self, other: Coverage) -> None:
        """Take in what another one has. What both have in a context of the same name is added up."""
        self.lost += other.lost
        for one in other.modules.values():
            record = self.module(one.name, one.build_id, one.release, one.file)
            for context, entered in one.contexts.items():
                record.add(context, entered)

    def as_json(self) -> str:
        """The file's content."""
        modules = []
        for record in self.modules.values():
            blocks = sorted({block for entered in record.contexts.values() for block in entered})
            numbers = {block: number for number, block in enumerate(blocks)}
            contexts = {
                name: sorted([numbers[block], count] for block, count in entered.items())
                for name, entered in record.contexts.items()
            }
            about = {"name": record.name, "build_id": record.build_id, "release": record.release, "file": record.file}
            modules.append({**about, "blocks": blocks, "contexts": contexts})
        content = {"nicmodel coverage": _VERSION, "lost": self.lost, "modules": modules}
        return json.dumps(content, separators=(",", ":"))

    def save(self, path: Path) -> None:
        """Write the file, in one piece."""
        write_whole(path, self.as_json() + "\n")

    @classmethod
    def parse(cls, text: str | bytes, name: str) -> Coverage:
        """From the file's content; `name` is what messages call it.

        Raises:
            VmError: it is no coverage file, or damaged.
        """
        try:
            content = json.loads(text)
            version = content["nicmodel coverage"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise VmError(f"{name} is no coverage file: 'nicmodel vm --coverage' writes one") from None
        if version != _VERSION:
            raise VmError(f"{name} is of another version of nicmodel: its format is {version!r}, not {_VERSION}")
        try:
            found = cls(lost=_number(content["lost"]))
            for about in content["modules"]:
                words = [_word(about[key]) for key in ("name", "build_id", "release", "file")]
                record = found.module(*words)
                blocks = [(_number(begin), _number(size)) for begin, size in about["blocks"]]
                for context, entered in about["contexts"].items():
                    record.add(context, {blocks[_number(number)]: _number(count) for number, count in entered})
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise VmError(f"{name} is a damaged coverage file: {type(error).__name__}: {error}") from None
        return found

    @classmethod
    def load(cls, path: Path) -> Coverage:
        """From a file.

        Raises:
            VmError: there is none, it is no coverage file, or damaged.
        """
        return cls.parse(read_bounded(path, _LARGEST), str(path))


def merge(parts: Iterable[Coverage]) -> Coverage:
    """All of them together."""
    whole = Coverage()
    for part in parts:
        whole.add(part)
    return whole


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:  # sums of two are counts, too
        raise ValueError(f"{value!r} is no count")
    return int(value)


def _word(value: Any) -> str:
    if type(value) is not str:
        raise ValueError(f"{value!r} is no text")
    return value
