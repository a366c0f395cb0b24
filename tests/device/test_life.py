"""From probe to remove: registers, both ways to set up the admin queue, every kind of reset."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest

from nicmodel.gvnic import registers as r
from nicmodel.gvnic.commands import DEVICE_DESCRIPTOR, Feature, Opcode, OptionId, QueueFormat
from nicmodel.gvnic.registers import Bar, DeviceStatus
from nicmodel.gvnic.testing.adminq import AdminTimeout, encode_command
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.packet.headers import L3, L4
from nicmodel.testing.guest_memory import PAGE
from nicmodel.vfio_user.protocol import DeviceFlag, PciIrq, PciRegion

from .conftest import ENTRIES
from .frames import NIC_MAC, tcp

Scheme = Literal["base", "pfn"]


def receives(lab: Loopback) -> bool:
    """Whether a frame on the wire comes out of the driver."""
    lab.receive(tcp())
    return [packet.frame for packet in lab.driver.poll_all()] == [tcp()]


@pytest.mark.parametrize("scheme", ["base", "pfn"])
@pytest.mark.parametrize("revision", [0, 1])
def test_probe_open_close_remove(make_lab: Callable[..., Loopback], scheme: Scheme, revision: int) -> None:
    """Both admin queue schemes work at any revision, and nothing is left behind."""
    lab = make_lab(scheme=scheme, revision=revision)
    assert lab.driver.client.region_read(PciRegion.CONFIG, 8, 1) == bytes([revision])
    lab.driver.probe()
    lab.driver.open(ring_entries=ENTRIES)
    assert receives(lab)
    lab.driver.remove()
    assert lab.ram.allocated == 0
    assert not lab.nic.configured


@pytest.mark.parametrize("scheme", ["base", "pfn"])
def test_probe_again(make_lab: Callable[..., Loopback], scheme: Scheme) -> None:
    """A driver can be loaded and unloaded many times, by either scheme after the other."""
    lab = make_lab(scheme=scheme)
    for _ in range(5):
        lab.driver.probe()
        lab.driver.open(ring_entries=ENTRIES)
        assert receives(lab)
        lab.driver.remove()
    lab.driver.disconnect()
    lab.driver = lab.connect(scheme="pfn" if scheme == "base" else "base")
    lab.driver.probe()
    lab.driver.open(ring_entries=ENTRIES)
    assert receives(lab)


def test_pci_identity(lab: Loopback) -> None:
    config = lab.driver.client.region_read(PciRegion.CONFIG, 0, 64)
    vendor, device = struct.unpack_from("<HH", config)
    assert (vendor, device) == (0x1AE0, 0x0042)
    assert config[9:12] == bytes.fromhex("000002")
    assert struct.unpack_from("<HH", config, 0x2C) == (0x1AE0, 0x0058)


def test_regions_and_vectors(make_lab: Callable[..., Loopback]) -> None:
    client = make_lab(queues=5).driver.client
    assert client.device_info().flags == DeviceFlag.RESET | DeviceFlag.PCI
    assert client.region_info(Bar.REGISTERS).size == 4096
    assert client.region_info(Bar.DOORBELLS).size == 65536
    assert client.region_info(Bar.MSIX).size >= 16 * 11
    assert client.region_info(3).size == 0
    assert client.irq_info(PciIrq.MSIX).count == 11
    assert client.irq_info(PciIrq.INTX).count == 0


def test_registers_before_probe(lab: Loopback) -> None:
    """What a driver reads before there is an admin queue; everything undefined reads 0."""
    registers = lab.driver.registers
    assert registers.read(r.MAX_TX_QUEUES) == 8
    assert registers.read(r.MAX_RX_QUEUES) == 8
    assert registers.read(r.DEVICE_STATUS) == DeviceStatus.LINK_UP
    assert registers.read(r.ADMINQ_EVENT_COUNTER) == 0
    assert registers.read(r.ADMINQ_PFN) == 0
    lab.driver.client.region_write(Bar.REGISTERS, 0x100, b"\xff" * 64)
    assert lab.driver.client.region_read(Bar.REGISTERS, 0x2A, 4096 - 0x2A) == bytes(4096 - 0x2A)


def test_read_only_registers_stay(lab: Loopback) -> None:
    lab.driver.registers.write(r.MAX_TX_QUEUES, 1)
    lab.driver.registers.write(r.DEVICE_STATUS, 0)
    assert lab.driver.registers.read(r.MAX_TX_QUEUES) == 8
    assert lab.driver.device_status() == DeviceStatus.LINK_UP


def test_description(driver: Driver) -> None:
    """The descriptor says what `Profile` says, and every option is one that Linux accepts."""
    description = driver.description
    assert description is not None
    assert description.mac == NIC_MAC
    descriptor = description.descriptor
    assert (descriptor["tx_queue_entries"], descriptor["rx_queue_entries"]) == (1024, 1024)
    assert descriptor["default_num_queues"] == 4
    assert descriptor["counters"] >= 1
    assert description.max_mtu == 8896
    assert description.packet_buffer_size == 4096
    assert description.header_buffer_size == 128
    assert description.max_flow_rules == 1024
    assert description.has_timestamps
    assert description.rss_sizes is None
    limits = description.ring_limits
    assert limits is not None
    assert limits.item()[1:] == (4096, 4096, 256, 256)
    expected = [
        OptionId.DQO_RDA,
        OptionId.GQI_QPL,
        OptionId.MODIFY_RING,
        OptionId.JUMBO_FRAMES,
        OptionId.BUFFER_SIZES,
        OptionId.FLOW_STEERING,
        OptionId.NIC_TIMESTAMP,
    ]
    assert list(description.options) == expected
    assert sum(8 + len(payload) for payload in description.options.values()) + 40 == descriptor["total_length"]


def test_older_drivers_find_ring_sizes(driver: Driver) -> None:
    """Linux up to 6.7 takes both from the DQO-RDA option."""
    assert driver.description is not None
    assert struct.unpack_from(">HH", driver.description.options[OptionId.DQO_RDA], 4) == (1024, 1024)


@pytest.mark.parametrize(
    ("profile", "missing"),
    [
        ({"max_flow_rules": 0}, Feature.FLOW_STEERING),
        ({"timestamps": False}, Feature.NIC_TIMESTAMP),
        ({"rss_option": True}, Feature(0)),
    ],
)
def test_features(make_lab: Callable[..., Loopback], profile: dict[str, int], missing: Feature) -> None:
    """A feature is offered by its option and by its bit in the queue format's mask, or not at all."""
    lab = make_lab(**profile)
    lab.driver.probe()
    description = lab.driver.description
    assert description is not None
    everything = Feature.MODIFY_RING | Feature.JUMBO_FRAMES | Feature.BUFFER_SIZES
    everything |= Feature.FLOW_STEERING | Feature.NIC_TIMESTAMP
    if profile.get("rss_option"):
        everything |= Feature.RSS_CONFIG
    assert description.features == everything & ~missing
    lab.driver.open(ring_entries=ENTRIES)
    assert receives(lab)
    lab.driver.remove()


def test_no_header_split(make_lab: Callable[..., Loopback]) -> None:
    lab = make_lab(header_buffer_size=0)
    lab.driver.probe()
    with pytest.raises(ValueError, match="no header split"):
        lab.driver.open(header_split=True)


@pytest.mark.parametrize("length", [0, 1, 40, 60, 139, 140, 200, 256, PAGE, 0xFFFF_FFFF])
def test_describe_into_little_room(driver: Driver, lab: Loopback, length: int) -> None:
    """The device writes what there is room for: iPXE gives 40 or 256 bytes, Windows 200, Linux a page."""
    assert driver.description is not None
    total = int(driver.description.descriptor["total_length"])
    place = driver.ram.allocate_zeroed(PAGE)
    driver.ram.view(place, PAGE)[:] = 0xA5
    driver.admin(Opcode.DESCRIBE_DEVICE, descriptor_address=place, version=1, available_length=length)
    written = min(length, total)
    assert driver.ram.read(place, written) == lab.nic.profile.describe()[:written]
    assert (driver.ram.view(place + written, PAGE - written) == 0xA5).all()
    assert DEVICE_DESCRIPTOR.itemsize == 40


def test_options_of_the_model_come_last(make_lab: Callable[..., Loopback]) -> None:
    """A driver that reads 200 bytes of the description finds all options of the real device in them."""
    everything: dict[str, Any] = {
        "rss_option": True,
        "deferred_bytes": 1 << 20,
        "queue_flush": True,
        "owners": 2,
        "ddp_flows": 2,
    }
    formats = (QueueFormat.DQO_RDA, QueueFormat.GQI_RDA, QueueFormat.GQI_QPL)
    raw = make_lab(formats=formats, **everything).nic.profile.describe()
    numbers, at = [], DEVICE_DESCRIPTOR.itemsize
    real = at
    while at < len(raw):
        numbers.append(int.from_bytes(raw[at : at + 2], "big"))
        at += 8 + int.from_bytes(raw[at + 2 : at + 4], "big")
        if numbers[-1] < 0x8000:
            real = at
    assert numbers == sorted(numbers, key=lambda number: number >= 0x8000)
    assert len(numbers) == 13
    assert real <= 200


@pytest.mark.parametrize("width", [2, 4])
def test_page_number_reads_back(driver: Driver, lab: Loopback, width: int) -> None:
    """A driver (iPXE) writes page number, base, length and RUN in one go, and takes a page number of 0 for a reset."""
    driver.release()
    page = driver.ram.allocate_zeroed(PAGE)
    number = (page // PAGE).to_bytes(4, "big")
    for register, data in (
        (r.ADMINQ_PFN, number),
        (r.ADMINQ_BASE_LO, (page & 0xFFFF_FFFF).to_bytes(4, "big")),
        (r.ADMINQ_BASE_HI, (page >> 32).to_bytes(4, "big")),
        (r.ADMINQ_LENGTH, PAGE.to_bytes(2, "big").ljust(width, b"\0")),
        (r.DRIVER_STATUS, int(r.DriverStatus.RUN).to_bytes(4, "big")),
    ):
        driver.client.region_write(r.Bar.REGISTERS, register.offset, data)
    read = partial(driver.client.region_read, r.Bar.REGISTERS)
    assert read(r.ADMINQ_PFN.offset, 4) == number
    assert (lab.nic.admin.base, lab.nic.admin.slots) == (page, 64)
    address = driver.ram.allocate_zeroed(8)
    driver.ram.write(page, encode_command(Opcode.REPORT_LINK_SPEED, address=address))
    driver.client.region_write(r.Bar.REGISTERS, r.ADMINQ_DOORBELL.offset, (1).to_bytes(4, "big"))
    assert driver.ram.read(address, 8) == (100_000).to_bytes(8, "big")
    assert read(r.ADMINQ_PFN.offset, 4) == number
    # It starts anew every second that it is idle, without a release.
    driver.client.region_write(r.Bar.REGISTERS, r.DRIVER_STATUS.offset, int(r.DriverStatus.RUN).to_bytes(4, "big"))
    assert read(r.ADMINQ_PFN.offset, 4) == number
    assert read(r.ADMINQ_EVENT_COUNTER.offset, 4) == bytes(4)
    driver.client.region_write(r.Bar.REGISTERS, r.DRIVER_STATUS.offset, int(r.DriverStatus.RESET).to_bytes(4, "big"))
    assert read(r.ADMINQ_PFN.offset, 4) == bytes(4)
    driver.client.region_write(r.Bar.REGISTERS, r.DRIVER_STATUS.offset, int(r.DriverStatus.RUN).to_bytes(4, "big"))
    assert read(r.ADMINQ_PFN.offset, 4) == bytes(4)


def test_packet_types(driver: Driver) -> None:
    """Every combination of protocols has an entry; what is not assigned is unknown."""
    pairs = {(int(entry["l3"]), int(entry["l4"])) for entry in driver.ptypes}
    assert pairs >= {(int(l3), int(l4)) for l3 in (L3.IPV4, L3.IPV6) for l4 in L4}
    assert pairs <= {(int(l3), int(l4)) for l3 in L3 for l4 in L4}
    assert len(driver.ptypes) == 1024


def test_vectors_pair_up(make_lab: Callable[..., Loopback]) -> None:
    lab = make_lab(queues=3)
    lab.driver.probe()
    assert lab.driver.blocks == 6
    assert lab.driver.management_vector == 6
    assert len(set(lab.driver.irq_doorbells)) == 6
    assert 0 not in lab.driver.irq_doorbells  # a stopped queue's zeroed resources point there


def test_release_forgets_everything(driver: Driver, lab: Loopback) -> None:
    """*Steps*: set up all there is, release. *Verify*: the state is that of the beginning, and stays quiet."""
    driver.open(ring_entries=ENTRIES)
    driver.set_rss(table=[3] * 128)
    queue = driver.rx[0]
    driver.release()
    assert driver.device_status() == DeviceStatus.LINK_UP | DeviceStatus.DEVICE_IS_RESET
    assert driver.registers.read(r.ADMINQ_EVENT_COUNTER) == 0
    before = lab.ram.bytes.copy()
    lab.receive(tcp())
    driver.doorbells.ring(queue.doorbell_index, 32)
    lab.run()
    lab.advance(60 * 10**9)
    assert np.array_equal(lab.ram.bytes, before)
    assert not lab.wire.sent


def test_release_twice(driver: Driver) -> None:
    driver.release()
    assert driver.adminq is not None
    driver.adminq.release()
    driver.adminq.start()
    assert DeviceStatus.DEVICE_IS_RESET not in driver.device_status()


def test_setup_over_a_running_queue(driver: Driver, lab: Loopback) -> None:
    """A new admin queue without a release is an implicit reset: kexec after a crash does so."""
    driver.open(ring_entries=ENTRIES)
    assert driver.adminq is not None
    driver.adminq.start()
    lab.run()
    assert not lab.nic.configured
    driver.verify_compatibility()


def test_commands_after_release_are_not_executed(driver: Driver) -> None:
    driver.release()
    with pytest.raises(AdminTimeout):
        driver.report_link_speed()


@pytest.mark.parametrize("how", ["vfio", "flr"])
def test_function_reset(driver: Driver, lab: Loopback, how: str) -> None:
    """*Steps*: reset a running device. *Verify*: power-on state, no DMA to what it knew, and it can be probed again."""
    driver.open(ring_entries=ENTRIES)
    if how == "vfio":
        driver.client.reset()
    else:
        express = find_capability(driver, 0x10)
        driver.client.region_write(PciRegion.CONFIG, express + 8, struct.pack("<H", 0x8000))
    assert driver.device_status() == DeviceStatus.LINK_UP
    before = lab.ram.bytes.copy()
    lab.receive(tcp())
    assert np.array_equal(lab.ram.bytes, before)

    driver.disconnect()
    lab.driver = lab.connect()
    lab.driver.probe()
    lab.driver.open(ring_entries=ENTRIES)
    assert receives(lab)


def find_capability(driver: Driver, wanted: int) -> int:
    config = driver.client.region_read(PciRegion.CONFIG, 0, 256)
    place = config[0x34]
    while config[place] != wanted:
        place = config[place + 1]
        assert place
    return place


def test_device_requests_reset(driver: Driver, lab: Loopback) -> None:
    """*Steps*: the device asks. *Verify*: management interrupt and bit; the driver's reset clears it."""
    driver.open(ring_entries=ENTRIES)
    lab.nic.request_reset()
    assert driver.fired(driver.management_vector) == 1
    assert DeviceStatus.RESET in driver.device_status()
    driver.reset()
    assert driver.device_status() == DeviceStatus.LINK_UP
    driver.open(ring_entries=ENTRIES)
    assert receives(lab)


def test_client_dies(driver: Driver, lab: Loopback) -> None:
    """A guest that vanishes while packets flow leaves the device ready for the next one."""
    driver.open(ring_entries=ENTRIES)
    lab.receive(tcp())
    driver.disconnect()
    lab.advance(0)
    lab.wire.inject(tcp())
    lab.driver = lab.connect()
    lab.driver.probe()
    lab.driver.open(ring_entries=ENTRIES)
    assert receives(lab)


def test_bus_master_off(driver: Driver, lab: Loopback) -> None:
    """Without bus mastering there is neither DMA nor interrupt; with it things go on."""
    driver.open(ring_entries=ENTRIES)
    driver.set_bus_master(False)
    before = lab.ram.bytes.copy()
    lab.receive(tcp())
    lab.nic.request_reset()
    assert np.array_equal(lab.ram.bytes, before)
    assert driver.fired(driver.management_vector) == 0
    driver.set_bus_master()
    assert receives(lab)


def test_commands_wait_for_bus_mastering(driver: Driver, lab: Loopback) -> None:
    """None is read, executed or answered without; a driver that gives its admin queue too early finds it done later."""
    driver.set_bus_master(False)
    before, ledger = lab.ram.bytes.copy(), lab.nic.state.ledger.sum()
    with pytest.raises(AdminTimeout):
        driver.report_link_speed()
    assert lab.nic.admin.counter != lab.nic.admin._producer
    asked = lab.ram.bytes != before  # the command itself, which the driver has written
    lab.advance(1_000_000_000)
    assert np.array_equal(lab.ram.bytes != before, asked) and lab.nic.state.ledger.sum() == ledger
    driver.set_bus_master()
    assert lab.nic.admin.counter == lab.nic.admin._producer
    assert driver.report_link_speed() == lab.nic.profile.link_speed


def test_statistics_wait_for_bus_mastering(driver: Driver, lab: Loopback) -> None:
    """A system that ends without a word to the device, as for kexec, clears the bit: its memory is another's then."""
    driver.open(ring_entries=ENTRIES)
    driver.report_stats()
    driver.set_bus_master(False)
    lab.ram.bytes[:] = 0x5A
    faults = int(lab.nic.state.device["faults"][0])
    lab.advance(60_000_000_000)
    assert (lab.ram.bytes == 0x5A).all()
    assert int(lab.nic.state.device["faults"][0]) == faults
