"""Clients that are silent, slow or never done: they are waited for so long, and nobody else is kept waiting."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nicmodel.vfio_user import Client, Command, DmaFault, Poller, Server, session
from nicmodel.vfio_user.protocol import DMA_MAP, HEADER, NO_REPLY, REGION_ACCESS, VERSION

from .conftest import BAR0_SIZE, PAGE, Lab, Memory, Recorder, open_descriptors

SECOND = 1_000_000_000


class Bench:
    """A server whose loop turns, and whose time moves, when told."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.now = 0
        self.poller = Poller(clock=lambda: self.now)
        self.device = Recorder()
        self.server = Server(path, self.device, poller=self.poller)

    def run(self) -> int:
        """Turn the loop until nothing waits; how often."""
        turns = 0
        while self.poller.run_once(0):
            turns += 1
            assert turns < 10_000
        return turns

    def run_beside(self, client: Client) -> None:
        """Turn the loop in another thread until nothing waits, while the client answers DMA messages."""
        client._idle = lambda: None
        thread = threading.Thread(target=self.run)
        thread.start()
        with contextlib.suppress(ConnectionError):  # it is dropped
            while thread.is_alive():
                client.process(0.01)
        thread.join()
        client._idle = self.run

    def client(self) -> Client:
        return Client(self.path, timeout=20, idle=self.run)

    def raw(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(20)
        made.connect(self.path)
        return made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(str(tmp_path / "a.sock"))
    yield made
    made.server.close()
    made.poller.close()


def version() -> bytes:
    return HEADER.pack(1, Command.VERSION, HEADER.size + VERSION.size, 0, 0) + VERSION.pack(0, 1)


def write(offset: int, data: bytes) -> bytes:
    payload = REGION_ACCESS.pack(offset, 0, len(data)) + data
    return HEADER.pack(1, Command.REGION_WRITE, HEADER.size + len(payload), NO_REPLY, 0) + payload


@pytest.mark.parametrize("said", [b"", version()[:8], version()[:-1]])
def test_a_client_that_does_not_say_version(bench: Bench, said: bytes) -> None:
    with bench.raw() as silent, bench.raw() as second:
        silent.sendall(said)
        second.sendall(version())
        bench.run()
        bench.now += int(session.HANDSHAKE_LIMIT * SECOND) - 1
        bench.run()
        assert bench.server.stats["dropped"] == 0
        bench.now += 1
        bench.run()
        assert bench.server.stats["dropped"] == 1
        assert silent.recv(1) == b""
        assert second.recv(16)[:4] == HEADER.pack(1, Command.VERSION, 16, 0, 0)[:4]
        bench.now += 1000 * SECOND  # one that has introduced itself may be silent for ever
        bench.run()
        assert bench.server.link is not None and bench.server.stats["dropped"] == 1


def test_what_came_while_this_process_stood_still_counts(bench: Bench) -> None:
    with bench.raw() as client:
        bench.run()
        client.sendall(version())
        bench.now += 3600 * SECOND
        bench.run()
        assert bench.server.link is not None
        client.sendall(write(0, b"ab")[:20])
        bench.run()
        client.sendall(write(0, b"ab")[20:])
        bench.now += 3600 * SECOND
        bench.run()
        assert bench.device.memory[:2] == b"ab" and bench.server.stats["dropped"] == 0


@pytest.mark.parametrize("cut", [1, 15, 16, 30])
def test_a_message_that_does_not_end(bench: Bench, cut: int) -> None:
    """The time counts from its first byte on; bytes that trickle in do not prolong it."""
    message = write(0, bytes(64))
    with bench.raw() as client:
        client.sendall(version() + write(0, b"before") + message[:cut])
        bench.run()
        assert bench.device.memory[:6] == b"before"
        for byte in range(4):
            bench.now += int(session.MESSAGE_LIMIT * SECOND) // 4 - 1
            client.sendall(message[cut + byte : cut + byte + 1])
            bench.run()
            assert bench.server.stats["dropped"] == 0
        bench.now += 4
        bench.run()
        assert bench.server.stats["dropped"] == 1
        assert ("detach",) in bench.device.calls


def test_slow_messages_one_after_the_other(bench: Bench) -> None:
    """Each has its own time."""
    with bench.raw() as client:
        client.sendall(version())
        for number in range(10):
            message = write(number, b"x")
            client.sendall(message[:10])
            bench.run()
            bench.now += int(session.MESSAGE_LIMIT * SECOND) - 1
            bench.run()
            client.sendall(message[10:])
            bench.run()
        assert bench.server.stats["dropped"] == 0
        assert bench.device.memory[:10] == b"x" * 10
        bench.now += 1000 * SECOND
        bench.run()
        assert bench.server.stats["dropped"] == 0


def test_one_that_waits_is_told_of(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with bench.client() as first, bench.raw(), bench.raw():
        for _ in range(10):
            first.device_info()
        assert bench.server.stats["waited"] == 1
        assert len(caplog.records) == 1 and f"it waits until {bench.server.link.name} has left" in caplog.text  # type: ignore[union-attr]


def test_a_flood_of_messages_leaves_the_others_their_turn(tmp_path: Path) -> None:
    """Steps: one client has sent as many posted writes as its socket takes; another reads a register; a timer is due.
    Verify: read and timer are done while most of the flood is still to be handled, which then is, to the last write.
    """
    poller = Poller()
    flooded, other = Recorder(), Recorder()
    servers = [Server(str(tmp_path / "a"), flooded, poller=poller), Server(str(tmp_path / "b"), other, poller=poller)]

    def run() -> None:
        while poller.run_once(0):
            pass

    with Client(servers[0].path, idle=run) as client, Client(servers[1].path, idle=run) as bystander:
        run()
        sent = 0
        message = write(0, b"x") * 100
        with socket.socket(fileno=os.dup(client.fileno())) as raw:
            raw.setblocking(False)
            try:
                while True:
                    sent += raw.send(message)
            except BlockingIOError:
                pass
            whole, rest = divmod(sent, len(write(0, b"x")))
            assert whole > 4 * session.MESSAGES_PER_TURN
            fired: list[int] = []
            poller.call_at(0, lambda: fired.append(len(flooded.calls)))
            bystander.send(Command.DEVICE_RESET)
            for _ in range(2):
                poller.run_once(0)
            assert fired and ("reset",) in other.calls
            assert servers[0].stats["region_write"] <= 2 * session.MESSAGES_PER_TURN
            run()
            assert servers[0].stats["region_write"] == whole
            raw.setblocking(True)
            if rest:
                raw.sendall(write(0, b"x")[rest:])
            run()
        assert client.device_info().num_regions == 9
    for server in servers:
        server.close()
    poller.close()


def test_large_messages_have_a_limit_in_bytes(bench: Bench) -> None:
    """Three that lie in the buffer already are handled in three turns."""
    with bench.client() as client:
        turns: list[int] = []
        bench.device.on_write = lambda link: turns.append(bench.poller.turn)
        size = min(session.BYTES_PER_TURN, BAR0_SIZE)
        count = 3 * session.BYTES_PER_TURN // size
        client._idle = lambda: None  # the loop turns in this thread, and only here
        thread = threading.Thread(target=lambda: client.raw(write(0, bytes(size)) * count))
        thread.start()
        deadline = time.monotonic() + 20
        while len(turns) < count and time.monotonic() < deadline:
            bench.poller.run_once(0)
        thread.join()
        client._idle = bench.run
        assert len(turns) == count
        assert max(map(turns.count, turns)) <= session.BYTES_PER_TURN // size + 1


# ---------------------------------------------------------------- DMA by messages

BASE = 0x4000_0000


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "DMA_TIMEOUT", 0.05)
    monkeypatch.setattr(session, "DMA_PATIENCE", 10.0)


def answers(bench: Bench, client: Client, accesses: int) -> list[str]:
    """Have the device read the client's memory so often, in one turn; why it could not."""
    reasons: list[str] = []

    def work(link: object) -> None:
        assert bench.device.link is not None
        for _ in range(accesses):
            try:
                bench.device.link.dma.read(BASE, 4)
            except DmaFault as fault:
                reasons.append(fault.reason)

    bench.device.on_write = work
    client.send(Command.REGION_WRITE, REGION_ACCESS.pack(0, 0, 4) + b"work", no_reply=True)
    bench.run()
    bench.device.on_write = None
    return reasons


def test_a_silent_client_is_waited_for_once(bench: Bench, impatient: None) -> None:
    """Until it has answered, it is not asked again; when it has, it is; when it never does, it is dropped."""
    with bench.client() as client:
        client.dma_map(BASE, PAGE)
        assert len(answers(bench, client, 100)) == 100
        assert bench.server.stats["dma_read"] == bench.server.stats["dma_timeouts"] == 1
        assert len(answers(bench, client, 100)) == 100
        assert bench.server.stats["dma_read"] == 1

        client.serve_dma(lambda address, count, data: bytes(count))
        assert client.process(5)  # the answer, late
        bench.run()
        assert bench.server.stats["errors"] == 0
        client.serve_dma(None)
        assert answers(bench, client, 1)
        assert bench.server.stats["dma_timeouts"] == 2

        bench.now += int(session.ANSWER_LIMIT * SECOND) - 1
        bench.run()
        assert bench.server.stats["dropped"] == 0
        bench.now += 1
        bench.run()
        assert bench.server.stats["dropped"] == 1
        assert client.closed_by_server()


def test_a_silent_client_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two NICs in one loop: what the second waits for the first one's client is one time-out, however much there is."""
    monkeypatch.setattr(session, "DMA_TIMEOUT", 0.2)
    poller = Poller()
    devices = [Recorder(), Recorder()]
    servers = [Server(str(tmp_path / str(n)), device, poller=poller) for n, device in enumerate(devices)]
    loop = threading.Thread(target=poller.serve_forever)
    loop.start()

    def work(link: object) -> None:
        assert devices[0].link is not None
        for _ in range(50):
            with pytest.raises(DmaFault):
                devices[0].link.dma.read(BASE, 4)

    try:
        with Client(servers[0].path) as silent, Client(servers[1].path, timeout=30) as other:
            silent.dma_map(BASE, PAGE)
            devices[0].on_write = work
            for _ in range(20):
                silent.send(Command.REGION_WRITE, REGION_ACCESS.pack(0, 0, 4) + b"work", no_reply=True)
                other.device_info()
            assert servers[0].stats["dma_timeouts"] == 1
    finally:
        poller.stop()
        loop.join()
        for server in servers:
            server.close()
        poller.close()


def test_answers_in_one_turn_have_one_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that always answers just in time is waited for no longer than one that does not answer."""
    monkeypatch.setattr(session, "DMA_TIMEOUT", 0.3)
    with bench.client() as client:
        client.dma_map(BASE, PAGE)

        def slow(address: int, count: int, data: bytes | None) -> bytes:
            time.sleep(0.05)
            return bytes(count)

        client.serve_dma(slow)
        ended: list[list[str]] = []
        client.send(Command.REGION_WRITE, REGION_ACCESS.pack(0, 0, 4) + b"work", no_reply=True)
        bench.device.on_write = lambda link: ended.append(read_often(link.dma.read, 1000))
        bench.run_beside(client)
        assert len(ended[0]) > 900
        assert bench.server.stats["dma_read"] <= 8


def read_often(read: Callable[[int, int], bytes], accesses: int) -> list[str]:
    reasons = []
    for _ in range(accesses):
        try:
            read(BASE, 4)
        except DmaFault as fault:
            reasons.append(fault.reason)
    return reasons


def test_a_client_whose_answers_are_always_slow_is_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps: each answer takes some times `SLOW_ANSWER`, with time passing between, and then without.
    Verify: it goes on while patience grows as fast as it is used up, and ends when it does not.
    """

    class Watch:
        """On which time passes by being looked at."""

        now = 0.0

        def monotonic(self) -> float:
            self.now += 2 * session.SLOW_ANSWER
            return self.now

    monkeypatch.setattr(session, "time", Watch())
    with bench.client() as client:
        client.dma_map(BASE, PAGE)

        client.serve_dma(lambda address, count, data: bytes(min(count, 4)))
        reasons: list[str] = []

        def read(times: int) -> None:
            bench.device.on_write = lambda link: reasons.extend(read_often(link.dma.read, times))
            client.send(Command.REGION_WRITE, REGION_ACCESS.pack(0, 0, 4) + b"work", no_reply=True)
            bench.run_beside(client)

        for _ in range(20):
            read(10)
            bench.now += 1000 * SECOND
        assert bench.server.stats["dropped"] == bench.server.stats["dma_timeouts"] == 0
        for _ in range(20):
            if not bench.server.stats["dropped"]:
                read(10)
        assert bench.server.stats["dropped"] == 1


# ---------------------------------------------------------------- who it is, and what it sends along


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        (b"qemu-gast-f\xc3\xbcr\xc3", r"qemu-gast-für\xc3"),
        (b"\x1b[2Jboo", r"\x1b[2Jboo"),
        (b"two\nlines", r"two\nlines"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"", ""),
    ],
)
def test_process_names(lab: Lab, name: bytes, printed: str, caplog: pytest.LogCaptureFixture) -> None:
    """A process may call itself anything; the next client is served all the same."""
    libc = ctypes.CDLL(None)
    with open("/proc/thread-self/comm", "rb") as file:
        before = file.read()[:-1]
    caplog.set_level(logging.INFO)
    libc.prctl(15, name, 0, 0, 0)  # PR_SET_NAME
    try:
        with lab.client():
            assert lab.link.name == f"{printed}[{os.getpid()}]"
    finally:
        libc.prctl(15, before, 0, 0, 0)
    lab.settle()
    assert lab.client().device_info().num_regions == 9
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_descriptors_without_end(lab: Lab, memory: Memory) -> None:
    """One byte at a time of a message that does not end, each with as many descriptors as the kernel lets through."""
    before = open_descriptors()
    most = 0
    client = lab.client()
    payload = DMA_MAP.pack(DMA_MAP.size, 3, 0, 0, PAGE)
    message = HEADER.pack(1, Command.DMA_MAP, HEADER.size + len(payload), 0, 0) + payload
    with pytest.raises(OSError):
        for position in range(40):
            client.raw(message[position : position + 1], fds=[memory.fd] * 253)
            lab.idle()
            most = max(most, open_descriptors())
    lab.until(lambda: lab.server.stats["dropped"] == 1)
    client.close()
    lab.settle()
    assert most <= before + 4 * 253
    assert lab.client().device_info().num_regions == 9
    lab._clients[-1].close()
    lab.settle()
    assert open_descriptors() <= before
