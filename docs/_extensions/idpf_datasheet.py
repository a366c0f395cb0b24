"""The datasheet of the second device: tables and diagrams of its registers, messages and descriptors, and its rules.

What a field is called and where it lies comes from the declarations in `nicmodel.idpf`; what it means, and which rules
speak of it, from ``docs/datasheet/idpf_meanings.toml``. A field without a meaning, a meaning without a field, a rule
that nothing names, and a declaration that no page shows are warnings, and so errors of a strict build.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from boxes import Field, draw
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from nicmodel.idpf import descriptors, registers, virtchnl
from nicmodel.idpf.contract.rules import AREAS, RULES
from nicmodel.idpf.virtchnl import Op
from nicmodel.nic.layout import Layout

logger = logging.getLogger(__name__)

_MEANINGS = Path(__file__).parents[1] / "datasheet" / "idpf_meanings.toml"
_LAYOUTS = {
    name: one for module in (descriptors, registers) for name, one in vars(module).items() if isinstance(one, Layout)
}
_RECORDS: dict[str, np.dtype[Any]] = {
    name: one for name, one in vars(virtchnl).items() if isinstance(one, np.dtype) and one.names
}
_NAMES = {id(one): name for name, one in _RECORDS.items()}

Places = dict[str, list[tuple[str, str]]]


class _Meanings:
    """What ``idpf_meanings.toml`` says."""

    def __init__(self) -> None:
        with _MEANINGS.open("rb") as file:
            self.tables: dict[str, dict[str, Any]] = tomllib.load(file)

    def of(self, structure: str, field: str) -> tuple[str, list[str]]:
        """Meaning and rules of a field, or for ``about`` of the structure; empty if there is none."""
        entry = self.tables.get(structure, {}).get(field, "")
        text, *rules = [entry] if isinstance(entry, str) else entry
        return text, rules

    def cell(self, structure: str, field: str) -> str:
        """The same, for a table."""
        text, rules = self.of(structure, field)
        if not text:
            logger.warning("datasheet: %s.%s has no meaning in %s", structure, field, _MEANINGS.name)
        return f"{text} {_links(rules)}".strip().replace("|", "\\|")

    def places(self) -> Places:
        """By rule, the structures and fields that name it."""
        found: Places = defaultdict(list)
        for structure, entries in self.tables.items():
            for field in entries:
                for rule in self.of(structure, field)[1]:
                    found[rule].append((structure, field))
        return found


def _links(rules: Iterable[str]) -> str:
    return ", ".join(f"[{name}](#idpf-{name.lower()})" for name in rules)


def _anchor(structure: str) -> str:
    return f"idpf-{structure.lower().replace('_', '-')}"


class IdpfDirective(SphinxDirective):
    """``{idpf} registers``, ``{idpf} messages``, ``{idpf} rules``, or ``{idpf}`` with the name of a descriptor."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Called by docutils."""
        for file in (*(str(module.__file__) for module in (descriptors, registers, virtchnl)), str(_MEANINGS)):
            self.env.note_dependency(file)
        name, meanings = self.arguments[0], _Meanings()
        self.env.__dict__.setdefault("idpf_shown", set()).add(name)
        made = {"registers": _registers, "messages": _messages, "rules": _rules}
        lines = made[name](meanings) if name in made else _descriptor(meanings, name)
        return self.parse_text_to_nodes("\n".join(lines))


def _registers(meanings: _Meanings) -> Iterator[str]:
    about = meanings.cell("registers", "about")
    yield from (f"({_anchor('registers')})=", about, "", "| offset | registers | name | meaning |", "|--:|--:|---|---|")
    for register in registers.REGISTERS.values():
        what = meanings.cell("registers", register.name)
        yield f"| {register.offset:#06x} | {register.count} | `{register.name}` | {what} |"
    yield ""


def _messages(meanings: _Meanings) -> Iterator[str]:
    yield from (f"({_anchor('messages')})=", meanings.cell("messages", "about"), "")
    yield from ("| number | message | payload |", "|--:|---|---|")
    for op in Op:
        parts = [one for one in (op.message.head, op.message.many) if one is not None and one.names]
        links = [f"[{_NAMES[id(one)]}](#{_anchor(_NAMES[id(one)])})" for one in parts]
        many = op.message.many
        also = [f"`{op.message.name}`, {many.itemsize} bytes each"] if many is not None and not many.names else []
        yield f"| {int(op)} | {op.name} | {', then '.join([*links, *also]) or 'none'} |"
    yield ""
    for name, form in _RECORDS.items():
        yield from (f"({_anchor(name)})=", f"**{name}**, {form.itemsize} bytes. {meanings.cell(name, 'about')}", "")
        yield from ("| byte | bytes | field | meaning |", "|--:|--:|---|---|")
        for field, (kind, offset, *_) in (form.fields or {}).items():
            if not field.startswith("pad"):
                yield f"| {offset} | {kind.itemsize} | `{field}` | {meanings.cell(name, field)} |"
        yield ""


def _descriptor(meanings: _Meanings, name: str) -> Iterator[str]:
    layout = _LAYOUTS[name]
    fields = [Field(field, bits.bit, bits.width) for field, bits in layout.fields.items()]
    size = -(-layout.size // 4) * 4
    yield from (f"({_anchor(name)})=", meanings.cell(name, "about"), "")
    yield from (f"{layout.size} bytes, little-endian.", "", "```{raw} html")
    yield from (draw(fields, size, big_endian=False, title=layout.name), "```", "")
    yield from ("| byte | bits | field | meaning |", "|--:|--:|---|---|")
    for field in fields:
        byte, low = divmod(field.bit, 8)
        bits = str(field.width) if not low and field.width % 8 == 0 else f"[{low + field.width - 1}:{low}]"
        yield f"| {byte} | {bits} | `{field.name}` | {meanings.cell(name, field.name)} |"
    yield ""


def _rules(meanings: _Meanings) -> Iterator[str]:
    places = meanings.places()
    for area, about in AREAS.items():
        yield from (f"**{about.capitalize()}**", "")
        for rule in (one for one in RULES.values() if one.area == area):
            by_structure: dict[str, list[str]] = defaultdict(list)
            for structure, field in places.get(rule.name, []):
                by_structure[structure] += [f"`{field}`"] if field != "about" else []
            see = [
                f"[{structure}](#{_anchor(structure)})" + (f" ({', '.join(fields)})" if fields else "")
                for structure, fields in by_structure.items()
            ]
            yield from (f"(idpf-{rule.name.lower()})=", f"**{rule.name}** ({rule.severity}) {rule.says}")
            yield from (f": Why: {rule.why}", "", f"  Source: {rule.source}", "", f"  See {'; '.join(see)}.", "")


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of what the pages leave out, and of meanings and rules of what is not there."""
    for name in sorted({*_LAYOUTS, "registers", "messages", "rules"} - env.__dict__.get("idpf_shown", set())):
        logger.warning("datasheet: no page shows %s of idpf", name)
    meanings = _Meanings()
    known: dict[str, set[str]] = {"registers": set(registers.REGISTERS), "messages": set()}
    known |= {name: set(one.fields) for name, one in _LAYOUTS.items()}
    known |= {name: set(one.names or ()) for name, one in _RECORDS.items()}
    for structure, entries in meanings.tables.items():
        for field in entries:
            if field != "about" and field not in known.get(structure, set()):
                logger.warning("datasheet: %s has a meaning of %s.%s", _MEANINGS.name, structure, field)
    places = meanings.places()
    for name in sorted(set(RULES) ^ set(places)):
        logger.warning("datasheet: rule %s is named by nothing, or does not exist", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("idpf", IdpfDirective)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
