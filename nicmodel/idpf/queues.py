"""The queues of the vport: those that it has, what they are configured as, which are enabled, and which of them move.

A queue moves while it is enabled, and while its vector is not switched off. Linux switches vectors off before it frees
the memory of its queues, also where it sends no message any more: after a transmit time-out, and on the way to a
reboot. Queues that are mapped to no vector, as a driver that polls may leave them, move while they are enabled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from nicmodel.idpf.descriptors import (
    MAX_BUFFER,
    QUEUE_COMPLETION_SIZE,
    RX_BUFFER,
    RX_COMPLETION,
    TX_COMPLETION,
    TX_FLOW_DATA,
    TxCompletionType,
)
from nicmodel.idpf.registers import DYN_CTL, ITR_NO_UPDATE, ITR_UNIT_NS
from nicmodel.idpf.state import State
from nicmodel.idpf.virtchnl import QueueModel, QueueType, Result, RxFlag, Scheduling, require
from nicmodel.nic.diagnostics import Diagnostics
from nicmodel.nic.dma_engine import DmaEngine
from nicmodel.nic.egress import Egress
from nicmodel.nic.events import Failed
from nicmodel.nic.ingress import Ingress
from nicmodel.nic.purpose import Purpose
from nicmodel.nic.state import MIN_BUFFER, RX_COUNTERS, TX_COUNTERS, Cause, Records
from nicmodel.packet.parse import ETHERNET_SIZE
from nicmodel.vfio_user.dma import DmaFault

#: Fewest and most entries of a ring.
MIN_RING, MAX_RING = 32, 8160

#: A queue by its type and identifier.
Name = tuple[QueueType, int]

#: Bytes of an entry of a ring.
_ENTRY = {
    QueueType.TX: TX_FLOW_DATA.size,
    QueueType.RX: RX_COMPLETION.size,
    QueueType.TX_COMPLETION: TX_COMPLETION.size,
    QueueType.RX_BUFFER: RX_BUFFER.size,
}

_CAUSES = {0: Cause.FIRST, 1: Cause.SECOND}

# The fields of `DYN_CTL`, which is written at least once for each interrupt.
_INDEX, _INDEX_MASK = DYN_CTL.itr_index.shift, DYN_CTL.itr_index.mask
_INTERVAL, _INTERVAL_MASK = DYN_CTL.interval.shift, DYN_CTL.interval.mask
_CLEAR_PENDING = 1 << DYN_CTL.clear_pending.shift
_SOFTWARE_INTERRUPT = 1 << DYN_CTL.software_interrupt.shift
_KEEP_ENABLE = 1 << DYN_CTL.keep_enable.shift
_WRITE_BACK_ON_ITR = 1 << DYN_CTL.write_back_on_itr.shift


class Mover(Protocol):
    """A NIC, as far as queues begin and end there (`nicmodel.nic.nic.Nic`)."""

    state: State
    dma: DmaEngine
    diagnostics: Diagnostics
    ingress: Ingress[State]
    egress: Egress[State]

    def start_queue(self, queue: Records, counters: tuple[str, ...], **fields: int) -> None:
        """Start a queue, whose record, shape (1,), has these `fields`."""

    def drop_rx(self, queue: int) -> None:
        """Stop a receive queue."""

    def drop_tx(self, queue: int) -> None:
        """Stop a transmit queue."""


@dataclass(frozen=True)
class Vector:
    """A queue's vector, and what is pending there when it has something to tell."""

    vector: int
    cause: Cause


@dataclass
class _Known:
    """What the driver has said of queues, by name."""

    configured: dict[Name, np.void] = field(default_factory=dict)
    enabled: set[Name] = field(default_factory=set)
    mapped: dict[Name, Vector] = field(default_factory=dict)


class Queues:
    """All queues.

    Args:
        nic: where they begin and end.
        coalesce: whether segments are merged on queues with RSC.

    Attributes:
        granted: how many queues of each type the vport has; their identifiers begin with 0.
        tx_tails: of transmit queues, as the driver has written them, which it may do once a queue is configured.
        buffer_tails: of buffer queues, which the driver may write before they are configured.
    """

    def __init__(self, nic: Mover, coalesce: bool) -> None:
        self.granted = dict.fromkeys(QueueType, 0)
        self._known = _Known()
        self._nic = nic
        self._coalesce = coalesce
        self._state = state = nic.state
        #: Queues of the core that have begun; `state` says which of them move.
        self._begun: set[Name] = set()
        self.tx_tails = [0] * len(state.tx)
        self.buffer_tails = [0] * (2 * len(state.rx))
        #: Of each buffer queue of a receive queue that has begun, the records that its ring is in, and which.
        self._rings: dict[int, tuple[Records, int]] = {}
        #: Whether a vector is switched on, by its number; the last one stands for none.
        self._live = [False] * (len(state.vectors) - 1) + [True]
        self._unmapped = Vector(len(state.vectors) - 1, Cause.AT_ONCE)

    @property
    def enabled(self) -> set[Name]:
        """The queues that are enabled."""
        return self._known.enabled

    @property
    def configured(self) -> Mapping[Name, np.void]:
        """What the driver has said of queues."""
        return self._known.configured

    @property
    def mapped(self) -> Mapping[Name, Vector]:
        """The queues that the driver has mapped to a vector."""
        return self._known.mapped

    def reset(self) -> None:
        """As after power-on: no queue moves, none is known."""
        self.stop(self._begun)
        self._state.completion_queues[:] = 0
        self._state.small[:] = 0
        self._known = _Known()
        self.granted = dict.fromkeys(QueueType, 0)
        self.tx_tails[:] = [0] * len(self.tx_tails)
        self.buffer_tails[:] = [0] * len(self.buffer_tails)
        self._live[:-1] = [False] * (len(self._live) - 1)
        self._rings.clear()

    # What messages say.

    def grant(self, counts: dict[QueueType, int]) -> None:
        """The vport has so many queues of each type from now on; what was said of others is forgotten."""
        self.granted = counts
        self._known.configured.clear()
        self._known.mapped.clear()

    def check(self, kind: int, number: int) -> Name:
        """The name of a queue that the vport has.

        Raises:
            MessageError: it has no such queue.
        """
        known = kind in set(QueueType)
        require(
            known and number < self.granted[QueueType(kind)], Result.NO_SUCH_QUEUE, f"queue {number} of type {kind}"
        )
        return QueueType(kind), number

    def configure_tx(self, records: Iterable[np.void]) -> None:
        """Take the settings of transmit and completion queues.

        Raises:
            MessageError: a queue cannot be like this.
        """
        for record in records:
            name = self._configurable(record, (QueueType.TX, QueueType.TX_COMPLETION))
            sizes = {Scheduling.FLOW: TX_COMPLETION.size, Scheduling.QUEUE: QUEUE_COMPLETION_SIZE}
            require(int(record["sched_mode"]) in sizes, Result.INVALID, f"scheduling mode {record['sched_mode']}")
            _check_ring(name, record)
            if name[0] is QueueType.TX:
                self.check(QueueType.TX_COMPLETION, int(record["tx_compl_queue_id"]))
                relative = int(record["relative_queue_id"])
                fits = relative <= TX_COMPLETION.queue_id.mask
                require(fits, Result.INVALID, f"{_text(name)}: completions cannot say {relative}")
                # A tail that came before is of packets that the driver sent when it did not know yet of a reset.
                self.tx_tails[name[1]] = 0
            self._known.configured[name] = record

    def configure_rx(self, records: Iterable[np.void]) -> None:
        """Take the settings of receive and buffer queues.

        Raises:
            MessageError: a queue cannot be like this.
        """
        for record in records:
            name = self._configurable(record, (QueueType.RX, QueueType.RX_BUFFER))
            _check_ring(name, record)
            wrong = int(record["qflags"]) & RxFlag.DESCRIPTORS_16
            require(not wrong, Result.INVALID, f"{_text(name)}: descriptors of 16 bytes")
            size = int(record["data_buffer_size"])
            require(MIN_BUFFER <= size <= MAX_BUFFER, Result.INVALID, f"{_text(name)}: buffers of {size} bytes")
            header = _header_size(record)
            fits = header == 0 or ETHERNET_SIZE <= header <= RX_COMPLETION.header_length.mask
            require(fits, Result.INVALID, f"{_text(name)}: header buffers of {header} bytes")
            if name[0] is QueueType.RX:
                first, *second = [self.check(QueueType.RX_BUFFER, one) for one in _buffer_queues(record)]
                require(first not in second, Result.INVALID, f"{_text(name)} has {_text(first)} twice")
            self._known.configured[name] = record

    def _configurable(self, record: np.void, kinds: tuple[QueueType, ...]) -> Name:
        name = self.check(int(record["type"]), int(record["queue_id"]))
        require(name[0] in kinds, Result.INVALID, f"{_text(name)} in a message of another kind")
        require(name not in self.enabled, Result.BAD_SEQUENCE, f"{_text(name)} is enabled")
        require(record["model"] == QueueModel.SPLIT, Result.INVALID, f"{_text(name)}: queue model {record['model']}")
        return name

    def map(self, name: Name, vector: int, itr_index: int) -> None:
        """A queue has this vector from now on.

        Raises:
            MessageError: it cannot.
        """
        require(name[0] in (QueueType.TX, QueueType.RX), Result.INVALID, f"{_text(name)} has no vector")
        require(0 < vector < len(self._live) - 1, Result.INVALID, f"vector {vector}")
        require(itr_index in _CAUSES, Result.INVALID, f"ITR index {itr_index}")
        self._map(name, Vector(vector, _CAUSES[itr_index]))

    def unmap(self, name: Name) -> None:
        """A queue has no vector from now on."""
        self._map(name, None)

    def _map(self, name: Name, mapping: Vector | None) -> None:
        if mapping is None:
            self._known.mapped.pop(name, None)
        else:
            self._known.mapped[name] = mapping
        if name in self._begun:
            record = self._records(name[0])[name[1]]
            record["vector"], record["cause"] = self._of(name).vector, self._of(name).cause
            self._move(name)

    def _of(self, name: Name) -> Vector:
        return self._known.mapped.get(name, self._unmapped)

    def enable(self, names: list[Name]) -> None:
        """Enable queues; those begin that have all they need.

        Raises:
            MessageError: one was not configured, or shares its buffers with another; then none is enabled.
        """
        for name in names:
            require(name in self._known.configured, Result.BAD_SEQUENCE, f"{_text(name)} is not configured")
        owners: dict[int, int] = {}
        for kind, number in {*self.enabled, *names}:
            for one in self._buffers(number) if kind is QueueType.RX else ():
                owner = owners.setdefault(one, number)
                require(owner == number, Result.INVALID, f"rx queues {owner} and {number} share buffer queue {one}")
        self.enabled.update(names)
        for kind, number in sorted(self.enabled):
            if (kind, number) in self._begun:
                continue
            if kind is QueueType.TX:
                self._begin_tx(number)
            elif kind is QueueType.RX:
                self._begin_rx(number)

    def disable(self, names: list[Name]) -> None:
        """Disable queues: they use no memory any more, and of each transmit queue a marker is the last that comes."""
        ended = set(names)
        for kind, number in self._begun:
            if kind is QueueType.TX:
                theirs = [(QueueType.TX_COMPLETION, int(self._state.tx["completions"][number]))]
            else:
                theirs = [(QueueType.RX_BUFFER, one) for one in self._buffers(number)]
            if not ended.isdisjoint(theirs):
                ended.add((kind, number))
        moved = [name for name in sorted(ended) if name in self._begun and name[0] is QueueType.TX]
        for name in moved:
            self._mark(self._state.tx[name[1]])
        self.stop(ended)
        for name in names:
            kind, number = name
            self.enabled.discard(name)
            if kind is QueueType.TX:
                self.tx_tails[number] = 0
            elif kind is QueueType.RX_BUFFER:
                self.buffer_tails[number] = 0
            elif kind is QueueType.TX_COMPLETION:
                self._state.completion_queues[number] = 0

    def stop(self, names: set[Name]) -> None:
        """Have queues of the core end; they are enabled still."""
        ended = sorted(names & self._begun)
        self._begun -= set(ended)
        for kind, number in ended:
            if kind is QueueType.TX:
                self._nic.drop_tx(number)
            else:
                self._nic.drop_rx(number)
                self._state.small[number] = 0
                self._rings = {one: place for one, place in self._rings.items() if place[1] != number}
        if any(kind is QueueType.RX for kind, _ in ended):
            self._nic.ingress.retry()  # what waited for them has no queue now

    # Beginning.

    def _begin_tx(self, number: int) -> None:
        config = self._known.configured[QueueType.TX, number]
        completions = int(config["tx_compl_queue_id"])
        if (QueueType.TX_COMPLETION, completions) not in self.enabled:
            return
        flow = int(config["sched_mode"] == Scheduling.FLOW)
        queue = self._state.completion_queues[completions : completions + 1]
        if not queue["active"][0]:
            theirs = self._known.configured[QueueType.TX_COMPLETION, completions]
            queue["active"] = queue["generation"] = 1
            queue["ring"], queue["entries"], queue["index"] = theirs["ring_address"], theirs["ring_len"], 0
            queue["size"] = TX_COMPLETION.size if flow else QUEUE_COMPLETION_SIZE
        name = (QueueType.TX, number)
        self._nic.start_queue(
            self._state.tx[number : number + 1],
            TX_COUNTERS,
            entries=int(config["ring_len"]),
            positions=int(config["ring_len"]),
            ring=int(config["ring_address"]),
            completions=completions,
            relative=int(config["relative_queue_id"]),
            flow=flow,
            vector=self._of(name).vector,
            cause=int(self._of(name).cause),
        )
        self._begun.add(name)
        self._move(name)

    def _begin_rx(self, number: int) -> None:
        config = self._known.configured[QueueType.RX, number]
        buffers = self._buffers(number)
        if any((QueueType.RX_BUFFER, one) not in self.enabled for one in buffers):
            return
        first, *second = [self._known.configured[QueueType.RX_BUFFER, one] for one in buffers]
        header_size = _header_size(first)
        # Linux counts segments by what is behind the header (idpf_rx_rsc), so without a split there is none.
        rsc = int(bool(header_size and int(config["qflags"]) & RxFlag.RSC))
        name = (QueueType.RX, number)
        self._nic.start_queue(
            self._state.rx[number : number + 1],
            RX_COUNTERS,
            completion_ring=int(config["ring_address"]),
            completion_entries=int(config["ring_len"]),
            generation=1,
            header_size=header_size,
            rsc=rsc,
            coalesce=int(rsc and self._coalesce),
            vector=self._of(name).vector,
            cause=int(self._of(name).cause),
            **_buffer_ring(first, 0),
        )
        for theirs in second:
            for field_name, value in _buffer_ring(theirs, 1).items():
                self._state.small[field_name][number] = value
        for one, records in zip(buffers, (self._state.rx, self._state.small), strict=False):
            self._rings[one] = records, number
        self._begun.add(name)
        self._move(name)

    def _buffers(self, number: int) -> list[int]:
        """The buffer queues of a receive queue, one or two."""
        return _buffer_queues(self._known.configured[QueueType.RX, number])

    def _records(self, kind: QueueType) -> Records:
        return self._state.tx if kind is QueueType.TX else self._state.rx

    def _move(self, name: Name) -> None:
        """Have a queue that has begun move, or rest, by its vector, from the tails that the driver has written."""
        kind, number = name
        live = self._live[self._of(name).vector]
        self._records(kind)["active"][number] = live
        if kind is QueueType.TX:
            if live:
                self.tx_tail(number, self.tx_tails[number])
            else:
                self._nic.egress.forget(number)
        elif live:
            for one in self._buffers(number):
                self.buffer_tail(one, self.buffer_tails[one])

    def _mark(self, tx: np.void) -> None:
        """Write the marker of a transmit queue that ends. There is no interrupt for it: Linux polls, and would log it
        as an unknown type if its interrupt's handler found it first.
        """
        queue = self._state.completion_queues[int(tx["completions"])]
        if not queue["active"]:
            return
        word = TX_COMPLETION.encode(
            queue_id=int(tx["relative"]), type=TxCompletionType.MARKER, generation=int(queue["generation"])
        )[: int(queue["size"])]
        address = int(queue["ring"]) + int(queue["index"]) * int(queue["size"])
        try:
            self._nic.dma.write(address, word, Purpose.COMPLETION)
        except DmaFault:
            self._nic.diagnostics.count("marker_fault")
        queue["index"] += 1
        if queue["index"] == queue["entries"]:
            queue["index"] = 0
            queue["generation"] ^= 1

    # Doorbells.

    def tx_tail(self, number: int, value: int) -> None:
        """The driver has posted descriptors up to `value`."""
        if number >= len(self.tx_tails):
            self._nic.diagnostics.count("doorbell_unknown")
            return
        self.tx_tails[number] = value
        tx = self._state.tx
        if tx["active"][number]:
            if value < tx["entries"][number]:
                tx["tail"][number] = value
                self._nic.egress.schedule(number)
            else:
                self._refuse(f"tx{number}", value, int(tx["entries"][number]))

    def buffer_tail(self, number: int, value: int) -> None:
        """The driver has posted buffers up to `value` of a buffer queue."""
        if number >= len(self.buffer_tails):
            self._nic.diagnostics.count("doorbell_unknown")
            return
        self.buffer_tails[number] = value
        records, queue = self._rings.get(number, (self._state.small, 0))
        if number in self._rings and self._state.rx["active"][queue]:
            if value < records["buffer_entries"][queue]:
                records["buffer_tail"][queue] = value
                self._nic.ingress.schedule()
            else:
                self._refuse(f"rx{queue}", value, int(records["buffer_entries"][queue]))

    def _refuse(self, queue: str, value: int, entries: int) -> None:
        """A doorbell that cannot be meant has no effect."""
        self._nic.diagnostics.count("doorbell_beyond_ring")
        if self._nic.diagnostics.observers:
            self._nic.diagnostics.tell(Failed(f"doorbell {value} is beyond the ring of {entries} entries", queue))

    def receive_queue_of(self, buffer_queue: int) -> int | None:
        """The receive queue that has begun with this buffer queue, for display."""
        return self._rings[buffer_queue][1] if buffer_queue in self._rings else None

    def buffers_of(self, receive_queue: int) -> list[int]:
        """The buffer queues with which a receive queue has begun, that of the larger buffers first."""
        return [one for one, (_, number) in self._rings.items() if number == receive_queue]

    # Vectors.

    def control(self, vector: int, value: int) -> None:
        """The driver has written `DYN_CTL` of a vector."""
        vectors = self._state.vectors
        if vector >= len(self._live) - 1:
            self._nic.diagnostics.count("doorbell_unknown")
            return
        index = value >> _INDEX & _INDEX_MASK
        if index != ITR_NO_UPDATE:
            self.set_interval(vector, index, value >> _INTERVAL & _INTERVAL_MASK)
        if value & _CLEAR_PENDING:
            vectors["pending"][vector] = 0
        if value & _SOFTWARE_INTERRUPT:
            vectors["pending"][vector] |= Cause.AT_ONCE
        if not value & _KEEP_ENABLE:
            vectors["enabled"][vector] = value & 1
        # Completions are always written back at once, so there is nothing to do for that; but the vector is in use.
        used = bool(vectors["enabled"][vector]) or value & _WRITE_BACK_ON_ITR != 0
        if value == 0 or used:
            self._switch(vector, used)

    def set_interval(self, vector: int, index: int, units: int) -> None:
        """An interval of a vector; there is a third one, of which nothing depends here."""
        if vector >= len(self._live) - 1:
            self._nic.diagnostics.count("doorbell_unknown")
        elif index < 2:
            name = ("interval", "second_interval")[index]
            self._state.vectors[name][vector] = units * ITR_UNIT_NS

    def _switch(self, vector: int, live: bool) -> None:
        if self._live[vector] == live:
            return
        self._live[vector] = live
        for name in sorted(self._begun):
            if self._of(name).vector == vector:
                self._move(name)


def _text(name: Name) -> str:
    return f"{name[0].name.lower()} queue {name[1]}"


def _check_ring(name: Name, record: np.void) -> None:
    entries, address = int(record["ring_len"]), int(record["ring_address"])
    fits = MIN_RING <= entries <= MAX_RING and entries % MIN_RING == 0
    require(fits, Result.INVALID, f"{_text(name)}: a ring of {entries} entries")
    size = _ENTRY[name[0]]
    require(address % size == 0, Result.INVALID, f"{_text(name)}: a ring at {address:#x}, not aligned to {size}")


def _buffer_queues(record: np.void) -> list[int]:
    """The buffer queues that a receive queue is to have."""
    return [int(record["rx_bufq1_id"]), *([int(record["rx_bufq2_id"])] if record["bufq2_ena"] else [])]


def _header_size(record: np.void) -> int:
    """Bytes of a header buffer; AF_XDP's buffers have no room for headers, which only the queue's flags say."""
    return int(record["hdr_buffer_size"]) if int(record["qflags"]) & RxFlag.HEADER_SPLIT else 0


def _buffer_ring(config: np.void, number: int) -> dict[str, int]:
    """The fields of a ring of buffers."""
    return {
        "buffer_ring": int(config["ring_address"]),
        "buffer_entries": int(config["ring_len"]),
        "positions": int(config["ring_len"]),
        "buffer_size": int(config["data_buffer_size"]),
        "number": number,
    }
