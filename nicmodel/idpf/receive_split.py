"""Receive on the queues of the split model: two rings of buffers, of which the second has smaller ones, and a ring of
completions.

A packet, or its payload where its header is split off, goes to one buffer of the second ring if that holds it, else to
buffers of the first (OASIS idpf, Receive, Buffer Queues). Packets of merged segments always go to the first. Linux
takes any mixture (idpf_txrx.c, idpf_rx_splitq_clean), so where the ring of choice is short of buffers the other helps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.idpf.clock import time_at
from nicmodel.idpf.descriptors import RX_BUFFER, RX_COMPLETION, RXDID
from nicmodel.idpf.state import State
from nicmodel.jit.addresses import load_u16, publish_u64, store_u64
from nicmodel.jit.compiled import Record, compiled, i64, inlined, u64
from nicmodel.nic.dma import READ, WRITE, book, fault, locate
from nicmodel.nic.messages import COMPLETION, write_later
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.receive import (
    Batch,
    Packet,
    Plan,
    alone,
    buffers_needed,
    look_at,
    next_ended,
    parse_again,
    plan,
    prepare,
    ptype,
    put_header,
    put_payload,
    room,
    settle,
    take_in,
    whole,
)
from nicmodel.nic.state import Drop, Records, distance
from nicmodel.packet.checksum import ChecksumError

_NONE = int(Drop.NONE)
_DMA_FAULT = int(Drop.DMA_FAULT)
_DESCRIPTOR = int(Purpose.DESCRIPTOR)
_COMPLETION = int(Purpose.COMPLETION)
_BAD_IP = int(ChecksumError.IP)
_BAD_L4 = int(ChecksumError.L4)

_BUFFER_SIZE = RX_BUFFER.size
_BUFFER_ADDRESS = u64(RX_BUFFER.buffer_address.bit // 8)
_BUFFER_HEADER = u64(RX_BUFFER.header_address.bit // 8)
_COMPLETION_SIZE = RX_COMPLETION.size
# Word and shift of each completion field; the generation bit is in word 0, which is stored last. Without a raw checksum
# the bit that there is none has to be set, or Linux takes what is in its place for one (idpf_rx_csum).
_ALWAYS = (
    RXDID << RX_COMPLETION.rxdid.shift
    | 1 << RX_COMPLETION.rss_valid.shift
    | 1 << RX_COMPLETION.raw_checksum_invalid.shift
)
_EX_ADD = RX_COMPLETION.ipv6_ex_add.shift
_RX_ERROR = RX_COMPLETION.rx_error.shift
_PTYPE = RX_COMPLETION.packet_type.shift
_LENGTH = RX_COMPLETION.packet_length.shift
_GENERATION = RX_COMPLETION.generation.shift
_BUFFER_QUEUE = RX_COMPLETION.buffer_queue.shift
_HEADER_LENGTH = RX_COMPLETION.header_length.shift
_RSC = RX_COMPLETION.rsc.shift
_SPLIT = RX_COMPLETION.split_header.shift
_DONE = 1 << RX_COMPLETION.descriptor_done.shift
_EOP = RX_COMPLETION.end_of_packet.shift
_OVERFLOW = RX_COMPLETION.header_buffer_overflow.shift
_PROCESSED = RX_COMPLETION.l3_l4_processed.shift
_IP_ERROR = RX_COMPLETION.ip_checksum_error.shift
_L4_ERROR = RX_COMPLETION.l4_checksum_error.shift
_BUFFER_ID = RX_COMPLETION.buffer_id.shift
_RSC_SEGMENT = RX_COMPLETION.rsc_segment_length.shift
_STAMPED = 1 << RX_COMPLETION.timestamp_valid.shift
_TIMESTAMP = u64(RX_COMPLETION.timestamp.shift)

_U8 = u64(8)
_U16 = u64(16)
_U24 = u64(24)


class Words(NamedTuple):
    """What holds for the whole of a packet, in the words of its completions."""

    word0: int
    word1: int
    word2: int
    word3: int


@inlined
def _describe(headers: Records, packet: Packet, stamp: int) -> Words:
    """What the completions of a packet with these headers say of all of it."""
    h = headers[0]
    word0 = _ALWAYS | i64(ptype(h)) << _PTYPE | i64(h.ipv6_ex_add) << _EX_ADD
    word1 = _DONE | _STAMPED | packet.verified << _PROCESSED
    if packet.aggregated != 0:
        word0 |= 1 << _RSC
        word1 |= packet.aggregated << _RSC_SEGMENT
    if packet.errors & _BAD_IP:
        word1 |= 1 << _IP_ERROR
    if packet.errors & _BAD_L4:
        word1 |= 1 << _L4_ERROR
    return Words(word0, word1, packet.hash, i64(u64(stamp & 0xFFFFFFFF) << _TIMESTAMP))


@compiled
def _complete_later(
    state: State, queue: int, address: int, region: int, word0: int, word1: int, word2: int, word3: int
) -> None:  # fmt: skip
    """Have a completion written later, after the bytes that are."""
    words = state.completion
    words[0], words[1], words[2], words[3] = word0, word1, word2, word3
    if write_later(state, address, u64(words.ctypes.data), _COMPLETION_SIZE, COMPLETION):
        book(state, queue, _COMPLETION, region, _COMPLETION_SIZE)
    else:
        fault(state, address)


@inlined
def _complete(state: State, queue: int, word0: int, word1: int, word2: int, word3: int) -> None:
    """Write the next completion of a queue: the generation bit is added here, its word stored last."""
    rx = state.rx[queue]
    index = i64(rx.completion_index)
    address = rx.completion_ring + u64(index * _COMPLETION_SIZE)
    host, region = locate(state, address, _COMPLETION_SIZE, WRITE)
    word0 |= i64(rx.generation) << _GENERATION
    if host == 0:
        fault(state, address)
    elif state.device[0].unwritten != 0:  # the bytes that it is about may still be among them
        _complete_later(state, queue, address, region, word0, word1, word2, word3)
    else:
        store_u64(host + _U8, u64(word1))
        store_u64(host + _U16, u64(word2))
        store_u64(host + _U24, u64(word3))
        publish_u64(host, u64(word0))
        book(state, queue, _COMPLETION, region, _COMPLETION_SIZE)
    index += 1
    if index == rx.completion_entries:
        index = 0
        rx.generation ^= 1
    rx.completion_index = index


@inlined
def _behind(ring: Record, index: int, count: int) -> int:
    """The place in a ring of buffers that is `count` behind `index`."""
    place = index + count
    return place - i64(ring.buffer_entries) if place >= ring.buffer_entries else place


@inlined
def _descriptor(state: State, queue: int, ring: Record, index: int) -> int:
    """Where in this process the descriptor `index` of a ring of buffers is; 0: out of reach, which is a fault."""
    address = u64(ring.buffer_ring + u64(index * _BUFFER_SIZE))
    host, region = locate(state, address, _BUFFER_SIZE, READ)
    if host == 0:
        fault(state, address)
    else:
        book(state, queue, _DESCRIPTOR, region, _BUFFER_SIZE)
    return host


@compiled
def _reject(state: State, queue: int, ring: Record, count: int) -> None:
    """Hand the next `count` buffers of a ring back, each as a packet of no bytes, which Linux takes for none."""
    for _ in range(count):
        index = i64(ring.buffer_head)
        host = u64(_descriptor(state, queue, ring, index))
        if host == 0:
            return
        ring.buffer_head = _behind(ring, index, 1)
        word0 = _ALWAYS | 1 << _RX_ERROR | i64(ring.number) << _BUFFER_QUEUE
        _complete(state, queue, word0, _DONE | 1 << _EOP | i64(load_u16(host)) << _BUFFER_ID, 0, 0)
    rx = state.rx[queue]
    state.vectors[rx.vector].pending |= rx.cause


@inlined
def _place(state: State, batch: Batch, headers: Records, packet: Packet, ring: Record, stamp: int) -> int:
    """Put one packet into the next buffers of a ring, of which there are enough; the result is a `Drop`.

    `stamp` is what the device's clock shows.
    """
    queue = packet.queue
    rx = state.rx[queue]
    words = _describe(headers, packet, stamp)
    header = max(packet.header, i64(0))
    left = packet.length - header
    needed = buffers_needed(ring, header, packet.length)
    head = i64(ring.buffer_head)
    size = i64(ring.buffer_size)
    header_address = u64(0)
    # First look at all buffers, so that a bad address is found before anything is written.
    for k in range(needed):
        host = u64(_descriptor(state, queue, ring, _behind(ring, head, k)))
        if host == 0:
            return _DMA_FAULT
        good, address = look_at(
            state, k, host, _BUFFER_ADDRESS, _BUFFER_HEADER, header, min(size, left - k * size)
        )  # fmt: skip
        if not good:
            _reject(state, queue, ring, k + 1)
            return _DMA_FAULT
        if k == 0:
            header_address = address

    rest = put_header(state, packet, whole(packet), header, header_address)
    overflow = i64(1 if packet.header < 0 else 0)
    rx.header_overflow += overflow
    words0 = words.word0 | i64(ring.number) << _BUFFER_QUEUE
    for k in range(needed):
        count = min(size, left - k * size)
        rest = put_payload(state, batch, packet, rest, state.pieces[k].address, count)
        first = words0 | count << _LENGTH
        second = words.word1 | i64(state.pieces[k].identifier) << _BUFFER_ID
        if k == 0:
            second |= overflow << _OVERFLOW
            if header > 0:
                first |= header << _HEADER_LENGTH | 1 << _SPLIT
        if k == needed - 1:
            second |= 1 << _EOP
        _complete(state, queue, first, second, words.word2, words.word3)
    ring.buffer_head = _behind(ring, head, needed)
    rx.frames += 1
    rx.bytes += packet.length
    state.vectors[rx.vector].pending |= rx.cause
    return _NONE


@inlined
def _suits_small(state: State, queue: int, planned: Plan, merged: bool) -> bool:
    """Whether what a frame becomes is for the small buffers of its queue, if that has any."""
    small = state.small[queue]
    if merged or small.buffer_entries == 0:
        return False
    return bool(planned.longest - max(planned.split, i64(0)) <= i64(small.buffer_size))


@inlined
def _has_room(rx: Record, ring: Record, planned: Plan) -> bool:
    """Whether a ring of buffers is there and has room for what a frame becomes."""
    return bool(ring.buffer_entries != 0 and room(rx, ring, planned) == _NONE)


@inlined
def _count_cast(state: State, batch: Batch, number: int) -> None:
    """Count a frame that was delivered, if it was not for one station."""
    device = state.device[0]
    offset = i64(batch.frames[number].offset)
    data = batch.data
    if data[offset] & 1 == 0:
        return
    together = 0xFF
    for k in range(6):
        together &= i64(data[offset + k])
    if together == 0xFF:
        device.rx_broadcast += 1
    else:
        device.rx_multicast += 1


@inlined
def _deliver(
    state: State, batch: Batch, number: int, headers: Records, payload: int, flags: int, stamp: int
) -> int:  # fmt: skip
    """Take a frame with these headers to its queue, or all that is merged to it; the result is a `Drop`.

    `stamp` is what the device's clock shows.
    """
    outcome = batch.outcomes[number]
    queue = i64(outcome.queue)
    rx = state.rx[queue]
    first = i64(rx.completion_index)
    outcome.completion = first
    planned = plan(state, batch, number, headers, payload)
    merged = payload > 0 or (batch.frames[number].gso != 0 and planned.segment == 0)
    suits = _suits_small(state, queue, planned, merged)
    ring = state.small[queue] if suits else rx
    verdict = i64(room(rx, ring, planned))
    if verdict != _NONE and not merged:
        other = rx if suits else state.small[queue]
        if _has_room(rx, other, planned):
            ring = other
            verdict = _NONE
    for k in range(planned.packets if verdict == _NONE else i64(0)):
        packet = prepare(state, batch, number, headers, payload, flags, planned, k)
        verdict = i64(_place(state, batch, headers, packet, ring, stamp))
        if verdict != _NONE:
            break
    # Each buffer that is used, or handed back, has a completion of its own.
    outcome.completions = distance(first, rx.completion_index, rx.completion_entries)
    if verdict == _NONE:
        _count_cast(state, batch, number)
    return verdict


@compiled
def receive_split(
    state: State, data: npt.NDArray[np.uint8], frames: Records, count: int, now: int, oldest: int, limit: int,
    held_data: npt.NDArray[np.uint8], held_frames: Records, held: npt.NDArray[np.int64], outcomes: Records,
) -> int:  # fmt: skip
    """See `nicmodel.nic.ingress.Receive`."""
    batch = Batch(data, frames, count, now, oldest, limit, held_data, held_frames, held, outcomes)
    stamp = time_at(state.device[0], now)
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
                verdict = i64(_deliver(state, batch, at, headers, unit.payload, unit.flags, stamp))
                done, at = settle(state, batch, at, unit.frames, verdict)
                delivered += done
    return delivered
