"""Arrays that compiled code reaches through one pointer.

Numba passes an array as seven words and a tuple of arrays as all their words, which every call between compiled
functions copies; for the device's state that was more work than a small frame. An object of a class derived from
`Arrays` is passed as the address of a table that says where each array is, and ``state.rx`` in compiled code makes the
array from it: a load that the optimiser drops where the array is not used.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate
from numba.core.typing.typeof import typeof_impl
from numba.extending import NativeValue, infer_getattr, unbox
from numba.np.numpy_support import from_dtype

_WORD = ir.IntType(64)


class Arrays:
    """Named C-contiguous arrays, passed to compiled code by reference.

    An attribute is set once to each of the arrays that the class annotates, or one that it is derived from. It may be
    set again, to an array of the same type, but not while compiled code runs.

    Attributes:
        address: of the table in this process: for each array its data's address and then its shape.
    """

    address: int

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
        fields = tuple((name, types.Array(from_dtype(dtype), ndim, "C")) for name, (dtype, ndim) in self._kinds.items())
        self._numba = ArraysType(type(self).__name__, fields)

    @classmethod
    @functools.cache
    def names(cls) -> tuple[str, ...]:
        """The names of the arrays; those of a class that it is derived from come first."""
        bases = reversed(cls.__mro__)
        return tuple(name for base in bases for name in inspect.get_annotations(base) if name != "address")

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


class ArraysType(types.Type):  # type: ignore[misc]
    """The Numba type of an `Arrays` object: the names and types of its arrays."""

    def __init__(self, name: str, fields: tuple[tuple[str, Any], ...]) -> None:
        self.fields = dict(fields)
        # The name is part of each symbol's in compiled code; in full, it was most of what LLVM read and the cache held.
        digest = hashlib.sha256(repr(fields).encode()).hexdigest()[:16]
        super().__init__(f"{name}({digest})")


register_default(ArraysType)(models.OpaqueModel)


@typeof_impl.register(Arrays)
def _typeof(value: Arrays, context: Any) -> ArraysType:
    return value._numba


@unbox(ArraysType)
def _unbox(kind: Any, value: Any, c: Any) -> Any:
    number = c.pyapi.object_getattr_string(value, "address")
    address = c.pyapi.long_as_ulonglong(number)
    c.pyapi.decref(number)
    return NativeValue(c.builder.inttoptr(address, cgutils.voidptr_t))


@infer_getattr
class _Attributes(AttributeTemplate):  # type: ignore[misc]
    key = ArraysType

    def generic_resolve(self, kind: ArraysType, attribute: str) -> Any:
        return kind.fields.get(attribute)


@lower_getattr_generic(ArraysType)
def _lower_getattr(context: Any, builder: Any, kind: ArraysType, value: Any, attribute: str) -> Any:
    place = 0
    for name, array_type in kind.fields.items():
        if name == attribute:
            break
        place += 1 + array_type.ndim
    array_type = kind.fields[attribute]
    table = builder.bitcast(value, _WORD.as_pointer())

    def word(number: int) -> Any:
        loaded = builder.load(builder.gep(table, [ir.Constant(_WORD, number)]))
        # The table does not change while compiled code runs, whatever that writes elsewhere.
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        return loaded

    array = context.make_array(array_type)(context, builder)
    item = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    shape = [word(place + 1 + axis) for axis in range(array_type.ndim)]
    strides = [ir.Constant(_WORD, item)]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    count = shape[0]
    for length in shape[1:]:
        count = builder.mul(count, length)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    array.parent = cgutils.get_null_value(array.parent.type)
    array.nitems = count
    array.itemsize = ir.Constant(_WORD, item)
    array.data = builder.inttoptr(word(place), array.data.type)
    array.shape = cgutils.pack_array(builder, shape)
    array.strides = cgutils.pack_array(builder, strides)
    return array._getvalue()
