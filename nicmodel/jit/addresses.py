"""Loads, stores and copies at addresses of this process, for compiled code.

What is read and written by DMA is memory of a guest that is mapped here. Nothing in this file checks an address: who
calls it has done so, where the address comes from anything but an array of this process.

Values are little-endian on x86-64, as DQO descriptors are. With ``NUMBA_DISABLE_JIT=1`` the same names go through
ctypes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

from nicmodel.jit.compiled import JIT_DISABLED, Intrinsic

_KINDS: dict[int, Any] = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_uint64}


def _make_load(bits: int) -> Callable[[int], int]:
    if JIT_DISABLED:
        kind = _KINDS[bits]
        return lambda address: int(kind.from_address(int(address)).value)
    return cast("Callable[[int], int]", Intrinsic("load", bits))


def _make_store(bits: int) -> Callable[[int, int], None]:
    if JIT_DISABLED:
        kind = _KINDS[bits]

        def plain(address: int, value: int) -> None:
            kind.from_address(int(address)).value = int(value)

        return plain
    return cast("Callable[[int, int], None]", Intrinsic("store", bits))


load_u8 = _make_load(8)
load_u16 = _make_load(16)
load_u32 = _make_load(32)
load_u64 = _make_load(64)
store_u8 = _make_store(8)
store_u16 = _make_store(16)
store_u32 = _make_store(32)
store_u64 = _make_store(64)


def _copy(destination: int, source: int, count: int) -> None:
    ctypes.memmove(int(destination), int(source), int(count))


#: ``copy(destination, source, count)``: bytes from one address to another; the ranges must not overlap.
copy: Callable[[int, int, int], None] = _copy if JIT_DISABLED else cast("Any", Intrinsic("copy"))
#: ``publish_u64(address, value)``: store one aligned word so that no earlier store can be seen after it: the word with
#: a generation bit.
publish_u64: Callable[[int, int], None] = store_u64 if JIT_DISABLED else cast("Any", Intrinsic("publish", 64))
#: The same for a 32-bit counter.
publish_u32: Callable[[int, int], None] = store_u32 if JIT_DISABLED else cast("Any", Intrinsic("publish", 32))
