"""Transmit: a doorbell's worth of descriptors to a batch of frames, in one compiled call.

A packet's way: scan its descriptors up to end-of-packet, gather its bytes by DMA, checksum or segment, completions.
What the wire takes undone (`Offload`) stays undone: a partial checksum or a whole TSO packet travels with its record.

Source of the grammar and the limits: Linux drivers/net/ethernet/google/gve/gve_tx_dqo.c.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.descriptors import TX_COMPLETION, TX_PACKET, TX_TSO_CONTEXT, TxCompletionType, TxType
from nicmodel.gvnic.dma import READ, WRITE, ask_for_pieces, book, fault, locate, read
from nicmodel.gvnic.state import MAX_PACKET, MAX_SEGMENTS, Drop, Purpose, Records, State
from nicmodel.jit.addresses import copy, load_u64, publish_u64
from nicmodel.jit.compiled import Record, compiled, i64, u64
from nicmodel.packet.checksum import complete, pseudo
from nicmodel.packet.frames import MAX_FRAME, FrameFlag, Gso, Offload
from nicmodel.packet.headers import L3, L4
from nicmodel.packet.parse import parse
from nicmodel.packet.segment import segment_header


class Taken(IntEnum):
    """Why `transmit` takes no more packets from a queue."""

    #: There are none, or the last is not complete.
    ALL = 0
    #: The next one does not fit the batch, or waits for bytes that were asked for: call again with an empty batch, and
    #: with the bytes.
    FULL = 1
    #: The queue has had its share; there may be more.
    SHARE = 2


_ALL, _FULL, _SHARE = (int(reason) for reason in Taken)
_NONE = int(Drop.NONE)
_DMA_FAULT = int(Drop.DMA_FAULT)
_BAD_DESCRIPTOR = int(Drop.BAD_DESCRIPTOR)
_TRANSMIT = int(Purpose.TRANSMIT)
_DESCRIPTOR = int(Purpose.DESCRIPTOR)
_COMPLETION = int(Purpose.COMPLETION)
_TCP = int(L4.TCP)
_UDP = int(L4.UDP)
_IPV4 = int(L3.IPV4)
_CSUM = int(Offload.CSUM)
_TSO4 = int(Offload.TSO4)
_TSO6 = int(Offload.TSO6)
_USO = int(Offload.USO)
_NEEDS_CSUM = int(FrameFlag.NEEDS_CSUM)
_GSO_NONE = int(Gso.NONE)
_GSO_TCPV4 = int(Gso.TCPV4)
_GSO_TCPV6 = int(Gso.TCPV6)
_GSO_UDP = int(Gso.UDP_L4)

_SIZE = TX_PACKET.size
_COMPLETION_SIZE = TX_COMPLETION.size
_TYPE_PACKET = int(TxType.PACKET)
_TYPE_TSO = int(TxType.TSO_CONTEXT)
_TYPE_GENERAL = int(TxType.GENERAL_CONTEXT)
_DTYPE = u64(TX_PACKET.dtype.shift)
_DTYPE_MASK = u64(TX_PACKET.dtype.mask)
_EOP = u64(1 << TX_PACKET.end_of_packet.shift)
_CHECKSUM = u64(1 << TX_PACKET.checksum.shift)
_REPORT = u64(1 << TX_PACKET.report_event.shift)
_TAG = u64(TX_PACKET.completion_tag.shift)
_TAG_MASK = u64(TX_PACKET.completion_tag.mask)
_BUFFER = u64(TX_PACKET.buffer_size.shift)
_BUFFER_MASK = u64(TX_PACKET.buffer_size.mask)
_TSO_TOTAL = u64(TX_TSO_CONTEXT.total_length.shift)
_TSO_TOTAL_MASK = u64(TX_TSO_CONTEXT.total_length.mask)
_TSO_MSS = u64(TX_TSO_CONTEXT.mss.shift)
_TSO_MSS_MASK = u64(TX_TSO_CONTEXT.mss.mask)
_TSO_HEADER = u64(TX_TSO_CONTEXT.header_length.shift)
_TSO_HEADER_MASK = u64(TX_TSO_CONTEXT.header_length.mask)
_DONE_PACKET = int(TxCompletionType.PACKET) << TX_COMPLETION.type.shift
_DONE_DESCRIPTOR = int(TxCompletionType.DESCRIPTOR) << TX_COMPLETION.type.shift
_GENERATION = TX_COMPLETION.generation.shift
_VALUE = TX_COMPLETION.tag_or_head.shift

_MAX_IP = 65535
#: The most bytes of headers that are looked for where the driver does not say how many they are.
MAX_HEADER = 255

_U8 = u64(8)


@compiled
def _report(state: State, queue: int, fields: int) -> None:
    """Write the next completion of a transmit queue; one aligned word, so it is whole when it is seen."""
    tx = state.tx[queue]
    index = i64(tx.completion_index)
    address = tx.completion_ring + u64(index * _COMPLETION_SIZE)
    host, region = locate(state, address, _COMPLETION_SIZE, WRITE)
    if host == 0:
        fault(state, address)
    else:
        publish_u64(host, u64(queue | fields | i64(tx.generation) << _GENERATION))
        row = len(state.rx) + queue
        book(state, row, _COMPLETION, region, _COMPLETION_SIZE)
    index += 1
    if index == tx.completion_entries:
        index = 0
        tx.generation ^= 1
    tx.completion_index = index


@compiled
def gather(state: State, row: int, target: int, count: int, segment: int, skip: int) -> tuple[int, int]:
    """Read the packet's next `count` bytes to this process's address `target`, from byte `skip` of buffer `segment` on.

    Returns:
        The position after them; buffer -1 on a DMA fault.
    """
    while count > 0:
        piece = min(count, state.pieces[segment].length - skip)
        address = state.pieces[segment].address + u64(skip)
        if not read(state, row, _TRANSMIT, address, target, piece):
            fault(state, address)
            return -1, 0
        target += u64(piece)
        count -= piece
        skip += piece
        if skip == state.pieces[segment].length:
            segment += 1
            skip = 0
    return segment, skip


@compiled
def _append(out_frames: Records, out: npt.NDArray[np.int64], queue: int, offset: int, length: int) -> Record:
    """Add a frame record for `length` bytes at `offset`; the bytes stand there already or soon."""
    frame = out_frames[out[0]]
    frame.offset = offset
    frame.length = length
    frame.time = 0
    frame.flags = 0
    frame.gso = _GSO_NONE
    frame.segment = 0
    frame.header = 0
    frame.csum_start = 0
    frame.csum_offset = 0
    frame.cut = 0
    frame.part = 0
    frame.queue = queue
    frame.filled = 0
    out[0] += 1
    out[1] = offset + length
    return frame


@compiled
def _checksum(
    state: State, data: npt.NDArray[np.uint8], offset: int, frame: Record, offloads: int, ip_header: bool
) -> None:  # fmt: skip
    """Fill in the L4 checksum, or what the wire needs to do it."""
    h = state.headers[0]
    if offloads & _CSUM:
        pseudo(data, offset, state.headers)
        frame.flags = _NEEDS_CSUM
        frame.csum_start = h.l4_offset
        frame.csum_offset = 16 if h.l4 == _TCP else 6
    else:
        complete(data, offset, state.headers, ip_header)
        frame.filled = 1


@compiled
def send_plain(
    state: State, queue: int, total: int, checksum: bool, out_data: npt.NDArray[np.uint8], out_frames: Records,
    out: npt.NDArray[np.int64], headroom: int, offloads: int,
) -> int:  # fmt: skip
    """One packet that becomes one frame."""
    row = len(state.rx) + queue
    offset = out[1] + headroom
    segment, _ = gather(state, row, u64(out_data.ctypes.data) + u64(offset), total, 0, 0)
    if segment < 0:
        return _DMA_FAULT
    frame = _append(out_frames, out, queue, offset, total)
    if checksum:
        parse(out_data, offset, total, state.headers)
        h = state.headers[0]
        # A checksum over something that is neither TCP nor UDP cannot be meant: the descriptor says no place for it.
        if (h.l4 == _TCP or h.l4 == _UDP) and h.length == total:
            _checksum(state, out_data, offset, frame, offloads, True)
    tx = state.tx[queue]
    tx.bytes += total
    tx.segments += 1
    return _NONE


@compiled
def send_segments(
    state: State, queue: int, header: int, payload: int, mss: int, whole: bool, out_data: npt.NDArray[np.uint8],
    out_frames: Records, out: npt.NDArray[np.int64], headroom: int, offloads: int,
) -> int:  # fmt: skip
    """A TSO or USO packet: cut into segments, or (when `whole`) into frames as large as IP allows, to be cut later."""
    row = len(state.rx) + queue
    tx = state.tx[queue]
    template = state.segment
    template_address = u64(template.ctypes.data)
    segment, skip = gather(state, row, template_address, header, 0, 0)
    if segment < 0:
        return _DMA_FAULT
    h = state.headers[0]
    step = mss
    if whole:
        step = max(1, (_MAX_IP - (header - i64(h.l3_offset))) // mss) * mss
    start = 0
    base = u64(out_data.ctypes.data)
    while start < payload:
        piece = min(step, payload - start)
        offset = out[1] + headroom
        target = base + u64(offset)
        copy(target, template_address, header)
        segment, skip = gather(state, row, target + u64(header), piece, segment, skip)
        if segment < 0:
            return _DMA_FAULT
        frame = _append(out_frames, out, queue, offset, header + piece)
        h.length = header + piece
        segment_header(
            out_data, offset, state.headers, start, piece, start // mss, start == 0, start + piece == payload
        )
        _checksum(state, out_data, offset, frame, offloads, False)
        if piece < payload:
            frame.cut = step
            frame.part = start // step
        if piece > mss:
            if h.l4 == _UDP:
                frame.gso = _GSO_UDP
            elif h.l3 == _IPV4:
                frame.gso = _GSO_TCPV4
            else:
                frame.gso = _GSO_TCPV6
            frame.segment = mss
            frame.header = header
        start += piece
        tx.bytes += header + piece
        tx.segments += 1
    return _NONE


@compiled
def _whole(h: Record, offloads: int) -> bool:
    """Whether the wire takes the parsed packet unsegmented."""
    if offloads & _CSUM == 0:
        return False
    if h.l4 == _UDP:
        return offloads & _USO != 0
    if h.l3 == _IPV4:
        return offloads & _TSO4 != 0
    return offloads & _TSO6 != 0


@compiled
def plan_segments(
    state: State, queue: int, total: int, header: int, mss: int, offloads: int
) -> tuple[int, int, bool]:  # fmt: skip
    """Look at the headers of a packet that is to be segmented: they decide how.

    Args:
        state: the device; the packet's pieces are in `pieces`, its parsed headers end in `headers`.
        queue: the transmit queue.
        total: bytes of the packet.
        header: bytes of its headers as the driver says, 0 when it does not.
        mss: payload bytes of each segment.
        offloads: what the wire takes undone.

    Returns:
        A `Drop`, the bytes of the headers, and whether the wire takes the packet whole.
    """
    known = min(total, MAX_HEADER if header == 0 else header)
    if mss == 0 or header >= total or header + mss > MAX_FRAME:
        return _BAD_DESCRIPTOR, 0, False
    segment, _ = gather(state, len(state.rx) + queue, u64(state.segment.ctypes.data), known, 0, 0)
    if segment < 0:
        return _DMA_FAULT, 0, False
    parse(state.segment, 0, total, state.headers)
    h = state.headers[0]
    found = i64(h.payload)
    if (h.l4 != _TCP and h.l4 != _UDP) or found > known or (header != 0 and found != header):
        return _BAD_DESCRIPTOR, 0, False
    return _NONE, found, _whole(h, offloads)


@compiled
def transmit(
    state: State, queue: int, out_data: npt.NDArray[np.uint8], out_frames: Records, out: npt.NDArray[np.int64],
    share: npt.NDArray[np.int64], headroom: int, offloads: int,
) -> int:  # fmt: skip
    """Take packets from a transmit queue until its tail, its share or the end of the batch is reached.

    Args:
        state: the device.
        queue: number of an active queue.
        out_data: bytes of the batch that frames are added to.
        out_frames: its records (`FRAME`).
        out: its number of frames and of bytes, and the work that it took: descriptors that were read and segments that
            were made or are left to the wire, shape (3,).
        share: what this call may add to each of them, shape (3,); one packet is taken even if it is more.
        headroom: bytes to leave free before each frame.
        offloads: what the wire takes undone (`Offload`).

    Returns:
        Why it ended (`Taken`).
    """
    tx = state.tx[queue]
    row = len(state.rx) + queue
    mask = i64(tx.entries - 1)
    head = i64(tx.head)
    tail = i64(tx.tail)
    before = head
    most_frames = min(out[0] + share[0], len(out_frames))
    most_bytes = min(out[1] + share[1], len(out_data))
    most_work = out[2] + share[2]
    work = out[2]
    while head != tail:
        if work >= most_work:
            out[2] = work
            return _SHARE
        # Scan one packet, without taking it yet.
        position = head
        verdict = _NONE
        count = 0
        total = 0
        checksum = False
        reports = 0
        tag = 0
        tso = u64(0)
        has_tso = False
        ended = False
        while position != tail and not ended:
            address = tx.ring + u64(position * _SIZE)
            host, region = locate(state, address, _SIZE, READ)
            if host == 0:
                # Without its ring the queue cannot go on: skip what was posted.
                fault(state, address)
                state.drops[row, _DMA_FAULT] += 1
                tx.head = tail
                out[2] = work
                return _ALL
            low = load_u64(host)
            high = load_u64(host + _U8)
            dtype = i64(high >> _DTYPE & _DTYPE_MASK)
            if dtype == _TYPE_PACKET:
                size = i64(high >> _BUFFER & _BUFFER_MASK)
                if count < MAX_SEGMENTS and size > 0:
                    state.pieces[count].address = low
                    state.pieces[count].length = size
                    count += 1
                else:
                    verdict = _BAD_DESCRIPTOR
                total += size
                checksum |= high & _CHECKSUM != 0
                tag = i64(high >> _TAG & _TAG_MASK)
                if high & _REPORT != 0:
                    reports += 1
                ended = high & _EOP != 0
            elif dtype == _TYPE_TSO:
                has_tso = True
                tso = low
            elif dtype != _TYPE_GENERAL:
                verdict = _BAD_DESCRIPTOR
            position = (position + 1) & mask
        descriptors = (position - head) & mask
        work += descriptors
        if not ended:
            break
        if verdict == _NONE and total <= MAX_PACKET and state.device[0].remote != 0 and ask_for_pieces(state, count):
            tx.head = head
            out[2] = work
            return _FULL

        book(state, row, _DESCRIPTOR, region, descriptors * _SIZE)
        header = 0
        payload = total
        mss = 0
        whole = False
        needed = headroom + total
        frames = 1
        if total > MAX_PACKET or (not has_tso and total > MAX_FRAME):
            verdict = _BAD_DESCRIPTOR
        if has_tso and verdict == _NONE:
            header = i64(tso >> _TSO_HEADER & _TSO_HEADER_MASK)
            mss = i64(tso >> _TSO_MSS & _TSO_MSS_MASK)
            if header == 0:
                verdict = _BAD_DESCRIPTOR
            else:
                verdict, header, whole = plan_segments(state, queue, total, header, mss, offloads)
            if verdict == _NONE:
                payload = min(i64(tso >> _TSO_TOTAL & _TSO_TOTAL_MASK), total - header)
                frames = (payload + mss - 1) // mss
                needed = frames * (headroom + header) + payload
                if payload <= 0:
                    verdict = _BAD_DESCRIPTOR
        if verdict == _NONE and (out[1] + needed > most_bytes or out[0] + frames > most_frames):
            fits = out[1] + needed <= len(out_data) and out[0] + frames <= len(out_frames)
            if out[0] > 0 and (not fits or head != before):
                tx.head = head
                out[2] = work
                return _SHARE if fits else _FULL
            if not fits:
                verdict = _BAD_DESCRIPTOR
        if verdict == _NONE:
            if has_tso:
                work += frames
                verdict = send_segments(
                    state, queue, header, payload, mss, whole, out_data, out_frames, out, headroom, offloads
                )
            else:
                verdict = send_plain(
                    state, queue, total, checksum, out_data, out_frames, out, headroom, offloads
                )  # fmt: skip
        if verdict != _NONE:
            state.drops[row, verdict] += 1
        tx.packets += 1
        state.device[0].asked = 0
        state.device[0].asked_bytes = 0

        # Each descriptor that asked for it is reported; then the packet, whose buffers have been read.
        if reports > 0:
            at = head
            while at != position:
                host, region = locate(state, tx.ring + u64(at * _SIZE), _SIZE, READ)
                at = (at + 1) & mask
                if host != 0:
                    book(state, row, _DESCRIPTOR, region, _SIZE)
                    high = load_u64(host + _U8)
                    if i64(high >> _DTYPE & _DTYPE_MASK) == _TYPE_PACKET and high & _REPORT != 0:
                        _report(state, queue, _DONE_DESCRIPTOR | at << _VALUE)
        _report(state, queue, _DONE_PACKET | (tag & 0x7FFF) << _VALUE)
        state.vectors[tx.vector].pending = 1
        head = position
        tx.head = head
    out[2] = work
    return _ALL
