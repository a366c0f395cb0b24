"""DMA_READ and DMA_WRITE: memory without a descriptor is reached by messages to the client."""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import pytest

from nicmodel.vfio_user import Client, ClientLink, Command, DmaFault, session
from nicmodel.vfio_user.protocol import (
    DMA_ACCESS,
    DMA_ACCESS_QEMU_10,
    ERROR,
    HEADER,
    MAX_DATA_XFER,
    NO_REPLY,
    REGION_ACCESS,
    TYPE_REPLY,
)

from .conftest import PAGE, Lab, Memory

BASE = 0x100000
SIZE = 4 << 20


class Served:
    """Client memory served by messages."""

    def __init__(self) -> None:
        self.bytes = bytearray(SIZE)
        self.accesses: list[tuple[str, int, int]] = []

    def __call__(self, address: int, count: int, data: bytes | None) -> bytes | None:
        start = address - BASE
        self.accesses.append(("read" if data is None else "write", start, count))
        if data is None:
            return bytes(self.bytes[start : start + count])
        self.bytes[start : start + count] = data
        return None


@pytest.fixture
def served(client: Client) -> Served:
    memory = Served()
    client.dma_map(BASE, SIZE)
    client.serve_dma(memory)
    return memory


def read(lab: Lab, client: Client, address: int, count: int) -> Any:
    return lab.run(client, lambda link: link.dma.read(address, count))


def write(lab: Lab, client: Client, address: int, data: bytes) -> None:
    lab.run(client, lambda link: link.dma.write(address, data))


def test_read_and_write(lab: Lab, client: Client, served: Served) -> None:
    write(lab, client, BASE + 100, b"by message")
    assert served.bytes[100:110] == b"by message"
    assert read(lab, client, BASE + 103, 7) == b"message"
    assert served.accesses == [("write", 100, 10), ("read", 103, 7)]
    assert lab.server.stats["dma_write"] == 1


def test_large_transfers_are_cut_to_what_the_client_takes(lab: Lab) -> None:
    client = lab.client(negotiate=False)
    client.negotiate({"max_data_xfer_size": 1000})
    client.dma_map(BASE, SIZE)
    served = Served()
    client.serve_dma(served)
    data = os.urandom(2500)
    write(lab, client, BASE, data)
    assert read(lab, client, BASE, 2500) == data
    assert served.accesses == [
        (kind, start, count) for kind in ("write", "read") for start, count in ((0, 1000), (1000, 1000), (2000, 500))
    ]


def test_transfers_of_megabytes(lab: Lab, client: Client, served: Served) -> None:
    data = os.urandom(3 * MAX_DATA_XFER + 1)
    write(lab, client, BASE, data)
    assert read(lab, client, BASE, len(data)) == data


def test_access_across_memory_with_and_without_descriptor(
    lab: Lab, client: Client, served: Served, memory: Memory
) -> None:
    client.dma_map(BASE - PAGE, PAGE, memory.fd)
    client.dma_map(BASE + SIZE, PAGE, memory.fd, PAGE)
    write(lab, client, BASE - 4, b"mmapserved")
    assert memory.bytes[PAGE - 4 : PAGE] == b"mmap"
    assert served.bytes[:6] == b"served"
    write(lab, client, BASE + SIZE - 6, b"servedmmap")
    assert read(lab, client, BASE + SIZE - 6, 10) == b"servedmmap"
    assert memory.bytes[PAGE : PAGE + 4] == b"mmap"


def test_qemu_10_has_its_data_four_bytes_early(lab: Lab) -> None:
    class Qemu10(Client):
        def _access(self, command: int, payload: memoryview) -> bytes:
            address, count = DMA_ACCESS_QEMU_10.unpack_from(payload)
            data = None if command == Command.DMA_READ else bytes(payload[DMA_ACCESS_QEMU_10.size :][:count])
            answer = served(address, count, data)
            return b"" if answer is None else DMA_ACCESS_QEMU_10.pack(address, count) + answer + bytes(4)

    served = Served()
    with Qemu10(lab.path) as client:
        client.dma_map(BASE, SIZE)
        write(lab, client, BASE, b"\0\0\0\0data")
        assert served.bytes[:10] == b"\0\0\0\0data\0\0"
        assert read(lab, client, BASE, 8) == b"\0\0\0\0data"


def test_outside_of_a_register_access(lab: Lab, client: Client, served: Served) -> None:
    """The device does DMA on its own, from a timer; what the client sends meanwhile is not lost."""
    result: list[bytes] = []

    def start_timer(link: ClientLink) -> None:
        lab.poller.call_at(0, lambda: result.append(link.dma.read(BASE, 6)))

    served.bytes[:6] = b"timer!"
    lab.run(client, start_timer)
    # These are read by the wait for the answer to DMA_READ, ahead of that answer.
    payload = REGION_ACCESS.pack(0x80, 0, 4) + b"bell"
    client.raw(HEADER.pack(1, Command.REGION_WRITE, HEADER.size + len(payload), NO_REPLY, 0) + payload)
    last = client.send(Command.REGION_READ, REGION_ACCESS.pack(0x80, 0, 4))
    lab.until(lambda: lab.server.stats["dma_read"] > 0)
    assert client.reply(last)[-4:] == b"bell"
    lab.until(lambda: bool(result) or not client.process(0))
    assert result == [b"timer!"]


def test_in_what_follows_a_batch_of_messages(lab: Lab, client: Client, served: Served) -> None:
    """A command that comes while `Device.messages_read` waits for the client is handled, though nothing comes later."""

    def messages_read() -> None:
        del lab.device.messages_read
        assert lab.device.link is not None
        lab.device.link.dma.read(BASE, 4)

    def serve(address: int, count: int, data: bytes | None) -> bytes | None:
        if count == 4:
            payload = REGION_ACCESS.pack(0x40, 0, 4) + b"next"
            client.raw(HEADER.pack(0, Command.REGION_WRITE, HEADER.size + len(payload), NO_REPLY, 0) + payload)
        return served(address, count, data)

    client.serve_dma(serve)
    lab.device.messages_read = messages_read  # type: ignore[method-assign]
    client.region_write(0, 0x80, b"bell")
    lab.until(lambda: not client.process(0) and served.accesses[-1:] == [("read", 0, 4)])
    lab.until(lambda: bytes(lab.device.memory[0x40:0x44]) == b"next")


def test_a_register_that_may_be_read_at_any_time(lab: Lab, client: Client, served: Served) -> None:
    """A virtual CPU waits for a register, and until it has it QEMU answers nothing: what the device says is enough."""
    payload = REGION_ACCESS.pack(0x10, 0, 4)
    early: list[int] = []

    def region_read_early(region: int, offset: int, count: int) -> bytes | None:
        early.append(offset)
        return b"soon" if offset == 0x10 else None

    def serve(address: int, count: int, data: bytes | None) -> bytes | None:
        if count == 4:
            first = client.send(Command.REGION_READ, payload)
            assert client.reply(first)[-4:] == b"soon"  # before the device gets its answer
            client.raw(
                HEADER.pack(77, Command.REGION_READ, HEADER.size + len(later), 0, 0) + later
            )  # its answer comes in its turn
        return served(address, count, data)

    later = REGION_ACCESS.pack(0x20, 0, 4)
    lab.device.region_read_early = region_read_early  # type: ignore[method-assign]
    client.serve_dma(serve)
    served.bytes[:4] = b"data"
    assert read(lab, client, BASE, 4) == b"data"
    assert set(early) == {0x10, 0x20}
    assert client.reply(77)[-4:] == bytes(lab.device.memory[0x20:0x24])
    assert lab.server.stats["early_reads"] == 1
    assert client.region_read(0, 0x10, 4) == bytes(lab.device.memory[0x10:0x14])  # and each was answered once


def test_commands_that_arrive_meanwhile_come_after(lab: Lab, client: Client, served: Served) -> None:
    payload = REGION_ACCESS.pack(0x40, 0, 4) + b"next"
    write_next = HEADER.pack(0, Command.REGION_WRITE, HEADER.size + len(payload), NO_REPLY, 0) + payload

    def serve(address: int, count: int, data: bytes | None) -> bytes | None:
        client.raw(write_next)  # in front of the answer
        return served(address, count, data)

    client.serve_dma(serve)
    order: list[str] = []

    def work(link: ClientLink) -> None:
        lab.device.on_write = None
        link.dma.read(BASE, 4)
        order.extend(call[0] for call in lab.calls("write"))

    lab.run(client, work)
    client.device_info()
    assert order == ["write"]  # only the one that started it
    assert [call[3] for call in lab.calls("write")] == [b"run!", b"next"]


@pytest.mark.parametrize("code", [errno.EFAULT, errno.EPERM, 0])
def test_refused_by_the_client(lab: Lab, client: Client, served: Served, code: int) -> None:
    def refuse(address: int, count: int, data: bytes | None) -> bytes | None:
        raise OSError(code, "no")

    read(lab, client, BASE, 1)
    client.serve_dma(refuse)
    for access in (lambda link: link.dma.read(BASE, 4), lambda link: link.dma.write(BASE, b"four")):
        with pytest.raises(DmaFault, match=os.strerror(code or errno.EIO)):
            lab.run(client, access)
    assert lab.server.stats["dma_faults"] == 2


def test_nobody_serves(lab: Lab, client: Client) -> None:
    client.dma_map(BASE, SIZE)
    with pytest.raises(DmaFault, match="Bad address"):
        read(lab, client, BASE, 4)


@pytest.mark.parametrize("answer", [b"", b"123", b"12345"])
def test_answer_of_the_wrong_length(lab: Lab, client: Client, served: Served, answer: bytes) -> None:
    read(lab, client, BASE, 1)
    client.serve_dma(lambda address, count, data: answer)
    with pytest.raises(DmaFault, match="malformed"):
        read(lab, client, BASE, 4)


def test_no_answer_is_a_fault_and_a_late_one_is_ignored(
    lab: Lab, client: Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(lab, client, BASE, 1)
    monkeypatch.setattr(session, "DMA_TIMEOUT", 0.02)

    def sleep(address: int, count: int, data: bytes | None) -> bytes | None:
        time.sleep(0.05)
        return bytes(count)

    client.serve_dma(sleep)
    with pytest.raises(DmaFault, match="does not answer"):
        read(lab, client, BASE, 4)
    client.serve_dma(served)
    served.bytes[:4] = b"good"
    monkeypatch.setattr(session, "DMA_TIMEOUT", 1.0)
    assert read(lab, client, BASE, 4) == b"good"
    assert lab.server.stats["errors"] == 0


def test_answer_nobody_asked_for(lab: Lab, client: Client, served: Served) -> None:
    client.raw(HEADER.pack(77, Command.DMA_READ, HEADER.size, TYPE_REPLY | ERROR, errno.EIO))
    client.device_info()
    assert lab.server.stats["errors"] == 1
    assert read(lab, client, BASE, 4) == bytes(4)


def test_client_leaves_instead_of_answering(lab: Lab, client: Client) -> None:
    faults: list[str] = []

    def work(link: ClientLink) -> None:
        try:
            link.dma.read(BASE, 4)
        except DmaFault as fault:
            faults.append(fault.reason)

    client.dma_map(BASE, SIZE)
    lab.device.on_write = work
    client.send(Command.REGION_WRITE, REGION_ACCESS.pack(0, 0, 4) + b"work")
    lab.until(lambda: lab.server.stats["dma_read"] > 0)
    client.close()
    lab.until(lambda: len(lab.calls("detach")) == 1)
    assert len(faults) == 1
    lab.device.on_write = None
    assert lab.client().device_info().num_regions == 9


def test_rights_hold_without_a_descriptor_too(lab: Lab, client: Client) -> None:
    client.dma_map(BASE, PAGE, None, 0, 1)
    client.serve_dma(Served())
    with pytest.raises(DmaFault, match="not writable"):
        write(lab, client, BASE, b"x")
    assert lab.server.stats["dma_write"] == 0


def test_fault_in_a_register_access_is_its_error(lab: Lab, client: Client) -> None:
    lab.device.on_write = lambda link: print(link.dma.read(0x666, 1))
    with pytest.raises(OSError) as refused:
        client.region_write(0, 0, b"x")
    assert refused.value.errno == errno.EFAULT


def test_the_client_refuses_other_commands(lab: Lab, client: Client) -> None:
    def ask(link: ClientLink) -> None:
        assert lab.server._session is not None
        lab.server._session._request(Command.DMA_READ, DMA_ACCESS.pack(0, 4)[:-1])

    with pytest.raises(OSError) as refused:
        lab.run(client, ask)
    assert refused.value.errno == errno.EINVAL
