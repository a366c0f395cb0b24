"""What is done to frames beforehand, so that the packet path itself does with them what a fault is.

Such a frame is received by itself, on queues that are set up otherwise for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from nicmodel.faults.kinds import RxFault, RxHeaderOverflow
from nicmodel.nic.ingress import Receive
from nicmodel.nic.state import Records, State

S = TypeVar("S", bound=State)


def parts(
    receive: Receive[S], state: S, data: npt.NDArray[np.uint8], frames: Records, now: int, oldest: int, limit: int,
    held_data: npt.NDArray[np.uint8], held_frames: Records, held: npt.NDArray[np.int64], outcomes: Records,
) -> Callable[[int, int], int]:  # fmt: skip
    """What has frames of a batch received, from one up to another, and says how many were delivered.

    For the arguments see `nicmodel.nic.receive.Batch`.
    """

    def run(first: int, last: int) -> int:
        if first == last:
            return 0
        part = outcomes[first:last]
        delivered = receive(
            state, data, frames[first:last], last - first, now, oldest, limit, held_data, held_frames, held, part
        )
        part["next"][part["next"] >= 0] += first
        return delivered

    return run


def queues_of(fault: RxFault) -> slice:
    """The receive queues that a fault is about."""
    return slice(None) if fault.queue is None else slice(fault.queue, fault.queue + 1)


def split_nothing(rx: Records, fault: RxFault) -> None:
    """Have no header split off: the queues have no header buffers, or such as are too small for any header."""
    queues = queues_of(fault)
    split = rx["header_size"][queues] > 0
    rx["header_size"][queues] = np.where(split, 1 if isinstance(fault, RxHeaderOverflow) else 0, 0)
