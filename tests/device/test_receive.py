"""Frames from the wire to the driver: placement, completions, buffers, checksums, what is dropped and why."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from nicmodel.gvnic.commands import Opcode
from nicmodel.gvnic.descriptors import RX_BUFFER
from nicmodel.gvnic.testing.adminq import decode_command
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxConfig, RxPacket, RxQueue
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import Drop
from nicmodel.packet.frames import FrameFlag, Gso
from nicmodel.packet.headers import L3, L4
from nicmodel.testing.guest_memory import PAGE, GuestMemory
from nicmodel.vfio_user.protocol import DmaFlag

from .conftest import ENTRIES
from .frames import ETHERNET, NIC_MAC, PEER_MAC, arp, icmp, pattern, tcp, udp

CANARY = 0xA5
#: Ethernet, IPv4 and TCP without options.
TCP4_HEADER = 14 + 20 + 20
MAX_FRAME = 8896 + 14


def opened(lab: Loopback, **options: int) -> RxQueue:
    """A probed NIC with one queue each way; the receive queue."""
    lab.driver.probe()
    lab.driver.open(**({"rx_queues": 1, "tx_queues": 1, "ring_entries": ENTRIES} | options))  # type: ignore[arg-type]
    return lab.driver.rx[0]


def receive(lab: Loopback, *frames: bytes) -> list[RxPacket]:
    lab.receive(*frames)
    return lab.driver.poll_all()


def drops(lab: Loopback, reason: Drop, queue: int = -1) -> int:
    """Frames dropped for a reason, on a queue or (-1) before one was chosen."""
    return int(lab.nic.state.drops[queue, reason])


@pytest.fixture
def hbm() -> Iterator[GuestMemory]:
    """Memory of another device, far from ordinary memory."""
    with GuestMemory("hbm", base=0x40_0000_0000, size=4 << 20) as memory:
        yield memory


# Placement


@pytest.mark.parametrize("buffer_size", [1024, 2048, 4096])
@pytest.mark.parametrize("header_split", [False, True])
@pytest.mark.parametrize(
    "payload", [0, 1, 2, 1023, 1024, 1025, 1460, 2047, 2048, 2049, 4096, 4097, 8192, MAX_FRAME - TCP4_HEADER]
)
def test_placement(lab: Loopback, buffer_size: int, header_split: bool, payload: int) -> None:
    """*Steps*: a frame of each size into buffers filled with a canary.

    *Verify*: header and payload bytes, one completion for each buffer, flags on the right ones, canaries around.
    """
    queue = opened(lab, buffer_size=buffer_size, header_split=header_split)
    payloads = lab.ram.view(queue.payloads, ENTRIES * buffer_size)
    headers = lab.ram.view(queue.headers, PAGE)
    payloads[:] = headers[:] = CANARY
    frame = tcp(payload)

    (packet,) = receive(lab, frame)

    assert packet.frame == frame
    assert packet.split == header_split
    assert len(packet.header) == (TCP4_HEADER if header_split else 0)
    data = len(frame) - len(packet.header)
    count = max(1, -(-data // buffer_size))
    assert len(packet.completions) == count
    assert [buffer.length for buffer in packet.buffers[:-1]] == [buffer_size] * (count - 1)
    for number, completion in enumerate(packet.completions):
        assert completion["end_of_packet"] == (number == count - 1)
        assert completion["split_header"] == (header_split and number == 0)
        assert completion["header_buffer_overflow"] == 0
        assert completion["buffer_queue_id"] == completion["status_error1"] == 0
    assert (packet.l3, packet.l4) == (L3.IPV4, L4.TCP)
    assert packet.checksum_unnecessary
    written = {
        int(place) for buffer in packet.buffers for place in range(buffer.address, buffer.address + buffer.length)
    }
    touched = np.flatnonzero(payloads != CANARY) + queue.payloads
    assert set(touched.tolist()) <= written
    assert (headers[len(packet.header) :] == CANARY).all()


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("options", [0, 12, 40])
def test_split_point(lab: Loopback, v: int, options: int) -> None:
    """TCP is cut exactly behind its options, UDP behind its header, with or without a VLAN tag."""
    opened(lab, header_split=True)
    padding = [("NOP", None)] * options
    ip_size = 20 if v == 4 else 40
    frame = tcp(100, v=v, options=padding)
    (packet,) = receive(lab, frame)
    assert len(packet.header) == 14 + ip_size + 20 + options
    assert packet.payload == pattern(100)
    (packet,) = receive(lab, udp(100, v=v))
    assert len(packet.header) == 14 + ip_size + 8
    assert packet.payload == pattern(100)
    tagged = bytes(Ether(src=PEER_MAC, dst=NIC_MAC) / Dot1Q(vlan=7) / Ether(frame).payload)
    (packet,) = receive(lab, tagged)
    assert packet.frame == tagged
    assert packet.payload == pattern(100)


@pytest.mark.parametrize(
    "frame", [arp(), icmp(10), icmp(86), icmp(87), icmp(1400), bytes(ETHERNET / Raw(pattern(300)))], ids=len
)
def test_split_of_other_frames(lab: Loopback, frame: bytes) -> None:
    """What is neither TCP nor UDP is wholly in the header buffer if it fits: readable on a devmem queue."""
    opened(lab, header_split=True)
    (packet,) = receive(lab, frame)
    assert packet.frame == frame
    assert packet.split
    assert len(packet.header) >= 14
    if len(frame) <= 128:
        assert packet.header == frame
        assert packet.completions[0]["packet_length"] == 0


def test_pure_ack(lab: Loopback) -> None:
    """Without payload a buffer is used all the same: a completion gives it back with length 0."""
    queue = opened(lab, header_split=True)
    before = queue.visible
    lab.receive(tcp(0))
    (packet,) = queue.poll(repost=False)
    assert packet.payload == b""
    assert packet.completions[0]["end_of_packet"]
    assert queue.visible == before - 1


def test_header_too_long(lab: Loopback) -> None:
    """Extension headers beyond the header buffer: not split, marked as overflow, all in the data buffers."""
    opened(lab, header_split=True)
    options = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(108))])
    frame = bytes(ETHERNET / IPv6(src="2001:db8::2", dst="2001:db8::1") / options / TCP() / Raw(pattern(50)))
    (packet,) = receive(lab, frame)
    assert packet.frame == frame
    assert not packet.split
    assert packet.completions[0]["header_buffer_overflow"]


@pytest.mark.parametrize("frame", [tcp(0), tcp(1), udp(3), arp(), icmp(2)], ids=len)
@pytest.mark.parametrize("header_split", [False, True])
def test_ethernet_padding(lab: Loopback, frame: bytes, header_split: bool) -> None:
    """What a real network pads to 60 bytes arrives as long as IP says, so that padding never becomes payload."""
    opened(lab, header_split=header_split)
    (packet,) = receive(lab, frame.ljust(60, b"\xee"))
    if frame == arp():
        assert packet.frame.startswith(frame)
    else:
        assert packet.frame == frame


#: A redundancy control trailer of PRP: sequence number, LAN and size, suffix.
TRAILER = bytes.fromhex("00010a0688fb")


@pytest.mark.parametrize("frame", [tcp(100), tcp(100, v=6), udp(1000), udp(9, v=6), icmp(100)], ids=len)
def test_trailer(lab: Loopback, frame: bytes) -> None:
    """What follows the IP packet of a frame that needs no padding arrives with it, and checksums do not cover it."""
    opened(lab)
    (packet,) = receive(lab, frame + TRAILER)
    assert packet.frame == frame + TRAILER
    assert packet.checksum_unnecessary


def test_trailer_behind_padding(lab: Loopback) -> None:
    """A short frame is padded before the trailer is put behind it: both stay, for the host finds its end there."""
    opened(lab)
    (packet,) = receive(lab, tcp(1).ljust(60, b"\0") + TRAILER)
    assert packet.frame == tcp(1).ljust(60, b"\0") + TRAILER


def test_trailer_and_header_split(lab: Loopback) -> None:
    """Where the header is split the rest of the frame has to be payload: the trailer does not arrive."""
    opened(lab, header_split=True)
    (packet,) = receive(lab, tcp(100) + TRAILER)
    assert packet.frame == tcp(100)


def test_trailer_fills_a_buffer_more(lab: Loopback) -> None:
    """The buffers that a frame needs are counted with its trailer."""
    opened(lab, buffer_size=2048)
    (packet,) = receive(lab, tcp(2048 - 54) + TRAILER)
    assert packet.frame == tcp(2048 - 54) + TRAILER
    assert [completion["packet_length"] for completion in packet.completions] == [2048, len(TRAILER)]


def test_frame_is_as_long_as_its_trailer(make_lab: Callable[..., Loopback]) -> None:
    """The largest frame is one with everything in it: a short packet with much behind it may be too long."""
    lab = make_lab(max_mtu=1500)
    opened(lab)
    assert receive(lab, tcp(10) + bytes(2000)) == []
    assert drops(lab, Drop.OVER_MRU) == 1


def test_payload_bypasses_ordinary_memory(lab: Loopback, hbm: GuestMemory) -> None:
    """*Steps*: data buffers in another device's memory. *Verify*: payload there, headers here; the ledger knows."""
    driver = lab.driver
    driver.map(hbm)
    driver.probe()
    driver.open(rx_queues=2, ring_entries=ENTRIES, header_split=True, payload_memory=hbm)
    driver.set_rss(table=[1] * 128)
    assert lab.nic.link is not None
    kind = lab.nic.link.dma.kinds.index("hbm")
    frames = [tcp(length) for length in (1, 1448, 8000)]
    packets = receive(lab, *frames)
    assert [packet.frame for packet in packets] == frames
    assert {buffer.memory for packet in packets for buffer in packet.buffers} == {"hbm"}
    assert pattern(1448) not in lab.ram.bytes.tobytes()
    ledger = lab.nic.state.ledger[1]
    assert ledger[Purpose.PAYLOAD, kind] == 1 + 1448 + 8000
    assert ledger[Purpose.PAYLOAD].sum() == ledger[Purpose.PAYLOAD, kind]
    assert ledger[Purpose.HEADER, 0] == 3 * TCP4_HEADER
    assert ledger[Purpose.HEADER].sum() == ledger[Purpose.HEADER, 0]


# Rings


@pytest.mark.parametrize("header_split", [False, True])
def test_many_laps(lab: Loopback, header_split: bool) -> None:
    """Both rings go round many times: order, generation, buffers and every byte stay right."""
    queue = opened(lab, header_split=header_split)
    choice = random.Random(1)
    used = 0
    while used < 20 * ENTRIES:
        frames = [tcp(pattern(choice.randrange(0, 8000), choice.randrange(256))) for _ in range(choice.randrange(1, 8))]
        packets = receive(lab, *frames)
        assert [packet.frame for packet in packets] == frames
        used += sum(len(packet.completions) for packet in packets)
    assert drops(lab, Drop.NO_BUFFERS, 0) == 0
    assert queue.errors == 0


def test_doorbell_zero(lab: Loopback) -> None:
    """After the wrap a doorbell of 0 is as good as any: the 32 buffers before it become visible."""
    queue = opened(lab, buffer_size=2048)
    assert queue.state.doorbell == 32
    for number in range(33):
        assert [packet.frame for packet in receive(lab, tcp(number))] == [tcp(number)]
        if queue.state.doorbell == 0:
            break
    assert queue.state.doorbell == 0
    lab.receive(*[tcp(number) for number in range(queue.visible)])
    assert len(queue.poll()) == 64 - number - 1


def test_only_visible_buffers_are_used(lab: Loopback) -> None:
    """Descriptors in the ring beyond the doorbell do not exist for the device."""
    queue = opened(lab)
    assert queue.visible == 32
    lab.receive(*[tcp(1)] * 40)
    assert len(queue.poll(repost=False)) == 32
    assert queue.visible == 0


def test_any_doorbell_value(lab: Loopback) -> None:
    """DPDK writes N − 1 at first and any value later."""
    queue = opened(lab)
    queue.ring(ENTRIES - 1)
    lab.receive(*[tcp(1)] * (ENTRIES - 1))
    assert len(queue.poll(repost=False)) == ENTRIES - 1


@pytest.mark.parametrize("value", [ENTRIES, 0xFFFF_FFFF])
def test_doorbell_outside_of_the_ring(lab: Loopback, value: int) -> None:
    """Such a doorbell is ignored and counted."""
    queue = opened(lab)
    lab.driver.doorbells.ring(queue.doorbell_index, value)
    lab.receive(*[tcp(1)] * 32)
    assert len(queue.poll()) == 32
    assert lab.nic.counters["doorbell_beyond_ring"] == 1


def test_backlog(lab: Loopback) -> None:
    """*Steps*: more frames than buffers, then buffers. *Verify*: the rest arrives then, in order."""
    queue = opened(lab)
    frames = [tcp(pattern(20, number)) for number in range(60)]
    lab.receive(*frames)
    first = queue.poll()
    lab.run()
    second = queue.poll()
    assert [packet.frame for packet in first + second] == frames
    assert drops(lab, Drop.NO_BUFFERS, 0) == 0


def test_starvation(lab: Loopback) -> None:
    """*Steps*: far more frames than the backlog takes. *Verify*: the oldest arrive in order, the others are counted."""
    queue = opened(lab)
    frames = [tcp(pattern(20, number % 256) + number.to_bytes(2, "big")) for number in range(1000)]
    lab.receive(*frames)
    packets = []
    while more := queue.poll():
        packets += more
        lab.run()
    assert 32 < len(packets) < len(frames)
    assert [packet.frame for packet in packets] == frames[: len(packets)]
    assert drops(lab, Drop.NO_BUFFERS, 0) == len(frames) - len(packets)
    assert [packet.frame for packet in receive(lab, tcp(7))] == [tcp(7)]


def test_backlog_does_not_keep_for_ever(lab: Loopback) -> None:
    """A frame that has waited for seconds is worth nothing any more."""
    queue = opened(lab)
    lab.receive(*[tcp(1)] * 40)
    assert len(queue.poll(repost=False)) == 32
    lab.advance(5 * 10**9)
    queue.post()
    lab.run()
    assert queue.poll() == []
    assert drops(lab, Drop.NO_BUFFERS, 0) == 8


def test_one_queue_starves_alone(lab: Loopback) -> None:
    lab.driver.probe()
    lab.driver.open(rx_queues=2, ring_entries=ENTRIES)
    lab.driver.set_rss(table=[1] * 128)
    lab.receive(*[tcp(1)] * 40)
    lab.receive(arp())  # has no hash, so it takes the first entry too
    lab.driver.set_rss(table=[0] * 128)
    assert [packet.frame for packet in receive(lab, tcp(2)) if packet.queue == 0] == [tcp(2)]


def test_frame_larger_than_the_ring(lab: Loopback) -> None:
    """A frame that no number of doorbells can make room for is dropped at once and blocks nobody."""
    opened(lab, buffer_size=256, ring_entries=32)
    lab.driver.rx[0].ring(31)
    lab.receive(tcp(8000))
    assert drops(lab, Drop.NO_BUFFERS, 0) == 1
    lab.wire.inject(tcp(1))
    assert len(lab.driver.poll(0)) == 1


# DMA that must not happen


def test_buffers_in_unmapped_memory(lab: Loopback, hbm: GuestMemory) -> None:
    """*Steps*: a queue whose data buffers are mapped nowhere. *Verify*: a counted fault, nothing written anywhere else,
    each buffer taken is given back, and other queues work.
    """
    driver = lab.driver
    driver.probe()
    driver.open(rx_queues=2, ring_entries=ENTRIES, header_split=True)
    driver.restart_rx(1, payload_memory=hbm)
    driver.set_rss(table=[1] * 128)
    lab.run()
    queue = driver.rx[1]
    before = queue.visible
    ram = lab.ram.bytes.copy()
    ring = slice(queue.completion_ring_address - lab.ram.base, queue.completion_ring_address - lab.ram.base + 64 * 32)

    lab.wire.inject(tcp(100))

    assert drops(lab, Drop.DMA_FAULT, 1) == 1
    assert lab.nic.state.device["faults"][0] == 1
    assert lab.nic.state.device["fault_address"][0] in hbm
    ram[ring] = lab.ram.bytes[ring]
    assert np.array_equal(ram, lab.ram.bytes)
    assert queue.poll(repost=False) == []
    assert queue.errors == before - queue.visible
    driver.set_rss(table=[0] * 128)
    assert [packet.frame for packet in receive(lab, tcp(100))] == [tcp(100)]


def test_second_buffer_unmapped(lab: Loopback) -> None:
    """A packet is placed whole or not at all."""
    queue = opened(lab, header_split=True, buffer_size=1024)
    descriptor = queue.buffer_ring[1]
    good = int(descriptor[RX_BUFFER.buffer_address.word])
    descriptor[RX_BUFFER.buffer_address.word] = 0x7000_0000_0000
    payloads = lab.ram.view(queue.payloads, ENTRIES * 1024)
    payloads[:] = CANARY
    lab.receive(tcp(2000))
    assert (payloads == CANARY).all()
    assert queue.poll() == []
    assert drops(lab, Drop.DMA_FAULT, 0) == 1
    assert good in lab.ram
    assert [packet.frame for packet in receive(lab, tcp(2000), tcp(9))] == [tcp(2000), tcp(9)]


@pytest.mark.parametrize("left", [0, 1, 99])
def test_buffer_across_the_end_of_memory(lab: Loopback, left: int) -> None:
    """A buffer that ends outside of guest memory takes no byte of a packet that does not fit the part inside."""
    queue = opened(lab)
    end = lab.ram.base + lab.ram.size
    queue.buffer_ring[0][RX_BUFFER.buffer_address.word] = end - left
    lab.ram.view(end - 128, 128)[:] = CANARY
    lab.receive(tcp(100 - TCP4_HEADER))
    assert (lab.ram.view(end - 128, 128) == CANARY).all()
    assert drops(lab, Drop.DMA_FAULT, 0) == 1


@pytest.mark.parametrize("address", [0, 0xFFFF_FFFF_FFFF_FF00, 0xFFFF_FFFF_FFFF_FFFF])
def test_impossible_buffer_address(lab: Loopback, address: int) -> None:
    queue = opened(lab)
    queue.buffer_ring[0][RX_BUFFER.buffer_address.word] = address
    lab.receive(tcp(1000))
    assert drops(lab, Drop.DMA_FAULT, 0) == 1
    assert queue.poll() == []
    assert len(receive(lab, tcp(1))) == 1


def test_read_only_buffers(lab: Loopback, hbm: GuestMemory) -> None:
    """Memory that the guest has mapped for reading is not written."""
    driver = lab.driver
    driver.client.dma_map(hbm.base, hbm.size, hbm.fd, 0, DmaFlag.READABLE)
    driver.probe()
    driver.open(rx_queues=1, ring_entries=ENTRIES, payload_memory=hbm)
    lab.receive(tcp(100))
    assert not hbm.bytes.any()
    assert drops(lab, Drop.DMA_FAULT, 0) == 1


def test_header_buffers_unmapped(lab: Loopback) -> None:
    """Neither part of a packet is written when one cannot be."""
    queue = opened(lab, header_split=True)
    queue.buffer_ring[0][RX_BUFFER.header_address.word] = 0x7000_0000_0000
    lab.ram.view(queue.payloads, 2048)[:] = CANARY
    lab.receive(tcp(100))
    assert (lab.ram.view(queue.payloads, 2048) == CANARY).all()
    assert drops(lab, Drop.DMA_FAULT, 0) == 1
    assert queue.poll() == []
    assert queue.errors == 1
    assert len(receive(lab, tcp(1))) == 1


@pytest.mark.parametrize("ring", ["buffer_ring_address", "completion_ring_address"])
@pytest.mark.parametrize("address", [0xDEAD_0000, 0xFFFF_FFFF_FFFF_F800])
def test_ring_in_unmapped_memory(lab: Loopback, ring: str, address: int) -> None:
    """The queue receives nothing, the fault is counted, other queues go on."""
    opened(lab)
    queue = lab.driver.make_rx(1, RxConfig(entries=ENTRIES))
    lab.driver.admin(Opcode.CREATE_RX_QUEUE, **decode_command(queue.create_command()) | {ring: address})
    queue.post()
    lab.driver.set_rss(table=[1] * 128)
    lab.receive(tcp(100))
    assert lab.nic.state.device["faults"][0] >= 1
    assert queue.poll() == []
    lab.driver.set_rss(table=[0] * 128)
    assert [packet.frame for packet in receive(lab, tcp(100))] == [tcp(100)]


def test_memory_unmapped_while_running(lab: Loopback, hbm: GuestMemory) -> None:
    """Once a DMA_UNMAP is answered the device does not touch that memory, whatever is posted."""
    driver = lab.driver
    driver.map(hbm)
    driver.probe()
    driver.open(rx_queues=1, ring_entries=ENTRIES, payload_memory=hbm)
    assert len(receive(lab, tcp(100))) == 1
    driver.unmap(hbm)
    hbm.bytes[:] = 0
    lab.receive(tcp(100))
    assert not hbm.bytes.any()
    driver.map(hbm)
    driver.poll(0)
    assert len(receive(lab, tcp(100))) == 1


def test_buffer_over_regions(lab: Loopback, hbm: GuestMemory) -> None:
    """Behind a vIOMMU each page is a mapping of its own, with scattered memory behind it: rings and buffers cross."""
    driver = lab.driver
    driver.unmap(driver.ram)
    for page in range(0, lab.ram.size, PAGE):
        driver.client.dma_map(lab.ram.base + page, PAGE, lab.ram.fd, page)
    opened(lab, header_split=True, ring_entries=1024, buffer_size=8192, tx_queues=1)
    frames = [tcp(8000) for _ in range(10)]
    assert [packet.frame for packet in receive(lab, *frames)] == frames
    driver.send(0, tcp(8000))
    lab.run()
    assert lab.wire.take() == [tcp(8000)]
    assert len(hbm.bytes) > 0


# Which frames are ours


def test_filter(make_lab: Callable[..., Loopback]) -> None:
    """Own address, broadcast and multicast are ours; others are counted, unless the NIC is promiscuous."""
    frame = tcp(10)
    ours = [frame, b"\xff" * 6 + frame[6:], bytes.fromhex("01005e000001") + frame[6:]]
    other = bytes.fromhex("020000000003") + frame[6:]
    lab = make_lab()
    opened(lab)
    assert [packet.frame for packet in receive(lab, *ours, other)] == ours
    assert drops(lab, Drop.NOT_OURS) == 1
    lab = make_lab(promiscuous=True)
    opened(lab)
    assert [packet.frame for packet in receive(lab, *ours, other)] == [*ours, other]


@pytest.mark.parametrize("length", [0, 1, 13])
def test_runt(lab: Loopback, length: int) -> None:
    opened(lab)
    assert receive(lab, tcp(1)[:length]) == []
    assert drops(lab, Drop.RUNT) == 1


def test_largest_frame(make_lab: Callable[..., Loopback]) -> None:
    """A frame of the maximum MTU passes, with two VLAN tags too; longer ones are counted."""
    lab = make_lab(max_mtu=1500)
    opened(lab)
    ethernet, packet = Ether(src=PEER_MAC, dst=NIC_MAC), Ether(tcp(1460)).payload
    for tags in (Dot1Q(vlan=7), Dot1AD(vlan=8) / Dot1Q(vlan=7), Dot1Q(vlan=8) / Dot1Q(vlan=7)):
        assert [one.frame for one in receive(lab, bytes(ethernet / tags / packet))] == [bytes(ethernet / tags / packet)]
    assert len(receive(lab, tcp(1460))) == 1
    assert receive(lab, tcp(1469), bytes(ethernet / Dot1AD() / Dot1Q() / Dot1Q() / packet)) == []
    assert drops(lab, Drop.OVER_MRU) == 2


def test_before_open(driver: Driver, lab: Loopback) -> None:
    lab.wire.inject(tcp(1))
    assert drops(lab, Drop.NO_QUEUE) + drops(lab, Drop.NO_QUEUE, 0) == 1
    assert driver.poll_all() == []


# What the completion says of a frame


def broken(frame: bytes, place: int) -> bytes:
    """The frame with one bit turned over."""
    return frame[:place] + bytes([frame[place] ^ 1]) + frame[place + 1 :]


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("build", [tcp, udp])
@pytest.mark.parametrize("length", [0, 1, 101, 1400])
def test_l4_checksum(lab: Loopback, v: int, build: Callable[..., bytes], length: int) -> None:
    """Right ones are vouched for; wrong ones are delivered with a verdict."""
    opened(lab, header_split=True)
    frame = build(length, v=v)
    good, bad = receive(lab, frame, broken(frame, len(frame) - 1))
    assert good.checksum_unnecessary
    assert good.l4 == (L4.TCP if build is tcp else L4.UDP)
    assert not bad.checksum_unnecessary
    assert bad.completions[-1]["l4_checksum_error"]
    assert bad.frame == broken(frame, len(frame) - 1)


def test_ip_checksum(lab: Loopback) -> None:
    opened(lab)
    (packet,) = receive(lab, broken(tcp(10), 14 + 8))  # time to live
    assert packet.completions[-1]["ip_checksum_error"]
    assert not packet.completions[-1]["l4_checksum_error"]
    assert not packet.checksum_unnecessary


@pytest.mark.parametrize("ip", [IP(src="192.0.2.2", dst="192.0.2.1"), IPv6(src="fd00::2", dst="fd00::1")], ids=str)
def test_udp_without_checksum(lab: Loopback, ip: Packet) -> None:
    """It is no error, over IPv6 either: tunnels do without (RFC 6935)."""
    opened(lab)
    (packet,) = receive(lab, bytes(ETHERNET / ip / UDP(chksum=0) / Raw(b"x" * 30)))
    assert packet.checksum_unnecessary
    assert not packet.completions[-1]["l4_checksum_error"]
    assert lab.nic.state.rx["bad_checksum"].sum() == 0


def test_partial_checksum(lab: Loopback) -> None:
    """A frame whose checksum is still to be computed is complete when the driver gets it."""
    opened(lab)
    frame = tcp(100)
    lab.run()
    lab.wire.inject(frame[:50] + b"\x12\x34" + frame[52:], flags=FrameFlag.NEEDS_CSUM, csum_start=34, csum_offset=16)
    (packet,) = lab.driver.poll(0)
    assert packet.frame == frame
    assert packet.checksum_unnecessary


def test_vouched_checksum(lab: Loopback) -> None:
    """What a trusted wire has verified is not verified again."""
    opened(lab)
    lab.run()
    lab.wire.inject(broken(tcp(100), 100), flags=FrameFlag.CSUM_VALID)
    (packet,) = lab.driver.poll(0)
    assert packet.checksum_unnecessary


def test_fragments(lab: Loopback) -> None:
    """No claim about L4, for the first fragment as for the others."""
    opened(lab, header_split=True)
    first = bytes(ETHERNET / IP(src="192.0.2.2", dst="192.0.2.1", flags="MF") / TCP() / Raw(pattern(100)))
    later = bytes(ETHERNET / IP(src="192.0.2.2", dst="192.0.2.1", frag=10, proto=6) / Raw(pattern(300)))
    header = IPv6ExtHdrFragment(m=1)
    sixth = bytes(ETHERNET / IPv6(src="2001:db8::2", dst="2001:db8::1") / header / UDP() / Raw(pattern(100)))
    packets = receive(lab, first, later, sixth)
    assert [packet.frame for packet in packets] == [first, later, sixth]
    assert [(packet.l3, packet.l4) for packet in packets] == [
        (L3.IPV4, L4.UNKNOWN), (L3.IPV4, L4.UNKNOWN), (L3.IPV6, L4.UNKNOWN),
    ]  # fmt: skip
    assert not any(packet.checksum_unnecessary for packet in packets)


def test_packet_types(lab: Loopback) -> None:
    opened(lab)
    expected = {
        arp(): (L3.OTHER, L4.UNKNOWN),
        icmp(): (L3.IPV4, L4.ICMP),
        tcp(): (L3.IPV4, L4.TCP),
        tcp(v=6): (L3.IPV6, L4.TCP),
        udp(): (L3.IPV4, L4.UDP),
        udp(v=6): (L3.IPV6, L4.UDP),
        bytes(ETHERNET / IP(proto=47) / Raw(b"x" * 20)): (L3.IPV4, L4.OTHER),
        bytes(ETHERNET / IPv6(nh=89) / Raw(b"x" * 20)): (L3.IPV6, L4.OTHER),
    }
    packets = receive(lab, *expected)
    assert {packet.frame: (packet.l3, packet.l4) for packet in packets} == expected


def test_destination_options(lab: Loopback) -> None:
    """Linux does not trust checksums behind destination options or routing headers, and must be told of them."""
    opened(lab)
    header = IPv6ExtHdrDestOpt()
    frame = bytes(ETHERNET / IPv6(src="2001:db8::2", dst="2001:db8::1") / header / TCP() / Raw(b"x" * 50))
    (packet,) = receive(lab, frame)
    assert packet.completions[-1]["ipv6_ex_add"]
    assert not packet.checksum_unnecessary
    assert packet.l4 == L4.TCP


def test_timestamp(lab: Loopback) -> None:
    """Low 32 bits of the clock that REPORT_NIC_TIMESTAMP reads, at any distance from a wrap."""
    opened(lab)
    for _ in range(20):
        synchronised = lab.driver.nic_timestamp()
        assert synchronised == lab.now
        lab.advance(250_000_000)
        (packet,) = receive(lab, tcp(1))
        assert packet.timestamp is not None
        assert lab.driver.expand_timestamp(packet.timestamp) == lab.now


def test_without_timestamps(make_lab: Callable[..., Loopback]) -> None:
    lab = make_lab(timestamps=False)
    opened(lab)
    (packet,) = receive(lab, tcp(1))
    assert packet.timestamp is None


# Aggregated frames


def super_frame(v: int, segments: int, mss: int, kind: type = TCP) -> bytes:
    """What TSO of a peer hands over: one frame, checksum field not to be trusted."""
    payload = Raw(pattern(segments * mss - 7))
    layer = IP(src="192.0.2.2", dst="192.0.2.1", id=5) if v == 4 else IPv6(src="2001:db8::2", dst="2001:db8::1")
    l4 = TCP(sport=4000, dport=5000, seq=1000, flags="PA") if kind is TCP else UDP(sport=4000, dport=5000)
    return bytes(ETHERNET / layer / l4 / payload)


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("header_split", [False, True])
def test_rsc(lab: Loopback, v: int, header_split: bool) -> None:
    """A queue with RSC gets a peer's TSO packet whole, with the length of its segments."""
    opened(lab, header_split=header_split, rsc=True, ring_entries=128)
    frame = super_frame(v, 20, 1448)
    header = 14 + (20 if v == 4 else 40) + 20
    lab.run()
    gso = Gso.TCPV4 if v == 4 else Gso.TCPV6
    flags = FrameFlag.NEEDS_CSUM
    lab.wire.inject(frame, gso=gso, segment=1448, header=header, flags=flags, csum_start=header - 20, csum_offset=16)
    (packet,) = lab.driver.poll(0)
    assert packet.rsc
    assert packet.rsc_segment_length == 1448
    assert packet.checksum_unnecessary
    assert (packet.l3, packet.l4) == (L3.IPV4 if v == 4 else L3.IPV6, L4.TCP)
    assert packet.frame[header:] == frame[header:]
    assert packet.frame[: header - 4] == frame[: header - 4]
    assert len(packet.header) == (header if header_split else 0)


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("kind", [TCP, UDP])
def test_segmented_for_a_queue_without_rsc(lab: Loopback, v: int, kind: type) -> None:
    """Without RSC the queue gets the segments, each a packet that scapy would have built."""
    opened(lab, header_split=True, ring_entries=128)
    frame = super_frame(v, 9, 1000, kind)
    header = 14 + (20 if v == 4 else 40) + (20 if kind is TCP else 8)
    gso = {(4, TCP): Gso.TCPV4, (6, TCP): Gso.TCPV6}.get((v, kind), Gso.UDP_L4)
    lab.run()
    lab.wire.inject(frame, gso=gso, segment=1000, header=header, flags=FrameFlag.NEEDS_CSUM)
    packets = lab.driver.poll(0)
    assert len(packets) == 9
    assert b"".join(packet.payload for packet in packets) == frame[header:]
    for number, packet in enumerate(packets):
        assert not packet.rsc
        assert packet.checksum_unnecessary
        segment = Ether(packet.frame)
        rebuilt = segment.copy()
        if v == 4:
            assert segment[IP].id == 5 + number
            del rebuilt[IP].len, rebuilt[IP].chksum
        else:
            del rebuilt[IPv6].plen
        if kind is TCP:
            assert segment[TCP].seq == 1000 + 1000 * number
            assert segment[TCP].flags == ("PA" if number == 8 else "A")
        else:
            del rebuilt[UDP].len
        del rebuilt[kind].chksum
        assert bytes(rebuilt) == packet.frame


def test_bad_aggregated_frame(lab: Loopback) -> None:
    """An aggregated frame without a segment length, or that is no TCP or UDP, is counted and gone."""
    opened(lab)
    lab.run()
    lab.wire.inject(super_frame(4, 3, 1000), gso=Gso.TCPV4, segment=0, header=54)
    lab.wire.inject(icmp(3000), gso=Gso.TCPV4, segment=1000, header=42)
    assert drops(lab, Drop.BAD_GSO) == 2
    assert lab.driver.poll(0) == []
