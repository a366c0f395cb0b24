"""Guest memory as an onlooker reads it: nothing is booked, no fault is counted, no message is sent."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.state import Records
from nicmodel.packet.compiled import compiled, i64, u64
from nicmodel.packet.memory import copy


def peek(regions: Records, address: int, count: int) -> bytes | None:
    """`count` bytes at guest address `address`.

    Args:
        regions: the memory map, `nicmodel.vfio_user.dma.REGION`, sorted.
        address: guest address.
        count: bytes.

    Returns:
        None when some of them are not mapped into this process.
    """
    found = bytearray()
    while len(found) < count:
        position = address + len(found)
        number = int(np.searchsorted(regions["start"], np.uint64(position), "right")) - 1
        if number < 0:
            return None
        start, size, host = (int(regions[number][name]) for name in ("start", "size", "host"))
        piece = min(start + size - position, count - len(found))
        if piece <= 0 or host == 0:
            return None
        found += ctypes.string_at(host + position - start, piece)
    return bytes(found)


def peek_many(
    regions: Records, addresses: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What lies in many places.

    Args:
        regions: the memory map, as for `peek`.
        addresses: guest addresses, shape (n,).
        counts: bytes at each, shape (n,).

    Returns:
        The bytes of all places one after the other, where those of each begin (shape (n,)), and the kind of memory each
        is in (shape (n,)): -1 where some of it is not mapped into this process.
    """
    ends = np.cumsum(counts, dtype=np.int64)
    starts = ends - counts
    data = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    kinds = np.full(len(addresses), -1, np.int64)
    _peek_many(regions, addresses, counts, data, starts, kinds)
    return data, starts, kinds


@compiled
def _peek_many(
    regions: Records, addresses: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64], data: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64], kinds: npt.NDArray[np.int64],
) -> None:  # fmt: skip
    target = u64(data.ctypes.data)
    for number in range(len(addresses)):
        done = i64(0)
        while True:
            position = u64(addresses[number] + u64(done))
            low = 0
            high = len(regions)
            while low < high:
                middle = (low + high) // 2
                if regions[middle].start <= position:
                    low = middle + 1
                else:
                    high = middle
            kinds[number] = -1
            if low == 0:
                break
            region = regions[low - 1]
            skip = position - region.start
            if skip >= region.size or region.host == u64(0):
                break
            kinds[number] = region.kind
            piece = min(i64(region.size - skip), counts[number] - done)
            copy(target + u64(starts[number] + done), region.host + skip, piece)
            done += piece
            if done >= counts[number]:
                break
