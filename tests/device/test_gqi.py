"""The GQI formats, descriptor by descriptor: page lists, placement with sequence numbers, transmit and its counter.

The stock driver speaks them in the guest ring.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from nicmodel.gvnic.commands import NO_PAGE_LIST, Opcode, QueueFormat, Status
from nicmodel.gvnic.descriptors import (
    GQI_RX_PAD,
    GQI_TX_PACKET,
    GqiRxFlag,
    GqiTxType,
)
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.gqi import BUFFER, RX_LIST, TX_LIST, GqiQueues
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.state import Drop
from nicmodel.observe.trace import Event, Tracer
from nicmodel.testing.guest_memory import PAGE

from .frames import icmp, tcp, udp

ENTRIES = 16
#: The driver in Python needs the first, to come as far as probe.
FORMATS = (QueueFormat.DQO_RDA, QueueFormat.GQI_RDA, QueueFormat.GQI_QPL)


class Gqi(GqiQueues):
    """Queues in a lab."""

    def __init__(self, lab: Loopback, qpl: bool) -> None:
        lab.driver.probe()
        super().__init__(lab.driver, qpl, ENTRIES)
        self.lab = lab


@pytest.fixture(params=["rda", "qpl"])
def gqi(request: pytest.FixtureRequest, make_lab: Callable[..., Loopback]) -> Gqi:
    return Gqi(
        make_lab(formats=(QueueFormat.DQO_RDA, QueueFormat.GQI_RDA, QueueFormat.GQI_QPL)), request.param == "qpl"
    )


def test_frames_of_every_size_over_many_laps(gqi: Gqi) -> None:
    for length in [20, 60, 500, 1400, 1990, 1991, 1992, 1993, 2046, 4000, 4040, 6000, 8800] * 6:
        frame = tcp(length)
        gqi.lab.receive(frame)
        [(content, descriptor)] = gqi.receive()
        assert content == frame
        flags = int(descriptor["flags_seq"])
        assert flags & GqiRxFlag.IPV4 and flags & GqiRxFlag.TCP and not flags & GqiRxFlag.ERROR
        gqi.fill(gqi.taken + ENTRIES - gqi.filled)


def test_where_an_injected_frame_went(gqi: Gqi) -> None:
    for length in (60, 3000, 6000) * 4:
        frame = tcp(length)
        d = gqi.lab.inject(frame)
        assert d.delivered and d.payload == frame and d.header == b""
        first = gqi.taken % ENTRIES
        slots = [(first + number) % ENTRIES for number in range(len(d.completions))]
        pads = [GQI_RX_PAD] + [0] * (len(slots) - 1)
        assert [place.address for place in d.payload_buffers] == [
            gqi.rx_address(slot) + pad for slot, pad in zip(slots, pads, strict=True)
        ]
        [(_, descriptor)] = gqi.receive()
        assert d.completions[0]["hash"] == d.hash == descriptor["hash"]
        gqi.fill(gqi.taken + ENTRIES - gqi.filled)


def test_the_checksum_covers_what_follows_the_ethernet_header(gqi: Gqi) -> None:
    for frame in (udp(101), tcp(64, v=6), icmp(33)):
        gqi.lab.receive(frame)
        [(_, descriptor)] = gqi.receive()
        words = np.frombuffer(frame[14:] + bytes(len(frame) % 2), ">u2").astype(np.uint64)
        total = int(words.sum())
        while total >> 16:
            total = (total >> 16) + (total & 0xFFFF)
        assert int(descriptor["checksum"]) % 0xFFFF == total % 0xFFFF


def test_without_buffers_frames_wait_and_then_drop(gqi: Gqi) -> None:
    gqi.lab.receive(*[tcp(number) for number in range(1, ENTRIES + 3)])
    assert [content for content, _ in gqi.receive()] == [tcp(number) for number in range(1, ENTRIES + 1)]
    gqi.fill(ENTRIES)
    assert [content for content, _ in gqi.receive()] == [tcp(ENTRIES + 1), tcp(ENTRIES + 2)]


def test_a_buffer_out_of_reach_comes_back_with_an_error(gqi: Gqi) -> None:
    ram = gqi.lab.driver.ram
    ram.write(gqi.data_ring, (1 << 40).to_bytes(8, "big"))
    gqi.lab.receive(tcp(10), tcp(11))
    assert gqi.lab.nic.state.drops[0, Drop.DMA_FAULT] == 1
    [(_, bad), (content, _)] = gqi.receive()
    assert int(bad["flags_seq"]) & GqiRxFlag.ERROR
    assert content == tcp(11)


def test_a_descriptor_of_more_than_its_buffer(gqi: Gqi) -> None:
    gqi.lab.faults.add("rx-too-long", count=1)
    gqi.lab.receive(tcp(10), tcp(11))
    lengths = [int(descriptor["length"]) for _, descriptor in gqi.receive()]
    assert lengths == [BUFFER + 1, len(tcp(11)) + GQI_RX_PAD]


def test_a_descriptor_with_an_error(gqi: Gqi) -> None:
    gqi.lab.faults.add("rx-error", count=1)
    gqi.lab.receive(tcp(10), tcp(11))
    errors = [int(descriptor["flags_seq"]) & GqiRxFlag.ERROR for _, descriptor in gqi.receive()]
    assert errors == [GqiRxFlag.ERROR, 0]


def test_a_packet_without_its_end(gqi: Gqi) -> None:
    gqi.lab.faults.add("rx-unfinished", count=1)
    gqi.lab.receive(tcp(10))
    with pytest.raises(AssertionError, match="have to appear together"):
        gqi.receive()


def test_transmit_and_its_counter(gqi: Gqi) -> None:
    for number in range(ENTRIES * 3):
        frame = tcp(100 + number)
        gqi.send(frame, pieces=1 + number % 3)
        assert gqi.lab.wire.take() == [frame]
        assert gqi.done == gqi.posted


def test_a_new_transmit_queue_has_nothing_done(gqi: Gqi) -> None:
    """The counter's place is the same for every queue of that number, and the driver looks before it sends."""
    gqi.send(tcp(1))
    assert gqi.done == 1
    driver = gqi.lab.driver
    driver.admin(Opcode.DESTROY_TX_QUEUE, queue_id=0)
    driver.admin(
        Opcode.CREATE_TX_QUEUE,
        notification_block=driver.tx_block(0),
        queue_resources_address=driver.ram.allocate_zeroed(PAGE),
        ring_address=gqi.tx_ring,
        page_list_id=TX_LIST if gqi.qpl else NO_PAGE_LIST,
        ring_entries=ENTRIES,
    )
    assert gqi.done == 0


def test_a_segment_crosses_pages_of_its_list(make_lab: Callable[..., Loopback]) -> None:
    """Offsets go on from page to page, addresses do not."""
    gqi = Gqi(make_lab(formats=FORMATS), True)
    frame = tcp(8000)
    gqi.send(frame)
    assert gqi.lab.wire.take() == [frame]


def test_late_and_missing_completions(gqi: Gqi) -> None:
    """A fault that keeps counts and descriptors back, for a ring's worth of packets each time."""
    lab = gqi.lab
    late = lab.faults.add("rx-late", delay=0.01)
    frames = [tcp(number) for number in range(ENTRIES)]
    for _ in range(3):
        lab.receive(*frames)
        assert gqi.receive() == []
        lab.advance(10_000_000)
        assert [content for content, _ in gqi.receive()] == frames
        gqi.fill(ENTRIES)
    lab.faults.remove(late)

    never = lab.faults.add("tx-never", count=1)
    gqi.send(tcp(1))
    assert gqi.done == 0
    gqi.send(tcp(2))
    assert gqi.done == gqi.posted
    assert never.hits == 1

    lab.faults.add("tx-late", delay=0.01, count=1)
    done = gqi.done
    gqi.send(tcp(3))
    assert gqi.done == done
    lab.advance(10_000_000)
    assert gqi.done == gqi.posted
    lab.faults.add("tx-late", delay=0.01, count=1)
    gqi.send(tcp(4))
    gqi.send(tcp(5))
    assert gqi.done == gqi.posted
    lab.advance(10_000_000)
    assert gqi.done == gqi.posted  # a late count takes nothing back


def test_checksum_offload(gqi: Gqi) -> None:
    packet = Ether(tcp(333))
    packet[TCP].chksum = 0x1234
    gqi.send(bytes(packet), checksum=True)
    assert gqi.lab.wire.take() == [tcp(333)]


def test_tso(gqi: Gqi) -> None:
    frame = tcp(4000 - 54)
    gqi.send(frame, tso=(1000, 54))
    segments = [Ether(segment) for segment in gqi.lab.wire.take()]
    assert b"".join(bytes(segment[TCP].payload) for segment in segments) == frame[54:]
    assert [len(segment[TCP].payload) for segment in segments] == [1000, 1000, 1000, 946]
    for segment in segments:
        stated = (segment[IP].chksum, segment[TCP].chksum)
        del segment[IP].chksum, segment[TCP].chksum
        fresh = Ether(bytes(segment))
        assert stated == (fresh[IP].chksum, fresh[TCP].chksum)
    assert gqi.done == gqi.posted


def test_a_packet_that_contradicts_itself_is_dropped_and_counted(gqi: Gqi) -> None:
    descriptor = np.array((GqiTxType.STANDARD << 4, 0, 0, 1, 100, 60, gqi.tx_pages[0]), GQI_TX_PACKET)
    gqi.lab.driver.ram.write(gqi.tx_ring, descriptor.tobytes())
    gqi.posted = 1
    gqi.ring(gqi.tx_doorbell, 1)
    assert gqi.lab.wire.take() == []
    assert gqi.done == 1
    assert gqi.lab.nic.state.drops[gqi.lab.nic.profile.queues, Drop.BAD_DESCRIPTOR] == 1
    gqi.send(tcp(5))
    assert gqi.lab.wire.take() == [tcp(5)]


def test_page_lists(make_lab: Callable[..., Loopback]) -> None:
    gqi = Gqi(make_lab(formats=FORMATS), True)
    driver = gqi.lab.driver

    def refused(opcode: Opcode, **fields: int) -> Status:
        with pytest.raises(AdminError) as error:
            driver.admin(opcode, **fields)
        return Status(error.value.status)

    place = driver.ram.allocate_zeroed(PAGE)
    new = {"page_list_id": 9, "num_pages": 1, "list_address": place, "page_size": PAGE}
    register = Opcode.REGISTER_PAGE_LIST
    assert refused(register, **new | {"page_list_id": RX_LIST}) == Status.ALREADY_EXISTS
    assert refused(register, **new | {"num_pages": 0}) == Status.INVALID_ARGUMENT
    assert refused(register, **new | {"num_pages": 1 << 20}) == Status.RESOURCE_EXHAUSTED
    assert refused(register, **new | {"page_size": 1000}) == Status.INVALID_ARGUMENT
    assert refused(register, **new | {"list_address": 1 << 40}) == Status.INVALID_ARGUMENT
    assert refused(Opcode.UNREGISTER_PAGE_LIST, page_list_id=9) == Status.NOT_FOUND
    assert refused(Opcode.UNREGISTER_PAGE_LIST, page_list_id=RX_LIST) == Status.FAILED_PRECONDITION
    driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=0)
    driver.admin(Opcode.UNREGISTER_PAGE_LIST, page_list_id=RX_LIST)
    assert refused(Opcode.CREATE_RX_QUEUE, page_list_id=RX_LIST, completion_ring_entries=16) == Status.INVALID_ARGUMENT
    driver.admin(register, **new)


def test_the_trace_shows_slots_descriptors_and_the_counter(gqi: Gqi) -> None:
    heard: list[Event] = []
    Tracer(gqi.lab.nic, gqi.lab.server).subscribe(heard.append, kinds=["rx", "tx", "doorbell"])
    for lap in range(ENTRIES):
        frame = tcp(BUFFER)
        gqi.lab.receive(frame)
        [(_, descriptor)] = gqi.receive()
        event = heard.pop()
        assert event["verdict"] == "delivered" and len(event["buffers"]) == len(event["completions"]) == 2
        first, last = event["completions"]
        assert first["index"] == event["buffers"][0]["index"] == 2 * lap % ENTRIES
        assert first["hash"] == int(descriptor["hash"]) and first["length"] == int(descriptor["length"])
        assert first["sequence"] == int(descriptor["flags_seq"]) & 7
        assert "continues" in first["flags"] and "tcp" in last["flags"] and "continues" not in last["flags"]
        address = gqi.rx_address(first["index"])
        assert event["buffers"][0]["address"] == (first["index"] * BUFFER if gqi.qpl else address)
        gqi.fill(2)
        assert heard.pop()["tail"] == gqi.filled
        gqi.send(frame, pieces=3)
        bell, event = heard
        assert bell["queue"] == "tx0" and bell["tail"] == gqi.posted
        assert [one["type"] for one in event["descriptors"]] == ["STANDARD", "SEGMENT", "SEGMENT"]
        assert sum(one["segment_length"] for one in event["descriptors"]) == len(frame)
        assert event["counter"] == gqi.done == gqi.posted
        heard.clear()
