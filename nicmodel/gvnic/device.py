"""The NIC: a vfio-user device with a wire, put together of its parts.

What the guest does arrives as register writes and doorbells. Admin commands are executed at once; doorbells only note
which queues have work, which is done when all messages that had arrived together are read (`Nic.work`).

Each part holds its own state and knows the parts that it needs. What is here is the device's life: clients that come
and go, reset, and the queues that the driver sets up.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Literal

import numpy as np

from nicmodel.gvnic import registers as r
from nicmodel.gvnic import report
from nicmodel.gvnic.admin import AdminQueue
from nicmodel.gvnic.buffers import Buffers
from nicmodel.gvnic.commands import RSS_LUT_SIZE, QueueFormat
from nicmodel.gvnic.decoder import Decoder, completions
from nicmodel.gvnic.descriptors import GQI_RX_PAD, RX_COMPLETION
from nicmodel.gvnic.doorbells import Doorbells
from nicmodel.gvnic.options.ddp.control import Ddp
from nicmodel.gvnic.options.deferred.control import DeferredPlacement
from nicmodel.gvnic.options.flush.control import QueueFlush
from nicmodel.gvnic.options.option import OptionControl
from nicmodel.gvnic.options.owners.control import BufferOwners
from nicmodel.gvnic.pages import PageLists
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.receive_dqo import receive_dqo
from nicmodel.gvnic.receive_gqi import receive_gqi
from nicmodel.gvnic.register_file import RegisterFile
from nicmodel.gvnic.registers import Bar, DeviceStatus
from nicmodel.gvnic.state import State, make_state
from nicmodel.gvnic.statistics import Statistics
from nicmodel.gvnic.steering import FlowRules, Rss
from nicmodel.gvnic.transmit_dqo import transmit_dqo
from nicmodel.gvnic.transmit_gqi import transmit_gqi
from nicmodel.jit.compiled import switch
from nicmodel.nic import events, nic
from nicmodel.nic.backlog import Backlog
from nicmodel.nic.egress import Egress
from nicmodel.nic.gather import Gatherer
from nicmodel.nic.ingress import Ingress, Receive
from nicmodel.nic.state import RX_COUNTERS, TX_COUNTERS
from nicmodel.nic.view import Listeners
from nicmodel.pci.bars import MemoryBar
from nicmodel.pci.capabilities import Express, Msix, PowerManagement
from nicmodel.pci.config import ConfigSpace
from nicmodel.pci.msix import MsixTable
from nicmodel.vfio_user.poll import EventLoop
from nicmodel.wire.wire import Wire

log = logging.getLogger(__name__)

#: The BAR of MSI-X has room for the table and pending bits of 128 vectors.
_BARS: dict[int, MemoryBar] = {
    Bar.REGISTERS: MemoryBar(r.REGISTERS_SIZE),
    Bar.MSIX: MemoryBar(0x1000),
    Bar.DOORBELLS: MemoryBar(r.DOORBELLS_SIZE),
}


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
    return state


class Nic(nic.Nic):
    """A gVNIC.

    Args:
        profile: what it offers.
        wire: where its frames go; started by `start`.
        poller: the event loop, whose clock is also the NIC's.
        name: for logs.

    Attributes:
        doorbells, registers, admin: the parts of a gVNIC besides those of any NIC, on which others may act: each says
            how.
    """

    profile: Profile
    state: State
    ingress: Ingress[State]
    egress: Egress[State]

    def __init__(self, profile: Profile, wire: Wire, poller: EventLoop, *, name: str = "nic") -> None:
        self.queue_format = QueueFormat.UNSPECIFIED
        msix = MsixTable(profile.vectors, Bar.MSIX, table=0, pba=0x800)
        config = ConfigSpace(
            vendor=r.VENDOR_GOOGLE,
            device=r.DEVICE_GVNIC,
            subsystem=r.SUBSYSTEM_GVNIC,
            class_code=r.CLASS_ETHERNET,
            revision=profile.revision,
            bars=_BARS,
            capabilities=(PowerManagement(), Msix(msix), Express()),
            on_reset=self.reset,
        )
        state = _make_state(profile)
        error = 1 << RX_COMPLETION.rx_error.shift
        super().__init__(name, profile, state, config, _BARS, msix, wire, poller, error=error)
        diagnostics = self.diagnostics
        self.rss = Rss(state)
        self.rules = FlowRules(state)
        self.ddp = Ddp(state)
        self.pages = PageLists(profile.max_registered_pages)
        self.statistics = Statistics(state, self.dma, poller, lambda: self.halted or not self.bus_master, diagnostics)
        self.deferred: DeferredPlacement | None = None
        if profile.deferred_bytes:
            budget, usecs = profile.deferred_queue_budget, profile.deferred_usecs
            self.deferred = DeferredPlacement(state, budget, usecs, poller, self.work, diagnostics)
        # A NIC without these options has a receive path without them.
        self._receive_dqo: Receive[State] = partial(
            receive_dqo, switch(profile.owners), switch(profile.deferred_bytes), switch(profile.ddp_flows)
        )
        self.ingress = Ingress(
            state, self._receive_dqo, poller.clock, self.port, self.dma, self.messages, self.interrupts, diagnostics,
            Backlog(state.rx["held"], state.owners["held"]),
            out_of_order=state.owners.size > 0,
            then=None if self.deferred is None else self.deferred.watch,
        )  # fmt: skip
        if profile.coalesce_usecs:
            self.gatherer = Gatherer(poller, profile.coalesce_usecs, self.ingress.deliver)
        self.egress = Egress(
            state, transmit_dqo, poller, self.port, self.dma, self.messages, self.interrupts, diagnostics
        )  # fmt: skip
        self.doorbells = Doorbells(state, self.ingress, self.egress, self.deferred, diagnostics)
        self._options = self._make_options()
        self.admin = AdminQueue(self, self._options)
        self.registers = RegisterFile(name, profile.queues, self.admin, self.work, self.deconfigure, diagnostics)
        self.load(
            lambda: self.ingress.load(self._receive_dqo),
            lambda: self.egress.load(transmit_dqo),
            lambda: self.ingress.load(receive_gqi),
            lambda: self.egress.load(transmit_gqi),
            self.rules.reset,
            *(option.load for option in self._options),
        )

    def _make_options(self) -> tuple[OptionControl, ...]:
        """The options of the model's own that this NIC has."""
        profile, state = self.profile, self.state
        options: list[OptionControl] = []
        if self.deferred is not None:
            options.append(self.deferred)
        if profile.queue_flush:
            options.append(QueueFlush(state, self.ingress, self.diagnostics))
        if profile.owners:
            options.append(BufferOwners(state, profile))
        if profile.ddp_flows:
            options.append(self.ddp)
        return tuple(options)

    def stop(self) -> None:
        """Leave the wire, and its driver's memory alone."""
        super().stop()
        self.statistics.detach()
        for option in self._options:
            option.stop()

    # Registers and doorbells.

    def is_doorbell(self, region: int, offset: int) -> bool:
        """See `nicmodel.nic.nic.Nic`."""
        return region == Bar.DOORBELLS

    def read_registers(self, region: int, offset: int, count: int) -> bytes:
        """See `nicmodel.nic.nic.Nic`; doorbells cannot be read."""
        return self.registers.read(offset, count) if region == Bar.REGISTERS else bytes(count)

    def write_registers(self, region: int, offset: int, data: bytes | memoryview) -> None:
        """See `nicmodel.nic.nic.Nic`."""
        if region == Bar.DOORBELLS:
            self.doorbells.write(offset, data)
        elif region == Bar.REGISTERS:
            self.registers.write(offset, data)

    def region_read_early(self, region: int, offset: int, count: int) -> bytes | None:
        """What drivers poll while they wait for an admin command: to them it just takes longer."""
        if region == Bar.REGISTERS and (offset, count) == (r.ADMINQ_EVENT_COUNTER.offset, r.ADMINQ_EVENT_COUNTER.size):
            return self.region_read(region, offset, count)
        return None

    def work(self) -> None:
        """Do what doorbells have noted."""
        super().work()
        if self.deferred is not None and self.state.device["running"][0]:
            with self.diagnostics.surviving("placement"):
                self.deferred.work()
                self.dma.lost()
            self.interrupts.fire_soon()

    # What it shows (`nicmodel.nic.view.View`).

    def queue(self, way: Literal["rx", "tx"], number: int) -> dict[str, Any]:
        """Settings and counters of a queue."""
        return report.queue(self, way, number)

    def report(self) -> dict[str, Any]:
        """What a snapshot has besides."""
        return report.report(self)

    def detail(self) -> dict[str, Any]:
        """What its detail has besides."""
        return report.detail(self)

    def decoder(self, listeners: Listeners) -> Decoder:
        """What decodes its events."""
        return Decoder(self, listeners)

    def completions(self, queue: np.void, first: int, count: int) -> list[dict[str, Any]]:
        """Completions of a receive queue, decoded; in the GQI formats its descriptors, which say the same."""
        return completions(self, queue, first, count)

    def buffers(self) -> Buffers:
        """The buffers that its receive queues have now."""
        return Buffers(self)

    # Life of the device: reset, running, configured.

    def let_go(self) -> None:
        """See `nicmodel.nic.nic.Nic`."""
        self.registers.release()

    def bus_master_set(self) -> None:
        """See `nicmodel.nic.nic.Nic`."""
        self.admin.resume()

    def reset_registers(self) -> None:
        """See `nicmodel.nic.nic.Nic`."""
        self.registers.reset()

    def request_reset(self) -> None:
        """Ask the driver to reset the device and start over."""
        if self.diagnostics.observers:
            self.diagnostics.tell(events.ResetRequested())
        self.registers.show(DeviceStatus.RESET, True)
        self.interrupts.notify()

    def tell_status(self) -> None:
        """See `nicmodel.nic.nic.Nic`."""
        self.interrupts.notify()

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
        self.state.device["gqi"] = self.state.device["mapped_only"] = self.doorbells.gqi = gqi
        self.ingress.receive = receive_gqi if gqi else self._receive_dqo
        self.egress.transmit = transmit_gqi if gqi else transmit_dqo
        self.interrupts.configure(blocks, base)
        self.update_running()

    def deconfigure(self) -> None:
        """Take back all that `configure` and the commands after it have set up."""
        options = (option.reset for option in self._options)
        self.take_back(self.statistics.detach, self.pages.clear, self.rules.reset, *options, self.rss.reset)

    # Queues.

    def create_rx(self, queue: int, **fields: int) -> None:
        """Start a receive queue without buffers; `fields` are those of `RX_QUEUE`."""
        padding = GQI_RX_PAD if self.gqi else 0
        coalesce = int(self.profile.coalesce and fields.get("rsc", 0) != 0)
        record = {"padding": padding, "coalesce": coalesce, **self._laps(fields["buffer_entries"]), **fields}
        self.start_queue(self.state.rx[queue : queue + 1], RX_COUNTERS, **record)
        self.rss.spread(int(np.flatnonzero(self.state.rx["active"]).max()) + 1)

    def create_tx(self, queue: int, **fields: int) -> None:
        """Start a transmit queue; `fields` are those of `TX_QUEUE`."""
        self.start_queue(self.state.tx[queue : queue + 1], TX_COUNTERS, **self._laps(fields["entries"]), **fields)

    def _laps(self, entries: int) -> dict[str, int]:
        """How a new ring is gone round: by index or, GQI, by a count that runs freely; the first generation is 1."""
        return {"positions": 1 << 32 if self.gqi else entries, "generation": 1}

    def destroy_rx(self, queue: int) -> None:
        """Stop a receive queue; the device does not touch its memory again."""
        self.drop_rx(queue)
        self.ingress.retry()

    def destroy_tx(self, queue: int) -> None:
        """Stop a transmit queue; what was posted and not taken is forgotten."""
        self.drop_tx(queue)

    def drop_rx(self, queue: int) -> None:
        """See `nicmodel.nic.nic.Nic`; the options' parts of the queue end, too."""
        super().drop_rx(queue)
        for option in self._options:
            with self.diagnostics.surviving("end of a queue"):  # the other options' parts of it end, too
                option.end(queue)

    # Link.

    def _link_changed(self) -> None:
        up = self.port.up
        if self.registers.show(DeviceStatus.LINK_UP, up):
            log.info("%s: link is %s", self.name, "up" if up else "down")
            if self.diagnostics.observers:
                self.diagnostics.tell(events.LinkChanged(up))
            self.interrupts.notify()
