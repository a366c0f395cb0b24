"""Deferred placement: payload stays in memory of the NIC's until the driver says where it goes. An option of this
model; what a driver has to do is in docs/options.md.

On a queue with the option a packet that is split at its header delivers the header at once, as always. Its payload is
kept in pages of the NIC's own memory, and the completion has a handle instead of payload. The driver then writes
placement requests: the handle and a list of addresses, or that the payload is to be dropped. A payload that nobody asks
for in time is dropped, so that a driver that forgets some does not use the memory up.

The functions that are called for a packet are compiled, as the packet path is.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.descriptors import PLACEMENT_COMPLETION, PLACEMENT_REQUEST, PlacementStatus
from nicmodel.gvnic.state import MAX_SEGMENTS, NIC_PAGE, SETTINGS, State
from nicmodel.jit.addresses import copy, load_u64, publish_u64
from nicmodel.jit.compiled import compiled, i64, inlined, u64
from nicmodel.nic import events
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.dma import READ, WRITE, accessible, fault, locate, write
from nicmodel.nic.state import Purpose, Records
from nicmodel.vfio_user.poll import Budget, EventLoop, Timer

#: `RX_QUEUE.deferred`: 0 is off. A payload for which there is no room goes to the queue's buffers, or its packet is
#: dropped.
ELSE_AT_ONCE, ELSE_DROP = 1, 2

#: The most entries of a placement ring.
MAX_PLACEMENT_RING = 4096

#: Bytes that are placed in one turn of the event loop, those of the requests included.
_BYTES_PER_TURN = 1 << 22

#: `expire` found nothing that is kept.
_NEVER = np.iinfo(np.int64).max

_PAYLOAD = int(Purpose.PAYLOAD)
_DESCRIPTOR = int(Purpose.DESCRIPTOR)
_COMPLETION = int(Purpose.COMPLETION)
_PLACED, _DROPPED, _NOT_FOUND, _BAD_REQUEST, _DMA_FAULT = (int(status) for status in PlacementStatus)

_REQUEST_SIZE = PLACEMENT_REQUEST.size
_ADDRESS = u64(PLACEMENT_REQUEST.address.bit // 8)
# The other fields of a request are in its second word.
_SECOND = u64(8)
_HANDLE_SHIFT, _HANDLE_MASK = PLACEMENT_REQUEST.handle.shift, PLACEMENT_REQUEST.handle.mask
_LENGTH_SHIFT, _LENGTH_MASK = PLACEMENT_REQUEST.length.shift, PLACEMENT_REQUEST.length.mask
_DROP_SHIFT, _END_SHIFT = PLACEMENT_REQUEST.drop.shift, PLACEMENT_REQUEST.end_of_request.shift

_REPLY_SIZE = PLACEMENT_COMPLETION.size
_REPLY_HANDLE, _REPLY_HEAD = PLACEMENT_COMPLETION.handle.shift, PLACEMENT_COMPLETION.head.shift
_REPLY_STATUS, _REPLY_GENERATION = PLACEMENT_COMPLETION.status.shift, PLACEMENT_COMPLETION.generation.shift

_GENERATION_SHIFT = 16
_PAGE_MASK = (1 << _GENERATION_SHIFT) - 1


@compiled
def has_room(state: State, queue: int, count: int) -> bool:
    """Whether `count` bytes of payload can be kept for a receive queue now; one that cannot is counted."""
    placement = state.placement_rings[queue]
    pages = (count + NIC_PAGE - 1) // NIC_PAGE
    if pages > state.nic_memory[0].free_pages or placement.pages + pages > placement.budget:
        placement.full += 1
        return False
    return True


@compiled
def keep(
    state: State, queue: int, data: npt.NDArray[np.uint8], frames: Records, outcomes: Records, number: int,
    payload: int, segment: int, position: int, contiguous: int, count: int, now: int,
) -> int:  # fmt: skip
    """Keep a payload of `count` bytes, for which there is room (`has_room`).

    Args:
        state: the device.
        queue: the receive queue.
        data: the batch's bytes.
        frames: its records.
        outcomes: of its frames; `next` chains those of one packet.
        number: the frame from which the payload goes on after its first piece.
        payload: where in each of those frames it begins, bytes from the frame's start.
        segment: bytes of it in each.
        position: address in this process of its first piece.
        contiguous: bytes of that piece.
        count: bytes in all.
        now: time in ns.

    Returns:
        The handle.
    """
    memory = state.nic_memory[0]
    placement = state.placement_rings[queue]
    base = u64(state.nic_bytes.ctypes.data)
    first = i64(memory.free)
    page = first
    used = 0
    room = 0
    left = count
    while left > 0:
        if contiguous == 0:
            position = u64(data.ctypes.data) + u64(frames[number].offset) + u64(payload)
            contiguous = segment
            number = i64(outcomes[number].next)
        if room == 0:
            page = i64(memory.free)
            memory.free = state.nic_pages[page].next
            used += 1
            room = NIC_PAGE
        piece = min(left, contiguous, room)
        copy(base + u64(page * NIC_PAGE + NIC_PAGE - room), position, piece)
        position += u64(piece)
        contiguous -= piece
        room -= piece
        left -= piece
    state.nic_pages[page].next = -1
    memory.free_pages -= used

    entry = state.nic_pages[first]
    entry.queue = queue
    entry.length = count
    entry.since = now
    entry.generation = entry.generation + 1 if entry.generation < _PAGE_MASK else 1
    entry.older = memory.newest
    entry.newer = -1
    if memory.newest >= 0:
        state.nic_pages[memory.newest].newer = first
    else:
        memory.oldest = first
    memory.newest = first
    placement.pages += used
    placement.kept += 1
    placement.kept_bytes += count
    return i64(entry.generation) << _GENERATION_SHIFT | first


@compiled
def _free(state: State, first: int) -> None:
    """Give the pages of a payload back; `first` is its first page."""
    memory = state.nic_memory[0]
    entry = state.nic_pages[first]
    placement = state.placement_rings[entry.queue]
    entry.queue = -1
    if entry.older >= 0:
        state.nic_pages[entry.older].newer = entry.newer
    else:
        memory.oldest = entry.newer
    if entry.newer >= 0:
        state.nic_pages[entry.newer].older = entry.older
    else:
        memory.newest = entry.older
    last = first
    count = 1
    while state.nic_pages[last].next >= 0:
        last = i64(state.nic_pages[last].next)
        count += 1
    state.nic_pages[last].next = memory.free
    memory.free = first
    memory.free_pages += count
    placement.pages -= count


@compiled
def expire(state: State, oldest: int) -> int:
    """Drop what has been here since the time `oldest` (ns) or longer; since when what is the oldest then has been here.

    Returns:
        `_NEVER` if nothing is kept any more.
    """
    memory = state.nic_memory[0]
    while memory.oldest >= 0:
        first = i64(memory.oldest)
        entry = state.nic_pages[first]
        if entry.since > oldest:
            return i64(entry.since)
        state.placement_rings[entry.queue].expired += 1
        _free(state, first)
    return _NEVER


@compiled
def discard(state: State, queue: int) -> None:
    """Drop all that is kept for a receive queue."""
    page = i64(state.nic_memory[0].oldest)
    while page >= 0:
        newer = i64(state.nic_pages[page].newer)
        if state.nic_pages[page].queue == queue:
            state.placement_rings[queue].discarded += 1
            _free(state, page)
        page = newer


@inlined
def _in_reach(state: State, address: int, count: int) -> bool:
    """Whether `count` bytes can be written at once: memory without a descriptor is reached by messages only."""
    if locate(state, address, count, WRITE) != 0:
        return True
    return bool(state.device[0].remote == 0 and accessible(state, address, count, WRITE))


@inlined
def _execute(state: State, queue: int, handle: int, pieces: int, total: int, drop: int) -> int:
    """Do what a request asks for, whose `pieces` are in ``state.pieces`` and have `total` bytes (-1: that cannot be).

    Returns:
        A `PlacementStatus`.
    """
    placement = state.placement_rings[queue]
    first = handle & _PAGE_MASK
    if (
        first >= len(state.nic_pages)
        or state.nic_pages[first].queue != queue
        or state.nic_pages[first].generation != handle >> _GENERATION_SHIFT
    ):
        placement.not_found += 1
        return _NOT_FOUND
    entry = state.nic_pages[first]
    if total < 0 or (drop == 0 and total != entry.length):
        placement.bad_requests += 1
        return _BAD_REQUEST
    if drop != 0:
        placement.dropped += 1
        _free(state, first)
        return _DROPPED
    for k in range(pieces):
        if not _in_reach(state, state.pieces[k].address, i64(state.pieces[k].length)):
            fault(state, state.pieces[k].address)
            placement.faults += 1
            return _DMA_FAULT
    page = first
    room = NIC_PAGE
    source = u64(state.nic_bytes.ctypes.data) + u64(page * NIC_PAGE)
    for k in range(pieces):
        address = state.pieces[k].address
        left = i64(state.pieces[k].length)
        while left > 0:
            if room == 0:
                page = i64(state.nic_pages[page].next)
                room = NIC_PAGE
                source = u64(state.nic_bytes.ctypes.data) + u64(page * NIC_PAGE)
            count = min(left, room)
            write(state, queue, _PAYLOAD, address, source, count)
            address += u64(count)
            source += u64(count)
            room -= count
            left -= count
    placement.placed += 1
    placement.placed_bytes += entry.length
    _free(state, first)
    return _PLACED


@inlined
def _reply(state: State, queue: int, handle: int, status: int) -> None:
    """Write the next completion of a placement ring."""
    placement = state.placement_rings[queue]
    index = i64(placement.completion_index)
    address = placement.completion_ring + u64(index * _REPLY_SIZE)
    host = locate(state, address, _REPLY_SIZE, WRITE)
    if host == 0:
        fault(state, address)
    else:
        word = handle << _REPLY_HANDLE | i64(placement.head) << _REPLY_HEAD | status << _REPLY_STATUS
        publish_u64(host, u64(word) | u64(placement.generation) << u64(_REPLY_GENERATION))
        state.ledger[queue, _COMPLETION, state.regions[state.device[0].region].kind] += _REPLY_SIZE
    index += 1
    if index == placement.entries:
        index = 0
        placement.generation ^= 1
    placement.completion_index = index


@compiled
def place(state: State, queue: int, limit: int) -> bool:
    """Execute the placement requests of a receive queue up to its doorbell. One that does not end there waits.

    Returns:
        Whether `limit` bytes, of payload and of requests, were reached before.
    """
    done = 0
    placement = state.placement_rings[queue]
    mask = i64(placement.entries) - 1
    while placement.head != placement.tail:
        if done >= limit:
            return True
        head = i64(placement.head)
        waiting = (i64(placement.tail) - head) & mask
        handle = -1
        drop = 0
        total = 0
        count = 0
        ended = False
        while count < waiting and not ended:
            address = placement.request_ring + u64(((head + count) & mask) * _REQUEST_SIZE)
            host = locate(state, address, _REQUEST_SIZE, READ)
            if host == 0:  # nothing of what was posted can be known
                fault(state, address)
                placement.faults += 1
                placement.head = placement.tail
                return False
            second = load_u64(host + _SECOND)
            named = i64(second >> u64(_HANDLE_SHIFT) & u64(_HANDLE_MASK))
            if count == 0:
                handle = named
                drop = i64(second >> u64(_DROP_SHIFT) & u64(1))
            if named != handle or count >= MAX_SEGMENTS:
                total = -1
            if total >= 0:
                state.pieces[count].address = load_u64(host + _ADDRESS)
                state.pieces[count].length = i64(second >> u64(_LENGTH_SHIFT) & u64(_LENGTH_MASK))
                total += i64(state.pieces[count].length)
            ended = second >> u64(_END_SHIFT) & u64(1) != u64(0)
            count += 1
        if not ended:
            return False
        done += count * _REQUEST_SIZE + max(total, 0)
        state.ledger[queue, _DESCRIPTOR, state.regions[state.device[0].region].kind] += count * _REQUEST_SIZE
        status = _execute(state, queue, handle, count, total, drop)
        placement.head = (head + count) & mask
        _reply(state, queue, handle, status)
        state.vectors[state.rx[queue].vector].pending = 1
    return False


class DeferredPlacement:
    """The option's control: which queues have it, their doorbells, and the timeout.

    Args:
        state: the NIC's.
        queue_bytes: how much of the NIC's memory one queue may use, bytes.
        usecs: how long payload is kept, microseconds.
        poller: the event loop.
        go_on: has `flush` called in a later turn of the loop.
        diagnostics: told of what is placed.
    """

    def __init__(
        self,
        state: State,
        queue_bytes: int,
        usecs: int,
        poller: EventLoop,
        go_on: Callable[[], None],
        diagnostics: Diagnostics,
    ) -> None:
        self._state = state
        self._budget = queue_bytes // NIC_PAGE
        self._timeout = usecs * 1000
        self._poller = poller
        self._go_on = go_on
        self._diagnostics = diagnostics
        self._timer: Timer | None = None
        self._rung: dict[int, None] = {}
        self._flushes = Budget(poller, 1)
        self._form()

    def load(self) -> None:
        """Run the compiled functions once on nothing (`Nic`)."""
        place(self._state, 0, 0)
        discard(self._state, 0)
        expire(self._state, 0)

    def _form(self) -> None:
        """All pages free."""
        state = self._state
        pages = len(state.nic_pages)
        state.nic_pages["next"] = [*range(1, pages), -1]
        state.nic_pages["queue"] = -1
        state.nic_memory["free"], state.nic_memory["free_pages"] = 0, pages
        state.nic_memory["oldest"] = state.nic_memory["newest"] = -1

    def enable(self, queue: int, *, headers_only: bool, request_ring: int, completion_ring: int, entries: int) -> None:
        """Have a receive queue keep its payload from now on; it ends with the queue."""
        state = self._state
        record = state.placement_rings[queue : queue + 1]
        record[SETTINGS[record.dtype]] = 0
        record["request_ring"], record["completion_ring"], record["entries"] = request_ring, completion_ring, entries
        record["generation"] = 1
        record["budget"] = self._budget
        state.rx[queue]["deferred"] = ELSE_DROP if headers_only else ELSE_AT_ONCE

    def end(self, queue: int) -> None:
        """The queue has ended: what was kept for it is dropped."""
        state = self._state
        self._rung.pop(queue, None)
        record = state.placement_rings[queue : queue + 1]
        if record["entries"][0]:
            discard(state, queue)
            record[SETTINGS[record.dtype]] = 0

    def doorbell(self, queue: int, value: int) -> bool:
        """The placement ring's doorbell: the index of its first free entry; whether there is such a ring and entry."""
        if queue not in range(len(self._state.rx)):
            return False
        placement = self._state.placement_rings[queue]
        if value >= placement["entries"]:
            return False
        placement["tail"] = value
        self._rung[queue] = None
        return True

    def flush(self) -> None:
        """Execute the requests that have been posted; what is too much for this turn of the loop waits for the next."""
        if not self._rung or not self._flushes.spend(self._go_on):
            return
        share = _BYTES_PER_TURN // len(self._rung)
        for queue in tuple(self._rung):
            if self._diagnostics.observers:
                self._diagnostics.tell(events.Placing(queue))
            if not place(self._state, queue, share):
                del self._rung[queue]
            if self._diagnostics.observers:
                self._diagnostics.tell(events.Placed(queue))
        if self._rung:
            self._poller.next_turn(self._go_on)

    def watch(self) -> None:
        """See that the oldest payload is dropped when its time is over."""
        if self._timer is None and (oldest := self._state.nic_memory["oldest"][0]) >= 0:
            due = int(self._state.nic_pages[oldest]["since"]) + self._timeout
            self._timer = self._poller.call_at(due, self._expire)

    def _expire(self) -> None:
        self._timer = None
        expire(self._state, self._poller.clock() - self._timeout)
        self.watch()

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._poller.cancel(self._timer)
            self._timer = None
