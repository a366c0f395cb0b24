"""Interrupts: one eventfd per vector, and what DEVICE_SET_IRQS does to them.

A vector that cannot be signalled now (no eventfd yet, or masked) stays pending and is delivered as soon as it can be.
QEMU relies on it: it masks an MSI-X vector by taking its eventfd away.
"""

from __future__ import annotations

import contextlib
import errno
import os
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

_NONE = -1


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
        self._eventfds = [_NONE] * count
        self._masked = [False] * count
        self._pending = [False] * count
        # Eventfds that tell the client of a vector being masked or unmasked, by action and vector.
        self._notify: dict[tuple[int, int], int] = {}

    def trigger(self, vector: int) -> None:
        """Raise an interrupt: signal it now, or keep it pending until the client can take it.

        Raises:
            IndexError: there is no such vector.
        """
        if vector < 0:
            raise IndexError(f"vector {vector}")
        eventfd = self._eventfds[vector]
        if eventfd == _NONE or self._masked[vector]:
            self._pending[vector] = True
            return
        if self.automasked:
            self._masked[vector] = True
        _signal(eventfd)

    def configured(self, vector: int) -> bool:
        """The client has given an eventfd for the vector."""
        return self._eventfds[vector] != _NONE

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
        for fd in [*self._eventfds, *self._notify.values()]:
            if fd != _NONE:
                os.close(fd)
        self._notify.clear()
        self._eventfds = [_NONE] * self.count
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
            fd = fds[index] if fds else _NONE
            if fd != _NONE:
                os.set_blocking(fd, False)
            if action == _TRIGGER:
                old, self._eventfds[vector] = self._eventfds[vector], fd
            else:
                old = self._notify.pop((action, vector), _NONE)
                if fd != _NONE:
                    self._notify[action, vector] = fd
            if old != _NONE:
                os.close(old)
            self._deliver(vector)

    def _set_masked(self, vector: int, action: int) -> None:
        masked = action == _MASK
        if masked != self._masked[vector]:
            self._masked[vector] = masked
            if (action, vector) in self._notify:
                _signal(self._notify[action, vector])
        self._deliver(vector)

    def _deliver(self, vector: int) -> None:
        if self._pending[vector] and self._eventfds[vector] != _NONE and not self._masked[vector]:
            self._pending[vector] = False
            self.trigger(vector)


def _signal(eventfd: int) -> None:
    # A full counter means that the client has enough signals to see.
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(eventfd, 1)
