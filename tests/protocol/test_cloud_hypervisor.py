"""What rust-vmm's client sends, which Cloud Hypervisor has, and how much it reads of each answer.

It waits for the answer to everything, reads as many bytes as its own structures have, and does not look at what the
server offers. Source: github.com/rust-vmm/vfio, vfio-user/src/lib.rs, `Client`.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from nicmodel.vfio_user.protocol import Command, IrqSet, PciIrq

from .conftest import BAR0_SIZE, PAGE, Lab, Memory

HEADER = struct.Struct("<HHIII")
VERSION = b'{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}\0'


class RustClient:
    """Its end of the connection."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(60)
        self.socket.connect(path)
        self.number = 0

    def ask(self, command: Command, payload: bytes, answer: int, fds: list[int] | None = None) -> bytes:
        """Send a command, and read a header and `answer` bytes; it has to be the answer, and no longer."""
        header = HEADER.pack(self.number, command, HEADER.size + len(payload), 0, 0)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([header + payload], rights)
        number, same, size, flags, errno = HEADER.unpack(self._read(HEADER.size))
        assert (number, same, flags, errno) == (self.number, command, 1, 0)
        assert size == HEADER.size + answer
        self.number += 1
        return self._read(answer)

    def negotiate(self) -> bytes:
        """Agree on the version: the one answer whose length it does not know."""
        payload = struct.pack("<HH", 0, 1) + VERSION
        self.socket.sendmsg([HEADER.pack(self.number, Command.VERSION, HEADER.size + len(payload), 0, 0) + payload])
        size = HEADER.unpack(self._read(HEADER.size))[2]
        self.number += 1
        return self._read(size - HEADER.size)

    def _read(self, count: int) -> bytes:
        return self.socket.recv(count, socket.MSG_WAITALL) if count else b""


@pytest.fixture
def rust(lab: Lab) -> Iterator[RustClient]:
    client = RustClient(lab.path)
    yield client
    client.socket.close()


def test_from_connection_to_interrupts(lab: Lab, rust: RustClient, memory: Memory) -> None:
    """*Steps*: all that it does with a device of 17 vectors. *Verify*: each answer is as long as it reads."""
    reply = rust.negotiate()
    assert b'"max_msg_fds"' in reply and reply.endswith(b"}\0")
    flags, regions, interrupts = struct.unpack(
        "<4xIII", rust.ask(Command.DEVICE_GET_INFO, struct.pack("<IIII", 32, 0, 0, 0), 16)
    )
    assert flags == 0b11 and regions >= 9 and interrupts >= 3
    [size] = struct.unpack(
        "<16xQ8x", rust.ask(Command.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, 0, 0, 0, 0), 32)
    )
    assert size == BAR0_SIZE
    [count] = struct.unpack(
        "<12xI", rust.ask(Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, PciIrq.MSIX, 0), 16)
    )
    assert count == 32
    rust.ask(Command.DMA_MAP, struct.pack("<IIQQQ", 32, 0b11, 0, 1 << 20, 16 * PAGE), 0, [memory.fd])
    access = struct.Struct("<QII")
    rust.ask(Command.REGION_WRITE, access.pack(16, 0, 4) + b"four", 16)
    assert rust.ask(Command.REGION_READ, access.pack(16, 0, 4), 20)[16:] == b"four"
    vectors = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(17)]
    # It was told to send 16 at most.
    flags = IrqSet.DATA_EVENTFD | IrqSet.ACTION_TRIGGER
    rust.ask(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, flags, PciIrq.MSIX, 0, 17), 0, vectors)
    lab.device.on_write = lambda link: link.irqs[PciIrq.MSIX].trigger(16)
    rust.ask(Command.REGION_WRITE, access.pack(0, 0, 4) + b"kick", 16)
    assert os.eventfd_read(vectors[16]) == 1
    flags = IrqSet.DATA_NONE | IrqSet.ACTION_TRIGGER
    rust.ask(Command.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, flags, PciIrq.MSIX, 0, 0), 0)
    rust.ask(Command.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 1 << 20, 16 * PAGE), 24)
    rust.ask(Command.DEVICE_RESET, b"", 0)
    for vector in vectors:
        os.close(vector)
