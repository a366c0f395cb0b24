"""DEVICE_GET_REGION_INFO: size, rights and capabilities of a region."""

from __future__ import annotations

import errno

import pytest

from nicmodel.vfio_user import Client, Command, PciRegion
from nicmodel.vfio_user.protocol import CAPABILITY, REGION_INFO, RegionFlag

from .conftest import BAR0_SIZE, BROKEN_BAR, CAPABILITIES, PAGE, READ_ONLY_BAR, WRITE_ONLY_BAR


@pytest.mark.parametrize(
    ("index", "size", "flags"),
    [
        (PciRegion.BAR0, BAR0_SIZE, RegionFlag.READ | RegionFlag.WRITE),
        (PciRegion.BAR1, 0, 0),
        (READ_ONLY_BAR, PAGE, RegionFlag.READ),
        (WRITE_ONLY_BAR, PAGE, RegionFlag.WRITE),
        (PciRegion.CONFIG, 256, RegionFlag.READ | RegionFlag.WRITE),
        (PciRegion.VGA, 0, 0),
    ],
)
def test_regions(client: Client, index: int, size: int, flags: int) -> None:
    info = client.region_info(index)
    assert (info.index, info.size, info.flags, info.argsz) == (index, size, flags, REGION_INFO.size)


def test_no_region_can_be_mapped(client: Client) -> None:
    """QEMU stops posting writes as soon as one region of the device can be."""
    for index in range(9):
        assert not client.region_info(index).flags & RegionFlag.MMAP


def test_capabilities_form_a_chain(client: Client) -> None:
    info = client.region_info(BROKEN_BAR)
    assert info.flags & RegionFlag.CAPS
    first, second = info.capabilities
    assert first == CAPABILITY.pack(2, 1, REGION_INFO.size + 24) + b"device specific!"
    assert second == CAPABILITY.pack(3, 1, 0) + b"odd" + bytes(5)
    assert info.argsz == REGION_INFO.size + len(first) + len(second)


def test_without_room_for_capabilities_only_their_size_is_told(client: Client) -> None:
    needed = REGION_INFO.size + sum(len(capability) + -len(capability) % 8 for capability in CAPABILITIES)
    for room in (REGION_INFO.size, needed - 1):
        info = client.region_info(BROKEN_BAR, argsz=room)
        assert (info.argsz, info.capabilities) == (needed, ())
        assert info.flags & RegionFlag.CAPS
    assert len(client.region_info(BROKEN_BAR, argsz=needed).capabilities) == 2


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        REGION_INFO.pack(32, 0, 0, 0, 0, 0)[:-1],
        REGION_INFO.pack(31, 0, 0, 0, 0, 0),
        REGION_INFO.pack(32, 0, 9, 0, 0, 0),
        REGION_INFO.pack(32, 0, 0xFFFFFFFF, 0, 0, 0),
    ],
)
def test_malformed_requests(client: Client, payload: bytes) -> None:
    with pytest.raises(OSError) as refused:
        client.request(Command.DEVICE_GET_REGION_INFO, payload)
    assert refused.value.errno == errno.EINVAL


def test_region_io_descriptors_are_not_offered(client: Client) -> None:
    with pytest.raises(OSError) as refused:
        client.request(Command.DEVICE_GET_REGION_IO_FDS, bytes(16))
    assert refused.value.errno == errno.ENOTSUP
