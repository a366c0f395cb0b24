"""Deferred placement: headers at once, payload on the NIC until the driver names its place, or drops it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from nicmodel.gvnic.commands import Inner, OptionId, Status
from nicmodel.gvnic.options.deferred.declarations import PlacementStatus
from nicmodel.gvnic.options.deferred.events import Placing
from nicmodel.gvnic.options.deferred.state import NIC_PAGE
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.placement import PlacementRing
from nicmodel.gvnic.testing.rx import Deferred, RxPacket
from nicmodel.nic import events
from nicmodel.nic.mac import parse_mac
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import Drop
from nicmodel.observe.metrics import exposition
from nicmodel.observe.snapshot import snapshot
from nicmodel.packet.frames import Gso
from nicmodel.testing.guest_memory import PAGE, GuestMemory

from .conftest import ENTRIES
from .frames import NIC_MAC, arp, pattern, tcp
from .test_trace import Heard

#: The drivers of all tests are watched.
pytestmark = pytest.mark.contract

MS = 1_000_000
KIB = 1024
HEADER = 14 + 20 + 20
CANARY = 0xA5


class Bench:
    """A NIC that keeps the payload of its one receive queue, and memory of an accelerator's."""

    def __init__(self, lab: Loopback, *, entries: int = ENTRIES, headers_only: bool = False, rsc: bool = False) -> None:
        self.lab = lab
        lab.driver.probe()
        self.hbm = lab.driver.add_memory("hbm", 1 << 20)
        self.hbm.bytes[:] = CANARY
        lab.driver.open(rx_queues=2, tx_queues=1, ring_entries=ENTRIES, header_split=True, rsc=rsc)
        lab.driver.set_rss(table=[0] * 128)
        self.ring: PlacementRing = lab.driver.defer_placement(0, entries=entries, headers_only=headers_only)

    def receive(self, *frames: bytes) -> list[RxPacket]:
        self.lab.receive(*frames)
        return self.lab.driver.poll_all()

    def place(self, packet: RxPacket, *pieces: tuple[int, int]) -> PlacementStatus:
        assert packet.deferred is not None
        self.ring.place(packet.deferred.handle, pieces or [(self.hbm.base, packet.deferred.length)])
        return self.answer(packet.deferred.handle)

    def answer(self, handle: int) -> PlacementStatus:
        self.lab.run()
        ((named, status),) = self.ring.poll()
        assert named == handle
        return status

    def count(self, name: str, queue: int = 0) -> int:
        return int(self.lab.nic.state.placement_rings[queue][name])

    @property
    def kept(self) -> int:
        """Payloads on the NIC."""
        return int((self.lab.nic.state.nic_pages["queue"] >= 0).sum())

    @property
    def free_pages(self) -> int:
        return int(self.lab.nic.state.nic_memory["free_pages"][0])

    def dma(self, purpose: Purpose) -> dict[str, int]:
        return dict(zip(self.lab.nic.dma.kinds, self.lab.nic.state.ledger[0, purpose].tolist(), strict=False))


@pytest.fixture
def make_bench(make_lab: Callable[..., Loopback]) -> Callable[..., Bench]:
    def make(nbytes: int = 256 * KIB, **options: bool | int) -> Bench:
        profile = {name: options.pop(name) for name in list(options) if name.startswith("deferred_")}
        return Bench(make_lab(deferred_bytes=nbytes, **profile), **options)  # type: ignore[arg-type]

    return make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


# The way of a payload


@pytest.mark.parametrize("size", [1, 1460, NIC_PAGE, NIC_PAGE + 1, 8842])
def test_header_at_once_and_payload_where_it_is_told(bench: Bench, size: int) -> None:
    """*Steps*: receive a frame; name the payload's place.

    *Verify*: the header and a handle come at once, and no byte of payload; then the payload is at its place, booked
    there, and nothing around it has changed.
    """
    frame = tcp(size)
    (packet,) = bench.receive(frame)
    assert packet.header == frame[:HEADER] and packet.payload == b""
    assert packet.deferred is not None and packet.deferred.length == size
    assert len(packet.completions) == 1 and packet.checksum_unnecessary
    assert sum(bench.dma(Purpose.PAYLOAD).values()) == 0
    assert (bench.hbm.bytes == CANARY).all()

    vector = bench.lab.driver.rx_block(0)
    bench.lab.advance(MS)
    bench.lab.driver.fired(vector)
    bench.lab.driver.enable(vector)
    assert bench.place(packet, (bench.hbm.base + 100, size)) == PlacementStatus.PLACED
    bench.lab.advance(MS)
    assert bench.lab.driver.fired(vector) == 1
    assert bench.hbm.read(bench.hbm.base + 100, size) == pattern(size)
    assert int((bench.hbm.bytes != CANARY).sum()) <= size
    assert (bench.hbm.bytes[:100] == CANARY).all() and (bench.hbm.bytes[100 + size :] == CANARY).all()
    assert bench.dma(Purpose.PAYLOAD)["hbm"] == size and bench.dma(Purpose.PAYLOAD)["ram"] == 0
    assert bench.free_pages == 256 * KIB // NIC_PAGE


def test_pieces(bench: Bench) -> None:
    """A payload goes to any number of places, of any length, in their order, also in another order than it came."""
    packets = bench.receive(tcp(5000), tcp(4000))
    lengths = [1, 0, 2047, 2, 2048, 902]
    places = [(bench.hbm.base + 8192 * number + 3, length) for number, length in enumerate(lengths)]
    assert bench.place(packets[1], (bench.hbm.base + 512 * KIB, 4000)) == PlacementStatus.PLACED
    assert bench.place(packets[0], *places) == PlacementStatus.PLACED
    assert b"".join(bench.hbm.read(*place) for place in places) == pattern(5000)
    assert bench.hbm.read(bench.hbm.base + 512 * KIB, 4000) == pattern(4000)


def test_an_aggregated_packet_has_one_handle(make_bench: Callable[..., Bench]) -> None:
    """What the wire has aggregated, and what the NIC has merged, is one payload."""
    bench = make_bench(rsc=True)
    frame = tcp(20_000, flags="A")
    bench.lab.run()
    bench.lab.wire.inject(frame, gso=Gso.TCPV4, segment=1448, header=HEADER)
    bench.lab.receive(*(tcp(pattern(1448, seed), seq=1 + 1448 * seed, flags="A") for seed in range(5)))
    first, second = bench.lab.driver.poll_all()
    assert first.rsc and second.rsc and second.rsc_segment_length == 1448
    assert bench.place(first) == PlacementStatus.PLACED
    assert bench.hbm.read(bench.hbm.base, 20_000) == pattern(20_000)
    assert bench.place(second) == PlacementStatus.PLACED
    merged = b"".join(pattern(1448, seed) for seed in range(5))
    assert bench.hbm.read(bench.hbm.base, len(merged)) == merged


def test_dropped(bench: Bench) -> None:
    (packet,) = bench.receive(tcp(3000))
    assert packet.deferred is not None
    bench.ring.drop(packet.deferred.handle)
    assert bench.answer(packet.deferred.handle) == PlacementStatus.DROPPED
    assert bench.free_pages == 256 * KIB // NIC_PAGE and bench.count("dropped") == 1
    assert (bench.hbm.bytes == CANARY).all()


def test_what_has_no_payload_or_no_split_comes_as_ever(bench: Bench) -> None:
    long_header = tcp(100, options=[("NOP", None)] * 40, v=6)  # 14 + 40 + 60 bytes
    packets = bench.receive(tcp(0), arp(), long_header)
    assert [packet.deferred is None for packet in packets] == [True, True, False]
    assert packets[1].frame == arp()
    bench.lab.driver.set_rss(table=[1] * 128)
    (packet,) = bench.receive(tcp(500))
    assert packet.queue == 1 and packet.deferred is None and packet.payload == pattern(500)


def test_many_laps(bench: Bench) -> None:
    """Rings, pages and handles through many laps, placed out of order, half of them dropped."""
    rng = np.random.default_rng(1)
    for _ in range(40):
        sizes = rng.integers(1, 4000, 12).tolist()
        packets = bench.receive(*(tcp(pattern(size, size)) for size in sizes))
        order = rng.permutation(len(packets)).tolist()
        for number in order:
            deferred = packets[number].deferred
            assert deferred is not None and deferred.length == sizes[number]
            if number % 2:
                bench.ring.drop(deferred.handle, ring=False)
            else:
                bench.ring.place(deferred.handle, [(bench.hbm.base + 4096 * number, sizes[number])], ring=False)
        bench.ring.post()
        bench.lab.run()
        expected = [PlacementStatus.DROPPED if number % 2 else PlacementStatus.PLACED for number in order]
        assert [placement.status for placement in bench.ring.poll()] == expected
        for number in range(0, len(packets), 2):
            assert bench.hbm.read(bench.hbm.base + 4096 * number, sizes[number]) == pattern(
                sizes[number], sizes[number]
            )
    assert bench.free_pages == 256 * KIB // NIC_PAGE
    assert bench.count("kept") == bench.count("placed") + bench.count("dropped") == 480


# Budget and timeout


def test_a_payload_beyond_the_budget_is_placed_at_once(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(4 * NIC_PAGE)
    packets = bench.receive(*[tcp(2 * NIC_PAGE)] * 3)
    assert [packet.deferred is not None for packet in packets] == [True, True, False]
    assert packets[2].payload == pattern(2 * NIC_PAGE)
    assert bench.count("full") == 1
    assert bench.place(packets[0]) == PlacementStatus.PLACED
    (packet,) = bench.receive(tcp(100))
    assert packet.deferred is not None


def test_headers_only_drops_what_does_not_fit(make_bench: Callable[..., Bench]) -> None:
    """No byte of payload goes to the queue's buffers, whatever happens."""
    bench = make_bench(4 * NIC_PAGE, headers_only=True)
    queue = bench.lab.driver.rx[0]
    buffers = bench.lab.ram.view(queue.payloads, ENTRIES * queue.config.buffer_size)
    buffers[:] = CANARY
    packets = bench.receive(*[tcp(2 * NIC_PAGE)] * 4)
    assert len(packets) == 2 and (buffers == CANARY).all()
    assert bench.lab.nic.state.drops[0, Drop.NIC_MEMORY_FULL] == 2
    assert queue.visible + queue.state.tail % 32 == ENTRIES - 1  # no buffer is lost


def test_one_queue_leaves_the_others_their_part(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(8 * NIC_PAGE, deferred_queue_bytes=4 * NIC_PAGE)
    bench.lab.driver.defer_placement(1)
    packets = bench.receive(*[tcp(NIC_PAGE)] * 5)
    assert [packet.deferred is not None for packet in packets] == [True] * 4 + [False]
    bench.lab.driver.set_rss(table=[1] * 128)
    packets = bench.receive(*[tcp(NIC_PAGE)] * 5)
    assert [packet.deferred is not None for packet in packets] == [True] * 4 + [False]
    assert bench.free_pages == 0


def test_timeout(make_bench: Callable[..., Bench]) -> None:
    """What nobody asks for in time is dropped, each payload at its own time; its handle is void then."""
    bench = make_bench(deferred_usecs=50_000)
    (first,) = bench.receive(tcp(1000))
    bench.lab.advance(30 * MS)
    (second,) = bench.receive(tcp(1000))
    bench.lab.advance(20 * MS)
    assert bench.count("expired") == 1 and bench.count("pages") == 1
    assert bench.place(first) == PlacementStatus.NOT_FOUND
    assert bench.place(second) == PlacementStatus.PLACED
    (third,) = bench.receive(tcp(1000))
    bench.lab.advance(49 * MS)
    assert bench.count("expired") == 1
    bench.lab.advance(1 * MS)
    assert bench.count("expired") == 2 and bench.free_pages == 256 * KIB // NIC_PAGE
    assert bench.place(third) == PlacementStatus.NOT_FOUND


# Bad input


@pytest.mark.breaks("DEF-013")
def test_handles_that_are_none(bench: Bench) -> None:
    (packet,) = bench.receive(tcp(1000))
    assert packet.deferred is not None
    handle = packet.deferred.handle
    for wrong in (0, 0xFFFF_FFFF, handle ^ 1, handle + (1 << 16), 1 << 16 | 200):
        bench.ring.place(wrong, [(bench.hbm.base, 1000)])
        assert bench.answer(wrong) == PlacementStatus.NOT_FOUND
    other = bench.lab.driver.defer_placement(1)
    other.drop(handle)  # of another queue
    bench.lab.run()
    assert [placement.status for placement in other.poll()] == [PlacementStatus.NOT_FOUND]
    assert bench.place(packet) == PlacementStatus.PLACED
    assert bench.place(packet) == PlacementStatus.NOT_FOUND  # a second time
    assert (bench.count("not_found"), bench.count("not_found", 1)) == (6, 1)


@pytest.mark.breaks("DEF-015")
def test_places_outside_of_memory(bench: Bench) -> None:
    """Nothing is written unless all can be; the payload stays and can still be placed."""
    (packet,) = bench.receive(tcp(3000))
    end = bench.hbm.base + bench.hbm.size
    for pieces in (
        [(end - 1000, 3000)],
        [(bench.hbm.base, 2999), (end, 1)],
        [(0, 3000)],
        [(2**64 - 1500, 3000)],
    ):
        assert bench.place(packet, *pieces) == PlacementStatus.DMA_FAULT
    assert (bench.hbm.bytes == CANARY).all()
    assert bench.count("faults") == 4 and bench.lab.nic.state.device["faults"][0] == 4
    assert bench.place(packet) == PlacementStatus.PLACED


@pytest.mark.breaks("DEF-012", "DEF-014")
def test_requests_that_contradict_the_payload_or_themselves(bench: Bench) -> None:
    packet, other = bench.receive(tcp(3000), tcp(3000))
    assert packet.deferred is not None and other.deferred is not None
    handle, base = packet.deferred.handle, bench.hbm.base
    for pieces in ([(base, 2999)], [(base, 3001)], [(base, 0)], [(base, (1 << 24) - 1)]):
        assert bench.place(packet, *pieces) == PlacementStatus.BAD_REQUEST
    mixed = {"handle": other.deferred.handle, "address": base, "length": 1000, "end_of_request": 1}
    bench.ring.post({"handle": handle, "address": base, "length": 2000}, mixed)
    assert bench.answer(handle) == PlacementStatus.BAD_REQUEST
    assert (bench.hbm.bytes == CANARY).all() and bench.count("pages") == 4
    assert bench.place(packet) == bench.place(other) == PlacementStatus.PLACED


@pytest.mark.breaks("DEF-012")
def test_more_pieces_than_a_request_may_have(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(entries=1024)
    (packet,) = bench.receive(tcp(600))
    assert bench.place(packet, *((bench.hbm.base + k, 1) for k in range(600))) == PlacementStatus.BAD_REQUEST
    assert bench.place(packet, *((bench.hbm.base + k, 1) for k in range(500)), (bench.hbm.base + 500, 100)) == 1


def test_a_request_without_end_waits_for_its_rest(bench: Bench) -> None:
    (packet,) = bench.receive(tcp(3000))
    assert packet.deferred is not None
    handle = packet.deferred.handle
    bench.ring.post({"handle": handle, "address": bench.hbm.base, "length": 1000})
    bench.lab.run()
    assert bench.ring.poll() == []
    bench.ring.post({"handle": handle, "address": bench.hbm.base + 1000, "length": 2000, "end_of_request": 1})
    assert bench.answer(handle) == PlacementStatus.PLACED


@pytest.mark.breaks("DEF-013", "DEF-014", "DEF-015", "DEF-016")
def test_random_requests(make_bench: Callable[..., Bench]) -> None:
    """Whatever is posted, each request that ends has one answer, and every page is free or some payload's."""
    bench = make_bench(64 * NIC_PAGE, entries=256, deferred_usecs=20_000)
    rng = np.random.default_rng(5)
    state = bench.lab.nic.state
    known = [0]
    asked = answered = 0
    for _ in range(400):
        for packet in bench.receive(*(tcp(int(size)) for size in rng.integers(1, 9000, rng.integers(0, 4)))):
            if packet.deferred is not None:
                known = [*known[-40:], packet.deferred.handle]
        while bench.ring.room > 8 and rng.random() < 0.7:
            handle = int(rng.choice(known)) ^ int(rng.integers(0, 2) * rng.integers(0, 4))
            kept = state.nic_pages[handle & 0xFFFF]["length"] if handle & 0xFFFF < 64 else 1
            pieces = int(rng.integers(1, 5))
            total = int(kept) + int(rng.integers(0, 2)) * int(rng.integers(-1, 2))
            cuts = [0, *sorted(int(cut) for cut in rng.integers(0, max(total, 1), pieces - 1)), max(total, 0)]
            place = bench.hbm.base + int(rng.integers(-9000, bench.hbm.size + 9000))
            for number, (start, end) in enumerate(pairwise(cuts)):
                last = int(number == pieces - 1)
                bench.ring.post(
                    {"handle": handle, "address": place + start, "length": end - start, "end_of_request": last,
                     "drop": int(rng.random() < 0.1)},
                    ring=bool(last),
                )  # fmt: skip
            asked += 1
        bench.lab.run()
        answered += len(bench.ring.poll())
        bench.lab.advance(int(rng.integers(0, 3 * MS)))
        assert asked == answered
        used, page = [], int(state.nic_memory["oldest"][0])
        while page >= 0:
            chain = page
            while chain >= 0:
                used.append(chain)
                chain = int(state.nic_pages[chain]["next"])
            page = int(state.nic_pages[page]["newer"])
        free, chain = [], int(state.nic_memory["free"][0])
        while chain >= 0:
            free.append(chain)
            chain = int(state.nic_pages[chain]["next"])
        assert sorted(used + free) == list(range(64)) and len(free) == bench.free_pages
        assert bench.count("pages") == len(used)
    counts = {name: bench.count(name) for name in ("placed", "dropped", "expired", "full", "not_found", "bad_requests")}
    assert min(counts.values()) > 0 and bench.count("faults") > 0, counts
    assert bench.count("kept") == sum(counts[name] for name in ("placed", "dropped", "expired")) + bench.kept


@pytest.mark.breaks("DBL-002", "DEF-008")
def test_doorbells_of_no_ring(bench: Bench) -> None:
    """Beyond the ring, of a queue without one, of no queue."""
    before = bench.lab.nic.counters["doorbell_unknown"]
    index = bench.ring.doorbell_index
    for place, value in ((index, ENTRIES), (index + 1, 1), (index + 100, 0)):
        bench.lab.driver.doorbells.ring(place, value)
    bench.lab.run()
    assert bench.lab.nic.counters["doorbell_unknown"] == before + 3


def test_rings_that_are_gone(bench: Bench) -> None:
    """The rings' memory is taken away: a fault, and nothing else."""
    (packet,) = bench.receive(tcp(100))
    assert packet.deferred is not None
    bench.lab.run()
    bench.lab.nic.dma.set_unreachable([(bench.lab.ram.base, bench.lab.ram.base + bench.lab.ram.size)])
    bench.ring.drop(packet.deferred.handle)
    bench.lab.run()
    assert bench.count("faults") == 1 and bench.ring.poll() == []
    bench.lab.nic.dma.set_unreachable([])
    bench.lab.advance(200 * MS)
    assert bench.count("expired") == 1


@pytest.mark.breaks("DEF-015")
def test_memory_that_goes_away_under_a_payload(bench: Bench) -> None:
    """A region is unmapped while a payload waits for its place there."""
    (packet,) = bench.receive(tcp(100))
    bench.lab.driver.unmap(bench.hbm)
    assert bench.place(packet) == PlacementStatus.DMA_FAULT


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("restart", marks=pytest.mark.breaks("DBL-002")),  # the device's, of which no command tells
        pytest.param("close", marks=pytest.mark.breaks("DEF-007")),
        pytest.param("remove", marks=pytest.mark.breaks("DEF-007")),
        "disconnect",
    ],
)
def test_the_end_of_the_queue_ends_the_payload(bench: Bench, way: str) -> None:
    """Destroyed, closed, or the client gone: all that was kept is given up, and the new queue is an ordinary one."""
    (packet,) = bench.receive(tcp(3000))
    driver, lab = bench.lab.driver, bench.lab
    if way == "restart":
        lab.run()
        lab.nic.destroy_rx(0)
    elif way == "disconnect":
        driver.disconnect()
        lab.run()
    else:
        getattr(driver, way)()
    assert bench.count("discarded") == 1 and bench.free_pages == 256 * KIB // NIC_PAGE
    assert lab.nic.state.rx[0]["deferred"] == 0
    assert packet.deferred is not None
    if way != "disconnect":
        bench.ring.place(packet.deferred.handle, [(bench.hbm.base, 3000)])
        lab.run()
        assert bench.ring.poll() == []
    assert (bench.hbm.bytes == CANARY).all()


def test_a_header_that_cannot_be_written_keeps_nothing(bench: Bench) -> None:
    queue = bench.lab.driver.rx[0]
    bench.lab.run()
    bench.lab.nic.dma.set_unreachable([(queue.headers, queue.headers + PAGE)])
    assert bench.receive(tcp(1000)) == []
    assert bench.lab.nic.state.drops[0, Drop.DMA_FAULT] == 1 and bench.count("kept") == 0


@pytest.mark.breaks("ADM-CMD-004", "ADM-CMD-005", "DEF-001", "DEF-002", "DEF-003", "OPT-002")
def test_refused(make_lab: Callable[..., Loopback], lab: Loopback) -> None:
    """The command without the option, without header split, twice, of no queue, with impossible rings."""

    def refused(where: Loopback, queue: int = 0, **fields: int) -> Status:
        rx = where.driver.rx[0]
        ring = PlacementRing(queue, rx.block, 64, where.ram, where.driver.doorbells.ring)
        command = ring.configure_command()
        for name, value in fields.items():
            command[name] = value
        with pytest.raises(AdminError) as error:
            where.driver.extended(Inner.CONFIGURE_DEFERRED_PLACEMENT, command)
        return Status(error.value.status)

    lab.driver.probe()
    assert lab.driver.description is not None and lab.driver.description.deferred_placement is None
    lab.driver.open(rx_queues=1, tx_queues=1, header_split=True)
    assert refused(lab) == Status.UNIMPLEMENTED

    able = make_lab(deferred_bytes=64 * KIB, deferred_usecs=7000)
    able.driver.probe()
    assert able.driver.description is not None
    offered = able.driver.description.deferred_placement
    assert offered is not None and offered.tolist() == (0, 64 * KIB, 64 * KIB, NIC_PAGE, 7000)
    able.driver.open(rx_queues=1, tx_queues=1)
    assert refused(able) == Status.FAILED_PRECONDITION
    able.driver.close()
    able.driver.open(rx_queues=1, tx_queues=1, header_split=True)
    assert refused(able, queue=1) == refused(able, queue=99) == Status.NOT_FOUND
    for entries in (0, 3, 8192):
        assert refused(able, entries=entries) == Status.INVALID_ARGUMENT
    assert refused(able, request_ring_address=able.ram.base + 8) == Status.INVALID_ARGUMENT
    assert refused(able, queue_resources_address=1) == Status.INVALID_ARGUMENT
    able.driver.defer_placement(0)
    assert refused(able) == Status.ALREADY_EXISTS


@pytest.mark.parametrize(
    "fields",
    [{"deferred_bytes": 100}, {"deferred_bytes": 1 << 30}, {"deferred_queue_bytes": 4096},
     {"deferred_bytes": 1 << 20, "deferred_usecs": 0}],
)  # fmt: skip
def test_profiles_that_cannot_be(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"NIC|stay"):
        Profile(**fields)  # type: ignore[arg-type]


def test_off_by_default() -> None:
    """A driver is told of the option only where it is on."""
    number = int(OptionId.DEFERRED_PLACEMENT).to_bytes(2, "big")
    assert number not in Profile(mac=bytes(6)).describe()
    assert number in Profile(mac=bytes(6), deferred_bytes=4096).describe()


@pytest.mark.breaks("DEF-013")
def test_each_placement_is_traced(bench: Bench) -> None:
    """Requests of one piece and of several, good ones and others, through many laps of the ring."""
    heard = Heard(bench.lab, kinds=["rx"])
    for _ in range(ENTRIES):
        packets = bench.receive(tcp(1000), tcp(2000))
        handles = [packet.deferred.handle for packet in packets if packet.deferred is not None]
        heard.clear()
        bench.ring.place(handles[0], [(bench.hbm.base, 400), (bench.hbm.base + 4096, 600)])
        bench.ring.drop(handles[1])
        bench.ring.place(handles[1], [(bench.hbm.base, 2000)])
        bench.lab.run()
        answers = bench.ring.poll()
        assert [event["verdict"] for event in heard] == ["placed", "dropped", "not_found"]
        assert [event["completions"][0]["handle"] for event in heard] == [answer.handle for answer in answers]
        assert [[request["length"] for request in event["descriptors"]] for event in heard] == [
            [400, 600], [0], [2000]
        ]  # fmt: skip
        assert {request["handle"] for request in heard[0]["descriptors"]} == {handles[0]}


def test_an_observer_that_fails_does_not_stop_placement(bench: Bench) -> None:
    """Requests that were not executed for its sake are at the next occasion."""

    def broken(event: events.Event) -> None:
        if isinstance(event, Placing):
            raise RuntimeError

    (packet,) = bench.receive(tcp(1000))
    assert packet.deferred is not None
    bench.lab.nic.diagnostics.observers = (broken,)
    logging.disable(logging.ERROR)
    try:
        bench.ring.place(packet.deferred.handle, [(bench.hbm.base, 1000)])
        bench.lab.run()
    finally:
        logging.disable(logging.NOTSET)
    bench.lab.nic.diagnostics.observers = ()
    assert bench.lab.nic.counters["failed_placement"] > 0
    bench.lab.nic.work()
    assert bench.answer(packet.deferred.handle) == PlacementStatus.PLACED


def test_trace_counters_and_contract() -> None:
    """The trace decodes command, completion and doorbell; the report has the counters; no rule forbids any of it."""
    profile = Profile(mac=parse_mac(NIC_MAC), deferred_bytes=64 * KIB, min_ring=ENTRIES)
    with Loopback(profile, ram=GuestMemory("ram", size=64 << 20), check=True) as lab:
        heard = Heard(lab, kinds=("admin", "doorbell", "rx"))
        bench = Bench(lab)
        (packet,) = bench.receive(tcp(1000))
        assert bench.place(packet) == PlacementStatus.PLACED
        assert lab.findings == []
        (command,) = [event["fields"] for event in heard if event.get("command") == "EXTENDED_COMMAND"]
        assert command["inner_opcode"] == "CONFIGURE_DEFERRED_PLACEMENT" and command["inner"]["entries"] == ENTRIES
        (completion,) = next(event["completions"] for event in heard if event["kind"] == "rx")
        assert packet.deferred == Deferred(completion["handle"], completion["payload_length"])
        doorbell, placed = heard[-2:]
        assert doorbell | {"time": 0} == {
            "time": 0, "nic": "nic", "kind": "doorbell", "queue": "rx0", "ring": "placement", "tail": 1
        }  # fmt: skip
        (request,), (answer,) = placed["descriptors"], placed["completions"]
        assert (placed["kind"], placed["queue"], placed["verdict"]) == ("rx", "rx0", "placed")
        assert (request["address"], request["length"], request["end_of_request"]) == (bench.hbm.base, 1000, 1)
        assert (answer["handle"], answer["head"], answer["status"]) == (packet.deferred.handle, 1, "PLACED")
        counters = snapshot(lab.nic)["rx_queues"][0]["placement"]
        assert (counters["kept"], counters["placed_bytes"], counters["pages"]) == (1, 1000, 0)
        assert 'nicmodel_placement_total{name="placed",nic="nic",queue="rx0"} 1.0' in exposition([snapshot(lab.nic)])
        lab.driver.doorbells.ring(bench.ring.doorbell_index + 1, 0)
        assert [finding.rule.name for finding in lab.findings] == ["DBL-002"]


def segment(number: int) -> bytes:
    """The segment `number` of one flow."""
    return tcp(1000, sport=1000, dport=2000, seq=1 + 1000 * number, flags="A")


def acknowledge(bench: Bench, number: int) -> None:
    """Have the driver acknowledge all segments before `number`."""
    up_to = 1 + 1000 * number
    bench.lab.driver.send(
        0, tcp(0, src="192.0.2.1", dst="192.0.2.2", sport=2000, dport=1000, ack=up_to, flags="A")
    )  # fmt: skip
    bench.lab.run()


def test_what_may_be_acknowledged(bench: Bench) -> None:
    """What was placed, also while it waits on the NIC a second time, and by whichever of its copies it came."""
    first, second, third = bench.receive(*map(segment, range(3)))
    assert bench.place(first) == bench.place(second) == PlacementStatus.PLACED
    acknowledge(bench, 2)
    bench.receive(segment(1))  # its acknowledgement was lost
    acknowledge(bench, 2)
    (again,) = bench.receive(segment(2))
    assert bench.place(again) == PlacementStatus.PLACED
    acknowledge(bench, 3)
    assert bench.place(third) == PlacementStatus.PLACED
    late, early = bench.receive(segment(4), segment(3))
    assert bench.place(early) == PlacementStatus.PLACED
    acknowledge(bench, 4)
    assert bench.place(late) == PlacementStatus.PLACED
    acknowledge(bench, 5)


@pytest.mark.breaks("DEF-017")
def test_what_only_waits_may_not(bench: Bench) -> None:
    first, _ = bench.receive(segment(0), segment(1))
    assert bench.place(first) == PlacementStatus.PLACED
    acknowledge(bench, 1)
    assert bench.lab.findings == []
    acknowledge(bench, 2)
