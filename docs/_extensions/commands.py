"""A page, and so a man page, for each command: made from the commands themselves.

The pages are written to ``docs/commands/``, which is not under version control, before the build begins. They hold a
directive each, which turns a command's help into synopsis, description and options. (sphinx-click takes help texts for
reStructuredText, which these are not: a wire's ``original|max|N`` would be a substitution.)
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective

from nicmodel.cli.help import HelpCommand
from nicmodel.cli.main import cli

_PAGE = """\
# nicmodel {name}

```{{command}} {name}
```
"""

_INDEX = """\
# Commands

```{{command}}
```

## All commands

| command | what it does |
|---|---|
{rows}

Each command has a man page too, such as `man nicmodel-serve`: `make docs` puts them into `docs/_build/man`, and
`make install-man` where `man` finds them.

```{{toctree}}
:hidden:

{pages}
```
"""

#: What a help text puts between backticks, one or two.
_CODE = re.compile(r"``?([^`]+)``?")


def commands() -> dict[str, click.Command]:
    """The sub-commands by name, in the order of ``nicmodel --help``."""
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def _words(text: str) -> nodes.paragraph:
    """A paragraph of a help text."""
    paragraph = nodes.paragraph()
    for number, part in enumerate(_CODE.split(" ".join(text.split()))):
        paragraph += nodes.literal(text=part) if number % 2 else nodes.Text(part)
    return paragraph


def _section(title: str, *content: nodes.Node) -> nodes.section:
    return nodes.section("", nodes.title(text=title), *content, ids=[nodes.make_id(title)])


def _verbatim(text: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language="text")


def _synopsis(command: click.Command, program: str) -> nodes.literal_block:
    context = click.Context(command, info_name=program)
    return _verbatim(" ".join([program, *command.collect_usage_pieces(context)]))


def _description(command: click.Command) -> list[nodes.Node]:
    """The help text; what click is told not to wrap stays as it is."""
    parts = inspect.cleandoc(command.help or "").split("\n\n")
    described: list[nodes.Node] = [
        _verbatim(part[1:].strip("\n")) if part.startswith("\b") else _words(part) for part in parts
    ]
    if isinstance(command, HelpCommand):
        for title, rows in command.lists.items():
            described += [nodes.paragraph(text=f"{title}:"), _definitions(rows.items())]
    return described


def _definitions(records: Iterable[tuple[str, str]]) -> nodes.definition_list:
    listed = nodes.definition_list()
    for words, meaning in records:
        term = nodes.term("", "", nodes.literal(text=words))
        listed += nodes.definition_list_item("", term, nodes.definition("", _words(meaning)))
    return listed


def _options(command: click.Command, program: str) -> list[nodes.Node]:
    context = click.Context(command, info_name=program)
    if isinstance(command, HelpCommand):
        groups = command.grouped_options(context).items()
        return [node for title, rows in groups for node in (nodes.paragraph(text=f"{title}:"), _definitions(rows))]
    options = [parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option)]
    listed = _definitions(filter(None, (option.get_help_record(context) for option in options)))
    return [listed] if listed.children else []


class CommandDirective(SphinxDirective):
    """Synopsis, description, options and sub-commands of a command; without a name, of ``nicmodel`` itself."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Called by docutils."""
        if not self.arguments:
            return self._sections(cli, "nicmodel")
        name = self.arguments[0]
        command = commands()[name]
        sections = self._sections(command, f"nicmodel {name}")
        if isinstance(command, click.Group):
            for inner_name, inner in command.commands.items():
                program = f"nicmodel {name} {inner_name}"
                content = [_synopsis(inner, program), *_description(inner), *_options(inner, program)]
                sections.append(_section(program, *content))
        return sections

    def _sections(self, command: click.Command, program: str) -> list[nodes.Node]:
        sections: list[nodes.Node] = [
            _section("Synopsis", _synopsis(command, program)),
            _section("Description", *_description(command)),
        ]
        options = _options(command, program)
        return [*sections, _section("Options", *options)] if options else sections


def _write(path: Path, text: str) -> None:
    """Write a file, unless that would only make it look new."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def write_pages(app: Sphinx, config: Config) -> None:
    """Write the pages, take away those of commands that are gone, and tell Sphinx of the man pages."""
    folder = Path(app.srcdir, "commands")
    folder.mkdir(exist_ok=True)
    found = commands()
    for stale in {path.stem for path in folder.glob("*.md")} - {*found, "index"}:
        (folder / f"{stale}.md").unlink()
    rows = []
    for name, command in found.items():
        _write(folder / f"{name}.md", _PAGE.format(name=name))
        rows.append(f"| [`{name}`]({name}.md) | {command.get_short_help_str(200)} |")
    _write(folder / "index.md", _INDEX.format(rows="\n".join(rows), pages="\n".join(found)))
    summary = "an emulated gVNIC over vfio-user"
    config.man_pages = [
        ("commands/index", "nicmodel", summary, [], 1),
        *(
            (f"commands/{name}", f"nicmodel-{name}", command.get_short_help_str(60).rstrip("."), [], 1)
            for name, command in found.items()
        ),
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("command", CommandDirective)
    app.connect("config-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
