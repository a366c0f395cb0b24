"""What commands that try a driver have in common: how they take it, and the NIC that they try it on."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import click

from nicmodel.client.text import printable
from nicmodel.vm.driver import BuildError, Driver
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.modules import read


@dataclass(frozen=True)
class Loadable:
    """A driver that can be loaded.

    Attributes:
        modules: Its modules by name, in the order in which they are loaded.
        files: Where they are.
    """

    modules: dict[str, bytes]
    files: tuple[Path, ...]


def loadable(path: Path, kernel: KernelChoice) -> Loadable:
    """The driver in a module's file (NAME.ko), or in a folder of sources, which is compiled.

    Raises:
        VmError: It is neither, or for another kernel.
        Exit: It does not compile; what the compiler says has been printed.
    """
    found = kernel.find()
    if path.suffix == ".ko":
        return Loadable({read(path, found.release).name: path.read_bytes()}, (path,))
    work = Driver(path, found)
    try:
        built = work.build()
    except BuildError as error:
        click.echo(plain_lines(str(error)), err=True)
        raise click.exceptions.Exit(1) from None
    return Loadable({one.stem: work.smaller(one) for one in built.modules}, built.modules)


def serve_words(text: str) -> list[str]:
    """The words of ``--serve``, which are options for `nicmodel serve`.

    Raises:
        BadParameter: A quotation mark is missing.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise click.BadParameter(f"--serve {text!r}: {error}") from None


def plain_lines(text: str) -> str:
    """Text from outside, such as a compiler's, ready to be printed."""
    return "\n".join(printable(line.expandtabs()) for line in text.splitlines())
