"""Receive: a batch of frames from a wire to the guest's queues, in one compiled call.

A frame's way: parse, admit (is it ours, does it fit), verify checksums, steer (flow rule, else RSS), place (header and
payload by DMA, completions). Interrupts are decided afterwards, once for the batch (`nicmodel.gvnic.moderation`).

A frame for whose buffers the driver is late is *held* in a backlog of a bounded size, and tried again when the driver
posts buffers; frames of that queue that come later queue up behind it. The rules of placement are those that Linux
checks in drivers/net/ethernet/google/gve/gve_rx_dqo.c.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.descriptors import RX_BUFFER, RX_COMPLETION, RXDID
from nicmodel.gvnic.dma import READ, WRITE, accessible, fault, locate, write
from nicmodel.gvnic.receive_gqi import place_gqi
from nicmodel.gvnic.state import MAX_SEGMENTS, Drop, Purpose, Records, State
from nicmodel.packet.checksum import ChecksumError, complete, verifiable, verify
from nicmodel.packet.compiled import Record, compiled, i64, u64
from nicmodel.packet.frames import FrameFlag, Gso
from nicmodel.packet.headers import L3, L4
from nicmodel.packet.match import match
from nicmodel.packet.memory import copy, load_u16, load_u64, publish_u64, store_u64
from nicmodel.packet.parse import parse
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

#: Linux copies packets up to this length into one buffer and then forgets how many segments they had: such a packet is
#: not worth aggregating (gve's rx_copybreak).
_COPYBREAK = 256
#: Longest aggregated IP packet.
_MAX_IP = 65535

_U8 = u64(8)
_U16 = u64(16)
_U24 = u64(24)


@compiled
def _ptype(headers: Records) -> int:
    """Index into the packet-type map: ``l3 << 3 | l4``; SCTP's CRC32c is not verified, so no claim is made for it."""
    h = headers[0]
    l4 = i64(h.l4)
    if l4 == _SCTP:
        l4 = _L4_OTHER
    return i64(h.l3) << 3 | l4


@compiled
def _complete_buffer(state: State, queue: int, word0: int, word1: int, word2: int, word3: int) -> None:
    """Write the next completion of a queue: the generation bit is added here, its word stored last."""
    rx = state.rx[queue]
    index = i64(rx.completion_index)
    address = rx.completion_ring + u64(index * _COMPLETION_SIZE)
    host = locate(state, address, _COMPLETION_SIZE, WRITE)
    if host == 0:
        fault(state, address)
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


@compiled
def _reject(state: State, queue: int, count: int) -> None:
    """Hand the next `count` buffers back unused, each as a packet with an error of its own."""
    rx = state.rx[queue]
    for _ in range(count):
        index = i64(rx.buffer_head)
        host = locate(state, rx.buffer_ring + u64(index * _BUFFER_SIZE), _BUFFER_SIZE, READ)
        if host == 0:
            return
        identifier = i64(load_u16(host))
        rx.buffer_head = (index + 1) & (rx.buffer_entries - 1)
        _complete_buffer(state, queue, _RXDID | 1 << _RX_ERROR, _DONE | 1 << _EOP | identifier << _BUFFER_ID, 0, 0)
    state.vectors[rx.vector].pending = 1


@compiled
def _buffers_needed(rx: Record, header: int, length: int) -> int:
    """Buffers that a packet of `length` bytes takes when `header` bytes of it go to the header buffer."""
    size = i64(rx.buffer_size)
    return max(1, (length - header + i64(rx.padding) + size - 1) // size)


@compiled
def _place(
    state: State,
    queue: int,
    data: npt.NDArray[np.uint8],
    offset: int,
    header: int,
    word0: int,
    word1: int,
    hash_value: int,
    timestamp: int,
) -> int:
    """Put one packet (``state.headers[0].length`` bytes at `offset`) into the queue's next buffers.

    `header` is the split point, 0 when nothing goes to the header buffer, -1 when the header does not fit it. `word0`
    and `word1` are the completion's fields that hold for the whole packet. Enough buffers are known to be there.
    """
    if state.device[0].gqi != 0:
        return place_gqi(state, queue, data, offset, hash_value)
    rx = state.rx[queue]
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

    # First look at all buffers, so that a bad address is found before anything is written.
    for k in range(needed):
        address = rx.buffer_ring + u64(((head + k) & mask) * _BUFFER_SIZE)
        host = locate(state, address, _BUFFER_SIZE, READ)
        if host == 0:
            fault(state, address)
            return _DMA_FAULT
        state.ledger[queue, _DESCRIPTOR, state.regions[state.device[0].region].kind] += _BUFFER_SIZE
        state.addresses[k] = load_u64(host + _BUFFER_ADDRESS)
        state.lengths[k] = load_u16(host)
        if k == 0 and header > 0:
            header_address = load_u64(host + _BUFFER_HEADER)
            if not accessible(state, header_address, header, WRITE):
                fault(state, header_address)
                _reject(state, queue, 1)
                return _DMA_FAULT
        if not accessible(state, state.addresses[k], min(size, left - k * size), WRITE):
            fault(state, state.addresses[k])
            _reject(state, queue, k + 1)
            return _DMA_FAULT

    source = u64(data.ctypes.data) + u64(offset)
    if header > 0:
        write(state, queue, _HEADER, header_address, source, header)
        rx.split += 1
    rx.header_overflow += overflow
    source += u64(header)
    word3 = timestamp << _TIMESTAMP
    for k in range(needed):
        piece = min(size, left - k * size)
        if piece > 0:
            write(state, queue, _PAYLOAD, state.addresses[k], source + u64(k * size), piece)
        first = word0 | piece << _LENGTH
        second = word1 | i64(state.lengths[k]) << _BUFFER_ID
        if k == 0:
            second |= overflow << _OVERFLOW
            if header > 0:
                first |= header << _HEADER_LENGTH | 1 << _SPLIT
        if k == needed - 1:
            second |= 1 << _EOP
        _complete_buffer(state, queue, first, second, hash_value, word3)
    rx.buffer_head = (head + needed) & mask
    rx.frames += 1
    rx.bytes += length
    state.vectors[rx.vector].pending = 1
    return _NONE


@compiled
def _steer(state: State, data: npt.NDArray[np.uint8], offset: int, outcome: Record) -> int:
    """The receive queue of the parsed frame: of the first flow rule that matches, else by hash and table."""
    device = state.device[0]
    value, _ = flow_hash(data, offset, state.headers, i64(device.hash_types), state.hash_table)
    outcome.hash = value
    if device.rule_count > 0:
        location = match(state.rules, state.rule_order[: device.rule_count], data, offset, state.headers)
        if location >= 0:
            outcome.rule = location
            return i64(state.rules[location].action)
    return i64(state.lut[value % i64(device.lut_size)])


@compiled
def _split_of(state: State, rx: Record) -> int:
    if rx.header_size > 0:
        return split_point(state.headers, i64(rx.header_size))
    return 0


@compiled
def _room(rx: Record, needed: int) -> int:
    """Whether a frame that needs so many buffers goes to the queue now."""
    entries = i64(rx.buffer_entries)
    if needed >= entries:
        return _NO_BUFFERS
    visible = (i64(rx.buffer_tail) - i64(rx.buffer_head)) & rx.position_mask
    if rx.held > 0 or visible < needed:
        return _HELD
    return _NONE


@compiled
def _deliver_segments(
    state: State, queue: int, data: npt.NDArray[np.uint8], offset: int, frame: Record, word0: int, hash_value: int,
    timestamp: int,
) -> int:  # fmt: skip
    """Cut an aggregated frame into the packets it stands for, and place each."""
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
    base = u64(data.ctypes.data) + u64(offset)
    target = u64(segment.ctypes.data)
    word1 = _DONE | 1 << _PROCESSED | i64(state.device[0].timestamps) << _TS_VALID
    for k in range(count):
        piece = min(size, payload - k * size)
        copy(target, base, header)
        copy(target + u64(header), base + u64(header + k * size), piece)
        h.length = header + piece
        segment_header(segment, 0, state.headers, k * size, piece, k, k == 0, k == count - 1)
        complete(segment, 0, state.headers, False)
        verdict = _place(state, queue, segment, 0, _split_of(state, rx), word0, word1, hash_value, timestamp)
        if verdict != _NONE:
            return verdict
    return _NONE


@compiled
def _deliver(
    state: State, data: npt.NDArray[np.uint8], frame: Record, now: int, oldest: int, outcome: Record
) -> int:  # fmt: skip
    """Take one frame all the way; the result is a `Drop`."""
    device = state.device[0]
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
    gso = i64(frame.gso)
    if gso == _GSO_NONE:
        if h.length > device.max_frame:
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
    rx = state.rx[queue]
    hash_value = i64(outcome.hash)
    timestamp = now & 0xFFFFFFFF
    outcome.completion = rx.completion_index
    before = rx.completion_index + rx.generation * rx.completion_entries
    word0 = _RXDID | _ptype(state.headers) << _PTYPE | i64(h.ipv6_ex_add) << _EX_ADD

    total = i64(h.length)
    pass_whole = gso == _GSO_NONE or (
        gso != _GSO_UDP and rx.rsc != 0 and total > _COPYBREAK and total - i64(h.l3_offset) <= _MAX_IP
    )
    if not pass_whole:
        verdict = _deliver_segments(state, queue, data, offset, frame, word0, hash_value, timestamp)
    else:
        split = _split_of(state, rx)
        verdict = _room(rx, _buffers_needed(rx, max(split, 0), total))
        if verdict == _NONE:
            word1 = _DONE | i64(device.timestamps) << _TS_VALID
            if gso != _GSO_NONE:
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
            verdict = _place(state, queue, data, offset, split, word0, word1, hash_value, timestamp)
        if gso == _GSO_NONE or verdict == _NONE:
            outcome.header = split
    after = rx.completion_index + rx.generation * rx.completion_entries
    span = 2 * i64(rx.completion_entries)
    outcome.completions = (after - before + span) % span
    return verdict


@compiled
def _hold(
    state: State, data: npt.NDArray[np.uint8], frame: Record, now: int, limit: int, held_data: npt.NDArray[np.uint8],
    held_frames: Records, held: npt.NDArray[np.int64], queue: int,
) -> int:  # fmt: skip
    """Keep a copy of a frame that found no buffers."""
    rx = state.rx[queue]
    length = i64(frame.length)
    count = held[0]
    used = held[1]
    if rx.held >= limit or count == len(held_frames) or used + length > len(held_data):
        return _NO_BUFFERS
    source = u64(data.ctypes.data) + u64(frame.offset)
    copy(u64(held_data.ctypes.data) + u64(used), source, length)
    kept = held_frames[count]
    kept.offset = used
    kept.length = length
    kept.time = now if frame.time == 0 else frame.time
    kept.flags = frame.flags
    kept.gso = frame.gso
    kept.segment = frame.segment
    kept.header = frame.header
    kept.csum_start = frame.csum_start
    kept.csum_offset = frame.csum_offset
    held[0] = count + 1
    held[1] = used + length
    rx.held += 1
    return _HELD


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
    delivered = 0
    other = len(state.drops) - 1
    for number in range(count):
        frame = frames[number]
        outcome = outcomes[number]
        outcome.queue = -1
        outcome.rule = -1
        outcome.hash = 0
        outcome.header = 0
        outcome.completion = 0
        outcome.completions = 0
        verdict = i64(_deliver(state, data, frame, now, oldest, outcome))
        queue = i64(outcome.queue)
        if verdict == _HELD:
            verdict = i64(_hold(state, data, frame, now, limit, held_data, held_frames, held, queue))
        outcome.verdict = verdict
        if outcome.rule >= 0 and verdict != _HELD:
            state.rules[outcome.rule].hits += u64(1)
        if verdict == _NONE:
            delivered += 1
        elif queue >= 0 and queue < len(state.rx):
            state.drops[queue, verdict] += 1
        else:
            state.drops[other, verdict] += 1
    return delivered


assert MAX_SEGMENTS * 256 > 65536 + 256  # every packet fits MAX_SEGMENTS buffers of the smallest size accepted
