"""Flush of one receive queue: its buffers come back on command, nothing writes to them again, all else goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from nicmodel.gvnic.commands import Inner, OptionId, QueueFormat, Status
from nicmodel.gvnic.descriptors import RX_COMPLETION
from nicmodel.gvnic.options.flush.declarations import ALL_OWNERS, FLUSH_RX_QUEUE, RX_FLUSHED
from nicmodel.gvnic.options.flush.events import Flushed
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic import events
from nicmodel.nic.mac import parse_mac
from nicmodel.nic.state import Drop
from nicmodel.testing.guest_memory import GuestMemory

from .conftest import ENTRIES, RAM_SIZE
from .frames import NIC_MAC, pattern, tcp
from .test_trace import Heard

#: The drivers of all tests are watched.
pytestmark = pytest.mark.contract

CANARY = 0xA5
#: Queue 1 is the flow's of port 5201, whose buffers are an accelerator's; queue 0 is everybody's.
OURS, OTHERS = 5201, 5000


@pytest.fixture
def lab(make_lab: Callable[..., Loopback]) -> Loopback:
    return make_lab(queue_flush=True)


@pytest.fixture
def hbm(lab: Loopback) -> GuestMemory:
    """The accelerator's memory; the queues are open."""
    lab.driver.probe()
    lab.driver.open(rx_queues=2, tx_queues=1, ring_entries=ENTRIES, header_split=True)
    memory = lab.driver.add_memory("hbm", 4 << 20)
    lab.driver.restart_rx(1, payload_memory=memory)
    lab.driver.set_rss(table=[0] * 128)
    lab.driver.add_flow_rule(TCPv4(dst_port=OURS), queue=1)
    return memory


def flush(lab: Loopback, queue: int) -> None:
    """The command alone: the driver keeps the buffers that come back."""
    lab.driver.extended(Inner.FLUSH_RX_QUEUE, np.array((queue, ALL_OWNERS), FLUSH_RX_QUEUE))


def test_nothing_writes_to_the_buffers_again(lab: Loopback, hbm: GuestMemory) -> None:
    """*Steps*: flush the queue while traffic flows, poison what its buffers were in, send on.

    *Verify*: each buffer comes back once, the poison stays, frames that come meanwhile are kept for the new buffers,
    and the other queue has not noticed.
    """
    queue = lab.driver.rx[1]
    lab.receive(*[tcp(2000, dport=OURS), tcp(100, dport=OTHERS)] * 5)
    posted = queue.visible - 5
    flush(lab, 1)
    assert lab.nic.state.rx[1]["buffer_head"] == lab.nic.state.rx[1]["buffer_tail"]
    hbm.bytes[:] = CANARY
    lab.receive(*[tcp(2000, dport=OURS), tcp(100, dport=OTHERS)] * 5)
    assert (hbm.bytes == CANARY).all()

    before = queue.poll(repost=False)
    assert len(before) == 5 and queue.flushed == queue.errors == posted and queue.visible == 0
    assert [packet.payload for packet in lab.driver.poll(0)] == [pattern(100)] * 10
    queue.exchange(lab.ram)
    queue.post()
    lab.run()
    after = queue.poll()
    assert [packet.payload for packet in after] == [pattern(2000)] * 5
    assert {buffer.memory for packet in after for buffer in packet.buffers} == {"ram"}
    assert (hbm.bytes == CANARY).all()
    assert lab.nic.state.drops[:, Drop.RUNT :].sum() == 0


def test_what_waited_for_buffers_is_dropped(lab: Loopback, hbm: GuestMemory) -> None:
    """Frames in the backlog came for the buffers that are gone; those of other queues still wait."""
    lab.receive(*[tcp(100, dport=OURS)] * (ENTRIES + 10))
    lab.receive(*[tcp(100, dport=OTHERS)] * (ENTRIES + 10))
    held = lab.nic.state.rx["held"][:2].tolist()
    assert min(held) > 0
    flush(lab, 1)
    assert lab.nic.state.drops[1, Drop.NO_QUEUE] == held[1]
    assert lab.nic.state.rx["held"][:2].tolist() == [held[0], 0]
    received = 0
    while new := len(lab.driver.poll(0)):
        received += new
        lab.run()
    assert received == ENTRIES + 10


def test_many_flushes_under_traffic(lab: Loopback, hbm: GuestMemory) -> None:
    """The queue goes on from memory to memory through many laps of its rings; each packet arrives once."""
    memories = [hbm, lab.ram]
    received = sent = 0
    for turn in range(30):
        lab.receive(*[tcp(pattern(500, turn), dport=OURS)] * (turn % 7))
        sent += turn % 7
        received += len(lab.driver.flush_rx(1, payload_memory=memories[turn % 2]))
        lab.receive(tcp(pattern(600, turn), dport=OURS))
        sent += 1
        (packet,) = lab.driver.poll(1)
        assert packet.payload == pattern(600, turn) and packet.buffers[0].memory == memories[turn % 2].name
        received += 1
    assert received == sent


def test_a_queue_without_buffers_and_one_out_of_reach(lab: Loopback, hbm: GuestMemory) -> None:
    queue = lab.driver.rx[1]
    flush(lab, 1)
    flush(lab, 1)
    assert queue.poll() == [] and queue.visible > 0
    lab.run()
    ring = queue.buffer_ring_address
    lab.nic.dma.set_unreachable([(ring, ring + 4096)])
    flush(lab, 1)
    lab.nic.dma.set_unreachable([])
    hbm.bytes[:] = CANARY
    lab.receive(tcp(500, dport=OURS))
    assert (hbm.bytes == CANARY).all() and lab.nic.state.rx[1]["held"] == 1


def test_a_flush_of_nothing_raises_no_interrupt(lab: Loopback, hbm: GuestMemory) -> None:
    """An interrupt without completions wakes the driver for nothing."""
    flush(lab, 1)
    vector = lab.nic.state.vectors[lab.nic.state.rx[1]["vector"]]
    lab.run()
    vector["pending"], fires = 0, int(vector["fires"])
    flush(lab, 1)
    assert vector["pending"] == 0
    lab.run()
    assert vector["fires"] == fires


def test_a_driver_that_does_not_know_the_bit_sees_errors(lab: Loopback, hbm: GuestMemory) -> None:
    """Linux passes such buffers by and posts them again (gve_rx_dqo.c: gve_rx_dqo, rx_error)."""
    queue = lab.driver.rx[1]
    flush(lab, 1)
    raw = queue.completion_ring[0].tobytes()
    fields = RX_COMPLETION.decode(raw)
    assert (fields["rx_error"], fields["end_of_packet"], fields["packet_length"]) == (1, 1, 0)
    assert RX_FLUSHED.flushed.get(raw) == 1 and RX_COMPLETION.reserved >> RX_FLUSHED.flushed.bit & 1


# Who looks on


def test_a_flush_is_traced(lab: Loopback, hbm: GuestMemory) -> None:
    """*Steps*: flush a queue whose rings have gone round; and again while frames wait for buffers.

    *Verify*: each buffer that comes back is one event, with its descriptor and its completion; a frame dropped another.
    """
    queue = lab.driver.rx[1]
    for _ in range(ENTRIES // 2):
        lab.receive(tcp(500, dport=OURS))
        lab.driver.poll(1)
    heard, others = Heard(lab, kinds=["rx"]), Heard(lab, queues=["rx0"])
    head, visible = int(queue.state.head), queue.visible
    completion = int(queue.state.completion)
    lab.receive(*[tcp(100, dport=OURS)] * (visible - 10))
    heard.clear()
    others.clear()
    flush(lab, 1)
    assert [event["verdict"] for event in heard] == ["flushed"] * 10 and others == []
    for k, event in enumerate(heard):
        (buffer,), (answer,) = event["buffers"], event["completions"]
        assert buffer["index"] == (head + visible - 10 + k) % ENTRIES
        assert answer["index"] == (completion + visible - 10 + k) % ENTRIES
        assert buffer["buffer_id"] == answer["buffer_id"] and (answer["flushed"], answer["rx_error"]) == (1, 1)
    lab.driver.poll(1)
    lab.run()
    lab.receive(*[tcp(100, dport=OURS)] * (queue.visible + 3))
    heard.clear()
    flush(lab, 1)
    assert [event["verdict"] for event in heard] == ["no_queue"] * 3


def test_an_observer_that_fails_does_not_stop_a_flush(lab: Loopback, hbm: GuestMemory) -> None:
    """Frames that waited for these buffers are dropped as ever: the next buffers may be somebody else's."""
    lab.receive(*[tcp(100, dport=OURS)] * ENTRIES)
    held = int(lab.nic.state.rx["held"][1])

    def broken(event: events.Event) -> None:
        if isinstance(event, Flushed):
            raise RuntimeError

    lab.nic.diagnostics.observers = (broken,)
    logging.disable(logging.ERROR)
    try:
        flush(lab, 1)
    finally:
        logging.disable(logging.NOTSET)
    assert lab.nic.state.drops[1, Drop.NO_QUEUE] == held > 0
    assert lab.nic.counters["failed_observer"] == 1


@pytest.fixture
def checked() -> Iterator[Loopback]:
    """A NIC whose driver is watched, with one queue open."""
    profile = Profile(mac=parse_mac(NIC_MAC), queue_flush=True, min_ring=ENTRIES)
    with Loopback(profile, ram=GuestMemory("ram", size=RAM_SIZE), check=True) as lab:
        lab.driver.probe()
        lab.driver.open(rx_queues=1, tx_queues=1, ring_entries=ENTRIES, header_split=True)
        yield lab


def names(lab: Loopback) -> list[str]:
    return [finding.rule.name for finding in lab.findings]


def test_buffers_that_a_flush_has_returned_may_be_posted_again(checked: Loopback) -> None:
    """The same buffers, and their ids, through many laps."""
    for turn in range(20):
        checked.receive(*[tcp(5000)] * (turn % 7))
        flush(checked, 0)
        checked.driver.poll(0)
    assert checked.driver.rx[0].flushed > 5 * ENTRIES and names(checked) == []


def test_a_driver_is_watched_until_the_flush_is_done(checked: Loopback) -> None:
    """*Steps*: before a flush a driver changes a descriptor that it has posted. *Verify*: as found as with frames."""
    queue = checked.driver.rx[0]
    queue.buffer_ring[int(queue.state.head) + 3, 1] += np.uint64(64)
    flush(checked, 0)
    assert names(checked) == ["RX-BUF-006"]


@pytest.mark.breaks("ADM-CMD-005", "ADM-RES-001", "OPT-001", "OPT-002")
def test_refused(make_lab: Callable[..., Loopback]) -> None:
    """Without the option, of no queue, in a format that has it not."""

    def status(lab: Loopback, queue: int) -> Status:
        with pytest.raises(AdminError) as error:
            flush(lab, queue)
        return Status(error.value.status)

    plain, able = make_lab(), make_lab(queue_flush=True)
    for lab in (plain, able):
        lab.driver.probe()
        lab.driver.open(rx_queues=1, tx_queues=1)
    assert status(plain, 0) == Status.UNIMPLEMENTED
    assert status(able, 1) == status(able, 63) == status(able, 0xFFFF_FFFF) == Status.NOT_FOUND
    assert plain.driver.description is not None and OptionId.QUEUE_FLUSH not in plain.driver.description.options
    assert able.driver.description is not None and OptionId.QUEUE_FLUSH in able.driver.description.options
    able.driver.close()
    able.driver.configure_resources(QueueFormat.GQI_QPL)
    assert status(able, 0) == Status.FAILED_PRECONDITION
