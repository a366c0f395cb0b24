"""A receive queue of format DQO-RDA, driver's side.

Two rings. The driver puts empty buffers in the *buffer queue* and moves its doorbell; the device writes one completion
to the *completion queue* for each buffer it has used. A completion is new while its generation bit differs from the
driver's, which starts at 0 and turns over at each lap (Linux drivers/net/ethernet/google/gve/gve_rx_dqo.c).

What the two rings' state consists of lies in numpy, for compiled loops to work on in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nicmodel.gvnic.commands import L3Type, L4Type, Opcode
from nicmodel.gvnic.descriptors import RX_BUFFER, RX_COMPLETION, RXDID
from nicmodel.gvnic.options.ddp.declarations import RX_DDP
from nicmodel.gvnic.options.deferred.declarations import RX_DEFERRED
from nicmodel.gvnic.options.flush.declarations import RX_FLUSHED
from nicmodel.gvnic.testing.adminq import encode_command
from nicmodel.gvnic.testing.placement import PlacementRing
from nicmodel.gvnic.testing.queue import RAW_ADDRESSING, Queue
from nicmodel.gvnic.testing.violation import ContractViolation
from nicmodel.packet.headers import L3, L4
from nicmodel.testing.guest_memory import GuestMemory

_L3 = {int(theirs): L3[theirs.name] for theirs in L3Type}
_L4 = {int(theirs): L4[theirs.name] for theirs in L4Type}

#: The buffer queue's doorbell is written when the tail reaches a multiple of this (GVE_RX_BUF_THRESH_DQO).
DOORBELL_STEP = 32

#: The rings' state: `tail` and `head` of the buffer queue, its last `doorbell`, how many buffers are `free`, and index
#: and `generation` of the completion queue.
RX_STATE = np.dtype([(name, "<i8") for name in ("tail", "head", "doorbell", "free", "completion", "generation")])


@dataclass(frozen=True)
class RxConfig:
    """How a receive queue is to be created.

    Attributes:
        entries: of each of its two rings, a power of two.
        buffer_size: bytes of a data buffer.
        header_size: bytes of a header buffer; 0 turns header split off.
        rsc: let the device coalesce segments.
    """

    entries: int = 256
    buffer_size: int = 2048
    header_size: int = 0
    rsc: bool = False


@dataclass(frozen=True)
class RxBuffer:
    """A data buffer that a packet came in: its id, its guest address, the bytes used, the name of its memory."""

    id: int
    address: int
    length: int
    memory: str


class _Piece(NamedTuple):
    """What one completion brings."""

    completion: dict[str, int]
    ddp: dict[str, int]
    buffer: RxBuffer
    header: bytes
    payload: bytes


@dataclass(frozen=True)
class Deferred:
    """A payload that has stayed on the NIC: its handle for placement requests, its length in bytes."""

    handle: int
    length: int


@dataclass(frozen=True)
class RxPacket:
    """A received packet.

    Attributes:
        queue: the queue it came on.
        header: the bytes of the header buffer; empty when it was not split.
        payload: the bytes of the data buffers, joined.
        completions: its completion descriptors, decoded, in order.
        buffers: its data buffers, in order.
        l3: layer 3 protocol by the device's packet-type map.
        l4: layer 4 protocol, likewise.
        ddp: what its last completion says of direct data placement (`RX_DDP`).
    """

    queue: int
    header: bytes
    payload: bytes
    completions: tuple[dict[str, int], ...]
    buffers: tuple[RxBuffer, ...]
    l3: L3
    l4: L4
    ddp: dict[str, int] = field(default_factory=dict)

    @property
    def frame(self) -> bytes:
        """The whole packet from its Ethernet header on."""
        return self.header + self.payload

    @property
    def split(self) -> bool:
        """Whether the device used the header buffer."""
        return bool(self.completions[0]["split_header"])

    @property
    def deferred(self) -> Deferred | None:
        """What has stayed on the NIC; None if nothing has, and on queues without deferred placement."""
        first = self.completions[0]
        return Deferred(first["handle"], first["payload_length"]) if first.get("deferred") else None

    @property
    def hash(self) -> int:
        """The RSS hash."""
        return self.completions[-1]["hash"]

    @property
    def rsc(self) -> bool:
        """Whether the device has aggregated it."""
        return bool(self.completions[-1]["rsc"])

    @property
    def rsc_segment_length(self) -> int:
        """Payload bytes of each aggregated segment."""
        return self.completions[-1]["rsc_segment_length"]

    @property
    def timestamp(self) -> int | None:
        """Low 32 bits of the NIC's clock in ns; None without a timestamp."""
        last = self.completions[-1]
        return last["timestamp"] if last["timestamp_valid"] else None

    @property
    def checksum_unnecessary(self) -> bool:
        """Whether Linux would take the checksums for verified (gve_rx_skb_csum)."""
        last = self.completions[-1]
        if not last["l3_l4_processed"] or last["l4_checksum_error"]:
            return False
        if self.l3 == L3.IPV4 and (last["ip_checksum_error"] or last["external_ip_checksum_error"]):
            return False
        if self.l3 == L3.IPV6 and last["ipv6_ex_add"]:
            return False
        return self.l4 in (L4.TCP, L4.UDP, L4.ICMP, L4.SCTP)


class RxQueue(Queue):
    """One receive queue with its rings and buffers.

    Args:
        number: the queue's id.
        block: the notification block that serves it.
        config: ring and buffer sizes.
        ram: where rings and header buffers go.
        payload_memory: where data buffers go.
        ptypes: the device's packet-type map, shape (1024,), `PTYPE`.
        ring_doorbell: writes one doorbell: index, value.

    Attributes:
        state: the rings' state, `RX_STATE`.
        descriptors: the buffer descriptor of each buffer id, as words: shape (entries, 4), uint64.
        buffer_ring: the buffer queue as words, shape (entries, 4), uint64.
        completion_ring: the completion queue, shape (entries, 32), uint8.
        errors: completions with `rx_error`, which end the packet they belong to.
        flushed: those of them that a flush of the queue has brought about.
        placement: the queue's placement ring, if it has deferred placement (`Driver.defer_placement`).
    """

    #: Whether a buffer can be posted again as soon as the packet in it was read.
    _reclaims = True

    def __init__(
        self,
        number: int,
        block: int,
        config: RxConfig,
        *,
        ram: GuestMemory,
        payload_memory: GuestMemory,
        ptypes: npt.NDArray[np.void],
        ring_doorbell: Callable[[int, int], None],
    ) -> None:
        super().__init__(number, block, ram, ring_doorbell)
        entries = config.entries
        self.config = config
        self.payload_memory = payload_memory
        self._ptypes = ptypes
        self.errors = self.flushed = 0
        self.placement: PlacementRing | None = None
        self._partial: list[_Piece] = []

        self.buffer_ring_address = self._allocate(entries * RX_BUFFER.size)
        self.completion_ring_address = self._allocate(entries * RX_COMPLETION.size)
        self.headers = self._allocate(entries * config.header_size)
        self.payloads = self._allocate(entries * config.buffer_size, payload_memory)
        self.buffer_ring: npt.NDArray[np.uint64] = (
            ram.view(self.buffer_ring_address, entries * RX_BUFFER.size).view("<u8").reshape(entries, -1)
        )
        self.completion_ring: npt.NDArray[np.uint8] = ram.view(
            self.completion_ring_address, entries * RX_COMPLETION.size
        ).reshape(entries, -1)

        # A numpy record, whose attributes no type checker knows.
        self.state: Any = np.zeros(1, RX_STATE).view(np.recarray)[0]
        self.state.free = entries
        self._free = np.arange(entries, dtype=np.uint16)[::-1].copy()  # a stack, as the kernel's free list
        ids = np.arange(entries, dtype=np.uint64)
        self.descriptors: npt.NDArray[np.uint64] = np.zeros((entries, RX_BUFFER.size // 8), np.uint64)
        self.descriptors[:, RX_BUFFER.buffer_id.word] = ids
        if config.header_size:
            headers = np.uint64(self.headers) + ids * np.uint64(config.header_size)
            self.descriptors[:, RX_BUFFER.header_address.word] = headers
        self._name_buffers()

    def free(self) -> None:
        """Give all memory back; the device must have let go of it."""
        super().free()
        if self.placement is not None:
            self.placement.free()

    def create_command(self) -> bytes:
        """The slot that creates it."""
        return encode_command(
            Opcode.CREATE_RX_QUEUE,
            queue_id=self.number,
            notification_block=self.block,
            queue_resources_address=self.resources,
            completion_ring_address=self.completion_ring_address,
            buffer_ring_address=self.buffer_ring_address,
            page_list_id=RAW_ADDRESSING,
            completion_ring_entries=self.config.entries,
            packet_buffer_size=self.config.buffer_size,
            buffer_ring_entries=self.config.entries,
            enable_rsc=self.config.rsc,
            header_buffer_size=self.config.header_size,
        )

    def _name_buffers(self) -> None:
        ids = np.arange(self.config.entries, dtype=np.uint64)
        addresses = np.uint64(self.payloads) + ids * np.uint64(self.config.buffer_size)
        self.descriptors[:, RX_BUFFER.buffer_address.word] = addresses

    def exchange(self, payload_memory: GuestMemory) -> None:
        """Take data buffers of another memory for those that there were; no buffer may be the device's.

        Raises:
            BufferError: some are the device's, by its doorbell.
        """
        if self.visible:
            raise BufferError(f"RX queue {self.number}: the device has {self.visible} buffers")
        state, entries = self.state, self.config.entries
        hidden = (state.head + np.arange((state.tail - state.head) % entries)) % entries  # posted after the doorbell
        self._free[state.free : state.free + len(hidden)] = RX_BUFFER.buffer_id.of(self.buffer_ring[hidden])
        state.free += len(hidden)
        state.tail = state.head
        old = (self.payload_memory, self.payloads)
        self.payload_memory, self.payloads = (
            payload_memory,
            self._allocate(entries * self.config.buffer_size, payload_memory),
        )
        self._memory.remove(old)
        old[0].free(old[1])
        self._name_buffers()

    @property
    def buffer_size(self) -> int:
        """Bytes of a data buffer."""
        return self.config.buffer_size

    @property
    def visible(self) -> int:
        """Buffers that the device may use."""
        return int(self.state.doorbell - self.state.head) % self.config.entries

    def post(self, count: int | None = None) -> int:
        """Put free buffers into the buffer queue, at most `count`, one entry always left free.

        The doorbell is written when the tail has come to or past a multiple of 32, with that; up to 31 buffers stay
        invisible to the device.

        Returns:
            How many were put.
        """
        state, mask = self.state, self.config.entries - 1
        room = int(min((state.head - state.tail - 1) & mask, state.free))
        count = room if count is None else min(count, room)
        tail, free = int(state.tail), int(state.free)
        places = np.arange(tail, tail + count) & mask
        self.buffer_ring[places] = self.descriptors[self._free[free - count : free][::-1]]
        state.free = free - count
        state.tail = (tail + count) & mask
        reached = (tail + count) // DOORBELL_STEP * DOORBELL_STEP
        if reached > tail:
            self.ring(reached & mask)
        return count

    def ring(self, tail: int) -> None:
        """Tell the device how far the buffer queue is filled: index of the first entry that is not."""
        self.state.doorbell = tail
        self._ring_doorbell(self.doorbell_index, tail)

    def poll(self, *, repost: bool = True) -> list[RxPacket]:
        """Take all new completions, then post the buffers again.

        A packet whose last completion is not there yet is kept for the next call.

        Args:
            repost: False leaves the buffers out of the ring, so that the device runs dry.

        Raises:
            ContractViolation: a completion that a driver cannot make sense of.
        """
        packets = []
        state, mask = self.state, self.config.entries - 1
        while True:
            raw = self.completion_ring[state.completion].tobytes()
            if RX_COMPLETION.generation.get(raw) == state.generation:
                break
            completion = RX_COMPLETION.decode(raw)
            if self.placement is not None:
                completion |= RX_DEFERRED.decode(raw)
            state.completion = (state.completion + 1) & mask
            if state.completion == 0:
                state.generation ^= 1
            descriptor = self._take(completion)
            if completion["rx_error"] or self._reclaims:
                self._reclaim(completion["buffer_id"])
            if completion["rx_error"]:
                self._partial.clear()
                self.errors += 1
                self.flushed += RX_FLUSHED.flushed.get(raw)
                continue
            self._partial.append(self._read(completion, RX_DDP.decode(raw), descriptor))
            if completion["end_of_packet"]:
                packets.append(self._packet())
        if repost:
            self.post()
        return packets

    def discard(self, *, repost: bool = True) -> int:
        """Take all new completions without reading packets, and post the buffers again: a driver in no time.

        Args:
            repost: False leaves the buffers out of the ring.

        Returns:
            How many completions.

        Raises:
            ContractViolation: other buffers are completed than the next of the ring, in whatever order.
        """
        state, entries = self.state, self.config.entries
        words = self.completion_ring.view("<u8")
        first, head = int(state.completion), int(state.head)
        order = (first + np.arange(entries)) & (entries - 1)
        bits = RX_COMPLETION.generation
        written = words[order, bits.word] >> np.uint64(bits.shift) & np.uint64(1)
        new = written != (state.generation ^ (order < first))
        count = entries if new.all() else int(new.argmin())
        done = order[:count]
        used = (head + np.arange(count)) & (entries - 1)
        identities = RX_COMPLETION.buffer_id.of(words[done])
        posted = RX_BUFFER.buffer_id.of(self.buffer_ring[used])
        if count > self.visible or (np.sort(identities) != np.sort(posted)).any():
            raise ContractViolation(f"RX queue {self.number}: other buffers are completed than the next of the ring")
        self._free[state.free : state.free + count] = identities
        state.free += count
        state.head = (head + count) & (entries - 1)
        state.generation ^= (first + count) // entries
        state.completion = (first + count) & (entries - 1)
        self._partial.clear()
        if repost:
            self.post()
        return count

    def _take(self, completion: dict[str, int]) -> bytes:
        """Match a completion with a buffer that the device has; its descriptor."""
        state, config = self.state, self.config

        def check(holds: bool, fault: str) -> None:
            if not holds:
                raise ContractViolation(f"RX queue {self.number}: {fault}: {completion}")

        check(self.visible > 0, "completion without a buffer")
        length = completion["packet_length"]
        descriptor = self._match(completion["buffer_id"])
        check(descriptor is not None, "a buffer that is not the next, or not the device's")
        check(completion["rxdid"] == RXDID and completion["descriptor_done"] == 1, "completion not marked as done")
        check(length <= config.buffer_size, "more bytes than the buffer holds")
        check(completion["header_length"] <= config.header_size, "more bytes than the header buffer holds")
        check(not (self._partial and completion["split_header"]), "header split in the middle of a packet")
        check(not (completion["split_header"] and completion["header_buffer_overflow"]), "split, and overflowed")
        state.head = (state.head + 1) & (config.entries - 1)
        assert descriptor is not None
        return descriptor

    def _match(self, identity: int) -> bytes | None:
        """The descriptor of the buffer that a completion names; None: the device does not have it.

        Most often it is the oldest; a device may use them in another order.
        """
        descriptor: bytes = self.buffer_ring[self.state.head].tobytes()
        if identity == RX_BUFFER.buffer_id.get(descriptor):
            return descriptor
        if identity >= self.config.entries or identity in self._free[: int(self.state.free)]:
            return None
        found: bytes = self.descriptors[identity].tobytes()
        return found

    def _reclaim(self, identity: int) -> None:
        """A buffer can be posted again."""
        self._free[self.state.free] = identity
        self.state.free += 1

    def _memory_of(self, identity: int) -> GuestMemory:
        """The memory that a data buffer is in."""
        return self.payload_memory

    def _read(self, completion: dict[str, int], ddp: dict[str, int], descriptor: bytes) -> _Piece:
        """What one completion brings."""
        address, length = RX_BUFFER.buffer_address.get(descriptor), completion["packet_length"]
        header = b""
        if completion["split_header"]:
            header = self._ram.read(RX_BUFFER.header_address.get(descriptor), completion["header_length"])
        memory = self._memory_of(completion["buffer_id"])
        return _Piece(
            completion,
            ddp,
            RxBuffer(completion["buffer_id"], address, length, memory.name),
            header,
            memory.read(address, length),
        )

    def _packet(self) -> RxPacket:
        pieces, self._partial = self._partial, []
        ptype = self._ptypes[pieces[-1].completion["packet_type"]]
        return RxPacket(
            queue=self.number,
            header=pieces[0].header,
            payload=b"".join(piece.payload for piece in pieces),
            completions=tuple(piece.completion for piece in pieces),
            buffers=tuple(piece.buffer for piece in pieces),
            l3=_L3[ptype["l3"]],
            l4=_L4[ptype["l4"]],
            ddp=pieces[-1].ddp,
        )
