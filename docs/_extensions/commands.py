"""A page, and so a man page, for each command: written from the commands themselves before the build begins.

The pages are in ``docs/commands/``, which is not under version control. sphinx-click turns each command's help into
text; this module says which commands there are.
"""

from __future__ import annotations

from pathlib import Path

import click
from sphinx.application import Sphinx
from sphinx.config import Config

from nicmodel.cli.main import cli

_PAGE = """\
# nicmodel {name}

```{{click}} {module}:{attribute}
:prog: nicmodel {name}
:nested: full
```
"""

_INDEX = """\
# Commands

```{{click}} nicmodel.cli.main:cli
:prog: nicmodel
:nested: none
```

| command | what it does |
|---|---|
{rows}

Each command also has a man page (`man nicmodel-serve`), built with this site: `make docs` puts them into
`docs/_build/man`.

```{{toctree}}
:hidden:

{pages}
```
"""


def commands() -> dict[str, click.Command]:
    """The sub-commands by name, in the order of ``nicmodel --help``."""
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


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
        callback = command.callback
        assert callback is not None, name
        page = _PAGE.format(name=name, module=callback.__module__, attribute=callback.__name__)
        _write(folder / f"{name}.md", page)
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
    app.connect("config-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
