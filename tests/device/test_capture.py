"""Captures: each frame once, on the interface of its queue, with what became of it."""

from __future__ import annotations

import base64
import io
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import RawPcapNgReader

from nicmodel.cli.capture import describe
from nicmodel.client.control import Control
from nicmodel.client.pcapng import PcapngWriter
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.observe.capture import Capture
from nicmodel.packet.frames import Offload
from nicmodel.testing.wire import TestWire
from nicmodel.vm.server import NicServer

from .conftest import ENTRIES
from .frames import NIC_MAC, pattern, tcp, udp
from .test_control_commands import start


@pytest.fixture
def opened(lab: Loopback) -> Loopback:
    """Two queues each way with header split, a rule for port 5201."""
    lab.driver.probe()
    lab.driver.open(rx_queues=2, tx_queues=2, ring_entries=ENTRIES, header_split=True)
    lab.driver.add_flow_rule(TCPv4(dst_port=5201), queue=1, location=7)
    return lab


def captured(lab: Loopback, queues: tuple[str, ...] = (), limit: int | None = None) -> list[dict[str, Any]]:
    """A list that frames are added to from now on."""
    frames: list[dict[str, Any]] = []
    Capture(lab.nic, frames.append, queues, limit)
    return frames


def data(frame: dict[str, Any]) -> bytes:
    return base64.b64decode(frame["data"])


def test_received(opened: Loopback) -> None:
    frames = captured(opened)
    sources = [tcp(1000, dport=5201), udp(30), b"\2" * 60]
    by_rule, by_hash, _ = opened.inject(sources)
    first, second, foreign = frames
    assert [data(frame) for frame in frames] == sources
    assert first == {
        "time": opened.now, "nic": "nic", "direction": "in", "length": 1054, "data": first["data"],
        "verdict": "delivered", "queue": "rx1", "hash": by_rule.hash, "rule": 7, "header": 54,
    }  # fmt: skip
    assert (second["queue"], second["table_entry"]) == (f"rx{by_hash.queue}", by_hash.table_entry)
    assert foreign["verdict"] == "not_ours" and "queue" not in foreign
    assert describe(first) == "rule 7, split: header 54 + payload 1000 bytes"
    assert describe(foreign) == "dropped: not_ours"


def test_a_frame_that_waits_is_told_of_once(opened: Loopback) -> None:
    frames = captured(opened)
    room = opened.driver.rx[1].visible
    opened.inject([tcp(number, dport=5201) for number in range(room + 2)])
    assert len(frames) == room
    opened.advance(5)
    opened.driver.poll(1)
    opened.run()
    assert [frame["length"] for frame in frames[room:]] == [len(tcp(room)), len(tcp(room + 1))]
    assert {frame["verdict"] for frame in frames} == {"delivered"} and frames[-1]["time"] == frames[0]["time"] + 5


def test_coalesced(opened: Loopback) -> None:
    opened.driver.close()
    opened.driver.open(rx_queues=1, rsc=True)
    frames = captured(opened)
    opened.inject([tcp(pattern(500), seq=1000 + 500 * number, flags="A") for number in range(3)])
    assert [frame.get("coalesced", False) for frame in frames] == [False, True, True]
    assert "coalesced with the frame before" in describe(frames[1])


@pytest.mark.parametrize("offloads", [Offload.NONE, Offload.ALL])
def test_sent(make_lab: Any, offloads: Offload) -> None:
    lab = make_lab(wire=TestWire(offloads=offloads))
    lab.driver.probe()
    lab.driver.open(tx_queues=2, ring_entries=ENTRIES)
    frames = captured(lab)
    lab.driver.send(0, tcp(2500), tso=(1000, 54))
    lab.driver.send(1, udp(20), checksum=True)
    lab.driver.send(1, udp(20))
    lab.run()
    lab.nic.egress.send([udp(40)])
    assert [data(frame) for frame in frames] == lab.wire.take()
    assert {frame["direction"] for frame in frames} == {"out"}
    *segments, filled, plain, unasked = frames
    if offloads:
        assert [frame["gso"] for frame in segments] == [1000] and "mss" not in segments[0]
        assert describe(segments[0]) == "to be cut into segments of 1000 bytes, checksum left to the wire"
        assert filled["checksum"] == "left"
    else:
        assert [(frame["segment"], frame["mss"]) for frame in segments] == [(0, 1000), (1, 1000), (2, 1000)]
        assert describe(segments[2]) == "segment 2 of 1000 bytes, checksum filled in"
        assert filled["checksum"] == "filled"
    assert [frame.get("queue") for frame in frames] == ["tx0"] * len(segments) + ["tx1", "tx1", None]
    assert "checksum" not in plain and unasked["length"] == len(udp(40))


def test_sent_into_a_pulled_cable(opened: Loopback) -> None:
    frames = captured(opened)
    opened.set_link(False)
    opened.driver.send(0, udp())
    opened.run()
    assert [(frame["queue"], frame["verdict"]) for frame in frames] == [("tx0", "device_down")]


def test_of_some_queues_and_in_part(opened: Loopback) -> None:
    frames = captured(opened, ("rx1", "tx0"), 20)
    opened.inject([tcp(1000, dport=5201), udp(30), b"\2" * 60])
    opened.driver.send(0, udp())
    opened.driver.send(1, udp())
    opened.run()
    assert {frame["queue"] for frame in frames} == {"rx1", "tx0"} and frames[0]["queue"] == "rx1"
    assert frames[0]["length"] == 1054 and data(frames[0]) == tcp(1000, dport=5201)[:20]
    with pytest.raises(ValueError, match="there is no queue 'rx8'"):
        captured(opened, ("rx8",))


def test_off_is_off(opened: Loopback) -> None:
    frames: list[dict[str, Any]] = []
    capture = Capture(opened.nic, frames.append)
    capture.close()
    opened.inject(udp())
    assert not frames and not opened.nic.diagnostics.observers


def test_the_file(tmp_path: Path) -> None:
    file = io.BytesIO()
    writer = PcapngWriter(file)
    one, two = writer.interface("nic0:rx3", "queue rx3"), writer.interface("nic0:wire", limit=5)
    writer.packet(one, b"abcdefg", time=1_700_000_000_123_456_789, queue=3, toeplitz=0x01020304, comment="rule 7")
    writer.packet(two, b"abcde", time=1_700_000_001_000_000_000, length=9, outbound=True)
    file.seek(0)
    (first, about), (second, other) = RawPcapNgReader(file)
    assert first == b"abcdefg" and second == b"abcde"
    assert (about.ifname, about.direction) == (b"nic0:rx3", 1) and b"rule 7" in file.getvalue()
    assert (other.ifname, other.wirelen, other.direction) == (b"nic0:wire", 9, 2)
    assert (about.tshigh << 32 | about.tslow, about.tsresol) == (1_700_000_000_123_456_789, 1_000_000_000)


@pytest.fixture
def server() -> Iterator[NicServer]:
    with NicServer(["--mac", NIC_MAC]) as server:
        yield server


def test_the_command(server: NicServer, tmp_path: Path) -> None:
    """Some frames to a file and to the standard output; Ctrl-C ends it in order."""
    control, file = str(server.control), tmp_path / "x.pcapng"
    with Driver(str(server.sockets[0])) as driver, Control(control) as connection:
        driver.probe()
        driver.open(rx_queues=1, tx_queues=1)
        counted = start("capture", "--control", control, "-w", str(file), "-c", "2")
        piped = start("capture", "--control", control, "-w", "-", "--queue", "tx0")
        for process in (counted, piped):
            assert process.stderr is not None and process.stderr.readline() == "capturing\n"
        connection.inject([udp(1)])
        driver.send(0, udp(2))
        assert counted.wait(60) == 0
        assert counted.stderr is not None and counted.stderr.read() == "2 frames\n"
        with RawPcapNgReader(str(file)) as reader:
            assert [(frame, about.ifname) for frame, about in reader] == [
                (udp(1), b"nic0:rx0"), (udp(2), b"nic0:tx0"),
            ]  # fmt: skip
        assert piped.stdout is not None
        written = b""
        while udp(2) not in written:  # which comes behind the file's header and the interface
            written += (part := piped.stdout.buffer.read1())  # type: ignore[attr-defined]
            assert part
        piped.send_signal(signal.SIGINT)
        assert piped.wait(60) == 0
        assert piped.stderr is not None and piped.stderr.read() == "1 frames\n"


def test_wrong_words(server: NicServer) -> None:
    for arguments, sentence, status in (
        (["-w", "/nonexistent/x"], "No such file", 2),
        (["-w", "-", "--queue", "rx77"], "there is no queue 'rx77'", 1),
        ([], "Missing option '-w'", 2),
    ):
        process = start("capture", "--control", str(server.control), *arguments)
        _, said = process.communicate(timeout=60)
        assert process.returncode == status and sentence in said, said
