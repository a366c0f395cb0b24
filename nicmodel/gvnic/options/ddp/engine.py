"""The engine: takes out of packets what can be placed, and places it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.options.ddp.declarations import PLACEMENT, RX_DDP
from nicmodel.gvnic.options.ddp.state import MAX_PLACEMENTS
from nicmodel.gvnic.rings_dqo import Words
from nicmodel.gvnic.state import State
from nicmodel.jit.addresses import copy
from nicmodel.jit.compiled import Record, compiled, i64, inlined, u64
from nicmodel.nic.dma import WRITE, fault, reachable_at_once, write
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.receive import Batch, Packet, shortened
from nicmodel.nic.state import Records
from nicmodel.packet.headers import L4
from nicmodel.packet.nvme_tcp import Order, Part, Sync, Verdict, advance, arrive, ask, find, lose
from nicmodel.packet.words import load_be32

_TCP = int(L4.TCP)
_PAYLOAD = int(Purpose.PAYLOAD)
_SEARCHING = int(Sync.SEARCHING)
_ASKED = int(Sync.ASKED)
_TRACKING = int(Sync.TRACKING)
_NEXT = int(Order.NEXT)
_OLD = int(Order.OLD)
_AHEAD = int(Order.AHEAD)
_HEADER = int(Part.HEADER)
_PASSED = int(Part.PASSED)
_DATA = int(Part.DATA)
_GOOD = int(Verdict.GOOD)
_BAD = int(Verdict.BAD)
_UNKNOWN = int(Verdict.UNKNOWN)
_BAD_HEADER = int(Verdict.BAD_HEADER)
_BAD_HEADER_DIGEST = int(Verdict.BAD_HEADER_DIGEST)

#: Flags of segments that are not the stream going on: SYN, RST, URG.
_BREAKS = 0x02 | 0x04 | 0x20
_SEQUENCES = 0xFFFF_FFFF

_RECORD = PLACEMENT.itemsize
# Bits of what `_place_directly` returns, counted from the field `placements`.
_FIRST = RX_DDP.placements.bit
_PLACEMENTS = RX_DDP.placements.shift
_ANY_PLACEMENTS = RX_DDP.placements.mask
_DIGEST_GOOD = 1 << RX_DDP.digest_good.bit - _FIRST
_DIGEST_BAD = 1 << RX_DDP.digest_bad.bit - _FIRST
_RESYNC = 1 << RX_DDP.resync.bit - _FIRST
_DDP = 1 << RX_DDP.ddp.bit - _FIRST
_FLOW = RX_DDP.ddp_flow.bit - _FIRST


@inlined
def _flow_of(state: State, h: Record, data: npt.NDArray[np.uint8], offset: int) -> int:
    """The flow that a frame with these headers belongs to, -1 if none."""
    if h.l4 != _TCP or h.fragment != 0:
        return -1
    ports = load_be32(data, offset + i64(h.l4_offset))
    size = i64(h.address_size)
    for number in range(i64(state.device[0].ddp_flows)):
        flow = state.ddp_flows[number]
        if flow.active == 0 or flow.ports != ports or flow.address_size != size:
            continue
        same = True
        for k in range(size >> 2):
            if load_be32(data, offset + i64(h.source) + 4 * k) != i64(flow.words[k]):
                same = False
            if load_be32(data, offset + i64(h.destination) + 4 * k) != i64(flow.words[4 + k]):
                same = False
        if same:
            return number
    return -1


@compiled
def _write_run(state: State, queue: int, number: int, offset: int, source: int, count: int) -> bool:
    """Write a run of data that fits buffer `number`; false, and nothing written, if not all of it is mapped."""
    pieces = state.ddp_pieces[number]
    first = 0
    while pieces[first].end <= offset:
        first += 1
    for writing in range(2):  # first look at all of it, so that a bad address is found before anything is written
        piece = first
        done = i64(0)
        while done < count:
            end = i64(pieces[piece].end)
            before = i64(pieces[piece - 1].end) if piece > 0 else i64(0)
            length = min(count - done, end - (offset + done))
            address = pieces[piece].address + u64(offset + done - before)
            if writing == 0:
                # Messages, for memory without a descriptor, are few: pieces may be small.
                if not reachable_at_once(state, address, length, WRITE):
                    fault(state, address)
                    return False
            else:
                write(state, queue, _PAYLOAD, address, u64(source) + u64(done), length)
            done += length
            piece += 1
    return True


@inlined
def _place_run(state: State, queue: int, flow: int, source: int, count: int) -> bool:
    """Place the run of data that the flow's tracker has just taken, if that can be."""
    tracker = state.ddp_trackers[flow]
    counts = state.ddp[0]
    if tracker.order == _AHEAD or tracker.sync != _TRACKING:
        counts.unordered += 1
        return False
    if count < _RECORD:
        counts.short += 1
        return False
    number = i64(state.ddp_index[flow, i64(tracker.command)]) - 1
    if number < 0:
        counts.unknown_command += 1
        return False
    if i64(tracker.run) + count > i64(state.ddp_buffers[number].length):
        counts.beyond_buffer += 1
        return False
    if not _write_run(state, queue, number, i64(tracker.run), source, count):
        counts.dma_faults += 1
        return False
    return True


@inlined
def _count(counts: Record, flow: Record, tracker: Record, placed: int, taken: int, data_length: int) -> None:
    """Book what `advance` has taken: bytes, and with the last of them PDU and verdict."""
    if tracker.taken == _HEADER and tracker.ended:
        flow.placed = 0
    if tracker.taken == _DATA:
        if placed:
            flow.placed += taken
            counts.placed_bytes += taken
        else:
            counts.unplaced_bytes += taken
        if tracker.ended and flow.placed == data_length:
            counts.placed_pdus += 1
    verdict = tracker.verdict
    if verdict in (_GOOD, _BAD):
        counts.digests += 1
    if verdict == _BAD:
        counts.digest_errors += 1
    if verdict == _BAD_HEADER:
        counts.bad_headers += 1
    if verdict == _BAD_HEADER_DIGEST:
        counts.header_digest_errors += 1
    if verdict in (_BAD_HEADER, _BAD_HEADER_DIGEST):
        counts.lost += 1


@inlined
def _place_directly(state: State, batch: Batch, headers: Records, packet: Packet) -> tuple[int, int, int]:
    """Take out of a packet what can be placed, and place it; its checksums are right.

    If anything was placed, what is left of it, with the records, is in ``state.ddp_rest``.

    Returns:
        For the completion, the bits from `RX_DDP.placements` on, and `RX_DDP.resync_sequence`; and the packet's length
        now.
    """
    h = headers[0]
    data = packet.data
    offset = packet.offset
    length = packet.length
    number = packet.number
    number_of_flow = i64(_flow_of(state, h, data, offset))
    if number_of_flow < 0:
        return i64(0), i64(0), length
    flow = state.ddp_flows[number_of_flow]
    tracker = state.ddp_trackers[number_of_flow]
    counts = state.ddp[0]
    result = i64(_DDP | number_of_flow << _FLOW)
    header = i64(h.payload)
    total = length - header
    before = i64(tracker.sync)
    if h.tcp_flags & _BREAKS != 0 and before != _SEARCHING:
        lose(tracker)
        counts.lost += 1
        return result, i64(0), length
    if total <= 0 or h.tcp_flags & _BREAKS != 0:
        return result, i64(0), length

    counts.frames += 1
    sequence = load_be32(data, offset + i64(h.l4_offset) + 4)
    old = i64(arrive(tracker, sequence, total))
    if before != _TRACKING:
        counts.out_of_sync += 1
    elif tracker.sync == _SEARCHING:
        counts.lost += 1
    if tracker.order == _OLD:
        counts.old += 1
        return result, i64(0), length
    if tracker.order == _AHEAD:
        counts.ahead += 1

    rest = u64(state.ddp_rest.ctypes.data)
    copy(rest, u64(data.ctypes.data) + u64(offset), header)
    kept = header
    position = u64(data.ctypes.data) + u64(offset + header)
    left = packet.contiguous - header
    done = i64(0)
    records = i64(0)
    placed_bytes = i64(0)
    asked = False
    good = tracker.order == _NEXT and before == _TRACKING and tracker.data_digest != 0
    while done < total:
        if left == 0:
            frame = batch.frames[number]
            position = u64(batch.data.ctypes.data) + u64(frame.offset) + u64(header)
            left = packet.segment
            number = i64(batch.outcomes[number].next)
        count = min(left, total - done)
        placed = False
        if done < old:
            taken = min(count, old - done)
        elif tracker.sync == _SEARCHING:
            taken = i64(find(tracker, position, count))
            if taken < 0:
                taken = count
            else:
                ask(tracker, sequence + done + taken)
                asked = True
        else:
            data_length = i64(tracker.data_length)
            taken = i64(advance(tracker, position, count))
            if tracker.taken == _DATA and records < MAX_PLACEMENTS:
                placed = _place_run(state, packet.queue, number_of_flow, position, taken)
            _count(counts, flow, tracker, placed, taken, data_length)
            if tracker.verdict == _BAD:
                result |= _DIGEST_BAD
            if tracker.verdict in (_BAD, _UNKNOWN):
                good = False
        if placed:
            record = state.placements[records]
            record.position = done
            record.length = taken
            record.offset = tracker.run
            record.command = tracker.command
            records += 1
            placed_bytes += taken
        else:
            copy(rest + u64(kept), position, taken)
            kept += taken
        position += u64(taken)
        left -= taken
        done += taken

    if good and tracker.sync == _TRACKING and (tracker.part in (_HEADER, _PASSED) or tracker.whole != 0):
        result |= _DIGEST_GOOD
    resync = i64(0)
    if asked and tracker.sync == _ASKED:
        counts.requests += 1
        result |= _RESYNC
        resync = i64(tracker.candidate)
    if records > 0:
        copy(rest + u64(kept), u64(state.placements.ctypes.data), records * _RECORD)
        length = kept + records * _RECORD
        state.rx[packet.queue].bytes += placed_bytes - records * _RECORD
    return result | records, resync, length


@inlined
def divert(
    state: State, batch: Batch, headers: Records, packet: Packet, words: Words
) -> tuple[Packet, Words]:  # fmt: skip
    """Take out of a packet what can be placed: what is left of it, and what its completions say."""
    deferred = state.rx[packet.queue].deferred
    if state.device[0].ddp_flows == 0 or deferred != 0 or packet.verified == 0 or packet.errors != 0:
        return packet, words
    placed, resync, length = _place_directly(state, batch, headers, packet)
    words = Words(words.word0, words.word1, words.word2 | placed << _PLACEMENTS, words.word3 | resync)
    if placed & _ANY_PLACEMENTS != 0:
        packet = shortened(packet, length, state.ddp_rest, i64(0), length)
    return packet, words
