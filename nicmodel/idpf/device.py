"""The NIC: a vfio-user device with a wire, put together of its parts.

What the guest does arrives as register writes. Messages are executed at once; tails only note which queues have work,
which is done when all messages that had arrived together are read (`Nic.work`).

Each part holds its own state and knows the parts that it needs. What is here is the device's life.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np

from nicmodel.idpf import registers as r
from nicmodel.idpf import report
from nicmodel.idpf.buffers import Buffers
from nicmodel.idpf.clock import Clock
from nicmodel.idpf.control import ControlPlane
from nicmodel.idpf.decoder import Decoder, completions
from nicmodel.idpf.descriptors import RX_COMPLETION
from nicmodel.idpf.filters import Filters
from nicmodel.idpf.mailbox import Mailbox
from nicmodel.idpf.profile import Profile
from nicmodel.idpf.queues import Queues
from nicmodel.idpf.receive_split import receive_split
from nicmodel.idpf.register_file import RegisterFile
from nicmodel.idpf.registers import Bar, ResetState
from nicmodel.idpf.state import State, make_state
from nicmodel.idpf.steering import FlowRules, Rss
from nicmodel.idpf.transmit_split import transmit_split
from nicmodel.idpf.virtchnl import RSS_LUT_SIZE
from nicmodel.nic import events, nic
from nicmodel.nic.backlog import Backlog
from nicmodel.nic.egress import Egress
from nicmodel.nic.gather import Gatherer
from nicmodel.nic.ingress import Ingress
from nicmodel.nic.view import Listeners
from nicmodel.pci.bars import MemoryBar
from nicmodel.pci.capabilities import Express, Msix, PowerManagement
from nicmodel.pci.config import ConfigSpace
from nicmodel.pci.msix import MsixTable
from nicmodel.vfio_user.poll import EventLoop
from nicmodel.wire.wire import Wire

log = logging.getLogger(__name__)

_BARS: dict[int, MemoryBar] = {
    Bar.REGISTERS: MemoryBar(r.REGISTERS_SIZE, 64),
    Bar.MSIX: MemoryBar(0x1000, 64),
}


class _Egress(Egress[State]):
    """Transmit, where what is sent may be stamped."""

    def _take_turns(self) -> None:
        self._state.device["sending_at"] = self._poller.clock()
        super()._take_turns()


class Nic(nic.Nic):
    """An idpf, as a virtual function.

    Args:
        profile: what it offers.
        wire: where its frames go; started by `start`.
        poller: the event loop, whose clock is also the NIC's.
        name: for logs.

    Attributes:
        registers, mailbox, control, queues, clock_of_device: the parts of an idpf besides those of any NIC: each says
            what it does.
    """

    profile: Profile
    state: State
    ingress: Ingress[State]
    egress: Egress[State]

    def __init__(self, profile: Profile, wire: Wire, poller: EventLoop, *, name: str = "nic") -> None:
        msix = MsixTable(profile.vectors, Bar.MSIX, table=0, pba=0x800)
        config = ConfigSpace(
            vendor=r.VENDOR_INTEL,
            device=r.DEVICE_IDPF_VF,
            subsystem=0,
            class_code=r.CLASS_IDPF,
            revision=0,
            bars=_BARS,
            capabilities=(PowerManagement(), Msix(msix), Express()),
            on_reset=self.reset,
        )
        # One more than there are vectors, which stands for none: queues that are mapped to no vector have it.
        vectors = profile.vectors + 1
        state = make_state(
            profile.queues, profile.tx_queues, vectors, profile.max_flow_rules, RSS_LUT_SIZE, profile.coalesce_flows
        )
        state.device["mac"] = int.from_bytes(profile.mac, "big")
        state.device["max_frame"] = profile.max_frame
        error = 1 << RX_COMPLETION.rx_error.shift
        super().__init__(name, profile, state, config, _BARS, msix, wire, poller, error=error)
        diagnostics = self.diagnostics
        self.rss = Rss(state)
        self.rules = FlowRules(state)
        self.filters = Filters(state, profile.promiscuous)
        self.ingress = Ingress(
            state, receive_split, poller.clock, self.port, self.dma, self.messages, self.interrupts, diagnostics,
            Backlog(state.rx["held"]),
        )  # fmt: skip
        if profile.coalesce_usecs:
            self.gatherer = Gatherer(poller, profile.coalesce_usecs, self.ingress.deliver)
        self.egress = _Egress(
            state, transmit_split, poller, self.port, self.dma, self.messages, self.interrupts, diagnostics
        )  # fmt: skip
        self.clock_of_device = Clock(state.device, poller.clock)
        self.queues = Queues(self, profile.coalesce)
        self.mailbox = Mailbox(
            state.vectors, self.dma, self.interrupts, poller, diagnostics, self.work,
            lambda: config.bus_master,
        )  # fmt: skip
        self.registers = RegisterFile(self, state.vectors)
        self.control = self.mailbox.executor = ControlPlane(self)
        self.load(lambda: self.ingress.load(receive_split), lambda: self.egress.load(transmit_split), self.rules.reset)

    # Registers.

    def is_doorbell(self, region: int, offset: int) -> bool:
        """See `nicmodel.nic.nic.Nic`."""
        place = r.PLACES.get(offset) if region == Bar.REGISTERS else None
        return place is not None and place[0].doorbell

    def read_registers(self, region: int, offset: int, count: int) -> bytes:
        """See `nicmodel.nic.nic.Nic`."""
        return self.registers.read(offset, count) if region == Bar.REGISTERS else bytes(count)

    def write_registers(self, region: int, offset: int, data: bytes | memoryview) -> None:
        """See `nicmodel.nic.nic.Nic`."""
        if region == Bar.REGISTERS:
            self.registers.write(offset, data)

    def work(self) -> None:
        """Do what tails have noted; vectors that software has asked for fire without any."""
        super().work()
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
        """Completions of a receive queue, decoded."""
        return completions(self, queue, first, count)

    def buffers(self) -> Buffers:
        """The buffers that its receive queues have now."""
        return Buffers(self)

    # Life of the device.

    def mailbox_enabled(self) -> None:
        """The driver has given a mailbox: there are vectors from now on, and messages."""
        self.interrupts.configure(self.profile.vectors, 0)
        self.registers.state = ResetState.ACTIVE
        self.update_running()

    def bus_master_cleared(self) -> None:
        """All that the driver has set up is void: it frees the memory behind it without a message."""
        self.function_reset()

    def function_reset(self) -> None:
        """All is as after power-on but the configuration space; the driver sees it by the mailbox's length."""
        self.let_go()
        self.reset_registers()

    def let_go(self) -> None:
        """See `nicmodel.nic.nic.Nic`."""
        was_there = self.configured
        if was_there:
            with self.diagnostics.surviving("release"):
                self.diagnostics.tell_control(events.Releasing())
        self.mailbox.reset()
        self.take_back(
            self.queues.reset, self.rules.reset, self.rss.reset, self.control.reset, self.clock_of_device.reset
        )
        if was_there:
            with self.diagnostics.surviving("release"):
                self.diagnostics.tell_control(events.Released())

    def reset_registers(self) -> None:
        """See `nicmodel.nic.nic.Nic`."""
        self.registers.reset()

    def request_reset(self) -> None:
        """Reset it, which is how this device asks its driver to start over: the driver looks every 300 ms."""
        if self.diagnostics.observers:
            self.diagnostics.tell(events.ResetRequested())
        self.function_reset()

    def tell_status(self) -> None:
        """See `nicmodel.nic.nic.Nic`; this device has no status but the link's, of which messages tell."""

    # Link.

    def _link_changed(self) -> None:
        up = self.port.up
        if up != self._was_up:
            self._was_up = up
            log.info("%s: link is %s", self.name, "up" if up else "down")
            if self.diagnostics.observers:
                self.diagnostics.tell(events.LinkChanged(up))
            self.control.link_changed()

    _was_up = False
