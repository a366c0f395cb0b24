"""Guest memory as an onlooker reads it: nothing is booked, no fault is counted, no message is sent."""

from __future__ import annotations

import ctypes

import numpy as np

from nicmodel.gvnic.state import Records


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
