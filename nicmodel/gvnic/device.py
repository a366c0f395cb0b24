"""The NIC: a vfio-user device with a wire.

What the guest does arrives as register writes and doorbells. Admin commands are executed at once; doorbells only note
which queues have work, which is done when all messages that had arrived together are read (`Nic.flush`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import numpy as np

from nicmodel.gvnic import events
from nicmodel.gvnic import registers as r
from nicmodel.gvnic.admin import AdminQueue
from nicmodel.gvnic.commands import RSS_LUT_SIZE, QueueFormat
from nicmodel.gvnic.ddp import Ddp
from nicmodel.gvnic.deferred import DeferredPlacement
from nicmodel.gvnic.descriptors import GQI_RX_PAD, IRQ_DOORBELL, ITR_NO_UPDATE, ITR_UNIT_NS, GqiIrqDoorbell
from nicmodel.gvnic.dma import find
from nicmodel.gvnic.messages import Messages
from nicmodel.gvnic.moderation import NEVER, moderate
from nicmodel.gvnic.owners import NOTHING
from nicmodel.gvnic.pages import PageLists
from nicmodel.gvnic.profile import MAX_QUEUES, Profile
from nicmodel.gvnic.receive import hand_back, receive
from nicmodel.gvnic.registers import Bar, DeviceStatus, DriverStatus
from nicmodel.gvnic.state import NIC_PAGE, OUTCOME, SETTINGS, Drop, Purpose, Records, make_state
from nicmodel.gvnic.statistics import Statistics
from nicmodel.gvnic.steering import FlowRules, Rss
from nicmodel.gvnic.transmit import Taken, transmit
from nicmodel.gvnic.transmit_gqi import transmit_gqi
from nicmodel.jit.compiled import u64
from nicmodel.packet.frames import NO_QUEUE, Batch
from nicmodel.packet.lost import survive_lost_memory
from nicmodel.pci.bars import MemoryBar
from nicmodel.pci.capabilities import Express, Msix, PowerManagement
from nicmodel.pci.config import SIZE as CONFIG_SIZE
from nicmodel.pci.config import Command, ConfigSpace
from nicmodel.pci.msix import MsixTable
from nicmodel.vfio_user.device import ClientLink, Device, RegionInfo
from nicmodel.vfio_user.dma import DmaFault, without
from nicmodel.vfio_user.poll import EventLoop, Timer
from nicmodel.vfio_user.protocol import PciIrq, PciRegion
from nicmodel.vfio_user.regions import RegionMap
from nicmodel.vfio_user.windows import WINDOWS
from nicmodel.wire.wire import Wire

log = logging.getLogger(__name__)

#: The BAR of MSI-X has room for the table and pending bits of 128 vectors.
_BARS: dict[int, MemoryBar] = {
    Bar.REGISTERS: MemoryBar(r.REGISTERS_SIZE),
    Bar.MSIX: MemoryBar(0x1000),
    Bar.DOORBELLS: MemoryBar(r.DOORBELLS_SIZE),
}

#: The backlog: bytes and frames in all, frames for one queue, and how long a frame may wait for buffers.
_HELD_BYTES = 1 << 20
_HELD_FRAMES = 512
_HELD_PER_QUEUE = 256
_HELD_NS = 200_000_000

#: Bytes from the wire that the driver is told of at once, whatever else waits: it has buffers to post for more.
_LITTLE = 16 << 10

#: A batch on its way out holds the largest TSO packet cut into the smallest segments that Linux asks for (88 bytes). Of
#: what makes no frames there is a limit too: descriptors read, and segments that the wire is to make.
_OUT_BYTES = 1 << 21
_OUT_FRAMES = 4096
_OUT_WORK = 1 << 15
#: What each of so many transmit queues gets of a batch.
_SHARES = [np.array([_OUT_FRAMES, _OUT_BYTES, _OUT_WORK]) // max(queues, 1) for queues in range(MAX_QUEUES + 1)]
_FULL, _SHARE = int(Taken.FULL), int(Taken.SHARE)


class Bus(Protocol):
    """What stands between the NIC and its registers (`nicmodel.faults`)."""

    def read(self, region: int, offset: int, count: int) -> bytes | None:
        """What the driver reads; None: what the NIC says."""

    def write(self, region: int, offset: int, data: bytes) -> bool:
        """Whether the write goes through."""


def _counts_on(head: int, entries: int, value: int) -> bool:
    """Whether a GQI doorbell, a free-running count, is at most a ring ahead of what the device has taken."""
    return value - int(head) & 0xFFFFFFFF <= entries


def _clear(queue: np.ndarray) -> None:
    """Reset a queue's record, except for its counters."""
    queue[SETTINGS[queue.dtype]] = 0


class Nic(Device):
    """A gVNIC.

    Args:
        profile: what it offers.
        wire: where its frames go; started by `start`.
        poller: the event loop, whose clock is also the NIC's.
        name: for logs.

    Attributes:
        observers: called with each event of `nicmodel.gvnic.events`; none is the default.
        lives: by name, such as ``rx3``, how many lives of a queue have ended, or of the ``device``, which ends with its
            resources: what was kept for one is void then.
        counters: events of the control path; ``internal_error`` and, by what has failed, ``failed_…`` are exceptions
            that the device has survived.
    """

    def __init__(self, profile: Profile, wire: Wire, poller: EventLoop, *, name: str = "nic") -> None:
        self.profile = profile
        self.wire = wire
        self.poller = poller
        self.clock = poller.clock
        self.name = name
        self.counters: Counter[str] = Counter()
        #: Frames from the wire that ended in a queue: alone, in pieces, or merged with others.
        self.delivered = 0
        self.link: ClientLink | None = None
        self.observers: tuple[events.Observer, ...] = ()
        self.lives: Counter[str] = Counter()
        # What a fault may stand in front of while it lasts (`nicmodel.faults`): the packet path, interrupts, the bus.
        self.receive: Callable[..., int] = receive
        self.transmit: Callable[..., int] = transmit
        self.transmit_gqi: Callable[..., int] = transmit_gqi
        self.signal: Callable[[int], None] = self.signal_vector
        self.bus: Bus | None = None
        #: Guest memory that the device cannot reach although it is mapped: addresses, first and one past the last.
        self.unreachable: tuple[tuple[int, int], ...] = ()
        #: Whether the device has stopped: what it is told waits until it goes on.
        self.halted = False
        #: Whether the cable is plugged in; the driver sees it together with the wire's own state.
        self.cable = True
        self.driver_version = ""
        #: Names of the kinds of memory in the ledger, of the client that is or was the last.
        self.kinds = ["ram"]
        #: Those that lie in a BAR below the same PCIe switch as the NIC: DMA there does not pass the root complex.
        self.below_switch: frozenset[str] = frozenset()
        self.state = make_state(
            profile.queues,
            profile.vectors - 1,
            profile.max_flow_rules,
            RSS_LUT_SIZE,
            profile.coalesce_flows,
            nic_pages=profile.deferred_bytes // NIC_PAGE,
            owners=profile.owners,
            owned=profile.max_ring if profile.owners else 0,
            ddp_flows=profile.ddp_flows,
        )
        device = self.state.device
        device["mac"] = int.from_bytes(profile.mac, "big")
        device["max_frame"] = profile.max_frame
        device["promiscuous"] = profile.promiscuous
        device["timestamps"] = profile.timestamps
        device["coalesce"] = profile.coalesce
        # Columns of the state that doorbells write, as views of their own: the hot path of the interpreter.
        self._rx_head = self.state.rx["buffer_head"]
        self._rx_tail = self.state.rx["buffer_tail"]
        self._rx_entries = self.state.rx["buffer_entries"]
        self._tx_head = self.state.tx["head"]
        self._tx_tail = self.state.tx["tail"]
        self._tx_entries = self.state.tx["entries"]
        self._enabled = self.state.vectors["enabled"]
        self._pending = self.state.vectors["pending"]
        self._interval = self.state.vectors["interval"]

        self.rss = Rss(self.state)
        self.rules = FlowRules(self.state)
        self.ddp = Ddp(self.state)
        self.admin = AdminQueue(self)
        self.statistics = Statistics(self)
        self.messages = Messages(self)
        self.deferred = DeferredPlacement(self) if profile.deferred_bytes else None
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

        #: Notification blocks, and the MSI-X vector of the first of them.
        self.blocks = self.vector_base = 0
        self.queue_format = QueueFormat.UNSPECIFIED
        self.pages = PageLists(profile.max_registered_pages)
        self.status = DeviceStatus(0)
        self._registers: dict[int, int] = {}
        self._outcomes = np.zeros(_HELD_FRAMES, OUTCOME)
        self._backlog = Batch(_HELD_BYTES, _HELD_FRAMES)
        self._spare = Batch(_HELD_BYTES, _HELD_FRAMES)
        self._held = np.zeros(2, np.int64)
        self._out = Batch(_OUT_BYTES, _OUT_FRAMES)
        self._out_used = np.zeros(3, np.int64)
        #: The turn of the event loop in which the last batch was made.
        self._out_turn = -1
        #: Transmit queues that have work, the one whose turn it is first.
        self._tx_dirty: dict[int, None] = {}
        self._rx_dirty = False
        self._fired = np.zeros(max(profile.vectors, 1), np.int32)
        self._timer: Timer | None = None
        self._gathered = Batch(_OUT_BYTES, _OUT_FRAMES) if profile.coalesce_usecs else Batch(0, 0)
        self._gathering: Timer | None = None
        self.gqi = False
        #: The event counters' guest address, and how many the driver has given.
        self.counter_array = self.counters_given = 0
        self._offloads = int(wire.offloads)
        self._load_packet_path()

    def _load_packet_path(self) -> None:
        """Run the compiled functions once on nothing: compiled at the first start ever, loaded from the cache later.

        A client waits only seconds for an answer, so this must not happen when the first frame comes.
        """
        survive_lost_memory(WINDOWS.words)
        find(*self.state.memory_map, u64(0))
        self._receive(self._spare)
        for send in (transmit, transmit_gqi):
            send(
                self.state, 0, self._out.data, self._out.frames, self._out_used, _SHARES[1], self.wire.headroom,
                self._offloads,
            )  # fmt: skip
        moderate(self.state.vectors, 0, self._fired)
        self.rules.reset()
        if self.profile.queue_flush:
            hand_back(self.state, 0, NOTHING)
        if self.deferred is not None:
            self.deferred.load()

    def tell(self, event: events.Event) -> None:
        """Let the observers know of an event. Who calls this looks first whether there are any."""
        for observer in self.observers:
            observer(event)

    def fail(self, what: str, error: Exception) -> None:
        """Note an exception that the device survives, whoever is to blame. The log tells of the first of each kind."""
        self.counters["internal_error"] += 1
        name = f"failed_{what.lower().replace(' ', '_')}"
        self.counters[name] += 1
        if self.counters[name] == 1:
            log.error("%s: %s failed, which is counted from now on", self.name, what, exc_info=error)
        try:
            if self.observers:
                self.tell(events.Failed(f"{what} failed: {error!r}"))
        except Exception:  # an observer is what fails
            self.counters["failed_observer"] += 1

    @contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        """Have an exception inside noted, and go on behind it."""
        try:
            yield
        except Exception as error:
            self.fail(what, error)

    def start(self) -> None:
        """Begin to take frames from the wire."""
        self.wire.start(
            self.poller,
            self._gather if self.profile.coalesce_usecs else self.deliver,
            self._wire_writable,
            self._link_changed,
        )
        self._link_changed()

    def stop(self) -> None:
        """Leave the wire."""
        self.wire.stop()
        self._cancel_timer()
        self._cancel_gathering()
        self.statistics.detach()
        if self.deferred is not None:
            self.deferred.stop()

    # The client, its memory and its interrupts.

    def attach(self, link: ClientLink) -> None:
        """A client has come: its memory and interrupts are this device's now."""
        self.link = link
        self.kinds = link.dma.kinds
        self.state.ledger[:] = 0  # its kinds of memory are this client's
        self._set_regions()
        log.info("%s: %s has connected", self.name, link.name)

    def detach(self) -> None:
        """The client has gone: as if power had been cut."""
        if self.link is not None:
            log.info("%s: %s has gone", self.name, self.link.name)
        self.reset()
        self.link = None
        self.state.memory_map = RegionMap.empty()

    def dma_changed(self) -> None:
        """The guest's memory map is another."""
        self._set_regions()
        # What was fetched for a packet that waits for the wire may have come from other memory than is there now.
        self.state.device["asked"] = self.state.device["asked_bytes"] = 0

    def memory_lost(self) -> None:
        """Guest memory was taken away: what the device has taken from there is worth nothing, so it starts over.

        Not at once, as it may be in the midst of a batch, which will meet DMA faults only.
        """
        self.count("memory_lost")
        log.warning("%s: memory of %s was taken away; the device is reset", self.name, self.link and self.link.name)
        self.poller.when_idle(partial(self._start_over, self.link))

    def _start_over(self, link: ClientLink | None) -> None:
        if self.link is link:
            self.reset()

    def _lost_memory(self) -> bool:
        """Whether compiled code, which has just run, met memory that was taken away."""
        return self.link is not None and self.link.dma.check()

    def before_unmap(self, start: int, size: int) -> None:
        """Nothing is under way between two calls into the device, so there is nothing to stop."""

    def _set_regions(self) -> None:
        assert self.link is not None
        dma = self.link.dma
        if self.unreachable:
            regions = dma.regions
            for start, end in self.unreachable:
                regions = without(regions, start, end)
            self.state.memory_map = RegionMap.of(regions)
        else:
            self.state.memory_map = dma.view
        self.state.device["remote"] = dma.by_message > 0

    def set_unreachable(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Have the device reach nothing in these ranges of addresses: each access there is a DMA fault."""
        self.unreachable = tuple(ranges)
        if self.link is not None:
            self._set_regions()

    def dma_read(self, address: int, count: int) -> bytes:
        """Read guest memory for the admin queue.

        Raises:
            DmaFault: not all of it is mapped and readable.
        """
        assert self.link is not None
        self._check_reachable(address, count)
        data = self.link.dma.read(address, count)
        self._book(Purpose.COMMAND, address, count)
        return data

    def dma_write(self, address: int, data: bytes, purpose: Purpose = Purpose.ANSWER) -> None:
        """Write guest memory for the admin queue, or for another `purpose`; else as `dma_read`."""
        assert self.link is not None
        self._check_reachable(address, len(data))
        self.link.dma.write(address, data)
        self._book(purpose, address, len(data))

    def _check_reachable(self, address: int, count: int) -> None:
        if any(address < end and start < address + count for start, end in self.unreachable):
            assert self.link is not None
            raise self.link.dma.fault(DmaFault(address, count, "made unreachable"))

    def _book(self, purpose: Purpose, address: int, count: int) -> None:
        """Book an access of the device as a whole, which may cross regions."""
        leaves, regions = self.state.memory_map
        while count > 0:
            region = regions[find(leaves, regions, u64(address))]
            piece = min(count, int(region["start"]) + int(region["size"]) - address)
            self.state.ledger[-1, purpose, region["kind"]] += piece
            address += piece
            count -= piece

    def signal_vector(self, vector: int) -> None:
        """Raise an MSI-X vector, if bus mastering allows it."""
        if self.link is not None and self.config.command & Command.BUS_MASTER:
            if self.observers:
                self.tell(events.Interrupting(vector))
            self.link.irqs[PciIrq.MSIX].trigger(vector)

    # Registers and doorbells.

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """Read a BAR or the configuration space."""
        try:
            return self._read(region, offset, count)
        except Exception as error:
            self.fail("register read", error)
            return b"\xff" * count  # as when nobody answers on a bus

    def _read(self, region: int, offset: int, count: int) -> bytes:
        if self.bus is not None and (answer := self.bus.read(region, offset, count)) is not None:
            return answer
        if region == PciRegion.CONFIG:
            return self.config.read(offset, count)
        if region == Bar.REGISTERS:
            image = bytearray(r.REGISTERS_SIZE)
            for register, value in (
                (r.DEVICE_STATUS, int(self.status)),
                (r.MAX_TX_QUEUES, self.profile.queues),
                (r.MAX_RX_QUEUES, self.profile.queues),
                (r.ADMINQ_PFN, self._registers.get(r.ADMINQ_PFN.offset, 0)),
                (r.ADMINQ_EVENT_COUNTER, self.admin.counter),
            ):
                image[register.offset : register.offset + register.size] = value.to_bytes(register.size, "big")
            return bytes(image[offset : offset + count])
        if region == Bar.MSIX and self.link is not None:
            return self._msix.read(offset, bytes(count), self.link.irqs[PciIrq.MSIX].pending)
        return bytes(count)

    def region_read_early(self, region: int, offset: int, count: int) -> bytes | None:
        """What drivers poll while they wait for an admin command: to them it just takes longer."""
        if region == Bar.REGISTERS and (offset, count) == (r.ADMINQ_EVENT_COUNTER.offset, r.ADMINQ_EVENT_COUNTER.size):
            return self.region_read(region, offset, count)
        return None

    def region_write(self, region: int, offset: int, data: bytes | memoryview) -> None:
        """Write a BAR or the configuration space."""
        try:
            if self.observers:
                self.tell(events.Write(region, offset, data))
            if self.bus is not None and not self.bus.write(region, offset, bytes(data)):
                return
            if region == Bar.DOORBELLS:
                self._doorbell(offset, data)
            elif region == PciRegion.CONFIG:
                self.config.write(offset, data)
                self._update_running()
            elif region == Bar.REGISTERS:
                for register in r.REGISTERS.values():
                    at = register.offset - offset
                    if register.writable and at >= 0 and at + register.size <= len(data):
                        self._write_register(register, int.from_bytes(data[at : at + register.size], "big"))
        except Exception as error:
            self.fail("register write", error)

    def _write_register(self, register: r.Register, value: int) -> None:
        self._registers[register.offset] = value
        if register is r.ADMINQ_DOORBELL:
            self.flush()  # doorbells that came before the command take effect before it
            self.admin.ring(value)
        elif register is r.ADMINQ_PFN:
            if value:
                self._run(value * r.ADMINQ_PAGE, r.ADMINQ_PAGE, value)
            else:
                self._release()
        elif register is r.DRIVER_STATUS:
            if value & DriverStatus.RESET:
                self._release()
            elif value & DriverStatus.RUN:
                high, low, length = (
                    self._registers.get(part.offset, 0)
                    for part in (r.ADMINQ_BASE_HI, r.ADMINQ_BASE_LO, r.ADMINQ_LENGTH)
                )
                # iPXE writes the page number besides, and takes it for a reset when it reads 0 later.
                self._run(high << 32 | low, length, self._registers.get(r.ADMINQ_PFN.offset, 0))
        elif register is r.DRIVER_VERSION:
            self.driver_version = (self.driver_version + chr(value))[-128:]
            if value == ord("\n"):
                log.info("%s: driver %s", self.name, self.driver_version.strip())
                self.driver_version = ""

    def irq_doorbell(self, block: int) -> int:
        """Dword index in BAR 2 of a notification block's doorbell. Index 0 stays unused: stray writes go there."""
        return 1 + block

    def tx_doorbell(self, queue: int) -> int:
        """Dword index in BAR 2 of a transmit queue's doorbell."""
        return 1 + 2 * self.profile.queues + queue

    def rx_doorbell(self, queue: int) -> int:
        """Dword index in BAR 2 of a receive queue's doorbell."""
        return 1 + 3 * self.profile.queues + queue

    def placement_doorbell(self, queue: int) -> int:
        """Dword index in BAR 2 of the doorbell of a receive queue's placement ring."""
        return 1 + 4 * self.profile.queues + queue

    def _doorbell(self, offset: int, data: bytes | memoryview) -> None:
        queues = self.profile.queues
        value = int.from_bytes(data, "big" if self.gqi else "little")
        index = (offset >> 2) - 1
        if len(data) != 4 or offset & 3 or index < 0 or index >= 4 * queues:
            if self.deferred is None or len(data) != 4 or not self.deferred.doorbell(index - 4 * queues, value):
                self.counters["doorbell_unknown"] += 1
        elif index < 2 * queues:
            self._ring_irq(index, value)
        elif index < 3 * queues:
            queue = index - 2 * queues
            entries = self._tx_entries[queue]
            if _counts_on(self._tx_head[queue], entries, value) if self.gqi else value < entries:
                self._tx_tail[queue] = value
                self._tx_dirty[queue] = None
            else:
                self._refuse_doorbell(f"tx{queue}", value, entries)
        else:
            queue = index - 3 * queues
            entries = self._rx_entries[queue]
            if _counts_on(self._rx_head[queue], entries, value) if self.gqi else value < entries:
                self._rx_tail[queue] = value
                self._rx_dirty = True
            else:
                self._refuse_doorbell(f"rx{queue}", value, entries)

    def _refuse_doorbell(self, queue: str, value: int, entries: int) -> None:
        """A doorbell that cannot be meant has no effect."""
        self.counters["doorbell_beyond_ring"] += 1
        if self.observers:
            self.tell(events.Failed(f"doorbell {value} is beyond the ring of {entries} entries", queue))

    def _ring_irq(self, block: int, value: int) -> None:
        if self.gqi:
            # What came since the vector fired is pending, so unmasking fires again; ACK and EVENT say nothing more.
            self._enabled[block] = value & GqiIrqDoorbell.MASK == 0
            return
        if IRQ_DOORBELL.itr_index.mask & value >> IRQ_DOORBELL.itr_index.shift != ITR_NO_UPDATE:
            self._interval[block] = (value >> IRQ_DOORBELL.interval.shift & IRQ_DOORBELL.interval.mask) * ITR_UNIT_NS
        if value >> IRQ_DOORBELL.clear_pending.shift & 1:
            self._pending[block] = 0
        self._enabled[block] = value & 1

    # Life of the device: reset, running, configured.

    def _run(self, base: int, length: int, page: int) -> None:
        """The driver has given an admin queue; `page` is what its page number register reads while it runs."""
        self._release()
        self._registers[r.ADMINQ_PFN.offset] = page
        self.admin.start(base, length)
        self.status &= ~DeviceStatus.DEVICE_IS_RESET
        log.info("%s: admin queue of %d bytes at %#x", self.name, length, base)

    def _release(self) -> None:
        """The driver has let go: all DMA and all interrupts end before this returns."""
        self.deconfigure()
        self.admin.stop()
        self._registers[r.ADMINQ_PFN.offset] = 0
        self.status &= ~(DeviceStatus.RESET | DeviceStatus.REPORT_STATS)
        self.status |= DeviceStatus.DEVICE_IS_RESET

    def reset(self) -> None:
        """Function level reset, DEVICE_RESET, or the client's end: back to power-on state."""
        with self.surviving("reset"):
            if self.observers:
                self.tell(events.Resetting())
        self._release()
        self.config.reset()
        self._registers.clear()
        self.status &= ~DeviceStatus.DEVICE_IS_RESET

    def request_reset(self) -> None:
        """Ask the driver to reset the device and start over."""
        if self.observers:
            self.tell(events.ResetRequested())
        self.status |= DeviceStatus.RESET
        self._notify()

    @property
    def configured(self) -> bool:
        """Whether CONFIGURE_DEVICE_RESOURCES has been done."""
        return self.blocks > 0

    def configure(
        self, *, queue_format: QueueFormat, blocks: int, base: int, counters: tuple[int, int]
    ) -> None:  # fmt: skip
        """CONFIGURE_DEVICE_RESOURCES: vectors of `blocks` notification blocks from `base` on; counters somewhere."""
        if self.configured:
            self.deconfigure()
        address, count = counters
        self.dma_write(address, bytes(4 * count))
        self.blocks = blocks
        self.queue_format = queue_format
        self.gqi = queue_format in (QueueFormat.GQI_RDA, QueueFormat.GQI_QPL)
        self.state.device["gqi"] = self.gqi
        self.counter_array, self.counters_given = address, count
        self.vector_base = base
        self._update_running()

    def deconfigure(self) -> None:
        """Take back all that `configure` and the commands after it have set up."""
        self.lives["device"] += 1
        steps: tuple[Callable[[], None], ...] = (
            *(partial(self._drop_tx, queue) for queue in np.flatnonzero(self.state.tx["active"]).tolist()),
            *(partial(self._drop_rx, queue) for queue in np.flatnonzero(self.state.rx["active"]).tolist()),
            self._retry_held,
            self.statistics.detach,
            self.pages.clear,
            self.rules.reset,
            self.ddp.reset,
            self.rss.reset,
            self._cancel_timer,
        )
        for step in steps:
            with self.surviving("reset"):  # the rest has to be done: the memory is the driver's again
                step()
        self.state.vectors[:] = 0
        self.blocks = 0
        self._update_running()

    def _update_running(self) -> None:
        running = self.configured and bool(self.config.command & Command.BUS_MASTER)
        self.state.device["running"] = running and not self.halted

    def halt(self, halted: bool) -> None:
        """Stop the device, which then moves no packet, or let it go on with what it was told meanwhile."""
        self.halted = halted
        self._update_running()
        if halted:
            self._cancel_timer()
        elif self.link is not None:
            self._notify()  # the status may have changed meanwhile
            self._rx_dirty = True
            self._tx_dirty.update(dict.fromkeys(np.flatnonzero(self.state.tx["active"]).tolist()))
            self.flush()

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
        self._retry_held()

    def set_owners(self, queue: int, owners: int) -> None:
        """Let the buffers of a receive queue, which has none yet, have `owners` owners; this ends with the queue."""
        entries = self.state.owners[queue]
        entries[SETTINGS[entries.dtype]] = 0
        rx = self.state.rx[queue : queue + 1]
        rx["owners"], rx["lookahead"] = owners, self.profile.owner_lookahead

    def flush_rx(self, queue: int, owner: int = NOTHING) -> None:
        """Hand a receive queue's buffers back, which the device does not touch again; the queue and its rings stay.

        Frames that wait for these buffers are dropped: the next ones may be somebody else's.

        Args:
            queue: the queue.
            owner: whose buffers; `NOTHING`: all.
        """
        whose = None if owner == NOTHING else owner
        if self.observers:
            self.tell(events.Flushing(queue, whose))
        hand_back(self.state, queue, owner)
        if self.observers:
            with self.surviving("observer"):  # what waits for these buffers must go, whoever looks on
                self.tell(events.Flushed(queue, whose))
        gate = self.state.rx[queue : queue + 1] if owner == NOTHING else self.state.owners[queue, owner : owner + 1]
        name, shut = ("active", 0) if owner == NOTHING else ("closed", 1)
        gate[name] = shut
        self._retry_held()
        gate[name] = 1 - shut

    def destroy_tx(self, queue: int) -> None:
        """Stop a transmit queue; what was posted and not fetched is forgotten."""
        self._drop_tx(queue)

    def _drop_rx(self, queue: int) -> None:
        self.lives[f"rx{queue}"] += 1
        _clear(self.state.rx[queue : queue + 1])
        if self.deferred is not None:
            self.deferred.end(queue)

    def _drop_tx(self, queue: int) -> None:
        self.lives[f"tx{queue}"] += 1
        _clear(self.state.tx[queue : queue + 1])
        self._tx_dirty.pop(queue, None)
        # What was fetched for a packet that waits for the wire is not the next life's, whatever its address.
        self.state.device["asked"] = self.state.device["asked_bytes"] = 0

    def count(self, name: str) -> None:
        """Count an event of the control path."""
        self.counters[name] += 1

    # Link.

    @property
    def link_up(self) -> bool:
        """Whether frames pass."""
        return self.cable and self.wire.up

    @property
    def link_speed(self) -> int:
        """Mbit/s."""
        return self.profile.link_speed

    def set_cable(self, plugged: bool) -> None:
        """Plug the cable in or pull it."""
        self.cable = plugged
        self._link_changed()

    def _link_changed(self) -> None:
        before = self.status
        self.status = self.status & ~DeviceStatus.LINK_UP | (DeviceStatus.LINK_UP if self.link_up else DeviceStatus(0))
        if self.status != before:
            log.info("%s: link is %s", self.name, "up" if self.link_up else "down")
            if self.observers:
                self.tell(events.LinkChanged(self.link_up))
            self._notify()

    @property
    def management_vector(self) -> int:
        """The MSI-X vector that belongs to no queue: it comes after the blocks' vectors, or before them."""
        return self.blocks if self.vector_base == 0 else 0

    def _notify(self) -> None:
        """The management interrupt: the driver reads the device status."""
        if self.configured and not self.halted:
            self.signal(self.management_vector)

    # Packets.

    def deliver(self, batch: Batch) -> None:
        """Frames from the wire: all end in a queue, in the backlog or in a counter before this returns."""
        if not self.cable:
            self.state.drops[-1, Drop.DEVICE_DOWN] += batch.count
            return
        try:
            self._receive(batch)
            if self.profile.owners and self._held[0]:
                self._retry_blocked()
        except Exception as error:  # the wire, or who sent this at its other end, has nothing to do with it
            self.fail("receive", error)
        if batch.used > _LITTLE:
            self._moderate()
        else:
            self._moderate_soon()

    def _retry_blocked(self) -> None:
        """Try the backlog again while that helps: a buffer just used may have stood before another owner's."""
        outcomes, self._outcomes = self._outcomes, np.zeros(_HELD_FRAMES, OUTCOME)  # the batch's stay for `inject`
        delivered = -1
        while self._held[0] and self.delivered != delivered:
            delivered = self.delivered
            self._retry_held()
        self._outcomes = outcomes

    def _gather(self, batch: Batch) -> None:
        """Keep frames from the wire until the first of them has waited for `Profile.coalesce_usecs`."""
        if not self._gathered.take(batch):
            self._deliver_gathered()
            if not self._gathered.take(batch):
                self.deliver(batch)
                return
        if self._gathering is None:
            due = self.clock() + self.profile.coalesce_usecs * 1000
            self._gathering = self.poller.call_at(due, self._deliver_gathered)

    def _deliver_gathered(self) -> None:
        gathered = self._gathered
        self._cancel_gathering()
        self.deliver(gathered)
        gathered.clear()

    def _cancel_gathering(self) -> None:
        if self._gathering is not None:
            self.poller.cancel(self._gathering)
            self._gathering = None

    def inject(self, batch: Batch) -> Records:
        """Take frames as if they came from the wire.

        Returns:
            Where each went, shape (batch.count,), `OUTCOME`.
        """
        self.deliver(batch)
        self._moderate()
        if self.cable:
            return self._outcomes[: batch.count].copy()
        lost = np.zeros(batch.count, OUTCOME)
        lost["verdict"] = Drop.DEVICE_DOWN
        lost["queue"] = lost["rule"] = lost["next"] = -1
        return lost

    def _receive(self, batch: Batch) -> None:
        if len(self._outcomes) < batch.count:
            self._outcomes = np.zeros(len(batch.frames), OUTCOME)
        if self.observers:
            self.tell(events.Receiving(batch))
        remote = self.state.device["remote"][0]
        if remote:
            self.messages.make_room(batch)
        now = self.clock()
        self.delivered += self.receive(
            self.state, batch.data, batch.frames, batch.count, now, now - _HELD_NS, _HELD_PER_QUEUE,
            self._backlog.data, self._backlog.frames, self._held, self._outcomes,
        )  # fmt: skip
        self._lost_memory()
        if remote:
            self.messages.send()
        if self.deferred is not None:
            self.deferred.watch()
        if self.observers:
            self.tell(events.Received(batch, self._outcomes))

    def _retry_held(self) -> None:
        """Try the backlog again; what still finds no buffers goes into the other of the two backlogs."""
        self._rx_dirty = False
        if self._held[0] == 0:
            return
        again, self._backlog, self._spare = self._backlog, self._spare, self._backlog
        again.count = int(self._held[0])
        self._held[:] = 0
        self.state.rx["held"] = 0
        self.state.owners["held"] = 0
        self._receive(again)

    def _wire_writable(self) -> None:
        """The wire takes frames again."""
        with self.surviving("transmit"):
            if self.state.device["running"][0]:
                self._transmit()
            elif self._out.sent < self._out.count:
                self._send(self._out)
        self._moderate_soon()

    def _transmit(self) -> None:
        """Send a batch in each turn of the event loop, until no queue has work or the wire has to be waited for.

        The others have their turn in between, and this NIC's driver is heard.
        """
        out = self._out
        while True:
            if out.sent < out.count and not self._send(out):
                return
            out.clear()
            self._out_used[:] = 0
            if not self._tx_dirty:
                return
            if self._out_turn == self.poller.turn:
                self.poller.next_turn(self._wire_writable)
                return
            self._out_turn = self.poller.turn
            self._take_turns()
            if self._lost_memory():  # nobody knows which of these bytes the driver has sent
                self.state.drops[-1, Drop.DMA_FAULT] += self._out_used[0]
                self._out_used[:] = 0
            out.count, out.used = int(self._out_used[0]), int(self._out_used[1])
            if self.observers:
                self.tell(events.Sending(out))

    def _take_turns(self) -> None:
        """Fill a batch with packets of the queues that have work, in turns: what is left of it is shared evenly."""
        dirty, out, used = self._tx_dirty, self._out, self._out_used
        full = False
        while dirty and not full:
            queue = next(iter(dirty))
            if self.observers:
                self.tell(events.Transmitting(queue))
            send = self.transmit_gqi if self.gqi else self.transmit
            try:
                taken = send(
                    self.state, queue, out.data, out.frames, used, _SHARES[len(dirty)], self.wire.headroom,
                    self._offloads,
                )  # fmt: skip
            except Exception as error:
                self.fail("transmit", error)
                taken = 0
            if self.observers:
                self.tell(events.Transmitted(queue))
            if taken == _FULL:  # it stays the first: in an empty batch there will be room
                full = True
                if self.state.device["asked"][0]:
                    self.messages.fetch()
                continue
            del dirty[queue]
            if taken == _SHARE:
                dirty[queue] = None
                full = bool(used[2] >= _OUT_WORK)

    def send(self, frames: Iterable[bytes]) -> int:
        """Put frames out on the wire, as if the driver had sent them; no queue counts them.

        Returns:
            How many the wire has taken: one that is busy takes no more.
        """
        if self._out.sent < self._out.count:
            return 0
        batch = Batch.of(frames, headroom=self.wire.headroom)
        batch.frames["queue"] = NO_QUEUE
        if self.observers:
            self.tell(events.Sending(batch))
        if self.cable:
            self.wire.send(batch)
        return batch.sent

    def _send(self, out: Batch) -> bool:
        if self.cable:
            try:
                return self.wire.send(out)
            except Exception as error:  # a batch that the wire cannot take would stay for ever
                self.fail("wire", error)
        self.state.drops[-1, Drop.DEVICE_DOWN] += out.count - out.sent
        return True

    def flush(self) -> None:
        """All messages that had arrived together are read: do what they asked for."""
        if not self.state.device["running"][0]:
            return
        try:
            if self._rx_dirty:
                self._retry_held()
        except Exception as error:
            self.fail("receive", error)
        try:
            if self._tx_dirty:
                self._transmit()
        except Exception as error:
            self.fail("transmit", error)
        if self.deferred is not None:
            with self.surviving("placement"):
                self.deferred.flush()
                self._lost_memory()
        self._moderate_soon()

    def go_on(self, queue: int | None = None) -> None:
        """Look again at frames that wait for buffers, and at transmit queue `queue`, without a doorbell."""
        self._rx_dirty = True
        if queue is not None and self.state.tx[queue]["active"]:
            self._tx_dirty[queue] = None
        self.flush()

    def _moderate_soon(self) -> None:
        """Interrupts are decided once for all that has arrived: an interrupt costs a guest more than a packet does."""
        if self.state.vectors["pending"].any():
            self.poller.when_idle(self._moderate)

    def _moderate(self) -> None:
        if self.halted:
            return
        now = self.clock()
        count, again = moderate(self.state.vectors, now, self._fired)
        for vector in self._fired[:count].tolist():
            try:
                self.signal(self.vector_base + vector)
            except Exception as error:
                self.fail("interrupt", error)
        self._cancel_timer()
        if again != NEVER:
            self._timer = self.poller.call_at(again, self._moderate)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self.poller.cancel(self._timer)
            self._timer = None
