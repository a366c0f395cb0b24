"""A UNIX socket that listens at a path: a dead server's is replaced, a living one's is not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from .poll import EventLoop

log = logging.getLogger(__name__)

_MAX_PATH = 107  # sun_path of unix(7), without its NUL

_NASCENT = "~#%+,=@^!$&;"
"""What is put behind the path to have a name for the socket while it is set up; the first that is free. Names that end
like this are hardly ever meant to stay."""

_BACKLOG = 128  # clients that wait to be accepted; a further one waits in connect(2)
_LOCK_SECONDS = 2.0
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # of file systems that have none

ACCEPT_PAUSE = 500_000_000
"""How long nobody is accepted once the resources for it are missing, ns."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


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
        """The socket's descriptor, readable while a connection waits; -1 once it is closed."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next connection; None if it has gone meanwhile.

        Raises:
            OSError: there are no descriptors or no memory for it. It waits on.
        """
        try:
            return self._socket.accept()[0]
        except (BlockingIOError, ConnectionError):
            return None

    def close(self) -> None:
        """Stop listening and remove the socket file, unless it is another's: a server's by now, or who made it."""
        self._socket.close()
        if self._owned and _identity(self.path) == self._file:
            with contextlib.suppress(OSError):  # the folder may have become read-only, or be gone
                os.unlink(self.path)


class _Accepting(Protocol):
    """A listening socket; ``Listener`` is one."""

    def fileno(self) -> int:
        """Its descriptor."""

    def accept(self) -> Any:
        """The next connection, or what has become of it."""


class Acceptor:
    """Accepts connections in an event loop, and survives that it cannot.

    A listening socket stays readable while a connection waits. When there are no descriptors or no memory to accept it,
    the loop would be called again and again, as fast as it can: instead nobody is accepted for ``ACCEPT_PAUSE``. Why is
    said once, until somebody has been accepted.

    Args:
        poller: The event loop.
        listener: The listening socket, not blocking; whoever made it closes it, after ``stop``.
        name: What is said of it in the log.
        on_connection: Called with each connection, which it has to close if it fails. When that is for want of
            resources (OSError), accepting pauses as well.
        on_failure: Called each time that nobody could be accepted.
    """

    def __init__(
        self,
        poller: EventLoop,
        listener: _Accepting,
        name: str,
        on_connection: Callable[[socket.socket], object],
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._poller = poller
        self._listener = listener
        self._name = name
        self._on_connection = on_connection
        self._polled = False
        self._pause: Any = None
        self._on_failure = on_failure
        self._exhausted = False

    def start(self) -> None:
        """Accept from now on."""
        if not self._polled and self._pause is None and self._listener.fileno() >= 0:
            self._poller.add(self._listener.fileno(), self._ready)
            self._polled = True

    def stop(self) -> None:
        """Accept no more; who connects waits in the socket's backlog."""
        if self._polled:
            self._poller.remove(self._listener.fileno())
            self._polled = False
        if self._pause is not None:
            self._poller.cancel(self._pause)
            self._pause = None

    def _ready(self) -> None:
        try:
            connection = self._listener.accept()
            if connection is not None:
                self._on_connection(connection)
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            self._rest(error)
            return
        if connection is not None:
            self._exhausted = False

    def _rest(self, error: OSError) -> None:
        self._on_failure()
        if not self._exhausted:
            log.error("%s: nobody can be accepted: %s; trying again", self._name, error.strerror)
        self._exhausted = True
        self.stop()
        self._pause = self._poller.call_at(self._poller.clock() + ACCEPT_PAUSE, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self.start()


def _listen(path: str, mode: int | None, group: int | None) -> socket.socket:
    """Create a listening socket, replacing one whose server is dead.

    It is set up under another name, so that who waits for the file to appear can connect as soon as it does, and gets
    its own by link(2), which replaces nothing.
    """
    if len(os.fsencode(path)) >= _MAX_PATH:
        raise AddressError(
            errno.ENAMETOOLONG, f"The path of the socket may have {_MAX_PATH - 1} bytes, this one is longer: {path}"
        )
    if not path or "\0" in path:  # which the kernel would take for an abstract name, and for the end
        raise AddressError(errno.EINVAL, f"{path!r} is not the path of a socket.")
    _check_dead(path)  # what is wrong is said before anything is made
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if group is not None and mode is None:
            mode = 0o660
        if mode is not None:
            os.fchmod(listener.fileno(), 0o600)  # bind creates the file with these permissions, less the umask
        with _bound(listener, path) as nascent:
            _open_to(nascent, mode, group)
            listener.listen(_BACKLOG)
            _link(nascent, path)
    except AddressError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        raise AddressError(error.errno, f"Cannot create the socket {path}: {error.strerror}.") from None
    return listener


@contextmanager
def _bound(listener: socket.socket, path: str) -> Iterator[str]:
    """Bind the socket to a name of its own beside `path`, which it has no longer at the end."""
    for ending in _NASCENT:
        try:
            listener.bind(path + ending)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            break
    else:
        raise OSError(errno.EADDRINUSE, f"{path}~ and other names beside it are taken")
    try:
        yield path + ending
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ending)


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


def _link(nascent: str, path: str) -> None:
    """Give the socket its name; what a dead server has left there goes."""
    with _locked(os.path.dirname(path) or "."):
        try:
            os.link(nascent, path)
        except FileExistsError:
            _check_dead(path)
            os.unlink(path)
            os.link(nascent, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.rename(nascent, path)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """One at a time: else of two that find a dead socket the second may delete the first one's.

    A lock that cannot be had in time, or not at all on this file system, is done without.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        yield
        return
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:
                break
            else:
                break
        yield
    finally:
        os.close(fd)


def _check_dead(path: str) -> None:
    """Raise if there is something at ``path``, unless it is a socket at which nobody listens, or a link to nothing."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing there, or bind will say what is wrong
    if not stat.S_ISSOCK(mode):
        raise AddressError(errno.EEXIST, f"{path} exists and is not a socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            pass  # its backlog is full
        except OSError as error:  # of another kind (EPROTOTYPE), or nothing to do with us (EACCES)
            raise AddressError(error.errno, f"{path} is in the way, and cannot be tried: {error.strerror}.") from None
    raise AddressInUse(errno.EADDRINUSE, f"Another server is listening at {path}.")


def _identity(path: str) -> tuple[int, int, int] | None:
    """Which file it is. An inode's number may be another file's as soon as the file is gone, its time may not."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
