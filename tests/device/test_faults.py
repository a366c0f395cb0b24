"""Faults on demand, each against the driver in Python, on a clock that only the test moves."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from nicmodel.faults import FaultError, Scenario
from nicmodel.faults.fault import SPAN, Late, Parameter
from nicmodel.faults.faults import named_fault
from nicmodel.faults.scenario import Frame
from nicmodel.gvnic.commands import OptionId, Status
from nicmodel.gvnic.descriptors import TxCompletionType
from nicmodel.gvnic.faults.kinds import KINDS
from nicmodel.gvnic.registers import ADMINQ_EVENT_COUNTER, DeviceStatus
from nicmodel.gvnic.testing.adminq import AdminError, AdminTimeout
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.violation import ContractViolation
from nicmodel.nic import events
from nicmodel.nic.state import Drop
from nicmodel.packet.frames import FrameFlag, Gso
from nicmodel.vfio_user.protocol import PciRegion

from .conftest import ENTRIES
from .frames import tcp
from .test_trace import Heard

MS = 1_000_000


@pytest.fixture
def driver(lab: Loopback) -> Driver:
    """Two queues each way with header split; hashes go to queue 0; no moderation, all vectors enabled."""
    driver = lab.driver
    driver.probe()
    driver.open(rx_queues=2, tx_queues=2, ring_entries=ENTRIES, header_split=True)
    driver.set_rss(table=[0] * 128)
    for vector in range(driver.blocks):
        driver.enable(vector, interval_us=0)
    lab.run()
    for vector in range(driver.blocks + 1):
        driver.fired(vector)
    return driver


def hits(lab: Loopback) -> dict[str, int]:
    """Strikes by the fault's name."""
    counts = lab.nic.counters
    return {name.removeprefix("fault "): count for name, count in counts.items() if name.startswith("fault ")}


def send(lab: Loopback, queue: int = 0, count: int = 1) -> list[int]:
    """Send packets; their tags."""
    tags = [lab.driver.send(queue, tcp()) for _ in range(count)]
    lab.run()
    return tags


def completed(lab: Loopback, queue: int = 0) -> list[int]:
    """Tags of the packets that are completed since the last call."""
    done = lab.driver.poll_tx(queue)
    return [completion.tag_or_head for completion in done if completion.type == TxCompletionType.PACKET]


def test_a_fault_that_does_not_exist_is_refused_with_those_that_do(lab: Loopback) -> None:
    with pytest.raises(FaultError, match=r"no fault 'tx-newer', but .*tx-never"):
        lab.faults.add("tx-newer")
    with pytest.raises(FaultError, match="no parameter 'probabilty', but queue, probability"):
        lab.faults.add("tx-never", probabilty=1)
    with pytest.raises(FaultError, match="probability is 'often'; it takes a number"):
        lab.faults.add("tx-never", probability="often")
    with pytest.raises(FaultError, match="it is 0 to 1"):
        lab.faults.add("tx-never", probability=2)
    with pytest.raises(FaultError, match="duration is -1; it is 0 to 1000000000"):
        lab.faults.add("tx-never", duration=-1)
    assert lab.faults.injections == {}


NUMBERS = [(name, one) for name, kind in KINDS.items() for one in kind.parameters().values() if one.range is not None]
WORDS = [(name, one) for name, kind in KINDS.items() for one in kind.parameters().values() if one.words]


def add(lab: Loopback, fault: str, parameters: dict[str, Any]) -> None:
    lab.faults.add(named_fault(fault, parameters, KINDS))


def last(lab: Loopback, parameter: Parameter) -> int:
    """The highest that a number may be."""
    assert parameter.range is not None
    high = parameter.range.high
    return int(high(lab.nic) if callable(high) else high)


@pytest.mark.parametrize(("fault", "parameter"), NUMBERS, ids=[f"{name}-{one.name}" for name, one in NUMBERS])
def test_numbers_have_a_range(lab: Loopback, fault: str, parameter: Parameter) -> None:
    assert parameter.range is not None
    low, high = parameter.range.low, last(lab, parameter)
    beyond = [low - 1, high + 1, -high, math.inf, -math.inf, math.nan, 10**400]
    others = [[], {}, True, "often", "", "nan", "inf", "-1", "9" * 5000, "\ud800", "0x", b"1", [1]]
    for value in [*beyond, *others, *([] if float in parameter.kinds else [1.5, "1.5", 1.0])]:
        with pytest.raises(FaultError, match=f"{fault}: {parameter.name} ") as refused:
            add(lab, fault, {parameter.name: value})
        assert len(str(refused.value)) < 200
    assert lab.faults.injections == {}
    add(lab, fault, {parameter.name: str(high)})
    add(lab, fault, {parameter.name: low, "start": 5 if parameter.name != "start" else low})
    lab.advance(MS)
    lab.faults.clear()


@pytest.mark.parametrize(("fault", "parameter"), WORDS, ids=[f"{name}-{one.name}" for name, one in WORDS])
def test_words_are_of_a_list(lab: Loopback, fault: str, parameter: Parameter) -> None:
    for value in ["", "RX", 1, True, [], {}, "x" * 5000, parameter.words[0] + " "]:
        with pytest.raises(FaultError, match=f"{fault}: {parameter.name} is .*{parameter.words[0]}"):
            add(lab, fault, {parameter.name: value})
    for word in parameter.words:
        add(lab, fault, {parameter.name: word, "start": 1})
        lab.faults.clear()


def test_every_parameter_is_a_word_or_has_a_range() -> None:
    names = {(name, one) for name, kind in KINDS.items() for one in kind.parameters()}
    assert names == {(name, one.name) for name, one in NUMBERS + WORDS}


def test_a_nic_has_so_many_faults_and_no_more(lab: Loopback) -> None:
    for _ in range(99):
        lab.faults.add("wire-drop", start=1000)
    scenario = Scenario.parse("[[fault]]\nname = 'wire-drop'\n[[fault]]\nname = 'wire-drop'\n", KINDS)
    with pytest.raises(FaultError, match="can have 100 faults at a time"):
        scenario.begin([lab.faults])
    assert len(lab.faults.injections) == 99, "nothing of it has begun"
    lab.faults.add("wire-drop")
    with pytest.raises(FaultError, match="can have 100 faults at a time"):
        lab.faults.add("wire-drop")


def test_a_scenario_about_what_a_nic_does_not_have(lab: Loopback) -> None:
    text = "[[fault]]\nname = 'wire-drop'\n[[fault]]\nname = 'irq-lost'\nvector = 17\n"
    with pytest.raises(FaultError, match="irq-lost: vector is 17; it is 0 to 16"):
        Scenario.parse(text, KINDS).begin([lab.faults])
    assert lab.faults.injections == {}
    for value in ("nan", "inf", "-inf", "1e300", "-1", "true", "[]", "1979-05-27"):
        with pytest.raises(FaultError, match="fault 1: wire-drop: start is"):
            Scenario.parse(f"[[fault]]\nname = 'wire-drop'\nstart = {value}", KINDS)


@pytest.mark.parametrize("fault", list(KINDS))
def test_faults_that_come_and_go_leave_no_timers(lab: Loopback, driver: Driver, fault: str) -> None:
    spans = {one.name: 10**9 for name, one in NUMBERS if name == fault and one.range is SPAN and one.name != "start"}
    spans |= {name: 10**9 for name in ("period", "interval") if name in KINDS[fault].parameters()}
    for start in (0, 10**9):
        for _ in range(3):
            add(lab, fault, {"start": start, **spans})
            lab.run()
            lab.faults.clear()
            lab.run()
    assert lab.nic.port.cable
    due = lab.host.poller.next_due
    assert due is None or due < lab.now + 10**15


def test_what_is_late_is_limited(lab: Loopback, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit nothing is late: completions and interrupts come at once, in order."""
    monkeypatch.setattr(Late, "LIMIT", 3)
    lab.faults.add("tx-late", delay=1000)
    tags = send(lab, count=5)
    assert completed(lab) == tags[3:]
    lab.faults.clear()
    lab.faults.add("rx-late", delay=1000)
    lab.receive(*[tcp(dport=number) for number in range(5)])
    lab.faults.clear()
    assert lab.nic.counters["fault not late: too much waits"] == 4
    lab.advance(1000 * 1000 * MS)
    assert len(driver.poll(0)) == 5 and sorted(completed(lab)) == tags[:3]


def test_a_wire_that_delays_holds_so_many_frames(lab: Loopback, driver: Driver) -> None:
    """A neighbour that sends faster than frames are let through does not fill the memory."""
    lab.faults.add("wire-delay", delay=1000, direction="rx")
    lab.faults.add("wire-duplicate", direction="rx")
    for _ in range(100):
        lab.receive(*[tcp()] * 100)
    assert lab.nic.wire.counters["fault_overflow"] >= 2 * 10_000 - 4096 - 2


def test_a_cable_pulled_again_and_again_for_long(lab: Loopback) -> None:
    """A pull while the cable is out makes it stay out longer."""
    lab.faults.add("wire-flap", period=0.01, down=0.025, count=3)  # pulled at 0, 10 and 20 ms
    lab.advance(44 * MS)
    assert not lab.nic.port.cable
    lab.advance(2 * MS)
    assert lab.nic.port.cable
    lab.advance(1000 * MS)
    assert lab.nic.port.cable and hits(lab) == {"wire-flap": 3}


# Transmit.


def test_completions_that_never_come(lab: Loopback, driver: Driver) -> None:
    """The packets leave, later ones are completed, and the interrupt comes for those only."""
    lab.faults.add("tx-never", count=3)
    tags = send(lab, count=3)
    assert len(lab.wire.take()) == 3
    assert completed(lab) == []
    assert driver.fired(driver.tx_block(0)) == 0
    later = send(lab, count=2)
    assert completed(lab) == later
    assert driver.fired(driver.tx_block(0)) == 1
    assert set(driver.tx[0].pending) == set(tags)
    assert hits(lab) == {"tx-never": 3}
    assert lab.faults.injections == {}  # it is over


def test_a_trace_tells_which_packet_has_no_completion(lab: Loopback, driver: Driver) -> None:
    heard = Heard(lab, kinds=["tx"])
    lab.faults.add("tx-never", count=2)
    tags = send(lab, count=4)
    found = [[one["tag_or_head"] for one in event["completions"] if one["type"] == "PACKET"] for event in heard]
    assert found == [[], [], [tags[2]], [tags[3]]]


def test_a_queue_without_completions_is_whole_again_after_a_reset(lab: Loopback, driver: Driver) -> None:
    fault = lab.faults.add("tx-never", queue=1)
    send(lab, queue=1, count=5)
    assert completed(lab, queue=1) == []
    assert send(lab) == completed(lab)
    lab.faults.remove(fault)
    driver.reset()
    driver.open(rx_queues=2, tx_queues=2, ring_entries=ENTRIES)
    for _ in range(12):  # three laps of the ring
        tags = send(lab, queue=1, count=ENTRIES // 8)
        assert completed(lab, queue=1) == tags


def test_late_completions(lab: Loopback, driver: Driver) -> None:
    """A late completion is overtaken by one that is not, and raises an interrupt of its own."""
    lab.faults.add("tx-late", delay=0.02, count=1)
    [late] = send(lab)
    [prompt] = send(lab)
    assert completed(lab) == [prompt]
    driver.enable(driver.tx_block(0))
    driver.fired(driver.tx_block(0))
    lab.run()
    lab.advance(19 * MS)
    assert completed(lab) == []
    assert driver.fired(driver.tx_block(0)) == 0
    lab.advance(1 * MS)
    assert completed(lab) == [late]
    assert driver.fired(driver.tx_block(0)) == 1
    assert hits(lab) == {"tx-late": 1}


def test_a_completion_later_than_its_queue_is_not_written(lab: Loopback, driver: Driver) -> None:
    """The memory of a ring may be something else by then."""
    lab.faults.add("tx-late", delay=0.02)
    send(lab)
    ring, size = driver.tx[0].completion_ring_address, driver.tx[0].completion_ring.nbytes
    driver.reset()
    lab.ram.write(ring, b"\xaa" * size)
    lab.advance(30 * MS)
    assert lab.ram.read(ring, size) == b"\xaa" * size


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_gives_the_same_faults(make_lab: Callable[..., Loopback], seed: int) -> None:
    runs = []
    for _ in range(2):
        lab = make_lab()
        lab.faults.seed = seed
        lab.driver.probe()
        lab.driver.open(rx_queues=1, tx_queues=1, ring_entries=256)
        lab.faults.add("tx-never", probability=0.5)
        tags = send(lab, count=60)
        done = set(completed(lab))
        runs.append([tag in done for tag in tags])
    assert runs[0] == runs[1]
    assert 10 < sum(runs[0]) < 50


# Wire.


def received(lab: Loopback, queue: int = 0) -> list[bytes]:
    """Frames received on a queue since the last call."""
    return [packet.header + packet.payload for packet in lab.driver.poll(queue)]


def numbered(count: int) -> list[bytes]:
    """Frames that can be told apart."""
    return [tcp(64, sport=1000 + number) for number in range(count)]


@pytest.mark.parametrize("direction", ["rx", "tx", "both"])
def test_lost_frames(lab: Loopback, driver: Driver, direction: str) -> None:
    lab.faults.add("wire-drop", direction=direction, count=4)
    frames = numbered(2)
    lab.receive(*frames)
    assert received(lab) == (frames if direction == "tx" else [])
    tags = send(lab, count=2)
    assert len(lab.wire.take()) == (2 if direction == "rx" else 0)
    assert completed(lab) == tags  # what the wire does to a frame is nothing to the queue
    assert hits(lab) == {"wire-drop": 4 if direction == "both" else 2}


def test_frames_of_an_injection_are_behind_the_wire(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("wire-drop")
    [delivery] = lab.inject([tcp()])
    assert delivery.queue == 0


def test_a_corrupted_frame_has_one_bit_other_and_a_bad_checksum(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("wire-corrupt", direction="rx")
    frame = tcp(500)
    lab.receive(*[frame] * 20)
    for packet in driver.poll(0):
        got = packet.header + packet.payload
        assert sum((a ^ b).bit_count() for a, b in zip(got, frame, strict=True)) == 1
        assert got[:14] == frame[:14]
    assert hits(lab) == {"wire-corrupt": 20}
    assert lab.nic.state.rx["bad_checksum"].sum() > 10  # a bit in the header may make it no TCP at all


def test_duplicates(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("wire-duplicate", direction="rx", count=1)
    first, second = numbered(2)
    lab.receive(first, second)
    assert received(lab) == [first, first, second]


def test_delayed_frames_keep_their_order(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("wire-delay", direction="rx", delay=0.01, count=1)
    frames = numbered(3)
    lab.receive(*frames)
    assert received(lab) == []
    lab.advance(10 * MS)
    assert received(lab) == frames


def test_reordered_frames_are_overtaken(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("wire-reorder", delay=0.01, count=1)
    frames = numbered(3)
    lab.receive(*frames)
    assert received(lab) == frames[1:]
    lab.advance(10 * MS)
    assert received(lab) == frames[:1]


def test_a_slow_line_carries_its_rate_and_no_more(lab: Loopback, driver: Driver) -> None:
    """1000 frames a second, of which 8 may wait: of 20 that come at once 12 are lost."""
    frame = tcp()
    fault = lab.faults.add("wire-rate", direction="rx", rate=8000 * len(frame), limit=8)
    lab.receive(*[frame] * 20)
    for _ in range(8):
        assert received(lab) == []
        lab.advance(1 * MS)
        assert received(lab) == [frame]
    lab.advance(100 * MS)
    assert received(lab) == []
    assert hits(lab) == {"wire-rate": 12}
    lab.faults.remove(fault)
    lab.receive(*[frame] * 20)
    assert received(lab) == [frame] * 20


def test_a_slow_line_makes_the_driver_wait(lab: Loopback, driver: Driver) -> None:
    """Nothing that the driver sends is lost; what does not fit the line waits in its ring."""
    lab.faults.add("wire-rate", direction="tx", rate=8000 * len(tcp()), limit=4)
    tags = send(lab, count=20)
    assert lab.wire.take() == []
    for _ in range(20):
        lab.advance(1 * MS)
        assert len(lab.wire.take()) == 1
    lab.run()
    assert completed(lab) == tags
    assert hits(lab) == {}


def test_an_aggregate_is_cut_before_a_fault_strikes(lab: Loopback, driver: Driver) -> None:
    """Loss is of frames as a medium has them, and their checksums are whole."""
    lab.faults.add("wire-drop", direction="rx", count=1)
    whole = tcp(3000)
    headers = len(whole) - 3000
    lab.run()
    lab.wire.inject(whole, gso=Gso.TCPV4, segment=1000, header=headers, flags=FrameFlag.NEEDS_CSUM,
                    csum_start=34, csum_offset=16)  # fmt: skip
    got = driver.poll(0)
    assert [packet.payload for packet in got] == [whole[headers + 1000 :][:1000], whole[headers + 2000 :]]
    assert not lab.nic.state.rx["bad_checksum"].any()


def test_a_cable_that_flaps(lab: Loopback, driver: Driver) -> None:
    fault = lab.faults.add("wire-flap", down=0.5, period=2)
    seen = []
    for _ in range(8):
        seen.append(bool(driver.device_status() & DeviceStatus.LINK_UP))
        lab.advance(500 * MS)
    assert seen == [False, True, True, True] * 2
    assert driver.fired(driver.management_vector) >= 1
    lab.faults.remove(fault)
    assert driver.device_status() & DeviceStatus.LINK_UP
    assert hits(lab)["wire-flap"] == 3


# Receive.


def test_a_header_that_is_not_split_off(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-unsplit", count=1)
    first, second = numbered(2)
    lab.receive(first, second)
    whole, split = driver.poll(0)
    assert (whole.header, whole.payload) == (b"", first)
    assert (split.header, split.payload) == (second[:54], second[54:])
    assert hits(lab) == {"rx-unsplit": 1}


def test_a_header_that_does_not_fit(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-header-overflow", count=1)
    first, second = numbered(2)
    lab.receive(first, second)
    whole, split = driver.poll(0)
    assert (whole.header, whole.payload) == (b"", first)
    assert whole.completions[0]["header_buffer_overflow"] == 1
    assert split.header == second[:54]


def test_a_header_split_too_late(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-split-beyond", extra=10, count=1)
    first, second = numbered(2)
    lab.receive(first, second)
    beyond, split = driver.poll(0)
    assert (beyond.header, beyond.payload) == (first[:64], first[64:])
    assert (split.header, split.payload) == (second[:54], second[54:])


@pytest.mark.parametrize("verdict", ["bad", "good"])
def test_a_wrong_checksum_verdict(lab: Loopback, driver: Driver, verdict: str) -> None:
    """Only packets of the other sort are struck."""
    good = tcp()
    bad = good[:-1] + bytes([good[-1] ^ 1])
    lab.receive(good, bad)
    assert [packet.completions[-1]["l4_checksum_error"] for packet in driver.poll(0)] == [0, 1]
    lab.faults.add("rx-checksum", verdict=verdict)
    lab.receive(good, bad)
    packets = driver.poll(0)
    called = [packet.completions[-1]["l4_checksum_error"] for packet in packets]
    assert called == ([1, 1] if verdict == "bad" else [0, 0])
    assert [packet.header + packet.payload for packet in packets] == [good, bad]
    assert hits(lab) == {"rx-checksum": 1}


def test_starved_frames_are_delivered_when_it_ends(lab: Loopback, driver: Driver) -> None:
    fault = lab.faults.add("rx-starve")
    frames = numbered(3)
    lab.receive(*frames)
    lab.advance(100 * MS)
    assert received(lab) == []
    lab.faults.remove(fault)
    assert received(lab) == frames
    assert hits(lab) == {"rx-starve": 3}


def test_starved_frames_are_lost_after_a_time(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-starve", duration=1)
    lab.receive(*numbered(3))
    lab.advance(1000 * MS)
    frames = numbered(2)
    lab.receive(*frames)
    assert received(lab) == frames
    assert lab.nic.state.drops[0, Drop.NO_BUFFERS] == 3


def test_starvation_of_one_queue_is_none_of_another(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-starve", queue=1)
    frames = numbered(2)
    lab.receive(*frames)
    assert received(lab) == frames


def test_late_receive_completions(lab: Loopback, driver: Driver) -> None:
    """The bytes are there at once, the completion later; a packet behind it waits too; the interrupt comes with it."""
    lab.faults.add("rx-late", delay=0.02, count=1)
    frames = numbered(2)
    lab.receive(*frames)
    assert received(lab) == []
    driver.fired(driver.rx_block(0))
    driver.enable(driver.rx_block(0))
    lab.run()
    lab.advance(20 * MS)
    assert driver.fired(driver.rx_block(0)) == 1
    assert received(lab) == frames


def test_receive_completions_later_than_their_queue_are_not_written(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-late", delay=0.02)
    lab.receive(tcp())
    ring, size = driver.rx[0].completion_ring_address, driver.rx[0].completion_ring.nbytes
    driver.reset()
    lab.ram.write(ring, b"\xaa" * size)
    lab.advance(30 * MS)
    assert lab.ram.read(ring, size) == b"\xaa" * size


def test_many_laps_of_the_ring_under_receive_faults(lab: Loopback, driver: Driver) -> None:
    """Every frame comes, whole and in order, whatever is done to its headers and completions."""
    lab.faults.add("rx-unsplit", probability=0.3)
    lab.faults.add("rx-late", probability=0.2, delay=0.001)
    lab.faults.add("rx-header-overflow", probability=0.2)
    lab.faults.add("rx-split-beyond", probability=0.3)
    frames = numbered(300)
    got = []
    for first in range(0, 300, 20):
        lab.receive(*frames[first : first + 20])
        lab.advance(2 * MS)
        got += received(lab)
    assert got == frames
    assert len(hits(lab)) == 4


# Interrupts.


def test_a_lost_interrupt_leaves_its_vector_masked(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("irq-lost", count=1)
    lab.receive(tcp())
    lab.receive(tcp())
    assert driver.fired(driver.rx_block(0)) == 0
    assert len(received(lab)) == 2
    driver.enable(driver.rx_block(0))
    lab.run()
    assert driver.fired(driver.rx_block(0)) == 1  # the second frame was pending
    assert hits(lab) == {"irq-lost": 1}


def test_a_late_interrupt(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("irq-late", vector=driver.rx_block(0), delay=0.01)
    lab.receive(tcp())
    lab.advance(9 * MS)
    assert driver.fired(driver.rx_block(0)) == 0
    lab.advance(1 * MS)
    assert driver.fired(driver.rx_block(0)) == 1
    assert send(lab) == completed(lab)
    assert driver.fired(driver.tx_block(0)) == 1


def test_spurious_interrupts(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("irq-spurious", vector=driver.rx_block(1), interval=0.01, count=3)
    lab.advance(100 * MS)
    assert driver.fired(driver.rx_block(1)) == 3
    assert driver.fired(driver.rx_block(0)) == 0


# Admin queue.


def test_any_status(lab: Loopback, driver: Driver) -> None:
    for status in Status:
        if status not in (Status.UNSET, Status.PASSED):
            lab.faults.add("admin-status", status=status.name, count=1)
            with pytest.raises(AdminError) as raised:
                driver.report_link_speed()
            assert raised.value.status == status
    assert driver.report_link_speed() == lab.nic.profile.link_speed


def test_a_status_for_one_command_only(lab: Loopback, driver: Driver) -> None:
    driver.close()
    lab.faults.add("admin-status", opcode="CREATE_RX_QUEUE", status="RESOURCE_EXHAUSTED", count=1)
    with pytest.raises(AdminError, match="CREATE_RX_QUEUE"):
        driver.open(rx_queues=2, tx_queues=2, ring_entries=ENTRIES)
    active = lab.nic.state.rx["active"][:2].tolist()
    assert active == [0, 1]  # the second command was executed all the same
    assert lab.nic.admin.executed["CREATE_RX_QUEUE RESOURCE_EXHAUSTED"] == 1


def test_a_slow_command(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("admin-slow", delay=0.1, opcode="REPORT_LINK_SPEED")
    done = driver.registers.read(ADMINQ_EVENT_COUNTER)
    with pytest.raises(AdminTimeout):
        driver.report_link_speed()
    lab.advance(99 * MS)
    assert driver.registers.read(ADMINQ_EVENT_COUNTER) == done
    lab.advance(1 * MS)
    assert driver.registers.read(ADMINQ_EVENT_COUNTER) == done + 1
    driver.nic_timestamp()  # other commands are not slow


@pytest.mark.parametrize("count", [None, 1])
def test_a_command_without_an_answer(lab: Loopback, driver: Driver, count: int | None) -> None:
    """It is executed when the fault ends."""
    fault = lab.faults.add("admin-silent", count=count)
    done = driver.registers.read(ADMINQ_EVENT_COUNTER)
    with pytest.raises(AdminTimeout):
        driver.report_link_speed()
    lab.advance(10_000 * MS)
    assert driver.registers.read(ADMINQ_EVENT_COUNTER) == done
    lab.faults.remove(fault)
    assert driver.registers.read(ADMINQ_EVENT_COUNTER) == done + 1
    assert driver.report_link_speed() == lab.nic.profile.link_speed
    assert hits(lab) == {"admin-silent": 1}


def test_a_reset_forgets_the_command_without_an_answer(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("admin-silent", opcode="REPORT_LINK_SPEED")
    with pytest.raises(AdminTimeout):
        driver.report_link_speed()
    driver.reset()
    driver.open(rx_queues=2, tx_queues=2, ring_entries=ENTRIES)
    assert send(lab) == completed(lab)


# DMA.


def test_an_address_that_cannot_be_reached(lab: Loopback, driver: Driver) -> None:
    """A ring that is gone stands still; frames are lost and counted; all is well when it is back."""
    buffers = driver.rx[0].buffer_ring_address
    fault = lab.faults.add("dma-fault", address=buffers, size=4096)
    lab.receive(*numbered(3))
    assert received(lab) == []
    assert lab.nic.state.drops[0, Drop.DMA_FAULT] == 3
    assert send(lab) == completed(lab)
    lab.faults.remove(fault)
    frames = numbered(2)
    lab.receive(*frames)
    assert received(lab) == frames


def test_an_admin_queue_that_cannot_be_reached(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("dma-fault")  # all memory
    with pytest.raises(AdminError, match="UNSET"):
        driver.report_link_speed()
    lab.faults.clear()
    assert driver.report_link_speed() == lab.nic.profile.link_speed


def test_slow_memory(lab: Loopback, driver: Driver) -> None:
    """A frame leaves only when its descriptor is there; what has come is seen later."""
    lab.faults.add("dma-slow", delay=0.005)
    tags = send(lab, count=3)
    frames = numbered(2)
    lab.receive(*frames)
    lab.advance(4 * MS)
    assert lab.wire.take() == [] and received(lab) == []
    lab.advance(1 * MS)
    assert len(lab.wire.take()) == 3
    assert completed(lab) == tags
    assert received(lab) == frames


# Device.


def test_a_reset_that_the_device_asks_for(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("device-reset", count=1)
    assert driver.fired(driver.management_vector) == 1
    assert driver.device_status() & DeviceStatus.RESET
    driver.reset()
    assert not driver.device_status() & DeviceStatus.RESET


def test_a_device_that_hangs_does_afterwards_what_it_was_told(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("device-hang", duration=1)
    tags = send(lab, count=2)
    lab.receive(tcp())
    with pytest.raises(AdminTimeout):
        driver.report_link_speed()
    assert (lab.wire.take(), completed(lab), received(lab)) == ([], [], [])
    lab.advance(1000 * MS)
    assert len(lab.wire.take()) == 2
    assert completed(lab) == tags
    assert lab.nic.state.drops[-1, Drop.DEVICE_DOWN] == 1
    assert driver.report_link_speed() == lab.nic.profile.link_speed
    frames = numbered(2)
    lab.receive(*frames)
    assert received(lab) == frames


def test_a_device_that_hangs_does_not_let_go(lab: Loopback, driver: Driver) -> None:
    """The driver's reset takes effect when the hang ends; what it had posted before is forgotten then."""
    fault = lab.faults.add("device-hang")
    send(lab)
    with pytest.raises(AdminTimeout):
        driver.release()
    lab.faults.remove(fault)
    assert driver.device_status() & DeviceStatus.DEVICE_IS_RESET
    assert lab.wire.take() == []


def test_a_device_that_is_gone_and_comes_back(lab: Loopback, driver: Driver) -> None:
    fault = lab.faults.add("device-gone")
    assert driver.registers.read(ADMINQ_EVENT_COUNTER) == 0xFFFFFFFF
    assert driver.client.region_read(PciRegion.CONFIG, 0, 4) == b"\xff" * 4
    send(lab)
    lab.receive(tcp())
    assert (lab.wire.take(), received(lab)) == ([], [])
    lab.faults.remove(fault)
    assert driver.client.region_read(PciRegion.CONFIG, 0, 4) == bytes.fromhex("e01a4200")
    assert driver.device_status() == DeviceStatus.LINK_UP
    driver.disconnect()
    again = lab.connect()
    again.probe()
    again.open(rx_queues=1, tx_queues=1)
    frames = numbered(2)
    lab.driver = again
    lab.receive(*frames)
    assert received(lab) == frames


def test_registers_of_ones(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("device-ones", duration=1)
    assert driver.registers.read(ADMINQ_EVENT_COUNTER) == 0xFFFFFFFF
    assert driver.client.region_read(PciRegion.CONFIG, 0, 4) == bytes.fromhex("e01a4200")
    driver.send(0, tcp())
    lab.advance(1000 * MS)
    assert len(completed(lab)) == 1
    assert driver.report_link_speed() == lab.nic.profile.link_speed


# Scenarios.


SCENARIO = """
seed = 7

[[fault]]
name = "wire-drop"
nic = "nic"
start = 1
duration = 2
probability = 0.5
direction = "rx"

[[fault]]
name = "device-reset"
start = 10
count = 1
"""


def test_a_scenario(make_lab: Callable[..., Loopback]) -> None:
    """Faults come and go at their times; played again, it loses the same frames."""
    runs = []
    for _ in range(2):
        lab = make_lab()
        lab.driver.probe()
        lab.driver.open(rx_queues=1, tx_queues=1, ring_entries=ENTRIES)
        Scenario.parse(SCENARIO, KINDS).begin([lab.faults])
        seconds = []
        for _ in range(4):
            lab.receive(*numbered(20))
            seconds.append(received(lab))
            lab.advance(1000 * MS)
        assert [len(frames) == 20 for frames in seconds] == [True, False, False, True]
        assert not lab.driver.device_status() & DeviceStatus.RESET
        lab.advance(6000 * MS)
        assert lab.driver.device_status() & DeviceStatus.RESET
        assert lab.faults.injections == {}
        runs.append(seconds)
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed = ", "Invalid value"),
        ("seed = 'x'", "whole number"),
        ("sede = 1", "no 'sede'"),
        ("fault = 1", "faults are tables"),
        ("[[fault]]\nstart = 1", "fault 1: it has no name"),
        ("[[fault]]\nname = 'wire-drop'\n[[fault]]\nname = 'x'", "fault 2: there is no fault 'x'"),
        ("[[fault]]\nname = 'wire-drop'\ndirection = 'up'", "direction is 'up'; it is rx or tx or both"),
        ("[[fault]]\nname = 'wire-drop'\nnic = 'nic9'", "no NIC 'nic9', but nic"),
        ("[[frame]]\nbytes = '00'\nnic = 'nic9'", "a frame: there is no NIC 'nic9'"),
        ("[[frame]]\nbytes = 'xyz'", r"1 to .*, in hexadecimal"),
        ("[[frame]]\nbytes = '00'\nstart = -1", "start is -1; it is 0 to"),
        ("[[frame]]\nbites = '00'", "no 'bites'"),
        ("[[guest]]\nrun = 5", "run is 5"),
        ("[[guest]]\nrun = 'true'\n" * 1001, "at most 1000"),
    ],
)
def test_what_is_no_scenario(lab: Loopback, text: str, reason: str) -> None:
    with pytest.raises(FaultError, match=reason):
        Scenario.parse(text, KINDS).begin([lab.faults])
    assert lab.faults.injections == {}


# What no device does by the contract.


def test_a_completion_with_an_error(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-error", count=1)
    first, second = numbered(2)
    lab.receive(first, second)
    assert received(lab) == [second]
    assert driver.rx[0].errors == 1


def test_an_extension_header_that_is_none(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("rx-ex-add", count=1)
    lab.receive(tcp(v=6), tcp(v=6))
    assert [packet.checksum_unnecessary for packet in driver.poll(0)] == [False, True]


@pytest.mark.parametrize("which", ["beyond", "again"])
def test_a_completion_of_a_wrong_buffer(lab: Loopback, driver: Driver, which: str) -> None:
    lab.faults.add("rx-buffer-id", which=which, count=1)
    lab.receive(*numbered(2))
    with pytest.raises(ContractViolation, match="not the device's"):
        driver.poll(0)


@pytest.mark.parametrize("which", ["beyond", "again"])
def test_a_completion_of_a_wrong_packet(lab: Loopback, driver: Driver, which: str) -> None:
    lab.faults.add("tx-tag", which=which, count=1)
    send(lab)
    with pytest.raises(ContractViolation, match="no packet with this tag is pending"):
        driver.poll_tx(0)


@pytest.mark.parametrize("which", ["all", "first", "last"])
def test_a_field_of_a_completion(lab: Loopback, driver: Driver, which: str) -> None:
    lab.faults.add("rx-field", field="hash", value=(1 << 40) - 2, which=which, count=1)
    lab.receive(tcp(b"x" * 5000), tcp())
    changed, other = driver.poll(0)
    numbers = {"all": [0, 1], "first": [0], "last": [1]}[which]
    assert len(changed.completions) == 2
    assert [number for number, one in enumerate(changed.completions) if one["hash"] == 0xFFFFFFFE] == numbers
    assert other.completions[0]["hash"] != 0xFFFFFFFE
    assert hits(lab) == {"rx-field": 1}


def test_a_field_of_a_transmit_completion(lab: Loopback, driver: Driver) -> None:
    lab.faults.add("tx-field", field="value", value=0x1234, count=1)
    send(lab)
    with pytest.raises(ContractViolation, match="no packet with this tag is pending"):
        driver.poll_tx(0)
    assert hits(lab) == {"tx-field": 1}


def test_bytes_of_an_answer(lab: Loopback, driver: Driver) -> None:
    right = driver.report_link_speed()
    lab.faults.add("admin-answer", opcode="REPORT_LINK_SPEED", at=6, size=2, value=0xABCD, count=1)
    driver.set_mtu(1500)  # another command
    assert driver.report_link_speed() == right & ~0xFFFF | 0xABCD
    assert driver.report_link_speed() == right
    assert hits(lab) == {"admin-answer": 1}


def test_a_scenario_has_frames(lab: Loopback, driver: Driver) -> None:
    """They come behind the faults that begin with them, each at its time; what a guest does is left to others."""
    first, second = numbered(2)
    text = (
        f"[[frame]]\nbytes = '{first.hex()}'\n[[frame]]\nstart = 0.02\nbytes = '{second.hex()}'\n"
        "[[fault]]\nname = 'rx-error'\ncount = 1\n[[guest]]\nrun = 'true'\nstart = 1\n"
    )
    scenario = Scenario.parse(text, KINDS)
    assert Scenario.parse(scenario.toml(), KINDS) == scenario
    assert Scenario.of(json.loads(json.dumps(scenario.table())), KINDS) == scenario
    scenario.begin([lab.faults])
    lab.run()
    assert received(lab) == [] and driver.rx[0].errors == 1
    lab.advance(25 * MS)
    assert received(lab) == [second]


def test_a_malformed_packet_stops_its_queue(lab: Loopback, driver: Driver) -> None:
    """Until the queue is created anew; the other one goes on."""
    lab.faults.add("tx-halt")
    driver.send(0, tcp(), tso=(1000, 1))  # these headers are more than a byte
    lab.run()
    assert len(completed(lab)) == 1
    send(lab, count=3)
    assert completed(lab) == [] and lab.wire.take() == []
    others = send(lab, queue=1)
    assert completed(lab, queue=1) == others
    assert hits(lab) == {"tx-halt": 1}
    driver.reset()
    driver.open(rx_queues=2, tx_queues=2, ring_entries=ENTRIES)
    assert send(lab) == completed(lab)


@pytest.mark.parametrize(("status", "number"), [("UNSET", 0), ("UNDEFINED", 0xFFFFFFEF)])
def test_a_status_that_is_none(lab: Loopback, driver: Driver, status: str, number: int) -> None:
    lab.faults.add("admin-status", status=status, count=1)
    with pytest.raises(AdminError) as refused:
        driver.report_link_speed()
    assert refused.value.status == number
    driver.report_link_speed()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("short", "does not offer the queue format"),
        ("required", "does not offer the queue format"),
        ("beyond", "beyond the total length"),
        ("oldest", "does not offer the queue format"),
    ],
)
def test_options_that_a_driver_cannot_use(lab: Loopback, what: str, reason: str) -> None:
    lab.faults.add("admin-options", what=what, count=1)
    with pytest.raises(ContractViolation, match=reason):
        lab.driver.probe()
    lab.driver.describe()


@pytest.mark.parametrize("what", ["long", "unknown"])
def test_options_that_a_driver_skips(lab: Loopback, what: str) -> None:
    lab.driver.probe()
    before = lab.driver.description
    lab.faults.add("admin-options", what=what, count=1)
    after = lab.driver.describe()
    assert before is not None and after.features == before.features
    assert (after.max_mtu, after.header_buffer_size) == (before.max_mtu, before.header_buffer_size)
    assert set(after.options) == set(before.options)


def test_a_description_without_the_least_sizes_of_rings(lab: Loopback) -> None:
    lab.driver.probe()
    assert lab.driver.describe().ring_limits is not None
    lab.faults.add("admin-options", what="minimums", count=1)
    after = lab.driver.describe()
    assert len(after.options[OptionId.MODIFY_RING]) == 8 and after.ring_limits is None


def test_an_mtu_that_is_too_small(lab: Loopback) -> None:
    lab.driver.probe()
    lab.faults.add("admin-options", what="mtu", count=1)
    assert lab.driver.describe().descriptor["mtu"] == 67


def test_statistics_that_are_late_or_malformed(lab: Loopback, driver: Driver) -> None:
    period = 21_000 * MS
    lab.advance(period)
    good = driver.read_stats()
    assert {queue for queue, _ in good} >= {0, 1}
    lab.receive(*[tcp(9200)] * 3)  # longer than the NIC takes
    lab.faults.add("stats-late", count=1)
    lab.advance(period)
    assert driver.read_stats() == good
    lab.advance(period)
    assert driver.read_stats() != good
    lab.faults.add("stats-malformed", what="queue", count=1)
    lab.advance(period)
    assert 0xFFFF in {queue for queue, _ in driver.read_stats()}


# All of them.


def test_every_fault_is_traced_by_name(lab: Loopback, driver: Driver) -> None:
    told: list[events.Event] = []
    lab.nic.diagnostics.observers = (told.append,)
    lab.faults.add("rx-unsplit", start=1, duration=1)
    for _ in range(3):
        lab.receive(tcp())
        lab.advance(1000 * MS)
    assert [event for event in told if isinstance(event, events.Injected)] == [
        events.Injected("rx-unsplit", 1, {"queue": "rx0"})
    ]


def test_late_completions_are_traced_when_they_come(lab: Loopback, driver: Driver) -> None:
    """A completion that is not there is not told of; when it is written it is."""
    heard = Heard(lab, kinds=["rx", "tx"])
    lab.faults.add("rx-late", delay=0.02, count=1)
    lab.faults.add("tx-late", delay=0.02, count=1)
    lab.receive(tcp())
    (tag,) = send(lab)
    received, sent = heard
    assert (received["verdict"], received["completions"], sent["completions"]) == ("delivered", [], [])
    heard.clear()
    lab.advance(20 * MS)
    assert sorted((event["queue"], event["verdict"]) for event in heard) == [("rx0", "late"), ("tx0", "late")]
    by_queue = {event["queue"]: event["completions"] for event in heard}
    (packet,) = driver.poll(0)
    assert [{name: one[name] for name in packet.completions[0]} for one in by_queue["rx0"]] == [*packet.completions]
    assert [(one["type"], one["tag_or_head"]) for one in by_queue["tx0"]] == [("PACKET", tag)]


@pytest.mark.parametrize("name", KINDS)
def test_no_fault_is_in_the_way_when_it_is_over(lab: Loopback, driver: Driver, name: str) -> None:
    """Each may do what it likes with a second of traffic; afterwards all is as it was, after a reset if need be."""
    nic = lab.nic

    def detours() -> tuple[Any, ...]:
        return nic.ingress.detour, nic.egress.detour, nic.interrupts.detour, nic.bus, nic.dma.unreachable, nic.halted

    clean = detours()
    parameters: dict[str, Any] = {"duration": 1}
    if "probability" in KINDS[name].parameters():
        parameters["probability"] = 0.5
    lab.faults.add(name, **parameters)
    for _ in range(4):
        with contextlib.suppress(AdminTimeout, AdminError, ContractViolation):
            lab.receive(*numbered(4))
            send(lab, count=2)
            driver.poll_all()
            driver.poll_tx(0)
            driver.report_link_speed()
        lab.advance(250 * MS)
    assert lab.faults.injections == {}
    assert hits(lab).keys() <= {name}
    lab.wire.take()
    lab.driver.disconnect()
    lab.driver = lab.connect()
    lab.driver.probe()
    lab.driver.open(rx_queues=2, tx_queues=2, ring_entries=ENTRIES, header_split=True)
    assert detours() == clean
    frames = numbered(20)
    lab.receive(*frames)
    assert sorted(frame for queue in (0, 1) for frame in received(lab, queue)) == sorted(frames)
    assert send(lab, count=4) == completed(lab)
    assert len(lab.wire.take()) == 4


def test_frames_that_are_to_come_are_bounded_and_can_be_called_off(lab: Loopback, driver: Driver) -> None:
    """A client may send scenarios with frames for later again and again."""
    frames = tuple(Frame(tcp(100), 1.0 + moment / 10) for moment in range(1000))
    Scenario(0, (), frames=frames).begin([lab.faults])
    with pytest.raises(FaultError, match="1000 later moments"):
        Scenario(0, (), frames=frames[:1]).begin([lab.faults])
    lab.advance(1001 * MS)
    assert received(lab) == [tcp(100)]
    Scenario(0, (), frames=frames[-1:]).begin([lab.faults])  # there is room for one again
    lab.faults.clear()
    lab.advance(2000 * 1000 * MS)
    assert received(lab) == []
