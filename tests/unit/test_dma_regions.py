"""The tree of DMA regions against the simplest model of it, and compiled code that searches it."""

from __future__ import annotations

import random
from bisect import bisect_right

import numpy as np
import pytest

from nicmodel.jit.compiled import u64
from nicmodel.nic.dma import find
from nicmodel.vfio_user.dma import without
from nicmodel.vfio_user.regions import LEAF, REGION, RegionMap, RegionTree

#: Starts, each with end and owner.
Model = dict[int, tuple[int, int]]


def check(tree: RegionTree[int], model: Model, chance: random.Random) -> None:
    """The arrays hold exactly the model's regions, in no more leaves than they need, and are found by compiled code."""
    starts = sorted(model)
    leaves, records = tree.map
    flat = tree.map.flat()
    assert len(tree) == len(model)
    assert flat["start"].tolist() == starts
    assert (flat["start"] + flat["size"]).tolist() == [model[start][0] for start in starts]
    assert flat["host"].tolist() == [model[start][1] for start in starts]
    assert leaves["start"].tolist() == records["start"][leaves["first"]].tolist()
    assert (leaves["count"] > 0).all()
    assert len(leaves) <= 4 * len(model) // LEAF + 2
    # Places that are not in use cannot be taken for a region.
    assert np.count_nonzero(records["size"]) == len(model)
    for _ in range(20):
        address = max(chance.choice([*starts, chance.randrange(1 << 20)]) + chance.choice((-1, 0, 1)), 0)
        number = bisect_right(starts, address) - 1
        expected = number >= 0 and address < model[starts[number]][0]
        place = find(leaves, records, u64(address))
        assert (place >= 0) == expected
        if place >= 0:
            assert records[place]["start"] == starts[number]


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_like_a_dictionary(order: str) -> None:
    """*Steps*: thousands of regions come, in that order; ranges and single ones go; others come. *Verify*: `check`."""
    chance = random.Random(order)
    tree: RegionTree[int] = RegionTree()
    model: Model = {}
    cells = list(range(6000))
    if order == "descending":
        cells.reverse()
    elif order == "random":
        chance.shuffle(cells)
    for turn in range(4):
        for number, cell in enumerate(cells):
            start, size = cell * 16, chance.randrange(1, 17)
            if start in model:
                with pytest.raises(OSError, match="overlaps"):
                    tree.insert(start - chance.randrange(3), start + size, 1, 3, 0, 1)
                continue
            host = chance.randrange(1, 1 << 47)
            tree.insert(start, start + size, host, 3, 0, turn)
            model[start] = (start + size, host)
            if number % 1000 == 0:
                check(tree, model, chance)
        check(tree, model, chance)
        for _ in range(200):
            low = chance.randrange(6000)
            high = low + chance.choice((1, 1, 1, 2, 30, 300))
            inside = [cell * 16 for cell in range(low, high) if cell * 16 in model]
            tree.check_whole(low * 16, high * 16)
            assert len(tree.remove(low * 16, high * 16)) == len(inside)
            for start in inside:
                del model[start]
        check(tree, model, chance)
    for start in chance.sample(sorted(model), len(model) - 3):
        assert len(tree.remove(start, start + 1 if model[start][0] == start + 1 else start + 16)) == 1
        del model[start]
    check(tree, model, chance)
    assert len(tree.remove(0, 1 << 64)) == 3
    check(tree, {}, chance)


def test_what_is_cut() -> None:
    tree: RegionTree[int] = RegionTree()
    for start in range(0, 100_000, 100):
        tree.insert(start, start + 50, 0, 3, 0, 0)
    for start, end in ((0, 49), (1, 50), (25, 30), (99_900, 99_910), (49_910, 60_000), (40_000, 50_049)):
        with pytest.raises(OSError, match="inside the DMA region"):
            tree.check_whole(start, end)
    for start, end in ((0, 50), (50, 100), (75, 150), (99_950, 1 << 64), (0, 1 << 64), (49_950, 60_000)):
        tree.check_whole(start, end)


def test_all_regions_of_an_owner() -> None:
    tree: RegionTree[int] = RegionTree()
    for number in range(2000):
        tree.insert(number, number + 1, 0, 3, 0, int(number % 7 == 3 or 500 <= number < 1200))
    assert tree.start_of(1) == 3
    gone = tree.remove_owned(1)
    assert set(gone) == {1}
    left = [number for number in range(2000) if not (number % 7 == 3 or 500 <= number < 1200)]
    assert tree.map.flat()["start"].tolist() == left
    assert len(gone) == 2000 - len(left)
    with pytest.raises(ValueError, match="no region"):
        tree.start_of(1)


def test_a_map_from_records() -> None:
    for count in (0, 1, LEAF, LEAF + 1, 5 * LEAF - 1):
        regions = np.zeros(count, REGION)
        regions["start"] = np.arange(count) * 10
        regions["size"] = 5
        made = RegionMap.of(regions)
        assert np.array_equal(made.flat(), regions)
        for number in range(0, count, 37):
            assert made.records[find(*made, u64(number * 10 + 4))]["start"] == number * 10
            assert find(*made, u64(number * 10 + 5)) == -1


@pytest.mark.parametrize(
    ("start", "end"), [(0, 0), (0, 5), (3, 12), (10, 15), (12, 13), (7, 9), (0, 1 << 64), (40, 90)]
)
def test_without_a_range(start: int, end: int) -> None:
    regions = np.zeros(6, REGION)
    regions["start"] = [*range(0, 50, 10), (1 << 64) - 4]
    regions["size"] = [5, 5, 5, 5, 5, 4]
    regions["host"] = [1000, 0, 1020, 1030, 1040, 1050]
    left = without(regions, start, end)
    for region in regions:
        for place in range(int(region["size"])):
            address = int(region["start"]) + place
            found = [one for one in left if int(one["start"]) <= address < int(one["start"]) + int(one["size"])]
            assert len(found) == (not start <= address < end)
            if found:
                host = int(region["host"]) + place if region["host"] else 0
                assert (int(found[0]["host"]) and int(found[0]["host"]) + address - int(found[0]["start"])) == host
