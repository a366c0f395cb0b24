"""Captures as a wire: pace, rounds, both formats, what is written. Time moves only when a test moves it."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.error import Scapy_Exception
from scapy.utils import RawPcapNgReader, RawPcapReader, RawPcapWriter

from nicmodel.packet.frames import Batch, Offload
from nicmodel.vfio_user.poll import Poller
from nicmodel.wire.pcap import PcapWire
from nicmodel.wire.spec import open_wire
from nicmodel.wire.wire import Wire, WireError

FRAMES = [bytes([number]) * (60 + number) for number in range(5)]
#: When each was captured, ns after the first; the last two come out of order.
TIMES = [0, 1000, 5_000_000, 3_000_000_000, 2_000_000_000]
START = 1_700_000_000


class Nic:
    """What a NIC would be: takes frames, and notes when."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.now = 0
        self.poller = Poller(clock=lambda: self.now)
        self.received: list[bytes] = []
        self.times: list[int] = []
        wire.start(self.poller, self._receive, lambda: None, lambda: None)

    def _receive(self, batch: Batch) -> None:
        self.received += batch
        self.times += [self.now] * batch.count

    def turn(self) -> None:
        while self.poller.run_once(0):
            pass

    def run_until(self, times: list[int]) -> None:
        for self.now in times:
            self.turn()

    def close(self) -> None:
        self.wire.stop()
        self.poller.close()


@pytest.fixture
def nics() -> Iterator[list[Nic]]:
    """The NICs that the test has made."""
    made: list[Nic] = []
    yield made
    for nic in made:
        nic.close()


@pytest.fixture(params=["pcap", "pcapng"])
def capture(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = str(tmp_path / f"some, frames.{request.param}")
    if request.param == "pcap":
        write_pcap(path, FRAMES, TIMES)
    else:
        Path(path).write_bytes(pcapng(FRAMES, TIMES, 1))
    return path


def write_pcap(path: str, frames: list[bytes], times: list[int], **options: Any) -> None:
    with RawPcapWriter(path, nano=True, **({"linktype": 1} | options)) as writer:
        writer.write_header(None)
        for frame, time in zip(frames, times, strict=True):
            writer.write_packet(frame, sec=START + time // 10**9, usec=time % 10**9)


def pcapng(frames: list[bytes], times: list[int], *linktypes: int) -> bytes:
    """A pcapng file (draft-ietf-opsawg-pcapng) with time stamps in nanoseconds, its frames from each link in turn."""

    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        length = struct.pack("<I", 12 + len(body))
        return struct.pack("<I", kind) + length + body + length

    section = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
    resolution = struct.pack("<HHB3xI", 9, 1, 9, 0)  # if_tsresol: 10**-9 s; then the end of options
    for linktype in linktypes:
        section += block(1, struct.pack("<HHI", linktype, 0, 0) + resolution)
    for number, (frame, time) in enumerate(zip(frames, times, strict=True)):
        high, low = divmod(START * 10**9 + time, 1 << 32)
        section += block(6, struct.pack("<IIIII", number % len(linktypes), high, low, len(frame), len(frame)) + frame)
    return section


def read_pcap(path: str) -> list[tuple[bytes, int]]:
    with RawPcapReader(path) as reader:
        return [(frame, about.sec * 10**9 + about.usec) for frame, about in reader]


def test_original_pace(capture: str, nics: list[Nic], caplog: pytest.LogCaptureFixture) -> None:
    """Every frame comes when it is due, not before; one out of order comes at once."""
    caplog.set_level(logging.INFO)
    nics.append(nic := Nic(open_wire(f"pcap:{capture}")))
    assert nic.wire.up
    nic.run_until([0, 999, 1000, 4_999_999, 5_000_000, 2_999_999_999])
    assert nic.received == FRAMES[:3]
    assert "ended" not in caplog.text
    nic.run_until([3_000_000_000])
    assert nic.received == FRAMES
    assert nic.times == [0, 1000, 5_000_000, 3_000_000_000, 3_000_000_000]
    assert "replay has ended: 5 frames" in caplog.text
    assert nic.wire.up
    assert nic.wire.counters["rx_frames"] == 5
    assert nic.wire.counters["rx_bytes"] == sum(map(len, FRAMES))


@pytest.mark.parametrize("loop", [1, 3])
def test_pace_in_frames_per_second(capture: str, nics: list[Nic], loop: int) -> None:
    nics.append(nic := Nic(open_wire(f"pcap:{capture},pace=1000,loop={loop}")))
    nic.run_until([number * 500_000 for number in range(10 * loop)])
    assert nic.received == FRAMES * loop
    assert nic.times == [number * 1_000_000 for number in range(5 * loop)]


def test_rounds_at_the_original_pace(capture: str, nics: list[Nic]) -> None:
    nics.append(nic := Nic(open_wire(f"pcap:{capture},loop=2")))
    nic.run_until([0, 1000, 5_000_000, 3_000_000_000, 3_000_001_000, 3_005_000_000, 6_000_000_000])
    assert nic.received == FRAMES * 2
    assert nic.times[5:] == [3_000_000_000, 3_000_001_000, 3_005_000_000, 6_000_000_000, 6_000_000_000]


def test_as_fast_as_possible_and_for_ever(capture: str, nics: list[Nic]) -> None:
    """A turn of the event loop brings one batch at most, so that nothing else has to wait."""
    nics.append(nic := Nic(open_wire(f"pcap:{capture},pace=max,loop=0")))
    nic.run_until([0, 1, 2])
    assert len(nic.received) == 3 * 512
    assert nic.received[:10] == FRAMES * 2


def test_after_the_nic_has_sent(capture: str, nics: list[Nic]) -> None:
    nics.append(nic := Nic(open_wire(f"pcap:{capture},pace=max,after=2")))
    assert nic.wire.offloads == Offload.ALL
    for received in (0, 5, 5):
        nic.wire.send(Batch.of([b"x"]))
        nic.turn()
        assert len(nic.received) == received


def test_write(tmp_path: Path, nics: list[Nic], monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are in the file as soon as they are sent, with the time on the NIC's clock since the start."""
    monkeypatch.setattr("time.time_ns", lambda: START * 10**9)
    path = str(tmp_path / "sent.pcap")
    nics.append(nic := Nic(open_wire(f"pcap:write={path}")))
    assert nic.wire.offloads == Offload.NONE
    nic.turn()
    nic.now = 1_234_567_890
    batch = Batch.of(FRAMES)
    batch.sent = 1
    assert nic.wire.send(batch)
    assert batch.sent == 5
    assert read_pcap(path) == [(frame, START * 10**9 + 1_234_567_890) for frame in FRAMES[1:]]
    assert nic.received == []
    assert nic.wire.counters["tx_frames"] == 4


def test_replay_and_write(capture: str, tmp_path: Path, nics: list[Nic]) -> None:
    path = str(tmp_path / "sent.pcap")
    nics.append(nic := Nic(open_wire(f"pcap:{capture},pace=max,write={path}")))
    nic.turn()
    nic.wire.send(Batch.of([b"reply"]))
    assert nic.received == FRAMES
    assert [frame for frame, _ in read_pcap(path)] == [b"reply"]


def test_full_disk(tmp_path: Path, nics: list[Nic], caplog: pytest.LogCaptureFixture) -> None:
    nics.append(nic := Nic(wire := PcapWire(write=str(tmp_path / "sent.pcap"))))
    assert wire._writer is not None
    wire._writer.f = os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb")
    batch = Batch.of([b"lost"])
    assert nic.wire.send(batch)
    assert batch.sent == 1
    assert nic.wire.counters["not_written"] == 1
    assert "No space left" in caplog.text
    nic.wire.send(Batch.of([b"not recorded"]))
    assert nic.wire.counters["tx_frames"] == 2
    with pytest.raises(WireError, match="No space left"):
        PcapWire(write="/dev/full")


def test_frames_that_cannot_be_replayed(tmp_path: Path, nics: list[Nic], caplog: pytest.LogCaptureFixture) -> None:
    """Half a frame is counted and left out; a file that ends within a frame ends there."""
    path = tmp_path / "cut.pcap"
    with RawPcapWriter(str(path), linktype=1) as writer:
        writer.write_header(None)
        writer.write_packet(FRAMES[0], wirelen=1500)
        writer.write_packet(FRAMES[1])
        writer.write_packet(FRAMES[2])
    path.write_bytes(path.read_bytes()[:-1])
    nics.append(nic := Nic(PcapWire(str(path), pace="max")))
    nic.turn()
    assert nic.received == [FRAMES[1]]
    assert nic.wire.counters["truncated"] == 2
    assert "truncated" in caplog.text


def test_a_damaged_file_ends_where_it_is_damaged(
    tmp_path: Path, nics: list[Nic], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As scapy 2.6 tells of a block that is too short for what it is; later versions tell it as the end."""
    path = tmp_path / "damaged.pcapng"
    path.write_bytes(pcapng(FRAMES, TIMES, 1))
    read, seen = RawPcapNgReader._read_packet, []

    def damaged(reader: RawPcapNgReader, *arguments: object) -> object:
        seen.append(reader)
        if len(seen) > 2:
            raise Scapy_Exception("PcapNg: Invalid Block body length (too short)")
        return read(reader, *arguments)

    monkeypatch.setattr(RawPcapNgReader, "_read_packet", damaged)
    nics.append(nic := Nic(PcapWire(str(path), pace="max")))
    nic.turn()
    assert nic.received == FRAMES[:2]
    assert nic.wire.counters["damaged"] == 1


def test_others_have_their_turn_while_nothing_can_be_replayed(tmp_path: Path, nics: list[Nic]) -> None:
    path = str(tmp_path / "cut.pcap")
    with RawPcapWriter(path, linktype=1) as writer:
        writer.write_header(None)
        for _ in range(2000):
            writer.write_packet(FRAMES[0], wirelen=1500)
        writer.write_packet(FRAMES[1])
    nics.append(nic := Nic(PcapWire(path)))
    seen = []
    while not nic.received:
        assert nic.poller.run_once(0)
        nic.now += 1
        seen.append(nic.wire.counters["truncated"])
    assert nic.received == [FRAMES[1]] and seen[-1] == 2000
    assert max(after - before for before, after in zip([0, *seen], seen, strict=False)) <= 513


def test_other_links_in_one_file(tmp_path: Path, nics: list[Nic]) -> None:
    path = tmp_path / "mixed.pcapng"
    path.write_bytes(pcapng(FRAMES, TIMES, 113, 1))
    nics.append(nic := Nic(PcapWire(str(path), pace="max")))
    nic.turn()
    assert nic.received == FRAMES[1::2]
    assert nic.wire.counters["not_ethernet"] == 3


def test_stop_within_a_replay(capture: str) -> None:
    nic = Nic(PcapWire(capture))
    nic.turn()
    nic.wire.stop()
    nic.run_until([10**12])
    assert nic.received == FRAMES[:1]
    nic.close()


def test_no_capture(tmp_path: Path) -> None:
    other = tmp_path / "other.pcap"
    write_pcap(str(other), [], [], linktype=113)
    with pytest.raises(WireError, match="link of type 113"):
        open_wire(f"pcap:{other}")
    other.write_bytes(b"no capture at all")
    with pytest.raises(WireError, match="Not a supported capture file"):
        open_wire(f"pcap:{other}")
    with pytest.raises(WireError, match="No such file"):
        open_wire("pcap:/nowhere/at/all.pcap")
    with pytest.raises(WireError, match="No such file"):
        open_wire("pcap:write=/nowhere/at/all.pcap")


def test_empty_capture_for_ever(tmp_path: Path, nics: list[Nic]) -> None:
    path = str(tmp_path / "empty.pcap")
    write_pcap(path, [], [])
    nics.append(nic := Nic(PcapWire(path, loop=0)))
    nic.turn()
    assert nic.received == []


@pytest.mark.parametrize("options", ["pace=slow", "pace=0", "loop=-1", "after=x", "loop="])
def test_bad_options(capture: str, options: str) -> None:
    with pytest.raises(WireError, match="takes a number"):
        open_wire(f"pcap:{capture},{options}")
    with pytest.raises(WireError, match="nothing to replay"):
        open_wire(f"pcap:write=/tmp/x,{options}")
