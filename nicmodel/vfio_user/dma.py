"""The client's memory as the device sees it: a table of DMA regions, mapped into this process.

The table is a numpy array so that compiled code can translate addresses by itself; Python code uses ``read`` and
``write``. Every access is checked against it, and one that is not wholly inside regions with the needed right raises
``DmaFault`` and touches nothing.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .protocol import MAX_DMA_MAPS

REGION = np.dtype([("start", "<u8"), ("size", "<u8"), ("host", "<u8"), ("flags", "<u4"), ("kind", "<u4")])
"""One DMA region: DMA address, size in bytes, address of its mapping in this process (0: none, reachable by messages
only), rights (READABLE, WRITABLE) and kind of memory (index into ``DmaTable.kinds``)."""
READABLE = 1
WRITABLE = 2

MAX_KINDS = 8
"""Kinds of memory that get a name of their own; further ones share the name ``other``."""

BY_MESSAGE = "by message"
"""The kind of memory that has no descriptor, so that nobody knows its name."""

_QEMU_MEMFD = "memory-backend-memfd"  # the name QEMU gives every memfd of a memory-backend-memfd object

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value


class DmaFault(Exception):
    """A DMA access that the address space does not allow, or that the client failed to serve."""

    def __init__(self, address: int, count: int, reason: str) -> None:
        super().__init__(f"DMA of {count} bytes at {address:#x}: {reason}")
        self.address = address
        self.count = count
        self.reason = reason


class DmaMessages(Protocol):
    """The way to memory without a descriptor: DMA_READ and DMA_WRITE. Both methods raise DmaFault."""

    def dma_read(self, address: int, count: int) -> bytes:
        """Fetch ``count`` bytes from the client."""

    def dma_write(self, address: int, data: bytes) -> None:
        """Store ``data`` at the client."""


class DmaTable:
    """The DMA address space of one client.

    Attributes:
        regions: REGION records, sorted by ``start``, without overlap. A change replaces the array and never edits it,
            so a reader may keep one as a consistent picture until ``generation`` moves. The mappings behind an old
            array are gone once ``unmap`` has returned.
        generation: Number of changes so far.
        kinds: Names of the kinds of memory met so far; ``kinds[0]`` is ``"ram"``.
        on_fault: Called with every fault before it is raised.
    """

    def __init__(
        self, messages: DmaMessages | None = None, *, on_fault: Callable[[DmaFault], None] | None = None
    ) -> None:
        self.regions: npt.NDArray[np.void] = np.empty(0, REGION)
        self.generation = 0
        self.kinds = ["ram"]
        self.on_fault = on_fault
        self._messages = messages
        self._starts: list[int] = []  # regions["start"] as Python integers, for bisection

    def map(self, start: int, size: int, *, fd: int | None, offset: int, readable: bool, writable: bool) -> None:
        """Add a region and map it into this process.

        Args:
            start: DMA address.
            size: Bytes.
            fd: File behind the region, mapped here and then no longer needed; None if only messages reach it.
            offset: Where in the file the region starts, a multiple of the page size.
            readable: The device may read.
            writable: The device may write.

        Raises:
            OSError: EINVAL (empty, beyond 2^64, offset not aligned, file too short: touching such a page would be
                SIGBUS), EEXIST (overlaps a region), ENOSPC (too many regions), or why ``mmap`` failed.
        """
        if size == 0 or start + size > 1 << 64:
            raise OSError(errno.EINVAL, f"DMA region of {size:#x} bytes at {start:#x}")
        index = bisect_right(self._starts, start)
        if (index > 0 and self._end(index - 1) > start) or (
            index < len(self._starts) and start + size > self._starts[index]
        ):
            raise OSError(errno.EEXIST, f"DMA region {start:#x}+{size:#x} overlaps another")
        if len(self._starts) >= MAX_DMA_MAPS:
            raise OSError(errno.ENOSPC, "too many DMA regions")
        flags = READABLE * readable | WRITABLE * writable
        host, kind = 0, 0
        if fd is not None:
            host = _map_file(fd, offset, size, flags)
            kind = self._kind(_memory_name(fd))
        elif readable and writable:  # without a descriptor and not writable: a ROM, which counts as ordinary memory
            kind = self._kind(BY_MESSAGE)
        row = np.array((start, size, host, flags, kind), REGION)
        self.regions = np.concatenate((self.regions[:index], row[np.newaxis], self.regions[index:]))
        self._starts.insert(index, start)
        self.generation += 1

    def unmap(self, start: int, size: int) -> None:
        """Remove exactly the region that was added with these values.

        Raises:
            OSError: ENOENT, there is no such region.
        """
        index = self.find(start, size)
        host = int(self.regions[index]["host"])
        self.regions = np.concatenate((self.regions[:index], self.regions[index + 1 :]))
        del self._starts[index]
        self.generation += 1
        _unmap(host, size)

    def find(self, start: int, size: int) -> int:
        """Index in ``regions`` of exactly this region.

        Raises:
            OSError: ENOENT, there is no such region.
        """
        index = bisect_right(self._starts, start) - 1
        if index < 0 or self._starts[index] != start or self._end(index) != start + size:
            raise OSError(errno.ENOENT, f"no DMA region {start:#x}+{size:#x}")
        return index

    def unmap_all(self) -> None:
        """Remove every region."""
        gone, self.regions, self._starts = self.regions, np.empty(0, REGION), []
        self.generation += 1
        for region in gone:
            _unmap(int(region["host"]), int(region["size"]))

    def read(self, addr: int, count: int) -> bytes:
        """Read from the client's memory, across region borders if need be.

        Raises:
            DmaFault: a byte lies outside, is not readable, or the client did not deliver it.
        """
        pieces = list(self._pieces(addr, count, READABLE))
        return b"".join(
            ctypes.string_at(host, length) if host else self._fetch(address, length) for address, length, host in pieces
        )

    def write(self, addr: int, data: bytes | bytearray | memoryview) -> None:
        """Write to the client's memory, across region borders if need be.

        Raises:
            DmaFault: a byte lies outside, is not writable (nothing was written then), or the client did not take it.
        """
        data = bytes(data)
        done = 0
        for address, length, host in list(self._pieces(addr, len(data), WRITABLE)):
            piece = data if length == len(data) else data[done : done + length]
            if host:
                ctypes.memmove(host, piece, length)
            else:
                self._store(address, piece)
            done += length

    def fault(self, fault: DmaFault) -> DmaFault:
        """Report a fault to ``on_fault`` and return it, to be raised."""
        if self.on_fault is not None:
            self.on_fault(fault)
        return fault

    def _pieces(self, addr: int, count: int, right: int) -> Iterator[tuple[int, int, int]]:
        """Split an access at region borders into (DMA address, length, host address or 0)."""
        end = addr + count
        address = addr
        index = bisect_right(self._starts, addr) - 1
        while address < end:
            if not 0 <= index < len(self._starts):
                raise self.fault(DmaFault(addr, count, "outside of the client's memory"))
            start, size, host, flags, _ = self.regions[index].item()
            if not start <= address < start + size:
                raise self.fault(DmaFault(addr, count, "outside of the client's memory"))
            if not flags & right:
                raise self.fault(DmaFault(addr, count, "not readable" if right == READABLE else "not writable"))
            length = min(end, start + size) - address
            yield address, length, host + address - start if host else 0
            address += length
            index += 1

    def _fetch(self, address: int, count: int) -> bytes:
        if self._messages is None:
            raise self.fault(DmaFault(address, count, "no descriptor"))
        try:
            return self._messages.dma_read(address, count)
        except DmaFault as fault:
            raise self.fault(fault) from None

    def _store(self, address: int, data: bytes) -> None:
        if self._messages is None:
            raise self.fault(DmaFault(address, len(data), "no descriptor"))
        try:
            self._messages.dma_write(address, data)
        except DmaFault as fault:
            raise self.fault(fault) from None

    def _end(self, index: int) -> int:
        return self._starts[index] + int(self.regions[index]["size"])

    def _kind(self, name: str) -> int:
        if name not in self.kinds:
            if len(self.kinds) >= MAX_KINDS:
                name = "other"
            if name not in self.kinds:
                self.kinds.append(name)
        return self.kinds.index(name)


def without(regions: npt.NDArray[np.void], start: int, end: int) -> npt.NDArray[np.void]:
    """A copy of sorted REGION records that lacks the addresses from ``start`` up to, not including, ``end``."""
    rest = []
    for region in regions:
        first, last = int(region["start"]), int(region["start"]) + int(region["size"])
        for low, high in ((first, min(last, start)), (max(first, end), last)):
            if low < high:
                piece = region.copy()
                piece["start"], piece["size"] = low, high - low
                piece["host"] = int(region["host"]) + low - first if region["host"] else 0
                rest.append(piece)
    return np.array(rest, REGION)


def _map_file(fd: int, offset: int, size: int, flags: int) -> int:
    """Map a part of a file, shared; return the address."""
    if offset % mmap.PAGESIZE:
        raise OSError(errno.EINVAL, f"file offset {offset:#x} is not page aligned")
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and offset + size > status.st_size:
        raise OSError(errno.EINVAL, f"file of {status.st_size:#x} bytes ends inside {offset:#x}+{size:#x}")
    protection = mmap.PROT_READ * bool(flags & READABLE) | mmap.PROT_WRITE * bool(flags & WRITABLE)
    if offset >= 1 << 63 or size >= 1 << 63:
        raise OSError(errno.EINVAL, f"file range {offset:#x}+{size:#x}")
    address: int = _libc.mmap(None, size, protection, mmap.MAP_SHARED, fd, offset)
    if address == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap: {os.strerror(code)}")
    return address


def _unmap(host: int, size: int) -> None:
    if host and _libc.munmap(host, size) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"munmap: {os.strerror(code)}")


def _memory_name(fd: int) -> str:
    """Name of the memory behind a descriptor: its file's name, or ``ram`` for QEMU's memfds and nameless memory."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    deleted = path.endswith(" (deleted)")
    path = path.removesuffix(" (deleted)")
    if path.startswith("/memfd:"):
        name = path.removeprefix("/memfd:")
        return "ram" if name in ("", _QEMU_MEMFD) else name
    if deleted and path == "/dev/zero":  # shared anonymous memory
        return "ram"
    return os.path.basename(path) or "ram"
