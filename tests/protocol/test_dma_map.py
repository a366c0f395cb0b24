"""DMA_MAP: the client's memory appears in the device's address space."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator

import pytest

from nicmodel.vfio_user import Client, Command, DmaFault, DmaTable
from nicmodel.vfio_user.protocol import DMA_MAP, HEADER, MAX_DMA_MAPS, NO_REPLY, DmaFlag
from nicmodel.vfio_user.windows import WINDOW_SIZE

from .conftest import PAGE, Lab, Memory, mappings_of, open_descriptors

READ, WRITE = 1, 2


@pytest.fixture
def table() -> Iterator[DmaTable]:
    created = DmaTable()
    yield created
    created.unmap_all()


def test_device_and_client_see_the_same_bytes(lab: Lab, client: Client, memory: Memory) -> None:
    client.dma_map(0x10000, 8 * PAGE, memory.fd, offset=2 * PAGE)
    memory.bytes[2 * PAGE + 5 : 2 * PAGE + 10] = b"hello"
    assert lab.run(client, lambda link: link.dma.read(0x10005, 5)) == b"hello"
    lab.run(client, lambda link: link.dma.write(0x10000 + 8 * PAGE - 3, b"end"))
    assert memory.bytes[10 * PAGE - 3 : 10 * PAGE] == b"end"


def test_the_table_describes_the_region(lab: Lab, client: Client, memory: Memory) -> None:
    before = lab.link.dma.generation
    client.dma_map(0x20000, PAGE, memory.fd)
    client.dma_map(0x10000, PAGE, memory.fd, PAGE, READ)
    client.dma_map(0x30000, 64, None)
    regions = lab.link.dma.regions
    assert regions["start"].tolist() == [0x10000, 0x20000, 0x30000]
    assert regions["size"].tolist() == [PAGE, PAGE, 64]
    assert regions["flags"].tolist() == [READ, READ | WRITE, READ | WRITE]
    assert [host != 0 for host in regions["host"]] == [True, True, False]
    assert lab.link.dma.generation == before + 3
    assert lab.calls("dma_changed") == [("dma_changed", 1), ("dma_changed", 2), ("dma_changed", 3)]


@pytest.mark.parametrize(
    ("address", "size"), [(0x10000, PAGE), (0xF000, 2 * PAGE), (0x11000, PAGE), (0x13FFF, 1), (0, 1 << 32)]
)
def test_overlap_is_refused(lab: Lab, client: Client, memory: Memory, address: int, size: int) -> None:
    client.dma_map(0x10000, 4 * PAGE, memory.fd)
    with pytest.raises(OSError) as refused:
        client.dma_map(address, size)
    assert refused.value.errno == errno.EEXIST
    assert len(lab.link.dma.regions) == 1


def test_neighbours_do_not_overlap(lab: Lab, client: Client, memory: Memory) -> None:
    client.dma_map(0x11000, PAGE, memory.fd)
    client.dma_map(0x10000, PAGE, memory.fd, PAGE)
    client.dma_map(0x12000, PAGE, memory.fd, 2 * PAGE)
    lab.run(client, lambda link: link.dma.write(0x10FFE, b"ab" + bytes(range(200)) * 20 + b"cd" * 50))
    assert memory.bytes[2 * PAGE - 2 : 2 * PAGE] == b"ab"
    assert memory.bytes[0:4] == b"\0\1\2\3"
    assert lab.run(client, lambda link: link.dma.read(0x10FFE, 3 + PAGE))[-1] == memory.bytes[2 * PAGE]


@pytest.mark.parametrize(
    ("address", "size", "offset"),
    [
        (0x10000, 0, 0),
        ((1 << 64) - PAGE, 2 * PAGE, 0),
        (0x10000, PAGE, 1),
        (0x10000, PAGE, PAGE // 2),
        (0x10000, 65 * PAGE, 0),
        (0x10000, PAGE, 64 * PAGE),
        (0x10000, (1 << 64) - 0x10000, PAGE),
        (0x10000, PAGE, (1 << 64) - PAGE),
    ],
)
def test_impossible_regions_are_refused(
    lab: Lab, client: Client, memory: Memory, address: int, size: int, offset: int
) -> None:
    with pytest.raises(OSError) as refused:
        client.dma_map(address, size, memory.fd, offset)
    assert refused.value.errno == errno.EINVAL
    assert len(lab.link.dma.regions) == 0
    assert lab.link.dma.generation == 0


def test_region_at_the_very_end_of_the_address_space(lab: Lab, client: Client, memory: Memory) -> None:
    top = (1 << 64) - PAGE
    client.dma_map(top, PAGE, memory.fd)
    assert lab.run(client, lambda link: link.dma.read(top, PAGE)) == memory.bytes[:PAGE]
    with pytest.raises(DmaFault):
        lab.run(client, lambda link: link.dma.read(top, PAGE + 1))


def test_large_file_offset(lab: Lab, client: Client) -> None:
    offset = 5 << 30
    fd = os.memfd_create("memory-backend-memfd")
    os.ftruncate(fd, offset + PAGE)
    os.pwrite(fd, b"far away", offset)
    client.dma_map(0, PAGE, fd, offset)
    os.close(fd)
    assert lab.run(client, lambda link: link.dma.read(0, 8)) == b"far away"


def test_rights_of_the_region(lab: Lab, client: Client, memory: Memory) -> None:
    client.dma_map(0x10000, PAGE, memory.fd, 0, READ)
    client.dma_map(0x11000, PAGE, memory.fd, PAGE, WRITE)
    with pytest.raises(DmaFault, match="not writable"):
        lab.run(client, lambda link: link.dma.write(0x10000, b"x"))
    with pytest.raises(DmaFault, match="not readable"):
        lab.run(client, lambda link: link.dma.read(0x11000, 1))
    lab.run(client, lambda link: link.dma.write(0x11000, b"x"))
    assert memory.bytes[PAGE] == ord("x")
    assert lab.server.stats["dma_faults"] == 2


def test_a_write_that_faults_writes_nothing(lab: Lab, client: Client, memory: Memory) -> None:
    client.dma_map(0x10000, PAGE, memory.fd)
    client.dma_map(0x11000, PAGE, memory.fd, PAGE, READ)
    for address in (0x10FFF, 0xFFFF, 0x11FFF):
        with pytest.raises(DmaFault) as fault:
            lab.run(client, lambda link, address=address: link.dma.write(address, b"xx"))  # type: ignore[misc]
        assert (fault.value.address, fault.value.count) == (address, 2)
    assert memory.bytes[: 2 * PAGE] == bytes(2 * PAGE)


def test_read_only_descriptor_cannot_be_mapped_writable(lab: Lab, client: Client, memory: Memory) -> None:
    fd = os.open(f"/proc/self/fd/{memory.fd}", os.O_RDONLY)
    try:
        with pytest.raises(OSError) as refused:
            client.dma_map(0x10000, PAGE, fd)
        assert refused.value.errno == errno.EACCES
        client.dma_map(0x10000, PAGE, fd, 0, READ)
    finally:
        os.close(fd)


def test_a_descriptor_that_is_no_memory(lab: Lab, client: Client) -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError) as refused:
            client.dma_map(0x10000, PAGE, read_end)
        assert refused.value.errno in (errno.ENODEV, errno.EACCES)
    finally:
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize(
    ("payload", "descriptors"),
    [
        (b"", 0),
        (DMA_MAP.pack(DMA_MAP.size, 3, 0, 0, PAGE)[:-1], 1),
        (DMA_MAP.pack(DMA_MAP.size - 1, 3, 0, 0, PAGE), 1),
        (DMA_MAP.pack(DMA_MAP.size, 16, 0, 0, PAGE), 1),
        (DMA_MAP.pack(DMA_MAP.size, 3 | DmaFlag.MMAP, 0, 0, PAGE), 0),
        (DMA_MAP.pack(DMA_MAP.size, 3 | DmaFlag.FILE_IO, 0, 0, PAGE), 0),
        (DMA_MAP.pack(DMA_MAP.size, 3, 0, 0, PAGE), 2),
        (DMA_MAP.pack(DMA_MAP.size, 3, 0, 0, PAGE), 40),
    ],
)
def test_malformed_requests(lab: Lab, client: Client, memory: Memory, payload: bytes, descriptors: int) -> None:
    before = open_descriptors()
    with pytest.raises(OSError) as refused:
        client.request(Command.DMA_MAP, payload, [memory.fd] * descriptors)
    assert refused.value.errno == errno.EINVAL
    assert open_descriptors() == before


@pytest.mark.parametrize("access", [DmaFlag.MMAP, DmaFlag.MMAP | DmaFlag.FILE_IO])
def test_a_client_that_says_how_its_descriptor_may_be_used(
    lab: Lab, client: Client, memory: Memory, access: DmaFlag
) -> None:
    client.dma_map(0x10000, PAGE, memory.fd, flags=READ | WRITE | access)
    lab.run(client, lambda link: link.dma.write(0x10000, b"mapped"))
    assert memory.bytes[:6] == b"mapped"
    assert lab.link.dma.regions["flags"].tolist() == [READ | WRITE]


def test_file_io_alone_is_not_supported(lab: Lab, client: Client, memory: Memory) -> None:
    """A client allows it where mmap is impossible: then it must not be tried."""
    with pytest.raises(OSError) as refused:
        client.dma_map(0x10000, PAGE, memory.fd, flags=READ | WRITE | DmaFlag.FILE_IO)
    assert refused.value.errno == errno.ENOTSUP
    assert len(lab.link.dma) == 0


def test_a_region_without_rights_is_not_touched(lab: Lab, client: Client, memory: Memory) -> None:
    client.dma_map(0x10000, PAGE, memory.fd, flags=0)
    assert lab.link.dma.regions["host"].tolist() == [0]
    for access in (lambda link: link.dma.read(0x10000, 1), lambda link: link.dma.write(0x10000, b"x")):
        with pytest.raises(DmaFault, match="not"):
            lab.run(client, access)
    client.dma_unmap(0x10000, PAGE)
    assert lab.link.dma.by_message == 0


def test_descriptors_are_not_kept(lab: Lab, client: Client, memory: Memory) -> None:
    before = open_descriptors()
    for page in range(10):
        client.dma_map(page * PAGE, PAGE, memory.fd, page * PAGE)
    assert open_descriptors() == before


def test_descriptors_belong_to_the_last_message_of_a_read(lab: Lab, client: Client, memory: Memory) -> None:
    """QEMU sends maps without waiting, so several messages arrive in one read, with one set of descriptors."""

    def message(address: int, size: int) -> bytes:
        payload = DMA_MAP.pack(DMA_MAP.size, 3, 0, address, size)
        return HEADER.pack(1, Command.DMA_MAP, HEADER.size + len(payload), NO_REPLY, 0) + payload

    for base in range(0, 0x200000, 0x100000):
        client.raw(message(base, PAGE))
        client.raw(message(base + 0x10000, PAGE))
        client.raw(message(base + 0x20000, PAGE), fds=[memory.fd])
        client.raw(message(base + 0x30000, PAGE))
    # The same in one packet: its descriptors are those of the last message in it.
    client.raw(message(0x300000, PAGE) + message(0x310000, PAGE), fds=[memory.fd])
    client.device_info()
    mapped = {int(region["start"]): bool(region["host"]) for region in lab.link.dma.regions}
    assert [start for start, host in mapped.items() if host] == [0x20000, 0x120000, 0x310000]
    assert len(mapped) == 10


def test_a_message_with_descriptors_may_arrive_in_pieces(lab: Lab, client: Client, memory: Memory) -> None:
    payload = DMA_MAP.pack(DMA_MAP.size, 3, 0, 0x10000, PAGE)
    message = HEADER.pack(9, Command.DMA_MAP, HEADER.size + len(payload), 0, 0) + payload
    client.raw(message[:10], fds=[memory.fd])
    time.sleep(0.01)
    client.raw(message[10:30])
    time.sleep(0.01)
    client.raw(message[30:] + HEADER.pack(10, Command.DEVICE_RESET, HEADER.size, 0, 0))
    client.reply(9)
    client.reply(10)
    assert lab.link.dma.regions[0]["host"] != 0


def kind_of(table: DmaTable, fd: int) -> str:
    start = len(table.regions) * PAGE
    table.map(start, PAGE, fd=fd, offset=0, readable=True, writable=True)
    return table.kinds[int(table.regions[-1]["kind"])]


@pytest.mark.parametrize(
    ("name", "kind"), [("memory-backend-memfd", "ram"), ("", "ram"), ("hbm", "hbm"), ("a b (deleted)", "a b (deleted)")]
)
def test_kind_of_a_memfd(table: DmaTable, name: str, kind: str) -> None:
    memory = Memory(PAGE, name)
    assert kind_of(table, memory.fd) == kind
    memory.close()


def test_kind_of_a_file(table: DmaTable, tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "hbm")
    for remove in (False, True):
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, PAGE)
        if remove:
            os.unlink(path)
        assert kind_of(table, fd) == "hbm"
        os.close(fd)
    assert table.kinds == ["ram", "hbm"]


def test_at_most_eight_kinds_have_names(table: DmaTable) -> None:
    kinds = []
    for index in range(10):
        memory = Memory(PAGE, f"kind{index}")
        kinds.append(kind_of(table, memory.fd))
        memory.close()
    assert kinds == [f"kind{index}" for index in range(7)] + ["other"] * 3
    assert table.kinds == ["ram", *(f"kind{index}" for index in range(7)), "other"]


def test_a_file_is_mapped_once(table: DmaTable) -> None:
    memory = Memory(64 * PAGE, "once")
    own = mappings_of("once")
    for page in range(64):
        fd = os.dup(memory.fd)
        table.map(page << 20, PAGE, fd=fd, offset=page * PAGE, readable=True, writable=True)
        os.close(fd)
    assert mappings_of("once") == own + 1
    table.write(7 << 20, b"seven")
    assert memory.bytes[7 * PAGE : 7 * PAGE + 5] == b"seven"
    for page in range(63):
        table.unmap(page << 20, PAGE)
    assert mappings_of("once") == own + 1
    assert table.read(63 << 20, 1) == b"\0"
    table.unmap(63 << 20, PAGE)
    assert mappings_of("once") == own
    memory.close()


def reopened(memory: Memory, flags: int) -> int:
    return os.open(f"/proc/self/fd/{memory.fd}", flags)


def test_rights_are_those_of_each_region_and_descriptor(table: DmaTable) -> None:
    """Of one file: what is mapped for writing gives no other region, and no other descriptor, that right."""
    memory = Memory(8 * PAGE, "rights")
    table.map(0, PAGE, fd=memory.fd, offset=0, readable=True, writable=True)
    table.map(PAGE, PAGE, fd=memory.fd, offset=0, readable=True, writable=False)
    with open("/proc/self/maps") as maps:
        rights = {int(line.split("-")[0], 16): line.split()[1] for line in maps if "rights" in line}
    first, second = table.regions["host"].tolist()
    assert (rights[first], rights[second]) == ("rw-s", "r--s")
    with pytest.raises(DmaFault, match="not writable"):
        table.write(PAGE, b"x")
    for flags, code, writable in (
        (os.O_RDONLY, errno.EACCES, True),
        (os.O_WRONLY, errno.EACCES, True),
        (os.O_WRONLY, errno.EACCES, False),
        (os.O_PATH, errno.EBADF, False),
    ):
        fd = reopened(memory, flags)
        with pytest.raises(OSError) as refused:
            table.map(2 * PAGE, PAGE, fd=fd, offset=0, readable=True, writable=writable)
        os.close(fd)
        assert refused.value.errno == code
    assert len(table) == 2
    fd = reopened(memory, os.O_RDONLY)
    table.map(2 * PAGE, PAGE, fd=fd, offset=PAGE, readable=True, writable=False)
    os.close(fd)
    memory.close()


@pytest.mark.parametrize("mapped_before", [False, True])
def test_a_sealed_file(table: DmaTable, mapped_before: bool) -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE)
    if mapped_before:
        table.map(0, PAGE, fd=fd, offset=0, readable=True, writable=True)
    fcntl.fcntl(fd, 1033, 0x10)  # F_ADD_SEALS, F_SEAL_FUTURE_WRITE
    with pytest.raises(OSError) as refused:
        table.map(PAGE, PAGE, fd=fd, offset=0, readable=True, writable=True)
    assert refused.value.errno == errno.EPERM
    table.map(PAGE, PAGE, fd=fd, offset=0, readable=True, writable=False)
    os.close(fd)


def test_a_file_that_grows(table: DmaTable) -> None:
    memory = Memory(PAGE, "grows")
    table.map(0, PAGE, fd=memory.fd, offset=0, readable=True, writable=True)
    with pytest.raises(OSError):
        table.map(PAGE, PAGE, fd=memory.fd, offset=PAGE, readable=True, writable=True)
    os.ftruncate(memory.fd, 2 * PAGE)
    table.map(PAGE, PAGE, fd=memory.fd, offset=PAGE, readable=True, writable=True)
    table.write(PAGE - 2, b"span")
    assert os.pread(memory.fd, 4, PAGE - 2) == b"span"
    table.unmap(0, PAGE)
    assert table.read(PAGE, 2) == b"an"
    memory.close()


def test_a_huge_sparse_file(table: DmaTable) -> None:
    """One that is not mapped as a whole: regions in several windows, and one across their border."""
    fd = os.memfd_create("huge")
    os.ftruncate(fd, 1 << 60)
    places = [0, WINDOW_SIZE - PAGE, 5 * WINDOW_SIZE, (1 << 60) - 2 * PAGE]
    for number, offset in enumerate(places):
        table.map(number << 20, 2 * PAGE, fd=fd, offset=offset, readable=True, writable=True)
        table.write((number << 20) + PAGE - 1, b"%d!" % number)
        assert os.pread(fd, 2, offset + PAGE - 1) == b"%d!" % number
    with pytest.raises(OSError) as refused:
        table.map(1 << 40, 1 << 50, fd=fd, offset=0, readable=True, writable=True)
    assert refused.value.errno == errno.ENOMEM
    assert len(table) == 4
    table.unmap_all()
    assert not mappings_of("huge")
    os.close(fd)


def test_files_are_limited(table: DmaTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nicmodel.vfio_user.windows.MAX_WINDOWS", 3)
    memories = [Memory(PAGE, "limited") for _ in range(4)]
    for number, memory in enumerate(memories[:3]):
        table.map(number * PAGE, PAGE, fd=memory.fd, offset=0, readable=True, writable=True)
    with pytest.raises(OSError) as refused:
        table.map(3 * PAGE, PAGE, fd=memories[3].fd, offset=0, readable=True, writable=True)
    assert refused.value.errno == errno.ENOSPC
    table.unmap(0, PAGE)
    table.map(3 * PAGE, PAGE, fd=memories[3].fd, offset=0, readable=True, writable=True)
    for memory in memories:
        memory.close()


def test_regions_are_limited(table: DmaTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nicmodel.vfio_user.dma.MAX_DMA_MAPS", 3)
    for number in range(3):
        table.map(number * PAGE, PAGE, fd=None, offset=0, readable=True, writable=True)
    with pytest.raises(OSError) as refused:
        table.map(3 * PAGE, PAGE, fd=None, offset=0, readable=True, writable=True)
    assert refused.value.errno == errno.ENOSPC


def test_what_is_offered(lab: Lab) -> None:
    """QEMU breaks off if it is offered more than it has proposed."""
    for proposed, offered in ((65535, 65535), (1 << 30, MAX_DMA_MAPS)):
        client = lab.client(negotiate=False)
        client.negotiate({"max_dma_maps": proposed})
        assert client.server.max_dma_maps == offered
        client.close()


def test_thousands_of_small_regions(table: DmaTable) -> None:
    """A vIOMMU announces every page by itself."""
    memory = Memory(4000 * PAGE)
    for page in range(4000):
        # In an order in which neither end of the table is favoured.
        start = (page * 1237 % 4000) * PAGE
        table.map(start, PAGE, fd=memory.fd, offset=start, readable=True, writable=True)
    table.write(0, b"x" * (4000 * PAGE))
    for page in range(3999):
        table.unmap(page * PAGE, PAGE)
    assert memory.bytes[:] == b"x" * (4000 * PAGE)
    assert len(table.regions) == 1
    memory.close()
