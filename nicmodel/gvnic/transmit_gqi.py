"""Transmit on the queues of the GQI formats.

Descriptors say the offsets that DQO leaves to be parsed, and completion is a counter.

Source: Linux drivers/net/ethernet/google/gve/gve_tx.c.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.descriptors import GQI_TX_PACKET, GQI_TX_SEGMENT, GqiTxType
from nicmodel.gvnic.pages import resolve
from nicmodel.gvnic.receive_gqi import big_endian
from nicmodel.gvnic.state import State
from nicmodel.jit.addresses import load_u64, publish_u32
from nicmodel.jit.compiled import compiled, i64, u64
from nicmodel.nic.dma import READ, WRITE, book, fault, locate
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import MAX_SEGMENTS, Drop, Records, Taken
from nicmodel.nic.transmit import begin, dispatch

_ALL, _FULL, _SHARE = (int(reason) for reason in Taken)
_NONE = int(Drop.NONE)
_DMA_FAULT = int(Drop.DMA_FAULT)
_BAD_DESCRIPTOR = int(Drop.BAD_DESCRIPTOR)
_DESCRIPTOR = int(Purpose.DESCRIPTOR)
_COMPLETION = int(Purpose.COMPLETION)
_STANDARD, _TSO, _SEGMENT, _METADATA = (int(kind) for kind in GqiTxType)

_SIZE = GQI_TX_PACKET.itemsize
_U8 = u64(8)
_COUNT_MASK = 0xFFFFFFFF


def _shift(form: np.dtype[np.void], name: str) -> int:
    """Place of a field in the descriptor's first eight bytes, read as one big-endian number."""
    assert form.fields is not None
    dtype, offset = form.fields[name][:2]
    return 64 - 8 * (offset + dtype.itemsize)


_TYPE = u64(_shift(GQI_TX_PACKET, "type_flags"))
_DESCRIPTORS = u64(_shift(GQI_TX_PACKET, "descriptors"))
_LENGTH = u64(_shift(GQI_TX_PACKET, "length"))
_SEGMENT_LENGTH = u64(_shift(GQI_TX_PACKET, "segment_length"))
_MSS = u64(_shift(GQI_TX_SEGMENT, "mss"))
_BYTE = u64(0xFF)
_SHORT = u64(0xFFFF)


@compiled
def _add_pieces(state: State, queue: int, count: int, address: int, length: int) -> int:
    """Add a segment to the packet's pieces, cut where its page list's pages end.

    Returns:
        Number of pieces now, -1 when the segment leaves the page list or there are too many.
    """
    tx = state.tx[queue]
    while length > 0:
        place, piece = resolve(tx, address, length)
        if piece == 0 or count == MAX_SEGMENTS:
            return -1
        state.pieces[count].address = place
        state.pieces[count].length = piece
        count += 1
        address += u64(piece)
        length -= piece
    return count


@compiled
def transmit_gqi(
    state: State, queue: int, out_data: npt.NDArray[np.uint8], out_frames: Records, used: npt.NDArray[np.int64],
    share: npt.NDArray[np.int64], headroom: int, offloads: int,
) -> int:  # fmt: skip
    """As `nicmodel.gvnic.transmit_dqo.transmit_dqo`, for a queue of a GQI format."""
    out = begin(out_data, out_frames, used, share, headroom, offloads)
    tx = state.tx[queue]
    row = len(state.rx) + queue
    mask = i64(tx.entries - 1)
    head = i64(tx.head)
    before = head
    ended = _ALL
    while True:
        waiting = (i64(tx.tail) - head) & _COUNT_MASK
        if waiting == 0:
            break
        if used[2] >= out.most_work:
            ended = _SHARE
            break
        verdict = _NONE
        pieces = 0
        total = 0
        mss = 0
        kind = _STANDARD
        checksum = False
        descriptors = 1
        position = 0
        while position < descriptors:
            address = tx.ring + u64(((head + position) & mask) * _SIZE)
            host, region = locate(state, address, _SIZE, READ)
            if host == 0:
                # Without its ring the queue cannot go on: skip what was posted.
                fault(state, address)
                state.drops[row, _DMA_FAULT] += 1
                tx.head = tx.tail
                return _ALL
            book(state, row, _DESCRIPTOR, region, _SIZE)
            low = big_endian(load_u64(host))
            high = big_endian(load_u64(host + _U8))
            this = i64(low >> _TYPE & _BYTE) >> 4
            if position == 0:
                kind = this
                checksum = low >> _TYPE & u64(1) != 0
                descriptors = max(1, i64(low >> _DESCRIPTORS & _BYTE))
                total = i64(low >> _LENGTH & _SHORT)
                if this != _STANDARD and this != _TSO:
                    verdict = _BAD_DESCRIPTOR
                    descriptors = 1
                if descriptors > waiting:
                    break
            elif this == _SEGMENT:
                mss = i64(low >> _MSS & _SHORT)
            elif this != _METADATA:
                verdict = _BAD_DESCRIPTOR
            if this != _METADATA and verdict == _NONE:
                pieces = _add_pieces(state, queue, pieces, high, i64(low >> _SEGMENT_LENGTH & _SHORT))
                if pieces < 0:
                    verdict = _BAD_DESCRIPTOR
                    pieces = 0
            position += 1
        used[2] += position
        if descriptors > waiting:
            break

        gathered = 0
        for k in range(pieces):
            gathered += state.pieces[k].length
        if verdict == _NONE and (gathered != total or total == 0):
            verdict = _BAD_DESCRIPTOR
        ended, verdict = dispatch(
            state, queue, out, verdict, total, kind == _TSO, 0, mss, total, checksum, head == before
        )
        if ended != _ALL:
            break
        head = (head + descriptors) & _COUNT_MASK
        tx.head = head
        state.vectors[tx.vector].pending = 1

    if head == before:
        return ended
    # The count of descriptors done is all that the driver learns.
    host, region = locate(state, tx.completion_ring, 4, WRITE)
    if host == 0:
        fault(state, tx.completion_ring)
    else:
        publish_u32(host, big_endian(u64(head)) >> u64(32))
        book(state, row, _COMPLETION, region, 4)
    return ended
