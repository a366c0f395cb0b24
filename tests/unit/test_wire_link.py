"""The cable between two NICs, the wire to nowhere, and the text that names a wire."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nicmodel.packet.frames import Batch, Gso, Offload
from nicmodel.vfio_user.poll import Poller
from nicmodel.wire.link import LinkWire, link
from nicmodel.wire.spec import FORMS, open_wire
from nicmodel.wire.wire import WireError


class End:
    """A NIC at one end of a cable."""

    def __init__(self, wire: LinkWire) -> None:
        self.wire = wire
        self.batches: list[Batch] = []
        self.link: list[bool] = []

    def start(self) -> None:
        self.wire.start(Poller(), self.batches.append, lambda: None, lambda: self.link.append(self.wire.up))


@pytest.fixture
def ends() -> tuple[End, End]:
    a, b = link()
    return End(a), End(b)


def test_link_hands_the_batch_over(ends: tuple[End, End]) -> None:
    """Nothing is copied, and what the records say of GSO and checksums arrives too."""
    a, b = ends
    a.start()
    b.start()
    batch = Batch()
    batch.append(bytes(3000), gso=Gso.TCPV4, segment=1448, header=66)
    batch.append(b"second")
    assert a.wire.offloads == Offload.ALL
    assert a.wire.send(batch)
    assert batch.sent == 2
    (arrived,) = b.batches
    assert list(arrived) == [bytes(3000), b"second"]
    assert arrived.data is batch.data and arrived.frames.base is batch.frames
    assert arrived.frames[0]["gso"] == Gso.TCPV4 and arrived.frames[0]["segment"] == 1448
    assert a.wire.counters == {"rx_frames": 0, "rx_bytes": 0, "tx_frames": 2, "tx_bytes": 3006}
    assert b.wire.counters == {"rx_frames": 2, "rx_bytes": 3006, "tx_frames": 0, "tx_bytes": 0}


def test_link_sends_from_sent_on(ends: tuple[End, End]) -> None:
    a, b = ends
    a.start()
    b.start()
    batch = Batch.of([b"0", b"1", b"2"])
    batch.sent = 1
    a.wire.send(batch)
    assert list(b.batches[0]) == [b"1", b"2"]
    a.wire.send(batch)
    assert len(b.batches) == 1, "nothing left to send"


def test_link_follows_the_other_end(ends: tuple[End, End]) -> None:
    a, b = ends
    a.start()
    assert not a.wire.up
    assert a.wire.send(Batch.of([b"early", b"too"]))
    assert a.wire.counters["not_connected"] == 2
    b.start()
    assert a.wire.up and b.wire.up
    b.wire.stop()
    assert not a.wire.up
    assert a.link == [True, False]
    assert b.batches == []


def test_link_flap(ends: tuple[End, End]) -> None:
    """Cutting the cable at one end is seen at both; setting what is set already is no event."""
    a, b = ends
    a.start()
    b.start()
    a.link.clear()
    for up in (False, False, True, True):
        a.wire.up = up
        assert a.wire.up is b.wire.up is up
        b.wire.send(Batch.of([b"x"]))
    assert a.link == b.link == [False, True]
    assert b.wire.counters["not_connected"] == 2
    assert len(a.batches) == 2


def test_link_cut_before_the_start(ends: tuple[End, End]) -> None:
    a, b = ends
    b.wire.up = False
    a.start()
    b.start()
    assert not a.wire.up and not b.wire.up
    assert a.link == b.link == []
    b.wire.up = True
    assert a.link == b.link == [True]


def test_none() -> None:
    wire = open_wire("none")
    batch = Batch.of([b"into", b"the void"])
    wire.start(Poller(), lambda _: None, lambda: None, lambda: None)
    assert wire.up
    assert wire.send(batch)
    assert batch.sent == 2
    assert wire.counters == {"rx_frames": 0, "rx_bytes": 0, "tx_frames": 2, "tx_bytes": 12}
    wire.stop()


def test_stream_specs(tmp_path: Path) -> None:
    path = str(tmp_path / "a=b.sock")
    ours, theirs = socket.socketpair()
    for spec in (f"stream:listen={path}", f"stream:{path}", "stream:127.0.0.1:9", f"stream:fd={ours.detach()}"):
        wire = open_wire(spec)
        assert wire.name == spec
        assert not wire.up
        wire.stop()
    theirs.close()


@pytest.mark.parametrize(
    "spec", ["", "tap", "tap:", "tap:x=y", "stream", "stream:", "stream:listen=", "none:x", "pcap", "pcap:x=y", "TAP:x"]
)
def test_bad_spec_is_told_the_forms(spec: str) -> None:
    with pytest.raises(WireError) as raised:
        open_wire(spec)
    assert all(form in str(raised.value) for form in FORMS)


@pytest.mark.parametrize("spec", ["link", "switch", "switch:uplink=none"])
def test_what_joins_nics(spec: str) -> None:
    with pytest.raises(WireError, match="joins NICs of one server"):
        open_wire(spec)


@pytest.mark.parametrize("spec", ["tap:fd=", "tap:fd=-1", "stream:fd=x", "stream:fd=²"])
def test_bad_descriptor(spec: str) -> None:
    with pytest.raises(WireError, match="number of an open descriptor"):
        open_wire(spec)


@pytest.mark.parametrize("kind", ["tap", "stream"])
def test_descriptor_of_something_else_stays_open(kind: str) -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(WireError, match=f"descriptor {fd} is not"):
        open_wire(f"{kind}:fd={fd}")
    os.close(fd)
