"""Transmit: the stages that all NICs and all their queue formats have in common.

A doorbell's worth of descriptors goes to a batch of frames in one compiled call, that of a loop, of which a personality
has one for each of its queue formats (`nicmodel.gvnic.transmit_dqo`). A loop scans the descriptors of a packet up to
its end, and remembers its pieces in ``state.pieces``; then it calls `dispatch`. That is for all of them, and has three
stages:

1. `_plan`: what the packet becomes: one frame, or segments (`_plan_segments`).
2. `_room`: whether that fits the batch.
3. `_send`: gather its bytes by DMA, checksum or segment.

The completion is the format's. What the wire takes undone (`Offload`) stays undone: a partial checksum or a whole TSO
packet travels with its record.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.jit.addresses import copy
from nicmodel.jit.compiled import Record, compiled, i64, inlined, u64
from nicmodel.nic.dma import fault, read
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import Drop, Records, State, Taken
from nicmodel.packet.checksum import complete, pseudo
from nicmodel.packet.frames import MAX_FRAME, FrameFlag, Gso, Offload
from nicmodel.packet.headers import L3, L4
from nicmodel.packet.parse import parse
from nicmodel.packet.segment import segment_header

_ALL, _FULL, _SHARE = (int(reason) for reason in Taken)
_NONE = int(Drop.NONE)
_DMA_FAULT = int(Drop.DMA_FAULT)
_BAD_DESCRIPTOR = int(Drop.BAD_DESCRIPTOR)
_TRANSMIT = int(Purpose.TRANSMIT)
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

_MAX_IP = 65535
#: The most bytes of headers that are looked for where the driver does not say how many they are.
MAX_HEADER = 255


class Out(NamedTuple):
    """The batch that frames are added to, for the stages.

    Attributes:
        data: its bytes.
        frames: its records (`FRAME`).
        used: its number of frames and of bytes, and the work that it took: descriptors that were read and segments that
            were made or are left to the wire, shape (3,).
        headroom: bytes to leave free before each frame.
        offloads: what the wire takes undone (`Offload`).
        most_frames: how many frames the batch may have when this call has added its share.
        most_bytes: how many bytes.
        most_work: how much work it may have taken.
    """

    data: npt.NDArray[np.uint8]
    frames: Records
    used: npt.NDArray[np.int64]
    headroom: int
    offloads: int
    most_frames: int
    most_bytes: int
    most_work: int


class Plan(NamedTuple):
    """What becomes of a packet.

    Attributes:
        verdict: a `Drop`; if it is not `NONE` the rest says nothing.
        header: bytes of its headers, if it is to be segmented.
        payload: bytes behind them.
        mss: bytes of payload in each segment; 0: it is not to be segmented.
        whole: whether the wire takes the packet unsegmented.
        frames: how many frames it counts as.
        needed: bytes that these take in the batch.
    """

    verdict: int
    header: int
    payload: int
    mss: int
    whole: bool
    frames: int
    needed: int


@inlined
def begin(
    data: npt.NDArray[np.uint8], frames: Records, used: npt.NDArray[np.int64], share: npt.NDArray[np.int64],
    headroom: int, offloads: int,
) -> Out:  # fmt: skip
    """What a loop was called with."""
    most_frames = min(used[0] + share[0], len(frames))
    most_bytes = min(used[1] + share[1], len(data))
    return Out(data, frames, used, headroom, offloads, most_frames, most_bytes, used[2] + share[2])


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


@inlined
def _append(out: Out, queue: int, offset: int, length: int) -> Record:
    """Add a frame record for `length` bytes at `offset`; the bytes stand there already or soon."""
    frame = out.frames[out.used[0]]
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
    out.used[0] += 1
    out.used[1] = offset + length
    return frame


@inlined
def _checksum(
    state: State, out: Out, offset: int, frame: Record, ip_header: bool
) -> None:  # fmt: skip
    """Fill in the L4 checksum, or what the wire needs to do it."""
    h = state.headers[0]
    if out.offloads & _CSUM:
        pseudo(out.data, offset, state.headers)
        frame.flags = _NEEDS_CSUM
        frame.csum_start = h.l4_offset
        frame.csum_offset = 16 if h.l4 == _TCP else 6
    else:
        complete(out.data, offset, state.headers, ip_header)
        frame.filled = 1


@inlined
def _send_plain(state: State, queue: int, out: Out, total: int, checksum: bool) -> int:
    """One packet that becomes one frame."""
    row = len(state.rx) + queue
    offset = out.used[1] + out.headroom
    segment, _ = gather(state, row, u64(out.data.ctypes.data) + u64(offset), total, 0, 0)
    if segment < 0:
        return _DMA_FAULT
    frame = _append(out, queue, offset, total)
    if checksum:
        parse(out.data, offset, total, state.headers)
        h = state.headers[0]
        # A checksum over something that is neither TCP nor UDP cannot be meant: the descriptor says no place for it.
        if (h.l4 == _TCP or h.l4 == _UDP) and h.length == total:
            _checksum(state, out, offset, frame, True)
    tx = state.tx[queue]
    tx.bytes += total
    tx.segments += 1
    return _NONE


@inlined
def _send_segments(state: State, queue: int, out: Out, header: int, payload: int, mss: int, whole: bool) -> int:
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
    base = u64(out.data.ctypes.data)
    while start < payload:
        piece = min(step, payload - start)
        offset = out.used[1] + out.headroom
        target = base + u64(offset)
        copy(target, template_address, header)
        segment, skip = gather(state, row, target + u64(header), piece, segment, skip)
        if segment < 0:
            return _DMA_FAULT
        frame = _append(out, queue, offset, header + piece)
        h.length = header + piece
        segment_header(
            out.data, offset, state.headers, start, piece, start // mss, start == 0, start + piece == payload
        )
        _checksum(state, out, offset, frame, False)
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
def _plan_segments(
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


@inlined
def _plan(
    state: State, queue: int, out: Out, total: int, segmented: bool, header: int, mss: int, most: int
) -> Plan:  # fmt: skip
    """Decide what a packet of `total` bytes becomes.

    Args:
        state: the device; the packet's pieces are in `pieces`.
        queue: the transmit queue.
        out: the batch.
        total: bytes of the packet.
        segmented: whether it is to be segmented.
        header: bytes of its headers as the driver says, 0 when it does not.
        mss: payload bytes of each segment.
        most: the most bytes of payload that it is to have; what is beyond is not sent.
    """
    if not segmented:
        return Plan(_NONE, i64(0), i64(total), i64(0), False, i64(1), out.headroom + total)
    verdict, found, whole = _plan_segments(state, queue, total, header, mss, out.offloads)
    if verdict != _NONE:
        return Plan(i64(verdict), i64(0), i64(0), i64(0), False, i64(0), i64(0))
    payload = min(most, total - found)
    frames = (payload + mss - 1) // mss
    needed = frames * (out.headroom + found) + payload
    return Plan(_NONE, i64(found), i64(payload), i64(mss), whole, i64(frames), i64(needed))


@inlined
def _room(out: Out, planned: Plan, first: bool) -> tuple[int, int]:
    """Whether a packet goes into the batch; the `first` of a call may be more than the queue's share.

    Returns:
        `Taken.ALL` if it does, or never will; else why it does not now. And a `Drop`, if it never will.
    """
    frames, octets = out.used[0] + planned.frames, out.used[1] + planned.needed
    if octets <= out.most_bytes and frames <= out.most_frames:
        return _ALL, _NONE
    fits = octets <= len(out.data) and frames <= len(out.frames)
    if out.used[0] > 0 and (not fits or not first):
        return _SHARE if fits else _FULL, _NONE
    return _ALL, _NONE if fits else _BAD_DESCRIPTOR


@inlined
def _send(state: State, queue: int, out: Out, planned: Plan, checksum: bool) -> int:
    """Add a packet to the batch; the result is a `Drop`."""
    if planned.mss == 0:
        return i64(_send_plain(state, queue, out, planned.payload, checksum))
    out.used[2] += planned.frames
    return i64(_send_segments(state, queue, out, planned.header, planned.payload, planned.mss, planned.whole))


@inlined
def dispatch(
    state: State, queue: int, out: Out, verdict: int, total: int, segmented: bool, header: int, mss: int, most: int,
    checksum: bool, first: bool,
) -> tuple[int, int]:  # fmt: skip
    """Add a packet to the batch, or count why it is dropped.

    Args:
        state: the device; the packet's pieces are in `pieces`.
        queue: the transmit queue.
        out: the batch.
        verdict: a `Drop`, if its descriptors say already that it cannot be sent.
        total: bytes of the packet.
        segmented: whether it is to be segmented.
        header: bytes of its headers as the driver says, 0 when it does not.
        mss: payload bytes of each segment.
        most: the most bytes of payload that it is to have.
        checksum: whether its L4 checksum is to be filled in.
        first: whether it is the first of this call.

    Returns:
        `Taken.ALL` and what has become of it, a `Drop`; or why it is not taken now.
    """
    if verdict == _NONE:
        planned = _plan(state, queue, out, total, segmented, header, mss, most)
        verdict = planned.verdict
        if verdict == _NONE and planned.payload <= 0:
            verdict = _BAD_DESCRIPTOR
        if verdict == _NONE:
            taken, verdict = _room(out, planned, first)
            if taken != _ALL:
                return taken, verdict
        if verdict == _NONE:
            verdict = _send(state, queue, out, planned, checksum)
    if verdict != _NONE:
        state.drops[len(state.rx) + queue, verdict] += 1
    state.tx[queue].packets += 1
    return _ALL, verdict
