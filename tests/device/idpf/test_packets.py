"""Packets both ways on the queues of the split model, and the interrupts for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from nicmodel.idpf import registers as r
from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.descriptors import TxCompletionType
from nicmodel.idpf.testing.driver import POLL, TRIGGER, Driver
from nicmodel.idpf.testing.mailbox import Refused, one
from nicmodel.idpf.testing.nic import TestNic
from nicmodel.idpf.testing.tx import TxCompletion
from nicmodel.idpf.virtchnl import Flow, Op, Promiscuous, Protocol, QueueType, RuleStatus, Scheduling
from nicmodel.nic.state import Drop
from nicmodel.nic.steering import DEFAULT_KEY
from nicmodel.packet.frames import Gso

from ..frames import NIC_MAC, PEER_MAC, arp, icmp, pattern, tcp, toeplitz, udp

pytestmark = [pytest.mark.nic(device="idpf"), pytest.mark.contract]

#: Here the driver is wrong on purpose.
misbehaves = pytest.mark.contract(strict=False)

#: A ring whose length is no power of two, as ethtool -G may ask for.
ENTRIES = 96 * 2
GROUP = b"\x01\0\x5e\0\0\1"


def test_frames_arrive_as_they_were(driver: Driver, nic: TestNic) -> None:
    """Of all lengths around the borders of buffers, on rings that are gone round several times."""
    driver.open(queues=1, ring_entries=ENTRIES, header_split=False)
    for length in (60, 64, 500, 1023, 1024, 1025, 1514, 2048, 2049, 4096, 4097, 8914) * 5:
        frame = udp(length - 42)
        delivery = nic.inject(frame)
        assert delivery.delivered and delivery.payload == frame
        (packet,) = driver.poll(0)
        assert packet.frame == frame
        rings = {completion["buffer_queue"] for completion in packet.completions}
        assert rings == ({1} if length <= 1024 else {0}), length
        assert packet.checksums_good


def test_the_longest_rings(driver: Driver, nic: TestNic) -> None:
    """Those that ``ethtool -G`` gets at most, gone round once each way."""
    rx_entries, tx_entries, batch = 8128, 8160, 2000
    driver.open(queues=1, ring_entries=(rx_entries, tx_entries), large=1024, small=128, header_split=False)
    frame = udp(20)
    for start in range(0, rx_entries + batch, batch):
        frames = [frame[:-4] + (start + number).to_bytes(4, "big") for number in range(batch)]
        assert nic.inject(frames).delivered == batch
        assert [packet.frame for packet in driver.poll(0)] == frames
    for _ in range(0, tx_entries + batch, batch):
        for number in range(batch):
            driver.send(0, frame, kick=number == batch - 1)
        nic.run()
        kinds = [completion.type for completion in driver.poll_tx(0)]
        assert kinds.count(TxCompletionType.PACKET) == batch
    assert len(nic.take()) == nic.device.state.tx["packets"][0] > tx_entries


def test_receive_rings_that_cannot_be(driver: Driver) -> None:
    """Half of 8160 entries is no multiple of 32; Linux goes down to 8128."""
    with pytest.raises(ValueError, match="a multiple of 64 entries, not 8160"):
        driver.open(queues=1, ring_entries=8160)
    driver.open(queues=1)


def test_header_split(driver: Driver, nic: TestNic) -> None:
    """*Verify*: the payload alone decides which buffers are used; what has no payload is all in the header buffer."""
    driver.open(queues=1, header_split=True)
    for payload, ring in ((0, 1), (1, 1), (1024, 1), (1025, 0), (4000, 0)):
        for v_ in (4, 6):
            frame = tcp(payload, v=v_, dport=5201)
            nic.inject(frame)
            (packet,) = driver.poll(0)
            assert len(packet.header) == len(frame) - payload and packet.frame == frame
            assert packet.completions[0]["buffer_queue"] == ring
            assert all(not completion["header_length"] for completion in packet.completions[1:])
    frame = arp()
    nic.inject(frame)
    (packet,) = driver.poll(0)
    assert packet.header == packet.frame == frame


def test_one_buffer_queue_is_enough(driver: Driver, nic: TestNic) -> None:
    driver.open(queues=1, small=0)
    for frame in (tcp(10), tcp(3000)):
        nic.inject(frame)
        (packet,) = driver.poll(0)
        assert packet.frame == frame and packet.completions[0]["buffer_queue"] == 0


def test_a_ring_that_is_dry_is_helped_by_the_other(driver: Driver, nic: TestNic) -> None:
    """*Steps*: more small frames than there are small buffers, then until both are gone, then post.

    *Verify*: all arrive in order; those without buffers are held meanwhile.
    """
    driver.open(queues=1, ring_entries=64, header_split=False)
    frames = [udp(100, sport=1000 + number) for number in range(70)]
    deliveries = [nic.inject(frame) for frame in frames]
    assert [delivery.held for delivery in deliveries] == [False] * 62 + [True] * 8
    first = driver.poll(0)
    nic.run()
    packets = [*first, *driver.poll(0)]
    assert [packet.frame for packet in packets] == frames
    assert {packet.completions[0]["buffer_queue"] for packet in first} == {0, 1}


@misbehaves
def test_a_bad_address_costs_one_buffer(driver: Driver, nic: TestNic) -> None:
    """*Verify*: nothing is written, the buffer comes back with no bytes, which Linux takes for none; then all works."""
    driver.open(queues=1, small=0, header_split=False)
    ring = driver.rx[0].buffers[0]
    address = ring.ring + 8
    good = driver.ram.read(address, 8)
    driver.ram.write(address, b"\xff" * 8)
    delivery = nic.inject(udp(100))
    assert delivery.verdict is Drop.DMA_FAULT
    driver.ram.write(address, good)
    assert driver.poll(0, repost=False) == []
    assert ring.head == 1
    nic.inject(udp(100))
    assert len(driver.poll(0)) == 1


@pytest.mark.parametrize("bad", [False, True])
def test_receive_checksums(driver: Driver, nic: TestNic, bad: bool) -> None:
    driver.open(queues=1)
    for make in (tcp, udp):
        frame = bytearray(make(100))
        frame[-1] ^= bad
        nic.inject(bytes(frame))
        (packet,) = driver.poll(0)
        assert packet.checksums_good is not bad
        assert packet.completions[0]["raw_checksum_invalid"] == 1, "or Linux takes what is there for a checksum"
    assert packet.protocols == [Protocol.MAC, Protocol.IPV4, Protocol.UDP, Protocol.PAYLOAD]


def test_rss_spreads_by_key_and_table(driver: Driver, nic: TestNic) -> None:
    driver.open(queues=4)
    for key in (DEFAULT_KEY, bytes(range(40))):
        driver.set_rss_key(key)
        for sport in range(1000, 1020):
            frame = tcp(10, sport=sport, dport=5201)
            hash_value = toeplitz(key, frame)
            delivery = nic.inject(frame)
            assert delivery.hash == hash_value and delivery.queue == hash_value % 128 % 4
            (packet,) = driver.poll(hash_value % 128 % 4)
            assert packet.hash == hash_value and packet.completions[0]["rss_valid"]
    driver.set_rss_table([3])
    assert nic.inject(tcp(10)).queue == 3


@misbehaves
def test_flows_that_are_hashed(driver: Driver, nic: TestNic) -> None:
    """*Steps*: name flows that are to be hashed: those of which there are none, as DPDK does, some, none.
    *Verify*: the first changes nothing; then the others have no hash, and go to the first queue.
    """
    driver.open(queues=4)
    frames = [tcp(10, sport=sport) for sport in range(1000, 1020)]

    def queues(groups: int) -> set[int]:
        driver.request(Op.SET_RSS_HASH, one(v.RSS_HASH, ptype_groups=groups))
        return {nic.inject(frame).queue for frame in frames}

    assert queues(0x80007F9FE0000000) == {0, 1, 2, 3}
    assert queues(Flow.UDPV4 | 1 << 63) == {0}
    assert queues(Flow.TCPV4) == {0, 1, 2, 3}
    assert queues(0) == {0}


def rule(location: int, queue: int, port: int, kind: Protocol = Protocol.TCP) -> np.void:
    """What Linux makes of ``ethtool -N … dst-port``."""
    made = one(v.FLOW_RULE, rule_id=location, num_headers=2, num_actions=1)
    made["headers"]["type"][:2] = Protocol.IPV4, kind
    made["headers"]["spec"][1][2:4] = list(port.to_bytes(2, "big"))
    made["headers"]["mask"][1][2:4] = 0xFF
    made["actions"][0]["type"], made["actions"][0]["value"] = v.ACTION_QUEUE, queue
    return made


def rule_status(driver: Driver, op: Op, made: np.void) -> int:
    head = one(v.FLOW_RULES, count=1)
    reply = driver.request(op, head.tobytes() + made.tobytes())
    return int(np.frombuffer(reply, v.FLOW_RULE, 1, v.FLOW_RULES.itemsize)[0]["status"])


@misbehaves
def test_flow_rules(driver: Driver, nic: TestNic) -> None:
    driver.open(queues=4)
    driver.set_rss_table([0])
    assert rule_status(driver, Op.ADD_FLOW_RULE, rule(5, 3, 5201)) == RuleStatus.SUCCESS
    assert nic.inject(tcp(10, dport=5201)).queue == 3
    assert nic.inject(tcp(10, dport=5202)).queue == 0
    assert nic.inject(udp(10, dport=5201)).queue == 0
    assert rule_status(driver, Op.ADD_FLOW_RULE, rule(5, 7, 1)) == RuleStatus.ACTION_NOT_SUPPORTED
    assert rule_status(driver, Op.ADD_FLOW_RULE, rule(5000, 1, 1)) == RuleStatus.NO_RESOURCE
    assert rule_status(driver, Op.ADD_FLOW_RULE, rule(1, 1, 1, Protocol.ICMP)) == RuleStatus.FLOW_TYPE_NOT_SUPPORTED
    assert rule_status(driver, Op.DEL_FLOW_RULE, rule(5, 3, 5201)) == RuleStatus.SUCCESS
    assert rule_status(driver, Op.DEL_FLOW_RULE, rule(5, 3, 5201)) == RuleStatus.NOT_ADDED
    assert nic.inject(tcp(10, dport=5201)).queue == 0


def test_merged_segments_go_to_the_large_buffers(driver: Driver, nic: TestNic) -> None:
    driver.open(queues=1, rsc=True)
    whole = bytes(
        Ether(src=PEER_MAC, dst=NIC_MAC) / IP(src="192.0.2.2", dst="192.0.2.1") / TCP(flags="A") / pattern(600)
    )
    nic.inject(whole, gso=Gso.TCPV4, segment=200, header=54)
    (packet,) = driver.poll(0)
    first = packet.completions[0]
    assert packet.frame == whole and first["rsc"] and first["rsc_segment_length"] == 200
    assert first["buffer_queue"] == 0 and first["header_length"] == 54


def sends(driver: Driver, nic: TestNic, frames: list[bytes], **how: object) -> None:
    """Send frames, and see them and their completions."""
    for frame in frames:
        driver.send(0, frame, **how)  # type: ignore[arg-type]
        assert [bytes(sent) for sent in nic.take()] == [frame]
        driver.poll_tx(0)
    assert not driver.tx[0].pending


@pytest.mark.parametrize("scheduling", list(Scheduling))
def test_packets_are_sent_and_completed(driver: Driver, nic: TestNic, scheduling: Scheduling) -> None:
    """In both modes, several laps of rings whose length is no power of two. Half of them in several pieces."""
    driver.open(queues=2, ring_entries=ENTRIES, scheduling=scheduling)
    frames = [udp(20 + 13 * number) for number in range(100)]
    sends(driver, nic, frames)
    sends(driver, nic, frames, fragments=[40, 1, 20])
    assert driver.tx[0].room > ENTRIES - 80


def test_tags_have_sixteen_bits(driver: Driver, nic: TestNic) -> None:
    driver.open(queues=1)
    for tag in (0, 0x7FFF, 0x8000, 0xFFFE):
        driver.tx[0]._tag = tag - 1
        assert driver.send(0, udp(100)) == tag
        assert TxCompletion(TxCompletionType.PACKET, tag) in driver.poll_tx(0)


def test_transmit_checksum(driver: Driver, nic: TestNic) -> None:
    driver.open(queues=1)
    for make in (tcp, udp):
        good = make(100)
        packet = Ether(good)
        layer = packet.getlayer(TCP) or packet.getlayer(UDP)
        layer.chksum = 0
        driver.send(0, bytes(packet), checksum=True)
        (sent,) = nic.take()
        assert bytes(sent) == good


def test_segmentation(driver: Driver, nic: TestNic) -> None:
    """TSO as Linux asks for it: total length and checksum of the IP header 0."""
    driver.open(queues=1)
    payload = pattern(5000)
    template = Ether(src=NIC_MAC, dst=PEER_MAC) / IP(src="192.0.2.1", dst="192.0.2.2", len=0, chksum=0)
    packet = bytes(template / TCP(sport=1, dport=2, seq=7, flags="PA", chksum=0) / payload)
    driver.send(0, packet, checksum=True, tso=(1448, 54))
    frames = [Ether(bytes(sent)) for sent in nic.take()]
    assert b"".join(bytes(frame[TCP].payload) for frame in frames) == payload
    assert [frame[TCP].seq for frame in frames] == [7, 7 + 1448, 7 + 2 * 1448, 7 + 3 * 1448]
    for frame in frames:
        again = Ether(bytes(frame))
        del again[IP].chksum, again[TCP].chksum, again[IP].len
        assert bytes(again) == bytes(frame)
    driver.poll_tx(0)
    assert not driver.tx[0].pending


def test_the_marker_is_last_and_raises_no_interrupt(driver: Driver, nic: TestNic) -> None:
    """`Driver.close` looks for the markers; here of a queue that still has work, in both sizes of completions."""
    for scheduling in Scheduling:
        driver.open(queues=2, scheduling=scheduling)
        driver.send(0, udp(100))
        driver.fired(driver.vector(0))
        driver.rearm(0)
        fired = driver.fired(driver.vector(0))
        queues = list(driver.tx.values())
        before = nic.device.state.vectors["fires"][driver.vector(0)]
        driver.request(Op.DISABLE_VPORT, one(v.VPORT))
        driver.disable_queues()
        assert nic.device.state.vectors["fires"][driver.vector(0)] <= before + 1 - fired
        for queue in queues:
            queue.await_marker()
            assert not queue.pending
        driver.free_queues()


def test_tails_may_come_before_queues(driver: Driver, nic: TestNic) -> None:
    """`Driver.open` writes those of buffer queues first. *Verify*: a disabled queue's are forgotten at its end only."""
    driver.open(queues=1)
    driver.send(0, udp(100), kick=False)
    driver.request(Op.DISABLE_VPORT, one(v.VPORT))
    driver.disable_queues()
    driver.tx[0].await_marker()
    driver.free_queues()
    driver.open(queues=1)
    assert nic.device.state.tx["tail"][0] == 0
    assert nic.inject(udp(100)).delivered


def test_nothing_moves_while_a_vector_is_off(driver: Driver, nic: TestNic) -> None:
    """Linux switches vectors off before it frees memory, also where it sends no message: a time-out, a reboot.

    *Steps*: write 0 to the control of a queue's vector; frames and tails come; then have it polled.
    *Verify*: memory stays as it is; then what was posted is sent.
    """
    driver.open(queues=2)
    driver.set_rss_table([0])
    driver.set_vector(0, 0)
    nic.run()
    before = driver.ram.bytes.copy()
    driver.tx[0].put(bytes(16))
    driver.tx[0].tail = 0
    driver.ram.bytes[:] = before
    driver.send(0, udp(100))
    changed = driver.ram.bytes.copy()
    assert nic.inject(udp(100)).dropped == "no_queue"
    assert (driver.ram.bytes == changed).all() and not nic.take()
    driver.set_vector(0, int.from_bytes(POLL, "little"))
    assert len(nic.take()) == 1
    assert nic.inject(udp(100)).delivered
    driver.poll_tx(0)
    assert not driver.tx[0].pending


def test_interrupts_mask_themselves_and_remember(driver: Driver, nic: TestNic) -> None:
    driver.open(queues=1)
    vector = driver.vector(0)
    driver.set_interval(0, QueueType.RX, 0)
    nic.inject(udp(10))
    assert driver.fired(vector) == 1
    nic.inject(udp(10))
    assert driver.fired(vector) == 0
    driver.rearm(0)
    assert driver.fired(vector) == 1
    driver.set_vector(0, int.from_bytes(TRIGGER, "little"))
    assert driver.fired(vector) == 1, "software has asked for it"


def test_each_way_has_an_interval(driver: Driver, nic: TestNic) -> None:
    """*Steps*: a long interval for one way, a short one for the other. *Verify*: each event waits for its own."""
    driver.open(queues=1)
    vector = driver.vector(0)
    assert nic.clock is not None
    for slow, quick in ((QueueType.RX, QueueType.TX), (QueueType.TX, QueueType.RX)):
        driver.set_interval(0, slow, 1000)
        driver.set_interval(0, quick, 100)
        happens: dict[QueueType, Callable[[], object]] = {
            QueueType.RX: lambda: nic.inject(udp(10)), QueueType.TX: lambda: driver.send(0, udp(10))
        }  # fmt: skip
        for way, wait in ((slow, 1000), (quick, 100)):
            nic.clock.advance(10_000_000)
            driver.rearm(0)
            driver.fired(vector)
            driver.rearm(0)
            happens[way]()  # the first fires at once
            assert driver.fired(vector) == 1
            driver.rearm(0)
            happens[way]()
            nic.clock.advance((wait - 10) * 1000)
            assert driver.fired(vector) == 0
            nic.clock.advance(20_000)
            assert driver.fired(vector) == 1


def test_interval_can_be_read(driver: Driver) -> None:
    driver.open(queues=1)
    driver.set_interval(0, QueueType.TX, 64)
    assert driver.registers.read(r.ITR1, 0) == 32


def test_statistics(driver: Driver, nic: TestNic) -> None:
    """What ``ip -s link`` shows: bytes, and packets by whom they are for."""
    driver.open(queues=1)
    frames = [udp(100), icmp(), arp(), GROUP + udp(50)[6:]]
    driver.add_addresses([GROUP.hex(":")])
    for frame in frames:
        nic.inject(frame)
    driver.poll(0)
    sends(driver, nic, [arp(), udp(10)])
    found = driver.statistics()
    assert found["rx_bytes"] == sum(map(len, frames)) and found["tx_bytes"] == len(arp()) + len(udp(10))
    assert (found["rx_unicast"], found["rx_multicast"], found["rx_broadcast"]) == (2, 1, 1)
    assert (found["tx_unicast"], found["tx_multicast"], found["tx_broadcast"]) == (1, 0, 1)
    driver.remove()
    driver.probe()
    assert driver.statistics()["rx_bytes"] == 0, "a new vport's"


def test_whom_frames_are_for(driver: Driver, nic: TestNic) -> None:
    """Own address and broadcast always; others, and groups, if the driver has added them, or in a mode for all."""
    driver.open(queues=1)
    station, group, rest = b"\x02\0\0\0\0\x77", GROUP, udp(50)[6:]

    def taken() -> list[bool]:
        return [nic.inject(address + rest).delivered for address in (udp()[:6], b"\xff" * 6, station, group)]

    assert taken() == [True, True, False, False]
    driver.add_addresses([station.hex(":"), group.hex(":")])
    assert taken() == [True, True, True, True]
    driver.delete_addresses([station.hex(":")])
    assert taken() == [True, True, False, True]
    driver.delete_addresses([group.hex(":")])
    driver.set_promiscuous(Promiscuous.UNICAST)
    assert taken() == [True, True, True, False]
    driver.set_promiscuous(Promiscuous.MULTICAST)
    assert taken() == [True, True, False, True]
    driver.set_promiscuous(Promiscuous(0))
    with pytest.raises(Refused, match="ADD_MAC_ADDR: NO_SPACE"):
        for first in range(20):
            driver.add_addresses(f"02:00:00:01:{first:02x}:{number:02x}" for number in range(20))


def test_loopback(driver: Driver, nic: TestNic) -> None:
    driver.open(queues=1)
    driver.set_loopback(True)
    driver.send(0, udp(100), checksum=True)
    (packet,) = driver.poll(0)
    assert packet.frame == udp(100) and packet.checksums_good and not nic.take()
    driver.set_loopback(False)
    driver.send(0, udp(100))
    assert len(nic.take()) == 1 and not driver.poll(0)
