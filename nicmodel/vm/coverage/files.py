"""Where the files of modules are: the ones that ran, their debug symbols, their source."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from nicmodel.cache import by_last_use, cache_dir
from nicmodel.vm import needs
from nicmodel.vm.coverage.data import Recorded
from nicmodel.vm.coverage.lines import Lines, has_lines, read_lines
from nicmodel.vm.coverage.module import Module
from nicmodel.vm.errors import VmError
from nicmodel.vm.kernel import KERNELS, Kernel, module_name
from nicmodel.vm.packages import obtain_file, obtained, write_whole
from nicmodel.vm.progress import step
from nicmodel.vm.tools import source_archive, source_package

T = TypeVar("T")

DRIVERS = tuple(need.module for need in needs.DRIVERS.values())
"""The drivers of the NICs that nicmodel has, by the names of their modules."""

KEPT = 40
"""How many modules' files the cache keeps; those that were not used for longest go."""


#: Names of what the cache keeps of a module, each in a folder that is called as its build id.
_MODULE, _SYMBOLS, _SOURCE = "module.ko", "symbols.ko", "source"
#: Sources that may be shown: a path in a module's file may be any.
_SOURCES = (".c", ".h", ".S", ".rs", ".inc")


def _folder() -> Path:
    return cache_dir() / "coverage"


def of_kernel(kernel: Kernel, name: str) -> Module | None:
    """A module of a kernel's, by its name; None if it has none of this name."""
    found = kernel.modules.get(module_name(name))
    return Module(found.content(), name) if found else None


def keep(module: Module) -> None:
    """Have a copy of its file in the cache, for reports: the kernel may move on, and a build overwrite it."""
    path = _folder() / module.build_id / _MODULE
    if not path.exists():
        write_whole(path, module.content)
    os.utime(path.parent)
    for old in by_last_use(_folder())[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def find(record: Recorded, named: Sequence[Path] = ()) -> Module:
    """The module that ran: one that the user names, the cache's copy, or the user's own where it was.

    Raises:
        VmError: none of them is the one.
    """
    for path in named:
        module = Module.read(path)
        if module.build_id == record.build_id:
            return module
    kept = _folder() / record.build_id / _MODULE
    for path in (kept, *([Path(record.file)] if record.file else [])):
        if path.exists() and (module := Module.read(path)).build_id == record.build_id:
            module.name = record.name
            return module
    raise VmError(
        f"the file of module {record.name} of Linux {record.release} is not in the cache any more: name it, "
        f"--module FILE. Its build id is {record.build_id}"
    )


def lines_of(module: Module, named: Sequence[Path] = ()) -> Lines | None:
    """The lines of a module: from its own file, one that the user names, or the cache; None if none has them.

    Raises:
        VmError: the table of lines cannot be read.
    """
    kept = _folder() / module.build_id / _SYMBOLS
    candidates = (module, *(Module.read(path) for path in (*named, kept) if path.exists()))
    for candidate in candidates:
        if candidate.build_id == module.build_id and has_lines(candidate):
            return read_lines(candidate)
    return None


def fetch_lines(record: Recorded, module: Module) -> Lines:
    """The lines of a module of Debian's, from the kernel's debug symbols: 350 MB are fetched, and one file kept.

    Raises:
        VmError: Debian has no symbols of this kernel (any more), or this is no kernel of Debian's.
    """
    place = f"usr/lib/debug/lib/modules/{record.release}/{_place(record)}"
    content = _of_any_suite(
        lambda suite: obtain_file(f"linux-image-{record.release}-dbg", suite, place),
        f"debug symbols of {record.name} of Linux {record.release}",
    )
    symbols = Module(content, f"the symbols of {record.name}")
    if symbols.build_id != module.build_id:
        raise VmError(f"Debian's debug symbols of Linux {record.release} are of another build than this {record.name}")
    lines = read_lines(symbols)
    write_whole(_folder() / record.build_id / _SYMBOLS, content)
    return lines


def _of_any_suite(fetch: Callable[[str], T], what: str) -> T:
    """What `fetch` finds in the first of Debian's suites that has it.

    Raises:
        VmError: None has.
    """
    why = ""
    for suite in dict.fromkeys(kernel.suite for kernel in KERNELS.values()):
        try:
            return fetch(suite)
        except VmError as error:
            why = str(error)
    raise VmError(f"no {what}: {why}")


def _place(record: Recorded) -> str:
    """Where a module is below the folder of its kernel, not compressed."""
    for kernel in (choice.find() for choice in KERNELS.values() if obtained(choice.packages)):
        if kernel.release == record.release and (found := kernel.modules.get(record.name)):
            return found.place
    raise VmError(
        f"Linux {record.release} is none of Debian's kernels in the cache: name a file with debug information, --module"
    )


def sources(record: Recorded, lines: Lines, folders: Sequence[Path] = ()) -> dict[str, str]:
    """The text of a module's own sources, as far as it is here, by the names that `lines` has for them.

    Args:
        record: the module.
        lines: its lines.
        folders: where the user says that they are: the kernel's source, or the module's own folder.
    """
    kept = _folder() / record.build_id / _SOURCE
    found = {}
    for file in _own(lines):
        candidates = [folder / name for folder in folders for name in (file.lstrip("/"), os.path.basename(file))]
        candidates += [Path(file)] if os.path.isabs(file) else [kept / file]
        for path in candidates:
            if path.suffix in _SOURCES and path.is_file():
                found[file] = path.read_text("utf-8", "replace")
                break
    return found


def fetch_sources(record: Recorded, lines: Lines) -> None:
    """Have the module's sources in the cache, from the kernel's, which is fetched (160 MB).

    Raises:
        VmError: Debian has no source of this kernel (any more).
    """
    wanted = {file for file in _own(lines) if not os.path.isabs(file)}
    version = re.match(r"\d+\.\d+", record.release)
    if not wanted or not version:
        return
    number = version[0]
    tree, package = _of_any_suite(lambda suite: source_package(number, suite), f"source of Linux {record.release}")
    # Releases of bookworm's kernels do not tell the third number: 6.1.0-50.
    release = re.match(r"\d+\.\d+\.[1-9]\d*", record.release)
    if release and not tree.versions[package].startswith(f"{release[0]}-"):
        raise VmError(f"Debian's {package} is {tree.versions[package]} now, and not of Linux {record.release}")
    target = _folder() / record.build_id / _SOURCE
    with (
        step("unpacking the driver's source"),
        lzma.open(source_archive(tree, package)) as content,
        tarfile.open(fileobj=content, mode="r|") as archive,
    ):
        for member in archive:
            name = os.path.normpath(member.name).partition("/")[2]
            if name in wanted and member.isfile() and (file := archive.extractfile(member)):
                write_whole(target / name, file.read())
                wanted.remove(name)
                if not wanted:
                    break


def _own(lines: Lines) -> list[str]:
    return [file for file, own in zip(lines.files, lines.own, strict=True) if own]
