"""The event loop: readiness, timers on any clock, and callbacks that fail."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from nicmodel.vfio_user import Poller
from nicmodel.vfio_user.poll import BUSY_TURNS, Budget


@pytest.fixture
def poller() -> Iterator[Poller]:
    created = Poller()
    yield created
    created.close()


def test_readable(poller: Poller) -> None:
    read_end, write_end = os.pipe()
    got: list[bytes] = []
    poller.add(read_end, lambda: got.append(os.read(read_end, 10)))
    poller.run_once(0)
    assert got == []
    os.write(write_end, b"x")
    poller.run_once(1)
    assert got == [b"x"]
    os.close(write_end)
    poller.run_once(1)
    assert got == [b"x", b""]  # the end of file is readable too
    poller.remove(read_end)
    poller.remove(read_end)
    poller.run_once(0)
    assert len(got) == 2
    os.close(read_end)


def test_writable_until_told_otherwise(poller: Poller) -> None:
    eventfd = os.eventfd(0)
    calls: list[int] = []
    poller.add(eventfd, lambda: None)
    poller.want_write(eventfd, lambda: calls.append(1))
    poller.run_once(1)
    poller.run_once(1)
    poller.want_write(eventfd, None)
    poller.run_once(0)
    assert len(calls) == 2
    poller.remove(eventfd)
    os.close(eventfd)


def test_removed_by_an_earlier_callback_of_the_same_round(poller: Poller) -> None:
    fds = [os.eventfd(1) for _ in range(2)]
    called: list[int] = []

    def only_one(index: int) -> None:
        called.append(index)
        poller.remove(fds[1 - index])

    for index, fd in enumerate(fds):
        poller.add(fd, lambda index=index: only_one(index))  # type: ignore[misc]
    poller.run_once(1)
    assert len(called) == 1
    for fd in fds:
        poller.remove(fd)
        os.close(fd)


def test_timers_fire_in_order_and_once() -> None:
    now = 1000
    poller = Poller(clock=lambda: now)
    fired: list[str] = []
    poller.call_at(3000, lambda: fired.append("late"))
    poller.call_at(2000, lambda: fired.append("early"))
    cancelled = poller.call_at(2500, lambda: fired.append("never"))
    poller.cancel(cancelled)
    poller.run_once(0)
    assert fired == []
    now = 2000
    poller.run_once(0)
    assert fired == ["early"]
    now = 10_000
    poller.run_once(None)  # something is due, so this does not wait
    poller.run_once(0)
    assert fired == ["early", "late"]
    poller.cancel(cancelled)
    poller.close()


def test_timer_set_by_a_timer_waits_for_its_time() -> None:
    now = 0
    poller = Poller(clock=lambda: now)
    fired: list[int] = []

    def tick() -> None:
        fired.append(now)
        poller.call_at(now + 10, tick)

    poller.call_at(10, tick)
    for now in range(0, 45, 5):  # noqa: B007
        poller.run_once(0)
    assert fired == [10, 20, 30, 40]
    poller.close()


def test_timers_are_finer_than_a_millisecond(poller: Poller) -> None:
    """None is early, and one at least is on time; on a busy machine that takes several, so the test's limit decides."""
    late: list[int] = []
    while not late or min(late) >= 500_000:
        due = time.monotonic_ns() + 200_000
        count = len(late)
        poller.call_at(due, lambda due=due: late.append(time.monotonic_ns() - due))  # type: ignore[misc]
        while len(late) == count:
            poller.run_once(1)
        assert late[-1] >= 0


def test_failing_callbacks_do_not_end_the_loop(poller: Poller, caplog: pytest.LogCaptureFixture) -> None:
    fired: list[int] = []

    def fail() -> None:
        raise ZeroDivisionError

    poller.call_at(0, fail)
    poller.call_at(1, lambda: fired.append(1))
    poller.run_once(0)
    assert fired == [1]
    assert "ZeroDivisionError" in caplog.text


def test_interrupt_ends_the_loop(poller: Poller) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    poller.call_at(0, interrupt)
    with pytest.raises(KeyboardInterrupt):
        poller.serve_forever()


def test_stop_from_another_thread_and_from_a_callback(poller: Poller) -> None:
    thread = threading.Timer(0.01, poller.stop)
    thread.start()
    poller.serve_forever()
    thread.join()
    poller.call_at(0, poller.stop)
    poller.serve_forever()


def test_when_idle_comes_once_after_all_that_waits(poller: Poller) -> None:
    """What is ready when the loop looks again goes first; but not for ever."""
    order: list[str] = []
    eventfd = os.eventfd(0)

    def ready() -> None:
        order.append("ready")
        poller.when_idle(idle)
        if order.count("ready") == 3:
            os.eventfd_read(eventfd)

    def idle() -> None:
        order.append("idle")

    poller.add(eventfd, ready)
    os.eventfd_write(eventfd, 1)
    while poller.run_once(0):
        pass
    assert order == ["ready", "ready", "ready", "idle"]

    order.clear()
    os.eventfd_write(eventfd, 1)
    order += ["ready"] * 3  # so that it stays readable
    for _ in range(100):
        poller.run_once(0)
    turns = len(order) - 3 - order.count("idle")
    assert turns == 100
    assert order.count("idle") == turns // (BUSY_TURNS + 1)
    poller.remove(eventfd)
    os.close(eventfd)


def test_when_idle_does_not_sleep(poller: Poller) -> None:
    called: list[str] = []
    poller.when_idle(lambda: called.append("idle"))
    assert poller.run_once(86400)  # a day: the test's own limit comes first
    assert called == ["idle"]
    assert not poller.run_once(0)


def test_looking_finds_what_comes_and_what_is_due() -> None:
    poller = Poller(busy_poll=10_000_000_000)
    eventfd = os.eventfd(0)
    seen: list[str] = []
    poller.add(eventfd, lambda: seen.append(f"read {os.eventfd_read(eventfd)}"))
    poller.lookout.window = poller.lookout.most
    writer = threading.Timer(0.05, lambda: os.eventfd_write(eventfd, 7))
    writer.start()
    poller.run_once(None)
    assert seen == ["read 7"]
    poller.call_at(time.monotonic_ns() + 20_000_000, lambda: seen.append("timer"))
    poller.run_once(None)
    assert seen == ["read 7", "timer"]
    writer.join()
    poller.close()
    os.close(eventfd)


class Waiting:
    """An event loop whose time passes by 1 µs for each look, and to which work comes as a test says.

    Attributes:
        looks: How often it has looked without waiting, since it was asked last.
        slept: Whether it has slept.
        yielding: How long others keep the processor when it is offered to them, ns.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, busy_poll: int) -> None:
        self.poller = Poller(clock=self.time, busy_poll=busy_poll)
        self.now = self.comes = 1_000_000
        self.looks, self.slept, self.yielding = 0, False, 0
        monkeypatch.setattr("nicmodel.vfio_user.poll.time", SimpleNamespace(monotonic_ns=self.time))
        monkeypatch.setattr("os.sched_yield", self.sched_yield)
        self._epoll = self.poller._epoll
        monkeypatch.setattr(self.poller, "_epoll", self)
        monkeypatch.setattr(self.poller, "_handle", bool)

    def time(self) -> int:
        return self.now

    def sched_yield(self) -> None:
        self.now += self.yielding

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        if timeout is None:
            self.slept, self.now = True, max(self.now, self.comes)
        else:
            self.looks, self.now = self.looks + 1, self.now + 1000
        return [(0, 0)] if self.now >= self.comes else []

    def after(self, microseconds: int) -> tuple[int, bool]:
        """Work comes after so long: how often the loop has looked for it, and whether it has slept."""
        self.comes, self.looks, self.slept = self.now + 1000 * microseconds, 0, False
        assert self.poller.run_once(None)
        return self.looks, self.slept


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waiting]:
    waiting = Waiting(monkeypatch, busy_poll=100_000)
    yield waiting
    waiting._epoll.close()


def test_looking_pays_where_work_comes_soon(waiting: Waiting) -> None:
    """*Verify*: it looks for longer and longer, until it finds all without sleeping."""
    assert [waiting.after(30) for _ in range(5)] == [(0, True), (10, True), (20, True), (30, False), (30, False)]
    assert waiting.after(90) == (40, True)
    assert waiting.after(90) == (80, True)
    assert [waiting.after(90), waiting.after(99)] == [(90, False), (99, False)]


def test_looking_costs_an_idle_loop_nothing(waiting: Waiting) -> None:
    for _ in range(4):
        waiting.after(30)
    assert waiting.after(101) == (40, True)
    assert {waiting.after(1000) for _ in range(10)} == {(0, True)}


def test_looking_ends_when_others_want_the_processor(waiting: Waiting) -> None:
    """*Steps*: another keeps the processor. *Verify*: one look; none for 50 ms, though work comes soon; then again."""
    for _ in range(4):
        waiting.after(30)
    waiting.yielding = 200_000
    assert waiting.after(300) == (1, True)
    waiting.yielding = 0
    for _ in range(1600):
        assert waiting.after(30) == (0, True)
    waiting.now += 10_000_000
    assert [waiting.after(30) for _ in range(4)] == [(0, True), (10, True), (20, True), (30, False)]


def test_short_yields_are_no_matter(waiting: Waiting) -> None:
    """QEMU passes an interrupt on in some microseconds."""
    for _ in range(4):
        waiting.after(30)
    waiting.yielding = 10_000
    assert [waiting.after(30) for _ in range(3)] == [(4, False)] * 3


def test_without_busy_poll_it_never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(monkeypatch, busy_poll=0)
    assert {waiting.after(1) for _ in range(10)} == {(0, True)}
    waiting._epoll.close()


def test_cancelled_timers_do_not_pile_up(poller: Poller) -> None:
    """A timer that is set far ahead and cancelled, again and again, as by a driver's REPORT_STATS."""
    fired: list[int] = []
    far = time.monotonic_ns() + 1 << 62
    kept = [poller.call_at(far + number, lambda: fired.append(1)) for number in range(100)]
    for _ in range(20_000):
        poller.cancel(poller.call_at(far, lambda: fired.append(2)))
    assert len(poller._timers) < 1000
    for timer in kept:
        poller.cancel(timer)
        poller.cancel(timer)
    for _ in range(1000):
        poller.cancel(poller.call_at(0, lambda: fired.append(3)))
    assert len(poller._timers) < 200
    poller.call_at(0, lambda: fired.append(4))
    poller.run_once(0)
    poller.call_at(far, lambda: None)
    poller.run_once(0.001)  # the kernel takes a time that is so far ahead
    assert fired == [4]


def test_timer_cancelled_by_one_that_is_due_with_it(poller: Poller) -> None:
    fired: list[str] = []
    second = poller.call_at(2, lambda: fired.append("second"))
    poller.call_at(1, lambda: poller.cancel(second))
    poller.call_at(3, lambda: fired.append("third"))
    poller.run_once(0)
    assert fired == ["third"]


def test_a_timer_that_is_always_due_leaves_the_others_their_turn() -> None:
    poller = Poller(clock=lambda: 1)
    order: list[str] = []

    def again() -> None:
        order.append("timer")
        poller.call_at(0, again)

    eventfd = os.eventfd(1)
    poller.add(eventfd, lambda: order.append("readable"))
    again()
    for _ in range(3):
        poller.run_once(0)
    assert order == ["timer", *["readable", "timer"] * 3]
    poller.close()
    os.close(eventfd)


def test_timers_after_one_that_ends_the_loop_are_kept(poller: Poller) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    fired: list[int] = []
    poller.call_at(0, interrupt)
    poller.call_at(1, lambda: fired.append(1))
    with pytest.raises(KeyboardInterrupt):
        poller.run_once(0)
    assert not fired
    poller.run_once(0)
    assert fired == [1]


def test_every_descriptor_gets_its_turn(poller: Poller) -> None:
    """Those that are always ready, more than one epoll_wait(2) tells of, with callbacks that leave them so."""
    fds = [os.eventfd(1) for _ in range(min(1500, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200))]
    calls = dict.fromkeys(fds, 0)

    def count(fd: int) -> None:
        calls[fd] += 1

    for fd in fds:
        poller.add(fd, lambda fd=fd: count(fd))  # type: ignore[misc]
    turns = 20
    for _ in range(turns):
        poller.run_once(0)
    assert max(calls.values()) - min(calls.values()) <= 1
    assert sum(calls.values()) >= turns * min(1000, len(fds))
    for fd in fds:
        poller.remove(fd)
        os.close(fd)


def test_next_turn_comes_once_in_the_next(poller: Poller) -> None:
    """What is said during a turn is called in the next, however often it was said, and the loop does not sleep."""
    called: list[int] = []

    def again() -> None:
        called.append(poller.turn)
        if len(called) < 3:
            poller.next_turn(again)
            poller.next_turn(again)

    poller.next_turn(again)
    first = poller.turn
    while poller.run_once(30 if len(called) < 3 else 0):
        pass
    assert called == [first + 1, first + 2, first + 3]


def test_next_turn_is_not_this_one(poller: Poller) -> None:
    """*Steps*: a reader asks for the next turn when nobody has before. *Verify*: it is called then, not before."""
    eventfd = os.eventfd(1)
    called: list[int] = []
    poller.add(eventfd, lambda: poller.next_turn(lambda: called.append(os.eventfd_read(eventfd))))
    poller.run_once(0)
    assert not called
    poller.run_once(0)
    assert called == [1]
    poller.remove(eventfd)
    os.close(eventfd)


def test_budget_is_that_of_a_turn(poller: Poller) -> None:
    """*Steps*: more work than a turn may do. *Verify*: each turn does so much, and what is left comes by itself."""
    budget = Budget(poller, 3)
    done: list[int] = []

    def work() -> None:
        while len(done) < 10 and budget.spend(work):
            done.append(poller.turn)

    work()
    work()
    assert len(done) == 3
    while poller.run_once(0):
        pass
    assert [done.count(turn) for turn in sorted(set(done))] == [3, 3, 3, 1]
