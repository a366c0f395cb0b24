"""Surviving SIGBUS: memory of a client that is taken away while this process uses it.

A client may truncate the file that it shares, and a host may have no page to give for it. The kernel tells by SIGBUS
(of some drivers' memory by SIGSEGV) at the very instruction that touches it, in the middle of compiled code or of a
copy. The handler puts anonymous memory in the place of the whole mapping, so that the instruction goes on and nothing
faults there again, and notes it in the list of mappings (`nicmodel.vfio_user.windows.WindowList`). Whoever has called
that code looks there afterwards. A signal for any other address is left to whoever handled it before.

A handler must not enter the interpreter, so it is machine code (`nicmodel.nic.lost_memory_handler`), which is kept as
other compiled code is. It reads `siginfo_t` as 64-bit Linux lays it out.
"""

from __future__ import annotations

import ctypes
import signal
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nicmodel.jit import cache
from nicmodel.jit.machine_code import MachineCode, load

_SA_SIGINFO, _SA_ONSTACK = 0x4, 0x08000000

#: What the handler calls the list of mappings, and what handled each signal before it.
LIST = "list of mappings"
BEFORE = {signal.SIGBUS: "before SIGBUS", signal.SIGSEGV: "before SIGSEGV"}


class _Sigaction(ctypes.Structure):
    """``struct sigaction`` of glibc and musl on 64-bit machines; 128 bytes of signal mask."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_before = {number: _Sigaction() for number in BEFORE}
_installed: list[npt.NDArray[np.uint64]] = []  # what must not be freed


def survive_lost_memory(words: npt.NDArray[np.uint64]) -> None:
    """Handle SIGBUS and SIGSEGV at the addresses in this list from now on; a second call does nothing.

    Args:
        words: `WindowList.words`.
    """
    if _installed:
        return
    given = {LIST: words.ctypes.data, **{BEFORE[number]: ctypes.addressof(old) for number, old in _before.items()}}
    source = Path(__file__).with_name("lost_memory_handler.py").read_bytes()
    handler = load(cache.kept(cache.file_of("handler of lost memory", source), _make_handler), given)
    _installed.append(words)
    action = _Sigaction(handler=handler, flags=_SA_SIGINFO | _SA_ONSTACK)
    for number, old in _before.items():
        if _libc.sigaction(int(number), ctypes.byref(action), ctypes.byref(old)) != 0:
            raise OSError(ctypes.get_errno(), "sigaction")


def _make_handler() -> MachineCode:
    from nicmodel.nic.lost_memory_handler import make_handler

    return make_handler()
