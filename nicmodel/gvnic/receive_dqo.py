"""Receive on the queues of the DQO formats: a buffer ring, a completion ring, header split, coalescing.

The model's own options have their stages where they belong (`nicmodel.gvnic.options`). Each has a switch, and what one
that is off would do is not compiled: `partial` makes the loop of a NIC of this one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.options.ddp.engine import divert
from nicmodel.gvnic.options.deferred.payload import FULL, defer, to_keep
from nicmodel.gvnic.options.owners.lists import count_held, owned, owner_of, reject_owned, turn_back, turn_to_owner
from nicmodel.gvnic.rings_dqo import (
    BUFFER_ADDRESS,
    BUFFER_HEADER,
    describe,
    descriptor,
    descriptor_address,
    fill,
    reject,
)
from nicmodel.gvnic.state import State
from nicmodel.jit.compiled import Switch, compiled, i64, inlined, u64
from nicmodel.nic.dma import fault
from nicmodel.nic.receive import (
    Batch,
    Packet,
    alone,
    buffers_needed,
    look_at,
    next_ended,
    parse_again,
    plan,
    prepare,
    room,
    settle,
    take_in,
)
from nicmodel.nic.state import Drop, Records, distance

_NONE = int(Drop.NONE)
_NO_BUFFERS = int(Drop.NO_BUFFERS)
_DMA_FAULT = int(Drop.DMA_FAULT)
_NIC_MEMORY_FULL = int(Drop.NIC_MEMORY_FULL)


@inlined
def _descriptor(owners: Switch, state: State, queue: int, index: int) -> int:
    """Where in this process the descriptor `index` is: of the ring, or of the list that stands in for it."""
    if owners is not None and state.rx[queue].owners != 0:
        return u64(owned(state, queue, index))
    return u64(descriptor(state, queue, index))


@inlined
def _reject(owners: Switch, state: State, queue: int, count: int) -> None:
    """Hand the next `count` buffers back unused."""
    if owners is not None and state.rx[queue].owners != 0:
        reject_owned(state, queue, count, 0)
    else:
        reject(state, queue, count, 0)


@inlined
def _place(
    owners: Switch, deferred: Switch, ddp: Switch, state: State, batch: Batch, headers: Records, packet: Packet
) -> int:  # fmt: skip
    """Put one packet into the queue's next buffers, of which there are enough; some of it may go elsewhere."""
    queue = packet.queue
    rx = state.rx[queue]
    if ddp is not None:
        packet, words = divert(state, batch, headers, packet, describe(state, batch, headers, packet))
    header = max(packet.header, i64(0))
    left = packet.length - header
    if deferred is not None:
        kept = i64(to_keep(state, packet, header))
        if kept == FULL:
            return _NIC_MEMORY_FULL
        left -= kept
    needed = buffers_needed(rx, header, header + left)
    mask = i64(rx.buffer_entries - 1)
    head = i64(rx.buffer_head)
    size = i64(rx.buffer_size)
    header_address = u64(0)
    # First look at all buffers, so that a bad address is found before anything is written.
    for k in range(needed):
        index = (head + k) & mask
        host = u64(_descriptor(owners, state, queue, index))
        if host == 0:
            fault(state, descriptor_address(state, queue, index))
            return _DMA_FAULT
        good, address = look_at(
            state, k, host, BUFFER_ADDRESS, BUFFER_HEADER, header, min(size, left - k * size)
        )  # fmt: skip
        if not good:
            _reject(owners, state, queue, k + 1)
            return _DMA_FAULT
        if k == 0:
            header_address = address
    if ddp is None:
        words = describe(state, batch, headers, packet)
    if deferred is not None:
        packet, words = defer(state, batch, packet, words, header, packet.length - header - left)
    fill(state, batch, packet, words, header_address, needed)
    return _NONE


@inlined
def _deliver(
    owners: Switch, deferred: Switch, ddp: Switch, state: State, batch: Batch, number: int, headers: Records,
    payload: int, flags: int,
) -> int:  # fmt: skip
    """Take a frame with these headers to its queue, or all that is merged to it; the result is a `Drop`."""
    outcome = batch.outcomes[number]
    queue = i64(outcome.queue)
    rx = state.rx[queue]
    total = i64(headers[0].length)
    if owners is not None and rx.owners != 0 and not turn_to_owner(state, queue, owner_of(state, outcome)):
        return _NO_BUFFERS
    head = i64(rx.buffer_head)
    outcome.completion = rx.completion_index
    planned = plan(state, batch, number, headers, payload)
    verdict = i64(room(rx, rx, planned))
    for k in range(planned.packets if verdict == _NONE else i64(0)):
        packet = prepare(state, batch, number, headers, payload, flags, planned, k)
        verdict = i64(_place(owners, deferred, ddp, state, batch, headers, packet))
        if verdict != _NONE:
            break
    # Each buffer that is used, or handed back, has a completion of its own.
    outcome.completions = distance(head, rx.buffer_head, rx.positions)
    if owners is not None and rx.owners != 0:
        turn_back(state, queue, i64(outcome.completions), total if verdict == _NONE else i64(0))
    return verdict


@compiled
def receive_dqo(
    owners: Switch, deferred: Switch, ddp: Switch,
    state: State, data: npt.NDArray[np.uint8], frames: Records, count: int, now: int, oldest: int, limit: int,
    held_data: npt.NDArray[np.uint8], held_frames: Records, held: npt.NDArray[np.int64], outcomes: Records,
) -> int:  # fmt: skip
    """See `nicmodel.nic.ingress.Receive`; before its arguments come the options' switches."""
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
                verdict = i64(
                    _deliver(owners, deferred, ddp, state, batch, at, headers, unit.payload, unit.flags)
                )  # fmt: skip
                outcome = batch.outcomes[at]
                before = i64(0)
                if owners is not None:
                    before = i64(state.rx[outcome.queue].held)
                done, at = settle(state, batch, at, unit.frames, verdict)
                delivered += done
                if owners is not None:
                    count_held(state, outcome, before)
    return delivered
