"""``nicmodel doctor``: what this host can and cannot do for guests, and what to do about it."""

from __future__ import annotations

import json
import sys

import click
from rich.markup import escape

from nicmodel.cli.progress import console
from nicmodel.cli.tables import plain_table
from nicmodel.vm.doctor import examine
from nicmodel.vm.host import State

_COLOURS = {State.GOOD: "green", State.LIMITED: "yellow", State.BAD: "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs: a list of subject, state, found and advice.")
def doctor(as_json: bool) -> None:
    """Say what this host can do for guests, and what is missing.

    Looks at programs, rights, disk space, Debian's packages, QEMU and KVM, exactly as the other commands do before they
    begin. Nothing is downloaded. "limited": something is slower, or left out; "missing": `nicmodel demo` does not run,
    and the exit status is 1.
    """
    checks = examine()
    if as_json:
        fields = [
            {"subject": one.subject, "state": one.state.value, "found": one.found, "advice": one.advice}
            for one in checks
        ]
        click.echo(json.dumps(fields, indent=1))
    else:
        table = plain_table("", "", "what was found, and what to do about it")
        for one in checks:
            state = f"[{_COLOURS[one.state]}]{one.state.value}[/]"
            advice = f"\n[bold]{escape(one.advice)}[/]" if one.advice else ""
            table.add_row(one.subject, state, escape(one.found) + advice)
        console.print(table)
    sys.exit(any(one.state is State.BAD for one in checks))
