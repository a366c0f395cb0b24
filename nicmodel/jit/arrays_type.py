"""The Numba type of `nicmodel.jit.arrays.Arrays`: how compiled code gets at the arrays."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate
from numba.core.typing.typeof import typeof_impl
from numba.extending import NativeValue, infer_getattr, unbox
from numba.np.numpy_support import from_dtype

from nicmodel.jit.arrays import Arrays, Layout

_WORD = ir.IntType(64)


class ArraysType(types.Type):  # type: ignore[misc]
    """The Numba type of an `Arrays` object: the names and types of its arrays."""

    def __init__(self, layout: Layout) -> None:
        self.fields = {name: types.Array(from_dtype(dtype), ndim, "C") for name, dtype, ndim in layout.arrays}
        # The name is part of each symbol's in compiled code; in full, it was most of what LLVM read and the cache held.
        digest = hashlib.sha256(repr(tuple(self.fields.items())).encode()).hexdigest()[:16]
        super().__init__(f"{layout.name}({digest})")


register_default(ArraysType)(models.OpaqueModel)

_type_of = functools.cache(ArraysType)


def fill_array(context: Any, builder: Any, array: Any, numba_type: Any, data: Any, shape: Sequence[Any]) -> None:
    """Make a C-contiguous array of Numba's from its address and shape; nothing counts references to it."""
    item = ir.Constant(_WORD, context.get_abi_sizeof(context.get_data_type(numba_type.dtype)))
    strides = [item]
    for length in reversed(shape[1:]):
        strides.insert(0, builder.mul(strides[0], length))
    count = shape[0]
    for length in shape[1:]:
        count = builder.mul(count, length)
    array.meminfo = cgutils.get_null_value(array.meminfo.type)
    array.parent = cgutils.get_null_value(array.parent.type)
    array.nitems = count
    array.itemsize = item
    array.data = data
    array.shape = cgutils.pack_array(builder, shape)
    array.strides = cgutils.pack_array(builder, strides)


@typeof_impl.register(Arrays)
def _typeof(value: Arrays, context: Any) -> ArraysType:
    return _type_of(value.layout)


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
    shape = [word(place + 1 + axis) for axis in range(array_type.ndim)]
    fill_array(context, builder, array, array_type, builder.inttoptr(word(place), array.data.type), shape)
    return array._getvalue()
