"""What driver and device have said to one another, decoded: registers, doorbells, messages, descriptors.

Every structure is decoded from its one definition in this package. A ring is read twice: what a batch will consume
before the compiled call, what it has written after it. The driver may reuse a slot as soon as its completion is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nicmodel.idpf import registers as r
from nicmodel.idpf.descriptors import (
    RX_COMPLETION,
    TX_COMPLETION,
    TX_CONTEXT,
    TX_FLOW_DATA,
    TX_QUEUE_DATA,
    TX_TSO_CONTEXT,
    TxCompletionType,
    TxType,
)
from nicmodel.idpf.registers import DYN_CTL, Bar
from nicmodel.idpf.virtchnl import Op, QueueType
from nicmodel.nic import events
from nicmodel.nic.peek import peek
from nicmodel.nic.plain import followers, name_of, where
from nicmodel.nic.state import Drop, Records
from nicmodel.nic.view import Listeners
from nicmodel.packet.frames import Batch
from nicmodel.packet.headers import L3, L4
from nicmodel.vfio_user.protocol import PciRegion

if TYPE_CHECKING:
    from nicmodel.idpf.device import Nic  # which makes the decoder

_TX_LAYOUTS = {
    TxType.FLOW_DATA: TX_FLOW_DATA, TxType.QUEUE_DATA: TX_QUEUE_DATA, TxType.TSO_CONTEXT: TX_TSO_CONTEXT,
    TxType.CONTEXT: TX_CONTEXT,
}  # fmt: skip
_TAILS = {r.TX_TAIL: "tx", r.RX_BUFFER_TAIL: "rx"}
_OPS = frozenset(Op)
_PADDING = ("pad", "pad1", "pad2")


class Decoder:
    """Decodes the events of one NIC, for those who listen.

    Args:
        nic: the device.
        listeners: who is told.
    """

    def __init__(self, nic: Nic, listeners: Listeners) -> None:
        self._nic = nic
        self._listeners = listeners
        # As they were before the batch: the queues' records, and the ring that it consumes (None: not readable).
        self._tx: Records = nic.state.tx
        self._tx_drops = nic.state.drops[0].copy()
        self._tx_ring: bytes | None = None
        self._completions = np.void(b"")

    def hear(self, event: events.Event) -> None:
        """See `nicmodel.nic.view.Decoder`."""
        match event:
            case events.Received(batch, outcomes):
                self._received(batch, outcomes)
            case events.Transmitting(queue):
                self._transmit(queue)
            case events.Transmitted(queue):
                self._transmitted(queue)
            case events.CommandExecuted(opcode, payload, status, reason):
                self._message(opcode, payload, status, reason)

    # Register accesses.

    def access(self, access: Literal["read", "write"], region: int, offset: int, data: bytes) -> None:
        """See `nicmodel.nic.view.Decoder`."""
        value = int.from_bytes(data, "little")
        place = r.PLACES.get(offset) if region == Bar.REGISTERS and len(data) == r.SPACING else None
        if place is None:
            kind = {PciRegion.CONFIG: "config", Bar.MSIX: "msix"}.get(region, "register")  # type: ignore[call-overload]
            self._listeners.emit(kind, access=access, offset=offset, size=len(data), value=value)
            return
        register, number = place
        name = register.name if register.count == 1 else f"{register.name}{number}"
        if access == "write" and register in _TAILS:
            way = _TAILS[register]
            queue = number if way == "tx" else self._nic.queues.receive_queue_of(number)
            about = {} if queue is None else {"queue": f"{way}{queue}"}
            self._listeners.emit("doorbell", register=name, **about, tail=value)
        elif access == "write" and register in (r.QUEUE_DYN_CTL, r.MAILBOX_DYN_CTL):
            self._listeners.emit("doorbell", register=name, **DYN_CTL.decode(data))
        else:
            self._listeners.emit("register", register=name, access=access, value=value)

    # The mailbox.

    def _message(self, number: int, payload: np.void | None, status: IntEnum, reason: str) -> None:
        fields: dict[str, Any] = {"command": Op(number).name if number in _OPS else str(number), "status": status.name}
        if payload is not None and payload.dtype.names:
            fields["fields"] = explained(payload)
        if reason:
            fields["reason"] = reason
        self._listeners.emit("admin", **fields)

    # Packets.

    def _received(self, batch: Batch, outcomes: Records) -> None:
        merged = followers(outcomes[: batch.count])
        for place, (frame, outcome) in enumerate(zip(batch.frames[: batch.count], outcomes, strict=False)):
            number, count = int(outcome["queue"]), int(outcome["completions"])
            if not self._listeners.wants("rx", f"rx{number}" if number >= 0 else None):
                continue
            fields: dict[str, Any] = {"length": int(frame["length"]), **where(self._nic.state, outcome)}
            if frame["time"]:
                fields["waited"] = self._nic.clock() - int(frame["time"])
            if place in merged:
                fields["coalesced"] = True  # its descriptors are those of the frame that it continues
            elif count:
                found = completions(self._nic, self._nic.state.rx[number], int(outcome["completion"]), count)
                fields["completions"] = found
                kind = found[0]["packet_type"] if found else 0
                fields["protocol"] = f"{name_of(L3, kind >> 3)}/{name_of(L4, kind & 7)}"
            self._listeners.emit("rx", **fields)

    def _transmit(self, queue: int) -> None:
        state = self._nic.state
        self._tx = state.tx.copy()
        self._completions = state.completion_queues[int(state.tx[queue]["completions"])].copy()
        self._tx_drops = state.drops[len(state.rx) + queue].copy()
        if self._listeners.wants("tx", f"tx{queue}"):
            size = int(state.tx[queue]["entries"]) * TX_FLOW_DATA.size
            self._tx_ring = peek(state.memory_map, int(state.tx[queue]["ring"]), size)

    def _transmitted(self, queue: int) -> None:
        """One event for each packet, and one for the completions of all of them."""
        if not self._listeners.wants("tx", f"tx{queue}"):
            return
        state, before, after = self._nic.state, self._tx[queue], self._nic.state.tx[queue]
        head, entries = int(before["head"]), max(int(before["entries"]), 1)
        taken = (int(after["head"]) - head) % entries
        packet: list[dict[str, Any]] = []
        for place in range(head, head + taken if self._tx_ring is not None else head):
            raw = _entry(self._tx_ring or b"", TX_FLOW_DATA.size, place % entries)
            dtype = TX_FLOW_DATA.dtype.get(raw)
            layout = _TX_LAYOUTS.get(dtype)  # type: ignore[call-overload]
            fields = layout.decode(raw) if layout else {"raw": raw.hex()}
            packet.append({"index": place % entries, "type": name_of(TxType, dtype), **fields})
            if layout in (TX_FLOW_DATA, TX_QUEUE_DATA) and TX_FLOW_DATA.end_of_packet.get(raw):
                self._listeners.emit("tx", queue=f"tx{queue}", descriptors=packet)
                packet = []
        written = list(self._written(state.completion_queues[int(before["completions"])]))
        if written:
            self._listeners.emit("tx", queue=f"tx{queue}", completions=written)
        self._dropped_packets(queue)

    def _written(self, now: np.void) -> Iterator[dict[str, Any]]:
        """The completions that the batch has brought, decoded."""
        then = self._completions
        rounds, size = int(then["entries"]), int(then["size"])
        if not rounds:
            return
        ring = peek(self._nic.state.memory_map, int(then["ring"]), rounds * size)
        for place in range(int(then["index"]), int(then["index"]) + (int(now["index"]) - int(then["index"])) % rounds):
            if ring is not None:
                fields: dict[str, Any] = TX_COMPLETION.decode(_entry(ring, size, place % rounds))
                fields["type"] = name_of(TxCompletionType, fields["type"])
                yield {"index": place % rounds, **fields}

    def _dropped_packets(self, queue: int) -> None:
        """One event for each reason why packets of the batch were not sent: ``verdict``, how many ``packets``."""
        state = self._nic.state
        for reason, count in enumerate((state.drops[len(state.rx) + queue] - self._tx_drops).tolist()):
            if count:
                place = {"address": int(state.device["fault_address"][0])} if reason == Drop.DMA_FAULT else {}
                verdict = Drop(reason).name.lower()
                self._listeners.emit("tx", queue=f"tx{queue}", verdict=verdict, packets=count, **place)


def completions(nic: Nic, queue: np.void, first: int, count: int) -> list[dict[str, Any]]:
    """`count` completions of a receive queue from index `first` on, decoded; none if the ring cannot be read."""
    entries = int(queue["completion_entries"])
    ring = peek(nic.state.memory_map, int(queue["completion_ring"]), entries * RX_COMPLETION.size)
    if ring is None:
        return []
    places = [place % entries for place in range(first, first + count)]
    return [{"index": place, **RX_COMPLETION.decode(_entry(ring, RX_COMPLETION.size, place))} for place in places]


def explained(payload: np.void) -> dict[str, Any]:
    """A message's fields by name, without padding; what there is any number of as a list."""
    fields: dict[str, Any] = {}
    for name in payload.dtype.names or ():
        value = payload[name]
        if name in _PADDING:
            continue
        if value.dtype.names and value.shape:
            fields[name] = [explained(one) for one in value]
        elif value.shape:
            fields[name] = value.tolist() if value.dtype.itemsize > 1 else bytes(value).hex()
        else:
            fields[name] = value.item()
    for name in ("type", "queue_type"):
        if name in fields and ("queue_id" in fields or "start_queue_id" in fields):
            fields[name] = name_of(QueueType, fields[name])
    return fields


def _entry(ring: bytes, size: int, index: int) -> bytes:
    return ring[index * size : (index + 1) * size]
