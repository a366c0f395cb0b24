"""Strands: while the callback of one waits for its client, the others go on."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nicmodel.vfio_user import Client, Command, DmaFault, Poller, Server, session
from nicmodel.vfio_user.protocol import REGION_ACCESS
from nicmodel.vfio_user.strand import Strand

from .conftest import PAGE, Recorder

BASE = 0x100000


class Bench:
    """Two devices, each on a strand of its own, in one loop that turns when told.

    Attributes:
        said: what the first device's reads have come to.
    """

    def __init__(self, folder: Path) -> None:
        self.poller = Poller()
        self.strands = [Strand(self.poller), Strand(self.poller)]
        self.devices = [Recorder(), Recorder()]
        self.servers = [
            Server(str(folder / str(number)), device, poller=strand)
            for number, (device, strand) in enumerate(zip(self.devices, self.strands, strict=True))
        ]
        self.said: list[bytes | str] = []
        self.devices[0].on_write = lambda link: self.read(4)

    def read(self, count: int) -> None:
        """What the first device does when its BAR is written."""
        assert self.devices[0].link is not None
        try:
            self.said.append(self.devices[0].link.dma.read(BASE, count))
        except DmaFault as fault:
            self.said.append(fault.reason)

    def run(self) -> None:
        """Turn the loop until nothing is ready."""
        turns = 0
        while self.poller.run_once(0):
            turns += 1
            assert turns < 1000, "the loop does not come to rest"

    def client(self, number: int) -> Client:
        return Client(self.servers[number].path, timeout=20, idle=self.run)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[Client]:
        """A client that the first device waits for."""
        with self.client(0) as client:
            client.dma_map(BASE, PAGE)
            write(client)
            self.run()
            assert self.poller.waits == 1
            assert not self.said
            yield client

    def run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.poller.run_once(20)


def write(client: Client) -> None:
    client.send(Command.REGION_WRITE, REGION_ACCESS.pack(0, 0, 4) + b"work", no_reply=True)


def answer(client: Client) -> None:
    """One DMA message."""
    client.serve_dma(lambda address, count, data: None if data else b"\xa5" * count)
    assert client.process(5)
    client.serve_dma(None)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for server in bench.servers:
        server.close()
    bench.poller.close()


def test_other_clients_are_served(bench: Bench) -> None:
    with bench.waiting() as silent, bench.client(1) as other:
        for _ in range(20):
            other.device_info()
            other.region_write(0, 0, b"fine")
        assert bench.poller.waits == 1
        assert not bench.said
        answer(silent)  # how it has the data in its messages
        bench.run()
        answer(silent)
        bench.run()
        assert bench.said == [b"\xa5" * 4]
        assert bench.poller.waits == 0
        silent.device_info()


def test_its_own_messages_wait_and_keep_their_order(bench: Bench) -> None:
    with bench.waiting() as client:
        client.send(Command.REGION_WRITE, REGION_ACCESS.pack(8, 0, 4) + b"next", no_reply=True)
        bench.run()
        assert client._channel.rest == 0
        assert bytes(bench.devices[0].memory[8:12]) == bytes(4)
        bench.devices[0].on_write = None
        answer(client)
        bench.run()
        answer(client)
        assert client.region_read(0, 8, 4) == b"next"
        assert bench.said == [b"\xa5" * 4]


def test_one_that_never_answers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The access fails after the time-out, by the loop's own timer."""
    monkeypatch.setattr(session, "DMA_TIMEOUT", 0.05)
    with bench.waiting(), bench.client(1) as other:
        bench.run_until(lambda: bench.poller.waits == 0)
        assert bench.said == ["DMA_READ failed: the client does not answer"]
        assert bench.servers[0].stats["dma_timeouts"] == 1
        other.device_info()


def test_one_that_leaves(bench: Bench) -> None:
    with bench.waiting() as client:
        client.close()
        bench.run()
        assert len(bench.said) == 1
        assert bench.poller.waits == 0
        assert ("detach",) in bench.devices[0].calls
    with bench.client(0) as successor:
        successor.device_info()


def test_both_wait_and_the_first_to_be_answered_goes_on_first(bench: Bench) -> None:
    """A wait that began later is not in the way of one that began before."""
    said: list[bytes] = []

    def work(link: object) -> None:
        assert bench.devices[1].link is not None
        said.append(bench.devices[1].link.dma.read(BASE, 4))

    bench.devices[1].on_write = work
    with bench.waiting() as first, bench.client(1) as second:
        second.dma_map(BASE, PAGE)
        write(second)
        bench.run()
        assert bench.poller.waits == 2
        for _ in range(2):
            answer(first)
            bench.run()
        assert bench.said == [b"\xa5" * 4]
        assert not said
        for _ in range(2):
            answer(second)
            bench.run()
        assert said == [b"\xa5" * 4]


def test_what_is_due_meanwhile_comes_afterwards(bench: Bench) -> None:
    """Timers, calls of the next turn and descriptors of the strand and of one behind it; not what was cancelled."""
    strand, behind = bench.strands[0], Strand(bench.poller, bench.strands)
    called: list[str] = []

    def call(name: str) -> Callable[[], None]:
        return lambda: called.append(name)

    ready = os.eventfd(1)
    bench.run()
    with bench.waiting() as client:
        for name, one in (("own", strand), ("behind", behind), ("other", bench.strands[1])):
            one.call_at(one.clock(), call(f"{name} timer"))
            one.next_turn(call(f"{name} turn"))
            one.when_idle(call(f"{name} idle"))
        cancelled = strand.call_at(strand.clock(), call("never"))
        strand.add(ready, lambda: called.append("descriptor") or strand.remove(ready))  # type: ignore[func-returns-value]
        bench.run()
        assert sorted(called) == ["other idle", "other timer", "other turn"]
        strand.cancel(cancelled)
        called.clear()
        for _ in range(2):
            answer(client)
            bench.run()
        expected = [f"{name} {kind}" for name in ("own", "behind") for kind in ("idle", "timer", "turn")]
        assert sorted(called) == sorted([*expected, "descriptor"])
    os.close(ready)


def test_a_callback_of_a_strand_behind_may_wait_too(bench: Bench) -> None:
    """As when the control socket has a device do something: that waits, and who has nothing to do with it does not."""
    behind = Strand(bench.poller, bench.strands)
    with bench.client(0) as silent, bench.client(1) as other:
        silent.dma_map(BASE, PAGE)
        behind.next_turn(lambda: bench.read(4))
        bench.run()
        assert bench.poller.waits == 1
        called: list[str] = []
        behind.next_turn(lambda: called.append("behind"))
        bench.strands[0].next_turn(lambda: called.append("own"))
        other.device_info()
        assert not bench.said
        assert not called
        for _ in range(2):
            answer(silent)
            bench.run()
        assert bench.said == [b"\xa5" * 4]
        assert sorted(called) == ["behind", "own"]


def test_a_callback_is_called_once_however_often_that_is_said(bench: Bench) -> None:
    called: list[int] = []

    def callback() -> None:
        called.append(bench.strands[0].turn)

    for _ in range(3):
        bench.strands[0].next_turn(callback)
    bench.run()
    assert len(called) == 1


def test_a_callback_that_fails(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the strand goes on."""

    def fail() -> None:
        raise ZeroDivisionError

    bench.strands[0].next_turn(fail)
    bench.run()
    assert "a callback failed" in caplog.text
    with bench.client(0) as client:
        client.device_info()


def test_the_loop_does_not_end_while_somebody_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "DMA_TIMEOUT", 0.1)
    with bench.waiting():
        bench.poller.stop()
        bench.poller.serve_forever()
        assert bench.poller.waits == 0
        assert len(bench.said) == 1


def test_a_loop_may_go_on_in_another_thread(bench: Bench) -> None:
    with bench.client(0) as client:
        client.device_info()
        thread = threading.Thread(target=bench.poller.serve_forever)
        client._idle = lambda: None
        thread.start()
        try:
            client.device_info()
        finally:
            bench.poller.stop()
            thread.join()


def test_from_outside_of_the_loop_a_wait_is_a_plain_one(bench: Bench) -> None:
    ready = os.eventfd(0)
    assert not bench.strands[0].wait(ready, False, 0.01)
    assert bench.strands[0].wait(ready, True, 0)
    os.eventfd_write(ready, 1)
    assert bench.strands[0].wait(ready, False, 0)
    os.close(ready)
