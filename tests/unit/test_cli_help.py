"""Help texts fit the terminal, and nothing in them is cut."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from nicmodel.cli.main import cli
from nicmodel.cli.serve import serve


def commands(group: click.Group, *names: str) -> Iterator[tuple[str, ...]]:
    """The words that call each command."""
    yield names
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield *names, name


COMMANDS = list(commands(cli))


def help_of(names: tuple[str, ...], width: int) -> str:
    result = CliRunner().invoke(cli, [*names, "--help"], terminal_width=width)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_width(names: tuple[str, ...], width: int) -> None:
    """Verify: no line is too long, but for examples, which are copied whole: these fit 80 columns."""
    for line in help_of(names, width).splitlines():
        assert len(line) <= width or (len(line) <= 80 and line.startswith("    ")), line


@pytest.mark.parametrize("group", [(), ("fault",), ("experiment",)])
def test_summaries_are_whole(group: tuple[str, ...]) -> None:
    """Verify: every command is listed once with its first sentence; at 80 columns that is one line."""
    text = help_of(group, 80)
    assert "..." not in text.partition("\n\n")[2]
    for names in COMMANDS:
        if names[: len(group)] == group and len(names) > len(group):
            name = names[len(group)]
            [line] = [line for line in text.splitlines() if line.split()[:1] == [name]]
            assert line.endswith("."), line


def test_options_of_serve() -> None:
    """Verify: each has its group; only --help has none."""
    context = click.Context(serve)
    groups = serve.grouped_options(context)
    assert ["--help" in words for words, _ in groups["Others"]] == [True]
    options = [one for one in serve.get_params(context) if isinstance(one, click.Option)]
    assert sum(map(len, groups.values())) == len(options)
