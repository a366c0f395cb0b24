"""Receive on a NIC that has options of the model's own: as `nicmodel.gvnic.receive_dqo`, with them where they belong.

It is a loop of its own, so that a NIC without options has nothing of them in its way.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.descriptors import RX_DDP, RX_DEFERRED
from nicmodel.gvnic.options.ddp.engine import place_directly
from nicmodel.gvnic.options.deferred.payload import has_room, keep
from nicmodel.gvnic.options.deferred.state import ELSE_DROP
from nicmodel.gvnic.options.owners.lists import owned, owner_of, reject_owned, turn_back, turn_to_owner
from nicmodel.gvnic.receive_dqo import BUFFER_SIZE, Words, describe, descriptor, fill, look_at, reject
from nicmodel.gvnic.state import State
from nicmodel.jit.compiled import compiled, i64, inlined, u64
from nicmodel.nic.dma import fault
from nicmodel.nic.receive import (
    Batch,
    Packet,
    alone,
    buffers_needed,
    next_ended,
    parse_again,
    plan,
    prepare,
    room,
    settle,
    shortened,
    take_in,
)
from nicmodel.nic.state import Drop, Records, distance

_NONE = int(Drop.NONE)
_NO_BUFFERS = int(Drop.NO_BUFFERS)
_DMA_FAULT = int(Drop.DMA_FAULT)
_NIC_MEMORY_FULL = int(Drop.NIC_MEMORY_FULL)
_DEFERRED = RX_DEFERRED.deferred.shift
_KEPT_LENGTH = RX_DEFERRED.payload_length.shift
_HANDLE = RX_DEFERRED.handle.shift
_PLACEMENTS = RX_DDP.placements.shift
_ANY_PLACEMENTS = RX_DDP.placements.mask


@inlined
def _place(state: State, batch: Batch, headers: Records, packet: Packet) -> int:
    """Put one packet into the next buffers of the queue, or of its owner; some of it may go elsewhere."""
    queue = packet.queue
    rx = state.rx[queue]
    words = describe(state, batch, headers, packet)
    if state.device[0].ddp_flows != 0 and rx.deferred == 0 and packet.verified != 0 and packet.errors == 0:
        placed, resync, length = place_directly(state, batch, headers, packet)
        words = Words(words.word0, words.word1, words.word2 | placed << _PLACEMENTS, words.word3 | resync)
        if placed & _ANY_PLACEMENTS != 0:
            packet = shortened(packet, length, state.ddp_rest, i64(0), length)
    header = max(packet.header, i64(0))
    kept = i64(0)  # bytes that stay on the NIC
    if rx.deferred != 0 and header > 0 and packet.length > header:
        if has_room(state, queue, packet.length - header):
            kept = packet.length - header
        elif rx.deferred == ELSE_DROP:
            return _NIC_MEMORY_FULL
    left = packet.length - header - kept
    needed = buffers_needed(rx, header, packet.length - kept)
    mask = i64(rx.buffer_entries - 1)
    head = i64(rx.buffer_head)
    size = i64(rx.buffer_size)
    owners = i64(rx.owners)
    header_address = u64(0)
    # First look at all buffers, so that a bad address is found before anything is written.
    for k in range(needed):
        index = (head + k) & mask
        host = u64(owned(state, queue, index)) if owners != 0 else u64(descriptor(state, queue, index))
        if host == 0:
            fault(state, rx.buffer_ring + u64(index * BUFFER_SIZE))
            return _DMA_FAULT
        good, address = look_at(state, k, host, header, min(size, left - k * size))
        if not good:
            if owners != 0:
                reject_owned(state, queue, k + 1, 0)
            else:
                reject(state, queue, k + 1, 0)
            return _DMA_FAULT
        if k == 0:
            header_address = address
    if kept > 0:
        handle = i64(keep(state, batch, packet, header, kept))
        word2, word3 = words.word2 | kept << _KEPT_LENGTH, words.word3 | handle << _HANDLE
        words = Words(words.word0, words.word1 | 1 << _DEFERRED, word2, word3)
        rx.bytes += kept
        packet = shortened(packet, header, packet.data, packet.offset, header)
    fill(state, batch, packet, words, header_address, needed)
    return _NONE


@inlined
def _deliver(state: State, batch: Batch, number: int, headers: Records, payload: int, flags: int) -> int:
    """Take a frame with these headers to its queue, or all that is merged to it; the result is a `Drop`."""
    outcome = batch.outcomes[number]
    queue = i64(outcome.queue)
    rx = state.rx[queue]
    total = i64(headers[0].length)
    if rx.owners != 0 and not turn_to_owner(state, queue, owner_of(state, outcome)):
        return _NO_BUFFERS
    head = i64(rx.buffer_head)
    outcome.completion = rx.completion_index
    planned = plan(state, batch, number, headers, payload)
    verdict = i64(room(rx, planned))
    for k in range(planned.packets if verdict == _NONE else i64(0)):
        packet = prepare(state, batch, number, headers, payload, flags, planned, k)
        verdict = i64(_place(state, batch, headers, packet))
        if verdict != _NONE:
            break
    # Each buffer that is used, or handed back, has a completion of its own.
    outcome.completions = distance(head, rx.buffer_head, rx.positions)
    if rx.owners != 0:
        turn_back(state, queue, i64(outcome.completions), total if verdict == _NONE else i64(0))
    return verdict


@compiled
def receive_with_options(
    state: State, data: npt.NDArray[np.uint8], frames: Records, count: int, now: int, oldest: int, limit: int,
    held_data: npt.NDArray[np.uint8], held_frames: Records, held: npt.NDArray[np.int64], outcomes: Records,
) -> int:  # fmt: skip
    """As `nicmodel.gvnic.receive_dqo.receive_dqo`."""
    batch = Batch(data, frames, count, now, oldest, limit, held_data, held_frames, held, outcomes)
    delivered = 0
    for number in range(count + 1):
        ended, first, single = take_in(state, batch, number)
        for turn in range(ended + single):
            unit = alone(number)
            headers = state.headers
            if turn < ended:
                unit = next_ended(state, batch, first)
                headers = state.merged
            at = unit.number
            for k in range(unit.times):
                if k > 0:
                    parse_again(batch, at, headers)
                verdict = i64(_deliver(state, batch, at, headers, unit.payload, unit.flags))
                outcome = batch.outcomes[at]
                rx = state.rx[outcome.queue]
                waiting = i64(rx.held)
                done, at = settle(state, batch, at, unit.frames, verdict)
                delivered += done
                if rx.owners != 0:
                    state.owners[outcome.queue, owner_of(state, outcome)].held += rx.held - waiting
    return delivered


assert RX_DEFERRED.deferred.word == 1 and RX_DEFERRED.payload_length.word == 2 and RX_DEFERRED.handle.word == 3
