"""A transmit queue of the split model, driver's side: descriptors in one ring, completions in another.

In flow scheduling mode a completion of a packet returns its tag, and with it its memory; one of descriptors, which a
descriptor asks for, returns room in the ring. In queue scheduling mode, which Linux has XDP's queues in, a completion
says how far the ring is done (Linux drivers/net/ethernet/intel/idpf/idpf_txrx.c, xdp.c).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.descriptors import (
    QUEUE_COMPLETION_SIZE,
    TX_COMPLETION,
    TX_CONTEXT,
    TX_FLOW_DATA,
    TX_QUEUE_DATA,
    TX_TSO_CONTEXT,
    TxCompletionType,
    TxType,
)
from nicmodel.idpf.testing.mailbox import one
from nicmodel.idpf.testing.violation import ContractViolation
from nicmodel.idpf.virtchnl import QueueModel, QueueType, Scheduling
from nicmodel.testing.guest_memory import GuestMemory

#: A report of descriptors is asked for this many after the last one, at the earliest (IDPF_TX_SPLITQ_RE_MIN_GAP).
REPORT_INTERVAL = 64


class QueueFull(Exception):
    """No room in the descriptor ring."""


class Tso(NamedTuple):
    """Segmentation asked of the device: payload bytes of each segment, bytes of L2 to L4 header."""

    mss: int
    header_length: int


class TxCompletion(NamedTuple):
    """A transmit completion: its type, and the packet's tag, or the ring's place behind what is done."""

    type: TxCompletionType
    value: int


class TxQueue:
    """One transmit queue with its completion queue.

    Args:
        number: identifier of both.
        entries: of both rings.
        scheduling: by packet, or by the ring.
        ram: where rings and packets go.
        ring_tail: writes its tail.

    Attributes:
        head: the oldest descriptor that is the device's, as far as it has reported.
        tail: up to where descriptors are put.
        pending: by tag of a packet that is not completed, the memory it lies in.
    """

    def __init__(
        self, number: int, entries: int, scheduling: Scheduling, ram: GuestMemory, ring_tail: Callable[[int], None]
    ) -> None:
        self.number, self.entries, self.scheduling = number, entries, scheduling
        self._ram = ram
        self._ring_tail = ring_tail
        self._size = TX_COMPLETION.size if scheduling is Scheduling.FLOW else QUEUE_COMPLETION_SIZE
        self.ring = ram.allocate_zeroed(entries * TX_FLOW_DATA.size)
        self.completion_ring = ram.allocate_zeroed(entries * self._size)
        self.head = self.tail = 0
        self._next, self._generation = 0, 1
        self._last_report = -REPORT_INTERVAL
        self._put = 0
        self._tag = -1
        self.pending: dict[int, int] = {}

    def free(self) -> None:
        """Give all memory back; the device must have let go of it."""
        for address in (self.ring, self.completion_ring, *self.pending.values()):
            self._ram.free(address)

    def records(self) -> list[np.void]:
        """What CONFIG_TX_QUEUES says of it and its completion queue."""
        common = {
            "queue_id": self.number,
            "model": QueueModel.SPLIT,
            "sched_mode": self.scheduling,
            "ring_len": self.entries,
        }
        mine = one(
            v.TX_QUEUE, type=QueueType.TX, ring_address=self.ring, tx_compl_queue_id=self.number, **common
        )  # fmt: skip
        its = one(v.TX_QUEUE, type=QueueType.TX_COMPLETION, ring_address=self.completion_ring, **common)
        return [mine, its]

    @property
    def room(self) -> int:
        """Descriptors that can be put into the ring."""
        return (self.head - self.tail - 1) % self.entries

    def put(self, descriptor: bytes) -> None:
        """Put one raw descriptor into the ring; the device does not see it before `kick`.

        Raises:
            QueueFull: the ring is full.
        """
        if not self.room:
            raise QueueFull(f"TX queue {self.number}: the ring is full")
        self._ram.write(self.ring + self.tail * TX_FLOW_DATA.size, descriptor)
        self.tail = (self.tail + 1) % self.entries
        self._put += 1

    def kick(self) -> None:
        """Write the tail: everything up to it is the device's."""
        self._ring_tail(self.tail)

    def send(
        self,
        frame: bytes,
        *,
        checksum: bool = False,
        tso: Tso | tuple[int, int] | None = None,
        fragments: Sequence[int] = (),
        latch: int | None = None,
        kick: bool = True,
    ) -> int:
        """Send one packet.

        Args:
            frame: the packet from its Ethernet header on.
            checksum: have the device fill in the L4 checksum.
            tso: have the device cut it: MSS and header length.
            fragments: bytes of each descriptor but the last, which has the rest.
            latch: where the device is to put its timestamp; None: nowhere.
            kick: let the device see it now.

        Returns:
            Its tag; in queue scheduling mode the ring's place behind it.

        Raises:
            QueueFull: the ring is full.
        """
        self._tag = (self._tag + 1) % 0xFFFF
        address = self._ram.allocate(len(frame))
        self._ram.write(address, frame)
        if tso is not None:
            mss, header = tso
            self.put(TX_TSO_CONTEXT.encode(
                total_length=len(frame) - header, mss=mss, header_length=header, dtype=TxType.TSO_CONTEXT, tso=1
            ))  # fmt: skip
        if latch is not None:
            self.put(TX_CONTEXT.encode(dtype=TxType.CONTEXT, timestamp=1, latch=latch))
        tag = self._tag if self.scheduling is Scheduling.FLOW else (self.tail + 1) % self.entries
        pieces = [*fragments, len(frame) - sum(fragments)]
        for number, size in enumerate(pieces):
            self.put(self._data(address, size, tag, checksum, last=number == len(pieces) - 1))
            address += size
        if self.scheduling is Scheduling.QUEUE:
            tag = self.tail
        self.pending[tag] = address - len(frame)
        if kick:
            self.kick()
        return tag

    def _data(self, address: int, size: int, tag: int, checksum: bool, *, last: bool) -> bytes:
        if self.scheduling is Scheduling.QUEUE:
            return TX_QUEUE_DATA.encode(
                buffer_address=address, dtype=TxType.QUEUE_DATA, end_of_packet=last, report_status=last,
                checksum=checksum, buffer_size=size,
            )  # fmt: skip
        report = last and self._put - self._last_report >= REPORT_INTERVAL
        if report:
            self._last_report = self._put
        return TX_FLOW_DATA.encode(
            buffer_address=address, dtype=TxType.FLOW_DATA, end_of_packet=last, checksum=checksum,
            report_event=report, completion_tag=tag, buffer_size=size,
        )  # fmt: skip

    def poll(self) -> list[TxCompletion]:
        """Take all new completions.

        Raises:
            ContractViolation: a completion that a driver cannot make sense of.
        """
        found = []
        while (completion := self._take()) is not None:
            found.append(completion)
            if completion.type is TxCompletionType.DESCRIPTOR or self.scheduling is Scheduling.QUEUE:
                self.head = completion.value
        return found

    def _take(self) -> TxCompletion | None:
        raw = self._ram.read(self.completion_ring + self._next * self._size, self._size)
        fields = TX_COMPLETION.decode(raw)
        if fields["generation"] != self._generation:
            return None
        self._next += 1
        if self._next == self.entries:
            self._next = 0
            self._generation ^= 1
        if fields["queue_id"] != 0:  # the first of its group, whatever its identifier
            raise ContractViolation(f"TX queue {self.number}: a completion of another queue: {fields}")
        kind = TxCompletionType(fields["type"])
        if kind is TxCompletionType.PACKET:
            if fields["value"] not in self.pending:
                raise ContractViolation(f"TX queue {self.number}: no packet {fields['value']} is pending: {fields}")
            self._ram.free(self.pending.pop(fields["value"]))
        elif kind not in (TxCompletionType.DESCRIPTOR, TxCompletionType.MARKER):
            raise ContractViolation(f"TX queue {self.number}: {fields}")
        return TxCompletion(kind, fields["value"])

    def await_marker(self) -> None:
        """The queue was disabled: the last completion is the marker.

        Raises:
            ContractViolation: it is not.
        """
        last = self.poll()[-1:]
        if [completion.type for completion in last] != [TxCompletionType.MARKER]:
            raise ContractViolation(f"TX queue {self.number}: no marker, but {last}")
