"""The buffers of the receive queues as an onlooker finds them in guest memory, before a batch and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nicmodel.idpf.descriptors import RX_BUFFER, RX_COMPLETION
from nicmodel.nic.peek import peek_many
from nicmodel.nic.view import Numbers, Pieces, pieces

if TYPE_CHECKING:
    from nicmodel.idpf.device import Nic  # which shows its buffers

Bytes = npt.NDArray[np.uint8]


class Buffers:
    """See `nicmodel.nic.view.Buffers`."""

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        #: The records of the queues' first rings, and of their second ones.
        self._records = nic.state.rx.copy(), nic.state.small.copy()
        self._rings = [self._read(records) for records in self._records]

    def _read(self, records: npt.NDArray[np.void]) -> dict[int, Bytes]:
        """What the driver has put into rings, by receive queue; shape (entries, bytes of a descriptor)."""
        used = np.flatnonzero(records["buffer_entries"])
        counts = records["buffer_entries"][used].astype(np.int64) * RX_BUFFER.size
        data, starts, _ = peek_many(self._nic.state.memory_map, records["buffer_ring"][used], counts)
        return {
            number: data[start : start + count].reshape(-1, RX_BUFFER.size)
            for number, start, count in zip(used.tolist(), starts.tolist(), counts.tolist(), strict=True)
        }

    def used(self, queue: Numbers, first: Numbers, later: Numbers) -> Pieces:
        """See `nicmodel.nic.view.Buffers`."""
        queues = self._records[0]
        entries = np.maximum(queues["completion_entries"][queue].astype(np.int64), 1)
        index = (first + later) % entries
        completions = self._completions(queue, index)
        ring = RX_COMPLETION.buffer_queue.of(completions.view("<u8"))
        # Each ring's buffers are used in their order: this one is as far behind the ring's head as there were
        # completions of that ring before it.
        done = (index - queues["completion_index"][queue]) % entries
        buffers = np.zeros((len(queue), RX_BUFFER.size), np.uint8)
        for number in np.unique(queue).tolist():
            chosen = np.flatnonzero(queue == number)
            before = np.arange(int(done[chosen].max()) + 1)
            places = (int(queues["completion_index"][number]) + before) % entries[chosen[0]]
            earlier = self._completions(np.full(len(places), number), places)
            which = RX_COMPLETION.buffer_queue.of(earlier.view("<u8"))
            for kind in (0, 1):
                if number not in self._rings[kind]:
                    continue
                count = np.cumsum(which == kind) - 1
                mine = chosen[ring[chosen] == kind]
                record = self._records[kind][number]
                slot = (int(record["buffer_head"]) + count[done[mine]]) % int(record["buffer_entries"])
                buffers[mine] = self._rings[kind][number][slot]
        return pieces(completions, buffers, RX_COMPLETION, RX_BUFFER)

    def _completions(self, queue: Numbers, index: Numbers) -> Bytes:
        """Completions as they are in memory; shape (n, bytes of one)."""
        size = RX_COMPLETION.size
        rings: npt.NDArray[np.uint64] = self._records[0]["completion_ring"][queue]
        places = rings + (index * size).astype(np.uint64)
        raw, _, _ = peek_many(self._nic.state.memory_map, places, np.full(len(queue), size))
        return raw.reshape(-1, size)
