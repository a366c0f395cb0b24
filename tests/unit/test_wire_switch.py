"""A learning switch: where frames go, what is shared, how the uplink is waited for."""

from __future__ import annotations

from functools import partial

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from nicmodel.packet.frames import Batch, FrameFlag, Gso, Offload
from nicmodel.testing.wire import TestWire
from nicmodel.vfio_user.poll import Poller
from nicmodel.wire.spec import MisfitError, open_wires
from nicmodel.wire.switch import AGEING, Switch
from nicmodel.wire.wire import Wire, WireError

BROADCAST, MULTICAST = "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"


def mac(number: int) -> str:
    return f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"


def frame(source: int, destination: int | str, payload: bytes = b"") -> bytes:
    to = mac(destination) if isinstance(destination, int) else destination
    return bytes(Ether(src=mac(source), dst=to, type=0x88B5)) + payload.ljust(46, b"\0")


class Nic:
    """A NIC at a port."""

    def __init__(self, wire: Wire, poller: Poller) -> None:
        self.wire = wire
        self.batches: list[Batch] = []
        self.resumed = 0
        wire.start(poller, self.batches.append, self._resume, lambda: None)

    def _resume(self) -> None:
        self.resumed += 1

    def send(self, *frames: bytes) -> Batch:
        batch = Batch.of(frames, headroom=self.wire.headroom)
        assert self.wire.send(batch)
        assert batch.sent == len(frames)
        return batch

    def take(self) -> list[bytes]:
        frames = [frame for batch in self.batches for frame in batch]
        self.batches.clear()
        return frames


class Lab:
    """A switch with started NICs; time stands still unless moved."""

    def __init__(self, nics: int, uplink: TestWire | None = None) -> None:
        self.now = 0
        self.poller = Poller(clock=lambda: self.now)
        self.switch = Switch(uplink=uplink)
        self.nics = [Nic(self.switch.port(), self.poller) for _ in range(nics)]

    def taken(self) -> list[list[bytes]]:
        return [nic.take() for nic in self.nics]


@pytest.mark.parametrize("to", [BROADCAST, MULTICAST, 9])
def test_flooding(to: int | str) -> None:
    """To everybody but the sender, nothing copied."""
    lab = Lab(4)
    batch = lab.nics[1].send(frame(1, to), frame(1, to))
    for number in (0, 2, 3):
        assert lab.nics[number].batches[0].data is batch.data
    assert lab.taken() == [list(batch), [], list(batch), list(batch)]


def test_learning() -> None:
    """Once a station is heard of, only its port gets what is for it; one batch may go to several ports."""
    lab = Lab(3)
    for number in range(3):
        lab.nics[number].send(frame(number, BROADCAST))
    lab.taken()
    frames = [frame(0, 2), frame(0, 1), frame(0, 7), frame(0, 2)]
    lab.nics[0].send(*frames)
    assert lab.taken() == [[], [frames[1], frames[2]], [frames[0], frames[2], frames[3]]]
    assert lab.nics[0].wire.counters["tx_frames"] == 5
    assert lab.nics[2].wire.counters["rx_frames"] == 2 + 3
    assert lab.nics[2].wire.counters["rx_bytes"] == 5 * 60


def test_no_reflection() -> None:
    """A frame to a station on the sender's own port goes nowhere, and is counted."""
    lab = Lab(2)
    lab.nics[0].send(frame(0, BROADCAST), frame(5, BROADCAST))
    lab.taken()
    lab.nics[0].send(frame(5, 0), b"too short")
    assert lab.taken() == [[], []]
    assert lab.nics[0].wire.counters["nowhere"] == 2


def test_a_station_that_moves() -> None:
    lab = Lab(3)
    for port in (1, 2):
        lab.nics[port].send(frame(9, BROADCAST))
        lab.taken()
        lab.nics[0].send(frame(0, 9))
        assert [len(frames) for frames in lab.taken()] == [0, int(port == 1), int(port == 2)]


def test_ageing() -> None:
    """A station that is silent for 300 s is forgotten; each frame it sends starts them anew."""
    lab = Lab(3)
    for _ in range(2):
        lab.nics[1].send(frame(1, BROADCAST))
        lab.now += AGEING - 1
        lab.taken()
        lab.nics[0].send(frame(0, 1))
        assert lab.taken() == [[], [frame(0, 1)], []]
    lab.now += 1
    lab.nics[0].send(frame(0, 1))
    assert lab.taken() == [[], [frame(0, 1)], [frame(0, 1)]]


def test_a_port_that_stops() -> None:
    """Nothing is sent there, and who was there is looked for elsewhere."""
    lab = Lab(3)
    lab.nics[1].send(frame(1, BROADCAST))
    lab.taken()
    lab.nics[1].wire.stop()
    lab.nics[0].send(frame(0, 1))
    assert lab.taken() == [[], [], [frame(0, 1)]]


def test_multicast_source_is_not_learned() -> None:
    lab = Lab(3)
    bad = bytes.fromhex("020000000000") + bytes.fromhex("01005e000001") + bytes(48)
    lab.nics[1].send(bad)
    lab.taken()
    lab.nics[0].send(frame(0, MULTICAST))
    assert [len(frames) for frames in lab.taken()] == [0, 1, 1]


def test_more_stations_than_the_table_holds() -> None:
    """Steps: 20,000 stations on one port, then those heard last are written to.
    Verify: frames are never lost; the latest are known.
    """
    lab = Lab(3)
    for start in range(0, 20_000, 1000):
        lab.now += 1
        batch = Batch(1 << 20, 1000)
        for number in range(start, start + 1000):
            batch.append(frame(number, BROADCAST))
        lab.nics[1].wire.send(batch)
    lab.taken()
    for number in range(19_900, 20_000):
        lab.nics[0].send(frame(0xFFFF, number))
    nobody, there, elsewhere = lab.taken()
    assert len(there) == 100
    assert nobody == elsewhere == []


def segments(payload: bytes = bytes(3000)) -> tuple[bytes, dict[str, int]]:
    packet = Ether(src=mac(0), dst=BROADCAST) / IP(src="192.0.2.1", dst="192.0.2.2") / TCP() / Raw(payload)
    fields: dict[str, int] = {"flags": FrameFlag.NEEDS_CSUM, "gso": Gso.TCPV4, "segment": 1000, "header": 54}
    return bytes(packet), fields | {"csum_start": 34, "csum_offset": 16}


@pytest.mark.parametrize("offloads", [Offload.NONE, Offload.CSUM, Offload.ALL])
def test_segments_pass_whole_between_nics(offloads: Offload) -> None:
    """Steps: a GSO frame to everybody, NICs and an uplink that takes more or less.
    Verify: whole at the NIC; cut for the uplink, with its headroom, if it has to be.
    """
    uplink = TestWire(offloads=offloads, headroom=12)
    lab = Lab(2, uplink)
    octets, fields = segments()
    batch = Batch()
    batch.append(octets, headroom=12, **fields)  # type: ignore[arg-type]
    lab.nics[0].wire.send(batch)
    [arrived] = lab.nics[1].batches
    assert arrived.data is batch.data
    assert list(arrived) == [octets]
    assert {name: arrived.frames[0][name] for name in fields} == fields
    assert lab.nics[0].wire.headroom == 12
    if offloads == Offload.ALL:
        assert uplink.take() == [octets]
        return
    assert [record.record["flags"] for record in uplink.sent] == [int(offloads == Offload.CSUM)] * 3
    assert [len(data) for data in uplink.take()] == [1054] * 3


def test_uplink() -> None:
    """Frames pass between NICs and uplink, and stations behind it are learned."""
    uplink = TestWire(offloads=Offload.ALL)
    lab = Lab(2, uplink)
    lab.nics[0].send(frame(0, 9))
    assert uplink.take() == [frame(0, 9)]
    lab.taken()
    uplink.inject(frame(9, 0), frame(9, BROADCAST), frame(9, 8))
    assert lab.taken() == [[frame(9, 0), frame(9, BROADCAST), frame(9, 8)], [frame(9, BROADCAST), frame(9, 8)]]
    lab.nics[1].send(frame(1, 9))
    assert (uplink.take(), lab.taken()) == ([frame(1, 9)], [[], []])
    assert lab.nics[0].wire.counters["uplink_tx_frames"] == 2


def test_uplink_gets_a_flood_before_nics_do() -> None:
    """A NIC completes partial checksums where they lie, which an uplink that takes them bare must not see."""
    uplink = TestWire(offloads=Offload.ALL)
    lab = Lab(2, uplink)

    def overwrite(batch: Batch) -> None:
        batch.data[:] = 0

    lab.nics[1].wire.start(lab.poller, overwrite, lambda: None, lambda: None)
    batch = Batch.of([frame(0, BROADCAST)])
    lab.nics[0].wire.send(batch)
    assert uplink.take() == [frame(0, BROADCAST)]
    assert not batch.data.any()


@pytest.mark.parametrize("offloads", [Offload.NONE, Offload.ALL])
def test_uplink_that_is_full(offloads: Offload) -> None:
    """Steps: the uplink takes one frame and no more; NICs go on sending until they have to wait; it takes all.
    Verify: every frame arrives once and in order, though the sender's memory is reused; those who waited are told.
    """
    uplink = TestWire(offloads=offloads)
    lab = Lab(2, uplink)
    uplink.room = 1
    octets, fields = segments()
    frames = [frame(0, 9, bytes([number])) for number in range(3)]
    batch = Batch.of(frames)
    lab.nics[0].wire.send(batch)
    batch.data[:] = 0
    waiting = Batch()
    waiting.append(octets, **fields)  # type: ignore[arg-type]
    assert not lab.nics[1].wire.send(waiting)
    assert waiting.sent == 0
    assert lab.nics[1].resumed == 0
    uplink.unblock(1)
    assert not lab.nics[1].wire.send(waiting)
    uplink.unblock()
    assert [nic.resumed for nic in lab.nics] == [0, 1]
    assert lab.nics[1].wire.send(waiting)
    assert uplink.take()[:3] == frames


def test_uplink_lives_as_long_as_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    uplink = TestWire()
    stopped: list[bool] = []
    monkeypatch.setattr(uplink, "stop", lambda: stopped.append(True))
    lab = Lab(2, uplink)
    lab.nics[0].wire.stop()
    assert stopped == []
    lab.nics[1].wire.stop()
    assert stopped == [True]


def test_a_frame_for_the_uplink_that_cannot_be_cut() -> None:
    uplink = TestWire()
    lab = Lab(1, uplink)
    batch = Batch()
    batch.append(frame(0, 9), gso=Gso.TCPV4, segment=10)
    batch.append(frame(0, 9))
    assert lab.nics[0].wire.send(batch)
    assert uplink.take() == [frame(0, 9)]
    assert lab.nics[0].wire.counters["uplink_bad_gso"] == 1


@pytest.mark.parametrize(
    ("specs", "names"),
    [
        (["switch"], ["switch:port1", "switch:port2", "switch:port3"]),
        (["switch:lab", "switch", "switch:lab"], ["switch:lab:port1", "switch:port1", "switch:lab:port2"]),
        (["switch:uplink=none", "switch", "switch"], ["switch:port1", "switch:port2", "switch:port3"]),
        (["switch:a,uplink=none"], ["switch:a:port1", "switch:a:port2", "switch:a:port3"]),
        (["link", "switch", "link"], ["link:a", "switch:port1", "link:b"]),
    ],
)
def test_specs(specs: list[str], names: list[str]) -> None:
    wires, joined = open_wires(tuple(specs), 3)
    assert [wire.name for wire in wires] == names
    # Those of one cable or switch are joined, and no others.
    ways = [name.rpartition(":")[0] for name in names]
    assert [[one is other for one in joined] for other in joined] == [[one == other for one in ways] for other in ways]
    uplinks = {name for wire in wires for name in wire.counters if name == "uplink_tx_frames"}
    assert bool(uplinks) == any("uplink" in spec for spec in specs)


@pytest.mark.parametrize(
    ("specs", "error", "sentence"),
    [
        (["switch:uplink=none", "switch:uplink=stream:/x"], MisfitError, "has one uplink"),
        (["switch:uplink=switch", "switch"], WireError, "a switch joins NICs"),
        (["switch:", "switch"], WireError, "a switch joins NICs"),
    ],
)
def test_bad_specs(specs: list[str], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        open_wires(tuple(specs), 2)


def test_batch_is_not_full() -> None:
    """*Steps*: batches of every size up to what they hold, one after the other in the same memory, as from any wire.
    *Verify*: each frame arrives where it goes, once; what the spare records say of earlier frames means nothing.
    """
    uplink = TestWire()
    lab = Lab(3, uplink)
    for number, nic in enumerate(lab.nics):
        nic.send(frame(number, BROADCAST))
    lab.taken()
    for size in [*range(1, 20), 511, 512, 513, 7]:
        frames = [frame(9, (number * 7) % 3, number.to_bytes(2, "big")) for number in range(size)]
        uplink.inject(*frames)
        wanted = [[one for one in frames if one[:6] == bytes.fromhex(mac(k).replace(":", ""))] for k in range(3)]
        assert lab.taken() == wanted


def test_ports_stand_in_line() -> None:
    """*Steps*: three NICs that always have more, an uplink that takes one at a time. *Verify*: each has its turn."""
    uplink = TestWire()
    lab = Lab(3, uplink)
    turns: list[int] = []

    def resume(number: int) -> None:
        """Send until it has to be waited."""
        for _ in range(100):
            batch = Batch.of([frame(number, 9)])
            if not lab.nics[number].wire.send(batch):
                return
            turns.append(number)

    for number, nic in enumerate(lab.nics):
        nic.wire.start(lab.poller, lambda batch: None, partial(resume, number), lambda: None)
    uplink.room = 0
    for number in range(3):
        resume(number)
    for _ in range(12):
        uplink.unblock(1)
    assert [turns.count(number) for number in range(3)] == [5, 4, 4]
