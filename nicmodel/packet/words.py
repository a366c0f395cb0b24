"""Loads and stores of header fields: bytes and big-endian words at a position of an array of bytes.

Compiled, each is one unaligned machine instruction (and a byte swap), with neither a bounds check nor the test for a
negative index that ``data[i]`` costs, so that LLVM can keep several in flight or turn a loop of them into vector code:
the caller has already compared the position with the length. Interpreted (``NUMBA_DISABLE_JIT=1``), a position outside
the array raises `IndexError`.

Values are int64, since Numba makes a float64 of int64 and uint64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nicmodel.jit.compiled import JIT_DISABLED

Load = Callable[[npt.NDArray[np.uint8], int], int]
Store = Callable[[npt.NDArray[np.uint8], int, int], None]


def _checked(data: npt.NDArray[np.uint8], at: int, count: int) -> int:
    if not 0 <= at <= len(data) - count:
        raise IndexError(f"{count} bytes at {at} of an array of {len(data)}")
    return int(at)


def _is_bytes(data: Any) -> bool:
    return isinstance(data, types.Array) and data.dtype == types.uint8 and data.ndim == 1 and data.layout == "C"


def _pointer(context: Any, builder: Any, signature: Any, args: Any, bits: int) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), ir.IntType(bits).as_pointer())


def _make_load(bits: int, order: Literal["big", "little"]) -> Load:
    if JIT_DISABLED:

        def plain(data: npt.NDArray[np.uint8], at: int) -> int:
            start = _checked(data, at, bits // 8)
            return int.from_bytes(data[start : start + bits // 8].tobytes(), order)

        return plain

    def load(typingctx: Any, data: Any, at: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(_pointer(context, builder, signature, args, bits))
            value.align = 1
            if order == "big" and bits > 8:
                value = builder.bswap(value)
            return builder.zext(value, ir.IntType(64))

        return (types.int64(data, types.int64), codegen) if _is_bytes(data) else None

    function: Load = intrinsic(load)
    return function


def _make_store(bits: int) -> Store:
    if JIT_DISABLED:

        def plain(data: npt.NDArray[np.uint8], at: int, value: int) -> None:
            start = _checked(data, at, bits // 8)
            low = int(value) & ((1 << bits) - 1)
            data[start : start + bits // 8] = np.frombuffer(low.to_bytes(bits // 8, "big"), np.uint8)

        return plain

    def store(typingctx: Any, data: Any, at: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            low = builder.trunc(args[2], ir.IntType(bits))
            if bits > 8:
                low = builder.bswap(low)
            instruction = builder.store(low, _pointer(context, builder, signature, args, bits))
            instruction.align = 1
            return context.get_dummy_value()

        return (types.void(data, types.int64, types.int64), codegen) if _is_bytes(data) and data.mutable else None

    function: Store = intrinsic(store)
    return function


load_byte = _make_load(8, "big")
load_be16 = _make_load(16, "big")
load_be32 = _make_load(32, "big")
load_le32 = _make_load(32, "little")
store_byte = _make_store(8)
store_be16 = _make_store(16)
store_be32 = _make_store(32)
