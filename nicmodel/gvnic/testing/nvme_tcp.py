"""The reading host of an NVMe/TCP connection whose data a NIC places directly (`nicmodel.gvnic.options.ddp`).

    reader = Reader(driver, 0, source="192.0.2.1", destination="192.0.2.2", source_port=4420, destination_port=40000)
    reader.read(command=7, length=4096)
    nic.inject(frames)
    for packet in driver.poll_all():
        reader.take(packet)
    assert reader.done[7].data == ...

It does what Linux' TCP and nvme-tcp do together: puts segments in order, walks the PDUs, copies what the NIC has not
placed, checks the digests for which the NIC does not vouch, answers requests for resynchronisation, and tears a buffer
down when its command is completed. `data_pdu` and `response` are what a controller sends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import numpy as np

from nicmodel.gvnic.commands import Inner
from nicmodel.gvnic.options.ddp.declarations import CONFIGURE_DDP, DDP_PIECE, PLACEMENT, DdpDigest, DdpOperation
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.rx import RxPacket
from nicmodel.gvnic.testing.violation import ContractViolation
from nicmodel.jit.compiled import u64
from nicmodel.packet.crc32c import crc32c
from nicmodel.packet.nvme_tcp import COMMON_HEADER_SIZE, DATA_HEADER, DIGEST_SIZE, HEADER_SIZE, PduFlag, PduType

_SEQUENCES = 0xFFFF_FFFF
#: Offset of the command identifier in a response: in its completion queue entry, which follows the common header.
_RESPONSE_COMMAND = COMMON_HEADER_SIZE + 12


def digest(data: bytes) -> int:
    """CRC32C of `data`."""
    array = np.frombuffer(data, np.uint8)
    return int(crc32c(0, u64(array.ctypes.data), len(array)))


def data_pdu(
    command: int, data: bytes, *, offset: int = 0, flags: PduFlag = PduFlag.LAST, digests: int = 0, padding: int = 0
) -> bytes:
    """A C2HData PDU with `digests` (`DdpDigest`) and bytes of `padding` before its data."""
    header = np.zeros((), DATA_HEADER)
    start = HEADER_SIZE + DIGEST_SIZE * bool(digests & DdpDigest.HEADER) + padding
    header["type"] = PduType.DATA
    header["flags"] = flags | digests
    header["header_length"] = HEADER_SIZE
    header["data_offset_in_pdu"] = start
    header["length"] = start + len(data) + DIGEST_SIZE * bool(digests & DdpDigest.DATA)
    header["command"], header["offset"], header["data_length"] = command, offset, len(data)
    after = _digest(data) if digests & DdpDigest.DATA else b""
    return _with_digest(header.tobytes(), digests) + bytes(padding) + data + after


def response(command: int, *, digests: int = 0) -> bytes:
    """A capsule response that completes a command with success."""
    flags = PduFlag.HEADER_DIGEST if digests & DdpDigest.HEADER else PduFlag(0)
    length = HEADER_SIZE + DIGEST_SIZE * bool(flags)
    header = struct.pack("<BBBBI", PduType.CAPSULE_RESPONSE, flags, HEADER_SIZE, 0, length)
    return _with_digest(header + struct.pack("<QHHHH", 0, 0, 0, command, 0), digests)


def _digest(data: bytes) -> bytes:
    return digest(data).to_bytes(DIGEST_SIZE, "little")


def _with_digest(header: bytes, digests: int) -> bytes:
    return header + (_digest(header) if digests & DdpDigest.HEADER else b"")


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
    """

    sequence: int
    length: int
    data: bytes | None
    command: int = 0
    offset: int = 0
    vouched: bool = False

    def part(self, start: int, length: int) -> Piece:
        """`length` bytes from byte `start` on."""
        return Piece(
            (self.sequence + start) & _SEQUENCES,
            length,
            None if self.data is None else self.data[start : start + length],
            self.command,
            self.offset + start,
            self.vouched,
        )


def unfold(packet: RxPacket) -> list[Piece]:
    """The TCP payload of a packet in order: bytes that it carries, and those that its records say were placed.

    Raises:
        ContractViolation: the records contradict the packet.
    """
    frame = packet.frame
    size = packet.ddp["placements"] * PLACEMENT.itemsize
    records = np.frombuffer(frame[len(frame) - size :], PLACEMENT)
    start, length, sequence = _payload(frame)
    carried = frame[start : len(frame) - size]
    if len(carried) + int(records["length"].sum()) < length:
        raise ContractViolation(f"{length} bytes of payload, but {len(carried)} in the packet and {records} placed")
    vouched = bool(packet.ddp["digest_good"])
    pieces: list[Piece] = []
    place = used = 0
    for record in records:
        position, count = int(record["position"]), int(record["length"])
        if position < place or position + count > length:
            raise ContractViolation(f"placement {record} after byte {place} of {length}")
        gap = position - place
        pieces.append(Piece(sequence + place & _SEQUENCES, gap, carried[used : used + gap], vouched=vouched))
        where = int(record["command"]), int(record["offset"])
        pieces.append(Piece(sequence + position & _SEQUENCES, count, None, *where, vouched))
        used += gap
        place = position + count
    rest = length - place
    pieces.append(Piece(sequence + place & _SEQUENCES, rest, carried[used : used + rest], vouched=vouched))
    return [piece for piece in pieces if piece.length]


def _payload(frame: bytes) -> tuple[int, int, int]:
    """Start and length of a TCP frame's payload on the wire, and its sequence number."""
    place = 14
    kind = int.from_bytes(frame[12:14], "big")
    while kind in (0x8100, 0x88A8):
        kind = int.from_bytes(frame[place + 2 : place + 4], "big")
        place += 4
    if kind == 0x0800:
        end = place + int.from_bytes(frame[place + 2 : place + 4], "big")
        place += (frame[place] & 15) * 4
    else:
        place += 40
        end = place + int.from_bytes(frame[place - 36 : place - 34], "big")
    start = place + (frame[place + 12] >> 4) * 4
    return start, end - start, int.from_bytes(frame[place + 4 : place + 8], "big")


@dataclass
class Read:
    """A read that is under way or completed.

    Attributes:
        length: bytes.
        pieces: guest address and length of the pieces of its buffer, in order.
        placed: whether the NIC knows of it.
        data: what was in the buffer when it was completed.
    """

    length: int
    pieces: list[tuple[int, int]]
    placed: bool
    data: bytes = b""


class Reader:
    """One connection.

    Args:
        driver: of the NIC, after its probe.
        flow: number of the flow at the device.
        source: the controller's address, and `destination` the host's.
        source_port: the controller's port, and `destination_port` the host's.
        sequence: of the first byte of the next PDU.
        digests: in use, `DdpDigest`.

    Attributes:
        reads: those under way, by command identifier.
        done: those completed.
        placed: bytes of data that the NIC had put in place.
        copied: bytes of data that were copied here.
        vouched: PDUs whose data digest the NIC has checked, and `checked` those whose digest was checked here.
        wrong: commands of the PDUs whose data digest did not hold.
        asked: requests for resynchronisation that came, and `refused` answers that the device had no use for.
        next: sequence number up to which the stream is complete.
    """

    def __init__(
        self,
        driver: Driver,
        flow: int = 0,
        *,
        source: str,
        destination: str,
        source_port: int,
        destination_port: int,
        sequence: int = 0,
        digests: int = 0,
    ) -> None:
        self._driver = driver
        self._flow = flow
        self.digests = digests
        self.reads: dict[int, Read] = {}
        self.done: dict[int, Read] = {}
        self.placed = self.copied = self.vouched = self.checked = self.asked = self.refused = 0
        self.wrong: list[int] = []
        self.next = sequence
        self._waiting: list[Piece] = []
        self._request: int | None = None
        self._begin_pdu()
        addresses = [ip_address(address).packed for address in (source, destination)]
        operation = DdpOperation.ADD_FLOW4 if len(addresses[0]) == 4 else DdpOperation.ADD_FLOW6
        self._configure(
            operation,
            digests=digests,
            sequence=sequence,
            source=addresses[0].ljust(16, b"\0"),
            destination=addresses[1].ljust(16, b"\0"),
            source_port=source_port,
            destination_port=destination_port,
        )

    def close(self) -> None:
        """The connection has ended."""
        self._configure(DdpOperation.DELETE_FLOW)

    def read(
        self, command: int, length: int, *, pieces: Sequence[tuple[int, int]] | None = None, placed: bool = True
    ) -> Read:
        """Prepare for the data of a read.

        Args:
            command: its identifier.
            length: bytes.
            pieces: guest addresses and lengths of its buffer; None: one piece of ordinary memory.
            placed: whether to tell the NIC; otherwise all is copied.

        Raises:
            AdminError: the device refused.
        """
        ram = self._driver.ram
        read = Read(length, [(ram.allocate_zeroed(length), length)] if pieces is None else list(pieces), placed)
        if placed:
            entries = np.array(read.pieces, DDP_PIECE)
            place = ram.allocate(entries.nbytes)
            try:
                ram.write(place, entries.tobytes())
                self._configure(DdpOperation.SET_UP, command=command, count=len(entries), address=place)
            finally:
                ram.free(place)
        self.reads[command] = read
        return read

    def tear_down(self, command: int) -> None:
        """Take a buffer from the device; what comes of its data is copied from now on."""
        self._configure(DdpOperation.TEAR_DOWN, command=command)
        self.reads[command].placed = False

    def take(self, packet: RxPacket) -> None:
        """A packet of the connection has come."""
        if packet.ddp["resync"]:
            self.asked += 1
            self._request = packet.ddp["resync_sequence"]
        self._waiting += unfold(packet)
        while (piece := self._next_piece()) is not None:
            self.next = (self.next + piece.length) & _SEQUENCES
            while piece.length:
                count = min(piece.length, self._left)
                self._take(piece.part(0, count))
                piece = piece.part(count, piece.length - count)
        if self._part == "header" and not self._header:
            self._answer(self.next)

    def _next_piece(self) -> Piece | None:
        """The piece that continues the stream, without what is old in it."""
        kept = []
        found = None
        for piece in self._waiting:
            old = (self.next - piece.sequence) & _SEQUENCES
            continues = old < piece.length
            if continues and found is None:
                found = piece.part(old, piece.length - old)
            elif continues or old >= 1 << 31:
                kept.append(piece)
        self._waiting = kept
        return found

    def _begin_pdu(self) -> None:
        self._part = "header"
        self._header = b""
        self._left = COMMON_HEADER_SIZE
        self._vouched = True

    def _take(self, piece: Piece) -> None:
        """Bytes of one part of a PDU."""
        if self._part == "header" and not self._header:
            self._answer(piece.sequence)
        self._left -= piece.length
        if self._part == "data":
            self._vouched &= piece.vouched
            self._take_data(piece)
            if not self._left:
                self._part, self._left, self._digest = "digest", DIGEST_SIZE, b""
                if not self.digests & DdpDigest.DATA:
                    self._end_data()
            return
        if piece.data is None:
            raise ContractViolation(f"bytes of a PDU's {self._part} were placed: {piece}")
        if self._part == "header":
            self._header += piece.data
            if not self._left:
                self._take_header()
        elif self._part == "digest":
            self._vouched &= piece.vouched
            self._digest += piece.data
            if not self._left:
                self._check_digest()
                self._end_data()
        elif not self._left and self._part == "padding":
            self._begin_data()
        elif not self._left:
            self._begin_pdu()

    def _take_header(self) -> None:
        kind, _, _, start, length = struct.unpack_from("<BBBBI", self._header)
        whole = HEADER_SIZE + DIGEST_SIZE * bool(self.digests & DdpDigest.HEADER)
        has_digest = kind in (PduType.DATA, PduType.CAPSULE_RESPONSE, PduType.READY_TO_TRANSFER)
        if has_digest and len(self._header) < whole:
            self._left = whole - len(self._header)
            return
        if has_digest and self.digests & DdpDigest.HEADER:
            assert self._header[HEADER_SIZE:] == _digest(self._header[:HEADER_SIZE])
        if kind == PduType.DATA:
            self._data = np.frombuffer(self._header, DATA_HEADER, 1)[0]
            self._part, self._left = "padding", start - len(self._header)
            self._offset = int(self._data["offset"])
            if not self._left:
                self._begin_data()
            return
        if kind == PduType.CAPSULE_RESPONSE:
            self._complete(int.from_bytes(self._header[_RESPONSE_COMMAND : _RESPONSE_COMMAND + 2], "little"))
        self._part, self._left = "rest", length - len(self._header)
        if not self._left:
            self._begin_pdu()

    def _begin_data(self) -> None:
        self._part, self._left = "data", int(self._data["data_length"])

    def _take_data(self, piece: Piece) -> None:
        """Data of the PDU at hand: is it where it belongs? Otherwise copy it there."""
        command, read = int(self._data["command"]), self.reads[int(self._data["command"])]
        if piece.data is None:
            if (piece.command, piece.offset) != (command, self._offset):
                raise ContractViolation(f"{piece} was placed, where byte {self._offset} of command {command} comes")
            self.placed += piece.length
        else:
            self._copy(read, self._offset, piece.data)
            self.copied += piece.length
        self._offset += piece.length

    def _check_digest(self) -> None:
        first, length = int(self._data["offset"]), int(self._data["data_length"])
        command = int(self._data["command"])
        holds = _digest(self.content(self.reads[command])[first : first + length]) == self._digest
        if not holds:
            self.wrong.append(command)
        if not self._vouched:
            self.checked += 1
            return
        self.vouched += 1
        if not holds:
            raise ContractViolation(f"the device vouches for a wrong digest of command {command}")

    def _end_data(self) -> None:
        if self._data["flags"] & PduFlag.SUCCESS:
            self._complete(int(self._data["command"]))
        self._begin_pdu()

    def _complete(self, command: int) -> None:
        read = self.reads.pop(command, None)
        if read is None:  # a command that brings no data
            return
        if read.placed:
            self._configure(DdpOperation.TEAR_DOWN, command=command)
        read.data = self.content(read)
        self.done[command] = read

    def _answer(self, sequence: int) -> None:
        """A PDU begins at `sequence`: if the device has asked about that or something before, it waits for this."""
        if self._request is None or (sequence - self._request) & _SEQUENCES >= 1 << 31:
            return
        self._request = None
        try:
            self._configure(DdpOperation.RESYNC, sequence=sequence)
        except AdminError:
            self.refused += 1

    def content(self, read: Read) -> bytes:
        """What is in a buffer."""
        return b"".join(self._driver.ram.read(address, length) for address, length in read.pieces)

    def _copy(self, read: Read, offset: int, data: bytes) -> None:
        for address, length in read.pieces:
            if offset < length and data:
                self._driver.ram.write(address + offset, data[: length - offset])
            data = data[max(length - offset, 0) :]
            offset = max(offset - length, 0)

    def _configure(self, operation: DdpOperation, **fields: int | bytes) -> None:
        command = np.zeros((), CONFIGURE_DDP)
        command["operation"], command["flow"] = operation, self._flow
        for name, value in fields.items():
            command[name] = np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value
        self._driver.extended(Inner.CONFIGURE_DDP, command)


def take_all(reader: Reader, packets: Iterable[RxPacket]) -> None:
    """Let a reader take packets."""
    for packet in packets:
        reader.take(packet)
