"""Rules of receive queues (RX), and of memory that goes away under them (DMA-001, DMA-002): what is a gVNIC's of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nicmodel.gvnic.contract.rings import Rings
from nicmodel.gvnic.descriptors import GQI_RX_SLOT, RX_BUFFER
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.options.owners.declarations import RX_BUFFER_OWNER
from nicmodel.gvnic.options.owners.lists import identifiers, in_lists
from nicmodel.observe.checking import receive
from nicmodel.observe.checking.receive import Places, Posted, Truth, Words
from nicmodel.observe.findings import Journal
from nicmodel.observe.mapped_memory import Addresses, MappedMemory

OnPosted = Callable[[int, Places, Words, Addresses], object]

#: Least number of buffers that a doorbell of a DQO format posts.
_DOORBELL_STEP = 8

_OWNER = np.frombuffer(RX_BUFFER_OWNER.encode(owner=RX_BUFFER_OWNER.owner.mask), "<u8")
_RESERVED = np.frombuffer(RX_BUFFER.reserved.to_bytes(RX_BUFFER.size, "little"), "<u8")


class Receive(receive.Receive):
    """Looks at receive doorbells and at what they post; each queue has one ring."""

    _nic: Nic
    _rings: Rings

    def __init__(self, nic: Nic, memory: MappedMemory, journal: Journal, rings: Rings) -> None:
        super().__init__(nic, memory, journal, rings)
        #: Told of buffers that were posted on queues of a DQO format: queue, entries, descriptors, addresses.
        self.on_posted: OnPosted = lambda *_: None

    def posted(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The posted buffers in memory from `start` up to `end`: queue, entry, whether it is a header buffer."""
        for spans, header in ((self._buffers, False), (self._headers, True)):
            yield from ((span.ring, span.place, header) for span in spans.within(start, end))

    def waiting(self, number: int) -> Words:
        """The descriptors in the ring of a queue that the device has not taken, shape (n, words)."""
        queue, record = self._of(number), self._nic.state.rx[number]
        head, entries = int(record["buffer_head"]), int(record["buffer_entries"])
        places = np.arange(head, head + min((queue.tail - head) % int(record["positions"]), entries)) % entries
        found: Words = queue.copy[places[~queue.refused[places]]]
        return found

    def unused(self, number: int) -> Words:
        """The descriptors of all buffers that the device has of a queue, shape (n, words)."""
        sorted_ = in_lists(self._nic.state, number).view("<u8")
        return np.concatenate([self.waiting(number), sorted_])

    def _record(self, ring: int) -> np.void:
        found: np.void = self._nic.state.rx[ring]
        return found

    def _queue(self, ring: int) -> int:
        return ring

    def _words(self) -> int:
        return 1 if self._nic.gqi else 4

    def _spare(self) -> int:
        return 0 if self._nic.gqi else 1

    def _place(self, ring: int, place: Any) -> str:
        return f"entry {place}"

    def _addresses(self, ring: int, places: Places, posted: Words) -> tuple[Addresses, Truth]:
        addresses = posted[:, 0].byteswap() if self._nic.gqi else RX_BUFFER.buffer_address.of(posted)
        pages = self._rings.page_list(f"rx{ring}")
        if pages is None:
            return addresses, np.ones(len(places), np.bool_)
        addresses, usable = self._in_pages(addresses, int(self._record(ring)["buffer_size"]), pages)
        self._first(ring, places, ~usable, "RX-BUF-007", "the buffer is not in the queue's page list")
        return addresses, usable

    def _in_pages(self, addresses: Addresses, size: int, pages: int) -> tuple[Addresses, Truth]:
        """Where buffers in a page list are in memory, and whether they are in it at all.

        The addresses are offsets in the list (GQI), or lie in its pages (DQO).
        """
        listed, page_size = self._nic.pages.addresses(pages)
        if not self._nic.gqi:
            first = addresses // np.uint64(page_size) * np.uint64(page_size)
            last = (addresses + np.uint64(size - 1)) // np.uint64(page_size) * np.uint64(page_size)
            return addresses, np.isin(first, listed) & np.isin(last, listed)
        number, offset = addresses // np.uint64(page_size), addresses % np.uint64(page_size)
        usable = (number < len(listed)) & (offset + np.uint64(size) <= page_size)
        return np.where(usable, listed[np.minimum(number, len(listed) - 1).astype(np.int64)] + offset, 0), usable

    def _identities(self, posted: Words) -> Words | None:
        return None if self._nic.gqi else RX_BUFFER.buffer_id.of(posted)

    def _header_addresses(self, ring: int, posted: Words) -> Words | None:
        return RX_BUFFER.header_address.of(posted) if self._header_size(ring) else None

    def _header_size(self, ring: int) -> int:
        return 0 if self._nic.gqi else int(self._record(ring)["header_size"])

    def _check_descriptors(self, ring: int, places: Places, posted: Words) -> None:
        if not self._nic.gqi:
            bits = _RESERVED & ~_OWNER if self._record(ring)["owners"] else _RESERVED
            reserved = (posted & bits).any(axis=1)
            self._first(ring, places, reserved, "RX-BUF-005", "reserved bits of the descriptor are set")

    def _check_number(self, ring: int, value: int, before: int, new: int) -> None:
        if not self._nic.gqi and 0 < new < _DOORBELL_STEP:
            self._journal.report(
                "RX-RNG-002", f"{new} buffers are posted", self._name(ring), tail=value, before=before
            )  # fmt: skip

    def _check_posted(self, ring: int, posted: Posted, places: Places) -> None:
        super()._check_posted(ring, posted, places)
        if not self._nic.gqi:
            self.on_posted(ring, places, posted.copy[places], posted.addresses[places])

    def _ahead(self, ring: int) -> int:
        return int(self._record(ring)["lookahead"])

    def _decode(self, raw: bytes) -> dict[str, Any]:
        return {"address": int.from_bytes(raw, "big")} if self._nic.gqi else RX_BUFFER.decode(raw)

    # What options do with buffers.

    def before_flush(self, number: int) -> None:
        """All buffers of a queue are about to be taken, to be handed back."""
        self._faults = int(self._nic.state.device["faults"][0])
        posted = self._of(number)
        self._settle(number, posted)
        self._check_unchanged(number, posted, len(posted.copy))

    def _settle(self, ring: int, posted: Posted) -> Places:
        """Used, or returned by a flush; with several owners an entry is given back long after it is taken."""
        if not self._record(ring)["owners"]:
            return super()._settle(ring, posted)
        completed = []
        for buffer in self._buffers_at(ring, posted, self._taken(ring, posted)):
            if buffer.identity in posted.sorted:  # it was posted twice, which is a finding
                completed.append(posted.sorted[buffer.identity])
            posted.sorted[buffer.identity] = buffer
        there = set(identifiers(in_lists(self._nic.state, ring)).tolist())
        completed += [posted.sorted.pop(identity) for identity in posted.sorted.keys() - there]
        self._give_back(ring, posted, completed)
        return np.array([buffer.place for buffer in completed], np.int64)


assert GQI_RX_SLOT.itemsize == 8 and RX_BUFFER.size == 32  # one word, or four
