"""Arrays that compiled code reaches through one pointer.

Numba passes an array as seven words and a tuple of arrays as all their words, which every call between compiled
functions copies; for the device's state that was more work than a small frame. An object of a class derived from
`Arrays` is passed as the address of a table that says where each array is, and ``state.rx`` in compiled code makes the
array from it: a load that the optimiser drops where the array is not used.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt


class Layout(NamedTuple):
    """What compiled code has to know of an `Arrays` object; of all that are equal there is one (`_the_one`)."""

    #: Of the class.
    name: str
    #: Name, type of elements and dimensions of each array.
    arrays: tuple[tuple[str, np.dtype[Any], int], ...]


@functools.cache
def _the_one(layout: Layout) -> Layout:
    return layout


#: Annotations of `Arrays` that are not arrays.
_OWN = ("address", "layout")


class Arrays:
    """Named C-contiguous arrays, passed to compiled code by reference.

    An attribute is set once to each of the arrays that the class annotates, or one that it is derived from. It may be
    set again, to an array of the same type, but not while compiled code runs.

    Attributes:
        address: of the table in this process: for each array its data's address and then its shape.
        layout: the types of the arrays; the same object for all objects that compiled code cannot tell apart.
    """

    address: int
    layout: Layout

    def __init__(self, **arrays: npt.NDArray[Any]) -> None:
        self._kinds: dict[str, tuple[np.dtype[Any], int]] = {}
        self._places: dict[str, int] = {}
        words = 0
        for name in self.names():
            array = arrays[name]
            self._kinds[name] = array.dtype, array.ndim
            self._places[name] = words
            words += 1 + array.ndim
        self._table = np.zeros(words, np.uint64)
        self.address = self._table.ctypes.data
        for name in self._places:
            setattr(self, name, arrays[name])
        self.layout = _the_one(Layout(type(self).__name__, tuple((name, *kind) for name, kind in self._kinds.items())))

    @classmethod
    @functools.cache
    def names(cls) -> tuple[str, ...]:
        """The names of the arrays; those of a class that it is derived from come first."""
        bases = reversed(cls.__mro__)
        return tuple(
            name for base in bases for name in inspect.get_annotations(base) if name not in ("address", "layout")
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; that of an array also for compiled code.

        Raises:
            ValueError: the array is not contiguous, or of another type than the one before.
        """
        place = self.__dict__.get("_places", {}).get(name)
        if place is not None:
            dtype, ndim = self._kinds[name]
            if value.dtype != dtype or value.ndim != ndim or not value.flags.c_contiguous:
                raise ValueError(f"{name} has to be a C-contiguous array of {dtype} in {ndim} dimensions")
            self._table[place : place + 1 + ndim] = (value.ctypes.data, *value.shape)
        super().__setattr__(name, value)

    def with_arrays(self, **arrays: npt.NDArray[Any]) -> Self:
        """The same arrays with these replaced; the others are shared."""
        other = copy.copy(self)
        table = self._table.copy()
        other._table, other.address = table, table.ctypes.data
        for name, array in arrays.items():
            setattr(other, name, array)
        return other
