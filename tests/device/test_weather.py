"""Weather: what a device may do and rarely does. A driver that keeps the contract loses nothing, whatever the seed."""

from __future__ import annotations

import random
import socket
import struct
from collections import Counter
from collections.abc import Callable

import pytest

from nicmodel.faults import FaultError, Scenario, Weather
from nicmodel.faults.weather import behaviours
from nicmodel.gvnic.commands import OsType
from nicmodel.gvnic.descriptors import TxCompletionType
from nicmodel.gvnic.faults.kinds import KINDS, MOST_BUFFERS, TxMiss
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxPacket
from nicmodel.gvnic.testing.tx import QueueFull
from nicmodel.nic import events
from nicmodel.nic.mac import parse_mac
from nicmodel.testing.guest_memory import GuestMemory

from .conftest import ENTRIES
from .frames import NIC_MAC, pattern, tcp, udp

MS = 1_000_000
#: Behaviours that come after seconds.
RARE = {"stats-late", "clock-jump"}
#: Where in the frames of these tests, which have no options, the protocol, the TCP header and its payload are.
IP_PROTOCOL, TCP_HEADER, TCP_PAYLOAD = 23, 34, 54
QUEUES = 2
#: Behaviours that lose no packet, all of which any weather has.
GENTLE = [name for name, kind in behaviours(KINDS).items() if not kind.loses]


def make(weather: str | None, *, rsc: bool = True, entries: int = ENTRIES) -> Loopback:
    """A lab of two queues each way, with header split, whose driver is watched and has opened its queues."""
    lab = Loopback(
        Profile(mac=parse_mac(NIC_MAC), queues=QUEUES, default_queues=QUEUES, min_ring=ENTRIES),
        ram=GuestMemory("ram", size=32 << 20),
        check=True,
        weather=None if weather is None else Weather.parse(weather),
    )
    driver = lab.driver
    driver.probe()
    driver.open(rx_queues=QUEUES, tx_queues=QUEUES, ring_entries=entries, header_split=True, rsc=rsc)
    for vector in range(driver.blocks):
        driver.enable(vector, interval_us=0)
    lab.run()
    return lab


def strikes(lab: Loopback) -> Counter[str]:
    """How often each behaviour was shown."""
    counts = lab.nic.counters
    return Counter({name[6:]: count for name, count in counts.items() if name.startswith("fault ")})


class Traffic:
    """Frames both ways, and what has become of them.

    Attributes:
        received: of each flow, the bytes that came, by their place in it.
        sent: what was sent, by the packet's tag and its place among all.
    """

    FLOWS = 4

    def __init__(self, lab: Loopback, seed: int) -> None:
        self.lab = lab
        self.chance = random.Random(seed)
        self.streams = [bytearray() for _ in range(self.FLOWS)]
        self.received: list[dict[int, bytes]] = [{} for _ in range(self.FLOWS)]
        self.datagrams: Counter[bytes] = Counter()
        self.got: Counter[bytes] = Counter()
        self.sent: Counter[bytes] = Counter()
        self.left: Counter[bytes] = Counter()
        self.tags = [0] * QUEUES
        self.errors = 0

    def turn(self, number: int) -> None:
        """Some frames in, some out; the driver looks at its queues whether or not it was interrupted."""
        lab, driver, chance = self.lab, self.lab.driver, self.chance
        frames = []
        for flow in chance.choices(range(self.FLOWS), k=3):
            size = chance.choice([1, 200, 1448, 4000])
            for _ in range(chance.randint(1, 4)):  # in one piece, or in several that may be merged
                stream = self.streams[flow]
                content = chance.randbytes(size)
                frames.append(tcp(content, sport=1000 + flow, seq=len(stream), flags="A"))
                stream += content
        frames.append(udp(number.to_bytes(4, "big") + chance.randbytes(chance.choice([60, 3000, 8000])), sport=number))
        self.datagrams[frames[-1]] += 1
        lab.receive(*frames)
        for queue in range(QUEUES):
            frame = udp(number.to_bytes(4, "big") + chance.randbytes(chance.choice([60, 1400])), sport=9000 + queue)
            try:
                driver.send(queue, frame)
            except QueueFull:
                continue
            self.tags[queue] += 1
            self.sent[frame] += 1
        lab.run()
        self.look()
        lab.advance(chance.choice([0, 100_000, 2 * MS]))

    def look(self) -> None:
        """Take what has come."""
        driver = self.lab.driver
        for vector in range(driver.blocks):
            if driver.fired(vector):
                driver.enable(vector)
        for packet in driver.poll_all():
            self.take(packet)
        for queue in range(QUEUES):
            done = driver.poll_tx(queue)
            self.tags[queue] -= sum(one.type in (TxCompletionType.PACKET, TxCompletionType.REINJECTION) for one in done)
        for one in self.lab.wire.take():
            self.left[one] += 1

    def take(self, packet: RxPacket) -> None:
        """What a packet brings."""
        frame = packet.frame
        if frame[IP_PROTOCOL] != socket.IPPROTO_TCP:
            self.got[frame] += 1
            return
        port, _, start = struct.unpack_from("!HHI", frame, TCP_HEADER)
        assert start not in self.received[port - 1000]
        self.received[port - 1000][start] = frame[TCP_PAYLOAD:]

    def check(self) -> None:
        """Nothing is lost, nothing came twice, every buffer is the driver's again."""
        lab = self.lab
        for _ in range(20):
            lab.advance(20 * MS)
            self.look()
        for stream, pieces in zip(self.streams, self.received, strict=True):
            assert b"".join(pieces[start] for start in sorted(pieces)) == stream
        assert self.got == self.datagrams
        assert self.left == self.sent
        assert self.tags == [0] * QUEUES and not any(queue.pending for queue in lab.driver.tx.values())
        assert not any(queue.errors for queue in lab.driver.rx.values())
        assert lab.findings == []
        assert "internal_error" not in lab.nic.counters


SEEDS = (1, 2, 3)


def test_no_weather_loses_anything() -> None:
    """All behaviours at once, and each of them is shown by one of the seeds."""
    shown: Counter[str] = Counter()
    for seed in SEEDS:
        with make(f"{seed}:0.8") as lab:
            traffic = Traffic(lab, seed)
            for number in range(20):
                traffic.turn(number)
                if number % 5 == 0:
                    lab.driver.report_link_speed()
            traffic.check()
            shown += strikes(lab)
            assert {one.fault.name for one in lab.faults.injections.values()} == set(GENTLE)
    assert set(GENTLE) - RARE <= shown.keys(), shown


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 22))
def test_no_weather_loses_anything_by_many_seeds(seed: int) -> None:
    with make(f"{seed}:0.9", entries=64 if seed % 2 else 256) as lab:
        traffic = Traffic(lab, seed)
        for number in range(120):
            traffic.turn(number)
        traffic.check()


def test_the_same_seed_and_traffic_give_the_same_weather() -> None:
    runs = []
    for weather in ("5:0.5", "5:0.5", "6:0.5"):
        with make(weather) as lab:
            told: list[tuple[int, str, object]] = []

            def hear(event: events.Event, lab: Loopback = lab, told: list[tuple[int, str, object]] = told) -> None:
                if isinstance(event, events.Injected):
                    told.append((lab.now, event.fault, tuple(event.details.items())))

            lab.nic.diagnostics.watch(hear)
            traffic = Traffic(lab, 1)
            for number in range(8):
                traffic.turn(number)
            traffic.check()
            runs.append(told)
    assert runs[0] == runs[1] != runs[2]
    assert len(runs[0]) > 50


def test_a_behaviour_alone_is_as_in_the_mixture() -> None:
    mixture = {one.name: one for one in Weather.parse("7:0.3").scenario(KINDS)}
    assert list(mixture) == GENTLE
    for name in GENTLE:
        assert Weather.parse(f"7:0.3:{name}").scenario(KINDS) == [mixture[name]]
    assert all(one.probability <= 0.3 for one in mixture.values())
    assert Weather.parse("8:0.3").scenario(KINDS) != list(mixture.values())


def test_a_weather_can_be_written_down_as_a_scenario() -> None:
    weather = Weather.parse("7:0.3")
    written = Scenario.parse(weather.toml(KINDS), KINDS)
    assert [fault for _, fault in written.faults] == weather.scenario(KINDS)


def test_a_scenario_has_weather() -> None:
    text = "[[weather]]\nseed = 7\nstrength = 0.3\nonly = ['tx-miss']\n[[weather]]\nseed = 1\nnic = 'nic'\n"
    with make(None) as lab:
        Scenario.parse(text, KINDS).begin([lab.faults])
        names = [one.fault.name for one in lab.faults.injections.values()]
        assert names == ["tx-miss", *GENTLE]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"weather is ''; it is SEED\[:STRENGTH\[:NAME,...\]\]"),
        ("rain", "such as 7:0.3"),
        ("1.5", "a seed is a whole number"),
        ("7:often", "the strength of weather is 'often'; it is a number from 0 to 1"),
        ("7:2", "strength of weather is 2.0; it is 0 to 1"),
        ("7:nan", "it is 0 to 1"),
        ("7:0.3:tx-mist", "'tx-mist' is no behaviour of weather; there are .*tx-miss"),
        ("7:0.3:wire-drop", "'wire-drop' breaks the contract"),
    ],
)
def test_what_is_no_weather(text: str, reason: str) -> None:
    with pytest.raises(FaultError, match=reason):
        Weather.parse(text).scenario(KINDS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("weather = 1", "weather is a table"),
        ("[weather]\nstrength = 1", "the seed of weather is None"),
        ("[weather]\nseed = 1\nstrength = 'x'", "strength of weather is 'x'"),
        ("[weather]\nseed = 1\nonly = 'tx-miss'", "only is a list"),
        ("[weather]\nseed = 1\nonly = ['tx-miss', 'tx-miss']", "each once"),
        ("[weather]\nseed = 1\nname = 'tx-miss'", "weather has a seed, strength, only and nic, but no 'name'"),
        ("[weather]\nseed = 1\nnic = 1", "nic is 1"),
        ("[weather]\nseed = 1\nonly = ['x']", "'x' is no behaviour"),
        ("[weather]\nseed = 1\nnic = 'nic9'", "weather: there is no NIC 'nic9'"),
    ],
)
def test_what_is_no_weather_of_a_scenario(lab: Loopback, text: str, reason: str) -> None:
    with pytest.raises(FaultError, match=reason):
        Scenario.parse(text, KINDS).begin([lab.faults])
    assert lab.faults.injections == {}


# Each behaviour.


@pytest.fixture
def driver(lab: Loopback) -> Driver:
    """A queue each way with header split; no moderation, all vectors enabled."""
    driver = lab.driver
    driver.probe()
    driver.open(rx_queues=1, tx_queues=1, ring_entries=ENTRIES, header_split=True)
    for vector in range(driver.blocks):
        driver.enable(vector, interval_us=0)
    lab.run()
    for vector in range(driver.blocks + 1):
        driver.fired(vector)
    return driver


def send(lab: Loopback, count: int = 1) -> list[int]:
    """Send packets in one batch; their tags."""
    tags = [lab.driver.tx[0].send(tcp(), kick=False) for _ in range(count)]
    lab.driver.tx[0].kick()
    lab.run()
    return tags


def completed(lab: Loopback) -> list[tuple[str, int]]:
    """Completions of packets since the last call."""
    return [(one.type.name, one.tag_or_head) for one in lab.driver.poll_tx(0) if one.type.name != "DESCRIPTOR"]


@pytest.mark.parametrize("form", ["type", "bit"])
def test_a_packet_is_completed_in_two_steps(lab: Loopback, driver: Driver, form: str) -> None:
    lab.faults.add("tx-miss", delay=0.3, form=form, count=1)
    first, second = send(lab, 2)
    assert len(lab.wire.take()) == 2
    assert completed(lab) == [("MISS", first), ("PACKET", second)]
    lab.advance(299 * MS)
    assert completed(lab) == []
    driver.enable(driver.tx_block(0))
    lab.run()
    driver.fired(driver.tx_block(0))
    lab.advance(1 * MS)
    assert completed(lab) == [("REINJECTION", first)]
    assert driver.fired(driver.tx_block(0)) == 1
    assert lab.wire.take() == []


def test_a_miss_whose_end_never_comes(lab: Loopback, driver: Driver) -> None:
    injection = lab.faults.add(TxMiss(delay=None))
    (tag,) = send(lab)
    lab.advance(100_000 * MS)
    assert completed(lab) == [("MISS", tag)] and driver.tx[0].missed == {tag}
    assert injection.hits == 1


@pytest.mark.parametrize(("os_type", "capabilities"), [(OsType.FREEBSD, 0x0B), (OsType.DPDK, 0x0B)])
def test_a_driver_that_knows_no_misses_gets_none(lab: Loopback, os_type: OsType, capabilities: int) -> None:
    lab.driver.probe()
    lab.driver.verify_compatibility(os_type, capabilities)
    lab.driver.open(rx_queues=1, tx_queues=1, ring_entries=ENTRIES)
    lab.faults.add("tx-miss")
    tags = send(lab, 3)
    assert completed(lab) == [("PACKET", tag) for tag in tags]
    assert strikes(lab) == {}


def test_packets_are_completed_in_another_order(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("tx-order", seed="1")
    tags = send(lab, 20)
    done = [tag for _, tag in completed(lab)]
    assert sorted(done) == sorted(tags) and done != tags


def test_completions_fill_a_line(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("tx-hold", delay=0.001)
    tags = send(lab, 18)
    assert [tag for _, tag in completed(lab)] == tags[:16]
    lab.advance(1 * MS)
    assert [tag for _, tag in completed(lab)] == tags[16:]


def test_completions_that_wait_are_there_when_the_weather_ends(lab: Loopback, driver: Driver) -> None:
    injections = [lab.faults.add("tx-hold", delay=10), lab.faults.add("tx-report-late", delay=10)]
    tags = send(lab, 20)
    for injection in injections:
        lab.faults.remove(injection)
    assert [tag for _, tag in completed(lab)] == tags
    assert driver.tx[0].room > ENTRIES - 1 - 40


def test_a_completion_of_descriptors_stands_for_those_before(lab: Loopback, driver: Driver) -> None:
    """The first is late, and when it comes it is the second; the ring never seems to have less room than before."""
    lab.faults.add("tx-report-late", delay=0.002)
    rooms = []
    for _ in range(30):
        send(lab, 4)
        completed(lab)
        rooms.append(driver.tx[0].room)
        lab.advance(1 * MS)
        completed(lab)
    lab.advance(5 * MS)
    completed(lab)
    assert min(rooms) < ENTRIES - 8 - 33 < driver.tx[0].room
    assert strikes(lab)["tx-report-late"] > 3


def test_a_packet_is_spread_over_more_buffers(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-spread", seed="1")
    small, large = udp(1800), udp(8000)
    lab.receive(small, large)
    one, other = driver.poll(0)
    assert (one.frame, other.frame) == (small, large)
    assert len(one.buffers) == 1
    assert 4 < len(other.buffers) <= MOST_BUFFERS
    assert all(buffer.length < driver.rx[0].buffer_size for buffer in other.buffers)


def test_packets_use_buffers_in_another_order(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-scatter", seed="1")
    posted = [int(word) & 0xFFFF for word in driver.rx[0].buffer_ring[:8, 0]]
    frames = [udp(pattern(1200, number), sport=number) for number in range(3)] + [udp(5000)]
    lab.receive(*frames)
    packets = driver.poll(0)
    assert [packet.frame for packet in packets] == frames
    used = [buffer.id for packet in packets for buffer in packet.buffers]
    assert used != posted[: len(used)] and sorted(used) == sorted(posted[: len(used)])


def test_who_looks_on_finds_scattered_buffers(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-scatter", seed="1")
    frames = [udp(pattern(1200, number), sport=number) for number in range(6)]
    deliveries = lab.inject(frames)
    assert [delivery.payload for delivery in deliveries] == [frame[42:] for frame in frames]
    assert [delivery.header for delivery in deliveries] == [frame[:42] for frame in frames]


def test_an_aggregate_is_cut(make_lab: Callable[..., Loopback]) -> None:
    lab = make_lab()
    lab.driver.probe()
    lab.driver.open(rx_queues=1, tx_queues=1, ring_entries=ENTRIES, rsc=True)
    frames = [tcp(500, seq=500 * number, flags="A") for number in range(4)]
    lab.receive(*frames)
    assert len(lab.driver.poll(0)) == 1
    lab.faults.add("rx-cut", count=1)
    lab.receive(*frames)
    assert len(lab.driver.poll(0)) == 2


def test_packets_that_were_not_verified_and_have_no_timestamp(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-unverified", count=1)
    lab.faults.add("rx-no-timestamp", count=1)
    lab.receive(tcp(), tcp())
    one, other = driver.poll(0)
    assert (one.checksum_unnecessary, one.timestamp) == (False, None)
    assert other.checksum_unnecessary and other.timestamp is not None


def test_received_completions_fill_a_line(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-hold", delay=0.001)
    lab.receive(*[tcp()] * 6)
    assert len(driver.poll(0)) == 4
    lab.advance(1 * MS)
    assert len(driver.poll(0)) == 2


def test_an_interrupt_comes_before_what_it_tells_of(lab: Loopback, driver: Driver) -> None:
    vector = driver.rx_block(0)
    lab.faults.add("irq-early", delay=0.001)
    lab.receive(tcp())
    assert driver.fired(vector) == 1 and driver.poll(0) == []
    driver.enable(vector)
    lab.run()
    assert driver.fired(vector) == 0
    lab.advance(1 * MS)
    assert driver.fired(vector) == 1 and len(driver.poll(0)) == 1


def test_interrupts_come_together(lab: Loopback, driver: Driver) -> None:
    vectors = [driver.rx_block(0), driver.tx_block(0)]
    lab.faults.add("irq-merged", delay=0.002)
    lab.receive(tcp())
    lab.advance(1 * MS)
    send(lab)
    assert [driver.fired(vector) for vector in vectors] == [0, 0]
    lab.advance(1 * MS)
    assert [driver.fired(vector) for vector in vectors] == [1, 1]
    assert strikes(lab) == {"irq-merged": 2}


def test_the_clock_jumps(lab: Loopback, driver: Driver) -> None:
    """What the driver is told of the time, and what packets say of it, jump together."""
    injection = lab.faults.add("clock-jump", step=0.5, period=1, count=3)
    for jumps in (0, 1, 2):
        lab.receive(tcp())
        [packet] = driver.poll(0)
        assert packet.timestamp == lab.now + jumps * 500 * MS & 0xFFFFFFFF
        assert driver.nic_timestamp() == lab.now + jumps * 500 * MS
        lab.advance(1000 * MS)
    lab.faults.remove(injection)
    assert driver.nic_timestamp() == lab.now
