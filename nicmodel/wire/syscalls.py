"""The two system calls that a tap costs for each frame, callable from compiled code.

Both return what the kernel itself returns: the number of bytes, or minus the errno.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numba import types

from nicmodel.packet.compiled import JIT_DISABLED, inlined
from nicmodel.packet.memory import load_u32

if JIT_DISABLED:
    _libc = ctypes.CDLL(None, use_errno=True)
    for _function in (_libc.read, _libc.write):
        _function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
        _function.restype = ctypes.c_ssize_t

    def read(fd: int, address: int, count: int) -> int:
        """Read into memory of this process."""
        result = int(_libc.read(fd, int(address), int(count)))
        return result if result >= 0 else -ctypes.get_errno()

    def write(fd: int, address: int, count: int) -> int:
        """Write from memory of this process."""
        result = int(_libc.write(fd, int(address), int(count)))
        return result if result >= 0 else -ctypes.get_errno()

else:
    # Linked by name against the C library that the interpreter itself uses, so that compiled code can be cached.
    _read = types.ExternalFunction("read", types.intp(types.intc, types.intp, types.intp))
    _write = types.ExternalFunction("write", types.intp(types.intc, types.intp, types.intp))
    _errno_location = types.ExternalFunction("__errno_location", types.intp())

    @inlined
    def read(fd: int, address: int, count: int) -> int:
        """Read into memory of this process."""
        result = _read(fd, address, count)
        if result < 0:
            return -int(np.int64(load_u32(_errno_location())))
        return int(result)

    @inlined
    def write(fd: int, address: int, count: int) -> int:
        """Write from memory of this process."""
        result = _write(fd, address, count)
        if result < 0:
            return -int(np.int64(load_u32(_errno_location())))
        return int(result)
