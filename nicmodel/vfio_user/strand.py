"""Strands: callbacks of one event loop, one of which may wait while other strands go on.

A device asks its client for memory in the midst of its work, and has to wait for the answer: a ten-thousandth of a
second, or as long as a client likes that means harm. On a plain event loop everybody would wait with it. Here only the
same strand does: a device, its client and its wire, or all devices that are joined by wires. Callbacks of a strand
never run beside each other.

The name is that of Boost.Asio. What makes a callback wait is a greenlet: a call stack that can be put aside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from greenlet import getcurrent, greenlet

from .poll import Callback, Poller, Timer


class Strand:
    """An event loop as one strand sees it: it has a loop's methods, and calls back when none of its callbacks waits.

    Args:
        poller: The loop.
        behind: Other strands. Nothing of this one is called while one of those waits, as it touches what is theirs.

    Attributes:
        clock: The loop's clock.
    """

    def __init__(self, poller: Poller, behind: Iterable[Strand] = ()) -> None:
        self.clock: Callable[[], int] = poller.clock
        self._poller = poller
        self._waiter: greenlet | None = None  # whose callback waits
        self._awaited = -1  # the descriptor that it waits for
        self._behind = tuple(behind)
        self._followers: list[Strand] = []
        for other in self._behind:
            other._followers.append(self)
        self._worker: _Worker | None = None
        self._thread = 0
        # What would have been called while the strand waited: descriptors, timers, and calls of the next turn.
        self._muted: set[int] = set()
        self._late: list[Timer] = []
        self._deferred: dict[_Guarded, None] = {}

    @property
    def turn(self) -> int:
        """Number of the loop's current turn."""
        return self._poller.turn

    @property
    def waits(self) -> bool:
        """Whether its callbacks have to be kept for later."""
        if not self._poller.waits:  # as almost always
            return False
        return any(strand._waiter is not None for strand in (self, *self._behind))

    def add(self, fd: int, on_readable: Callback) -> None:
        """As ``Poller.add``."""
        self._poller.add(fd, partial(self._ready, fd, on_readable))

    def remove(self, fd: int) -> None:
        """As ``Poller.remove``."""
        self._muted.discard(fd)
        self._poller.remove(fd)

    def want_write(self, fd: int, on_writable: Callback | None) -> None:
        """As ``Poller.want_write``."""
        self._poller.want_write(fd, on_writable and partial(self._ready, fd, on_writable))

    def call_at(self, t_ns: int, callback: Callback) -> Timer:
        """As ``Poller.call_at``."""
        timer = self._poller.call_at(t_ns, callback)
        timer.callback = partial(self._due, timer, callback)
        return timer

    def cancel(self, timer: Timer) -> None:
        """As ``Poller.cancel``."""
        self._poller.cancel(timer)

    def when_idle(self, callback: Callback) -> None:
        """As ``Poller.when_idle``."""
        self._poller.when_idle(_Guarded(self, callback))

    def next_turn(self, callback: Callback) -> None:
        """As ``Poller.next_turn``."""
        self._poller.next_turn(_Guarded(self, callback))

    def wait(self, fd: int, writable: bool, seconds: float) -> bool:
        """Have a callback wait until ``fd``, which was added, is readable or, if asked, writable.

        Everybody else is called meanwhile, but for this strand and those behind it, to one of which the callback
        belongs. From anything but a strand's callback it waits as ``Poller.wait`` does.

        Returns:
            False if it has taken longer.
        """
        waiter = getcurrent()
        if not isinstance(waiter, _Worker):
            return self._poller.wait(fd, writable, seconds)
        timer = self._poller.call_at(self.clock() + int(seconds * 1e9), partial(self._wake, False))
        writer = self._poller.writer(fd)
        if writable:
            self._poller.want_write(fd, partial(self._ready, fd, self._wake))
        self._waiter, self._awaited = waiter, fd
        self._poller.waits += 1
        try:
            ready: bool = waiter.leave()
        finally:
            self._waiter, self._awaited = None, -1
            self._poller.waits -= 1
            self._poller.cancel(timer)
            if writable:
                self._poller.want_write(fd, writer)
            for strand in (self, *self._followers):
                strand._catch_up()
        return ready

    def _wake(self, ready: bool = True) -> None:
        """Go on with the callback that waits."""
        assert self._waiter is not None
        self._waiter.parent = getcurrent()
        self._waiter.switch(ready)

    def _catch_up(self) -> None:
        """Call in the next turn what was kept, unless there still is somebody to wait for."""
        if self.waits:
            return
        muted, self._muted = self._muted, set()
        for fd in muted:
            self._poller.unmute(fd)
        late, self._late = self._late, []
        for timer in late:
            if timer.callback is not None:
                self._poller.restore(timer)
        deferred, self._deferred = self._deferred, {}
        for guarded in deferred:
            self._poller.next_turn(guarded)

    def _ready(self, fd: int, callback: Callback) -> None:
        """A descriptor is ready."""
        if not self.waits:
            self._run(callback)
        elif fd == self._awaited:
            self._wake()
        else:
            self._muted.add(fd)
            self._poller.mute(fd)

    def _due(self, timer: Timer, callback: Callback) -> None:
        """A timer is due."""
        if self.waits:
            timer.callback = partial(self._due, timer, callback)  # so that it can still be cancelled
            self._late.append(timer)
        else:
            self._run(callback)

    def _run(self, callback: Callback) -> None:
        """Call on the worker's stack. An exception comes out here, and ends the worker."""
        worker = self._worker
        here = threading.get_ident()
        if worker is None or worker.dead or here != self._thread:  # greenlets are of one thread
            self._worker = worker = _Worker()
            self._thread = here
        worker.parent = getcurrent()
        worker.switch(callback)


class _Worker(greenlet):
    """A call stack for the callbacks of a strand, one after the other."""

    def run(self, callback: Callback) -> None:
        """Call what it is switched to with."""
        while True:
            callback()
            callback = self.leave()

    def leave(self) -> Any:
        """Go back to whoever has switched here; what the next one brings along."""
        assert self.parent is not None
        return self.parent.switch()


@dataclass(frozen=True)
class _Guarded:
    """A callback of a strand; equal if both are, so that the loop can tell what it was told before."""

    strand: Strand
    callback: Callback

    def __call__(self) -> Any:
        if self.strand.waits:
            self.strand._deferred[self] = None
        else:
            self.strand._run(self.callback)
