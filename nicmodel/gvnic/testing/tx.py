"""A transmit queue of format DQO-RDA, driver's side.

The driver puts descriptors in its ring and moves the doorbell. Two kinds of completion come back: a *packet completion*
returns a packet's tag, and with it its memory; a *descriptor completion*, asked for by `report_event`, returns room in
the ring (Linux drivers/net/ethernet/google/gve/gve_tx_dqo.c). Some packets are completed in two steps: a *miss*, also
told by a bit of a packet completion's tag, and later a *re-injection*, which returns what a packet completion does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.commands import ALTERNATE_MISS_BIT, Opcode
from nicmodel.gvnic.descriptors import (
    TX_COMPLETION,
    TX_GENERAL_CONTEXT,
    TX_PACKET,
    TX_TSO_CONTEXT,
    TxCompletionType,
    TxType,
)
from nicmodel.gvnic.testing.adminq import encode_command
from nicmodel.gvnic.testing.queue import RAW_ADDRESSING, Queue
from nicmodel.gvnic.testing.violation import ContractViolation
from nicmodel.testing.guest_memory import GuestMemory

#: `report_event` is set this many descriptors after the last one, at the earliest (GVE_TX_MIN_RE_INTERVAL).
REPORT_INTERVAL = 32

#: The rings' state: `head`, `tail` and the last descriptor with `report_event` of the descriptor ring, index and
#: `generation` of the completion ring.
TX_STATE = np.dtype([(name, "<i8") for name in ("head", "tail", "last_report", "completion", "generation")])


class QueueFull(Exception):
    """No room in the descriptor ring, or no tag is left."""


class Tso(NamedTuple):
    """Segmentation asked of the device: payload bytes of each segment, bytes of L2 to L4 header."""

    mss: int
    header_length: int


class TxCompletion(NamedTuple):
    """A transmit completion: its type, and the packet's tag or the ring's head."""

    type: TxCompletionType
    tag_or_head: int


class TxQueue(Queue):
    """One transmit queue with its rings.

    Args:
        number: the queue's id.
        block: the notification block that serves it.
        entries: of both rings, a power of two.
        ram: where rings and packets go, if `send` is not told otherwise.
        ring_doorbell: writes one doorbell: index, value.

    Attributes:
        state: the rings' state, `TX_STATE`.
        ring: the descriptors, shape (entries, 16), uint8.
        completion_ring: the completions, shape (entries, 8), uint8.
        pending: by tag of a packet that is not completed, the memory it lies in.
        missed: tags of those of them that wait for their re-injection.
    """

    def __init__(
        self,
        number: int,
        block: int,
        entries: int,
        *,
        ram: GuestMemory,
        ring_doorbell: Callable[[int, int], None],
    ) -> None:
        super().__init__(number, block, ram, ring_doorbell)
        self.entries = entries
        self.ring_address = self._allocate(entries * TX_PACKET.size)
        self.completion_ring_address = self._allocate(entries * TX_COMPLETION.size)
        self.ring: npt.NDArray[np.uint8] = ram.view(self.ring_address, entries * TX_PACKET.size).reshape(entries, -1)
        self.completion_ring: npt.NDArray[np.uint8] = ram.view(
            self.completion_ring_address, entries * TX_COMPLETION.size
        ).reshape(entries, -1)
        # A numpy record, whose attributes no type checker knows.
        self.state: Any = np.zeros(1, TX_STATE).view(np.recarray)[0]
        self.pending: dict[int, list[tuple[GuestMemory, int]]] = {}
        self.missed: set[int] = set()
        # So many packets that their completions and one report for each 32 descriptors cannot overflow the ring.
        self._tags = list(range((entries - entries // REPORT_INTERVAL) // 2))[::-1]

    def create_command(self) -> bytes:
        """The slot that creates it."""
        return encode_command(
            Opcode.CREATE_TX_QUEUE,
            queue_id=self.number,
            queue_resources_address=self.resources,
            ring_address=self.ring_address,
            page_list_id=RAW_ADDRESSING,
            notification_block=self.block,
            completion_ring_address=self.completion_ring_address,
            ring_entries=self.entries,
            completion_ring_entries=self.entries,
        )

    @property
    def room(self) -> int:
        """Descriptors that can be put into the ring."""
        return int(self.state.head - self.state.tail - 1) % self.entries

    def take_tag(self) -> int:
        """A completion tag for a packet; the packet's completion gives it back.

        Raises:
            QueueFull: all are in use.
        """
        if not self._tags:
            raise QueueFull(f"TX queue {self.number}: no completion tag is left")
        tag = self._tags.pop()
        self.pending[tag] = []
        return tag

    def put(self, descriptor: bytes) -> None:
        """Put one raw descriptor into the ring; the device does not see it before `kick`.

        Raises:
            QueueFull: the ring is full.
        """
        if not self.room:
            raise QueueFull(f"TX queue {self.number}: the ring is full")
        self.ring[self.state.tail] = np.frombuffer(descriptor, np.uint8)
        self.state.tail = (self.state.tail + 1) & (self.entries - 1)

    def kick(self) -> None:
        """Write the doorbell: everything up to the tail is the device's."""
        self._ring_doorbell(self.doorbell_index, int(self.state.tail))

    def send(
        self,
        frame: bytes,
        *,
        checksum: bool = False,
        tso: Tso | tuple[int, int] | None = None,
        fragments: Sequence[int] | None = None,
        report_event: bool | None = None,
        memory: GuestMemory | None = None,
        general_context: bool = True,
        kick: bool = True,
    ) -> int:
        """Send one packet.

        Args:
            frame: the packet from its Ethernet header on.
            checksum: have the device fill in the L4 checksum.
            tso: have the device cut it: MSS and header length.
            fragments: bytes of each piece of memory the packet is spread over; one piece if None. Pieces of more than
                16383 bytes take several descriptors.
            report_event: ask for a descriptor completion; None: as Linux does, 32 descriptors after the last request.
            memory: where the pieces after the first go (devmem TX); the first is in ordinary memory, or all are.
            general_context: put the context descriptor that Linux always sends and XDP never.
            kick: write the doorbell; False leaves it to the next packet or to `kick`.

        Returns:
            The packet's tag.

        Raises:
            QueueFull: wait for completions (`poll`) and try again.
            ValueError: `fragments` do not add up to the frame.
        """
        fragments = [len(frame)] if fragments is None else fragments
        if sum(fragments) != len(frame):
            raise ValueError(f"fragments of {sum(fragments)} bytes for a frame of {len(frame)}")
        largest = TX_PACKET.buffer_size.mask
        needed = sum(-(-length // largest) for length in fragments) + (tso is not None) + general_context
        if needed > self.room:
            raise QueueFull(f"TX queue {self.number}: {needed} descriptors needed, {self.room} free")
        tag = self.take_tag()
        if tso is not None:
            mss, header_length = tso
            total = len(frame) - header_length
            self.put(
                TX_TSO_CONTEXT.encode(
                    dtype=TxType.TSO_CONTEXT, tso=1, total_length=total, mss=mss, header_length=header_length
                )
            )
        if general_context:
            self.put(TX_GENERAL_CONTEXT.encode(dtype=TxType.GENERAL_CONTEXT))
        pieces: list[tuple[int, int]] = []
        start = 0
        for number, length in enumerate(fragments):
            place = self._ram if number == 0 or memory is None else memory
            address = place.allocate(length)
            place.write(address, frame[start : start + length])
            self.pending[tag].append((place, address))
            pieces += [(address + done, min(length - done, largest)) for done in range(0, length, largest)]
            start += length
        for number, (address, length) in enumerate(pieces, 1):
            last = number == len(pieces)
            self.put(
                TX_PACKET.encode(
                    dtype=TxType.PACKET,
                    buffer_address=address,
                    buffer_size=length,
                    end_of_packet=last,
                    checksum=checksum,
                    report_event=last and self._report(report_event),
                    completion_tag=tag,
                )
            )
        if kick:
            self.kick()
        return tag

    def poll(self) -> list[TxCompletion]:
        """Take all new completions; tags, memory and room in the ring come back.

        Raises:
            ContractViolation: a tag that is not pending, a head that is not ahead, or an unknown completion.
        """
        done: list[TxCompletion] = []
        state = self.state
        while True:
            raw = self.completion_ring[state.completion].tobytes()
            if TX_COMPLETION.generation.get(raw) == state.generation:
                return done
            state.completion = (state.completion + 1) & (self.entries - 1)
            if state.completion == 0:
                state.generation ^= 1
            done.append(self._complete(TX_COMPLETION.decode(raw)))

    def free(self) -> None:
        """Give rings and unsent packets back; the device must have let go of them."""
        for pieces in self.pending.values():
            for memory, address in pieces:
                memory.free(address)
        self.pending.clear()
        self.missed.clear()
        super().free()

    def _report(self, wanted: bool | None) -> bool:
        """Whether the descriptor about to be put asks for a descriptor completion."""
        state = self.state
        if wanted is None:
            wanted = (state.tail - state.last_report) % self.entries >= REPORT_INTERVAL
        if wanted:
            state.last_report = state.tail
        return bool(wanted)

    def _complete(self, completion: dict[str, int]) -> TxCompletion:
        def violation(fault: str) -> ContractViolation:
            return ContractViolation(f"TX queue {self.number}: {fault}: {completion}")

        kind, value = completion["type"], completion["tag_or_head"]
        if completion["queue_id"] != self.number:
            raise violation("completion of another queue")
        if kind == TxCompletionType.PACKET and value & ALTERNATE_MISS_BIT:
            kind, value = TxCompletionType.MISS, value & ~ALTERNATE_MISS_BIT
        if kind in (TxCompletionType.PACKET, TxCompletionType.MISS, TxCompletionType.REINJECTION):
            if value not in self.pending:
                raise violation("no packet with this tag is pending")
            if (value in self.missed) != (kind == TxCompletionType.REINJECTION):
                raise violation("a re-injection comes after a miss, and nothing else does")
        if kind == TxCompletionType.MISS:
            self.missed.add(value)
        elif kind in (TxCompletionType.PACKET, TxCompletionType.REINJECTION):
            self.missed.discard(value)
            for memory, address in self.pending.pop(value):
                memory.free(address)
            self._tags.append(value)
        elif kind == TxCompletionType.DESCRIPTOR:
            state = self.state
            if value >= self.entries or (value - state.head) % self.entries > (state.tail - state.head) % self.entries:
                raise violation("head is not between the old head and the tail")
            state.head = value
        else:
            raise violation("a completion that is neither of a packet nor of descriptors")
        return TxCompletion(TxCompletionType(kind), value)
