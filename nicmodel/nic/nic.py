"""A NIC, as far as all are alike: the parts of the core, and the life of the device.

A personality derives from it, and adds its registers, its commands and its stages of the packet path.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from nicmodel.jit.compiled import u64
from nicmodel.jit.side_by_side import side_by_side
from nicmodel.nic import events
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.dma import find
from nicmodel.nic.dma_engine import DmaEngine
from nicmodel.nic.egress import Egress
from nicmodel.nic.gather import Gatherer
from nicmodel.nic.ingress import Ingress
from nicmodel.nic.interrupts import Interrupts
from nicmodel.nic.lost_memory import survive_lost_memory
from nicmodel.nic.messages import Messages
from nicmodel.nic.port import Port
from nicmodel.nic.seams import Bus
from nicmodel.nic.state import RX_COUNTERS, TX_COUNTERS, Records, State, clear
from nicmodel.nic.view import Buffers, Decoder, Listeners, Offer
from nicmodel.pci.bars import MemoryBar
from nicmodel.pci.config import SIZE as CONFIG_SIZE
from nicmodel.pci.config import Command, ConfigSpace
from nicmodel.pci.msix import MsixTable
from nicmodel.vfio_user.device import ClientLink, Device, RegionInfo
from nicmodel.vfio_user.poll import EventLoop
from nicmodel.vfio_user.protocol import PciIrq, PciRegion
from nicmodel.vfio_user.windows import WINDOWS
from nicmodel.wire.wire import Wire

log = logging.getLogger(__name__)


class Nic(Device, ABC):
    """What others see of it is `nicmodel.nic.view.View`, what they may stand in front of `nicmodel.nic.seams.Seams`.

    Args:
        name: for logs.
        profile: what it offers.
        state: what receive and transmit work on.
        config: its configuration space.
        bars: its BARs, by number.
        msix: where in them the MSI-X table is.
        wire: where its frames go; started by `start`.
        poller: the event loop, whose clock is also the NIC's.
        error: see `Messages`.

    Attributes:
        diagnostics: observers, counters and failures.
        port: the wire, and the cable to it.
        dma: guest memory.
        messages: guest memory that only the client itself reaches.
        interrupts: vectors.
        ingress: the way of frames that come; the personality makes it, with its stage of receive.
        egress: the way of frames that leave; likewise.
        gatherer: what frames from the wire wait in for others; None: they do not.
        lives: by name, such as ``rx3``, how many lives of a queue have ended, or of the ``device``, which ends with its
            resources: what was kept for one is void then.
        link: the client; None: there is none.
        bus: what stands between the NIC and its registers; None is the default.
        halted: whether the device has stopped: what it is told waits until it goes on.
        poller: the event loop, for those who look on and act on it.
        below_switch: names of the kinds of memory that lie in a BAR below the same PCIe switch as the NIC: DMA there
            does not pass the root complex.
    """

    ingress: Ingress[Any]
    egress: Egress[Any]

    def __init__(
        self,
        name: str,
        profile: Offer,
        state: State,
        config: ConfigSpace,
        bars: Mapping[int, MemoryBar],
        msix: MsixTable,
        wire: Wire,
        poller: EventLoop,
        *,
        error: int,
    ) -> None:
        self.name = name
        self.profile = profile
        self.state = state
        self.config = config
        self.poller = self._poller = poller
        self.clock = poller.clock
        self.link: ClientLink | None = None
        self.lives: Counter[str] = Counter()
        self.bus: Bus | None = None
        self.halted = False
        self.below_switch: frozenset[str] = frozenset()
        self.regions = [RegionInfo(0)] * len(PciRegion)
        for number, bar in bars.items():
            self.regions[number] = RegionInfo(bar.size)
        self.regions[PciRegion.CONFIG] = RegionInfo(CONFIG_SIZE)
        self.irq_counts = list(Device.irq_counts)
        self.irq_counts[PciIrq.MSIX] = profile.vectors
        self._msix = msix
        self.diagnostics = Diagnostics(name)
        self.port = Port(wire)
        self.dma = DmaEngine(state, lambda: self.bus_master)
        self.messages = Messages(state, self.dma, error)
        self.interrupts = Interrupts(state.vectors, config, poller, self.diagnostics)
        self.gatherer: Gatherer | None = None

    @property
    def wire(self) -> Wire:
        """Where its frames go."""
        return self.port.wire

    @property
    def counters(self) -> Counter[str]:
        """Events of the control path, by name (`Diagnostics`)."""
        return self.diagnostics.counters

    def start(self) -> None:
        """Begin to take frames from the wire."""
        self.wire.start(
            self.poller,
            self.ingress.deliver if self.gatherer is None else self.gatherer.take,
            self.egress.go_on,
            self._link_changed,
        )
        self._link_changed()

    def stop(self) -> None:
        """Leave the wire."""
        self.wire.stop()
        self.interrupts.cancel()
        if self.gatherer is not None:
            self.gatherer.stop()

    def load(self, *steps: Callable[[], object]) -> None:
        """Run compiled functions once on nothing: compiled at the first start ever, loaded later.

        A client waits only seconds for an answer, so this must not happen when the first frame comes.

        Args:
            steps: what runs those of the personality, the greatest first; those of the core come last.
        """
        side_by_side(*steps, lambda: find(*self.state.memory_map, u64(0)), self.interrupts.load)
        survive_lost_memory(WINDOWS.words)

    # Registers and doorbells.

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read a BAR or the configuration space."""
        try:
            if not self.is_doorbell(region, offset):
                with self.diagnostics.surviving("observer"):
                    self.diagnostics.tell_control(events.Read(region, offset, count))
            if self.bus is not None and (answer := self.bus.read(region, offset, count)) is not None:
                return answer
            if region == PciRegion.CONFIG:
                return self.config.read(offset, count)
            registers = self.read_registers(region, offset, count)
            if region == self._msix.bar and self.link is not None:
                return self._msix.read(offset, registers, self.link.irqs[PciIrq.MSIX].pending)
            return registers
        except Exception as error:
            self.diagnostics.fail("register read", error)
            return b"\xff" * count  # as when nobody answers on a bus

    def region_write(self, region: int, offset: int, data: bytes | memoryview) -> None:
        """Write a BAR or the configuration space."""
        try:
            if not self.is_doorbell(region, offset):
                self.diagnostics.tell_control(events.Write(region, offset, data))
            elif self.diagnostics.observers:
                self.diagnostics.tell(events.Write(region, offset, data))
            if self.bus is not None and not self.bus.write(region, offset, bytes(data)):
                return
            if region == PciRegion.CONFIG:
                before = self.config.command
                self.config.write(offset, data)
                if before & ~self.config.command & Command.BUS_MASTER:
                    self.bus_master_cleared()
                self.update_running()
                if self.config.command & ~before & Command.BUS_MASTER:
                    self.bus_master_set()
            else:
                self.write_registers(region, offset, data)
        except Exception as error:
            self.diagnostics.fail("register write", error)

    def messages_read(self) -> None:
        """All messages that had arrived together are read: do what they asked for."""
        self.work()

    def work(self) -> None:
        """Do what doorbells have noted."""
        if self.state.device["running"][0]:
            self.ingress.work()
            self.egress.work()
            self.interrupts.fire_soon()

    @abstractmethod
    def is_doorbell(self, region: int, offset: int) -> bool:
        """See `nicmodel.nic.seams.Seams`."""

    @abstractmethod
    def read_registers(self, region: int, offset: int, count: int) -> bytes:
        """What the driver reads in a BAR, but for the MSI-X table."""

    @abstractmethod
    def write_registers(self, region: int, offset: int, data: bytes | memoryview) -> None:
        """The driver writes to a BAR."""

    # The client and its memory.

    def attach(self, link: ClientLink) -> None:
        """A client has come: its memory and interrupts are this device's now."""
        self.link = link
        self.dma.attach(link.dma)
        self.interrupts.attach(link.irqs[PciIrq.MSIX])
        log.info("%s: %s has connected", self.name, link.name)

    def detach(self) -> None:
        """The client has gone: as if power had been cut."""
        if self.link is not None:
            log.info("%s: %s has gone", self.name, self.link.name)
        self.reset()
        self.link = None
        self.interrupts.detach()
        self.dma.detach()

    def dma_changed(self) -> None:
        """The guest's memory map is another."""
        self.dma.update()
        self.messages.forget()

    def memory_lost(self) -> None:
        """Guest memory was taken away: what the device has taken from there is worth nothing, so it starts over.

        Not at once, as it may be in the midst of a batch, which will meet DMA faults only.
        """
        self.diagnostics.count("memory_lost")
        log.warning("%s: memory of %s was taken away; the device is reset", self.name, self.link and self.link.name)
        self._poller.when_idle(partial(self._start_over, self.link))

    def _start_over(self, link: ClientLink | None) -> None:
        if self.link is link:
            self.reset()

    def before_unmap(self, start: int, size: int) -> None:
        """Nothing is under way between two calls into the device, so there is nothing to stop."""

    # Life of the device.

    @property
    def configured(self) -> bool:
        """Whether the driver has set vectors up, so that there can be queues."""
        return self.interrupts.count > 0

    @property
    def bus_master(self) -> bool:
        """Whether the driver, or its system, allows DMA (PCI Local Bus 3.0, 6.2.2), of which MSI-X is a part."""
        return self.config.bus_master

    def update_running(self) -> None:
        """The driver has set something up, or taken it back: decide whether packets are moved."""
        running = self.configured and self.bus_master
        self.state.device["running"] = running and not self.halted

    def reset(self) -> None:
        """Function level reset, DEVICE_RESET, or the client's end: back to power-on state."""
        with self.diagnostics.surviving("reset"):
            self.diagnostics.tell_control(events.Resetting())
        self.let_go()
        self.config.reset()
        self.reset_registers()
        with self.diagnostics.surviving("reset"):
            self.diagnostics.tell_control(events.Reset())

    def bus_master_cleared(self) -> None:
        """The driver, or the bus that takes the device from it, forbids DMA: nothing is moved until it is allowed."""

    def bus_master_set(self) -> None:
        """DMA is allowed: what has waited for it goes on."""

    @abstractmethod
    def let_go(self) -> None:
        """All DMA and all interrupts end before this returns, and nothing is left of what the driver has set up."""

    @abstractmethod
    def reset_registers(self) -> None:
        """Registers as after power-on; what they had brought about has been ended by `let_go`."""

    def take_back(self, *steps: Callable[[], None]) -> None:
        """Take back queues, what else the driver has set up, by these `steps`, and vectors."""
        self.lives["device"] += 1
        every: tuple[Callable[[], None], ...] = (
            *(partial(self.drop_tx, queue) for queue in np.flatnonzero(self.state.tx["active"]).tolist()),
            *(partial(self.drop_rx, queue) for queue in np.flatnonzero(self.state.rx["active"]).tolist()),
            self.ingress.retry,
            *steps,
            self.interrupts.cancel,
        )
        for step in every:
            with self.diagnostics.surviving("reset"):  # the rest has to be done: the memory is the driver's again
                step()
        self.interrupts.reset()
        self.update_running()

    # Queues.

    def start_queue(self, queue: Records, counters: tuple[str, ...], **fields: int) -> None:
        """Start a queue, whose record, shape (1,), has these `fields`, and others 0; what it has counted stays."""
        clear(queue, counters)
        for name, value in fields.items():
            queue[name] = value
        queue["active"] = 1

    def drop_rx(self, queue: int) -> None:
        """Stop a receive queue; the device does not touch its memory again. Frames that wait for it are still there."""
        self.lives[f"rx{queue}"] += 1
        clear(self.state.rx[queue : queue + 1], RX_COUNTERS)

    def drop_tx(self, queue: int) -> None:
        """Stop a transmit queue; what was posted and not taken is forgotten."""
        self.lives[f"tx{queue}"] += 1
        clear(self.state.tx[queue : queue + 1], TX_COUNTERS)
        self.egress.forget(queue)
        # What was read for a packet that waits for the wire is not the next life's, whatever its address.
        self.messages.forget()

    def halt(self, halted: bool) -> None:
        """Stop the device, which then moves no packet, or let it go on with what it was told meanwhile."""
        self.halted = halted
        self.update_running()
        self.interrupts.halt(halted)
        if not halted and self.link is not None:
            self.tell_status()  # it may have changed meanwhile
            self.ingress.schedule()
            for queue in np.flatnonzero(self.state.tx["active"]).tolist():
                self.egress.schedule(queue)
            self.work()

    def go_on(self, queue: int | None = None) -> None:
        """Look again at frames that wait for buffers, and at transmit queue `queue`, without a doorbell."""
        self.ingress.schedule()
        if queue is not None and self.state.tx[queue]["active"]:
            self.egress.schedule(queue)
        self.work()

    # Link.

    @property
    def link_up(self) -> bool:
        """Whether frames pass."""
        return self.port.up

    def set_cable(self, plugged: bool) -> None:
        """Plug the cable in or pull it."""
        self.port.cable = plugged
        self._link_changed()

    @abstractmethod
    def _link_changed(self) -> None:
        """Tell the driver if frames pass, and did not before, or the other way round."""

    @abstractmethod
    def tell_status(self) -> None:
        """Have the driver look at the device's status, if it has one to look at."""

    # What the personality does and tells.

    @abstractmethod
    def request_reset(self) -> None:
        """Ask the driver to reset the device and start over."""

    @abstractmethod
    def queue(self, way: Literal["rx", "tx"], number: int) -> dict[str, Any]:
        """See `nicmodel.nic.view.View`."""

    @abstractmethod
    def report(self) -> dict[str, Any]:
        """See `nicmodel.nic.view.View`."""

    @abstractmethod
    def detail(self) -> dict[str, Any]:
        """See `nicmodel.nic.view.View`."""

    @abstractmethod
    def decoder(self, listeners: Listeners) -> Decoder:
        """See `nicmodel.nic.view.View`."""

    @abstractmethod
    def completions(self, queue: np.void, first: int, count: int) -> list[dict[str, Any]]:
        """See `nicmodel.nic.view.View`."""

    @abstractmethod
    def buffers(self) -> Buffers:
        """See `nicmodel.nic.view.View`."""
