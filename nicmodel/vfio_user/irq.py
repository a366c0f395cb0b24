"""Interrupts: one eventfd per vector, and what DEVICE_SET_IRQS does to them.

A vector that cannot be signalled now (no eventfd yet, or masked) stays pending and is delivered as soon as it can be.
QEMU relies on it: it masks an MSI-X vector by taking its eventfd away.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Sequence

from .protocol import IrqSet, ProtocolError

_DATA = int(IrqSet.DATA_NONE | IrqSet.DATA_BOOL | IrqSet.DATA_EVENTFD)
_ACTION = int(IrqSet.ACTION_MASK | IrqSet.ACTION_UNMASK | IrqSet.ACTION_TRIGGER)
_DATA_NONE = int(IrqSet.DATA_NONE)
_DATA_BOOL = int(IrqSet.DATA_BOOL)
_DATA_EVENTFD = int(IrqSet.DATA_EVENTFD)
_MASK = int(IrqSet.ACTION_MASK)
_UNMASK = int(IrqSet.ACTION_UNMASK)
_TRIGGER = int(IrqSet.ACTION_TRIGGER)


class _Eventfd:
    """An eventfd of the client's, which this object owns, and makes non-blocking.

    The client can make it blocking again, since that belongs to the open file, and let its counter be full: then a
    write would wait for the client for ever. So it is asked first whether it can be written.
    """

    __slots__ = ("_waiter", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        os.set_blocking(fd, False)
        self._waiter = select.poll()
        self._waiter.register(fd, select.POLLOUT)

    def signal(self) -> None:
        """Add one. A full counter means that the client has enough signals to see."""
        if self._waiter.poll(0):
            try:  # noqa: SIM105  # `contextlib.suppress` would take as long as the system call
                os.eventfd_write(self.fd, 1)
            except BlockingIOError:
                pass

    def close(self) -> None:
        """Part with it."""
        os.close(self.fd)


class InterruptSet:
    """The vectors of one IRQ type.

    Attributes:
        count: Number of vectors.
        automasked: A vector masks itself when it is signalled and waits for the client to unmask it; so does INTx
            (``VFIO_IRQ_INFO_AUTOMASKED``).
    """

    def __init__(self, count: int, *, automasked: bool = False) -> None:
        self.count = count
        self.automasked = automasked
        self._eventfds: list[_Eventfd | None] = [None] * count
        self._masked = [False] * count
        self._pending = [False] * count
        # Eventfds that tell the client of a vector being masked or unmasked, by action and vector.
        self._notify: dict[tuple[int, int], _Eventfd] = {}

    def trigger(self, vector: int) -> None:
        """Raise an interrupt: signal it now, or keep it pending until the client can take it.

        Raises:
            IndexError: there is no such vector.
        """
        if vector < 0:
            raise IndexError(f"vector {vector}")
        eventfd = self._eventfds[vector]
        if eventfd is None or self._masked[vector]:
            self._pending[vector] = True
            return
        if self.automasked:
            self._masked[vector] = True
        eventfd.signal()

    def configured(self, vector: int) -> bool:
        """The client has given an eventfd for the vector."""
        return self._eventfds[vector] is not None

    def masked(self, vector: int) -> bool:
        """The vector is masked."""
        return self._masked[vector]

    def pending(self, vector: int) -> bool:
        """The vector was raised and has not been delivered yet."""
        return self._pending[vector]

    def set_irqs(self, flags: int, start: int, count: int, data: bytes | memoryview, fds: Sequence[int]) -> None:
        """Do what a DEVICE_SET_IRQS message asks for; nothing is changed if it is refused.

        Args:
            flags: IrqSet, one kind of data and one action.
            start: First vector.
            count: Number of vectors; 0 with DATA_NONE and ACTION_TRIGGER disables all.
            data: For DATA_BOOL one byte per vector, else empty.
            fds: For DATA_EVENTFD one eventfd per vector, which this object owns after a successful return, or none to
                withdraw. They are made non-blocking, which the client sees as well: the flag belongs to the open file.

        Raises:
            ProtocolError: EINVAL for a request that makes no sense, ENOTSUP for one that is not supported.
        """
        kind, action = flags & _DATA, flags & _ACTION
        if flags != kind | action or kind.bit_count() != 1 or action.bit_count() != 1:
            raise ProtocolError(f"SET_IRQS with flags {flags:#x}")
        if start + count > self.count:
            raise ProtocolError(f"SET_IRQS of vectors {start}+{count}, there are {self.count}")
        if fds and kind != _DATA_EVENTFD:
            raise ProtocolError("SET_IRQS with descriptors it does not speak of")
        if count == 0:
            if (kind, action, start) != (_DATA_NONE, _TRIGGER, 0):
                raise ProtocolError("SET_IRQS of no vectors")
            self.disable()
            return
        vectors = range(start, start + count)
        if kind == _DATA_EVENTFD:
            self._set_eventfds(action, vectors, fds)
            return
        if kind == _DATA_BOOL:
            if len(data) != count:
                raise ProtocolError(f"SET_IRQS with {len(data)} booleans for {count} vectors")
            chosen = [vector for vector, wanted in zip(vectors, data, strict=True) if wanted]
        else:
            chosen = list(vectors)
        for vector in chosen:
            if action == _TRIGGER:
                self.trigger(vector)
            else:
                self._set_masked(vector, action)

    def disable(self) -> None:
        """Forget all eventfds, masks and pending interrupts."""
        for eventfd in [*self._eventfds, *self._notify.values()]:
            if eventfd is not None:
                eventfd.close()
        self._notify.clear()
        self._eventfds = [None] * self.count
        self._masked = [False] * self.count
        self._pending = [False] * self.count

    def _set_eventfds(self, action: int, vectors: range, fds: Sequence[int]) -> None:
        if fds and len(fds) != len(vectors):
            raise ProtocolError(f"SET_IRQS with {len(fds)} eventfds for {len(vectors)} vectors")
        if action != _TRIGGER and self.automasked:
            # The kernel's VFIO has the client signal this eventfd (KVM's resample notifier), the vfio-user text the
            # server. QEMU means the former and falls back to unmask messages when it is refused.
            raise ProtocolError("SET_IRQS with an eventfd to unmask INTx", errno.ENOTSUP)
        for fd in fds:
            if os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]":
                raise ProtocolError("SET_IRQS with a descriptor that is not an eventfd")
        for index, vector in enumerate(vectors):
            eventfd = _Eventfd(fds[index]) if fds else None
            if action == _TRIGGER:
                old, self._eventfds[vector] = self._eventfds[vector], eventfd
            else:
                old = self._notify.pop((action, vector), None)
                if eventfd is not None:
                    self._notify[action, vector] = eventfd
            if old is not None:
                old.close()
            self._deliver(vector)

    def _set_masked(self, vector: int, action: int) -> None:
        masked = action == _MASK
        if masked != self._masked[vector]:
            self._masked[vector] = masked
            if (action, vector) in self._notify:
                self._notify[action, vector].signal()
        self._deliver(vector)

    def _deliver(self, vector: int) -> None:
        if self._pending[vector] and self._eventfds[vector] is not None and not self._masked[vector]:
            self._pending[vector] = False
            self.trigger(vector)
