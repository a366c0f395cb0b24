"""REGION_WRITE: registers are written, in order, with a reply or posted."""

from __future__ import annotations

import errno

import pytest

from nicmodel.vfio_user import Client, Command, PciRegion
from nicmodel.vfio_user.protocol import HEADER, MAX_DATA_XFER, NO_REPLY, REGION_ACCESS

from .conftest import BAR0_SIZE, BROKEN_BAR, HUGE_BAR, READ_ONLY_BAR, WRITE_ONLY_BAR, Lab


@pytest.mark.parametrize("posted", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4, 8, 3, 1000])
def test_device_gets_just_that(lab: Lab, client: Client, count: int, posted: bool) -> None:
    data = bytes(index & 0xFF for index in range(1, count + 1))
    client.region_write(0, 0x10, data, posted=posted)
    assert client.region_read(0, 0x10, count) == data
    assert lab.calls("write") == [("write", 0, 0x10, data)]


def test_reply_repeats_the_access(client: Client) -> None:
    request = REGION_ACCESS.pack(0x20, 0, 4)
    assert client.request(Command.REGION_WRITE, request + b"abcd") == request


def test_posted_writes_have_no_reply(lab: Lab, client: Client) -> None:
    for value in range(100):
        client.region_write(0, 0, bytes([value]), posted=True)
    # A reply to any of them would arrive before this one, and the client keeps those it did not ask for.
    assert client.region_read(0, 0, 1) == bytes([99])
    assert not client._replies
    assert [call[3][0] for call in lab.calls("write")] == list(range(100))


def test_writes_that_wait_together_are_flushed_once(lab: Lab, client: Client) -> None:
    lab.idle()
    lab.device.calls.clear()
    payload = REGION_ACCESS.pack(0, 0, 4) + b"bell"
    message = HEADER.pack(1, Command.REGION_WRITE, HEADER.size + len(payload), NO_REPLY, 0) + payload
    client.raw(message * 50)
    client.device_info()
    lab.idle()
    assert lab.device.calls[:51] == [("write", 0, 0, b"bell")] * 50 + [("messages_read",)]


def test_last_byte(lab: Lab, client: Client) -> None:
    client.region_write(0, BAR0_SIZE - 1, b"x")
    client.region_write(PciRegion.CONFIG, 255, b"y")
    client.region_write(WRITE_ONLY_BAR, 0, b"z")
    assert [call[3] for call in lab.calls("write")] == [b"x", b"y", b"z"]


def test_largest_access(lab: Lab, client: Client) -> None:
    client.region_write(HUGE_BAR, 0, b"\x5a" * MAX_DATA_XFER)
    assert len(lab.calls("write")[0][3]) == MAX_DATA_XFER


@pytest.mark.parametrize(
    ("region", "offset", "data"),
    [
        (0, BAR0_SIZE, b"x"),
        (0, BAR0_SIZE - 3, b"four"),
        (0, (1 << 64) - 4, b"beyond"),
        (0, 0, b""),
        (1, 0, b"four"),
        (9, 0, b"four"),
        (HUGE_BAR, 0, bytes(MAX_DATA_XFER + 1)),
    ],
)
@pytest.mark.parametrize("posted", [False, True])
def test_out_of_range(lab: Lab, client: Client, region: int, offset: int, data: bytes, posted: bool) -> None:
    if posted:
        client.region_write(region, offset, data, posted=True)
    else:
        with pytest.raises(OSError) as refused:
            client.region_write(region, offset, data)
        assert refused.value.errno == errno.EINVAL
    client.device_info()
    assert not client._replies
    assert not lab.calls("write")
    assert lab.server.stats["errors"] == 1


def test_region_that_cannot_be_written(lab: Lab, client: Client) -> None:
    with pytest.raises(OSError) as refused:
        client.region_write(READ_ONLY_BAR, 0, b"four")
    assert refused.value.errno == errno.EPERM
    assert not lab.calls("write")


def test_failing_device(client: Client) -> None:
    with pytest.raises(OSError) as refused:
        client.region_write(BROKEN_BAR, 0, b"four")
    assert refused.value.errno == errno.EIO
    client.region_write(BROKEN_BAR, 0, b"four", posted=True)
    client.region_write(0, 0, b"fine")


def test_errno_of_the_device_is_the_reply(lab: Lab, client: Client) -> None:
    def busy(link: object) -> None:
        raise OSError(errno.EBUSY, "busy")

    lab.device.on_write = busy
    with pytest.raises(OSError) as refused:
        client.region_write(0, 0, b"four")
    assert refused.value.errno == errno.EBUSY


@pytest.mark.parametrize(
    "payload",
    [REGION_ACCESS.pack(0, 0, 4)[:-1], REGION_ACCESS.pack(0, 0, 4) + b"123", REGION_ACCESS.pack(0, 0, 4) + b"12345"],
)
def test_count_must_match_the_data(lab: Lab, client: Client, payload: bytes) -> None:
    with pytest.raises(OSError) as refused:
        client.request(Command.REGION_WRITE, payload)
    assert refused.value.errno == errno.EINVAL
    assert not lab.calls("write")
