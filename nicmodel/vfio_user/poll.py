"""A small event loop: descriptors and timers, one thread, no locks."""

from __future__ import annotations

import ctypes
import heapq
import logging
import os
import select
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

Callback = Callable[[], None]

BUSY_TURNS = 4
"""Turns of the loop, with something to do in each, that what ``when_idle`` was told waits at most."""

# epoll_wait counts in milliseconds, too coarse for interrupt moderation; a timerfd counts in nanoseconds.
_libc = ctypes.CDLL(None, use_errno=True)
_ITIMERSPEC = ctypes.c_int64 * 4  # interval and first expiry, each in seconds and nanoseconds (timerfd_settime(2))


class Timer:
    """A call that is due at a time; what ``Poller.call_at`` returns."""

    __slots__ = ("callback", "due")

    def __init__(self, due: int, callback: Callback) -> None:
        self.due = due
        self.callback: Callback | None = callback

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due


class Poller:
    """Calls back when descriptors become readable or writable and when timers are due.

    An exception in a callback is logged and does not end the loop; KeyboardInterrupt and SystemExit do. A callback may
    be called although nothing waits any more (its descriptor's number was reused meanwhile), so it must not block.

    Args:
        clock: Current time in ns, for timers. The wait itself always runs on real time, so with a virtual clock call
            ``run_once(0)`` after moving it.
        busy_poll: Nanoseconds to look again and again before going to sleep. A thread that sleeps takes tens of
            microseconds to wake; one that looks takes a processor from others.
    """

    def __init__(self, *, clock: Callable[[], int] = time.monotonic_ns, busy_poll: int = 0) -> None:
        self.clock = clock
        self._busy_poll = busy_poll
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[Timer] = []
        self._when_idle: dict[Callback, None] = {}
        self._busy_turns = 0
        self._stopped = False
        # stop() may be called from another thread or a signal handler while the loop sleeps.
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.add(self._wake, self._woken)
        self._timerfd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timerfd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._epoll.register(self._timerfd, select.EPOLLIN | select.EPOLLET)
        self._armed = 0  # when the timerfd expires, on the loop's clock

    def add(self, fd: int, on_readable: Callback) -> None:
        """Call ``on_readable`` whenever ``fd`` is readable, or its peer is gone.

        Raises:
            OSError: EPERM for a kind of file that cannot be polled, EEXIST if it was added before.
        """
        self._epoll.register(fd, select.EPOLLIN)
        self._readers[fd] = on_readable

    def remove(self, fd: int) -> None:
        """Forget a descriptor; to be called before it is closed. One that was never added is ignored."""
        if self._readers.pop(fd, None) is not None:
            self._writers.pop(fd, None)
            self._epoll.unregister(fd)

    def want_write(self, fd: int, on_writable: Callback | None) -> None:
        """Call ``on_writable`` whenever ``fd``, which was added, is writable; None ends that."""
        if on_writable is None:
            self._writers.pop(fd, None)
            self._epoll.modify(fd, select.EPOLLIN)
        else:
            self._writers[fd] = on_writable
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)

    def call_at(self, t_ns: int, callback: Callback) -> Timer:
        """Call ``callback`` once, when the clock shows ``t_ns`` or later."""
        timer = Timer(t_ns, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        """Do not call it. One that has fired is ignored."""
        timer.callback = None

    def when_idle(self, callback: Callback) -> None:
        """Call ``callback`` once, however often this is said, when nothing waits any more, or BUSY_TURNS turns later.

        For what is better done once for many events, and must not wait: the loop looks without sleeping until then.
        """
        self._when_idle[callback] = None

    @property
    def next_due(self) -> int | None:
        """When the next timer is due, on the loop's clock; None if there is none."""
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0].due if self._timers else None

    def run_once(self, timeout: float | None = None) -> bool:
        """Wait for the first event or timer, at most ``timeout`` seconds (None: forever), and call back for all.

        Returns:
            Whether there was a descriptor's event or a timer; with a timeout of 0, call again until there is none.
        """
        if self._when_idle:
            timeout = 0
        if timeout != 0 and self._busy_poll and (ready := self._look(self._busy_poll)):
            return self._handle(ready)
        if timeout != 0 and (due := self.next_due) is not None:
            until_due = due - self.clock()
            if until_due <= 0:
                timeout = 0
            elif not 0 < self._armed <= due:  # else it wakes the loop in time, if for nothing
                self._armed = due
                _libc.timerfd_settime(self._timerfd, 0, _ITIMERSPEC(0, 0, *divmod(until_due, 1_000_000_000)), None)
        return self._handle(self._epoll.poll(timeout))

    def _look(self, ns: int) -> list[tuple[int, int]]:
        """What is ready, as soon as there is something; nothing after so many nanoseconds."""
        end = time.monotonic_ns() + ns
        due = self.next_due
        while not (ready := self._epoll.poll(0)):
            if time.monotonic_ns() >= end or (due is not None and due <= self.clock()):
                break
        return ready

    def _handle(self, ready: list[tuple[int, int]]) -> bool:
        """Call back for what is ready and due, and then, when there was nothing or for long enough, what waits."""
        for fd, events in ready:
            if fd == self._timerfd:
                self._armed = 0
            if events & ~select.EPOLLOUT and (reader := self._readers.get(fd)):
                self._call(reader)
            if events & ~select.EPOLLIN and (writer := self._writers.get(fd)):
                self._call(writer)
        called = self._run_timers()
        if self._when_idle:
            self._busy_turns += 1
            if not (ready or called) or self._busy_turns > BUSY_TURNS:
                self._busy_turns = 0
                callbacks, self._when_idle = self._when_idle, {}
                for callback in callbacks:
                    self._call(callback)
                called = True
        return called or bool(ready)

    def serve_forever(self) -> None:
        """Run until ``stop`` is called."""
        while not self._stopped:
            self.run_once(None)
        self._stopped = False

    def stop(self) -> None:
        """End ``serve_forever``; callable from callbacks, signal handlers and other threads."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Release the loop's own descriptors."""
        self._epoll.close()
        os.close(self._wake)
        os.close(self._timerfd)

    def _run_timers(self) -> bool:
        """Call what is due; whether there was any."""
        if not self._timers:
            return False
        now = self.clock()
        called = False
        while self._timers and self._timers[0].due <= now:
            timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._call(callback)
                called = True
        return called

    def _woken(self) -> None:
        os.eventfd_read(self._wake)

    @staticmethod
    def _call(callback: Callback) -> None:
        try:
            callback()
        except Exception:
            log.exception("a callback failed")
