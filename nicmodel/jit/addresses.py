"""Loads, stores and copies at addresses of this process, for compiled code.

What is read and written by DMA is memory of a guest that is mapped here. Nothing in this file checks an address: who
calls it has done so, where the address comes from anything but an array of this process.

Values are little-endian on x86-64, as DQO descriptors are. With ``NUMBA_DISABLE_JIT=1`` the same names go through
ctypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nicmodel.jit.compiled import JIT_DISABLED


def _pointer(builder: Any, address: Any, bits: int) -> Any:
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def _make_load(bits: int) -> Callable[[int], int]:
    if JIT_DISABLED:
        kind: Any = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_uint64}[bits]
        return lambda address: int(kind.from_address(int(address)).value)
    result = {8: types.uint8, 16: types.uint16, 32: types.uint32, 64: types.uint64}[bits]

    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(_pointer(builder, args[0], bits))
            value.align = 1
            return value

        return result(types.uint64), codegen

    function: Callable[[int], int] = intrinsic(load)
    return function


def _make_store(bits: int) -> Callable[[int, int], None]:
    if JIT_DISABLED:
        kind: Any = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_uint64}[bits]

        def plain(address: int, value: int) -> None:
            kind.from_address(int(address)).value = int(value)

        return plain
    argument = {8: types.uint8, 16: types.uint16, 32: types.uint32, 64: types.uint64}[bits]

    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            instruction = builder.store(args[1], _pointer(builder, args[0], bits))
            instruction.align = 1
            return context.get_dummy_value()

        return types.void(types.uint64, argument), codegen

    function: Callable[[int, int], None] = intrinsic(store)
    return function


load_u8 = _make_load(8)
load_u16 = _make_load(16)
load_u32 = _make_load(32)
load_u64 = _make_load(64)
store_u8 = _make_store(8)
store_u16 = _make_store(16)
store_u32 = _make_store(32)
store_u64 = _make_store(64)


if JIT_DISABLED:

    def copy(destination: int, source: int, count: int) -> None:
        """Copy `count` bytes between two addresses of this process; the ranges must not overlap."""
        ctypes.memmove(int(destination), int(source), int(count))

    def publish_u64(address: int, value: int) -> None:
        """Store one aligned word so that no earlier store can be seen after it: the word with a generation bit."""
        store_u64(address, value)

    def publish_u32(address: int, value: int) -> None:
        """The same as `publish_u64`, for a 32-bit counter."""
        store_u32(address, value)

else:

    @intrinsic
    def copy(typingctx: Any, destination: Any, source: Any, count: Any) -> Any:
        """Copy `count` bytes between two addresses of this process; the ranges must not overlap."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils.raw_memcpy(builder, _pointer(builder, args[0], 8), _pointer(builder, args[1], 8), args[2], 1)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.int64), codegen

    @intrinsic
    def publish_u64(typingctx: Any, address: Any, value: Any) -> Any:
        """Store one aligned word so that no earlier store can be seen after it: the word with a generation bit."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store_atomic(args[1], _pointer(builder, args[0], 64), "release", 8)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), codegen

    @intrinsic
    def publish_u32(typingctx: Any, address: Any, value: Any) -> Any:
        """The same as `publish_u64`, for a 32-bit counter."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store_atomic(builder.trunc(args[1], ir.IntType(32)), _pointer(builder, args[0], 32), "release", 4)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), codegen
