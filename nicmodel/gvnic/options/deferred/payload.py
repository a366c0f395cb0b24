"""Payload that is kept in pages of the NIC's own memory: how it comes there, and how it goes."""

from __future__ import annotations

import numpy as np

from nicmodel.gvnic.options.deferred.declarations import RX_DEFERRED
from nicmodel.gvnic.options.deferred.state import ELSE_DROP, NIC_PAGE
from nicmodel.gvnic.rings_dqo import Words
from nicmodel.gvnic.state import State
from nicmodel.jit.addresses import copy
from nicmodel.jit.compiled import compiled, i64, inlined, u64
from nicmodel.nic.receive import Batch, Packet, shortened

#: `expire` found nothing that is kept.
NEVER = np.iinfo(np.int64).max

# A handle: the number of the first page, and which payload it is that begins there.
GENERATION_SHIFT = 16
PAGE_MASK = (1 << GENERATION_SHIFT) - 1


#: `to_keep` has no room, and the packet is to be dropped.
FULL = -1

_DEFERRED = 1 << RX_DEFERRED.deferred.shift
_KEPT_LENGTH = RX_DEFERRED.payload_length.shift
_HANDLE = RX_DEFERRED.handle.shift
assert RX_DEFERRED.deferred.word == 1 and RX_DEFERRED.payload_length.word == 2 and RX_DEFERRED.handle.word == 3


@inlined
def to_keep(state: State, packet: Packet, header: int) -> int:
    """How many bytes of a packet, behind its split `header`, stay on the NIC; or `FULL`."""
    rx = state.rx[packet.queue]
    count = packet.length - header
    if rx.deferred == 0 or header == 0 or count <= 0:
        return i64(0)
    if has_room(state, packet.queue, count):
        return i64(count)
    return i64(FULL if rx.deferred == ELSE_DROP else 0)


@inlined
def defer(
    state: State, batch: Batch, packet: Packet, words: Words, header: int, count: int
) -> tuple[Packet, Words]:  # fmt: skip
    """Keep `count` bytes of a packet (`to_keep`): what is left of it, and what its completion says."""
    if count == 0:
        return packet, words
    handle = i64(keep(state, batch, packet, header, count))
    state.rx[packet.queue].bytes += count
    word2, word3 = words.word2 | count << _KEPT_LENGTH, words.word3 | handle << _HANDLE
    left = shortened(packet, header, packet.data, packet.offset, header)
    return left, Words(words.word0, words.word1 | _DEFERRED, word2, word3)


@compiled
def has_room(state: State, queue: int, count: int) -> bool:
    """Whether `count` bytes of payload can be kept for a receive queue now; one that cannot is counted."""
    placement = state.placement_rings[queue]
    pages = (count + NIC_PAGE - 1) // NIC_PAGE
    if pages > state.nic_memory[0].free_pages or placement.pages + pages > placement.budget:
        placement.full += 1
        return False
    return True


@inlined
def keep(state: State, batch: Batch, packet: Packet, header: int, count: int) -> int:
    """Keep a packet's payload, `count` bytes behind its `header`, for which there is room (`has_room`).

    Returns:
        The handle.
    """
    queue = packet.queue
    number = packet.number
    position = u64(packet.data.ctypes.data) + u64(packet.offset + header)
    contiguous = packet.contiguous - header
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
            position = u64(batch.data.ctypes.data) + u64(batch.frames[number].offset) + u64(packet.payload)
            contiguous = packet.segment
            number = i64(batch.outcomes[number].next)
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
    entry.since = batch.now
    entry.generation = entry.generation + 1 if entry.generation < PAGE_MASK else 1
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
    return i64(entry.generation) << GENERATION_SHIFT | first


@compiled
def free(state: State, first: int) -> None:
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
        `NEVER` if nothing is kept any more.
    """
    memory = state.nic_memory[0]
    while memory.oldest >= 0:
        first = i64(memory.oldest)
        entry = state.nic_pages[first]
        if entry.since > oldest:
            return i64(entry.since)
        state.placement_rings[entry.queue].expired += 1
        free(state, first)
    return NEVER


@compiled
def discard(state: State, queue: int) -> None:
    """Drop all that is kept for a receive queue."""
    page = i64(state.nic_memory[0].oldest)
    while page >= 0:
        newer = i64(state.nic_pages[page].newer)
        if state.nic_pages[page].queue == queue:
            state.placement_rings[queue].discarded += 1
            free(state, page)
        page = newer
