"""Rules of buffer queues (RX), and of memory that goes away under them: what is an idpf's of it.

A receive queue has up to two rings of buffers, which are numbered two by two.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nicmodel.idpf.descriptors import RX_BUFFER
from nicmodel.idpf.device import Nic
from nicmodel.observe.checking import receive
from nicmodel.observe.checking.receive import Places, Posted, Truth, Words
from nicmodel.observe.mapped_memory import Addresses

_RESERVED = np.frombuffer(RX_BUFFER.reserved.to_bytes(RX_BUFFER.size, "little"), "<u8")
_RINGS = ("first", "second")


class Receive(receive.Receive):
    """Looks at the tails of buffer queues and at what they post."""

    _nic: Nic

    def begin(self, queue: int) -> None:
        """A receive queue has begun: what was posted before is the device's now."""
        queues = self._nic.queues
        for ring, number in enumerate(queues.buffers_of(queue), 2 * queue):
            self._posted[ring] = Posted(int(self._record(ring)["buffer_entries"]), self._words())
            self.tail(number, queues.buffer_tails[number])

    def tail(self, number: int, value: int) -> None:
        """The tail of a buffer queue, which may have begun, is about to take effect."""
        queue = self._nic.queues.receive_queue_of(number)
        if queue is not None:
            ring = 2 * queue + self._nic.queues.buffers_of(queue).index(number)
            entries = int(self._record(ring)["buffer_entries"])
            if value < entries:
                self.doorbell(ring, value)
            else:
                self._journal.report(
                    "DBL-002", f"the tail of buffer queue {number} is set to {value} of {entries} entries", f"rx{queue}"
                )

    def end(self, queue: int) -> None:
        """It has ended."""
        self.forget(2 * queue)
        self.forget(2 * queue + 1)

    def _record(self, ring: int) -> np.void:
        queue, second = divmod(ring, 2)
        found: np.void = (self._nic.state.small if second else self._nic.state.rx)[queue]
        return found

    def _queue(self, ring: int) -> int:
        return ring // 2

    def _words(self) -> int:
        return RX_BUFFER.size // 8

    def _place(self, ring: int, place: Any) -> str:
        return f"entry {place} of the {_RINGS[ring % 2]} ring"

    def _addresses(self, ring: int, places: Places, posted: Words) -> tuple[Addresses, Truth]:
        return RX_BUFFER.buffer_address.of(posted), np.ones(len(places), np.bool_)

    def _identities(self, posted: Words) -> Words | None:
        return RX_BUFFER.buffer_id.of(posted)

    def _header_addresses(self, ring: int, posted: Words) -> Words | None:
        return RX_BUFFER.header_address.of(posted) if self._header_size(ring) else None

    def _header_size(self, ring: int) -> int:
        return int(self._nic.state.rx[ring // 2]["header_size"])

    def _check_descriptors(self, ring: int, places: Places, posted: Words) -> None:
        reserved = (posted & _RESERVED).any(axis=1)
        self._first(ring, places, reserved, "RX-BUF-005", "reserved bits of the descriptor are set")

    def _decode(self, raw: bytes) -> dict[str, Any]:
        return RX_BUFFER.decode(raw)
