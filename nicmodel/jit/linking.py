"""From an object file of LLVM's to `MachineCode`: its sections side by side, and all that refers to them resolved.

The code is for x86-64, position-independent and of the small model (System V ABI, AMD64 supplement, section 4.4). What
lies outside is reached through a table of addresses behind the data, and called through jumps behind the code.
"""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Iterator
from typing import Any

from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection

from nicmodel.jit.machine_code import MachineCode

# Types of relocations.
_ADDRESS = 1  # R_X86_64_64
_RELATIVE = {2, 4}  # R_X86_64_PC32, R_X86_64_PLT32
_TO_TABLE = {9, 41, 42}  # R_X86_64_GOTPCREL, R_X86_64_GOTPCRELX, R_X86_64_REX_GOTPCRELX

_JUMP = b"\xff\x25"  # jmp *displacement(%rip)


class Unlinkable(Exception):
    """The object file has something that compiled code is not expected to have."""


def link(object_code: bytes, entry: str) -> MachineCode:
    """Link an object file.

    Args:
        object_code: a relocatable ELF file.
        entry: the name of the function that is to be called.

    Raises:
        Unlinkable: it has what this does not know.
    """
    return _Linker(ELFFile(io.BytesIO(object_code))).link(entry)


class _Linker:
    """Lays out one object file."""

    def __init__(self, file: ELFFile) -> None:
        self._sections = list(file.iter_sections())
        self._symbols = file.get_section_by_name(".symtab")
        self._memory = bytearray()
        #: Offsets in memory: of sections by their number, of common symbols, jumps and words of the table by name.
        self._places: dict[int, int] = {}
        self._common: dict[str, int] = {}
        self._jumps: dict[str, int] = {}
        self._table: dict[str, int] = {}
        self._outside: dict[str, list[int]] = {}
        self._inside: list[tuple[int, int]] = []

    def link(self, entry: str) -> MachineCode:
        """See `nicmodel.jit.linking.link`."""
        relocations = [
            (section["sh_info"], relocation)
            for section in self._sections
            if isinstance(section, RelocationSection) and self._is_loaded(self._sections[section["sh_info"]])
            for relocation in section.iter_relocations()
        ]
        for number, section in self._loaded():
            if section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR:
                self._places[number] = self._take(section.data(), section["sh_addralign"])
        for _, relocation in relocations:
            symbol = self._symbol(relocation)
            if relocation["r_info_type"] in _RELATIVE and symbol["st_shndx"] == "SHN_UNDEF":
                self._jumps.setdefault(symbol.name, -1)
        self._jumps = {name: self._take(bytes(8), 8) for name in self._jumps}
        executable = self._take(b"", mmap.PAGESIZE)
        for number, section in self._loaded():
            if not section["sh_flags"] & SH_FLAGS.SHF_EXECINSTR and section["sh_type"] != "SHT_NOBITS":
                self._places[number] = self._take(section.data(), section["sh_addralign"])
        names = {
            self._symbol(relocation).name for _, relocation in relocations if relocation["r_info_type"] in _TO_TABLE
        }
        self._table = {name: self._take(bytes(8), 8) for name in sorted(names | self._jumps.keys())}
        content = len(self._memory)
        for number, section in self._loaded():
            if section["sh_type"] == "SHT_NOBITS":
                self._places[number] = self._take(bytes(section["sh_size"]), section["sh_addralign"])
        for symbol in self._symbols.iter_symbols():
            if symbol["st_shndx"] == "SHN_COMMON":
                self._common[symbol.name] = self._take(bytes(symbol["st_size"]), symbol["st_value"])
        for name, place in self._table.items():
            self._point(place, self._symbols.get_symbol_by_name(name)[0], 0)
        for name, place in self._jumps.items():
            self._memory[place : place + 6] = _JUMP + struct.pack("<i", self._table[name] - (place + 6))
        for number, relocation in relocations:
            self._apply(self._places[number] + relocation["r_offset"], relocation)
        found = self._symbols.get_symbol_by_name(entry)
        if not found:
            raise Unlinkable(f"no function {entry}")
        return MachineCode(
            bytes(self._memory[:content]), executable, len(self._memory), self._offset(found[0]),
            {name: tuple(places) for name, places in self._outside.items()}, tuple(self._inside),
        )  # fmt: skip

    def _loaded(self) -> Iterator[tuple[int, Any]]:
        """The sections that are loaded, with their numbers."""
        return ((number, section) for number, section in enumerate(self._sections) if self._is_loaded(section))

    @staticmethod
    def _is_loaded(section: Any) -> bool:
        """Tables to unwind stacks by are left out: no exception goes through compiled code."""
        if section["sh_flags"] & SH_FLAGS.SHF_TLS:
            raise Unlinkable("variables of threads")
        return bool(section["sh_flags"] & SH_FLAGS.SHF_ALLOC) and section.name != ".eh_frame"

    def _symbol(self, relocation: Any) -> Any:
        return self._symbols.get_symbol(relocation["r_info_sym"])

    def _take(self, content: bytes, alignment: int) -> int:
        """Append to memory, at a multiple of `alignment`; where that is."""
        self._memory += bytes(-len(self._memory) % max(alignment, 1))
        place = len(self._memory)
        self._memory += content
        return place

    def _offset(self, symbol: Any) -> int:
        """Where a symbol is that lies inside."""
        section = symbol["st_shndx"]
        if section == "SHN_COMMON":
            return self._common[symbol.name]
        if section not in self._places:
            raise Unlinkable(f"{symbol.name} is in section {section}")
        return int(self._places[section] + symbol["st_value"])

    def _point(self, place: int, symbol: Any, addend: int) -> None:
        """A word is the address of a symbol."""
        if symbol["st_shndx"] != "SHN_UNDEF":
            self._inside.append((place, self._offset(symbol) + addend))
        elif addend:
            raise Unlinkable(f"{addend} bytes behind {symbol.name}")
        else:
            self._outside.setdefault(symbol.name, []).append(place)

    def _apply(self, place: int, relocation: Any) -> None:
        kind, symbol, addend = relocation["r_info_type"], self._symbol(relocation), relocation["r_addend"]
        if kind == _ADDRESS:
            self._point(place, symbol, addend)
            return
        if kind in _TO_TABLE:
            target = self._table[symbol.name]
        elif kind in _RELATIVE:
            target = self._jumps[symbol.name] if symbol["st_shndx"] == "SHN_UNDEF" else self._offset(symbol)
        else:
            raise Unlinkable(f"a relocation of type {kind}")
        self._memory[place : place + 4] = struct.pack("<i", target + addend - place)
