"""Rules of the rings in which a driver posts receive buffers, and of memory that goes away under them.

A posted descriptor is copied when the doorbell comes: the copy says what the device owns, whatever the driver does to
the ring later.

The rules that are reported from here, by the names that they have with every NIC: RX-RNG-001 (more buffers than there
is room), RX-BUF-001 and -002 (a buffer, a header buffer outside of memory), -003 and -009 (posted twice), -004 (an
identifier in use), -006 (changed), -008 (in a ring), DMA-001 and -002 (memory that has gone).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.nic.view import View
from nicmodel.observe.checking.rings import Rings
from nicmodel.observe.checking.spans import Span, Spans
from nicmodel.observe.findings import Journal
from nicmodel.observe.mapped_memory import Addresses, MappedMemory
from nicmodel.packet.frames import Batch
from nicmodel.vfio_user.dma import READABLE, WRITABLE

#: Indices of a ring.
Places = npt.NDArray[np.int64]
#: Descriptors, shape (n, words).
Words = npt.NDArray[np.uint64]
Truth = npt.NDArray[np.bool_]


class Buffer(NamedTuple):
    """A posted buffer: its entry, guest address, identifier, and header buffer's address; 0: it has none."""

    place: int
    start: int
    identity: int
    header: int


class Posted:
    """What the device owns of one ring of buffers.

    Attributes:
        tail: as its last doorbell said.
        head: up to where the device is known to have given entries back.
        copy: the posted descriptors, shape (entries, words), uint64.
        addresses: where each posted buffer begins, shape (entries,).
        refused: whether there is no buffer in the entry that can be used: none was posted, or a finding was made of
            its address; shape (entries,).
        ids: entry of each identifier that is in use.
        sorted: where the device takes buffers from the ring long before it completes them, those by identifier. The
            driver may use the entry again.
    """

    def __init__(self, entries: int, words: int) -> None:
        self.tail = self.head = 0
        self.copy: Words = np.zeros((entries, words), "<u8")
        self.addresses: Addresses = np.zeros(entries, np.uint64)
        self.refused = np.ones(entries, np.bool_)
        self.ids: dict[int, int] = {}
        self.sorted: dict[int, Buffer] = {}


class Receive(ABC):
    """Looks at receive doorbells and at what they post. A personality's says how descriptors are to be read."""

    def __init__(self, nic: View, memory: MappedMemory, journal: Journal, rings: Rings) -> None:
        self._nic = nic
        self._memory = memory
        self._journal = journal
        self._rings = rings
        self._posted: dict[int, Posted] = {}
        self._buffers, self._headers = Spans(), Spans()
        self._faults = 0

    # What the personality says of a ring, by a number of its choice.

    @abstractmethod
    def _record(self, ring: int) -> np.void:
        """Its record, with the core's fields of a ring of buffers (`nicmodel.nic.state.RX_FIELDS`)."""

    @abstractmethod
    def _queue(self, ring: int) -> int:
        """The receive queue that it belongs to."""

    @abstractmethod
    def _words(self) -> int:
        """64-bit words of a descriptor."""

    def _spare(self) -> int:
        """Entries that stay empty, so that a full ring differs from an empty one."""
        return 1

    @abstractmethod
    def _place(self, ring: int, place: Any) -> str:
        """An entry of it, in a sentence that names its queue besides."""

    @abstractmethod
    def _addresses(self, ring: int, places: Places, posted: Words) -> tuple[Addresses, Truth]:
        """Where the buffers in descriptors are, and of which that can be said; both of shape (n,)."""

    @abstractmethod
    def _identities(self, posted: Words) -> Words | None:
        """The buffers' identifiers, shape (n,); None: they have none."""

    @abstractmethod
    def _header_addresses(self, ring: int, posted: Words) -> Words | None:
        """Where the header buffers are, shape (n,); None: there are none."""

    @abstractmethod
    def _header_size(self, ring: int) -> int:
        """Bytes of a header buffer."""

    @abstractmethod
    def _check_descriptors(self, ring: int, places: Places, posted: Words) -> None:
        """Look at whatever else descriptors say."""

    @abstractmethod
    def _decode(self, raw: bytes) -> dict[str, Any]:
        """A descriptor's fields."""

    # What there is.

    def forget(self, ring: int | None = None) -> None:
        """A ring is gone, or all are."""
        for spans in (self._buffers, self._headers):
            if ring is None:
                spans.clear()
            else:
                spans.forget(ring)
        if ring is None:
            self._posted.clear()
        else:
            self._posted.pop(ring, None)

    def _of(self, ring: int) -> Posted:
        """What is known of a ring; of one that is new to the checker, no more than what it holds now."""
        record = self._record(ring)
        if ring not in self._posted:
            entries = int(record["buffer_entries"])
            posted = self._posted[ring] = Posted(entries, self._words())
            posted.tail, posted.head = int(record["buffer_tail"]), int(record["buffer_head"])
            now = self._read(ring, posted, np.arange(entries))
            if now is not None:
                posted.copy[:] = now
        return self._posted[ring]

    def _alive(self) -> list[tuple[int, Posted]]:
        """The rings of the queues that the device has; it may have just ended one."""
        active = self._nic.state.rx["active"]
        return [(ring, posted) for ring, posted in self._posted.items() if active[self._queue(ring)]]

    def _name(self, ring: int) -> str:
        return f"rx{self._queue(ring)}"

    # What the driver posts.

    def doorbell(self, ring: int, value: int) -> None:
        """The doorbell of an existing ring is about to take effect; its value is an index of the ring or a count."""
        record, posted, name = self._record(ring), self._of(ring), self._name(ring)
        entries, positions = int(record["buffer_entries"]), int(record["positions"])
        head = int(record["buffer_head"])
        self._settle(ring, posted)
        owned, new = (posted.tail - head) % positions, (value - posted.tail) % positions
        self._journal.note(name, "doorbell", tail=value, before=posted.tail, buffers_of_device=owned)
        room = entries - self._spare() - owned
        if new > room:
            self._journal.report(
                "RX-RNG-001", f"{new} buffers are posted where {room} have room", name, tail=value,
                before=posted.tail, head=head, entries=entries,
            )  # fmt: skip
        else:
            self._check_number(ring, value, posted.tail, new)
        places = np.arange(value - min(new, entries), value) % entries
        raw = self._read(ring, posted, places)
        posted.tail = value
        if raw is None:
            if not self._memory.mapped(int(record["buffer_ring"]), 1, READABLE):
                self._journal.report(
                    "DMA-001", "the buffer ring is no longer in memory", name, ring_address=int(record["buffer_ring"])
                )
            return
        posted.copy[places] = raw
        if new > room:
            self.forget(ring)  # what the device owns now is anybody's guess
            self._of(ring).tail = value
        else:
            self._check_posted(ring, posted, places)

    def _check_number(self, ring: int, value: int, before: int, new: int) -> None:  # noqa: B027  # few ask for more
        """Look at how many buffers a doorbell posts."""

    def _check_posted(self, ring: int, posted: Posted, places: Places) -> None:
        record, copy = self._record(ring), posted.copy[places]
        size = int(record["buffer_size"])
        addresses, usable = self._addresses(ring, places, copy)
        posted.addresses[places] = addresses
        mapped = self._memory.all_mapped(addresses, size, WRITABLE) & (addresses != 0)
        self._first(
            ring, places, usable & ~mapped, "RX-BUF-001", f"the buffer of {size} bytes is not in memory to write"
        )  # fmt: skip
        usable &= mapped
        posted.refused[places] = ~usable
        self._check_descriptors(ring, places, copy)
        self._check_ids(ring, posted, places)
        self._check_headers(ring, posted, places)
        starts, ends = self._rings.borders()
        if len(starts):
            nearest = np.searchsorted(starts, addresses + np.uint64(size), "left") - 1
            inside = usable & (nearest >= 0) & (ends[np.maximum(nearest, 0)] > addresses)
            self._first(ring, places, inside, "RX-BUF-008", "the buffer shares memory with a ring")
            posted.refused[places] |= inside
        self._check_twice(ring, posted, places)

    def _check_ids(self, ring: int, posted: Posted, places: Places) -> None:
        identities = self._identities(posted.copy[places])
        if identities is None:
            return
        for place, identity in zip(places.tolist(), identities.tolist(), strict=True):
            earlier = posted.ids.setdefault(identity, place)
            if earlier != place or identity in posted.sorted:
                self._find(ring, place, "RX-BUF-004", f"buffer id {identity} is posted while entry {earlier} has it")

    def _check_headers(self, ring: int, posted: Posted, places: Places) -> None:
        headers = self._header_addresses(ring, posted.copy[places])
        if headers is None:
            return
        size = self._header_size(ring)
        mapped = self._memory.all_mapped(headers, size, WRITABLE) & (headers != 0)
        self._first(ring, places, ~mapped, "RX-BUF-002", f"the header buffer of {size} bytes is not in memory")
        for place, start in zip(places[mapped].tolist(), headers[mapped].tolist(), strict=True):
            other = self._headers.add(Span(start, start + size, ring, place))
            if other is not None:
                self._find(ring, place, "RX-BUF-009", f"the header buffer is that of {self._other(other)} too")

    def _check_twice(self, ring: int, posted: Posted, places: Places) -> None:
        """Whether one of the buffers just posted shares memory with another that the device owns, of any queue."""
        size = int(self._record(ring)["buffer_size"])
        places = places[~posted.refused[places]]
        for place, start in zip(places.tolist(), posted.addresses[places].tolist(), strict=True):
            other = self._buffers.add(Span(start, start + size, ring, place))
            if other is not None:
                self._find(ring, place, "RX-BUF-003", f"the buffer is posted while {self._other(other)} has it")

    def _other(self, span: Span) -> str:
        return f"{self._place(span.ring, span.place)} of {self._name(span.ring)}"

    # What the device takes.

    def before(self, batch: Batch) -> None:
        """Frames are about to be received: what the device may take must be as it was posted."""
        self._faults = int(self._nic.state.device["faults"][0])
        length = int(batch.frames["length"][: batch.count].sum())
        for ring, posted in self._alive():
            self._settle(ring, posted)
            # As many as the batch can take, if all of it comes here.
            most = 2 * batch.count + length // int(self._record(ring)["buffer_size"])
            self._check_unchanged(ring, posted, most + self._ahead(ring))

    def _ahead(self, ring: int) -> int:
        """Descriptors that the device looks at ahead of need."""
        return 0

    def _check_unchanged(self, ring: int, posted: Posted, most: int) -> None:
        """Whether the next descriptors of the ring, `most` at most, are as they were posted."""
        record = self._record(ring)
        head, entries = int(record["buffer_head"]), int(record["buffer_entries"])
        owned = (posted.tail - head) % int(record["positions"])
        places = np.arange(head, head + min(owned, entries, most)) % entries
        now, was = self._read(ring, posted, places), posted.copy[places]
        if now is None or (now == was).all():
            return
        changed = int(np.flatnonzero((now != was).any(axis=1))[0])
        self._find(
            ring, places[changed], "RX-BUF-006", "the descriptor has been changed", now=now[changed].tobytes().hex()
        )  # fmt: skip
        posted.copy[places] = now

    def _read(self, ring: int, posted: Posted, places: Places) -> Words | None:
        """Entries of the ring that follow each other, as they are; None if they are not in memory here."""
        entries, words = posted.copy.shape
        first = int(places[0]) if len(places) else 0
        address = int(self._record(ring)["buffer_ring"])
        raw = self._memory.entries(address, entries, posted.copy.strides[0], first, len(places))
        return None if raw is None else np.frombuffer(raw, "<u8").reshape(-1, words)

    def after(self, what: str) -> None:
        """What was announced is done: buffers were ``received`` into, or whatever else."""
        state = self._nic.state
        completed: list[tuple[int, Posted, Places]] = []
        for ring, posted in self._alive():
            places = self._settle(ring, posted)
            if len(places):
                self._journal.note(self._name(ring), what, buffers=len(places), head=posted.head)
                completed.append((ring, posted, places))
        if int(state.device["faults"][0]) != self._faults:
            self._fault(int(state.device["fault_address"][0]), completed)

    def _settle(self, ring: int, posted: Posted) -> Places:
        """The entries that the device has given back since the last look."""
        places = self._taken(ring, posted)
        if len(places):
            self._give_back(ring, posted, self._buffers_at(ring, posted, places))
        return places

    def _taken(self, ring: int, posted: Posted) -> Places:
        """The entries that the device has taken since the last look."""
        record = self._record(ring)
        first, posted.head = posted.head, int(record["buffer_head"])
        count = (posted.head - first) % int(record["positions"])
        entries = int(record["buffer_entries"])
        places: Places = np.arange(first, first + min(count, entries)) % entries
        return places

    def _buffers_at(self, ring: int, posted: Posted, places: Places) -> Iterator[Buffer]:
        """The buffers in entries of the ring."""
        none = np.zeros(len(places), np.uint64)
        copy = posted.copy[places]
        ids, headers = self._identities(copy), self._header_addresses(ring, copy)
        columns = (
            places.tolist(), posted.addresses[places].tolist(), (none if ids is None else ids).tolist(),
            (none if headers is None else headers).tolist(),
        )  # fmt: skip
        return map(Buffer, *columns)

    def _give_back(self, ring: int, posted: Posted, buffers: Iterable[Buffer]) -> None:
        """Buffers are completed: their memory and identifiers are the driver's again."""
        size, header_size = int(self._record(ring)["buffer_size"]), self._header_size(ring)
        for place, start, identity, header in buffers:
            self._buffers.remove(Span(start, start + size, ring, place))
            if posted.ids.get(identity) == place:
                del posted.ids[identity]
            if header_size:
                self._headers.remove(Span(header, header + header_size, ring, place))

    def _fault(self, address: int, completed: list[tuple[int, Posted, Places]]) -> None:
        """The device ran into memory that is not there: whose it was."""
        if self._memory.mapped(address, 1, WRITABLE):
            return  # a fault on demand
        for ring, _ in self._alive():
            for named in self._rings.of(self._name(ring)):
                if named.overlaps(address, 1):
                    self._journal.report(
                        "DMA-001", f"the {named.name} is no longer in memory", self._name(ring), fault_address=address
                    )
                    return
        for ring, posted, places in completed:  # a buffer out of reach is handed back
            size = np.uint64(self._record(ring)["buffer_size"])
            start = posted.addresses[places]
            hit = (start <= address) & (np.uint64(address) - start < size) & ~posted.refused[places]
            self._first(ring, places, hit, "DMA-002", "the buffer is no longer in memory")

    # Findings.

    def _first(self, ring: int, places: Places, wrong: Truth, rule: str, what: str) -> None:
        """A finding of the first of the entries that are wrong."""
        if wrong.any():
            self._find(ring, places[np.flatnonzero(wrong)[0]], rule, what)

    def _find(self, ring: int, place: Any, rule: str, what: str, **evidence: Any) -> None:
        raw = self._posted[ring].copy[place].tobytes()
        self._journal.report(
            rule, f"{self._place(ring, place)}: {what}", self._name(ring), descriptor=self._decode(raw),
            bytes=raw.hex(), **evidence,
        )  # fmt: skip
