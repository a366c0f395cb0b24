"""``nicmodel driver``: build a driver that is being written, and try it at each save."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.markup import escape

from nicmodel.cli.drivers import plain_lines, serve_words
from nicmodel.cli.fuzz import fuzz
from nicmodel.cli.help import HelpGroup
from nicmodel.cli.options import BROKEN
from nicmodel.cli.progress import console
from nicmodel.cli.saves import Saves
from nicmodel.cli.tables import wrapped
from nicmodel.client.text import printable
from nicmodel.observe.findings import as_text
from nicmodel.vm.driver import BuildError, Driver
from nicmodel.vm.driver_bench import DriverBench, Part, Verdict
from nicmodel.vm.errors import VmError
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.options import kernel_options
from nicmodel.vm.tools import check_host, driver_source

#: Lines of a command, of the kernel's log or of a compiler that are shown; the last ones, or a compiler's first ones.
_MOST = 120
#: Characters of a part's name.
_COLUMN = 9


@click.group(cls=HelpGroup)
def driver() -> None:
    """Build a driver that you write or change, and try it at each save."""


driver.add_command(fuzz)


def _variables(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for name, equals, _ in pairs:
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{name!r}: write VARIABLE=VALUE, such as KCFLAGS=-DDEBUG")
    return {name: value for name, _, value in pairs}


#: Of the kernel's source: the driver of the NIC.
_STOCK = "drivers/net/ethernet/google/gve"


@driver.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def source(folder: Path) -> None:
    """Put the stock driver's source into a new folder.

    It is drivers/net/ethernet/google/gve of Debian's linux-source package, for the kernel that guests have by default.
    The package has 165 MB, and is downloaded once.
    """
    if folder.exists():
        raise VmError(f"{folder} is there already: name a folder that is not")
    shutil.copytree(driver_source(_STOCK), folder)
    click.echo(f"{folder}: gve as it is in the guest's kernel. Next: nicmodel driver dev {shlex.quote(str(folder))}")


_folder_argument = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
_make_option = click.option(
    "--make", "variables", multiple=True, metavar="VARIABLE=VALUE", callback=_variables,
    help="Given to make, such as KCFLAGS=-DDEBUG, W=1 or CONFIG_NAME=m. Repeat for more.",
)  # fmt: skip
_own_makefile_option = click.option(
    "--own-makefile", is_flag=True,
    help="Run DIR's Makefile itself, as `make` there would, for a driver that prepares something before the kernel's "
         "make compiles it. It finds the kernel's headers below /lib/modules/$(uname -r).",
)  # fmt: skip


@driver.command()
@_folder_argument
@kernel_options
@_make_option
@_own_makefile_option
def build(folder: Path, kernel: KernelChoice, variables: dict[str, str], own_makefile: bool) -> None:
    """Compile a driver for the guest's kernel.

    DIR has a Makefile or Kbuild: a driver's folder of the kernel's source, such as drivers/net/ethernet/google/gve, or
    a module of its own ('obj-m += NAME.o'). Nothing is written there. It is compiled against the kernel's headers, by
    Debian's compiler if it is one of Debian's kernels; only what has changed is compiled again.

    Messages of the compiler are printed as they are, with the paths of your files; then the modules, a line each, for
    `nicmodel vm --module`. The exit status is 1 if it does not compile.

    \b
    Your driver in a guest:
      nicmodel vm --nic /tmp/nic.sock --module "$(nicmodel driver build gve)"
    """
    check_host()
    try:
        built = Driver(folder, kernel.find(), variables, own_makefile=own_makefile).build()
    except BuildError as error:
        click.echo(plain_lines(str(error)), err=True)
        raise click.exceptions.Exit(1) from None
    if built.said:
        click.echo(plain_lines(built.said), err=True)
    for module in built.modules:
        click.echo(module)


@driver.command()
@_folder_argument
@click.argument("command", nargs=-1, metavar="[-- COMMAND]")
@click.option("--once", is_flag=True, help="One round, for a script or CI; the exit status tells its outcome.")
@kernel_options
@_make_option
@_own_makefile_option
@click.option("--serve", default="", metavar="OPTIONS",
              help="For `nicmodel serve`, which makes the NIC: '--profile legacy --queues 2'.")  # fmt: skip
@click.option("--memory", default="1G", show_default=True, metavar="SIZE", help="The guest's memory.")
@click.option("--tools", is_flag=True,
              help="Have devmem_receiver, devmem_sender and the kernel's ncdevmem in the guest.")  # fmt: skip
@click.option("--timeout", default=60.0, show_default=True, type=click.FloatRange(0.1, 86400), metavar="SECONDS",
              help="How long COMMAND may take.")  # fmt: skip
def dev(
    folder: Path,
    command: tuple[str, ...],
    once: bool,
    kernel: KernelChoice,
    variables: dict[str, str],
    own_makefile: bool,
    serve: str,
    memory: str,
    tools: bool,
    timeout: float,
) -> None:
    """Build, load and try a driver at each save.

    Starts a NIC and a guest. In each round DIR is built as by `nicmodel driver build`, its modules are loaded in the
    running guest, the interface is brought up, COMMAND runs there, and the modules are removed again. Then you see in
    one place: the compiler's messages; COMMAND's output and status; what the kernel has logged since the driver was
    loaded, with files and lines of your source in call traces; the rules of the contract that it has broken; and what
    the device has counted.

    COMMAND is for the guest's shell; its words are joined by blanks, as ssh does. It has $NETIF, the interface, and
    $LOCAL_V4 and $REMOTE_V4, the addresses of guest and host, which is at the NIC's other end. Without COMMAND the
    guest pings the host.

    A driver that crashes the guest, or cannot be removed, costs a second or two: the next round has a fresh guest.
    Ctrl-C ends everything.

    With --once the exit status is 0 if all went well, 3 if only rules of the contract were broken, and 1 if it does not
    compile, COMMAND fails, or the kernel complains.

    \b
      nicmodel driver dev gve
      nicmodel driver dev gve -- 'ping -c 3 $REMOTE_V4 && ethtool -S $NETIF'
      nicmodel driver dev gve --once --tools -- ncdevmem -h
    """
    check_host()
    options = serve_words(serve)
    line = " ".join(command) if command else None
    work = Driver(folder, kernel.find(), variables, own_makefile=own_makefile)
    bench = DriverBench(kernel, serve=options, memory=memory, tools=tools, timeout=timeout)
    with Saves(folder) as saves, bench:
        since = time.monotonic()
        while True:
            status = _round(work, bench, line, since)
            if once:
                raise click.exceptions.Exit(status)
            bench.prepare()  # a fresh guest, if it takes one, while nobody waits for it
            console.print(
                f"[dim]Save a file in {escape(printable(str(folder)))} for the next round; Ctrl-C ends.[/dim]"
            )
            since = _next_save(saves, work)


def _next_save(saves: Saves, work: Driver) -> float:
    """Wait for a save that changes a source; when it was, on the monotonic clock."""
    while True:
        since = saves.wait()
        try:
            changed = work.changed()
        except BuildError:  # the next build says what is wrong
            changed = ["too many files"]
        if changed:
            console.print(f"\n[bold]{escape(printable(', '.join(changed)))}[/bold]")
            return since


def _round(work: Driver, bench: DriverBench, command: str | None, since: float) -> int:
    """Build and try a driver, and tell what comes of it; the exit status."""
    started = time.monotonic()
    try:
        with work.start() as running:
            bench.prepare()
            built = running.wait()
    except BuildError as error:
        _tell(Part("build", False, time.monotonic() - started, "it does not compile", str(error)), first=True)
        _judge(["it does not compile"], since)
        return 1
    compiled = f"{len(built.compiled)} files" if len(built.compiled) > 3 else ", ".join(built.compiled)
    _tell(Part("build", True, time.monotonic() - started, compiled or "nothing to compile", built.said), first=True)
    verdict = bench.try_out({path.stem: work.smaller(path) for path in built.modules}, command, _tell)
    _show(verdict, work)
    _judge(verdict.trouble, since)
    if not verdict.trouble:
        return 0
    return BROKEN if all(part.good for part in verdict.parts) and not verdict.complaints else 1


def _tell(part: Part, *, first: bool = False) -> None:
    """A part of a round, and what was printed meanwhile; of that the first lines or the last ones, if it is long."""
    mark = "[green]✓[/green]" if part.good else "[red]✗[/red]"
    said = escape(printable(part.said))
    console.print(f"  {mark} {part.name:<{_COLUMN}} [dim]{part.seconds:4.1f} s[/dim]  {said}", soft_wrap=True)
    _block(part.output, first=first)


def _show(verdict: Verdict, work: Driver) -> None:
    """What a try has shown besides its parts."""
    _heading("kernel", f"{len(verdict.log)} lines" if verdict.log else "nothing logged", not verdict.complaints)
    log = verdict.log
    if len(log) > _MOST and verdict.complaints:
        # A debug kernel's reports are long, and begin with what is wrong.
        log = log[log.index(verdict.complaints[0]) :]
    _block(work.located("\n".join(log)), first=log is not verdict.log)
    findings = "\n".join(map(as_text, verdict.findings))
    told = "broken" if verdict.findings else "kept"
    _heading("contract", told, not verdict.findings)
    _block(findings)
    _heading("device", "", True)
    _block("\n".join(f"{name:<12}{text}" for name, text in verdict.device.items()))
    if verdict.lost:
        console.print(f"  [yellow]![/yellow] {'guest':<{_COLUMN}} {escape(printable(verdict.lost))}: the next is fresh")


def _heading(name: str, said: str, good: bool) -> None:
    mark = "[green]✓[/green]" if good else "[red]✗[/red]"
    console.print(f"  {mark} {name:<{_COLUMN}} {said}")


def _block(text: str, *, first: bool = False) -> None:
    """Lines from outside, indented; the first or the last of them, if there are many."""
    lines = text.rstrip().splitlines()
    left_out = len(lines) - _MOST
    if left_out > 0:
        note = f"({left_out} lines {'more' if first else 'before'})"
        lines = [*lines[:_MOST], note] if first else [note, *lines[-_MOST:]]
    if lines:
        click.echo(wrapped("\n".join(f"      {printable(line.expandtabs())}" for line in lines)))


def _judge(trouble: Sequence[str], since: float) -> None:
    verdict = f"[red]✗ {escape(printable('; '.join(trouble)))}[/red]" if trouble else "[green]✓ good[/green]"
    console.print(f"{verdict} [dim]({time.monotonic() - since:.1f} s after the save)[/dim]", soft_wrap=True)
