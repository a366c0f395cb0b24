"""What driver and device have said to one another, decoded: registers, doorbells, admin commands, descriptors.

Every structure is decoded from its one definition in this package. A ring is read twice: what a batch, or a flush, will
consume before the compiled call, what it has written after it. The driver may reuse a slot as soon as its completion is
there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from functools import reduce
from operator import getitem
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nicmodel.gvnic import commands as c
from nicmodel.gvnic import registers as r
from nicmodel.gvnic.commands import Inner, Opcode
from nicmodel.gvnic.declare import Command
from nicmodel.gvnic.descriptors import (
    GQI_RX_DESCRIPTOR,
    GQI_RX_SLOT,
    GQI_SEQUENCE,
    GQI_TX_PACKET,
    GQI_TX_SEGMENT,
    IRQ_DOORBELL,
    RX_BUFFER,
    RX_COMPLETION,
    TX_COMPLETION,
    TX_GENERAL_CONTEXT,
    TX_PACKET,
    TX_TSO_CONTEXT,
    GqiIrqDoorbell,
    GqiRxFlag,
    GqiTxType,
    TxCompletionType,
    TxType,
)
from nicmodel.gvnic.options.ddp.declarations import RX_DDP
from nicmodel.gvnic.options.deferred.declarations import (
    PLACEMENT_COMPLETION,
    PLACEMENT_REQUEST,
    RX_DEFERRED,
    PlacementStatus,
)
from nicmodel.gvnic.options.deferred.events import Placed, Placing
from nicmodel.gvnic.options.flush.declarations import RX_FLUSHED
from nicmodel.gvnic.options.flush.events import Flushed, Flushing
from nicmodel.gvnic.options.owners.lists import posted
from nicmodel.gvnic.registers import Bar
from nicmodel.nic import events
from nicmodel.nic.layout import Form, Layout, explain, size_of
from nicmodel.nic.peek import peek
from nicmodel.nic.plain import flag_names, followers, name_of, served, where
from nicmodel.nic.state import Drop, Records
from nicmodel.nic.view import Listeners
from nicmodel.packet.frames import Batch
from nicmodel.packet.headers import L3, L4
from nicmodel.vfio_user.protocol import PciRegion

if TYPE_CHECKING:
    from nicmodel.gvnic.device import Nic  # which makes the decoder

_TX_LAYOUTS = {
    TxType.PACKET: TX_PACKET, TxType.TSO_CONTEXT: TX_TSO_CONTEXT, TxType.GENERAL_CONTEXT: TX_GENERAL_CONTEXT,
}  # fmt: skip


class Decoder:
    """Decodes the events of one NIC, for those who listen.

    Args:
        nic: the device.
        listeners: who is told.
    """

    def __init__(self, nic: Nic, listeners: Listeners) -> None:
        self._nic = nic
        self._listeners = listeners
        # As they were before the batch: the queues' records, and the rings that it consumes (None: not readable).
        self._rx: Records = nic.state.rx
        self._tx: Records = nic.state.tx
        self._tx_drops = nic.state.drops[0].copy()
        self._buffer_rings: dict[int, bytes | None] = {}
        self._tx_ring: bytes | None = None
        self._placement: np.void = np.void(b"")
        self._placement_ring: bytes | None = None

    def hear(self, event: events.Event) -> None:
        """See `nicmodel.nic.view.Decoder`."""
        match event:
            case events.Receiving():
                self._receive()
            case events.Received(batch, outcomes):
                self._received(batch, outcomes)
            case events.Transmitting(queue):
                self._transmit(queue)
            case events.Transmitted(queue):
                self._transmitted(queue)
            case events.CommandExecuted(opcode, payload, status, reason):
                self._admin(opcode, payload, status, reason)
            case Flushing(queue):
                self._flushing(queue)
            case Flushed(queue):
                self._handed_back(queue)
            case Placing(queue):
                self._placing(queue)
            case Placed(queue):
                self._placed(queue)
            case events.CompletedLate(way, queue, index):
                self._completed_late(way, queue, index)

    # Register accesses.

    def access(self, access: Literal["read", "write"], region: int, offset: int, data: bytes) -> None:
        """See `nicmodel.nic.view.Decoder`."""
        if region == Bar.REGISTERS:
            self._register(access, offset, data)
        elif region == Bar.DOORBELLS and access == "write":
            self._doorbell(offset, data)
        else:
            kind = {PciRegion.CONFIG: "config", Bar.MSIX: "msix", Bar.DOORBELLS: "doorbell"}.get(region, "register")  # type: ignore[call-overload]
            value = int.from_bytes(data, "little")
            self._listeners.emit(kind, access=access, offset=offset, size=len(data), value=value)

    def _register(self, access: str, offset: int, data: bytes) -> None:
        found = r.decode(offset, data)
        for register, value in found:
            fields: dict[str, Any] = {"register": register.name, "access": access, "value": value}
            if register.flags is not None:
                fields["flags"] = flag_names(register.flags(value))
            self._listeners.emit("register", **fields)
        if not found:
            value = int.from_bytes(data, "big")
            self._listeners.emit("register", register=f"{offset:#x}", access=access, value=value)

    def _doorbell(self, offset: int, data: bytes) -> None:
        nic, index = self._nic, offset // 4
        value, queues = int.from_bytes(data, "big" if nic.gqi else "little"), nic.profile.queues
        if len(data) != 4 or offset % 4:
            self._listeners.emit("doorbell", access="write", offset=offset, size=len(data), value=value)
        elif (block := index - nic.doorbells.irq(0)) in range(2 * queues):
            asked = {"flags": flag_names(GqiIrqDoorbell(value))} if nic.gqi else IRQ_DOORBELL.decode(data)
            self._listeners.emit("doorbell", **self._block(block), **asked)
        elif (queue := index - nic.doorbells.tx(0)) in range(queues):
            self._listeners.emit("doorbell", queue=f"tx{queue}", tail=value)
        elif (queue := index - nic.doorbells.rx(0)) in range(queues):
            self._listeners.emit("doorbell", queue=f"rx{queue}", tail=value)
        elif (queue := index - nic.doorbells.placement(0)) in range(queues) and nic.deferred is not None:
            self._listeners.emit("doorbell", queue=f"rx{queue}", ring="placement", tail=value)
        else:
            self._listeners.emit("doorbell", access="write", offset=offset, size=len(data), value=value)

    def _block(self, block: int) -> dict[str, Any]:
        """A notification block and the queue that it serves."""
        queue = served(self._nic.state, block)
        return {"block": block, "queue": queue} if queue else {"block": block}

    # Admin queue.

    def _admin(self, opcode: int, payload: np.void | None, status: IntEnum, reason: str) -> None:
        fields: dict[str, Any] = {"command": f"{opcode:#x}", "status": status.name}
        if payload is not None:
            command = Opcode(opcode)  # one that the device has executed
            fields |= {"command": command.name, **self._command(command, payload)}
        if reason:
            fields["reason"] = reason
        self._listeners.emit("admin", **fields)

    def _command(self, command: Opcode, payload: np.void) -> dict[str, Any]:
        """A command's queue and fields, with what it points at if the driver has put something there."""
        declared, fields = command.command, _explained(command.command, payload)
        if command == Opcode.VERIFY_DRIVER_COMPATIBILITY:
            info = self._record(fields["address"], c.DRIVER_INFO)
            fields["driver"] = None if info is None else explain(info)
        elif command == Opcode.EXTENDED_COMMAND and fields["inner_opcode"] in set(Inner):
            opcode = Inner(fields["inner_opcode"])
            fields["inner_opcode"] = opcode.name
            inner = self._record(fields["inner_address"], opcode.command.payload)
            fields["inner"] = None if inner is None else _explained(opcode.command, inner)
            if inner is not None:
                declared, payload = opcode.command, inner
        queue = declared.queue
        about = {} if queue is None else {"queue": f"{queue.way}{payload[queue.number]}"}
        return {**about, "fields": fields}

    def _record(self, address: int, form: np.dtype[np.void]) -> np.void | None:
        raw = peek(self._nic.state.memory_map, address, form.itemsize)
        return None if raw is None else np.frombuffer(raw, form)[0]

    # Packets.

    def _receive(self) -> None:
        self._rx = self._nic.state.rx.copy()
        self._buffer_rings = {
            number: self._buffer_ring(number)
            for number in np.flatnonzero(self._rx["active"]).tolist()
            if self._listeners.wants("rx", f"rx{number}")
        }

    def _buffer_ring(self, number: int) -> bytes | None:
        """The buffers that a receive queue has, by their places in its ring, or by identifier if they have owners."""
        state, queue = self._nic.state, self._rx[number]
        size = size_of(GQI_RX_SLOT if self._nic.gqi else RX_BUFFER)
        ring = peek(state.memory_map, int(queue["buffer_ring"]), int(queue["buffer_entries"]) * size)
        if ring is None or not queue["owners"]:
            return ring
        return posted(state, number, np.frombuffer(ring, np.uint8).reshape(-1, size)).tobytes()

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
                fields["completions"], fields["buffers"] = self._completed(number, int(outcome["completion"]), count)
                if not self._nic.gqi:
                    kind = fields["completions"][0]["packet_type"] if fields["completions"] else 0
                    fields["protocol"] = f"{name_of(L3, kind >> 3)}/{name_of(L4, kind & 7)}"
            self._listeners.emit("rx", **fields)
        for number in np.flatnonzero(self._rx["owners"]).tolist():  # what names no owner comes back for no frame
            self._handed_back(number, outcomes[: batch.count])

    def _completed(self, number: int, first: int, count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Completions of a receive queue from index `first` on, and the buffers that they are of.

        A completion that a fault has not written yet is left out.
        """
        queue, ring = self._rx[number], self._buffer_rings.get(number)
        found = completions(self._nic, queue, first, count)
        if self._nic.gqi:
            return found, list(_entries(ring, GQI_RX_SLOT, first, count, int(queue["buffer_entries"])))
        start, generation = int(queue["completion_index"]), int(queue["generation"])
        found = [one for one in found if one["generation"] == generation ^ (one["index"] < start)]
        if queue["owners"]:
            entries = (_entries(ring, RX_BUFFER, completion["buffer_id"], 1, 1 << 16) for completion in found)
            return found, [buffer for entry in entries for buffer in entry]
        # Each completion has a buffer: as many of either since the batch began.
        done = (first - start) % int(queue["completion_entries"])
        head = int(queue["buffer_head"]) + done
        return found, list(_entries(ring, RX_BUFFER, head, count, int(queue["buffer_entries"])))

    def _handed_back(self, number: int, outcomes: Records | None = None) -> None:
        """One event for each buffer that a flush, or a batch besides its frames' of these `outcomes`, has handed back.

        Its ``verdict`` is ``flushed``, or ``refused``: it was nobody's.
        """
        if not self._listeners.wants("rx", f"rx{number}"):
            return
        before, after = self._rx[number], self._nic.state.rx[number]
        first, entries = int(before["completion_index"]), int(before["completion_entries"])
        count = (int(after["completion_index"]) - first) % entries
        if count == 0 and after["generation"] != before["generation"]:  # a whole lap
            count = entries
        of_frames = set()
        for outcome in outcomes[outcomes["queue"] == number] if outcomes is not None else ():
            of_frames |= {(int(outcome["completion"]) + k) % entries for k in range(int(outcome["completions"]))}
        if len(of_frames) == count:
            return
        found, buffers = self._completed(number, first, count)
        for k, completion in enumerate(found):
            if completion["index"] not in of_frames:
                verdict = "flushed" if completion.get("flushed") else "refused"
                self._listeners.emit(
                    "rx", queue=f"rx{number}", verdict=verdict, completions=[completion], buffers=buffers[k : k + 1]
                )  # fmt: skip

    def _flushing(self, queue: int) -> None:
        self._rx = self._nic.state.rx.copy()
        if self._listeners.wants("rx", f"rx{queue}"):
            self._buffer_rings[queue] = self._buffer_ring(queue)

    def _placing(self, queue: int) -> None:
        state = self._nic.state
        self._placement = state.placement_rings[queue].copy()
        if self._listeners.wants("rx", f"rx{queue}"):
            address, entries = int(self._placement["request_ring"]), int(self._placement["entries"])
            self._placement_ring = peek(state.memory_map, address, entries * PLACEMENT_REQUEST.size)

    def _placed(self, queue: int) -> None:
        """One event for each placement request: its descriptors, its completion, whose status is the ``verdict``."""
        if not self._listeners.wants("rx", f"rx{queue}"):
            return
        state, before = self._nic.state, self._placement
        head, first, entries = (int(before[name]) for name in ("head", "completion_index", "entries"))
        count = (int(state.placement_rings[queue]["completion_index"]) - first) % entries
        ring = peek(state.memory_map, int(before["completion_ring"]), entries * PLACEMENT_COMPLETION.size)
        for reply in _entries(ring, PLACEMENT_COMPLETION, first, count, entries):
            done = (reply["head"] - head) % entries
            requests = list(_entries(self._placement_ring, PLACEMENT_REQUEST, head, done, entries))
            verdict = reply["status"].lower()
            self._listeners.emit("rx", queue=f"rx{queue}", verdict=verdict, descriptors=requests, completions=[reply])
            head = reply["head"]

    def _completed_late(self, way: str, number: int, index: int) -> None:
        state, name = self._nic.state, f"{way}{number}"
        if way == "rx":
            found = completions(self._nic, state.rx[number], index, 1)
            self._listeners.emit("rx", queue=name, verdict="late", completions=found)
            return
        queue = state.tx[number]
        if self._nic.gqi:
            raw = peek(state.memory_map, int(queue["completion_ring"]), 4)
            self._listeners.emit("tx", queue=name, verdict="late", counter=int.from_bytes(raw or b"", "big"))
            return
        entries = int(queue["completion_entries"])
        ring = peek(state.memory_map, int(queue["completion_ring"]), entries * TX_COMPLETION.size)
        self._listeners.emit(
            "tx", queue=name, verdict="late", completions=list(_entries(ring, TX_COMPLETION, index, 1, entries))
        )

    def _transmit(self, queue: int) -> None:
        state = self._nic.state
        self._tx = state.tx.copy()
        self._tx_drops = state.drops[len(state.rx) + queue].copy()
        if self._listeners.wants("tx", f"tx{queue}"):
            size = int(state.tx[queue]["entries"]) * TX_PACKET.size  # GQI's are as long
            self._tx_ring = peek(state.memory_map, int(state.tx[queue]["ring"]), size)

    def _transmitted(self, queue: int) -> None:
        if not self._listeners.wants("tx", f"tx{queue}"):
            return
        if self._tx_ring is not None:
            before, after = self._tx[queue], self._nic.state.tx[queue]
            head, entries = int(before["head"]), int(before["entries"])
            taken = (int(after["head"]) - head) % int(before["positions"])
            ring = self._tx_ring
            raws = [(place, _entry(ring, TX_PACKET.size, place % entries)) for place in range(head, head + taken)]
            if self._nic.gqi:
                self._gqi_packets(queue, raws, entries)
            else:
                self._dqo_packets(queue, raws, entries)
        self._dropped_packets(queue)

    def _dqo_packets(self, queue: int, raws: list[tuple[int, bytes]], entries: int) -> None:
        """One event for each packet: its descriptors up to the end of the packet, its completions."""
        before, after = self._tx[queue], self._nic.state.tx[queue]
        first, rounds = int(before["completion_index"]), int(before["completion_entries"])
        written = (int(after["completion_index"]) - first) % rounds if rounds else 0
        ring = peek(self._nic.state.memory_map, int(before["completion_ring"]), rounds * TX_COMPLETION.size)
        reports = deque(_entries(ring, TX_COMPLETION, first, written, rounds))
        packet: list[dict[str, Any]] = []
        for place, raw in raws:
            dtype = TX_PACKET.dtype.get(raw)
            layout = _TX_LAYOUTS.get(dtype)  # type: ignore[call-overload]
            fields = layout.decode(raw) if layout else {"raw": raw.hex()}
            packet.append({"index": place % entries, "type": name_of(TxType, dtype), **fields})
            if dtype == TxType.PACKET and TX_PACKET.end_of_packet.get(raw):
                done = _of_packet(reports, TX_PACKET.completion_tag.get(raw))
                self._listeners.emit("tx", queue=f"tx{queue}", descriptors=packet, completions=done)
                packet = []

    def _dropped_packets(self, queue: int) -> None:
        """One event for each reason why packets of the batch were not sent: ``verdict``, how many ``packets``."""
        state = self._nic.state
        for reason, count in enumerate((state.drops[len(state.rx) + queue] - self._tx_drops).tolist()):
            if not count:
                continue
            place = {"address": int(state.device["fault_address"][0])} if reason == Drop.DMA_FAULT else {}
            self._listeners.emit("tx", queue=f"tx{queue}", verdict=Drop(reason).name.lower(), packets=count, **place)

    def _gqi_packets(self, queue: int, raws: list[tuple[int, bytes]], entries: int) -> None:
        """One event for each packet: its descriptors, and the count of descriptors by which it is completed."""
        packet: list[dict[str, Any]] = []
        left = 0
        for place, raw in raws:
            kind = raw[0] >> 4
            form = GQI_TX_SEGMENT if kind == GqiTxType.SEGMENT else GQI_TX_PACKET
            packet.append({"index": place % entries, "type": name_of(GqiTxType, kind), **_decode(form, raw)})
            left = (left or max(1, packet[0].get("descriptors", 1))) - 1
            if left == 0:
                self._listeners.emit("tx", queue=f"tx{queue}", counter=(place + 1) & 0xFFFFFFFF, descriptors=packet)
                packet = []


def completions(nic: Nic, queue: np.void, first: int, count: int) -> list[dict[str, Any]]:
    """`count` completions of a receive queue from index `first` on, decoded; none if the ring cannot be read.

    In the GQI formats these are the queue's descriptors, which say the same.
    """
    form: Form = GQI_RX_DESCRIPTOR if nic.gqi else RX_COMPLETION
    entries = int(queue["completion_entries"])
    ring = peek(nic.state.memory_map, int(queue["completion_ring"]), entries * size_of(form))
    found = list(_entries(ring, form, first, count, entries))
    if queue["deferred"] and found:
        found[0] |= next(_entries(ring, RX_DEFERRED, first, 1, entries))
    if nic.profile.ddp_flows and not nic.gqi:
        for completion, more in zip(found, _entries(ring, RX_DDP, first, count, entries), strict=True):
            completion |= more
    if nic.profile.queue_flush and not nic.gqi:
        for completion, more in zip(found, _entries(ring, RX_FLUSHED, first, count, entries), strict=True):
            completion |= more
    return found


def _explained(command: Command, payload: np.void) -> dict[str, Any]:
    """A command's fields by name, their numbers as names where the declaration has names for them."""
    fields = explain(payload)
    for path, enumeration in command.enumerations.items():
        *outer, name = path.split(".")
        inside = reduce(getitem, outer, fields)
        value = inside[name]
        inside[name] = (
            flag_names(enumeration(value)) if issubclass(enumeration, IntFlag) else name_of(enumeration, value)
        )
    return fields


def _entry(ring: bytes, size: int, index: int) -> bytes:
    return ring[index * size : (index + 1) * size]


def _decode(form: Form, raw: bytes) -> dict[str, Any]:
    """A descriptor's fields by name."""
    fields: dict[str, Any] = form.decode(raw) if isinstance(form, Layout) else explain(np.frombuffer(raw, form)[0])
    if form is TX_COMPLETION:
        fields["type"] = name_of(TxCompletionType, fields["type"])
    elif form is PLACEMENT_COMPLETION:
        fields["status"] = name_of(PlacementStatus, fields["status"])
    elif form is GQI_RX_DESCRIPTOR:
        both = fields.pop("flags_seq")
        fields |= {"sequence": both & GQI_SEQUENCE, "flags": flag_names(GqiRxFlag(both & ~GQI_SEQUENCE))}
    return fields


def _entries(ring: bytes | None, form: Form, first: int, count: int, entries: int) -> Iterator[dict[str, Any]]:
    """Entries of a ring, decoded, each with its index."""
    for place in range(first, first + count if ring is not None else first):
        yield {"index": place % entries, **_decode(form, _entry(ring or b"", size_of(form), place % entries))}


def _of_packet(reports: deque[dict[str, Any]], tag: int) -> list[dict[str, Any]]:
    """Take the completions of one packet: any number for descriptors, then its own, unless a fault keeps that."""
    found = []
    while reports and reports[0]["type"] != TxCompletionType.PACKET.name:
        found.append(reports.popleft())
    if reports and reports[0]["tag_or_head"] == tag:
        found.append(reports.popleft())
    return found
