"""Transmit on the queues of the DQO formats: general descriptors, a completion ring.

Source of the grammar and the limits: Linux drivers/net/ethernet/google/gve/gve_tx_dqo.c.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.descriptors import TX_COMPLETION, TX_PACKET, TX_TSO_CONTEXT, TxCompletionType, TxType
from nicmodel.gvnic.state import State
from nicmodel.jit.addresses import load_u64, publish_u64
from nicmodel.jit.compiled import compiled, i64, u64
from nicmodel.nic.dma import READ, WRITE, book, fault, locate, read_pieces_later
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import MAX_PACKET, MAX_SEGMENTS, Drop, Records, Taken
from nicmodel.nic.transmit import begin, dispatch
from nicmodel.packet.frames import MAX_FRAME

_ALL, _FULL, _SHARE = (int(reason) for reason in Taken)
_NONE = int(Drop.NONE)
_DMA_FAULT = int(Drop.DMA_FAULT)
_BAD_DESCRIPTOR = int(Drop.BAD_DESCRIPTOR)
_DESCRIPTOR = int(Purpose.DESCRIPTOR)
_COMPLETION = int(Purpose.COMPLETION)

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
def transmit_dqo(
    state: State, queue: int, out_data: npt.NDArray[np.uint8], out_frames: Records, used: npt.NDArray[np.int64],
    share: npt.NDArray[np.int64], headroom: int, offloads: int,
) -> int:  # fmt: skip
    """See `nicmodel.nic.egress.Transmit`."""
    out = begin(out_data, out_frames, used, share, headroom, offloads)
    tx = state.tx[queue]
    row = len(state.rx) + queue
    mask = i64(tx.entries - 1)
    head = i64(tx.head)
    tail = i64(tx.tail)
    before = head
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
        most = i64(tso >> _TSO_TOTAL & _TSO_TOTAL_MASK)
        taken, verdict = dispatch(
            state, queue, out, verdict, total, has_tso, header, mss, most, checksum, head == before
        )
        if taken != _ALL:
            return taken
        state.device[0].wanted = 0
        state.device[0].wanted_bytes = 0

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
    return _ALL
