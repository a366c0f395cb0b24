"""Frames over stream sockets: framing at any cut, back-pressure, peers that come and go."""

from __future__ import annotations

import itertools
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nicmodel.packet.frames import MAX_FRAME, Batch
from nicmodel.vfio_user.poll import Poller
from nicmodel.wire.stream import PREFIX, RETRY_NS, StreamWire
from nicmodel.wire.wire import WireError


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)


def unframed(octets: bytes) -> list[bytes]:
    frames = []
    while octets:
        (length,) = struct.unpack_from("!I", octets)
        assert len(octets) >= PREFIX + length, "cut within a frame"
        frames.append(octets[PREFIX : PREFIX + length])
        octets = octets[PREFIX + length :]
    return frames


class Nic:
    """What a NIC would be: takes frames, resumes sends, watches the link. Time stands still unless moved."""

    def __init__(self, wire: StreamWire, *, receive: Callable[[Batch], None] | None = None) -> None:
        self.wire = wire
        self.now = 0
        self.poller = Poller(clock=lambda: self.now)
        self.received: list[bytes] = []
        self.link: list[bool] = []
        self.resumed = 0
        wire.start(self.poller, receive or self.received.extend, self._resume, lambda: self.link.append(wire.up))

    def _resume(self) -> None:
        self.resumed += 1

    def poll(self, times: int = 1) -> None:
        for _ in range(times):
            self.poller.run_once(0)

    def close(self) -> None:
        self.wire.stop()
        self.poller.close()


@pytest.fixture
def pair() -> Iterator[tuple[Nic, socket.socket]]:
    ours, theirs = socket.socketpair()
    nic = Nic(StreamWire(fd=ours.detach()))
    with theirs:
        yield nic, theirs
        nic.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "wire.sock")


def test_every_cut(pair: tuple[Nic, socket.socket]) -> None:
    """A stream of three frames, delivered in two parts, at every byte."""
    nic, peer = pair
    frames = [b"a", b"frame", bytes(range(60))]
    octets = framed(*frames)
    for cut in range(len(octets) + 1):
        nic.received.clear()
        for part in (octets[:cut], octets[cut:]):
            peer.sendall(part)
            nic.poll()
        assert nic.received == frames, cut
    assert nic.wire.counters["rx_frames"] == 3 * (len(octets) + 1)
    assert nic.wire.counters["rx_bytes"] == 66 * (len(octets) + 1)


@settings(max_examples=50, deadline=None)
@given(
    frames=st.lists(st.binary(min_size=1, max_size=3000), max_size=12),
    cuts=st.lists(st.integers(0, 40_000), max_size=8),
)
def test_any_frames_in_any_parts(frames: list[bytes], cuts: list[int]) -> None:
    ours, theirs = socket.socketpair()
    nic = Nic(StreamWire(fd=ours.detach()))
    octets = framed(*frames)
    edges = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    with theirs:
        for start, end in itertools.pairwise(edges):
            theirs.sendall(octets[start:end])
            nic.poll()
        nic.close()
    assert nic.received == frames


def test_more_frames_than_a_batch_holds(pair: tuple[Nic, socket.socket]) -> None:
    nic, peer = pair
    frames = [struct.pack("!H", number) for number in range(2500)]
    peer.sendall(framed(*frames))
    nic.poll()
    assert nic.received == frames


def test_longest_frames(pair: tuple[Nic, socket.socket]) -> None:
    """Frames of MAX_FRAME both ways, one after the other through a socket buffer that holds only some."""
    nic, peer = pair
    frames = [bytes([number]) * MAX_FRAME for number in range(20)]
    for frame in frames:
        peer.sendall(framed(frame))
        nic.poll()
    assert nic.received == frames
    assert nic.wire.send(Batch.of(frames[:1], headroom=PREFIX))
    assert unframed(peer.recv(1 << 20)) == frames[:1]


@pytest.mark.parametrize("length", [0, MAX_FRAME + 1, 0xFFFFFFFF])
def test_impossible_length(pair: tuple[Nic, socket.socket], length: int, caplog: pytest.LogCaptureFixture) -> None:
    """Steps: a good frame, then a length that none can have.
    Verify: the frame is delivered, the connection dropped, counted and logged.
    """
    nic, peer = pair
    peer.sendall(framed(b"good") + struct.pack("!I", length) + bytes(100))
    nic.poll()
    assert nic.received == [b"good"]
    assert nic.link == [True, False]
    assert nic.wire.counters["protocol_error"] == 1
    assert f"a frame of {length} bytes" in caplog.text
    with pytest.raises(ConnectionError):
        peer.sendall(b"more")


def test_receiver_that_fails(pair: tuple[Nic, socket.socket], caplog: pytest.LogCaptureFixture) -> None:
    """Steps: two frames and half of a third arrive; the NIC raises on the first batch. Then the rest arrives.
    Verify: the third frame is found whole.
    """
    nic, peer = pair

    def fail(batch: Batch) -> None:
        raise RuntimeError("the NIC has failed")

    nic.wire._receive = fail
    octets = framed(b"one", b"two", b"three")
    peer.sendall(octets[:-2])
    nic.poll()
    assert "the NIC has failed" in caplog.text
    nic.wire._receive = nic.received.extend
    peer.sendall(octets[-2:])
    nic.poll()
    assert nic.received == [b"three"]
    assert nic.wire.up


def test_truncated(pair: tuple[Nic, socket.socket]) -> None:
    nic, peer = pair
    peer.sendall(framed(b"whole", b"cut short")[:-1])
    peer.close()
    nic.poll(2)
    assert nic.received == [b"whole"]
    assert nic.wire.counters["truncated"] == 1


def test_send_is_one_write(pair: tuple[Nic, socket.socket]) -> None:
    nic, peer = pair
    frames = [b"one", b"second", b"3"]
    batch = Batch.of(frames, headroom=PREFIX)
    assert nic.wire.send(batch)
    assert batch.sent == 3
    assert unframed(peer.recv(1000)) == frames
    assert nic.wire.counters == {"rx_frames": 0, "rx_bytes": 0, "tx_frames": 3, "tx_bytes": 10}


def test_frames_apart(pair: tuple[Nic, socket.socket]) -> None:
    """A gap between two frames of a batch is not sent."""
    nic, peer = pair
    batch = Batch()
    batch.append(b"one", headroom=PREFIX)
    batch.append(b"two", headroom=PREFIX + 50)
    assert nic.wire.send(batch)
    assert unframed(peer.recv(1000)) == [b"one", b"two"]


def test_no_room_for_the_length(pair: tuple[Nic, socket.socket]) -> None:
    nic, _ = pair
    with pytest.raises(ValueError, match="no room"):
        nic.wire.send(Batch.of([b"one"]))


@pytest.mark.parametrize("chunk", [97, 1000, 70_000])
def test_back_pressure(chunk: int) -> None:
    """Steps: batches into a socket with little room, whose peer reads `chunk` bytes at a time.
    Verify: every send that falls short is resumed, and every frame arrives whole and in order.
    """
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    frames = [bytes([number]) * (400 * number + 1) for number in range(40)]
    nic = Nic(StreamWire(fd=ours.detach()))
    arrived = b""
    short = 0
    with theirs:
        for half in (frames[:20], frames[20:]):
            batch = Batch.of(half, headroom=PREFIX)
            while not nic.wire.send(batch):
                short += 1
                before = nic.resumed
                while nic.resumed == before:
                    arrived += theirs.recv(chunk)
                    nic.poll()
            assert batch.sent == len(half)
        assert nic.resumed == short > 1
        theirs.setblocking(False)
        total = len(framed(*frames))
        while len(arrived) < total:
            arrived += theirs.recv(1 << 20)
            nic.poll()
        nic.close()
    assert unframed(arrived) == frames
    assert nic.wire.counters["tx_frames"] == len(frames)
    assert nic.wire.counters["tx_bytes"] == sum(map(len, frames))


def test_rest_of_a_cut_frame_goes_first() -> None:
    """A frame cut by a full socket is finished, though its batch is given up for another."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    nic = Nic(StreamWire(fd=ours.detach()))
    with theirs:
        big = Batch.of([b"x" * 60_000], headroom=PREFIX)
        assert nic.wire.send(big)
        big.data[:] = 0
        assert not nic.wire.send(Batch.of([b"lost with its batch"], headroom=PREFIX))
        arrived = b""
        while not nic.resumed:
            arrived += theirs.recv(1 << 16)
            nic.poll()
        assert nic.wire.send(Batch.of([b"next"], headroom=PREFIX))
        while len(arrived) < 60_000 + 4 + PREFIX * 2:
            arrived += theirs.recv(1 << 16)
        assert unframed(arrived) == [b"x" * 60_000, b"next"]
        nic.close()


def test_peer_goes_while_a_send_waits() -> None:
    """The NIC is told to go on, and what it sends then is counted as lost."""
    ours, theirs = socket.socketpair()
    nic = Nic(StreamWire(fd=ours.detach()))
    batch = Batch.of([b"x" * 60_000] * 10, headroom=PREFIX)
    assert not nic.wire.send(batch)
    waiting = batch.count - batch.sent
    theirs.close()
    nic.poll()
    assert nic.link == [True, False]
    assert nic.resumed == 1
    assert nic.wire.send(batch)
    assert nic.wire.counters["not_connected"] == waiting
    nic.close()


def test_send_notices_first_that_the_peer_is_gone(pair: tuple[Nic, socket.socket]) -> None:
    nic, peer = pair
    peer.close()
    assert nic.wire.send(Batch.of([b"a", b"b"], headroom=PREFIX))
    assert nic.wire.counters["not_connected"] == 2
    nic.poll()
    assert nic.link == [True, False]


def test_listener_takes_the_next(path: str) -> None:
    """Steps: two peers after each other, frames sent before, between and after.
    Verify: the link follows; frames without a peer are counted; the second peer starts with a clean stream.
    """
    nic = Nic(StreamWire(listen=path))
    frame = Batch.of([b"to you"], headroom=PREFIX)
    assert not nic.wire.up
    assert nic.wire.send(frame)
    for turn in (1, 2):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(path)
            nic.poll()
            assert nic.wire.up
            peer.sendall(framed(b"hello") + b"\0\0")
            nic.poll()
            frame.sent = 0
            assert nic.wire.send(frame)
            assert unframed(peer.recv(100)) == [b"to you"]
        nic.poll()
        assert not nic.wire.up
        frame.sent = 0
        assert nic.wire.send(frame)
        assert nic.wire.counters["not_connected"] == 1 + turn
    assert nic.link == [True, False] * 2
    assert nic.received == [b"hello"] * 2
    nic.close()
    assert not os.path.exists(path)


def test_second_peer_waits_for_the_first(path: str) -> None:
    nic = Nic(StreamWire(listen=path))
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for peer in (first, second):
            peer.connect(path)
        second.sendall(framed(b"second"))
        nic.poll(3)
        assert nic.received == []
        first.close()
        nic.poll(3)
        assert nic.received == [b"second"]
    nic.close()


def test_connector_tries_again(path: str) -> None:
    """Steps: connect to a path that is not there, then is, then goes away, then is there again."""
    nic = Nic(StreamWire(connect=path))
    assert nic.link == []
    for turn in (1, 2):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            nic.poll()
            assert len(nic.link) == 2 * (turn - 1), "too early"
            nic.now += RETRY_NS
            nic.poll()
            assert nic.wire.up
            peer, _ = listener.accept()
            with peer:
                peer.sendall(framed(b"hello"))
                nic.poll()
        os.unlink(path)
        nic.poll()
        assert not nic.wire.up
        nic.now += RETRY_NS
        nic.poll()
    assert nic.link == [True, False] * 2
    assert nic.received == [b"hello"] * 2
    nic.close()
    nic.now += RETRY_NS


def test_tcp() -> None:
    """Two wires over TCP; the connector is there before the listener."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    a = Nic(StreamWire(connect=f"127.0.0.1:{port}"))
    a.poller.run_once(1)
    assert a.link == []
    b = Nic(StreamWire(listen=f"127.0.0.1:{port}"))
    a.now += RETRY_NS
    for _ in range(100):
        a.poller.run_once(0.01)
        b.poller.run_once(0.01)
        if a.wire.up and b.wire.up:
            break
    assert a.link == b.link == [True]
    assert a.wire.send(Batch.of([b"over", b"TCP"], headroom=PREFIX))
    while len(b.received) < 2:
        b.poller.run_once(1)
    assert b.received == [b"over", b"TCP"]
    b.close()
    a.poller.run_once(1)
    assert a.link == [True, False]
    a.close()


def test_stopped_by_the_receiver() -> None:
    """A NIC may stop the wire from within `receive`; the frames behind are let go."""
    ours, theirs = socket.socketpair()
    wire = StreamWire(fd=ours.detach())
    seen: list[int] = []

    def receive(batch: Batch) -> None:
        seen.append(batch.count)
        wire.stop()

    nic = Nic(wire, receive=receive)
    with theirs:
        theirs.sendall(framed(*[b"x"] * 2500))
        nic.poll(2)
    assert seen == [1024]
    nic.close()


def test_listen_where_nobody_listens_any_more(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    wire = StreamWire(listen=path)
    with pytest.raises(WireError, match="in use"):
        StreamWire(listen=path)
    wire.stop()


def test_listen_leaves_other_files_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("mine")
    with pytest.raises(WireError, match="in use"):
        StreamWire(listen=str(file))
    assert file.read_text() == "mine"


def test_bad_addresses() -> None:
    with pytest.raises(WireError, match="at most 107 bytes"):
        StreamWire(connect="/" + "x" * 107)
    with pytest.raises(WireError, match="No such file"):
        StreamWire(listen="/nowhere/at/all.sock")
    with pytest.raises(ValueError):
        StreamWire()
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams, pytest.raises(WireError, match="not a stream"):
        StreamWire(fd=datagrams.fileno())


@pytest.mark.parametrize("side", ["connect", "listen"])
def test_without_descriptors_it_tries_again(path: str, side: str, caplog: pytest.LogCaptureFixture) -> None:
    """Steps: no descriptors are left when the wire looks for its peer; they are there again later.
    Verify: it neither gives up nor spins, says so once, and connects afterwards.
    """
    with socket.socket(socket.AF_UNIX) as other:
        if side == "connect":
            nic = Nic(StreamWire(connect=path))
            other.bind(path)
            other.listen()
        else:
            nic = Nic(StreamWire(listen=path))
            other.connect(path)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        fillers = [os.dup(0) for _ in range(highest - len(os.listdir("/proc/self/fd")) + 3)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers) + 1, hard))
        try:
            turns = 0
            for _ in range(5):
                nic.now += RETRY_NS
                while nic.poller.run_once(0):
                    turns += 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in fillers:
                os.close(fd)
        assert not nic.wire.up
        assert turns <= 15
        assert [record.levelname for record in caplog.records].count("WARNING") == 1
        for _ in range(4):
            nic.now += RETRY_NS
            nic.poll(2)
        assert nic.wire.up
        nic.close()
