"""Arrays that go to compiled code by reference are the very arrays that Python has."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from nicmodel.jit.arrays import Arrays
from nicmodel.jit.compiled import compiled

PAIR = np.dtype([("a", "<i4"), ("b", "<u8")])


class Some(Arrays):
    numbers: npt.NDArray[np.int64]
    table: npt.NDArray[np.uint16]
    pairs: npt.NDArray[np.void]


def make(count: int) -> Some:
    return Some(
        numbers=np.arange(count, dtype=np.int64),
        table=np.arange(2 * 3 * count, dtype=np.uint16).reshape(2, 3, count),
        pairs=np.zeros(count, PAIR),
    )


@compiled
def look(some: Some, i: int, j: int, k: int) -> tuple[int, int, int]:
    return len(some.numbers), some.numbers[k], some.table[i, j, k]


@compiled
def change(some: Some, at: int, value: int) -> None:
    some.pairs[at].a = value
    some.pairs[at].b = 2 * value
    some.table[1, 2, at] = value


@pytest.mark.parametrize("count", [1, 2, 7])
def test_compiled_code_reads_every_element(count: int) -> None:
    some = make(count)
    for i, j, k in np.ndindex(2, 3, count):
        assert look(some, i, j, k) == (count, k, int(some.table[i, j, k]))


def test_what_compiled_code_writes_is_seen_at_once() -> None:
    some = make(5)
    change(some, 3, 9)
    assert some.pairs[3].item() == (9, 18)
    assert some.table[1, 2, 3] == 9
    assert some.pairs["a"].sum() == 9


def test_an_array_is_exchanged() -> None:
    some = make(3)
    assert look(some, 0, 0, 2)[:2] == (3, 2)
    some.numbers = np.full(8, 5, np.int64)
    assert look(some, 0, 0, 2)[:2] == (8, 5)


def test_a_copy_with_another_array_shares_the_rest() -> None:
    some = make(3)
    other = some.with_arrays(numbers=np.full(8, 5, np.int64))
    assert look(some, 0, 0, 2)[:2] == (3, 2)
    assert look(other, 0, 0, 2)[:2] == (8, 5)
    change(other, 0, 4)
    assert some.pairs[0].item() == (4, 8)
    other.numbers = np.zeros(1, np.int64)
    assert look(some, 0, 0, 2)[:2] == (3, 2)


def test_only_contiguous_arrays_are_taken() -> None:
    some = make(4)
    with pytest.raises(ValueError, match="contiguous"):
        some.numbers = np.arange(8)[::2]


def test_only_arrays_of_the_same_type_are_taken() -> None:
    some = make(4)
    with pytest.raises(ValueError, match="int64"):
        some.numbers = np.zeros(4, np.int32)
