"""A device behind a UNIX socket: accepts clients, one at a time, and survives all of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from .device import ClientLink, Device
from .listener import Listener
from .protocol import ProtocolError
from .session import Session, Trace

log = logging.getLogger(__name__)


class EventLoop(Protocol):
    """What the server needs of an event loop; ``poll.Poller`` is one."""

    def add(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Call back while ``fd`` is readable."""

    def remove(self, fd: int) -> None:
        """Forget ``fd``, which is about to be closed."""

    def want_write(self, fd: int, on_writable: Callable[[], None] | None) -> None:
        """Call back while ``fd``, which was added, is writable; None ends that."""


class Server:
    """Offers a device at the path of a UNIX socket.

    It serves one client at a time; further ones wait in the socket's backlog until that one has left. A client that
    breaks off, breaks the protocol or stops reading is dropped, the device is detached, and the next may come.

    Args:
        path: Where the socket is created, a socket file left behind by a dead server being replaced; or a `Listener`,
            which the server closes.
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

    def __init__(
        self, path: str | Listener, device: Device, *, poller: EventLoop, on_trace: Trace | None = None
    ) -> None:
        self._listener = path if isinstance(path, Listener) else Listener(path)
        self.path = self._listener.path
        self.device = device
        self.stats: Counter[str] = Counter()
        self._poller = poller
        self._on_trace = on_trace
        self._session: Session | None = None
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

    def _accept(self) -> None:
        sock = self._listener.accept()
        if sock is None:
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
