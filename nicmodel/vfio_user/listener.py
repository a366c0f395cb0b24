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
        mode: Permissions of the file; None: those that the umask leaves or, with a group, 0o660.
        group: The file's group, by number; None: the process's. At no moment is the socket open to anybody else.

    Raises:
        AddressInUse: another server listens at ``path``.
        AddressError: the path is too long, is not a socket, or cannot be created.
    """

    def __init__(self, path: str, *, mode: int | None = None, group: int | None = None) -> None:
        self.path = path
        self._socket = _listen(path, mode, group)
        self._owned = True
        self._file = _identity(path)

    @classmethod
    def adopt(cls, fd: int) -> Listener:
        """A socket that listens already, which somebody else has made and whose file stays theirs: systemd, a parent.

        Args:
            fd: Its descriptor, which is the listener's from then on.

        Raises:
            AddressError: it is none, or no listening UNIX stream socket.
        """
        try:
            adopted = socket.socket(fileno=fd)
        except OSError as error:
            raise AddressError(error.errno, f"Descriptor {fd} is no socket: {error.strerror}.") from None
        kind = (adopted.family, adopted.type)
        if kind != (socket.AF_UNIX, socket.SOCK_STREAM) or not adopted.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            adopted.detach()
            raise AddressError(errno.EINVAL, f"Descriptor {fd} is not a listening UNIX stream socket.")
        adopted.setblocking(False)
        adopted.set_inheritable(False)
        listener = cls.__new__(cls)
        address = adopted.getsockname()
        listener.path = address if isinstance(address, str) else "@" + os.fsdecode(address[1:])
        listener._socket, listener._owned = adopted, False
        return listener

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
        """Stop listening and remove the socket file, unless it is another's: a server's by now, or who made it."""
        self._socket.close()
        if self._owned and _identity(self.path) == self._file:
            os.unlink(self.path)


def _listen(path: str, mode: int | None, group: int | None) -> socket.socket:
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
        if group is not None and mode is None:
            mode = 0o660
        if mode is not None:
            os.fchmod(listener.fileno(), 0o600)  # bind creates the file with these permissions, less the umask
        listener.bind(nascent)
        _open_to(nascent, mode, group)
        listener.listen(8)
        os.rename(nascent, path)
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            os.unlink(nascent)
        raise AddressError(error.errno, f"Cannot create the socket {path}: {error.strerror}.") from None
    return listener


def _open_to(path: str, mode: int | None, group: int | None) -> None:
    """Give the file its group and then its permissions: the other way round it would be open to the old group."""
    if group is not None:
        try:
            os.chown(path, -1, group, follow_symlinks=False)
        except PermissionError:
            raise PermissionError(
                errno.EPERM, f"to give it to group {group} takes root, or to be a member of that group"
            ) from None
    if mode is not None:
        os.chmod(path, mode)


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
