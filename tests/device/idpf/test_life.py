"""From power-on to a vport, and back: registers, mailbox, messages, resets."""

from __future__ import annotations

import numpy as np
import pytest

from nicmodel.idpf import registers as r
from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.descriptors import MAILBOX
from nicmodel.idpf.testing.driver import Driver
from nicmodel.idpf.testing.mailbox import ENTRIES, Refused, Silent, one
from nicmodel.idpf.testing.nic import TestNic
from nicmodel.idpf.virtchnl import Op, Other, QueueModel, QueueType, Result
from nicmodel.pci.config import COMMAND, Command
from nicmodel.vfio_user.protocol import PciRegion

from ..frames import NIC_MAC

pytestmark = [pytest.mark.nic(device="idpf"), pytest.mark.contract]

NIC_FRAME = b"\xff" * 6 + bytes.fromhex("020000000002 88b5") + bytes(50)

#: Here the driver is wrong on purpose.
misbehaves = pytest.mark.contract(strict=False)


def test_the_driver_finds_what_it_needs(driver: Driver, nic: TestNic) -> None:
    """What Linux 7.3 cannot do without, or fails over."""
    caps = driver.capabilities
    assert caps["default_num_vports"] == 1 and caps["max_tx_hdr_size"] == 255
    assert caps["num_allocated_vectors"] >= 3 and caps["mailbox_vector_id"] == 0
    assert not int(caps["other_caps"]) & 1 << 4, "SPLITQ_QSCHED: Linux 7.3 has no refill queues for it"
    assert int(caps["other_caps"]) & Other.FLOW_STEERING
    assert driver.vectors["start_vector_id"] == 1 and driver.vectors["itrn_index_spacing"] == 0x100
    vport = driver.vport
    assert bytes(vport["default_mac_addr"]).hex(":") == NIC_MAC
    assert vport["num_rx_bufq"] == 2 * vport["num_rx_q"] and vport["num_tx_complq"] == vport["num_tx_q"]
    assert vport["max_mtu"] - 26 == nic.device.profile.max_mtu
    assert set(driver.tails) == set(QueueType)
    for start, spacing in driver.tails.values():
        assert not 0x6000 <= start + 8 * spacing < 0x9000, "in a region that the driver maps for other things"
    assert nic.device.registers.state is r.ResetState.ACTIVE


def test_packet_types_end_with_a_payload(driver: Driver) -> None:
    """Without one Linux reports no hash (idpf_rx_hash); an ICMPv6 has the number of ICMP."""
    found = driver.packet_types()
    assert found and all(protocols[0] == 2 and protocols[-1] == 34 for protocols in found.values())
    assert [2, 21, 27, 34] in found.values() and [2, 19, 25, 34] in found.values()


@misbehaves
def test_a_tail_of_an_earlier_life(driver: Driver, nic: TestNic) -> None:
    """A driver that has not noticed a reset goes on sending. *Verify*: nothing is sent for that in the next life."""
    start, spacing = driver.tails[QueueType.TX]
    driver.registers.write_at(start + spacing, 29)
    driver.open(queues=2)
    assert nic.device.state.tx["tail"][:2].tolist() == [0, 0]
    driver.send(1, NIC_FRAME)
    assert bytes(nic.take()[0]) == NIC_FRAME
    assert nic.device.state.drops.sum() == 0


@pytest.mark.parametrize("bar, size", [(0, r.REGISTERS_SIZE), (2, 0x1000)])
def test_bars_have_64_bits(driver: Driver, bar: int, size: int) -> None:
    """Software learns the size by writing ones. *Verify*: both halves, and the type."""
    place = 0x10 + 4 * bar
    driver.client.region_write(PciRegion.CONFIG, place, b"\xff" * 8)
    found = int.from_bytes(driver.client.region_read(PciRegion.CONFIG, place, 8), "little")
    assert found == (1 << 64) - size | 0b100


@misbehaves
def test_messages_are_answered_in_order_and_taken_from_the_ring(driver: Driver) -> None:
    """More than the ring has descriptors, and the last is as the first. `Mailbox.request` looks at each descriptor."""
    for _ in range(ENTRIES + 3):
        assert driver.request(Op.VERSION, one(v.VERSION, major=2)) == one(v.VERSION, major=2).tobytes()


@misbehaves
def test_replies_wait_for_buffers(driver: Driver, nic: TestNic) -> None:
    """*Steps*: as many messages as there are buffers for, and more; then take what came, which posts buffers.

    *Verify*: no reply is lost, and all come in order.
    """
    assert driver.mailbox is not None
    version = one(v.VERSION, major=2).tobytes()
    for cookie in range(1, ENTRIES):
        driver.mailbox.send(Op.VERSION, version, cookie=cookie)
    nic.run()
    for cookie in range(ENTRIES, ENTRIES + 10):
        driver.mailbox.send(Op.VERSION, version, cookie=cookie)
    nic.run()
    cookies = [received.cookie for received in driver.mailbox.receive()]
    nic.run()
    cookies += [received.cookie for received in driver.mailbox.receive()]
    assert cookies == list(range(1, ENTRIES + 10))


@misbehaves
def test_what_is_not_known_is_refused(driver: Driver, nic: TestNic) -> None:
    with pytest.raises(Refused, match="4711: UNKNOWN_MESSAGE"):
        driver.request(4711, b"\0" * 8)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="GET_CAPS: INVALID"):
        driver.request(Op.GET_CAPS, b"short")
    with pytest.raises(Refused, match="SET_RSS_LUT: INVALID"):
        driver.request(Op.SET_RSS_LUT, one(v.RSS_LUT, lut_entries=0xFFFF))
    with pytest.raises(Refused, match="ADD_FLOW_RULE: INVALID"):  # more than numpy has a type for
        driver.request(Op.ADD_FLOW_RULE, one(v.FLOW_RULES, count=0xFFFFFFFF))
    with pytest.raises(Refused, match="ENABLE_VPORT: INVALID"):
        driver.request(Op.ENABLE_VPORT, one(v.VPORT, vport_id=7))
    with pytest.raises(Refused, match="CREATE_VPORT: NO_SPACE"):
        driver.create_vport()
    with pytest.raises(Refused, match="ALLOC_VECTORS: NO_SPACE"):
        driver.request(Op.ALLOC_VECTORS, one(v.ALLOC_VECTORS, num_vectors=1000))
    counts = nic.device.report()["admin"]
    assert counts["4711 UNKNOWN_MESSAGE"] == counts["GET_CAPS INVALID"] == 1


@misbehaves
def test_there_is_no_single_queue_model(driver: Driver) -> None:
    driver.request(Op.DESTROY_VPORT, one(v.VPORT))
    asked = one(v.CREATE_VPORT, txq_model=QueueModel.SINGLE, rxq_model=QueueModel.SINGLE, num_tx_q=1, num_rx_q=1)
    with pytest.raises(Refused, match="CREATE_VPORT: INVALID"):
        driver.request(Op.CREATE_VPORT, asked)


@misbehaves
def test_the_mailbox_has_a_vector_that_does_not_forget(driver: Driver) -> None:
    """*Steps*: disabled, a message is answered; then it is enabled. *Verify*: it fires then, once."""
    driver.fired(0)
    driver.registers.write(r.MAILBOX_DYN_CTL, 0)
    driver.request(Op.VERSION, one(v.VERSION, major=2))
    assert driver.fired(0) == 0
    driver.registers.write(r.MAILBOX_DYN_CTL, 0x19)
    assert driver.fired(0) == 1
    driver.request(Op.VERSION, one(v.VERSION, major=2))
    assert driver.fired(0) == 0, "it has masked itself"


def test_link_is_told_when_the_vport_is_enabled_and_when_it_changes(driver: Driver, nic: TestNic) -> None:
    assert not driver.events(), "before the interface is up Linux has nothing to apply it to"
    nic.set_link(False)
    nic.set_link(True)
    assert not driver.events()
    driver.open()
    assert [(event["link_status"], event["link_speed"]) for event in driver.events()] == [(1, 100_000)]
    nic.set_link(False)
    nic.set_link(True)
    assert [event["link_status"] for event in driver.events()] == [0, 1]
    driver.close()
    nic.set_link(False)
    assert not driver.events()
    driver.open()
    assert [event["link_status"] for event in driver.events()] == [0]


@misbehaves
@pytest.mark.parametrize("way", ["message", "device", "function", "bus master"])
def test_reset(driver: Driver, nic: TestNic, way: str) -> None:
    """*Steps*: open queues, reset by one of the ways that there are; set up again.

    *Verify*: the driver sees the length of the mailbox's queue as 0, no queue is left, the memory of the mailbox is not
    written any more; all works again.
    """
    driver.open()
    assert driver.registers.read(r.ARQ_LEN) & r.QUEUE_LENGTH_MASK == ENTRIES
    assert driver.mailbox is not None
    old = driver.mailbox
    if way == "message":
        old.send(Op.RESET_VF)
    elif way == "device":
        nic.call(nic.device.request_reset)
    elif way == "function":
        driver.client.reset()
    else:
        driver.set_bus_master(False)
    nic.run()
    assert driver.registers.read(r.ARQ_LEN) == driver.registers.read(r.ATQ_LEN) == 0
    assert driver.registers.read(r.RSTAT) == r.ResetState.COMPLETED
    assert not nic.device.state.rx["active"].any() and not nic.device.state.tx["active"].any()
    assert not nic.device.configured
    driver.free_queues()
    driver.mailbox = None
    old_ring = driver.ram.bytes.copy()
    driver.registers.write(r.ATQ_TAIL, 5)
    nic.inject(b"\xff" * 6 + b"\0" * 54)
    assert (driver.ram.bytes == old_ring).all()
    driver.set_bus_master()
    driver.set_up()
    driver.open()
    assert driver.events()
    driver.close()


def test_remove_and_probe_again(driver: Driver, nic: TestNic) -> None:
    for _ in range(3):
        driver.open()
        driver.remove()
        assert not nic.device.configured
        driver.probe()


def test_other_numbers_of_queues(driver: Driver, nic: TestNic) -> None:
    """What Linux does for ethtool -L. *Verify*: exactly what was asked for, and traffic's ring afterwards."""
    driver.open()
    driver.close()
    driver.exchange_queues(tx=6, rx=2)
    assert driver.vport["num_tx_q"] == 6
    driver.open(queues=2)
    assert np.flatnonzero(nic.device.state.rx["active"]).tolist() == [0, 1]
    driver.close()
    driver.exchange_queues(tx=1, rx=1)
    with pytest.raises(Refused, match="ADD_QUEUES: BAD_SEQUENCE"):
        driver.request(Op.ADD_QUEUES, one(v.ADD_QUEUES, num_tx_q=1, num_tx_complq=1, num_rx_q=1, num_rx_bufq=2))


@misbehaves
def test_queues_have_to_be_configured_first(driver: Driver) -> None:
    chunk = one(v.QUEUE_CHUNK, type=QueueType.TX, num_queues=1)
    head = one(v.QUEUES, num_chunks=1)
    with pytest.raises(Refused) as refused:
        driver.request(Op.ENABLE_QUEUES, head.tobytes() + chunk.tobytes())
    assert refused.value.result == Result.BAD_SEQUENCE
    chunk["start_queue_id"] = 77
    with pytest.raises(Refused) as refused:
        driver.request(Op.ENABLE_QUEUES, head.tobytes() + chunk.tobytes())
    assert refused.value.result == Result.NO_SUCH_QUEUE


@misbehaves
@pytest.mark.parametrize(
    "field, value", [("ring_len", 100), ("ring_len", 8192), ("ring_address", 4), ("data_buffer_size", 64), ("model", 0)]
)
def test_queues_that_cannot_be(driver: Driver, field: str, value: int) -> None:
    driver.open()
    records = driver.rx[0].records()
    driver.close()
    records[1][field] = value
    head = one(v.CONFIG_RX_QUEUES, num_qinfo=len(records))
    with pytest.raises(Refused, match="CONFIG_RX_QUEUES: INVALID"):
        driver.request(Op.CONFIG_RX_QUEUES, head.tobytes() + np.array(records).tobytes())


@misbehaves
def test_a_mailbox_outside_of_memory(driver: Driver, nic: TestNic) -> None:
    """*Verify*: a message that cannot be read is counted, the next one is answered."""
    assert driver.mailbox is not None
    place = driver.mailbox._send_ring + driver.mailbox._sent * MAILBOX.size
    driver.mailbox.send(Op.VERSION, b"\0" * 8, cookie=1)
    descriptor = MAILBOX.encode(buffer=1, opcode=0x801, length=8, message=1, cookie=2, address_high=0xFFFF)
    place = driver.mailbox._send_ring + driver.mailbox._sent * MAILBOX.size
    driver.ram.write(place, descriptor)
    driver.mailbox._sent += 1
    driver.registers.write(r.ATQ_TAIL, driver.mailbox._sent)
    nic.run()
    results = {received.cookie: received.result for received in driver.mailbox.receive()}
    assert results == {1: Result.OK, 2: Result.INVALID}


@misbehaves
def test_without_bus_mastering_nothing_is_answered(nic: TestNic) -> None:
    with nic.connect() as driver:
        driver.client.region_write(PciRegion.CONFIG, COMMAND, Command.MEMORY.to_bytes(2, "little"))
        with pytest.raises(Silent):
            driver.set_up()
