"""Receive: a batch of frames from a wire to the guest's queues, in one compiled call.

A frame's way: parse, admit (is it ours, does it fit), steer (flow rule, else RSS), coalesce (on queues with RSC),
verify checksums, place (header and payload by DMA, completions). Interrupts are decided afterwards, once for the batch
(`nicmodel.nic.moderation`).

TCP segments of one flow that follow one another in the batch become one packet. They stay where they are until it is
placed: each piece of payload is copied once, from the batch into the driver's buffers. Nothing is kept back when the
batch ends.

A frame for whose buffers the driver is late is *held* in a backlog of a bounded size, and tried again when the driver
posts buffers; frames of that queue that come later queue up behind it. The rules of placement are those that Linux
checks in drivers/net/ethernet/google/gve/gve_rx_dqo.c.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.ddp import place_directly
from nicmodel.gvnic.deferred import ELSE_DROP, has_room, keep
from nicmodel.gvnic.descriptors import RX_BUFFER, RX_COMPLETION, RX_DDP, RX_DEFERRED, RX_FLUSHED, RXDID
from nicmodel.gvnic.owners import NOTHING, exchange, fetch, owned, owner_of
from nicmodel.gvnic.receive_gqi import place_gqi
from nicmodel.gvnic.state import MAX_SEGMENTS, State
from nicmodel.jit.addresses import copy, load_u16, load_u64, publish_u64, store_u64
from nicmodel.jit.compiled import Record, compiled, i64, inlined, u64
from nicmodel.nic.dma import READ, WRITE, fault, locate, reachable, write
from nicmodel.nic.messages import COMPLETION, post
from nicmodel.nic.state import Drop, Purpose, Records
from nicmodel.packet.checksum import ChecksumError, complete, verifiable, verify
from nicmodel.packet.coalesce import (
    MAX_IP,
    continues,
    extend,
    is_last,
    merge_header,
    mergeable,
    open_aggregate,
    same_flow,
)
from nicmodel.packet.frames import FrameFlag, Gso
from nicmodel.packet.headers import L3, L4
from nicmodel.packet.match import match
from nicmodel.packet.parse import VLAN_SIZE, parse
from nicmodel.packet.rss import flow_hash
from nicmodel.packet.segment import segment_header
from nicmodel.packet.split import split_point

# The enumerations' values as plain integers: compiled code takes globals as constants.
_NONE = int(Drop.NONE)
_HELD = int(Drop.HELD)
_RUNT = int(Drop.RUNT)
_NOT_OURS = int(Drop.NOT_OURS)
_OVER_MRU = int(Drop.OVER_MRU)
_NO_QUEUE = int(Drop.NO_QUEUE)
_NO_BUFFERS = int(Drop.NO_BUFFERS)
_DMA_FAULT = int(Drop.DMA_FAULT)
_DEVICE_DOWN = int(Drop.DEVICE_DOWN)
_BAD_GSO = int(Drop.BAD_GSO)
_NIC_MEMORY_FULL = int(Drop.NIC_MEMORY_FULL)
_PAYLOAD = int(Purpose.PAYLOAD)
_HEADER = int(Purpose.HEADER)
_DESCRIPTOR = int(Purpose.DESCRIPTOR)
_COMPLETION = int(Purpose.COMPLETION)
_TCP = int(L4.TCP)
_UDP = int(L4.UDP)
_SCTP = int(L4.SCTP)
_L4_OTHER = int(L4.OTHER)
_IPV4 = int(L3.IPV4)
_NEEDS_CSUM = int(FrameFlag.NEEDS_CSUM)
_CSUM_VALID = int(FrameFlag.CSUM_VALID)
_VOUCHED = int(FrameFlag.NEEDS_CSUM | FrameFlag.CSUM_VALID)
_GSO_NONE = int(Gso.NONE)
_GSO_UDP = int(Gso.UDP_L4)
_BAD_IP = int(ChecksumError.IP)
_BAD_L4 = int(ChecksumError.L4)

_BUFFER_SIZE = RX_BUFFER.size
_BUFFER_ADDRESS = u64(RX_BUFFER.buffer_address.bit // 8)
_BUFFER_HEADER = u64(RX_BUFFER.header_address.bit // 8)
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
_FLUSHED = 1 << RX_FLUSHED.flushed.shift
_DEFERRED = RX_DEFERRED.deferred.shift
_KEPT_LENGTH = RX_DEFERRED.payload_length.shift
_HANDLE = RX_DEFERRED.handle.shift
_PLACEMENTS = RX_DDP.placements.shift
_ANY_PLACEMENTS = RX_DDP.placements.mask
#: Which bits of word 1 say that the checksums were verified, and are right.
_CHECKED = 1 << _PROCESSED | 1 << _IP_ERROR | 1 << _L4_ERROR

#: Ethernet pads frames to this length, FCS not counted (IEEE 802.3, 3.2.8); a VLAN tag put in later adds to it.
_SHORTEST = 60

#: Linux copies packets up to this length into one buffer and then forgets how many segments they had: such a packet is
#: not worth aggregating (gve's rx_copybreak).
_COPYBREAK = 256

_U8 = u64(8)
_U16 = u64(16)
_U24 = u64(24)


class _Batch(NamedTuple):
    """What `receive` was called with, for the functions below."""

    data: npt.NDArray[np.uint8]
    frames: Records
    outcomes: Records
    now: int
    limit: int
    held_data: npt.NDArray[np.uint8]
    held_frames: Records
    held: npt.NDArray[np.int64]


@inlined
def _ptype(headers: Records) -> int:
    """Index into the packet-type map: ``l3 << 3 | l4``; SCTP's CRC32c is not verified, so no claim is made for it."""
    h = headers[0]
    l4 = i64(h.l4)
    if l4 == _SCTP:
        l4 = _L4_OTHER
    return i64(h.l3) << 3 | l4


@compiled
def _post_completion(
    state: State, queue: int, address: int, word0: int, word1: int, word2: int, word3: int
) -> None:  # fmt: skip
    """Have a completion written after what was posted before it."""
    words = state.completion
    words[0], words[1], words[2], words[3] = word0, word1, word2, word3
    if post(state, address, u64(words.ctypes.data), _COMPLETION_SIZE, COMPLETION):
        state.ledger[queue, _COMPLETION, state.regions[state.device[0].region].kind] += _COMPLETION_SIZE
    else:
        fault(state, address)


@inlined
def _complete_buffer(state: State, queue: int, word0: int, word1: int, word2: int, word3: int) -> None:
    """Write the next completion of a queue: the generation bit is added here, its word stored last."""
    rx = state.rx[queue]
    index = i64(rx.completion_index)
    address = rx.completion_ring + u64(index * _COMPLETION_SIZE)
    host = locate(state, address, _COMPLETION_SIZE, WRITE)
    if host == 0:
        fault(state, address)
    elif state.device[0].posted != 0:  # the bytes that it is about may still be among them
        _post_completion(state, queue, address, word0 | i64(rx.generation) << _GENERATION, word1, word2, word3)
    else:
        store_u64(host + _U8, u64(word1))
        store_u64(host + _U16, u64(word2))
        store_u64(host + _U24, u64(word3))
        publish_u64(host, u64(word0 | i64(rx.generation) << _GENERATION))
        state.ledger[queue, _COMPLETION, state.regions[state.device[0].region].kind] += _COMPLETION_SIZE
    index += 1
    if index == rx.completion_entries:
        index = 0
        rx.generation ^= 1
    rx.completion_index = index


@inlined
def _descriptor(state: State, queue: int, address: int, index: int, owners: int) -> int:
    """Where in this process the descriptor `index` of the queue's buffers is; 0: out of reach."""
    if owners != 0:
        return u64(owned(state, queue, index))
    return u64(locate(state, address, _BUFFER_SIZE, READ))


@compiled
def _reject(state: State, queue: int, count: int, flags: int) -> None:
    """Hand the next `count` buffers back unused, each as a packet with an error of its own, and with `flags`."""
    rx = state.rx[queue]
    for _ in range(count):
        index = i64(rx.buffer_head)
        host = _descriptor(state, queue, rx.buffer_ring + u64(index * _BUFFER_SIZE), index, i64(rx.owners))
        if host == 0:
            return
        state.ledger[queue, _DESCRIPTOR, state.regions[state.device[0].region].kind] += _BUFFER_SIZE
        identifier = i64(load_u16(host))
        rx.buffer_head = (index + 1) & (rx.buffer_entries - 1)
        _refuse(state, queue, identifier, flags)
    state.vectors[rx.vector].pending = 1


@inlined
def _refuse(state: State, queue: int, identifier: int, flags: int) -> None:
    word1 = flags | _DONE | 1 << _EOP | identifier << _BUFFER_ID
    _complete_buffer(state, queue, _RXDID | 1 << _RX_ERROR, word1, 0, 0)


@compiled
def _sort(state: State, queue: int) -> None:
    """Have the buffers of a queue with several owners sorted; those of nobody are handed back."""
    identifier = fetch(state, queue)
    while identifier != NOTHING:
        _refuse(state, queue, identifier, 0)
        state.vectors[state.rx[queue].vector].pending = 1
        identifier = fetch(state, queue)


@compiled
def _turn_to_owner(state: State, queue: int, owner: int) -> bool:
    """Have an owner's buffers stand in for the queue's ring; false if the queue has no such owner now."""
    rx = state.rx[queue]
    if owner >= rx.owners or state.owners[queue, owner].closed != 0:
        return False
    _sort(state, queue)
    exchange(state, queue, owner)
    return True


@compiled
def _turn_back(state: State, queue: int, used: int, length: int) -> None:
    """The queue's ring again: `used` buffers of the owner's were, for a packet of `length` bytes; 0: for none."""
    rx = state.rx[queue]
    owner = i64(rx.owner)
    exchange(state, queue, owner)
    rx.sorted -= used
    if length > 0:
        state.owners[queue, owner].packets += 1
        state.owners[queue, owner].bytes += length


@compiled
def _hand_back_list(state: State, queue: int) -> int:
    rx = state.rx[queue]
    count = (i64(rx.buffer_tail) - i64(rx.buffer_head)) & rx.position_mask
    _reject(state, queue, count, _FLUSHED)
    rx.buffer_head = rx.buffer_tail
    return i64(count)


@compiled
def hand_back(state: State, queue: int, owner: int) -> None:
    """Hand the buffers of a queue back unused, all (`NOTHING`) or those of one owner, and have none of them.

    Those of a ring that is out of reach are forgotten.
    """
    rx = state.rx[queue]
    if rx.owners == 0:
        _hand_back_list(state, queue)
        return
    lookahead = i64(rx.lookahead)
    rx.lookahead = rx.buffer_entries
    _sort(state, queue)
    rx.lookahead = lookahead
    rx.buffer_head = rx.buffer_tail
    for number in range(i64(rx.owners)):
        if owner in (NOTHING, number):
            exchange(state, queue, number)
            count = _hand_back_list(state, queue)
            exchange(state, queue, number)
            rx.sorted -= count


@inlined
def _buffers_needed(rx: Record, header: int, length: int) -> int:
    """Buffers that a packet of `length` bytes takes when `header` bytes of it go to the header buffer."""
    size = i64(rx.buffer_size)
    return max(1, (length - header + i64(rx.padding) + size - 1) // size)


@inlined
def _place(
    state: State,
    queue: int,
    batch: _Batch,
    number: int,
    segment: int,
    data: npt.NDArray[np.uint8],
    offset: int,
    contiguous: int,
    header: int,
    word0: int,
    word1: int,
    hash_value: int,
) -> int:
    """Put one packet of ``state.headers[0].length`` bytes into the queue's next buffers.

    Its first `contiguous` bytes, at least the headers, are at `offset` of `data`. If there are more, they are the
    payload of the batch's frame `number` and of those that follow it in the packet (`OUTCOME`), `segment` bytes each.
    `header` is the split point, 0 when nothing goes to the header buffer, -1 when the header does not fit it. `word0`
    and `word1` are the completion's fields that hold for the whole packet. Enough buffers are known to be there.
    """
    if state.device[0].gqi != 0:
        return place_gqi(state, queue, data, offset, hash_value)
    rx = state.rx[queue]
    word2 = hash_value
    word3 = u64(batch.now & 0xFFFFFFFF) << u64(_TIMESTAMP)
    if state.device[0].ddp_flows != 0 and rx.deferred == 0 and word1 & _CHECKED == 1 << _PROCESSED:
        placed, resync = place_directly(state, queue, batch, number, segment, data, offset, contiguous)
        word2 |= placed << _PLACEMENTS
        word3 |= u64(resync)
        if placed & _ANY_PLACEMENTS != 0:
            data = state.ddp_rest
            offset = i64(0)
            contiguous = i64(state.headers[0].length)
    length = i64(state.headers[0].length)
    overflow = 0
    if header < 0:
        header = 0
        overflow = 1
    left = length - header
    needed = _buffers_needed(rx, header, length)
    mask = i64(rx.buffer_entries - 1)
    head = i64(rx.buffer_head)
    size = i64(rx.buffer_size)
    header_address = u64(0)
    payload = i64(state.headers[0].payload)
    owners = i64(rx.owners)
    kept = 0  # bytes that stay on the NIC
    if rx.deferred != 0 and header > 0 and left > 0:
        if has_room(state, queue, left):
            kept = left
            left = 0
            needed = 1
        elif rx.deferred == ELSE_DROP:
            return _NIC_MEMORY_FULL

    # First look at all buffers, so that a bad address is found before anything is written.
    for k in range(needed):
        address = rx.buffer_ring + u64(((head + k) & mask) * _BUFFER_SIZE)
        host = _descriptor(state, queue, address, (head + k) & mask, owners)
        if host == 0:
            fault(state, address)
            return _DMA_FAULT
        if owners == 0:
            state.ledger[queue, _DESCRIPTOR, state.regions[state.device[0].region].kind] += _BUFFER_SIZE
        state.pieces[k].address = load_u64(host + _BUFFER_ADDRESS)
        state.pieces[k].identifier = load_u16(host)
        if k == 0 and header > 0:
            header_address = load_u64(host + _BUFFER_HEADER)
            if not reachable(state, header_address, header, WRITE):
                fault(state, header_address)
                _reject(state, queue, 1, 0)
                return _DMA_FAULT
        if not reachable(state, state.pieces[k].address, min(size, left - k * size), WRITE):
            fault(state, state.pieces[k].address)
            _reject(state, queue, k + 1, 0)
            return _DMA_FAULT

    position = u64(data.ctypes.data) + u64(offset)
    if header > 0:
        write(state, queue, _HEADER, header_address, position, header)
        rx.split += 1
    rx.header_overflow += overflow
    position += u64(header)
    contiguous -= header
    if kept > 0:
        handle = keep(
            state, queue, batch.data, batch.frames, batch.outcomes, number, payload, segment, position, contiguous,
            kept, batch.now,
        )  # fmt: skip
        word1 |= 1 << _DEFERRED
        word2 |= kept << _KEPT_LENGTH
        word3 |= u64(handle) << u64(_HANDLE)
    for k in range(needed):
        piece = min(size, left - k * size)
        done = 0
        while done < piece:
            if contiguous == 0:
                position = u64(batch.data.ctypes.data) + u64(batch.frames[number].offset) + u64(payload)
                contiguous = segment
                number = i64(batch.outcomes[number].next)
            count = min(piece - done, contiguous)
            write(state, queue, _PAYLOAD, state.pieces[k].address + u64(done), position, count)
            position += u64(count)
            contiguous -= count
            done += count
        first = word0 | piece << _LENGTH
        second = word1 | i64(state.pieces[k].identifier) << _BUFFER_ID
        if k == 0:
            second |= overflow << _OVERFLOW
            if header > 0:
                first |= header << _HEADER_LENGTH | 1 << _SPLIT
        if k == needed - 1:
            second |= 1 << _EOP
        _complete_buffer(state, queue, first, second, word2, word3)
    rx.buffer_head = (head + needed) & mask
    rx.frames += 1
    rx.bytes += length
    state.vectors[rx.vector].pending = 1
    return _NONE


@inlined
def _steer(state: State, data: npt.NDArray[np.uint8], offset: int, outcome: Record) -> int:
    """The receive queue of the parsed frame: of the first flow rule that matches, else by hash and table."""
    device = state.device[0]
    value, _ = flow_hash(data, offset, state.headers, i64(device.hash_types), state.hash_table)
    outcome.hash = value
    if device.rule_groups > 0:
        location = match(state.rule_groups[: device.rule_groups], state.rule_slots, data, offset, state.headers)
        if location >= 0:
            outcome.rule = location
            return i64(state.rules[location].action)
    return i64(state.lut[value % i64(device.lut_size)])


@inlined
def _split_of(state: State, rx: Record) -> int:
    if rx.header_size > 0:
        return split_point(state.headers, i64(rx.header_size))
    return 0


@inlined
def _trailer(state: State, rx: Record, frame: Record) -> int:
    """Bytes behind the frame's IP packet that go to the queue with it, such as the trailer of PRP (IEC 62439-3).

    They do not where Ethernet's padding is what follows the packet, nor where the header is split, or data placed
    directly: there the rest of the frame has to be payload.
    """
    h = state.headers[0]
    behind = i64(frame.length) - i64(h.length)
    if behind == 0 or rx.header_size > 0 or state.device[0].ddp_flows != 0:
        return i64(0)
    if i64(frame.length) <= _SHORTEST + VLAN_SIZE * i64(h.vlans):
        return i64(0)
    return behind


@inlined
def _room(rx: Record, needed: int) -> int:
    """Whether a frame that needs `needed` buffers goes to the queue now."""
    entries = i64(rx.buffer_entries)
    if needed >= entries:
        return _NO_BUFFERS
    visible = (i64(rx.buffer_tail) - i64(rx.buffer_head)) & rx.position_mask
    if rx.held > 0 or visible < needed:
        return _HELD
    return _NONE


@compiled
def _deliver_segments(state: State, batch: _Batch, number: int, word0: int) -> int:
    """Cut an aggregated frame into the packets it stands for, and place each."""
    frame = batch.frames[number]
    queue = i64(batch.outcomes[number].queue)
    hash_value = i64(batch.outcomes[number].hash)
    rx = state.rx[queue]
    h = state.headers[0]
    header = i64(h.payload)
    payload = i64(h.length) - header
    size = i64(frame.segment)
    count = (payload + size - 1) // size
    h.length = header + size
    split = _split_of(state, rx)
    needed = count * _buffers_needed(rx, max(split, 0), header + size)
    room = _room(rx, needed)
    if room != _NONE:
        h.length = header + payload
        return room
    segment = state.segment
    base = u64(batch.data.ctypes.data) + u64(frame.offset)
    target = u64(segment.ctypes.data)
    word1 = _DONE | 1 << _PROCESSED | i64(state.device[0].timestamps) << _TS_VALID
    for k in range(count):
        piece = min(size, payload - k * size)
        copy(target, base, header)
        copy(target + u64(header), base + u64(header + k * size), piece)
        h.length = header + piece
        segment_header(segment, 0, state.headers, k * size, piece, k, k == 0, k == count - 1)
        complete(segment, 0, state.headers, False)
        split = _split_of(state, rx)
        verdict = _place(
            state, queue, batch, number, 0, segment, 0, header + piece, split, word0, word1, hash_value
        )  # fmt: skip
        if verdict != _NONE:
            return verdict
    return _NONE


@inlined
def _deliver_whole(state: State, batch: _Batch, number: int, word0: int, payload: int, flags: int) -> int:
    """Place one packet: a frame as it is, which may be an aggregated one, or what is coalesced from `number` on."""
    frame = batch.frames[number]
    outcome = batch.outcomes[number]
    offset = i64(frame.offset)
    queue = i64(outcome.queue)
    rx = state.rx[queue]
    h = state.headers[0]
    data = batch.data
    contiguous = i64(h.length)
    segment = contiguous - i64(h.payload)
    trailer = i64(0)
    if payload > 0:
        h.length = h.payload + payload
    elif frame.gso == _GSO_NONE:
        trailer = i64(_trailer(state, rx, frame))
    split = _split_of(state, rx)
    outcome.header = split
    room = _room(rx, _buffers_needed(rx, max(split, 0), i64(h.length) + trailer))
    if room != _NONE:
        return room
    word1 = _DONE | i64(state.device[0].timestamps) << _TS_VALID
    if payload > 0:
        # The batch may be on its way to other NICs too, so the header of the whole is made elsewhere.
        contiguous = i64(h.payload)
        copy(u64(state.segment.ctypes.data), u64(data.ctypes.data) + u64(offset), contiguous)
        data = state.segment
        offset = i64(0)
        merge_header(data, offset, state.headers, payload, flags)
        word0 |= 1 << _RSC
        word1 |= 1 << _PROCESSED | segment << _RSC_SEGMENT
        rx.aggregated += 1
    elif frame.gso != _GSO_NONE:
        word0 |= 1 << _RSC
        word1 |= 1 << _PROCESSED | i64(frame.segment) << _RSC_SEGMENT
        rx.aggregated += 1
    elif frame.flags & _VOUCHED != 0:
        if frame.flags & _NEEDS_CSUM != 0:
            complete(data, offset, state.headers, False)
        word1 |= 1 << _PROCESSED
    elif verifiable(state.headers):
        errors = verify(data, offset, state.headers)
        word1 |= 1 << _PROCESSED
        if errors & _BAD_IP:
            word1 |= 1 << _IP_ERROR
        if errors & _BAD_L4:
            word1 |= 1 << _L4_ERROR
        if errors:
            rx.bad_checksum += 1
    h.length += trailer
    contiguous += trailer
    hash_value = i64(outcome.hash)
    return i64(_place(state, queue, batch, number, segment, data, offset, contiguous, split, word0, word1, hash_value))


@compiled
def _deliver(state: State, batch: _Batch, number: int, payload: int, flags: int) -> int:
    """Take one parsed frame to its queue, or, with `payload` > 0, all that is merged to it; the result is a `Drop`."""
    frame = batch.frames[number]
    outcome = batch.outcomes[number]
    rx = state.rx[outcome.queue]
    h = state.headers[0]
    if rx.owners != 0 and not _turn_to_owner(state, i64(outcome.queue), owner_of(state, outcome)):
        return _NO_BUFFERS
    head = i64(rx.buffer_head)
    outcome.completion = rx.completion_index
    if state.device[0].gqi != 0:  # slots and descriptors are two sides of one ring
        outcome.completion = head & i64(rx.buffer_entries - 1)
    word0 = _RXDID | _ptype(state.headers) << _PTYPE | i64(h.ipv6_ex_add) << _EX_ADD
    total = i64(h.length)
    if frame.gso == _GSO_NONE or (
        frame.gso != _GSO_UDP and rx.rsc != 0 and total > _COPYBREAK and total - i64(h.l3_offset) <= MAX_IP
    ):
        verdict = i64(_deliver_whole(state, batch, number, word0, payload, flags))
    else:
        verdict = i64(_deliver_segments(state, batch, number, word0))
    # Each buffer that is used, or handed back, has a completion of its own.
    outcome.completions = (i64(rx.buffer_head) - head) & rx.position_mask
    if rx.owners != 0:
        _turn_back(state, i64(outcome.queue), i64(outcome.completions), total if verdict == _NONE else 0)
    return verdict


@inlined
def _admit(state: State, batch: _Batch, number: int, oldest: int) -> int:
    """Parse one frame and find its queue; the result is a `Drop`."""
    device = state.device[0]
    data = batch.data
    frame = batch.frames[number]
    outcome = batch.outcomes[number]
    offset = i64(frame.offset)
    length = i64(frame.length)
    if device.running == 0:
        return _DEVICE_DOWN
    if length < 14:
        return _RUNT
    if data[offset] & 1 == 0 and device.promiscuous == 0:
        address = i64(0)
        for k in range(6):
            address = address << 8 | i64(data[offset + k])
        if address != device.mac:
            return _NOT_OURS
    parse(data, offset, length, state.headers)
    h = state.headers[0]
    if frame.gso == _GSO_NONE:
        if length > device.max_frame:
            return _OVER_MRU
    else:
        if frame.segment == 0 or (h.l4 != _TCP and h.l4 != _UDP) or h.length <= h.payload:
            return _BAD_GSO
        if i64(h.payload) + i64(frame.segment) > device.max_frame:
            return _OVER_MRU

    queue = _steer(state, data, offset, outcome)
    outcome.queue = queue
    if queue < 0 or queue >= len(state.rx) or state.rx[queue].active == 0:
        return _NO_QUEUE
    if frame.time != 0 and i64(frame.time) < oldest:
        return _NO_BUFFERS
    return _NONE


@compiled
def _hold(state: State, batch: _Batch, number: int) -> int:
    """Keep a copy of a frame that found no buffers."""
    frame = batch.frames[number]
    rx = state.rx[batch.outcomes[number].queue]
    held = batch.held
    length = i64(frame.length)
    count = held[0]
    used = held[1]
    if rx.held >= batch.limit or count == len(batch.held_frames) or used + length > len(batch.held_data):
        return _NO_BUFFERS
    source = u64(batch.data.ctypes.data) + u64(frame.offset)
    copy(u64(batch.held_data.ctypes.data) + u64(used), source, length)
    kept = batch.held_frames[count]
    kept.offset = used
    kept.length = length
    kept.time = batch.now if frame.time == 0 else i64(frame.time)
    kept.flags = frame.flags
    kept.gso = frame.gso
    kept.segment = frame.segment
    kept.header = frame.header
    kept.csum_start = frame.csum_start
    kept.csum_offset = frame.csum_offset
    held[0] = count + 1
    held[1] = used + length
    rx.held += 1
    if rx.owners != 0:
        state.owners[batch.outcomes[number].queue, owner_of(state, batch.outcomes[number])].held += 1
    return _HELD


@inlined
def _settle(state: State, batch: _Batch, number: int, verdict: int) -> int:
    """Book how a frame ended; 1 if it was delivered."""
    outcome = batch.outcomes[number]
    queue = i64(outcome.queue)
    if verdict == _HELD:
        verdict = i64(_hold(state, batch, number))
    outcome.verdict = verdict
    if outcome.rule >= 0 and verdict != _HELD:
        state.rules[outcome.rule].hits += u64(1)
    if verdict == _NONE:
        return 1
    if queue >= 0 and queue < len(state.rx):
        state.drops[queue, verdict] += 1
    else:
        state.drops[len(state.drops) - 1, verdict] += 1
    return 0


@compiled
def _deliver_aggregate(state: State, batch: _Batch, index: int) -> int:
    """Deliver an open aggregate; the number of frames delivered. What `state.headers` held is lost."""
    device = state.device[0]
    aggregate = state.aggregates[index]
    number = i64(aggregate.first)
    count = i64(aggregate.count)
    payload = i64(aggregate.payload)
    flags = i64(aggregate.tcp_flags)
    length = i64(aggregate.header) + payload
    device.aggregates -= 1
    for k in range(index, i64(device.aggregates)):
        state.aggregates[k] = state.aggregates[k + 1]

    delivered = 0
    frame = batch.frames[number]
    first = batch.outcomes[number]
    rx = state.rx[first.queue]
    if count > 1 and (length > _COPYBREAK or rx.header_size > 0):
        parse(batch.data, i64(frame.offset), i64(frame.length), state.headers)
        verdict = _deliver(state, batch, number, payload, flags)
        if verdict == _NONE:
            rx.coalesced += count
        for _ in range(count):
            outcome = batch.outcomes[number]
            outcome.header = first.header
            outcome.completion = first.completion
            outcome.completions = first.completions
            following = i64(outcome.next)
            if verdict != _NONE:
                outcome.next = -1
            delivered += _settle(state, batch, number, verdict)
            number = following
    else:
        for _ in range(count):
            frame = batch.frames[number]
            following = i64(batch.outcomes[number].next)
            batch.outcomes[number].next = -1
            parse(batch.data, i64(frame.offset), i64(frame.length), state.headers)
            delivered += _settle(state, batch, number, _deliver(state, batch, number, i64(0), i64(0)))
            number = following
    return delivered


@inlined
def _fits(rx: Record, aggregate: Record, more: int) -> bool:
    """Whether `more` bytes of payload may be added: to an IP packet, and to the buffers that are there."""
    payload = i64(aggregate.payload) + more
    if i64(aggregate.header) - i64(aggregate.l3_offset) + payload > MAX_IP:
        return False
    visible = (i64(rx.buffer_tail) - i64(rx.buffer_head)) & rx.position_mask
    header = i64(aggregate.header)
    split = header if header <= rx.header_size else 0
    return bool(_buffers_needed(rx, split, header + payload) <= visible)


@compiled
def _coalesce(state: State, batch: _Batch, number: int, more_come: bool) -> tuple[bool, int]:
    """Let the parsed TCP frame, or fragment, join an aggregate or open one.

    Returns:
        Whether it was taken, and the number of frames delivered: those of aggregates that it has ended, or that it must
        not overtake.
    """
    device = state.device[0]
    frame = batch.frames[number]
    outcome = batch.outcomes[number]
    rx = state.rx[outcome.queue]
    data = batch.data
    offset = i64(frame.offset)
    hash_value = i64(outcome.hash)
    delivered = 0
    if state.headers[0].l4 != _TCP:  # a fragment may belong to any of the flows
        while device.aggregates > 0:
            delivered += _deliver_aggregate(state, batch, i64(0))
        parse(data, offset, i64(frame.length), state.headers)
        return False, delivered

    found = -1
    for index in range(i64(device.aggregates)):
        if same_flow(data, offset, state.headers, hash_value, state.aggregates[index]):
            found = index
            break
    if found < 0 and not more_come:
        return False, 0
    candidate = (
        frame.gso == _GSO_NONE and mergeable(data, offset, state.headers) and _trailer(state, rx, frame) == 0
    )  # fmt: skip
    if candidate and frame.flags & _VOUCHED == 0:
        candidate = verify(data, offset, state.headers) == 0
        if candidate:
            frame.flags |= _CSUM_VALID  # so that it is not verified again
    if found >= 0:
        aggregate = state.aggregates[found]
        more = i64(state.headers[0].length) - i64(state.headers[0].payload)
        if (
            candidate
            and batch.outcomes[aggregate.first].queue == outcome.queue
            and continues(data, offset, state.headers, aggregate)
            and _fits(rx, aggregate, more)
        ):
            batch.outcomes[aggregate.last].next = number
            aggregate.last = number
            if extend(data, offset, state.headers, aggregate):
                delivered += _deliver_aggregate(state, batch, found)
            return True, delivered
        delivered += _deliver_aggregate(state, batch, found)
        parse(data, offset, i64(frame.length), state.headers)
    if not candidate or not more_come or is_last(state.headers):
        return False, delivered
    open_aggregate(state.aggregates[device.aggregates], offset, state.headers, hash_value, number)
    device.aggregates += 1
    if device.aggregates == len(state.aggregates):
        delivered += _deliver_aggregate(state, batch, i64(0))
    return True, delivered


@compiled
def receive(
    state: State, data: npt.NDArray[np.uint8], frames: Records, count: int, now: int, oldest: int, limit: int,
    held_data: npt.NDArray[np.uint8], held_frames: Records, held: npt.NDArray[np.int64], outcomes: Records,
) -> int:  # fmt: skip
    """Deliver a batch of frames.

    Args:
        state: the device.
        data: the batch's bytes; partial checksums are completed in place.
        frames: the batch's records (`FRAME`); a frame's `time` is 0 when it is new, else when it came to the backlog.
            What was verified on the way is marked so.
        count: number of frames in the batch.
        now: time in ns, also the frames' timestamp.
        oldest: frames from the backlog that came before this are dropped instead of tried again.
        limit: most frames in the backlog for one queue.
        held_data: bytes of the backlog that frames without buffers are added to.
        held_frames: its records.
        held: its number of frames and of bytes, shape (2,).
        outcomes: where each frame went (`OUTCOME`), at least `count` records.

    Returns:
        Number of frames delivered.
    """
    batch = _Batch(data, frames, outcomes, now, limit, held_data, held_frames, held)
    device = state.device[0]
    delivered = 0
    for number in range(count):
        outcome = outcomes[number]
        outcome.queue = -1
        outcome.rule = -1
        outcome.hash = 0
        outcome.header = 0
        outcome.completion = 0
        outcome.completions = 0
        outcome.next = -1
        verdict = i64(_admit(state, batch, number, oldest))
        if verdict == _NONE:
            h = state.headers[0]
            may = device.coalesce != 0 and device.gqi == 0 and state.rx[outcome.queue].rsc != 0
            if may and (h.l4 == _TCP or h.fragment != 0):
                taken, others = _coalesce(state, batch, number, number + 1 < count)
                delivered += others
                if taken:
                    continue
            verdict = _deliver(state, batch, number, i64(0), i64(0))
        delivered += _settle(state, batch, number, verdict)
    while device.aggregates > 0:
        delivered += _deliver_aggregate(state, batch, i64(0))
    return delivered


assert RX_DEFERRED.deferred.word == 1 and RX_DEFERRED.payload_length.word == 2 and RX_DEFERRED.handle.word == 3
assert MAX_SEGMENTS * 256 > 65536 + 256  # every packet fits MAX_SEGMENTS buffers of the smallest size accepted
