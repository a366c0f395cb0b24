"""Buffers of several owners in one receive queue: each flow's payload goes to its owner's buffers, or to none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nicmodel.gvnic.commands import Inner, Status
from nicmodel.gvnic.options.flush.declarations import ALL_OWNERS, FLUSH_RX_QUEUE
from nicmodel.gvnic.options.owners.declarations import CONFIGURE_BUFFER_OWNERS
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxPacket
from nicmodel.gvnic.testing.shared import SharedRxQueue
from nicmodel.nic.mac import parse_mac
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import Drop
from nicmodel.observe.snapshot import snapshot
from nicmodel.observe.trace import Tracer
from nicmodel.packet.frames import Gso
from nicmodel.testing.guest_memory import GuestMemory

from .frames import NIC_MAC, pattern, tcp

#: The drivers of all tests are watched.
pytestmark = pytest.mark.contract

ENTRIES = 256
MS = 1_000_000
CANARY = 0xA5
#: Destination ports of the flows of owners 1 and 2; all others' frames are owner 0's.
PORTS = (0, 5201, 5202)


class Bench:
    """A NIC whose queue 1 has buffers of three owners: ordinary memory, and two accelerators'."""

    def __init__(self, lab: Loopback, *, rsc: bool = False) -> None:
        self.lab, self.driver = lab, lab.driver
        lab.driver.probe()
        self.memories = [lab.ram, *(lab.driver.add_memory(name, 4 << 20) for name in ("gpu0", "gpu1"))]
        lab.driver.open(rx_queues=2, tx_queues=1, ring_entries=ENTRIES, header_split=True, rsc=rsc)
        lab.driver.set_rss(table=[1] * 128)
        for owner in (1, 2):
            lab.driver.add_flow_rule(TCPv4(dst_port=PORTS[owner]), queue=1, owner=owner)
        self.queue: SharedRxQueue = lab.driver.share_rx(1, self.memories)
        lab.run()

    def send(self, *owners: int, size: int = 1000) -> None:
        self.lab.receive(*(tcp(pattern(size, owner), dport=PORTS[owner] or 80) for owner in owners))

    def receive(self, *owners: int, size: int = 1000, give_back: bool = True) -> list[RxPacket]:
        """Frames for owners, in this order; the packets that came of them."""
        self.send(*owners, size=size)
        return self.take(give_back=give_back)

    def take(self, *, give_back: bool = True) -> list[RxPacket]:
        packets = self.queue.poll(repost=False)
        if give_back:
            for packet in packets:
                self.queue.give_back(packet)
            self.queue.post()
        return packets

    def owner(self, number: int) -> Any:
        return self.lab.nic.state.owners[1, number]

    def memories_of(self, packets: list[RxPacket]) -> list[set[str]]:
        return [{buffer.memory for buffer in packet.buffers} for packet in packets]


@pytest.fixture
def make_bench(make_lab: Callable[..., Loopback]) -> Callable[..., Bench]:
    def make(*, rsc: bool = False, **profile: Any) -> Bench:
        return Bench(make_lab(**({"owners": 4, "queue_flush": True} | profile)), rsc=rsc)

    return make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


def test_each_flow_to_its_owners_memory(bench: Bench) -> None:
    """*Steps*: frames of three owners in any order, of one buffer and of several.

    *Verify*: each payload is in its owner's memory alone, and the ledger says the same.
    """
    owners = [1, 2, 0, 2, 2, 1, 0, 0, 1]
    for size in (1, 1000, 8000):
        packets = bench.receive(*owners, size=size)
        assert [packet.payload for packet in packets] == [pattern(size, owner) for owner in owners]
        assert bench.memories_of(packets) == [{("ram", "gpu0", "gpu1")[owner]} for owner in owners]
    kinds = bench.lab.nic.dma.kinds
    booked = dict(zip(kinds, bench.lab.nic.state.ledger[1, Purpose.PAYLOAD].tolist(), strict=False))
    assert booked == {"ram": 3 * 9001, "gpu0": 3 * 9001, "gpu1": 3 * 9001}
    assert [int(bench.owner(number)["packets"]) for number in range(3)] == [9, 9, 9]


def test_many_laps_of_random_traffic(bench: Bench) -> None:
    """Packets are given back in another order than they came in, and always go where they belong."""
    rng = np.random.default_rng(3)
    kept: list[RxPacket] = []
    for _ in range(150):
        owners = rng.integers(0, 3, 10).tolist()
        packets = bench.receive(*owners, size=int(rng.integers(1, 6000)), give_back=False)
        assert bench.memories_of(packets) == [{("ram", "gpu0", "gpu1")[owner]} for owner in owners]
        kept += packets
        kept = [kept[place] for place in rng.permutation(len(kept))]
        while len(kept) > 20:
            bench.queue.give_back(kept.pop())
        bench.queue.post()
        bench.lab.run()
    assert bench.lab.nic.state.drops[:, Drop.RUNT :].sum() == 0


def test_an_owner_without_buffers_stops_nobody_else(bench: Bench) -> None:
    """Frames for an owner whose buffers are all in use wait and are dropped in the end; the others' go on."""
    kept: list[RxPacket] = []
    while len(kept) < ENTRIES // 3:
        kept += bench.receive(1, give_back=False)
        bench.receive(0, 2)  # so that the doorbell moves
    for _ in range(5):
        bench.receive(0, 2)
    before = bench.owner(1)["held"]
    for _ in range(5):
        assert bench.memories_of(bench.receive(1, 2, 0, 1)) == [{"gpu1"}, {"ram"}]
        bench.lab.advance(MS)
    assert bench.owner(1)["held"] == before + 10 == bench.lab.nic.state.rx[1]["held"]
    bench.lab.advance(300 * MS)
    assert bench.memories_of(bench.receive(2, 2)) == [{"gpu1"}] * 2
    bench.lab.nic.go_on()
    assert bench.lab.nic.state.drops[1, Drop.NO_BUFFERS] == before + 10 and bench.owner(1)["held"] == 0
    for packet in kept:
        bench.queue.give_back(packet)
    bench.queue.post()
    bench.lab.run()
    assert bench.memories_of(bench.receive(1)) == [{"gpu0"}]


def test_looking_ahead_one_buffer_is_a_plain_ring(make_bench: Callable[..., Bench]) -> None:
    """Tags are obeyed, but a silent owner's buffer stands before everybody else's."""
    bench = make_bench(owner_lookahead=1)
    assert bench.memories_of(bench.receive(0)) == [{"ram"}]
    assert bench.receive(0, 0) == []  # the next buffer is owner 1's
    assert bench.memories_of(bench.receive(1)) == [{"gpu0"}]
    assert bench.receive(1) == []
    assert bench.memories_of(bench.receive(2)) == [{"gpu1"}, {"ram"}, {"gpu0"}]  # those that waited, in turn
    assert bench.lab.nic.state.rx[1]["held"] == 1


def test_aggregated_and_coalesced(make_bench: Callable[..., Bench]) -> None:
    """A packet that the wire has aggregated goes to its owner whole; the NIC itself merges nothing on such a queue."""
    bench = make_bench(rsc=True)
    for owner in (2, 1):
        frame = tcp(pattern(30_000, owner), dport=PORTS[owner], flags="A")
        bench.lab.wire.inject(frame, gso=Gso.TCPV4, segment=1448, header=54)
    segments = [tcp(pattern(1448, k), seq=1 + 1448 * k, flags="A", dport=PORTS[1]) for k in range(4)]
    bench.lab.wire.inject(*segments)
    packets = bench.take()
    assert bench.lab.nic.state.rx[1]["coalesced"] == 0 and len(packets) == 6
    assert [packet.payload for packet in packets[:2]] == [pattern(30_000, 2), pattern(30_000, 1)]
    assert bench.memories_of(packets) == [{"gpu1"}, *[{"gpu0"}] * (len(packets) - 1)]
    assert b"".join(packet.payload for packet in packets[2:]) == b"".join(pattern(1448, k) for k in range(4))


@pytest.mark.breaks("FLU-001")
def test_flush_of_one_owner(bench: Bench) -> None:
    """One owner's buffers come back, those that were not sorted yet too, and only its frames are dropped."""
    bench.receive(0, 1, 2)
    owned = bench.owner(1)["tail"] - bench.owner(1)["head"]
    bench.driver.extended(Inner.FLUSH_RX_QUEUE, np.array((1, 1), FLUSH_RX_QUEUE))
    bench.memories[1].bytes[:] = CANARY
    assert bench.take(give_back=False) == []
    assert bench.queue.flushed >= owned > 0
    free = [bench.queue.free_of(owner) for owner in range(3)]
    assert free[1] >= bench.queue.flushed and free[0] + free[2] < 40  # behind the doorbell
    assert bench.memories_of(bench.receive(0, 1, 2, 1, give_back=False)) == [{"ram"}, {"gpu1"}]
    bench.driver.extended(Inner.FLUSH_RX_QUEUE, np.array((1, 1), FLUSH_RX_QUEUE))
    assert bench.lab.nic.state.drops[1, Drop.NO_BUFFERS] == 2 and bench.lab.nic.state.rx[1]["held"] == 0
    assert (bench.memories[1].bytes == CANARY).all()
    with pytest.raises(AdminError) as error:
        bench.driver.extended(Inner.FLUSH_RX_QUEUE, np.array((1, 3), FLUSH_RX_QUEUE))
    assert error.value.status == Status.NOT_FOUND
    bench.queue.post()
    assert bench.memories_of(bench.receive(1)) == [{"gpu0"}]
    bench.driver.extended(Inner.FLUSH_RX_QUEUE, np.array((1, ALL_OWNERS), FLUSH_RX_QUEUE))
    bench.take(give_back=False)
    assert bench.queue.visible == 0 and bench.lab.nic.state.rx[1]["sorted"] == 0


def test_flush_of_a_ring_out_of_reach(bench: Bench) -> None:
    """What cannot be handed back is forgotten, also what had not been sorted."""
    ring = bench.queue.buffer_ring_address
    bench.lab.nic.dma.set_unreachable([(ring, ring + ENTRIES * 32)])
    bench.driver.extended(Inner.FLUSH_RX_QUEUE, np.array((1, 1), FLUSH_RX_QUEUE))
    bench.lab.nic.dma.set_unreachable([])
    assert bench.receive(1) == []


def test_watched_flush_of_one_owner() -> None:
    """*Steps*: flush one owner's buffers; post them again, and then one of another owner's, which the NIC has sorted.

    *Verify*: the trace tells of the first owner's buffers and no others; posting those is right, and the other is not.
    """
    profile = Profile(mac=parse_mac(NIC_MAC), owners=4, queue_flush=True, min_ring=ENTRIES)
    with Loopback(profile, ram=GuestMemory("ram", size=64 << 20), check=True) as lab:
        bench = Bench(lab)
        bench.receive(0, 1, 2)
        events: list[dict[str, Any]] = []
        Tracer(lab.nic, lab.server).subscribe(events.append, ("rx",))
        for _ in range(10):
            events.clear()
            before = bench.queue.flushed
            lab.driver.extended(Inner.FLUSH_RX_QUEUE, np.array((1, 1), FLUSH_RX_QUEUE))
            assert {event["verdict"] for event in events} == {"flushed"}
            identities = [buffer["buffer_id"] for event in events for buffer in event["buffers"]]
            assert identities == [answer["buffer_id"] for event in events for answer in event["completions"]]
            assert {bench.queue.owner(identity) for identity in identities} == {1}
            bench.take()
            assert len(identities) == bench.queue.flushed - before > 0
            bench.receive(0, 2, 1)
        assert lab.findings == []

        queue, entry = bench.queue, bench.owner(2)
        taken = int(lab.nic.state.owned[1, 2, int(entry["head"]), 0] & 0xFFFF)
        place = int(queue.state.doorbell)
        queue.buffer_ring[place] = queue.descriptors[taken]
        for k in range(1, 8):
            queue.buffer_ring[(place + k) % ENTRIES] = queue.descriptors[queue._free[int(queue.state.free) - k]]
        queue.ring((place + 8) % ENTRIES)
        assert {"RX-BUF-003", "RX-BUF-004"} <= {finding.rule.name for finding in lab.findings}


# Bad input


@pytest.mark.breaks("OWN-004")
def test_a_buffer_of_nobody_comes_back(bench: Bench) -> None:
    """An owner that the queue does not have: an error completion, and the next buffer's turn."""
    queue = bench.queue
    events: list[dict[str, Any]] = []
    Tracer(bench.lab.nic, bench.lab.server).subscribe(events.append, ("rx",))
    bench.receive(0)
    queue.descriptors[:, 0] |= np.uint64(9 << 16)
    for _ in range(40):
        bench.receive(0, 1, 2)
    assert queue.errors > 0 and queue.flushed == 0
    refused = [event for event in events if event["verdict"] == "refused"]
    assert len(refused) == queue.errors and {len(event["buffers"]) for event in refused} == {1}
    assert (bench.lab.nic.state.drops[:, Drop.RUNT :].sum(axis=1)[[0, 2]] == 0).all()


@pytest.mark.breaks("OWN-005")
def test_a_rule_for_an_owner_that_is_none(bench: Bench) -> None:
    """Its frames find no buffers, whoever else has some."""
    bench.driver.add_flow_rule(TCPv4(dst_port=7), queue=1, owner=200)
    bench.lab.receive(tcp(100, dport=7))
    assert bench.take() == [] and bench.lab.nic.state.drops[1, Drop.NO_BUFFERS] == 1
    bench.driver.add_flow_rule(TCPv4(dst_port=8), queue=0, owner=2)  # to a queue that has no owners
    bench.lab.receive(tcp(100, dport=8))
    (packet,) = bench.driver.poll(0)
    assert packet.payload == pattern(100)


@pytest.mark.breaks("DMA-002", "RX-BUF-001")
def test_memory_that_goes_away(bench: Bench) -> None:
    """A buffer out of reach is handed back with an error, and only its owner suffers."""
    bench.driver.unmap(bench.memories[1])
    assert bench.memories_of(bench.receive(0, 1, 2, 1)) == [{"ram"}, {"gpu1"}]
    assert bench.lab.nic.state.drops[1, Drop.DMA_FAULT] == 2 and bench.queue.errors == 2
    assert bench.lab.nic.state.rx[1]["sorted"] == sum(
        int(bench.owner(owner)["tail"] - bench.owner(owner)["head"]) % ENTRIES for owner in range(3)
    )


def test_a_new_queue_knows_nothing_of_it(bench: Bench) -> None:
    bench.receive(0, 1, 2)
    bench.driver.restart_rx(1)
    bench.lab.receive(*(tcp(100, dport=port) for port in PORTS[1:]))
    assert bench.memories_of(bench.driver.poll(1)) == [{"ram"}, {"ram"}]


@pytest.mark.breaks("ADM-CMD-005", "OPT-002", "OWN-001")
def test_refused(make_lab: Callable[..., Loopback]) -> None:
    """Without the option, too few or too many, twice, with buffers, of no queue."""

    def status(lab: Loopback, queue: int, owners: int) -> Status:
        with pytest.raises(AdminError) as error:
            command = np.array((queue, owners), CONFIGURE_BUFFER_OWNERS)
            lab.driver.extended(Inner.CONFIGURE_BUFFER_OWNERS, command)
        return Status(error.value.status)

    plain, able = make_lab(), make_lab(owners=4, owner_lookahead=100)
    for lab in (plain, able):
        lab.driver.probe()
        lab.driver.open(rx_queues=2, tx_queues=1, ring_entries=ENTRIES)
    assert status(plain, 1, 2) == Status.UNIMPLEMENTED
    assert plain.driver.description is not None and plain.driver.description.buffer_owners is None
    assert able.driver.description is not None
    offered = able.driver.description.buffer_owners
    assert offered is not None and offered.tolist() == (0, 4, 100)
    assert status(able, 2, 2) == Status.NOT_FOUND
    assert {status(able, 1, owners) for owners in (0, 1, 5, 0xFFFF_FFFF)} == {Status.INVALID_ARGUMENT}
    assert status(able, 1, 2) == Status.FAILED_PRECONDITION


@pytest.mark.parametrize("fields", [{"owners": 1}, {"owners": 17}, {"owners": -1}, {"owner_lookahead": 0}])
def test_profiles_that_cannot_be(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"owners|ahead"):
        Profile(**fields)  # type: ignore[arg-type]


def test_inject_trace_report_and_contract() -> None:
    """Those who watch see which buffers were used, in whatever order; no rule forbids it."""
    profile = Profile(mac=parse_mac(NIC_MAC), owners=4, min_ring=ENTRIES)
    with Loopback(profile, ram=GuestMemory("ram", size=64 << 20), check=True) as lab:
        bench = Bench(lab)
        events: list[dict[str, Any]] = []
        Tracer(lab.nic, lab.server).subscribe(events.append, ("rx",))
        deliveries = lab.inject([tcp(pattern(5000, owner), dport=PORTS[owner] or 80) for owner in (2, 1, 2, 0)])
        assert [delivery.payload for delivery in deliveries] == [pattern(5000, owner) for owner in (2, 1, 2, 0)]
        assert [{place.memory for place in delivery.payload_buffers} for delivery in deliveries] == [
            {"gpu1"}, {"gpu0"}, {"gpu1"}, {"ram"}
        ]  # fmt: skip
        packets = bench.take()
        assert [[buffer["buffer_address"] for buffer in event["buffers"]] for event in events] == [
            [buffer.address for buffer in packet.buffers] for packet in packets
        ]
        by_owner = snapshot(lab.nic)["rx_queues"][1]["by_owner"]
        assert [entry["packets"] for entry in by_owner] == [1, 1, 2]
        assert lab.findings == []
