"""A kernel module's code, from its file: functions, basic blocks, and where in memory a guest has had it.

Places in it are offsets, in bytes, from where the kernel puts its code. All that the kernel keeps is one piece: the
sections with instructions, in the order of the file, but for those whose names begin with ".init" (Linux,
kernel/module/main.c, layout_sections). Those run once, are freed, and are left out here.
"""

from __future__ import annotations

import bisect
import functools
import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nicmodel.vm.coverage.live import CODE
from nicmodel.vm.errors import VmError
from nicmodel.vm.saved import read_bounded

PAGE = 4096
"""Where the kernel puts a module's code is a multiple of that."""

#: Elf64_Rela (elf(5)): the low half of `info` is the type, the high half the symbol.
RELA = np.dtype([("offset", "<u8"), ("info", "<u8"), ("addend", "<i8")])
_EXECUTABLE = 4  # SHF_EXECINSTR
#: Relocations of 8 bytes; all others that a module's code has are of 4 (x86-64 psABI, table 4.9).
R_X86_64_64 = 1
#: A section with tables of addresses within the code: jump tables, and pairs of place and target of a "jump label".
_TABLES = re.compile(r"\.rela(\.rodata.*|\.data.*|__jump_table)$")
_JUMP_LABEL, _JUMP_LABELS = 16, ".rela__jump_table"

_ENDBR = bytes.fromhex("f30f1efa")

#: Modules have a hundred, or some thousands if each function has its own.
_MOST_SECTIONS = 100_000
#: Bytes of a module with all that debuggers read: gve has 6 MB, the largest of Linux some hundred.
_LARGEST = 1 << 29

#: Of the first bytes of a block as they run, how many are as in the file. The kernel changes more than relocations:
#: alternatives, jump labels, static calls, calls by way of thunks.
_SIMILAR = 0.75
#: A block votes for a place in memory if so many bytes can be compared, and all are the same.
_ENOUGH = 8
#: How many votes convince, though other modules have been at the same place; and how many if none was.
_CONVINCING, _SUFFICIENT = 16, 2


@contextmanager
def sound(complaint: str) -> Iterator[None]:
    """Have what a damaged file brings about end in a sentence: the library has no error of its own for most of it.

    Raises:
        VmError: `complaint`, and what was wrong.
    """
    from elftools.common.exceptions import DWARFError, ELFError

    try:
        yield
    except (ELFError, DWARFError, LookupError, ValueError, ArithmeticError, AttributeError, AssertionError, TypeError,
            MemoryError, struct.error) as error:  # fmt: skip
        raise VmError(f"{complaint}: {error or type(error).__name__}") from None


@dataclass(frozen=True)
class Function:
    """A function of the module's.

    Attributes:
        name: its symbol's.
        start: where it is entered.
        parts: begin and end of its code, the first at `start`, then what the compiler has put elsewhere as cold.
    """

    name: str
    start: int
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Code:
    """What is there to run.

    Attributes:
        instructions: bool, one a byte of the code: whether an instruction begins there, and is no padding.
        blocks: begin and end of each basic block, int64, shape (number, 2). A call ends none.
    """

    instructions: NDArray[np.bool_]
    blocks: NDArray[np.int64]


class Module:
    """A module's file, or that of its debug symbols.

    Args:
        content: the file, not compressed.
        name: what it is called in messages.

    Attributes:
        name: the module's.
        build_id: of its linker, in hexadecimal digits.
        content: the file.
        text: its code, uint8.
        fixed: bool, as long: which bytes the kernel does not relocate.
        functions: by `start`.
        sections: index in the file of each section that is part of the code, and where it begins there.

    Raises:
        VmError: it is no module for x86-64.
    """

    def __init__(self, content: bytes, name: str) -> None:
        from elftools.elf.elffile import ELFFile

        self.name, self.content = name, content
        with sound(f"{name} is no kernel module for x86-64"):
            self._elf = ELFFile(io.BytesIO(content))
            if self._elf.header["e_type"] != "ET_REL" or self._elf.header["e_machine"] != "EM_X86_64":
                raise ValueError("it is for another machine, or linked already")
            if self._elf.num_sections() > _MOST_SECTIONS:
                raise ValueError("it has too many sections")
            self._read()

    @classmethod
    def read(cls, path: Path) -> Module:
        """From a file.

        Raises:
            VmError: it cannot be read, or is no module.
        """
        return cls(read_bounded(path, _LARGEST), str(path))

    def _read(self) -> None:
        self.sections: dict[int, int] = {}
        pieces, end = [], 0
        for index, section in enumerate(self._elf.iter_sections()):
            if section["sh_flags"] & _EXECUTABLE and not section.name.startswith(".init"):
                alignment = section["sh_addralign"] or 1
                if alignment > PAGE:
                    raise ValueError("its code is to be aligned to more than a page")
                start = -(-end // alignment) * alignment
                pieces += [bytes(start - end), section.data()]
                self.sections[index] = start
                end = start + section["sh_size"]
            elif section.name == ".note.gnu.build-id":
                self.build_id = next(section.iter_notes())["n_desc"]
        self.text: NDArray[np.uint8] = np.frombuffer(b"".join(pieces), np.uint8)
        if not len(self.text) or len(self.text) != end:
            raise ValueError("it has no code")
        if not hasattr(self, "build_id"):
            raise ValueError("it has no build id, which every kernel's Makefile gives a module")
        self.fixed = np.ones(end, np.bool_)
        for section, start in self._relocated_code():
            entries = np.frombuffer(section.data(), RELA)
            sizes = np.where((entries["info"] & 0xFFFF_FFFF) == R_X86_64_64, 8, 4)
            # With the two bytes before, which are the opcode: a call that the kernel makes a direct one has another.
            for place in range(-2, 8):
                there = entries["offset"][place < sizes].astype(np.int64) + place + start
                self.fixed[there[(there >= 0) & (there < end)]] = False
        # Where nobody jumps to, the kernel puts another instruction in place of this one (apply_seal_endbr).
        for found in re.finditer(re.escape(_ENDBR), self.text.tobytes()):
            self.fixed[found.start() : found.end()] = False
        self.functions = self._functions()

    def section(self, name: str) -> Any:
        """A section of the file, as pyelftools has it; None if there is none."""
        return self._elf.get_section_by_name(name)

    def relocations(self) -> list[tuple[Any, Any]]:
        """Sections of relocations (`RELA`), and those that they are for."""
        return [
            (section, self._elf.get_section(section["sh_info"]))
            for section in self._elf.iter_sections()
            if section["sh_type"] == "SHT_RELA"
        ]

    def symbol_values(self, elsewhere: int) -> NDArray[np.int64]:
        """Values of all symbols, in order: of those in the code their places, of others in sections with instructions
        what the file says and `elsewhere`, of the rest what the file says.
        """
        table, values = self._elf.get_section_by_name(".symtab"), []
        for symbol in table.iter_symbols():
            index = symbol["st_shndx"]
            code = isinstance(index, int) and self._elf.get_section(index)["sh_flags"] & _EXECUTABLE
            base = self.sections.get(index, elsewhere) if code else 0
            values.append(base + symbol["st_value"])
        return np.array(values, np.int64)

    def _relocated_code(self) -> list[tuple[Any, int]]:
        """Sections of relocations, and where the code that they are for begins."""
        return [
            (section, self.sections[section["sh_info"]])
            for section in self._elf.iter_sections()
            if section["sh_type"] == "SHT_RELA" and section["sh_info"] in self.sections
        ]

    @functools.cached_property
    def _symbols(self) -> list[tuple[str, str, int | None, int]]:
        """Name, type, place and size of each symbol, in order; None for those that are not in the code."""
        table = self._elf.get_section_by_name(".symtab")
        if table is None:
            raise ValueError("it has no symbols")
        found = []
        for symbol in table.iter_symbols():
            base = self.sections.get(symbol["st_shndx"])
            place = None if base is None else base + symbol["st_value"]
            found.append((symbol.name, symbol["st_info"]["type"], place, symbol["st_size"]))
        return found

    def _functions(self) -> list[Function]:
        hot: dict[int, tuple[str, int]] = {}
        cold: dict[str, list[tuple[int, int]]] = {}
        for name, kind, place, size in self._symbols:
            if kind != "STT_FUNC" or place is None or not size or name.startswith("__pfx_"):
                continue
            whole, dot, _ = name.partition(".cold")
            if dot:
                cold.setdefault(whole, []).append((place, place + size))
            else:
                hot.setdefault(place, (name, size))  # init_module is another name of a function
        return [
            Function(name, place, ((place, place + size), *sorted(cold.get(name, ()))))
            for place, (name, size) in sorted(hot.items())
        ]

    def locate(self, blocks: NDArray[Any]) -> tuple[NDArray[np.int64], list[int]]:
        """Which blocks that a guest has run are this module's.

        Nobody has to say where the module lies: blocks begin with bytes that are nowhere else. A module that was
        loaded again lies elsewhere; all its places count.

        Args:
            blocks: `nicmodel.vm.coverage.live.BLOCK`.

        Returns:
            The place of each in the module, -1 for those that are not the module's; and the addresses where it lay.
        """
        places = np.full(len(blocks), -1, np.int64)
        address = blocks["address"].astype(np.uint64)
        votes: dict[int, int] = {}
        for page in range(0, len(self.text), PAGE):
            place = (address % PAGE).astype(np.int64) + page
            same, compared = self._compare(blocks, place)
            sure = (compared >= _ENOUGH) & (same == compared)
            bases, count = np.unique(address[sure] - place[sure].astype(np.uint64), return_counts=True)
            for base, voters in zip(bases.tolist(), count.tolist(), strict=True):
                votes[base] = votes.get(base, 0) + voters
        found = []
        for base, voters in sorted(votes.items(), key=lambda item: -item[1]):
            if voters < _SUFFICIENT:
                break
            inside = (address >= base) & (address - np.uint64(base) < len(self.text)) & (places < 0)
            place = np.where(inside, address - np.uint64(base), 0).astype(np.int64)
            same, compared = self._compare(blocks, place)
            ours = inside & (same >= _SIMILAR * compared)
            if voters >= _CONVINCING or 2 * ours.sum() > inside.sum():
                places[ours] = place[ours]
                found.append(base)
        return places, found

    def _compare(self, blocks: NDArray[Any], place: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many of the first bytes of each block are as in the file at `place`, and how many can be compared."""
        at = place[:, None] + np.arange(CODE)
        valid = (at < len(self.text)) & (np.arange(CODE) < blocks["size"][:, None])
        at = np.minimum(at, len(self.text) - 1)
        valid &= self.fixed[at]
        same = valid & (self.text[at] == blocks["code"])
        return same.sum(axis=1), valid.sum(axis=1)

    @functools.cached_property
    def code(self) -> Code:
        """The code, taken apart into instructions and basic blocks.

        An approximation, since nobody says where blocks begin: at functions, at targets of jumps and of tables, after
        conditional jumps. Padding, which never runs, is left out.
        """
        from capstone import CS_ARCH_X86, CS_MODE_64, Cs

        disassembler = Cs(CS_ARCH_X86, CS_MODE_64)
        disassembler.skipdata = True
        leaders = {start for function in self.functions for start, _ in function.parts}
        with sound(f"{self.name} is damaged"):
            targets = self._targets()
            leaders |= self._table_entries()
        instructions = []
        for index, start in self.sections.items():
            end = start + self._elf.get_section(index)["sh_size"]
            for place, size, mnemonic, operands in disassembler.disasm_lite(self.text[start:end].tobytes(), start):
                instructions.append((place, size, mnemonic))
                if not _is_jump(mnemonic):
                    continue
                target = int(operands, 16) if operands.startswith("0x") else None
                target = targets.get(place + size - 4, target)
                if target is not None:
                    leaders.add(target)
        return self._blocks(instructions, leaders)

    def _blocks(self, instructions: list[tuple[int, int, str]], leaders: set[int]) -> Code:
        begins = np.zeros(len(self.text), np.bool_)
        functions = [(start, end) for function in self.functions for start, end in function.parts]
        functions.sort()
        starts = [start for start, _ in functions]
        blocks: list[list[int]] = []
        new, dead = True, True
        for place, size, mnemonic in instructions:
            number = bisect.bisect_right(starts, place) - 1
            if number < 0 or place >= functions[number][1]:
                new = dead = True
                continue
            if place in leaders:
                new, dead = True, False
            if dead and mnemonic in _PADDING:
                continue
            dead = False
            begins[place] = True
            if new:
                blocks.append([place, place])
            blocks[-1][1] = place + size
            new = _is_jump(mnemonic) or mnemonic in _ENDS
            dead = mnemonic in _ENDS
        return Code(begins, np.array(blocks, np.int64).reshape(-1, 2))

    def _targets(self) -> dict[int, int | None]:
        """Places of relocated operands of jumps and calls, with what they lead to; None: out of the module."""
        found: dict[int, int | None] = {}
        for section, start in self._relocated_code():
            for entry in np.frombuffer(section.data(), RELA).tolist():
                place, info, addend = entry
                name_place = self._symbols[info >> 32][2]
                # Relative to the end of the operand, which is 4 bytes.
                found[start + place] = None if name_place is None else name_place + addend + 4
        return found

    def _table_entries(self) -> set[int]:
        """Places in the code that tables name."""
        found = set()
        for section in self._elf.iter_sections():
            if section["sh_type"] != "SHT_RELA" or not _TABLES.match(section.name):
                continue
            for place, info, addend in np.frombuffer(section.data(), RELA).tolist():
                target = self._symbols[info >> 32][2]
                if target is None:
                    continue
                found.add(target + addend)
                if section.name == _JUMP_LABELS and place % _JUMP_LABEL == 0:
                    # There is a jump or a nop, of 2 or of 5 bytes: what follows is reached either way.
                    found.add(target + addend + (2 if self.text[target + addend] in (0xEB, 0x66) else 5))
        return found


_PADDING = {"nop", "int3", "xchg"}
#: After these, execution does not go on.
_ENDS = {"jmp", "ret", "int3", "hlt", "notrack jmp", "bnd jmp"}


def _is_jump(mnemonic: str) -> bool:
    """Whether an instruction is a jump, conditional or not, and no call."""
    return mnemonic.startswith(("j", "loop")) or mnemonic in ("notrack jmp", "bnd jmp")
