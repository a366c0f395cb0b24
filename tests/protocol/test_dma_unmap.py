"""DMA_UNMAP: memory is given back, and the device knows before it goes."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from nicmodel.vfio_user import Client, Command, DmaFault
from nicmodel.vfio_user.protocol import DMA_UNMAP

from .conftest import PAGE, Lab, Memory, mappings_of


def test_memory_is_unmapped_before_the_reply(lab: Lab, client: Client) -> None:
    memory, other = Memory(4 * PAGE, "unmap-me"), Memory(PAGE, "keep-me")
    own, others = mappings_of("unmap-me"), mappings_of("keep-me")
    client.dma_map(0x10000, PAGE, memory.fd)
    client.dma_map(0x20000, PAGE, other.fd)
    assert (mappings_of("unmap-me"), mappings_of("keep-me")) == (own + 1, others + 1)
    client.dma_unmap(0x10000, PAGE)
    assert (mappings_of("unmap-me"), mappings_of("keep-me")) == (own, others + 1)
    assert lab.link.dma.regions["start"].tolist() == [0x20000]
    with pytest.raises(DmaFault):
        lab.run(client, lambda link: link.dma.read(0x10000, 1))
    memory.close()
    other.close()


def test_views_of_the_table_do_not_keep_memory(lab: Lab, client: Client) -> None:
    memory = Memory(PAGE, "held")
    own = mappings_of("held")
    client.dma_map(0x10000, PAGE, memory.fd)
    kept = lab.link.dma.regions
    client.dma_unmap(0x10000, PAGE)
    assert mappings_of("held") == own
    assert len(kept) == 1
    memory.close()


def test_the_device_is_told_before_and_after(lab: Lab, client: Client, memory: Memory) -> None:
    client.dma_map(0x10000, PAGE, memory.fd)
    client.dma_map(0x20000, PAGE, memory.fd)
    lab.idle()
    lab.device.calls.clear()
    client.dma_unmap(0x20000, PAGE)
    # before_unmap still sees both regions, dma_changed only the one that is left.
    assert lab.device.calls[:2] == [("before_unmap", 0x20000, PAGE, 2), ("dma_changed", 1)]


def test_reply_repeats_the_request(client: Client, memory: Memory) -> None:
    client.dma_map(0x10000, PAGE, memory.fd)
    payload = DMA_UNMAP.pack(DMA_UNMAP.size, 0, 0x10000, PAGE)
    assert client.request(Command.DMA_UNMAP, payload) == payload


@pytest.mark.parametrize(
    ("address", "size"),
    [
        (0x10000, PAGE),
        (0x11000, 3 * PAGE),
        (0x11000, PAGE),
        (0xF000, 4 * PAGE),
        (0, 0x10001),
        (0x13FFF, 1 << 40),
        (0, 0),
        (0x10000, 0),
        ((1 << 64) - PAGE, 2 * PAGE),
        (0x10000, (1 << 64) - 0x10000 + 1),
        (PAGE, (1 << 64) - 1),
    ],
)
def test_a_range_that_cuts_a_region_or_cannot_be(
    lab: Lab, client: Client, memory: Memory, address: int, size: int
) -> None:
    client.dma_map(0x10000, 4 * PAGE, memory.fd)
    with pytest.raises(OSError) as refused:
        client.dma_unmap(address, size)
    assert refused.value.errno == errno.EINVAL
    assert len(lab.link.dma.regions) == 1
    assert not lab.calls("before_unmap")


@pytest.mark.parametrize(
    ("address", "size", "left"),
    [
        (0x10000, PAGE, [0x11000, 0x20000, 0x30000, 1 << 47]),
        (0x11000, 0xF000, [0x10000, 0x20000, 0x30000, 1 << 47]),
        (0x10000, 0x11000, [0x30000, 1 << 47]),
        (0xFFFF, 0x11001, [0x30000, 1 << 47]),
        (0, 1 << 47, [1 << 47]),
        (1 << 47, (1 << 64) - (1 << 47), [0x10000, 0x11000, 0x20000, 0x30000]),
        (1, (1 << 64) - 1, []),
    ],
)
def test_a_range_takes_all_regions_inside(
    lab: Lab, client: Client, memory: Memory, address: int, size: int, left: list[int]
) -> None:
    """QEMU unmaps an IOMMU's address space, or a block of memory, by one request or a few."""
    for start in (0x10000, 0x11000, 0x20000, 0x30000, 1 << 47):
        client.dma_map(start, PAGE, None if start == 0x11000 else memory.fd)
    client.dma_unmap(address, size)
    assert lab.link.dma.regions["start"].tolist() == left
    assert lab.link.dma.by_message == (0x11000 in left)
    assert lab.calls("before_unmap") == [("before_unmap", address, size, 5)]
    for start in (0x10000, 0x11000, 0x20000, 0x30000, 1 << 47):
        if start not in left:
            client.dma_map(start, PAGE, memory.fd)
    assert len(lab.link.dma) == 5


@pytest.mark.parametrize(("address", "size"), [(0, 0x10000), (0x11000, 0xF000), (0x21000, 1 << 50)])
def test_a_range_without_regions(lab: Lab, client: Client, memory: Memory, address: int, size: int) -> None:
    client.dma_map(0x10000, PAGE, memory.fd)
    client.dma_map(0x20000, PAGE, memory.fd)
    changes = len(lab.calls("dma_changed"))
    client.dma_unmap(address, size)
    assert len(lab.link.dma) == 2
    assert not lab.calls("before_unmap")
    assert len(lab.calls("dma_changed")) == changes


def test_all_at_once(lab: Lab, client: Client) -> None:
    memory = Memory(4 * PAGE, "all-at-once")
    own = mappings_of("all-at-once")
    for page in range(4):
        client.dma_map(page << 20, PAGE, memory.fd, page * PAGE)
    client.dma_map(5 << 20, PAGE)
    client.dma_unmap_all()
    assert mappings_of("all-at-once") == own
    assert len(lab.link.dma.regions) == 0
    assert lab.calls("before_unmap") == [("before_unmap", 0, 1 << 64, 5)]
    client.dma_unmap_all()
    assert len(lab.calls("before_unmap")) == 1
    memory.close()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        DMA_UNMAP.pack(DMA_UNMAP.size, 0, 0x10000, PAGE)[:-1],
        DMA_UNMAP.pack(DMA_UNMAP.size - 1, 0, 0x10000, PAGE),
        DMA_UNMAP.pack(DMA_UNMAP.size, 1, 0x10000, PAGE),  # dirty bitmap
        DMA_UNMAP.pack(DMA_UNMAP.size, 2, 0x10000, PAGE),  # all, yet with an address
    ],
)
def test_malformed_requests(lab: Lab, client: Client, memory: Memory, payload: bytes) -> None:
    client.dma_map(0x10000, PAGE, memory.fd)
    with pytest.raises(OSError) as refused:
        client.request(Command.DMA_UNMAP, payload)
    assert refused.value.errno == errno.EINVAL
    assert len(lab.link.dma.regions) == 1


def test_remap_under_the_same_address(lab: Lab, client: Client, memory: Memory) -> None:
    """Firmware does this while it sets up its shadow memory."""
    memory.bytes[0:1], memory.bytes[PAGE : PAGE + 1] = b"A", b"B"
    for offset, letter in ((0, b"A"), (PAGE, b"B"), (0, b"A")):
        client.dma_map(0x10000, PAGE, memory.fd, offset)
        assert lab.run(client, lambda link: link.dma.read(0x10000, 1)) == letter
        client.dma_unmap(0x10000, PAGE)
    assert np.array_equal(lab.link.dma.regions, lab.link.dma.regions[:0])
