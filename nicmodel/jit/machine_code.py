"""Machine code as it is kept and loaded: one piece of memory that works at any address.

Whoever starts a server again needs nothing that compiles: neither Numba nor LLVM, whose loading takes longer than all
else at a start. So what they have made is linked once (`nicmodel.jit.linking`) and loaded here: memory is taken, the
code is copied, and the addresses that it asks for by name are written into it.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

#: Memory that holds code. Nobody can tell who may still call it, so it stays.
_loaded: list[mmap.mmap] = []


class MachineCode(NamedTuple):
    """Code with its data, and what has to be done to it where it is loaded; offsets are in bytes from its beginning."""

    #: Code, then data; what lies beyond, up to `size`, is zero.
    content: bytes
    #: Bytes of code at the beginning: whole pages.
    executable: int
    #: Bytes of memory.
    size: int
    #: Of the function that is to be called.
    entry: int
    #: Words that take the address of something outside, by its name.
    outside: dict[str, tuple[int, ...]]
    #: Words that take the address of something inside, each with that one's offset.
    inside: tuple[tuple[int, int], ...]


def address_of(name: str) -> int | None:
    """Address of a function or variable of the interpreter or the C library; None if they have none of that name."""
    try:
        return ctypes.cast(getattr(_libc, name), ctypes.c_void_p).value
    except AttributeError:
        return None


def load(code: MachineCode, given: Mapping[str, int]) -> int:
    """Make code ready to be called, for as long as this process lives.

    Args:
        code: what is loaded.
        given: addresses by name; others are the interpreter's and the C library's (`address_of`).

    Returns:
        Address of its function.

    Raises:
        OSError: there is no memory, or none may be executed.
        LookupError: nobody has something that it asks for.
    """
    memory = mmap.mmap(-1, code.size, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    memory[: len(code.content)] = code.content
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for name, places in code.outside.items():
        address = given[name] if name in given else address_of(name)
        if address is None:
            raise LookupError(f"compiled code needs {name}")
        for place in places:
            memory[place : place + 8] = address.to_bytes(8, "little")
    for place, offset in code.inside:
        memory[place : place + 8] = (base + offset).to_bytes(8, "little")
    if _libc.mprotect(base, code.executable, mmap.PROT_READ | mmap.PROT_EXEC) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    _loaded.append(memory)
    return base + code.entry


class _MethodDef(ctypes.Structure):
    """``PyMethodDef``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_METH_FASTCALL = 0x80
_methods: list[_MethodDef] = []

_new_function = ctypes.pythonapi.PyCFunction_NewEx
_new_function.restype = ctypes.py_object
_new_function.argtypes = (ctypes.POINTER(_MethodDef), ctypes.py_object, ctypes.c_void_p)


def callable_at(address: int, first: object) -> Callable[..., Any]:
    """A function of Python's whose code is at an address: a ``PyCFunctionFast``, which gets `first` as its self."""
    method = _MethodDef(b"compiled", address, _METH_FASTCALL, None)
    _methods.append(method)
    return cast("Callable[..., Any]", _new_function(ctypes.byref(method), first, None))
