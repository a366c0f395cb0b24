"""A host of NVMe/TCP on a plain socket, with what it takes to read from Linux' nvmet; it keeps what the target sends.

Sources: NVM Express TCP Transport Specification 1.0, section 3.6; NVM Express Base Specification 2.0, section 6
(fabrics commands); Linux include/linux/nvme.h.
"""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Self

from nicmodel.gvnic.testing.nvme_tcp import digest
from nicmodel.packet.nvme_tcp import DIGEST_SIZE, HEADER_SIZE, PduFlag, PduType

_IC_SIZE = 128
_SQE_SIZE = 64
_CAPSULE_SIZE = 8 + _SQE_SIZE
_FABRICS, _READ = 0x7F, 0x02
_PROPERTY_SET, _CONNECT, _PROPERTY_GET = 0x00, 0x01, 0x04
_CC, _CSTS = 0x14, 0x1C
#: Enable, and entries of 64 and 16 bytes.
_CC_ENABLE = 1 | 6 << 16 | 4 << 20
_HOST_NQN = b"nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001"
_NO_SQ_FLOW_CONTROL = 1 << 2
#: SGL descriptors: data in the capsule, at an offset; data that the transport carries.
_IN_CAPSULE, _TRANSPORT = 0x01, 0x5A
#: What nvmet makes the blocks of a file, whose file system is asked.
BLOCK = 4096


class Queue:
    """One connection, and with it one queue.

    Args:
        address: host and port of the target.
        digests: to agree on, header digest 1 and data digest 2.

    Attributes:
        stream: what the target has sent since the initialisation: whole PDUs.
    """

    def __init__(self, address: tuple[str, int], digests: int) -> None:
        self.digests = digests
        self.stream = b""
        self._socket = socket.create_connection(address, timeout=20)
        request = struct.pack("<BBBBIHBBI", 0, 0, _IC_SIZE, 0, _IC_SIZE, 0, 0, digests, 0)
        self._socket.sendall(request.ljust(_IC_SIZE, b"\0"))
        answer = self._receive(_IC_SIZE)
        assert answer[0] == PduType.IC_RESPONSE and answer[11] == digests, answer.hex()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def connect(self, subsystem: str, *, queue: int = 0, controller: int = 0xFFFF, flow_control: bool = True) -> int:
        """The fabrics command Connect: queue 0 makes a controller, whose number it returns, others join it.

        Without flow control of the submission queue, data says of a successful read that it is complete.
        """
        entries = 31 if queue == 0 else 127
        attributes = 0 if flow_control else _NO_SQ_FLOW_CONTROL
        fields = struct.pack("<HHHBBI", 0, queue, entries, attributes, 0, 0)
        data = struct.pack("<16sH238s256s256s256s", b"\1" * 16, controller, b"", subsystem.encode(), _HOST_NQN, b"")
        self.send(_FABRICS, 0xFFF0, bytes([_CONNECT]).ljust(4, b"\0"), fields, data=data)
        return self._result(0xFFF0) & 0xFFFF

    def enable(self) -> None:
        """Enable the controller, and wait until it is."""
        fields = struct.pack("<BBHIQ", 0, 0, 0, _CC, _CC_ENABLE)
        self.send(_FABRICS, 0xFFF1, bytes([_PROPERTY_SET]).ljust(4, b"\0"), fields)
        self._result(0xFFF1)
        ready = 0
        while not ready & 1:
            self.send(_FABRICS, 0xFFF2, bytes([_PROPERTY_GET]).ljust(4, b"\0"), struct.pack("<BBHI", 0, 0, 0, _CSTS))
            ready = self._result(0xFFF2)

    def read(self, command: int, block: int, blocks: int) -> None:
        """Ask for blocks of namespace 1; what comes is for `finish`."""
        fields = struct.pack("<QH", block, blocks - 1)
        self.send(_READ, command, struct.pack("<I", 1), fields, length=blocks * BLOCK)

    def finish(self, count: int) -> None:
        """Receive until `count` commands are complete."""
        while count:
            count -= self._receive_pdu()[0]

    def send(
        self, opcode: int, command: int, dword1: bytes, dwords: bytes, *, data: bytes = b"", length: int = 0
    ) -> None:
        """A command capsule: dword 1 and dwords 10 on of the command; data to go with it, or bytes to be read."""
        sgl = struct.pack("<QI3xB", 0, len(data) or length, _IN_CAPSULE if data else _TRANSPORT)
        entry = struct.pack("<BBH", opcode, 0x40, command) + dword1 + bytes(16) + sgl + dwords
        flags = self.digests & (PduFlag.HEADER_DIGEST | (PduFlag.DATA_DIGEST if data else 0))
        header = DIGEST_SIZE * bool(flags & PduFlag.HEADER_DIGEST)
        after = DIGEST_SIZE * bool(flags & PduFlag.DATA_DIGEST)
        offset = _CAPSULE_SIZE + header if data else 0
        size = _CAPSULE_SIZE + header + len(data) + after
        capsule = struct.pack("<BBBBI", 4, flags, _CAPSULE_SIZE, offset, size) + entry.ljust(_SQE_SIZE, b"\0")
        capsule += digest(capsule).to_bytes(DIGEST_SIZE, "little") if header else b""
        self._socket.sendall(capsule + data + (digest(data).to_bytes(DIGEST_SIZE, "little") if after else b""))

    def _result(self, command: int) -> int:
        """The result of a command without data, which is the only one under way."""
        done, pdu = self._receive_pdu()
        result, _, _, answered, status = struct.unpack_from("<QHHHH", pdu, 8)
        assert done and pdu[0] == PduType.CAPSULE_RESPONSE and (answered, status >> 1) == (command, 0), pdu.hex()
        return int(result)

    def _receive_pdu(self) -> tuple[bool, bytes]:
        """The next PDU, and whether it completes a command."""
        header = self._receive(HEADER_SIZE)
        pdu = header + self._receive(int.from_bytes(header[4:8], "little") - HEADER_SIZE)
        self.stream += pdu
        if header[0] == PduType.CAPSULE_RESPONSE:
            assert int.from_bytes(pdu[22:24], "little") >> 1 == 0, f"a command has failed: {pdu.hex()}"
            return True, pdu
        assert header[0] == PduType.DATA, f"an unexpected PDU: {pdu[:64].hex()}"
        return bool(header[1] & PduFlag.SUCCESS), pdu

    def _receive(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            piece = self._socket.recv(count - len(received))
            assert piece, "the target has closed the connection"
            received += piece
        return bytes(received)
