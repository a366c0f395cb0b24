"""Surviving SIGBUS: memory of a client that is taken away while this process uses it.

A client may truncate the file that it shares, and a host may have no page to give for it. The kernel tells by SIGBUS
(of some drivers' memory by SIGSEGV) at the very instruction that touches it, in the middle of compiled code or of a
copy. The handler puts anonymous memory in the place of the whole mapping, so that the instruction goes on and nothing
faults there again, and notes it in the list of mappings (`nicmodel.vfio_user.windows.WindowList`). Whoever has called
that code looks there afterwards. A signal for any other address is left to whoever handled it before.

A handler must not enter the interpreter, so it is machine code. LLVM makes it at each start, in a few milliseconds,
since the addresses that it works with are known at run time only. It reads `siginfo_t` as 64-bit Linux lays it out.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core.codegen import initialize_llvm

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_SA_SIGINFO, _SA_ONSTACK = 0x4, 0x08000000
_SI_CODE, _SI_ADDR = 8, 16  # offsets in siginfo_t; a code of 0 or less is a signal that somebody has sent

_I32, _I64, _BYTES = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()


class _Sigaction(ctypes.Structure):
    """``struct sigaction`` of glibc and musl on 64-bit machines; 128 bytes of signal mask."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_SIGNALS = (signal.SIGBUS, signal.SIGSEGV)
_before = {number: _Sigaction() for number in _SIGNALS}
_installed: list[Any] = []  # what must not be freed: the list of mappings, the code


def survive_lost_memory(words: npt.NDArray[np.uint64]) -> None:
    """Handle SIGBUS and SIGSEGV at the addresses in this list from now on; a second call does nothing.

    Args:
        words: `WindowList.words`.
    """
    if _installed:
        return
    engine = _compile(_handler(words.ctypes.data))
    _installed.extend((words, engine))
    action = _Sigaction(handler=engine.get_function_address("handler"), flags=_SA_SIGINFO | _SA_ONSTACK)
    for number in _SIGNALS:
        if _libc.sigaction(int(number), ctypes.byref(action), ctypes.byref(_before[number])) != 0:
            raise OSError(ctypes.get_errno(), "sigaction")


def _compile(module: ir.Module) -> Any:
    initialize_llvm()
    engine = llvm.create_mcjit_compiler(
        llvm.parse_assembly(str(module)), llvm.Target.from_default_triple().create_target_machine(opt=0)
    )
    engine.finalize_object()
    return engine


def _handler(words: int) -> ir.Module:
    """``void handler(int signal, siginfo_t *info, void *context)``; `words` is the address of the list."""
    module = ir.Module("lost")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), (_I32, _BYTES, _BYTES)), "handler")
    number, info, _ = function.args
    sent, look, row, next_row, replace, note, others, again, end = (
        function.append_basic_block(name)
        for name in ("entry", "look", "row", "next", "replace", "note", "others", "again", "end")
    )
    builder = ir.IRBuilder(sent)

    def load(address: Any, kind: ir.Type = _I64) -> Any:
        return builder.load(builder.inttoptr(address, kind.as_pointer()))

    def store(value: Any, address: Any) -> None:
        builder.store(value, builder.inttoptr(address, value.type.as_pointer()))

    def plus(value: Any, count: int) -> Any:
        return builder.add(value, ir.Constant(_I64, count))

    def call(name: str, result: ir.Type, *arguments: Any) -> Any:
        """Call a function of the C library."""
        address = ir.Constant(_I64, ctypes.cast(getattr(_libc, name), ctypes.c_void_p).value)
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return builder.call(builder.inttoptr(address, kind.as_pointer()), arguments)

    here = builder.ptrtoint(info, _I64)
    code = load(plus(here, _SI_CODE), _I32)
    address = load(plus(here, _SI_ADDR))
    rows = load(ir.Constant(_I64, words))
    was_sent = builder.icmp_signed("<=", code, ir.Constant(_I32, 0))
    builder.cbranch(was_sent, others, look)

    builder.position_at_end(look)
    count = builder.phi(_I64)
    count.add_incoming(ir.Constant(_I64, 0), sent)
    builder.cbranch(builder.icmp_unsigned("<", count, rows), row, others)

    builder.position_at_end(row)
    place = plus(builder.mul(count, ir.Constant(_I64, 24)), words + 16)
    first, last, failed = load(place), load(plus(place, 8)), load(plus(place, 16))
    inside = builder.and_(builder.icmp_unsigned(">=", address, first), builder.icmp_unsigned("<", address, last))
    builder.cbranch(
        builder.and_(inside, builder.icmp_unsigned("==", failed, ir.Constant(_I64, 0))), replace, next_row
    )  # fmt: skip

    builder.position_at_end(next_row)
    count.add_incoming(plus(count, 1), next_row)
    builder.branch(look)

    builder.position_at_end(replace)
    protection = ir.Constant(_I32, mmap.PROT_READ | mmap.PROT_WRITE)
    kind = ir.Constant(_I32, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE)
    nothing = ir.Constant(_I64, 0)
    replaced = call("mmap", _I64, first, builder.sub(last, first), protection, kind, ir.Constant(_I32, -1), nothing)
    builder.cbranch(builder.icmp_unsigned("==", replaced, first), note, others)

    builder.position_at_end(note)
    store(builder.zext(number, _I64), plus(place, 16))
    total = ir.Constant(_I64, words + 8)
    store(plus(load(total), 1), total)
    builder.ret_void()

    # Not ours. The instruction is tried again, and then the handler before this one is called. What somebody has sent
    # does not come again by itself.
    builder.position_at_end(others)
    actions = {key: ir.Constant(_I64, ctypes.addressof(before)) for key, before in _before.items()}
    before = builder.select(
        builder.icmp_signed("==", number, ir.Constant(_I32, int(signal.SIGBUS))),
        actions[signal.SIGBUS],
        actions[signal.SIGSEGV],
    )
    call("sigaction", _I32, number, before, nothing)
    builder.cbranch(was_sent, again, end)

    builder.position_at_end(again)
    call("raise", _I32, number)
    builder.branch(end)

    builder.position_at_end(end)
    builder.ret_void()
    return module
