"""Guest memory as an onlooker reads it: nothing is booked, no fault is counted, no message is sent."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from nicmodel.jit.addresses import copy
from nicmodel.jit.compiled import compiled, i64, u64
from nicmodel.nic.dma import find
from nicmodel.nic.state import Records
from nicmodel.vfio_user.regions import RegionMap

LAST_ADDRESS = (1 << 64) - 1


def peek(memory: RegionMap, address: int, count: int) -> bytes | None:
    """`count` bytes at guest address `address`.

    Args:
        memory: the memory map.
        address: guest address.
        count: bytes.

    Returns:
        None when some of them are not mapped into this process.
    """
    leaves, regions = memory
    found = bytearray()
    while len(found) < count:
        position = address + len(found)
        number = find(leaves, regions, u64(position)) if position <= LAST_ADDRESS else -1
        if number < 0:
            return None
        start, size, host = (int(regions[number][name]) for name in ("start", "size", "host"))
        piece = min(start + size - position, count - len(found))
        if host == 0:
            return None
        found += ctypes.string_at(host + position - start, piece)
    return bytes(found)


def peek_many(
    memory: RegionMap, addresses: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What lies in many places.

    Args:
        memory: the memory map.
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
    _peek_many(*memory, addresses, counts, data, starts, kinds)
    return data, starts, kinds


@compiled
def _peek_many(
    leaves: Records, regions: Records, addresses: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64],
    data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], kinds: npt.NDArray[np.int64],
) -> None:  # fmt: skip
    target = u64(data.ctypes.data)
    for number in range(len(addresses)):
        done = i64(0)
        while True:
            position = u64(addresses[number] + u64(done))
            place = find(leaves, regions, position)
            kinds[number] = -1
            if place < 0 or regions[place].host == u64(0):
                break
            region = regions[place]
            skip = position - region.start
            kinds[number] = region.kind
            piece = min(i64(region.size - skip), counts[number] - done)
            copy(target + u64(starts[number] + done), region.host + skip, piece)
            done += piece
            if done >= counts[number]:
                break
