"""The GQI formats, descriptor by descriptor: page lists, placement with sequence numbers, transmit and its counter.

There is no driver for them here but a few lines; the stock driver speaks them in the guest ring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from nicmodel.gvnic.commands import NO_PAGE_LIST, Opcode, QueueFormat, Status
from nicmodel.gvnic.descriptors import (
    GQI_RX_DESCRIPTOR,
    GQI_RX_PAD,
    GQI_RX_SLOT,
    GQI_TX_PACKET,
    GQI_TX_SEGMENT,
    GqiRxFlag,
    GqiTxType,
)
from nicmodel.gvnic.registers import Bar
from nicmodel.gvnic.state import Drop
from nicmodel.observe.trace import Event, Tracer
from nicmodel.testing.adminq import AdminError
from nicmodel.testing.loopback import Loopback
from nicmodel.testing.memory import PAGE

from .frames import icmp, tcp, udp

ENTRIES = 16
BUFFER = 2048
RX_LIST, TX_LIST = 5, 6
#: The driver in Python needs the first, to come as far as probe.
FORMATS = (QueueFormat.DQO_RDA, QueueFormat.GQI_RDA, QueueFormat.GQI_QPL)


@dataclass
class Gqi:
    """One queue each way in a GQI format; with page lists, buffers lie in registered pages in reverse order."""

    lab: Loopback
    qpl: bool

    def __post_init__(self) -> None:
        driver, ram = self.lab.driver, self.lab.driver.ram
        driver.probe()
        driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
        self.counters = ram.allocate_zeroed(PAGE)
        driver.admin(
            Opcode.CONFIGURE_DEVICE_RESOURCES,
            counter_array=self.counters,
            irq_doorbell_address=ram.allocate_zeroed(PAGE),
            num_counters=16,
            num_irq_doorbells=16,
            irq_doorbell_stride=64,
            queue_format=QueueFormat.GQI_QPL if self.qpl else QueueFormat.GQI_RDA,
        )
        self.rx_pages = [ram.allocate_zeroed(PAGE) for _ in range(ENTRIES // 2)][::-1]
        self.tx_pages = [ram.allocate_zeroed(PAGE) for _ in range(4)][::-1]
        if self.qpl:
            self.register(RX_LIST, self.rx_pages)
            self.register(TX_LIST, self.tx_pages)
        self.data_ring, self.descriptor_ring = ram.allocate_zeroed(PAGE), ram.allocate_zeroed(PAGE)
        self.tx_ring = ram.allocate_zeroed(PAGE)
        resources = ram.allocate_zeroed(PAGE)
        driver.admin(
            Opcode.CREATE_RX_QUEUE,
            notification_block=8,
            queue_resources_address=resources,
            completion_ring_address=self.descriptor_ring,
            buffer_ring_address=self.data_ring,
            page_list_id=RX_LIST if self.qpl else NO_PAGE_LIST,
            completion_ring_entries=ENTRIES,
            packet_buffer_size=BUFFER,
        )
        driver.admin(
            Opcode.CREATE_TX_QUEUE,
            queue_resources_address=resources + 64,
            ring_address=self.tx_ring,
            page_list_id=TX_LIST if self.qpl else NO_PAGE_LIST,
            ring_entries=ENTRIES,
        )
        self.rx_doorbell, self.tx_doorbell = (
            int.from_bytes(ram.read(resources + at, 4), "big") for at in (0, 64)
        )  # fmt: skip
        slots = np.zeros(ENTRIES, GQI_RX_SLOT)
        slots["address"] = [self.rx_address(slot) if not self.qpl else slot * BUFFER for slot in range(ENTRIES)]
        ram.write(self.data_ring, slots.tobytes())
        self.filled = self.taken = self.posted = 0
        self.fill(ENTRIES)

    def register(self, number: int, pages: list[int]) -> None:
        ram = self.lab.driver.ram
        place = ram.allocate_zeroed(PAGE)
        ram.write(place, np.array(pages, ">u8").tobytes())
        self.lab.driver.admin(
            Opcode.REGISTER_PAGE_LIST, page_list_id=number, num_pages=len(pages), list_address=place, page_size=PAGE
        )

    def rx_address(self, slot: int) -> int:
        return self.rx_pages[slot * BUFFER // PAGE] + slot * BUFFER % PAGE

    def ring(self, doorbell: int, count: int) -> None:
        self.lab.driver.client.region_write(Bar.DOORBELLS, 4 * doorbell, (count & 0xFFFFFFFF).to_bytes(4, "big"))
        self.lab.run()

    def fill(self, count: int) -> None:
        self.filled += count
        self.ring(self.rx_doorbell, self.filled)

    def receive(self) -> list[tuple[bytes, np.void]]:
        """The packets that have arrived, each with its first descriptor; sequence numbers have to go on."""
        packets: list[tuple[bytes, np.void]] = []
        ram, content, first = self.lab.driver.ram, b"", None
        while True:
            slot = self.taken % ENTRIES
            raw = ram.read(self.descriptor_ring + slot * GQI_RX_DESCRIPTOR.itemsize, GQI_RX_DESCRIPTOR.itemsize)
            descriptor = np.frombuffer(raw, GQI_RX_DESCRIPTOR)[0]
            flags = int(descriptor["flags_seq"])
            if flags & 7 != self.taken % 7 + 1:
                assert not content, "a packet's descriptors have to appear together"
                return packets
            pad = 0 if content else GQI_RX_PAD
            first = descriptor if first is None else first
            content += ram.read(self.rx_address(slot) + pad, int(descriptor["length"]) - pad)
            self.taken += 1
            if not flags & GqiRxFlag.CONTINUES:
                packets.append((content, first))
                content, first = b"", None

    def send(
        self, frame: bytes, *, pieces: int = 1, checksum: bool = False, tso: tuple[int, int] | None = None
    ) -> None:
        """Put a frame at the start of the transmit pages and its descriptors into the ring; `tso` is (MSS, header)."""
        ram = self.lab.driver.ram
        for at in range(0, len(frame), PAGE):
            ram.write(self.tx_pages[at // PAGE], frame[at : at + PAGE])
        cuts = [0, tso[1], len(frame)] if tso else [len(frame) * k // pieces for k in range(pieces + 1)]
        for number, (start, end) in enumerate(pairwise(cuts)):
            address = start if self.qpl else self.tx_pages[start // PAGE] + start % PAGE
            if number == 0:
                kind = GqiTxType.TSO if tso else GqiTxType.STANDARD
                flags = kind << 4 | (checksum or tso is not None)
                values = (flags, 8, 17, len(cuts) - 1, len(frame), end - start, address)
                descriptor = np.array(values, GQI_TX_PACKET)
            else:
                mss = tso[0] if tso else 0
                descriptor = np.array((GqiTxType.SEGMENT << 4, 7, 0, mss, end - start, address), GQI_TX_SEGMENT)
            ram.write(self.tx_ring + self.posted % ENTRIES * GQI_TX_PACKET.itemsize, descriptor.tobytes())
            self.posted += 1
        self.ring(self.tx_doorbell, self.posted)

    @property
    def done(self) -> int:
        """The counter of transmit descriptors that are done."""
        return int.from_bytes(self.lab.driver.ram.read(self.counters, 4), "big")


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


def test_transmit_and_its_counter(gqi: Gqi) -> None:
    for number in range(ENTRIES * 3):
        frame = tcp(100 + number)
        gqi.send(frame, pieces=1 + number % 3)
        assert gqi.lab.wire.take() == [frame]
        assert gqi.done == gqi.posted


def test_a_segment_crosses_pages_of_its_list(make_lab: Callable[..., Loopback]) -> None:
    """Offsets go on from page to page, addresses do not."""
    gqi = Gqi(make_lab(formats=FORMATS), True)
    frame = tcp(8000)
    gqi.send(frame)
    assert gqi.lab.wire.take() == [frame]


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
