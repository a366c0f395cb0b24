"""What systemd and a service tell each other: sockets that are handed over, and that the service is ready.

Source: sd_listen_fds(3), sd_notify(3), systemd.socket(5).
"""

from __future__ import annotations

import errno
import logging
import os
import socket

from nicmodel.vfio_user.listener import AddressError, Listener

log = logging.getLogger(__name__)

_FIRST = 3  # SD_LISTEN_FDS_START
_MAX = 256


def take_sockets() -> list[tuple[str, Listener]]:
    """The listening sockets that systemd has opened for this process, with their names (``FileDescriptorName=``).

    They are taken once: the variables that tell of them are removed, so that no child takes them for its own.

    Raises:
        AddressError: what was handed over is no listening UNIX socket.
    """
    pid, count, names = (os.environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count:  # another's, that this process has inherited
        return []
    if not count.isdecimal() or int(count) > _MAX:
        raise AddressError(
            errno.EINVAL, f"LISTEN_FDS is {count!r}; it is the number of sockets handed over, {_MAX} at most."
        )
    named = names.split(":") if names else []
    named += ["unknown"] * (int(count) - len(named))
    return [(named[number], Listener.adopt(_FIRST + number)) for number in range(int(count))]


def notify(*lines: str) -> None:
    """Tell systemd how the service does, such as by ``READY=1``; without systemd nobody is told.

    That it cannot be told is logged: it is no reason for a service to end.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as end:
            end.sendto("\n".join(lines).encode(), address)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        log.warning("systemd was not told %s: %r: %s", lines[0], os.environ["NOTIFY_SOCKET"], error)
