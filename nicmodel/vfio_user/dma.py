"""The client's memory as the device sees it: a table of DMA regions, mapped into this process.

The table is kept in numpy arrays so that compiled code can translate addresses by itself (``regions.py``); Python code
uses ``read`` and ``write``. Every access is checked against it, and one that is not wholly inside regions with the
needed right raises ``DmaFault`` and touches nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .protocol import MAX_DMA_MAPS
from .regions import REGION, RegionMap, RegionTree
from .windows import Window, Windows

READABLE = 1
WRITABLE = 2

MAX_KINDS = 8
"""Kinds of memory that get a name of their own; further ones share the name ``other``."""

BY_MESSAGE = "by message"
"""The kind of memory that has no descriptor, so that nobody knows its name."""

_QEMU_MEMFD = "memory-backend-memfd"  # the name QEMU gives every memfd of a memory-backend-memfd object

_END = 1 << 64  # of DMA addresses


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
        generation: Number of changes so far.
        kinds: Names of the kinds of memory met so far; ``kinds[0]`` is ``"ram"``.
        by_message: Number of regions that only messages reach, other than ROMs.
        on_fault: Called with every fault before it is raised.
        on_lost: Called after regions have gone since their memory was taken away.
    """

    def __init__(
        self,
        messages: DmaMessages | None = None,
        *,
        on_fault: Callable[[DmaFault], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self.generation = 0
        self.kinds = ["ram"]
        self.by_message = 0
        self.on_fault = on_fault
        self.on_lost = on_lost
        self._messages = messages
        self._tree: RegionTree[Window | str | None] = RegionTree()  # owners: a window; BY_MESSAGE; or None, a ROM
        self._windows = Windows()

    def __len__(self) -> int:
        """Number of regions."""
        return len(self._tree)

    @property
    def view(self) -> RegionMap:
        """The table as arrays for compiled code.

        Changes are made in them. After ``generation`` has moved they may be others, and old ones must not be used.
        """
        return self._tree.map

    @property
    def regions(self) -> npt.NDArray[np.void]:
        """A copy of all regions: REGION records, sorted by ``start``."""
        return self._tree.map.flat()

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
            OSError: EINVAL (empty, beyond 2^64), EEXIST (overlaps a region), ENOSPC (too many regions), or as
                ``Windows.map``.
        """
        if size <= 0 or start + size > _END:
            raise OSError(errno.EINVAL, f"DMA region of {size:#x} bytes at {start:#x}")
        if len(self._tree) >= MAX_DMA_MAPS:
            raise OSError(errno.ENOSPC, f"more than {MAX_DMA_MAPS} DMA regions")
        flags = READABLE * readable | WRITABLE * writable
        if fd is None:
            # Without a descriptor and not writable: a ROM, which counts as ordinary memory.
            owner = BY_MESSAGE if readable and writable else None
            self._tree.insert(start, start + size, 0, flags, self._kind(BY_MESSAGE) if owner else 0, owner)
            self.by_message += owner is not None
        elif not flags:
            self._tree.insert(start, start + size, 0, 0, 0, None)  # nobody may touch it
        else:
            window = self._windows.map(fd, offset, size, writable=writable, kind=self._kind_of)
            try:
                host = window.address + offset - window.offset
                self._tree.insert(start, start + size, host, flags, window.kind, window)
                window.regions += 1
            finally:
                if not window.regions:
                    self._windows.release(window)
        self.generation += 1

    def touches(self, start: int, size: int) -> bool:
        """Whether some of ``size`` bytes at ``start`` are mapped."""
        return self._tree.overlaps(start, start + size)

    def check_unmap(self, start: int, size: int) -> None:
        """Check that ``unmap`` will do.

        Raises:
            OSError: EINVAL (empty, beyond 2^64, or a region is cut).
        """
        if size <= 0 or start + size > _END:
            raise OSError(errno.EINVAL, f"a range of {size:#x} bytes at {start:#x}")
        self._tree.check_whole(start, start + size)

    def unmap(self, start: int, size: int) -> int:
        """Remove all regions that lie in a range, as VFIO does (type 1 IOMMU, version 2): there may be none.

        Returns:
            How many there were.

        Raises:
            OSError: EINVAL (empty, beyond 2^64, or a region is cut), and all are still there.
        """
        self.check_unmap(start, size)
        return self._release(self._tree.remove(start, start + size))

    def unmap_all(self) -> None:
        """Remove every region."""
        self._release(self._tree.remove(0, _END))

    def _release(self, owners: list[Window | str | None]) -> int:
        """Let go of what belongs to regions that were removed; returns how many these were."""
        for owner, count in Counter(owners).items():
            if isinstance(owner, Window):
                self._windows.release(owner, count)
            elif owner is not None:
                self.by_message -= count
        self.generation += bool(owners)
        return len(owners)

    def check(self) -> bool:
        """Look whether memory was taken away since the last call, and remove its regions if so; whether some was.

        To be called after compiled code has worked on the regions, before its results are used: they may come from what
        was put in the place of the client's memory. It is cheap.

        Calls ``on_fault`` for each window that has failed, and then ``on_lost``.
        """
        failed = self._windows.failed()
        if not failed:
            return False
        for window, signal in failed:
            start = self._tree.start_of(window)
            count = self._release(self._tree.remove_owned(window))
            reason = f"{count} regions lost: the client's memory was taken away or cannot be had (signal {signal})"
            self.fault(DmaFault(start, window.size, reason))
        if self.on_lost is not None:
            self.on_lost()
        return True

    def read(self, addr: int, count: int) -> bytes:
        """Read from the client's memory, across region borders if need be.

        Raises:
            DmaFault: a byte lies outside, is not readable, was taken away, or the client did not deliver it.
        """
        pieces = list(self._pieces(addr, count, READABLE))
        data = b"".join(
            ctypes.string_at(host, length) if host else self._read_by_message(address, length)
            for address, length, host in pieces
        )
        if self.check():
            raise DmaFault(addr, count, "the client's memory was taken away")
        return data

    def write(self, addr: int, data: bytes | bytearray | memoryview) -> None:
        """Write to the client's memory, across region borders if need be.

        Raises:
            DmaFault: a byte lies outside, is not writable (nothing was written then), was taken away, or the client did
                not take it.
        """
        data = bytes(data)
        done = 0
        for address, length, host in list(self._pieces(addr, len(data), WRITABLE)):
            piece = data if length == len(data) else data[done : done + length]
            if host:
                ctypes.memmove(host, piece, length)
            else:
                self._write_by_message(address, piece)
            done += length
        if self.check():
            raise DmaFault(addr, done, "the client's memory was taken away")

    def fault(self, fault: DmaFault) -> DmaFault:
        """Report a fault to ``on_fault`` and return it, to be raised."""
        if self.on_fault is not None:
            self.on_fault(fault)
        return fault

    def _pieces(self, addr: int, count: int, right: int) -> Iterator[tuple[int, int, int]]:
        """Split an access at region borders into (DMA address, length, host address or 0)."""
        end = addr + count
        address = addr
        for start, size, host, flags, _ in self._tree.covering(addr, end):
            if not start <= address < start + size:
                break
            if not flags & right:
                raise self.fault(DmaFault(addr, count, "not readable" if right == READABLE else "not writable"))
            length = min(end, start + size) - address
            yield address, length, host + address - start if host else 0
            address += length
        if address < end:
            raise self.fault(DmaFault(addr, count, "outside of the client's memory"))

    def _read_by_message(self, address: int, count: int) -> bytes:
        if self._messages is None:
            raise self.fault(DmaFault(address, count, "no descriptor"))
        try:
            return self._messages.dma_read(address, count)
        except DmaFault as fault:
            raise self.fault(fault) from None

    def _write_by_message(self, address: int, data: bytes) -> None:
        if self._messages is None:
            raise self.fault(DmaFault(address, len(data), "no descriptor"))
        try:
            self._messages.dma_write(address, data)
        except DmaFault as fault:
            raise self.fault(fault) from None

    def _kind_of(self, fd: int) -> int:
        return self._kind(_memory_name(fd))

    def _kind(self, name: str) -> int:
        if name not in self.kinds:
            if len(self.kinds) >= MAX_KINDS:
                name = "other"
            if name not in self.kinds:
                self.kinds.append(name)
        return self.kinds.index(name)


def without(regions: npt.NDArray[np.void], start: int, end: int) -> npt.NDArray[np.void]:
    """A copy of sorted REGION records that lacks the addresses from ``start`` up to, not including, ``end``."""
    # Only what is next to the range or in it is looked at: there may be very many.
    ends = regions["start"] + (regions["size"] - np.uint64(1))  # the last byte of each: its end may be 2^64
    first = int(np.searchsorted(ends, np.uint64(min(start, _END - 1)))) if start < _END else len(regions)
    last = int(np.searchsorted(regions["start"], np.uint64(end))) if end < _END else len(regions)
    rest = []
    for region in regions[first:last]:
        low, high = int(region["start"]), int(region["start"]) + int(region["size"])
        for begin, limit in ((low, min(high, start)), (max(low, end), high)):
            if begin < limit:
                piece = region.copy()
                piece["start"], piece["size"] = begin, limit - begin
                piece["host"] = int(region["host"]) + begin - low if region["host"] else 0
                rest.append(piece)
    return np.concatenate((regions[:first], np.array(rest, REGION), regions[max(first, last) :]))


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
