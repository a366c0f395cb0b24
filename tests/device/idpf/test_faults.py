"""Faults on demand of an idpf's rings and mailbox: the driver sees each, and the NIC goes on when it is over."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nicmodel.cli.devices import DEVICES
from nicmodel.faults.fault import FaultError
from nicmodel.faults.scenario import Scenario
from nicmodel.idpf import registers as r
from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.descriptors import TxCompletionType
from nicmodel.idpf.faults.kinds import EFFECTS, KINDS
from nicmodel.idpf.testing.driver import Driver
from nicmodel.idpf.testing.mailbox import Refused, Silent, one
from nicmodel.idpf.testing.nic import TestNic
from nicmodel.idpf.testing.violation import ContractViolation
from nicmodel.idpf.virtchnl import Op, Result, Scheduling
from nicmodel.packet.frames import Gso

from ..frames import tcp, udp

pytestmark = pytest.mark.nic(device="idpf", queues=4)

_MS = 1_000_000


def advance(nic: TestNic, milliseconds: float) -> None:
    assert nic.clock is not None
    nic.clock.advance(round(milliseconds * _MS))


def struck(nic: TestNic, name: str) -> int:
    return nic.device.counters[f"fault {name}"]


def works(driver: Driver, nic: TestNic) -> None:
    """After a reset by the driver all is well."""
    nic.faults.clear()
    driver.free_queues()
    driver.set_bus_master(False)
    driver.set_bus_master()
    driver.set_up()
    driver.open(queues=2)
    driver.set_rss_table([0])
    nic.inject(udp(100))
    assert len(driver.poll(0)) == 1
    driver.send(0, udp(100))
    driver.poll_tx(0)
    assert not driver.tx[0].pending
    driver.close()


# Mailbox.


@pytest.mark.parametrize("status", ["IO_ERROR", "NOT_PERMITTED", "NO_SPACE", "BAD_SEQUENCE"])
def test_a_message_is_answered_with_a_result(driver: Driver, nic: TestNic, status: str) -> None:
    """*Verify*: once, and it was not executed."""
    nic.faults.add("mailbox-status", message="CONFIG_TX_QUEUES", status=status, count=1)
    with pytest.raises(Refused, match=f"CONFIG_TX_QUEUES: {status}"):
        driver.open(queues=1)
    assert not nic.device.queues.configured and struck(nic, "mailbox-status") == 1
    assert nic.device.report()["admin"][f"CONFIG_TX_QUEUES {status}"] == 1
    works(driver, nic)


def test_a_reply_comes_late_and_others_overtake_it(driver: Driver, nic: TestNic) -> None:
    assert driver.mailbox is not None
    nic.faults.add("mailbox-late", message="GET_STATS", delay=0.5)
    driver.mailbox.send(Op.GET_STATS, one(v.VPORT_STATS).tobytes(), cookie=0x111)
    assert driver.request(Op.GET_RSS_KEY, one(v.RSS_KEY))
    assert [other.number for other in driver.mailbox.events] == []
    advance(nic, 499)
    assert not driver.mailbox.receive()
    advance(nic, 2)
    [reply] = driver.mailbox.receive()
    assert (reply.number, reply.cookie, reply.result) == (Op.GET_STATS, 0x111, Result.OK)
    works(driver, nic)


def test_a_late_reply_of_a_life_that_is_over_never_comes(driver: Driver, nic: TestNic) -> None:
    assert driver.mailbox is not None
    nic.faults.add("mailbox-late", delay=0.5)
    driver.mailbox.send(Op.GET_STATS, one(v.VPORT_STATS).tobytes(), cookie=0x111)
    nic.call(nic.device.request_reset)
    before = driver.ram.bytes.copy()
    advance(nic, 1000)
    assert (driver.ram.bytes == before).all()
    works(driver, nic)


def test_a_reply_is_lost(driver: Driver, nic: TestNic) -> None:
    """*Verify*: the message was executed, and is taken from the ring; the next is answered."""
    nic.faults.add("mailbox-lost", message="CONFIG_PROMISCUOUS_MODE", count=1)
    with pytest.raises(Silent):
        driver.request(Op.CONFIG_PROMISCUOUS_MODE, one(v.PROMISCUOUS_MODE, flags=1))
    assert nic.device.report()["filters"]["promiscuous"] == ["unicast"]
    driver.request(Op.CONFIG_PROMISCUOUS_MODE, one(v.PROMISCUOUS_MODE))
    works(driver, nic)


def test_the_event_of_the_link_is_lost(driver: Driver, nic: TestNic) -> None:
    nic.faults.add("mailbox-lost", message="EVENT")
    driver.open(queues=1)
    assert driver.events() == [] and struck(nic, "mailbox-lost") == 1
    nic.faults.clear()
    nic.set_link(False)
    assert [event["link_status"] for event in driver.events()] == [0]


@pytest.mark.parametrize("what, bytes_", [("short", 64), ("long", 256), ("none", 0)])
def test_a_reply_has_another_length(driver: Driver, nic: TestNic, what: str, bytes_: int) -> None:
    nic.faults.add("mailbox-length", message="GET_STATS", what=what, count=1)
    assert len(driver.request(Op.GET_STATS, one(v.VPORT_STATS))) == bytes_
    assert len(driver.request(Op.GET_STATS, one(v.VPORT_STATS))) == v.VPORT_STATS.itemsize


def test_bytes_of_a_reply(driver: Driver, nic: TestNic) -> None:
    right = driver.request(Op.GET_STATS, one(v.VPORT_STATS))
    nic.faults.add("mailbox-answer", message="GET_STATS", at=len(right) - 1, size=4, value=0x11223344, count=1)
    assert driver.request(Op.GET_STATS, one(v.VPORT_STATS)) == right[:-1] + b"\x44"
    assert driver.request(Op.GET_STATS, one(v.VPORT_STATS)) == right
    assert struck(nic, "mailbox-answer") == 1


def test_a_reply_comes_that_nobody_has_asked_for(driver: Driver, nic: TestNic) -> None:
    assert driver.mailbox is not None
    nic.faults.add("mailbox-unasked", number=4711, count=1)
    assert driver.request(Op.GET_RSS_KEY, one(v.RSS_KEY))
    assert [received.number for received in driver.mailbox.events] == [4711]
    assert driver.events() == []


@pytest.mark.parametrize("bit", ["FAILURE", "OVERFLOW", "CRITICAL"])
def test_the_lengths_say_of_an_error(driver: Driver, nic: TestNic, bit: str) -> None:
    """*Verify*: a driver that looks sees it, in both; the number of entries stays; then it is gone."""
    before = driver.registers.read(r.ARQ_LEN)
    injection = nic.faults.add("mailbox-error", bit=bit)
    for register in (r.ARQ_LEN, r.ATQ_LEN):
        assert driver.registers.read(register) == before | r.QueueLength[bit]
    nic.faults.remove(injection)
    assert driver.registers.read(r.ARQ_LEN) == before and struck(nic, "mailbox-error") == 1


# Receive.


def opened(driver: Driver) -> None:
    driver.open(queues=2, ring_entries=192, header_split=False)
    driver.set_rss_table([0])


def test_completions_come_late(driver: Driver, nic: TestNic) -> None:
    """*Verify*: none before its time, then all, in their order; the packets' bytes are as they were."""
    opened(driver)
    nic.faults.add("rx-late", delay=0.01)
    frames = [udp(100 + number) for number in range(5)]
    for frame in frames:
        nic.inject(frame)
    advance(nic, 9)
    assert driver.poll(0) == []
    advance(nic, 2)
    assert [packet.frame for packet in driver.poll(0)] == frames
    works(driver, nic)


@pytest.mark.parametrize("which, seen", [("beyond", 0xFFFF), ("again", 0)])
def test_a_completion_names_a_wrong_buffer(driver: Driver, nic: TestNic, which: str, seen: int) -> None:
    opened(driver)
    nic.faults.add("rx-buffer-id", which=which, count=1)
    nic.call(lambda: nic.wire.inject(udp(10), udp(20)))  # type: ignore[attr-defined]  # a batch of two
    with pytest.raises(ContractViolation, match=f"buffer {seen}, and not"):
        driver.poll(0)
    assert struck(nic, "rx-buffer-id") == 1
    works(driver, nic)


def test_a_completion_comes_twice(driver: Driver, nic: TestNic) -> None:
    """*Verify*: the driver finds the same buffer again; what comes later is behind it in the ring."""
    opened(driver)
    nic.faults.add("rx-twice", count=1)
    delivery = nic.inject(udp(10))
    later = nic.inject(udp(20))
    assert delivery.delivered and later.delivered
    assert nic.device.state.rx[0]["completion_index"] == 3
    with pytest.raises(ContractViolation, match="buffer 0, and not 1"):
        driver.poll(0)
    works(driver, nic)


def test_a_field_of_a_completion(driver: Driver, nic: TestNic) -> None:
    opened(driver)
    nic.faults.add("rx-field", field="hash", value=4711, count=1)
    nic.inject(udp(10))
    nic.inject(udp(20))
    assert [packet.completions[-1]["hash"] == 4711 for packet in driver.poll(0)] == [True, False]


def test_a_field_of_a_transmit_completion(driver: Driver, nic: TestNic) -> None:
    opened(driver)
    nic.faults.add("tx-field", field="value", value=4711, count=2)  # of the descriptor, and of the packet
    driver.send(0, udp(100))
    with pytest.raises(ContractViolation, match="4711"):
        driver.poll_tx(0)
    assert struck(nic, "tx-field") == 2
    works(driver, nic)


def test_a_completion_tells_of_an_error(driver: Driver, nic: TestNic) -> None:
    opened(driver)
    nic.faults.add("rx-error", count=1)
    nic.inject(udp(10))
    nic.inject(udp(20))
    assert [packet.completions[-1]["rx_error"] for packet in driver.poll(0)] == [1, 0]


@pytest.mark.parametrize("size, ring", [(100, 1), (1500, 0)])
def test_a_completion_says_too_many_bytes(driver: Driver, nic: TestNic, size: int, ring: int) -> None:
    opened(driver)
    nic.faults.add("rx-too-long", count=1)
    nic.inject(udp(size))
    with pytest.raises(ContractViolation, match="more bytes than buffers hold") as violation:
        driver.poll(0)
    assert f"'buffer_queue': {ring}" in str(violation.value)
    works(driver, nic)


def opened_with_split(driver: Driver) -> None:
    driver.open(queues=1, ring_entries=192)
    driver.set_rss_table([0])


@pytest.mark.parametrize("name, overflow", [("rx-unsplit", 0), ("rx-header-overflow", 1)])
def test_a_header_is_not_split_off(driver: Driver, nic: TestNic, name: str, overflow: int) -> None:
    """*Verify*: of one packet of a batch; the payload's length still decides which ring it goes to."""
    opened_with_split(driver)
    nic.faults.add(name, count=1)
    frames = [tcp(1000), tcp(1000), tcp(1500)]
    assert nic.inject(frames).delivered == 3
    packets = driver.poll(0)
    assert [packet.frame for packet in packets] == frames
    assert [len(packet.header) for packet in packets] == [0, 54, 54]
    assert [packet.completions[0]["header_buffer_overflow"] for packet in packets] == [overflow, 0, 0]
    assert [packet.completions[0]["buffer_queue"] for packet in packets] == [0, 1, 0]
    assert struck(nic, name) == 1
    works(driver, nic)


def test_a_header_that_is_not_split_off_is_of_one_segment(driver: Driver, nic: TestNic) -> None:
    """Linux counts segments by what is behind the header: *verify*: nothing that is merged is without one."""
    driver.open(queues=1, ring_entries=192, rsc=True)
    driver.set_rss_table([0])
    nic.faults.add("rx-unsplit", count=1)
    frame = tcp(3000)
    for _ in range(2):
        nic.inject(frame, gso=Gso.TCPV4, segment=1000)
    packets = driver.poll(0)
    assert [(len(packet.header), packet.completions[0]["rsc"]) for packet in packets] == [(0, 0)] * 3 + [(54, 1)]
    assert struck(nic, "rx-unsplit") == 1


def test_a_header_is_split_off_too_late(driver: Driver, nic: TestNic) -> None:
    """*Verify*: from buffers of either ring, behind others of the batch, and not of more than is there."""
    opened_with_split(driver)
    frames = [tcp(1000), tcp(1500), tcp(1100), tcp(20), tcp(0)]
    for extra, headers in ((10, [64, 64, 64, 64, 54]), (500, [256, 256, 256, 74, 54])):
        injection = nic.faults.add("rx-split-beyond", extra=extra)
        nic.inject(frames)
        packets = driver.poll(0)
        assert [packet.frame for packet in packets] == frames
        assert [len(packet.header) for packet in packets] == headers
        nic.faults.remove(injection)
    assert struck(nic, "rx-split-beyond") == 8
    works(driver, nic)


@pytest.mark.parametrize("verdict", ["bad", "good"])
def test_a_checksum_verdict_is_wrong(driver: Driver, nic: TestNic, verdict: str) -> None:
    """Only packets of the other sort are struck."""
    opened_with_split(driver)
    good = tcp(100)
    bad = good[:-1] + bytes([good[-1] ^ 1])
    nic.faults.add("rx-checksum", verdict=verdict)
    nic.inject([good, bad])
    packets = driver.poll(0)
    assert [packet.checksums_good for packet in packets] == ([False, False] if verdict == "bad" else [True, True])
    assert [packet.frame for packet in packets] == [good, bad]
    assert struck(nic, "rx-checksum") == 1
    works(driver, nic)


# Transmit.


@pytest.mark.parametrize("scheduling", list(Scheduling))
def test_a_packet_is_completed_late(driver: Driver, nic: TestNic, scheduling: Scheduling) -> None:
    """*Verify*: it is sent at once. By flow another overtakes it."""
    driver.open(queues=1, ring_entries=192, scheduling=scheduling)
    nic.faults.add("tx-late", delay=0.01, count=1)
    for size in (100, 200):
        driver.send(0, udp(size))
    assert len(nic.take()) == 2
    driver.poll_tx(0)
    assert len(driver.tx[0].pending) == 1
    advance(nic, 11)
    driver.poll_tx(0)
    assert not driver.tx[0].pending
    nic.faults.clear()
    driver.close()


def test_a_packet_is_never_completed(driver: Driver, nic: TestNic) -> None:
    opened(driver)
    nic.faults.add("tx-never", count=1)
    for size in (100, 200):
        driver.send(0, udp(size))
    driver.poll_tx(0)
    assert len(nic.take()) == 2 and list(driver.tx[0].pending) == [0]
    works(driver, nic)


@pytest.mark.parametrize("which, value", [("beyond", 0xFFFF), ("again", 0)])
def test_a_packet_is_completed_by_a_wrong_tag(driver: Driver, nic: TestNic, which: str, value: int) -> None:
    """Beyond: one that the driver never gave. Again: doubled."""
    opened(driver)
    nic.faults.add("tx-tag", which=which, count=1)
    driver.send(0, udp(100))
    with pytest.raises(ContractViolation, match=f"no packet {value} is pending"):
        driver.poll_tx(0)
    works(driver, nic)


def test_completions_come_in_another_order(driver: Driver, nic: TestNic) -> None:
    """*Verify*: each packet is completed once, and the ring's places are told in their order still."""
    opened(driver)
    nic.faults.add("tx-order", seed="1")
    for number in range(150):
        driver.send(0, udp(100), kick=number == 149)
    completions = driver.poll_tx(0)
    tags = [one.value for one in completions if one.type is TxCompletionType.PACKET]
    places = [one.value for one in completions if one.type is TxCompletionType.DESCRIPTOR]
    assert sorted(tags) == list(range(150)) != tags and not driver.tx[0].pending
    assert len(places) == 3 and places == sorted(places)
    assert len(nic.take()) == 150 and struck(nic, "tx-order") == 1
    works(driver, nic)


def test_a_queue_that_is_completed_by_its_ring_keeps_its_order(driver: Driver, nic: TestNic) -> None:
    driver.open(queues=1, ring_entries=192, scheduling=Scheduling.QUEUE)
    nic.faults.add("tx-order", seed="1")
    for number in range(20):
        driver.send(0, udp(100), kick=number == 19)
    assert [one.value for one in driver.poll_tx(0)] == list(range(1, 21))
    assert struck(nic, "tx-order") == 0


def test_a_queue_stops(driver: Driver, nic: TestNic) -> None:
    """*Verify*: it takes nothing, and others do; when the fault ends it goes on; so it does when it is made anew."""
    driver.open(queues=2, ring_entries=192)
    injection = nic.faults.add("tx-stop", queue=0, count=1)
    for queue in (0, 1):
        driver.send(queue, udp(100 + queue))
        driver.send(queue, udp(100 + queue))
    assert len(nic.take()) == 2 and struck(nic, "tx-stop") == 1
    nic.faults.remove(injection)
    nic.run()
    assert len(nic.take()) == 2
    nic.faults.add("tx-stop", queue=0, count=1)
    driver.send(0, udp(100))
    assert not nic.take()
    driver.free_queues()
    driver.set_bus_master(False)
    driver.set_bus_master()
    driver.set_up()
    driver.open(queues=2)
    driver.send(0, udp(100))
    assert len(nic.take()) == 1


def test_memory_is_far_away(driver: Driver, nic: TestNic) -> None:
    """*Verify*: completions of either way come later, all of them."""
    opened(driver)
    nic.faults.add("dma-slow", delay=0.005)
    nic.inject(udp(10))
    driver.send(0, udp(100))
    assert driver.poll(0) == [] and driver.poll_tx(0) == []
    advance(nic, 6)
    assert len(driver.poll(0)) == 1
    assert {one.type for one in driver.poll_tx(0)} == {TxCompletionType.PACKET, TxCompletionType.DESCRIPTOR}
    works(driver, nic)


# The device, and all of them.


@pytest.mark.parametrize("moment", ["mailbox", "vport", "configured", "open", "traffic"])
def test_the_device_asks_for_a_reset_at_any_moment(nic: TestNic, moment: str, driver: Driver) -> None:
    """*Verify*: nothing is written any more; the driver finds the mailbox gone, and sets all up again."""
    if moment in ("configured", "open", "traffic"):
        driver.open(queues=2)
    if moment == "configured":
        driver.request(Op.DISABLE_VPORT, one(v.VPORT))
        driver.disable_queues()
    if moment == "traffic":
        driver.send(0, tcp(1000), kick=False)
        nic.inject(udp(10))
    if moment == "mailbox":
        driver.request(Op.DESTROY_VPORT, one(v.VPORT))
    nic.faults.add("device-reset", count=1)
    nic.run()
    assert driver.registers.read(r.ARQ_LEN) == 0
    before = driver.ram.bytes.copy()
    for queue in driver.tx.values():
        queue.kick()
    nic.inject(udp(10))
    assert (driver.ram.bytes == before).all() and not nic.take()
    works(driver, nic)


def test_every_fault_leaves_the_nic_alive(driver: Driver, nic: TestNic) -> None:
    """*Steps*: each fault of all, by its defaults, under a little traffic and a few messages; then it ends.

    *Verify*: the server has survived no exception, and all works afterwards.
    """
    for name in KINDS:
        opened(driver)
        nic.faults.add(name)
        for size in (10, 1500, 4000):
            nic.inject(udp(size))
            driver.send(0, udp(size))
        try:
            driver.poll(0)
            driver.poll_tx(0)
            driver.statistics()
        except (ContractViolation, Refused, Silent, ValueError):
            pass
        advance(nic, 50)
        assert not [counter for counter in nic.device.counters if counter.startswith("failed_")], name
        works(driver, nic)


def test_the_table_is_the_registry() -> None:
    """Each fault has its row in the page, with the words of its definition."""
    page = (Path(__file__).parents[3] / "docs" / "idpf.md").read_text()
    rows = re.findall(r"^\| `(.*?)` \| (.*?) \| (.*?) \| (.*?) \|$", page, re.MULTILINE)
    assert [row[0] for row in rows] == list(KINDS)
    for name, where, summary, effect in rows:
        kind = KINDS[name]
        assert (where, summary, effect) == (kind.where, kind.summary(), EFFECTS.get(name, kind.effect))


def test_faults_of_the_same_name_are_the_same() -> None:
    """Scenarios, and servers of both kinds of NICs, know each by its name."""
    for name, kind in KINDS.items():
        assert DEVICES["gvnic"].faults.get(name, kind) is kind


def test_a_scenario_is_for_the_nics_that_have_its_faults(nic: TestNic) -> None:
    kinds = {**DEVICES["gvnic"].faults, **KINDS}
    text = "[[fault]]\nname = '{}'\n"
    Scenario.parse(text.format("mailbox-lost"), kinds).begin([nic.faults])
    with pytest.raises(FaultError, match="no fault admin-status"):
        Scenario.parse(text.format("admin-status"), kinds).begin([nic.faults])
