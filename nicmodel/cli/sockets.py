"""Where a server's sockets come from, and who may connect to them: options of ``nicmodel serve``."""

from __future__ import annotations

import grp
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import click

from nicmodel.nearest import did_you_mean
from nicmodel.vfio_user.listener import Listener

F = TypeVar("F", bound=Callable[..., object])

_NO_GROUP = 0xFFFFFFFF  # chown(2): leave it as it is


def _mode(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if not re.fullmatch("[0-7]{3,4}", value) or int(value, 8) > 0o777:
        raise click.BadParameter(f"{value!r} is no mode of a file: write three octal digits, such as 660")
    mode = int(value, 8)
    if not mode & 0o222:
        raise click.BadParameter(f"with {value} nobody could connect: that takes the right to write, as in 660")
    return mode


def _group(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if value.isascii() and value.isdigit() and len(value) <= 10 and int(value) < _NO_GROUP:
        return int(value)
    groups = {one.gr_name: one.gr_gid for one in grp.getgrall()}
    if value in groups:
        return groups[value]
    try:
        return grp.getgrnam(value).gr_gid  # of a directory that does not list its groups
    except (KeyError, ValueError):
        raise click.BadParameter(f"this host has no group {value!r}{did_you_mean(value, groups)}") from None


@dataclass(frozen=True)
class Access:
    """Who may connect to a socket, besides root.

    Attributes:
        mode: permissions of its file; None: those that the umask leaves or, with a group, 0660.
        group: the file's group; None: the process's own.
    """

    mode: int | None
    group: int | None

    def listen(self, path: str) -> Listener:
        """A socket at a path, which is open to nobody else at any moment."""
        return Listener(path, mode=self.mode, group=self.group)

    @property
    def given(self) -> bool:
        """Whether anything is asked for."""
        return self.mode is not None or self.group is not None


def access_options(socket: str, default: str, group_help: str) -> Callable[[F], F]:
    """The options ``--SOCKET-mode`` and ``--SOCKET-group``, which end up in parameters of these names.

    Args:
        socket: the option that names the socket.
        default: the mode if none is given, in words.
        group_help: which group one gives, in words.
    """

    def add(function: F) -> F:
        mode = click.option(
            f"--{socket}-mode", callback=_mode, metavar="MODE",
            help=f"Permissions of --{socket}'s file, in octal. Connecting takes write permission."
            f"  [default: {default}; with a group 660]",
        )  # fmt: skip
        group = click.option(
            f"--{socket}-group", callback=_group, metavar="GROUP",
            help=f"Group of --{socket}'s file, by name or number: {group_help}",
        )  # fmt: skip
        return mode(group(function))

    return add
