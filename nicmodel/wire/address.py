"""Addresses of sockets as text: the path of a UNIX socket, or HOST:PORT."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from typing import Any

from nicmodel.wire.wire import WireError

_UNIX_PATH_MAX = 107  # unix(7): sun_path, less its terminator
_HOST_PORT = re.compile(r"(?P<host>[^/]+):(?P<port>[0-9]+)")


def resolve(text: str, kind: socket.SocketKind) -> tuple[int, Any]:
    """Family and address of a path or of HOST:PORT.

    Raises:
        WireError: no such host, or the path is too long.
    """
    if not (match := _HOST_PORT.fullmatch(text)):
        if len(os.fsencode(text)) > _UNIX_PATH_MAX:
            raise WireError(f"{text}: the path of a UNIX socket has at most {_UNIX_PATH_MAX} bytes")
        return socket.AF_UNIX, text
    if len(match["port"]) > 5 or int(match["port"]) > 65535:
        raise WireError(f"{text}: a port is a number up to 65535")
    try:
        found = socket.getaddrinfo(match["host"].strip("[]"), int(match["port"]), type=kind)
    except OSError as error:
        raise WireError(f"{text}: {error.strerror}") from error
    except UnicodeError:  # of the name's encoding: a part of it is empty, or has more than 63 bytes
        raise WireError(f"{text}: this is no host's name") from None
    family, _, _, _, address = found[0]
    return family, address


def bind(family: int, kind: socket.SocketKind, address: Any) -> socket.socket:
    """A new socket at an address, not blocking. A path left behind by a process that is gone is taken over.

    Raises:
        WireError: somebody else is there, or the address is none of this machine's.
    """
    made = socket.socket(family, kind)
    try:
        if family == socket.AF_UNIX:
            _remove_stale(address, kind)
        elif kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.setblocking(False)
    except OSError as error:
        made.close()
        raise WireError(f"cannot listen at {address}: {error.strerror or error}") from error
    return made


def _remove_stale(path: str, kind: socket.SocketKind) -> None:
    """Remove the socket at `path` if nobody listens there."""
    with socket.socket(socket.AF_UNIX, kind) as probe:
        if probe.connect_ex(path) == errno.ECONNREFUSED and stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
