"""Looks at how a driver has payload wait on the NIC, and what it asks for.

What a driver may ask for are payloads that a completion has told of and no request has ended: `_Queue.told`. A payload
that the NIC has dropped for its time-out is among them, since a driver need not know.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.commands import Inner
from nicmodel.gvnic.descriptors import RX_COMPLETION
from nicmodel.gvnic.options.check import OptionCheck, Scene
from nicmodel.gvnic.options.deferred.declarations import (
    MAX_PLACEMENT_RING,
    OPTION,
    PLACEMENT_COMPLETION,
    PLACEMENT_REQUEST,
    RX_DEFERRED,
    DeferFlag,
    PlacementStatus,
)
from nicmodel.gvnic.options.deferred.events import Placed, Placing
from nicmodel.gvnic.options.deferred.payload import GENERATION_SHIFT
from nicmodel.gvnic.options.segments import Segment, Segments, after
from nicmodel.nic import events
from nicmodel.nic.state import MAX_SEGMENTS
from nicmodel.observe.checking.rings import Ring
from nicmodel.observe.mapped_memory import MappedMemory
from nicmodel.vfio_user.dma import READABLE, WRITABLE

if TYPE_CHECKING:
    from nicmodel.gvnic.contract.admin import Admin

#: Payloads of a queue that are remembered, and TCP flows.
_MAX_TOLD, _MAX_FLOWS = 1 << 16, 1024

_ALL_FLAGS = int(sum(DeferFlag))
_ENDED = (PlacementStatus.PLACED, PlacementStatus.DROPPED, PlacementStatus.NOT_FOUND)

#: Addresses and ports of a flow's two ends, the sender's first.
_Flow = tuple[tuple[bytes, int], tuple[bytes, int]]


class _Descriptor(NamedTuple):
    """A descriptor of the placement ring: its entry, and its fields."""

    place: int
    address: int
    length: int
    handle: int
    drop: int


@dataclass
class _Waiting:
    """A payload that a completion has told of.

    Attributes:
        length: its bytes.
        segment: the segment that has brought it, if nothing else can have brought the same bytes of its flow.
    """

    length: int
    segment: Segment | None = None


@dataclass
class _Queue:
    """A receive queue with deferred placement.

    Attributes:
        copy: the placement ring as it was posted, shape (entries, 2).
        tail: as its last doorbell said.
        looked: up to where requests have been looked at.
        completion: up to where completions of requests have been.
        told: the payloads that may be asked for, by handle, oldest first.
        asked: those of them that are: a request is posted, and not completed.
        whole: nothing of `told` was missed or had to be forgotten.
        flows: the end of the latest segment of each TCP flow.
    """

    copy: npt.NDArray[np.uint64]
    tail: int = 0
    looked: int = 0
    completion: int = 0
    told: OrderedDict[int, _Waiting] = field(default_factory=OrderedDict)
    asked: set[int] = field(default_factory=set)
    whole: bool = True
    flows: dict[_Flow, int] = field(default_factory=dict)


class DeferredCheck(OptionCheck):
    """See `OptionCheck`."""

    option = OPTION

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._memory: MappedMemory = scene.memory
        self._queues: dict[int, _Queue] = {}
        self._ended: set[int] = set()
        self._segments = Segments()
        self._kept = self._count_kept()

    def checks(self) -> Mapping[Inner, Callable[[np.void, Admin], Callable[[], object] | None]]:
        """See `OptionCheck`."""
        return {Inner.CONFIGURE_DEFERRED_PLACEMENT: self._configure}

    def forget(self, queue: int | None = None) -> None:
        """See `OptionCheck`."""
        gone = tuple(self._queues) if queue is None else (queue,)
        for number in gone:
            if self._queues.pop(number, None) is not None:
                self._ended.add(number)

    # The command.

    def _configure(self, p: np.void, admin: Admin) -> Callable[[], object] | None:
        number = int(p["queue_id"])
        record, rings = self._nic.state.rx[number], admin.rings_named(p)
        if not record["header_size"]:
            admin.find("DEF-001", "the queue has no header split")
        elif record["deferred"]:
            admin.find("DEF-002", "the queue has a placement ring already")
        elif any(not self._is_ring(ring) for ring in rings):
            admin.find("DEF-003", f"rings of {p['entries']} entries at {', '.join(hex(one.address) for one in rings)}")
        elif (found := self._fault_of(rings)) is not None:
            admin.find("DEF-004", found)
        elif admin.memory_fits(p):
            raw = self._memory.read(rings[1].address, rings[1].size) or b""
            written = np.frombuffer(raw, "<u8") >> np.uint64(PLACEMENT_COMPLETION.generation.shift) & np.uint64(1)
            if written.any():
                admin.find("DEF-005", f"entry {written.argmax()} of the {rings[1].name} looks like a completion")
            if int(p["flags"]) & ~_ALL_FLAGS:
                admin.find("DEF-006", f"flags {int(p['flags']):#x}")
            return lambda: self._begin(number, rings)
        return None

    def _is_ring(self, ring: Ring) -> bool:
        entries = ring.entries
        return 0 < entries <= MAX_PLACEMENT_RING and not entries & entries - 1 and not ring.address % ring.entry_size

    def _fault_of(self, rings: list[Ring]) -> str | None:
        """Why the memory of rings cannot be used."""
        taken = self._scene.rings.all()
        for number, ring in enumerate(rings):
            if not self._memory.mapped(ring.address, ring.size, ring.right):
                return f"the {ring.name} at {ring.address:#x} is not all in memory"
            for owner, other in [*taken, *(("the same command", one) for one in rings[:number])]:
                if ring.overlaps(other.address, other.size):
                    return f"the {ring.name} shares memory with the {other.name} of {owner}"
        return None

    def _begin(self, number: int, rings: list[Ring]) -> None:
        self._scene.rings.extend(f"rx{number}", rings)
        self._queues[number] = _Queue(np.zeros((rings[0].entries, 2), "<u8"))
        self._ended.discard(number)

    # Requests.

    def doorbell(self, index: int, value: int) -> bool:
        """See `OptionCheck`."""
        number = index - self._nic.doorbells.placement(0)
        if number not in range(self._nic.profile.queues):
            return False
        name, report = f"rx{number}", self._scene.journal.report
        if not self._nic.state.rx[number]["deferred"]:
            if number in self._ended:
                report("DEF-007", "the doorbell of a placement ring is written whose queue has ended", name)
            return number in self._ended
        queue, ring = self._queue(number), self._nic.state.placement_rings[number]
        entries, head = int(ring["entries"]), int(ring["head"])
        if value >= entries:
            report("DEF-008", f"the doorbell of the placement ring is set to {value} of {entries} entries", name)
            return True
        waiting, new = (queue.tail - head) % entries, (value - queue.tail) % entries
        self._scene.journal.note(name, "placement doorbell", tail=value, before=queue.tail, waiting=waiting)
        if new > entries - 1 - waiting:
            what = f"{new} requests are posted where {entries - 1 - waiting} have room"
            report("DEF-009", what, name, tail=value, before=queue.tail, head=head, entries=entries)
            del self._queues[number]  # what they ask for is anybody's guess
            self._queue(number).tail = self._queue(number).looked = value
            return True
        places = np.arange(queue.tail, queue.tail + new) % entries
        now = self._read(number, places)
        queue.tail = value
        if now is not None:
            queue.copy[places] = now
            self._look_at_requests(number, queue)
        elif new:
            queue.looked, queue.whole = value, False
            if not self._memory.mapped(int(ring["request_ring"]), 1, READABLE):
                report("DMA-001", "the placement ring is no longer in memory", name)
        return True

    def _queue(self, number: int) -> _Queue:
        """What is known of a queue; of one that is new to the checker, no more than where its rings are."""
        if number not in self._queues:
            ring = self._nic.state.placement_rings[number]
            queue = self._queues[number] = _Queue(np.zeros((int(ring["entries"]), 2), "<u8"), whole=False)
            queue.tail = queue.looked = int(ring["tail"])
            queue.completion = int(ring["completion_index"])
            now = self._read(number, np.arange(len(queue.copy)))
            if now is not None:
                queue.copy[:] = now
        return self._queues[number]

    def _read(self, number: int, places: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64] | None:
        """Entries of a placement ring that follow each other, as they are; None if they are not in memory here."""
        ring, size = self._nic.state.placement_rings[number], PLACEMENT_REQUEST.size
        first = int(places[0]) if len(places) else 0
        raw = self._memory.entries(int(ring["request_ring"]), int(ring["entries"]), size, first, len(places))
        return None if raw is None else np.frombuffer(raw, "<u8").reshape(-1, 2)

    def _look_at_requests(self, number: int, queue: _Queue) -> None:
        """Look at each request that has been posted since the last time, to its end."""
        head = int(self._nic.state.placement_rings[number]["head"])
        spans = [span for request in self._requests(queue, head, queue.looked) for span in _spans(request)]
        for request in self._requests(queue, queue.looked, queue.tail):
            queue.looked = (request[-1].place + 1) % len(queue.copy)
            self._look_at(number, queue, request, spans)
            spans += _spans(request)

    def _requests(self, queue: _Queue, first: int, end: int) -> Iterator[list[_Descriptor]]:
        """The requests in entries of the ring, without what has no end yet."""
        found: list[_Descriptor] = []
        for place in range(first, first + (end - first) % len(queue.copy)):
            raw = queue.copy[place % len(queue.copy)].tobytes()
            address, handle, length, drop, ended = PLACEMENT_REQUEST.decode(raw).values()
            found.append(_Descriptor(place % len(queue.copy), address, length, handle, drop))
            if ended:
                yield found
                found = []

    def _look_at(
        self, number: int, queue: _Queue, request: list[_Descriptor], others: list[tuple[int, int, int]]
    ) -> None:  # fmt: skip
        """Look at a request; `others` are the places of those before it: start, end, entry."""
        first, handle = request[0], request[0].handle

        def find(rule: str, what: str, place: int = first.place, **evidence: Any) -> None:
            fields = PLACEMENT_REQUEST.decode(queue.copy[place].tobytes())
            text = f"entry {place} of the placement ring: {what}"
            self._scene.journal.report(rule, text, f"rx{number}", request=fields, **evidence)

        for one in request:
            if int.from_bytes(queue.copy[one.place].tobytes(), "little") & PLACEMENT_REQUEST.reserved:
                find("DEF-011", "reserved bits are set", one.place)
                break
        if len(request) > MAX_SEGMENTS or any(one.handle != handle for one in request):
            handles = len({one.handle for one in request})
            find("DEF-012", f"a request of {len(request)} descriptors for {handles} handles")
            return
        payload, again = queue.told.get(handle), handle in queue.asked
        queue.asked.add(handle)
        if again or payload is None:
            if again or queue.whole:
                what = "is asked for already" if again else "is none that may be asked for"
                find("DEF-013", f"payload {handle:#x} {what}")
            return
        if first.drop:
            return
        if (total := sum(one.length for one in request)) != payload.length:
            find("DEF-014", f"{total} bytes for a payload of {payload.length}")
            return
        for start, end, place in _spans(request):
            if not self._memory.mapped(start, end - start, WRITABLE):
                find("DEF-015", f"{end - start} bytes at {start:#x} are not in memory to write", place)
                return
            use = self._scene.use_of(start, end - start)
            clash = next((other for other in others if other[0] < end and start < other[1]), None)
            if use is None and clash is not None:
                use = f"the piece in entry {clash[2]}"
            if use is not None:
                find("DEF-016", f"the piece shares memory with {use}", place)
                return
            others = [*others, (start, end, place)]

    # What the device does.

    def see(self, event: events.Event) -> None:
        """See `OptionCheck`."""
        match event:
            case Placing(number):
                self._before(number, self._queue(number))
            case Placed(number):
                self._after(number, self._queue(number))
            case events.Received(batch, outcomes):
                self._received(batch, outcomes)
            case events.Sending(batch):
                self._sending(batch)

    def _before(self, number: int, queue: _Queue) -> None:
        """Requests are about to be fetched: they must be as they were posted."""
        head = int(self._nic.state.placement_rings[number]["head"])
        places = np.arange(head, head + (queue.tail - head) % len(queue.copy)) % len(queue.copy)
        now = self._read(number, places)
        if now is None or (now == queue.copy[places]).all():
            return
        changed = int(np.flatnonzero((now != queue.copy[places]).any(axis=1))[0])
        was, is_now = (PLACEMENT_REQUEST.decode(one.tobytes()) for one in (queue.copy[places[changed]], now[changed]))
        what = f"entry {places[changed]} of the placement ring has been changed"
        self._scene.journal.report("DEF-010", what, f"rx{number}", request=was, now=is_now)
        queue.copy[places] = now

    def _after(self, number: int, queue: _Queue) -> None:
        """Requests may have been executed: what has become of the payloads."""
        ring = self._nic.state.placement_rings[number]
        entries = len(queue.copy)
        count = (int(ring["completion_index"]) - queue.completion) % entries
        first, queue.completion = queue.completion, int(ring["completion_index"])
        size = PLACEMENT_COMPLETION.size
        raw = self._memory.entries(int(ring["completion_ring"]), entries, size, first, count)
        if raw is None:
            queue.whole = False
            queue.asked.clear()
            return
        for place in range(count):
            completion = raw[place * size : (place + 1) * size]
            handle = PLACEMENT_COMPLETION.handle.get(completion)
            queue.asked.discard(handle)
            if PLACEMENT_COMPLETION.status.get(completion) in _ENDED:
                queue.told.pop(handle, None)
        if int(ring["head"]) == queue.tail:  # those without a completion are lost, with a ring that was out of reach
            queue.asked.clear()

    def _count_kept(self) -> int:
        return int(self._nic.state.placement_rings["kept"].sum())

    def _received(self, batch: Any, outcomes: npt.NDArray[np.void]) -> None:
        """What was kept is known by the NIC's pages: the newest of them are new."""
        state = self._nic.state
        new, self._kept = self._count_kept() - self._kept, self._count_kept()
        page = int(state.nic_memory["newest"][0])
        fresh = []
        for _ in range(max(new, 0)):
            if page < 0:
                break
            entry = state.nic_pages[page]
            fresh.append(
                (int(entry["queue"]), int(entry["generation"]) << GENERATION_SHIFT | page, int(entry["length"]))
            )
            page = int(entry["older"])
        for number, handle, length in reversed(fresh):
            queue = self._queue(number)
            queue.told[handle] = _Waiting(length)
            queue.told.move_to_end(handle)
            if len(queue.told) > _MAX_TOLD:
                queue.told.popitem(last=False)
                queue.whole = False
        if self._queues:
            self._follow(batch, outcomes)

    # What is acknowledged.

    def _follow(self, batch: Any, outcomes: npt.NDArray[np.void]) -> None:
        """Note which segments have brought payloads that wait, and whose bytes nothing else has brought."""
        for number in np.unique(outcomes["queue"][batch.count :][outcomes["completions"][batch.count :] > 0]).tolist():
            if number in self._queues:  # of the backlog: bytes that cannot be looked at any more
                for payload in self._queues[number].told.values():
                    payload.segment = None
        for number, segment in self._segments.received(batch, outcomes):
            outcome = outcomes[number]
            queue = self._queues.get(int(outcome["queue"]))
            if queue is not None and outcome["completions"] and segment.length:
                self._follow_one(queue, segment, self._payload_of(queue, outcome))

    def _payload_of(self, queue: _Queue, outcome: np.void) -> _Waiting | None:
        """The payload that a packet has left on the NIC, as its completion says."""
        record = self._nic.state.rx[outcome["queue"]]
        place = int(record["completion_ring"]) + int(outcome["completion"]) * RX_COMPLETION.size
        raw = self._memory.read(place, RX_COMPLETION.size)
        if raw is None or not RX_DEFERRED.deferred.get(raw):
            return None
        return queue.told.get(RX_DEFERRED.handle.get(raw))

    def _follow_one(self, queue: _Queue, segment: Segment, payload: _Waiting | None) -> None:
        flow = segment.source, segment.destination
        if payload is not None:
            segment = segment._replace(length=payload.length)  # of all segments that were merged
        seen = queue.flows.get(flow)
        if seen is None:  # what came before is not known
            if len(queue.flows) < _MAX_FLOWS:
                queue.flows[flow] = segment.end
            return
        if not after(seen, segment.sequence):
            if payload is not None:
                payload.segment = segment
        else:  # bytes that have come another time
            for other in queue.told.values():
                was = other.segment
                if was is not None and (was.source, was.destination) == flow and after(segment.end, was.sequence):
                    other.segment = None
        if after(segment.end, seen):
            queue.flows[flow] = segment.end

    def _sending(self, batch: Any) -> None:
        """A frame that acknowledges bytes which only wait on the NIC: TCP has been given their header."""
        waiting = {
            (one.segment.destination, one.segment.source): (number, handle, one.segment)
            for number, queue in self._queues.items()
            for handle, one in reversed(queue.told.items())  # of each flow the oldest
            if one.segment is not None and self._is_kept(handle)
        }
        if not waiting:
            return
        for sent in self._segments.sent(batch):
            number, handle, segment = waiting.get((sent.source, sent.destination), (0, 0, None))
            if segment is not None and sent.acknowledged is not None and after(sent.acknowledged, segment.sequence):
                waits = f"payload {handle:#x}, which waits, begins at {segment.sequence}"
                what = f"bytes up to {sent.acknowledged} are acknowledged, but {waits}"
                self._scene.journal.report("DEF-017", what, f"rx{number}", length=segment.length)

    def _is_kept(self, handle: int) -> bool:
        """Whether the NIC has the payload."""
        page = self._nic.state.nic_pages[handle & (1 << GENERATION_SHIFT) - 1]
        return bool(page["queue"] >= 0 and page["generation"] == handle >> GENERATION_SHIFT)


def _spans(request: list[_Descriptor]) -> list[tuple[int, int, int]]:
    """Where the pieces of a request go: start, end, entry. What is dropped goes nowhere."""
    if request[0].drop:
        return []
    return [(one.address, one.address + one.length, one.place) for one in request if one.length]
