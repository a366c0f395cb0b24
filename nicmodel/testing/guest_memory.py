"""Guest memory without a guest: a memfd that the driver in Python and the device both map.

A page allocator hands out guest addresses, as a kernel hands out DMA addresses; numpy views show what lies there.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterable
from types import TracebackType

import numpy as np
import numpy.typing as npt

PAGE = 4096


class GuestMemory:
    """One block of guest memory, backed by a memfd of that name.

    The name is what the device's DMA ledger tells kinds of memory apart by: "ram" for ordinary memory, any other name
    plays the memory of another device, such as the accelerator memory of devmem TCP.

    Args:
        name: name of the memfd.
        base: guest address of its first byte, a multiple of the page size.
        size: bytes, a multiple of the page size; costs nothing until it is touched.

    Attributes:
        fd: the memfd.
        bytes: all of it, shape (size,), uint8.
    """

    def __init__(self, name: str = "ram", *, base: int = 0x1000_0000, size: int = 256 << 20) -> None:
        if base % PAGE or size % PAGE or size <= 0:
            raise ValueError(f"memory {name!r}: base {base:#x} and size {size:#x} must be multiples of {PAGE}")
        self.name = name
        self.base = base
        self.size = size
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(mmap.mmap(self.fd, size), np.uint8)
        self._free: list[tuple[int, int]] = [(base, size)]
        self._allocated: dict[int, int] = {}

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, address: int) -> bool:
        return self.base <= address < self.base + self.size

    def close(self) -> None:
        """Close the memfd; the mapping goes with its last view."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def allocate(self, size: int) -> int:
        """Take whole pages for `size` bytes; what was there before stays there.

        Returns:
            Their guest address.

        Raises:
            MemoryError: no free block is large enough.
        """
        size = _pages(size)
        for number, (address, room) in enumerate(self._free):
            if room >= size:
                if room == size:
                    del self._free[number]
                else:
                    self._free[number] = (address + size, room - size)
                self._allocated[address] = size
                return address
        raise MemoryError(f"memory {self.name!r} has no {size} bytes in one piece")

    def allocate_zeroed(self, size: int) -> int:
        """Allocate zeroed memory, as a driver does for a ring (Linux: dma_alloc_coherent); otherwise as `allocate`."""
        address = self.allocate(size)
        self.view(address, _pages(size))[:] = 0
        return address

    def free(self, address: int) -> None:
        """Give back what `allocate` returned; neighbouring free blocks become one.

        Raises:
            KeyError: nothing was allocated at that address.
        """
        size = self._allocated.pop(address)
        number = bisect_left(self._free, (address, 0))
        if number < len(self._free) and address + size == self._free[number][0]:
            size += self._free.pop(number)[1]
        if number and sum(self._free[number - 1]) == address:
            number -= 1
            address, before = self._free.pop(number)
            size += before
        self._free.insert(number, (address, size))

    @property
    def allocated(self) -> int:
        """Bytes that were allocated and not freed."""
        return sum(self._allocated.values())

    def view(self, address: int, size: int) -> npt.NDArray[np.uint8]:
        """The bytes at a guest address: a view, shape (size,), uint8.

        Raises:
            IndexError: not wholly inside this memory.
        """
        offset = address - self.base
        if offset < 0 or size < 0 or offset + size > self.size:
            raise IndexError(f"{size} bytes at {address:#x} are not in memory {self.name!r}")
        return self.bytes[offset : offset + size]

    def records(self, address: int, dtype: npt.DTypeLike, count: int = 1) -> npt.NDArray[np.void]:
        """`count` structures at a guest address: a view, shape (count,)."""
        dtype = np.dtype(dtype)
        return self.view(address, count * dtype.itemsize).view(dtype)

    def read(self, address: int, size: int) -> bytes:
        """Copy bytes out; of no bytes, any address will do."""
        return b"" if not size else self.view(address, size).tobytes()

    def write(self, address: int, data: bytes) -> None:
        """Copy bytes in."""
        self.view(address, len(data))[:] = np.frombuffer(data, np.uint8)


def memory_of(memories: Iterable[GuestMemory], address: int) -> GuestMemory:
    """The memory that a guest address lies in.

    Raises:
        LookupError: none.
    """
    for memory in memories:
        if address in memory:
            return memory
    raise LookupError(f"no memory at {address:#x}")


def _pages(size: int) -> int:
    return max(-(-size // PAGE), 1) * PAGE
