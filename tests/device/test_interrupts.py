"""Interrupts: one vector for each notification block, masked by itself when it fires, moderated by an interval."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nicmodel.gvnic.commands import Opcode, QueueFormat
from nicmodel.gvnic.descriptors import IRQ_DOORBELL, ITR_NO_UPDATE
from nicmodel.gvnic.registers import DeviceStatus
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxConfig
from nicmodel.nic import events
from nicmodel.packet.frames import Batch
from nicmodel.testing.guest_memory import PAGE
from nicmodel.vfio_user.protocol import PciIrq

from .conftest import ENTRIES
from .frames import arp, tcp

US = 1000


@pytest.fixture
def driver(lab: Loopback) -> Driver:
    """Two queues each way; hashes go to queue 0; nothing has fired; no moderation, all vectors enabled."""
    driver = lab.driver
    driver.probe()
    driver.open(rx_queues=2, tx_queues=2, ring_entries=ENTRIES)
    driver.set_rss(table=[0] * 128)
    for vector in range(driver.blocks):
        driver.enable(vector, interval_us=0)
    lab.run()
    assert fired(driver) == {}
    return driver


def fired(driver: Driver) -> dict[int, int]:
    """Signals since the last call, by vector."""
    counts = {vector: driver.fired(vector) for vector in range(driver.blocks + 1)}
    return {vector: count for vector, count in counts.items() if count}


def test_each_queue_has_its_vector(lab: Loopback, driver: Driver) -> None:
    lab.receive(tcp())
    assert fired(driver) == {driver.rx_block(0): 1}
    driver.set_rss(table=[1] * 128)
    lab.receive(tcp())
    assert fired(driver) == {driver.rx_block(1): 1}
    for queue in (0, 1):
        driver.send(queue, tcp())
        lab.run()
        assert fired(driver) == {driver.tx_block(queue): 1}


def test_one_for_a_batch(lab: Loopback, driver: Driver) -> None:
    lab.receive(*[tcp()] * 20)
    assert fired(driver) == {driver.rx_block(0): 1}


def test_masks_itself(lab: Loopback, driver: Driver) -> None:
    """*Steps*: frames without a doorbell. *Verify*: one signal; with the doorbell, one for all that came meanwhile."""
    vector = driver.rx_block(0)
    for _ in range(5):
        lab.receive(tcp())
    assert fired(driver) == {vector: 1}
    driver.enable(vector)
    lab.run()
    assert fired(driver) == {vector: 1}


def test_nothing_pending(lab: Loopback, driver: Driver) -> None:
    """Re-enabling alone is no event."""
    vector = driver.rx_block(0)
    lab.receive(tcp())
    assert fired(driver) == {vector: 1}
    for _ in range(3):
        driver.enable(vector)
        lab.run()
    assert fired(driver) == {}
    lab.receive(tcp())
    assert fired(driver) == {vector: 1}


def test_event_before_the_first_enable(lab: Loopback) -> None:
    """The vector of a new queue is masked; what arrives before the driver enables it is not lost."""
    driver = lab.driver
    driver.probe()
    queue = driver.make_rx(0, RxConfig(entries=ENTRIES))
    driver.admin_batch([queue.create_command()])
    queue.post()
    driver.set_rss(table=[0] * 128)
    lab.receive(tcp())
    assert fired(driver) == {}
    driver.enable(driver.rx_block(0), interval_us=0)
    lab.run()
    assert fired(driver) == {driver.rx_block(0): 1}


@pytest.mark.parametrize("interval", [2, 20, 50, 1000, 8190])
def test_interval(lab: Loopback, driver: Driver, interval: int) -> None:
    """*Steps*: an event right after an interrupt. *Verify*: it fires once, when the interval is over."""
    vector = driver.rx_block(0)
    driver.enable(vector, interval_us=interval)
    lab.advance(10**9)
    lab.receive(tcp())
    assert fired(driver) == {vector: 1}
    driver.enable(vector)
    lab.receive(tcp())
    lab.advance(interval * US - 1)
    assert fired(driver) == {}
    lab.advance(1)
    assert fired(driver) == {vector: 1}
    lab.advance(10**9)
    assert fired(driver) == {}


def test_idle_vector_fires_at_once(lab: Loopback, driver: Driver) -> None:
    """Moderation delays nothing when the last interrupt is long ago."""
    vector = driver.rx_block(0)
    for _ in range(5):
        driver.enable(vector, interval_us=100)
        lab.advance(100 * US)
        lab.receive(tcp())
        assert fired(driver) == {vector: 1}


def test_interval_is_kept(lab: Loopback, driver: Driver) -> None:
    """The doorbell of every poll says "no update"."""
    vector = driver.rx_block(0)
    driver.enable(vector, interval_us=200)
    lab.advance(10**9)
    for _ in range(3):
        lab.receive(tcp())
        assert fired(driver) == {vector: 1}
        driver.enable(vector)
        lab.receive(tcp())
        lab.advance(199 * US)
        assert fired(driver) == {}
        lab.advance(US)
        assert fired(driver) == {vector: 1}
        driver.enable(vector)
        lab.advance(200 * US)


def test_rate_under_load(lab: Loopback, driver: Driver) -> None:
    """A driver that re-enables at once gets one interrupt for each interval."""
    vector = driver.rx_block(0)
    driver.enable(vector, interval_us=20)
    lab.advance(10**9)
    signals = 0
    for _ in range(200):
        lab.receive(tcp(1))
        signals += driver.fired(vector)
        driver.poll(0)
        driver.enable(vector)
        lab.run()
        lab.advance(US)
    assert 9 <= signals <= 11


def ring(driver: Driver, vector: int, **fields: int) -> None:
    driver.doorbells.ring(driver.irq_doorbells[vector], int.from_bytes(IRQ_DOORBELL.encode(**fields), "little"))


def test_doorbell_can_mask(lab: Loopback, driver: Driver) -> None:
    vector = driver.rx_block(0)
    ring(driver, vector, itr_index=ITR_NO_UPDATE)
    lab.receive(tcp())
    assert fired(driver) == {}
    driver.enable(vector)
    lab.run()
    assert fired(driver) == {vector: 1}


def test_clear_pending(lab: Loopback, driver: Driver) -> None:
    """A driver that has seen everything may drop the event."""
    vector = driver.rx_block(0)
    ring(driver, vector, itr_index=ITR_NO_UPDATE)
    lab.receive(tcp())
    ring(driver, vector, itr_index=ITR_NO_UPDATE, clear_pending=1, enable=1)
    lab.run()
    assert fired(driver) == {}


@pytest.mark.parametrize("value", [0x4000_0018, 0x40])
def test_polling_drivers_get_none(lab: Loopback, driver: Driver, value: int) -> None:
    """What DPDK writes at start, in newer and older versions, has the enable bit clear."""
    driver.doorbells.ring(driver.irq_doorbells[driver.rx_block(0)], value)
    for _ in range(5):
        lab.receive(tcp())
        lab.advance(10**9)
    assert fired(driver) == {}


def test_shared_block(lab: Loopback, driver: Driver) -> None:
    """`notification_block` decides, not a formula: two queues on one block fire its vector."""
    driver.close()
    rx, tx = driver.make_rx(0, RxConfig(entries=ENTRIES)), driver.make_tx(0, ENTRIES)
    rx.block = tx.block = 5
    driver.admin_batch([rx.create_command(), tx.create_command()])
    rx.post()
    driver.enable(5, interval_us=0)
    lab.receive(tcp())
    assert fired(driver) == {5: 1}
    driver.enable(5)
    tx.send(tcp())
    lab.run()
    assert fired(driver) == {5: 1}


def test_no_event_for_a_drop(lab: Loopback, driver: Driver) -> None:
    """A frame that leaves no completion leaves no interrupt."""
    driver.set_rss(table=[7] * 128)
    lab.receive(tcp(), arp())
    lab.receive(tcp()[:9])
    assert fired(driver) == {}


def test_event_for_the_backlog(lab: Loopback, driver: Driver) -> None:
    """Frames that waited for buffers announce themselves when they are delivered."""
    vector = driver.rx_block(0)
    lab.receive(*[tcp()] * 40)
    assert fired(driver) == {vector: 1}
    driver.enable(vector)
    driver.poll(0)
    lab.run()
    assert fired(driver) == {vector: 1}
    assert len(driver.poll(0)) == 8


def test_event_for_transmit_after_a_blocked_wire(lab: Loopback, driver: Driver) -> None:
    """*Steps*: the wire takes nothing for a while. *Verify*: when it does, completions and their interrupt come."""
    vector = driver.tx_block(0)
    lab.wire.room = 0
    for _ in range(3):
        driver.send(0, tcp())
        lab.run()
    assert len(driver.poll_tx(0)) == 1  # its bytes have been read, though they wait
    assert fired(driver) == {vector: 1}
    driver.enable(vector)
    lab.run()
    assert fired(driver) == {}
    lab.wire.unblock()
    lab.run()
    assert len(lab.wire.take()) == 3
    assert len(driver.poll_tx(0)) == 2
    assert fired(driver) == {vector: 1}


def test_interrupts_of_all_that_arrived_together_come_last(lab: Loopback, driver: Driver) -> None:
    """*Steps*: packets are sent, and answered before the loop looks again. *Verify*: nothing fires in between."""
    told: list[events.Event] = []
    nic = lab.nic

    def answer(batch: Batch) -> bool:
        """The far end answers at once, as a kernel does behind a tap."""
        sent = send(batch)
        nic.poller.call_at(0, lambda: lab.wire.inject(tcp()))
        return sent

    send = lab.wire.send
    lab.wire.send = answer  # type: ignore[method-assign]
    nic.diagnostics.observers = (told.append,)
    driver.send(0, tcp())
    lab.run()
    order = [type(event) for event in told]
    assert [kind for kind in order if kind in (events.Transmitting, events.Receiving, events.Interrupting)] == [
        events.Transmitting, events.Receiving, events.Interrupting, events.Interrupting,
    ]  # fmt: skip
    assert sorted(fired(driver).values()) == [1, 1]


def test_much_from_the_wire_is_told_at_once(lab: Loopback, driver: Driver) -> None:
    """The driver has to post buffers for more, so it does not hear of a large batch only when the wire is quiet."""
    batch = Batch.of([tcp(payload=bytes(1400))] * 20)
    lab.nic.ingress.deliver(batch)
    assert driver.fired(driver.rx_block(0)) == 1
    lab.run()
    assert len(driver.poll(0)) == 20


def test_vector_without_eventfd(lab: Loopback, driver: Driver) -> None:
    """QEMU takes the eventfd of a masked vector away; the interrupt is delivered when it is back."""
    vector = driver.rx_block(0)
    driver.client.withdraw_irqs(PciIrq.MSIX, vector, 1)
    lab.receive(tcp())
    assert fired(driver) == {}
    pending = driver.client.region_read(1, 0x800, 8)
    assert int.from_bytes(pending, "little") == 1 << vector
    driver.client.set_irqs(PciIrq.MSIX, vector, [driver.eventfds[vector]])
    assert fired(driver) == {vector: 1}
    assert not any(driver.client.region_read(1, 0x800, 8))


def test_no_interrupt_after_release(lab: Loopback, driver: Driver) -> None:
    """An event that waits for its interval ends with the device."""
    vector = driver.rx_block(0)
    driver.enable(vector, interval_us=1000)
    lab.advance(10**9)
    lab.receive(tcp())
    driver.enable(vector)
    lab.receive(tcp())
    assert driver.adminq is not None
    fired(driver)
    driver.adminq.release()
    lab.advance(10**9)
    assert fired(driver) == {}


def test_no_interrupt_of_a_destroyed_queue(lab: Loopback, driver: Driver) -> None:
    """The vector may still fire for what was completed before, but not for what comes after."""
    driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=0)
    lab.receive(tcp(), tcp())
    lab.advance(10**9)
    assert fired(driver) == {}


@pytest.mark.parametrize("base", [0, 1])
def test_msix_base(lab: Loopback, base: int) -> None:
    """Vectors of blocks start at the base; the management vector is the other end."""
    driver = lab.driver
    driver.probe()
    driver.admin(Opcode.DECONFIGURE_DEVICE_RESOURCES)
    place = driver.ram.allocate_zeroed(2 * PAGE)
    driver.admin(
        Opcode.CONFIGURE_DEVICE_RESOURCES,
        counter_array=place,
        irq_doorbell_address=place + PAGE,
        num_counters=16,
        num_irq_doorbells=16,
        irq_doorbell_stride=4,
        msix_base_index=base,
        queue_format=QueueFormat.DQO_RDA,
    )
    driver.irq_doorbells = driver.ram.view(place + PAGE, 64).view(">u4").tolist()
    driver.open(rx_queues=1, ring_entries=ENTRIES)
    lab.run()
    fired(driver)
    lab.advance(10**9)
    lab.receive(tcp())
    assert fired(driver) == {driver.rx_block(0) + base: 1}
    lab.nic.request_reset()
    assert fired(driver) == {0 if base else driver.blocks: 1}


# Management


def test_link_change(lab: Loopback, driver: Driver) -> None:
    """The far end goes and comes: status bit and management interrupt, each time once."""
    for up in (False, True):
        lab.wire.set_link(up)
        assert fired(driver) == {driver.management_vector: 1}
        assert (DeviceStatus.LINK_UP in driver.device_status()) == up
        lab.wire.set_link(up)
        assert fired(driver) == {}


def test_cable(lab: Loopback, driver: Driver) -> None:
    """Without a cable nothing passes either way, and transmit completes all the same."""
    lab.nic.set_cable(False)
    assert fired(driver) == {driver.management_vector: 1}
    assert DeviceStatus.LINK_UP not in driver.device_status()
    lab.receive(tcp())
    assert driver.poll_all() == []
    driver.send(0, tcp())
    lab.run()
    assert len(driver.poll_tx(0)) == 1
    assert lab.wire.take() == []
    lab.nic.set_cable(True)
    assert DeviceStatus.LINK_UP in driver.device_status()
    lab.receive(tcp())
    assert len(driver.poll_all()) == 1


def test_link_speed(make_lab: Callable[..., Loopback]) -> None:
    lab = make_lab(link_speed=25_000)
    lab.driver.probe()
    assert lab.driver.report_link_speed() == 25_000


def test_unused_doorbells(lab: Loopback, driver: Driver) -> None:
    """Writes to doorbells that were never handed out, of any size and place, do nothing."""
    driver.doorbells.ring(0, 0xFFFF_FFFF)
    for index in (33, 1000, 16383):
        driver.doorbells.ring(index, 1)
    driver.client.region_write(2, 5, b"\xff" * 3, posted=True)
    driver.client.region_write(2, 4, b"\xff" * 8, posted=True)
    lab.receive(tcp())
    assert len(driver.poll_all()) == 1
    assert driver.client.region_read(2, 0, 64) == bytes(64)
