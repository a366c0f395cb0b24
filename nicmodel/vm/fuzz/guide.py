"""What of the driver an input has run that none before it had."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nicmodel.vm.coverage.live import LiveFile
from nicmodel.vm.coverage.module import Module

#: Seconds without a block of the driver's after which it counts as quiet, and from one look to the next.
_STILL, _LOOK = 0.0003, 0.00005
#: Seconds after which new blocks that are in no known place are looked for in the module's file, at the soonest.
_LOCATE = 1.0


class Seen:
    """What has run so far, in all guests: for each place in the modules how often, as far as that matters.

    Attributes:
        blocks: how many places have run.
    """

    def __init__(self, modules: Sequence[Module]) -> None:
        self.modules = modules
        # Eight classes of counts, a bit each: 1, 2, 3, 4-7, 8-15, 16-31, 32-127, more (as AFL's).
        self._classes = [np.zeros(len(module.text), np.uint8) for module in modules]
        self.blocks = 0

    def add(self, number: int, places: NDArray[np.int64], counts: NDArray[np.int64]) -> bool:
        """Note what ran of module `number`; whether anything of it is new."""
        classes = np.searchsorted(_BORDERS, counts, side="right") - 1
        bits = (np.uint8(1) << classes.astype(np.uint8)).astype(np.uint8)
        seen = self._classes[number]
        before = seen[places]
        is_new = bool((before | bits != before).any())
        if is_new:
            self.blocks += len(np.unique(places[before == 0]))
            np.bitwise_or.at(seen, places, bits)
        return is_new


_BORDERS = np.array([1, 2, 3, 4, 8, 16, 32, 128])


class Guide:
    """Looks at the counters of one guest. Close it, or use it as a context manager.

    Args:
        live: what QEMU's plugin writes.
        seen: what has run in all guests.

    Attributes:
        idle: whether nothing of the driver ran before the last look.
    """

    def __init__(self, live: LiveFile, seen: Seen) -> None:
        self._live, self._seen = live, seen
        self._module: NDArray[np.int8] = np.zeros(0, np.int8)  # of each slot: number of its module, or -1
        self._place: NDArray[np.int64] = np.zeros(0, np.int64)
        self._bases: list[set[int]] = [set() for _ in seen.modules]
        self._slots: NDArray[np.int64] = np.zeros(0, np.int64)  # those that are a module's
        self._located = 0.0
        self._before: NDArray[np.int64] = np.zeros(0, np.int64)
        self.idle = False
        self.clear()

    def __enter__(self) -> Guide:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.close()

    def clear(self) -> None:
        """What runs from now on counts for the next `look`."""
        self._before = self._live.entered()

    def quiet(self, limit: float) -> None:
        """Wait until the driver has nothing to do any more, `limit` seconds at most."""
        now = time.monotonic()
        end, still, last = now + limit, now + _STILL, -1
        while now < end and now < still:
            entered = self._live.entered()
            # Blocks that are new are of interest in any case, whosever they are.
            total = int(entered[self._slots].sum()) + int(entered[len(self._place) :].sum())
            if total != last:
                last, still = total, now + _STILL
            time.sleep(_LOOK)
            now = time.monotonic()

    def look(self) -> bool:
        """Whether anything has run since `clear` that never had; it has, from now on."""
        entered = self._live.entered()
        entered[: len(self._before)] -= self._before
        if len(entered) > len(self._place):
            self._locate()
        slots = self._slots[: np.searchsorted(self._slots, len(entered))]
        ran = slots[entered[slots] > 0]
        self.idle = len(ran) == 0
        found = False
        for number in range(len(self._seen.modules)):
            ours = ran[self._module[ran] == number]
            found |= self._seen.add(number, self._place[ours], entered[ours])
        return found

    def _locate(self) -> None:
        """Find new blocks in the modules: where these are known to lie, else by what the blocks are."""
        counts = self._live.read()
        first = len(self._place)
        address = counts.blocks["address"][first:].astype(np.int64)
        place = np.full(len(address), -1, np.int64)
        module = np.full(len(address), -1, np.int8)
        for number, bases in enumerate(self._bases):
            for base in bases:
                inside = (address >= base) & (address < base + len(self._seen.modules[number].text))
                place[inside], module[inside] = address[inside] - base, number
        self._place, self._module = np.append(self._place, place), np.append(self._module, module)
        now = time.monotonic()
        if (module < 0).any() and now > self._located + _LOCATE:
            self._located = now
            for number, one in enumerate(self._seen.modules):
                places, found = one.locate(counts.blocks)
                self._bases[number] |= {_signed(base) for base in found}
                theirs = places >= 0
                self._place[theirs], self._module[theirs] = places[theirs], number
        self._slots = np.flatnonzero(self._module >= 0)


def _signed(address: int) -> int:
    return address - (1 << 64) if address >= 1 << 63 else address
