"""The rings of a receive queue in the DQO formats: descriptors are taken from one, completions written to the other.

These are the stages of `nicmodel.gvnic.receive_dqo`, and of the options that hand buffers back themselves.

The rules of placement are those that Linux checks in drivers/net/ethernet/google/gve/gve_rx_dqo.c.
"""

from __future__ import annotations

from typing import NamedTuple

from nicmodel.gvnic.descriptors import RX_BUFFER, RX_COMPLETION, RXDID
from nicmodel.gvnic.state import State
from nicmodel.jit.addresses import load_u16, publish_u64, store_u64
from nicmodel.jit.compiled import compiled, i64, inlined, u64
from nicmodel.nic.dma import READ, WRITE, book, fault, locate
from nicmodel.nic.messages import COMPLETION, write_later
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.receive import Batch, Packet, ptype, put_header, put_payload, whole
from nicmodel.nic.state import Records
from nicmodel.packet.checksum import ChecksumError

_DESCRIPTOR = int(Purpose.DESCRIPTOR)
_COMPLETION = int(Purpose.COMPLETION)
_BAD_IP = int(ChecksumError.IP)
_BAD_L4 = int(ChecksumError.L4)

#: Bytes of a descriptor of the buffer ring, and where in it the addresses are.
BUFFER_SIZE = RX_BUFFER.size
BUFFER_ADDRESS = u64(RX_BUFFER.buffer_address.bit // 8)
BUFFER_HEADER = u64(RX_BUFFER.header_address.bit // 8)
_COMPLETION_SIZE = RX_COMPLETION.size
# Word and shift of each completion field; the generation bit is in word 0, which is stored last.
_RXDID = RXDID << RX_COMPLETION.rxdid.shift
_EX_ADD = RX_COMPLETION.ipv6_ex_add.shift
_RX_ERROR = RX_COMPLETION.rx_error.shift
_PTYPE = RX_COMPLETION.packet_type.shift
_LENGTH = RX_COMPLETION.packet_length.shift
_GENERATION = RX_COMPLETION.generation.shift
_HEADER_LENGTH = RX_COMPLETION.header_length.shift
_RSC = RX_COMPLETION.rsc.shift
_SPLIT = RX_COMPLETION.split_header.shift
_DONE = 1 << RX_COMPLETION.descriptor_done.shift
_EOP = RX_COMPLETION.end_of_packet.shift
_OVERFLOW = RX_COMPLETION.header_buffer_overflow.shift
_PROCESSED = RX_COMPLETION.l3_l4_processed.shift
_IP_ERROR = RX_COMPLETION.ip_checksum_error.shift
_L4_ERROR = RX_COMPLETION.l4_checksum_error.shift
_TS_VALID = RX_COMPLETION.timestamp_valid.shift
_BUFFER_ID = RX_COMPLETION.buffer_id.shift
_RSC_SEGMENT = RX_COMPLETION.rsc_segment_length.shift
_TIMESTAMP = RX_COMPLETION.timestamp.shift

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
def describe(state: State, batch: Batch, headers: Records, packet: Packet) -> Words:
    """What the completions of a packet with these headers say of all of it."""
    h = headers[0]
    word0 = _RXDID | ptype(h) << _PTYPE | i64(h.ipv6_ex_add) << _EX_ADD
    word1 = _DONE | i64(state.device[0].timestamps) << _TS_VALID | packet.verified << _PROCESSED
    if packet.aggregated != 0:
        word0 |= 1 << _RSC
        word1 |= packet.aggregated << _RSC_SEGMENT
    if packet.errors & _BAD_IP:
        word1 |= 1 << _IP_ERROR
    if packet.errors & _BAD_L4:
        word1 |= 1 << _L4_ERROR
    return Words(word0, word1, packet.hash, i64(u64(batch.now & 0xFFFFFFFF) << u64(_TIMESTAMP)))


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
def _complete_buffer(state: State, queue: int, word0: int, word1: int, word2: int, word3: int) -> None:
    """Write the next completion of a queue: the generation bit is added here, its word stored last."""
    rx = state.rx[queue]
    index = i64(rx.completion_index)
    address = rx.completion_ring + u64(index * _COMPLETION_SIZE)
    host, region = locate(state, address, _COMPLETION_SIZE, WRITE)
    if host == 0:
        fault(state, address)
    elif state.device[0].unwritten != 0:  # the bytes that it is about may still be among them
        _complete_later(state, queue, address, region, word0 | i64(rx.generation) << _GENERATION, word1, word2, word3)
    else:
        store_u64(host + _U8, u64(word1))
        store_u64(host + _U16, u64(word2))
        store_u64(host + _U24, u64(word3))
        publish_u64(host, u64(word0 | i64(rx.generation) << _GENERATION))
        book(state, queue, _COMPLETION, region, _COMPLETION_SIZE)
    index += 1
    if index == rx.completion_entries:
        index = 0
        rx.generation ^= 1
    rx.completion_index = index


@inlined
def refuse(state: State, queue: int, identifier: int, flags: int) -> None:
    """Hand a buffer back unused, as a packet with an error of its own, and with `flags` in the second word."""
    word1 = flags | _DONE | 1 << _EOP | identifier << _BUFFER_ID
    _complete_buffer(state, queue, _RXDID | 1 << _RX_ERROR, word1, 0, 0)
    state.vectors[state.rx[queue].vector].pending = 1


@inlined
def descriptor_address(state: State, queue: int, index: int) -> int:
    """Guest address of the descriptor `index` of the buffer ring."""
    return u64(state.rx[queue].buffer_ring + u64(index * BUFFER_SIZE))


@inlined
def descriptor(state: State, queue: int, index: int) -> int:
    """Where in this process the descriptor `index` of the buffer ring is; 0: out of reach."""
    host, region = locate(state, descriptor_address(state, queue, index), BUFFER_SIZE, READ)
    if host != 0:
        book(state, queue, _DESCRIPTOR, region, BUFFER_SIZE)
    return host


@compiled
def reject(state: State, queue: int, count: int, flags: int) -> None:
    """Hand the next `count` buffers back unused (`refuse`)."""
    rx = state.rx[queue]
    for _ in range(count):
        index = i64(rx.buffer_head)
        host = u64(descriptor(state, queue, index))
        if host == 0:
            return
        rx.buffer_head = (index + 1) & (rx.buffer_entries - 1)
        refuse(state, queue, i64(load_u16(host)), flags)


@inlined
def fill(state: State, batch: Batch, packet: Packet, words: Words, header_address: int, needed: int) -> None:
    """Write a packet to the `needed` buffers that were looked at, and their completions."""
    queue = packet.queue
    rx = state.rx[queue]
    size = i64(rx.buffer_size)
    header = max(packet.header, i64(0))
    overflow = i64(1 if packet.header < 0 else 0)
    left = packet.length - header
    rest = put_header(state, packet, whole(packet), header, header_address)
    rx.header_overflow += overflow
    for k in range(needed):
        piece = min(size, left - k * size)
        rest = put_payload(state, batch, packet, rest, state.pieces[k].address, piece)
        first = words.word0 | piece << _LENGTH
        second = words.word1 | i64(state.pieces[k].identifier) << _BUFFER_ID
        if k == 0:
            second |= overflow << _OVERFLOW
            if header > 0:
                first |= header << _HEADER_LENGTH | 1 << _SPLIT
        if k == needed - 1:
            second |= 1 << _EOP
        _complete_buffer(state, queue, first, second, words.word2, words.word3)
    rx.buffer_head = (i64(rx.buffer_head) + needed) & i64(rx.buffer_entries - 1)
    rx.frames += 1
    rx.bytes += packet.length
    state.vectors[rx.vector].pending = 1
