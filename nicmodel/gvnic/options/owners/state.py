"""The owners' part of the state (`nicmodel.gvnic.state`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.jit.arrays import Arrays

#: In the record of a receive queue: how many `owners` it has, 0: it is a plain queue; the `owner` whose list stands in
#: for its ring; how many buffers are `sorted`, and how many may be (`lookahead`).
RX_FIELDS = (("owners", "<i4"), ("owner", "<i4"), ("sorted", "<i4"), ("lookahead", "<i4"))

#: The most owners of a queue's buffers: each costs a list as long as the longest ring.
MAX_OWNERS = 16
#: One owner of buffers in a receive queue: head and tail of the list of its buffers (`State.owned`), how many frames of
#: its flows wait in the backlog, whether they are not to; and what it counts: packets and their bytes.
OWNER_COUNTERS = ("packets", "bytes")
OWNER = np.dtype(
    [
        ("head", "<i8"),
        ("tail", "<i8"),
        ("held", "<i4"),
        ("closed", "<i4"),
        *((name, "<i8") for name in OWNER_COUNTERS),
    ]
)


class OwnerArrays(Arrays):
    """What the packet path works on."""

    owners: npt.NDArray[np.void]
    owned: npt.NDArray[np.uint64]


def owner_arrays(queues: int, owners: int, entries: int) -> dict[str, npt.NDArray[np.void] | npt.NDArray[np.uint64]]:
    """Those of a NIC whose queues have up to so many owners (0: it does not have the option), and `entries` buffers."""
    return {
        "owners": np.zeros((queues, owners), OWNER),
        "owned": np.zeros((queues, owners, entries if owners else 0, 4), np.uint64),
    }
