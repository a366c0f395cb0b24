"""Receive on the queues of the GQI formats: one slot and one descriptor per buffer, no header split, no coalescing.

Source: Linux drivers/net/ethernet/google/gve/gve_rx.c. All descriptors of a packet must become valid together, so they
are written from the last to the first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.descriptors import GQI_RX_DESCRIPTOR, GQI_RX_PAD, GQI_RX_SLOT, GQI_SEQUENCE, GqiRxFlag
from nicmodel.gvnic.pages import resolve
from nicmodel.gvnic.state import State
from nicmodel.jit.addresses import load_u64, publish_u64, store_u64
from nicmodel.jit.compiled import Record, compiled, i64, inlined, u64
from nicmodel.nic.dma import READ, WRITE, accessible, book, fault, locate, write
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.receive import Batch, Packet, admit, buffers_needed, plan, prepare, room, settle
from nicmodel.nic.state import Drop, Records, distance
from nicmodel.packet.checksum import fold, ones_sum
from nicmodel.packet.headers import L3, L4

_NONE = int(Drop.NONE)
_DMA_FAULT = int(Drop.DMA_FAULT)
_PAYLOAD = int(Purpose.PAYLOAD)
_DESCRIPTOR = int(Purpose.DESCRIPTOR)
_COMPLETION = int(Purpose.COMPLETION)
_IPV4, _IPV6 = int(L3.IPV4), int(L3.IPV6)
_TCP, _UDP = int(L4.TCP), int(L4.UDP)

_PAD = GQI_RX_PAD
_SLOT_SIZE = GQI_RX_SLOT.itemsize
_SIZE = GQI_RX_DESCRIPTOR.itemsize
#: The two 64-bit words of a descriptor that mean something.
_FIRST_WORD = u64(GQI_RX_DESCRIPTOR.fields["hash"][1])  # type: ignore[index]
_LAST_WORD = u64(GQI_RX_DESCRIPTOR.fields["header_length"][1])  # type: ignore[index]
_SEQUENCE = GQI_SEQUENCE
_FLAG_FRAGMENT = int(GqiRxFlag.FRAGMENT)
_FLAG_IPV4 = int(GqiRxFlag.IPV4)
_FLAG_IPV6 = int(GqiRxFlag.IPV6)
_FLAG_TCP = int(GqiRxFlag.TCP)
_FLAG_UDP = int(GqiRxFlag.UDP)
_FLAG_ERROR = int(GqiRxFlag.ERROR)
_FLAG_CONTINUES = int(GqiRxFlag.CONTINUES)
#: Length of an Ethernet header: the checksum covers what comes after it.
_ETHERNET = 14

_SWAP = ((u64(0x00FF00FF00FF00FF), u64(8)), (u64(0x0000FFFF0000FFFF), u64(16)))
_BYTES, _EIGHT = _SWAP[0]
_PAIRS, _SIXTEEN = _SWAP[1]
_THIRTY_TWO = u64(32)


@compiled
def big_endian(value: int) -> int:
    """A 64-bit word with its bytes reversed: how a big-endian value is stored here."""
    word = u64(value)
    word = (word >> _EIGHT & _BYTES) | ((word & _BYTES) << _EIGHT)
    word = (word >> _SIXTEEN & _PAIRS) | ((word & _PAIRS) << _SIXTEEN)
    return u64(word >> _THIRTY_TWO | word << _THIRTY_TWO)


@compiled
def _flags(h: Record) -> int:
    flags = 0
    if h.fragment != 0:
        flags |= _FLAG_FRAGMENT
    if h.l3 == _IPV4:
        flags |= _FLAG_IPV4
    elif h.l3 == _IPV6:
        flags |= _FLAG_IPV6
    if h.l4 == _TCP:
        flags |= _FLAG_TCP
    elif h.l4 == _UDP:
        flags |= _FLAG_UDP
    return flags


@compiled
def _describe(state: State, queue: int, ahead: int, hash_value: int, checksum: int, length: int, flags: int) -> None:
    """Write the descriptor `ahead` of the next; its place is known to be writable."""
    rx = state.rx[queue]
    index = (i64(rx.buffer_head) + ahead) & i64(rx.buffer_entries - 1)
    sequence = (i64(rx.sequence) + ahead) % _SEQUENCE + 1
    host, region = locate(state, rx.completion_ring + u64(index * _SIZE), _SIZE, WRITE)
    store_u64(host + _FIRST_WORD, big_endian(u64(hash_value << 32)))
    publish_u64(host + _LAST_WORD, big_endian(u64(checksum << 32 | length << 16 | flags | sequence)))
    book(state, queue, _COMPLETION, region, _SIZE)


@compiled
def _advance(state: State, queue: int, count: int) -> None:
    rx = state.rx[queue]
    rx.buffer_head = (i64(rx.buffer_head) + count) & 0xFFFFFFFF
    rx.sequence = (i64(rx.sequence) + count) % _SEQUENCE
    state.vectors[rx.vector].pending = 1


@compiled
def _reject(state: State, queue: int, count: int) -> None:
    """Hand the next `count` buffers back unused, each as a packet with an error of its own."""
    for _ in range(count):
        _describe(state, queue, 0, 0, 0, _PAD, _FLAG_ERROR)
        _advance(state, queue, 1)


@inlined
def _place(state: State, headers: Records, packet: Packet) -> int:
    """Put one packet into the queue's next buffers, known to be there; the result is a `Drop`."""
    queue = packet.queue
    rx = state.rx[queue]
    length = packet.length
    size = i64(rx.buffer_size)
    mask = i64(rx.buffer_entries - 1)
    head = i64(rx.buffer_head)
    needed = buffers_needed(rx, i64(0), length)

    # First look at everything, so that a bad address is found before anything is written.
    for k in range(needed):
        slot = rx.buffer_ring + u64(((head + k) & mask) * _SLOT_SIZE)
        host, region = locate(state, slot, _SLOT_SIZE, READ)
        if host == 0:
            fault(state, slot)
            return _DMA_FAULT
        book(state, queue, _DESCRIPTOR, region, _SLOT_SIZE)
        descriptor = rx.completion_ring + u64(((head + k) & mask) * _SIZE)
        if locate(state, descriptor, _SIZE, WRITE)[0] == 0:
            fault(state, descriptor)
            return _DMA_FAULT
        address, whole = resolve(rx, big_endian(load_u64(host)), size)
        if whole < size or not accessible(state, address, size, WRITE):
            fault(state, address)
            _reject(state, queue, k + 1)
            return _DMA_FAULT
        state.pieces[k].address = address

    source = u64(packet.data.ctypes.data) + u64(packet.offset)
    checksum = fold(ones_sum(packet.data, packet.offset + _ETHERNET, length - _ETHERNET, 0))
    flags = _flags(headers[0])
    for back in range(needed):
        k = needed - 1 - back
        pad = _PAD if k == 0 else 0
        start = max(0, k * size - _PAD)
        end = min(length, (k + 1) * size - _PAD)
        write(state, queue, _PAYLOAD, state.pieces[k].address + u64(pad), source + u64(start), end - start)
        more = _FLAG_CONTINUES if k < needed - 1 else 0
        _describe(state, queue, k, packet.hash, checksum, end - start + pad, flags | more)
    _advance(state, queue, needed)
    rx.frames += 1
    rx.bytes += length
    return _NONE


@inlined
def _deliver(state: State, batch: Batch, number: int) -> int:
    """Take the parsed frame to its queue; the result is a `Drop`."""
    outcome = batch.outcomes[number]
    rx = state.rx[outcome.queue]
    head = i64(rx.buffer_head)
    outcome.completion = head & i64(rx.buffer_entries - 1)  # slots and descriptors are two sides of one ring
    planned = plan(state, batch, number, state.headers, i64(0))
    verdict = i64(room(rx, rx, planned))
    for k in range(planned.packets if verdict == _NONE else i64(0)):
        packet = prepare(state, batch, number, state.headers, i64(0), i64(0), planned, k)
        verdict = i64(_place(state, state.headers, packet))
        if verdict != _NONE:
            break
    outcome.completions = distance(head, rx.buffer_head, rx.positions)
    return verdict


@compiled
def receive_gqi(
    state: State, data: npt.NDArray[np.uint8], frames: Records, count: int, now: int, oldest: int, limit: int,
    held_data: npt.NDArray[np.uint8], held_frames: Records, held: npt.NDArray[np.int64], outcomes: Records,
) -> int:  # fmt: skip
    """As `nicmodel.gvnic.receive_dqo.receive_dqo`, for queues of a GQI format."""
    batch = Batch(data, frames, count, now, oldest, limit, held_data, held_frames, held, outcomes)
    delivered = 0
    for number in range(count):
        if i64(admit(state, batch, number)) == _NONE:
            done, _ = settle(state, batch, number, i64(1), i64(_deliver(state, batch, number)))
            delivered += done
    return delivered
