"""The NIC: a vfio-user device with a wire, put together of its parts.

What the guest does arrives as register writes and doorbells. Admin commands are executed at once; doorbells only note
which queues have work, which is done when all messages that had arrived together are read (`Nic.flush`).

Each part holds its own state and knows the parts that it needs. What is here is the device's life: clients that come
and go, reset, and the queues that the driver sets up.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np

from nicmodel.gvnic import events
from nicmodel.gvnic import registers as r
from nicmodel.gvnic.admin import AdminQueue
from nicmodel.gvnic.commands import RSS_LUT_SIZE, QueueFormat
from nicmodel.gvnic.descriptors import GQI_RX_PAD
from nicmodel.gvnic.diagnostics import Diagnostics
from nicmodel.gvnic.dma import find
from nicmodel.gvnic.dma_engine import DmaEngine
from nicmodel.gvnic.doorbells import Doorbells
from nicmodel.gvnic.egress import Egress
from nicmodel.gvnic.gather import Gatherer
from nicmodel.gvnic.ingress import Ingress
from nicmodel.gvnic.interrupts import Interrupts
from nicmodel.gvnic.messages import Messages
from nicmodel.gvnic.options.ddp.control import Ddp
from nicmodel.gvnic.options.deferred.control import DeferredPlacement
from nicmodel.gvnic.options.flush.control import QueueFlush
from nicmodel.gvnic.options.option import Option
from nicmodel.gvnic.options.owners.control import BufferOwners
from nicmodel.gvnic.options.receive import receive_with_options
from nicmodel.gvnic.pages import PageLists
from nicmodel.gvnic.port import Port
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.receive_dqo import receive_dqo
from nicmodel.gvnic.receive_gqi import receive_gqi
from nicmodel.gvnic.register_file import RegisterFile
from nicmodel.gvnic.registers import Bar, DeviceStatus
from nicmodel.gvnic.state import SETTINGS, State, make_state
from nicmodel.gvnic.statistics import Statistics
from nicmodel.gvnic.steering import FlowRules, Rss
from nicmodel.gvnic.transmit_dqo import transmit_dqo
from nicmodel.gvnic.transmit_gqi import transmit_gqi
from nicmodel.jit.compiled import u64
from nicmodel.packet.lost import survive_lost_memory
from nicmodel.pci.bars import MemoryBar
from nicmodel.pci.capabilities import Express, Msix, PowerManagement
from nicmodel.pci.config import SIZE as CONFIG_SIZE
from nicmodel.pci.config import Command, ConfigSpace
from nicmodel.pci.msix import MsixTable
from nicmodel.vfio_user.device import ClientLink, Device, RegionInfo
from nicmodel.vfio_user.poll import EventLoop
from nicmodel.vfio_user.protocol import PciIrq, PciRegion
from nicmodel.vfio_user.windows import WINDOWS
from nicmodel.wire.wire import Wire

log = logging.getLogger(__name__)

#: The BAR of MSI-X has room for the table and pending bits of 128 vectors.
_BARS: dict[int, MemoryBar] = {
    Bar.REGISTERS: MemoryBar(r.REGISTERS_SIZE),
    Bar.MSIX: MemoryBar(0x1000),
    Bar.DOORBELLS: MemoryBar(r.DOORBELLS_SIZE),
}


class Bus(Protocol):
    """What stands between the NIC and its registers (`nicmodel.faults`)."""

    def read(self, region: int, offset: int, count: int) -> bytes | None:
        """What the driver reads; None: what the NIC says."""

    def write(self, region: int, offset: int, data: bytes) -> bool:
        """Whether the write goes through."""


def _clear(queue: np.ndarray) -> None:
    """Reset a queue's record, except for its counters."""
    queue[SETTINGS[queue.dtype]] = 0


def _make_state(profile: Profile) -> State:
    """The state of a NIC at rest that offers this."""
    state = make_state(
        profile.queues,
        profile.vectors - 1,
        profile.max_flow_rules,
        RSS_LUT_SIZE,
        profile.coalesce_flows,
        deferred_bytes=profile.deferred_bytes,
        owners=profile.owners,
        owned=profile.max_ring,
        ddp_flows=profile.ddp_flows,
    )
    device = state.device
    device["mac"] = int.from_bytes(profile.mac, "big")
    device["max_frame"] = profile.max_frame
    device["promiscuous"] = profile.promiscuous
    device["timestamps"] = profile.timestamps
    device["coalesce"] = profile.coalesce
    return state


class Nic(Device):
    """A gVNIC.

    Args:
        profile: what it offers.
        wire: where its frames go; started by `start`.
        poller: the event loop, whose clock is also the NIC's.
        name: for logs.

    Attributes:
        state: what receive and transmit work on.
        diagnostics: observers, counters and failures.
        port: the wire, and the cable to it.
        dma: guest memory.
        interrupts, ingress, egress, doorbells, registers, admin: the parts of which the NIC is made, and on which
            others may act: each says how.
        lives: by name, such as ``rx3``, how many lives of a queue have ended, or of the ``device``, which ends with its
            resources: what was kept for one is void then.
        link: the client; None: there is none.
        bus: what stands between the NIC and its registers; None is the default (`nicmodel.faults`).
        halted: whether the device has stopped: what it is told waits until it goes on.
        below_switch: names of the kinds of memory that lie in a BAR below the same PCIe switch as the NIC: DMA there
            does not pass the root complex.
    """

    def __init__(self, profile: Profile, wire: Wire, poller: EventLoop, *, name: str = "nic") -> None:
        self.profile = profile
        self.poller = poller
        self.clock = poller.clock
        self.name = name
        self.link: ClientLink | None = None
        self.lives: Counter[str] = Counter()
        self.bus: Bus | None = None
        self.halted = False
        self.below_switch: frozenset[str] = frozenset()
        self.queue_format = QueueFormat.UNSPECIFIED
        self._msix = MsixTable(profile.vectors, Bar.MSIX, table=0, pba=0x800)
        self.config = ConfigSpace(
            vendor=r.VENDOR_GOOGLE,
            device=r.DEVICE_GVNIC,
            subsystem=r.SUBSYSTEM_GVNIC,
            class_code=r.CLASS_ETHERNET,
            revision=profile.revision,
            bars=_BARS,
            capabilities=(PowerManagement(), Msix(self._msix), Express()),
            on_reset=self.reset,
        )
        self.regions = [RegionInfo(0)] * len(PciRegion)
        for number, bar in _BARS.items():
            self.regions[number] = RegionInfo(bar.size)
        self.regions[PciRegion.CONFIG] = RegionInfo(CONFIG_SIZE)
        self.irq_counts = list(Device.irq_counts)
        self.irq_counts[PciIrq.MSIX] = profile.vectors
        self.resettable = True

        self.state = state = _make_state(profile)
        self.diagnostics = diagnostics = Diagnostics(name)
        self.port = Port(wire)
        self.dma = DmaEngine(state)
        self.messages = Messages(state, self.dma)
        self.interrupts = Interrupts(state.vectors, self.config, poller, diagnostics)
        self.rss = Rss(state)
        self.rules = FlowRules(state)
        self.ddp = Ddp(state)
        self.pages = PageLists(profile.max_registered_pages)
        self.statistics = Statistics(state, self.dma, poller, lambda: self.halted, diagnostics)
        self.deferred: DeferredPlacement | None = None
        if profile.deferred_bytes:
            budget, usecs = profile.deferred_queue_budget, profile.deferred_usecs
            self.deferred = DeferredPlacement(state, budget, usecs, poller, self.flush, diagnostics)
        # A NIC without these options has a receive path without them.
        optional = profile.deferred_bytes or profile.owners or profile.ddp_flows
        self._receive_dqo = receive_with_options if optional else receive_dqo
        self.ingress = Ingress(
            state, self._receive_dqo, poller.clock, self.port, self.dma, self.messages, self.interrupts, self.deferred,
            diagnostics,
        )  # fmt: skip
        self._gatherer: Gatherer | None = None
        if profile.coalesce_usecs:
            self._gatherer = Gatherer(poller, profile.coalesce_usecs, self.ingress.deliver)
        self.egress = Egress(
            state, transmit_dqo, poller, self.port, self.dma, self.messages, self.interrupts, diagnostics
        )  # fmt: skip
        self.doorbells = Doorbells(state, self.ingress, self.egress, self.deferred, diagnostics)
        self._options = self._make_options()
        self.admin = AdminQueue(self, self._options)
        self.registers = RegisterFile(name, profile.queues, self.admin, self.flush, self.deconfigure)
        self._load_packet_path()

    def _make_options(self) -> tuple[Option, ...]:
        """The options of the model's own that this NIC has."""
        profile, state = self.profile, self.state
        options: list[Option] = []
        if self.deferred is not None:
            options.append(self.deferred)
        if profile.queue_flush:
            options.append(QueueFlush(state, self.ingress, self.diagnostics))
        if profile.owners:
            options.append(BufferOwners(state, profile))
        if profile.ddp_flows:
            options.append(self.ddp)
        return tuple(options)

    def _load_packet_path(self) -> None:
        """Run the compiled functions once on nothing: compiled at the first start ever, loaded from the cache later.

        A client waits only seconds for an answer, so this must not happen when the first frame comes.
        """
        survive_lost_memory(WINDOWS.words)
        find(*self.state.memory_map, u64(0))
        self.ingress.load(self._receive_dqo, receive_gqi)
        self.egress.load(transmit_dqo, transmit_gqi)
        self.interrupts.load()
        self.rules.reset()
        for option in self._options:
            option.load()

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
            self.ingress.deliver if self._gatherer is None else self._gatherer.take,
            self.egress.go_on,
            self._link_changed,
        )
        self._link_changed()

    def stop(self) -> None:
        """Leave the wire."""
        self.wire.stop()
        self.interrupts.cancel()
        if self._gatherer is not None:
            self._gatherer.stop()
        self.statistics.detach()
        for option in self._options:
            option.stop()

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
        self.poller.when_idle(partial(self._start_over, self.link))

    def _start_over(self, link: ClientLink | None) -> None:
        if self.link is link:
            self.reset()

    def before_unmap(self, start: int, size: int) -> None:
        """Nothing is under way between two calls into the device, so there is nothing to stop."""

    # Registers and doorbells.

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read a BAR or the configuration space."""
        try:
            if self.bus is not None and (answer := self.bus.read(region, offset, count)) is not None:
                return answer
            if region == PciRegion.CONFIG:
                return self.config.read(offset, count)
            if region == Bar.REGISTERS:
                return self.registers.read(offset, count)
            if region == Bar.MSIX and self.link is not None:
                return self._msix.read(offset, bytes(count), self.link.irqs[PciIrq.MSIX].pending)
            return bytes(count)
        except Exception as error:
            self.diagnostics.fail("register read", error)
            return b"\xff" * count  # as when nobody answers on a bus

    def region_read_early(self, region: int, offset: int, count: int) -> bytes | None:
        """What drivers poll while they wait for an admin command: to them it just takes longer."""
        if region == Bar.REGISTERS and (offset, count) == (r.ADMINQ_EVENT_COUNTER.offset, r.ADMINQ_EVENT_COUNTER.size):
            return self.region_read(region, offset, count)
        return None

    def region_write(self, region: int, offset: int, data: bytes | memoryview) -> None:
        """Write a BAR or the configuration space."""
        try:
            if self.diagnostics.observers:
                self.diagnostics.tell(events.Write(region, offset, data))
            if self.bus is not None and not self.bus.write(region, offset, bytes(data)):
                return
            if region == Bar.DOORBELLS:
                self.doorbells.write(offset, data)
            elif region == PciRegion.CONFIG:
                self.config.write(offset, data)
                self._update_running()
            elif region == Bar.REGISTERS:
                self.registers.write(offset, data)
        except Exception as error:
            self.diagnostics.fail("register write", error)

    def flush(self) -> None:
        """All messages that had arrived together are read: do what they asked for."""
        if not self.state.device["running"][0]:
            return
        self.ingress.flush()
        self.egress.flush()
        if self.deferred is not None:
            with self.diagnostics.surviving("placement"):
                self.deferred.flush()
                self.dma.lost()
        self.interrupts.fire_soon()

    def go_on(self, queue: int | None = None) -> None:
        """Look again at frames that wait for buffers, and at transmit queue `queue`, without a doorbell."""
        self.ingress.schedule()
        if queue is not None and self.state.tx[queue]["active"]:
            self.egress.schedule(queue)
        self.flush()

    # Life of the device: reset, running, configured.

    def reset(self) -> None:
        """Function level reset, DEVICE_RESET, or the client's end: back to power-on state."""
        with self.diagnostics.surviving("reset"):
            if self.diagnostics.observers:
                self.diagnostics.tell(events.Resetting())
        self.registers.release()
        self.config.reset()
        self.registers.reset()

    def request_reset(self) -> None:
        """Ask the driver to reset the device and start over."""
        if self.diagnostics.observers:
            self.diagnostics.tell(events.ResetRequested())
        self.registers.show(DeviceStatus.RESET, True)
        self.interrupts.notify()

    @property
    def configured(self) -> bool:
        """Whether CONFIGURE_DEVICE_RESOURCES has been done."""
        return self.interrupts.blocks > 0

    @property
    def gqi(self) -> bool:
        """Whether the driver has chosen a GQI format."""
        return self.doorbells.gqi

    def configure(
        self, *, queue_format: QueueFormat, blocks: int, base: int, counters: tuple[int, int]
    ) -> None:  # fmt: skip
        """CONFIGURE_DEVICE_RESOURCES.

        Args:
            queue_format: of all queues.
            blocks: number of notification blocks.
            base: MSI-X vector of the first of them.
            counters: the event counters, which are set to 0: their guest address, and how many they are.

        Raises:
            DmaFault: the counters are not all in memory that can be written.
        """
        if self.configured:
            self.deconfigure()
        address, count = counters
        self.dma.write(address, bytes(4 * count))
        self.queue_format = queue_format
        gqi = queue_format in (QueueFormat.GQI_RDA, QueueFormat.GQI_QPL)
        self.state.device["gqi"] = self.doorbells.gqi = gqi
        self.ingress.receive = receive_gqi if gqi else self._receive_dqo
        self.egress.transmit = transmit_gqi if gqi else transmit_dqo
        self.interrupts.configure(blocks, base)
        self._update_running()

    def deconfigure(self) -> None:
        """Take back all that `configure` and the commands after it have set up."""
        self.lives["device"] += 1
        steps: tuple[Callable[[], None], ...] = (
            *(partial(self._drop_tx, queue) for queue in np.flatnonzero(self.state.tx["active"]).tolist()),
            *(partial(self._drop_rx, queue) for queue in np.flatnonzero(self.state.rx["active"]).tolist()),
            self.ingress.retry,
            self.statistics.detach,
            self.pages.clear,
            self.rules.reset,
            *(option.reset for option in self._options),
            self.rss.reset,
            self.interrupts.cancel,
        )
        for step in steps:
            with self.diagnostics.surviving("reset"):  # the rest has to be done: the memory is the driver's again
                step()
        self.interrupts.release()
        self._update_running()

    def _update_running(self) -> None:
        running = self.configured and bool(self.config.command & Command.BUS_MASTER)
        self.state.device["running"] = running and not self.halted

    def halt(self, halted: bool) -> None:
        """Stop the device, which then moves no packet, or let it go on with what it was told meanwhile."""
        self.halted = halted
        self._update_running()
        self.interrupts.halt(halted)
        if not halted and self.link is not None:
            self.interrupts.notify()  # the status may have changed meanwhile
            self.ingress.schedule()
            for queue in np.flatnonzero(self.state.tx["active"]).tolist():
                self.egress.schedule(queue)
            self.flush()

    # Queues.

    def create_rx(self, queue: int, **fields: int) -> None:
        """Start a receive queue without buffers; `fields` are those of `RX_QUEUE`."""
        padding = GQI_RX_PAD if self.gqi else 0
        self._fill(self.state.rx[queue : queue + 1], fields["buffer_entries"], {"padding": padding, **fields})
        self.rss.spread(int(np.flatnonzero(self.state.rx["active"]).max()) + 1)

    def create_tx(self, queue: int, **fields: int) -> None:
        """Start a transmit queue; `fields` are those of `TX_QUEUE`."""
        self._fill(self.state.tx[queue : queue + 1], fields["entries"], fields)

    def _fill(self, record: np.ndarray, entries: int, fields: dict[str, int]) -> None:
        _clear(record)
        record["position_mask"] = 0xFFFFFFFF if self.gqi else entries - 1
        for name, value in fields.items():
            record[name] = value
        record["generation"] = 1
        record["active"] = 1

    def destroy_rx(self, queue: int) -> None:
        """Stop a receive queue; the device does not touch its memory again."""
        self._drop_rx(queue)
        self.ingress.retry()

    def destroy_tx(self, queue: int) -> None:
        """Stop a transmit queue; what was posted and not fetched is forgotten."""
        self._drop_tx(queue)

    def _drop_rx(self, queue: int) -> None:
        self.lives[f"rx{queue}"] += 1
        _clear(self.state.rx[queue : queue + 1])
        for option in self._options:
            option.end(queue)

    def _drop_tx(self, queue: int) -> None:
        self.lives[f"tx{queue}"] += 1
        _clear(self.state.tx[queue : queue + 1])
        self.egress.forget(queue)
        # What was fetched for a packet that waits for the wire is not the next life's, whatever its address.
        self.messages.forget()

    # Link.

    @property
    def link_up(self) -> bool:
        """Whether frames pass."""
        return self.port.up

    def set_cable(self, plugged: bool) -> None:
        """Plug the cable in or pull it."""
        self.port.cable = plugged
        self._link_changed()

    def _link_changed(self) -> None:
        up = self.port.up
        if self.registers.show(DeviceStatus.LINK_UP, up):
            log.info("%s: link is %s", self.name, "up" if up else "down")
            if self.diagnostics.observers:
                self.diagnostics.tell(events.LinkChanged(up))
            self.interrupts.notify()
