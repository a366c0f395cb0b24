"""Wrong input: an error where it can be answered, a disconnection where not, and never an effect on the next client."""

from __future__ import annotations

import errno
import os
import resource
import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nicmodel.vfio_user import Client, Command
from nicmodel.vfio_user.protocol import (
    DEVICE_INFO,
    DMA_MAP,
    DMA_UNMAP,
    HEADER,
    IRQ_SET,
    MAX_MESSAGE,
    REGION_ACCESS,
    REGION_INFO,
    VERSION,
)

from .conftest import HUGE_BAR, PAGE, Lab, Memory, mappings_of, open_descriptors


@pytest.mark.parametrize(("command", "code"), [(0, errno.ENOSYS), (99, errno.ENOSYS), (0xFFFF, errno.ENOSYS)])
def test_unknown_command(lab: Lab, client: Client, command: int, code: int) -> None:
    with pytest.raises(OSError) as refused:
        client.request(command)
    assert refused.value.errno == code
    assert client.device_info().num_regions == 9
    assert lab.server.stats["unsupported"] == 1


@pytest.mark.parametrize("command", [Command.DMA_READ, Command.DMA_WRITE, Command.DIRTY_PAGES, Command.DEVICE_FEATURE])
def test_command_that_is_not_supported(client: Client, command: Command) -> None:
    with pytest.raises(OSError) as refused:
        client.request(command, bytes(64))
    assert refused.value.errno == errno.ENOTSUP


@pytest.mark.parametrize("size", [0, 1, 15, MAX_MESSAGE + 1, 0xFFFFFFFF])
def test_impossible_size_ends_the_connection(lab: Lab, client: Client, size: int) -> None:
    client.raw(HEADER.pack(1, Command.DEVICE_GET_INFO, size, 0, 0))
    assert client.closed_by_server()
    assert lab.server.stats["dropped"] == 1
    assert lab.calls("detach") == [("detach",)]
    assert lab.client().device_info().num_regions == 9


def test_largest_message_is_still_answered(lab: Lab, client: Client) -> None:
    data = bytes(MAX_MESSAGE - HEADER.size - REGION_ACCESS.size)
    with pytest.raises(OSError) as refused:
        client.region_write(HUGE_BAR, 0, data)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize("flags", [0x1, 0x2, 0xF, 0x21])
def test_a_message_that_is_no_command_is_counted(lab: Lab, client: Client, flags: int) -> None:
    client.raw(HEADER.pack(1, Command.DEVICE_RESET, HEADER.size, flags, 0))
    client.device_info()
    assert not lab.calls("reset")
    assert lab.server.stats["errors"] == 1


def test_error_without_reply_is_counted(lab: Lab, client: Client) -> None:
    client.send(Command.DMA_MAP, b"short", no_reply=True)
    client.device_info()
    assert not client._replies
    assert lab.server.stats["errors"] == 1


def test_unexpected_descriptors_are_closed(lab: Lab, client: Client, memory: Memory) -> None:
    before = open_descriptors()
    client.request(Command.DEVICE_GET_INFO, DEVICE_INFO.pack(16, 0, 0, 0), [memory.fd] * 3)
    client.raw(HEADER.pack(1, Command.DEVICE_RESET, HEADER.size, 1, 0), fds=[memory.fd] * 100)
    client.device_info()
    assert open_descriptors() == before


def test_descriptors_of_a_message_that_never_ends(lab: Lab, memory: Memory) -> None:
    before = open_descriptors()
    for length in (1, 15, 16, 30):
        with lab.client() as client:
            payload = DMA_MAP.pack(DMA_MAP.size, 3, 0, 0, PAGE)
            message = HEADER.pack(1, Command.DMA_MAP, HEADER.size + len(payload), 0, 0) + payload
            client.raw(message[:length], fds=[memory.fd])
        lab.settle()
        assert open_descriptors() == before


def test_descriptors_that_cannot_be_received_are_not_taken_for_absent(lab: Lab, client: Client, memory: Memory) -> None:
    """Else the region would count as one without a descriptor."""
    client.device_info()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    fillers = [os.dup(memory.fd) for _ in range(highest - open_descriptors() + 3)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers) + 1, hard))
    try:
        with pytest.raises(ConnectionError):
            client.dma_map(0, PAGE, memory.fd)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)
    assert not lab.calls("dma_changed")
    assert lab.server.stats["dropped"] == 1


def test_a_client_that_reads_nothing_is_dropped(lab: Lab, client: Client) -> None:
    for _ in range(64):
        try:
            client.send(Command.REGION_READ, REGION_ACCESS.pack(0, HUGE_BAR, 1 << 20))
        except ConnectionError:
            break
    lab.until(lambda: lab.server.stats["dropped"] == 1)
    assert lab.client().region_read(HUGE_BAR, 0, 1) == b"\xa5"


def test_bytes_one_by_one(client: Client) -> None:
    message = HEADER.pack(5, Command.DEVICE_GET_INFO, 32, 0, 0) + DEVICE_INFO.pack(16, 0, 0, 0)
    for position in range(len(message)):
        client.raw(message[position : position + 1])
        time.sleep(0.0002)
    assert len(client.reply(5)) == 16


VALID = [
    (Command.VERSION, VERSION.pack(0, 1) + b'{"capabilities":{"max_msg_fds":8}}\0'),
    (Command.DMA_MAP, DMA_MAP.pack(32, 3, 0, 0x10000, PAGE)),
    (Command.DMA_UNMAP, DMA_UNMAP.pack(24, 0, 0x10000, PAGE)),
    (Command.DEVICE_GET_INFO, DEVICE_INFO.pack(16, 0, 0, 0)),
    (Command.DEVICE_GET_REGION_INFO, REGION_INFO.pack(32, 0, 4, 0, 0, 0)),
    (Command.DEVICE_SET_IRQS, IRQ_SET.pack(20, 36, 2, 0, 1)),
    (Command.DEVICE_SET_IRQS, IRQ_SET.pack(24, 34, 2, 0, 4) + b"\1\0\1\0"),
    (Command.REGION_READ, REGION_ACCESS.pack(0, 0, 4)),
    (Command.REGION_WRITE, REGION_ACCESS.pack(0, 0, 4) + b"data"),
    (Command.DEVICE_RESET, b""),
]


@st.composite
def hostile_messages(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """A valid message with some of its bytes changed, or noise, and the kinds of descriptors to go with it."""
    if draw(st.booleans()):
        message = bytearray(draw(st.binary(max_size=80)))
    else:
        command, payload = draw(st.sampled_from(VALID))
        flags = draw(st.sampled_from([0, 0, 0, 0x10]))
        message = bytearray(HEADER.pack(1, command, HEADER.size + len(payload), flags, 0) + payload)
        # Bytes 4 to 7, the size, are spared: they would cost the connection nearly always.
        places = st.integers(0, len(message) - 1).filter(lambda place: not 4 <= place < 8)
        for place in draw(st.lists(places, max_size=3)):
            message[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        if draw(st.integers(0, 19)) == 0:
            struct.pack_into("=I", message, 4, draw(st.integers(0, 64)))
    return bytes(message), draw(st.lists(st.integers(0, 2), max_size=3)) if message else []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(hostile_messages(), max_size=12), negotiate=st.booleans())
def test_no_message_harms_the_next_client(lab: Lab, messages: list[tuple[bytes, list[int]]], negotiate: bool) -> None:
    memory = Memory(4 * PAGE, "victim")
    eventfd = os.eventfd(0)
    read_end, write_end = os.pipe()
    lab.settle()
    before, mapped = open_descriptors(), mappings_of("victim")

    with Client(lab.path, negotiate=negotiate) as client:
        try:
            for message, kinds in messages:
                client.raw(message, fds=[(memory.fd, eventfd, write_end)[kind] for kind in kinds])
        except ConnectionError:
            pass  # thrown out already
    with Client(lab.path) as client:
        client.dma_map(0x10000, PAGE, memory.fd)
        client.set_irqs(2, 0, [eventfd])
        client.region_write(0, 0x10, b"still")
        assert client.region_read(0, 0x10, 5) == b"still"
        lab.run(client, lambda link: link.dma.write(0x10000, b"works"))
    lab.settle()
    assert memory.bytes[:5] == b"works"
    assert open_descriptors() == before
    assert mappings_of("victim") == mapped

    memory.close()
    for fd in (eventfd, read_end, write_end):
        os.close(fd)
