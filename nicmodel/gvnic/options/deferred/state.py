"""Deferred placement's part of the state (`nicmodel.gvnic.state`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.jit.arrays import Arrays

#: In the record of a receive queue: whether payload is kept, and else what becomes of it (`ELSE_AT_ONCE`).
RX_FIELDS = (("deferred", "<i4"),)
#: `RX_FIELDS.deferred`: 0 is off. A payload for which there is no room goes to the queue's buffers, or its packet is
#: dropped.
ELSE_AT_ONCE, ELSE_DROP = 1, 2

#: Bytes of a page of the NIC's own memory, where payload waits for its place.
NIC_PAGE = 2048
#: The most pages: a handle has 16 bits for the first page of its payload.
MAX_NIC_PAGES = 1 << 16

#: That memory: its first free page and how many are free, and the first pages of the oldest and of the newest payload;
#: -1: none.
NIC_MEMORY = np.dtype([("free", "<i4"), ("free_pages", "<i4"), ("oldest", "<i4"), ("newest", "<i4")])

#: One page. `next` is the page that follows it in its payload, or in the list of free pages. The first page of a
#: payload knows the payload: its receive `queue` (-1: the page is not a first one), its `length` in bytes, the time
#: `since` when it has been here, and its neighbours by age. `generation`, 1 to 65535, tells payloads that begin in the
#: same page apart.
PAGE = np.dtype(
    [
        ("next", "<i4"),
        ("queue", "<i4"),
        ("length", "<i4"),
        ("generation", "<i4"),
        ("older", "<i4"),
        ("newer", "<i4"),
        ("since", "<i8"),
    ]
)

#: What a receive queue counts of the payload that it kept: packets and bytes, then what ended each packet's stay: the
#: driver has had it `placed` or `dropped`, it has `expired`, or the queue has ended (`discarded`). `full` are packets
#: for which there was no room, the rest placement requests that were refused, by `PlacementStatus`.
PLACEMENT_COUNTERS = (
    "kept", "kept_bytes", "placed", "placed_bytes", "dropped", "expired", "discarded", "full", "not_found",
    "bad_requests", "faults",
)  # fmt: skip

#: The placement ring of a receive queue, its completion ring, and the pages that its payload occupies and may occupy.
PLACEMENT_RING = np.dtype(
    [
        ("request_ring", "<u8"),
        ("completion_ring", "<u8"),
        ("entries", "<i4"),
        ("head", "<i4"),
        ("tail", "<i4"),
        ("completion_index", "<i4"),
        ("generation", "<i4"),
        ("pages", "<i4"),
        ("budget", "<i4"),
        *((name, "<i8") for name in PLACEMENT_COUNTERS),
    ]
)


class DeferredArrays(Arrays):
    """What the packet path works on."""

    nic_memory: npt.NDArray[np.void]
    nic_pages: npt.NDArray[np.void]
    nic_bytes: npt.NDArray[np.uint8]
    placement_rings: npt.NDArray[np.void]


def deferred_arrays(queues: int, octets: int) -> dict[str, npt.NDArray[np.void] | npt.NDArray[np.uint8]]:
    """Those of a NIC that keeps so many bytes of payload; 0: it does not have the option."""
    pages = octets // NIC_PAGE
    memory = np.zeros(1, NIC_MEMORY)
    memory["free_pages"] = pages
    memory["oldest"] = memory["newest"] = -1
    records = np.zeros(pages, PAGE)
    records["next"] = np.arange(1, pages + 1)
    records["next"][-1:] = -1
    records["queue"] = -1
    return {
        "nic_memory": memory,
        "nic_pages": records,
        "nic_bytes": np.zeros(pages * NIC_PAGE, np.uint8),
        "placement_rings": np.zeros(queues, PLACEMENT_RING),
    }
