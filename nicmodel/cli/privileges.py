"""Rights: what a server needs to open its sockets and wires, it does not need afterwards."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import struct
from dataclasses import dataclass
from pathlib import Path

import click

from nicmodel.nearest import did_you_mean

_NO_USER = (1 << 32) - 1  # "leave it as it is", setresuid(2)
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h


@dataclass(frozen=True)
class User:
    """Somebody to run as.

    Attributes:
        uid: number of the user.
        gid: number of the user's first group.
        name: as passwd(5) has it; empty if it does not know the number.
    """

    uid: int
    gid: int
    name: str = ""

    def become(self) -> None:
        """Give up all rights but those of this user, for good; programs that are started get no others either.

        Raises:
            PermissionError: this process may not become that user, or that user cannot read nicmodel.
        """
        if os.getuid() != self.uid or os.geteuid() != self.uid:
            if self.name:
                os.initgroups(self.name, self.gid)
            else:
                os.setgroups([self.gid])
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
        libc = ctypes.CDLL(None, use_errno=True)
        _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        # Effective, permitted and inheritable: none. Ambient capabilities go with the permitted ones.
        _check(libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)))
        # What is imported later has to be found.
        source = Path(__file__)
        if not os.access(source, os.R_OK):
            raise PermissionError(errno.EACCES, f"user {self.name or self.uid} cannot read {source.parents[1]}")


def _check(status: int) -> None:
    if status != 0:
        raise PermissionError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def user(_context: click.Context, _parameter: click.Parameter, value: str | None) -> User | None:
    """Look up the user, given by name or number, that an option names.

    Raises:
        click.BadParameter: there is no such user.
    """
    if value is None:
        return None
    if not value.isdecimal():
        try:
            found = pwd.getpwnam(value)
        except (KeyError, ValueError):
            nearest = did_you_mean(value, [one.pw_name for one in pwd.getpwall()])
            raise click.BadParameter(f"there is no user {value!r}{nearest}") from None
        return User(found.pw_uid, found.pw_gid, found.pw_name)
    if len(value) > 10 or int(value) >= _NO_USER:
        raise click.BadParameter(f"{value[:20]} is not a number of a user")
    try:
        found = pwd.getpwuid(int(value))
    except KeyError:  # as in a container: a number is enough
        return User(int(value), int(value))
    return User(found.pw_uid, found.pw_gid, found.pw_name)
