"""Intrinsics: functions that become instructions, and functions of the C library, as Numba has to know them.

`nicmodel.jit.addresses`, `nicmodel.packet.words` and `nicmodel.wire.syscalls` say what each is for, and name them
(`nicmodel.jit.compiled.Intrinsic`). This is loaded when something is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

#: What Numba's `intrinsic` takes: it is given types of arguments, and tells its signature and what makes the code.
Definition = Callable[..., Any]

_UNSIGNED = {8: types.uint8, 16: types.uint16, 32: types.uint32, 64: types.uint64}


# Addresses.


def _pointer(builder: Any, address: Any, bits: int) -> Any:
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def load(bits: int) -> Definition:
    """A value at an address, which may be any."""

    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(_pointer(builder, args[0], bits))
            value.align = 1
            return value

        return _UNSIGNED[bits](types.uint64), codegen

    return load


def store(bits: int) -> Definition:
    """Store a value at an address, which may be any."""

    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            instruction = builder.store(args[1], _pointer(builder, args[0], bits))
            instruction.align = 1
            return context.get_dummy_value()

        return types.void(types.uint64, _UNSIGNED[bits]), codegen

    return store


def copy() -> Definition:
    """Copy bytes from one address to another."""

    def copy(typingctx: Any, destination: Any, source: Any, count: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils.raw_memcpy(builder, _pointer(builder, args[0], 8), _pointer(builder, args[1], 8), args[2], 1)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.int64), codegen

    return copy


def publish(bits: int) -> Definition:
    """Store a word at its own alignment, after all that was stored before."""

    def publish(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = args[1] if bits == 64 else builder.trunc(args[1], ir.IntType(bits))
            builder.store_atomic(value, _pointer(builder, args[0], bits), "release", bits // 8)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), codegen

    return publish


# Positions in arrays of bytes.


def _is_bytes(data: Any) -> bool:
    return isinstance(data, types.Array) and data.dtype == types.uint8 and data.ndim == 1 and data.layout == "C"


def _position(context: Any, builder: Any, signature: Any, args: Any, bits: int) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), ir.IntType(bits).as_pointer())


def load_at(bits: int, order: str) -> Definition:
    """A word at a position, "big" or "little" endian."""

    def load(typingctx: Any, data: Any, at: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(_position(context, builder, signature, args, bits))
            value.align = 1
            if order == "big" and bits > 8:
                value = builder.bswap(value)
            return builder.zext(value, ir.IntType(64))

        return (types.int64(data, types.int64), codegen) if _is_bytes(data) else None

    return load


def store_at(bits: int) -> Definition:
    """Store a big-endian word at a position."""

    def store(typingctx: Any, data: Any, at: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            low = builder.trunc(args[2], ir.IntType(bits))
            if bits > 8:
                low = builder.bswap(low)
            instruction = builder.store(low, _position(context, builder, signature, args, bits))
            instruction.align = 1
            return context.get_dummy_value()

        return (types.void(data, types.int64, types.int64), codegen) if _is_bytes(data) and data.mutable else None

    return store


# The C library that the interpreter itself uses, linked by name.


def external(name: str, result: str, *arguments: str) -> Any:
    """A function of the C library; types by their names in Numba."""
    return types.ExternalFunction(name, getattr(types, result)(*(getattr(types, kind) for kind in arguments)))
