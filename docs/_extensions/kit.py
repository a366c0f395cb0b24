"""Tables of the test kit and of the device, made from the code: fixtures, profiles, drops, faults, weather, steps."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from nicmodel.faults.fault import Chance, Drawn
from nicmodel.faults.weather import behaviours
from nicmodel.gvnic.bringup.steps import STEPS
from nicmodel.gvnic.faults.kinds import KINDS
from nicmodel.gvnic.profile import PROFILES
from nicmodel.idpf.faults.kinds import KINDS as IDPF_KINDS
from nicmodel.testing import plugin


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _fixtures(_argument: str) -> Iterator[str]:
    """The fixtures of the pytest plugin."""
    assert plugin.__file__
    yield from ("| fixture | type | scope | what it is |", "|---|---|---|---|")
    for node in ast.parse(Path(plugin.__file__).read_text()).body:
        if not isinstance(node, ast.FunctionDef) or node.returns is None:
            continue
        for decorator in map(ast.unparse, node.decorator_list):
            if decorator.startswith("pytest.fixture"):
                scope = "session" if "session" in decorator else "test"
                made = ast.unparse(node.returns).removeprefix("Iterator[")
                made = made.removesuffix("]") if "Iterator[" in ast.unparse(node.returns) else made
                words = _cell(ast.get_docstring(node) or "").replace("``", "`")
                yield f"| `{node.name}` | `{made}` | {scope} | {words} |"


def _profiles(_argument: str) -> Iterator[str]:
    """What ``--profile`` chooses from."""
    yield from ("| profile | what it offers |", "|---|---|")
    for name, (meaning, _) in PROFILES.items():
        yield f"| `{name}` | {_cell(meaning)} |"


def _members(argument: str) -> Iterator[str]:
    """The members of an enumeration, with the comments in front of them."""
    module_name, _, class_name = argument.rpartition(".")
    enumeration: type[Enum] = getattr(importlib.import_module(module_name), class_name)
    comments = ModuleAnalyzer.for_module(module_name).find_attr_docs()
    yield from ("| name | meaning |", "|---|---|")
    for member in enumeration:
        yield f"| `{member.name.lower()}` | {_cell(' '.join(comments.get((class_name, member.name), [])).strip())} |"


def _parameters(_argument: str) -> Iterator[str]:
    """The parameters of each fault; those that all have, once and first."""
    yield from ("| fault | parameter | default | meaning |", "|---|---|---|---|")
    common = Chance.parameters()
    for name, parameters in [
        ("all", common),
        *((name, kind.parameters()) for name, kind in {**KINDS, **IDPF_KINDS}.items()),
    ]:
        for one in parameters.values():
            if name == "all" or one.name not in common:
                default = "" if one.default is None else f"`{one.default}`"
                words = f" ({', '.join(one.words)})" if len(one.words) > 1 else ""
                yield f"| `{name}` | `{one.name}` | {default} | {_cell(one.meaning + words)} |"


def _weather(_argument: str) -> Iterator[str]:
    """The behaviours of weather, and what of each is drawn from the seed."""
    yield from ("| behaviour | where | what the device does | drawn from the seed | where the contract allows it |",
                "|---|---|---|---|---|")  # fmt: skip
    for name, kind in behaviours({**KINDS, **IDPF_KINDS}).items():
        drawn = [
            ("probability", Drawn(0, 1)),
            *((one.name, one.drawn) for one in kind.parameters().values() if one.drawn),
        ]
        told = ", ".join(
            f"`{parameter}`" if parameter == "probability" else f"`{parameter}` {values.low:g} to {values.high:g} s"
            for parameter, values in drawn
        )
        does = f"{kind.summary()} Packets under way are lost: only where it is named." if kind.loses else kind.summary()
        yield f"| `{name}` | {kind.where} | {_cell(does)} | {told} | {_cell(kind.source)} |"


def _steps(_argument: str) -> Iterator[str]:
    """The steps of a driver's life; links are those of a page in ``docs``."""
    yield from ("| step | kind | the device sees that | described in | example |", "|---|---|---|---|---|")
    for step in STEPS:
        page, _, anchor = step.datasheet.partition("#")
        example = f"`{Path(step.example.file).name}:{step.example.line}`"
        place = f"[{anchor.replace('-', ' ')}](datasheet/{page}#{anchor})"
        yield f"| {_cell(step.title)} | {step.need} | {_cell(step.shows)} | {place} | {example} |"


_TABLES: dict[str, Callable[[str], Iterator[str]]] = {
    "fixtures": _fixtures,
    "profiles": _profiles,
    "members": _members,
    "fault-parameters": _parameters,
    "weather-behaviours": _weather,
    "bringup-steps": _steps,
}


class TableDirective(SphinxDirective):
    """One of the tables, by the directive's name; `members` takes the enumeration's full name."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Called by docutils."""
        argument = self.arguments[0] if self.arguments else ""
        return self.parse_text_to_nodes("\n".join(_TABLES[self.name](argument)))


def keep_sentence(_app: Sphinx, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Give a property's description an empty type: napoleon would take what is before its first colon for one."""
    if what == "property" and lines:
        lines[0] = f": {lines[0]}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    for name in _TABLES:
        app.add_directive(name, TableDirective)
    app.connect("autodoc-process-docstring", keep_sentence, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
