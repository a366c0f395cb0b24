"""``nicmodel driver fuzz``: a driver fuzzed through its device."""

from __future__ import annotations

import random
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click
from rich.markup import escape

from nicmodel.cli.devices import DEVICES
from nicmodel.cli.drivers import serve_words
from nicmodel.cli.options import BROKEN
from nicmodel.cli.progress import console
from nicmodel.cli.tables import wrapped
from nicmodel.client.text import printable
from nicmodel.faults.fault import FaultError
from nicmodel.faults.scenario import Scenario
from nicmodel.nearest import Choice
from nicmodel.vm.coverage import files
from nicmodel.vm.coverage.module import Module
from nicmodel.vm.errors import VmError
from nicmodel.vm.fuzz.corpus import Corpus
from nicmodel.vm.fuzz.fuzzer import MOST_FINDINGS, Fuzzer, Progress
from nicmodel.vm.fuzz.guide import Seen
from nicmodel.vm.fuzz.inputs import ABOUT, Inputs, keeps_contract
from nicmodel.vm.fuzz.smaller import Limits
from nicmodel.vm.fuzz.target import Found, Target
from nicmodel.vm.kernel import Kernel, KernelChoice
from nicmodel.vm.needs import DRIVERS
from nicmodel.vm.options import kernel_options, module_option

#: Lines of the kernel's log that are shown of a finding.
_LINES = 12
#: Seconds from one line of progress to the next, on a terminal and elsewhere.
_TERMINAL, _LOG = 0.5, 30.0


def _about(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text != "all" else tuple(ABOUT)
    for name in names:
        if name not in ABOUT:
            raise click.BadParameter(f"{name!r} is none of {', '.join(ABOUT)}")
    return names


@click.command()
@kernel_options
@module_option
@click.option("--device", default="gvnic", show_default=True, type=Choice(list(DEVICES)), help="The kind of NIC.")
@click.option("--serve", default="", metavar="OPTIONS", help="More options for `nicmodel serve`: '--profile legacy'.")
@click.option("--inputs", "about", default="all", show_default=True, metavar="NAMES", callback=_about,
              help=f"What inputs are about, separated by commas: {', '.join(ABOUT)}.")  # fmt: skip
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(0.1, 10**7), metavar="N",
              help="How long. What is found at the end may take longer.")  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="Of the dice.  [default: another one each time]")
@click.option("--corpus", default="fuzz", show_default=True, type=click.Path(path_type=Path, file_okay=False),
              metavar="DIR", help="Inputs that have run something new, from which the next run begins; in DIR/findings "
                                  "what was found.")  # fmt: skip
@click.option("--findings", default=MOST_FINDINGS, show_default=True, type=click.IntRange(1, MOST_FINDINGS),
              metavar="N", help="End after so many findings.")  # fmt: skip
@click.option("--tries", default=40, show_default=True, type=click.IntRange(0), metavar="N",
              help="How often a finding is played again, in fresh guests, to make it small.")  # fmt: skip
@click.option("--replay", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE",
              help="Play this scenario in a fresh guest instead, and tell what goes wrong.")  # fmt: skip
def fuzz(
    kernel: KernelChoice, module_files: tuple[Path, ...], device: str, serve: str, about: tuple[str, ...],
    seconds: float, seed: int | None, corpus: Path, findings: int, tries: int, replay: Path | None,
) -> None:  # fmt: skip
    """Fuzz a driver through its device.

    A guest has the driver up. Its device does, hundreds of times a second, what devices do and what they never should:
    frames, completions, interrupts, answers to commands, resets, each with values that dice have drawn. QEMU's emulator
    tells which code of the driver runs (`nicmodel coverage`): inputs that run something new are kept in DIR, and
    changed to make others.

    When the kernel complains, the guest crashes or hangs, or the driver answers nothing, even when it is bound again,
    that is a finding. What led to it is played again in fresh guests with ever fewer parts, and what is left is written
    to DIR/findings: a scenario, what the kernel said, and the command that plays it again. The same finding is written
    once, and counted.

    Ctrl-C ends it; the next run goes on from DIR. The exit status is 0 if nothing was found, and 3 if something was.

    \b
      nicmodel driver fuzz --seconds 600
      nicmodel driver fuzz --module mine.ko --inputs frames,completions
      nicmodel driver fuzz --device idpf --kernel debug --corpus idpf
      nicmodel driver fuzz --replay fuzz/findings/01-oops/scenario.toml
    """
    found = kernel.find()
    options = ["--device", device, *serve_words(serve)]
    if replay is not None:
        _replay(replay, kernel, options, module_files, device)
        return
    seed = random.SystemRandom().getrandbits(31) if seed is None else seed
    modules = _modules(found, module_files, device)
    chance, seen = random.Random(seed), Seen(modules)
    teller = _Teller()
    how = ["nicmodel", "driver", "fuzz", "--device", device, "--kernel", kernel.name]
    how += [word for path in module_files for word in ("--module", str(path.absolute()))]
    how += ["--serve", serve] if serve else []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nicmodel-fuzz-")))
        target, again = (
            stack.enter_context(Target(kernel, options, module_files, "xdp" in about, folder, one))
            for one in (seen, None)
        )
        fuzzer = Fuzzer(
            target, again, Inputs(DEVICES[device].faults, about, target.frames, chance),
            Corpus(corpus, DEVICES[device].faults, chance), seen, chance, corpus / "findings",
            Limits(tries, 20.0 * tries * found.patience), teller.tell, shlex.join(how),
        )  # fmt: skip
        console.print(
            f"[bold]{escape(', '.join(one.name for one in modules))}[/bold] of Linux {escape(found.release)}, "
            f"{device}, seed {seed}; {escape(printable(str(corpus)))} keeps what is found"
        )
        try:
            fuzzer.run(seconds, findings)
        except KeyboardInterrupt:
            pass  # what there is, is told
        finally:
            teller.clear()
    _show(fuzzer.progress)
    if fuzzer.progress.findings:
        raise click.exceptions.Exit(BROKEN)


def _modules(kernel: Kernel, named: Sequence[Path], device: str) -> list[Module]:
    """The modules whose coverage guides.

    Raises:
        VmError: there is none.
    """
    if named:
        return [Module.read(path) for path in named]
    name = DRIVERS[DEVICES[device].pci].module
    if module := files.of_kernel(kernel, name):
        return [module]
    raise VmError(f"Linux {kernel.release} has no module {name}: name a driver's file, --module FILE")


class _Teller:
    """One line, again and again."""

    def __init__(self) -> None:
        self._last = 0.0
        self._told: set[object] = set()
        self._pause = _TERMINAL if console.is_terminal else _LOG

    def tell(self, progress: Progress) -> None:
        """Tell of it, if the last time is long enough ago; of each finding at once."""
        for sign, finding in progress.findings.items():
            if sign not in self._told:
                self._told.add(sign)
                self.clear()
                click.echo(wrapped(f"{printable(str(sign))}: {printable(str(finding.folder))}"))
        now = time.monotonic()
        if now < self._last + self._pause:
            return
        self._last = now
        line = _line(progress)
        if console.is_terminal:
            sys.stdout.write(f"\r{line[: console.width - 1]:<{console.width - 1}}")
            sys.stdout.flush()
        else:
            click.echo(line)

    def clear(self) -> None:
        """Have the line be empty."""
        if console.is_terminal:
            sys.stdout.write("\r" + " " * (console.width - 1) + "\r")


def _line(progress: Progress) -> str:
    spent = time.monotonic() - progress.began
    known = sum(progress.known.values())
    words = [
        f"{spent:,.0f} s", f"{progress.inputs:,} inputs", f"{progress.inputs / max(progress.busy, 0.001):,.0f}/s",
        f"{progress.blocks:,} blocks", f"{progress.corpus:,} kept",
        f"{len(progress.findings)} findings" + (f", {known} known" if known else ""),
    ]  # fmt: skip
    return "  ".join([*words, printable(progress.doing)])


def _show(progress: Progress) -> None:
    """What came of it."""
    spent = time.monotonic() - progress.began
    count, busy = progress.fast
    click.echo(
        f"{progress.inputs:,} inputs in {spent:,.0f} s, of which {progress.busy:,.0f} s were theirs; "
        f"{count:,} of frames, completions and interrupts in {busy:,.0f} s, {count / max(busy, 0.001):,.0f} a second; "
        f"{progress.guests} guests; {progress.blocks:,} blocks of the driver; {progress.corpus:,} inputs kept"
    )
    for name, times in progress.known.items():
        click.echo(wrapped(f"known: {printable(name)}, {times} times"))
    for finding in progress.findings.values():
        more = f", and {finding.more} more" if finding.more else ""
        kept = "the device kept its contract" if finding.kept else "the device broke its contract"
        again = "" if finding.scenario else "; it did not happen again"
        console.print(f"[red]✗[/red] [bold]{escape(printable(str(finding.sign)))}[/bold] ({kept}{again}{more})")
        _log(finding.log)
        file = finding.folder / ("scenario.toml" if finding.scenario else "inputs")
        click.echo(wrapped(f"    {printable(str(file))}"))
    if not progress.findings:
        console.print("[green]✓[/green] nothing was found")


def _log(lines: Sequence[str]) -> None:
    for line in lines[:_LINES]:
        click.echo(wrapped(f"      {printable(line.expandtabs())}"))


def _replay(
    path: Path, kernel: KernelChoice, options: Sequence[str], modules: Sequence[Path], device: str
) -> None:  # fmt: skip
    """Play a scenario, and tell what goes wrong.

    Raises:
        Exit: something does.
        VmError: the file is no scenario.
    """
    try:
        scenario = Scenario.load(path, DEVICES[device].faults)
    except FaultError as error:
        raise VmError(str(error)) from None
    found: list[Found] = []
    xdp = any("xdp" in deed.run for deed in scenario.guest)
    with Target(kernel, options, modules, xdp, Path(), None) as target:
        target.start()
        try:
            target.play(scenario)
        except VmError as error:
            click.echo(wrapped(printable(str(error).partition("\n")[0])))
        found = target.what_is_wrong()
    if not keeps_contract(scenario):  # a device that is wrong can make a driver seem so
        found = [one for one in found if one.sign.what != "contract"]
    for one in found:
        console.print(f"[red]✗[/red] [bold]{escape(printable(str(one.sign)))}[/bold]")
        _log(one.log)
    if found:
        raise click.exceptions.Exit(BROKEN)
    console.print("[green]✓[/green] nothing goes wrong")
