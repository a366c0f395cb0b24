"""Runs a recording against a NIC as it is now: without a client, a guest or a wire, and the same every time.

Time is that of the recording, turns of the event loop are; what the NIC reads of guest memory is put there before each
call. A recorder (`nicmodel.recording.recorder`) notes what the NIC does, to be compared.

A call that can no longer be made, such as that of a timer which the NIC has not set, is left out.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol, Self

from nicmodel.nic.nic import Nic
from nicmodel.observe.findings import Checker, Finding
from nicmodel.packet.frames import Batch, Offload
from nicmodel.recording.call import CALLS, Access, Call, RecordingError, batch_of, frame
from nicmodel.recording.file import Header
from nicmodel.recording.recorder import Recorder
from nicmodel.vfio_user.device import ClientLink
from nicmodel.vfio_user.dma import DmaFault, DmaTable
from nicmodel.vfio_user.irq import InterruptSet
from nicmodel.vfio_user.poll import EventLoop, Timer
from nicmodel.vfio_user.protocol import PciIrq
from nicmodel.wire.none import NoWire
from nicmodel.wire.wire import Wire

#: Guest memory: what may be mapped, and what of it may be written, bytes.
_MAPPED, _FILLED = 1 << 44, 1 << 30


class Model(Protocol):
    """A NIC to be made: what a replay needs of `nicmodel.host.Model`."""

    def make(self, wire: Wire, poller: EventLoop, *, name: str) -> Any:
        """Make it."""

    def check(self, nic: Any, on_finding: Callable[[Finding], None] | None) -> Checker:
        """Watch its driver keep the contract."""


class Replay:
    """A NIC, and all around it, as a recording has them.

    Args:
        header: what it is a recording of.
        model: the NIC to be made.

    Attributes:
        nic: the NIC.
        on_trace: told what a server tells of its client (`nicmodel.vfio_user.server.Server`); None: nobody.
    """

    def __init__(self, header: Header, model: Model) -> None:
        self.on_trace: Callable[..., None] | None = None
        self._loop = _Loop(header.time)
        self._wire = _Wire(header.wire)
        self._memory = _Memory()
        self._link: ClientLink | None = None
        self._made: list[Call] = []
        self.recorder = Recorder(self._loop)
        self.recorder.tell = self._made.append
        self.nic: Nic = model.make(self._wire, self.recorder, name=header.nic)
        self.recorder.watch(self.nic)
        self._calls: dict[str, Callable[..., None]] = {
            **{name: getattr(self, f"_{name}") for name in CALLS if name != "link"},
            "link": self._link_changed,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything."""
        self.recorder.stop()
        self.nic.stop()
        if self._link is not None:
            self._leave()
        self._memory.close()

    def make(self, call: Call) -> Call:
        """Make a call; what the NIC has done in it."""
        self._loop.now, self._loop.turn = max(call.time, self._loop.now), call.turn
        self._memory.put(call.reads)
        self._memory.answers = {one.address: one.data for one in call.reads}
        self._wire.script = [(one.all_taken, len(one.frames)) for one in call.sent]
        self._made.clear()
        with contextlib.suppress(OSError):  # which is noted
            self._calls[call.name](*call.arguments)
        self._memory.check()
        return self._made[0] if self._made else Call(call.name, call.time, call.turn, call.arguments)

    def overwrite(self, accesses: Iterable[Access]) -> None:
        """Have other bytes in guest memory, for who looks on."""
        self._memory.put(reversed(list(accesses)))

    def _tell(self, event: str, **fields: Any) -> None:
        if self.on_trace is not None:
            self.on_trace(event, **fields)

    # The client.

    def _attach(self, name: str) -> None:
        if self._link is not None:
            return
        irqs = [InterruptSet(count, automasked=at == PciIrq.INTX) for at, count in enumerate(self.nic.irq_counts)]
        self._link = ClientLink(name, DmaTable(self._memory), irqs)
        self._tell("attach", client=name, capabilities=None)
        self.nic.attach(self._link)

    def _detach(self) -> None:
        if self._link is not None:
            self.nic.detach()
            self._leave()

    def _leave(self) -> None:
        assert self._link is not None
        self._link.dma.unmap_all()
        for irqs in self._link.irqs:
            irqs.disable()
        self._memory.forget()
        self._link = None

    def _map(self, start: int, size: int, descriptor: bool, readable: bool, writable: bool) -> None:
        if self._link is None:
            return
        fd = self._memory.fd if descriptor else None
        offset = self._memory.place_for(size) if descriptor else 0
        self._link.dma.map(start, size, fd=fd, offset=offset, readable=readable, writable=writable)
        if descriptor:
            self._memory.mapped(start, size, offset)
        self._tell("dma_map", address=start, size=size, offset=0, flags=readable | writable << 1, descriptor=descriptor)

    def _unmap(self, start: int, size: int) -> None:
        if self._link is not None:
            regions = self._link.dma.unmap(start, size)
            self._memory.unmapped(start, size)
            self._tell("dma_unmap", address=start, size=size, flags=0, regions=regions)

    def _set_irqs(self, index: int, flags: int, start: int, count: int, data: str, descriptors: int) -> None:
        if self._link is None or index >= len(self._link.irqs):
            return
        fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(descriptors)]
        try:
            self._link.irqs[index].set_irqs(flags, start, count, bytes.fromhex(data), fds)
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        self._tell("set_irqs", index=index, start=start, count=count, flags=flags, eventfds=descriptors)

    def _region_read(self, region: int, offset: int, count: int) -> None:
        if self._inside(region, offset, count):
            data = self.nic.region_read(region, offset, count)
            self._tell("region_read", region=region, offset=offset, data=data)

    def _region_write(self, region: int, offset: int, data: str) -> None:
        octets = bytes.fromhex(data)
        if self._inside(region, offset, len(octets)):
            self._tell("region_write", region=region, offset=offset, data=octets)
            self.nic.region_write(region, offset, octets)

    def _inside(self, region: int, offset: int, count: int) -> bool:
        return self._link is not None and offset + count <= self.nic.regions[region].size

    def _dma_changed(self) -> None:
        if self._link is not None:
            self.nic.dma_changed()

    def _memory_lost(self) -> None:
        self.nic.memory_lost()

    def _messages_read(self) -> None:
        self.nic.messages_read()

    def _reset(self) -> None:
        self.nic.reset()

    # The wire, and what is done by hand.

    def _start(self, up: bool) -> None:
        self._wire.up = up
        self.nic.start()

    def _link_changed(self, up: bool) -> None:
        self._wire.up = up
        self.nic._link_changed()

    def _receive(self, used: int, frames: list[list[Any]]) -> None:
        batch = batch_of(map(frame, frames), used)
        if self.nic.gatherer is None:
            self.nic.ingress.deliver(batch)
        else:
            self.nic.gatherer.take(batch)

    def _inject(self, used: int, frames: list[list[Any]]) -> None:
        self.nic.ingress.inject(batch_of(map(frame, frames), used))

    def _send(self, used: int, frames: list[list[Any]]) -> None:
        self.nic.egress.send([frame(one).data for one in frames])

    def _go_on(self) -> None:
        self.nic.egress.go_on()

    def _set_cable(self, plugged: bool) -> None:
        self.nic.set_cable(plugged)

    def _request_reset(self) -> None:
        self.nic.request_reset()

    # The event loop.

    def _timer(self, due: int) -> None:
        self._loop.run_timer(due)

    def _next_turn(self) -> None:
        _run_first(self._loop.next)

    def _when_idle(self) -> None:
        _run_first(self._loop.idle)


def _run_first(waiting: dict[Callable[[], None], None]) -> None:
    if waiting:
        callback = next(iter(waiting))
        del waiting[callback]
        callback()


class _Loop:
    """An event loop (`nicmodel.vfio_user.poll.EventLoop`) in which nothing happens unless it is told to."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.turn = 0
        self.clock: Callable[[], int] = lambda: self.now
        self.timers: list[Timer] = []
        self.next: dict[Callable[[], None], None] = {}
        self.idle: dict[Callable[[], None], None] = {}

    def run_timer(self, due: int) -> None:
        """Call the timer that is due then; if there is none, the first that is due by now."""
        self.timers = [timer for timer in self.timers if timer.callback is not None]
        chosen = [timer for timer in self.timers if timer.due == due] or sorted(
            timer for timer in self.timers if timer.due <= self.now
        )
        if chosen:
            self.timers.remove(chosen[0])
            callback, chosen[0].callback = chosen[0].callback, None
            if callback is not None:
                callback()

    def call_at(self, t_ns: int, callback: Callable[[], None]) -> Timer:
        """See `EventLoop`."""
        timer = Timer(t_ns, callback)
        self.timers.append(timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        """See `EventLoop`."""
        timer.callback = None
        if timer in self.timers:
            self.timers.remove(timer)

    def next_turn(self, callback: Callable[[], None]) -> None:
        """See `EventLoop`."""
        self.next[callback] = None

    def when_idle(self, callback: Callable[[], None]) -> None:
        """See `EventLoop`."""
        self.idle[callback] = None

    def add(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Nothing becomes readable."""

    def remove(self, fd: int) -> None:
        """There is nothing to forget."""

    def want_write(self, fd: int, on_writable: Callable[[], None] | None) -> None:
        """Nothing becomes writable."""

    def wait(self, fd: int, writable: bool, seconds: float) -> bool:
        """Nothing that is waited for comes."""
        return False


class _Wire(NoWire):
    """A wire that takes what it took when it was recorded. The replay itself calls the NIC; frames are not counted.

    Attributes:
        script: for each batch that it will be given whether all of it is taken, and how many frames are; it takes what
            is not in there.
    """

    name = "recording"

    def __init__(self, fields: dict[str, int]) -> None:
        super().__init__()
        self.headroom, self.speed = fields["headroom"], fields["speed"]
        self.offloads = Offload(fields["offloads"])
        self.script: list[tuple[bool, int]] = []

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        all_taken, count = self.script.pop(0) if self.script else (True, batch.count)
        batch.sent = batch.count if all_taken else min(batch.sent + count, batch.count)
        return batch.sent == batch.count


class _Memory:
    """Guest memory: one file, of which each mapping has a part of its own, and what has no descriptor.

    Attributes:
        fd: the file.
        answers: by address, what a client is to answer who is asked for memory without a descriptor.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, _MAPPED)
        self.answers: dict[int, bytes] = {}
        self._next = 0
        self._regions: list[tuple[int, int, int]] = []  # start, end, and where in the file

    def close(self) -> None:
        """Let go of the file."""
        os.close(self.fd)

    def place_for(self, size: int) -> int:
        """Where in the file the next region of this size is to be.

        Raises:
            RecordingError: there is no room for it.
        """
        if self._next + size > _MAPPED:
            raise RecordingError("it has more memory mapped than can be")
        return self._next

    def mapped(self, start: int, size: int, offset: int) -> None:
        """A region is there."""
        self._regions.append((start, start + size, offset))
        self._next = offset + -(-size // mmap.PAGESIZE) * mmap.PAGESIZE

    def unmapped(self, start: int, size: int) -> None:
        """Regions within this range are gone."""
        self._regions = [one for one in self._regions if not (start <= one[0] and one[1] <= start + size)]

    def forget(self) -> None:
        """All are gone."""
        self._regions.clear()
        self._next = 0
        os.ftruncate(self.fd, 0)
        os.ftruncate(self.fd, _MAPPED)

    def put(self, accesses: Iterable[Access]) -> None:
        """Have these bytes in memory; of several for one place the first."""
        for address, data, _ in reversed(list(accesses)):
            for start, end, offset in self._regions:
                low, high = max(address, start), min(address + len(data), end)
                if low < high:
                    os.pwrite(self.fd, data[low - address : high - address], offset + low - start)

    def check(self) -> None:
        """See that not too much was written.

        Raises:
            RecordingError: it was.
        """
        if os.fstat(self.fd).st_blocks * 512 > _FILLED:
            raise RecordingError(f"it takes more than {_FILLED >> 20} MiB of guest memory")

    # Memory without a descriptor (`nicmodel.vfio_user.dma.DmaMessages`).

    def dma_read(self, address: int, count: int) -> bytes:
        """What the client has answered; what it is not known to have, it refuses."""
        for start, data in self.answers.items():
            if start <= address and address + count <= start + len(data):
                return data[address - start : address - start + count]
        raise DmaFault(address, count, "not in the recording")

    def dma_write(self, address: int, data: bytes) -> None:
        """What is written there has been noted."""
