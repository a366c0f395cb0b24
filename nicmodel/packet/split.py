"""Where a frame is cut on a queue with header split."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import compiled
from nicmodel.packet.headers import L4
from nicmodel.packet.parse import ETHERNET_SIZE

_L4_TCP, _L4_UDP = int(L4.TCP), int(L4.UDP)


@compiled
def split_point(headers: npt.NDArray[np.void], header_size: int) -> int:
    """How many bytes of a parsed frame go to the header buffer.

    TCP and UDP are cut exactly where their payload starts, which is what devmem TCP lives on. Any other frame goes
    wholly to the header buffer, so that the host can read it even where data buffers are device memory; if it is too
    long for that, its L2 and L3 headers do, or the Ethernet header alone.

    Args:
        headers: what `parse` found, shape (1,), `HEADERS`.
        header_size: bytes in the header buffer, at least 14.

    Returns:
        bytes for the header buffer, or -1 if the headers of TCP or UDP do not fit: the whole frame goes to data
        buffers (the driver's "header-buffer overflow").
    """
    h = headers[0]
    payload = int(h["payload"])
    if h["l4"] == _L4_TCP or h["l4"] == _L4_UDP:
        return payload if payload <= header_size else -1
    length = int(h["length"])
    if length <= header_size:
        return length
    return payload if payload <= header_size else ETHERNET_SIZE
