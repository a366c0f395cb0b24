"""No queue, NIC or driver takes more than its share of a turn of the event loop: judged by counts, turn by turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from nicmodel.gvnic.commands import Opcode, QueueFormat
from nicmodel.gvnic.descriptors import GQI_TX_PACKET, TX_PACKET, TX_TSO_CONTEXT, GqiTxType, TxType
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.registers import ADMINQ_EVENT_COUNTER, Bar
from nicmodel.gvnic.testing.adminq import encode_command
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.gqi import GqiQueues
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.nic import TestNic
from nicmodel.gvnic.testing.tx import TxQueue
from nicmodel.nic import events
from nicmodel.nic.egress import _OUT_FRAMES, _OUT_WORK
from nicmodel.nic.mac import parse_mac
from nicmodel.nic.state import Drop
from nicmodel.packet.frames import Offload
from nicmodel.testing.clock import VirtualClock
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.testing.wire import TestWire
from nicmodel.vfio_user.poll import Poller
from nicmodel.wire.switch import Switch

from .frames import NIC_MAC, PEER_MAC, tcp

ENTRIES = 4096
#: Turns of the loop within which any test here has to come to an end.
MANY = 5000
GQI = (QueueFormat.DQO_RDA, QueueFormat.GQI_RDA, QueueFormat.GQI_QPL)


def fill(queue: TxQueue, descriptor: bytes, count: int) -> None:
    """Put the same descriptors into a ring, and tell the device of them."""
    state = queue.state
    places = (int(state.tail) + np.arange(count * len(descriptor) // TX_PACKET.size)) % queue.entries
    queue.ring[places] = np.resize(np.frombuffer(descriptor, np.uint8), (len(places), TX_PACKET.size))
    state.tail = (int(state.tail) + len(places)) % queue.entries
    queue.kick()


def packet(driver: Driver, frame: bytes) -> bytes:
    """A descriptor that sends a frame."""
    address = driver.ram.allocate(len(frame))
    driver.ram.write(address, frame)
    return TX_PACKET.encode(
        dtype=TxType.PACKET, buffer_address=address, buffer_size=len(frame), end_of_packet=1
    )  # fmt: skip


def tso_bomb(driver: Driver, payload: int = 4000) -> bytes:
    """Two descriptors that ask for as many segments as there are bytes of payload."""
    frame = bytes(Ether(dst=PEER_MAC, src=NIC_MAC) / IP(src="10.0.0.1", dst="10.0.0.2") / TCP()) + b"x" * payload
    address = driver.ram.allocate(len(frame))
    driver.ram.write(address, frame)
    context = TX_TSO_CONTEXT.encode(
        dtype=TxType.TSO_CONTEXT, tso=1, total_length=payload, mss=1, header_length=54
    )  # fmt: skip
    return context + TX_PACKET.encode(
        dtype=TxType.PACKET, buffer_address=address, buffer_size=len(frame), end_of_packet=1, checksum=1
    )


def turns(poller: Poller, measure: Callable[[], int]) -> list[int]:
    """What each turn of the loop adds to a count, until nothing is left to do."""
    added = []
    before = measure()
    for _ in range(MANY):
        busy = poller.run_once(0)
        now = measure()
        added.append(now - before)
        before = now
        if not busy:
            return added
    pytest.fail(f"still busy after {MANY} turns")


@pytest.fixture
def lab(make_lab: Callable[..., Loopback]) -> Loopback:
    lab = make_lab(queues=8)
    lab.driver.probe()
    lab.driver.open(rx_queues=1, tx_queues=4, ring_entries=ENTRIES, buffer_size=1024)
    return lab


def segments(nic: Nic, queue: int = 0) -> int:
    return int(nic.state.tx["segments"][queue])


# Queues of one NIC


def test_queue_that_always_has_work_leaves_room(lab: Loopback) -> None:
    """*Steps*: a slow wire; one queue whose ring is filled again whenever there is room. *Verify*: the others' frames
    leave in the next batch, and what it gets is no more than its share.
    """
    greedy, *modest = lab.driver.tx.values()
    plenty = packet(lab.driver, tcp(10))
    lab.wire.room = 0
    fill(greedy, plenty, 2000)
    lab.run()
    for queue in modest:
        fill(queue, packet(lab.driver, tcp(10, sport=1 + queue.number)), 100)
    sent: Counter[int] = Counter()
    for _ in range(20):
        lab.wire.unblock(500)
        lab.run()
        sent.update(int(frame.record["queue"]) for frame in lab.wire.sent)
        lab.wire.sent.clear()
        fill(greedy, plenty, 400)
    assert [sent[queue.number] for queue in modest] == [100] * 3
    assert 9000 < sent[0] <= 20 * 500 - 300


def test_shares_are_even(lab: Loopback) -> None:
    """*Steps*: all queues have more than a batch holds. *Verify*: each batch is shared evenly among them."""
    lab.wire.room = 0
    for queue in lab.driver.tx.values():
        fill(queue, packet(lab.driver, tcp(10, sport=1 + queue.number)), ENTRIES - 1)
    lab.run()
    sent: list[int] = []
    while len(sent) < 4 * (ENTRIES - 1):
        before = len(sent)
        lab.wire.unblock(_OUT_FRAMES)
        lab.run()
        sent += [int(frame.record["queue"]) for frame in lab.wire.sent]
        lab.wire.sent.clear()
        assert len(sent) > before
        counts = Counter(sent[before:])
        if len(sent) < 3 * (ENTRIES - 1):
            assert max(counts.values()) - min(counts[queue] for queue in range(4)) <= 1
    assert Counter(sent) == dict.fromkeys(range(4), ENTRIES - 1)


def test_share_is_in_bytes_too(lab: Loopback) -> None:
    """A queue of long frames gets as many bytes as others, not as many frames; all of them leave in the end."""
    lab.wire.room = 0
    lengths = 8000, 100, 100, 100
    for queue, length in zip(lab.driver.tx.values(), lengths, strict=True):
        fill(queue, packet(lab.driver, tcp(length)), 1000)
    lab.wire.unblock(3000)
    lab.run()
    first = Counter(int(frame.record["queue"]) for frame in lab.wire.sent)
    assert 0 < first[0] * 8000 <= (1 << 21) // 4 + 8054
    assert min(first[queue] for queue in (1, 2, 3)) > 900
    lab.wire.unblock(None)
    lab.run()
    assert Counter(int(frame.record["queue"]) for frame in lab.wire.sent) == dict.fromkeys(range(4), 1000)


def test_packet_that_fills_a_batch_is_not_starved(lab: Loopback) -> None:
    """One that fits an empty batch only has its turn although others always leave some of theirs."""
    lab.wire.room = 0
    fill(lab.driver.tx[0], packet(lab.driver, tcp(10)), 3000)
    fill(lab.driver.tx[1], tso_bomb(lab.driver), 2)
    for _ in range(3):
        lab.wire.unblock(_OUT_FRAMES)
        lab.run()
        fill(lab.driver.tx[0], packet(lab.driver, tcp(10)), 500)
    assert segments(lab.nic, 1) >= 4000


# One doorbell


def test_turn_makes_one_batch(lab: Loopback) -> None:
    """*Steps*: one doorbell, thousands of segments. *Verify*: no turn makes more than a batch; all are made."""
    packets = 20
    fill(lab.driver.tx[0], tso_bomb(lab.driver), packets)
    added = turns(lab.host.poller, lambda: segments(lab.nic))
    assert sum(added) == packets * 4000
    assert max(added) <= _OUT_FRAMES


def test_turn_reads_so_many_descriptors(make_lab: Callable[..., Loopback]) -> None:
    """Packets that come to nothing are work too: those of all queues together are spread over several turns."""
    entries, queues = 1 << 15, 4
    lab = make_lab(queues=queues)
    lab.driver.probe()
    made = [lab.driver.make_tx(number, entries) for number in range(queues)]
    lab.driver.admin_batch([queue.create_command() for queue in made])
    for queue in made:
        fill(queue, TX_PACKET.encode(dtype=TxType.PACKET, end_of_packet=1), entries - 1)
    taken = lambda: int(lab.nic.state.tx["packets"].sum())  # noqa: E731
    added = turns(lab.host.poller, taken)
    assert sum(added) == queues * (entries - 1)
    assert max(added) <= _OUT_WORK
    bad = lab.nic.state.drops[queues : 2 * queues, Drop.BAD_DESCRIPTOR]
    assert bad.tolist() == [entries - 1] * queues


def test_segments_that_the_wire_makes_count(make_lab: Callable[..., Loopback]) -> None:
    """A wire that takes packets whole has to cut them, or its far end: that is bounded in the same way."""
    lab = make_lab(wire=TestWire(offloads=Offload.ALL), queues=2)
    lab.driver.probe()
    lab.driver.open(rx_queues=1, tx_queues=1, ring_entries=ENTRIES, buffer_size=1024)
    fill(lab.driver.tx[0], tso_bomb(lab.driver), 100)
    added = turns(lab.host.poller, lambda: len(lab.wire.sent))
    assert sum(added) == 100
    assert max(added) <= _OUT_WORK // 4000 + 1


def test_queue_can_be_destroyed_meanwhile(lab: Loopback) -> None:
    """The rest of a doorbell's work ends with its queue, and nothing of it is done to the next one."""
    fill(lab.driver.tx[0], tso_bomb(lab.driver), 1000)
    lab.host.poller.run_once(0)
    lab.host.poller.run_once(0)
    before = segments(lab.nic)
    assert 0 < before < 4_000_000
    lab.nic.destroy_tx(0)
    lab.run()
    assert segments(lab.nic) == before
    lab.nic.reset()
    lab.run()
    assert segments(lab.nic) == before


@pytest.mark.parametrize("qpl", [False, True])
@pytest.mark.parametrize("ahead", [257, 1 << 18, 1 << 31, (1 << 32) - 1])
def test_gqi_doorbell_beyond_the_ring(make_lab: Callable[..., Loopback], qpl: bool, ahead: int) -> None:
    """A free-running count that is more than a ring ahead has no effect, and is counted; the queue goes on."""
    lab = make_lab(formats=GQI)
    told: list[events.Event] = []
    lab.driver.probe()
    queues = GqiQueues(lab.driver, qpl, 256)
    queues.send(tcp(100))
    assert lab.wire.take() == [tcp(100)]
    lab.nic.diagnostics.observers = (told.append,)
    queues.ring(queues.tx_doorbell, queues.done + ahead)
    queues.ring(queues.rx_doorbell, queues.taken + ahead)
    assert lab.nic.counters["doorbell_beyond_ring"] == 2
    assert [event.queue for event in told if isinstance(event, events.Failed)] == ["tx0", "rx0"]
    assert queues.done == 1 and lab.wire.take() == []
    queues.send(tcp(200))
    assert lab.wire.take() == [tcp(200)]
    lab.receive(tcp(300))
    assert [frame for frame, _ in queues.receive()] == [tcp(300)]


def test_gqi_ring_may_be_full(make_lab: Callable[..., Loopback]) -> None:
    """Just as many as the ring has is no error; a count wraps at 2³²."""
    lab = make_lab(formats=GQI)
    lab.driver.probe()
    queues = GqiQueues(lab.driver, False, 256)
    lab.nic.state.tx["head"][0] = lab.nic.state.tx["tail"][0] = (1 << 32) - 100
    queues.posted = (1 << 32) - 100
    for _ in range(256):
        place = queues.posted % 256 * GQI_TX_PACKET.itemsize
        one = np.array((GqiTxType.STANDARD << 4, 0, 0, 1, 64, 64, queues.tx_pages[0]), GQI_TX_PACKET)
        lab.ram.write(queues.tx_ring + place, one.tobytes())
        queues.posted += 1
    queues.ring(queues.tx_doorbell, queues.posted)
    assert len(lab.wire.take()) == 256
    assert queues.done == 156
    assert lab.nic.counters["doorbell_beyond_ring"] == 0


# Several NICs


def test_others_have_their_turn(lab: Loopback) -> None:
    """*Steps*: a NIC with work for many turns. *Verify*: whoever else is in the loop is called in each of them."""
    fill(lab.driver.tx[0], tso_bomb(lab.driver), 1000)
    poller = lab.host.poller
    called: list[int] = []
    for turn in range(20):
        poller.next_turn(lambda: called.append(segments(lab.nic)))
        poller.run_once(0)
        assert len(called) == turn + 1
    assert 0 < called[-1] <= 20 * _OUT_FRAMES


def test_nics_share_an_uplink() -> None:
    """*Steps*: three NICs that always have more to send, behind a switch with a slow uplink. *Verify*: each gets a
    third.
    """
    uplink = TestWire()
    switch = Switch(uplink=uplink)
    clock = VirtualClock()
    macs = [f"02:00:00:00:01:{number:02x}" for number in range(3)]
    nics = [
        TestNic(Profile(mac=parse_mac(mac), queues=1), wire=switch.port(), clock=clock) for mac in macs
    ]  # fmt: skip
    drivers = []
    try:
        uplink.room = 0
        for nic, mac in zip(nics, macs, strict=True):
            driver = nic.connect(ram=GuestMemory("ram", size=16 << 20))
            drivers.append(driver)
            driver.probe()
            driver.open(rx_queues=1, tx_queues=1, ring_entries=ENTRIES, buffer_size=1024)
            frame = bytes(Ether(src=mac, dst="02:00:00:00:ff:ff") / IP() / UDP() / bytes(2000))
            fill(driver.tx[0], packet(driver, frame), ENTRIES - 1)
            clock.turn()
        sent: Counter[str] = Counter()
        for _ in range(30):
            uplink.unblock(300)
            clock.turn()
            sent.update(frame.data[6:12].hex(":") for frame in uplink.sent)
            uplink.sent.clear()
        assert sum(sent.values()) == 9000
        assert min(sent[mac] for mac in macs) > 1500
    finally:
        for driver in drivers:
            driver.disconnect()
        for nic in nics:
            nic.close()


# Admin commands


def test_turn_executes_so_many_commands(lab: Loopback) -> None:
    """*Steps*: one doorbell for a thousand commands, in the longest queue there can be. *Verify*: all are done, in
    order, and no turn does more than the ring of a driver holds.
    """
    driver, nic = lab.driver, lab.nic
    driver.close()
    driver.release()
    ring = driver.ram.allocate_zeroed(1 << 16)
    answers = driver.ram.allocate_zeroed(8)
    for slot in range(1023):
        command = encode_command(Opcode.REPORT_LINK_SPEED, address=answers)
        driver.ram.write(ring + 64 * slot, command)
    nic.admin.start(ring, 0xFFFF)
    driver.client.region_write(Bar.REGISTERS, 0x14, (1000).to_bytes(4, "big"), posted=True)
    driver.client.region_write(Bar.REGISTERS, 0x14, (1023).to_bytes(4, "big"), posted=True)
    added = turns(lab.host.poller, lambda: nic.admin.counter)
    assert sum(added) == 1023
    assert max(added) <= 64
    raw = driver.client.region_read(Bar.REGISTERS, ADMINQ_EVENT_COUNTER.offset, 4)
    assert int.from_bytes(raw, "big") == 1023


def test_ring_of_a_driver_is_done_at_once(lab: Loopback) -> None:
    """Drivers look at the event counter once before they sleep: 63 commands are done by then."""
    driver = lab.driver
    address = driver.ram.allocate(8)
    before = lab.nic.admin.counter
    command = encode_command(Opcode.REPORT_LINK_SPEED, address=address)
    lab.run()
    for number in range(before, before + 63):
        driver.ram.write(lab.nic.admin.base + number % 64 * 64, command)
    lab.nic.admin.ring((before + 63) & 0xFFFFFFFF)
    assert lab.nic.admin.counter == before + 63
