"""Receive: the stages that all NICs and all their queue formats have in common.

A batch of frames goes from a wire to the guest's queues in one compiled call, that of a loop, of which a personality
has one for each of its queue formats (`nicmodel.gvnic.receive_dqo`). A loop calls stages, and each stage is for all of
them, so that a loop consists of what is special about it:

1. `take_in`: parse a frame, *admit* it (is it ours, does it fit), *steer* it (flow rule, else RSS), and let it join
   others of its flow (`join`), on queues that coalesce. What is delivered now are the aggregates that it ends
   (`next_ended`), and then the frame, unless it has joined one.
2. `plan`: how many packets that becomes; and whether the queue has the buffers for them (`room`).
3. `prepare`: each packet, with its checksums verified.
4. Place it: header and payload by DMA (`put_header`, `put_payload`), completions. Which buffers, and what a completion
   says, is the format's.
5. `settle`: book how it ended.

Interrupts are decided afterwards, once for the batch (`nicmodel.nic.moderation`).

TCP segments of one flow that follow one another in the batch become one packet. They stay where they are until it is
placed: each piece of payload is copied once, from the batch into the driver's buffers. Nothing is kept back when the
batch ends.

A frame for whose buffers the driver is late is *held* in a backlog of a bounded size, and tried again when the driver
posts buffers; frames of that queue that come later queue up behind it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.jit.addresses import copy, load_u16, load_u64
from nicmodel.jit.compiled import Record, compiled, i64, inlined, u64
from nicmodel.nic.dma import WRITE, fault, reachable, write
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import Drop, Records, State, distance
from nicmodel.packet.checksum import complete, verifiable, verify
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
from nicmodel.packet.headers import L4
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
_DEVICE_DOWN = int(Drop.DEVICE_DOWN)
_BAD_GSO = int(Drop.BAD_GSO)
_PAYLOAD = int(Purpose.PAYLOAD)
_HEADER = int(Purpose.HEADER)
_TCP = int(L4.TCP)
_UDP = int(L4.UDP)
_SCTP = int(L4.SCTP)
_L4_OTHER = int(L4.OTHER)
_NEEDS_CSUM = int(FrameFlag.NEEDS_CSUM)
_CSUM_VALID = int(FrameFlag.CSUM_VALID)
_VOUCHED = int(FrameFlag.NEEDS_CSUM | FrameFlag.CSUM_VALID)
_GSO_NONE = int(Gso.NONE)
_GSO_UDP = int(Gso.UDP_L4)

#: A frame to all.
_BROADCAST = (1 << 48) - 1

#: Ethernet pads frames to this length, FCS not counted (IEEE 802.3, 3.2.8); a VLAN tag put in later adds to it.
_SHORTEST = 60

#: Linux copies packets up to this length into one buffer and then forgets how many segments they had: such a packet is
#: not worth aggregating (gve's rx_copybreak).
_COPYBREAK = 256


class Batch(NamedTuple):
    """What a loop was called with, for the stages.

    Attributes:
        data: the batch's bytes; partial checksums are completed in place.
        frames: the batch's records (`FRAME`); a frame's `time` is 0 when it is new, else when it came to the backlog.
            What was verified on the way is marked so.
        size: number of frames in the batch.
        now: time in ns, also the frames' timestamp.
        oldest: frames from the backlog that came before this are dropped instead of tried again.
        limit: most frames in the backlog for one queue.
        held_data: bytes of the backlog that frames without buffers are added to.
        held_frames: its records.
        held: its number of frames and of bytes, shape (2,).
        outcomes: where each frame went (`OUTCOME`), at least `size` records.
    """

    data: npt.NDArray[np.uint8]
    frames: Records
    size: int
    now: int
    oldest: int
    limit: int
    held_data: npt.NDArray[np.uint8]
    held_frames: Records
    held: npt.NDArray[np.int64]
    outcomes: Records


class Unit(NamedTuple):
    """What is delivered at one time: a frame, or an aggregate.

    Attributes:
        number: of the frame, or of the aggregate's first; the others follow by `OUTCOME.next`.
        times: how many times something is delivered: an aggregate that is not worth merging goes frame by frame.
        frames: how many frames that is, each time.
        payload: bytes of payload of all of them, if they are merged; else 0.
        flags: of the last one's TCP header, if they are.
    """

    number: int
    times: int
    frames: int
    payload: int
    flags: int


class Plan(NamedTuple):
    """What becomes of a frame, or of frames that become one packet.

    Attributes:
        packets: how many packets it becomes.
        longest: bytes of the longest of them.
        length: bytes of the packet, if it is not cut.
        split: where that is split: see `Packet.header`.
        segment: bytes of payload in each packet, if it is cut; else 0.
    """

    packets: int
    longest: int
    length: int
    split: int
    segment: int


class Packet(NamedTuple):
    """A packet on its way into the buffers of a queue.

    Attributes:
        queue: the receive queue.
        hash: what it was steered by.
        length: its bytes.
        header: the split point, 0 when nothing goes to the header buffer, -1 when the header does not fit it.
        data: where its beginning is, at `offset`: `contiguous` bytes, at least the headers.
        offset: see `data`.
        contiguous: see `data`.
        number: of the frame with which it goes on, if that is not all; further ones follow by `OUTCOME.next`.
        payload: where in each of these frames its payload begins.
        segment: bytes of payload in each of them.
        aggregated: bytes of payload in each of the segments that it stands for; 0: it is one.
        verified: 1 if its checksums were looked at.
        errors: which were wrong (`ChecksumError`).
    """

    queue: int
    hash: int
    length: int
    header: int
    data: npt.NDArray[np.uint8]
    offset: int
    contiguous: int
    number: int
    payload: int
    segment: int
    aggregated: int
    verified: int
    errors: int


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


@compiled
def _is_listed(state: State, address: int) -> bool:
    """Whether the driver has given the NIC this address besides its own."""
    found = False
    for k in range(i64(state.device[0].stations)):
        found |= state.stations[k] == address
    return found


@inlined
def _admit(state: State, batch: Batch, number: int) -> int:
    """Parse one frame, to ``state.headers``, and find its queue; the result is a `Drop`."""
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
    heard = device.promiscuous if data[offset] & 1 == 0 else device.all_groups
    if heard == 0:
        address = i64(0)
        for k in range(6):
            address = address << 8 | i64(data[offset + k])
        if address != device.mac and address != _BROADCAST and not _is_listed(state, address):
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
    if frame.time != 0 and i64(frame.time) < batch.oldest:
        return _NO_BUFFERS
    return _NONE


@inlined
def admit(state: State, batch: Batch, number: int) -> int:
    """Begin with one frame: parse it, to ``state.headers``, and find its queue; the result is a `Drop`, and booked."""
    outcome = batch.outcomes[number]
    outcome.queue = -1
    outcome.rule = -1
    outcome.hash = 0
    outcome.header = 0
    outcome.completion = 0
    outcome.completions = 0
    outcome.next = -1
    verdict = i64(_admit(state, batch, number))
    if verdict != _NONE:
        _book(state, outcome, verdict)
    return verdict


@inlined
def take_in(state: State, batch: Batch, number: int) -> tuple[int, int, int]:
    """Begin with one frame, which may join others; behind the last one, end what they have become.

    Returns:
        How many aggregates are to be delivered now (`next_ended`), the index of the first of them, and, behind them,
        how many frames, 1 or 0: the frame itself, if it is to be delivered and has joined no aggregate.
    """
    device = state.device[0]
    if number == batch.size:
        return i64(device.aggregates), i64(0), i64(0)
    if i64(admit(state, batch, number)) != _NONE:
        return i64(0), i64(0), i64(0)
    h = state.headers[0]
    if state.rx[batch.outcomes[number].queue].coalesce != 0 and (h.l4 == _TCP or h.fragment != 0):
        ended, first, joined = _join(state, batch, number)
        return i64(ended), i64(first), i64(0 if joined else 1)
    return i64(0), i64(0), i64(1)


@inlined
def _fits(rx: Record, aggregate: Record, more: int) -> bool:
    """Whether `more` bytes of payload may be added: to an IP packet, and to the buffers that are there."""
    payload = i64(aggregate.payload) + more
    if i64(aggregate.header) - i64(aggregate.l3_offset) + payload > MAX_IP:
        return False
    visible = i64(distance(rx.buffer_head, rx.buffer_tail, rx.positions))
    header = i64(aggregate.header)
    split = header if header <= rx.header_size else 0
    return bool(buffers_needed(rx, split, header + payload) <= visible)


@inlined
def _join(state: State, batch: Batch, number: int) -> tuple[int, int, bool]:
    """Let the parsed TCP frame, or fragment, join an aggregate or open one.

    Returns:
        How many aggregates it has ended, or must not overtake; the index of the first; whether it has joined one.
    """
    device = state.device[0]
    frame = batch.frames[number]
    outcome = batch.outcomes[number]
    rx = state.rx[outcome.queue]
    data = batch.data
    offset = i64(frame.offset)
    hash_value = i64(outcome.hash)
    more_come = number + 1 < batch.size
    count = i64(device.aggregates)
    h = state.headers[0]
    if h.l4 != _TCP:  # a fragment may belong to any of the flows
        return count, i64(0), False

    found = i64(-1)
    for index in range(count):
        if same_flow(data, offset, state.headers, hash_value, state.aggregates[state.open[index]]):
            found = i64(index)
            break
    if found < 0 and not more_come:
        return i64(0), i64(0), False
    candidate = (
        frame.gso == _GSO_NONE
        and mergeable(data, offset, state.headers)
        and _trailer(state, rx, frame, state.headers) == 0
    )
    if candidate and frame.flags & _VOUCHED == 0:
        candidate = verify(data, offset, state.headers) == 0
        if candidate:
            frame.flags |= _CSUM_VALID  # so that it is not verified again
    ended = i64(0)
    if found >= 0:
        aggregate = state.aggregates[state.open[found]]
        ended = i64(1)
        if (
            candidate
            and batch.outcomes[aggregate.first].queue == outcome.queue
            and continues(data, offset, state.headers, aggregate)
            and _fits(rx, aggregate, i64(h.length) - i64(h.payload))
        ):
            batch.outcomes[aggregate.last].next = number
            aggregate.last = number
            if not extend(data, offset, state.headers, aggregate):
                ended = i64(0)
            return ended, found, True
    if not candidate or not more_come or is_last(state.headers):
        return ended, found, False
    free = state.open[count]
    open_aggregate(state.aggregates[free], offset, state.headers, hash_value, number)
    state.aggregate_headers[free] = state.headers[0]
    count += 1
    device.aggregates = count
    if count == len(state.aggregates) and ended == 0:  # the oldest makes room for the next
        return i64(1), i64(0), True
    return ended, found, True


@inlined
def alone(number: int) -> Unit:
    """One frame, whose headers are in ``state.headers``."""
    return Unit(i64(number), i64(1), i64(1), i64(0), i64(0))


@inlined
def next_ended(state: State, batch: Batch, index: int) -> Unit:
    """Take an aggregate from those that are open; its first frame's headers are in ``state.merged`` then."""
    device = state.device[0]
    number = state.open[index]
    last = i64(device.aggregates) - 1
    for k in range(index, last):
        state.open[k] = state.open[k + 1]
    state.open[last] = number
    device.aggregates = last
    state.merged[0] = state.aggregate_headers[number]
    aggregate = state.aggregates[number]
    first = i64(aggregate.first)
    count = i64(aggregate.count)
    payload = i64(aggregate.payload)
    rx = state.rx[batch.outcomes[first].queue]
    if count > 1 and (i64(aggregate.header) + payload > _COPYBREAK or rx.header_size > 0):
        return Unit(first, i64(1), count, payload, i64(aggregate.tcp_flags))
    return Unit(first, count, i64(1), i64(0), i64(0))


@inlined
def parse_again(batch: Batch, number: int, headers: Records) -> None:
    """Parse a frame of an aggregate that is delivered frame by frame."""
    frame = batch.frames[number]
    parse(batch.data, i64(frame.offset), i64(frame.length), headers)


@inlined
def buffers_needed(rx: Record, header: int, length: int) -> int:
    """Buffers that a packet of `length` bytes takes when `header` bytes of it go to the header buffer."""
    size = i64(rx.buffer_size)
    return max(1, (length - header + i64(rx.padding) + size - 1) // size)


@inlined
def _trailer(state: State, rx: Record, frame: Record, headers: Records) -> int:
    """Bytes behind a frame's IP packet that go to the queue with it, as the trailer of PRP (IEC 62439-3).

    They do not where Ethernet's padding is what follows the packet, nor where the header is split, or data placed
    directly (`DEVICE.trailers`): there the rest of the frame has to be payload.
    """
    h = headers[0]
    behind = i64(frame.length) - i64(h.length)
    if behind == 0 or rx.header_size > 0 or state.device[0].trailers == 0:
        return i64(0)
    if i64(frame.length) <= _SHORTEST + VLAN_SIZE * i64(h.vlans):
        return i64(0)
    return behind


@inlined
def room(rx: Record, ring: Record, plan: Plan) -> int:
    """Whether a queue has the buffers for what a frame becomes, in `ring`; the result is a `Drop`.

    `ring` is `rx` itself, or where the queue has several rings of buffers, a record with the same fields for one of
    them.
    """
    needed = plan.packets * i64(buffers_needed(ring, max(plan.split, i64(0)), plan.longest))
    entries = i64(ring.buffer_entries)
    if needed >= entries:
        return _NO_BUFFERS
    visible = i64(distance(ring.buffer_head, ring.buffer_tail, ring.positions))
    if rx.held > 0 or visible < needed:
        return _HELD
    return _NONE


@inlined
def plan(state: State, batch: Batch, number: int, headers: Records, payload: int) -> Plan:
    """What a frame with these headers becomes, or all that is merged to it, which has `payload` bytes of payload."""
    frame = batch.frames[number]
    outcome = batch.outcomes[number]
    rx = state.rx[outcome.queue]
    h = headers[0]
    header = i64(h.payload)
    length = i64(h.length)
    split = i64(0)
    if rx.header_size > 0:
        split = i64(split_point(headers, i64(rx.header_size)))
    segment = i64(0)
    packets = i64(1)
    longest = length
    if payload > 0:
        length = longest = header + payload
    elif frame.gso == _GSO_NONE:
        length = longest = length + i64(_trailer(state, rx, frame, headers))
    elif frame.gso == _GSO_UDP or rx.rsc == 0 or length <= _COPYBREAK or length - i64(h.l3_offset) > MAX_IP:
        segment = i64(frame.segment)
        packets = (length - header + segment - 1) // segment
        longest = header + segment
    if segment == 0:
        outcome.header = split
    return Plan(packets, longest, length, split, segment)


@inlined
def prepare(
    state: State, batch: Batch, number: int, headers: Records, payload: int, flags: int, plan: Plan, k: int
) -> Packet:  # fmt: skip
    """Packet `k` of those that were planned: its header as it has to be, its checksums verified."""
    frame = batch.frames[number]
    outcome = batch.outcomes[number]
    rx = state.rx[outcome.queue]
    h = headers[0]
    data = batch.data
    offset = i64(frame.offset)
    header = i64(h.payload)
    length = plan.length
    contiguous = length
    segment = i64(0)
    aggregated = i64(0)
    verified = i64(1)
    errors = i64(0)
    if plan.segment > 0 or payload > 0:
        # The batch may be on its way to other NICs too, so another header is made elsewhere.
        source = u64(data.ctypes.data) + u64(offset)
        target = u64(state.segment.ctypes.data)
        data = state.segment
        offset = i64(0)
        copy(target, source, header)
        if plan.segment > 0:
            first = k * plan.segment
            piece = min(plan.segment, length - header - first)
            length = contiguous = header + piece
            copy(target + u64(header), source + u64(header + first), piece)
            segment_header(data, offset, headers, first, piece, k, k == 0, k == plan.packets - 1)
            complete(data, offset, headers, False)
        else:
            contiguous = header
            segment = aggregated = i64(h.length) - header
            merge_header(data, offset, headers, payload, flags)
            rx.aggregated += 1
    elif frame.gso != _GSO_NONE:
        aggregated = i64(frame.segment)
        rx.aggregated += 1
    elif frame.flags & _VOUCHED != 0:
        if frame.flags & _NEEDS_CSUM != 0:
            complete(data, offset, headers, False)
    elif verifiable(headers):
        errors = i64(verify(data, offset, headers))
        if errors:
            rx.bad_checksum += 1
    else:
        verified = i64(0)
    return Packet(
        i64(outcome.queue), i64(outcome.hash), length, plan.split, data, offset, contiguous, i64(number), header,
        segment, aggregated, verified, errors,
    )  # fmt: skip


@inlined
def shortened(packet: Packet, length: int, data: npt.NDArray[np.uint8], offset: int, contiguous: int) -> Packet:
    """A packet of which some has gone elsewhere; for the other arguments see `Packet`."""
    return Packet(
        packet.queue, packet.hash, length, packet.header, data, offset, contiguous, packet.number, packet.payload,
        packet.segment, packet.aggregated, packet.verified, packet.errors,
    )  # fmt: skip


class Rest(NamedTuple):
    """What of a packet has not been written yet.

    Attributes:
        position: where its next byte is in this process.
        contiguous: how many bytes are there in one piece.
        number: see `Packet`: the frame with which it goes on behind them.
    """

    position: int
    contiguous: int
    number: int


@inlined
def ptype(h: Record) -> int:
    """Number of a packet's type: ``l3 << 3 | l4``; SCTP's CRC32c is not verified, so no claim is made for it."""
    l4 = i64(h.l4)
    if l4 == _SCTP:
        l4 = _L4_OTHER
    return i64(h.l3) << 3 | l4


@inlined
def whole(packet: Packet) -> Rest:
    """All of a packet."""
    return Rest(u64(packet.data.ctypes.data) + u64(packet.offset), packet.contiguous, packet.number)


@inlined
def look_at(
    state: State, k: int, host: int, address_at: int, header_at: int, header: int, count: int
) -> tuple[bool, int]:  # fmt: skip
    """Look at the buffer `k` of a packet, and remember it in ``state.pieces``.

    Args:
        state: the device.
        k: which of the packet's buffers.
        host: where in this process its descriptor is, which begins with its identifier.
        address_at: where in the descriptor the buffer's address is.
        header_at: where that of its header buffer is.
        header: bytes of the packet that go to a header buffer.
        count: bytes that go to this buffer.

    Returns:
        Whether they can be written there, and if it is the first buffer the header to its header buffer; and where
        that is.
    """
    piece = state.pieces[k]
    piece.address = load_u64(host + address_at)
    piece.identifier = load_u16(host)
    header_address = u64(0)
    if k == 0 and header > 0:
        header_address = load_u64(host + header_at)
        if not reachable(state, header_address, header, WRITE):
            fault(state, header_address)
            return False, header_address
    if not reachable(state, piece.address, count, WRITE):
        fault(state, piece.address)
        return False, header_address
    return True, header_address


@inlined
def put_header(state: State, packet: Packet, rest: Rest, header: int, address: int) -> Rest:
    """Write the first `header` bytes of a packet to a header buffer, if that is any.

    Args:
        state: the device.
        packet: the packet.
        rest: all of it.
        header: how many.
        address: guest address of the header buffer, known to be writable.

    Returns:
        What is left.
    """
    if header > 0:
        write(state, packet.queue, _HEADER, address, rest.position, header)
        state.rx[packet.queue].split += 1
    return Rest(rest.position + u64(header), rest.contiguous - header, rest.number)


@inlined
def put_payload(state: State, batch: Batch, packet: Packet, rest: Rest, address: int, count: int) -> Rest:
    """Write the next `count` bytes of a packet to guest address `address`, known to be writable; what is left."""
    position, contiguous, number = rest.position, rest.contiguous, rest.number
    done = 0
    while done < count:
        if contiguous == 0:
            position = u64(batch.data.ctypes.data) + u64(batch.frames[number].offset) + u64(packet.payload)
            contiguous = packet.segment
            number = i64(batch.outcomes[number].next)
        piece = min(count - done, contiguous)
        write(state, packet.queue, _PAYLOAD, address + u64(done), position, piece)
        position += u64(piece)
        contiguous -= piece
        done += piece
    return Rest(position, contiguous, number)


@inlined
def _hold(state: State, batch: Batch, number: int) -> int:
    """Keep a frame in the backlog until the driver posts buffers; the result is a `Drop`."""
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
    return _HELD


@inlined
def _book(state: State, outcome: Record, verdict: int) -> None:
    """Book how a frame ended."""
    queue = i64(outcome.queue)
    outcome.verdict = verdict
    if outcome.rule >= 0 and verdict != _HELD:
        state.rules[outcome.rule].hits += u64(1)
    if verdict != _NONE:
        row = queue if queue >= 0 and queue < len(state.rx) else len(state.drops) - 1
        state.drops[row, verdict] += 1


@inlined
def settle(state: State, batch: Batch, number: int, frames: int, verdict: int) -> tuple[int, int]:
    """Book how `frames` frames ended that were delivered together, or keep them in the backlog.

    Returns:
        How many have their end in the queue, and the number of the frame that follows them in their aggregate.
    """
    first = batch.outcomes[number]
    if frames > 1 and verdict == _NONE:
        state.rx[first.queue].coalesced += frames
    for _ in range(frames):
        outcome = batch.outcomes[number]
        outcome.header = first.header
        outcome.completion = first.completion
        outcome.completions = first.completions
        following = i64(outcome.next)
        if verdict != _NONE or frames == 1:
            outcome.next = -1
        end = verdict
        if end == _HELD:
            end = i64(_hold(state, batch, number))
        _book(state, outcome, end)
        number = following
    return frames if verdict == _NONE else i64(0), number
