"""Sorted DMA regions in a B-tree of two levels, as numpy arrays that compiled code can search by itself.

Behind a vIOMMU every page may be a region of its own, hundreds of thousands in all, which come and go while packets
flow. In one sorted array each change would move half of them. So the records are in leaves of at most ``LEAF``, and a
sorted index says where each leaf begins: a change moves one leaf and, seldom, the index.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from struct import Struct
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

REGION = np.dtype([("start", "<u8"), ("size", "<u8"), ("host", "<u8"), ("flags", "<u4"), ("kind", "<u4")])
"""One DMA region: DMA address, size in bytes, address of its mapping in this process (0: none, reachable by messages
only), rights (READABLE, WRITABLE) and kind of memory (index into ``DmaTable.kinds``)."""
LEAF_ENTRY = np.dtype([("start", "<u8"), ("first", "<u4"), ("count", "<u4")])
"""One leaf: the DMA address of its first region, that region's place among the records, and how many regions it has, at
least one."""
LEAF = 256
"""Places for the records of a leaf. Those that are not in use have size 0, so that a place once found may be tried
again later without a search."""

_ROW = Struct("<QQQII")
_INDEX_ROW = Struct("<QII")
assert (_ROW.size, _INDEX_ROW.size) == (REGION.itemsize, LEAF_ENTRY.itemsize)

Owner = TypeVar("Owner")


class RegionMap(NamedTuple):
    """An address space as arrays. They are those that changes are made in; only a reader of the same thread sees each
    moment as a whole.

    Attributes:
        leaves: LEAF_ENTRY, sorted by ``start``, shape (leaves,).
        records: REGION, shape (a multiple of LEAF,).
    """

    leaves: npt.NDArray[np.void]
    records: npt.NDArray[np.void]

    @classmethod
    def empty(cls) -> RegionMap:
        """Nothing is mapped."""
        return cls(np.empty(0, LEAF_ENTRY), np.empty(0, REGION))

    @classmethod
    def of(cls, regions: npt.NDArray[np.void]) -> RegionMap:
        """A map of these REGION records, which are sorted by ``start`` and do not overlap."""
        starts = range(0, len(regions), LEAF)
        records = np.zeros(len(starts) * LEAF, REGION)
        records[: len(regions)] = regions
        leaves = np.zeros(len(starts), LEAF_ENTRY)
        leaves["start"] = regions["start"][::LEAF]
        leaves["first"] = starts
        leaves["count"] = [min(LEAF, len(regions) - start) for start in starts]
        return cls(leaves, records)

    def flat(self) -> npt.NDArray[np.void]:
        """A copy of all regions in one array, sorted by ``start``."""
        pieces = [self.records[first : first + count] for _, first, count in self.leaves.tolist()]
        return np.concatenate(pieces) if pieces else np.empty(0, REGION)


class _Leaf(Generic[Owner]):
    """One leaf in lists, which the interpreter searches and edits faster than arrays."""

    __slots__ = ("ends", "number", "owners", "starts")

    def __init__(self, number: int, starts: list[int], ends: list[int], owners: list[Owner]) -> None:
        self.number = number
        self.starts = starts
        self.ends = ends
        self.owners = owners


class RegionTree(Generic[Owner]):
    """The regions of one address space, each with an ``owner`` that is kept for the caller.

    Attributes:
        map: The regions as arrays. It is another after some changes, so it is to be looked up after each.
    """

    def __init__(self) -> None:
        self.map = RegionMap.empty()
        self._count = 0
        self._leaves: list[_Leaf[Owner]] = []
        self._firsts: list[int] = []  # where each leaf begins
        self._free: list[int] = []  # numbers of leaves that are not in use
        self._index = np.empty(0, LEAF_ENTRY)  # `map.leaves` is its beginning
        self._index_bytes = self._bytes = memoryview(b"")  # of it, and of `map.records`

    def __len__(self) -> int:
        return self._count

    def insert(self, start: int, end: int, host: int, flags: int, kind: int, owner: Owner) -> None:
        """Add a region from ``start`` up to, not including, ``end``.

        Raises:
            OSError: EEXIST, it overlaps another.
        """
        place, position = self._place_for(start, end)
        if not self._leaves:
            self._add_leaf(0, [], [], [])
        leaf = self._leaves[place]
        count = len(leaf.starts)
        if count == LEAF:
            # Regions that come in ascending order fill the leaves; else a full one is split in halves.
            half = LEAF if position == LEAF else LEAF // 2
            self._split(place, half)
            if position >= half:
                place, position = place + 1, position - half
            leaf = self._leaves[place]
            count = len(leaf.starts)
        leaf.starts.insert(position, start)
        leaf.ends.insert(position, end)
        leaf.owners.insert(position, owner)
        at, last = self._byte(leaf, position), self._byte(leaf, count)
        row = self._bytes
        row[at + _ROW.size : last + _ROW.size] = row[at:last]
        _ROW.pack_into(row, at, start, end - start, host, flags, kind)
        self._count += 1
        self._note(place)

    def _place_for(self, start: int, end: int) -> tuple[int, int]:
        """Where a region from ``start`` to ``end`` would be inserted: number of the leaf, and place in it.

        Raises:
            OSError: EEXIST, it overlaps another.
        """
        if not self._leaves:
            return 0, 0
        place = max(bisect_right(self._firsts, start) - 1, 0)
        leaf = self._leaves[place]
        position = bisect_right(leaf.starts, start)
        if position < len(leaf.starts):
            following = leaf.starts[position]
        else:
            following = self._firsts[place + 1] if place + 1 < len(self._firsts) else end
        if (position and leaf.ends[position - 1] > start) or following < end:
            raise OSError(errno.EEXIST, f"DMA region {start:#x}+{end - start:#x} overlaps another")
        return place, position

    def covering(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """The fields of regions in order, as in REGION, with or without gaps between them.

        The first is that which has ``start``, or the last before it; the last one that ends at ``end`` or later.
        """
        place = max(bisect_right(self._firsts, start) - 1, 0)
        position = max(bisect_right(self._leaves[place].starts, start) - 1, 0) if self._leaves else 0
        while place < len(self._leaves):
            leaf = self._leaves[place]
            while position < len(leaf.starts):
                yield _ROW.unpack_from(self._bytes, self._byte(leaf, position))
                if leaf.ends[position] >= end:
                    return
                position += 1
            place, position = place + 1, 0

    def overlaps(self, start: int, end: int) -> bool:
        """Whether a region has an address from ``start`` up to, not including, ``end``."""
        try:
            self._place_for(start, end)
        except OSError:
            return True
        return False

    def check_whole(self, start: int, end: int) -> None:
        """Check that each region lies wholly inside ``start`` to ``end`` or wholly outside.

        Raises:
            OSError: EINVAL, one is cut.
        """
        for border in (start, end):
            place = bisect_left(self._firsts, border) - 1
            if place < 0:
                continue
            leaf = self._leaves[place]
            position = bisect_left(leaf.starts, border) - 1
            if leaf.ends[position] > border:
                first, last = leaf.starts[position], leaf.ends[position]
                raise OSError(errno.EINVAL, f"the range ends inside the DMA region {first:#x}+{last - first:#x}")

    def remove(self, start: int, end: int) -> list[Owner]:
        """Remove all regions between ``start`` and ``end``, none of which is cut (`check_whole`).

        Returns:
            Their owners.
        """
        place = max(bisect_right(self._firsts, start) - 1, 0)
        gone: list[Owner] = []
        dropped = place
        while dropped < len(self._leaves) and self._firsts[dropped] < end:
            leaf = self._leaves[dropped]
            first, last = bisect_left(leaf.starts, start), bisect_left(leaf.starts, end)
            gone += leaf.owners[first:last]
            if last - first == len(leaf.starts):
                dropped += 1  # the whole leaf
                continue
            self._drop_leaves(place, dropped)
            if first < last:
                self._cut(place, first, last)
            dropped = place = place + 1
        self._drop_leaves(place, dropped)
        self._count -= len(gone)
        for near in (place - 1, place - 2, place - 3):
            self._merge(near)
        return gone

    def start_of(self, owner: Owner) -> int:
        """Where the first region of this owner starts.

        Raises:
            ValueError: there is none.
        """
        for leaf in self._leaves:
            if owner in leaf.owners:
                return leaf.starts[leaf.owners.index(owner)]
        raise ValueError("no region of this owner")

    def remove_owned(self, owner: Owner) -> list[Owner]:
        """Remove all regions of this owner; returns it for each of them."""
        ranges: list[tuple[int, int]] = []
        follows = False  # the region before goes as well, so that one range does for both
        for leaf in self._leaves:
            for start, end, other in zip(leaf.starts, leaf.ends, leaf.owners, strict=True):
                if other is owner:
                    ranges.append((ranges.pop()[0] if follows else start, end))
                follows = other is owner
        return [gone for start, end in ranges for gone in self.remove(start, end)]

    def _cut(self, place: int, first: int, last: int) -> None:
        """Take some, not all, of a leaf's regions out."""
        leaf = self._leaves[place]
        count = len(leaf.starts)
        del leaf.starts[first:last], leaf.ends[first:last], leaf.owners[first:last]
        at, behind, end = (self._byte(leaf, position) for position in (first, last, count))
        self._bytes[at : at + end - behind] = self._bytes[behind:end]
        self._bytes[at + end - behind : end] = bytes(behind - at)
        self._note(place)

    def _split(self, place: int, half: int) -> None:
        """Move the regions of a leaf from place ``half`` on to a new leaf behind it."""
        leaf = self._leaves[place]
        moved = self._bytes[self._byte(leaf, half) : self._byte(leaf, len(leaf.starts))].tobytes()
        self._add_leaf(place + 1, leaf.starts[half:], leaf.ends[half:], leaf.owners[half:], moved)
        if moved:
            at = self._byte(leaf, half)
            self._bytes[at : at + len(moved)] = bytes(len(moved))
            del leaf.starts[half:], leaf.ends[half:], leaf.owners[half:]
            self._note(place)

    def _merge(self, place: int) -> None:
        """Join a leaf with the next if both together are half of one or less, so that leaves cannot become many."""
        if place < 0 or place + 1 >= len(self._leaves):
            return
        leaf, following = self._leaves[place : place + 2]
        count, more = len(leaf.starts), len(following.starts)
        if count + more > LEAF // 2:
            return
        source = self._byte(following, 0)
        target = self._byte(leaf, count)
        self._bytes[target : target + more * _ROW.size] = self._bytes[source : source + more * _ROW.size]
        leaf.starts += following.starts
        leaf.ends += following.ends
        leaf.owners += following.owners
        self._drop_leaves(place + 1, place + 2)
        self._note(place)

    def _add_leaf(self, place: int, starts: list[int], ends: list[int], owners: list[Owner], data: bytes = b"") -> None:
        if not self._free:
            self._grow()
        leaf = _Leaf(self._free.pop(), starts, ends, owners)
        at = self._byte(leaf, 0)
        self._bytes[at : at + len(data)] = data
        self._leaves.insert(place, leaf)
        self._firsts.insert(place, 0)
        leaves = len(self._leaves)
        self._index[place + 1 : leaves] = self._index[place : leaves - 1].copy()
        self._index[place] = (0, leaf.number * LEAF, 0)
        self.map = self.map._replace(leaves=self._index[:leaves])
        if starts:
            self._note(place)

    def _drop_leaves(self, first: int, last: int) -> None:
        if first == last:
            return
        for leaf in self._leaves[first:last]:
            at = self._byte(leaf, 0)
            self._bytes[at : at + LEAF * _ROW.size] = bytes(LEAF * _ROW.size)
            self._free.append(leaf.number)
        leaves = len(self._leaves)
        self._index[first : first + leaves - last] = self._index[last:leaves].copy()
        del self._leaves[first:last], self._firsts[first:last]
        self.map = self.map._replace(leaves=self._index[: len(self._leaves)])

    def _grow(self) -> None:
        """Have twice as many leaves."""
        before = len(self._index)
        after = max(1, 2 * before)
        records = np.zeros(after * LEAF, REGION)
        records[: before * LEAF] = self.map.records
        index = np.zeros(after, LEAF_ENTRY)
        index[:before] = self._index
        self._index = index
        self._bytes = records.view(np.uint8).data
        self._index_bytes = index.view(np.uint8).data
        self._free += range(after - 1, before - 1, -1)
        self.map = RegionMap(index[: len(self._leaves)], records)

    def _note(self, place: int) -> None:
        """A leaf has changed: bring the index up to date."""
        leaf = self._leaves[place]
        self._firsts[place] = first = leaf.starts[0]
        _INDEX_ROW.pack_into(self._index_bytes, place * _INDEX_ROW.size, first, leaf.number * LEAF, len(leaf.starts))

    @staticmethod
    def _byte(leaf: _Leaf[Owner], position: int) -> int:
        return (leaf.number * LEAF + position) * _ROW.size
