"""REGION_WRITE_MULTI: several small writes in one message."""

from __future__ import annotations

import errno

import pytest

from nicmodel.vfio_user import Client, Command
from nicmodel.vfio_user.protocol import SINGLE_WRITE, WRITE_MULTI

from .conftest import BAR0_SIZE, Lab


def test_all_are_done_in_order(lab: Lab, client: Client) -> None:
    writes = [(0, 4 * index, bytes([index]) * size) for index, size in enumerate((1, 2, 4, 8))]
    assert client.write_multi(writes) == 4
    assert lab.calls("write") == [("write", *write) for write in writes]


def test_posted(lab: Lab, client: Client) -> None:
    client.write_multi([(0, 0, b"a"), (0, 0, b"b")] * 100, posted=True)  # QEMU puts up to 200 into one
    assert client.region_read(0, 0, 1) == b"b"
    assert not client._replies
    assert len(lab.calls("write")) == 200


def test_none_at_all(lab: Lab, client: Client) -> None:
    assert client.write_multi([]) == 0


def test_the_first_bad_one_ends_it(lab: Lab, client: Client) -> None:
    with pytest.raises(OSError) as refused:
        client.write_multi([(0, 0, b"good"), (0, BAR0_SIZE, b"bad"), (0, 8, b"late")])
    assert refused.value.errno == errno.EINVAL
    assert [call[3] for call in lab.calls("write")] == [b"good"]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        WRITE_MULTI.pack(1),
        WRITE_MULTI.pack(1) + SINGLE_WRITE.pack(0, 0, 4, b"data")[:-1],
        WRITE_MULTI.pack(2) + SINGLE_WRITE.pack(0, 0, 4, b"data"),
        WRITE_MULTI.pack(0) + SINGLE_WRITE.pack(0, 0, 4, b"data"),
        WRITE_MULTI.pack(1 << 63) + SINGLE_WRITE.pack(0, 0, 4, b"data"),
        WRITE_MULTI.pack(1) + SINGLE_WRITE.pack(0, 0, 9, b"data"),
        WRITE_MULTI.pack(1) + SINGLE_WRITE.pack(0, 0, 0, b"data"),
    ],
)
def test_malformed_requests(lab: Lab, client: Client, payload: bytes) -> None:
    with pytest.raises(OSError) as refused:
        client.request(Command.REGION_WRITE_MULTI, payload)
    assert refused.value.errno == errno.EINVAL
    assert not lab.calls("write")
