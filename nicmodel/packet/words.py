"""Loads and stores of header fields: bytes and big-endian words at a position of an array of bytes.

Compiled, each is one unaligned machine instruction (and a byte swap), with neither a bounds check nor the test for a
negative index that ``data[i]`` costs, so that LLVM can keep several in flight or turn a loop of them into vector code:
the caller has already compared the position with the length. Interpreted (``NUMBA_DISABLE_JIT=1``), a position outside
the array raises `IndexError`.

Values are int64, since Numba makes a float64 of int64 and uint64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from nicmodel.jit.compiled import JIT_DISABLED, Intrinsic

Load = Callable[[npt.NDArray[np.uint8], int], int]
Store = Callable[[npt.NDArray[np.uint8], int, int], None]


def _checked(data: npt.NDArray[np.uint8], at: int, count: int) -> int:
    if not 0 <= at <= len(data) - count:
        raise IndexError(f"{count} bytes at {at} of an array of {len(data)}")
    return int(at)


def _make_load(bits: int, order: Literal["big", "little"]) -> Load:
    if JIT_DISABLED:

        def plain(data: npt.NDArray[np.uint8], at: int) -> int:
            start = _checked(data, at, bits // 8)
            return int.from_bytes(data[start : start + bits // 8].tobytes(), order)

        return plain

    return cast("Load", Intrinsic("load_at", bits, order))


def _make_store(bits: int) -> Store:
    if JIT_DISABLED:

        def plain(data: npt.NDArray[np.uint8], at: int, value: int) -> None:
            start = _checked(data, at, bits // 8)
            low = int(value) & ((1 << bits) - 1)
            data[start : start + bits // 8] = np.frombuffer(low.to_bytes(bits // 8, "big"), np.uint8)

        return plain

    return cast("Store", Intrinsic("store_at", bits))


load_byte = _make_load(8, "big")
load_be16 = _make_load(16, "big")
load_be32 = _make_load(32, "big")
load_le32 = _make_load(32, "little")
store_byte = _make_store(8)
store_be16 = _make_store(16)
store_be32 = _make_store(32)
