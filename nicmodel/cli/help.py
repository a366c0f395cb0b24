"""How help texts are laid out: nothing is cut, commands and options are in groups, and all fits the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

#: Long enough for every summary: they are wrapped, not cut.
_NO_LIMIT = 1000


class HelpGroup(click.Group):
    """A group that lists its commands with their whole summaries, which are the first sentences of their help.

    Args:
        sections: names of commands by heading; None: all of them below "Commands".
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Called by click."""
        names = self.list_commands(ctx)
        width = max(map(len, names))
        for title, chosen in (self._sections or {"Commands": names}).items():
            rows = []
            for name in chosen:
                command = self.get_command(ctx, name)
                if command is not None:
                    rows.append((f"{name:<{width}}", command.get_short_help_str(_NO_LIMIT)))
            with formatter.section(title):
                formatter.write_dl(rows)


class HelpCommand(click.Command):
    """A command whose help has lists of words and what they mean, and options in groups.

    Args:
        lists: words and their meanings, by heading; they follow the help text.
        sections: names of options, such as ``--wire``, by heading. Those that are in none are below "Others".
    """

    def __init__(
        self, *args: Any, lists: Mapping[str, Mapping[str, str]], sections: Mapping[str, Sequence[str]], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lists, self._sections = lists, sections

    def grouped_options(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        """What click says of each option, by heading."""
        records: dict[str, tuple[str, str]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                records[parameter.opts[-1]] = record
        groups = {title: [records.pop(name) for name in names] for title, names in self._sections.items()}
        return {**groups, "Others": list(records.values())}

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Called by click."""
        super().format_help_text(ctx, formatter)
        for title, rows in self.lists.items():
            with formatter.section(title):
                formatter.write_dl(list(rows.items()))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Called by click."""
        for title, rows in self.grouped_options(ctx).items():
            with formatter.section(title):
                formatter.write_dl(rows)
