"""The TCP payload of a received packet, where the NIC has put it: in the packet's buffers, or in a command's buffer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nicmodel.gvnic.options.ddp.declarations import PLACEMENT
from nicmodel.gvnic.testing.rx import RxPacket
from nicmodel.gvnic.testing.violation import ContractViolation
from nicmodel.testing.tcp import MASK
from nicmodel.testing.tcp_frame import TcpFrame


@dataclass(frozen=True)
class Piece:
    """Bytes of the stream as a packet brings them.

    Attributes:
        sequence: of the first.
        length: how many.
        data: the bytes; None: the NIC has placed them.
        command: where it did, `offset` in the data of this command.
        offset: see `command`.
        vouched: whether the NIC says that digests hold here.
        address: of `data` in guest memory; None: it has none of its own, or was not asked for.
    """

    sequence: int
    length: int
    data: bytes | None
    command: int = 0
    offset: int = 0
    vouched: bool = False
    address: int | None = None

    def part(self, start: int, length: int) -> Piece:
        """`length` bytes from byte `start` on."""
        if start == 0 and length == self.length:
            return self
        return Piece(
            (self.sequence + start) & MASK,
            length,
            None if self.data is None else self.data[start : start + length],
            self.command,
            self.offset + start,
            self.vouched,
            None if self.address is None else self.address + start,
        )


def unfold(packet: RxPacket, segment: TcpFrame | None = None) -> list[Piece]:
    """The TCP payload of a packet in order: bytes that it carries, and those that its records say were placed.

    Args:
        packet: the packet.
        segment: what its headers say; None: they are read here.

    Raises:
        ContractViolation: the records contradict the packet.
    """
    frame = packet.frame
    segment = segment or TcpFrame.parse(frame)
    if segment is None:
        raise ContractViolation("a packet that is not TCP has placements")
    size = packet.ddp["placements"] * PLACEMENT.itemsize
    records = np.frombuffer(frame[len(frame) - size :], PLACEMENT)
    start, length, sequence = segment.start, segment.length, segment.header.sequence
    carried = frame[start : len(frame) - size]
    if len(carried) + int(records["length"].sum()) < length:
        raise ContractViolation(f"{length} bytes of payload, but {len(carried)} in the packet and {records} placed")
    vouched = bool(packet.ddp["digest_good"])
    if not size:
        return _in_buffers(packet, Piece(sequence, length, carried[:length], vouched=vouched), start)
    pieces: list[Piece] = []
    place = used = 0
    for record in records:
        position, count = int(record["position"]), int(record["length"])
        if position < place or position + count > length:
            raise ContractViolation(f"placement {record} after byte {place} of {length}")
        gap = position - place
        pieces.append(Piece(sequence + place & MASK, gap, carried[used : used + gap], vouched=vouched))
        where = int(record["command"]), int(record["offset"])
        pieces.append(Piece(sequence + position & MASK, count, None, *where, vouched))
        used += gap
        place = position + count
    rest = length - place
    pieces.append(Piece(sequence + place & MASK, rest, carried[used : used + rest], vouched=vouched))
    return [piece for piece in pieces if piece.length]


def _in_buffers(packet: RxPacket, whole: Piece, start: int) -> list[Piece]:
    """Cut a payload, which begins at an offset of the frame, as the packet's data buffers have it."""
    skipped = start - len(packet.header)  # headers that are in the data buffers
    done = 0
    pieces = []
    for buffer in packet.buffers:
        count = min(buffer.length - skipped, whole.length - done)
        if count > 0:
            pieces.append(replace(whole.part(done, count), address=buffer.address + skipped))
            done += count
        skipped = max(skipped - buffer.length, 0)
    return pieces
