"""The datasheet: diagrams and tables of registers, commands and descriptors, made from the declarations.

What a field is called and where it lies comes from `nicmodel.gvnic`; what it means, and which rules of the contract
speak of it, from ``docs/datasheet/meanings.toml``. A field without a meaning, a meaning without a field, a rule that no
field or structure names, and a declaration that no page shows are warnings, and so errors of a strict build.
"""

from __future__ import annotations

import importlib
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import numpy as np
from boxes import Field, draw
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from nicmodel.gvnic import commands, declare, descriptors, registers
from nicmodel.gvnic.commands import Inner
from nicmodel.gvnic.contract.rules import AREAS, RULES
from nicmodel.gvnic.declare import Command
from nicmodel.nic.layout import Form, Layout, size_of
from nicmodel.observe.findings import Rule
from nicmodel.vfio_user.dma import READABLE, WRITABLE

logger = logging.getLogger(__name__)

_MEANINGS = Path(__file__).parents[1] / "datasheet" / "meanings.toml"
_MODULES = (registers, commands, declare, descriptors, *commands.OWN_DECLARATIONS)

#: Declarations by name, but for the fields of commands, which are in `Opcode`.
_STRUCTURES: dict[str, Form] = {
    name: value
    for module in _MODULES
    for name, value in vars(module).items()
    if isinstance(value, Layout) or (isinstance(value, np.dtype) and value.names)
}


class Meanings:
    """What ``meanings.toml`` says: by structure, what the structure is, its fields, and the rules of both."""

    def __init__(self) -> None:
        with _MEANINGS.open("rb") as file:
            self._tables: dict[str, dict[str, Any]] = tomllib.load(file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def field(self, structure: str, name: str) -> tuple[str, list[str]]:
        """Meaning and rules of a field, or of the structure itself for the name ``""``; empty if there is none."""
        entry = self._tables.get(structure, {}).get(name or "about", "")
        text, *rules = [entry] if isinstance(entry, str) else entry
        return text, rules

    def fields(self, structure: str) -> list[str]:
        """The fields that have a meaning."""
        return [name for name in self._tables[structure] if name != "about"]

    def places(self) -> dict[str, dict[str, list[str]]]:
        """By rule the structures that name it, and the fields of each (``""``: the structure itself)."""
        found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for structure, entries in self._tables.items():
            for name in entries:
                field = "" if name == "about" else name
                for rule in self.field(structure, field)[1]:
                    found[rule][structure].append(field)
        return found


def _anchor(name: str) -> str:
    return "ds-" + name.lower().replace("_", "-")


def _rule_links(names: Iterable[str]) -> str:
    return ", ".join(f"[{name}](#{name.lower()})" for name in names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _members(structure: Form) -> Iterator[tuple[str, Field]]:
    """The fields of a structure, as they are drawn."""
    if isinstance(structure, Layout):
        for name, bits in structure.fields.items():
            yield name, Field(name, bits.bit, bits.width)
    else:
        for name, (form, offset, *_) in (structure.fields or {}).items():
            yield name, Field(name, offset * 8, form.itemsize * 8)


def _is_reserved(name: str) -> bool:
    return name.startswith(("reserved", "padding"))


def _is_little(structure: Form) -> bool:
    """The DQO descriptors; of records, those whose first number is."""
    if isinstance(structure, Layout):
        return True
    return any(form.base.byteorder in "<=" for form, *_ in (structure.fields or {}).values() if form.itemsize > 1)


def _declared(command: Command) -> str:
    """What the declaration of a command says besides its fields."""
    told = []
    if command.queue is not None:
        verb = {"created": "Creates", "destroyed": "Destroys", "changed": "Is for"}[command.queue.effect]
        way = {"rx": "receive", "tx": "transmit"}[command.queue.way]
        told.append(f"{verb} {way} queue `{command.queue.number}`.")
    named = [(one.right, one.what, one.address) for one in command.memory]
    named += [(one.right, one.name, one.address) for one in command.rings]
    for right, verb in ((READABLE, "reads"), (WRITABLE, "writes")):
        places = [f"{what} (`{address}`)" for has, what, address in named if has == right]
        if places:
            told.append(f"Memory that the device {verb}: {', '.join(places)}.")
    if command.option is not None:
        told.append(f"Offered by the option {commands.OptionId(command.option.number).name}.")
    return " ".join(told)


class _Generated(SphinxDirective):
    """A directive whose content is Markdown, made here."""

    required_arguments = 1

    def markdown(self, name: str) -> str:
        """The content."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """Called by docutils."""
        self.env.note_dependency(str(_MEANINGS))
        for module in _MODULES:
            self.env.note_dependency(str(module.__file__))
        return self.parse_text_to_nodes(self.markdown(self.arguments[0]))

    def shown(self, name: str) -> None:
        """Remember that a declaration is on this page."""
        shown: dict[str, set[str]] = self.env.__dict__.setdefault("datasheet_shown", {})
        shown.setdefault(self.env.docname, set()).add(name)


class StructureDirective(_Generated):
    """``{structure} RX_COMPLETION``: diagram, and a table of the fields with their meanings and rules."""

    def markdown(self, name: str) -> str:
        """The content."""
        self.shown(name)
        structure = _STRUCTURES[name]
        also = _declared(Inner[name].command) if name in Inner.__members__ else ""
        little = _is_little(structure)
        return self.describe(name, list(_members(structure)), size_of(structure), little=little, also=also)

    def describe(
        self, name: str, members: list[tuple[str, Field]], size: int, *, little: bool, skip: int = 0, also: str = ""
    ) -> str:
        """Text for a structure; the first `skip` fields are explained elsewhere, `also` is said besides."""
        meanings = Meanings()
        drawn = (field for field_name, field in members if not _is_reserved(field_name))
        order = "little-endian" if little else "big-endian"
        rows = []
        for field_name, field in members[skip:]:
            if _is_reserved(field_name):
                continue
            text, rules = meanings.field(name, field_name)
            if not text:
                logger.warning("datasheet: %s.%s has no meaning in meanings.toml", name, field_name)
            byte, low = divmod(field.bit, 8)
            if low or field.width % 8:
                bits = f"[{low}]" if field.width == 1 else f"[{low + field.width - 1}:{low}]"
            else:
                bits = f"{field.width // 8} bytes" if field.width > 64 else str(field.width)
            link = f" {_rule_links(rules)}" if rules else ""
            rows.append(f"| {byte} | {bits} | `{field_name}` | {_cell(text)}{link} |")
        about, rules = meanings.field(name, "")
        lines = [f"({_anchor(name)})=", about, "", f"{size} bytes, {order}."]
        if rules:
            lines[-1] += f" Rules: {_rule_links(rules)}."
        lines += ["", also, "", "```{raw} html", draw(drawn, size, big_endian=not little, title=name), "```", ""]
        if rows:
            lines += ["| byte | bits | field | meaning |", "|--:|--:|---|---|", *rows, ""]
        return "\n".join(lines)


class CommandDirective(StructureDirective):
    """``{admin-command} CREATE_RX_QUEUE``: the whole slot of 64 bytes."""

    def markdown(self, name: str) -> str:
        """The content."""
        opcode = commands.Opcode[name]
        self.shown(f"Opcode.{name}")
        members = list(_members(commands.HEADER))
        start = commands.HEADER.itemsize * 8
        payload = _members(opcode.command.payload)
        members += [(key, Field(key, start + field.bit, field.width)) for key, field in payload]
        also = _declared(opcode.command)
        text = self.describe(name, members, commands.SLOT_SIZE, little=False, skip=2, also=also)
        return text.replace(f"({_anchor(name)})=\n", f"({_anchor(name)})=\nOpcode {int(opcode):#x}. ", 1)


class RegistersDirective(_Generated):
    """``{registers} map``: all registers of BAR 0."""

    def markdown(self, name: str) -> str:
        """The content."""
        meanings = Meanings()
        found = list(registers.REGISTERS.values())
        fields = [Field(register.name, register.offset * 8, register.size * 8) for register in found]
        rows = []
        for register in found:
            text, rules = meanings.field("registers", register.name)
            if not text:
                logger.warning("datasheet: register %s has no meaning in meanings.toml", register.name)
            link = f" {_rule_links(rules)}" if rules else ""
            rows.append(
                f"| {register.offset:#04x} | {register.size * 8} | {register.access} "
                f"| `{register.name}` | {_cell(text)}{link} |"
            )
        about, rules = meanings.field("registers", "")
        size = max(register.offset + register.size for register in found)
        lines = [f"({_anchor('registers')})=", f"{about} Rules: {_rule_links(rules)}.", "", "```{raw} html"]
        lines += [draw(fields, -(-size // 4) * 4, big_endian=True, title="registers of BAR 0"), "```", ""]
        lines += ["| offset | bits | access | register | meaning |", "|--:|--:|---|---|---|", *rows, ""]
        return "\n".join(lines)


class EnumerationDirective(_Generated):
    """``{enumeration} commands.Status``: its members and what they mean."""

    def markdown(self, name: str) -> str:
        """The content."""
        module_name, _, class_name = name.rpartition(".")
        self.shown(class_name)
        module = importlib.import_module(f"nicmodel.gvnic.{module_name}")
        enumeration: type[IntEnum] = getattr(module, class_name)
        comments = ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
        meanings = Meanings()
        rows = []
        flags = issubclass(enumeration, IntFlag)
        for member in enumeration:
            comment = " ".join(comments.get((class_name, member.name), [])).strip()
            text, rules = meanings.field(class_name, member.name)
            if not (text or comment):
                logger.warning("datasheet: %s.%s has no meaning", class_name, member.name)
            number = int(member)
            value = f"bit {number.bit_length() - 1}" if flags else str(number) if number < 10 else hex(number)
            link = f" {_rule_links(rules)}" if rules else ""
            rows.append(f"| {value} | `{member.name}` | {_cell(text or comment)}{link} |")
        return "\n".join([f"({_anchor(class_name)})=", "| value | name | meaning |", "|--:|---|---|", *rows, ""])


class RulesDirective(_Generated):
    """``{rules} REG``: all rules of an area, each with its reason, its source and the fields that it speaks of."""

    def markdown(self, name: str) -> str:
        """The content."""
        self.shown(f"area {name}")
        places = Meanings().places()
        return "\n".join(self._rule(rule, places.get(rule.name, {})) for rule in RULES.values() if rule.area == name)

    def _rule(self, rule: Rule, places: dict[str, list[str]]) -> str:
        links = []
        for structure, fields in places.items():
            inside = ", ".join(f"`{field}`" for field in fields if field)
            links.append(f"[{structure}](#{_anchor(structure)})" + (f" ({inside})" if inside else ""))
        return "\n".join(
            [
                f"({rule.name.lower()})=",
                f"**{rule.name}** ({rule.severity}) {rule.says}",
                f": Why: {rule.why}",
                "",
                f"  Source: {rule.source}",
                "",
                f"  See {'; '.join(links)}.",
                "",
            ]
        )


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of what the datasheet leaves out, and of what it says of things that are not there."""
    shown = set().union(*env.__dict__.get("datasheet_shown", {"": set()}).values())
    enumerations = {
        name
        for module in _MODULES
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, IntEnum | IntFlag) and value.__module__ == module.__name__
        and value.__members__
    }  # fmt: skip
    wanted = {*_STRUCTURES, *(f"Opcode.{opcode.name}" for opcode in commands.Opcode), *(f"area {a}" for a in AREAS)}
    wanted |= {name for name in enumerations if name != "Bar"}
    for name in sorted(wanted - shown):
        logger.warning("datasheet: no page shows %s", name)
    meanings = Meanings()
    known = {"registers", *enumerations, *_STRUCTURES, *(opcode.name for opcode in commands.Opcode)}
    for name in meanings:
        if name not in known:
            logger.warning("datasheet: meanings.toml tells of %s, which is not declared", name)
            continue
        for field in meanings.fields(name):
            if field not in _names(name):
                logger.warning("datasheet: meanings.toml tells of %s.%s, which is not declared", name, field)
    places = meanings.places()
    for rule in RULES.keys() - places.keys():
        logger.warning("datasheet: no field or structure names rule %s", rule)
    for rule in places.keys() - RULES.keys():
        logger.warning("datasheet: meanings.toml names rule %s, which there is not", rule)


def _names(name: str) -> set[str]:
    """Fields or members of what `name` declares."""
    if name == "registers":
        return {register.name for register in registers.REGISTERS.values()}
    if name in commands.Opcode.__members__:
        return set(commands.Opcode[name].command.payload.names or ())
    if name in _STRUCTURES:
        return {field for field, _ in _members(_STRUCTURES[name])}
    enumeration = next(getattr(module, name) for module in _MODULES if hasattr(module, name))
    return set(enumeration.__members__)


def _forget(_app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    env.__dict__.get("datasheet_shown", {}).pop(docname, None)


_DIRECTIVES = {
    "structure": StructureDirective,
    "admin-command": CommandDirective,
    "registers": RegistersDirective,
    "enumeration": EnumerationDirective,
    "rules": RulesDirective,
}


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    for name, directive in _DIRECTIVES.items():
        app.add_directive(name, directive)
    app.connect("env-purge-doc", _forget)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
