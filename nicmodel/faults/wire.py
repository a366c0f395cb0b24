"""Faults of the wire: frames lost, damaged, doubled, out of order, late, too many; a cable that comes and goes.

A `FaultyWire` stands in front of a NIC's wire from the beginning. Without faults it hands batches through; with them
it takes them apart. An aggregate (a TSO packet on its way out, what a tap delivers whole) is cut into the frames that
a medium would carry, their checksums complete, so that one lost frame is one frame.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.faults.fault import Fault, Injection
from nicmodel.faults.kinds import (
    WireCorrupt,
    WireDelay,
    WireDrop,
    WireDuplicate,
    WireFault,
    WireFlap,
    WireRate,
    WireReorder,
)
from nicmodel.nic.seams import Seams
from nicmodel.packet.checksum import complete
from nicmodel.packet.frames import Batch, FrameFlag, Gso
from nicmodel.packet.headers import HEADERS
from nicmodel.packet.parse import parse
from nicmodel.packet.segment import segment_header
from nicmodel.vfio_user.poll import Timer
from nicmodel.wire.wire import Patient, Poller, Wire

#: Frames on their way out that a lane holds before the NIC has to wait, if no fault says how many.
_ROOM = 4096
_ETHERNET = 14


class WireFaults:
    """The faults of a NIC's wire, which it puts a `FaultyWire` in front of."""

    kinds = (WireDrop, WireCorrupt, WireDuplicate, WireReorder, WireDelay, WireRate, WireFlap)

    def __init__(self, nic: Seams) -> None:
        self._nic = nic
        self._wire = FaultyWire(nic.wire)
        nic.port.wire = self._wire
        self._flaps: set[Injection] = set()
        self._pulled: Timer | None = None  # while the cable is out: when it is plugged in again

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        self._wire.update([one for one in active if not isinstance(one.fault, WireFlap)])
        flaps = {one for one in active if isinstance(one.fault, WireFlap)}
        begun, ended, self._flaps = flaps - self._flaps, self._flaps - flaps, flaps
        for injection in begun:
            assert isinstance(injection.fault, WireFlap)
            self._pull(injection, injection.fault)
        if any(not one.exhausted for one in ended):  # the last of a number of flaps lasts as long as the others
            self._plug()

    def _pull(self, injection: Injection, fault: WireFlap) -> None:
        if injection not in self._flaps:
            return
        injection.after(fault.period, "period", partial(self._pull, injection, fault))
        if injection.hit():
            if self._pulled is not None:
                self._nic.poller.cancel(self._pulled)
            self._nic.set_cable(False)
            self._pulled = self._nic.poller.call_at(self._nic.clock() + round(fault.down * 1e9), self._plug)

    def _plug(self) -> None:
        if self._pulled is not None:
            self._nic.poller.cancel(self._pulled)
            self._pulled = None
            self._nic.set_cable(True)


class FaultyWire:
    """A wire behind which there is another.

    Args:
        inner: the wire.
    """

    def __init__(self, inner: Wire) -> None:
        self._inner = inner
        self.name, self.headroom, self.offloads, self.speed = inner.name, inner.headroom, inner.offloads, inner.speed
        self._coming = _Lane("rx", self._hand_in)
        self._leaving = _Lane("tx", self._hand_out)
        self._receive: Callable[[Batch], None] = lambda batch: None
        self._writable: Callable[[], None] = lambda: None
        # What the inner wire has not taken yet, and whether the NIC waits for room.
        self._out: Batch | None = None
        self._nic_waits = False

    @property
    def up(self) -> bool:
        """See `Wire.up`."""
        return self._inner.up

    @up.setter
    def up(self, up: bool) -> None:
        self._inner.up = up

    @property
    def counters(self) -> dict[str, int]:
        """See `Wire.counters`; besides them the frames for which a fault had no room left."""
        lost = self._coming.lost
        return self._inner.counters | {"fault_overflow": lost} if lost else self._inner.counters

    def start(
        self,
        poller: Poller,
        receive: Callable[[Batch], None],
        writable: Callable[[], None],
        link_changed: Callable[[], None],
    ) -> None:
        """See `Wire.start`."""
        self._receive, self._writable = receive, writable
        self._coming.poller = self._leaving.poller = poller
        self._inner.start(poller, self._arrive, self._inner_writable, link_changed)

    def send(self, batch: Batch) -> bool:
        """See `Wire.send`."""
        if not self._leaving.busy and self._out is None:
            return self._inner.send(batch)
        while batch.sent < batch.count and self._leaving.room > 0:
            self._leaving.take(batch, batch.sent)
            batch.sent += 1
        self._leaving.move()
        self._nic_waits = batch.sent < batch.count
        return not self._nic_waits

    def rest(self, *, room: bool) -> None:
        """See `Patient.rest`."""
        if isinstance(self._inner, Patient):
            self._inner.rest(room=room)

    def go_on(self) -> None:
        """See `Patient.go_on`."""
        if isinstance(self._inner, Patient):
            self._inner.go_on()

    def stop(self) -> None:
        """See `Wire.stop`."""
        for lane in (self._coming, self._leaving):
            lane.stop()
        self._inner.stop()

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on; frames that are held go their way when their time comes."""
        for lane in (self._coming, self._leaving):
            lane.update([one for one in active if _direction(one.fault) in (lane.direction, "both")])

    def _arrive(self, batch: Batch) -> None:
        if not self._coming.busy:
            self._receive(batch)
            return
        for number in range(batch.count):
            self._coming.take(batch, number)
        self._coming.move()

    def _hand_in(self, frames: list[bytes]) -> bool:
        self._receive(Batch.of(frames))
        return True

    def _hand_out(self, frames: list[bytes]) -> bool:
        """Whether more may come at once."""
        if self._out is None:
            self._out = Batch.of(frames, headroom=self.headroom)
            if not self._inner.send(self._out):
                return False
            self._out = None
        if self._nic_waits and self._leaving.room > 0:
            self._nic_waits = False
            self._writable()
        return True

    def _inner_writable(self) -> None:
        if self._out is not None:
            if not self._inner.send(self._out):
                return
            self._out = None
            self._leaving.move()
        self._writable()


def _direction(fault: Fault) -> Literal["rx", "tx", "both"]:
    assert isinstance(fault, (WireFault, WireRate))
    return fault.direction


class _Waiting(NamedTuple):
    """A frame in a lane, in the order in which it leaves."""

    due: int
    serial: int
    frame: bytes


class _Lane:
    """One direction: frames in, their fate decided, frames out when they are due.

    Args:
        direction: "rx" or "tx".
        hand_on: takes frames that are due; False: no more before `move` is called again.

    Attributes:
        lost: frames from the wire that found no room.
    """

    poller: Poller

    def __init__(self, direction: Literal["rx", "tx"], hand_on: Callable[[list[bytes]], bool]) -> None:
        self.direction = direction
        self._hand_on = hand_on
        self._active: Sequence[Injection] = ()
        self._waiting: list[_Waiting] = []
        self._serial = 0
        self._in_order = 0  # when the last frame that nothing may overtake is due
        self._line_free: dict[int, int] = {}  # when a slow line has sent what it was given, by injection
        self._timer: object = None
        self.lost = 0

    @property
    def busy(self) -> bool:
        """Whether frames have to come here."""
        return bool(self._active or self._waiting)

    @property
    def room(self) -> int:
        """Frames that may still be put in."""
        limits = [one.fault.limit for one in self._active if isinstance(one.fault, WireRate)]
        return min(limits, default=_ROOM) - len(self._waiting)

    def update(self, active: Sequence[Injection]) -> None:
        """These faults are at work from now on."""
        self._active = active
        numbers = {one.number for one in active}
        self._line_free = {number: due for number, due in self._line_free.items() if number in numbers}
        if active:
            load()

    def stop(self) -> None:
        """Forget all frames."""
        self._active, self._waiting = (), []
        if self._timer is not None:
            self.poller.cancel(self._timer)

    def take(self, batch: Batch, number: int) -> None:
        """Decide on a batch's frame, which is copied."""
        for frame in _on_a_medium(batch, number):
            self._decide(bytearray(frame))

    def move(self) -> None:
        """Hand on what is due."""
        if self._timer is not None:
            self.poller.cancel(self._timer)
            self._timer = None
        now = self.poller.clock()
        due = []
        while self._waiting and self._waiting[0].due <= now:
            due.append(heapq.heappop(self._waiting).frame)
        if due and not self._hand_on(due):
            return
        if self._waiting and self._timer is None:
            self._timer = self.poller.call_at(self._waiting[0].due, self.move)

    def _decide(self, frame: bytearray) -> None:
        due = now = self.poller.clock()
        copies = 1
        overtaken = False
        details = {"direction": self.direction, "length": len(frame)}
        for injection in self._active:
            fault = injection.fault
            if isinstance(fault, WireDrop) and injection.hit(**details):
                return
            if isinstance(fault, WireCorrupt) and len(frame) > _ETHERNET and injection.chance():
                bit = injection.random.randrange(8 * _ETHERNET, 8 * len(frame))
                frame[bit // 8] ^= 1 << bit % 8
                injection.strike(**details, bit=bit)
            elif isinstance(fault, WireDuplicate) and injection.hit(**details):
                copies += 1
            elif isinstance(fault, WireDelay) and injection.hit(**details, delay=fault.delay):
                due += round(fault.delay * 1e9)
            elif isinstance(fault, WireReorder) and injection.hit(**details, delay=fault.delay):
                due += round(fault.delay * 1e9)
                overtaken = True
            elif isinstance(fault, WireRate):
                if self.direction == "rx" and self.room <= 0:
                    injection.strike(**details)
                    return
                start = max(due, self._line_free.get(injection.number, now))
                due = self._line_free[injection.number] = start + 8_000_000_000 * len(frame) // max(1, fault.rate)
        if self.direction == "rx" and self.room <= 0:
            self.lost += copies
            return
        if not overtaken:
            due = self._in_order = max(due, self._in_order)
        for _ in range(copies):
            self._serial += 1
            heapq.heappush(self._waiting, _Waiting(due, self._serial, bytes(frame)))


def load() -> None:
    """Have the compiled functions at hand; the first time ever they are compiled, for which a client would not wait."""
    frame = np.zeros(64, np.uint8)
    headers = np.zeros(1, HEADERS)
    parse(frame, 0, len(frame), headers)
    segment_header(frame, 0, headers, 0, 0, 0, True, True)
    complete(frame, 0, headers, False)


def _on_a_medium(batch: Batch, number: int) -> Iterator[bytes]:
    """The frames that a batch's frame stands for, as they are on a medium: cut, and with whole checksums."""
    record = batch.frames[number]
    start, length = int(record["offset"]), int(record["length"])
    whole: npt.NDArray[np.uint8] = batch.data[start : start + length].copy()
    if record["gso"] == Gso.NONE and not record["flags"] & FrameFlag.NEEDS_CSUM:
        yield whole.tobytes()
        return
    headers = np.zeros(1, HEADERS)
    parse(whole, 0, length, headers)
    if record["gso"] == Gso.NONE:
        complete(whole, 0, headers, False)
        yield whole.tobytes()
        return
    header, size = int(headers[0]["payload"]), int(record["segment"])
    payload = int(headers[0]["length"]) - header
    if not size or payload <= 0:
        return  # no wire makes such a frame
    for place in range(0, payload, size):
        piece = min(size, payload - place)
        frame = np.concatenate((whole[:header], whole[header + place : header + place + piece]))
        segment_header(frame, 0, headers, place, piece, place // size, place == 0, place + piece == payload)
        complete(frame, 0, headers, False)
        yield frame.tobytes()
