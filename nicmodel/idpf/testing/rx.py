"""A receive queue of the split model, driver's side: two rings of empty buffers, and a ring of completions.

A completion is new while its generation bit is the driver's, which starts at 1 and turns over at each lap; one of its
bits says which of the two rings its buffer is from (Linux drivers/net/ethernet/intel/idpf/idpf_txrx.c,
idpf_rx_splitq_clean).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from nicmodel.idpf import virtchnl as v
from nicmodel.idpf.descriptors import RX_BUFFER, RX_COMPLETION, RXDID
from nicmodel.idpf.ptypes import PTYPES
from nicmodel.idpf.testing.mailbox import one
from nicmodel.idpf.testing.violation import ContractViolation
from nicmodel.idpf.virtchnl import Protocol, QueueModel, QueueType, RxFlag
from nicmodel.testing.guest_memory import GuestMemory

#: Bytes of a header buffer (IDPF_HDR_BUF_SIZE).
HEADER_SIZE = 256
#: Rings of buffers have a multiple of 32 entries, so that of completions, whose two they are, a multiple of this
#: (IDPF_REQ_RXQ_DESC_MULTIPLE).
RING_STEP = 64


@dataclass(frozen=True)
class RxConfig:
    """How a receive queue is to be created.

    Attributes:
        entries: of the ring of completions; each of the other two has half as many.
        large: bytes of a buffer of the first ring.
        small: bytes of a buffer of the second ring; 0: there is no second one.
        header_split: whether headers go to buffers of their own.
        rsc: let the device coalesce segments.
        longest: bytes of the longest packet.

    Raises:
        ValueError: half of the entries would be no ring.
    """

    entries: int = 512
    large: int = 2048
    small: int = 1024
    header_split: bool = False
    rsc: bool = False
    longest: int = 1526

    def __post_init__(self) -> None:
        if self.entries <= 0 or self.entries % RING_STEP:
            raise ValueError(f"a receive ring has a multiple of {RING_STEP} entries, not {self.entries}")

    @property
    def flags(self) -> RxFlag:
        """As messages say it."""
        flags = RxFlag.DESCRIPTORS_32
        if self.header_split:
            flags |= RxFlag.HEADER_SPLIT
        return flags | RxFlag.RSC if self.rsc else flags


class BufferQueue:
    """A ring of empty buffers.

    Args:
        number: its identifier.
        entries: of the ring.
        size: bytes of a buffer.
        config: the receive queue's.
        ram: where ring and buffers go.
        ring_tail: writes its tail.

    Attributes:
        tail: up to where buffers are the device's.
        head: the oldest that is.
    """

    def __init__(
        self, number: int, entries: int, size: int, config: RxConfig, ram: GuestMemory, ring_tail: Callable[[int], None]
    ) -> None:
        self.number, self.entries, self.size, self.config = number, entries, size, config
        self._ram = ram
        self._ring_tail = ring_tail
        self.ring = ram.allocate_zeroed(entries * RX_BUFFER.size)
        self._headers = ram.allocate(entries * HEADER_SIZE)
        self._buffers = ram.allocate(entries * size)
        self.tail = self.head = 0

    def free(self) -> None:
        """Give all memory back; the device must have let go of it."""
        for address in (self.ring, self._headers, self._buffers):
            self._ram.free(address)

    def record(self) -> np.void:
        """What CONFIG_RX_QUEUES says of it."""
        return one(
            v.RX_QUEUE,
            desc_ids=1 << RXDID,
            ring_address=self.ring,
            type=QueueType.RX_BUFFER,
            queue_id=self.number,
            model=QueueModel.SPLIT,
            hdr_buffer_size=HEADER_SIZE if self.config.header_split else 0,
            data_buffer_size=self.size,
            ring_len=self.entries,
            buffer_notif_stride=32,
            qflags=self.config.flags,
            rx_buffer_low_watermark=64,
        )

    @property
    def visible(self) -> int:
        """Buffers that the device has."""
        return (self.tail - self.head) % self.entries

    def post(self, count: int | None = None) -> None:
        """Give the device empty buffers, all but one by default; a buffer's identifier is its place."""
        room = self.entries - 1 - self.visible
        for _ in range(room if count is None else min(count, room)):
            place = self.tail
            descriptor = RX_BUFFER.encode(
                buffer_id=place,
                buffer_address=self._buffers + place * self.size,
                header_address=self._headers + place * HEADER_SIZE if self.config.header_split else 0,
            )
            self._ram.write(self.ring + place * RX_BUFFER.size, descriptor)
            self.tail = (place + 1) % self.entries
        self._ring_tail(self.tail)

    def take(self, completion: dict[str, int]) -> tuple[bytes, bytes]:
        """The bytes in header buffer and data buffer that a completion is about.

        Raises:
            ContractViolation: it is not about the oldest buffer, or says more bytes than it holds.
        """
        place = completion["buffer_id"]
        if not self.visible or place != self.head:
            raise ContractViolation(f"buffer queue {self.number}: buffer {place}, and not {self.head}: {completion}")
        if completion["packet_length"] > self.size or completion["header_length"] > HEADER_SIZE:
            raise ContractViolation(f"buffer queue {self.number}: more bytes than buffers hold: {completion}")
        self.head = (place + 1) % self.entries
        header = self._ram.read(self._headers + place * HEADER_SIZE, completion["header_length"])
        return header, self._ram.read(self._buffers + place * self.size, completion["packet_length"])


@dataclass(frozen=True)
class RxPacket:
    """A received packet.

    Attributes:
        queue: the queue it came on.
        header: the bytes of the header buffer; empty when it was not split.
        payload: the bytes of the data buffers, joined.
        completions: its completion descriptors, decoded, in order.
    """

    queue: int
    header: bytes
    payload: bytes
    completions: tuple[dict[str, int], ...]

    @property
    def frame(self) -> bytes:
        """The whole packet from its Ethernet header on."""
        return self.header + self.payload

    @property
    def hash(self) -> int:
        """The RSS hash."""
        return self.completions[0]["hash"]

    @property
    def timestamp(self) -> int | None:
        """The lower 32 bits of what the device's clock showed when it came, ns; None: it was not stamped."""
        first = self.completions[0]
        return first["timestamp"] if first["timestamp_valid"] else None

    @property
    def protocols(self) -> list[Protocol]:
        """Its headers, by the device's packet types."""
        return PTYPES[self.completions[0]["packet_type"]]

    @property
    def checksums_good(self) -> bool:
        """Whether Linux would take its checksums for verified (idpf_rx_csum)."""
        first = self.completions[0]
        errors = ("ip_checksum_error", "l4_checksum_error", "external_ip_checksum_error", "ipv6_ex_add")
        return bool(first["l3_l4_processed"] and first["raw_checksum_invalid"]) and not any(map(first.get, errors))


class RxQueue:
    """One receive queue with its rings.

    Args:
        number: its identifier.
        config: how it is.
        ram: where rings and buffers go.
        ring_tail: writes the tail of a buffer queue: its identifier, the tail.

    Attributes:
        buffers: its buffer queues, large buffers first.
        partial: completions of a packet whose end has not come yet.
    """

    def __init__(self, number: int, config: RxConfig, ram: GuestMemory, ring_tail: Callable[[int, int], None]) -> None:
        self.number, self.config = number, config
        self._ram = ram
        self.ring = ram.allocate_zeroed(config.entries * RX_COMPLETION.size)
        self.buffers: list[BufferQueue] = []
        for size in (config.large, config.small):
            if size:
                identity = 2 * number + len(self.buffers)
                tail = partial(ring_tail, identity)
                self.buffers.append(BufferQueue(identity, config.entries // 2, size, config, ram, tail))
        self._next, self._generation = 0, 1
        self._partial: list[tuple[dict[str, int], bytes, bytes]] = []

    def free(self) -> None:
        """Give all memory back; the device must have let go of it."""
        self._ram.free(self.ring)
        for buffers in self.buffers:
            buffers.free()

    def records(self) -> list[np.void]:
        """What CONFIG_RX_QUEUES says of it and its buffer queues."""
        config = self.config
        mine = one(
            v.RX_QUEUE,
            desc_ids=1 << RXDID,
            ring_address=self.ring,
            type=QueueType.RX,
            queue_id=self.number,
            model=QueueModel.SPLIT,
            hdr_buffer_size=HEADER_SIZE if config.header_split else 0,
            data_buffer_size=config.large,
            max_pkt_size=config.longest,
            ring_len=config.entries,
            qflags=config.flags,
            rx_buffer_low_watermark=64,
            rx_bufq1_id=self.buffers[0].number,
            rx_bufq2_id=self.buffers[-1].number,
            bufq2_ena=len(self.buffers) > 1,
        )
        return [mine, *(buffers.record() for buffers in self.buffers)]

    def post(self) -> None:
        """Give the device all empty buffers."""
        for buffers in self.buffers:
            buffers.post()

    @property
    def visible(self) -> int:
        """Buffers that the device has, of the kind of which it has fewer."""
        return min(buffers.visible for buffers in self.buffers)

    @property
    def buffer_size(self) -> int:
        """Bytes of the smallest buffer."""
        return self.buffers[-1].size

    def poll(self, *, repost: bool = True) -> list[RxPacket]:
        """Take all new completions, then post the buffers again.

        Args:
            repost: False leaves the buffers out of the rings, so that the device runs dry.

        Raises:
            ContractViolation: a completion that a driver cannot make sense of.
        """
        packets = []
        while True:
            raw = self._ram.read(self.ring + self._next * RX_COMPLETION.size, RX_COMPLETION.size)
            completion = RX_COMPLETION.decode(raw)
            if completion["generation"] != self._generation:
                break
            if completion["rxdid"] != RXDID or not completion["descriptor_done"]:
                raise ContractViolation(f"RX queue {self.number}: not a completion that drivers know: {completion}")
            if completion["buffer_queue"] >= len(self.buffers):
                raise ContractViolation(f"RX queue {self.number}: there is one buffer queue: {completion}")
            header, data = self.buffers[completion["buffer_queue"]].take(completion)
            self._next += 1
            if self._next == self.config.entries:
                self._next = 0
                self._generation ^= 1
            self._partial.append((completion, header, data))
            if completion["end_of_packet"]:
                pieces, self._partial = self._partial, []
                if any(len(header) + len(data) for _, header, data in pieces):  # else the buffers just come back
                    packets.append(RxPacket(
                        self.number,
                        pieces[0][1],
                        b"".join(data for _, _, data in pieces),
                        tuple(completion for completion, _, _ in pieces),
                    ))  # fmt: skip
        if repost:
            self.post()
        return packets

    def discard(self) -> None:
        """Take and forget what has come, and post the buffers again."""
        self.poll()
