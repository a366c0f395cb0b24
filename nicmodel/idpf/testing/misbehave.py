"""A driver that misbehaves on request: each rule of the contract broken once, and no other.

    with TestNic(profile(rule), clock=VirtualClock(), check=True) as nic, nic.connect() as driver:
        open_queues(driver)
        misbehave(nic, driver, rule)
        [finding] = nic.findings

Every function here takes a NIC on virtual time and its driver, which has its queues open as `open_queues` opens them,
and leaves both in whatever state that ends in.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from nicmodel.idpf import registers as r
from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.descriptors import (
    MAILBOX,
    MAILBOX_BUFFER,
    RX_BUFFER,
    RX_COMPLETION,
    TX_COMPLETION,
    TX_FLOW_DATA,
    TX_QUEUE_DATA,
    TX_TSO_CONTEXT,
    MailboxOpcode,
    TxType,
)
from nicmodel.idpf.profile import Profile
from nicmodel.idpf.registers import DYN_CTL, ITR_NO_UPDATE, Bar, QueueLength
from nicmodel.idpf.testing.driver import ENABLE, Driver
from nicmodel.idpf.testing.mailbox import ENTRIES, Mailbox, Refused, Silent, one
from nicmodel.idpf.testing.nic import TestNic
from nicmodel.idpf.testing.rx import RxConfig, RxQueue
from nicmodel.idpf.testing.tx import TxQueue
from nicmodel.idpf.virtchnl import MacType, Op, Protocol, QueueModel, QueueType, RxFlag, Scheduling
from nicmodel.nic.mac import parse_mac
from nicmodel.pci.config import COMMAND, Command
from nicmodel.testing.guest_memory import PAGE, GuestMemory
from nicmodel.testing.wire import TestWire
from nicmodel.vfio_user.protocol import DmaFlag, PciRegion

_MAC = "02:00:00:00:00:01"
#: Entries of a ring; those of buffers have half as many.
_ENTRIES = 128
#: A queue of the vport that `open_queues` leaves alone.
_FREE = 3
#: Where no memory is.
_NOWHERE = 0xDEAD_0000_0000
#: A length of the mailbox's ring that says of an error.
_IN_ERROR = ENTRIES | QueueLength.ENABLE | QueueLength.CRITICAL
_HEADER = 54
_FRAME = bytes(Ether(src="02:00:00:00:00:02", dst=_MAC) / IP() / TCP() / (b"x" * 400))
#: One that takes a large buffer.
_LARGE = bytes(Ether(src="02:00:00:00:00:02", dst=_MAC) / IP() / TCP() / (b"x" * 1400))
_SECOND_NS = 1_000_000_000

Breach = Callable[[TestNic, Driver], object]

_breaches: dict[str, Breach] = {}


def profile(rule: str = "") -> Profile:
    """The device on which a rule can be broken: some are about what it does not offer."""
    steering, split = rule != "CAP-001", rule != "CAP-002"
    return Profile(mac=parse_mac(_MAC), queues=4, max_flow_rules=1024 if steering else 0, header_split=split)


def open_queues(driver: Driver) -> None:
    """Probe, and open two of the queues each way, with header split if there is that."""
    driver.probe()
    driver.open(queues=2, ring_entries=_ENTRIES, header_split=bool(driver.capabilities["hsplit_caps"]))
    driver.set_rss_table([0])


def rules() -> list[str]:
    """The rules that can be broken on request."""
    return list(_breaches)


def misbehave(nic: TestNic, driver: Driver, rule: str) -> None:
    """Break a rule.

    Raises:
        KeyError: there is no such rule.
    """
    with suppress(Refused, Silent):  # the device refuses much of it
        _breaches[rule](nic, driver)
    nic.run()


def _breaks(rule: str) -> Callable[[Breach], Breach]:
    def register(breach: Breach) -> Breach:
        _breaches[rule] = breach
        return breach

    return register


def _by_message(rule: str, op: Op, *several: Any, **fields: Any) -> None:
    """A rule that a single message breaks: with these fields in its head, and what follows, made when it is sent."""
    message = op.message

    def breach(_: TestNic, driver: Driver) -> None:
        payload = one(message.head, **({message.count: len(several)} if several else {}), **fields).tobytes()
        driver.request(op, payload + b"".join(each.tobytes() for each in several))

    _breaches[rule] = breach


# Registers and mailbox.


@_breaks("REG-001")
def _write_between_registers(nic: TestNic, driver: Driver) -> None:
    driver.client.region_write(Bar.REGISTERS, 0x6004, bytes(4), posted=True)


@_breaks("REG-002")
def _write_reset_state(nic: TestNic, driver: Driver) -> None:
    driver.registers.write(r.RSTAT, 1)


def _another(nic: TestNic, driver: Driver, command: Command = Command.MEMORY | Command.BUS_MASTER) -> Driver:
    """A driver that begins anew, without a mailbox."""
    driver.disconnect()
    new = nic.connect(ram=driver.ram)
    new.client.region_write(PciRegion.CONFIG, COMMAND, command.to_bytes(2, "little"))
    return new


@_breaks("REG-003")
def _begin_without_bus_mastering(nic: TestNic, driver: Driver) -> None:
    with _another(nic, driver, Command.MEMORY) as new:
        Mailbox(new.registers, new.ram)
        nic.run()


def _give_mailbox(
    nic: TestNic,
    driver: Driver,
    *,
    to_device: int | None = None,
    to_driver: int | None = None,
    head: int = 0,
    length: int = ENTRIES | QueueLength.ENABLE,
    buffers: tuple[dict[str, int], ...] = ({}, {}),
    message: bool = False,
) -> None:
    """Have a new driver set the mailbox up, with some of it wrong; `buffers`: fields of those for replies."""
    with _another(nic, driver) as new:
        ram = new.ram
        first = ram.allocate_zeroed(ENTRIES * MAILBOX.size) if to_device is None else to_device
        second = ram.allocate_zeroed(ENTRIES * MAILBOX.size) if to_driver is None else to_driver
        for place, fields in enumerate(buffers):
            address = ram.allocate(MAILBOX_BUFFER)
            whole = {"buffer": 1, "length": MAILBOX_BUFFER, "address_low": address} | fields
            ram.write(second + place * MAILBOX.size, MAILBOX.encode(**whole))
        for base, low, high, at, tail, entries, posted in (
            (first, r.ATQ_BASE_LOW, r.ATQ_BASE_HIGH, r.ATQ_HEAD, r.ATQ_TAIL, r.ATQ_LEN, 0),
            (second, r.ARQ_BASE_LOW, r.ARQ_BASE_HIGH, r.ARQ_HEAD, r.ARQ_TAIL, r.ARQ_LEN, len(buffers)),
        ):
            new.registers.write(tail, posted)
            new.registers.write(at, head if at is r.ATQ_HEAD else 0)
            new.registers.write(low, base & 0xFFFFFFFF)
            new.registers.write(high, base >> 32)
            new.registers.write(entries, length if entries is r.ATQ_LEN else ENTRIES | QueueLength.ENABLE)
        if message:
            payload = ram.allocate(PAGE)
            ram.write(payload, one(v.VERSION, major=v.VERSION_MAJOR).tobytes())
            ram.write(first, _descriptor(Op.VERSION, payload, v.VERSION.itemsize))
            new.registers.write(r.ATQ_TAIL, 1)
        nic.run()


def _descriptor(op: int, address: int, size: int, **fields: int) -> bytes:
    """The descriptor of a message, correct except for some fields."""
    whole = {
        "read": 1, "buffer": 1, "opcode": MailboxOpcode.SEND_TO_CONTROL_PLANE, "length": size, "message": op,
        "cookie": 0x777, "address_high": address >> 32, "address_low": address & 0xFFFFFFFF,
    }  # fmt: skip
    return MAILBOX.encode(**whole | fields)


@_breaks("MBX-001")
def _misalign_mailbox(nic: TestNic, driver: Driver) -> None:
    _give_mailbox(nic, driver, to_device=driver.ram.allocate_zeroed(2 * PAGE) + 64)


@_breaks("MBX-002")
def _mailbox_nowhere(nic: TestNic, driver: Driver) -> None:
    _give_mailbox(nic, driver, to_device=_NOWHERE)


@_breaks("MBX-003")
def _one_ring_for_both(nic: TestNic, driver: Driver) -> None:
    ring = driver.ram.allocate_zeroed(ENTRIES * MAILBOX.size)
    _give_mailbox(nic, driver, to_device=ring, to_driver=ring)


_breaches |= {
    "MBX-004": lambda nic, driver: _give_mailbox(nic, driver, head=1),
    "MBX-005": lambda nic, driver: _give_mailbox(nic, driver, length=_IN_ERROR),
    "MBX-006": lambda nic, driver: driver.registers.write(r.ATQ_LEN, 0),
    "MBX-007": lambda nic, driver: driver.registers.write(r.ARQ_TAIL, ENTRIES),
    "MBX-010": lambda nic, driver: _give_mailbox(nic, driver, buffers=(), message=True),
    "MBX-011": lambda nic, driver: _give_mailbox(nic, driver, buffers=({"length": 64},)),
    "MBX-012": lambda nic, driver: _give_mailbox(nic, driver, buffers=({"address_high": _NOWHERE >> 32},)),
}


@_breaks("MBX-008")
def _send_without_mailbox(nic: TestNic, driver: Driver) -> None:
    with _another(nic, driver) as new:
        new.registers.write(r.ATQ_TAIL, 1)
        nic.run()


@_breaks("MBX-009")
def _post_buffer_twice(nic: TestNic, driver: Driver) -> None:
    driver.registers.write(r.ARQ_TAIL, (driver.registers.read(r.ARQ_TAIL) + 1) % ENTRIES)


@_breaks("MBX-013")
def _one_buffer_for_two_replies(nic: TestNic, driver: Driver) -> None:
    buffer = driver.ram.allocate(MAILBOX_BUFFER)
    _give_mailbox(nic, driver, buffers=({"address_low": buffer}, {"address_low": buffer}))


# Messages.


def _send_raw(driver: Driver, descriptor: bytes) -> None:
    """Put the descriptor of a message into the ring."""
    mailbox = driver.mailbox
    assert mailbox is not None
    driver.ram.write(mailbox._send_ring + mailbox._sent * MAILBOX.size, descriptor)
    mailbox._sent = (mailbox._sent + 1) % ENTRIES
    driver.registers.write(r.ATQ_TAIL, mailbox._sent)


def _statistics(driver: Driver, **fields: int) -> None:
    """Ask for statistics by a descriptor that is correct except for some fields."""
    _send_raw(driver, _descriptor(Op.GET_STATS, driver.ram.allocate_zeroed(PAGE), v.VPORT_STATS.itemsize, **fields))


_breaches |= {
    "MSG-001": lambda nic, driver: _statistics(driver, opcode=MailboxOpcode.SEND_TO_PEER),
    "MSG-002": lambda nic, driver: _statistics(driver, read=0),
    "MSG-003": lambda nic, driver: _statistics(driver, address_high=_NOWHERE >> 32),
    "MSG-004": lambda nic, driver: _statistics(driver, function=1),
    "MSG-005": lambda nic, driver: _statistics(driver, message=4711),
    "MSG-006": lambda nic, driver: _statistics(driver, length=8),
}
_by_message("MSG-007", Op.CONFIG_PROMISCUOUS_MODE, pad=1)
_by_message("ORD-001", Op.VERSION, major=v.VERSION_MAJOR)
_by_message("ORD-002", Op.GET_CAPS)


@_breaks("ORD-003")
def _say_another_version(nic: TestNic, driver: Driver) -> None:
    with _another(nic, driver) as new:
        new.mailbox = Mailbox(new.registers, new.ram)
        new.request(Op.VERSION, one(v.VERSION, major=3))


def _rule(**fields: Any) -> np.void:
    """A flow rule, correct except for some fields."""
    made = one(v.FLOW_RULE, num_headers=2, num_actions=1)
    made["headers"]["type"][:2] = fields.pop("headers", (Protocol.IPV4, Protocol.TCP))
    made["actions"][0]["type"], made["actions"][0]["value"] = v.ACTION_QUEUE, fields.pop("queue", 1)
    for name, value in fields.items():
        made[name] = value
    return made


_by_message("CAP-001", Op.ADD_FLOW_RULE, _rule())
_breaches["CAP-002"] = lambda nic, driver: _config_rx(
    driver, 1, hdr_buffer_size=256, qflags=RxFlag.DESCRIPTORS_32 | RxFlag.HEADER_SPLIT
)


# The vport.

_by_message("VPT-001", Op.GET_STATS, vport_id=7)
_by_message("VPT-004", Op.CREATE_VPORT, txq_model=QueueModel.SPLIT, rxq_model=QueueModel.SPLIT, num_tx_q=1, num_rx_q=1)
_by_message("VPT-006", Op.ENABLE_VPORT)


def _create_vport(driver: Driver, **fields: int) -> None:
    """Destroy the vport in order, and create another with some fields wrong."""
    driver.close()
    driver.request(Op.DESTROY_VPORT, one(v.VPORT))
    whole: dict[str, int] = {
        "txq_model": QueueModel.SPLIT, "rxq_model": QueueModel.SPLIT,
        "num_tx_q": 1, "num_tx_complq": 1, "num_rx_q": 1, "num_rx_bufq": 2,
    }  # fmt: skip
    driver.request(Op.CREATE_VPORT, one(v.CREATE_VPORT, **whole | fields))


_breaches |= {
    "VPT-002": lambda nic, driver: _create_vport(driver, txq_model=QueueModel.SINGLE),
    "VPT-003": lambda nic, driver: _create_vport(driver, num_rx_q=0),
}


@_breaks("VPT-005")
def _destroy_enabled_vport(nic: TestNic, driver: Driver) -> None:
    driver.disable_queues()
    driver.request(Op.DESTROY_VPORT, one(v.VPORT))


@_breaks("VPT-007")
def _enable_vport_without_queues(nic: TestNic, driver: Driver) -> None:
    driver.close()
    driver.request(Op.ENABLE_VPORT, one(v.VPORT))


# Queues.


def _chunk(kind: QueueType, number: int) -> np.void:
    return one(v.QUEUE_CHUNK, type=kind, start_queue_id=number, num_queues=1)


def _changed(record: np.void, fields: dict[str, Any]) -> np.void:
    for name, value in fields.items():
        record[name] = value
    return record


def _tx_records(driver: Driver, its: dict[str, Any] | None = None, **mine: Any) -> list[np.void]:
    """The settings of a transmit queue and its completion queue, correct except for some fields."""
    queue = TxQueue(_FREE, _ENTRIES, Scheduling.FLOW, driver.ram, lambda _: None)
    first, second = queue.records()
    return [_changed(first, mine), _changed(second, its or {})]


def _config_tx(driver: Driver, **mine: Any) -> None:
    driver._several(Op.CONFIG_TX_QUEUES, _tx_records(driver, **mine))


def _begin_tx(driver: Driver, its: dict[str, Any] | None = None, **mine: Any) -> None:
    """Configure a transmit queue, and enable it and its completion queue one after the other."""
    driver._several(Op.CONFIG_TX_QUEUES, _tx_records(driver, its, **mine))
    for kind in (QueueType.TX, QueueType.TX_COMPLETION):
        driver._several(Op.ENABLE_QUEUES, [_chunk(kind, _FREE)])


def _rx_records(driver: Driver, *changes: dict[str, Any]) -> list[np.void]:
    """The settings of a receive queue and its buffer queues, correct except for some fields of each."""
    config = RxConfig(_ENTRIES, header_split=bool(driver.capabilities["hsplit_caps"]))
    records = RxQueue(_FREE, config, driver.ram, lambda *_: None).records()
    return [_changed(record, fields) for record, fields in zip(records, (*changes, {}, {}), strict=False)]


def _config_rx(driver: Driver, which: int, **fields: Any) -> None:
    """Configure a receive queue; fields of one of its records are wrong: 0 its own, 1 and 2 its buffer queues'."""
    driver._several(Op.CONFIG_RX_QUEUES, _rx_records(driver, *({},) * which, fields))


def _begin_rx(driver: Driver, *changes: dict[str, Any]) -> None:
    """Configure and enable a receive queue."""
    driver._several(Op.CONFIG_RX_QUEUES, _rx_records(driver, *changes))
    buffers = [_chunk(QueueType.RX_BUFFER, number) for number in (2 * _FREE, 2 * _FREE + 1)]
    driver._several(Op.ENABLE_QUEUES, [_chunk(QueueType.RX, _FREE), *buffers])


_by_message("QUE-001", Op.DISABLE_QUEUES, _chunk(QueueType.TX, 77))
_by_message("QUE-010", Op.ENABLE_QUEUES, _chunk(QueueType.TX, _FREE))
_breaches |= {
    "QUE-002": lambda nic, driver: _config_tx(driver, type=QueueType.RX),
    "QUE-003": lambda nic, driver: _config_tx(driver, model=QueueModel.SINGLE),
    "QUE-004": lambda nic, driver: _config_tx(driver, ring_len=100),
    "QUE-005": lambda nic, driver: _config_tx(driver, ring_address=driver.ram.allocate(2 * PAGE) + 8),
    "QUE-006": lambda nic, driver: _begin_tx(driver, ring_address=_NOWHERE),
    "QUE-007": lambda nic, driver: _begin_tx(driver, ring_address=driver.tx[0].ring),
    "QUE-009": lambda nic, driver: driver._several(Op.CONFIG_TX_QUEUES, driver.tx[0].records()),
    "QUE-012": lambda nic, driver: driver.enable_queues(),
    "QUE-013": lambda nic, driver: driver._several(Op.DEL_QUEUES, driver._chunks(4, 4)),
    "TXQ-001": lambda nic, driver: _config_tx(driver, sched_mode=5),
    "TXQ-002": lambda nic, driver: _config_tx(driver, tx_compl_queue_id=50),
    "TXQ-003": lambda nic, driver: _begin_tx(driver, {"ring_len": _ENTRIES // 2}),
    "TXQ-004": lambda nic, driver: _begin_tx(driver, tx_compl_queue_id=0),
    "TXQ-005": lambda nic, driver: _config_tx(driver, qflags=2),
    "RXQ-001": lambda nic, driver: _config_rx(driver, 0, desc_ids=2),
    "RXQ-002": lambda nic, driver: _config_rx(driver, 0, qflags=RxFlag.HEADER_SPLIT),
    "RXQ-003": lambda nic, driver: _config_rx(driver, 1, data_buffer_size=1000),
    "RXQ-004": lambda nic, driver: _config_rx(driver, 1, hdr_buffer_size=100),
    "RXQ-005": lambda nic, driver: _begin_rx(driver, {}, {}, {"hdr_buffer_size": 128}),
    "RXQ-006": lambda nic, driver: _begin_rx(driver, {}, {"data_buffer_size": 512}),
    "RXQ-007": lambda nic, driver: _config_rx(driver, 0, rx_bufq2_id=2 * _FREE),
    "RXQ-008": lambda nic, driver: _begin_rx(driver, {"ring_len": _ENTRIES // 2}),
    "RXQ-009": lambda nic, driver: _config_rx(driver, 0, max_pkt_size=20_000),
}


@_breaks("QUE-008")
def _enable_with_old_completions(nic: TestNic, driver: Driver) -> None:
    ring = driver.ram.allocate_zeroed(_ENTRIES * RX_COMPLETION.size)
    driver.ram.write(ring + 5 * TX_COMPLETION.size, TX_COMPLETION.encode(generation=1))
    _begin_tx(driver, {"ring_address": ring})


@_breaks("QUE-011")
def _enable_without_completion_queue(nic: TestNic, driver: Driver) -> None:
    _config_tx(driver)
    driver._several(Op.ENABLE_QUEUES, [_chunk(QueueType.TX, _FREE)])
    driver.registers.write(r.TX_TAIL, 1, _FREE)


@_breaks("QUE-014")
def _add_no_buffer_queues(nic: TestNic, driver: Driver) -> None:
    driver.close()
    driver._several(Op.DEL_QUEUES, driver._chunks(4, 4))
    driver.request(Op.ADD_QUEUES, one(v.ADD_QUEUES, num_tx_q=1, num_tx_complq=1, num_rx_q=1))


# Vectors.


def _map(kind: int, number: int, vector: int = 1, index: int = 0) -> np.void:
    return one(v.QUEUE_VECTOR, queue_id=number, vector_id=vector, itr_idx=index, queue_type=kind)


_by_message("VEC-001", Op.ALLOC_VECTORS, num_vectors=1000)
_by_message("VEC-003", Op.MAP_QUEUE_VECTOR, _map(QueueType.TX, _FREE, vector=0))
_by_message("VEC-004", Op.MAP_QUEUE_VECTOR, _map(QueueType.TX, _FREE, index=2))
_by_message("VEC-005", Op.MAP_QUEUE_VECTOR, _map(QueueType.TX_COMPLETION, _FREE))
_by_message("VEC-006", Op.MAP_QUEUE_VECTOR, _map(QueueType.TX, 0))
_by_message("VEC-007", Op.UNMAP_QUEUE_VECTOR, _map(QueueType.TX, _FREE))
_breaches |= {
    "VEC-002": lambda nic, driver: driver._several(
        Op.DEALLOC_VECTORS, [_changed(driver.vectors.copy(), {"num_vectors": 1})]
    ),
    "VEC-008": lambda nic, driver: driver._several(Op.DEALLOC_VECTORS, [driver.vectors]),
}


# Steering and filters.

_by_message("RSS-004", Op.SET_RSS_HASH, ptype_groups=1 << 40)
_breaches |= {
    "RSS-001": lambda nic, driver: driver.set_rss_key(bytes(16)),
    "RSS-002": lambda nic, driver: driver.set_rss_table([0] * (v.RSS_LUT_SIZE + 1)),
    "RSS-003": lambda nic, driver: driver.set_rss_table([50]),
}
_by_message("RUL-001", Op.ADD_FLOW_RULE, _rule(rule_id=99_999))
_by_message("RUL-002", Op.ADD_FLOW_RULE, _rule(headers=(Protocol.IPV6, Protocol.TCP)))
_by_message("RUL-003", Op.ADD_FLOW_RULE, _rule(num_actions=2))
_by_message("RUL-004", Op.ADD_FLOW_RULE, _rule(queue=50))
_by_message("RUL-005", Op.DEL_FLOW_RULE, _rule(rule_id=5))
_breaches |= {
    "FLT-001": lambda nic, driver: driver.add_addresses([_MAC], kind=9),  # type: ignore[arg-type]
    "FLT-002": lambda nic, driver: driver.add_addresses(["01:00:5e:00:00:01"], kind=MacType.PRIMARY),
    "FLT-003": lambda nic, driver: driver.delete_addresses(["02:00:00:00:00:77"]),
}
_by_message("FLT-004", Op.CONFIG_PROMISCUOUS_MODE, flags=4)
_by_message("FLT-005", Op.LOOPBACK, enable=2)


# Tails.

_breaches |= {
    "DBL-001": lambda nic, driver: driver.registers.write(r.TX_TAIL, 1, 9),
    "DBL-002": lambda nic, driver: driver.registers.write(r.TX_TAIL, _ENTRIES, 0),
    "DBL-003": lambda nic, driver: driver.registers.write(r.TX_TAIL, 1, _FREE),
}


# Receive.


@_breaks("RX-RNG-001")
def _post_one_too_many(nic: TestNic, driver: Driver) -> None:
    buffers = driver.rx[0].buffers[0]
    driver.registers.write(r.RX_BUFFER_TAIL, (buffers.tail + 1) % buffers.entries, buffers.number)


def _posted(driver: Driver, place: int = 5) -> dict[str, int]:
    """A descriptor that the device owns."""
    ring = driver.rx[0].buffers[0].ring
    return RX_BUFFER.decode(driver.ram.read(ring + place * RX_BUFFER.size, RX_BUFFER.size))


def _write_buffer(driver: Driver, place: int, raw: bytes) -> None:
    driver.ram.write(driver.rx[0].buffers[0].ring + place * RX_BUFFER.size, raw)


def _post(nic: TestNic, driver: Driver, reserved: int = 0, **fields: int) -> None:
    """Have a frame use a buffer, and post that again with some fields of its descriptor changed."""
    nic.inject(_LARGE)
    driver.poll(0, repost=False)
    buffers = driver.rx[0].buffers[0]
    place = buffers.tail
    raw = RX_BUFFER.encode(
        buffer_id=place, buffer_address=buffers._buffers + place * buffers.size,
        header_address=buffers._headers + place * 256,
    )  # fmt: skip
    raw = RX_BUFFER.encode(**RX_BUFFER.decode(raw) | fields)
    _write_buffer(driver, place, (int.from_bytes(raw, "little") | reserved).to_bytes(RX_BUFFER.size, "little"))
    driver.registers.write(r.RX_BUFFER_TAIL, (place + 1) % buffers.entries, buffers.number)


_breaches |= {
    "RX-BUF-001": lambda nic, driver: _post(nic, driver, buffer_address=_NOWHERE),
    "RX-BUF-002": lambda nic, driver: _post(nic, driver, header_address=_NOWHERE),
    "RX-BUF-003": lambda nic, driver: _post(nic, driver, buffer_address=_posted(driver)["buffer_address"]),
    "RX-BUF-004": lambda nic, driver: _post(nic, driver, buffer_id=5),
    "RX-BUF-005": lambda nic, driver: _post(nic, driver, reserved=1 << 255),
    "RX-BUF-008": lambda nic, driver: _post(nic, driver, buffer_address=driver.rx[1].ring),
    "RX-BUF-009": lambda nic, driver: _post(nic, driver, header_address=_posted(driver)["header_address"]),
}


@_breaks("RX-BUF-006")
def _change_posted_buffer(nic: TestNic, driver: Driver) -> None:
    _write_buffer(driver, 0, RX_BUFFER.encode(**_posted(driver, 0) | {"buffer_id": 9}))
    nic.inject(_LARGE)


# Transmit.


def _place(driver: Driver, frame: bytes = _FRAME) -> int:
    """Guest address of a frame."""
    address = driver.ram.allocate(len(frame))
    driver.ram.write(address, frame)
    return address


def _piece(driver: Driver, **fields: int) -> bytes:
    """A data descriptor of a whole packet, correct except for some fields."""
    whole = {"dtype": TxType.FLOW_DATA, "end_of_packet": 1, "completion_tag": 7, "buffer_size": len(_FRAME)}
    if "buffer_address" not in fields:
        fields["buffer_address"] = _place(driver)
    return TX_FLOW_DATA.encode(**whole | fields)


def _tso(**fields: int) -> bytes:
    whole = {"dtype": TxType.TSO_CONTEXT, "tso": 1, "total_length": len(_FRAME) - _HEADER, "mss": 200}
    return TX_TSO_CONTEXT.encode(**whole | {"header_length": _HEADER} | fields)


def _send(driver: Driver, *descriptors: bytes) -> None:
    """Post descriptors on queue 0."""
    for descriptor in descriptors:
        driver.tx[0].put(descriptor)
    driver.tx[0].kick()


@_breaks("TX-RNG-001")
def _use_ring_twice(nic: TestNic, driver: Driver) -> None:
    queue = driver.tx[0]
    for tag in range(_ENTRIES):
        queue.head = queue.tail  # as if all were done
        _send(driver, _piece(driver, completion_tag=tag))
        nic.run()


_breaches |= {
    "TX-DSC-001": lambda nic, driver: _send(driver, TX_FLOW_DATA.encode(dtype=0x1F), _piece(driver)),
    "TX-DSC-002": lambda nic, driver: _send(driver, _piece(driver, end_of_packet=0), _piece(driver, buffer_size=0)),
    "TX-DSC-003": lambda nic, driver: _send(driver, _piece(driver, buffer_address=_NOWHERE)),
    "TX-DSC-004": lambda nic, driver: _send(
        driver, (int.from_bytes(_piece(driver), "little") | 1 << 127).to_bytes(TX_FLOW_DATA.size, "little")
    ),
    "TX-PKT-001": lambda nic, driver: driver.send(0, _FRAME, fragments=[1] * 64),
    "TX-PKT-002": lambda nic, driver: driver.send(0, _FRAME, tso=(200, _HEADER), fragments=[_HEADER] + [2] * 100),
    "TX-PKT-003": lambda nic, driver: driver.send(0, _FRAME[:16]),
    "TX-PKT-004": lambda nic, driver: _send(driver, _piece(driver, end_of_packet=0, completion_tag=8), _piece(driver)),
    "TX-PKT-005": lambda nic, driver: _send(driver, _piece(driver, end_of_packet=0, report_event=1), _piece(driver)),
    "TX-PKT-006": lambda nic, driver: _send(
        driver, _piece(driver, report_event=1), _piece(driver, completion_tag=8, report_event=1)
    ),
    "TX-PKT-007": lambda nic, driver: _send(
        driver, _piece(driver, end_of_packet=0), TX_FLOW_DATA.encode(dtype=TxType.CONTEXT), _piece(driver)
    ),
    "TX-TAG-001": lambda nic, driver: _send(driver, _piece(driver), _piece(driver)),
    "TX-TSO-001": lambda nic, driver: _send(driver, _tso(mss=40), _piece(driver)),
    "TX-TSO-002": lambda nic, driver: _send(driver, _tso(header_length=0), _piece(driver)),
    "TX-TSO-003": lambda nic, driver: _send(driver, _tso(total_length=100), _piece(driver)),
    "TX-TSO-005": lambda nic, driver: _send(
        driver, _tso(header_length=60, total_length=len(_FRAME) - 60), _piece(driver)
    ),
    "TX-TSO-006": lambda nic, driver: _send(driver, _tso(tso=0), _piece(driver)),
}


@_breaks("TX-TSO-004")
def _segment_too_much(nic: TestNic, driver: Driver) -> None:
    most = TX_TSO_CONTEXT.total_length.mask
    driver.send(0, _FRAME.ljust(most + _HEADER, b"x"), tso=(1448, _HEADER), fragments=[_HEADER] + [16_000] * 16)


@_breaks("TX-PKT-008")
def _ask_for_reports_by_queue(nic: TestNic, driver: Driver) -> None:
    driver.close()
    driver.open(queues=2, ring_entries=_ENTRIES, scheduling=Scheduling.QUEUE)
    _send(driver, TX_QUEUE_DATA.encode(
        buffer_address=_place(driver), dtype=TxType.QUEUE_DATA, end_of_packet=1, report_event=1, buffer_size=len(_FRAME)
    ))  # fmt: skip


def _block(nic: TestNic, driver: Driver) -> TestWire:
    """Have the wire take nothing more, and the device wait with a packet in its hands."""
    wire = nic.wire
    assert isinstance(wire, TestWire)
    wire.room = 0
    driver.send(0, _FRAME)
    nic.run()
    return wire


@_breaks("TX-DSC-005")
def _change_posted_descriptor(nic: TestNic, driver: Driver) -> None:
    wire = _block(nic, driver)
    queue = driver.tx[0]
    place = queue.tail
    driver.send(0, _FRAME)
    nic.run()
    driver.ram.write(queue.ring + place * TX_FLOW_DATA.size, _place(driver).to_bytes(8, "little"))
    wire.unblock()


# Interrupts.


def _control(driver: Driver, **fields: int) -> None:
    whole = {"enable": 1, "itr_index": ITR_NO_UPDATE}
    driver.set_vector(0, int.from_bytes(DYN_CTL.encode(**whole | fields), "little"))


_breaches |= {
    "INT-001": lambda nic, driver: driver.registers.write(r.QUEUE_DYN_CTL, int.from_bytes(ENABLE, "little"), 30),
    "INT-002": lambda nic, driver: driver.set_vector(0, int.from_bytes(ENABLE, "little") | 1 << 20),
    "INT-003": lambda nic, driver: _control(driver, write_back_on_itr=1),
    "INT-004": lambda nic, driver: driver.registers.write(r.ITR0, r.ITR_MASK + 1, 0),
    "INT-006": lambda nic, driver: _control(driver, software_interrupt=1),
}


@_breaks("INT-005")
def _forget_interrupt(nic: TestNic, driver: Driver) -> None:
    assert nic.clock is not None
    for _ in range(2):  # the first fires, and the second waits
        nic.inject(_FRAME)
        nic.clock.advance(_SECOND_NS)
    for _ in range(60):
        nic.clock.advance(_SECOND_NS)
        driver.statistics()


# Memory.


def _device_memory(driver: Driver) -> GuestMemory:
    memory = GuestMemory("hbm", base=0x8000_0000, size=4 << 20)
    driver.client.dma_map(memory.base, memory.size, memory.fd, 0, DmaFlag.READABLE | DmaFlag.WRITABLE)
    return memory


@_breaks("DMA-001")
def _unmap_rings(nic: TestNic, driver: Driver) -> None:
    driver.client.dma_unmap(driver.ram.base, driver.ram.size)
    driver.registers.write(r.TX_TAIL, 1, 0)


@_breaks("DMA-002")
def _unmap_posted_buffers(nic: TestNic, driver: Driver) -> None:
    buffers = driver.rx[0].buffers[0]
    with _device_memory(driver) as memory:
        for _ in range(buffers.visible - 1):
            nic.inject(_LARGE)
        driver.poll(0, repost=False)
        _post(nic, driver, buffer_address=memory.base)
        driver.client.dma_unmap(memory.base, memory.size)
        nic.inject(_LARGE)


@_breaks("DMA-003")
def _unmap_data_to_send(nic: TestNic, driver: Driver) -> None:
    with _device_memory(driver) as memory:
        wire = _block(nic, driver)
        memory.write(memory.base, _FRAME)
        _send(driver, _piece(driver, buffer_address=memory.base))
        nic.run()
        driver.client.dma_unmap(memory.base, memory.size)
        wire.unblock()
