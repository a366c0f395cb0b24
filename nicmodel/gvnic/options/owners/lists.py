"""The lists into which the buffers of a queue are sorted, one for each owner."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.descriptors import RX_BUFFER
from nicmodel.gvnic.options.owners.declarations import RX_BUFFER_OWNER
from nicmodel.gvnic.rings_dqo import refuse
from nicmodel.gvnic.state import State
from nicmodel.jit.addresses import load_u8, load_u16, load_u64
from nicmodel.jit.compiled import Record, compiled, i64, inlined, u64
from nicmodel.nic.dma import READ, book, fault, locate
from nicmodel.nic.purpose import Purpose

#: No buffer, no owner.
NOTHING = -1

_DESCRIPTOR = int(Purpose.DESCRIPTOR)
_SIZE = RX_BUFFER.size
_WORDS = _SIZE // 8
_OWNER_BYTE = u64(RX_BUFFER_OWNER.owner.bit // 8)


@inlined
def owner_of(state: State, outcome: Record) -> int:
    """Whose buffers a steered frame goes to: the label of its rule, 0 without a rule."""
    if outcome.rule < 0:
        return i64(0)
    return i64(state.rules[outcome.rule].label)


@inlined
def owned(state: State, queue: int, index: int) -> int:
    """Address in this process of the descriptor `index` of the list that stands in for the queue's ring."""
    _, owners, entries, words = state.owned.shape
    place = ((queue * owners + i64(state.rx[queue].owner)) * entries + index) * words
    return u64(state.owned.ctypes.data) + u64(place * 8)


@compiled
def reject_owned(state: State, queue: int, count: int, flags: int) -> None:
    """As `nicmodel.gvnic.rings_dqo.reject`, of the list that stands in for the queue's ring."""
    rx = state.rx[queue]
    for _ in range(count):
        index = i64(rx.buffer_head)
        rx.buffer_head = (index + 1) & (rx.buffer_entries - 1)
        refuse(state, queue, i64(load_u16(u64(owned(state, queue, index)))), flags)


@compiled
def exchange(state: State, queue: int, owner: int) -> None:
    """Have the list of an owner stand in for the queue's ring; the second time, the ring again."""
    rx = state.rx[queue]
    entry = state.owners[queue, owner]
    head, tail, held = i64(rx.buffer_head), i64(rx.buffer_tail), i64(rx.held)
    rx.buffer_head, rx.buffer_tail, rx.held = entry.head, entry.tail, entry.held
    entry.head, entry.tail, entry.held = head, tail, held
    rx.owner = owner


@inlined
def _sort_ahead(state: State, queue: int) -> int:
    """Sort the buffers that the driver has posted, as many as the NIC looks ahead.

    Returns:
        The identifier of a buffer of no owner, to be handed back before the next call; `NOTHING`: all is sorted.
    """
    rx = state.rx[queue]
    mask = i64(rx.buffer_entries) - 1
    while rx.buffer_head != rx.buffer_tail and rx.sorted < min(i64(rx.lookahead), mask):
        index = i64(rx.buffer_head)
        address = rx.buffer_ring + u64(index * _SIZE)
        host, region = locate(state, address, _SIZE, READ)
        if host == 0:
            fault(state, address)
            return NOTHING
        book(state, queue, _DESCRIPTOR, region, _SIZE)
        rx.buffer_head = (index + 1) & mask
        owner = i64(load_u8(host + _OWNER_BYTE))
        if owner >= rx.owners:
            return i64(load_u16(host))
        entry = state.owners[queue, owner]
        for word in range(_WORDS):
            state.owned[queue, owner, entry.tail, word] = load_u64(host + u64(8 * word))
        entry.tail = (entry.tail + 1) & mask
        rx.sorted += 1
    return NOTHING


@compiled
def sort(state: State, queue: int) -> None:
    """Have the buffers of a queue with several owners sorted; those of nobody are handed back."""
    identifier = i64(_sort_ahead(state, queue))
    while identifier != NOTHING:
        refuse(state, queue, identifier, 0)
        identifier = i64(_sort_ahead(state, queue))


@compiled
def turn_to_owner(state: State, queue: int, owner: int) -> bool:
    """Have an owner's buffers stand in for the queue's ring; false if the queue has no such owner now."""
    rx = state.rx[queue]
    if owner >= rx.owners or state.owners[queue, owner].closed != 0:
        return False
    sort(state, queue)
    exchange(state, queue, owner)
    return True


@compiled
def turn_back(state: State, queue: int, used: int, length: int) -> None:
    """The queue's ring again: `used` buffers of the owner's were, for a packet of `length` bytes; 0: for none."""
    rx = state.rx[queue]
    owner = i64(rx.owner)
    exchange(state, queue, owner)
    rx.sorted -= used
    if length > 0:
        state.owners[queue, owner].packets += 1
        state.owners[queue, owner].bytes += length


@inlined
def count_held(state: State, outcome: Record, before: int) -> None:
    """A frame is settled whose queue had `before` frames in the backlog: some of its owner's may have joined them."""
    rx = state.rx[outcome.queue]
    if rx.owners != 0:
        state.owners[outcome.queue, owner_of(state, outcome)].held += rx.held - before


def posted(state: State, queue: int, ring: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The descriptors that the device has of a queue with several owners, by buffer identifier, for display.

    Args:
        state: the device.
        queue: the receive queue.
        ring: its buffer ring, shape (entries, bytes of a descriptor).

    Returns:
        Shape (65536, bytes of a descriptor), zeros where the device has no such buffer.
    """
    rx = state.rx[queue]
    table = np.zeros((1 << RX_BUFFER.buffer_id.width, _SIZE), np.uint8)
    head, entries = int(rx["buffer_head"]), int(rx["buffer_entries"])
    ahead = ring[(head + np.arange((int(rx["buffer_tail"]) - head) % entries)) % entries]
    for descriptors in (ahead, in_lists(state, queue)):
        table[identifiers(descriptors)] = descriptors
    return table


def in_lists(state: State, queue: int) -> npt.NDArray[np.uint8]:
    """The descriptors that the device has sorted and not used yet, shape (number, bytes of a descriptor)."""
    entries = int(state.rx[queue]["buffer_entries"])
    lists = [np.zeros((0, _SIZE), np.uint8)]
    for owner in range(int(state.rx[queue]["owners"])):
        entry = state.owners[queue, owner]
        count = int(entry["tail"] - entry["head"]) % entries
        places = (int(entry["head"]) + np.arange(count)) % entries
        lists.append(state.owned[queue, owner, places].view(np.uint8).reshape(-1, _SIZE))
    return np.concatenate(lists)


def identifiers(descriptors: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """The buffers' identifiers, shape (number,), of descriptors of shape (number, bytes of a descriptor)."""
    return descriptors[:, :2].copy().view("<u2").reshape(-1)
