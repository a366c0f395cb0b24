"""REGION_READ: registers are read, and never beyond their region."""

from __future__ import annotations

import errno

import pytest

from nicmodel.vfio_user import Client, Command, PciRegion
from nicmodel.vfio_user.protocol import MAX_DATA_XFER, REGION_ACCESS

from .conftest import BAR0_SIZE, BROKEN_BAR, HUGE_BAR, READ_ONLY_BAR, WRITE_ONLY_BAR, Lab


@pytest.mark.parametrize("count", [1, 2, 4, 8, 3, 100])
@pytest.mark.parametrize("offset", [0, 1, 0x7FF])
def test_device_is_asked_once_for_just_that(lab: Lab, client: Client, offset: int, count: int) -> None:
    lab.device.memory[offset : offset + count] = bytes(range(1, count + 1))
    assert client.region_read(0, offset, count) == bytes(range(1, count + 1))
    assert lab.calls("read") == [("read", 0, offset, count)]


def test_reply_repeats_the_access(client: Client) -> None:
    request = REGION_ACCESS.pack(0x20, 0, 4)
    assert client.request(Command.REGION_READ, request) == request + bytes(4)


def test_last_byte(client: Client) -> None:
    assert client.region_read(0, BAR0_SIZE - 1, 1) == b"\0"
    assert client.region_read(PciRegion.CONFIG, 0, 256) == bytes(256)
    assert client.region_read(READ_ONLY_BAR, 0, 4) == bytes(4)


def test_largest_access(client: Client) -> None:
    assert client.region_read(HUGE_BAR, 0, MAX_DATA_XFER) == b"\xa5" * MAX_DATA_XFER


@pytest.mark.parametrize(
    ("region", "offset", "count"),
    [
        (0, BAR0_SIZE, 1),
        (0, BAR0_SIZE - 3, 4),
        (0, (1 << 64) - 4, 8),
        (0, 0, 0),
        (1, 0, 4),
        (9, 0, 4),
        (0xFFFFFFFF, 0, 4),
        (HUGE_BAR, 0, MAX_DATA_XFER + 1),
        (HUGE_BAR, 0, 0xFFFFFFFF),
    ],
)
def test_out_of_range(lab: Lab, client: Client, region: int, offset: int, count: int) -> None:
    with pytest.raises(OSError) as refused:
        client.region_read(region, offset, count)
    assert refused.value.errno == errno.EINVAL
    assert not lab.calls("read")


def test_region_that_cannot_be_read(lab: Lab, client: Client) -> None:
    with pytest.raises(OSError) as refused:
        client.region_read(WRITE_ONLY_BAR, 0, 4)
    assert refused.value.errno == errno.EPERM
    assert not lab.calls("read")


def test_device_that_returns_nonsense(client: Client) -> None:
    with pytest.raises(OSError) as refused:
        client.region_read(BROKEN_BAR, 0, 4)
    assert refused.value.errno == errno.EIO
    assert client.region_read(0, 0, 4) == bytes(4)


def test_truncated_request(client: Client) -> None:
    with pytest.raises(OSError) as refused:
        client.request(Command.REGION_READ, REGION_ACCESS.pack(0, 0, 4)[:-1])
    assert refused.value.errno == errno.EINVAL


def test_many_reads_in_flight(lab: Lab, client: Client) -> None:
    lab.device.memory[:256] = bytes(range(256))
    ids = [client.send(Command.REGION_READ, REGION_ACCESS.pack(offset, 0, 1)) for offset in range(256)]
    for offset, message_id in reversed(list(enumerate(ids))):
        assert client.reply(message_id)[-1] == offset


def test_replies_that_do_not_fit_the_socket_are_sent_later(lab: Lab, client: Client) -> None:
    ids = [client.send(Command.REGION_READ, REGION_ACCESS.pack(0, HUGE_BAR, MAX_DATA_XFER)) for _ in range(4)]
    assert all(client.reply(message_id)[-1] == 0xA5 for message_id in ids)
    assert lab.server.stats["dropped"] == 0
