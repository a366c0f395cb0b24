"""The command ``nicmodel``: its sub-commands and how errors reach a person."""

from __future__ import annotations

import importlib
import os
import sys

import click

from nicmodel import __version__
from nicmodel.cli import stopping
from nicmodel.cli.help import HelpGroup
from nicmodel.cli.plain import plain_where_needed
from nicmodel.cli.start import no_garbage
from nicmodel.client.control import ControlError
from nicmodel.client.text import printable
from nicmodel.nearest import did_you_mean
from nicmodel.vm.errors import VmError
from nicmodel.vm.host import explain
from nicmodel.wire.errors import WireError

#: Sub-commands and where they are; only the one that is called is imported.
_COMMANDS = {
    "demo": "nicmodel.cli.demo",
    "doctor": "nicmodel.cli.doctor",
    "experiment": "nicmodel.cli.experiment",
    "serve": "nicmodel.cli.serve",
    "vm": "nicmodel.vm.cli",
    "config": "nicmodel.cli.config",
    "selftests": "nicmodel.cli.selftests",
    "nipa": "nicmodel.cli.nipa",
    "driver": "nicmodel.cli.driver",
    "kernel": "nicmodel.cli.kernel",
    "conform": "nicmodel.cli.conform",
    "diff": "nicmodel.cli.diff",
    "campaign": "nicmodel.cli.campaign",
    "coverage": "nicmodel.cli.coverage",
    "stat": "nicmodel.cli.stat",
    "top": "nicmodel.cli.top",
    "ledger": "nicmodel.cli.ledger",
    "show": "nicmodel.cli.show",
    "bringup": "nicmodel.cli.bringup",
    "trace": "nicmodel.cli.trace",
    "capture": "nicmodel.cli.capture",
    "replay": "nicmodel.cli.replay",
    "inject": "nicmodel.cli.act",
    "send": "nicmodel.cli.act",
    "link": "nicmodel.cli.act",
    "reset": "nicmodel.cli.act",
    "rules": "nicmodel.cli.contract",
    "findings": "nicmodel.cli.contract",
    "faults": "nicmodel.cli.fault",
    "fault": "nicmodel.cli.fault",
    "weather": "nicmodel.cli.fault",
}


#: How ``nicmodel --help`` groups them.
_SECTIONS = {
    "To begin": ("demo", "doctor", "serve", "vm", "config"),
    "To write a driver": ("driver", "kernel", "bringup", "conform", "diff", "coverage", "replay"),
    "To test and compare": ("selftests", "nipa", "experiment", "campaign"),
    "To look into a running server": ("stat", "top", "ledger", "show", "trace", "capture", "findings"),
    "To act on a running server": ("inject", "send", "link", "reset", "fault"),
    "To look up": ("rules", "faults", "weather"),
}


class _Commands(HelpGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            ctx.fail(f"there is no command {args[0]!r}{did_you_mean(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        with no_garbage():
            command: click.Command = getattr(importlib.import_module(_COMMANDS[cmd_name]), cmd_name)
        return command


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    """The version, and those of what decides how the packet path is compiled: for reports of faults."""
    if value and not context.resilient_parsing:
        import importlib.metadata  # these take longer to load than all else that a short command needs
        import platform

        parts = (f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "numba", "llvmlite"))
        click.echo(f"nicmodel {__version__} (Python {platform.python_version()}, {', '.join(parts)})")
        context.exit()


@click.group(
    cls=_Commands,
    sections=_SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version,
              help="Show the version, and those of Python, numpy and Numba.")  # fmt: skip
def cli() -> None:
    """An emulated multi-queue NIC, Google's gVNIC, for QEMU guests over vfio-user.

    `nicmodel COMMAND --help` describes a command.
    """


def main() -> None:
    """Run the command line; an error is one sentence and exit status 1."""
    stopping.stop_on_signals()
    plain_where_needed()
    try:
        sys.exit(_run())
    except BrokenPipeError:  # the reader, such as head(1), has enough; click and rich give the same status
        _discard_output()
        sys.exit(1)
    except OSError as error:
        _discard_output()
        where = f"{error.filename}: " if error.filename else ""
        _complain(explain(error) or where + (error.strerror or str(error)))
        sys.exit(1)


def _run() -> int | None:
    """Run the command; its exit status."""
    try:
        status: int | None = cli.main(standalone_mode=False)
        stopping.abandon_output()
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (ControlError, VmError, WireError) as error:
        _complain(str(error))
        return 1
    except (click.Abort, KeyboardInterrupt):
        stopping.abandon_output()
        return stopping.status()


def _complain(text: str) -> None:
    """Print what is wrong; it may quote what a guest has said, line by line."""
    click.echo("nicmodel: " + "\n".join(map(printable, text.split("\n"))), err=True)


def _discard_output() -> None:
    """Have what is still to be printed go nowhere: the interpreter would try again at its end, and complain."""
    if sys.stdout is not None:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
