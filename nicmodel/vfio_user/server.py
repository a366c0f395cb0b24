"""A device behind a UNIX socket: accepts clients, one at a time, and survives all of them."""

from __future__ import annotations

import errno
import logging
import socket
from collections import Counter
from types import TracebackType
from typing import Any

from .device import ClientLink, Device
from .listener import Acceptor, Listener
from .poll import EventLoop
from .session import Session, Trace

log = logging.getLogger(__name__)


class Server:
    """Offers a device at the path of a UNIX socket.

    It serves one client at a time; further ones wait in the socket's backlog until that one has left, which the log
    tells. A client that breaks off, breaks the protocol, stops reading, or does not finish in time what it has begun is
    dropped, the device is detached, and the next may come.

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
            refused), ``dma_faults``, ``dma_timeouts`` (DMA messages not answered in time), ``dropped`` (clients thrown
            out), ``waited`` (clients that came while another was served) and ``not_accepted`` (attempts to accept one
            without descriptors or memory for it).

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
        self._timer: Any = None
        self._writing = False
        self._acceptor = Acceptor(poller, self._listener, self.path, self._begin_session, self._count_failure)
        self._acceptor.start()

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
        self._acceptor.stop()
        if self._session is not None:
            self._end_session()
        self._poller.remove(self._listener.fileno())
        self._listener.close()

    def _count_failure(self) -> None:
        self.stats["not_accepted"] += 1

    def _begin_session(self, sock: socket.socket) -> None:
        try:
            session = Session(
                sock, self.device, self.stats, trace=self._on_trace, poller=self._poller, on_backlog=self._look_again
            )
            self._poller.add(sock.fileno(), self._receive)
        except BaseException:
            sock.close()
            raise
        self._session = session
        self._acceptor.stop()  # not accepting is what makes further clients wait
        self._poller.add(self._listener.fileno(), self._another_waits)
        self._look_again()

    def _another_waits(self) -> None:
        self._poller.remove(self._listener.fileno())
        self.stats["waited"] += 1
        if self._session is not None:
            log.warning(
                "%s: another client has come; it waits until %s has left", self.path, self._session.name
            )  # fmt: skip

    def _receive(self) -> None:
        session = self._session
        if session is None:
            return
        try:
            alive = session.receive()
        except Exception as error:
            self._drop(session, error)
            return
        if not alive:
            log.info("%s left", session.name)
            self._end_session()
            self._listen_again()
        else:
            self._look_again()

    def _resume(self) -> None:
        session = self._session
        if session is None:
            return
        try:
            session.resume()
        except Exception as error:
            self._drop(session, error)
            return
        self._look_again()

    def _look_again(self) -> None:
        """See what the session waits for."""
        session = self._session
        if session is None:  # perhaps because the device has closed the server
            return
        if session.congested != self._writing:
            self._writing = session.congested
            self._poller.want_write(session.fileno(), self._resume if self._writing else None)
        if session.backlog:
            self._poller.next_turn(self._resume)
        deadline = session.deadline
        if deadline is None:
            if self._timer is not None:
                self._poller.cancel(self._timer)
                self._timer = None
        elif self._timer is None:
            self._timer = self._poller.call_at(deadline[0], self._check_deadline)

    def _check_deadline(self) -> None:
        """The time for something is up, unless it has been done and something else is due later."""
        self._timer = None
        self._receive()  # it may have come while this process did not run
        session = self._session
        if session is None or self._timer is None:
            return
        deadline = session.deadline
        if deadline is not None and deadline[0] <= self._poller.clock():
            self._drop(session, TimeoutError(errno.ETIMEDOUT, deadline[1]))

    def _drop(self, session: Session, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        self.stats["dropped"] += 1
        if isinstance(error, OSError):
            log.warning("%s dropped: %s", session.name, reason)
        else:
            log.exception("%s dropped: the server failed", session.name)
        if self._on_trace is not None:
            self._on_trace("drop", client=session.name, reason=reason)
        if session is self._session:
            self._end_session()
            self._listen_again()

    def _end_session(self) -> None:
        session, self._session = self._session, None
        assert session is not None
        if self._timer is not None:
            self._poller.cancel(self._timer)
            self._timer = None
        self._writing = False
        self._poller.remove(session.fileno())
        session.close()

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._poller.remove(self._listener.fileno())
            self._acceptor.start()
