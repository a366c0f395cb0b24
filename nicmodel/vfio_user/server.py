"""A device behind a UNIX socket: accepts clients, one at a time, and survives all of them."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from .device import ClientLink, Device
from .protocol import ProtocolError
from .session import Session, Trace

log = logging.getLogger(__name__)

_MAX_PATH = 107  # sun_path of unix(7), without its NUL


class EventLoop(Protocol):
    """What the server needs of an event loop; ``poll.Poller`` is one."""

    def add(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Call back while ``fd`` is readable."""

    def remove(self, fd: int) -> None:
        """Forget ``fd``, which is about to be closed."""

    def want_write(self, fd: int, on_writable: Callable[[], None] | None) -> None:
        """Call back while ``fd``, which was added, is writable; None ends that."""


class AddressError(OSError):
    """The socket cannot be created where it was asked for; ``strerror`` says why in a sentence."""


class AddressInUse(AddressError):
    """A living server listens there already."""


class Server:
    """Offers a device at the path of a UNIX socket.

    It serves one client at a time; further ones wait in the socket's backlog until that one has left. A client that
    breaks off, breaks the protocol or stops reading is dropped, the device is detached, and the next may come.

    Args:
        path: Where the socket is created. A socket file left behind by a dead server is replaced.
        device: What is offered.
        poller: The event loop that calls the server.
        on_trace: Called as ``on_trace(event, **fields)`` with ``attach`` (client, capabilities), ``detach`` (client),
            ``dma_map`` (address, size, offset, flags, descriptor), ``dma_unmap`` (address, size, flags), ``set_irqs``
            (index, start, count, flags, eventfds), ``region_read`` and ``region_write`` (region, offset, data),
            ``reset``, ``error`` (command, errno, reason), ``dma_fault`` (address, count, reason) and ``drop`` (client,
            reason).

    Attributes:
        stats: Counters by name: messages by the command's name in lower case, ``clients``, ``errors`` (commands
            refused), ``dma_faults`` and ``dropped`` (clients thrown out).

    Raises:
        AddressInUse: another server listens at ``path``.
        AddressError: the path is too long, is not a socket, or cannot be created.
    """

    def __init__(self, path: str, device: Device, *, poller: EventLoop, on_trace: Trace | None = None) -> None:
        self.path = path
        self.device = device
        self.stats: Counter[str] = Counter()
        self._poller = poller
        self._on_trace = on_trace
        self._session: Session | None = None
        self._listener = _listen(path)
        self._file = _identity(path)
        poller.add(self._listener.fileno(), self._accept)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def link(self) -> ClientLink | None:
        """The client that is attached."""
        return self._session.link if self._session is not None else None

    @property
    def on_trace(self) -> Trace | None:
        """The trace hook; it may be set at any time."""
        return self._on_trace

    @on_trace.setter
    def on_trace(self, trace: Trace | None) -> None:
        self._on_trace = trace
        if self._session is not None:
            self._session.trace = trace

    def close(self) -> None:
        """Drop the client, stop listening and remove the socket file, unless it is another server's by now."""
        if self._listener.fileno() < 0:
            return
        if self._session is not None:
            self._end_session()
        self._poller.remove(self._listener.fileno())
        self._listener.close()
        if _identity(self.path) == self._file:
            os.unlink(self.path)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        # Not polling the listener is what makes further clients wait.
        self._poller.remove(self._listener.fileno())
        self._session = Session(
            sock, self.device, self.stats, trace=self._on_trace, on_backlog=self._resume_when_writable
        )
        self._poller.add(self._session.fileno(), self._receive)

    def _receive(self) -> None:
        session = self._session
        if session is None:
            return
        try:
            alive = session.receive()
        except (ConnectionError, ProtocolError) as error:
            self._drop(session, error)
            return
        if session is not self._session:
            return  # the device has closed the server
        if not alive:
            log.info("%s left", session.name)
            self._end_session()
            self._listen_again()
        elif session.congested:
            self._resume_when_writable()

    def _resume_when_writable(self) -> None:
        if self._session is not None:
            self._poller.want_write(self._session.fileno(), self._resume)

    def _resume(self) -> None:
        session = self._session
        if session is None:
            return
        try:
            session.resume()
        except (ConnectionError, ProtocolError) as error:
            self._drop(session, error)
            return
        if session is self._session and not session.congested:
            self._poller.want_write(session.fileno(), None)

    def _drop(self, session: Session, error: OSError) -> None:
        reason = error.strerror or str(error)
        self.stats["dropped"] += 1
        log.warning("%s dropped: %s", session.name, reason)
        if self._on_trace is not None:
            self._on_trace("drop", client=session.name, reason=reason)
        if session is self._session:
            self._end_session()
            self._listen_again()

    def _end_session(self) -> None:
        session, self._session = self._session, None
        assert session is not None
        self._poller.remove(session.fileno())
        session.close()

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._poller.add(self._listener.fileno(), self._accept)


def _listen(path: str) -> socket.socket:
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
