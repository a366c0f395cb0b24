"""Functions as compiled code calls them: intermediate code for the caller, no machine code.

Left alone, Numba makes a whole function of each helper: it optimises it with everything that it calls, makes machine
code of that, twice more to call it from Python and from C, and then the helper ends inside its callers, where all is
optimised again. Here a helper is only brought into LLVM's form. It is linked into what is called from Python, and
optimised there, once. So a first start takes 18 seconds of CPU time in place of 30.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult


class _Library(JITCodeLibrary):  # type: ignore[misc]  # numba has no annotations
    """Code for linking: neither optimised as a whole nor given to LLVM's execution engine."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


class _Compiler(Compiler):  # type: ignore[misc]  # numba has no annotations
    """Numba's own steps up to that form."""

    def compile_extra(self, func: Callable[..., object]) -> Any:
        """Compile a function; without machine code, a plain object is what its code is found by."""
        state = self.state
        state.flags.no_compile = state.flags.no_cpython_wrapper = state.flags.no_cfunc_wrapper = True
        state.library = _Library(state.targetctx.codegen(), func.__qualname__)
        result = super().compile_extra(func)._replace(entry_point=object())
        state.targetctx.insert_user_function(result.entry_point, result.fndesc, [result.library])
        return result


class _Stored(CompileResultCacheImpl):  # type: ignore[misc]  # numba has no annotations
    """How it is stored, in files beside those of the same function as Numba itself compiles it."""

    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        name: str = super().get_filename_base(f"{fullname}.callee", abiflags)
        return name

    def reduce(self, result: Any) -> tuple[Any, ...]:
        library, described = result.library, result.fndesc
        described.typemap = described.calltypes = None  # only compiling needs them
        return library.name, library._get_module_for_linking().as_bitcode(), described, result.signature

    def rebuild(self, context: Any, stored: tuple[Any, ...]) -> Any:
        name, bitcode, described, signature = stored
        library = _Library(context.codegen(), name)
        library._final_module = llvm.parse_bitcode(bitcode)
        library._finalized = True
        nothing = dict.fromkeys(CompileResult._fields)
        return CompileResult(
            **nothing | {
                "typing_context": context.typing_context, "target_context": context, "entry_point": object(),
                "signature": signature, "fndesc": described, "library": library, "objectmode": False,
            }
        )  # fmt: skip


class _Cache(FunctionCache):  # type: ignore[misc]  # numba has no annotations
    _impl_class = _Stored


def callee(function: Callable[..., object], *, cache: bool, **options: Any) -> Any:
    """What compiled code is to call a function by; it cannot be called from Python.

    Args:
        function: to be compiled, for the types that it is called with.
        cache: whether to keep what is compiled.
        options: Numba's.
    """
    dispatcher = numba.njit(pipeline_class=_Compiler, **options)(function)
    if cache:
        dispatcher._cache = _Cache(function)
    # Numba's would also have it called from Python.
    dispatcher.add_overload = lambda result: dispatcher.overloads.update({tuple(result.signature.args): result})
    return dispatcher
