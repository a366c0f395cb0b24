"""The API of packet-injection tests: what is said of each frame agrees with what the driver finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.nic import TestNic
from nicmodel.gvnic.testing.rx import RxPacket
from nicmodel.nic.state import Drop
from nicmodel.observe.delivery import Delivery
from nicmodel.packet.frames import FrameFlag, Gso
from nicmodel.testing import plugin
from nicmodel.testing.clock import VirtualClock

from .frames import pattern, toeplitz

driver = plugin.driver  # this folder's own belongs to `lab`


def segment(payload: bytes | int = 100, **fields: object) -> Packet:
    """A TCP segment; an integer asks for that many bytes of pattern."""
    data = pattern(payload) if isinstance(payload, int) else payload
    return Ether() / IP(src="192.0.2.2", dst="192.0.2.1") / TCP(**{"sport": 4000, "dport": 5201, **fields}) / data


def agrees(delivery: Delivery, packet: RxPacket) -> bool:
    """Whether the driver has found what the delivery says, in the same places."""
    return (
        (delivery.queue, delivery.hash) == (packet.queue, packet.hash)
        and delivery.completions == packet.completions
        and (delivery.header, delivery.payload) == (packet.header, packet.payload)
        and [tuple(place) for place in delivery.payload_buffers]
        == [(buffer.address, buffer.length, buffer.memory) for buffer in packet.buffers]
    )


def test_devmem_flow_is_split(nic: TestNic, driver: Driver) -> None:
    driver.open(rx_queues=4, header_split=True)
    location = driver.add_flow_rule(TCPv4(dst_port=5201), queue=3)
    d = nic.inject(Ether() / IP() / TCP(dport=5201) / (b"x" * 1000))
    assert d.queue == 3 and d.payload == b"x" * 1000
    assert bytes(d.header) == bytes(d.frame)[:54]
    assert d.delivered and d.split and d.dropped is None and not d.held and not d.coalesced
    assert d.rule == location and d.table_entry is None
    assert d.completions[0]["header_length"] == 54 and d.completions[0]["split_header"] == 1
    assert d.vector == driver.rx_block(3) and d.fired and d.waits_for is None
    assert driver.fired(d.vector) == 1
    [packet] = driver.poll(3)
    assert agrees(d, packet)
    assert str(d) == (
        f"1054 bytes: delivered; rx3 by rule {location}, hash {d.hash:#010x}; "
        f"header 54 + payload 1000 bytes in ram; vector {d.vector} fired"
    )


def test_by_hash(nic: TestNic, driver: Driver) -> None:
    driver.open(rx_queues=4)
    packet = segment()
    d = nic.inject(packet)
    assert d.hash == toeplitz(driver_key(nic), d.frame)
    assert d.rule is None and d.table_entry == d.hash % 128 and d.queue == d.table_entry % 4
    assert not d.split and d.header == b"" and d.header_buffers == () and d.payload == d.frame
    assert bytes(packet)[12:] == d.frame[12:]
    assert Ether(d.frame).dst == nic.mac


def driver_key(nic: TestNic) -> bytes:
    """The key that the driver has set."""
    return nic.device.rss.key


def test_payload_in_a_memory_of_its_own(nic: TestNic, driver: Driver) -> None:
    hbm = driver.add_memory("hbm", 16 << 20)
    driver.open(rx_queues=1, header_split=True, payload_memory=hbm)
    d = nic.inject(segment(6000))
    assert {place.memory for place in d.payload_buffers} == {"hbm"}
    assert sum(place.length for place in d.payload_buffers) == 6000
    assert all(place.address in hbm for place in d.payload_buffers)
    [header] = d.header_buffers
    assert header.memory == "ram" and header.length == 54
    assert driver.ram.read(header.address, header.length) == d.header
    place = d.payload_buffers[0]
    assert hbm.read(place.address, place.length) == pattern(6000)[: place.length]
    [packet] = driver.poll(0)
    assert agrees(d, packet)


def test_a_segment_without_payload_still_has_a_buffer(nic: TestNic, driver: Driver) -> None:
    driver.open(rx_queues=1, header_split=True)
    d = nic.inject(segment(b""))
    assert len(d.header) == 54 and d.payload == b""
    [place] = d.payload_buffers
    assert place.length == 0 and place.memory == "ram" and place.address in driver.ram


def test_every_kind_of_source(nic: TestNic, driver: Driver, tmp_path: Path) -> None:
    driver.open(rx_queues=1)
    packets = [segment(1), Ether() / IPv6() / UDP() / b"2", Ether(dst="ff:ff:ff:ff:ff:ff") / ARP()]
    frames = [bytes(frame) for frame in nic.build(packets)]
    assert nic.inject(frames[0]).frame == nic.inject(packets[0]).frame == frames[0]
    file = tmp_path / "frames.pcap"
    wrpcap(str(file), [Ether(frame) for frame in frames])
    several = Ether() / IP(src="192.0.2.2", dst=["192.0.2.1", "192.0.2.3"]) / UDP()
    for source, count in (
        (packets, 3), (frames, 3), (iter(packets), 3), (file, 3), (str(file), 3), (nic.build(packets), 3),
        ([file, frames[0], [packets[0], several]], 7), ([], 0), (list(several), 2),
    ):  # fmt: skip
        deliveries = nic.inject(source)
        assert len(deliveries) == deliveries.delivered == count
        if count == 3:
            assert [d.frame for d in deliveries] == frames
    with pytest.raises(ValueError, match="stands for 2 packets"):
        nic.inject(several)
    with pytest.raises(ValueError, match="frame 0 has 0 bytes"):
        nic.inject(b"")
    with pytest.raises(ValueError, match="frame 1 has 70000 bytes"):
        nic.inject([b"\0" * 60, b"\0" * 70_000])
    with pytest.raises(TypeError, match="7 is neither bytes"):
        nic.inject([7])
    with pytest.raises(FileNotFoundError):
        nic.inject("no-such.pcap")


def test_packets_given_stay_as_they_are(nic: TestNic, driver: Driver) -> None:
    packet = Ether() / IP() / UDP()
    nic.inject(packet)
    assert packet.fields == {}


@pytest.mark.nic(max_mtu=1500)
def test_named_drops(nic: TestNic, driver: Driver) -> None:
    driver.open(rx_queues=2)
    driver.set_bus_master(False)
    early = nic.inject(segment())
    assert early.dropped == "device_down" and early.queue is None and early.hash is None
    driver.set_bus_master()
    driver.set_rss(table=[7] * 128)
    runt, foreign, long, nowhere = nic.inject([b"\x02" * 13, b"\x02" * 60, segment(2000), segment()])
    assert (runt.dropped, foreign.dropped, long.dropped, nowhere.dropped) == (
        "runt", "not_ours", "over_mru", "no_queue",
    )  # fmt: skip
    assert nowhere.queue == 7 and nowhere.table_entry is not None and nowhere.completions == ()
    assert nowhere.vector is None and not nowhere.fired and nowhere.payload == b""
    assert runt.verdict is Drop.RUNT
    assert str(runt) == "13 bytes: runt"
    nic.set_link(False)
    assert nic.inject(segment()).dropped == "device_down"
    nic.set_link(True)
    assert nic.inject(segment()).dropped == "no_queue"


def test_held_for_buffers_and_dropped(nic: TestNic, driver: Driver) -> None:
    driver.open(rx_queues=1, ring_entries=256)
    room = driver.rx[0].visible
    deliveries = nic.inject([segment(sport=number) for number in range(room + 300)])
    assert deliveries.delivered == room
    assert all(d.held for d in deliveries[room : room + 256]) and not deliveries[room].delivered
    assert deliveries.dropped == {"no_buffers": 44} and deliveries[-1].dropped == "no_buffers"
    assert repr(deliveries) == f"<{room + 300} frames, {room} delivered, dropped: no_buffers 44>"
    driver.poll(0)
    nic.run()
    assert [p.frame for p in driver.poll(0)] == [d.frame for d in deliveries[room:] if d.held][: driver.rx[0].visible]


def test_a_buffer_outside_of_the_map_is_a_named_drop(nic: TestNic, driver: Driver) -> None:
    hbm = driver.add_memory("hbm")
    driver.open(rx_queues=1, payload_memory=hbm)
    driver.unmap(hbm)
    d = nic.inject(segment())
    assert d.dropped == "dma_fault" and d.queue == 0 and d.payload == b""
    assert [completion["rx_error"] for completion in d.completions] == [1]
    assert d.payload_buffers[0].memory == "unmapped"


def test_a_vector_waits(nic: TestNic, driver: Driver, clock: VirtualClock) -> None:
    """Masked after it has fired, until the driver enables it; then for the rest of its interval."""
    driver.open(rx_queues=1)
    first, second = nic.inject(segment()), nic.inject(segment())
    assert first.fired and first.waits_for is None
    assert not second.fired and second.waits_for == "enable"
    vector = second.vector
    assert vector is not None and driver.fired(vector) == 1
    driver.enable(vector)
    third = nic.inject(segment())
    assert not third.fired and third.waits_for == "interval"
    clock.advance(19_999)
    assert driver.fired(vector) == 0
    clock.advance(1)
    assert driver.fired(vector) == 1


def test_coalesced_segments_share_a_packet(nic: TestNic, driver: Driver) -> None:
    driver.open(rx_queues=1, header_split=True, rsc=True)
    parts = [segment(pattern(500, seed), seq=1000 + 500 * seed, flags="A") for seed in range(3)]
    other = segment(pattern(500, 9), sport=1, flags="A")
    one, two, alone, three = nic.inject([*parts[:2], other, parts[2]])
    assert [d.coalesced for d in (one, two, alone, three)] == [False, True, False, True]
    assert one.completions == two.completions == three.completions and one.completions[0]["rsc"] == 1
    assert one.payload == three.payload == b"".join(pattern(500, seed) for seed in range(3))
    assert alone.payload == pattern(500, 9)
    found = {packet.payload: packet for packet in driver.poll(0)}
    assert agrees(one, found[one.payload]) and agrees(alone, found[alone.payload])


def test_a_frame_that_the_device_cuts(nic: TestNic, driver: Driver) -> None:
    """What a wire brings whole and a queue without RSC gets in segments."""
    driver.open(rx_queues=1, header_split=True)
    d = nic.inject(segment(2500), flags=FrameFlag.NEEDS_CSUM, gso=Gso.TCPV4, segment=1000, header=54)
    assert len(d.completions) == 3 and len(d.header_buffers) == 3
    assert d.payload == pattern(2500) and len(d.header) == 3 * 54
    assert [packet.payload for packet in driver.poll(0)] == [
        pattern(2500)[start : start + 1000] for start in (0, 1000, 2000)
    ]


def test_ten_thousand_in_a_call(nic: TestNic, driver: Driver) -> None:
    driver.open(rx_queues=4, ring_entries=256, header_split=True)
    driver.add_flow_rule(TCPv4(dst_port=5201), queue=3, location=5)
    hundred = [segment(pattern(100, n), sport=n, dport=5201 if n % 2 else 80) for n in range(100)]
    frames = nic.build(nic.build(hundred)[:] * 100)
    deliveries = nic.inject(frames, consumer=driver)
    assert len(deliveries) == deliveries.delivered == 10_000 and not deliveries.dropped
    assert (deliveries.queues[1::2] == 3).all() and (deliveries.rules[1::2] == 5).all()
    assert (deliveries.rules[::2] == -1).all()
    assert (deliveries.hashes[:9900] == deliveries.hashes[100:]).all()
    for number in range(0, 10_000, 101):
        d = deliveries[number]
        assert d.header + d.payload == d.frame == frames[number] and len(d.payload) == 100
    assert driver.poll_all() == []
    assert sum(queue["frames"] for queue in nic.device.state.rx) == 10_000
    assert nic.inject(frames, consumer=driver).delivered == 10_000


def test_frames_of_several_buffers_and_a_consumer(nic: TestNic, driver: Driver) -> None:
    driver.open(rx_queues=2, ring_entries=256, buffer_size=2048)
    deliveries = nic.inject([segment(pattern(5000, n), sport=n) for n in range(400)], consumer=driver)
    assert deliveries.delivered == 400
    assert all(d.payload == d.frame and len(d.completions) == 3 for d in deliveries)


def test_without_queues_a_consumer_changes_nothing(nic: TestNic, driver: Driver) -> None:
    assert nic.inject([segment(), segment()], consumer=driver).dropped == {"no_queue": 2}


def test_an_index(nic: TestNic, driver: Driver) -> None:
    driver.open(rx_queues=1)
    deliveries = nic.inject([segment(pattern(number)) for number in range(1, 6)])
    assert [len(d.payload) for d in deliveries[3:]] == [58, 59]
    assert deliveries[-1].frame == deliveries[4].frame
    with pytest.raises(IndexError, match="delivery 5 of 5"):
        deliveries[5]


# What the driver sends.


def test_what_is_sent_comes_back(nic: TestNic, driver: Driver) -> None:
    driver.open(tx_queues=2)
    frame = bytes(segment(3500, chksum=0))
    driver.send(0, frame, tso=(1000, 54))
    driver.send(1, bytes(Ether() / IP() / UDP(dport=53, chksum=0) / Raw(b"query")), checksum=True)
    driver.send(1, bytes(Ether() / IP() / ICMP()))
    query = nic.expect(UDP)
    assert query.queue == 1 and query.checksum_filled and query.mss is None and query.gso is None
    assert query.packet[UDP].chksum != 0
    parts = nic.expect_all([IP(src="192.0.2.2") / TCP(dport=5201)] * 4)
    assert [part.segment for part in parts] == [0, 1, 2, 3] and {part.mss for part in parts} == {1000}
    assert b"".join(bytes(part.packet[TCP].payload) for part in parts) == pattern(3500)
    assert {part.queue for part in parts} == {0} and all(part.checksum_filled for part in parts)
    [ping] = nic.take()
    assert ICMP in ping.packet and not ping.checksum_filled
    assert nic.take() == [] and str(ping).startswith("tx1: Ether / IP / ICMP")


def test_expect_says_what_came(nic: TestNic, driver: Driver, clock: VirtualClock) -> None:
    driver.open(tx_queues=1)
    driver.send(0, bytes(segment(10)))
    before = clock.now
    with pytest.raises(AssertionError, match=r"0 of 1 frames were sent within 2 s(.|\n)*tx0: Ether / IP / TCP"):
        nic.expect(UDP, timeout=2)
    assert clock.now == before + 2_000_000_000
    with pytest.raises(AssertionError, match="1 of 2 frames"):
        nic.expect_all([TCP, TCP])


@pytest.mark.parametrize(
    ("match", "meant"),
    [
        (TCP, True),
        (UDP, False),
        (TCP(dport=5201), True),
        (TCP(dport=80), False),
        (IP(dst="192.0.2.1") / TCP(), True),
        (Ether() / IP(dst="192.0.2.7") / TCP(), False),
        (Dot1Q() / IP(), False),
        (lambda packet: packet[TCP].sport == 4000, True),
        (lambda packet: UDP in packet, False),
        (bytes(segment(10)), True),
        (b"other", False),
    ],
)
def test_what_a_match_means(nic: TestNic, driver: Driver, match: object, meant: bool) -> None:
    driver.open(tx_queues=1)
    driver.send(0, bytes(segment(10)))
    [sent] = nic.sent
    assert sent.matches(match) is meant


def test_expect_waits_in_virtual_time(nic: TestNic, driver: Driver, clock: VirtualClock) -> None:
    """A frame that is sent by a timer 300 ms from now is there at once."""
    driver.open(tx_queues=1)
    due = clock.now + 300_000_000

    def send() -> None:
        driver.send(0, bytes(segment(10)))

    nic.device.poller.call_at(due, send)
    nic.expect(TCP)
    assert clock.now == due


# Other clocks and wires.


def test_real_time() -> None:
    """The NIC in a thread of its own, as a guest needs it."""
    with TestNic() as nic, nic.connect() as driver:
        driver.probe()
        driver.open(rx_queues=2, tx_queues=1, header_split=True)
        deliveries = nic.inject([segment(sport=number) for number in range(2000)], consumer=driver)
        assert deliveries.delivered == 2000
        d = nic.inject(segment(700))
        assert agrees(d, driver.poll(d.queue)[0])
        driver.send(0, bytes(segment(2000)), tso=(1000, 54))
        assert [sent.segment for sent in nic.expect_all([TCP, TCP], timeout=60)] == [0, 1]
        with pytest.raises(AssertionError, match="nothing"):
            nic.expect(TCP, timeout=0.01)


def test_an_error_in_the_thread_reaches_the_caller() -> None:
    with TestNic() as nic, pytest.raises(ZeroDivisionError):
        nic.call(lambda: 1 // 0)


def test_link(link: tuple[plugin.Station, plugin.Station]) -> None:
    """What one driver sends, the other receives; a TSO packet passes whole."""
    left, right = link
    assert (left.nic.mac, right.nic.mac) == ("02:00:00:00:00:01", "02:00:00:00:00:02")
    left.driver.open(tx_queues=1)
    right.driver.open(rx_queues=1, header_split=True, rsc=True)
    frame = bytes(Ether(dst=right.nic.mac) / segment(pattern(4000), chksum=0)[IP])
    left.driver.send(0, frame, tso=(1000, 54))
    left.nic.run()
    [packet] = right.driver.poll(0)
    assert packet.payload == pattern(4000) and packet.rsc and packet.rsc_segment_length == 1000
    with pytest.raises(TypeError, match="link:a cannot be seen"):
        left.nic.take()


@pytest.mark.nic(queues=2, header_buffer_size=0)
def test_the_marker_says_what_the_nic_offers(nic: TestNic, driver: Driver) -> None:
    assert driver.max_rx_queues == 2 and driver.description is not None and driver.description.mac == nic.mac
    with pytest.raises(ValueError, match="no header split"):
        driver.open(header_split=True)


def test_timers_on_the_way_are_called_at_their_time(clock: VirtualClock) -> None:
    poller = clock.make_poller()
    start = clock.now
    seen: list[int] = []

    def note() -> None:
        seen.append(clock.now - start)

    def note_later() -> None:
        poller.call_at(start + 17, note)

    for due in (30, 10, 20):
        poller.call_at(start + due, note)
    poller.call_at(start + 15, note_later)
    clock.advance(25)
    assert seen == [10, 17, 20] and clock.now == start + 25 and clock.next_due == start + 30
    clock.forget(poller)
    poller.close()
