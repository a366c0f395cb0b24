"""Placement requests: a driver names the place of a payload that is kept on the NIC, or says that nobody wants it."""

from __future__ import annotations

from nicmodel.gvnic.options.deferred.declarations import PLACEMENT_COMPLETION, PLACEMENT_REQUEST, PlacementStatus
from nicmodel.gvnic.options.deferred.payload import GENERATION_SHIFT, PAGE_MASK, free
from nicmodel.gvnic.options.deferred.state import NIC_PAGE
from nicmodel.gvnic.state import State
from nicmodel.jit.addresses import load_u64, publish_u64
from nicmodel.jit.compiled import compiled, i64, inlined, u64
from nicmodel.nic.dma import READ, WRITE, book, fault, locate, reachable_at_once, write
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import MAX_SEGMENTS

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


@inlined
def _execute(state: State, queue: int, handle: int, pieces: int, total: int, drop: int) -> int:
    """Do what a request asks for, whose `pieces` are in ``state.pieces`` and have `total` bytes (-1: that cannot be).

    Returns:
        A `PlacementStatus`.
    """
    placement = state.placement_rings[queue]
    first = handle & PAGE_MASK
    if (
        first >= len(state.nic_pages)
        or state.nic_pages[first].queue != queue
        or state.nic_pages[first].generation != handle >> GENERATION_SHIFT
    ):
        placement.not_found += 1
        return _NOT_FOUND
    entry = state.nic_pages[first]
    if total < 0 or (drop == 0 and total != entry.length):
        placement.bad_requests += 1
        return _BAD_REQUEST
    if drop != 0:
        placement.dropped += 1
        free(state, first)
        return _DROPPED
    for k in range(pieces):
        if not reachable_at_once(state, state.pieces[k].address, i64(state.pieces[k].length), WRITE):
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
    free(state, first)
    return _PLACED


@inlined
def _reply(state: State, queue: int, handle: int, status: int) -> None:
    """Write the next completion of a placement ring."""
    placement = state.placement_rings[queue]
    index = i64(placement.completion_index)
    address = placement.completion_ring + u64(index * _REPLY_SIZE)
    host, region = locate(state, address, _REPLY_SIZE, WRITE)
    if host == 0:
        fault(state, address)
    else:
        word = handle << _REPLY_HANDLE | i64(placement.head) << _REPLY_HEAD | status << _REPLY_STATUS
        publish_u64(host, u64(word) | u64(placement.generation) << u64(_REPLY_GENERATION))
        book(state, queue, _COMPLETION, region, _REPLY_SIZE)
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
            host, region = locate(state, address, _REQUEST_SIZE, READ)
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
        book(state, queue, _DESCRIPTOR, region, count * _REQUEST_SIZE)
        status = _execute(state, queue, handle, count, total, drop)
        placement.head = (head + count) & mask
        _reply(state, queue, handle, status)
        state.vectors[state.rx[queue].vector].pending = 1
    return False
