"""What compiles, with Numba and LLVM: loaded when something has to be compiled, and not before."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
import numba
from numba import types
from numba.core import config, event
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.typing.templates import make_intrinsic_template

from nicmodel.jit import arrays_type  # noqa: F401  # tells Numba of it
from nicmodel.jit.arguments import Kind, addresses
from nicmodel.jit.cache import CACHE
from nicmodel.jit.callee import callee as _callee
from nicmodel.jit.calling import ENTRY, Unsupported, add_entry
from nicmodel.jit.compiled import watching
from nicmodel.jit.linking import Unlinkable, link
from nicmodel.jit.machine_code import MachineCode, address_of

if CACHE:
    config.CACHE_DIR = str(CACHE)

#: Numba's event for each function that it compiles, and ours for the machine code of one.
_FUNCTION, _MACHINE_CODE = "numba:compile", "nicmodel:machine code"


class _Listener(event.Listener):  # type: ignore[misc]  # numba has no annotations
    """Tells all `Compilation` objects."""

    def on_start(self, happened: event.Event) -> None:
        for compilation in watching:
            compilation.begin()

    def on_end(self, happened: event.Event) -> None:
        for compilation in watching:
            compilation.end(happened.kind == _FUNCTION)


for _kind in (_FUNCTION, _MACHINE_CODE):
    event.register(_kind, _Listener())


def callee(function: Callable[..., object], **options: Any) -> Any:
    """What compiled code calls a function by (`nicmodel.jit.callee`).

    It is compiled once for types of arguments. Left alone, Numba compiles it for each constant besides that it is
    called with: 192 functions instead of 143, and half as much time again. LLVM makes of a constant what it is worth
    where it inlines.
    """
    dispatcher = _callee(function, **options)
    ordinary_template = dispatcher.get_call_template

    def by_types(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        args = tuple(map(types.unliteral, args))
        return ordinary_template(args, {name: types.unliteral(kind) for name, kind in kws.items()})

    dispatcher.get_call_template = by_types
    return dispatcher


def ordinary(function: Callable[..., object], **options: Any) -> Any:
    """What Numba makes of a function to be called from Python."""
    return numba.njit(**options)(function)


def type_of(dispatcher: Any) -> Any:
    """The type of what has such a dispatcher."""
    return types.Dispatcher(dispatcher)


def intrinsic_type(handle: object, defined: Any) -> Any:
    """The type of an intrinsic function, or of one that is a type already."""
    if isinstance(defined, types.Type):
        return defined
    template = make_intrinsic_template(handle, defined, defined.__name__, prefer_literal=False, kwargs={})
    return types.Function(template)


class _Library(JITCodeLibrary):  # type: ignore[misc]  # numba has no annotations
    """Code that becomes an object file: nothing but its entry is called from outside."""

    def _optimize_final_module(self) -> None:
        module = self._final_module
        for symbol in (*module.functions, *module.global_variables):
            if not symbol.is_declaration and symbol.name != ENTRY:
                symbol.linkage = llvm.Linkage.internal
        super()._optimize_final_module()

    def _finalize_final_module(self) -> None:
        self._verify_declare_only_symbols()
        self._finalized = True

    def object_code(self) -> bytes:
        """The object file."""
        code: bytes = _target_machine(self._codegen).emit_object(self._final_module)
        return code


@functools.cache
def _target_machine(codegen: Any) -> Any:
    """As Numba's own, but for code that works wherever it lies."""
    triple, processor, features = codegen.magic_tuple()
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=processor, features=features, opt=int(config.OPT), reloc="pic", codemodel="small"
    )


def machine_code(dispatcher: Any, arguments: Sequence[Any], kinds: Sequence[Kind]) -> MachineCode | None:
    """Compile what Python calls.

    Args:
        dispatcher: the function's `callee`.
        arguments: what it is called with.
        kinds: the types of these.

    Returns:
        The machine code; None where only Numba can make it callable.
    """
    argument_types = tuple(map(numba.typeof, arguments))
    with global_compiler_lock:
        dispatcher.compile(argument_types)
        result = dispatcher.overloads[argument_types]
        with event.trigger_event(_MACHINE_CODE):
            library = _Library(result.target_context.codegen(), ENTRY)
            library.add_linking_library(result.library)
            try:
                add_entry(library, result, kinds)
                library.finalize()
                code = link(library.object_code(), ENTRY)
            except (Unsupported, Unlinkable):
                return None
    given = addresses(arguments)
    # Others are functions of Numba's own, which are there only with it.
    known = all(name in given or address_of(name) for name in code.outside)
    return code if known else None
