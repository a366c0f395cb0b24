"""Which line of source each instruction of a module comes from: DWARF, of the module's file or of its debug symbols.

Code that was inlined belongs to the line where it is written.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nicmodel.vm.coverage.module import R_X86_64_64, RELA, Module, sound
from nicmodel.vm.errors import VmError

#: Code that is no part of the module's for us (see `module.py`) gets places from here on.
_ELSEWHERE = 1 << 40


@dataclass(frozen=True)
class Lines:
    """A table of lines, in no order.

    Attributes:
        files: paths of sources, as the compiler was given them; relative to the kernel's for what is built with it.
        own: which of them are the module's own: beside what was compiled, and not a header of the kernel's.
        place: where an instruction begins, in the module's code; int64.
        file: index in `files`, int64, as long.
        line: int64, as long.
    """

    files: tuple[str, ...]
    own: tuple[bool, ...]
    place: NDArray[np.int64]
    file: NDArray[np.int64]
    line: NDArray[np.int64]


def has_lines(module: Module) -> bool:
    """Whether a module's file has a table of lines."""
    return module.section(".debug_line") is not None


def read_lines(module: Module) -> Lines:
    """The lines of a module, from its file or from that of its debug symbols.

    Raises:
        VmError: there is no table of lines, or it cannot be read.
    """
    from elftools.elf.elffile import ELFFile

    if not has_lines(module):
        raise VmError(f"{module.name} has no table of lines: compile it with -g")
    with sound(f"the table of lines of {module.name} cannot be read"):
        return _read(ELFFile(io.BytesIO(_relocated(module))).get_dwarf_info(relocate_dwarf_sections=False), module)


def _relocated(module: Module) -> bytes:
    """The file with addresses in its debug information: places in the module's code. The library would take minutes."""
    content = np.frombuffer(module.content, np.uint8).copy()
    values = module.symbol_values(_ELSEWHERE)
    for section, target in module.relocations():
        if not target.name.startswith(".debug_"):
            continue
        if target["sh_flags"] & 0x800:  # SHF_COMPRESSED
            raise VmError(f"{module.name}: its debug information is compressed: objcopy --decompress-debug-sections")
        entries = np.frombuffer(section.data(), RELA)
        value = values[entries["info"] >> 32] + entries["addend"]
        kinds = entries["info"] & 0xFFFF_FFFF
        start = target["sh_offset"]
        for size, chosen in ((8, kinds == R_X86_64_64), (4, kinds != R_X86_64_64)):
            at = start + entries["offset"][chosen].astype(np.int64)[:, None] + np.arange(size)
            content[at] = value[chosen].astype("<i8").view(np.uint8).reshape(-1, 8)[:, :size]
    return content.tobytes()


def _read(dwarf: object, module: Module) -> Lines:
    numbers: dict[str, int] = {}
    folders: set[str] = set()
    rows: list[tuple[int, int, int]] = []
    for unit in dwarf.iter_CUs():  # type: ignore[attr-defined]
        program = dwarf.line_program_for_CU(unit)  # type: ignore[attr-defined]
        if program is None:
            continue
        top = unit.get_top_DIE()
        built_in = _text(top.attributes["DW_AT_comp_dir"].value)
        files = _files(program, built_in)
        before = len(rows)
        for entry in program.get_entries():
            state = entry.state
            if state is None or state.end_sequence or not state.line or not 0 <= state.address < len(module.text):
                continue
            path = files[state.file - (program["version"] < 5)]
            rows.append((state.address, numbers.setdefault(path, len(numbers)), state.line))
        if len(rows) > before:
            folders.add(_home(_text(top.attributes["DW_AT_name"].value), files))
    table = np.array(rows, np.int64).reshape(-1, 3)
    own = tuple(os.path.dirname(path) in folders for path in numbers)
    return Lines(tuple(numbers), own, table[:, 0], table[:, 1], table[:, 2])


def _home(name: str, files: Sequence[str]) -> str:
    """The folder of what was compiled: its name may be relative to where that was done, those of files may not."""
    same = [file for file in files if os.path.basename(file) == os.path.basename(name)]
    return os.path.dirname(same[0] if same else name)


def _files(program: object, built_in: str) -> list[str]:
    """Paths by number. Up to DWARF 4 numbers begin at 1, and folder 0 is the one that it was built in."""
    old = program["version"] < 5  # type: ignore[index]
    folders = [_text(name) for name in program["include_directory"]]  # type: ignore[index]
    if old:
        folders.insert(0, built_in)
    return [
        _tidy(os.path.join(folders[entry["dir_index"]], _text(entry["name"])), built_in)
        for entry in program["file_entry"]  # type: ignore[index]
    ]


def _tidy(path: str, built_in: str) -> str:
    """A path without the folder that Debian has unpacked the kernel in: it builds in debian/build below that."""
    root, found, _ = built_in.partition("/debian/build/")
    path = os.path.normpath(path)
    return path.removeprefix(f"{root}/") if found else path


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
