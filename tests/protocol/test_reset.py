"""DEVICE_RESET."""

from __future__ import annotations

import errno

import pytest

from nicmodel.vfio_user import Client

from .conftest import PAGE, Lab, Memory


def test_device_is_reset_and_the_client_stays(lab: Lab, client: Client, memory: Memory) -> None:
    client.dma_map(0, PAGE, memory.fd)
    client.reset()
    client.reset()
    assert lab.calls("reset") == [("reset",)] * 2
    assert len(lab.link.dma.regions) == 1
    assert not lab.calls("detach")


def test_device_that_cannot_be_reset(lab: Lab, client: Client) -> None:
    lab.device.resettable = False
    with pytest.raises(OSError) as refused:
        client.reset()
    assert refused.value.errno == errno.ENOTSUP
    assert not lab.calls("reset")
