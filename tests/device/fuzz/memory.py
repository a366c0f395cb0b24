"""Guest memory that knows its contents: what the device writes where it may not is a stray byte."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nicmodel.testing.guest_memory import PAGE, GuestMemory
from nicmodel.vfio_user.client import Client
from nicmodel.vfio_user.protocol import DmaFlag

#: Pages of the arena: a guard, what is mapped, a guard, what is mapped for reading only, a guard.
_GUARD, _MAPPED, _READ_ONLY = 4, 64, 8


class Shadow:
    """A memory and a copy of it.

    Args:
        memory: all of it is compared.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self._copy = memory.bytes.copy()

    def refresh(self) -> None:
        """Everything that is in memory now is right."""
        np.copyto(self._copy, self.memory.bytes)

    def strays(self, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Places where bytes have changed that `allowed`, shape (bytes,), does not name; all are right from now on."""
        changed = np.flatnonzero(self.memory.bytes != self._copy)
        self._copy[changed] = self.memory.bytes[changed]
        return changed[~allowed[changed]]


def ranges(
    memory: GuestMemory, first: int, stop: int, addresses: npt.NDArray[np.uint64], size: int
) -> npt.NDArray[np.bool_]:
    """Which bytes of a memory lie in `size` bytes from any of these addresses on, and in `first` to `stop`."""
    start = (addresses - np.uint64(memory.base)).astype(np.int64)
    start = np.clip(start, first - size, stop)
    edges = np.zeros(memory.size + 1, np.int64)
    np.add.at(edges, np.maximum(start, first), 1)
    np.add.at(edges, np.clip(start + size, first, stop), -1)
    near: npt.NDArray[np.bool_] = np.cumsum(edges[:-1]) > 0
    return near


class Arena(GuestMemory):
    """Memory for buffers: one part that the device may write, one that it may read, and guards around them, which are
    in the same file.
    """

    def __init__(self, base: int) -> None:
        super().__init__("arena", base=base, size=(3 * _GUARD + _MAPPED + _READ_ONLY) * PAGE)
        self.first = _GUARD * PAGE
        self.stop = self.first + _MAPPED * PAGE
        self.read_only = self.stop + _GUARD * PAGE

    def map(self, client: Client) -> None:
        """Make the mapped parts known."""
        self.map_writable(client)
        client.dma_map(
            self.base + self.read_only, _READ_ONLY * PAGE, self.fd, self.read_only, DmaFlag.READABLE
        )  # fmt: skip

    def map_writable(self, client: Client) -> None:
        """Make the part known that the device may write."""
        both = DmaFlag.READABLE | DmaFlag.WRITABLE
        client.dma_map(self.base + self.first, _MAPPED * PAGE, self.fd, self.first, both)

    def addresses(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.uint64]:
        """Most in what is mapped, some at and across its edges, in the guards, where only reading is allowed, or where
        nothing is.
        """
        slots = rng.integers(0, _MAPPED * PAGE // 2048, count) * 2048 + self.first
        anywhere = rng.integers(self.first, self.stop, count)
        edge = rng.choice([self.first, self.stop, self.read_only], count) + rng.integers(-4096, 4096, count)
        beyond = rng.integers(0, self.size, count)
        wild = rng.choice(
            np.array([0, 1, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1], np.uint64), count
        )
        chance = rng.random(count)
        inside = np.select([chance < 0.7, chance < 0.8, chance < 0.88, chance < 0.96], [slots, anywhere, edge, beyond])
        return np.where(chance < 0.96, inside.astype(np.uint64) + np.uint64(self.base), wild)


def open_descriptors() -> int:
    """How many file descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def mappings_of(name: str) -> int:
    """How many mappings of a memfd this process has."""
    return Path("/proc/self/maps").read_text().count(f"/memfd:{name} ")


def resident() -> int:
    """Bytes of memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
