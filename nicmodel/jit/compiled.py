"""The decorators under which all code is compiled that is.

Compiling is for later: a decorated function is only noted, and Numba is loaded when something has to be compiled. What
Python calls is looked for in the cache first (`nicmodel.jit.cache`), so that a start with a full cache takes a third of
the time. ``NUMBA_DISABLE_JIT=1`` runs the same functions in the interpreter.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np

from nicmodel.jit import cache
from nicmodel.jit.arguments import Kind, addresses, as_dtype, dtype_of, kinds_of
from nicmodel.jit.arrays import Arrays
from nicmodel.jit.machine_code import MachineCode, callable_at, load

F = TypeVar("F", bound=Callable[..., object])

#: One element of an array of records, inside compiled code: its fields are attributes there.
Record: TypeAlias = Any

#: Whether a compiled function does what not every caller needs: an argument that is True or None. What stands under
#: ``if argument is not None:`` is not even compiled for None: Numba leaves out branches that this never takes.
Switch: TypeAlias = bool | None

# Conversions, as compiled code needs them (it turns a sum of signed and unsigned into a float); integers to mypy.
i64 = cast("Callable[[Any], int]", np.int64)
u32 = cast("Callable[[Any], int]", np.uint32)
u64 = cast("Callable[[Any], int]", np.uint64)


def switch(on: object) -> Switch:
    """The argument for something that is on, if this is true, or off."""
    return True if on else None


def _jit_disabled() -> bool:
    """What Numba makes of its settings, without loading it, unless there is a file of them."""
    if cache.SETTINGS.exists():
        from numba.core import config

        return bool(config.DISABLE_JIT)
    try:
        return bool(int(os.environ.get("NUMBA_DISABLE_JIT") or 0))
    except ValueError:  # Numba says so and goes on as without
        return False


JIT_DISABLED = _jit_disabled()


class Compilation:
    """What is being compiled now: Numba tells, function by function; what comes from the cache is not compiled.

    Args:
        notice: called as compiling begins, and after each function.

    Attributes:
        functions: compiled so far.
        seconds: how long that took, time between functions not counted.
    """

    def __init__(self, notice: Callable[[Compilation], None]) -> None:
        self.functions = 0
        self.seconds = 0.0
        self._notice = notice
        self._depth = 0
        self._since = 0.0

    @property
    def running(self) -> bool:
        """Whether something is being compiled."""
        return self._depth > 0

    def begin(self) -> None:
        """A function is begun, perhaps for another that calls it."""
        if not self._depth:
            self._since = time.monotonic()
        self._depth += 1
        self._notice(self)

    def end(self, functions: int) -> None:
        """So many functions are done."""
        self._depth -= 1
        self.functions += functions
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = now
        self._notice(self)


#: Who is told of what is compiled.
watching: list[Compilation] = []


def watch(compilation: Compilation) -> None:
    """Tell `compilation` what is compiled, from now on in this process."""
    watching.append(compilation)


@contextmanager
def _told() -> Iterator[None]:
    """Something is compiled meanwhile, though elsewhere."""
    for compilation in watching:
        compilation.begin()
    try:
        yield
    finally:
        for compilation in watching:
            compilation.end(0)


#: Called, and taken away, when the next function is about to be compiled: nobody has left its machine code.
before_compiling: list[Callable[[], object]] = []


def _not_kept() -> None:
    if before_compiling:
        before_compiling.pop()()


class Compiled:
    """A function that is compiled, for each combination of types of arguments that it is called with.

    Called from Python, it is machine code that checks the types of its arguments itself and, if they are others than
    it is for, calls the machine code for other types, and at last `_another`.

    What compiled code calls is its `callee`. That is compiled once for types of arguments, not again for each constant.

    Args:
        function: what is compiled.
        options: for Numba.
    """

    def __init__(self, function: FunctionType, options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.options = options
        self._call: Callable[..., Any] = self._another
        #: What was found for types of arguments: the function to be called, and the types of arrays' elements that it
        #: knows (the objects: other objects may be equal).
        self._known: dict[tuple[Kind, ...], tuple[Callable[..., Any], list[np.dtype[Any] | None]]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Call it from Python."""
        return self._call(*arguments)

    @functools.cached_property
    def callee(self) -> Any:
        """What compiled code calls (Numba's dispatcher)."""
        from nicmodel.jit.compiler import callee

        return callee(self.function, **self.options)

    @functools.cached_property
    def ordinary(self) -> Any:
        """What Numba makes of it for calls from Python, of any types that it knows."""
        from nicmodel.jit.compiler import ordinary

        return ordinary(self.function, **self.options)

    @property
    def _numba_type_(self) -> Any:
        """How compiled code knows it (`numba.typeof`)."""
        from nicmodel.jit.compiler import type_of

        return type_of(self.callee)

    def __reduce__(self) -> tuple[Any, ...]:
        """For Numba, which tells functions apart by what they refer to."""
        return Compiled, (self.function, self.options)

    def __deepcopy__(self, memo: Any) -> Compiled:
        return self

    def _another(self, *arguments: Any) -> Any:
        """Called with types of arguments that no machine code has taken."""
        kinds = kinds_of(arguments)
        if kinds is None or len(kinds) != self.function.__code__.co_argcount:
            return self._call_ordinary(*arguments)
        if (known := self._known.get(kinds)) is not None:
            call, dtypes = known
            return call(*map(as_dtype, arguments, dtypes))
        address = self._load(kinds, arguments)
        if address is None:
            call = self._call_ordinary
        else:
            call = callable_at(address, self._call_ordinary)
            self._call = callable_at(address, self._call)
        self._known[kinds] = call, [*map(dtype_of, arguments)]
        return call(*arguments)

    def _call_ordinary(self, *arguments: Any) -> Any:
        return self.ordinary(*arguments)

    def _compile(self, kinds: tuple[Kind, ...], arguments: tuple[Any, ...]) -> MachineCode | None:
        from nicmodel.jit.compiler import machine_code

        return machine_code(self.callee, arguments, kinds)

    def _load(self, kinds: tuple[Kind, ...], arguments: tuple[Any, ...]) -> int | None:
        """Address of the machine code for these types, kept or new; None where Numba has to do it all."""
        file = None
        if which := cache.identity(self.function):
            name = f"{self.function.__module__}.{self.function.__qualname__}"
            file = cache.file_of(name, which, self.options, kinds)
        code = cache.kept(file, functools.partial(self._compile, kinds, arguments), _told, _not_kept)
        if code is None:
            return None
        try:
            return load(code, addresses(arguments))
        except (OSError, LookupError):
            return None


class Intrinsic:
    """What compiled code calls and Numba has to be told of: a function that becomes instructions, or is not Python's.

    Args:
        name: of what defines it in `nicmodel.jit.intrinsics`.
        parameters: for that.
    """

    def __init__(self, name: str, *parameters: int | str) -> None:
        self._name = name
        self._parameters = parameters

    @functools.cached_property
    def _numba_type_(self) -> Any:
        """How compiled code knows it (`numba.typeof`)."""
        from nicmodel.jit import compiler, intrinsics

        return compiler.intrinsic_type(self, getattr(intrinsics, self._name)(*self._parameters))

    def __call__(self, *arguments: Any) -> Any:
        """Only compiled code can call it."""
        raise NotImplementedError(f"{self._name} is for compiled code only")

    def __deepcopy__(self, memo: Any) -> Intrinsic:
        return self


#: Nothing that is compiled allocates, so Numba's reference counting is off: with it, each call that passes a device's
#: arrays on counts every one of them up and down, which took six sevenths of the time of a small frame.
_OPTIONS: dict[str, Any] = {"cache": cache.CACHE is not None, "error_model": "numpy", "_nrt": False}


def compiled(function: F) -> F:
    """Compile a function: no Python objects or new arrays inside, code cached on disk."""
    if JIT_DISABLED:
        return _interpreted(function)
    return cast("F", Compiled(cast("FunctionType", function), _OPTIONS))


def inlined(function: F) -> F:
    """As `compiled`, for small functions that belong inside their caller (LLVM decides; this only asks)."""
    if JIT_DISABLED:
        return _interpreted(function)
    return cast("F", Compiled(cast("FunctionType", function), {**_OPTIONS, "forceinline": True}))


class _FieldsFirst(np.void):  # type: ignore[misc,unused-ignore]  # final to newer stubs only
    """A record whose fields are attributes, also those that numpy has attributes of that name for."""

    def __getattribute__(self, name: str) -> Any:
        fields = super().__getattribute__("dtype").fields
        return self[name] if fields and name in fields else super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def _interpreted(function: F) -> F:
    """The function as it is, but with structured arrays whose fields are attributes, as they are to Numba."""

    def attributes(argument: Any) -> Any:
        if isinstance(argument, np.ndarray) and argument.dtype.names:
            return argument.view(np.dtype((_FieldsFirst, argument.dtype)))
        if isinstance(argument, tuple) and hasattr(argument, "_fields"):
            return type(argument)(*map(attributes, argument))
        if isinstance(argument, Arrays):
            return argument.with_arrays(**{name: attributes(getattr(argument, name)) for name in argument.names()})
        return argument

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        with np.errstate(over="ignore"):  # compiled integers wrap around silently, and are meant to
            return function(*map(attributes, arguments))

    return cast("F", call)
