"""The command ``nicmodel``: its sub-commands and how errors reach a person."""

from __future__ import annotations

import importlib
import sys

import click

from nicmodel.cli import stopping
from nicmodel.cli.plain import plain_where_needed
from nicmodel.cli.start import no_garbage
from nicmodel.nearest import did_you_mean
from nicmodel.observe.control import ControlError
from nicmodel.vm.errors import VmError
from nicmodel.vm.host import explain
from nicmodel.wire.wire import WireError

#: Sub-commands and where they are; only the one that is called is imported.
_COMMANDS = {
    "demo": "nicmodel.cli.demo",
    "doctor": "nicmodel.cli.doctor",
    "experiment": "nicmodel.cli.experiment",
    "serve": "nicmodel.cli.serve",
    "vm": "nicmodel.vm.cli",
    "config": "nicmodel.cli.config",
    "selftests": "nicmodel.cli.selftests",
    "stat": "nicmodel.cli.stat",
    "top": "nicmodel.cli.top",
    "ledger": "nicmodel.cli.ledger",
    "show": "nicmodel.cli.show",
    "trace": "nicmodel.cli.trace",
    "capture": "nicmodel.cli.capture",
    "inject": "nicmodel.cli.act",
    "send": "nicmodel.cli.act",
    "link": "nicmodel.cli.act",
    "reset": "nicmodel.cli.act",
    "rules": "nicmodel.cli.contract",
    "findings": "nicmodel.cli.contract",
    "faults": "nicmodel.cli.fault",
    "fault": "nicmodel.cli.fault",
}


class _Commands(click.Group):
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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="nicmodel")
def cli() -> None:
    """An emulated multi-queue NIC (Google's gVNIC) for QEMU guests, over vfio-user."""


def main() -> None:
    """Run the command line; an error is one sentence and exit status 1."""
    stopping.stop_on_signals()
    plain_where_needed()
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (ControlError, VmError, WireError) as error:
        click.echo(f"nicmodel: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        # A full or read-only disk, a file that is not this user's: no fault of the program's, so no traceback.
        if not (sentence := explain(error)):
            raise
        click.echo(f"nicmodel: {sentence}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        stopping.abandon_output()
        sys.exit(stopping.status())
