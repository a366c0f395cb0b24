"""A driver that misbehaves on request: each rule of the contract broken once, and no other.

    nic = Loopback(profile(), check=True)
    open_queues(nic.driver)
    misbehave(nic, "RX-BUF-003")
    [finding] = nic.findings

Every function here takes a NIC whose driver has its queues open as `open_queues` opens them, and leaves it in whatever
state that ends in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from nicmodel.gvnic import registers as r
from nicmodel.gvnic.commands import (
    DESCRIPTOR_VERSION,
    DRIVER_PARAMETER_MTU,
    NO_PAGE_LIST,
    RSS_HASH_TOEPLITZ,
    RSS_LUT_SIZE,
    SLOT_SIZE,
    FlowOperation,
    Inner,
    Opcode,
    QueueFormat,
)
from nicmodel.gvnic.descriptors import (
    GQI_RX_SLOT,
    GQI_TX_PACKET,
    GQI_TX_SEGMENT,
    RX_BUFFER,
    RX_COMPLETION,
    TX_GENERAL_CONTEXT,
    TX_PACKET,
    TX_TSO_CONTEXT,
    GqiTxType,
    TxType,
)
from nicmodel.gvnic.options import misbehave as options
from nicmodel.gvnic.options.ddp import misbehave as ddp
from nicmodel.gvnic.options.deferred import misbehave as deferred
from nicmodel.gvnic.options.flush import misbehave as flush
from nicmodel.gvnic.options.owners import misbehave as owners
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.registers import Bar, DriverStatus
from nicmodel.gvnic.testing.adminq import AdminError, decode_command, encode_command
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.gqi import RX_LIST, GqiQueues
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import DOORBELL_STEP, RxConfig, RxQueue
from nicmodel.nic.mac import parse_mac
from nicmodel.testing.guest_memory import PAGE, GuestMemory

_MAC = "02:00:00:00:00:01"
_PORT = 5201
#: Ring of every queue: the shortest that a device offers.
_ENTRIES = 256
_CONFIG = RxConfig(entries=_ENTRIES, buffer_size=2048, header_size=128)
#: Where no memory is.
_NOWHERE = 0xDEAD_0000_0000
#: A tag that `TxQueue.take_tag` gives late.
_TAG = 7
_HEADER = 54
_FRAME = bytes(Ether(src="02:00:00:00:00:02", dst=_MAC) / IP() / TCP(dport=_PORT) / (b"x" * 400))
_SECOND_NS = 1_000_000_000

Breach = Callable[[Loopback], object]

_OPTIONS = (options, deferred, flush, owners, ddp)
_breaches: dict[str, Breach] = {rule: breach for option in _OPTIONS for rule, breach in option.BREACHES.items()}
#: Other ways to break some of them.
_more: dict[str, tuple[Breach, ...]] = {rule: more for option in _OPTIONS for rule, more in option.MORE.items()}


def profile() -> Profile:
    """A device that offers all queue formats and all of this model's own options, with four queues each way."""
    return Profile(
        mac=parse_mac(_MAC),
        queues=4,
        formats=(QueueFormat.DQO_RDA, QueueFormat.DQO_QPL, QueueFormat.GQI_RDA, QueueFormat.GQI_QPL),
        deferred_bytes=1 << 20,
        queue_flush=True,
        owners=4,
        ddp_flows=4,
    )


def open_queues(driver: Driver) -> None:
    """Probe, and open two of the queues each way, with header split."""
    driver.probe()
    driver.open(
        rx_queues=2, tx_queues=2, ring_entries=_ENTRIES, header_split=True, buffer_size=_CONFIG.buffer_size
    )  # fmt: skip


def rules() -> list[str]:
    """The rules that can be broken on request."""
    return list(_breaches)


def misbehave(nic: Loopback, rule: str, way: int = 0) -> None:
    """Break a rule.

    Args:
        nic: whose driver does it.
        rule: its name.
        way: of several (`ways`), which.

    Raises:
        KeyError: there is no such rule.
        IndexError: there is no such way.
    """
    with suppress(AdminError):  # the device refuses much of it
        (_breaches[rule], *_more.get(rule, ()))[way](nic)
    nic.run()


def ways() -> list[tuple[str, int]]:
    """The rules that can be broken in several ways, and the number of each way but the first."""
    return [(rule, 1 + number) for rule, more in _more.items() for number in range(len(more))]


def _breaks(rule: str) -> Callable[[Breach], Breach]:
    def register(breach: Breach) -> Breach:
        _breaches[rule] = breach
        return breach

    return register


def _by_command(rule: str, opcode: Opcode, **fields: int) -> None:
    """A rule that a single command breaks."""
    _breaches[rule] = lambda nic: nic.driver.admin(opcode, **fields)


# Registers.


def _set_up(driver: Driver, address: int, length: int) -> None:
    """Take back everything in order, and set up an admin queue."""
    driver.close()
    driver.release()
    for register, value in (
        (r.ADMINQ_LENGTH, length), (r.ADMINQ_BASE_HI, address >> 32), (r.ADMINQ_BASE_LO, address & 0xFFFF_FFFF),
        (r.DRIVER_STATUS, DriverStatus.RUN),
    ):  # fmt: skip
        driver.registers.write(register, value)


@_breaks("REG-001")
def _write_between_registers(nic: Loopback) -> None:
    nic.driver.client.region_write(Bar.REGISTERS, 0x100, bytes(4), posted=True)


@_breaks("REG-001")
def _write_two_registers_at_once(nic: Loopback) -> None:
    nic.driver.client.region_write(Bar.REGISTERS, r.MAX_RX_QUEUES.offset, bytes(8), posted=True)


@_breaks("REG-001")
def _write_into_the_next_register(nic: Loopback) -> None:
    nic.driver.client.region_write(Bar.REGISTERS, r.DRIVER_VERSION.offset, b"\n" + bytes(2), posted=True)


@_breaks("REG-002")
def _write_read_only_register(nic: Loopback) -> None:
    nic.driver.registers.write(r.MAX_RX_QUEUES, 1)


@_breaks("REG-003")
def _write_undefined_status(nic: Loopback) -> None:
    nic.driver.registers.write(r.DRIVER_STATUS, 1 << 2)


@_breaks("REG-004")
def _misalign_admin_queue(nic: Loopback) -> None:
    _set_up(nic.driver, nic.driver.ram.allocate_zeroed(2 * PAGE) + 8, r.ADMINQ_PAGE)


@_breaks("REG-005")
def _set_up_odd_admin_queue(nic: Loopback) -> None:
    _set_up(nic.driver, nic.driver.ram.allocate_zeroed(PAGE), 100)


@_breaks("REG-006")
def _set_up_admin_queue_nowhere(nic: Loopback) -> None:
    _set_up(nic.driver, _NOWHERE, r.ADMINQ_PAGE)


@_breaks("REG-007")
def _set_up_twice(nic: Loopback) -> None:
    nic.driver.setup_adminq()


@_breaks("REG-008")
def _ring_without_admin_queue(nic: Loopback) -> None:
    nic.driver.close()
    nic.driver.release()
    nic.driver.registers.write(r.ADMINQ_DOORBELL, 1)


@_breaks("REG-009")
def _ring_beyond_admin_queue(nic: Loopback) -> None:
    nic.driver.registers.write(r.ADMINQ_DOORBELL, nic.device.admin.counter + 100)


@_breaks("REG-010")
def _release_with_queues(nic: Loopback) -> None:
    nic.driver.release()


@_breaks("REG-011")
def _stop_being_bus_master(nic: Loopback) -> None:
    nic.driver.set_bus_master(False)
    nic.driver.tx[0].kick()


@_breaks("REG-012")
def _write_odd_version(nic: Loopback) -> None:
    nic.driver.registers.write(r.DRIVER_VERSION, 0x07)


# Commands.


def _buffer(nic: Loopback, size: int = PAGE) -> int:
    return nic.driver.ram.allocate_zeroed(size)


@_breaks("ADM-CMD-001")
def _send_unknown_command(nic: Loopback) -> None:
    nic.driver.admin_batch([(0x77).to_bytes(4, "big").ljust(SLOT_SIZE, b"\0")])


@_breaks("ADM-CMD-002")
def _send_command_with_status(nic: Loopback) -> None:
    slot = encode_command(Opcode.REPORT_LINK_SPEED, address=_buffer(nic))
    nic.driver.admin_batch([slot[:4] + (1).to_bytes(4, "big") + slot[8:]])


_by_command("ADM-CMD-003", Opcode.SET_DRIVER_PARAMETER, type=DRIVER_PARAMETER_MTU, reserved=1, value=1500)
_by_command("ADM-CMD-004", Opcode.REPORT_LINK_SPEED, address=_NOWHERE)
_by_command("ADM-CMD-005", Opcode.QUERY_RSS, available_length=PAGE, address=_NOWHERE)
_by_command("ADM-CMD-006", Opcode.GET_PTYPE_MAP, length=16, address=_NOWHERE)
_by_command("ADM-CMD-007", Opcode.DESCRIBE_DEVICE, version=DESCRIPTOR_VERSION + 1, available_length=PAGE)
_by_command("ADM-CMD-008", Opcode.EXTENDED_COMMAND, inner_opcode=Inner.CONFIGURE_FLOW_RULE + 1, inner_length=92)
_by_command("ADM-CMD-009", Opcode.SET_DRIVER_PARAMETER, type=DRIVER_PARAMETER_MTU, value=20_000)


# Device resources.


def _configure(nic: Loopback, **fields: int) -> None:
    """Configure the device resources with some fields changed."""
    described = {
        "counter_array": _buffer(nic),
        "irq_doorbell_address": _buffer(nic),
        "num_counters": 2 * nic.device.profile.queues,
        "num_irq_doorbells": 4,
        "irq_doorbell_stride": 64,
        "queue_format": QueueFormat.DQO_RDA,
    }
    nic.driver.admin(Opcode.CONFIGURE_DEVICE_RESOURCES, **described | fields)


def _reconfigure(nic: Loopback, **fields: int) -> None:
    """Take everything back in order, and then configure the device with some fields changed."""
    nic.driver.close()
    nic.driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    _configure(nic, **fields)


_breaches |= {
    "ADM-RES-001": _configure,
    "ADM-RES-002": lambda nic: _reconfigure(nic, queue_format=9),
    "ADM-RES-003": lambda nic: _reconfigure(nic, num_irq_doorbells=0),
    "ADM-RES-004": lambda nic: _reconfigure(nic, irq_doorbell_stride=2),
    "ADM-RES-005": lambda nic: _reconfigure(nic, msix_base_index=2),
    "ADM-RES-006": lambda nic: _reconfigure(nic, num_counters=1),
}
_by_command("ADM-RES-007", Opcode.DECONFIGURE_DEVICE_RESOURCES)


@_breaks("ADM-RES-008")
def _deconfigure_twice(nic: Loopback) -> None:
    nic.driver.close()
    nic.driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    nic.driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)


@_breaks("ADM-RES-009")
def _configure_unknown_device(nic: Loopback) -> None:
    nic.driver.disconnect()
    nic.driver = nic.connect()
    nic.driver.set_bus_master()
    nic.driver.setup_adminq()
    _configure(nic)


@_breaks("ADM-RES-010")
def _report_stats_into_little(nic: Loopback) -> None:
    nic.driver.admin(Opcode.REPORT_STATS, address=_buffer(nic), length=64, interval_ms=20_000)


# Page lists.


def _register(nic: Loopback, number: int, pages: Iterable[int]) -> None:
    pages = list(pages)
    place = _buffer(nic)
    nic.driver.ram.write(place, np.array(pages, ">u8").tobytes())
    nic.driver.admin(
        Opcode.REGISTER_PAGE_LIST, page_list_id=number, num_pages=len(pages), list_address=place, page_size=PAGE
    )


@_breaks("ADM-PGL-001")
def _register_twice(nic: Loopback) -> None:
    _register(nic, 1, [_buffer(nic)])
    _register(nic, 1, [_buffer(nic)])


_by_command("ADM-PGL-002", Opcode.UNREGISTER_PAGE_LIST, page_list_id=77)


@_breaks("ADM-PGL-003")
def _unregister_used_list(nic: Loopback) -> None:
    _gqi(nic, qpl=True)
    nic.driver.admin(Opcode.UNREGISTER_PAGE_LIST, page_list_id=RX_LIST)


_breaches |= {
    "ADM-PGL-004": lambda nic: _register(nic, 1, []),
    "ADM-PGL-005": lambda nic: _register(nic, 1, [_buffer(nic), _NOWHERE]),
}


# Queues.


def _create_rx(nic: Loopback, number: int = 2, config: RxConfig = _CONFIG, **fields: int) -> RxQueue:
    """Create a receive queue that is correct except for some fields."""
    queue = nic.driver.make_rx(number, config)
    command = decode_command(queue.create_command())
    nic.driver.admin(Opcode.CREATE_RX_QUEUE, **command | fields)
    return queue


@_breaks("ADM-QUE-001")
def _create_before_resources(nic: Loopback) -> None:
    nic.driver.close()
    nic.driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    _create_rx(nic)


_breaches |= {
    "ADM-QUE-002": lambda nic: _create_rx(nic, queue_id=60),
    "ADM-QUE-003": lambda nic: _create_rx(nic, 1),
    "ADM-QUE-005": lambda nic: _create_rx(nic, buffer_ring_entries=300),
    "ADM-QUE-006": lambda nic: _create_rx(nic, config=RxConfig(entries=_ENTRIES // 2)),
    "ADM-QUE-008": lambda nic: _create_rx(nic, completion_ring_address=_NOWHERE),
    "ADM-QUE-009": lambda nic: _create_rx(nic, buffer_ring_address=nic.driver.rx[0].buffer_ring_address),
    "ADM-QUE-010": lambda nic: _create_rx(nic, notification_block=99),
    "ADM-QUE-011": lambda nic: _create_rx(nic, completion_ring_entries=_ENTRIES // 2),
    "ADM-QUE-013": lambda nic: _create_rx(nic, packet_buffer_size=100),
    "ADM-QUE-014": lambda nic: _create_rx(nic, header_buffer_size=1024),
    "ADM-QUE-016": lambda nic: _create_rx(nic, enable_rsc=2),
}
_by_command("ADM-QUE-004", Opcode.DESTROY_RX_QUEUE, queue_id=3)


@_breaks("ADM-QUE-007")
def _misalign_ring(nic: Loopback) -> None:
    _create_rx(nic, buffer_ring_address=_buffer(nic, 4 * PAGE) + 8)


@_breaks("ADM-QUE-012")
def _create_with_old_completions(nic: Loopback) -> None:
    ring = _buffer(nic, _ENTRIES * RX_COMPLETION.size)
    nic.driver.ram.write(ring + 5 * RX_COMPLETION.size, RX_COMPLETION.encode(generation=1))
    _create_rx(nic, completion_ring_address=ring)


@_breaks("ADM-QUE-015")
def _create_without_page_list(nic: Loopback) -> None:
    _dqo_qpl(nic)
    _create_rx(nic, header_buffer_size=0, page_list_id=NO_PAGE_LIST)


@_breaks("ADM-QUE-017")
def _restart_queue_0(nic: Loopback) -> None:
    nic.driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=0)
    _create_rx(nic, 0)


# RSS and flow rules.

_by_command("ADM-RSS-001", Opcode.CONFIGURE_RSS, hash_algorithm=RSS_HASH_TOEPLITZ, key_size=16)
_by_command("ADM-RSS-002", Opcode.CONFIGURE_RSS, hash_algorithm=RSS_HASH_TOEPLITZ, lut_size=RSS_LUT_SIZE - 1)
_by_command("ADM-RSS-004", Opcode.CONFIGURE_RSS, hash_algorithm=2)
_by_command("ADM-RSS-005", Opcode.CONFIGURE_RSS, hash_types=1 << 15)
_breaches["ADM-RSS-003"] = lambda nic: nic.driver.set_rss(table=[50] * RSS_LUT_SIZE)


def _configure_rule(nic: Loopback, operation: int, location: int = 0, **fields: int) -> None:
    rule = TCPv4(dst_port=_PORT).encode(1)
    for name, value in fields.items():
        rule[name] = value
    nic.driver.configure_flow_rule(operation, location, rule)  # type: ignore[arg-type]  # also of no known operation


_breaches |= {
    "ADM-RUL-001": lambda nic: _configure_rule(nic, FlowOperation.ADD, 99_999),
    "ADM-RUL-002": lambda nic: _configure_rule(nic, FlowOperation.ADD, flow_type=77),
    "ADM-RUL-003": lambda nic: _configure_rule(nic, FlowOperation.ADD, queue=60),
    "ADM-RUL-004": lambda nic: _configure_rule(nic, FlowOperation.DELETE, 5),
    "ADM-RUL-005": lambda nic: _configure_rule(nic, 7),
}
_by_command("ADM-RUL-006", Opcode.QUERY_FLOW_RULES, query=9, available_length=PAGE)


# Doorbells.


@_breaks("DBL-001")
def _write_half_a_doorbell(nic: Loopback) -> None:
    nic.driver.client.region_write(Bar.DOORBELLS, 6, bytes(2), posted=True)


@_breaks("DBL-002")
def _ring_unassigned_doorbell(nic: Loopback) -> None:
    nic.driver.doorbells.ring(0, 1)


@_breaks("DBL-003")
def _ring_before_creation(nic: Loopback) -> None:
    nic.driver.doorbells.ring(nic.device.doorbells.rx(3), DOORBELL_STEP)


@_breaks("DBL-004")
def _ring_after_destruction(nic: Loopback) -> None:
    doorbell = nic.driver.rx[1].doorbell_index
    nic.driver.close()
    nic.driver.doorbells.ring(doorbell, DOORBELL_STEP)


@_breaks("DBL-005")
def _ring_beyond_ring(nic: Loopback) -> None:
    nic.driver.tx[0]._ring_doorbell(nic.driver.tx[0].doorbell_index, _ENTRIES)


# Receive.


def _post(nic: Loopback, place: int = 0, **fields: int) -> None:
    """Post eight buffers on queue 0, one of them with some fields of its descriptor changed."""
    queue = nic.driver.rx[0]
    tail = int(queue.state.doorbell)  # the driver has filled entries beyond it already
    raw = RX_BUFFER.encode(**RX_BUFFER.decode(queue.buffer_ring[tail + place].tobytes()) | fields)
    queue.buffer_ring[tail + place] = np.frombuffer(raw, "<u8")
    queue.ring(tail + 8)


def _posted(nic: Loopback, place: int = 0) -> dict[str, int]:
    """A descriptor that the device owns."""
    return RX_BUFFER.decode(nic.driver.rx[0].buffer_ring[place].tobytes())


_breaches |= {
    "RX-RNG-001": lambda nic: nic.driver.rx[0].ring(int(nic.driver.rx[0].state.doorbell) - 1),
    "RX-RNG-002": lambda nic: nic.driver.rx[0].ring(int(nic.driver.rx[0].state.doorbell) + 2),
    "RX-BUF-001": lambda nic: _post(nic, buffer_address=_NOWHERE),
    "RX-BUF-002": lambda nic: _post(nic, header_address=_NOWHERE),
    "RX-BUF-003": lambda nic: _post(nic, buffer_address=_posted(nic)["buffer_address"]),
    "RX-BUF-004": lambda nic: _post(nic, buffer_id=_posted(nic)["buffer_id"]),
    "RX-BUF-008": lambda nic: _post(nic, buffer_address=nic.driver.rx[1].completion_ring_address),
    "RX-BUF-009": lambda nic: _post(nic, header_address=_posted(nic)["header_address"]),
}


@_breaks("RX-BUF-005")
def _set_reserved_bits_of_a_buffer(nic: Loopback) -> None:
    queue = nic.driver.rx[0]
    queue.buffer_ring[int(queue.state.doorbell), 3] = 1
    _post(nic, 1)


@_breaks("RX-BUF-006")
def _change_posted_buffer(nic: Loopback) -> None:
    nic.driver.rx[0].buffer_ring[0] = nic.driver.rx[0].buffer_ring[int(nic.driver.rx[0].state.doorbell)]
    nic.receive(_FRAME)


@_breaks("RX-BUF-007")
def _post_beyond_page_list(nic: Loopback) -> None:
    queues = _gqi(nic, qpl=True)
    nic.receive(_FRAME)
    queues.receive()
    nic.driver.ram.write(queues.data_ring, np.array(1 << 30, GQI_RX_SLOT.fields["address"][0]).tobytes())  # type: ignore[index]
    queues.fill(1)


# Transmit.


def _place(nic: Loopback, frame: bytes = _FRAME) -> int:
    """Guest address of a frame."""
    address = nic.driver.ram.allocate(len(frame))
    nic.driver.ram.write(address, frame)
    return address


def _piece(nic: Loopback, **fields: int) -> bytes:
    """A data descriptor of a whole packet, correct except for some fields."""
    whole = {"dtype": TxType.PACKET, "end_of_packet": 1, "completion_tag": _TAG, "buffer_size": len(_FRAME)}
    if "buffer_address" not in fields:
        fields["buffer_address"] = _place(nic)
    return TX_PACKET.encode(**whole | fields)


def _tso(**fields: int) -> bytes:
    whole = {"dtype": TxType.TSO_CONTEXT, "tso": 1, "total_length": len(_FRAME) - _HEADER, "mss": 200}
    return TX_TSO_CONTEXT.encode(**whole | {"header_length": _HEADER} | fields)


def _send(nic: Loopback, *descriptors: bytes) -> None:
    """Post descriptors on queue 0."""
    for descriptor in descriptors:
        nic.driver.tx[0].put(descriptor)
    nic.driver.tx[0].kick()


def _block(nic: Loopback) -> None:
    """Have the wire take nothing more, and the device wait with a packet in its hands."""
    nic.wire.room = 0
    nic.driver.send(0, _FRAME)
    nic.run()


@_breaks("TX-RNG-001")
def _use_ring_twice(nic: Loopback) -> None:
    queue = nic.driver.tx[0]
    for _ in range(_ENTRIES):
        if not queue.room:
            queue.state.head = queue.state.tail
        queue.send(_FRAME, general_context=False, report_event=False)
        nic.run()
        queue.poll()


_breaches |= {
    "TX-DSC-001": lambda nic: _send(nic, TX_PACKET.encode(dtype=0x1F), _piece(nic)),
    "TX-DSC-002": lambda nic: _send(nic, _piece(nic, end_of_packet=0), _piece(nic, buffer_size=0)),
    "TX-DSC-003": lambda nic: _send(nic, _piece(nic, buffer_address=_NOWHERE)),
    "TX-DSC-004": lambda nic: _send(nic, (int.from_bytes(_piece(nic), "little") | 1 << 72).to_bytes(16, "little")),
    "TX-PKT-001": lambda nic: nic.driver.send(0, _FRAME[:110], fragments=[10] * 11),
    "TX-PKT-002": lambda nic: nic.driver.send(0, _FRAME, tso=(200, _HEADER), fragments=[_HEADER] + [20] * 20),
    "TX-PKT-003": lambda nic: nic.driver.send(0, _FRAME[:16]),
    "TX-PKT-004": lambda nic: _send(nic, _piece(nic, end_of_packet=0, completion_tag=_TAG + 1), _piece(nic)),
    "TX-PKT-005": lambda nic: _send(nic, _piece(nic, end_of_packet=0, report_event=1), _piece(nic)),
    "TX-PKT-006": lambda nic: _send(nic, _piece(nic, report_event=1), _piece(nic, completion_tag=8, report_event=1)),
    "TX-PKT-007": lambda nic: _send(
        nic, _piece(nic, end_of_packet=0), TX_GENERAL_CONTEXT.encode(dtype=TxType.GENERAL_CONTEXT), _piece(nic)
    ),
    "TX-TAG-001": lambda nic: _send(nic, _piece(nic), _piece(nic)),
    "TX-TAG-002": lambda nic: _send(nic, _piece(nic, completion_tag=1 << 15 | _TAG)),
    "TX-TSO-001": lambda nic: _send(nic, _tso(mss=40), _piece(nic)),
    "TX-TSO-002": lambda nic: _send(nic, _tso(header_length=0), _piece(nic)),
    "TX-TSO-003": lambda nic: _send(nic, _tso(total_length=100), _piece(nic)),
    "TX-TSO-005": lambda nic: _send(nic, _tso(header_length=60, total_length=len(_FRAME) - 60), _piece(nic)),
    "TX-TSO-006": lambda nic: _send(nic, _tso(tso=0), _piece(nic)),
}


@_breaks("TX-TSO-004")
def _segment_too_much(nic: Loopback) -> None:
    nic.driver.send(0, _FRAME.ljust(TX_TSO_CONTEXT.total_length.mask >> 6, b"x") + bytes(_HEADER), tso=(1448, _HEADER))


@_breaks("TX-DSC-005")
def _change_posted_descriptor(nic: Loopback) -> None:
    _block(nic)
    nic.driver.tx[0].send(_FRAME, general_context=False)
    nic.run()
    queue = nic.driver.tx[0]
    queue.ring[int(queue.state.tail) - 1, :8] = np.frombuffer(_place(nic).to_bytes(8, "little"), np.uint8)
    nic.wire.unblock()


@_breaks("TX-DSC-006")
def _send_from_beyond_page_list(nic: Loopback) -> None:
    queues = _gqi(nic, qpl=True)
    queues.post(_gqi_packet(segment_address=1 << 30))


# GQI.


def _gqi(nic: Loopback, qpl: bool = False) -> GqiQueues:
    """Queues of a GQI format instead of the open ones."""
    nic.driver.close()
    return GqiQueues(nic.driver, qpl, _ENTRIES)


def _dqo_qpl(nic: Loopback) -> None:
    """The queue format DQO-QPL, without queues."""
    nic.driver.close()
    nic.driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    nic.driver.configure_resources(QueueFormat.DQO_QPL)


def _gqi_packet(**fields: int) -> NDArray[Any]:
    """The descriptor of a packet in one piece, correct except for some fields."""
    descriptor = np.zeros((), GQI_TX_PACKET)
    whole = {"descriptors": 1, "length": len(_FRAME), "segment_length": len(_FRAME), "segment_address": 0}
    for name, value in (whole | fields).items():
        descriptor[name] = value
    return descriptor


def _gqi_segment(**fields: int) -> NDArray[Any]:
    descriptor = np.zeros((), GQI_TX_SEGMENT)
    for name, value in ({"type_flags": GqiTxType.SEGMENT << 4} | fields).items():
        descriptor[name] = value
    return descriptor


def _post_gqi(nic: Loopback, *descriptors: NDArray[Any]) -> None:
    """Post descriptors, whose data is in the page list, on a queue of format GQI-QPL."""
    _gqi(nic, qpl=True).post(*descriptors)


_breaches |= {
    "TX-GQI-001": lambda nic: _post_gqi(nic, _gqi_segment(segment_length=100)),
    "TX-GQI-002": lambda nic: _post_gqi(nic, _gqi_packet(descriptors=3)),
    "TX-GQI-003": lambda nic: _post_gqi(nic, _gqi_packet(length=len(_FRAME) + 1)),
    "TX-GQI-004": lambda nic: _post_gqi(
        nic, _gqi_packet(type_flags=1, descriptors=2, l4_header_offset=17, l4_checksum_offset=8, segment_length=34),
        _gqi_segment(segment_length=len(_FRAME) - 34, segment_address=34),
    ),
    "TX-GQI-005": lambda nic: _post_gqi(
        nic, _gqi_packet(type_flags=GqiTxType.TSO << 4 | 1, descriptors=2, l4_header_offset=17, l4_checksum_offset=8,
                         segment_length=_HEADER),
        _gqi_segment(segment_length=len(_FRAME) - _HEADER, segment_address=_HEADER),
    ),
}  # fmt: skip


# Interrupts.


@_breaks("INT-001")
def _ring_unconfigured_block(nic: Loopback) -> None:
    _reconfigure(nic)
    nic.driver.doorbells.ring(nic.device.doorbells.irq(6), 1)


def _ring_block(nic: Loopback, value: int, block: int = 0) -> None:
    nic.driver.doorbells.ring(nic.driver.irq_doorbells[block], value)


_breaches |= {
    "INT-002": lambda nic: _ring_block(nic, 1 | 3 << 3 | 1 << 2),
    "INT-003": lambda nic: _ring_block(nic, 1 | 1 << 3),
    "INT-004": lambda nic: _ring_block(nic, 1 | 3 << 3, block=nic.driver.rx_block(3)),
}


@_breaks("INT-005")
def _forget_interrupt(nic: Loopback) -> None:
    nic.driver.add_flow_rule(TCPv4(dst_port=_PORT), queue=0)
    for _ in range(2):  # the first fires, and the second waits
        nic.receive(_FRAME)
        nic.advance(_SECOND_NS)
    for _ in range(60):
        nic.advance(_SECOND_NS)
        nic.driver.nic_timestamp()


# Memory.


@_breaks("DMA-001")
def _unmap_rings(nic: Loopback) -> None:
    nic.driver.unmap(nic.driver.ram)
    nic.driver.rx[0].ring(int(nic.driver.rx[0].state.doorbell) + 8)


def _device_memory(nic: Loopback) -> GuestMemory:
    memory = GuestMemory("hbm", base=0x8000_0000, size=4 << 20)
    nic.driver.map(memory)
    return memory


@_breaks("DMA-002")
def _unmap_posted_buffers(nic: Loopback) -> None:
    with _device_memory(nic) as memory:
        nic.driver.add_flow_rule(TCPv4(dst_port=_PORT), queue=1)
        nic.driver.restart_rx(1, payload_memory=memory)
        nic.driver.unmap(memory)
        nic.receive(_FRAME)


@_breaks("DMA-003")
def _unmap_data_to_send(nic: Loopback) -> None:
    with _device_memory(nic) as memory:
        _block(nic)
        nic.driver.send(0, _FRAME, fragments=[_HEADER, len(_FRAME) - _HEADER], memory=memory)
        nic.run()
        nic.driver.unmap(memory)
        nic.wire.unblock()
