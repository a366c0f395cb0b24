"""Files that a command writes its report to, when it has worked for minutes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from nicmodel.vm.errors import VmError


def check_writable(*files: Path | None) -> None:
    """Say now, and not after minutes, that a file cannot be written; None: it is not asked for.

    Raises:
        VmError: One cannot be.
    """
    for file in filter(None, files):
        if file.is_dir() or not file.absolute().parent.is_dir() or not os.access(file.absolute().parent, os.W_OK):
            raise VmError(f"{file} cannot be written: name a file in a folder that is there and that you may write to")


@contextmanager
def writing(*files: Path | None) -> Iterator[None]:
    """The block writes these files, those that are None excepted; then it is said that they are there.

    Raises:
        VmError: One cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise VmError(f"{error.filename}: the report cannot be written there: {error.strerror}") from None
    for file in filter(None, files):
        click.echo(f"written: {file}")
