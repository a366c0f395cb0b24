"""Packets from the driver to the wire: gathering, checksums, segmentation, completions, wrong descriptors."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from nicmodel.gvnic.commands import Opcode
from nicmodel.gvnic.descriptors import (
    TX_COMPLETION,
    TX_GENERAL_CONTEXT,
    TX_PACKET,
    TX_TSO_CONTEXT,
    TxCompletionType,
    TxType,
)
from nicmodel.gvnic.testing.adminq import decode_command
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.tx import QueueFull, TxQueue
from nicmodel.nic.state import Drop
from nicmodel.packet.frames import FrameFlag, Gso, Offload
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.testing.wire import TestWire

from .frames import NIC_MAC, PEER_MAC, arp, icmp, pattern, tcp, udp

OUT = Ether(src=NIC_MAC, dst=PEER_MAC)
ENTRIES = 128


@pytest.fixture
def driver(lab: Loopback) -> Driver:
    lab.driver.probe()
    lab.driver.open(rx_queues=1, tx_queues=2, ring_entries=ENTRIES)
    return lab.driver


@pytest.fixture
def queue(driver: Driver) -> TxQueue:
    return driver.tx[0]


def sent(lab: Loopback) -> list[bytes]:
    """What the wire has got since the last call."""
    lab.run()
    return lab.wire.take()


def drops(lab: Loopback, reason: Drop) -> int:
    """Packets of transmit queue 0 that were dropped for a reason."""
    return int(lab.nic.state.drops[lab.nic.profile.queues, reason])


# Plain packets


@pytest.mark.parametrize("length", [14, 17, 42, 59, 60, 61, 1514, 4096, 8910, 9728])
@pytest.mark.parametrize("general_context", [True, False])
def test_plain(lab: Loopback, queue: TxQueue, length: int, general_context: bool) -> None:
    """Every byte goes out, nothing is padded; the tag comes back once."""
    frame = (bytes(OUT) + pattern(9800))[:length]
    tag = queue.send(frame, general_context=general_context)
    assert sent(lab) == [frame]
    assert queue.poll() == [(TxCompletionType.PACKET, tag)]


def test_fragments(lab: Loopback, queue: TxQueue) -> None:
    """A packet may be spread over memory in any way, empty headroom or not."""
    frame = tcp(3000)
    choice = random.Random(0)
    for count in (1, 2, 3, 10, 40):
        cuts = sorted(choice.sample(range(1, len(frame)), count - 1))
        fragments = [end - start for start, end in zip([0, *cuts], [*cuts, len(frame)], strict=True)]
        queue.send(frame, fragments=fragments)
        assert sent(lab) == [frame]
        queue.poll()


def test_device_memory(lab: Loopback, driver: Driver) -> None:
    """Transmit of devmem TCP: the header in ordinary memory, the payload where no CPU looks."""
    with GuestMemory("hbm", base=0x40_0000_0000, size=1 << 20) as hbm:
        driver.map(hbm)
        frame = tcp(9000)
        driver.send(0, frame, fragments=[54, 4096, 4096, 808], memory=hbm)
        assert sent(lab) == [frame]
        assert len(driver.poll_tx(0)) == 1
        assert hbm.allocated == 0


def test_many_packets_for_one_doorbell(lab: Loopback, queue: TxQueue) -> None:
    frames = [tcp(pattern(20, number)) for number in range(40)]
    tags = [queue.send(frame, kick=False) for frame in frames]
    assert sent(lab) == []
    queue.kick()
    assert sent(lab) == frames
    assert [value for kind, value in queue.poll() if kind == TxCompletionType.PACKET] == tags


def test_many_laps(lab: Loopback, queue: TxQueue) -> None:
    """Descriptor ring and completion ring go round many times, with stock report_event."""
    choice = random.Random(2)
    reports = 0
    for lap in range(40 * ENTRIES // 5):
        frame = tcp(pattern(choice.randrange(100), lap % 256))
        pieces = choice.randrange(1, 5)
        fragments = [50] * (pieces - 1) + [len(frame) - 50 * (pieces - 1)]
        if fragments[-1] <= 0:
            fragments = [len(frame)]
        queue.send(frame, fragments=fragments)
        assert sent(lab) == [frame]
        reports += sum(kind == TxCompletionType.DESCRIPTOR for kind, _ in queue.poll())
    assert not queue.pending
    assert reports > 40


def test_ring_fills_and_empties(lab: Loopback, queue: TxQueue) -> None:
    """Room comes back by descriptor completions only, tags by packet completions."""
    count = 0
    while True:
        try:
            queue.send(tcp(1), fragments=[20, 20, 15], kick=False)
        except QueueFull:
            break
        count += 1
    assert count == (ENTRIES - 1) // 4
    queue.kick()
    assert len(sent(lab)) == count
    before = queue.room
    queue.poll()
    assert queue.room > before
    assert not queue.pending


def test_two_queues(lab: Loopback, driver: Driver) -> None:
    """Completions carry their queue's number; the driver checks that they do."""
    driver.send(1, tcp(1))
    driver.send(0, tcp(2))
    assert sorted(sent(lab)) == sorted([tcp(1), tcp(2)])
    assert len(driver.poll_tx(0)) == len(driver.poll_tx(1)) == 1


@pytest.mark.parametrize("factor", [1, 4])
def test_completion_ring_of_another_size(lab: Loopback, driver: Driver, factor: int) -> None:
    """DPDK makes it four times as long as the descriptor ring."""
    queue = driver.make_tx(5, ENTRIES)
    entries = factor * ENTRIES
    long_ring = driver.ram.allocate_zeroed(8 * entries)
    create(driver, queue, completion_ring_address=long_ring, completion_ring_entries=entries)
    for _ in range(entries + 10):
        queue.put(packet_descriptor(driver, tcp(1), tag=3))
        queue.state.head = queue.state.tail  # nobody asks for reports here
        queue.kick()
        assert sent(lab) == [tcp(1)]
    ring = [TX_COMPLETION.decode(driver.ram.read(long_ring + 8 * number, 8)) for number in range(entries)]
    assert [completion["generation"] for completion in ring] == [0] * 10 + [1] * (entries - 10)
    assert {completion["queue_id"] for completion in ring} == {5}
    assert {completion["tag_or_head"] for completion in ring} == {3}


def create(driver: Driver, queue: TxQueue, **changes: int) -> None:
    """Create a transmit queue, some fields of the command changed."""
    driver.admin(Opcode.CREATE_TX_QUEUE, **decode_command(queue.create_command()) | changes)


def packet_descriptor(driver: Driver, frame: bytes, tag: int, **fields: int) -> bytes:
    """A packet in fresh memory that is never given back."""
    address = driver.ram.allocate(len(frame))
    driver.ram.write(address, frame)
    values = {"dtype": TxType.PACKET, "buffer_address": address, "buffer_size": len(frame), "end_of_packet": 1}
    return TX_PACKET.encode(**values | {"completion_tag": tag} | fields)


# Completions


def test_report_event(lab: Loopback, queue: TxQueue) -> None:
    """The head of a descriptor completion is the index behind the descriptor, masked."""
    for _ in range(ENTRIES):
        queue.send(tcp(1), report_event=True)
        sent(lab)
        kinds = dict(queue.poll())
        assert kinds[TxCompletionType.DESCRIPTOR] == queue.state.tail
        assert queue.room == ENTRIES - 1


def test_no_report_unless_asked(lab: Loopback, queue: TxQueue) -> None:
    for _ in range(20):
        queue.send(tcp(1), report_event=False)
    sent(lab)
    assert {kind for kind, _ in queue.poll()} == {TxCompletionType.PACKET}


def test_packet_in_two_doorbells(lab: Loopback, driver: Driver, queue: TxQueue) -> None:
    """A packet whose end is not there yet waits for it."""
    frame = tcp(100)
    tag = queue.take_tag()
    queue.put(TX_GENERAL_CONTEXT.encode(dtype=TxType.GENERAL_CONTEXT))
    queue.put(packet_descriptor(driver, frame[:60], tag, end_of_packet=0))
    queue.kick()
    assert sent(lab) == []
    assert queue.poll() == []
    queue.put(packet_descriptor(driver, frame[60:], tag))
    queue.kick()
    assert sent(lab) == [frame]
    assert queue.poll() == [(TxCompletionType.PACKET, tag)]


def test_blocked_wire(lab: Loopback, queue: TxQueue) -> None:
    """*Steps*: a wire that takes a few frames at a time. *Verify*: all arrive in order, none twice."""
    frames = [tcp(pattern(30, number)) for number in range(50)]
    lab.wire.room = 0
    for frame in frames:
        queue.send(frame)
    lab.run()
    assert lab.wire.take() == []
    for _ in range(10):
        lab.wire.unblock(room=3)
        lab.run()
    lab.wire.unblock()
    assert lab.wire.take() == frames
    queue.poll()
    assert not queue.pending


def test_destroy_with_a_blocked_wire(lab: Loopback, driver: Driver, queue: TxQueue) -> None:
    """What the driver took back by DESTROY is not read any more; what was read may still go out."""
    lab.wire.room = 0
    for number in range(20):
        queue.send(tcp(pattern(30, number)))
        lab.run()
    driver.close()
    lab.ram.bytes[:] = 0xEE
    lab.wire.unblock()
    assert all(b"\xee" * 8 not in frame for frame in lab.wire.take())
    lab.run()
    assert lab.wire.take() == []


# Checksums


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("build", [tcp, udp])
@pytest.mark.parametrize("field", [0, 0x1234, 0xFFFF])
def test_checksum(lab: Loopback, queue: TxQueue, v: int, build: Callable[..., bytes], field: int) -> None:
    """The device computes it from scratch, whatever stands in the field."""
    for length in (0, 1, 2, 99, 1400):
        frame = build(length, v=v)
        place = len(frame) - length - (4 if build is tcp else 2)
        queue.send(frame[:place] + field.to_bytes(2, "big") + frame[place + 2 :], checksum=True)
        assert sent(lab) == [frame]


def test_checksum_behind_options_and_tags(lab: Loopback, queue: TxQueue) -> None:
    for header in (
        OUT / Dot1Q(vlan=5) / IP() / TCP(),
        OUT / IP(options=[IPOption_NOP()] * 4) / UDP(),
        OUT / IPv6() / IPv6ExtHdrDestOpt() / TCP(options=[("Timestamp", (1, 2))]),
    ):
        frame = bytes(header / Raw(pattern(77)))
        broken = Ether(frame)
        broken[TCP if broken.haslayer(TCP) else UDP].chksum = 0x4321
        queue.send(bytes(broken), checksum=True)
        assert sent(lab) == [frame]


def test_udp_checksum_is_never_zero(lab: Loopback, queue: TxQueue) -> None:
    """A sum of zero is sent as 0xFFFF, since zero says "none"."""
    frame = udp(udp(bytes(2))[40:42])  # a packet whose payload is its complement sums up to that
    assert frame[40:42] == b"\xff\xff"
    queue.send(frame[:40] + bytes(2) + frame[42:], checksum=True)
    assert sent(lab) == [frame]


def test_no_checksum_unless_asked(lab: Loopback, queue: TxQueue) -> None:
    frame = tcp(100)
    frame = frame[:50] + b"\x12\x34" + frame[52:]
    queue.send(frame)
    assert sent(lab) == [frame]


@pytest.mark.parametrize("frame", [arp(), icmp(), tcp(100)[:50], bytes(OUT) + b"\xff" * 3], ids=len)
def test_checksum_of_something_else(lab: Loopback, queue: TxQueue, frame: bytes) -> None:
    """What is no whole TCP or UDP packet goes out as it is."""
    queue.send(frame, checksum=True)
    assert sent(lab) == [frame]


def test_checksum_left_to_the_wire(make_lab: Callable[..., Loopback]) -> None:
    """A tap takes a partial checksum: the field holds the pseudo-header's sum, and the record says where."""
    lab = make_lab(wire=TestWire(offloads=Offload.CSUM, headroom=12))
    lab.driver.probe()
    lab.driver.open(tx_queues=1, ring_entries=ENTRIES)
    lab.driver.send(0, tcp(100), checksum=True)
    lab.run()
    (frame,) = lab.wire.sent
    assert frame.record["flags"] == FrameFlag.NEEDS_CSUM
    assert (frame.record["csum_start"], frame.record["csum_offset"]) == (34, 16)
    total = sum(int.from_bytes(frame.data[place : place + 2], "big") for place in range(34, len(frame.data), 2))
    folded = (total & 0xFFFF) + (total >> 16)
    folded = (folded & 0xFFFF) + (folded >> 16)
    assert folded ^ 0xFFFF == int.from_bytes(tcp(100)[50:52], "big")
    assert frame.record["offset"] >= 12


# Segmentation


def expected_segments(packet: bytes, header_length: int, mss: int) -> list[bytes]:
    """What the wire must see, built by scapy."""
    header, payload = packet[:header_length], packet[header_length:]
    if header[12:14] == b"\x86\xdd":  # scapy parses nothing behind a payload length of 0
        header = header[:18] + (header_length - 54).to_bytes(2, "big") + header[20:]
    pieces = [payload[start : start + mss] for start in range(0, len(payload), mss)]
    segments = []
    for number, piece in enumerate(pieces):
        segment = Ether(header)
        l4 = segment.getlayer(TCP) or segment.getlayer(UDP)
        l4.remove_payload()
        del l4.chksum
        if segment.haslayer(IP):
            segment[IP].id = (segment[IP].id + number) & 0xFFFF
            del segment[IP].len, segment[IP].chksum
        else:
            del segment[IPv6].plen
        if segment.haslayer(TCP):
            l4.seq = (l4.seq + number * mss) & 0xFFFF_FFFF
            if number > 0:
                l4.flags &= ~0x80  # CWR
            if number < len(pieces) - 1:
                l4.flags &= ~0x09  # FIN, PSH
        else:
            del l4.len
        segments.append(bytes(segment / Raw(piece)))
    return segments


def big_packet(header: Packet, payload: int, l4: type = TCP) -> tuple[bytes, int]:
    """A packet for TSO, and the length of its header: lengths are the big packet's, checksum fields as Linux leaves
    them.
    """
    packet = header / Raw(pattern(payload))
    template = bytes(header)
    packet[l4].chksum = 0x1357
    if packet.haslayer(IP) and len(template) + payload - 14 > 65535:
        packet[IP].len = 0
    if packet.haslayer(IPv6) and len(template) + payload > 65535:
        packet[IPv6].plen = 0
    if l4 is UDP:
        packet[UDP].len = min(8 + payload, 65535)
    return bytes(packet), len(template)


TCP4 = OUT / IP(id=0xFFFE, flags="DF") / TCP(seq=0xFFFF_FF00, flags="FPA")
HEADERS = {
    "tcp4": (TCP4, TCP),
    "tcp6": (OUT / IPv6() / TCP(seq=7, flags="PA"), TCP),
    "tcp4-cwr": (OUT / IP(tos=1) / TCP(flags="CA"), TCP),
    "tcp4-options": (OUT / IP() / TCP(flags="A", options=[("Timestamp", (1, 2)), ("NOP", None)]), TCP),
    "tcp4-vlan": (OUT / Dot1Q(vlan=3) / IP() / TCP(flags="A"), TCP),
    "tcp6-options": (OUT / IPv6(tc=3, fl=99) / TCP(flags="A", options=[("Timestamp", (1, 2))]), TCP),
    "udp4": (OUT / IP(id=9) / UDP(), UDP),
    "udp6": (OUT / IPv6() / UDP(), UDP),
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize(("payload", "mss"), [(1, 1448), (1448, 1448), (1449, 1448), (10_000, 1000), (20_000, 8948)])
def test_segments(lab: Loopback, queue: TxQueue, name: str, payload: int, mss: int) -> None:
    """Every segment is, byte for byte, the packet that scapy builds."""
    header, l4 = HEADERS[name]
    packet, length = big_packet(header, payload, l4)
    tag = queue.send(packet, checksum=True, tso=(mss, length))
    assert sent(lab) == expected_segments(packet, length, mss)
    assert [value for kind, value in queue.poll() if kind == TxCompletionType.PACKET] == [tag]


@pytest.mark.parametrize(
    "fragments", [[54, 9946], [54, 4096, 4096, 1754], [10, 10, 30, 4, 9946], [1] * 60 + [9940], [100, 9900]]
)
def test_segments_of_fragments(lab: Loopback, queue: TxQueue, fragments: list[int]) -> None:
    """Header and segments may begin and end in any fragment."""
    packet, length = big_packet(TCP4, 10_000 - 54)
    assert sum(fragments) == len(packet)
    queue.send(packet, checksum=True, tso=(1448, length), fragments=fragments)
    assert sent(lab) == expected_segments(packet, length, 1448)


@pytest.mark.parametrize("name", ["tcp4", "tcp6"])
@pytest.mark.parametrize("payload", [65_536, 130_000, 262_143 - 74])
def test_big_tcp(lab: Loopback, queue: TxQueue, name: str, payload: int) -> None:
    """Packets of more than 64 KB, whose IP length field can say nothing."""
    header, l4 = HEADERS[name]
    packet, length = big_packet(header, payload, l4)
    queue.send(packet, checksum=True, tso=(1448, length))
    assert sent(lab) == expected_segments(packet, length, 1448)


def test_many_small_segments(lab: Loopback, queue: TxQueue) -> None:
    """The smallest segments that Linux asks for, of the largest packet that it sends."""
    packet, length = big_packet(HEADERS["tcp6"][0], 262_143 - 74)
    queue.send(packet, checksum=True, tso=(88, length))
    frames = sent(lab)
    assert len(frames) == -(-(262_143 - 74) // 88)
    assert b"".join(frame[length:] for frame in frames) == packet[length:]


def test_many_big_packets_for_one_doorbell(lab: Loopback, queue: TxQueue) -> None:
    """More than the device's own batch holds at once."""
    packet, length = big_packet(TCP4, 60_000)
    for _ in range(15):
        queue.send(packet, checksum=True, tso=(536, length), kick=False)
    queue.kick()
    assert sent(lab) == expected_segments(packet, length, 536) * 15
    queue.poll()
    assert not queue.pending


def test_blocked_in_the_middle_of_segments(lab: Loopback, queue: TxQueue) -> None:
    packet, length = big_packet(TCP4, 30_000)
    lab.wire.room = 7
    queue.send(packet, checksum=True, tso=(1000, length))
    queue.send(tcp(5))
    lab.run()
    assert len(lab.wire.sent) == 7
    lab.wire.unblock()
    assert lab.wire.take() == [*expected_segments(packet, length, 1000), tcp(5)]


@pytest.mark.parametrize("name", ["tcp4", "tcp6", "udp4"])
def test_left_to_the_wire(make_lab: Callable[..., Loopback], name: str) -> None:
    """A wire that segments gets the packet whole, with what it needs to know."""
    lab = make_lab(wire=TestWire(offloads=Offload.ALL))
    lab.driver.probe()
    lab.driver.open(tx_queues=1, ring_entries=ENTRIES)
    header, l4 = HEADERS[name]
    packet, length = big_packet(header, 20_000, l4)
    lab.driver.send(0, packet, checksum=True, tso=(1448, length))
    lab.run()
    (frame,) = lab.wire.sent
    expected = {"tcp4": Gso.TCPV4, "tcp6": Gso.TCPV6, "udp4": Gso.UDP_L4}[name]
    assert (frame.record["gso"], frame.record["segment"], frame.record["header"]) == (expected, 1448, length)
    assert frame.record["flags"] == FrameFlag.NEEDS_CSUM
    assert frame.data[length:] == packet[length:]


@pytest.mark.parametrize("offloads", [Offload.CSUM, Offload.CSUM | Offload.TSO6, Offload.TSO4])
def test_wire_without_tso4(make_lab: Callable[..., Loopback], offloads: Offload) -> None:
    """What the wire does not take is cut here; a wire that takes no partial checksum takes no TSO either."""
    lab = make_lab(wire=TestWire(offloads=offloads))
    lab.driver.probe()
    lab.driver.open(tx_queues=1, ring_entries=ENTRIES)
    packet, length = big_packet(TCP4, 5000)
    lab.driver.send(0, packet, checksum=True, tso=(1000, length))
    lab.run()
    assert [frame.record["gso"] for frame in lab.wire.sent] == [Gso.NONE] * 5
    for frame, expected in zip(lab.wire.sent, expected_segments(packet, length, 1000), strict=True):
        assert frame.data[:50] == expected[:50]
        assert frame.data[52:] == expected[52:]


def test_context_is_for_one_packet(lab: Loopback, queue: TxQueue) -> None:
    packet, length = big_packet(TCP4, 3000)
    queue.send(packet, checksum=True, tso=(1000, length), kick=False)
    queue.send(tcp(3000))
    assert sent(lab) == [*expected_segments(packet, length, 1000), tcp(3000)]


# What a driver must not do


def completes(lab: Loopback, queue: TxQueue, tag: int) -> None:
    """The packet is given back, and the queue goes on."""
    queue.kick()
    lab.run()
    assert (TxCompletionType.PACKET, tag) in queue.poll()
    lab.wire.take()
    after = queue.send(tcp(9))
    assert sent(lab) == [tcp(9)]
    assert (TxCompletionType.PACKET, after) in queue.poll()


@pytest.mark.parametrize("dtype", [0, 1, 0xB, 0xD, 0x1F])
def test_unknown_descriptor(lab: Loopback, driver: Driver, queue: TxQueue, dtype: int) -> None:
    tag = queue.take_tag()
    queue.put(TX_GENERAL_CONTEXT.encode(dtype=dtype))
    queue.put(packet_descriptor(driver, tcp(5), tag))
    completes(lab, queue, tag)


@pytest.mark.parametrize("address", [0, 0xDEAD_0000, 0xFFFF_FFFF_FFFF_FFF0])
def test_packet_in_unmapped_memory(lab: Loopback, driver: Driver, queue: TxQueue, address: int) -> None:
    tag = queue.take_tag()
    queue.put(packet_descriptor(driver, tcp(5), tag, buffer_address=address))
    completes(lab, queue, tag)
    assert drops(lab, Drop.DMA_FAULT) == 1
    assert lab.nic.state.device["faults"][0] >= 1


def test_second_fragment_unmapped(lab: Loopback, driver: Driver, queue: TxQueue) -> None:
    """Nothing of a packet goes out when one fragment of it cannot be read."""
    tag = queue.take_tag()
    queue.put(packet_descriptor(driver, tcp(100)[:60], tag, end_of_packet=0))
    queue.put(packet_descriptor(driver, tcp(100)[60:], tag, buffer_address=0xDEAD_0000))
    queue.kick()
    assert sent(lab) == []
    completes(lab, queue, tag)


def test_empty_buffer(lab: Loopback, driver: Driver, queue: TxQueue) -> None:
    """A size of 0 means nothing that a driver could want."""
    tag = queue.take_tag()
    queue.put(packet_descriptor(driver, tcp(5), tag, buffer_size=0))
    queue.kick()
    assert sent(lab) == []
    completes(lab, queue, tag)


@pytest.mark.parametrize(
    ("mss", "header_length", "total"),
    [(0, 54, 2000), (1000, 0, 2000), (1000, 20, 2000), (1000, 53, 2000), (1000, 255, 2000), (16383, 54, 0)],
)
def test_contradictory_tso(
    lab: Loopback, driver: Driver, queue: TxQueue, mss: int, header_length: int, total: int
) -> None:
    """A context that does not fit its packet: dropped with a completion, counted."""
    packet, _ = big_packet(TCP4, 2000)
    tag = queue.take_tag()
    context = {"dtype": TxType.TSO_CONTEXT, "tso": 1, "mss": mss, "header_length": header_length, "total_length": total}
    queue.put(TX_TSO_CONTEXT.encode(**context))
    queue.put(packet_descriptor(driver, packet, tag))
    queue.kick()
    assert sent(lab) == []
    assert drops(lab, Drop.BAD_DESCRIPTOR) == 1
    completes(lab, queue, tag)


def test_header_longer_than_packet(lab: Loopback, driver: Driver, queue: TxQueue) -> None:
    tag = queue.take_tag()
    context = {"dtype": TxType.TSO_CONTEXT, "tso": 1, "mss": 100, "header_length": 200, "total_length": 2000}
    queue.put(TX_TSO_CONTEXT.encode(**context))
    queue.put(packet_descriptor(driver, tcp(5), tag))
    queue.kick()
    assert sent(lab) == []
    completes(lab, queue, tag)


@pytest.mark.parametrize("total", [1000, 5000])
def test_tso_length_differs_from_the_buffers(lab: Loopback, driver: Driver, queue: TxQueue, total: int) -> None:
    """The smaller of the two counts."""
    packet, length = big_packet(TCP4, 2000)
    tag = queue.take_tag()
    context = {"dtype": TxType.TSO_CONTEXT, "tso": 1, "mss": 600, "header_length": length, "total_length": total}
    queue.put(TX_TSO_CONTEXT.encode(**context))
    queue.put(packet_descriptor(driver, packet, tag))
    queue.kick()
    assert sent(lab) == expected_segments(packet[: length + min(total, 2000)], length, 600)
    completes(lab, queue, tag)


def test_packet_of_too_many_descriptors(make_lab: Callable[..., Loopback]) -> None:
    """A packet as long as the ring is dropped whole, with its completion."""
    lab = make_lab()
    lab.driver.probe()
    lab.driver.open(rx_queues=1, tx_queues=1, ring_entries=1024, buffer_size=1024)
    queue = lab.driver.tx[0]
    tag = queue.take_tag()
    for _ in range(1000):
        queue.put(packet_descriptor(lab.driver, b"x" * 8, tag, end_of_packet=0))
    queue.put(packet_descriptor(lab.driver, b"x" * 8, tag, report_event=1))
    queue.kick()
    assert sent(lab) == []
    assert drops(lab, Drop.BAD_DESCRIPTOR) == 1
    completes(lab, queue, tag)


def test_packet_without_end(lab: Loopback, driver: Driver, queue: TxQueue) -> None:
    """A ring full of descriptors without an end is waited for, without a word; the queue can be destroyed."""
    tag = queue.take_tag()
    while queue.room:
        queue.put(packet_descriptor(driver, b"x" * 8, tag, end_of_packet=0))
    queue.kick()
    assert sent(lab) == []
    driver.send(1, tcp(3))
    assert sent(lab) == [tcp(3)]
    driver.close()


def test_too_long_packet(lab: Loopback, driver: Driver, queue: TxQueue) -> None:
    """Beyond what an Ethernet frame or TSO can be: dropped, completed."""
    tag = queue.take_tag()
    for number in range(20):
        queue.put(packet_descriptor(driver, b"x" * 16383, tag, end_of_packet=number == 19))
    queue.kick()
    assert sent(lab) == []
    completes(lab, queue, tag)


@pytest.mark.parametrize("value", [ENTRIES, 0xFFFF_FFFF])
def test_doorbell_outside_of_the_ring(lab: Loopback, driver: Driver, queue: TxQueue, value: int) -> None:
    driver.doorbells.ring(queue.doorbell_index, value)
    queue.send(tcp(3))
    assert sent(lab) == [tcp(3)]
    assert lab.nic.counters["doorbell_beyond_ring"] == 1


def test_ring_in_unmapped_memory(lab: Loopback, driver: Driver) -> None:
    """The queue does nothing, the device goes on."""
    queue = driver.make_tx(5, ENTRIES)
    create(driver, queue, ring_address=0xDEAD_0000)
    queue.put(packet_descriptor(driver, tcp(1), queue.take_tag()))
    queue.kick()
    assert sent(lab) == []
    assert lab.nic.state.device["faults"][0] >= 1
    driver.send(0, tcp(3))
    assert sent(lab) == [tcp(3)]


def test_completion_ring_in_unmapped_memory(lab: Loopback, driver: Driver) -> None:
    queue = driver.make_tx(5, ENTRIES)
    create(driver, queue, completion_ring_address=0xDEAD_0000)
    queue.send(tcp(1))
    assert sent(lab) == [tcp(1)]
    assert lab.nic.state.device["faults"][0] >= 1


def test_silence(lab: Loopback, driver: Driver) -> None:
    """Nothing is sent, received or written while nobody does anything."""
    lab.run()
    before = lab.ram.bytes.copy()
    lab.advance(10**9)
    lab.run()
    assert (lab.ram.bytes == before).all()
    assert lab.wire.take() == []
