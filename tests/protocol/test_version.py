"""VERSION: the first message, and nothing before it."""

from __future__ import annotations

import errno
import json

import pytest

from nicmodel.vfio_user import Client, Command
from nicmodel.vfio_user.protocol import HEADER, VERSION, Capabilities, ProtocolError, version_data

from .conftest import Lab

# What QEMU 11.1.3 sends, byte for byte.
QEMU_CAPABILITIES = (
    b'{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, '
    b'"migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}\0'
)


def version(client: Client, data: bytes, major: int = 0, minor: int = 0) -> bytes:
    return client.request(Command.VERSION, VERSION.pack(major, minor) + data)


def test_qemu_gets_a_reply_that_fits_its_buffer(lab: Lab) -> None:
    reply = version(lab.client(negotiate=False), QEMU_CAPABILITIES)
    assert VERSION.unpack_from(reply) == (0, 0)
    assert len(reply) <= VERSION.size + len(QEMU_CAPABILITIES)
    assert reply.endswith(b"\0")
    offered = json.loads(reply[VERSION.size : -1])["capabilities"]
    assert offered == {"max_msg_fds": 16, "max_data_xfer_size": 1 << 20, "pgsizes": 4096, "max_dma_maps": 65535}
    assert lab.calls("attach") == [("attach",)]


@pytest.mark.parametrize(("proposed", "agreed"), [(0, 0), (1, 1), (7, 1)])
def test_minor_version_is_the_lower_one(lab: Lab, proposed: int, agreed: int) -> None:
    assert lab.client(negotiate=False).negotiate(minor=proposed) == (0, agreed)


def test_other_major_version_is_refused_and_disconnected(lab: Lab) -> None:
    client = lab.client(negotiate=False)
    with pytest.raises(OSError) as refused:
        version(client, QEMU_CAPABILITIES, major=1)
    assert refused.value.errno == errno.EINVAL
    assert client.closed_by_server()
    assert not lab.calls("attach")


def test_no_capabilities_at_all(lab: Lab) -> None:
    assert version(lab.client(negotiate=False), b"") == VERSION.pack(0, 0)


def test_only_proposed_capabilities_are_offered(lab: Lab) -> None:
    data = b'{"capabilities":{"max_msg_fds":8,"write_multiple":true}}' + b" " * 100 + b"\0"
    reply = version(lab.client(negotiate=False), data)
    assert json.loads(reply[VERSION.size : -1]) == {"capabilities": {"max_msg_fds": 16}}


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"\0",
        b"[1]\0",
        b"\xff\xfe\0",
        b"[" * 5000 + b"\0",
        b'{"capabilities":7}\0',
        b'{"capabilities":{"max_msg_fds":"many"}}\0',
        b'{"capabilities":{"max_data_xfer_size":-1}}\0',
        b'{"capabilities":{"write_multiple":1}}\0',
    ],
)
def test_malformed_capabilities_are_refused(lab: Lab, data: bytes) -> None:
    client = lab.client(negotiate=False)
    with pytest.raises(OSError) as refused:
        version(client, data)
    assert refused.value.errno == errno.EINVAL
    assert lab.client().device_info().num_regions == 9  # the next one is served


def test_anything_before_version_is_refused(lab: Lab) -> None:
    client = lab.client(negotiate=False)
    for command in (Command.DEVICE_GET_INFO, Command.DEVICE_RESET, Command.REGION_READ, 99):
        with pytest.raises(OSError) as refused:
            client.request(command, bytes(32))
        assert refused.value.errno == errno.EINVAL
    assert not lab.device.calls
    client.negotiate()
    assert client.device_info().num_regions == 9


def test_version_twice_is_refused(lab: Lab, client: Client) -> None:
    with pytest.raises(OSError) as refused:
        client.negotiate()
    assert refused.value.errno == errno.EINVAL
    assert lab.server.stats["clients"] == 1


def test_version_split_over_many_packets(lab: Lab) -> None:
    client = lab.client(negotiate=False)
    payload = VERSION.pack(0, 1) + QEMU_CAPABILITIES
    message = HEADER.pack(7, Command.VERSION, HEADER.size + len(payload), 0, 0) + payload
    for position in range(0, len(message), 5):
        client.raw(message[position : position + 5])
    assert VERSION.unpack_from(client.reply(7)) == (0, 1)


def test_capabilities_have_the_defaults_of_the_specification() -> None:
    parsed, names = Capabilities.parse(b'{"capabilities":{"pgsizes":8192,"novelty":1}}\0')
    assert parsed == Capabilities(max_msg_fds=1, max_data_xfer_size=1 << 20, max_dma_maps=65535, pgsizes=8192)
    assert names == {"pgsizes", "novelty"}
    with pytest.raises(ProtocolError):
        Capabilities.parse(b"{}")


def test_version_data_drops_what_does_not_fit() -> None:
    full = version_data({"a": 1, "b": 2}, 100)
    assert full == b'{"capabilities":{"a":1,"b":2}}\0'
    assert version_data({"a": 1, "b": 2}, len(full) - 1) == b'{"capabilities":{"a":1}}\0'
    assert version_data({"a": 1}, 5) == b""
