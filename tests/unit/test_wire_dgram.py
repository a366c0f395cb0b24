"""Frames as datagrams: both kinds of socket, bursts, back-pressure, peers that come and go."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nicmodel.packet.frames import MAX_FRAME, Batch
from nicmodel.vfio_user.poll import Poller
from nicmodel.wire.dgram import DgramWire
from nicmodel.wire.spec import open_wire
from nicmodel.wire.wire import WireError


class Nic:
    """What a NIC would be: takes frames, resumes sends."""

    def __init__(self, wire: DgramWire) -> None:
        self.wire = wire
        self.poller = Poller()
        self.received: list[bytes] = []
        self.resumed = 0
        wire.start(self.poller, self.received.extend, self._resume, lambda: None)

    def _resume(self) -> None:
        self.resumed += 1

    def receive(self, count: int) -> list[bytes]:
        for _ in range(50):
            if len(self.received) >= count:
                break
            self.poller.run_once(0.1)
        return self.received

    def close(self) -> None:
        self.wire.stop()
        self.poller.close()


def free_ports(count: int) -> list[int]:
    """UDP ports of 127.0.0.1 that nobody had a moment ago."""
    sockets = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(count)]
    for made in sockets:
        made.bind(("127.0.0.1", 0))
    ports = [made.getsockname()[1] for made in sockets]
    for made in sockets:
        made.close()
    return ports


@pytest.fixture(params=["unix", "udp"])
def addresses(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    if request.param == "unix":
        return str(tmp_path / "a.sock"), str(tmp_path / "b.sock")
    here, there = free_ports(2)
    return f"127.0.0.1:{here}", f"127.0.0.1:{there}"


@pytest.fixture
def pair(addresses: tuple[str, str]) -> Iterator[tuple[Nic, Nic]]:
    here, there = addresses
    a, b = Nic(DgramWire(local=here, remote=there)), Nic(DgramWire(local=there, remote=here))
    yield a, b
    a.close()
    b.close()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[tuple[Nic, socket.socket]]:
    """A NIC, and a plain UNIX socket as QEMU would open it."""
    ours, theirs = str(tmp_path / "nic.sock"), str(tmp_path / "qemu.sock")
    nic = Nic(DgramWire(local=ours, remote=theirs))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(theirs)
        made.settimeout(5)
        yield nic, made
    nic.close()


def test_both_ways(pair: tuple[Nic, Nic]) -> None:
    """Steps: more frames than one system call takes, each way, from the middle of a batch on."""
    frames = [bytes([number]) * (60 + number) for number in range(200)]
    for sender, receiver in (pair, pair[::-1]):
        sent = 0
        while sent < len(frames):  # a UNIX socket's queue may be shorter than the batch
            batch = Batch.of(frames)
            batch.sent = sent
            sender.wire.send(batch)
            sent = batch.sent
            receiver.receive(sent)
        assert receiver.receive(200) == frames
    for nic in pair:
        assert nic.wire.counters == {
            "rx_frames": 200, "rx_bytes": sum(map(len, frames)), "tx_frames": 200, "tx_bytes": sum(map(len, frames))
        }  # fmt: skip


def test_no_peer_yet(addresses: tuple[str, str]) -> None:
    """Frames without a peer are counted; with one they arrive, also after another has taken its place."""
    here, there = addresses
    a = Nic(DgramWire(local=here, remote=there))
    assert a.wire.send(Batch.of([b"early"]))
    a.poller.run_once(0.1)  # over UDP the kernel tells later
    assert a.wire.counters["not_connected"] == 1
    for _ in range(2):
        b = Nic(DgramWire(local=there, remote=here))
        assert a.wire.send(Batch.of([b"hello"]))
        assert b.receive(1) == [b"hello"]
        assert b.wire.send(Batch.of([b"back"]))
        assert a.receive(1) == [b"back"]
        a.received.clear()
        b.close()
    assert a.wire.counters["not_connected"] == 1
    a.close()


def test_plain_peer(peer: tuple[Nic, socket.socket]) -> None:
    nic, qemu = peer
    qemu.sendto(b"x" * MAX_FRAME, nic.wire._local)
    assert nic.receive(1) == [b"x" * MAX_FRAME]
    assert nic.wire.send(Batch.of([b"one", b"two"]))
    assert [qemu.recv(100), qemu.recv(100)] == [b"one", b"two"]


def test_no_frames(peer: tuple[Nic, socket.socket]) -> None:
    nic, qemu = peer
    for datagram in (b"", b"x" * (MAX_FRAME + 1), b"good"):
        qemu.sendto(datagram, nic.wire._local)
        nic.poller.run_once(1)
    assert nic.received == [b"good"]
    assert nic.wire.counters["malformed"] == 2


def test_back_pressure(peer: tuple[Nic, socket.socket]) -> None:
    """Steps: send until the peer's queue is full, have it read, go on.
    Verify: the NIC is told when it can; every frame arrives once and in order.
    """
    nic, qemu = peer
    frames = [number.to_bytes(4, "big") * 15 for number in range(2000)]
    batch = Batch(1 << 20, 2000)
    for frame in frames:
        batch.append(frame)
    arrived = []
    qemu.setblocking(False)
    while not nic.wire.send(batch):
        before = nic.resumed
        while nic.resumed == before:
            arrived.append(qemu.recv(100))
            nic.poller.run_once(0)
    while len(arrived) < len(frames):
        arrived.append(qemu.recv(100))
    assert nic.resumed
    assert arrived == frames


def test_peer_goes_while_a_send_waits(peer: tuple[Nic, socket.socket]) -> None:
    nic, qemu = peer
    batch = Batch(1 << 20, 8000)
    for _ in range(8000):
        batch.append(b"x" * 60)
    assert not nic.wire.send(batch)
    waiting = batch.count - batch.sent
    qemu.close()
    nic.poller.run_once(1)
    assert nic.resumed == 1
    assert nic.wire.send(batch)
    assert nic.wire.counters["not_connected"] == waiting


def test_frame_too_long_for_udp(caplog: pytest.LogCaptureFixture) -> None:
    here, there = (f"127.0.0.1:{port}" for port in free_ports(2))
    a, b = Nic(DgramWire(local=here, remote=there)), Nic(DgramWire(local=there, remote=here))
    assert a.wire.send(Batch.of([b"before", bytes(MAX_FRAME), b"after"]))
    assert b.receive(2) == [b"before", b"after"]
    assert a.wire.counters["refused_emsgsize"] == 1
    assert "refused_emsgsize" in caplog.text
    a.close()
    b.close()


def test_path_is_taken_over_and_left_clean(tmp_path: Path) -> None:
    path, other = str(tmp_path / "a"), str(tmp_path / "b")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(path)
    wire = open_wire(f"dgram:local={path},remote={other}")
    assert wire.name == f"dgram:local={path},remote={other}"
    with pytest.raises(WireError, match="in use"):
        DgramWire(local=path, remote=other)
    wire.stop()
    assert not os.path.exists(path)


@pytest.mark.parametrize("spec", ["dgram", "dgram:/a", "dgram:local=/a", "dgram:local=,remote=/b", "dgram:remote=/a"])
def test_half_an_address(spec: str) -> None:
    with pytest.raises(WireError, match="The forms are"):
        open_wire(spec)


def test_two_kinds_of_address(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="of one kind"):
        DgramWire(local=str(tmp_path / "a"), remote="127.0.0.1:9")


def test_a_peer_started_anew_is_heard(tmp_path: Path) -> None:
    """Without that the NIC has to send first: the kernel refuses whoever is not the socket that it is connected to."""
    ours, theirs = str(tmp_path / "nic.sock"), str(tmp_path / "qemu.sock")
    nic = Nic(DgramWire(local=ours, remote=theirs))
    try:
        for round_ in range(1, 4):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
                made.bind(theirs)
                for _ in range(100):
                    try:
                        made.sendto(b"x" * 60, ours)
                        break
                    except PermissionError:
                        nic.poller.run_once(0.1)
                assert len(nic.receive(round_)) == round_
            if round_ == 2:
                # Killed, it leaves the path behind, and the next one takes it away.
                nic.poller.run_once(0.5)
            os.unlink(theirs)
        kind = (socket.AF_UNIX, socket.SOCK_DGRAM)
        with socket.socket(*kind) as stranger, socket.socket(*kind) as made:
            made.bind(theirs)
            for _ in range(50):
                if nic.wire._peer != nic.wire._at_remote():
                    nic.poller.run_once(0.1)
            with pytest.raises(PermissionError):
                stranger.sendto(b"x" * 60, ours)
    finally:
        nic.close()
