"""The admin queue: its mechanics, and every command with good and bad arguments."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from typing import Any

import pytest

from nicmodel.gvnic import registers as r
from nicmodel.gvnic.commands import (
    DRIVER_INFO,
    QUERIED_RULE,
    QUERY_FLOW_RULES_HEADER,
    RSS_KEY_SIZE,
    SLOT_SIZE,
    FlowQuery,
    Inner,
    Opcode,
    QueueFormat,
    RssHashType,
    Status,
)
from nicmodel.gvnic.testing.adminq import AdminError, AdminTimeout, decode_command, encode_command
from nicmodel.gvnic.testing.driver import LINUX_HASH_TYPES, Driver
from nicmodel.gvnic.testing.flows import TCPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxConfig
from nicmodel.nic import events
from nicmodel.testing.guest_memory import PAGE

from .conftest import ENTRIES
from .frames import tcp

#: Guest addresses where nothing is mapped.
NOWHERE = 0xDEAD_0000
TOP = 0xFFFF_FFFF_FFFF_F000


def refused(driver: Driver, opcode: Opcode, **fields: int) -> int:
    """The status of a command that must fail; the queue must work on."""
    with pytest.raises(AdminError) as error:
        driver.admin(opcode, **fields)
    driver.report_link_speed()
    return error.value.status


def rx_fields(driver: Driver, queue: int = 0, **changes: int) -> dict[str, int]:
    """Fields of a valid CREATE_RX_QUEUE, some of them changed."""
    return decode_command(driver.make_rx(queue, RxConfig(entries=ENTRIES)).create_command()) | changes


def tx_fields(driver: Driver, queue: int = 0, **changes: int) -> dict[str, int]:
    """Fields of a valid CREATE_TX_QUEUE, some of them changed."""
    return decode_command(driver.make_tx(queue, ENTRIES).create_command()) | changes


# Mechanics


def test_batch_of_63(driver: Driver) -> None:
    """One doorbell hands over as many commands as the ring holds, and they are done in order."""
    place = driver.ram.allocate_zeroed(PAGE)
    slots = [encode_command(Opcode.REPORT_LINK_SPEED, address=place + 8 * number) for number in range(63)]
    driver.admin_batch(slots)
    speeds = driver.ram.view(place, 63 * 8).view(">u8")
    assert (speeds == 100_000).all()
    assert driver.ram.read(place + 63 * 8, 8) == bytes(8)


def test_many_laps(driver: Driver) -> None:
    for _ in range(200):
        assert driver.report_link_speed() == 100_000


def test_first_error_of_a_batch(driver: Driver) -> None:
    """A command that fails does not stop those behind it."""
    place = driver.ram.allocate_zeroed(PAGE)
    good = encode_command(Opcode.REPORT_LINK_SPEED, address=place)
    bad = encode_command(Opcode.REPORT_LINK_SPEED, address=NOWHERE)
    with pytest.raises(AdminError) as error:
        driver.admin_batch([bad, good])
    assert error.value.opcode == Opcode.REPORT_LINK_SPEED
    assert driver.ram.read(place, 8) == (100_000).to_bytes(8, "big")


def test_event_counter_wraps(driver: Driver, lab: Loopback) -> None:
    """Both counts are 32 bits and are compared by equality only."""
    assert driver.adminq is not None
    # 2³² commands are out of reach; let both sides believe that nearly as many have been executed.
    driver.adminq.produced = lab.nic.admin.counter = 0xFFFF_FFC0
    for _ in range(130):
        driver.report_link_speed()
    assert driver.adminq.produced == 0xC0 - 0x7E
    driver.adminq.produced = lab.nic.admin.counter = 0xFFFF_FFE0
    place = driver.ram.allocate_zeroed(PAGE)
    driver.admin_batch(encode_command(Opcode.REPORT_LINK_SPEED, address=place) for _ in range(63))


@pytest.mark.parametrize("distance", [65, 1000, 0x8000_0000, 0xFFFF_FFFF])
def test_impossible_doorbell(driver: Driver, distance: int) -> None:
    """More commands than the ring holds: nothing is executed, and the queue works on."""
    assert driver.adminq is not None
    driver.registers.write(r.ADMINQ_DOORBELL, (driver.adminq.produced + distance) & 0xFFFF_FFFF)
    assert driver.registers.read(r.ADMINQ_EVENT_COUNTER) == driver.adminq.produced
    driver.report_link_speed()


@pytest.mark.parametrize("opcode", [0, 0x13, 0x100, 0xFFFF_FFFF])
def test_unknown_opcode(driver: Driver, opcode: int) -> None:
    with pytest.raises(AdminError) as error:
        driver.admin_batch([opcode.to_bytes(4, "big").ljust(SLOT_SIZE, b"\0")])
    assert error.value.status == Status.UNIMPLEMENTED
    driver.report_link_speed()


def test_every_command_survives_ones(lab: Loopback) -> None:
    """Every known opcode with a payload of ones is answered, by some error, and leaves the device alive."""
    for opcode in Opcode:
        lab.driver.probe()
        with pytest.raises(AdminError) as error:
            lab.driver.admin_batch([int(opcode).to_bytes(4, "big") + bytes(4) + b"\xff" * 56])
            raise AdminError(opcode, Status.PASSED)
        expected = opcode == Opcode.DECONFIGURE_DEVICE_RESOURCES  # has no arguments
        assert (error.value.status == Status.PASSED) == expected, error.value
        lab.driver.release()
    assert lab.nic.state.device["faults"][0] >= 0


def test_queue_in_unmapped_memory(lab: Loopback) -> None:
    """The device finds no commands; it neither dies nor claims success."""
    lab.driver.set_bus_master()
    lab.driver.registers.write(r.ADMINQ_PFN, NOWHERE // PAGE)
    lab.driver.registers.write(r.ADMINQ_DOORBELL, 3)
    lab.run()
    lab.driver.registers.write(r.ADMINQ_PFN, 0)
    lab.driver.probe()


def test_memory_unmapped_under_the_queue(driver: Driver) -> None:
    driver.unmap(driver.ram)
    with pytest.raises((AdminError, AdminTimeout)):
        driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    driver.map(driver.ram)
    driver.release()
    driver.setup_adminq()
    driver.verify_compatibility()


# Commands whose answer or argument lies in memory


@pytest.mark.parametrize("address", [NOWHERE, TOP, 0xFFFF_FFFF_FFFF_FFF8])
@pytest.mark.parametrize(
    ("opcode", "address_field", "fields"),
    [
        (Opcode.DESCRIBE_DEVICE, "descriptor_address", {"version": 1, "available_length": PAGE}),
        (Opcode.REPORT_LINK_SPEED, "address", {}),
        (Opcode.GET_PTYPE_MAP, "address", {"length": 2048}),
        (Opcode.VERIFY_DRIVER_COMPATIBILITY, "address", {"length": DRIVER_INFO.itemsize}),
        (Opcode.QUERY_FLOW_RULES, "address", {"query": FlowQuery.STATS, "available_length": PAGE}),
        (Opcode.REPORT_NIC_TIMESTAMP, "address", {"length": 40}),
        (Opcode.REPORT_STATS, "address", {"length": 1544, "interval_ms": 20}),
        (Opcode.CONFIGURE_RSS, "key_address", {"hash_algorithm": 1, "key_size": 40}),
        (Opcode.CONFIGURE_RSS, "lut_address", {"hash_algorithm": 1, "lut_size": 128}),
        (Opcode.EXTENDED_COMMAND, "inner_address", {"inner_opcode": Inner.CONFIGURE_FLOW_RULE, "inner_length": 92}),
    ],
)
def test_unmapped_address(
    driver: Driver, opcode: Opcode, address_field: str, fields: dict[str, int], address: int
) -> None:
    assert refused(driver, opcode, **{address_field: address}, **fields) == Status.INVALID_ARGUMENT


def test_answer_across_the_end_of_memory(driver: Driver) -> None:
    """An answer that begins in guest memory and ends outside of it is refused whole."""
    end = driver.ram.base + driver.ram.size
    driver.ram.view(end - 16, 16)[:] = 0xA5
    fields = {"address": end - 16, "length": 2048}
    assert refused(driver, Opcode.GET_PTYPE_MAP, **fields) == Status.INVALID_ARGUMENT
    assert (driver.ram.view(end - 16, 16) == 0xA5).all()


@pytest.mark.parametrize(
    ("opcode", "fields"),
    [
        (Opcode.DESCRIBE_DEVICE, {"version": 2, "available_length": PAGE}),
        (Opcode.GET_PTYPE_MAP, {"length": 2047}),
        (Opcode.VERIFY_DRIVER_COMPATIBILITY, {"length": DRIVER_INFO.itemsize - 1}),
        (Opcode.REPORT_NIC_TIMESTAMP, {"length": 39}),
        (Opcode.QUERY_FLOW_RULES, {"query": 3, "available_length": PAGE}),
        (Opcode.QUERY_FLOW_RULES, {"query": FlowQuery.STATS, "available_length": 15}),
        (Opcode.CONFIGURE_RSS, {"hash_algorithm": 2}),
        (Opcode.CONFIGURE_RSS, {"hash_algorithm": 1, "key_size": 39}),
        (Opcode.CONFIGURE_RSS, {"hash_algorithm": 1, "key_size": 65535}),
        (Opcode.CONFIGURE_RSS, {"hash_algorithm": 1, "lut_size": 127}),
        (Opcode.SET_DRIVER_PARAMETER, {"type": 2, "value": 1500}),
        (Opcode.SET_DRIVER_PARAMETER, {"type": 1, "value": 8897}),
        (Opcode.EXTENDED_COMMAND, {"inner_opcode": Inner.CONFIGURE_FLOW_RULE, "inner_length": 91}),
    ],
)
def test_wrong_argument(driver: Driver, opcode: Opcode, fields: dict[str, int]) -> None:
    """*Steps*: a command with one wrong argument and all addresses good. *Verify*: INVALID_ARGUMENT."""
    place = driver.ram.allocate_zeroed(PAGE)
    addresses = {name: place for name in opcode.command.payload.names or () if "address" in name}
    assert refused(driver, opcode, **addresses, **fields) == Status.INVALID_ARGUMENT
    assert not driver.ram.view(place, PAGE).any()


def test_unknown_extended_command(driver: Driver) -> None:
    place = driver.ram.allocate_zeroed(PAGE)
    status = refused(driver, Opcode.EXTENDED_COMMAND, inner_opcode=0x102, inner_length=92, inner_address=place)
    assert status == Status.UNIMPLEMENTED


def test_mtu(driver: Driver) -> None:
    """FreeBSD and DPDK say which MTU they use."""
    driver.admin(Opcode.SET_DRIVER_PARAMETER, type=1, value=8896)
    driver.admin(Opcode.SET_DRIVER_PARAMETER, type=1, value=1500)


@pytest.mark.parametrize("raised", [OverflowError("too large"), KeyError(3), AssertionError(), MemoryError()])
def test_exception_in_a_command(driver: Driver, lab: Loopback, raised: Exception) -> None:
    """*Steps*: the model itself fails in a command. *Verify*: INTERNAL_ERROR, counted and told; the queue goes on."""
    told: list[events.Event] = []
    lab.nic.diagnostics.observers = (told.append,)

    def fail(_: Any) -> None:
        raise raised

    handlers = lab.nic.admin._handlers
    kept, handlers[Opcode.GET_PTYPE_MAP] = handlers[Opcode.GET_PTYPE_MAP], fail
    logging.disable(logging.ERROR)
    try:
        for _ in range(3):
            assert refused(driver, Opcode.GET_PTYPE_MAP) == Status.INTERNAL_ERROR
    finally:
        logging.disable(logging.NOTSET)
    handlers[Opcode.GET_PTYPE_MAP] = kept
    assert lab.nic.counters["internal_error"] == lab.nic.counters["failed_get_ptype_map"] == 3
    executed = [event.status for event in told if isinstance(event, events.CommandExecuted)]
    assert executed.count(Status.INTERNAL_ERROR) == 3
    driver.open(ring_entries=ENTRIES)
    lab.receive(tcp(3))
    assert [packet.frame for packet in driver.poll_all()] == [tcp(3)]


def test_observer_that_fails(driver: Driver, lab: Loopback) -> None:
    """Who looks on must not stop the admin queue either."""

    def observer(event: events.Event) -> None:
        if isinstance(event, events.CommandFetched):
            raise RuntimeError(event)

    lab.nic.diagnostics.observers = (observer,)
    logging.disable(logging.ERROR)
    try:
        with pytest.raises(AdminError) as error:
            driver.report_link_speed()
    finally:
        logging.disable(logging.NOTSET)
    assert error.value.status == Status.INTERNAL_ERROR
    lab.nic.diagnostics.observers = ()
    assert driver.report_link_speed() == 100_000


@pytest.mark.parametrize("length", [1, 8, 16, 63, 64, PAGE, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_statistics_region_of_any_length(driver: Driver, lab: Loopback, length: int) -> None:
    """The device looks at what it will write, at the region's end, and at nothing else, however long the region."""
    read: list[int] = []
    dma_read = lab.nic.dma.read

    def observed(address: int, count: int) -> bytes:
        read.append(count)
        return dma_read(address, count)

    lab.nic.dma.read = observed  # type: ignore[method-assign]
    end = driver.ram.base + driver.ram.size
    try:
        driver.admin(Opcode.REPORT_STATS, address=(end - length) % (1 << 64), length=length, interval_ms=(1 << 64) - 1)
    except AdminError as error:
        assert error.status == Status.INVALID_ARGUMENT
        assert length > end
    assert max(read) <= max(SLOT_SIZE, 64 * lab.nic.profile.queues)
    driver.admin(Opcode.REPORT_STATS)
    driver.report_link_speed()


@pytest.mark.parametrize("page_size", [1, 2048, 4097, 6144, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1])
def test_bad_page_size(driver: Driver, page_size: int) -> None:
    place = driver.ram.allocate_zeroed(PAGE)
    fields = {"page_list_id": 1, "num_pages": 1, "list_address": place, "page_size": page_size}
    assert refused(driver, Opcode.REGISTER_PAGE_LIST, **fields) == Status.INVALID_ARGUMENT


@pytest.mark.parametrize("queue_format", [QueueFormat.GQI_QPL, QueueFormat.DQO_RDA])
def test_large_pages(driver: Driver, lab: Loopback, queue_format: QueueFormat) -> None:
    """A page may be as large as any processor's: a queue with such a list can be created."""
    driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    driver.configure_resources(queue_format)
    place = driver.ram.allocate_zeroed(PAGE)
    driver.admin(Opcode.REGISTER_PAGE_LIST, page_list_id=1, num_pages=1, list_address=place, page_size=1 << 30)
    driver.admin(Opcode.CREATE_TX_QUEUE, **tx_fields(driver, page_list_id=1))
    assert lab.nic.pages.pages == 1
    driver.admin(Opcode.DESTROY_TX_QUEUE)
    driver.admin(Opcode.UNREGISTER_PAGE_LIST, page_list_id=1)
    assert lab.nic.pages.pages == 0


def test_larger_length_is_fine(driver: Driver) -> None:
    """A newer driver may leave more room than the device's answer takes."""
    place = driver.ram.allocate_zeroed(2 * PAGE)
    driver.admin(Opcode.GET_PTYPE_MAP, length=PAGE, address=place)
    driver.admin(Opcode.REPORT_NIC_TIMESTAMP, length=PAGE, address=place)
    driver.admin(Opcode.VERIFY_DRIVER_COMPATIBILITY, length=PAGE, address=place)


# Device resources


def resources(driver: Driver, **changes: int) -> dict[str, int]:
    place = driver.ram.allocate_zeroed(PAGE)
    return {
        "counter_array": place,
        "irq_doorbell_address": place + 1024,
        "num_counters": 16,
        "num_irq_doorbells": 16,
        "irq_doorbell_stride": 64,
        "queue_format": QueueFormat.DQO_RDA,
    } | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"num_irq_doorbells": 0},
        {"num_irq_doorbells": 17},
        {"num_irq_doorbells": 0xFFFF_FFFF},
        {"irq_doorbell_stride": 0},
        {"irq_doorbell_stride": 3},
        {"queue_format": QueueFormat.GQI_RDA},
        {"queue_format": QueueFormat.DQO_QPL},
        {"queue_format": 9},
        {"msix_base_index": 2},
        {"counter_array": NOWHERE},
        {"counter_array": TOP},
        {"irq_doorbell_address": NOWHERE},
        {"irq_doorbell_address": 0xFFFF_FFFF_FFFF_FFF0},
        {"irq_doorbell_stride": 0x8000_0000},
        {"num_counters": 0xFFFF_FFFF},
        {"num_counters": 0x1_0000},
    ],
)
def test_bad_resources(lab: Loopback, changes: dict[str, int]) -> None:
    lab.driver.probe()
    lab.driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    status = refused(lab.driver, Opcode.CONFIGURE_DEVICE_RESOURCES, **resources(lab.driver, **changes))
    assert status == Status.INVALID_ARGUMENT
    lab.driver.admin(Opcode.CONFIGURE_DEVICE_RESOURCES, **resources(lab.driver))


@pytest.mark.parametrize("stride", [4, 32, 64, 128])
def test_irq_doorbell_stride(driver: Driver, stride: int) -> None:
    """Indices go where the stride says; the bytes between them are not the device's."""
    driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    place = driver.ram.allocate_zeroed(PAGE)
    driver.ram.view(place, PAGE)[:] = 0xA5
    driver.admin(
        Opcode.CONFIGURE_DEVICE_RESOURCES,
        **resources(driver, irq_doorbell_address=place, irq_doorbell_stride=stride),
    )
    raw = driver.ram.read(place, PAGE)
    indices = [int.from_bytes(raw[block * stride : block * stride + 4], "big") for block in range(16)]
    assert len(set(indices)) == 16
    for block in range(16):
        assert raw[block * stride + 4 : (block + 1) * stride] == b"\xa5" * (stride - 4)
    assert raw[16 * stride :] == b"\xa5" * (PAGE - 16 * stride)


def test_counters_are_zeroed(driver: Driver) -> None:
    driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    fields = resources(driver)
    driver.ram.view(fields["counter_array"], 68)[:] = 0xA5
    driver.admin(Opcode.CONFIGURE_DEVICE_RESOURCES, **fields)
    assert driver.ram.read(fields["counter_array"], 68) == bytes(64) + b"\xa5" * 4


@pytest.mark.parametrize("counters", [0, 1, 7, 8, 9, 15, 16])
def test_counter_outside_of_the_array(driver: Driver, counters: int) -> None:
    """A queue whose event counter is beyond the array that the driver gave is refused, as by real devices."""
    driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    driver.admin(Opcode.CONFIGURE_DEVICE_RESOURCES, **resources(driver, num_counters=counters))
    for opcode, fields, first in (
        (Opcode.CREATE_TX_QUEUE, tx_fields, 0), (Opcode.CREATE_RX_QUEUE, rx_fields, 8),
    ):  # fmt: skip
        for queue in (0, 7):
            if first + queue < counters:
                driver.admin(opcode, **fields(driver, queue))
            else:
                assert refused(driver, opcode, **fields(driver, queue)) == Status.FAILED_PRECONDITION


@pytest.mark.parametrize("opcode", [Opcode.CREATE_TX_QUEUE, Opcode.CREATE_RX_QUEUE])
def test_queue_without_resources(driver: Driver, opcode: Opcode) -> None:
    fields = rx_fields(driver) if opcode == Opcode.CREATE_RX_QUEUE else tx_fields(driver)
    driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    assert refused(driver, opcode, **fields) == Status.FAILED_PRECONDITION


def test_deconfigure_destroys_queues(driver: Driver) -> None:
    driver.open(ring_entries=ENTRIES)
    driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    driver.setup_resources()
    driver.admin(Opcode.CREATE_RX_QUEUE, **rx_fields(driver))


# Queues


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"queue_id": 8}, Status.INVALID_ARGUMENT),
        ({"queue_id": 0xFFFF_FFFF}, Status.INVALID_ARGUMENT),
        ({"notification_block": 16}, Status.INVALID_ARGUMENT),
        ({"notification_block": 0xFFFF_FFFF}, Status.INVALID_ARGUMENT),
        ({"completion_ring_entries": 0}, Status.INVALID_ARGUMENT),
        ({"completion_ring_entries": 63}, Status.INVALID_ARGUMENT),
        ({"completion_ring_entries": 65535}, Status.INVALID_ARGUMENT),
        ({"queue_resources_address": NOWHERE}, Status.INVALID_ARGUMENT),
        ({"queue_resources_address": TOP + 0xFFC}, Status.INVALID_ARGUMENT),
    ],
)
@pytest.mark.parametrize("opcode", [Opcode.CREATE_TX_QUEUE, Opcode.CREATE_RX_QUEUE])
def test_bad_queue(driver: Driver, opcode: Opcode, changes: dict[str, int], status: Status) -> None:
    fields = rx_fields if opcode == Opcode.CREATE_RX_QUEUE else tx_fields
    assert refused(driver, opcode, **fields(driver, **changes)) == status
    driver.admin(opcode, **fields(driver))


@pytest.mark.parametrize(
    "changes",
    [
        {"buffer_ring_entries": 0},
        {"buffer_ring_entries": 100},
        {"packet_buffer_size": 0},
        {"packet_buffer_size": 65535},
        {"header_buffer_size": 129},
    ],
)
def test_bad_rx_queue(driver: Driver, changes: dict[str, int]) -> None:
    status = refused(driver, Opcode.CREATE_RX_QUEUE, **rx_fields(driver, **changes))
    assert status == Status.INVALID_ARGUMENT


@pytest.mark.parametrize("changes", [{"ring_entries": 0}, {"ring_entries": 63}, {"ring_entries": 65535}])
def test_bad_tx_queue(driver: Driver, changes: dict[str, int]) -> None:
    status = refused(driver, Opcode.CREATE_TX_QUEUE, **tx_fields(driver, **changes))
    assert status == Status.INVALID_ARGUMENT


def test_queue_exists(driver: Driver) -> None:
    driver.open(ring_entries=ENTRIES)
    assert refused(driver, Opcode.CREATE_RX_QUEUE, **rx_fields(driver, 0)) == Status.ALREADY_EXISTS
    assert refused(driver, Opcode.CREATE_TX_QUEUE, **tx_fields(driver, 0)) == Status.ALREADY_EXISTS
    driver.close()


@pytest.mark.parametrize("opcode", [Opcode.DESTROY_TX_QUEUE, Opcode.DESTROY_RX_QUEUE])
def test_destroy_what_is_not_there(driver: Driver, opcode: Opcode) -> None:
    """A queue that could exist is gone, which is what was asked for; Linux would reset on an error."""
    driver.admin(opcode, queue_id=7)
    assert refused(driver, opcode, queue_id=8) == Status.NOT_FOUND


def test_page_list_id_is_not_looked_at(driver: Driver) -> None:
    """DPDK leaves 0 in it, FreeBSD 2³²−1; the queue format alone says what descriptors hold."""
    driver.admin(Opcode.CREATE_TX_QUEUE, **tx_fields(driver, page_list_id=0))
    driver.admin(Opcode.CREATE_RX_QUEUE, **rx_fields(driver, page_list_id=0))


def test_queue_resources(driver: Driver) -> None:
    """Doorbells are all different, none is 0, counters lie in the array, and nothing else is written."""
    driver.open(rx_queues=8, tx_queues=8, ring_entries=ENTRIES)
    queues = [*driver.rx.values(), *driver.tx.values()]
    doorbells = [queue.doorbell_index for queue in queues]
    assert len(set(doorbells + driver.irq_doorbells)) == 32
    assert min(doorbells) > 0
    assert max(doorbells) * 4 < r.DOORBELLS_SIZE
    assert all(queue.counter_index < len(driver.counters) for queue in queues)
    for queue in queues:
        assert driver.ram.read(queue.resources + 8, PAGE - 8) == bytes(PAGE - 8)


# RSS and rules, as far as commands go


def test_query_rss(make_lab: Callable[..., Loopback]) -> None:
    lab = make_lab(rss_option=True)
    lab.driver.probe()
    lab.driver.open(rx_queues=3, ring_entries=ENTRIES)
    default = lab.driver.query_rss()
    assert default.table == tuple(entry % 3 for entry in range(128))
    assert len(default.key) == RSS_KEY_SIZE
    key, table = bytes(range(100, 140)), [entry % 7 for entry in range(128)]
    lab.driver.set_rss(key, table)
    config = lab.driver.query_rss()
    assert (config.key, config.table, config.hash_types) == (key, tuple(table), LINUX_HASH_TYPES)


def test_rss_parts_are_independent(make_lab: Callable[..., Loopback]) -> None:
    """A size or a set of hash types of zero leaves that part alone."""
    lab = make_lab(rss_option=True)
    driver = lab.driver
    driver.probe()
    key, table = bytes(range(40)), [entry % 5 for entry in range(128)]
    driver.set_rss(key, table, hash_types=RssHashType.TCPV4)
    driver.set_rss(None, [1] * 128, hash_types=RssHashType(0))
    assert driver.query_rss().key == key
    assert driver.query_rss().hash_types == RssHashType.TCPV4
    driver.set_rss(bytes(40), None, hash_types=RssHashType(0))
    assert driver.query_rss().table == (1,) * 128
    assert driver.query_rss().key == bytes(40)


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 64, 128])
def test_rss_table_of_any_power_of_two(make_lab: Callable[..., Loopback], size: int) -> None:
    """Google's Windows driver sends short tables: the hash's lower bits select."""
    lab = make_lab(rss_option=True)
    lab.driver.probe()
    lab.driver.open(rx_queues=8, ring_entries=ENTRIES)
    table = [(5 * entry + 3) % 8 for entry in range(size)]
    lab.driver.set_rss(None, table)
    frames = [tcp(10, sport=port) for port in range(1, 30)]
    lab.receive(*frames)
    packets = {packet.frame: packet for packet in lab.driver.poll_all()}
    assert len(packets) == len(frames)
    for packet in packets.values():
        assert packet.queue == table[packet.completions[-1]["hash"] % size]
    assert lab.driver.query_rss().table == tuple(table * (128 // size))


@pytest.mark.parametrize("size", [3, 5, 12, 100, 127, 129, 256, 0xFFFF])
def test_rss_table_of_another_size(driver: Driver, size: int) -> None:
    place = driver.ram.allocate_zeroed(4 * 0x10000)
    fields = {"hash_algorithm": 1, "hash_types": 0xD2, "lut_address": place, "lut_size": size}
    assert refused(driver, Opcode.CONFIGURE_RSS, **fields) == Status.INVALID_ARGUMENT


@pytest.mark.parametrize("size", [0, 128])
def test_rss_off(make_lab: Callable[..., Loopback], size: int) -> None:
    """*Steps*: RSS off as Windows does it, and on again. *Verify*: the first queue gets all; address 0 is not read."""
    lab = make_lab(rss_option=True)
    driver = lab.driver
    driver.probe()
    driver.open(rx_queues=4, ring_entries=ENTRIES)
    frames = [tcp(10, sport=port) for port in range(1, 30)]
    driver.admin(Opcode.CONFIGURE_RSS, key_size=40, lut_size=size)
    lab.receive(*frames)
    packets = driver.poll_all()
    assert {packet.queue for packet in packets} == {0} and {packet.completions[-1]["hash"] for packet in packets} == {0}
    assert driver.query_rss().hash_types == RssHashType(0)
    driver.admin(Opcode.CONFIGURE_RSS)  # nothing of it: nothing changes
    assert driver.query_rss().hash_types == RssHashType(0)
    driver.set_rss(bytes(range(40)), [entry % 4 for entry in range(16)])
    lab.receive(*frames)
    assert len({packet.queue for packet in driver.poll_all()}) == 4


def test_failed_rss_changes_nothing(make_lab: Callable[..., Loopback]) -> None:
    lab = make_lab(rss_option=True)
    driver = lab.driver
    driver.probe()
    before = driver.query_rss()
    place = driver.ram.allocate_zeroed(PAGE)
    fields = {"hash_types": 1, "hash_algorithm": 1, "key_size": 40, "key_address": place, "lut_size": 128}
    assert refused(driver, Opcode.CONFIGURE_RSS, **fields, lut_address=NOWHERE) == Status.INVALID_ARGUMENT
    driver.ram.write(place + 1024, struct.pack(">128I", *[0xFFFF_FFFF] * 128))
    assert refused(driver, Opcode.CONFIGURE_RSS, **fields, lut_address=place + 1024) == Status.INVALID_ARGUMENT
    assert driver.query_rss() == before


def test_flow_rule_life(driver: Driver) -> None:
    """*Steps*: add, list, replace, delete, reset. *Verify*: what ethtool would show at each step."""
    assert driver.flow_rule_counts() == (0, 1024)
    assert driver.flow_rule_ids() == []
    first, second = TCPv4(dst_port=80), TCPv4(src="192.0.2.0/24", tos=(4, 0xFC))
    assert driver.add_flow_rule(first, 1) == 1023
    driver.add_flow_rule(second, 2, location=7)
    assert driver.flow_rule_ids() == [7, 1023]
    rules = driver.flow_rules()
    assert rules[1023].tobytes() == first.encode(1).tobytes()
    assert rules[7].tobytes() == second.encode(2).tobytes()
    driver.add_flow_rule(first, 3, location=7)
    assert driver.flow_rules()[7].tobytes() == first.encode(3).tobytes()
    assert driver.flow_rule_counts() == (2, 1024)
    driver.delete_flow_rule(1023)
    assert driver.flow_rule_ids() == [7]
    driver.reset_flow_rules()
    assert driver.flow_rule_counts() == (0, 1024)


def test_many_flow_rules(driver: Driver) -> None:
    """Listings that do not fit one page are continued: 1020 locations or 46 rules in an answer."""
    for location in range(1024):
        driver.add_flow_rule(TCPv4(dst_port=location), location % 8, location=location)
    assert driver.flow_rule_ids() == list(range(1024))
    rules = driver.flow_rules()
    assert list(rules) == list(range(1024))
    assert all(rule["queue"] == location % 8 for location, rule in rules.items())
    place = driver.ram.allocate_zeroed(2 * PAGE)
    driver.admin(Opcode.QUERY_FLOW_RULES, query=FlowQuery.RULES, available_length=PAGE, address=place)
    header = driver.ram.records(place, QUERY_FLOW_RULES_HEADER)[0]
    assert header["num_queried"] == 46
    assert header["total_length"] == 16 + 46 * QUERIED_RULE.itemsize
    assert not driver.ram.view(place + PAGE, PAGE).any()


def test_no_rules_is_not_found(driver: Driver) -> None:
    """Linux reads before its array when a query for rules succeeds with none."""
    place = driver.ram.allocate_zeroed(PAGE)
    fields = {"query": FlowQuery.RULES, "available_length": PAGE, "address": place}
    assert refused(driver, Opcode.QUERY_FLOW_RULES, **fields) == Status.NOT_FOUND
    driver.add_flow_rule(TCPv4(dst_port=1), 0, location=5)
    driver.admin(Opcode.QUERY_FLOW_RULES, **fields)
    assert refused(driver, Opcode.QUERY_FLOW_RULES, starting_rule_id=6, **fields) == Status.NOT_FOUND


@pytest.mark.parametrize("location", [1024, 0xFFFF_FFFF])
def test_rule_location_out_of_range(driver: Driver, location: int) -> None:
    with pytest.raises(AdminError) as error:
        driver.add_flow_rule(TCPv4(dst_port=1), 0, location=location)
    assert error.value.status in (Status.OUT_OF_RANGE, Status.INVALID_ARGUMENT)
    assert driver.flow_rule_ids() == []


def test_bad_rules(driver: Driver) -> None:
    with pytest.raises(AdminError) as error:
        driver.add_flow_rule(TCPv4(dst_port=1), 8, location=0)
    assert error.value.status == Status.INVALID_ARGUMENT
    with pytest.raises(AdminError) as error:
        driver.delete_flow_rule(3)
    assert error.value.status == Status.NOT_FOUND
    place = driver.ram.allocate_zeroed(PAGE)
    for operation, flow_type in ((3, 0), (0, 10), (0, 0xFFFF)):
        driver.ram.write(place, struct.pack(">HHH", operation, 0, flow_type))
        status = refused(
            driver,
            Opcode.EXTENDED_COMMAND,
            inner_opcode=Inner.CONFIGURE_FLOW_RULE,
            inner_length=92,
            inner_address=place,
        )
        assert status == Status.INVALID_ARGUMENT
    assert driver.flow_rule_ids() == []


def test_device_without_steering(make_lab: Callable[..., Loopback]) -> None:
    """Nothing that needs a rule works, and nothing breaks."""
    driver = make_lab(max_flow_rules=0).driver
    driver.probe()
    with pytest.raises(AdminError):
        driver.add_flow_rule(TCPv4(dst_port=1), 0, location=0)
    driver.reset_flow_rules()


def test_slot_size() -> None:
    """Every command fits its slot."""
    sizes: dict[Any, int] = {opcode: 8 + opcode.command.payload.itemsize for opcode in Opcode}
    assert max(sizes.values()) <= SLOT_SIZE
