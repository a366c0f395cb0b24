"""The buffers of a gVNIC's receive queues as an onlooker finds them in guest memory, before a batch and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.descriptors import GQI_RX_DESCRIPTOR, GQI_RX_PAD, GQI_RX_SLOT, RX_BUFFER, RX_COMPLETION
from nicmodel.gvnic.options.owners.lists import posted
from nicmodel.gvnic.pages import resolve
from nicmodel.nic.layout import explain
from nicmodel.nic.peek import peek_many
from nicmodel.nic.view import Numbers, Pieces, pieces

if TYPE_CHECKING:
    from nicmodel.gvnic.device import Nic  # which shows its buffers

Bytes = npt.NDArray[np.uint8]


class Buffers:
    """See `nicmodel.nic.view.Buffers`."""

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._gqi = nic.gqi
        self._queues = nic.state.rx.copy()
        self._rings = self._read_rings()

    def used(self, queue: Numbers, first: Numbers, later: Numbers) -> Pieces:
        """See `nicmodel.nic.view.Buffers`."""
        queues = self._queues
        completion_entries = np.maximum(queues["completion_entries"][queue].astype(np.int64), 1)
        index = (first + later) % completion_entries
        size = GQI_RX_DESCRIPTOR.itemsize if self._gqi else RX_COMPLETION.size
        addresses = queues["completion_ring"][queue] + (index * size).astype(np.uint64)
        raw, _, _ = peek_many(self._nic.state.memory_map, addresses, np.full(len(queue), size))
        completions: Bytes = raw.reshape(-1, size)

        # Every completion is of one buffer, most often the next of the ring. Where buffers have owners, the rings have
        # them by their identifiers.
        slot = index
        if not self._gqi:
            used = (index - queues["completion_index"][queue]) % completion_entries
            slot = (queues["buffer_head"][queue] + used) % np.maximum(queues["buffer_entries"][queue], 1)
            identifiers = RX_COMPLETION.buffer_id.counts(completions.view("<u8"))
            slot = np.where(queues["owners"][queue] > 0, identifiers, slot)
        buffers = np.zeros((len(queue), GQI_RX_SLOT.itemsize if self._gqi else RX_BUFFER.size), np.uint8)
        for number in np.unique(queue).tolist():
            chosen = queue == number
            buffers[chosen] = self._rings[number][slot[chosen]]
            if not self._gqi:
                buffers[chosen] = self._named(number, buffers[chosen], identifiers[chosen])
        if self._gqi:
            return self._read_gqi(completions, queue, buffers, later == 0)
        return pieces(completions, buffers, RX_COMPLETION, RX_BUFFER)

    def _named(self, queue: int, buffers: Bytes, identifiers: Numbers) -> Bytes:
        """These buffers of a queue, or where a completion has named another, that one."""
        others = RX_BUFFER.buffer_id.counts(buffers.view("<u8")) != identifiers
        if others.any():
            ring, record = self._rings[queue], self._queues[queue]
            posted = int(record["buffer_tail"] - record["buffer_head"]) % len(ring)
            mine = ring[(int(record["buffer_head"]) + np.arange(posted)) % len(ring)]
            places = {name: place for place, name in enumerate(RX_BUFFER.buffer_id.of(mine.view("<u8")).tolist())}
            for number in np.flatnonzero(others).tolist():
                if int(identifiers[number]) in places:
                    buffers[number] = mine[places[int(identifiers[number])]]
        return buffers

    def _read_gqi(
        self, completions: Bytes, queue: Numbers, buffers: Bytes, is_first: npt.NDArray[np.bool_]
    ) -> Pieces:  # fmt: skip
        """GQI: no headers, and two bytes of padding before a packet."""
        pads = np.where(is_first, GQI_RX_PAD, 0)
        slots = buffers.view(">u8").reshape(-1).tolist()
        places = [resolve(self._queues[one], slot, 1)[0] for one, slot in zip(queue.tolist(), slots, strict=True)]
        return Pieces(
            decode=lambda piece: explain(np.frombuffer(completions[piece].tobytes(), GQI_RX_DESCRIPTOR)[0]),
            addresses=np.array(places, np.uint64) + pads.astype(np.uint64),
            lengths=completions.view(GQI_RX_DESCRIPTOR)["length"].reshape(-1).astype(np.int64) - pads,
            header_addresses=np.zeros(len(pads), np.uint64),
            header_lengths=np.zeros(len(pads), np.int64),
        )

    def _read_rings(self) -> dict[int, Bytes]:
        """What the drivers have put into the buffer rings, by queue; shape (entries, bytes of a descriptor).

        For a queue whose buffers have several owners: what the device holds of it (`posted`).
        """
        queues, state = self._queues, self._nic.state
        active = np.flatnonzero(queues["active"])
        size = GQI_RX_SLOT.itemsize if self._gqi else RX_BUFFER.size
        counts = queues["buffer_entries"][active].astype(np.int64) * size
        data, starts, _ = peek_many(state.memory_map, queues["buffer_ring"][active], counts)
        rings = {
            number: data[start : start + count].reshape(-1, size)
            for number, start, count in zip(active.tolist(), starts.tolist(), counts.tolist(), strict=True)
        }
        shared = np.flatnonzero(queues["owners"]).tolist()
        return rings | {number: posted(state, number, rings[number]) for number in shared}
