"""Coalescing of TCP segments that arrive in one batch: one packet for each flow, its bytes where they belong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from nicmodel.gvnic.descriptors import RX_BUFFER
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxPacket, RxQueue
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import Drop
from nicmodel.packet.frames import Batch, FrameFlag, Gso
from nicmodel.packet.headers import L3, L4
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.testing.wire import make_batch

from .frames import ETHERNET, arp, ip, pattern, tcp, udp

MSS = 1448
#: Flows that are coalesced at the same time.
FLOWS = Profile().coalesce_flows
#: Sequence number of a flow's first byte: it wraps soon.
START = 2**32 - 2000


def opened(lab: Loopback, **options: Any) -> RxQueue:
    """A probed NIC with one queue each way, RSC on; the receive queue, with all its buffers visible."""
    lab.driver.probe()
    lab.driver.open(**({"rx_queues": 1, "tx_queues": 1, "ring_entries": 256, "rsc": True} | options))
    queue = lab.driver.rx[0]
    queue.ring(queue.config.entries - 1)
    lab.run()
    return queue


def flow(count: int, size: int = MSS, *, v: int = 4, port: int = 4000, last: int | None = None) -> list[bytes]:
    """Segments that follow one another, PSH on the last, which has `last` bytes."""
    sizes = [size] * (count - 1) + [size if last is None else last]
    data = pattern(sum(sizes), port)
    frames = []
    for number, length in enumerate(sizes):
        layer = ip(v)
        if v == 4:
            layer.id = 65530 + number & 0xFFFF
        flags = "PA" if number == count - 1 else "A"
        header = TCP(sport=port, dport=5000, seq=(START + number * size) % 2**32, ack=7, flags=flags)
        frames.append(bytes(ETHERNET / layer / header / Raw(data[number * size : number * size + length])))
    return frames


def receive(lab: Loopback, frames: Sequence[bytes]) -> list[RxPacket]:
    """One batch."""
    lab.receive(*frames)
    return lab.driver.poll_all()


def payload(packet: RxPacket | bytes) -> bytes:
    """What TCP carries, by IP's length."""
    return bytes(Ether(packet if isinstance(packet, bytes) else packet.frame)[TCP].payload.original)


def joined(frames: Sequence[RxPacket | bytes], port: int = 4000) -> bytes:
    """The bytes of a flow, in the order they came."""
    decoded = [frame if isinstance(frame, bytes) else frame.frame for frame in frames]
    return b"".join(payload(frame) for frame in decoded if TCP in Ether(frame) and Ether(frame)[TCP].sport == port)


def counter(lab: Loopback, name: str) -> int:
    return int(lab.nic.state.rx[name].sum())


@pytest.fixture
def hbm() -> Iterator[GuestMemory]:
    """Memory of another device, far from ordinary memory."""
    with GuestMemory("hbm", base=0x40_0000_0000, size=4 << 20) as memory:
        yield memory


# One flow


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("header_split", [False, True])
@pytest.mark.parametrize("buffer_size", [1024, 2048, 4096])
@pytest.mark.parametrize(("count", "last"), [(2, None), (7, 1), (20, 1000), (40, None)])
def test_one_packet(lab: Loopback, v: int, header_split: bool, buffer_size: int, count: int, last: int | None) -> None:
    """*Verify*: all of a batch's segments in one packet; headers, payload, completions; what the device counts."""
    opened(lab, header_split=header_split, buffer_size=buffer_size)
    frames = flow(count, v=v, last=last)
    (packet,) = receive(lab, frames)
    assert packet.rsc
    assert packet.rsc_segment_length == MSS
    assert packet.checksum_unnecessary
    assert (packet.l3, packet.l4) == (L3.IPV4 if v == 4 else L3.IPV6, L4.TCP)
    header = 14 + (20 if v == 4 else 40) + 20
    assert packet.frame[header:] == pattern((count - 1) * MSS + (last or MSS), 4000)
    assert len(packet.header) == (header if header_split else 0)
    assert [buffer.length for buffer in packet.buffers[:-1]] == [buffer_size] * (len(packet.buffers) - 1)

    whole = Ether(packet.frame)
    again = whole.copy()
    if v == 4:
        del again[IP].len, again[IP].chksum
    else:
        del again[IPv6].plen
    first = Ether(frames[0])
    assert bytes(again) == bytes(whole)
    assert (whole[TCP].seq, whole[TCP].ack, whole[TCP].flags) == (first[TCP].seq, 7, "PA")
    assert counter(lab, "frames") == counter(lab, "aggregated") == 1
    assert counter(lab, "coalesced") == count
    assert counter(lab, "bytes") == len(packet.frame)


def test_batches_stay_apart(lab: Loopback) -> None:
    """Nothing waits for the next batch."""
    opened(lab)
    frames = flow(6)
    assert [payload(packet) for packet in receive(lab, frames[:3])] == [joined(frames[:3])]
    assert [payload(packet) for packet in receive(lab, frames[3:4])] == [joined(frames[3:4])]
    assert [payload(packet) for packet in receive(lab, frames[4:])] == [joined(frames[4:])]


@pytest.mark.parametrize(("rsc", "coalesce"), [(False, True), (True, False)])
def test_switched_off(make_lab: Callable[..., Loopback], rsc: bool, coalesce: bool) -> None:
    """By the driver, for a queue, or by the device's profile."""
    lab = make_lab(coalesce=coalesce)
    opened(lab, rsc=rsc)
    frames = flow(5)
    packets = receive(lab, frames)
    assert [packet.frame for packet in packets] == frames
    assert not any(packet.rsc for packet in packets)
    assert counter(lab, "coalesced") == 0


@pytest.mark.parametrize("v", [4, 6])
def test_no_more_than_an_ip_packet(lab: Loopback, v: int) -> None:
    """64 KiB − 1 of IP is the most; what does not fit opens the next."""
    opened(lab, buffer_size=4096)
    header = 20 + (20 if v == 4 else 40)
    rest = 65535 - header - 16 * 4000
    exact = flow(17, 4000, v=v, last=rest)
    packets = receive(lab, [*exact[:-1], exact[-1]])
    assert [len(packet.frame) for packet in packets] == [14 + 65535]
    packets = receive(lab, flow(17, 4000, v=v, last=rest + 1))
    assert [len(packet.frame) - 14 - header for packet in packets] == [64000, rest + 1]
    assert [packet.rsc for packet in packets] == [True, False]


def test_no_more_than_there_are_buffers(lab: Loopback) -> None:
    """*Steps*: 20 buffers of 1024, 30 segments. *Verify*: a packet that fits them; the others come unmerged later."""
    queue = opened(lab, buffer_size=1024, header_split=True, ring_entries=64)
    queue.ring(20)
    lab.run()
    frames = flow(30)
    lab.wire.inject(*frames)
    packets = queue.poll(repost=False)
    assert [len(packet.payload) for packet in packets] == [14 * MSS]
    assert queue.visible == 0
    assert lab.nic.state.rx[0]["held"] == 16
    for _ in range(4):
        queue.post()
        lab.run()
        packets += queue.poll()
    assert joined(packets) == joined(frames)
    assert int(lab.nic.state.drops[0].sum()) == int(lab.nic.state.drops[0, Drop.HELD])


def test_buffers_taken_by_another_flow(lab: Loopback) -> None:
    """*Steps*: while a packet is in the making, others take its buffers. *Verify*: its frames wait, as they came."""
    queue = opened(lab, ring_entries=64)
    queue.ring(2)
    lab.run()
    frames = flow(3)[:2]
    lab.wire.inject(frames[0], udp(10), frames[1], udp(10))
    packets = queue.poll(repost=False)
    assert [packet.l4 for packet in packets] == [L4.UDP, L4.UDP]
    assert counter(lab, "held") == 2
    queue.post()
    lab.run()
    (packet,) = queue.poll()
    assert packet.rsc
    assert payload(packet) == joined(frames)


@pytest.mark.parametrize("header_split", [False, True])
@pytest.mark.parametrize("total", [255, 256, 257])
def test_tiny_packets(lab: Loopback, header_split: bool, total: int) -> None:
    """What the driver would copy (``rx_copybreak``) it gets as it came; it copies nothing when the header is apart."""
    opened(lab, header_split=header_split)
    frames = flow(2, 110, last=total - 54 - 110)
    packets = receive(lab, frames)
    if header_split or total > 256:
        assert [payload(packet) for packet in packets] == [joined(frames)]
    else:
        assert [packet.frame for packet in packets] == frames
        assert not any(packet.rsc for packet in packets)
        assert all(packet.checksum_unnecessary for packet in packets)


def test_padded_segment(lab: Loopback) -> None:
    """One byte that Ethernet has padded to 60 is one byte."""
    opened(lab)
    frames = flow(3, last=1)
    (packet,) = receive(lab, [*frames[:2], frames[2].ljust(60, b"\xee")])
    assert payload(packet) == joined(frames)


# What is not merged


def split_up(lab: Loopback, frames: Sequence[bytes]) -> list[int]:
    """Segments in each packet that a batch becomes; no byte may change its place."""
    packets = receive(lab, frames)
    assert joined(packets) == joined(frames)
    return [-(-len(payload(packet)) // MSS) for packet in packets]


def test_bad_checksum(lab: Loopback) -> None:
    """Such a frame is delivered alone, with its verdict, and what comes after it opens a new packet."""
    opened(lab)
    frames = flow(6)
    frames[2] = frames[2][:-1] + bytes([frames[2][-1] ^ 1])
    packets = receive(lab, frames)
    assert [packet.rsc for packet in packets] == [True, False, True]
    assert [packet.checksum_unnecessary for packet in packets] == [True, False, True]
    assert packets[1].frame == frames[2]
    assert counter(lab, "bad_checksum") == 1
    assert counter(lab, "coalesced") == 5


def test_reordering(lab: Loopback) -> None:
    opened(lab)
    frames = flow(6)
    assert split_up(lab, [frames[number] for number in (0, 1, 3, 2, 4)]) == [2, 1, 1, 1]
    assert split_up(lab, [frames[number] for number in (0, 1, 1, 2)]) == [2, 2]


@pytest.mark.parametrize(
    "other",
    [
        tcp(0, seq=START - 2**32 + 2 * MSS, ack=7, flags="A"),
        tcp(0, seq=START - 2**32 + 2 * MSS, ack=7, flags="R"),
        tcp(10, seq=99, ack=8, flags="UA"),
        bytes(ETHERNET / IP(src="192.0.2.2", dst="192.0.2.1", proto=6, flags="MF") / Raw(pattern(64))),
    ],
    ids=["ACK", "RST", "URG", "fragment"],
)
def test_no_frame_overtakes_its_flow(lab: Loopback, other: bytes) -> None:
    """A frame of the flow that cannot be merged arrives after those before it and before those after it."""
    opened(lab)
    frames = flow(5)
    packets = receive(lab, [*frames[:2], other, *frames[2:]])
    assert [len(packet.frame) for packet in packets] == [54 + 2 * MSS, len(other), 54 + 3 * MSS]
    assert packets[1].frame == other


def test_between_frames_that_came_aggregated(lab: Loopback) -> None:
    opened(lab)
    frames = flow(4)
    whole = bytes(ETHERNET / ip(4) / TCP(sport=4000, dport=5000, seq=77, flags="A") / Raw(pattern(5 * MSS, 9)))
    batch = Batch(1 << 16, 16)
    for frame in frames[:2]:
        batch.append(frame)
    batch.append(whole, gso=Gso.TCPV4, segment=MSS, header=54, flags=FrameFlag.NEEDS_CSUM)
    for frame in frames[2:]:
        batch.append(frame)
    lab.wire.inject_batch(batch)
    packets = lab.driver.poll(0)
    assert [payload(packet) for packet in packets] == [joined(frames[:2]), pattern(5 * MSS, 9), joined(frames[2:])]
    assert counter(lab, "aggregated") == 3
    assert counter(lab, "coalesced") == 4


# Several flows


@pytest.mark.parametrize("header_split", [False, True])
def test_interleaved_flows(lab: Loopback, header_split: bool) -> None:
    """Each becomes a packet of its own, whatever comes between its segments."""
    opened(lab, header_split=header_split)
    flows = [flow(4, v=4 + 2 * (number & 1), port=4000 + number) for number in range(10)]
    frames = [flows[number][step] for step in range(4) for number in range(10)]
    for place in (35, 20, 7):
        frames[place:place] = [udp(33), arp()]
    packets = receive(lab, frames)
    merged = [packet for packet in packets if packet.rsc]
    assert len(merged) == 10
    for number in range(10):
        assert joined(merged, 4000 + number) == joined(frames, 4000 + number)
    assert [packet.frame for packet in packets if not packet.rsc] == [udp(33), arp()] * 3


def test_more_flows_than_can_be_open(lab: Loopback) -> None:
    """The oldest is delivered then; no flow's bytes come in another order."""
    opened(lab, ring_entries=1024)
    flows = [flow(3, port=4000 + number) for number in range(FLOWS + 5)]
    frames = [one[step] for step in range(3) for one in flows]
    packets = receive(lab, frames)
    for number in range(len(flows)):
        assert joined(packets, 4000 + number) == joined(frames, 4000 + number)
    few = [one[step] for step in range(3) for one in flows[:FLOWS]]
    assert len(receive(lab, few)) == FLOWS


def test_number_of_flows(make_lab: Callable[..., Loopback]) -> None:
    lab = make_lab(coalesce_flows=FLOWS * 4)
    opened(lab, ring_entries=1024)
    flows = [flow(3, port=4000 + number) for number in range(FLOWS * 4)]
    assert len(receive(lab, [one[step] for step in range(3) for one in flows])) == FLOWS * 4


@pytest.mark.parametrize("split", [False, True])
def test_frames_wait_for_others(make_lab: Callable[..., Loopback], split: bool) -> None:
    """With a time to wait, segments that arrive one by one are merged; it runs from the first of them."""
    lab = make_lab(coalesce_usecs=100)
    opened(lab, header_split=split)
    frames = flow(3)
    for frame in frames:
        assert receive(lab, [frame]) == []
        lab.advance(30_000)
    lab.advance(9_999)
    assert lab.driver.poll_all() == []
    lab.advance(1)
    [packet] = lab.driver.poll_all()
    assert joined([packet]) == joined(frames)
    assert packet.rsc == 1
    assert receive(lab, [udp(33)]) == []
    lab.advance(100_000)
    assert [packet.frame for packet in lab.driver.poll_all()] == [udp(33)]


def test_frames_that_fill_what_waits(make_lab: Callable[..., Loopback]) -> None:
    """More than can wait (2 MiB): all is delivered, in order, none twice."""
    lab = make_lab(coalesce_usecs=1_000_000)
    opened(lab, ring_entries=1024)
    frames = [udp(8000 + number) for number in range(300)]
    packets = receive(lab, frames[:150]) + receive(lab, frames[150:])
    assert len(packets) == 150
    lab.advance(1_000_000_000)
    packets += lab.driver.poll_all()
    assert [packet.frame for packet in packets] == frames


def test_what_waits_when_the_nic_stops(make_lab: Callable[..., Loopback]) -> None:
    """Nothing is delivered later."""
    lab = make_lab(coalesce_usecs=100)
    opened(lab)
    assert receive(lab, flow(2)) == []
    lab.nic.stop()
    lab.advance(1_000_000)
    assert lab.driver.poll_all() == []


def test_queues(lab: Loopback) -> None:
    """Flows of several queues in one batch."""
    lab.driver.probe()
    lab.driver.open(rx_queues=4, ring_entries=256, rsc=True)
    flows = [flow(5, port=4000 + number) for number in range(8)]
    packets = receive(lab, [one[step] for step in range(5) for one in flows])
    assert len(packets) == 8
    assert len({packet.queue for packet in packets}) > 1
    for number, one in enumerate(flows):
        (packet,) = [packet for packet in packets if Ether(packet.frame)[TCP].sport == 4000 + number]
        assert payload(packet) == joined(one, 4000 + number)
        (alone,) = receive(lab, one[:1])
        assert (alone.queue, alone.hash) == (packet.queue, packet.hash)


@pytest.mark.parametrize("header_split", [False, True])
def test_random_batches(lab: Loopback, header_split: bool) -> None:
    """Many laps of the ring with lost, repeated and shortened segments: every flow's bytes in the order they came."""
    opened(lab, header_split=header_split, buffer_size=1024, ring_entries=128)
    choice = random.Random(3)
    sent: dict[int, bytes] = {}
    got: dict[int, bytes] = {}
    for _ in range(60):
        ports = [4000 + number for number in range(choice.randrange(1, 6))]
        waiting = [flow(choice.randrange(1, 6), choice.randrange(1, 1400), port=port) for port in ports]
        frames = []
        while any(waiting):
            one = choice.choice([one for one in waiting if one])
            frame = one.pop(0)
            frames += [frame] * choice.choices([1, 0, 2], [20, 1, 1])[0]
        packets = receive(lab, frames)
        for _ in range(3):
            lab.run()
            packets += lab.driver.poll_all()
        for port in ports:
            sent[port] = sent.get(port, b"") + joined(frames, port)
            got[port] = got.get(port, b"") + joined(packets, port)
    assert got == sent
    assert counter(lab, "coalesced") > 100


# Where bytes go


def test_payload_in_device_memory(lab: Loopback, hbm: GuestMemory) -> None:
    """*Verify*: merged payload goes to the other device's memory and nowhere else, headers to ordinary memory."""
    lab.driver.map(hbm)
    opened(lab, header_split=True, payload_memory=hbm)
    assert lab.nic.link is not None
    kind = lab.nic.link.dma.kinds.index("hbm")
    (packet,) = receive(lab, flow(30))
    assert packet.payload == pattern(30 * MSS, 4000)
    assert {buffer.memory for buffer in packet.buffers} == {"hbm"}
    assert pattern(MSS, 4000)[:200] not in lab.ram.bytes.tobytes()
    ledger = lab.nic.state.ledger[0]
    assert ledger[Purpose.PAYLOAD, kind] == ledger[Purpose.PAYLOAD].sum() == 30 * MSS
    assert ledger[Purpose.HEADER].sum() == 54


def test_fault(lab: Loopback) -> None:
    """A packet is placed whole or not at all, and each of its frames is counted."""
    queue = opened(lab, header_split=True, buffer_size=2048)
    queue.buffer_ring[2][RX_BUFFER.buffer_address.word] = 0x7000_0000_0000
    payloads = lab.ram.view(queue.payloads, 8 * 2048)
    payloads[:] = 0xA5
    assert receive(lab, flow(5)) == []
    assert (payloads == 0xA5).all()
    assert lab.nic.state.drops[0, Drop.DMA_FAULT] == 5
    assert counter(lab, "coalesced") == 0
    (packet,) = receive(lab, flow(5))
    assert payload(packet) == pattern(5 * MSS, 4000)


def test_outcomes(lab: Loopback) -> None:
    """For each frame of the batch: its queue, its packet's completions, and which frame comes next in that."""
    opened(lab, header_split=True, buffer_size=2048)
    frames = flow(3)
    lab.wire.inject(frames[0], udp(20), frames[1], frames[2], tcp(0, sport=1))
    outcomes = lab.nic.ingress.outcomes
    assert outcomes["verdict"][:5].tolist() == [Drop.NONE] * 5
    assert outcomes["queue"][:5].tolist() == [0] * 5
    assert outcomes["completion"][:5].tolist() == [1, 0, 1, 1, 4]
    assert outcomes["completions"][:5].tolist() == [3, 1, 3, 3, 1]
    assert outcomes["header"][:5].tolist() == [54, 42, 54, 54, 54]
    assert outcomes["next"][:5].tolist() == [2, -1, 3, -1, -1]
    assert len(np.unique(outcomes["hash"][[0, 2, 3]])) == 1


def test_the_batch_is_left_as_it_was(lab: Loopback) -> None:
    """A switch hands one batch to many NICs: what this one merges must not show in the bytes that the next one gets."""
    opened(lab)
    frames = flow(5)
    batch = make_batch(frames)
    lab.wire.inject_batch(batch)
    assert len(lab.driver.poll(0)) == 1
    assert list(batch) == frames


@pytest.mark.parametrize("flags", [FrameFlag.NEEDS_CSUM, FrameFlag.CSUM_VALID])
def test_vouched_frames(lab: Loopback, flags: FrameFlag) -> None:
    """Frames of a trusted wire are merged unverified; one that stays alone gets the checksum that it lacks."""
    opened(lab)
    frames = flow(4)
    blank = [frame[:50] + b"\x12\x34" + frame[52:] for frame in frames]
    batch = make_batch([*blank[:3], blank[0]], flags=flags, csum_start=34, csum_offset=16)
    lab.wire.inject_batch(batch)
    packets = lab.driver.poll(0)
    assert [payload(packet) for packet in packets] == [joined(frames[:3]), joined(frames[:1])]
    assert all(packet.checksum_unnecessary for packet in packets)
    if flags == FrameFlag.NEEDS_CSUM:
        assert packets[1].frame == frames[0]


def test_rule_counts_segments(lab: Loopback) -> None:
    """A flow rule's hits are frames, merged or not."""
    lab.driver.probe()
    lab.driver.open(rx_queues=2, ring_entries=256, rsc=True)
    lab.driver.add_flow_rule(TCPv4(dst_port=5000), 1, location=3)
    (packet,) = receive(lab, flow(6))
    assert packet.queue == 1
    assert lab.nic.state.rules[3]["hits"] == 6
