"""A UNIX socket that listens at a path: a dead server's is replaced, a living one's is not."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

_MAX_PATH = 107  # sun_path of unix(7), without its NUL


class AddressError(OSError):
    """The socket cannot be created where it was asked for; ``strerror`` says why in a sentence."""


class AddressInUse(AddressError):
    """A living server listens there already."""


class Listener:
    """A listening stream socket, not blocking.

    Args:
        path: Where it is created. A socket file left behind by a dead server is replaced.
        mode: Permissions of the file, from which the umask is taken off; 0o777 if None.

    Raises:
        AddressInUse: another server listens at ``path``.
        AddressError: the path is too long, is not a socket, or cannot be created.
    """

    def __init__(self, path: str, *, mode: int | None = None) -> None:
        self.path = path
        self._socket = _listen(path, mode)
        self._file = _identity(path)

    def fileno(self) -> int:
        """Its descriptor, readable while a connection waits; -1 once it is closed."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next connection; None if it has gone meanwhile."""
        try:
            return self._socket.accept()[0]
        except (BlockingIOError, ConnectionError):
            return None

    def close(self) -> None:
        """Stop listening and remove the socket file, unless it is another server's by now."""
        self._socket.close()
        if _identity(self.path) == self._file:
            os.unlink(self.path)


def _listen(path: str, mode: int | None) -> socket.socket:
    """Create a listening socket, replacing one whose server is dead.

    It is set up under another name, so that who waits for the file to appear can connect as soon as it does.
    """
    nascent = path + "~"
    if len(os.fsencode(nascent)) > _MAX_PATH:
        raise AddressError(
            errno.ENAMETOOLONG, f"The path of the socket may have {_MAX_PATH - 1} bytes, this one is longer: {path}"
        )
    _check_free(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(nascent)
        if mode is not None:
            os.fchmod(listener.fileno(), mode)  # bind creates the file with these permissions, less the umask
        listener.bind(nascent)
        listener.listen(8)
        os.rename(nascent, path)
    except OSError as error:
        listener.close()
        raise AddressError(error.errno, f"Cannot create the socket {path}: {error.strerror}.") from None
    return listener


def _check_free(path: str) -> None:
    """See that there is nothing at ``path``, or just the socket of a dead server."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing there, or bind will say what is wrong
    if not stat.S_ISSOCK(mode):
        raise AddressError(errno.EEXIST, f"{path} exists and is not a socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass  # its backlog is full
    raise AddressInUse(errno.EADDRINUSE, f"Another server is listening at {path}.")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
