"""How Python calls machine code: a ``PyCFunctionFast`` that checks its arguments, reads them, and makes the result.

Numba's own functions for Python ask Numba for the type of each argument, at every call, which takes longer than the
call of a small function; and they cannot be loaded without Numba. This function compares the types of its arguments
with those that it was made for. If they are others, it calls its self with them (`nicmodel.jit.compiled.Compiled`).

It reads arrays and scalars where numpy's headers say that they lie: ``PyArrayObject_fields`` in ndarraytypes.h, and the
scalars in arrayscalars.h, which are part of numpy's binary interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from nicmodel.jit.arguments import SCALARS, ArrayKind, Kind
from nicmodel.jit.arrays import Layout
from nicmodel.jit.arrays_type import fill_array

ENTRY = "nicmodel_entry"

_VOID, _BIT, _BYTE, _INT, _WORD = ir.VoidType(), ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
_OBJECT = _BYTE.as_pointer()

#: Offsets in an object: its type, and what follows ``PyObject_HEAD``.
_TYPE, _BODY = object.__basicsize__ - 8, object.__basicsize__
_DATA, _NDIM, _SHAPE, _DTYPE, _FLAGS = _BODY, _BODY + 8, _BODY + 16, _BODY + 40, _BODY + 48
_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x100, 0x400


class Unsupported(Exception):
    """Python is given something that this cannot make."""


def add_entry(library: Any, result: Any, kinds: Sequence[Kind]) -> None:
    """Add the function that Python calls to a library.

    Args:
        library: of the function that it calls.
        result: of compiling that one.
        kinds: types of its arguments.

    Raises:
        Unsupported: what it returns cannot be made into an object.
    """
    module = library.create_ir_module("entry")
    _Entry(module, result.target_context, result.fndesc, kinds).build()
    library.add_ir_module(module)


class _Entry:
    """``PyObject *(PyObject *self, PyObject *const *args, Py_ssize_t count)``."""

    def __init__(self, module: ir.Module, context: Any, described: Any, kinds: Sequence[Kind]) -> None:
        self._module, self._context, self._described, self._kinds = module, context, described, kinds
        signature = ir.FunctionType(_OBJECT, (_OBJECT, _OBJECT.as_pointer(), _WORD))
        self._function = ir.Function(module, signature, ENTRY)
        self._builder = ir.IRBuilder(self._function.append_basic_block("entry"))
        self._others = self._function.append_basic_block("others")

    def build(self) -> None:
        """Write it."""
        next_function, objects, count = self._function.args
        builder, context, described = self._builder, self._context, self._described
        self._require(builder.icmp_signed("==", count, ir.Constant(_WORD, len(self._kinds))))
        arguments = []
        for number, (kind, numba_type) in enumerate(zip(self._kinds, described.argtypes, strict=True)):
            value = builder.load(builder.gep(objects, [ir.Constant(_WORD, number)]))
            arguments.append(self._read(number, value, kind, numba_type))
        callee = context.declare_function(self._module, described)
        status, value = context.call_conv.call_function(
            builder, callee, described.restype, described.argtypes, arguments, attrs=("noinline",)
        )
        with builder.if_then(status.is_error, likely=False):
            builder.ret(self._raise(status))
        builder.ret(self._make(value, types.unliteral(described.restype)))
        builder.position_at_end(self._others)
        builder.ret(
            self._call("PyObject_Vectorcall", _OBJECT, next_function, objects, count, ir.Constant(_OBJECT, None))
        )

    def _outside(self, name: str, kind: ir.Type = _BYTE) -> Any:
        """The address of something outside."""
        found = self._module.globals.get(name)
        return found or ir.GlobalVariable(self._module, kind, name)

    def _call(self, name: str, result: ir.Type, *arguments: Any) -> Any:
        """Call a function of the interpreter."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self._builder.call(cgutils.get_or_insert_function(self._module, kind, name), arguments)

    def _at(self, value: Any, offset: int, kind: ir.Type) -> Any:
        """What an object has at an offset."""
        place = self._builder.gep(value, [ir.Constant(_WORD, offset)])
        return self._builder.load(self._builder.bitcast(place, kind.as_pointer()))

    def _require(self, condition: Any) -> None:
        """Go on if this is so; otherwise the arguments are for another function."""
        then = self._function.append_basic_block()
        self._builder.cbranch(condition, then, self._others)
        self._builder.position_at_end(then)

    def _is(self, value: Any, name: str) -> Any:
        return self._builder.icmp_unsigned("==", value, self._outside(name))

    def _require_type(self, value: Any, name: str) -> None:
        self._require(self._is(self._at(value, _TYPE, _OBJECT), name))

    # Arguments.

    def _read(self, number: int, value: Any, kind: Kind, numba_type: Any) -> Any:
        if isinstance(kind, Layout):
            return self._read_arrays(number, value)
        if isinstance(kind, ArrayKind):
            return self._read_array(number, value, kind, numba_type)
        if kind == "none":
            self._require(self._is(value, "None"))
            return self._context.get_dummy_value()
        if kind == "bool":
            true = self._is(value, "True")
            self._require(self._builder.or_(true, self._is(value, "False")))
            return true
        if kind == "float64":
            self._require_type(value, "float")
            return self._at(value, _BODY, ir.DoubleType())
        if kind in SCALARS:
            self._require_type(value, kind)
            return self._at(value, _BODY, self._context.get_value_type(numba_type))
        return self._read_integer(value, beyond=kind == "uint64")

    def _read_integer(self, value: Any, *, beyond: bool) -> Any:
        """One of 64 bits with a sign, or one that is beyond these and needs all 64 bits."""
        builder = self._builder
        self._require_type(value, "int")
        place = cgutils.alloca_once(builder, _INT)
        read = self._call("PyLong_AsLongLongAndOverflow", _WORD, value, place)
        self._require(builder.icmp_signed("==", builder.load(place), ir.Constant(_INT, int(beyond))))
        if beyond:
            read = self._call("PyLong_AsUnsignedLongLong", _WORD, value)
            failed = builder.icmp_signed("!=", self._call("PyErr_Occurred", _OBJECT), ir.Constant(_OBJECT, None))
            with builder.if_then(failed):
                self._call("PyErr_Clear", _VOID)
            self._require(builder.not_(failed))
        return read

    def _read_array(self, number: int, value: Any, kind: ArrayKind, numba_type: Any) -> Any:
        builder, context = self._builder, self._context
        self._require_type(value, "numpy.ndarray")
        self._require(self._is(self._at(value, _DTYPE, _OBJECT), f"dtype {number}"))
        self._require(builder.icmp_signed("==", self._at(value, _NDIM, _INT), ir.Constant(_INT, kind.ndim)))
        looked_at = builder.and_(self._at(value, _FLAGS, _INT), ir.Constant(_INT, _CONTIGUOUS | _ALIGNED | _WRITEABLE))
        expected = _CONTIGUOUS | _ALIGNED | (_WRITEABLE if kind.writeable else 0)
        self._require(builder.icmp_signed("==", looked_at, ir.Constant(_INT, expected)))
        shape_at = self._at(value, _SHAPE, _OBJECT)
        shape = [self._at(shape_at, 8 * axis, _WORD) for axis in range(kind.ndim)]
        array = context.make_array(numba_type)(context, builder)
        fill_array(context, builder, array, numba_type, self._at(value, _DATA, array.data.type), shape)
        return array._getvalue()

    def _read_arrays(self, number: int, value: Any) -> Any:
        """The address of an `Arrays` object's table."""
        layout = self._attribute(value, "layout")
        self._call("Py_DecRef", _VOID, layout)
        self._require(self._is(layout, f"layout {number}"))
        address = self._attribute(value, "address")
        read = self._call("PyLong_AsUnsignedLongLong", _WORD, address)
        self._call("Py_DecRef", _VOID, address)
        return self._builder.inttoptr(read, cgutils.voidptr_t)

    def _attribute(self, value: Any, name: str) -> Any:
        found = self._call("PyObject_GetAttr", _OBJECT, value, self._outside(f"attribute {name}"))
        missing = self._builder.icmp_unsigned("==", found, ir.Constant(_OBJECT, None))
        with self._builder.if_then(missing, likely=False):
            self._call("PyErr_Clear", _VOID)
        self._require(self._builder.not_(missing))
        return found

    # Results.

    def _make(self, value: Any, numba_type: Any) -> Any:
        """The object for a result."""
        builder = self._builder
        if isinstance(numba_type, types.NoneType):
            none = self._outside("None")
            self._call("Py_IncRef", _VOID, none)
            return none
        if isinstance(numba_type, types.Boolean):
            return self._call("PyBool_FromLong", _OBJECT, builder.zext(value, _WORD))
        if isinstance(numba_type, types.Integer):
            if numba_type.signed:
                return self._call("PyLong_FromLongLong", _OBJECT, self._wide(value, builder.sext))
            return self._call("PyLong_FromUnsignedLongLong", _OBJECT, self._wide(value, builder.zext))
        if numba_type == types.float64:
            return self._call("PyFloat_FromDouble", _OBJECT, value)
        if isinstance(numba_type, (types.Tuple, types.UniTuple)):
            return self._make_tuple(value, numba_type)
        raise Unsupported(str(numba_type))

    def _wide(self, value: Any, widen: Any) -> Any:
        return value if value.type == _WORD else widen(value, _WORD)

    def _make_tuple(self, value: Any, numba_type: Any) -> Any:
        made = self._call("PyTuple_New", _OBJECT, ir.Constant(_WORD, len(numba_type)))
        with self._builder.if_then(cgutils.is_null(self._builder, made), likely=False):
            self._builder.ret(made)
        for number, kind in enumerate(numba_type):
            item = self._make(self._builder.extract_value(value, number), types.unliteral(kind))
            self._call("PyTuple_SetItem", _INT, made, ir.Constant(_WORD, number), item)
        return made

    def _raise(self, status: Any) -> Any:
        """Have Python raise what compiled code has raised: its description is a pickle, an address and a length."""
        builder = self._builder
        description = builder.load(status.excinfoptr)
        length = builder.sext(builder.extract_value(description, 1), _WORD)
        pickled = self._call("PyBytes_FromStringAndSize", _OBJECT, builder.extract_value(description, 0), length)
        failed = self._call("PyObject_CallOneArg", _OBJECT, self._outside("fail"), pickled)
        self._call("Py_DecRef", _VOID, pickled)
        return failed
