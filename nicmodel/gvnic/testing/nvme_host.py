"""A host of NVMe/TCP on a NIC's driver in Python: it connects to a controller, reads and writes.

    with Queue(station, "10.0.0.2", 4420) as admin, Queue(station, "10.0.0.2", 4420, flow=0) as queue:
        controller = admin.connect("nqn.2014-08.org.example:disk")
        admin.enable()
        queue.connect("nqn.2014-08.org.example:disk", queue=1, controller=controller, in_capsule=admin.in_capsule)
        queue.start_read(100, block=0, blocks=8, pieces=[(place, 8 * BLOCK)])
        queue.start_write(101, block=8, data=bytes(8 * BLOCK))
        queue.finish()

Its receiving half is `Reader`, so what the NIC has placed is not copied.

Sources: NVM Express TCP Transport Specification 1.0, section 3.6; NVM Express Base Specification 2.0, section 6
(fabrics commands); Linux include/linux/nvme.h and nvme-tcp.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from nicmodel.gvnic.options.ddp.declarations import DdpDigest
from nicmodel.gvnic.testing.nvme_tcp import NvmeError, Read, Reader, trailer, with_digest
from nicmodel.gvnic.testing.pieces import Piece
from nicmodel.gvnic.testing.station import Station
from nicmodel.packet.nvme_tcp import COMMON_HEADER_SIZE, DIGEST_SIZE, PduFlag, PduType
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.testing.tcp import Counters, TcpError

#: Bytes of a block: what nvmet makes the blocks of a file, whose file system is asked.
BLOCK = 4096
#: Seconds without an answer after which a command has failed.
PATIENCE = 60.0

_IC_REQUEST, _CAPSULE, _H2C_DATA = 0x0, 0x4, 0x6
_IC_SIZE = 128
_SQE_SIZE = 64
_CAPSULE_SIZE = COMMON_HEADER_SIZE + _SQE_SIZE
_FABRICS, _WRITE, _READ, _IDENTIFY = 0x7F, 0x01, 0x02, 0x06
_PROPERTY_SET, _CONNECT, _PROPERTY_GET = 0x00, 0x01, 0x04
_CC, _CSTS = 0x14, 0x1C
#: Identify: of the controller, and where that says how large command capsules are, in units of 16 bytes.
_CONTROLLER, _IDENTIFY_SIZE, _IOCCSZ = 1, 4096, 1792
#: The largest that are believed, in these units: 1 MiB.
_MAX_CAPSULE = 1 << 16
#: Enable, and entries of 64 and 16 bytes.
_CC_ENABLE = 1 | 6 << 16 | 4 << 20
_HOST_NQN = b"nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001"
_NO_SQ_FLOW_CONTROL = 1 << 2
#: SGL descriptors: data in the capsule, at an offset; data that the transport carries.
_IN_CAPSULE, _TRANSPORT = 0x01, 0x5A
_NAMESPACE = struct.pack("<I", 1)
#: Entries of queues, less one: the admin queue's, and those of others. Commands under way are fewer.
_ADMIN_ENTRIES, MAX_DEPTH = 31, 127
#: Identifier of the command that `Queue` gives itself; users' are below.
FIRST_OWN = 0xFFF0
#: So many failures are kept.
MAX_FAILED = 1000
#: The most data that one R2T is answered with at a time, if the controller has no other wish.
_MAX_DATA = 1 << 20


class Queue(Reader):
    """One queue: a connection, and what goes through it.

    Args:
        station: who makes the connection.
        address: of the controller.
        port: the controller's.
        digests: to agree on, `DdpDigest`.
        flow: number of the flow at the NIC, whose data it places; None: it is not told.
        memory: see `Reader`.

    Attributes:
        counters: what TCP has counted.
        writes: the data of writes that are under way, by command identifier.
        asked_up_to: how much of them the controller has asked for.
        failed: command identifier and status of reads and writes that did not succeed, the first `MAX_FAILED` of them.
        in_capsule: bytes that a write may have in its command capsule; those with more wait to be asked for their data.
            An admin queue learns it when it enables the controller. Linux' nvmet never asks for data that fits.
        written: bytes of data that were sent to the controller.

    Raises:
        TimeoutError: nobody answers.
        TcpError: the connection could not be made, or has ended.
        NvmeError: who answers is no controller, or wants other digests.
    """

    def __init__(
        self, station: Station, address: str, port: int, *, digests: int = 0, flow: int | None = None,
        memory: GuestMemory | None = None,
    ) -> None:  # fmt: skip
        self._station = station
        self._outbox = bytearray()
        self._results: dict[int, tuple[int, int]] = {}
        self.writes: dict[int, bytes] = {}
        self.asked_up_to: dict[int, int] = {}
        self.failed: list[tuple[int, int]] = []
        self.written = self.in_capsule = 0
        self._connection = station.connect(address, port)
        try:
            self._most = self._initialise(digests)
            super().__init__(
                station.driver, flow, source=address, destination=station.address, source_port=port,
                destination_port=self._connection.port, sequence=self._connection.next, digests=digests,
                memory=memory,
            )  # fmt: skip
        except BaseException:
            self._connection.abort()
            station.turn()
            station.forget(self._connection)
            raise
        station.watch(self._connection, self.note)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def counters(self) -> Counters:
        """What TCP has counted."""
        return self._connection.counters

    def close(self) -> None:
        """End the connection. The NIC forgets the flow first, with all its buffers."""
        super().close()
        with suppress(TcpError):
            self._station.hang_up(self._connection)

    def connect(
        self, subsystem: str, *, queue: int = 0, controller: int = 0xFFFF, flow_control: bool = True,
        in_capsule: int = 0,
    ) -> int:  # fmt: skip
        """The fabrics command Connect: queue 0 makes a controller, whose number it returns, others join it.

        Args:
            subsystem: its qualified name.
            queue: number of the queue.
            controller: which one to join.
            flow_control: of the submission queue; without, data says of a successful read that it is complete.
            in_capsule: see the attribute.

        Raises:
            NvmeError: the controller refuses.
        """
        self.in_capsule = in_capsule
        entries = MAX_DEPTH if queue else _ADMIN_ENTRIES
        attributes = 0 if flow_control else _NO_SQ_FLOW_CONTROL
        fields = struct.pack("<HHHBBI", 0, queue, entries, attributes, 0, 0)
        data = struct.pack("<16sH238s256s256s256s", b"\1" * 16, controller, b"", subsystem.encode(), _HOST_NQN, b"")
        return self._execute(_CONNECT, fields, data) & 0xFFFF

    def enable(self) -> None:
        """Enable the controller, wait until it is, and ask what its capsules hold.

        Raises:
            NvmeError: it refuses.
        """
        self._execute(_PROPERTY_SET, struct.pack("<BBHIQ", 0, 0, 0, _CC, _CC_ENABLE))
        for _ in range(100):
            if self._execute(_PROPERTY_GET, struct.pack("<BBHI", 0, 0, 0, _CSTS)) & 1:
                break
        else:
            raise NvmeError("the controller does not become ready")
        self.read(FIRST_OWN, _IDENTIFY_SIZE)
        self._submit(_IDENTIFY, FIRST_OWN, bytes(4), struct.pack("<I", _CONTROLLER), length=_IDENTIFY_SIZE)
        self._await(f"Identify {_CONTROLLER:#x}")
        identified = self.done.pop(FIRST_OWN)
        self._memory.free(identified.pieces[0][0])
        units = int.from_bytes(identified.data[_IOCCSZ : _IOCCSZ + 4], "little")
        self.in_capsule = max(min(units, _MAX_CAPSULE) * 16 - _SQE_SIZE, 0)

    def start_read(self, command: int, block: int, blocks: int, pieces: Sequence[tuple[int, int]]) -> Read:
        """Read blocks of namespace 1 into memory: guest addresses and lengths of its pieces."""
        read = self.read(command, blocks * BLOCK, pieces=pieces)
        self._submit(_READ, command, _NAMESPACE, struct.pack("<QH", block, blocks - 1), length=blocks * BLOCK)
        return read

    def start_write(self, command: int, block: int, data: bytes) -> None:
        """Write whole blocks of namespace 1."""
        self.writes[command] = data
        fields = struct.pack("<QH", block, len(data) // BLOCK - 1)
        if len(data) <= self.in_capsule:
            self._submit(_WRITE, command, _NAMESPACE, fields, data=data)
            self.written += len(data)
        else:
            self._submit(_WRITE, command, _NAMESPACE, fields, length=len(data))

    @property
    def under_way(self) -> int:
        """Reads and writes that are not completed."""
        return len(self.reads) + len(self.writes)

    def finish(self, most: int = 0) -> None:
        """Wait until no more than `most` commands are under way.

        Raises:
            TimeoutError: nothing has come for long.
            TcpError: the connection has ended.
            NvmeError: the controller says what cannot be.
        """
        self._wait_until(lambda: self.under_way <= most)

    # What the reader hands on

    def completed(self, command: int, status: int, result: int) -> None:
        """See `Reader`.

        Raises:
            NvmeError: there is no such command.
        """
        self.asked_up_to.pop(command, None)
        if command == FIRST_OWN:
            self._results[command] = (status, result)
        elif self.writes.pop(command, None) is None and command not in self.done:
            raise NvmeError(f"command {command} is completed, which is not under way")
        elif status and len(self.failed) < MAX_FAILED:
            self.failed.append((command, status))

    def asked_for_data(self, header: bytes) -> None:
        """See `Reader`."""
        command, tag, start, count = struct.unpack_from("<HHII", header, COMMON_HEADER_SIZE)
        data = self.writes.get(command)
        if data is None or not count or start < self.asked_up_to.get(command, 0) or start + count > len(data):
            raise NvmeError(f"the controller asks for data that nobody has: {header.hex()}")
        for place in range(start, start + count, self._most):
            end = min(place + self._most, start + count)
            last = PduFlag.LAST if end == start + count else PduFlag(0)
            self._send_data(command, tag, place, data[place:end], last)
        self.asked_up_to[command] = start + count
        self.written += count

    # Sending

    def _initialise(self, digests: int) -> int:
        """Exchange initialisation PDUs; the most data that the controller takes in one PDU."""
        request = struct.pack("<BBBBIHBBI", _IC_REQUEST, 0, _IC_SIZE, 0, _IC_SIZE, 0, 0, digests, 0)
        self._connection.write(request.ljust(_IC_SIZE, b"\0"))
        answer = bytearray()

        def answered() -> bool:
            for piece in self._connection.read():
                answer.extend(piece.data or b"")
            return len(answer) >= _IC_SIZE

        self._station.run(answered, PATIENCE, "the controller does not answer")
        if answer[0] != PduType.IC_RESPONSE or answer[11] != digests or len(answer) != _IC_SIZE:
            raise NvmeError(f"no answer to digests {digests}: {answer.hex()}")
        most = int.from_bytes(answer[12:16], "little")
        return max(min(most, _MAX_DATA) or _MAX_DATA, BLOCK)

    def _execute(self, kind: int, fields: bytes, data: bytes = b"") -> int:
        """A fabrics command; its result."""
        self._submit(_FABRICS, FIRST_OWN, bytes([kind]).ljust(4, b"\0"), fields, data=data)
        return self._await(f"fabrics command {kind:#x}")

    def _await(self, name: str) -> int:
        """The result of the queue's own command, the only one that is under way."""
        self._wait_until(lambda: FIRST_OWN in self._results)
        status, result = self._results.pop(FIRST_OWN)
        if status:
            raise NvmeError(f"the controller refuses {name}: status {status:#x}")
        return result

    def _submit(
        self, opcode: int, command: int, dword1: bytes, dwords: bytes, *, data: bytes = b"", length: int = 0
    ) -> None:
        """A command capsule: dword 1 and dwords 10 on of the command; data to go with it, or bytes to be moved."""
        sgl = struct.pack("<QI3xB", 0, len(data) or length, _IN_CAPSULE if data else _TRANSPORT)
        entry = struct.pack("<BBH", opcode, 0x40, command) + dword1 + bytes(16) + sgl + dwords
        self._send_pdu(_CAPSULE, PduFlag(0), entry.ljust(_SQE_SIZE, b"\0"), data)

    def _send_data(self, command: int, tag: int, offset: int, data: bytes, flags: PduFlag) -> None:
        """A part of a write's data."""
        self._send_pdu(_H2C_DATA, flags, struct.pack("<HHIII", command, tag, offset, len(data), 0), data)

    def _send_pdu(self, kind: int, flags: PduFlag, specific: bytes, data: bytes) -> None:
        digests = self.digests if data else self.digests & DdpDigest.HEADER
        header = COMMON_HEADER_SIZE + len(specific)
        start = header + DIGEST_SIZE * bool(digests & DdpDigest.HEADER)
        after = trailer(data) if digests & DdpDigest.DATA else b""
        common = struct.pack(
            "<BBBBI", kind, flags | digests, header, start if data else 0, start + len(data) + len(after)
        )  # fmt: skip
        self._outbox += with_digest(common + specific, digests) + data + after
        self._push()

    def _push(self) -> None:
        """Give TCP as much as it takes."""
        if self._outbox:
            del self._outbox[: self._connection.write(bytes(self._outbox[: self._connection.room]))]

    def _progress(self) -> bool:
        """Take what has come; whether anything has."""
        pieces: list[Piece] = self._connection.read()
        if not pieces and self._connection.ended:
            raise NvmeError("the controller has closed the connection")
        self.follow(pieces)
        self._push()
        return bool(pieces)

    def _wait_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._station.run(lambda: self._progress() or done(), PATIENCE, "the controller does not answer")
