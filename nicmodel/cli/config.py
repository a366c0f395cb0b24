"""``nicmodel config``: ready configurations for QEMU, libvirt and systemd."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from nicmodel.installation import data_folder
from nicmodel.nearest import did_you_mean
from nicmodel.vm.arch import ARCHES
from nicmodel.vm.guest import parse_named_size, parse_size, shell_command
from nicmodel.vm.layout import ACCELERATORS, FOLDER, LAYOUTS, LIBVIRT, Accelerator, Nic, arguments, libvirt_domain
from nicmodel.vm.qemu import system_qemu, too_old
from nicmodel.vm.virtme import vng_command

_UNITS = ("nicmodel@.socket", "nicmodel@.service")
_FILES = {
    **{name: FOLDER / file for name, file in LAYOUTS.items()},
    "libvirt": FOLDER / LIBVIRT,
    **{name: data_folder("systemd") / name for name in _UNITS},
}
_VNG = "vng"


@click.command()
@click.argument("name", required=False, metavar="[NAME]")
@click.option("--nic", "nics", multiple=True, metavar="SOCKET",
              help="Where `nicmodel serve` listens. Repeat for more.  [default: /run/nicmodel/nic0.sock]")  # fmt: skip
@click.option("--vcpus", type=click.IntRange(1, 288), default=2, show_default=True, help="Virtual CPUs.")
@click.option("--memory", default="2G", show_default=True, metavar="SIZE", help="Memory, such as 512M or 2G.")
@click.option("--accelerator", "accelerators", multiple=True, metavar="NAME=SIZE",
              help="For machines: a PCI device with memory in a BAR, a file in /dev/shm. Repeat for more.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="VARIABLE=VALUE",
              help="Another variable of the file, such as KERNEL=, CPU= or DISK=. Repeat for more.")  # fmt: skip
@click.option("--file", "raw", is_flag=True, help="Print the file as it is, nothing filled in.")
@click.argument("qemu_arguments", nargs=-1, metavar="[-- QEMU ARGUMENTS]")
def config(
    name: str | None,
    nics: tuple[str, ...],
    vcpus: int,
    memory: str,
    accelerators: tuple[str, ...],
    settings: tuple[str, ...],
    raw: bool,
    qemu_arguments: tuple[str, ...],
) -> None:
    """Print a configuration with the NIC for QEMU, libvirt or systemd.

    With a NAME: that configuration, filled in. Without: a list of them.

    A machine is a command line for your own QEMU (10.1 or later). Without --set KERNEL=FILE it boots from a disk, which
    you add after two dashes. The comment at the top of the file (--file) names its variables. The environment variable
    QEMU names the QEMU to call; `nicmodel vm --prepare` prints one.

    \b
      nicmodel config q35 --nic /tmp/nic.sock --memory 4G -- \\
        -drive file=disk.qcow2,if=virtio -serial stdio
      nicmodel config libvirt --nic /run/nicmodel/tap0.sock \\
        --set DISK=/srv/guest.qcow2 > guest.xml
      nicmodel config vng --nic /tmp/nic.sock --set KERNEL=arch/x86/boot/bzImage
      nicmodel config nicmodel@.socket > /etc/systemd/system/nicmodel@.socket
    """
    if name is None:
        _list()
        return
    if name == _VNG:
        _vng([Nic(socket) for socket in nics or _default_sockets(name)], memory, dict(map(_setting, settings)))
        return
    if name not in _FILES:
        raise click.BadParameter(
            f"there is no configuration {name!r}{did_you_mean(name, [*_FILES, _VNG])}", param_hint="NAME"
        )
    if raw:
        click.echo(_FILES[name].read_text("utf-8"), nl=False)
        return
    values = dict(map(_setting, settings))
    variables = set(re.findall(r"\$\{(\w+)", _text(name)))
    for unknown in sorted(set(values) - variables):
        nearest = did_you_mean(unknown, variables)
        raise click.BadParameter(f"{name} has no variable {unknown!r}{nearest}", param_hint="--set")
    if name in _UNITS:
        click.echo(_FILES[name].read_text("utf-8").replace("${NICMODEL}", shlex.join(_own_command())), nl=False)
        return
    chosen = [Nic(socket) for socket in nics or _default_sockets(name)]
    values = {"VCPUS": str(vcpus), "ACCEL": _acceleration(name), **values}
    if name == "libvirt":
        if accelerators or qemu_arguments:
            raise click.UsageError("accelerators and arguments of QEMU are for machines, not for libvirt")
        values = {"TYPE": "kvm" if values["ACCEL"] == "kvm" else "qemu", "MEMORY": str(parse_size(memory)), **values}
        click.echo(libvirt_domain(chosen, values), nl=False)
        return
    parse_size(memory)
    added = [
        Accelerator(own, size, f"/dev/shm/{own}")
        for own, size in (parse_named_size(text, "--accelerator") for text in accelerators)
    ]
    arch = next(one for one in ARCHES.values() if name in one.layouts)
    qemu = shlex.split(os.environ.get("QEMU", "")) or [arch.qemu_program]
    words = [*qemu, *arguments(name, chosen, {"MEMORY": memory, **values}, added), *qemu_arguments]
    click.echo(shell_command(words))
    if "QEMU" not in os.environ and system_qemu(arch) is None:
        click.echo(too_old(arch), err=True)


def _list() -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for name, file in _FILES.items():
        table.add_row(name, _meaning(file))
    table.add_row(_VNG, "A command of virtme-ng's, whose guest has this host's own files and the NIC")
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print("\nnicmodel config NAME prints one, ready to use; nicmodel config --help says more.")


def _meaning(file: Path) -> str:
    """The first sentence of the comment that the file begins with."""
    words = " ".join(file.read_text("utf-8").split()).lstrip("<!-#").replace(" # ", " ").strip()
    return re.split(r"(?<=[a-z)])[.:;] ", words)[0]


def _vng(nics: list[Nic], memory: str, settings: dict[str, str]) -> None:
    """Print the command of virtme-ng."""
    if unknown := sorted(set(settings) - {"KERNEL", "QEMU"}):
        raise click.BadParameter(f"vng has no variable {unknown[0]!r}: there are KERNEL and QEMU", param_hint="--set")
    parse_size(memory)
    more = [f"--qemu={settings['QEMU']}"] if "QEMU" in settings else []
    click.echo(shell_command(vng_command(settings.get("KERNEL", "."), nics, memory, more)))


def _text(name: str) -> str:
    """The text of the file, and for a machine also of what an accelerator adds."""
    files = [_FILES[name]] + ([FOLDER / ACCELERATORS[name]] if name in ACCELERATORS else [])
    return "".join(file.read_text("utf-8") for file in files)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not of the form VARIABLE=VALUE", param_hint="--set")
    return name, value


def _default_sockets(name: str) -> list[str]:
    return [f"/run/nicmodel/nic{number}.sock" for number in range(2 if name == "two-nics" else 1)]


def _acceleration(name: str) -> str:
    """KVM runs no machines of another architecture."""
    foreign = any(name in arch.layouts for arch in ARCHES.values() if not arch.is_hosts)
    return "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) and not foreign else "tcg"


def _own_command() -> list[str]:
    """The command that runs now, by absolute paths: a service has another PATH."""
    beside = Path(sys.executable).with_name("nicmodel")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "nicmodel.cli"]
