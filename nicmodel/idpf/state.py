"""The device's data: numpy records, worked on in place by the compiled packet path and shown by Python.

What every NIC has of it is in `nicmodel.nic.state`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.nic import state as core
from nicmodel.nic.state import DEVICE_FIELDS, RX_COUNTERS, RX_FIELDS, TX_COUNTERS, TX_FIELDS, Records, core_arrays

#: Of the frames that were delivered, and of those that were sent, so many went to a group, and so many to all; what is
#: left went to one station. They are counted since the server's start.
CASTS = ("rx_multicast", "rx_broadcast", "tx_multicast", "tx_broadcast")

#: The clock (`nicmodel.idpf.clock`), and the model's own time when transmit queues had their turn: what they send is
#: stamped by it.
CLOCK_FIELDS = (("clock_base", "<i8"), ("clock_since", "<i8"), ("clock_rate", "<f8"), ("sending_at", "<i8"))

DEVICE = np.dtype([*DEVICE_FIELDS, *((name, "<i8") for name in CASTS), *CLOCK_FIELDS])

#: Latches for the stamps of frames that were sent.
TX_LATCHES = 64

#: A latch: whether it holds a stamp that the driver has not fetched, and what the clock showed then, ns.
LATCH = np.dtype([("full", "<i8"), ("time", "<i8")])

#: A receive queue. The core's fields of the buffer ring are those of its first buffer queue, `buffer_ring` is that
#: ring's address. `number` says which buffer queue of its receive queue a ring is, for completions; `cause` what is
#: pending when something has come (`nicmodel.nic.state.Cause`).
RX_QUEUE = np.dtype(
    [
        *RX_FIELDS,
        ("completion_ring", "<u8"),
        ("buffer_ring", "<u8"),
        ("completion_entries", "<i4"),
        ("completion_index", "<i4"),
        ("generation", "<i4"),
        ("cause", "<i4"),
        ("number", "<i4"),
    ]
)

#: A transmit queue: `completions` is the number of its completion queue, `relative` what completions call it by, `flow`
#: whether it is in flow scheduling mode; `cause` as above.
TX_QUEUE = np.dtype(
    [
        *TX_FIELDS,
        ("ring", "<u8"),
        ("completions", "<i4"),
        ("relative", "<i4"),
        ("flow", "<i4"),
        ("cause", "<i4"),
    ]
)

#: A completion queue, which several transmit queues may share; `size` is bytes of a completion.
COMPLETION_QUEUE = np.dtype(
    [("active", "<i4"), ("entries", "<i4"), ("index", "<i4"), ("generation", "<i4"), ("size", "<i4"), ("ring", "<u8")]
)

#: The most addresses that the driver may give the device besides its own: stations and groups.
MAX_STATIONS = 256

COUNTERS = {RX_QUEUE: RX_COUNTERS, TX_QUEUE: TX_COUNTERS}
SETTINGS = {dtype: [name for name in dtype.names or () if name not in COUNTERS[dtype]] for dtype in COUNTERS}


class State(core.State):
    """All that receive and transmit work on.

    `small` has the second buffer queue of each receive queue. Its records are of the same type as those of `rx`, so
    that compiled code takes either; only the fields of the buffer ring count. `completion` is one that is about to be
    written by message. `latches` hold stamps of frames that were sent.
    """

    small: Records
    completion_queues: Records
    completion: npt.NDArray[np.int64]
    latches: Records


def make_state(rx_queues: int, tx_queues: int, vectors: int, rules: int, lut_size: int, flows: int) -> State:
    """A device at rest, without memory; for the arguments see `core_arrays`. Completion queues are as many as
    `tx_queues`.
    """
    return State(
        **core_arrays(
            np.zeros(1, DEVICE), np.zeros(rx_queues, RX_QUEUE), np.zeros(tx_queues, TX_QUEUE),
            vectors=vectors, rules=rules, lut_size=lut_size, flows=flows, stations=MAX_STATIONS,
        ),
        small=np.zeros(rx_queues, RX_QUEUE),
        completion_queues=np.zeros(tx_queues, COMPLETION_QUEUE),
        completion=np.zeros(4, np.int64),
        latches=np.zeros(TX_LATCHES, LATCH),
    )  # fmt: skip
