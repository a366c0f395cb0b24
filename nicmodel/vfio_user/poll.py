"""A small event loop: descriptors and timers, one thread, no locks."""

from __future__ import annotations

import ctypes
import heapq
import logging
import os
import select
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

log = logging.getLogger(__name__)

Callback = Callable[[], None]

BUSY_TURNS = 4
"""Turns of the loop, with something to do in each, that what ``when_idle`` was told waits at most."""

_FIRST_LOOK = 10_000  # ns: the shortest window in which anything may come
_TAKEN = 100_000  # ns: who takes a processor for so long has more to do than to pass on what a guest or a peer said
_REST = 50_000_000  # ns without looking, after that

_FEW_TIMERS = 64  # cancelled ones that may lie in the heap, however few others there are
_LONGEST_WAIT = 1 << 60  # ns; more would not fit the kernel's time

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


class EventLoop(Protocol):
    """What the rest of this package needs of an event loop; ``Poller`` is one.

    Attributes:
        clock: Current time in ns.
    """

    clock: Callable[[], int]

    @property
    def turn(self) -> int:
        """Number of the current turn, which goes on when everybody who had something to do has had the chance."""

    def add(self, fd: int, on_readable: Callback) -> None:
        """Call back while ``fd`` is readable."""

    def remove(self, fd: int) -> None:
        """Forget ``fd``, which is about to be closed."""

    def want_write(self, fd: int, on_writable: Callback | None) -> None:
        """Call back while ``fd``, which was added, is writable; None ends that."""

    def call_at(self, t_ns: int, callback: Callback) -> Any:
        """Call once when the clock shows ``t_ns`` or later; the result goes to ``cancel``."""

    def cancel(self, timer: Any) -> None:
        """Take back a ``call_at``."""

    def next_turn(self, callback: Callback) -> None:
        """Call once, however often this is said, in the next turn."""

    def when_idle(self, callback: Callback) -> None:
        """Call once, however often this is said, when nothing waits any more."""

    def wait(self, fd: int, writable: bool, seconds: float) -> bool:
        """Wait within a callback until ``fd``, which was added, is readable or, if asked, writable; false if it takes
        longer. Whether others are called meanwhile is the loop's affair.
        """


class Lookout:
    """How long it pays to look for work before going to sleep.

    A thread that sleeps takes tens of microseconds to wake; one that looks takes a processor from others. So it looks
    for as long as has paid off lately, which KVM does for virtual CPUs at rest (Linux,
    Documentation/virt/kvm/halt-polling.rst): longer if work came soon, not at all once it did not. Besides it yields
    the processor all the time, and does not look for a while when somebody else has taken it.

    Args:
        most: The longest that it may be, ns.

    Attributes:
        most: The same.
        window: How long it is now, ns.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.window = 0
        self._resting = 0  # until then

    def waited(self, began: int, ended: int) -> None:
        """Work has come, for which the loop had looked or slept from ``began`` to ``ended`` (ns, on real time)."""
        if ended - began > self.most:
            self.window = 0
        elif ended - began > self.window and ended >= self._resting:
            self.window = min(max(2 * self.window, _FIRST_LOOK), self.most)

    def yielded(self, began: int, ended: int) -> None:
        """The processor was offered to others, and was given back at ``ended``."""
        if ended - began > _TAKEN:
            self.window = 0
            self._resting = ended + _REST


class Poller:
    """Calls back when descriptors become readable or writable and when timers are due.

    An exception in a callback is logged and does not end the loop; KeyboardInterrupt and SystemExit do. A callback may
    be called although nothing waits any more (its descriptor's number was reused meanwhile), so it must not block.

    Args:
        clock: Current time in ns, for timers. The wait itself always runs on real time, so with a virtual clock call
            ``run_once(0)`` after moving it.
        busy_poll: How long to look for work before going to sleep at most, ns (``Lookout``).

    Attributes:
        lookout: How long that is now.
        turn: Number of the current turn of the loop, for callers that limit their work in one turn (``Budget``).
        waits: How many callbacks are put aside to wait (``Strand``); ``serve_forever`` does not end before they have.
    """

    def __init__(self, *, clock: Callable[[], int] = time.monotonic_ns, busy_poll: int = 0) -> None:
        self.clock = clock
        self.lookout = Lookout(busy_poll)
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[Timer] = []
        self._cancelled = 0  # of those in the heap, at most
        self._when_idle: dict[Callback, None] = {}
        self._next_turn: dict[Callback, None] = {}
        self.turn = 0
        self.waits = 0
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

    def writer(self, fd: int) -> Callback | None:
        """What was said last by ``want_write``."""
        return self._writers.get(fd)

    def mute(self, fd: int) -> None:
        """Do not call back for ``fd``, which was added, until ``unmute`` or ``want_write``."""
        self._epoll.modify(fd, select.EPOLLET)  # an end of the peer's is told in any case, but once

    def unmute(self, fd: int) -> None:
        """Call back for ``fd`` again, also for what has come meanwhile."""
        if fd in self._readers:
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if fd in self._writers else 0))

    def wait(self, fd: int, writable: bool, seconds: float) -> bool:
        """Wait until ``fd`` is readable or, if asked, writable, and have everybody wait; false if it takes longer."""
        poll = select.poll()
        poll.register(fd, select.POLLIN | (select.POLLOUT if writable else 0))
        return bool(poll.poll(seconds * 1000))

    def call_at(self, t_ns: int, callback: Callback) -> Timer:
        """Call ``callback`` once, when the clock shows ``t_ns`` or later."""
        timer = Timer(t_ns, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        """Do not call it. One that has fired is ignored."""
        if timer.callback is None:
            return
        timer.callback = None
        # It stays in the heap until it would have been due. When most are such, they go at once, or a timer that is set
        # far ahead and cancelled, again and again, would fill the memory.
        self._cancelled += 1
        if self._cancelled > _FEW_TIMERS + len(self._timers) // 2:
            self._timers = [timer for timer in self._timers if timer.callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def restore(self, timer: Timer) -> None:
        """Call a timer after all that was due and has not been called."""
        heapq.heappush(self._timers, timer)

    def when_idle(self, callback: Callback) -> None:
        """Call ``callback`` once, however often this is said, when nothing waits any more, or BUSY_TURNS turns later.

        For what is better done once for many events, and must not wait: the loop looks without sleeping until then.
        """
        self._when_idle[callback] = None

    def next_turn(self, callback: Callback) -> None:
        """Call ``callback`` once, however often this is said, in the next turn, after the descriptors that are ready.

        For the rest of work that is too much for one turn: the loop does not sleep meanwhile.
        """
        self._next_turn[callback] = None

    @property
    def next_due(self) -> int | None:
        """When the next timer is due, on the loop's clock; None if there is none."""
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
            self._cancelled -= 1
        return self._timers[0].due if self._timers else None

    def run_once(self, timeout: float | None = None) -> bool:
        """Wait for the first event or timer, at most ``timeout`` seconds (None: forever), and call back for all.

        Returns:
            Whether there was a descriptor's event or a timer; with a timeout of 0, call again until there is none.
        """
        if self._when_idle or self._next_turn:
            timeout = 0
        if timeout == 0 or self.lookout.most == 0:
            return self._handle(self._sleep(timeout))
        began = time.monotonic_ns()
        ready = self._look(began) or self._sleep(timeout)
        self.lookout.waited(began, time.monotonic_ns())
        return self._handle(ready)

    def _sleep(self, timeout: float | None) -> list[tuple[int, int]]:
        """What is ready, as soon as there is something or a timer is due; nothing after ``timeout`` seconds."""
        if timeout != 0 and (due := self.next_due) is not None:
            until_due = due - self.clock()
            if until_due <= 0:
                timeout = 0
            elif not 0 < self._armed <= due:  # else it wakes the loop in time, if for nothing
                self._armed = due
                wait = divmod(min(until_due, _LONGEST_WAIT), 1_000_000_000)
                _libc.timerfd_settime(self._timerfd, 0, _ITIMERSPEC(0, 0, *wait), None)
        return self._epoll.poll(timeout)

    def _look(self, began: int) -> list[tuple[int, int]]:
        """What is ready, as soon as there is something; nothing if a timer is due, or it does not pay any longer."""
        due, now = self.next_due, began
        while now < began + self.lookout.window and (due is None or due > self.clock()):
            if ready := self._epoll.poll(0):
                return ready
            asked = time.monotonic_ns()
            os.sched_yield()
            now = time.monotonic_ns()
            self.lookout.yielded(asked, now)
        return []

    def _handle(self, ready: list[tuple[int, int]]) -> bool:
        """Call back for what is ready and due, and then, when there was nothing or for long enough, what waits."""
        self.turn += 1
        rest: Iterable[Callback] = ()  # what is said meanwhile is for the turn after this one
        if self._next_turn:
            rest, self._next_turn = self._next_turn, {}
        for fd, events in ready:
            if fd == self._timerfd:
                self._armed = 0
            if events & ~select.EPOLLOUT and (reader := self._readers.get(fd)):
                self._call(reader)
            if events & ~select.EPOLLIN and (writer := self._writers.get(fd)):
                self._call(writer)
        called = bool(rest)
        if self._timers and self._timers[0].due <= self.clock():
            called |= self._run_timers()
        for callback in rest:
            self._call(callback)
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
        while not self._stopped or self.waits:
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
        """Call what is due; whether there was any. Timers that are set meanwhile wait for the next turn."""
        now = self.clock()
        due = []
        while self._timers and self._timers[0].due <= now:
            due.append(heapq.heappop(self._timers))
        called = False
        due.reverse()
        try:
            while due:
                timer = due.pop()
                callback, timer.callback = timer.callback, None
                if callback is None:
                    self._cancelled -= 1
                else:
                    self._call(callback)
                    called = True
        finally:  # KeyboardInterrupt ends the loop, which may be run again
            for timer in due:
                heapq.heappush(self._timers, timer)
        return called

    def _woken(self) -> None:
        os.eventfd_read(self._wake)

    @staticmethod
    def _call(callback: Callback) -> None:
        try:
            callback()
        except Exception:
            log.exception("a callback failed")


class Budget:
    """So much work in one turn of the loop, and no more, so that the others get theirs.

    Args:
        poller: The loop.
        amount: What may be spent in one turn.
    """

    def __init__(self, poller: EventLoop, amount: int) -> None:
        self._poller = poller
        self._amount = amount
        self._turn = -1
        self._left = 0

    def spend(self, on_rest: Callback) -> bool:
        """Take one from this turn's amount; if nothing is left of it, have ``on_rest`` called in the next turn."""
        if self._turn != self._poller.turn:
            self._turn, self._left = self._poller.turn, self._amount
        if self._left == 0:
            self._poller.next_turn(on_rest)
            return False
        self._left -= 1
        return True

    def charge(self, amount: int) -> None:
        """What was begun is more work than one: take so much more, or what is left, from this turn's amount."""
        self._left = max(0, self._left - amount)
