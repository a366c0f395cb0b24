"""``nicmodel kernel``: a kernel that looks for mistakes of drivers."""

from __future__ import annotations

from pathlib import Path

import click

from nicmodel.cli.help import HelpGroup
from nicmodel.client.text import printable
from nicmodel.vm.debug_kernel import DebugKernel, fragments
from nicmodel.vm.debug_kernel import build as build_kernel


@click.group(cls=HelpGroup)
def kernel() -> None:
    """Build the debug kernel, which looks for mistakes of drivers."""


@kernel.command()
@click.argument("tree", required=False, metavar="[TREE]", type=click.Path(path_type=Path))
@click.option("--jobs", "-j", type=click.IntRange(1, 1024), metavar="N",
              help="How many files are compiled at once.  [default: one for each processor]")  # fmt: skip
@click.option("--update", is_flag=True,
              help="Look for newer packages of source and compiler, and build again if there are any.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Begin anew, whatever has been built or begun.")
def build(tree: Path | None, jobs: int | None, update: bool, fresh: bool) -> None:
    """Build the debug kernel, once; `--kernel debug` boots it.

    It tells of memory that is used after it was freed, or out of bounds (KASAN), of memory that is leaked (kmemleak),
    of DMA mappings that are leaked, unmapped twice or never checked, of locks taken in an order or a context that can
    deadlock (lockdep), of undefined behaviour (UBSAN) and of packets that break the network's own rules; and it fails
    allocations on demand (fault injection). `nicmodel kernel config` prints how it is configured.

    It is made of Debian's source of the kernel that guests have by default, or of TREE, a kernel's source of your own,
    which is not written to, and booted by --kernel debug:TREE. The compiler is Debian's, in a tree of its own: this
    host needs none. It takes half an hour of one core, and 2 GB of disk while it is built; what is kept has 200 MB. A
    build that was interrupted goes on where it was. For TREE what has been built stays, so that the next time only what
    has changed there is compiled.

    \b
    The stock driver, and one of your own, under its eyes:
      nicmodel kernel build
      nicmodel vm --kernel debug --nic /tmp/nic.sock
      nicmodel driver dev gve --kernel debug
      pytest --guest-kernel debug
    """
    choice = DebugKernel(tree)
    built = build_kernel(choice, jobs=jobs or 0, update=update, fresh=fresh)
    if built.dropped:
        click.echo(f"The source does not have it as guest/kernel says: {', '.join(built.dropped)}", err=True)
    minutes, seconds = divmod(round(built.seconds), 60)
    how = f"built in {minutes} min {seconds} s" if built.seconds else "it was built before"
    found = built.kernel
    made = f"Linux {found.release}, {len(found.modules)} modules: {how}"
    click.echo(printable(f"{made}. To boot it: --kernel {found.name}"))


@kernel.command()
def config() -> None:
    """Print the fragments that the debug kernel is configured by.

    \b
    For a kernel that you build yourself, in its tree:
      nicmodel kernel config > debug.config
      scripts/kconfig/merge_config.sh -m .config debug.config
      make olddefconfig
    """
    click.echo(fragments(), nl=False)
