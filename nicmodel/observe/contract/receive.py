"""Rules of receive queues (RX), and of memory that goes away under them (DMA-001, DMA-002).

A posted descriptor is copied when the doorbell comes: the copy says what the device owns, whatever the driver does to
the ring later.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.descriptors import GQI_RX_SLOT, RX_BUFFER
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.layout import Bits
from nicmodel.observe.contract.findings import Journal
from nicmodel.observe.contract.memory import Addresses, Memory
from nicmodel.observe.contract.rings import Rings
from nicmodel.packet.frames import Batch
from nicmodel.vfio_user.dma import WRITABLE

#: Least number of buffers that a doorbell of a DQO format posts.
_DOORBELL_STEP = 8
_COUNT_MASK = 0xFFFFFFFF

_RESERVED = np.frombuffer(RX_BUFFER.reserved.to_bytes(RX_BUFFER.size, "little"), "<u8")


class _Queue:
    """What the device owns of one receive queue.

    Attributes:
        tail: as its last doorbell said.
        copy: the posted descriptors, shape (entries, words), uint64; those of a GQI format have one word.
        addresses: where each posted buffer begins, shape (entries,).
        refused: whether there is no buffer in the entry that can be used: none was posted, or a finding was made of
            its address; shape (entries,).
    """

    def __init__(self, entries: int, words: int) -> None:
        self.tail = 0
        self.copy: npt.NDArray[np.uint64] = np.zeros((entries, words), "<u8")
        self.addresses: Addresses = np.zeros(entries, np.uint64)
        self.refused = np.ones(entries, np.bool_)


class Receive:
    """Looks at receive doorbells and at what they post."""

    def __init__(self, nic: Nic, memory: Memory, journal: Journal, rings: Rings) -> None:
        self._nic = nic
        self._memory = memory
        self._journal = journal
        self._rings = rings
        self._queues: dict[int, _Queue] = {}
        self._faults = 0
        self._heads: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def forget(self, number: int | None = None) -> None:
        """A queue is gone, or all are."""
        if number is None:
            self._queues.clear()
        else:
            self._queues.pop(number, None)

    def _queue(self, number: int) -> _Queue:
        record = self._nic.state.rx[number]
        if number not in self._queues:
            queue = self._queues[number] = _Queue(int(record["buffer_entries"]), 1 if self._nic.gqi else 4)
            queue.tail = int(record["buffer_tail"])
        return self._queues[number]

    def _alive(self) -> list[tuple[int, _Queue]]:
        """The queues that the device has; it may have just ended one."""
        return [(number, queue) for number, queue in self._queues.items() if self._nic.state.rx[number]["active"]]

    def _owned(self, number: int) -> npt.NDArray[np.int64]:
        """Indices of the entries that the device owns, in order."""
        record = self._nic.state.rx[number]
        head, entries = int(record["buffer_head"]), int(record["buffer_entries"])
        count = (self._queue(number).tail - head) & int(record["position_mask"])
        return np.arange(head, head + min(count, entries)) % entries

    def doorbell(self, number: int, value: int) -> None:
        """The doorbell of an existing queue is about to take effect; its value is an index of the ring or a count."""
        record, queue, name = self._nic.state.rx[number], self._queue(number), f"rx{number}"
        entries, mask = int(record["buffer_entries"]), int(record["position_mask"])
        head = int(record["buffer_head"])
        owned, new = (queue.tail - head) & mask, (value - queue.tail) & mask
        self._journal.note(name, "doorbell", tail=value, before=queue.tail, buffers_of_device=owned)
        room = entries - owned if self._nic.gqi else entries - 1 - owned
        if new > room:
            self._journal.report(
                "RX-RNG-001", f"{new} buffers are posted where {room} have room", name, tail=value, before=queue.tail,
                head=head, entries=entries,
            )  # fmt: skip
        elif not self._nic.gqi and 0 < new < _DOORBELL_STEP:
            self._journal.report("RX-RNG-002", f"{new} buffers are posted", name, tail=value, before=queue.tail)
        raw = self._memory.read(int(record["buffer_ring"]), entries * queue.copy.itemsize * queue.copy.shape[1])
        places = np.arange(value - min(new, entries), value) % entries
        queue.tail = value
        if raw is None:
            if not self._memory.mapped(int(record["buffer_ring"]), 1, 1):
                self._journal.report(
                    "DMA-001", "the buffer ring is no longer in memory", name, ring_address=int(record["buffer_ring"])
                )
            return
        queue.copy[places] = np.frombuffer(raw, "<u8").reshape(entries, -1)[places]
        if new > room:
            queue.refused[:] = True  # what the device owns now is anybody's guess
        else:
            self._check_posted(number, queue, places)

    def _check_posted(self, number: int, queue: _Queue, places: npt.NDArray[np.int64]) -> None:
        record, posted = self._nic.state.rx[number], queue.copy[places]
        size = int(record["buffer_size"])
        addresses = posted[:, 0].byteswap() if self._nic.gqi else _field(posted, RX_BUFFER.buffer_address)
        usable = np.ones(len(places), np.bool_)
        pages = self._rings.page_list(f"rx{number}")
        if pages is not None:
            addresses, usable = self._in_pages(addresses, size, pages)
            self._first(number, places, ~usable, "RX-BUF-007", "the buffer is not in the queue's page list")
        queue.addresses[places] = addresses
        mapped = self._memory.all_mapped(addresses, size, WRITABLE) & (addresses != 0)
        self._first(
            number, places, usable & ~mapped, "RX-BUF-001", f"the buffer of {size} bytes is not in memory to write"
        )  # fmt: skip
        usable &= mapped
        queue.refused[places] = ~usable
        if not self._nic.gqi:
            reserved = (posted & _RESERVED).any(axis=1)
            self._first(number, places, reserved, "RX-BUF-005", "reserved bits of the descriptor are set")
            self._check_ids(number, queue, places)
            if record["header_size"]:
                self._check_headers(number, queue, places)
        starts, ends = self._rings.borders()
        if len(starts):
            ring = np.searchsorted(starts, addresses + np.uint64(size), "left") - 1
            inside = usable & (ring >= 0) & (ends[np.maximum(ring, 0)] > addresses)
            self._first(number, places, inside, "RX-BUF-008", "the buffer shares memory with a ring")
            queue.refused[places] |= inside
        self._check_twice(number, queue, places)

    def _in_pages(self, addresses: Addresses, size: int, pages: int) -> tuple[Addresses, npt.NDArray[np.bool_]]:
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

    def _check_ids(self, number: int, queue: _Queue, places: npt.NDArray[np.int64]) -> None:
        owned = self._owned(number)
        ids = _field(queue.copy[owned], RX_BUFFER.buffer_id)
        if len(np.unique(ids)) == len(ids):
            return
        for place in places:
            identity = RX_BUFFER.buffer_id.get(queue.copy[place].tobytes())
            same = owned[(ids == identity) & (owned != place)]
            if len(same):
                self._find(
                    number, place, "RX-BUF-004", f"buffer id {identity} is posted while entry {same[0]} has it"
                )  # fmt: skip
                return

    def _check_headers(self, number: int, queue: _Queue, places: npt.NDArray[np.int64]) -> None:
        size = int(self._nic.state.rx[number]["header_size"])
        headers = _field(queue.copy[places], RX_BUFFER.header_address)
        mapped = self._memory.all_mapped(headers, size, WRITABLE) & (headers != 0)
        self._first(number, places, ~mapped, "RX-BUF-002", f"the header buffer of {size} bytes is not in memory")
        owned = self._owned(number)
        every = np.sort(_field(queue.copy[owned], RX_BUFFER.header_address))
        if mapped.all() and (np.diff(every) < np.uint64(size)).any():
            order = owned[np.argsort(_field(queue.copy[owned], RX_BUFFER.header_address), kind="stable")]
            clash = int(
                np.flatnonzero(np.diff(_field(queue.copy[order], RX_BUFFER.header_address)) < np.uint64(size))[0]
            )
            pair = [int(place) for place in order[clash : clash + 2]]
            late = next((place for place in reversed(places) if place in pair), None)
            if late is not None:
                other = pair[0] if pair[1] == late else pair[1]
                self._find(number, late, "RX-BUF-009", f"the header buffer is that of entry {other} as well")

    def _check_twice(self, number: int, queue: _Queue, places: npt.NDArray[np.int64]) -> None:
        """Whether one of the buffers just posted shares memory with another that the device owns, of any queue."""
        starts: list[Addresses] = []
        ends: list[Addresses] = []
        owners: list[npt.NDArray[np.int64]] = []
        for other, of_other in self._alive():
            owned = self._owned(other)
            owned = owned[~of_other.refused[owned]]
            begin = of_other.addresses[owned]
            starts.append(begin)
            ends.append(begin + np.uint64(self._nic.state.rx[other]["buffer_size"]))
            owners.append(other << 32 | owned)
        start, end = np.concatenate(starts), np.concatenate(ends)
        # Buffers of all queues in order: without an overlap, none begins before the one before it ends.
        if (np.sort(start)[1:] >= np.sort(end)[:-1]).all():
            return
        owner = np.concatenate(owners)
        order = np.argsort(start, kind="stable")
        new = {number << 32 | int(place) for place in places}
        for earlier, later in pairwise(order):
            pair = (int(owner[earlier]), int(owner[later]))
            if start[later] < end[earlier] and not new.isdisjoint(pair):
                mine, other = pair if pair[0] in new else pair[::-1]
                if {mine, other} <= new:
                    mine, other = max(pair), min(pair)
                place = mine & _COUNT_MASK
                self._find(
                    number, place, "RX-BUF-003",
                    f"the buffer is posted while entry {other & _COUNT_MASK} of rx{other >> 32} has it",
                )  # fmt: skip
                return

    # What the device takes.

    def before(self, batch: Batch) -> None:
        """Frames are about to be received: what the device owns must be as it was posted."""
        state = self._nic.state
        self._heads = state.rx["buffer_head"].copy()
        self._faults = int(state.device["faults"][0])
        for number, queue in self._alive():
            record, owned = state.rx[number], self._owned(number)
            raw = self._memory.read(int(record["buffer_ring"]), queue.copy.nbytes)
            if raw is None or not len(owned):
                continue
            now = np.frombuffer(raw, "<u8").reshape(queue.copy.shape)
            changed = owned[(now[owned] != queue.copy[owned]).any(axis=1)]
            if len(changed):
                self._find(
                    number,
                    changed[0],
                    "RX-BUF-006",
                    "the descriptor has been changed",
                    now=now[changed[0]].tobytes().hex(),
                )
                queue.copy[changed] = now[changed]

    def after(self, batch: Batch) -> None:
        """They were received."""
        state = self._nic.state
        for number, _ in self._alive():
            record, head = state.rx[number], int(self._heads[number])
            taken = (int(record["buffer_head"]) - head) & int(record["position_mask"])
            if taken:
                self._journal.note(f"rx{number}", "received", buffers=taken, head=int(record["buffer_head"]))
        if int(state.device["faults"][0]) != self._faults:
            self._fault(int(state.device["fault_address"][0]))

    def _fault(self, address: int) -> None:
        """The device ran into memory that is not there: whose it was."""
        if self._memory.mapped(address, 1, WRITABLE):
            return  # a fault on demand
        for number, queue in self._alive():
            name = f"rx{number}"
            for ring in self._rings.of(name):
                if ring.overlaps(address, 1) and not self._memory.mapped(ring.address, ring.size, ring.right):
                    self._journal.report(
                        "DMA-001", f"the {ring.name} is no longer in memory", name, fault_address=address
                    )
                    return
            size = np.uint64(self._nic.state.rx[number]["buffer_size"])
            hit = (queue.addresses <= address) & (np.uint64(address) - queue.addresses < size) & ~queue.refused
            if hit.any():
                place = int(np.flatnonzero(hit)[0])
                self._find(number, place, "DMA-002", "the buffer is no longer in memory", fault_address=address)
                return

    # Findings.

    def _first(
        self, number: int, places: npt.NDArray[np.int64], wrong: npt.NDArray[np.bool_], rule: str, what: str
    ) -> None:
        """A finding of the first of the entries that are wrong."""
        if wrong.any():
            self._find(number, places[np.flatnonzero(wrong)[0]], rule, what)

    def _find(self, number: int, place: Any, rule: str, what: str, **evidence: Any) -> None:
        raw = self._queues[number].copy[place].tobytes()
        fields = {"address": int.from_bytes(raw, "big")} if self._nic.gqi else RX_BUFFER.decode(raw)
        self._journal.report(
            rule, f"entry {place}: {what}", f"rx{number}", descriptor=fields, bytes=raw.hex(), **evidence
        )


def _field(descriptors: npt.NDArray[np.uint64], bits: Bits) -> npt.NDArray[np.uint64]:
    """A field of many descriptors."""
    return descriptors[:, bits.word] >> np.uint64(bits.shift) & np.uint64(bits.mask)


assert GQI_RX_SLOT.itemsize == 8 and RX_BUFFER.size == 32  # one word, or four
