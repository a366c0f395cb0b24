"""The model fails somewhere, by an exception that nobody expected: it is counted, and the device goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nicmodel.gvnic.options.option import OptionControl
from nicmodel.gvnic.registers import Bar
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.nic.state import Drop
from nicmodel.packet.frames import Batch
from nicmodel.testing.wire import TestWire
from nicmodel.vfio_user.protocol import PciIrq

from .conftest import ENTRIES
from .frames import tcp


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is logged of the failures is wanted here."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def lab(make_lab: Callable[..., Loopback]) -> Loopback:
    lab = make_lab(queues=4, owners=2, deferred_bytes=1 << 20, ddp_flows=2)
    lab.driver.probe()
    lab.driver.open(rx_queues=2, tx_queues=2, ring_entries=ENTRIES)
    return lab


def broken(*arguments: Any, **fields: Any) -> Any:
    raise RuntimeError("broken")


def failures(lab: Loopback) -> dict[str, int]:
    """What has failed, and how often."""
    return {name[7:]: count for name, count in lab.nic.counters.items() if name.startswith("failed_")}


def works(lab: Loopback) -> bool:
    """Frames pass both ways."""
    lab.wire.take()
    lab.receive(tcp(7))
    lab.driver.send(0, tcp(8))
    lab.run()
    return [packet.frame for packet in lab.driver.poll_all()] == [tcp(7)] and tcp(8) in lab.wire.take()


def test_an_end_that_fails_is_that_of_one_option(lab: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    """*Steps*: an option fails at the end of a queue. *Verify*: the others are told of it all the same."""
    first, *others = lab.nic._options
    told: list[tuple[OptionControl, int]] = []
    monkeypatch.setattr(first, "end", broken)
    for option in others:
        monkeypatch.setattr(option, "end", lambda queue, option=option: told.append((option, queue)))
    lab.nic.reset()
    assert others and told == [(option, queue) for queue in range(2) for option in others]
    assert failures(lab) == {"end_of_a_queue": 2}


def test_receive(lab: Loopback) -> None:
    lab.nic.ingress.detour = broken
    lab.receive(tcp(1), tcp(2))
    lab.receive(tcp(3))
    lab.nic.ingress.detour = None
    assert failures(lab) == {"receive": 2}
    assert works(lab)


def test_transmit(lab: Loopback) -> None:
    """*Steps*: transmit fails for one queue. *Verify*: the other's packets leave; the first goes on with the next."""

    def detour(transmit: Callable[..., int], state: Any, queue: int, *batch: Any) -> int:
        return int(broken() if queue == 0 else transmit(state, queue, *batch))

    lab.nic.egress.detour = detour
    lab.driver.send(0, tcp(1))
    lab.driver.send(1, tcp(2))
    lab.run()
    assert lab.wire.take() == [tcp(2)]
    lab.nic.egress.detour = None
    assert failures(lab) == {"transmit": 1}
    assert works(lab)


class BrokenWire(TestWire):
    """It fails once it is broken."""

    broken = False

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        return bool(broken()) if self.broken else super().send(batch)


def test_wire(make_lab: Callable[..., Loopback]) -> None:
    """A batch that the wire cannot take does not stay for ever: it is lost, and counted."""
    wire = BrokenWire()
    lab = make_lab(wire=wire)
    lab.driver.probe()
    lab.driver.open(rx_queues=1, tx_queues=1, ring_entries=ENTRIES)
    wire.broken = True
    lab.driver.send(0, tcp(1))
    lab.driver.send(0, tcp(2))
    lab.run()
    wire.broken = False
    assert failures(lab) == {"wire": 1}
    assert lab.nic.state.drops[-1, Drop.DEVICE_DOWN] == 2
    assert works(lab)


def test_register_access(lab: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    client = lab.driver.client
    monkeypatch.setattr(lab.nic.doorbells, "write", broken)
    monkeypatch.setattr(lab.nic.registers, "write", broken)
    monkeypatch.setattr(lab.nic.registers, "read", broken)
    client.region_write(Bar.DOORBELLS, 4, bytes(4))
    client.region_write(Bar.REGISTERS, 0x14, bytes(4))
    assert client.region_read(Bar.REGISTERS, 0, 4) == b"\xff" * 4
    monkeypatch.undo()
    assert failures(lab) == {"register_write": 2, "register_read": 1}
    assert works(lab)


def test_interrupt(lab: Loopback) -> None:
    """One vector cannot be raised: the others are."""
    raised: list[int] = []

    def signal(vector: int) -> None:
        if vector == lab.driver.tx_block(0):
            broken()
        raised.append(vector)

    lab.nic.interrupts.detour = signal
    lab.driver.send(0, tcp(1))
    lab.driver.send(1, tcp(1))
    lab.run()
    lab.nic.interrupts.detour = None
    assert raised == [lab.driver.tx_block(1)]
    assert failures(lab) == {"interrupt": 1}
    assert works(lab)


def test_timer(lab: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics that cannot be written are tried again at the next interval."""
    kept = lab.nic.dma.write
    monkeypatch.setattr(lab.nic.dma, "write", broken)
    lab.advance(20_000_000_000)
    monkeypatch.setattr(lab.nic.dma, "write", kept)
    assert failures(lab) == {"statistics": 1}
    lab.advance(20_000_000_000)
    assert failures(lab) == {"statistics": 1}
    assert works(lab)


STEPS = ["statistics.detach", "pages.clear", "rules.reset", "ddp.reset", "rss.reset", "deferred.end", "ingress.retry"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("how", ["release", "reset", "disconnect"])
def test_reset(lab: Loopback, monkeypatch: pytest.MonkeyPatch, step: str, how: str) -> None:
    """*Steps*: a step of a reset fails. *Verify*: all others are done; no queue, no vector and no timer lives on."""
    part, name = step.split(".")
    monkeypatch.setattr(getattr(lab.nic, part), name, broken)
    match how:
        case "release":
            lab.driver.release()
        case "reset":
            lab.nic.reset()
        case _:
            lab.driver.disconnect()
    lab.run()
    monkeypatch.undo()
    assert failures(lab)["end_of_a_queue" if name == "end" else "reset"] >= 1
    state = lab.nic.state
    assert not state.rx["active"].any() and not state.tx["active"].any() and not state.vectors["enabled"].any()
    assert not lab.nic.configured and not state.device["running"][0]
    assert lab.nic.admin.base == 0
    lab.driver.disconnect()
    lab.driver = lab.connect()
    lab.driver.probe()
    lab.driver.open(rx_queues=2, tx_queues=2, ring_entries=ENTRIES)
    assert works(lab)
    assert lab.nic.link is not None and lab.nic.link.irqs[PciIrq.MSIX].count == lab.nic.profile.vectors


def test_observer(lab: Loopback) -> None:
    """Whoever looks on, and fails at everything, has the device go on."""
    lab.nic.diagnostics.observers = (broken,)
    lab.receive(tcp(1))
    lab.driver.send(0, tcp(2))
    lab.run()
    lab.driver.device_status()
    lab.nic.diagnostics.observers = ()
    assert lab.nic.counters["internal_error"] >= 2
    assert works(lab) or works(lab)  # the driver has packets of before to take first
