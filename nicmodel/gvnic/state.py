"""The device's state: numpy records, worked on in place by the compiled packet path and shown by Python.

What every NIC has of it is in `nicmodel.nic.state`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.options.ddp.state import DEVICE_FIELDS as DDP_DEVICE_FIELDS
from nicmodel.gvnic.options.ddp.state import DdpArrays, ddp_arrays
from nicmodel.gvnic.options.deferred.state import PLACEMENT_COUNTERS, PLACEMENT_RING, DeferredArrays, deferred_arrays
from nicmodel.gvnic.options.deferred.state import RX_FIELDS as DEFERRED_RX_FIELDS
from nicmodel.gvnic.options.owners.state import OWNER, OWNER_COUNTERS, OwnerArrays, owner_arrays
from nicmodel.gvnic.options.owners.state import RX_FIELDS as OWNERS_RX_FIELDS
from nicmodel.nic import state as core
from nicmodel.nic.state import DEVICE_FIELDS, RX_COUNTERS, RX_FIELDS, TX_COUNTERS, TX_FIELDS, core_arrays

DEVICE = np.dtype([*DEVICE_FIELDS, ("gqi", "<i4"), ("timestamps", "<i4"), *DDP_DEVICE_FIELDS])

# The fields of the queues serve both families of formats. DQO: heads and tails are indices, and a receive queue has a
# buffer ring and a completion ring. GQI: heads and tails are free-running 32-bit counts, the "completion ring" of a
# receive queue is its descriptor ring and that of a transmit queue is its counter; `sequence` is the last sequence
# number written, `pages` the address of the page list in this process (0: addresses are DMA addresses).

RX_QUEUE = np.dtype(
    [
        *RX_FIELDS,
        ("completion_ring", "<u8"),
        ("buffer_ring", "<u8"),
        ("completion_entries", "<i4"),
        ("completion_index", "<i4"),
        ("generation", "<i4"),
        ("sequence", "<i4"),
        ("page_size", "<i4"),
        ("page_count", "<i8"),
        ("pages", "<u8"),
        *DEFERRED_RX_FIELDS,
        *OWNERS_RX_FIELDS,
    ]
)

TX_QUEUE = np.dtype(
    [
        *TX_FIELDS,
        ("ring", "<u8"),
        ("completion_ring", "<u8"),
        ("completion_entries", "<i4"),
        ("completion_index", "<i4"),
        ("generation", "<i4"),
        ("page_size", "<i4"),
        ("page_count", "<i8"),
        ("pages", "<u8"),
    ]
)

#: Counters by queue type, and the fields that a queue's creation and destruction reset.
COUNTERS = {RX_QUEUE: RX_COUNTERS, TX_QUEUE: TX_COUNTERS, PLACEMENT_RING: PLACEMENT_COUNTERS, OWNER: OWNER_COUNTERS}
SETTINGS = {dtype: [name for name in dtype.names or () if name not in COUNTERS[dtype]] for dtype in COUNTERS}


class State(core.State, DeferredArrays, OwnerArrays, DdpArrays):
    """All that receive and transmit work on.

    `completion` is one that is about to be written by message. Options have arrays of their own, which are empty where
    they are off.
    """

    completion: npt.NDArray[np.int64]


def make_state(
    queues: int, vectors: int, rules: int, lut_size: int, flows: int, *, deferred_bytes: int = 0, owners: int = 0,
    owned: int = 0, ddp_flows: int = 0,
) -> State:  # fmt: skip
    """A device at rest, without memory, with room for `queues` queues each way.

    For the other positional arguments see `core_arrays`. `deferred_bytes` bytes of the NIC's own memory are for
    deferred payload. The buffers of a receive queue have up to `owners` owners, each of which has up to `owned` of
    them. `ddp_flows` can have their data placed directly.
    """
    return State(
        **core_arrays(
            np.zeros(1, DEVICE), np.zeros(queues, RX_QUEUE), np.zeros(queues, TX_QUEUE),
            vectors=vectors, rules=rules, lut_size=lut_size, flows=flows,
        ),
        completion=np.zeros(4, np.int64),
        **deferred_arrays(queues, deferred_bytes),
        **owner_arrays(queues, owners, owned),
        **ddp_arrays(ddp_flows, core.MAX_PACKET),
    )  # fmt: skip
