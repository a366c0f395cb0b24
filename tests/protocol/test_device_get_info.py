"""DEVICE_GET_INFO: what kind of device it is."""

from __future__ import annotations

import errno

import pytest

from nicmodel.vfio_user import Client, Command
from nicmodel.vfio_user.protocol import DEVICE_INFO, DeviceFlag

from .conftest import Lab


def test_info(client: Client) -> None:
    info = client.device_info()
    assert info.flags == DeviceFlag.PCI | DeviceFlag.RESET
    assert (info.num_regions, info.num_irqs) == (9, 5)


def test_device_without_reset(lab: Lab, client: Client) -> None:
    lab.device.resettable = False
    assert client.device_info().flags == DeviceFlag.PCI


def test_reply_tells_its_size(client: Client) -> None:
    reply = client.request(Command.DEVICE_GET_INFO, DEVICE_INFO.pack(4096, 0, 0, 0))
    assert len(reply) == DEVICE_INFO.size
    assert DEVICE_INFO.unpack(reply)[0] == DEVICE_INFO.size


@pytest.mark.parametrize("payload", [b"", DEVICE_INFO.pack(16, 0, 0, 0)[:-1], DEVICE_INFO.pack(15, 0, 0, 0)])
def test_too_little_room(client: Client, payload: bytes) -> None:
    with pytest.raises(OSError) as refused:
        client.request(Command.DEVICE_GET_INFO, payload)
    assert refused.value.errno == errno.EINVAL
