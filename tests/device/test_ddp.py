"""Direct data placement for NVMe/TCP: what a controller sends is what the reader gets, placed, copied, or both."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from nicmodel.gvnic.commands import Inner, OptionId, QueueFormat, Status
from nicmodel.gvnic.options.ddp.declarations import CONFIGURE_DDP, DDP_PIECE, MAX_DDP_PIECES, DdpDigest, DdpOperation
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.nvme_tcp import Reader, data_pdu, response
from nicmodel.gvnic.testing.pieces import unfold
from nicmodel.gvnic.testing.rx import RxPacket
from nicmodel.nic.mac import parse_mac
from nicmodel.nic.purpose import Purpose
from nicmodel.observe.metrics import exposition
from nicmodel.observe.snapshot import snapshot
from nicmodel.observe.trace import Tracer
from nicmodel.packet.frames import FrameFlag, Gso
from nicmodel.packet.nvme_tcp import Sync
from nicmodel.testing.tcp_stream import TcpStream, arrivals

from .frames import NIC_MAC, pattern

#: The drivers of all tests are watched.
pytestmark = pytest.mark.contract

MSS = 1448
#: The stream's first sequence number: it wraps soon.
START = 2**32 - 5000
BOTH = DdpDigest.HEADER | DdpDigest.DATA


class Controller(TcpStream):
    """The sender of a stream of PDUs."""

    def __init__(self, *, digests: int = BOTH, v: int = 4, sequence: int = START) -> None:
        addresses = ("192.0.2.1", "192.0.2.2") if v == 4 else ("2001:db8::1", "2001:db8::2")
        super().__init__(*addresses, 4420, 40000, NIC_MAC, sequence)
        self.digests = digests
        self.sent: dict[int, bytes] = {}

    def reader(self, lab: Loopback, flow: int = 0) -> Reader:
        """Who reads what is sent."""
        return Reader(
            lab.driver, flow, source=self.source, destination=self.destination, source_port=self.source_port,
            destination_port=self.destination_port, sequence=self.sequence, digests=self.digests,
        )  # fmt: skip

    def send(self, command: int, length: int, *, pdu: int = 1 << 30, padding: int = 0) -> bytes:
        """Append the data of a read in PDUs of `pdu` bytes, and the response; the data."""
        data = pattern(length, command)
        for start in range(0, length, pdu):
            part = data[start : start + pdu]
            self.data += data_pdu(command, part, offset=start, digests=self.digests, padding=padding)
        self.data += response(command, digests=self.digests)
        self.sent[command] = data
        return data


@pytest.fixture
def ddp(make_lab: Callable[..., Loopback]) -> Loopback:
    """A device with the engine, and its driver with open queues."""
    return opened(make_lab(ddp_flows=4))


def opened(lab: Loopback, **options: Any) -> Loopback:
    lab.driver.probe()
    lab.driver.open(**{"rx_queues": 1, "tx_queues": 1, "ring_entries": 256, "header_split": True, **options})
    return lab


def receive(lab: Loopback, frames: Iterable[bytes], reader: Reader | None = None) -> list[RxPacket]:
    """Frames, each as a batch of its own; the packets they became, which `reader` has taken."""
    packets = []
    for frame in frames:
        lab.receive(frame)
        for packet in lab.driver.poll_all():
            packets.append(packet)
            if reader is not None:
                reader.take(packet)
    return packets


def counts(lab: Loopback) -> dict[str, int]:
    return {name: count for name, count in lab.nic.ddp.counters.items() if count}


def check(reader: Reader, controller: Controller) -> None:
    """Every read has its data."""
    assert set(reader.done) == set(controller.sent) and not reader.reads
    for command, data in controller.sent.items():
        assert reader.done[command].data == data
    assert reader.next == (controller.sequence + len(controller.data)) % 2**32
    assert reader.placed + reader.copied == sum(map(len, controller.sent.values()))


# In order


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("digests", [0, DdpDigest.HEADER, DdpDigest.DATA, BOTH])
@pytest.mark.parametrize("split", [False, True])
def test_in_order(make_lab: Callable[..., Loopback], v: int, digests: int, split: bool) -> None:
    """All data is placed, by DMA that the ledger knows of; the queue gets what is not data, and records."""
    lab = opened(make_lab(ddp_flows=4), header_split=split)
    controller = Controller(digests=digests, v=v)
    reader = controller.reader(lab)
    for command, length in ((1, 4096), (2, 65536), (3, 40)):
        controller.send(command, length, pdu=16384)
        reader.read(command, length)
    packets = receive(lab, controller.segments(), reader)
    check(reader, controller)
    found = counts(lab)
    assert found["placed_bytes"] == reader.placed and found.get("unplaced_bytes", 0) == reader.copied
    assert reader.placed > 0.99 * (4096 + 65536)
    assert reader.checked == 0 and not reader.wrong
    assert (reader.vouched, found.get("digests", 0)) == ((6, 6) if digests & DdpDigest.DATA else (0, 0))
    assert found["frames"] == len(packets)
    assert all(packet.ddp["ddp"] for packet in packets)
    delivered = sum(len(packet.frame) for packet in packets)
    ledger = lab.nic.state.ledger[0].sum(axis=1)
    assert ledger[Purpose.PAYLOAD] + ledger[Purpose.HEADER] == delivered + reader.placed
    assert delivered < 0.12 * len(controller.data)
    assert int(lab.nic.state.rx["bytes"][0]) == len(controller.data) + len(packets) * (54 if v == 4 else 74)


def test_packet_is_as_on_the_wire(ddp: Loopback) -> None:
    """The headers are not changed; with the records and the buffers the packet is that of the wire."""
    controller = Controller()
    reader = controller.reader(ddp)
    data = controller.send(7, 1000)
    read = reader.read(7, 1000)
    [frame] = controller.segments()
    [packet] = receive(ddp, [frame])
    assert packet.header == frame[:54]
    pieces = unfold(packet)
    assert [(piece.length, piece.data is None) for piece in pieces] == [(28, False), (1000, True), (32, False)]
    assert (pieces[1].command, pieces[1].offset, reader.content(read)) == (7, 0, data)
    whole = b"".join(data[piece.offset :][: piece.length] if piece.data is None else piece.data for piece in pieces)
    assert frame[:54] + whole == frame
    assert packet.checksum_unnecessary
    said = packet.ddp
    assert (said["placements"], said["digest_good"], said["digest_bad"], said["resync"]) == (1, 1, 0, 0)


def test_several_pdus_in_one_segment(make_lab: Callable[..., Loopback]) -> None:
    """Also of several commands; with padding before the data, too."""
    lab = opened(make_lab(ddp_flows=1))
    controller = Controller()
    reader = controller.reader(lab)
    for command in range(12):
        controller.send(command, 512, padding=4 * (command % 3))
        reader.read(command, 512)
    [packet] = receive(lab, controller.segments(8800), reader)
    check(reader, controller)
    assert packet.ddp["placements"] == 12
    assert reader.copied == 0 and reader.vouched == 12
    assert counts(lab)["placed_pdus"] == 12


def test_buffer_of_pieces(ddp: Loopback) -> None:
    """A buffer may be in pieces, in any memory; what is between them is not touched."""
    controller = Controller()
    reader = controller.reader(ddp)
    hbm = ddp.driver.add_memory("hbm", 1 << 20)
    ddp.run()
    ram = ddp.driver.ram
    lengths = [1, 4095, 4096, 17, 100, 1]
    pieces = [(ram.allocate(8192) + 100, length) for length in lengths]
    for address, _ in pieces:
        ram.view(address - 100, 8192)[:] = 0xEE
    controller.send(1, sum(lengths))
    reader.read(1, sum(lengths), pieces=pieces)
    receive(ddp, controller.segments(1000), reader)
    check(reader, controller)
    for address, length in pieces:
        assert (ram.view(address - 100, 100) == 0xEE).all() and (ram.view(address + length, 100) == 0xEE).all()
    length = 50_000
    data = pattern(length, 9)
    place = hbm.allocate(length)
    start = len(controller.data)
    controller.data += data_pdu(9, data, digests=BOTH)
    reader.read(9, length, pieces=[(place, length)])
    packets = receive(ddp, controller.segments(start=start))
    runs = [piece for packet in packets for piece in unfold(packet)]
    placed = sum(piece.length for piece in runs if piece.data is None)
    assert placed > 0.99 * length
    for piece in runs:
        if piece.data is None:
            assert hbm.read(place + piece.offset, piece.length) == data[piece.offset : piece.offset + piece.length]
    assert ddp.nic.state.ledger[0, Purpose.PAYLOAD, ddp.nic.dma.kinds.index("hbm")] == placed


@pytest.mark.parametrize("rsc", [False, True])
@pytest.mark.parametrize("gso", [False, True])
def test_aggregated_frames(make_lab: Callable[..., Loopback], rsc: bool, gso: bool) -> None:
    """Frames that come aggregated, those that the device merges, and those it cuts."""
    lab = opened(make_lab(ddp_flows=1), rsc=rsc)
    controller = Controller()
    reader = controller.reader(lab)
    for command in range(4):
        controller.send(command, 30_000, pdu=7000)
        reader.read(command, 30_000)
    if gso:
        lab.run()
        for start in range(0, len(controller.data), 20 * MSS):
            frame = controller.segment(start, 20 * MSS)
            lab.nic.ingress.inject(
                lab.build(frame, flags=FrameFlag.NEEDS_CSUM, gso=Gso.TCPV4, segment=MSS, header=54).batch
            )
            for packet in lab.driver.poll_all():
                reader.take(packet)
    else:
        frames = controller.segments()
        for start in range(0, len(frames), 20):
            lab.receive(*frames[start : start + 20])
            for packet in lab.driver.poll_all():
                reader.take(packet)
    check(reader, controller)
    assert reader.placed > 0.98 * 120_000 and reader.checked == 0
    if rsc:
        assert lab.nic.state.rx["aggregated"][0] > 0
    assert counts(lab)["frames"] == (len(controller.data) // (20 * MSS) + 1 if rsc else len(controller.segments()))


# Loss and reordering


def test_loss_within_a_pdu(ddp: Loopback) -> None:
    """The next header's place is known: only what comes out of order is copied, and no question is asked."""
    controller = Controller()
    reader = controller.reader(ddp)
    controller.send(1, 100_000)
    reader.read(1, 100_000)
    frames = controller.segments()
    order = [*range(10), 11, 12, 13, 10, *range(14, len(frames))]
    receive(ddp, [frames[number] for number in order], reader)
    check(reader, controller)
    found = counts(ddp)
    assert (found["ahead"], found["old"], found.get("lost", 0)) == (1, 1, 0)
    assert reader.copied == 2 * MSS  # the one that was lost, and the one after it
    assert (reader.vouched, reader.checked, reader.asked) == (0, 1, 0)


def test_lost_header_is_found_again(ddp: Loopback) -> None:
    """The device asks, the reader confirms, and placing goes on."""
    controller = Controller()
    reader = controller.reader(ddp)
    for command in range(20):
        controller.send(command, 10_000)
        reader.read(command, 10_000)
    frames = controller.segments()
    lost = 10_100 // MSS  # has the second PDU's header
    late = lost + 25
    receive(ddp, [*frames[:lost], *frames[lost + 1 : late], frames[lost], *frames[late:]], reader)
    check(reader, controller)
    found = counts(ddp)
    assert (found["lost"], found["requests"], found["confirmed"]) == (1, 1, 1) and "refused" not in found
    assert reader.asked == 1
    # Out of sync until the answer, which comes with the bytes that were lost.
    assert reader.copied < (late - lost + 3) * MSS
    assert reader.placed > 200_000 - (late - lost + 3) * MSS
    assert not reader.wrong and reader.vouched >= 14


def test_what_looks_like_a_header(ddp: Loopback) -> None:
    """Data full of what looks like PDUs: a wrong candidate is not confirmed, and nothing is placed by it."""
    controller = Controller(digests=0)
    reader = controller.reader(ddp)
    decoy = data_pdu(3, pattern(300, 5)) + response(3)
    data = decoy * 60
    for command in (1, 2):
        controller.data += data_pdu(command, data) + response(command)
        controller.sent[command] = data
        reader.read(command, len(data))
    controller.send(4, 50_000, pdu=5000)
    reader.read(4, 50_000)
    victim = reader.read(3, 300)
    frames = controller.segments()
    lost = (len(data) + 60) // MSS  # has the header of command 2
    receive(ddp, [*frames[:lost], *frames[lost + 1 : lost + 3], frames[lost], *frames[lost + 3 :]], reader)
    del reader.reads[3]
    check(reader, controller)
    assert not any(reader.content(victim))
    found = counts(ddp)
    assert found["requests"] >= 1 and found["lost"] >= 1
    assert reader.placed > 0.5 * (2 * len(data) + 50_000)


def test_duplicates_are_not_placed_again(ddp: Loopback) -> None:
    """A segment that comes again finds a buffer that may belong to something else by now."""
    controller = Controller()
    reader = controller.reader(ddp)
    controller.send(1, 20_000)
    read = reader.read(1, 20_000)
    frames = controller.segments()
    receive(ddp, frames[:-1], reader)
    for address, length in read.pieces:
        before = ddp.driver.ram.read(address, length)
        ddp.driver.ram.write(address, bytes(length))
        packets = receive(ddp, frames[:-1], reader)
        assert not any(ddp.driver.ram.view(address, length))
        assert not any(packet.ddp["placements"] for packet in packets)
        ddp.driver.ram.write(address, before)
    receive(ddp, frames[-1:], reader)
    check(reader, controller)
    assert counts(ddp)["old"] == len(frames) - 1


def test_overlapping_segments(ddp: Loopback) -> None:
    """Of a segment whose first bytes are old, the new ones are placed."""
    controller = Controller()
    reader = controller.reader(ddp)
    controller.send(1, 20_000)
    reader.read(1, 20_000)
    frames = [controller.segment(max(start - 400, 0), 1400) for start in range(0, len(controller.data), 1000)]
    receive(ddp, frames, reader)
    check(reader, controller)
    assert reader.placed > 19_000


def test_new_connection_with_the_same_ports(ddp: Loopback) -> None:
    """A SYN ends what the device knew: nothing of the new stream is placed."""
    controller = Controller()
    reader = controller.reader(ddp)
    controller.send(1, 20_000)
    reader.read(1, 20_000)
    frames = controller.segments()
    receive(ddp, frames[:3], reader)
    receive(ddp, [controller.segment(0, 0, flags="S")])
    assert ddp.nic.state.ddp_trackers["sync"][0] == Sync.SEARCHING
    receive(ddp, frames[3:], reader)
    check(reader, controller)
    assert reader.copied > 20_000 - 3 * MSS


# What is wrong


def test_wrong_data_digest(ddp: Loopback) -> None:
    """It is counted, and the driver is told: the packet's data is where it belongs, but nobody vouches for it."""
    controller = Controller()
    reader = controller.reader(ddp)
    for command in (1, 2, 3):
        controller.send(command, 5000)
        reader.read(command, 5000)
    broken = bytearray(controller.data)
    broken[5100 + 2000] ^= 1  # data of command 2
    controller.data = bytes(broken)
    packets = receive(ddp, controller.segments(), reader)
    assert reader.wrong == [2]
    found = counts(ddp)
    assert (found["digests"], found["digest_errors"]) == (3, 1)
    assert sum(packet.ddp["digest_bad"] for packet in packets) == 1
    assert not any(packet.ddp["digest_good"] for packet in packets if packet.ddp["digest_bad"])
    assert reader.vouched >= 1 and reader.vouched + reader.checked == 3


@pytest.mark.parametrize(
    ("at", "value", "counter"),
    [
        (0, 0x06, "bad_headers"),  # a PDU of the other direction
        (1, 0x04, "bad_headers"),  # digests that were not agreed on
        (2, 25, "bad_headers"),  # header length
        (3, 20, "bad_headers"),  # data before the header's end
        (7, 0x40, "bad_headers"),  # longer than any PDU
        (12, 1, "header_digest_errors"),  # data offset
        (16, 1, "header_digest_errors"),  # data length
        (24, 1, "header_digest_errors"),
    ],
)
def test_bad_header(ddp: Loopback, at: int, value: int, counter: str) -> None:
    """No header that is wrong is followed: the data goes the usual way."""
    controller = Controller()
    reader = controller.reader(ddp)
    data = controller.send(1, 3000)
    read = reader.read(1, 3000)
    broken = bytearray(controller.data)
    broken[at] = value
    controller.data = bytes(broken)
    packets = receive(ddp, controller.segments())
    assert b"".join(piece.data or b"" for packet in packets for piece in unfold(packet)) == controller.data
    assert not any(reader.content(read)) and data
    found = counts(ddp)
    assert found[counter] == 1 and found["lost"] == 1 and "placed_bytes" not in found


def test_lengths_that_disagree(ddp: Loopback) -> None:
    """Without digests, DATAL is checked against PLEN."""
    controller = Controller(digests=0)
    reader = controller.reader(ddp)
    controller.send(1, 3000)
    reader.read(1, 3000)
    controller.data = controller.data[:16] + struct.pack("<I", 2999) + controller.data[20:]
    receive(ddp, controller.segments())
    assert counts(ddp)["bad_headers"] == 1 and "placed_bytes" not in counts(ddp)


def test_unknown_command(ddp: Loopback) -> None:
    """What nobody has set up goes the usual way."""
    controller = Controller()
    reader = controller.reader(ddp)
    for command in (1, 2):
        controller.send(command, 5000)
        reader.read(command, 5000, placed=command == 2)
    receive(ddp, controller.segments(), reader)
    check(reader, controller)
    assert counts(ddp)["unknown_command"] >= 4
    assert reader.copied >= 5000 and reader.placed > 4900


@pytest.mark.parametrize(("offset", "length"), [(4097, 4096), (1 << 31, 4096), (2**32 - 1, 4096), (0, 8193)])
def test_beyond_the_buffer(ddp: Loopback, offset: int, length: int) -> None:
    """An offset or length that leaves the buffer: those bytes stay in the packet."""
    controller = Controller()
    reader = controller.reader(ddp)
    place = ddp.driver.ram.allocate(5 * 8192) + 2 * 8192
    around = ddp.driver.ram.view(place - 2 * 8192, 5 * 8192)
    around[:] = 0xEE
    reader.read(1, 8192, pieces=[(place, 8192)])
    controller.data += data_pdu(1, bytes(length), offset=offset, digests=BOTH)
    packets = receive(ddp, controller.segments())
    placed = sum(piece.length for packet in packets for piece in unfold(packet) if piece.data is None)
    assert counts(ddp)["beyond_buffer"] >= 1
    assert int(np.count_nonzero(around == 0)) == placed < length
    assert (around[: 2 * 8192] == 0xEE).all() and (around[3 * 8192 :] == 0xEE).all()


@pytest.mark.breaks("DDP-008")
def test_buffer_that_is_not_mapped(ddp: Loopback) -> None:
    """A DMA fault: the run stays in the packet, whole, also when its first bytes could be written."""
    controller = Controller()
    reader = controller.reader(ddp)
    place = ddp.driver.ram.allocate_zeroed(8192)
    data = controller.send(1, 8192)
    reader.read(1, 8192, pieces=[(place, 1000), (0x7000_0000_0000, 7192)])
    faults = int(ddp.nic.state.device["faults"][0])
    packets = receive(ddp, controller.segments())
    pieces = [piece for packet in packets for piece in unfold(packet)]
    assert b"".join(piece.data or b"" for piece in pieces) == controller.data
    assert not any(ddp.driver.ram.view(place, 1000)) and data
    assert counts(ddp)["dma_faults"] == 6 == int(ddp.nic.state.device["faults"][0]) - faults


def test_memory_without_a_descriptor(ddp: Loopback) -> None:
    """It is reached by messages, of which small pieces would need too many: nothing is placed there."""
    controller = Controller()
    reader = controller.reader(ddp)
    far = ddp.driver.add_memory("far", 1 << 20, by_message=True)
    controller.send(1, 3000)
    reader.read(1, 3000, pieces=[(far.base + 2 * k, 1) for k in range(MAX_DDP_PIECES - 1)] + [(far.base + 4096, 2745)])
    packets = receive(ddp, controller.segments())
    assert b"".join(piece.data or b"" for packet in packets for piece in unfold(packet)) == controller.data
    assert counts(ddp)["dma_faults"] == 3 and not ddp.nic.state.device["unwritten"][0]


@pytest.mark.breaks("DDP-008")
def test_memory_that_goes_away(ddp: Loopback) -> None:
    """Unmapped in the middle of a transfer: from then on nothing is written there."""
    controller = Controller()
    reader = controller.reader(ddp)
    hbm = ddp.driver.add_memory("hbm", 1 << 20)
    controller.data = data_pdu(1, pattern(20_000, 1), digests=BOTH)
    reader.read(1, 20_000, pieces=[(hbm.base, 20_000)])
    frames = controller.segments()
    receive(ddp, frames[:4])
    ddp.driver.unmap(hbm)
    ddp.run()
    hbm.bytes[:] = 0xEE
    receive(ddp, frames[4:])
    assert (hbm.bytes == 0xEE).all()
    assert counts(ddp)["dma_faults"] == len(frames) - 4


def test_wrong_tcp_checksum(ddp: Loopback) -> None:
    """A frame that TCP will throw away is not looked at; the right one that follows is in order."""
    controller = Controller()
    reader = controller.reader(ddp)
    controller.send(1, 10_000)
    read = reader.read(1, 10_000)
    frames = controller.segments()
    broken = bytearray(frames[0])
    broken[100] ^= 1
    [packet] = receive(ddp, [bytes(broken)])
    assert not packet.checksum_unnecessary and packet.frame == broken
    assert not any(reader.content(read)) and not counts(ddp)
    receive(ddp, frames, reader)
    check(reader, controller)


def test_tear_down_in_flight(ddp: Loopback) -> None:
    """Nothing is written once the command is done, whatever is on its way."""
    controller = Controller()
    reader = controller.reader(ddp)
    controller.send(1, 50_000)
    read = reader.read(1, 50_000)
    frames = controller.segments()
    receive(ddp, frames[:10], reader)
    reader.tear_down(1)
    [(address, length)] = read.pieces
    before = ddp.driver.ram.read(address, length)
    packets = receive(ddp, frames[10:])
    assert ddp.driver.ram.read(address, length) == before
    for packet in packets:
        reader.take(packet)
    check(reader, controller)


def test_delete_flow_in_flight(ddp: Loopback) -> None:
    """So it is with a flow, whose buffers go with it; its number and its commands can be used again."""
    controller = Controller()
    reader = controller.reader(ddp)
    controller.send(1, 50_000)
    read = reader.read(1, 50_000)
    frames = controller.segments()
    receive(ddp, frames[:10], reader)
    reader.close()
    read.placed = False
    packets = receive(ddp, frames[10:], reader)
    check(reader, controller)
    assert not any(packet.ddp["ddp"] for packet in packets)
    again = Controller(sequence=77)
    reader = again.reader(ddp)
    again.send(1, 9000)
    reader.read(1, 9000)
    receive(ddp, again.segments(), reader)
    check(reader, again)


@pytest.mark.breaks("REG-010")
def test_reset_forgets(ddp: Loopback) -> None:
    """What the device was told of buffers ends with the driver."""
    controller = Controller()
    reader = controller.reader(ddp)
    controller.send(1, 5000)
    read = reader.read(1, 5000)
    ddp.driver.reset()
    ddp.driver.open(rx_queues=1, tx_queues=1)
    receive(ddp, controller.segments())
    assert not any(reader.content(read))
    assert not ddp.nic.state.ddp_buffers["active"].any() and not ddp.nic.state.ddp_index.any()


def test_other_flows_are_left_alone(ddp: Loopback) -> None:
    """A flow that differs in one thing is not this one; several flows do not mix."""
    one, two = Controller(), Controller(v=6, sequence=9)
    readers = [one.reader(ddp, 0), two.reader(ddp, 3)]
    for controller, reader in zip((one, two), readers, strict=True):
        controller.send(1, 20_000)
        reader.read(1, 20_000)
    other = bytes(Ether(one.segment(0, MSS))).replace(bytes((192, 0, 2, 1)), bytes((192, 0, 2, 9)))
    frame = Ether(other)
    del frame[IP].chksum, frame[TCP].chksum
    [packet] = receive(ddp, [bytes(frame)])
    assert packet.frame == bytes(frame) and not packet.ddp["ddp"]
    for first, second in zip(one.segments(), two.segments(), strict=True):
        receive(ddp, [first], readers[0])
        receive(ddp, [second], readers[1])
    check(readers[0], one)
    check(readers[1], two)
    assert readers[0].placed == readers[1].placed > 19_800


def test_no_buffers(make_lab: Callable[..., Loopback]) -> None:
    """A frame that waits for buffers is placed when it gets them, and not before."""
    lab = opened(make_lab(ddp_flows=1), ring_entries=256)
    controller = Controller()
    reader = controller.reader(lab)
    controller.send(1, 600_000)
    reader.read(1, 600_000)
    lab.receive(*controller.segments())
    assert lab.nic.state.rx["held"][0] > 0
    for _ in range(4):
        for packet in lab.driver.poll_all():
            reader.take(packet)
        lab.run()
    check(reader, controller)
    assert reader.placed > 590_000


# The admin command


def configure(lab: Loopback, operation: int, **fields: Any) -> Status | int:
    command = np.zeros((), CONFIGURE_DDP)
    for name, value in {"operation": operation, **fields}.items():
        command[name] = value
    try:
        lab.driver.extended(Inner.CONFIGURE_DDP, command)
    except AdminError as error:
        return error.status
    return Status.PASSED


@pytest.mark.breaks("ADM-RES-001", "OPT-001")
def test_a_gqi_format_has_no_direct_placement(make_lab: Callable[..., Loopback]) -> None:
    lab = make_lab(ddp_flows=4, formats=(QueueFormat.DQO_RDA, QueueFormat.GQI_RDA))
    lab.driver.probe()
    lab.driver.configure_resources(QueueFormat.GQI_RDA)
    assert configure(lab, DdpOperation.ADD_FLOW4) == Status.FAILED_PRECONDITION


@pytest.mark.breaks("DDP-001", "DDP-002", "DDP-003", "DDP-004", "DDP-005", "DDP-006", "DDP-007", "DDP-010", "DDP-012")
@pytest.mark.breaks("ADM-CMD-004")
def test_bad_settings(ddp: Loopback) -> None:
    """Each is refused for its own reason, and changes nothing."""
    reader = Controller().reader(ddp)
    reader.read(5, 4096)
    ram = ddp.driver.ram
    place = ram.allocate_zeroed(4096)

    def set_up(*pieces: tuple[int, int], **fields: int) -> Status | int:
        ram.write(place, np.array(list(pieces), DDP_PIECE).tobytes())
        given = {"flow": 0, "command": 6, "count": len(pieces), "address": place} | fields
        return configure(ddp, DdpOperation.SET_UP, **given)

    one = (ram.base, 4096)
    assert set_up(one, flow=1) == Status.NOT_FOUND
    assert set_up(one, flow=9) == Status.NOT_FOUND
    assert set_up(one, command=5) == Status.ALREADY_EXISTS
    assert set_up(one, count=0) == Status.INVALID_ARGUMENT
    assert set_up(one, count=MAX_DDP_PIECES + 1) == Status.INVALID_ARGUMENT
    assert set_up(one, address=1 << 50) == Status.INVALID_ARGUMENT
    assert set_up(one, (ram.base, 0)) == Status.INVALID_ARGUMENT
    assert set_up((2**64 - 10, 11)) == Status.INVALID_ARGUMENT
    assert set_up((0, 1 << 31), (0, 1 << 31)) == Status.INVALID_ARGUMENT
    assert configure(ddp, DdpOperation.TEAR_DOWN, command=6) == Status.NOT_FOUND
    assert configure(ddp, DdpOperation.DELETE_FLOW, flow=1) == Status.NOT_FOUND
    assert configure(ddp, DdpOperation.RESYNC, flow=1) == Status.NOT_FOUND
    assert configure(ddp, DdpOperation.RESYNC, sequence=START - 1) == Status.FAILED_PRECONDITION
    assert configure(ddp, DdpOperation.ADD_FLOW4, flow=4) == Status.OUT_OF_RANGE
    assert configure(ddp, DdpOperation.ADD_FLOW4, flow=0) == Status.ALREADY_EXISTS
    assert configure(ddp, DdpOperation.ADD_FLOW4, flow=1, digests=4) == Status.INVALID_ARGUMENT
    with pytest.raises(AdminError) as error:
        Controller().reader(ddp, 2)
    assert error.value.status == Status.ALREADY_EXISTS
    assert configure(ddp, 6) == Status.INVALID_ARGUMENT
    assert ddp.nic.state.ddp_buffers["active"].sum() == 1


@pytest.mark.breaks("DDP-009", "DDP-011")
def test_too_many_buffers(ddp: Loopback) -> None:
    """As many as the option says, and one no more; a buffer that is torn down makes room."""
    limits = ddp.driver.description.ddp_limits if ddp.driver.description else None
    assert limits is not None and limits["max_flows"] == 4
    reader = Controller().reader(ddp)
    page = [(ddp.driver.ram.base, 4096)]
    for command in range(int(limits["max_buffers"])):
        reader.read(command, 4096, pieces=page)
    with pytest.raises(AdminError) as error:
        reader.read(60_000, 4096, pieces=page)
    assert error.value.status == Status.RESOURCE_EXHAUSTED
    reader.tear_down(17)
    reader.read(60_000, 4096, pieces=page)


@pytest.mark.breaks("ADM-CMD-005")
def test_off_by_default(lab: Loopback) -> None:
    """Stock drivers never hear of it, and the command is none that the device knows."""
    opened(lab)
    assert lab.driver.description is not None
    assert OptionId.DDP not in lab.driver.description.options and lab.driver.description.ddp_limits is None
    assert configure(lab, DdpOperation.ADD_FLOW4) == Status.UNIMPLEMENTED
    frames = [Controller().segment(0, 0)]
    [packet] = receive(lab, frames)
    assert not packet.ddp["ddp"]


def test_in_sight() -> None:
    """The contract is kept; trace, snapshot and metrics tell what happens."""
    heard: list[dict[str, Any]] = []
    with Loopback(Profile(mac=parse_mac(NIC_MAC), ddp_flows=1), check=True) as lab:
        Tracer(lab.nic, lab.server).subscribe(heard.append, ["admin", "rx"], [])
        opened(lab)
        controller = Controller()
        reader = controller.reader(lab)
        controller.send(1, 5000)
        reader.read(1, 5000)
        receive(lab, controller.segments(), reader)
        check(reader, controller)
        assert not lab.findings
        operations = [event["fields"]["inner"]["operation"] for event in heard if "inner" in event.get("fields", {})]
        assert operations == ["ADD_FLOW4", "SET_UP", "TEAR_DOWN"]
        assert [event["completions"][0]["placements"] for event in heard if event["kind"] == "rx"] == [1, 1, 1, 1]
        told = snapshot(lab.nic)
        assert told["ddp"] == lab.nic.ddp.counters and told["ddp"]["placed_bytes"] == reader.placed == 5000
        assert f'nicmodel_ddp_total{{name="placed_bytes",nic="{lab.nic.name}"}} 5000.0' in exposition([told])


# Anything


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(draws=st.data())
def test_any_order(make_lab: Callable[..., Loopback], draws: st.DataObject) -> None:
    """However the stream is cut, and in whatever order it comes: all data is where it belongs."""
    lab = opened(make_lab(ddp_flows=1))
    digests = draws.draw(st.sampled_from([0, 1, 2, 3]), label="digests")
    controller = Controller(digests=digests)
    reader = controller.reader(lab)
    sizes = draws.draw(st.lists(st.sampled_from([1, 15, 16, 512, 4096, 9000]), min_size=1, max_size=5), label="sizes")
    for command, size in enumerate(sizes):
        controller.send(command, size, pdu=draws.draw(st.sampled_from([100, 4000, 10_000])), padding=4 * (command % 2))
        reader.read(command, size, placed=draws.draw(st.booleans()) or command == 0)
    order = arrivals(
        len(controller.data),
        random.Random(draws.draw(st.integers(0, 2**32), label="seed")),
        sizes=draws.draw(st.sampled_from([(1, 100), (1, MSS), (500, 8000), (MSS, MSS)]), label="segments"),
        loss=draws.draw(st.sampled_from([0, 0.02, 0.2]), label="loss"),
        reorder=draws.draw(st.sampled_from([0, 0.05, 0.5]), label="reorder"),
        duplicate=draws.draw(st.sampled_from([0, 0.1]), label="duplicate"),
    )
    receive(lab, [controller.segment(*segment) for segment in order], reader)
    check(reader, controller)
    assert not reader.wrong
    found = counts(lab)
    assert found.get("requests", 0) == reader.asked and found.get("refused", 0) == reader.refused
    assert "dma_faults" not in found and "beyond_buffer" not in found and "digest_errors" not in found
