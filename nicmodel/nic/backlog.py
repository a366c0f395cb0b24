"""The backlog: frames that found no buffers, and wait for the driver to post some."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nicmodel.packet.frames import Batch

#: Bytes and frames in all, frames for one queue, and how long a frame may wait.
HELD_BYTES = 1 << 20
HELD_FRAMES = 512
HELD_PER_QUEUE = 256
HELD_NS = 200_000_000


class Backlog:
    """Two batches: what waits is read from one when it is tried again, and what still finds no buffers goes into the
    other.

    Args:
        counts: arrays in which the packet path counts the frames that wait, such as those for each queue.

    Attributes:
        batch: the frames that wait, in the order in which they came; the packet path adds to them.
        held: how many frames and bytes they are, shape (2,). The batch's own counts say nothing.
        due: the driver has posted buffers since they were tried.
    """

    def __init__(self, *counts: npt.NDArray[np.int32]) -> None:
        self.batch = Batch(HELD_BYTES, HELD_FRAMES)
        self.held: npt.NDArray[np.int64] = np.zeros(2, np.int64)
        self.due = False
        self._spare = Batch(HELD_BYTES, HELD_FRAMES)
        self._counts = counts

    def __len__(self) -> int:
        return int(self.held[0])

    def take(self) -> Batch:
        """The frames that wait, to be received once more, before this is called again; nothing waits any longer."""
        taken, self.batch, self._spare = self.batch, self._spare, self.batch
        taken.count = int(self.held[0])
        self.held[:] = 0
        for counts in self._counts:
            counts[:] = 0
        return taken
