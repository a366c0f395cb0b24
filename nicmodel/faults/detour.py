"""A detour for completions: the packet path writes them into memory of this process, and a fault decides on each.

So the compiled packet path needs to know of no fault. For the time of one call a queue's completion ring is exchanged
for a shadow, at an address where no guest has memory; what the call has written there is then copied to the ring of the
guest, changed, late or not at all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import u64
from nicmodel.nic.dma import find
from nicmodel.nic.layout import Bits
from nicmodel.nic.state import State
from nicmodel.vfio_user.dma import READABLE, WRITABLE
from nicmodel.vfio_user.regions import REGION, RegionMap

#: Lowest guest address of shadows: beyond what QEMU maps, of RAM, devices and I/O virtual addresses.
_BEYOND = 1 << 62


S = TypeVar("S", bound=State)

#: A completion, shape (words,).
Words = npt.NDArray[np.uint64]


def get(completion: Words, field: Bits) -> int:
    """A field of a completion."""
    return int(completion[field.word]) >> field.shift & field.mask


def put(completion: Words, field: Bits, value: int) -> None:
    """Set a field of a completion."""
    rest = int(completion[field.word]) & ~(field.mask << field.shift)
    completion[field.word] = rest | value << field.shift


def overwritten(data: bytes, at: int, size: int, value: int, order: Literal["big", "little"]) -> bytes:
    """`data` with the `size` bytes at `at`, as far as it has them, in place of which is a number."""
    number = (value & (1 << 8 * size) - 1).to_bytes(size, order)
    return (data[:at] + number + data[at + size :])[: len(data)] if at < len(data) else data


class Shadow:
    """Memory of this process that the packet path can be pointed at."""

    def __init__(self) -> None:
        self._bytes: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)

    def room(self, state: S, sizes: Sequence[int]) -> tuple[S, list[tuple[int, npt.NDArray[np.uint8]]]]:
        """Room for pieces of `sizes` bytes.

        Returns:
            The state with the shadow as a further region of memory; for each piece its address there, and its bytes,
            which hold anything.
        """
        total = sum(sizes)
        if len(self._bytes) < total:
            self._bytes = np.zeros(total, np.uint8)
        regions = state.memory_map.flat()
        base = max(_BEYOND, int(regions[-1]["start"]) + int(regions[-1]["size"])) if len(regions) else _BEYOND
        shadow = np.array(
            [(base, len(self._bytes), self._bytes.ctypes.data, READABLE | WRITABLE, 0)], REGION
        )  # fmt: skip
        leaves, records = RegionMap.of(np.concatenate((regions, shadow)))
        pieces = []
        place = 0
        for size in sizes:
            pieces.append((base + place, self._bytes[place : place + size]))
            place += size
        return state.with_arrays(region_leaves=leaves, regions=records), pieces

    @contextmanager
    def completions(self, state: S, size: int) -> Iterator[tuple[S, dict[int, Words]]]:
        """Inside the block all receive queues have their completions written here, and no vector fires for them.

        Args:
            state: the NIC's.
            size: bytes of a completion.

        Yields:
            The state for the packet path, see `room`; and by queue what its completion ring holds here, in words.
        """
        rx = state.rx
        numbers = np.flatnonzero(rx["active"]).tolist()
        rings, pending = rx["completion_ring"].copy(), state.vectors["pending"].copy()
        shadowed, rooms = self.room(state, [int(rx[number]["completion_entries"]) * size for number in numbers])
        found: dict[int, Words] = {}
        for number, (address, room) in zip(numbers, rooms, strict=True):
            rx["completion_ring"][number] = address
            found[number] = room.view(np.uint64).reshape(-1, size // 8)
        try:
            yield shadowed, found
        finally:
            rx["completion_ring"] = rings
        state.vectors["pending"] = pending


def host_address(memory: RegionMap, address: int, count: int) -> int:
    """Where `count` bytes at guest address `address` are in this process; 0 if they are not all in one region."""
    leaves, regions = memory
    number = find(leaves, regions, u64(address))
    if number < 0:
        return 0
    start, size, host = (int(regions[number][name]) for name in ("start", "size", "host"))
    if not host or not regions[number]["flags"] & WRITABLE or address + count > start + size:
        return 0
    return host + address - start


def publish(memory: RegionMap, address: int, words: npt.NDArray[np.uint64], last: int) -> bool:
    """Write a completion to guest memory, one 64-bit word at a time and the word with the generation, `last`, at last.

    Returns:
        False, and nothing is written, if the memory is not there.
    """
    host = host_address(memory, address, words.nbytes)
    if not host:
        return False
    target = (ctypes.c_uint64 * len(words)).from_address(host)
    for word in [*(word for word in range(len(words)) if word != last), last]:
        target[word] = int(words[word])
    return True
