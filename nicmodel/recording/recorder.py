"""Stands around a NIC and tells of each call into it, with what the NIC does.

The NIC does not know of it, and is without it as it was: its methods that are called from outside, and its wire's that
it calls itself, are replaced by ones that note the call, on these objects; its event loop has something before it. A
replay (`nicmodel.recording.replay`) does the same, so that what a NIC does now is noted just as what it did then.

While a call lasts the NIC's clock stands still: otherwise what it does would depend on how fast it does it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from nicmodel.nic import events, notes
from nicmodel.nic.nic import Nic
from nicmodel.nic.peek import peek
from nicmodel.nic.purpose import Purpose
from nicmodel.observe.mapped_memory import MappedMemory
from nicmodel.packet.frames import Batch
from nicmodel.recording.call import LOOKED_AT, Access, Call, Sent, as_list, frames_of
from nicmodel.vfio_user.device import ClientLink
from nicmodel.vfio_user.poll import EventLoop
from nicmodel.vfio_user.protocol import PciIrq

#: What makes the arguments of a call, as JSON has them, out of those of the function.
_Arguments = Callable[..., list[Any]]

_PAGE = 12
_LONG = 1024


class Recorder:
    """The event loop of a NIC (`nicmodel.vfio_user.poll.EventLoop`), which is made with it and then given to `watch`.

    Args:
        inner: the event loop itself.

    Attributes:
        inner: the same.
        clock: the NIC's time, ns.
        began: when this was made, which is the NIC's time until it is watched.
        tell: called with each call, when it is over.
        complete: whether all accesses to memory were noted so far; one call can make too many.
    """

    def __init__(self, inner: EventLoop) -> None:
        self.inner = inner
        self.tell: Callable[[Call], None] = lambda call: None
        self.began = inner.clock()
        self.clock: Callable[[], int] = self._time
        self.complete = True
        self._nic: Nic | None = None
        self._call: Call | None = None
        self._stopped = False
        self._read_before: set[tuple[int, int, bool]] = set()  # start, end, and whether by who looks on
        self._written: dict[int, list[tuple[int, int]]] = {}  # by page, what the NIC has written in this call

    def watch(self, nic: Nic) -> None:
        """Note each call into this NIC from now on; its wire is in place, and it has not been started."""
        self._nic = nic
        nic.poller = self.inner  # for those who look on: what they ask for is no call into the NIC
        wire = nic.port.wire
        notes.begin(nic.state)
        up: _Arguments = lambda: [wire.up]  # noqa: E731
        entrance = (nic.ingress, "deliver") if nic.gatherer is None else (nic.gatherer, "take")
        for owner, attribute, name, arguments in (
            (nic, "start", "start", up),
            (nic, "_link_changed", "link", up),
            (nic, "attach", "attach", lambda client: [client.name]),
            (nic, "detach", "detach", _none),
            (nic, "dma_changed", "dma_changed", _none),
            (nic, "memory_lost", "memory_lost", _none),
            (nic, "region_read", "region_read", _all),
            (nic, "region_write", "region_write", lambda region, offset, data: [region, offset, bytes(data).hex()]),
            (nic, "messages_read", "messages_read", _none),
            (nic, "reset", "reset", _none),
            (*entrance, "receive", _batch),
            (nic.egress, "go_on", "go_on", _none),
            (nic.ingress, "inject", "inject", _batch),
            (nic.egress, "send", "send", lambda frames: _batch(Batch.of(frames))),
            (nic, "set_cable", "set_cable", _all),
            (nic, "request_reset", "request_reset", _none),
        ):
            self._stand_before(owner, attribute, name, arguments)
        for owner, attribute, replacement in (
            (nic, "attach", self._attach(nic.attach)),
            (nic.dma, "write", self._write(nic.dma.write)),
            (wire, "send", self._send(wire.send)),
        ):
            setattr(owner, attribute, replacement)
        nic.diagnostics.watch(self._hear)

    def _stand_before(self, owner: Any, attribute: str, name: str, arguments: _Arguments) -> None:
        """Note the calls of an object's method; what a NIC calls itself, in the midst of a call, is no call here."""
        function = getattr(owner, attribute)

        def noted(*given: Any, **named: Any) -> Any:
            if self._call is not None:
                return function(*given, **named)
            return self._run(name, arguments(*given, **named), partial(function, *given, **named))

        setattr(owner, attribute, noted)

    def listen(self, memory: MappedMemory) -> None:
        """What somebody who looks on reads of guest memory is noted, too."""
        read = memory.read

        def noted(address: int, count: int) -> bytes | None:
            data = read(address, count)
            if data and self._call is not None:
                self._drain()
                self._note_read(address, data, LOOKED_AT)
            return data

        memory.read = noted  # type: ignore[method-assign]

    def stop(self) -> None:
        """Note nothing any more."""
        self.tell = lambda call: None
        if self._nic is not None:
            notes.end(self._nic.state)
            self._nic.diagnostics.unwatch(self._hear)
        self._stopped = True

    # The event loop.

    def _time(self) -> int:
        if self._call is not None:
            return self._call.time
        return self.began if self._nic is None else self.inner.clock()

    @property
    def turn(self) -> int:
        """See `EventLoop`."""
        return self._call.turn if self._call is not None else self.inner.turn

    def add(self, fd: int, on_readable: Callable[[], None]) -> None:
        """See `EventLoop`."""
        self.inner.add(fd, on_readable)

    def remove(self, fd: int) -> None:
        """See `EventLoop`."""
        self.inner.remove(fd)

    def want_write(self, fd: int, on_writable: Callable[[], None] | None) -> None:
        """See `EventLoop`."""
        self.inner.want_write(fd, on_writable)

    def call_at(self, t_ns: int, callback: Callable[[], None]) -> Any:
        """See `EventLoop`."""
        return self.inner.call_at(t_ns, partial(self._run, "timer", [t_ns], callback))

    def cancel(self, timer: Any) -> None:
        """See `EventLoop`."""
        self.inner.cancel(timer)

    def next_turn(self, callback: Callable[[], None]) -> None:
        """See `EventLoop`."""
        self.inner.next_turn(_Deferred(self, "next_turn", callback))

    def when_idle(self, callback: Callable[[], None]) -> None:
        """See `EventLoop`."""
        self.inner.when_idle(_Deferred(self, "when_idle", callback))

    def wait(self, fd: int, writable: bool, seconds: float) -> bool:
        """See `EventLoop`."""
        return self.inner.wait(fd, writable, seconds)

    # Calls.

    def _run(self, name: str, arguments: list[Any], function: Callable[[], Any]) -> Any:
        if self._nic is None or self._call is not None or self._stopped:
            return function()
        notes.take(self._nic.state)  # what was done outside of any call
        call = self._call = Call(name, self.inner.clock(), self.inner.turn, arguments)
        self._read_before.clear()
        self._written.clear()
        try:
            result = function()
            if name == "region_read":
                call.answer = bytes(result)
            return result
        except OSError as error:
            call.error = error.errno or 1
            raise
        finally:
            self._drain()
            self._call = None
            self.tell(call)

    def _attach(self, attach: Callable[[ClientLink], None]) -> Callable[[ClientLink], None]:
        """What a client says of its memory and its interrupts does not pass the NIC."""

        def watched(link: ClientLink) -> None:
            table = link.dma
            self._stand_before(table, "map", "map", _mapped)
            self._stand_before(table, "unmap", "unmap", _all)
            setattr(table, "read", self._read(table.read))  # noqa: B010  (mypy minds the names of parameters)
            for index, irqs in enumerate(link.irqs):
                self._stand_before(irqs, "set_irqs", "set_irqs", partial(_irqs, index))
            vectors = link.irqs[PciIrq.MSIX]
            trigger = vectors.trigger

            def raised(vector: int) -> None:
                if self._call is not None:
                    self._call.vectors.append(vector)
                trigger(vector)

            vectors.trigger = raised  # type: ignore[method-assign]
            attach(link)

        return watched

    def _send(self, send: Callable[[Batch], bool]) -> Callable[[Batch], bool]:
        def noted(batch: Batch) -> bool:
            if self._call is None:
                return send(batch)
            first, frames = batch.sent, frames_of(batch, batch.sent)  # now: who gets them may change them
            all_taken = send(batch)
            self._call.sent.append(Sent(all_taken, tuple(frames[: batch.sent - first])))
            return all_taken

        return noted

    def _hear(self, event: events.Event) -> None:
        if isinstance(event, events.Injected) and self._call is not None:
            self._call.faults.append(event.fault)

    # Guest memory.

    def _read(self, read: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
        def noted(address: int, count: int) -> bytes:
            data = read(address, count)
            if self._call is not None:
                self._drain()
                # What is to be sent is read here, too, where the client itself has to be asked for it.
                purpose = Purpose.TRANSMIT if self._wanted(address) else Purpose.COMMAND
                self._note_read(address, data, purpose)
            return data

        return noted

    def _wanted(self, address: int) -> bool:
        """Whether the packet path wants what is there (`nicmodel.nic.messages`)."""
        assert self._nic is not None
        state = self._nic.state
        return bool((state.wanted["address"][: int(state.device["wanted"][0])] == address).any())

    def _write(self, write: Callable[..., None]) -> Callable[..., None]:
        def noted(address: int, data: bytes, purpose: Purpose = Purpose.ANSWER) -> None:
            write(address, data, purpose)
            if self._call is not None:
                self._drain()
                self._note_write(address, data, purpose)

        return noted

    def _drain(self) -> None:
        """Note what compiled code has noted."""
        assert self._nic is not None
        state = self._nic.state
        later: list[list[int]] = []  # start, end, purpose: completions, mostly one behind the other
        for address, count, written, purpose, offset in notes.take(state):
            if offset == notes.LATER:
                if later and later[-1][1:] == [address, purpose]:
                    later[-1][1] += count
                else:
                    later.append([address, address + count, purpose])
                continue
            data = state.noted[offset : offset + count].tobytes()
            if written:
                self._note_write(address, data, purpose)
            else:
                self._note_read(address, data, purpose)
        for start, end, purpose in later:
            self._note_write(start, peek(state.memory_map, start, end - start) or b"", purpose)
        if state.device["notes_lost"][0]:
            self.complete = False

    def _note_read(self, address: int, data: bytes, purpose: int) -> None:
        assert self._call is not None
        end = address + len(data)
        seen = self._read_before
        if (address, end, False) in seen or (address, end, purpose == LOOKED_AT) in seen:
            return
        seen.add((address, end, purpose == LOOKED_AT))
        if self._written:
            for page in range(address >> _PAGE, (end >> _PAGE) + 1):
                if any(start < end and address < stop for start, stop in self._written.get(page, ())):
                    return
        _extend(self._call.reads, address, data, purpose)

    def _note_write(self, address: int, data: bytes, purpose: int) -> None:
        assert self._call is not None
        for page in range(address >> _PAGE, (address + len(data) >> _PAGE) + 1):
            self._written.setdefault(page, []).append((address, address + len(data)))
        _extend(self._call.writes, address, data, int(purpose))


@dataclass(frozen=True)
class _Deferred:
    """A call of the event loop's; equal if the callbacks are, so that the loop can tell what it was told before."""

    recorder: Recorder
    name: str
    callback: Callable[[], None]

    def __call__(self) -> None:
        self.recorder._run(self.name, [], self.callback)


def _extend(accesses: list[Access], address: int, data: bytes, purpose: int) -> None:
    """Add an access; where it goes on with the last, they are one, unless that is long already."""
    if accesses:
        before = accesses[-1]
        end = before.address + len(before.data)
        if end == address and before.purpose == purpose and len(before.data) < _LONG:
            accesses[-1] = Access(before.address, before.data + data, purpose)
            return
    accesses.append(Access(address, data, int(purpose)))


def _none(*_given: Any) -> list[Any]:
    return []


def _all(*given: Any) -> list[Any]:
    return list(given)


def _batch(batch: Batch) -> list[Any]:
    return [batch.used, [as_list(one) for one in frames_of(batch)]]


def _mapped(start: int, size: int, *, fd: int | None, offset: int, readable: bool, writable: bool) -> list[Any]:
    return [start, size, fd is not None, readable, writable]


def _irqs(index: int, flags: int, start: int, count: int, data: Any, fds: Any) -> list[Any]:
    return [index, flags, start, count, bytes(data).hex(), len(fds)]
