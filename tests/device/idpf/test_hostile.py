"""A driver that means harm: what it asks for is refused, bounded or ignored, and the next one is served.

Each is what reading as an attacker or fuzzing (`tests/device/fuzz/idpf.py`) has found once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from nicmodel.idpf import registers as r
from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.descriptors import RX_COMPLETION
from nicmodel.idpf.testing.driver import Driver
from nicmodel.idpf.testing.mailbox import ENTRIES, Refused, one
from nicmodel.idpf.testing.nic import TestNic
from nicmodel.idpf.virtchnl import Op, Protocol, QueueType, Result, RuleStatus
from nicmodel.nic import events
from nicmodel.nic.state import Drop
from nicmodel.observe.trace import Event, Tracer
from nicmodel.packet.frames import FrameFlag, Gso
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.vfio_user.protocol import DmaFlag

from ..frames import tcp

pytestmark = pytest.mark.nic(device="idpf")


def payload(op: Op, records: Sequence[np.void], **fields: Any) -> bytes:
    """A message about several things."""
    message = op.message
    assert message.many is not None
    head = one(message.head, **{message.count: len(records), **fields})
    return head.tobytes() + np.array(records, message.many).tobytes()


def still_works(driver: Driver, nic: TestNic) -> None:
    """Nothing has failed inside, and messages are answered."""
    assert driver.request(Op.VERSION, one(v.VERSION, major=2)) == one(v.VERSION, major=2).tobytes()
    assert nic.device.counters["internal_error"] == 0


@pytest.mark.parametrize("op", [op for op in Op if op.message.many is not None])
def test_a_message_that_says_it_has_more_than_there_can_be(driver: Driver, nic: TestNic, op: Op) -> None:
    """There is no type for 4 billion rules."""
    most = (1 << 8 * op.message.head[op.message.count].itemsize) - 1
    with pytest.raises(Refused, match=f"{op.name}: INVALID"):
        driver.request(op, payload(op, [], **{op.message.count: most}))
    still_works(driver, nic)


@pytest.mark.parametrize("op", [Op.ENABLE_QUEUES, Op.DISABLE_QUEUES])
def test_a_message_that_names_each_queue_hundreds_of_times(
    driver: Driver, nic: TestNic, op: Op, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work is by the queues that there are: with 30 of them this took 160 ms, and 10 s for one tail of the mailbox."""
    driver.open()
    named: list[int] = []
    method = {Op.ENABLE_QUEUES: "enable", Op.DISABLE_QUEUES: "disable"}[op]
    monkeypatch.setattr(nic.device.queues, method, lambda names: named.append(len(names)))
    chunks = [one(v.QUEUE_CHUNK, type=kind, num_queues=4) for kind in (QueueType.TX, QueueType.TX_COMPLETION)]
    driver.request(op, payload(op, (chunks * 200)[:255]))
    assert named == [8]


def test_long_messages_have_turns_of_their_own(driver: Driver, nic: TestNic, monkeypatch: pytest.MonkeyPatch) -> None:
    """*Steps*: a ring full of the longest messages, at one tail. *Verify*: each is answered; a few in one turn."""
    turns: Counter[int] = Counter()
    execute = nic.device.control.execute

    def counted(op: Op, what: np.void) -> bytes | None:
        turns[nic.device.poller.turn] += 1
        return execute(op, what)

    monkeypatch.setattr(nic.device.control, "execute", counted)
    assert driver.mailbox is not None
    for cookie in range(1, ENTRIES):
        driver.mailbox.send(Op.VERSION, one(v.VERSION, major=2).tobytes().ljust(4096, b"\0"), cookie=cookie)
    nic.run()
    assert [received.cookie for received in driver.mailbox.receive()] == list(range(1, ENTRIES))
    assert max(turns.values()) <= 2


def test_the_mailbox_outlives_what_fails(driver: Driver, nic: TestNic, caplog: pytest.LogCaptureFixture) -> None:
    """*Steps*: something fails behind a message's execution. *Verify*: counted; the next message is answered."""

    def fail(event: events.Control) -> None:
        if isinstance(event, events.CommandExecuted) and event.opcode == Op.GET_STATS:
            raise RuntimeError("an observer")

    nic.device.diagnostics.watch_control(fail)
    assert driver.mailbox is not None
    driver.mailbox.send(Op.GET_STATS, one(v.VPORT_STATS).tobytes())
    nic.run()
    assert nic.device.counters["failed_mailbox"] == 1
    assert driver.request(Op.VERSION, one(v.VERSION, major=2))
    caplog.clear()


def test_tails_beyond_the_mailbox(driver: Driver, nic: TestNic) -> None:
    """They have no effect, and are counted."""
    assert driver.mailbox is not None
    sent = driver.mailbox._sent
    driver.registers.write(r.ATQ_TAIL, sent + ENTRIES + 3)
    driver.registers.write(r.ARQ_TAIL, 1 << 31)
    still_works(driver, nic)
    assert nic.device.counters["doorbell_beyond_ring"] == 2
    assert not nic.device.counters["mailbox_fault"]


@pytest.mark.parametrize("named", [[], [QueueType.TX], [QueueType.TX, QueueType.TX_COMPLETION, QueueType.RX]])
def test_queues_are_deleted_all_or_none(driver: Driver, nic: TestNic, named: list[QueueType]) -> None:
    """Else those that are left would move on, and nobody would know of their settings."""
    driver.open()
    chunks = [one(v.QUEUE_CHUNK, type=kind, num_queues=1) for kind in named]
    with pytest.raises(Refused, match="DEL_QUEUES: INVALID"):
        driver.request(Op.DEL_QUEUES, payload(Op.DEL_QUEUES, chunks))
    driver.set_vector(0, 0)
    driver.rearm(0)
    assert nic.inject(tcp(100)).verdict == Drop.NONE
    still_works(driver, nic)
    driver.exchange_queues(tx=1, rx=1)
    assert not nic.device.state.tx["active"].any() and not nic.device.state.rx["active"].any()
    for vector in range(1, 4):
        driver.set_vector(vector, 0)
    still_works(driver, nic)


@pytest.mark.parametrize("queue", [4, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_rules_to_queues_that_do_not_exist(driver: Driver, nic: TestNic, queue: int) -> None:
    rule = one(v.FLOW_RULE, num_headers=2, num_actions=1)
    rule["headers"]["type"][:2] = Protocol.IPV4, Protocol.TCP
    rule["actions"][0] = v.ACTION_QUEUE, queue, 0
    reply = driver.request(Op.ADD_FLOW_RULE, payload(Op.ADD_FLOW_RULE, [rule]))
    status = np.frombuffer(reply, v.FLOW_RULE, 1, v.FLOW_RULES.itemsize)["status"][0]
    assert status == RuleStatus.ACTION_NOT_SUPPORTED and not len(nic.device.rules)
    still_works(driver, nic)


@pytest.mark.parametrize(
    "which, field, value, result",
    [
        # A completion has 10 bits for the length of a header; 14 bytes go to a header buffer of any packet.
        (1, "hdr_buffer_size", 13, Result.INVALID),
        (1, "hdr_buffer_size", 1024, Result.INVALID),
        (0, "rx_bufq2_id", 0, Result.INVALID),
        (0, "rx_bufq1_id", 77, Result.NO_SUCH_QUEUE),
    ],
)
def test_receive_queues_that_cannot_be(driver: Driver, which: int, field: str, value: int, result: Result) -> None:
    driver.open(queues=1)
    records = driver.rx[0].records()
    driver.close()
    records[which][field] = value
    with pytest.raises(Refused) as refused:
        driver.request(Op.CONFIG_RX_QUEUES, payload(Op.CONFIG_RX_QUEUES, records))
    assert refused.value.result == result


def test_a_queue_of_a_group_of_thousands(driver: Driver, nic: TestNic) -> None:
    """A completion has 11 bits for it: the marker, which does not fit, kept the queue from being disabled."""
    driver.open(queues=1)
    records = driver.tx[0].records()
    driver.close()
    records[0]["relative_queue_id"] = 2048
    with pytest.raises(Refused, match="CONFIG_TX_QUEUES: INVALID"):
        driver.request(Op.CONFIG_TX_QUEUES, payload(Op.CONFIG_TX_QUEUES, records))
    records[0]["relative_queue_id"] = 2047
    driver.request(Op.CONFIG_TX_QUEUES, payload(Op.CONFIG_TX_QUEUES, records))


def test_receive_queues_that_share_buffers(driver: Driver, nic: TestNic) -> None:
    """One would go on with them when the other's were taken back."""
    driver.open(queues=2)
    driver.disable_queues()
    records = driver.rx[1].records()
    records[0]["rx_bufq2_id"] = 1
    driver.request(Op.CONFIG_RX_QUEUES, payload(Op.CONFIG_RX_QUEUES, records))
    with pytest.raises(Refused, match="ENABLE_QUEUES: INVALID"):
        driver.enable_queues()
    assert not nic.device.queues.enabled
    still_works(driver, nic)


def test_a_packet_as_long_as_ip_allows_in_the_smallest_buffers(driver: Driver, nic: TestNic) -> None:
    """Its headers do not fit their buffer, so that all of it is in 513 of 128 bytes: it had room for 512 of them."""
    driver.vport["num_rx_q"] = 1
    frame = bytearray(tcp(65535 - 40, options=[]))
    assert len(frame) == 65535 + 14
    driver.open(queues=1, ring_entries=2048, large=128, small=0, rsc=True)
    driver.disable_queues()
    records = driver.rx[0].records()
    records[1]["hdr_buffer_size"] = 20
    driver.request(Op.CONFIG_RX_QUEUES, payload(Op.CONFIG_RX_QUEUES, records))
    driver.enable_queues()
    driver.rx[0].buffers[0]._ring_tail(driver.rx[0].buffers[0].tail)
    nic.inject(bytes(frame), gso=Gso.TCPV4, segment=1448, header=54, flags=FrameFlag.NEEDS_CSUM)
    (packet,) = driver.poll(0)
    assert len(packet.completions) == 513 and packet.completions[0]["header_buffer_overflow"]
    assert len(packet.frame) == len(frame) and packet.frame[54:] == bytes(frame)[54:]
    still_works(driver, nic)


def test_registers_read_in_any_piece(driver: Driver, nic: TestNic) -> None:
    """*Verify*: whatever is read, it is the same bytes; among them are the mailbox's registers and intervals."""
    driver.registers.write(r.ITR0, 4, 1)
    whole = driver.client.region_read(r.Bar.REGISTERS, 0, r.REGISTERS_SIZE)
    read = nic.device.registers.read
    assert whole == b"".join(read(place, 4) for place in range(0, r.REGISTERS_SIZE, 4))
    assert whole[r.ITR0.at(1)] == 4 and whole[r.RSTAT.offset] == r.ResetState.ACTIVE
    for register in (r.ITR0, r.ITR1, r.ATQ_LEN, r.ARQ_TAIL, r.RSTAT, r.ATQ_BASE_LOW):
        for place in range(register.offset - 5, register.offset + 5):
            for size in (1, 2, 4, 7, 512):
                assert read(place, size) == whole[place : place + size]


def test_a_trace_of_completions_that_the_driver_has_made_up(driver: Driver, nic: TestNic) -> None:
    """*Steps*: a ring of completions that the device may only read, with packet types that do not exist.

    *Verify*: the event says their numbers.
    """
    driver.open(queues=1)
    driver.disable_queues()
    found: list[Event] = []
    tracer = Tracer(nic.device, nic.server)
    tracer.subscribe(found.append, ["rx"])
    with GuestMemory("made up", base=1 << 40, size=1 << 20) as memory:
        driver.client.dma_map(memory.base, memory.size, memory.fd, 0, DmaFlag.READABLE)
        completion = np.frombuffer(RX_COMPLETION.encode(packet_type=0x3FF), np.uint8)
        memory.bytes[:] = np.resize(completion, memory.size)
        driver.rx[0].ring = memory.base
        driver.configure()
        driver.enable_queues()
        for buffers in driver.rx[0].buffers:
            buffers._ring_tail(buffers.tail)
        nic.inject(tcp(100))
        driver.client.dma_unmap(memory.base, memory.size)
        driver.rx.clear()
    (event,) = found
    assert event["protocol"] == "0x7f/0x7" and event["completions"]
    still_works(driver, nic)
