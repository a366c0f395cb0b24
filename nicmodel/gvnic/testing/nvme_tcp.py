"""The reading host of an NVMe/TCP connection whose data a NIC places directly (`nicmodel.gvnic.options.ddp`).

    reader = Reader(driver, 0, source="192.0.2.1", destination="192.0.2.2", source_port=4420, destination_port=40000)
    reader.read(command=7, length=4096)
    nic.inject(frames)
    for packet in driver.poll_all():
        reader.take(packet)
    assert reader.done[7].data == ...

It does what Linux' nvme-tcp does with what TCP has put in order: walks the PDUs, copies what the NIC has not placed,
checks the digests for which the NIC does not vouch, answers requests for resynchronisation, and tears a buffer down
when its command is completed. `data_pdu` and `response` are what a controller sends.
`nicmodel.gvnic.testing.nvme_host` is a host that also sends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import numpy as np

from nicmodel.gvnic.commands import Inner
from nicmodel.gvnic.options.ddp.declarations import CONFIGURE_DDP, DDP_PIECE, DdpDigest, DdpOperation
from nicmodel.gvnic.testing.adminq import AdminError
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.pieces import Piece, unfold
from nicmodel.gvnic.testing.rx import RxPacket
from nicmodel.gvnic.testing.violation import ContractViolation
from nicmodel.jit.compiled import u64
from nicmodel.packet.crc32c import crc32c
from nicmodel.packet.nvme_tcp import (
    COMMON_HEADER_SIZE,
    DATA_HEADER,
    DIGEST_SIZE,
    HEADER_SIZE,
    MAX_PDU,
    PduFlag,
    PduType,
)
from nicmodel.testing.guest_memory import PAGE, GuestMemory
from nicmodel.testing.tcp import MASK, Reassembly

#: A completion queue entry: result, submission queue's head and number, command, status (above the phase bit).
_COMPLETION = struct.Struct("<QHHHH")


class NvmeError(Exception):
    """The stream cannot be what a controller sends, or the controller has refused something."""


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
    after = trailer(data) if digests & DdpDigest.DATA else b""
    return with_digest(header.tobytes(), digests) + bytes(padding) + data + after


def response(command: int, *, digests: int = 0, status: int = 0, result: int = 0) -> bytes:
    """A capsule response that completes a command, with success if its `status` is 0."""
    flags = PduFlag.HEADER_DIGEST if digests & DdpDigest.HEADER else PduFlag(0)
    length = HEADER_SIZE + DIGEST_SIZE * bool(flags)
    header = struct.pack("<BBBBI", PduType.CAPSULE_RESPONSE, flags, HEADER_SIZE, 0, length)
    return with_digest(header + _COMPLETION.pack(result, 0, 0, command, status << 1), digests)


def trailer(data: bytes) -> bytes:
    """The digest of `data` as a PDU has it."""
    return digest(data).to_bytes(DIGEST_SIZE, "little")


def with_digest(header: bytes, digests: int) -> bytes:
    """A header, and its digest if `digests` has that."""
    return header + (trailer(header) if digests & DdpDigest.HEADER else b"")


@dataclass
class Read:
    """A read that is under way or completed.

    Attributes:
        length: bytes.
        pieces: guest address and length of the pieces of its buffer, in order.
        placed: whether the NIC knows of it.
        data: what was in the buffer when it was completed.
        status: of its completion; 0: success.
    """

    length: int
    pieces: list[tuple[int, int]]
    placed: bool
    data: bytes = b""
    status: int = 0


class Reader:
    """One connection.

    Args:
        driver: of the NIC, after its probe.
        flow: number of the flow at the device; None: the NIC is not told of it, and all is copied.
        source: the controller's address, and `destination` the host's.
        source_port: the controller's port, and `destination_port` the host's.
        sequence: of the first byte of the next PDU.
        digests: in use, `DdpDigest`.
        memory: where buffers of reads are; None: ordinary memory.

    Attributes:
        reads: those under way, by command identifier.
        done: those completed.
        placed: bytes of data that the NIC had put in place.
        copied: bytes of data that were copied here.
        exchangeable: of those the bytes that came as whole pages of memory, each with a whole page of the command's
            data: instead of a copy, the page could have been exchanged for one of the buffer's.
        vouched: PDUs whose data digest the NIC has checked, and `checked` those whose digest had to be checked here,
            over `digested` bytes.
        wrong: commands of the PDUs whose data digest did not hold.
        asked: requests for resynchronisation that came, and `refused` answers that the device had no use for.
        next: sequence number up to which the stream is complete.
    """

    def __init__(
        self,
        driver: Driver,
        flow: int | None = 0,
        *,
        source: str,
        destination: str,
        source_port: int,
        destination_port: int,
        sequence: int = 0,
        digests: int = 0,
        memory: GuestMemory | None = None,
    ) -> None:
        self._driver = driver
        self._memory = driver.ram if memory is None else memory
        self._flow = flow
        self.digests = digests
        self.reads: dict[int, Read] = {}
        self.done: dict[int, Read] = {}
        self.placed = self.copied = self.exchangeable = self.asked = self.refused = 0
        self.vouched = self.checked = self.digested = 0
        self.wrong: list[int] = []
        self.next = sequence
        self._stream: Reassembly[Piece] = Reassembly(sequence)
        self._request: int | None = None
        self._begin_pdu()
        if flow is None:
            return
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
        if self._flow is not None:
            self._configure(DdpOperation.DELETE_FLOW)

    def read(
        self, command: int, length: int, *, pieces: Sequence[tuple[int, int]] | None = None, placed: bool = True
    ) -> Read:
        """Prepare for the data of a read.

        Args:
            command: its identifier.
            length: bytes.
            pieces: guest addresses and lengths of its buffer; None: one piece, allocated here.
            placed: whether to tell the NIC; otherwise all is copied.

        Raises:
            AdminError: the device refused.
        """
        ram = self._driver.ram
        placed &= self._flow is not None
        read = Read(
            length, [(self._memory.allocate_zeroed(length), length)] if pieces is None else list(pieces), placed
        )
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
        """A packet of the connection has come, and there is no TCP that has put it in order."""
        self.note(packet)
        for piece in unfold(packet):
            self._stream.put(piece)
        self.follow(self._stream.take())

    def note(self, packet: RxPacket) -> None:
        """What the NIC says of a packet of the connection besides its payload."""
        if packet.ddp["resync"]:
            self.asked += 1
            self._request = packet.ddp["resync_sequence"]

    def follow(self, pieces: Iterable[Piece]) -> None:
        """What continues the stream has come.

        Raises:
            NvmeError: it cannot be what a controller sends.
            ContractViolation: the NIC has placed what it should not have, or elsewhere.
        """
        for piece in pieces:
            self.next = (self.next + piece.length) & MASK
            while piece.length:
                count = min(piece.length, self._left)
                self._take(piece.part(0, count))
                piece = piece.part(count, piece.length - count)
        if self._part == "header" and not self._header:
            self._answer(self.next)

    def completed(self, command: int, status: int, result: int) -> None:
        """A command is completed. For those who derive from this."""

    def asked_for_data(self, header: bytes) -> None:
        """The controller asks for the data of a write by this R2T. For those who derive from this.

        Raises:
            NvmeError: there is no such write.
        """
        raise NvmeError(f"the controller asks for data: {header.hex()}")

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
        kind, _, header_length, start, length = struct.unpack_from("<BBBBI", self._header)
        whole = HEADER_SIZE + DIGEST_SIZE * bool(self.digests & DdpDigest.HEADER)
        if kind not in (PduType.DATA, PduType.CAPSULE_RESPONSE, PduType.READY_TO_TRANSFER, PduType.TERMINATE):
            raise NvmeError(f"no PDU of a controller begins with {self._header.hex()}")
        if kind == PduType.TERMINATE:
            whole = header_length
        if not COMMON_HEADER_SIZE < whole <= length or header_length != HEADER_SIZE or length > MAX_PDU:
            raise NvmeError(f"a PDU with impossible lengths: {self._header.hex()}")
        if len(self._header) < whole:
            self._left = whole - len(self._header)
            return
        if kind == PduType.TERMINATE:
            raise NvmeError(f"the controller ends the connection: {self._header.hex()}")
        if self._header[HEADER_SIZE:] != trailer(self._header[:HEADER_SIZE])[: whole - HEADER_SIZE]:
            raise NvmeError(f"a header with a wrong digest: {self._header.hex()}")
        if kind == PduType.DATA:
            self._data = np.frombuffer(self._header, DATA_HEADER, 1)[0]
            self._part, self._left = "padding", start - len(self._header)
            self._offset = int(self._data["offset"])
            read = self.reads.get(int(self._data["command"]))
            after = DIGEST_SIZE * bool(self.digests & DdpDigest.DATA)
            data_length = int(self._data["data_length"])
            if read is None or self._offset + data_length > read.length:
                raise NvmeError(f"data that nobody has asked for: {self._header.hex()}")
            if self._left < 0 or not data_length or start + data_length + after != length:
                raise NvmeError(f"data with impossible lengths: {self._header.hex()}")
            if not self._left:
                self._begin_data()
            return
        self._part, self._left = "rest", length - len(self._header)
        if kind == PduType.READY_TO_TRANSFER:
            self.asked_for_data(self._header)
        else:
            result, _, _, command, status = _COMPLETION.unpack_from(self._header, COMMON_HEADER_SIZE)
            self._complete(command, status >> 1, result)
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
            if piece.address is not None and (piece.address - self._offset) % PAGE == 0:
                first, end = -(-self._offset // PAGE), (self._offset + piece.length) // PAGE
                self.exchangeable += max(end - first, 0) * PAGE
        self._offset += piece.length

    def _check_digest(self) -> None:
        first, length = int(self._data["offset"]), int(self._data["data_length"])
        command = int(self._data["command"])
        holds = trailer(self.content(self.reads[command])[first : first + length]) == self._digest
        if not holds:
            self.wrong.append(command)
        if not self._vouched:
            self.checked += 1
            self.digested += length
            return
        self.vouched += 1
        if not holds:
            raise ContractViolation(f"the device vouches for a wrong digest of command {command}")

    def _end_data(self) -> None:
        if self._data["flags"] & PduFlag.SUCCESS:
            self._complete(int(self._data["command"]), 0, 0)
        self._begin_pdu()

    def _complete(self, command: int, status: int, result: int) -> None:
        read = self.reads.pop(command, None)
        if read is not None:  # otherwise a command that brings no data
            if read.placed:
                self._configure(DdpOperation.TEAR_DOWN, command=command)
            read.data, read.status = self.content(read), status
            self.done[command] = read
        self.completed(command, status, result)

    def _answer(self, sequence: int) -> None:
        """A PDU begins at `sequence`: if the device has asked about that or something before, it waits for this."""
        if self._request is None or (sequence - self._request) & MASK >= 1 << 31:
            return
        self._request = None
        try:
            self._configure(DdpOperation.RESYNC, sequence=sequence)
        except AdminError:
            self.refused += 1

    def content(self, read: Read) -> bytes:
        """What is in a buffer."""
        return b"".join(self._memory.read(address, length) for address, length in read.pieces)

    def _copy(self, read: Read, offset: int, data: bytes) -> None:
        for address, length in read.pieces:
            if offset < length and data:
                self._memory.write(address + offset, data[: length - offset])
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
