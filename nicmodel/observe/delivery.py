"""Where injected frames went: what the device says of each, and what rings and buffers in guest memory show.

A batch costs a few array operations, whatever its length; the facts of one frame are put together when they are asked
for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from nicmodel.nic.peek import peek_many
from nicmodel.nic.state import Drop, Records
from nicmodel.nic.view import Buffers, Numbers, View
from nicmodel.packet.frames import Batch
from nicmodel.vfio_user.dma import MAX_KINDS
from nicmodel.vfio_user.regions import RegionMap


class Place(NamedTuple):
    """Bytes in guest memory: address, how many, and the name of the kind of memory (``ram``, ``hbm``, …)."""

    address: int
    length: int
    memory: str


class Delivery:
    """What became of one frame."""

    __slots__ = ("_number", "_part")

    def __init__(self, part: _Part, number: int) -> None:
        self._part = part
        self._number = number

    @property
    def frame(self) -> bytes:
        """The frame that was injected."""
        record = self._part.batch.frames[self._number]
        start = int(record["offset"])
        return self._part.batch.data[start : start + int(record["length"])].tobytes()

    @property
    def verdict(self) -> Drop:
        """How it ended: `Drop.NONE` when it was delivered."""
        return Drop(int(self._outcome["verdict"]))

    @property
    def delivered(self) -> bool:
        """Whether it reached a receive queue, where the driver finds it."""
        return self.verdict == Drop.NONE

    @property
    def held(self) -> bool:
        """Whether the device keeps it until the driver posts buffers."""
        return self.verdict == Drop.HELD

    @property
    def dropped(self) -> str | None:
        """Why it was dropped: a `Drop` in lower case, such as ``no_buffers``; None if it was not."""
        return None if self.verdict <= Drop.HELD else self.verdict.name.lower()

    @property
    def queue(self) -> int | None:
        """The receive queue that was chosen for it; None if it was dropped before."""
        queue = int(self._outcome["queue"])
        return queue if queue >= 0 else None

    @property
    def rule(self) -> int | None:
        """Location of the flow rule that chose the queue; None if none did."""
        rule = int(self._outcome["rule"])
        return rule if rule >= 0 else None

    @property
    def hash(self) -> int | None:
        """RSS hash; 0 if it was not hashed, None if it was dropped before."""
        return None if self.queue is None else int(self._outcome["hash"])

    @property
    def table_entry(self) -> int | None:
        """Entry of the RSS table that chose the queue; None if a rule did, or nothing."""
        if self.queue is None or self.rule is not None:
            return None
        return int(self._outcome["hash"]) % self._part.table_size

    @property
    def coalesced(self) -> bool:
        """Whether it continues the packet of a frame before it, and so shares completions and buffers with that."""
        return int(self._part.leaders[self._number]) != self._number

    @property
    def completions(self) -> tuple[dict[str, Any], ...]:
        """Its completions, decoded; of a gVNIC in the GQI formats the descriptors, which say the same."""
        return tuple(self._part.pieces.decode(piece) for piece in self._pieces)

    @property
    def split(self) -> bool:
        """Whether the header went to a buffer of its own."""
        return any(self._part.pieces.header_lengths[piece] for piece in self._pieces)

    @property
    def header(self) -> bytes:
        """The bytes in the header buffer; of a frame that was cut into segments, in all of theirs."""
        return b"".join(self._part.header(piece) for piece in self._pieces)

    @property
    def payload(self) -> bytes:
        """The bytes in the data buffers: everything, when there was no split."""
        return b"".join(self._part.payload(piece) for piece in self._pieces)

    @property
    def header_buffers(self) -> tuple[Place, ...]:
        """Where the header is: one place, none without split, one for each segment the frame was cut into."""
        part, found = self._part, self._part.pieces
        return tuple(
            part.place(len(found.addresses) + piece, found.header_addresses[piece], found.header_lengths[piece])
            for piece in self._pieces
            if found.header_lengths[piece]
        )

    @property
    def payload_buffers(self) -> tuple[Place, ...]:
        """Where the payload is, in order."""
        part, found = self._part, self._part.pieces
        return tuple(part.place(piece, found.addresses[piece], found.lengths[piece]) for piece in self._pieces)

    @property
    def vector(self) -> int | None:
        """The MSI-X vector of its queue; None if it was not delivered."""
        return self._part.vector_base + self._block if self.delivered else None

    @property
    def fired(self) -> bool:
        """Whether the vector was signalled: once for all frames of the batch that it stands for."""
        return self.delivered and bool(self._part.fired[self._block])

    @property
    def waits_for(self) -> Literal["enable", "interval"] | None:
        """What a vector that was not signalled waits for: to be enabled by the driver, or its moderation interval."""
        if not self.delivered or not self._part.vectors["pending"][self._block]:
            return None
        return "interval" if self._part.vectors["enabled"][self._block] else "enable"

    def __str__(self) -> str:
        """All of it in a line, as ``nicmodel inject`` shows it."""
        words = [f"{len(self.frame)} bytes: {self.dropped or ('held' if self.held else 'delivered')}"]
        if self.queue is not None:
            reason = f"table entry {self.table_entry}" if self.rule is None else f"rule {self.rule}"
            words.append(f"rx{self.queue} by {reason}, hash {self.hash:#010x}")
        if self.delivered:
            kinds = ", ".join(dict.fromkeys(place.memory for place in self.payload_buffers))
            words.append(f"header {len(self.header)} + payload {len(self.payload)} bytes in {kinds}")
            state = "fired" if self.fired else f"waits for {self.waits_for}" if self.waits_for else "quiet"
            words.append(f"vector {self.vector} {state}")
        return "; ".join(words)

    __repr__ = __str__

    @property
    def _outcome(self) -> np.void:
        return self._part.outcomes[self._number]  # type: ignore[no-any-return]

    @property
    def _block(self) -> int:
        return int(self._part.blocks[self._outcome["queue"]])

    @property
    def _pieces(self) -> range:
        leader = self._part.leaders[self._number]
        first = int(self._part.first[leader])
        return range(first, first + int(self._part.outcomes[leader]["completions"]))


class Deliveries(Sequence[Delivery]):
    """What became of each of many frames, in their order."""

    def __init__(self, parts: Iterable[_Part]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *(len(part.outcomes) for part in self._parts)])

    @classmethod
    def joined(cls, several: Iterable[Deliveries]) -> Deliveries:
        """One after the other."""
        return cls(part for deliveries in several for part in deliveries._parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, number: int) -> Delivery: ...
    @overload
    def __getitem__(self, number: slice) -> list[Delivery]: ...
    def __getitem__(self, number: int | slice) -> Delivery | list[Delivery]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if number < 0:
            number += len(self)
        if not 0 <= number < len(self):
            raise IndexError(f"delivery {number} of {len(self)}")
        part = int(np.searchsorted(self._starts, number, "right")) - 1
        return Delivery(self._parts[part], number - int(self._starts[part]))

    @property
    def delivered(self) -> int:
        """How many were delivered."""
        return int(np.count_nonzero(self._column("verdict") == Drop.NONE))

    @property
    def dropped(self) -> Counter[str]:
        """How many were dropped, by the reason's name."""
        verdicts, counts = np.unique(self._column("verdict"), return_counts=True)
        return Counter(
            {
                Drop(verdict).name.lower(): count
                for verdict, count in zip(verdicts.tolist(), counts.tolist(), strict=True)
                if verdict > Drop.HELD
            }
        )

    @property
    def queues(self) -> Numbers:
        """The receive queue of each, -1 for none; shape (len,)."""
        return self._column("queue")

    @property
    def rules(self) -> Numbers:
        """The flow rule's location of each, -1 for none; shape (len,)."""
        return self._column("rule")

    @property
    def hashes(self) -> Numbers:
        """The RSS hash of each; shape (len,)."""
        return self._column("hash")

    def _column(self, name: str) -> Numbers:
        columns = [part.outcomes[name].astype(np.int64) for part in self._parts]
        return np.concatenate(columns) if columns else np.zeros(0, np.int64)

    def __repr__(self) -> str:
        dropped = ", ".join(f"{name} {count}" for name, count in self.dropped.items())
        return f"<{len(self)} frames, {self.delivered} delivered{', dropped: ' + dropped if dropped else ''}>"


class _Part:
    """One batch that the device took, and what is known of it.

    A *piece* is what one completion brings: a data buffer and perhaps a header buffer. Those of a frame follow one
    another from `first` on.
    """

    def __init__(self, nic: View, batch: Batch) -> None:
        state = nic.state
        fires = state.vectors["fires"].copy()
        had = nic.buffers()
        self.batch = batch
        self.outcomes: Records = nic.ingress.inject(batch)
        self.kinds = nic.dma.kinds
        self.table_size = int(state.device["lut_size"][0])
        self.vector_base = nic.interrupts.first
        self.blocks = state.rx["vector"].copy()
        self.vectors: Records = state.vectors.copy()
        self.fired = self.vectors["fires"] != fires
        self._take_pieces(state.memory_map, had)

    def place(self, number: int, address: np.uint64, length: np.int64) -> Place:
        """The place of which read `number` was."""
        kind = int(self._kinds[number])
        names = [*self.kinds, *["other"] * (MAX_KINDS + 1 - len(self.kinds)), "unmapped"]
        return Place(int(address), int(length), names[kind])

    def payload(self, piece: int) -> bytes:
        """The bytes that a completion brings."""
        start = int(self._begins[piece])
        return self._data[start : start + int(self.pieces.lengths[piece])].tobytes()

    def header(self, piece: int) -> bytes:
        """The bytes in its header buffer."""
        start = int(self._begins[len(self.pieces.lengths) + piece])
        return self._data[start : start + int(self.pieces.header_lengths[piece])].tobytes()

    def _take_pieces(self, memory: RegionMap, had: Buffers) -> None:
        outcomes = self.outcomes
        numbers = np.arange(len(outcomes))
        self.leaders = numbers.copy()
        for number in np.flatnonzero(outcomes["next"] >= 0).tolist():
            self.leaders[outcomes["next"][number]] = self.leaders[number]
        counts = np.where(self.leaders == numbers, outcomes["completions"], 0).astype(np.int64)
        ends = np.cumsum(counts)
        self.first: Numbers = ends - counts
        owners = np.repeat(numbers, counts)
        queue = outcomes["queue"][owners].astype(np.int64)
        later = np.arange(len(owners)) - self.first[owners]
        first = outcomes["completion"][owners].astype(np.int64)
        self.pieces = pieces = had.used(queue, first, later)
        self._data, self._begins, self._kinds = peek_many(
            memory,
            np.concatenate([pieces.addresses, pieces.header_addresses]),
            np.concatenate([pieces.lengths, pieces.header_lengths]),
        )


def inject(nic: View, batch: Batch) -> Deliveries:
    """Have a NIC receive a batch, as if its wire had brought it; called in its thread.

    The bytes of headers and payload are copied out at once, before the driver can use the buffers for anything else;
    all the same a guest with CPUs of its own may be faster.
    """
    return Deliveries([_Part(nic, batch)])
