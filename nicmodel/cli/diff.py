"""``nicmodel diff``: what one driver does otherwise than another."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
from rich.markup import escape

from nicmodel.cli.drivers import loadable, serve_words
from nicmodel.cli.options import BROKEN
from nicmodel.cli.progress import console
from nicmodel.cli.tables import wrapped
from nicmodel.client import behaviour
from nicmodel.client.behaviour import Run
from nicmodel.client.text import printable
from nicmodel.vm.driver_bench import TWO_QUEUES, DriverBench, Verdict
from nicmodel.vm.errors import VmError
from nicmodel.vm.kernel import KernelChoice, kernel_named
from nicmodel.vm.options import kernel_options
from nicmodel.vm.tools import check_host
from nicmodel.vm.tries import tries

#: Traffic both ways, in small packets and in large ones; other numbers of queues and other rings; down and up again.
SCRIPT = f"""
ping -q -c 200 -i 0.002 -s 56 -W 2 $REMOTE_V4
ping -q -c 100 -i 0.002 -s 1400 -W 2 $REMOTE_V4
{TWO_QUEUES}
ethtool -G $NETIF rx 512
ip link set $NETIF down
ip link set $NETIF up
ping -q -c 20 -i 0.01 -w 10 $REMOTE_V4
"""
_MOST_SAVED = 64 << 20
"""Bytes of a file with saved tries that is read."""


@dataclass(frozen=True)
class _Side:
    """One of the two drivers.

    Attributes:
        name: As the user has it.
        kernel: What it runs on.
        modules: Its modules by name; None: the kernel's own driver.
        runs: Its tries, if they were saved; empty: it is to be tried.
    """

    name: str
    kernel: KernelChoice
    modules: dict[str, bytes] | None = None
    runs: tuple[Run, ...] = ()


def _side(text: str, kernel: KernelChoice) -> _Side:
    """What the user means by a word.

    Raises:
        VmError: Nothing; the text says what there could be.
    """
    path = Path(text)
    if path.suffix == ".json" and path.is_file():
        try:
            if path.stat().st_size > _MOST_SAVED:
                raise ValueError(f"it is larger than {_MOST_SAVED >> 20} MiB")
            name, runs = behaviour.loaded(json.loads(path.read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            raise VmError(f"{text}: {error}; such a file is written by 'nicmodel diff --save'") from None
        return _Side(f"{name} ({text})", kernel, None, tuple(runs))
    sources = path.is_dir() and not (path / "include").is_dir()
    if path.suffix == ".ko" or (sources and any((path / one).is_file() for one in ("Makefile", "Kbuild"))):
        return _Side(text, kernel, loadable(path, kernel).modules)
    return _Side(text, kernel_named(text))


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--run", "script", metavar="SCRIPT",
              help="For the guest's shell, with $NETIF, $LOCAL_V4 and $REMOTE_V4; @FILE: a file's content.  [default: "
                   "pings of two sizes, other numbers of queues and other rings, down and up]")  # fmt: skip
@click.option("--tries", "count", default=3, show_default=True, type=click.IntRange(1, 100), metavar="N",
              help="How often each is tried. What is not the same in all tries of one is not compared.")  # fmt: skip
@kernel_options
@click.option("--serve", default="", metavar="OPTIONS",
              help="For `nicmodel serve`, which makes the NIC: '--profile legacy', '--weather 7'.")  # fmt: skip
@click.option("--memory", default="1G", show_default=True, metavar="SIZE", help="The guests' memory.")
@click.option("--timeout", default=120.0, show_default=True, type=click.FloatRange(0.1, 86400), metavar="SECONDS",
              help="How long SCRIPT may take.")  # fmt: skip
@click.option("--save", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Keep what was recorded: FOLDER/a.json and b.json can be A or B of another comparison.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def diff(
    first: str, second: str, script: str | None, count: int, kernel: KernelChoice, serve: str, memory: str,
    timeout: float, save: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Tell what driver B does otherwise than driver A.

    Each is loaded, runs the same script and is removed, three times, while the device looks on. Then it is told in what
    they differ: commands and registers, in which order and with which fields, buffers posted before the first doorbell,
    doorbells and interrupts for each packet, rules of the contract that are newly broken, steps and features, the
    kernel's log. What differs between two tries of the same driver is left out.

    A and B are each a module (NAME.ko), the folder of a driver's sources, a kernel, whose own driver is meant (as for
    --kernel), or a file that --save has written. Modules and sources are for the kernel of --kernel.

    The exit status is 0 if there is no difference, 3 if there are some, and 1 if they cannot be compared.

    \b
      nicmodel diff trixie trixie-backports
      nicmodel diff trixie-backports gve/
      nicmodel diff old.ko new.ko --run 'ping -f -c 1000 $REMOTE_V4'
    """
    check_host()
    options = serve_words(serve)
    if script is not None and script.startswith("@"):
        try:
            script = Path(script[1:]).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.BadParameter(f"--run {script}: {error}") from None
    sides = [_side(text, kernel) for text in (first, second)]
    runs = [list(side.runs) for side in sides]
    with ExitStack() as stack:
        benches: dict[str, DriverBench] = {}
        for letter, side, kept in zip("AB", sides, runs, strict=True):
            if kept:
                continue
            if side.kernel.name not in benches:
                bench = DriverBench(side.kernel, serve=options, memory=memory, timeout=timeout)
                benches[side.kernel.name] = stack.enter_context(bench)
            bench = benches[side.kernel.name]
            # Without a tap the host answers no ping.
            line = script or (SCRIPT if bench.command.startswith("ping") else bench.command)
            kept += tries(bench, side.modules, line, count, partial(_told, f"{letter}: {side.name}", count))
    if save is not None:
        _save(save, sides, runs)
    _show(sides, runs, as_json)


def _tries(count: int) -> str:
    return "1 try" if count == 1 else f"{count} tries"


def _told(who: str, count: int, number: int, verdict: Verdict) -> None:
    """A try is over."""
    said = "; ".join(verdict.trouble) or "good"
    line = f"{who}, try {number} of {count}: {said}"
    click.echo(wrapped(printable(line)), err=True)


def _save(folder: Path, sides: list[_Side], runs: list[list[Run]]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for letter, side, kept in zip("ab", sides, runs, strict=True):
            (folder / f"{letter}.json").write_text(json.dumps(behaviour.saved(side.name, kept)) + "\n")
    except OSError as error:
        raise VmError(f"{folder}: what was recorded cannot be written there: {error.strerror}") from None


def _show(sides: list[_Side], runs: list[list[Run]], as_json: bool) -> None:
    found = behaviour.differences(*runs)
    lost = sum(run.lost for kept in runs for run in kept)
    if as_json:
        click.echo(json.dumps({
            "a": sides[0].name, "b": sides[1].name, "lost": lost,
            "differences": [{"about": one.about, "sign": one.sign, "what": one.what.replace("{}", one.queue).strip(),
                             "queue": one.queue} for one in found],
        }, indent=1))  # fmt: skip
    else:
        for letter, side, kept in zip("AB", sides, runs, strict=True):
            console.print(f"[bold]{letter}[/bold]  {escape(printable(side.name))}, {_tries(len(kept))}", soft_wrap=True)
        for about, lines in behaviour.told(found):
            console.print(f"[bold]{escape(printable(about))}[/bold]", soft_wrap=True)
            click.echo(wrapped("\n".join(f"  {printable(line)}" for line in lines)))
        if lost:
            click.echo(f"{lost:,} events came too fast or were too many: traffic was not compared")
        click.echo(f"{'no difference: ' if not found else ''}{behaviour.same(*runs)}")
    if found:
        raise click.exceptions.Exit(BROKEN)
