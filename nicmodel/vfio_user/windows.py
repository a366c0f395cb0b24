"""Files of a client, mapped into this process: each once, however many DMA regions lie in it.

A region of its own for every page, as a vIOMMU makes them, would be a mapping of its own for every page, and a process
has 65,530 of those (``vm.max_map_count``). So a file is mapped in large windows, which regions share.

What a window shows may be taken away: the client truncates its file, or the host has no page to give. Touching it is
then SIGBUS, which ends the process unless somebody takes care. ``WINDOWS`` lists all windows of the process for a
signal handler that puts other memory in the place of one that fails, and ``Windows.failed`` tells of those.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

WINDOW_SIZE = 64 << 30
"""A window begins and ends at a multiple of it, or where the file ends: most files have a single one, and those of
terabytes are not mapped where nobody needs them."""
MAX_WINDOWS = 8192
"""Of one client: a process has 65,530 mappings for all. Of what is no regular file each region has one."""
MAX_ADDRESS_SPACE = 16 << 40
"""Bytes of all windows of one client: a process has 128 TiB for all (x86-64, four levels of page tables)."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value
_MAP_NORESERVE = 0x4000  # the pages are the client's to have; `mmap` has no name for it before Python 3.14

_GET_SEALS, _SEAL_WRITE, _SEAL_FUTURE_WRITE = 1034, 0x8, 0x10  # fcntl.F_GET_SEALS and others are not in every build


class WindowList:
    """All windows of this process, in memory that a signal handler can read.

    Attributes:
        words: uint64: how many rows have been in use, how many windows have failed so far, and then the rows: address
            of a window, address behind it (0: the row is free), and the signal by which it has failed (0: it has not).
            A handler that finds the address of its signal in a row puts memory in the window's place and counts it up.
    """

    HEADER, ROW = 2, 3
    SIZE = 1 << 15

    def __init__(self) -> None:
        self.words: npt.NDArray[np.uint64] = np.zeros(self.HEADER + self.ROW * self.SIZE, np.uint64)
        # The same, as the interpreter reads it fastest.
        self._failed = ctypes.c_uint64.from_address(self.words.ctypes.data + 8)
        self._free: list[int] = []
        self._lock = threading.Lock()

    @property
    def failed(self) -> int:
        """How many windows have failed so far."""
        return self._failed.value

    def add(self, address: int, size: int) -> int:
        """Enter a window; returns its row.

        Raises:
            OSError: ENOSPC, the list is full.
        """
        with self._lock:
            if self._free:
                row = self._free.pop()
            else:
                row = int(self.words[0])
                if row == self.SIZE:
                    raise OSError(errno.ENOSPC, "too many files of clients are mapped in this process")
                self.words[0] = row + 1
            place = self.HEADER + self.ROW * row
            self.words[place : place + self.ROW] = (address, address + size, 0)
            return row

    def remove(self, row: int) -> None:
        """Forget a window."""
        with self._lock:
            place = self.HEADER + self.ROW * row
            self.words[place : place + self.ROW] = 0
            self._free.append(row)

    def signal(self, row: int) -> int:
        """The signal by which a window has failed, 0 if it has not."""
        return int(self.words[self.HEADER + self.ROW * row + 2])


WINDOWS = WindowList()


class Window:
    """A part of a file, mapped.

    Attributes:
        address: Where, in this process.
        offset: Where in the file it begins.
        size: Bytes.
        kind: What the owner of the file says of it.
        regions: How many DMA regions lie in it.
        row: Its row in ``WINDOWS``.
    """

    __slots__ = ("address", "key", "kind", "offset", "regions", "row", "size")

    def __init__(self, address: int, offset: int, size: int, kind: int, key: tuple[int, ...] | None, row: int) -> None:
        self.address = address
        self.offset = offset
        self.size = size
        self.kind = kind
        self.key = key
        self.regions = 0
        self.row = row


class Windows:
    """The windows of one client."""

    def __init__(self) -> None:
        self._shared: dict[tuple[int, ...], Window] = {}  # by file, right to write, and place in the file
        self._all: set[Window] = set()
        self._bytes = 0
        self._failed = WINDOWS.failed

    def map(self, fd: int, offset: int, size: int, *, writable: bool, kind: Callable[[int], int]) -> Window:
        """A window that has ``size`` bytes of a file from ``offset`` on; no region lies in a new one yet.

        A window is shared by regions only as far as their descriptors would each allow to map it.

        Args:
            fd: The file.
            offset: In bytes, a multiple of the page size.
            size: Bytes, at least one.
            writable: The window is to be written to as well as read.
            kind: Called for a new window, with the descriptor: its ``Window.kind``.

        Raises:
            OSError: EINVAL, the range cannot be, or the file ends inside: touching such a page would be SIGBUS; EACCES,
                EPERM or EBADF, the descriptor does not have the right; ENOSPC, too many windows; ENOMEM, no address
                space; or why ``mmap`` failed.
        """
        if offset % mmap.PAGESIZE:
            raise OSError(errno.EINVAL, f"file offset {offset:#x} is not page aligned")
        end = offset + size
        if end > 1 << 63:
            raise OSError(errno.EINVAL, f"file range {offset:#x}+{size:#x}")
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):  # the same file may be other memory by another descriptor
            return self._map(fd, offset, size, writable, kind(fd))
        if end > status.st_size:
            raise OSError(errno.EINVAL, f"file of {status.st_size:#x} bytes ends inside {offset:#x}+{size:#x}")
        first, last = offset // WINDOW_SIZE, -(-end // WINDOW_SIZE)
        key = (status.st_dev, status.st_ino, writable, first, last)
        window = self._shared.get(key)
        if window is not None and end <= window.offset + window.size:  # else the file has grown since
            _check_rights(fd, writable)
            return window
        # The whole pages of the file; hugetlbfs, where a page is a block, maps no part of one.
        page = max(mmap.PAGESIZE, status.st_blksize)
        begin, limit = first * WINDOW_SIZE, min(last * WINDOW_SIZE, -(-status.st_size // page) * page)
        try:
            window = self._map(fd, begin, limit - begin, writable, kind(fd), key)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            return self._map(fd, offset, size, writable, kind(fd))
        self._shared[key] = window
        return window

    def _map(
        self, fd: int, offset: int, size: int, writable: bool, kind: int, key: tuple[int, ...] | None = None
    ) -> Window:  # fmt: skip
        if len(self._all) >= MAX_WINDOWS:
            raise OSError(errno.ENOSPC, "too many files are mapped")
        if self._bytes + size > MAX_ADDRESS_SPACE:
            raise OSError(errno.ENOMEM, "too much memory is mapped")
        protection = mmap.PROT_READ | mmap.PROT_WRITE * writable
        address: int = _libc.mmap(None, size, protection, mmap.MAP_SHARED | _MAP_NORESERVE, fd, offset)
        if address == _MAP_FAILED:
            code = ctypes.get_errno()
            raise OSError(code, f"mmap: {os.strerror(code)}")
        try:
            row = WINDOWS.add(address, size)
        except OSError:
            _unmap(address, size)
            raise
        window = Window(address, offset, size, kind, key, row)
        self._all.add(window)
        self._bytes += size
        return window

    def release(self, window: Window, regions: int = 1) -> None:
        """So many regions less lie in a window; without any it is unmapped."""
        window.regions -= regions
        if window.regions > 0:
            return
        if window.key is not None and self._shared.get(window.key) is window:
            del self._shared[window.key]
        self._all.remove(window)
        self._bytes -= window.size
        WINDOWS.remove(window.row)  # first: whoever gets the addresses next is not ours to look after
        _unmap(window.address, window.size)

    def failed(self) -> list[tuple[Window, int]]:
        """The windows whose memory has been taken away since the last call, each with the signal that told."""
        if WINDOWS.failed == self._failed:
            return []
        self._failed = WINDOWS.failed
        found = [(window, signal) for window in self._all if (signal := WINDOWS.signal(window.row))]
        for window, _ in found:
            if window.key is not None and self._shared.get(window.key) is window:
                del self._shared[window.key]  # the next region of the file gets one that works, if the file does
        return found


def _check_rights(fd: int, writable: bool) -> None:
    """Refuse what ``mmap`` of this descriptor would refuse, although the file is mapped already."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_PATH:
        raise OSError(errno.EBADF, "the descriptor is of the file's name only")
    access = flags & os.O_ACCMODE
    if access == os.O_WRONLY or (writable and access != os.O_RDWR):
        raise OSError(errno.EACCES, "the descriptor does not allow it")
    if writable:
        try:
            seals = fcntl.fcntl(fd, _GET_SEALS)
        except OSError:
            return  # not a kind of file that has some
        if seals & (_SEAL_WRITE | _SEAL_FUTURE_WRITE):
            raise OSError(errno.EPERM, "the file is sealed against writing")


def _unmap(address: int, size: int) -> None:
    if _libc.munmap(address, size) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"munmap: {os.strerror(code)}")
