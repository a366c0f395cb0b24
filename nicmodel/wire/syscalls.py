"""The system calls that frames cost, callable from compiled code.

All return what the kernel itself returns: the number of bytes (of messages, for the calls that take many), or minus the
errno.
"""

from __future__ import annotations

import ctypes
import socket

import numpy as np

from nicmodel.jit.addresses import load_u32
from nicmodel.jit.compiled import JIT_DISABLED, Intrinsic, inlined

MSG_DONTWAIT = int(socket.MSG_DONTWAIT)

if JIT_DISABLED:
    _libc = ctypes.CDLL(None, use_errno=True)
    for _function in (_libc.read, _libc.write):
        _function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
        _function.restype = ctypes.c_ssize_t
    _libc.recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
    _libc.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)

    def read(fd: int, address: int, count: int) -> int:
        """Read into memory of this process."""
        result = int(_libc.read(fd, int(address), int(count)))
        return result if result >= 0 else -ctypes.get_errno()

    def write(fd: int, address: int, count: int) -> int:
        """Write from memory of this process."""
        result = int(_libc.write(fd, int(address), int(count)))
        return result if result >= 0 else -ctypes.get_errno()

    def recvmmsg(fd: int, address: int, count: int) -> int:
        """Receive into `count` messages (struct mmsghdr) at `address`, without blocking."""
        result = int(_libc.recvmmsg(fd, int(address), int(count), MSG_DONTWAIT, None))
        return result if result >= 0 else -ctypes.get_errno()

    def sendmmsg(fd: int, address: int, count: int) -> int:
        """Send `count` messages (struct mmsghdr) at `address`, without blocking."""
        result = int(_libc.sendmmsg(fd, int(address), int(count), MSG_DONTWAIT))
        return result if result >= 0 else -ctypes.get_errno()

else:
    # Linked by name against the C library that the interpreter itself uses, so that compiled code can be cached.
    _read = Intrinsic("external", "read", "intp", "intc", "intp", "intp")
    _write = Intrinsic("external", "write", "intp", "intc", "intp", "intp")
    _recvmmsg = Intrinsic("external", "recvmmsg", "intc", "intc", "intp", "uintc", "intc", "intp")
    _sendmmsg = Intrinsic("external", "sendmmsg", "intc", "intc", "intp", "uintc", "intc")
    _errno_location = Intrinsic("external", "__errno_location", "intp")

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

    @inlined
    def recvmmsg(fd: int, address: int, count: int) -> int:
        """Receive into `count` messages (struct mmsghdr) at `address`, without blocking."""
        result = _recvmmsg(fd, address, count, MSG_DONTWAIT, 0)
        if result < 0:
            return -int(np.int64(load_u32(_errno_location())))
        return int(result)

    @inlined
    def sendmmsg(fd: int, address: int, count: int) -> int:
        """Send `count` messages (struct mmsghdr) at `address`, without blocking."""
        result = _sendmmsg(fd, address, count, MSG_DONTWAIT)
        if result < 0:
            return -int(np.int64(load_u32(_errno_location())))
        return int(result)
