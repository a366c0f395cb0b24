"""The machine code of `nicmodel.nic.lost_memory`: what a signal calls. This is loaded when it is not in the cache."""

from __future__ import annotations

import mmap
import signal
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core.cgutils import get_or_insert_function
from numba.core.codegen import initialize_llvm

from nicmodel.jit.linking import link
from nicmodel.jit.machine_code import MachineCode
from nicmodel.nic.lost_memory import BEFORE, LIST

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_SI_CODE, _SI_ADDR = 8, 16  # offsets in siginfo_t; a code of 0 or less is a signal that somebody has sent

_I32, _I64, _BYTE = ir.IntType(32), ir.IntType(64), ir.IntType(8)
_BYTES = _BYTE.as_pointer()


def make_handler() -> MachineCode:
    """``void handler(int signal, siginfo_t *info, void *context)``.

    It asks for the addresses of `LIST`, and of what was there before for each signal (`BEFORE`), by their names.
    """
    initialize_llvm()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=0, reloc="pic", codemodel="small")
    return link(machine.emit_object(llvm.parse_assembly(str(_handler()))), "handler")


def _handler() -> ir.Module:
    module = ir.Module("lost")
    module.triple = llvm.get_default_triple()
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
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return builder.call(get_or_insert_function(module, kind, name), arguments)

    def outside(name: str) -> Any:
        """Address of something that is there already."""
        return builder.ptrtoint(ir.GlobalVariable(module, _BYTE, name), _I64)

    words = outside(LIST)
    actions = [outside(BEFORE[number]) for number in (signal.SIGBUS, signal.SIGSEGV)]
    here = builder.ptrtoint(info, _I64)
    code = load(plus(here, _SI_CODE), _I32)
    address = load(plus(here, _SI_ADDR))
    rows = load(words)
    was_sent = builder.icmp_signed("<=", code, ir.Constant(_I32, 0))
    builder.cbranch(was_sent, others, look)

    builder.position_at_end(look)
    count = builder.phi(_I64)
    count.add_incoming(ir.Constant(_I64, 0), sent)
    builder.cbranch(builder.icmp_unsigned("<", count, rows), row, others)

    builder.position_at_end(row)
    place = plus(builder.add(builder.mul(count, ir.Constant(_I64, 24)), words), 16)
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
    total = plus(words, 8)
    store(plus(load(total), 1), total)
    builder.ret_void()

    # Not ours. The instruction is tried again, and then the handler before this one is called. What somebody has sent
    # does not come again by itself.
    builder.position_at_end(others)
    before = builder.select(builder.icmp_signed("==", number, ir.Constant(_I32, int(signal.SIGBUS))), *actions)
    call("sigaction", _I32, number, before, nothing)
    builder.cbranch(was_sent, again, end)

    builder.position_at_end(again)
    call("raise", _I32, number)
    builder.branch(end)

    builder.position_at_end(end)
    builder.ret_void()
    return module
