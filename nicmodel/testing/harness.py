"""A NIC at a socket, its wire in the hands of a test, whatever its personality.

The device is the one that a guest gets, behind the same socket and the same messages.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from nicmodel.faults.weather import Weather
from nicmodel.host import Host, Model
from nicmodel.nic.nic import Nic
from nicmodel.observe.delivery import Deliveries, inject
from nicmodel.observe.findings import Finding
from nicmodel.packet.frames import Batch
from nicmodel.recording.call import Call
from nicmodel.testing.clock import VirtualClock
from nicmodel.testing.frames import Frames, Source, build, is_one
from nicmodel.testing.sent import Match, SentFrame
from nicmodel.testing.wire import TestWire
from nicmodel.vfio_user.client import Client
from nicmodel.vfio_user.poll import Poller
from nicmodel.wire.wire import Wire

T = TypeVar("T")
N = TypeVar("N", bound=Nic)

#: Turns of the event loop that may come before a call from another thread is answered.
_TURNS = 100


class RxQueue(Protocol):
    """A receive queue of a driver, as far as `TestNic.inject` uses it."""

    @property
    def visible(self) -> int:
        """Buffers that the device knows of."""

    @property
    def buffer_size(self) -> int:
        """Bytes of each."""

    def discard(self) -> object:
        """Take and forget what has come, and post the buffers again."""


class Consumer(Protocol):
    """A driver that takes what comes."""

    @property
    def rx(self) -> Mapping[int, RxQueue]:
        """Its receive queues, by number."""


class TestNic(Generic[N]):
    """A NIC and its server.

    Args:
        model: what the NIC is, and what it offers.
        wire: its wire; a plain `TestWire` if None. With another wire there is nothing in `sent`.
        clock: virtual time: nobody has to wait, the NIC runs whenever the driver waits for an answer, and in every call
            of this object. None: real time, and a thread of the NIC's own, which is what a guest needs.
        folder: where the socket is; a temporary folder if None.
        check: watch the driver keep the contract (`nicmodel.observe.findings`); what it has broken is in `findings`.
        weather: what the NIC does that its contract allows and devices rarely do, from the beginning.
        record: called with each call into the NIC, which makes a recording (`nicmodel.recording`); None: nothing is
            noted.

    Attributes:
        host: what the NIC and its server are part of.
        device: the NIC.
        faults: its faults on demand; on real time they are given by `call`.
        weather: what it does that its contract allows and devices rarely do, from the beginning; None: nothing.
        checker: the contract checker; None without `check`.
        recorder: what notes the calls; None without `record`.
        server: what clients connect to.
        wire: the NIC's wire.
        clock: virtual time; None: real time.
        path: the socket.
    """

    __test__ = False  # the name is no invitation to pytest

    def __init__(
        self,
        model: Model[N],
        *,
        wire: Wire | None = None,
        clock: VirtualClock | None = None,
        folder: Path | None = None,
        check: bool = False,
        weather: Weather | None = None,
        record: Callable[[Call], None] | None = None,
    ) -> None:
        self.clock = clock
        self.wire: Wire = TestWire() if wire is None else wire
        self._folder = tempfile.TemporaryDirectory(prefix="nicmodel-") if folder is None else None
        self.path = Path(self._folder.name if self._folder else str(folder), "nic.sock")
        poller = Poller() if clock is None else clock.make_poller()
        self.host = Host(poller)
        self.device = self.host.add(model, self.wire, check=check, record=record is not None)
        self.recorder = self.host.recorders.get(self.device.name)
        if self.recorder is not None and record is not None:
            self.recorder.tell = record
        self.faults = self.host.faults[0]
        self.checker = self.host.checkers.get(self.device.name)
        self.server = self.host.serve(self.device, str(self.path))
        self._loop = None if clock else _Loop(poller)
        self.call(self.host.start)
        self.weather = weather
        if weather is not None:
            self.call(partial(weather.begin, self.faults))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def findings(self) -> list[Finding]:
        """The rules that the driver has broken so far; none without `check`.

        Raises:
            RuntimeError: the checker itself has failed; the log says where.
        """
        if self.checker is None:
            return []
        if self.checker.failed:
            raise RuntimeError("the contract checker has failed; the log says where")
        if self.clock is not None:
            self.clock.turn()  # so that all is seen that the driver did before
        return self.checker.findings

    @property
    def mac(self) -> str:
        """The NIC's address."""
        return self.device.profile.mac.hex(":")

    def client(self) -> Client:
        """A client of its server, for a driver; the device serves one, and the next when that has disconnected."""
        return Client(str(self.path), idle=(lambda: None) if self.clock is None else self.clock.turn)

    # Receive: what the wire brings.

    def build(self, source: Source, **fields: Any) -> Frames:
        """Build frames that are injected later or several times; see `nicmodel.testing.frames.build`."""
        return build(source, self.mac, **fields)

    def inject(self, source: Source, *, consumer: Consumer | None = None, **fields: Any) -> Any:
        """Let the NIC receive frames, after it has handled everything that the driver did before.

        Args:
            source: one frame, as bytes or a scapy packet; or any number: `Frames`, an iterable of bytes, packets and
                more, or the path of a capture. Ethernet addresses that scapy packets leave out are filled in.
            consumer: a driver that takes and forgets what comes, and posts the buffers again before they run short, as
                a kernel does. Without one everything is one batch; what finds no buffers is held or dropped.
            fields: those of `Batch.append`, for every frame: what a wire knows of checksums and segments.

        Returns:
            For one frame its `Delivery`, for any number `Deliveries`.

        Raises:
            ValueError: a frame is empty, or too long.
        """
        if isinstance(source, Frames):
            return self._inject(source, consumer)
        deliveries = self._inject(build(source, self.mac, **fields), consumer)
        return deliveries[0] if is_one(source) else deliveries

    def _inject(self, frames: Frames, consumer: Consumer | None) -> Deliveries:
        batches = [frames.part(0, len(frames))] if consumer is None else _feed(frames, consumer)
        return Deliveries.joined(self.call(partial(inject, self.device, batch)) for batch in batches)

    # Transmit: what the wire gets.

    @property
    def sent(self) -> list[SentFrame]:
        """The frames that the NIC has sent and that were not taken yet, oldest first.

        Raises:
            TypeError: its wire is not a `TestWire`.
        """
        if not isinstance(self.wire, TestWire):
            raise TypeError(f"frames that go to {self.wire.name} cannot be seen here")
        self.run()
        return self.wire.sent

    def take(self) -> list[SentFrame]:
        """What the NIC has sent since the last call."""
        sent = self.sent
        taken = sent[:]
        del sent[: len(taken)]
        return taken

    def expect(self, match: Match, *, timeout: float = 1.0) -> SentFrame:
        """Wait until the NIC has sent a frame, and take it; frames that do not match stay.

        Args:
            match: which: a scapy layer; a scapy packet with whose layers and given fields it agrees; the very bytes; or
                a function of the scapy packet.
            timeout: seconds, of virtual time if the clock is virtual.

        Raises:
            AssertionError: it did not come; the text says what did.
        """
        return self.expect_all([match], timeout=timeout)[0]

    def expect_all(self, matches: list[Match], *, timeout: float = 1.0) -> list[SentFrame]:
        """Wait as `expect` does, for one frame for each of `matches`, in this order; others may come between."""
        found: list[SentFrame] = []

        def look() -> bool:
            sent = self.sent
            place = 0
            while len(found) < len(matches) and place < len(sent):
                if sent[place].matches(matches[len(found)]):
                    found.append(sent.pop(place))
                else:
                    place += 1
            return len(found) == len(matches)

        if not self.wait(look, timeout):
            came = "\n".join(f"  {frame}" for frame in [*found, *self.sent]) or "  nothing"
            raise AssertionError(
                f"{len(found)} of {len(matches)} frames were sent within {timeout:g} s, not {matches[len(found)]!r}; "
                f"what came:\n{came}"
            )
        return found

    # The rest.

    def set_link(self, up: bool) -> None:
        """Plug the cable in or pull it."""
        self.call(lambda: self.device.set_cable(up))

    def run(self) -> None:
        """Let the NIC handle everything that the driver did before, and the timers that are due."""
        self.call(lambda: None)

    def wait(self, condition: Callable[[], bool], timeout: float = 1.0) -> bool:
        """Let time pass until `condition()` is true; whether it became so within `timeout` seconds.

        Virtual time passes from one timer to the next, at no cost.
        """
        if self.clock is None:
            end = time.monotonic() + timeout
            while not condition():
                if time.monotonic() > end:
                    return False
                time.sleep(0.002)
            return True
        ends = self.clock.now + int(timeout * 1e9)
        while not condition():
            due = self.clock.next_due
            if self.clock.now >= ends:
                return False
            self.clock.advance((ends if due is None else min(due, ends)) - self.clock.now)
        return True

    def pause(self, seconds: float) -> None:
        """Let so much time pass: virtual time at once."""
        if self.clock is None:
            time.sleep(seconds)
        else:
            self.clock.advance(round(seconds * 1e9))

    def call(self, function: Callable[[], T]) -> T:
        """Call a function where the NIC runs, after all that its driver did before."""
        if self._loop is not None:
            return self._loop.call(function)
        assert self.clock is not None
        self.clock.turn()
        result = function()
        self.clock.turn()
        return result

    def close(self) -> None:
        """End the server; a driver finds the connection closed."""
        if self._loop is not None:
            self._loop.stop()
        self.host.close()
        if self.clock is not None:
            self.clock.forget(self.host.poller)
        self.host.poller.close()
        if self._folder is not None:
            self._folder.cleanup()


def _feed(frames: Frames, consumer: Consumer) -> Iterator[Batch]:
    """Frames in batches for which there are buffers; the driver takes each before the next."""
    largest = int(frames.batch.frames["length"][: len(frames)].max(initial=0))
    start = 0
    while start < len(frames):
        queues = consumer.rx.values()
        room = min((queue.visible // -(-largest // queue.buffer_size) for queue in queues), default=len(frames))
        stop = start + max(room, 1)
        yield frames.part(start, stop)
        start = stop
        for queue in queues:
            queue.discard()


class _Loop:
    """An event loop in a thread of its own, and calls into it from others."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopped = False
        poller.add(self._wake, self._woken)
        self._thread = threading.Thread(target=self._run, name="nic", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        """Call in the loop's thread what it returns or raises."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._calls.append(run)
        os.eventfd_write(self._wake, 1)
        return future.result()

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._poller.remove(self._wake)
        os.close(self._wake)

    def _woken(self) -> None:
        os.eventfd_read(self._wake)

    def _run(self) -> None:
        while not self._stopped:
            self._poller.run_once(None)
            while self._calls:
                for _ in range(_TURNS):  # what came before the call goes first
                    if not self._poller.run_once(0):
                        break
                self._calls.popleft()()
