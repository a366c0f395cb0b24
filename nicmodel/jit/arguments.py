"""Types of arguments, as machine code tells them apart.

Here is what has to be known of them without Numba: to look for code in the cache, and to load it. How it checks and
reads them is made in `nicmodel.jit.calling`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

import numpy as np

from nicmodel.jit.arrays import Arrays, Layout

#: None; an integer that fits into 64 bits with a sign, or only without; scalars of numpy's by their type's name.
Scalar: TypeAlias = Literal["none", "bool", "int64", "uint64", "float64"] | str


class ArrayKind(NamedTuple):
    """A C-contiguous, aligned array of numpy's own class."""

    #: All that numpy says of the type of its elements.
    dtype: str
    ndim: int
    writeable: bool


#: A `Layout` is an `Arrays` object's.
Kind: TypeAlias = Scalar | ArrayKind | Layout

#: Scalars of numpy's that are taken as they are.
SCALARS: dict[str, type[np.generic]] = {
    f"numpy.{kind.__name__}": kind
    for kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
}
_SCALAR_NAMES = {kind: name for name, kind in SCALARS.items()}


@functools.cache
def _dtype_name(dtype: np.dtype[Any]) -> str:
    return repr(dtype)


def kind_of(argument: Any) -> Kind | None:
    """The type of an argument; None for those that only Numba can read."""
    if argument is None:
        return "none"
    kind = type(argument)
    if kind is np.ndarray:
        flags = argument.flags
        if not argument.ndim or not flags.c_contiguous or not flags.aligned:
            return None
        return ArrayKind(_dtype_name(argument.dtype), argument.ndim, flags.writeable)
    if kind is bool:
        return "bool"
    if kind is int:
        if -(1 << 63) <= argument < 1 << 63:
            return "int64"
        return "uint64" if 0 < argument < 1 << 64 else None
    if kind is float:
        return "float64"
    if isinstance(argument, Arrays):
        return argument.layout
    return _SCALAR_NAMES.get(kind)


def kinds_of(arguments: Sequence[Any]) -> tuple[Kind, ...] | None:
    """The types of all arguments; None if there is one that only Numba can read."""
    kinds = []
    for argument in arguments:
        if (kind := kind_of(argument)) is None:
            return None
        kinds.append(kind)
    return tuple(kinds)


def dtype_of(argument: Any) -> np.dtype[Any] | None:
    """The type of an array's elements; None for anything else."""
    return argument.dtype if type(argument) is np.ndarray else None


def as_dtype(argument: Any, dtype: np.dtype[Any] | None) -> Any:
    """An argument that says by the very object `dtype`, which is equal to its own, what its elements are."""
    return argument if dtype is None else argument.view(dtype)


def addresses(arguments: Sequence[Any]) -> dict[str, int]:
    """Addresses of objects that machine code for such arguments compares with, by the names that it has for them.

    The types of elements and layouts must live as long as the code.
    """
    given = {name: id(thing) for name, thing in _OBJECTS.items()}
    for number, argument in enumerate(arguments):
        if isinstance(argument, np.ndarray):
            given[f"dtype {number}"] = id(argument.dtype)
        elif isinstance(argument, Arrays):
            given[f"layout {number}"] = id(argument.layout)
    return given


def _fail(pickled: bytes) -> NoReturn:
    """Raise what compiled code has raised: Numba's description of it, a class, its arguments and the place."""
    from numba.core import serialize

    kind, arguments, _place = serialize._numba_unpickle(id(pickled), pickled, pickled)
    raise kind(*arguments)


#: Objects that machine code for any arguments may refer to, by the names that it has for them.
_OBJECTS: dict[str, object] = {
    **SCALARS, "numpy.ndarray": np.ndarray, "int": int, "float": float, "None": None, "True": True, "False": False,
    "attribute address": "address", "attribute layout": "layout", "fail": _fail,
}  # fmt: skip
