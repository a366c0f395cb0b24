"""Rules of receive queues (RX), and of memory that goes away under them (DMA-001, DMA-002).

A posted descriptor is copied when the doorbell comes: the copy says what the device owns, whatever the driver does to
the ring later. The memory that it owns is kept by page, so that a buffer costs the same however many there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.contract.rings import Rings
from nicmodel.gvnic.descriptors import GQI_RX_SLOT, RX_BUFFER
from nicmodel.gvnic.device import Nic
from nicmodel.gvnic.options.owners.declarations import RX_BUFFER_OWNER
from nicmodel.gvnic.options.owners.lists import identifiers, in_lists
from nicmodel.observe.findings import Journal
from nicmodel.observe.mapped_memory import Addresses, MappedMemory
from nicmodel.packet.frames import Batch
from nicmodel.vfio_user.dma import WRITABLE

#: Least number of buffers that a doorbell of a DQO format posts.
_DOORBELL_STEP = 8
_PAGE_SHIFT = 12
#: Pieces of one page that are kept: of more, which are no buffers, only so many are compared with.
_PAGE_SPANS = 256

#: Indices of a ring.
Places = npt.NDArray[np.int64]
Posted = Callable[[int, Places, npt.NDArray[np.uint64], Addresses], object]

_OWNER = np.frombuffer(RX_BUFFER_OWNER.encode(owner=RX_BUFFER_OWNER.owner.mask), "<u8")
_RESERVED = np.frombuffer(RX_BUFFER.reserved.to_bytes(RX_BUFFER.size, "little"), "<u8")


class _Span(NamedTuple):
    """Memory that the device owns: from `start` up to `end`, by an entry of a queue's ring."""

    start: int
    end: int
    queue: int
    place: int


class _Spans:
    """Memory that the device owns, by page."""

    def __init__(self) -> None:
        self._pages: defaultdict[int, list[_Span]] = defaultdict(list)

    def clear(self) -> None:
        """All of it is the driver's again."""
        self._pages.clear()

    def add(self, span: _Span) -> _Span | None:
        """More memory; an earlier span that it overlaps."""
        clash = None
        for page in range(span.start >> _PAGE_SHIFT, (span.end - 1 >> _PAGE_SHIFT) + 1):
            there = self._pages[page]
            for other in there:
                if other.start < span.end and span.start < other.end:
                    clash = other
            if len(there) < _PAGE_SPANS:
                there.append(span)
        return clash

    def within(self, start: int, end: int) -> Iterator[_Span]:
        """What of it lies from `start` up to `end`."""
        pages = range(start >> _PAGE_SHIFT, (end - 1 >> _PAGE_SHIFT) + 1)
        for page in pages if len(pages) < len(self._pages) else [one for one in self._pages if one in pages]:
            yield from (span for span in self._pages.get(page, ()) if span.start < end and start < span.end)

    def remove(self, queue: int, place: int, start: int, end: int) -> None:
        """The memory of an entry is the driver's again, if it was not before."""
        span = _Span(start, end, queue, place)
        for page in range(start >> _PAGE_SHIFT, (end - 1 >> _PAGE_SHIFT) + 1):
            there = self._pages.get(page)
            if there is not None and span in there:
                there.remove(span)
                if not there:
                    del self._pages[page]

    def forget(self, queue: int) -> None:
        """All memory of a queue is the driver's again."""
        kept = {page: [span for span in there if span.queue != queue] for page, there in self._pages.items()}
        self._pages = defaultdict(list, {page: there for page, there in kept.items() if there})


class _Buffer(NamedTuple):
    """A posted buffer: its entry, guest address, id and header buffer's address; a GQI format has the first two."""

    place: int
    start: int
    identity: int
    header: int


class _Queue:
    """What the device owns of one receive queue.

    Attributes:
        tail: as its last doorbell said.
        head: up to where the device is known to have given entries back.
        copy: the posted descriptors, shape (entries, words), uint64; those of a GQI format have one word.
        addresses: where each posted buffer begins, shape (entries,).
        refused: whether there is no buffer in the entry that can be used: none was posted, or a finding was made of
            its address; shape (entries,).
        ids: entry of each buffer id that is in use.
        sorted: of a queue with several owners, by id: what the device has taken from the ring and not completed. The
            driver may use the entry again.
    """

    def __init__(self, entries: int, words: int) -> None:
        self.tail = self.head = 0
        self.copy: npt.NDArray[np.uint64] = np.zeros((entries, words), "<u8")
        self.addresses: Addresses = np.zeros(entries, np.uint64)
        self.refused = np.ones(entries, np.bool_)
        self.ids: dict[int, int] = {}
        self.sorted: dict[int, _Buffer] = {}


class Receive:
    """Looks at receive doorbells and at what they post."""

    def __init__(self, nic: Nic, memory: MappedMemory, journal: Journal, rings: Rings) -> None:
        #: Told of buffers that were posted on queues of a DQO format: queue, entries, descriptors, addresses.
        self.on_posted: Posted = lambda *_: None
        self._nic = nic
        self._memory = memory
        self._journal = journal
        self._rings = rings
        self._queues: dict[int, _Queue] = {}
        self._buffers, self._headers = _Spans(), _Spans()
        self._faults = 0

    def forget(self, number: int | None = None) -> None:
        """A queue is gone, or all are."""
        for spans in (self._buffers, self._headers):
            if number is None:
                spans.clear()
            else:
                spans.forget(number)
        if number is None:
            self._queues.clear()
        else:
            self._queues.pop(number, None)

    def posted(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The posted buffers in memory from `start` up to `end`: queue, entry, whether it is a header buffer."""
        for spans, header in ((self._buffers, False), (self._headers, True)):
            yield from ((span.queue, span.place, header) for span in spans.within(start, end))

    def waiting(self, number: int) -> npt.NDArray[np.uint64]:
        """The descriptors in the ring of a queue that the device has not taken, shape (n, words)."""
        queue, record = self._queue(number), self._nic.state.rx[number]
        head, entries = int(record["buffer_head"]), int(record["buffer_entries"])
        places = np.arange(head, head + min((queue.tail - head) % int(record["positions"]), entries)) % entries
        return queue.copy[places[~queue.refused[places]]]

    def unused(self, number: int) -> npt.NDArray[np.uint64]:
        """The descriptors of all buffers that the device has of a queue, shape (n, words)."""
        sorted_ = in_lists(self._nic.state, number).view("<u8")
        return np.concatenate([self.waiting(number), sorted_])

    def _queue(self, number: int) -> _Queue:
        """What is known of a queue; of one that is new to the checker, no more than what its ring holds now."""
        record = self._nic.state.rx[number]
        if number not in self._queues:
            entries = int(record["buffer_entries"])
            queue = self._queues[number] = _Queue(entries, 1 if self._nic.gqi else 4)
            queue.tail, queue.head = int(record["buffer_tail"]), int(record["buffer_head"])
            now = self._read(number, queue, np.arange(entries))
            if now is not None:
                queue.copy[:] = now
        return self._queues[number]

    def _alive(self) -> list[tuple[int, _Queue]]:
        """The queues that the device has; it may have just ended one."""
        return [(number, queue) for number, queue in self._queues.items() if self._nic.state.rx[number]["active"]]

    def doorbell(self, number: int, value: int) -> None:
        """The doorbell of an existing queue is about to take effect; its value is an index of the ring or a count."""
        record, queue, name = self._nic.state.rx[number], self._queue(number), f"rx{number}"
        entries, positions = int(record["buffer_entries"]), int(record["positions"])
        head = int(record["buffer_head"])
        self._settle(number, queue)
        owned, new = (queue.tail - head) % positions, (value - queue.tail) % positions
        self._journal.note(name, "doorbell", tail=value, before=queue.tail, buffers_of_device=owned)
        room = entries - owned if self._nic.gqi else entries - 1 - owned
        if new > room:
            self._journal.report(
                "RX-RNG-001", f"{new} buffers are posted where {room} have room", name, tail=value, before=queue.tail,
                head=head, entries=entries,
            )  # fmt: skip
        elif not self._nic.gqi and 0 < new < _DOORBELL_STEP:
            self._journal.report("RX-RNG-002", f"{new} buffers are posted", name, tail=value, before=queue.tail)
        places = np.arange(value - min(new, entries), value) % entries
        raw = self._read(number, queue, places)
        queue.tail = value
        if raw is None:
            if not self._memory.mapped(int(record["buffer_ring"]), 1, 1):
                self._journal.report(
                    "DMA-001", "the buffer ring is no longer in memory", name, ring_address=int(record["buffer_ring"])
                )
            return
        queue.copy[places] = raw
        if new > room:
            self.forget(number)  # what the device owns now is anybody's guess
            self._queue(number).tail = value
        else:
            self._check_posted(number, queue, places)

    def _check_posted(self, number: int, queue: _Queue, places: Places) -> None:
        record, posted = self._nic.state.rx[number], queue.copy[places]
        size = int(record["buffer_size"])
        addresses = posted[:, 0].byteswap() if self._nic.gqi else RX_BUFFER.buffer_address.of(posted)
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
            bits = _RESERVED & ~_OWNER if record["owners"] else _RESERVED
            reserved = (posted & bits).any(axis=1)
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
        if not self._nic.gqi:
            self.on_posted(number, places, posted, addresses)

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

    def _check_ids(self, number: int, queue: _Queue, places: Places) -> None:
        for place, identity in zip(places.tolist(), RX_BUFFER.buffer_id.of(queue.copy[places]).tolist(), strict=True):
            earlier = queue.ids.setdefault(identity, place)
            if earlier != place or identity in queue.sorted:
                self._find(number, place, "RX-BUF-004", f"buffer id {identity} is posted while entry {earlier} has it")

    def _check_headers(self, number: int, queue: _Queue, places: Places) -> None:
        size = int(self._nic.state.rx[number]["header_size"])
        headers = RX_BUFFER.header_address.of(queue.copy[places])
        mapped = self._memory.all_mapped(headers, size, WRITABLE) & (headers != 0)
        self._first(number, places, ~mapped, "RX-BUF-002", f"the header buffer of {size} bytes is not in memory")
        for place, start in zip(places[mapped].tolist(), headers[mapped].tolist(), strict=True):
            other = self._headers.add(_Span(start, start + size, number, place))
            if other is not None:
                self._find(
                    number,
                    place,
                    "RX-BUF-009",
                    f"the header buffer is that of entry {other.place} of rx{other.queue} too",
                )

    def _check_twice(self, number: int, queue: _Queue, places: Places) -> None:
        """Whether one of the buffers just posted shares memory with another that the device owns, of any queue."""
        size = int(self._nic.state.rx[number]["buffer_size"])
        places = places[~queue.refused[places]]
        for place, start in zip(places.tolist(), queue.addresses[places].tolist(), strict=True):
            other = self._buffers.add(_Span(start, start + size, number, place))
            if other is not None:
                self._find(
                    number,
                    place,
                    "RX-BUF-003",
                    f"the buffer is posted while entry {other.place} of rx{other.queue} has it",
                )

    # What the device takes.

    def before(self, batch: Batch) -> None:
        """Frames are about to be received: what the device may take must be as it was posted."""
        state = self._nic.state
        self._faults = int(state.device["faults"][0])
        length = int(batch.frames["length"][: batch.count].sum())
        for number, queue in self._alive():
            self._settle(number, queue)
            record = state.rx[number]
            # As many as the batch can take, if all of it comes here, and what is looked at ahead of need.
            most = 2 * batch.count + length // int(record["buffer_size"]) + int(record["lookahead"])
            self._check_unchanged(number, queue, most)

    def before_flush(self, number: int) -> None:
        """All buffers of a queue are about to be taken, to be handed back."""
        self._faults = int(self._nic.state.device["faults"][0])
        queue = self._queue(number)
        self._settle(number, queue)
        self._check_unchanged(number, queue, len(queue.copy))

    def _check_unchanged(self, number: int, queue: _Queue, most: int) -> None:
        """Whether the next descriptors of the ring, `most` at most, are as they were posted."""
        record = self._nic.state.rx[number]
        head, entries = int(record["buffer_head"]), int(record["buffer_entries"])
        owned = (queue.tail - head) % int(record["positions"])
        places = np.arange(head, head + min(owned, entries, most)) % entries
        now, was = self._read(number, queue, places), queue.copy[places]
        if now is None or (now == was).all():
            return
        changed = int(np.flatnonzero((now != was).any(axis=1))[0])
        self._find(
            number,
            places[changed],
            "RX-BUF-006",
            "the descriptor has been changed",
            now=now[changed].tobytes().hex(),
        )
        queue.copy[places] = now

    def _read(self, number: int, queue: _Queue, places: Places) -> npt.NDArray[np.uint64] | None:
        """Entries of the ring that follow each other, as they are; None if they are not in memory here."""
        entries, words = queue.copy.shape
        first = int(places[0]) if len(places) else 0
        ring = int(self._nic.state.rx[number]["buffer_ring"])
        raw = self._memory.entries(ring, entries, queue.copy.strides[0], first, len(places))
        return None if raw is None else np.frombuffer(raw, "<u8").reshape(-1, words)

    def after(self, what: str) -> None:
        """What was announced is done: buffers were ``received`` into, or ``flushed``."""
        state = self._nic.state
        completed: list[tuple[int, _Queue, Places]] = []
        for number, queue in self._alive():
            places = self._settle(number, queue)
            if len(places):
                self._journal.note(f"rx{number}", what, buffers=len(places), head=queue.head)
                completed.append((number, queue, places))
        if int(state.device["faults"][0]) != self._faults:
            self._fault(int(state.device["fault_address"][0]), completed)

    def _settle(self, number: int, queue: _Queue) -> Places:
        """The entries that the device has given back since the last look: used, or returned by a flush of the queue."""
        record = self._nic.state.rx[number]
        first, queue.head = queue.head, int(record["buffer_head"])
        count = (queue.head - first) % int(record["positions"])
        entries = int(record["buffer_entries"])
        places = np.arange(first, first + min(count, entries)) % entries
        if record["owners"]:
            return self._settle_sorted(number, queue, places)
        if len(places):
            self._give_back(number, queue, self._buffers_at(queue, places))
        return places

    def _settle_sorted(self, number: int, queue: _Queue, taken: Places) -> Places:
        """Do what `_settle` does where an entry that the device has `taken` may be given back much later."""
        completed = []
        for buffer in self._buffers_at(queue, taken):
            if buffer.identity in queue.sorted:  # it was posted twice, which is a finding
                completed.append(queue.sorted[buffer.identity])
            queue.sorted[buffer.identity] = buffer
        there = set(identifiers(in_lists(self._nic.state, number)).tolist())
        completed += [queue.sorted.pop(identity) for identity in queue.sorted.keys() - there]
        self._give_back(number, queue, completed)
        return np.array([buffer.place for buffer in completed], np.int64)

    def _buffers_at(self, queue: _Queue, places: Places) -> Iterator[_Buffer]:
        """The buffers in entries of the ring."""
        none = np.zeros(len(places), np.uint64)
        copy = queue.copy[places]
        ids, headers = (
            none if self._nic.gqi else bits.of(copy) for bits in (RX_BUFFER.buffer_id, RX_BUFFER.header_address)
        )
        columns = places.tolist(), queue.addresses[places].tolist(), ids.tolist(), headers.tolist()
        return map(_Buffer, *columns)

    def _give_back(self, number: int, queue: _Queue, buffers: Iterable[_Buffer]) -> None:
        """Buffers are completed: their memory and ids are the driver's again."""
        record = self._nic.state.rx[number]
        size, header_size = int(record["buffer_size"]), int(record["header_size"])
        for place, start, identity, header in buffers:
            self._buffers.remove(number, place, start, start + size)
            if queue.ids.get(identity) == place:
                del queue.ids[identity]
            if header_size:
                self._headers.remove(number, place, header, header + header_size)

    def _fault(self, address: int, completed: list[tuple[int, _Queue, Places]]) -> None:
        """The device ran into memory that is not there: whose it was."""
        if self._memory.mapped(address, 1, WRITABLE):
            return  # a fault on demand
        for number, _ in self._alive():
            for ring in self._rings.of(f"rx{number}"):
                if ring.overlaps(address, 1):
                    self._journal.report(
                        "DMA-001", f"the {ring.name} is no longer in memory", f"rx{number}", fault_address=address
                    )
                    return
        for number, queue, places in completed:  # a buffer out of reach is handed back
            size = np.uint64(self._nic.state.rx[number]["buffer_size"])
            start = queue.addresses[places]
            hit = (start <= address) & (np.uint64(address) - start < size) & ~queue.refused[places]
            self._first(number, places, hit, "DMA-002", "the buffer is no longer in memory")

    # Findings.

    def _first(self, number: int, places: Places, wrong: npt.NDArray[np.bool_], rule: str, what: str) -> None:
        """A finding of the first of the entries that are wrong."""
        if wrong.any():
            self._find(number, places[np.flatnonzero(wrong)[0]], rule, what)

    def _find(self, number: int, place: Any, rule: str, what: str, **evidence: Any) -> None:
        raw = self._queues[number].copy[place].tobytes()
        fields = {"address": int.from_bytes(raw, "big")} if self._nic.gqi else RX_BUFFER.decode(raw)
        self._journal.report(
            rule, f"entry {place}: {what}", f"rx{number}", descriptor=fields, bytes=raw.hex(), **evidence
        )


assert GQI_RX_SLOT.itemsize == 8 and RX_BUFFER.size == 32  # one word, or four
