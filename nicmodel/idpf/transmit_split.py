"""Transmit on the queues of the split model: descriptors in one ring, completions in another.

A queue is in flow scheduling mode, and each packet is completed by its tag, or in queue scheduling mode, and is
completed by how far its ring is done, where a descriptor asks for that.

Sources: Linux drivers/net/ethernet/intel/idpf/idpf_txrx.c, idpf_lan_txrx.h, xdp.c.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.idpf.clock import time_at
from nicmodel.idpf.descriptors import (
    TX_COMPLETION,
    TX_CONTEXT,
    TX_FLOW_DATA,
    TX_QUEUE_DATA,
    TX_TSO_CONTEXT,
    TxCompletionType,
    TxType,
)
from nicmodel.idpf.state import State
from nicmodel.jit.addresses import load_u64, publish_u32, publish_u64
from nicmodel.jit.compiled import compiled, i64, inlined, u64
from nicmodel.nic.dma import READ, WRITE, book, fault, locate, read_pieces_later
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import MAX_PACKET, MAX_SEGMENTS, Drop, Records, Taken
from nicmodel.nic.transmit import Out, begin, dispatch
from nicmodel.packet.frames import MAX_FRAME

_ALL, _FULL, _SHARE = (int(reason) for reason in Taken)
_NONE = int(Drop.NONE)
_DMA_FAULT = int(Drop.DMA_FAULT)
_BAD_DESCRIPTOR = int(Drop.BAD_DESCRIPTOR)
_DESCRIPTOR = int(Purpose.DESCRIPTOR)
_COMPLETION = int(Purpose.COMPLETION)

_SIZE = TX_FLOW_DATA.size
_WHOLE_COMPLETION = TX_COMPLETION.size
_FLOW_DATA = int(TxType.FLOW_DATA)
_QUEUE_DATA = int(TxType.QUEUE_DATA)
_TYPE_TSO = int(TxType.TSO_CONTEXT)
_TYPE_CONTEXT = int(TxType.CONTEXT)
_DTYPE = u64(TX_FLOW_DATA.dtype.shift)
_DTYPE_MASK = u64(TX_FLOW_DATA.dtype.mask)
# Data descriptors of both modes have these in the same places.
_EOP = u64(1 << TX_FLOW_DATA.end_of_packet.shift)
_EVENT = u64(1 << TX_FLOW_DATA.report_event.shift)
_BUFFER = u64(TX_FLOW_DATA.buffer_size.shift)
_BUFFER_MASK = u64(TX_FLOW_DATA.buffer_size.mask)
_FLOW_CHECKSUM = u64(1 << TX_FLOW_DATA.checksum.shift)
_TAG = u64(TX_FLOW_DATA.completion_tag.shift)
_TAG_MASK = u64(TX_FLOW_DATA.completion_tag.mask)
_QUEUE_CHECKSUM = u64(1 << TX_QUEUE_DATA.checksum.shift)
_STATUS = u64(1 << TX_QUEUE_DATA.report_status.shift)
_STAMP = u64(1 << TX_CONTEXT.timestamp.shift)
_LATCH = u64(TX_CONTEXT.latch.shift)
_LATCH_MASK = u64(TX_CONTEXT.latch.mask)
_TSO_MSS = u64(TX_TSO_CONTEXT.mss.shift)
_TSO_MSS_MASK = u64(TX_TSO_CONTEXT.mss.mask)
_TSO_HEADER = u64(TX_TSO_CONTEXT.header_length.shift)
_TSO_HEADER_MASK = u64(TX_TSO_CONTEXT.header_length.mask)
_DONE_PACKET = int(TxCompletionType.PACKET) << TX_COMPLETION.type.shift
_DONE_DESCRIPTOR = int(TxCompletionType.DESCRIPTOR) << TX_COMPLETION.type.shift
_GENERATION = TX_COMPLETION.generation.shift
_VALUE = TX_COMPLETION.value.shift

_U8 = u64(8)


@compiled
def _report(state: State, queue: int, fields: int) -> None:
    """Write the next completion of a transmit queue; one aligned word, so it is whole when it is seen."""
    tx = state.tx[queue]
    completions = state.completion_queues[tx.completions]
    index = i64(completions.index)
    size = i64(completions.size)
    address = completions.ring + u64(index * size)
    host, region = locate(state, address, size, WRITE)
    word = i64(tx.relative) | fields | i64(completions.generation) << _GENERATION
    if host == 0:
        fault(state, address)
    else:
        if size == _WHOLE_COMPLETION:
            publish_u64(host, u64(word))
        else:
            publish_u32(host, word)
        book(state, len(state.rx) + queue, _COMPLETION, region, size)
    index += 1
    if index == completions.entries:
        index = 0
        completions.generation ^= 1
    completions.index = index


@inlined
def _next(position: int, entries: int) -> int:
    """The place in a ring behind `position`."""
    return i64(0) if position + 1 == entries else position + 1


@inlined
def _between(first: int, last: int, entries: int) -> int:
    """How far it is in a ring from `first` to `last`."""
    return last - first + entries if last < first else last - first


@inlined
def _count_casts(state: State, out: Out, first: int) -> None:
    """Count the frames of the batch from `first` on that are not for one station."""
    device = state.device[0]
    for number in range(first, out.used[0]):
        offset = i64(out.frames[number].offset)
        if out.data[offset] & 1 != 0:
            together = 0xFF
            for k in range(6):
                together &= i64(out.data[offset + k])
            if together == 0xFF:
                device.tx_broadcast += 1
            else:
                device.tx_multicast += 1


@inlined
def _complete(state: State, queue: int, head: int, position: int, reports: int, tag: int) -> None:
    """Write what the driver wants to hear of a packet, whose descriptors are from `head` up to `position`."""
    tx = state.tx[queue]
    entries = i64(tx.entries)
    flow = tx.flow != 0
    asked = _EVENT if flow else _EVENT | _STATUS
    at = head
    while reports > 0 and at != position:
        host, region = locate(state, tx.ring + u64(at * _SIZE), _SIZE, READ)
        at = _next(at, entries)
        if host != 0:
            high = load_u64(host + _U8)
            dtype = i64(high >> _DTYPE & _DTYPE_MASK)
            if dtype == (_FLOW_DATA if flow else _QUEUE_DATA) and high & asked != 0:
                book(state, len(state.rx) + queue, _DESCRIPTOR, region, _SIZE)
                if high & _EVENT != 0:
                    _report(state, queue, _DONE_DESCRIPTOR | at << _VALUE)
                if not flow and high & _STATUS != 0:
                    _report(state, queue, _DONE_PACKET | at << _VALUE)
    if flow:
        _report(state, queue, _DONE_PACKET | tag << _VALUE)


@compiled
def transmit_split(
    state: State, queue: int, out_data: npt.NDArray[np.uint8], out_frames: Records, used: npt.NDArray[np.int64],
    share: npt.NDArray[np.int64], headroom: int, offloads: int,
) -> int:  # fmt: skip
    """See `nicmodel.nic.egress.Transmit`."""
    out = begin(out_data, out_frames, used, share, headroom, offloads)
    tx = state.tx[queue]
    row = len(state.rx) + queue
    entries = i64(tx.entries)
    head = i64(tx.head)
    tail = i64(tx.tail)
    before = head
    flow = tx.flow != 0
    data_type = _FLOW_DATA if flow else _QUEUE_DATA
    wants_checksum = _FLOW_CHECKSUM if flow else _QUEUE_CHECKSUM
    wants_report = _EVENT if flow else _EVENT | _STATUS
    while head != tail:
        if used[2] >= out.most_work:
            return _SHARE
        # Scan one packet, without taking it yet.
        position = head
        verdict = _NONE
        count = 0
        total = 0
        checksum = False
        reports = 0
        tag = 0
        latch = i64(-1)
        tso = u64(0)
        has_tso = False
        ended = False
        region = i64(0)
        while position != tail and not ended:
            address = tx.ring + u64(position * _SIZE)
            host, region = locate(state, address, _SIZE, READ)
            if host == 0:
                # Without its ring the queue cannot go on: skip what was posted.
                fault(state, address)
                state.drops[row, _DMA_FAULT] += 1
                tx.head = tail
                return _ALL
            low = load_u64(host)
            high = load_u64(host + _U8)
            dtype = i64(high >> _DTYPE & _DTYPE_MASK)
            if dtype == data_type:
                size = i64(high >> _BUFFER & _BUFFER_MASK)
                if count < MAX_SEGMENTS and size > 0:
                    state.pieces[count].address = low
                    state.pieces[count].length = size
                    count += 1
                else:
                    verdict = _BAD_DESCRIPTOR
                total += size
                checksum |= high & wants_checksum != 0
                # Linux writes the same tag to all descriptors of a packet, DPDK another to each and expects the last.
                tag = i64(high >> _TAG & _TAG_MASK)
                if high & wants_report != 0:
                    reports += 1
                ended = high & _EOP != 0
            elif dtype == _TYPE_TSO:
                has_tso = True
                tso = low
            elif dtype == _TYPE_CONTEXT:
                if high & _STAMP != 0:
                    latch = i64(high >> _LATCH & _LATCH_MASK)
                    if latch >= len(state.latches):
                        verdict = _BAD_DESCRIPTOR
            else:
                verdict = _BAD_DESCRIPTOR
            position = _next(position, entries)
        descriptors = _between(head, position, entries)
        used[2] += descriptors
        if not ended:
            return _ALL
        if verdict == _NONE and total <= MAX_PACKET and state.device[0].remote != 0 and read_pieces_later(state, count):
            return _FULL

        book(state, row, _DESCRIPTOR, region, descriptors * _SIZE)
        header = i64(tso >> _TSO_HEADER & _TSO_HEADER_MASK)
        mss = i64(tso >> _TSO_MSS & _TSO_MSS_MASK)
        if total > MAX_PACKET or (not has_tso and total > MAX_FRAME) or (has_tso and header == 0):
            verdict = _BAD_DESCRIPTOR
        first = i64(used[0])
        # The context's own total is not asked: DPDK cuts it to 14 bits, and the descriptors say it anyway.
        taken, verdict = dispatch(
            state, queue, out, verdict, total, has_tso, header, mss, total, checksum, head == before
        )
        if taken != _ALL:
            return taken
        _count_casts(state, out, first)
        if verdict == _NONE and latch >= 0:
            state.latches[latch].time = time_at(state.device[0], i64(state.device[0].sending_at))
            state.latches[latch].full = 1
        state.device[0].wanted = 0
        state.device[0].wanted_bytes = 0

        _complete(state, queue, head, position, reports, tag)
        state.vectors[tx.vector].pending |= tx.cause
        head = position
        tx.head = head
    return _ALL
