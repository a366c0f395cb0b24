"""The decorators under which all code is compiled that is, and where compiled code is kept.

Numba caches what it compiles, but decides by the time stamp of the one file a function is in: a change in a *called*
function of another file goes unnoticed. So the cache folder is named after the contents of every file that compiled
code comes from (`sources`), and after what else Numba goes by: where the files are, and the versions of Python and
numpy. Any change starts a fresh folder. ``NUMBA_DISABLE_JIT=1`` runs the same functions in the interpreter.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import numba
import numpy as np
from numba import types
from numba.core import config, event

from nicmodel.cache import by_last_use, cache_dir
from nicmodel.jit.arrays import Arrays
from nicmodel.jit.callee import callee

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


JIT_DISABLED = bool(config.DISABLE_JIT)

_PACKAGE = Path(__file__).resolve().parent.parent
_CACHES_KEPT = 12


#: An import at the top level of a file; others are for type checkers, or for later.
_IMPORT = re.compile(r"^from ([\w.]+) import (\([^)]*\)|.*)|^import ([\w.]+)", re.MULTILINE)


def sources(package: Path) -> dict[str, bytes]:
    """Contents of the files of a package that compiled code comes from, by module, sorted.

    They are those that have something compiled, wherever they are, and all that these import, whose constants and
    functions are part of what is compiled.
    """
    files = {}
    for path in package.rglob("*.py"):
        module = ".".join((package.name, *path.parts[len(package.parts) : -1], path.stem))
        files[module.removesuffix(".__init__")] = path.read_bytes()
    here = f"{package.name}.jit.compiled"
    compilers = {f"{here}.compiled", f"{here}.inlined"}
    # Most files do not name it, and reading their imports would take most of the time, at every start.
    wanted = [module for module, text in files.items() if here.encode() in text and compilers & _imports(text)]
    found: dict[str, bytes] = {}
    while wanted:
        module = wanted.pop()
        if module in files and module not in found:
            found[module] = files[module]
            wanted += _imports(found[module])
    return dict(sorted(found.items()))


def _imports(text: bytes) -> set[str]:
    """Modules that a file imports, and for each name that it takes from one, the module that this may be."""
    imported = set()
    for source, names, alone in _IMPORT.findall(text.decode()):
        imported |= {alone or source, *(f"{source}.{name}" for name in re.findall(r"\w+", names))}
    return imported


def _source_key() -> str:
    digest = hashlib.sha256(repr((numba.__version__, np.__version__, sys.version_info[:2], str(_PACKAGE))).encode())
    for module, content in sources(_PACKAGE).items():
        digest.update(module.encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _use_cache() -> Path | None:
    """Point Numba at the folder of these sources and drop all but the newest few of earlier ones.

    None if nothing can be written there: then all is compiled at every start.
    """
    home = cache_dir() / "compiled"
    folder = home / _source_key()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return None
    for old in by_last_use(home)[_CACHES_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


#: Where compiled code is kept, or None: the cache folder cannot be written.
CACHE: Path | None = Path(config.CACHE_DIR) if os.environ.get("NUMBA_CACHE_DIR") else _use_cache()
if CACHE:
    config.CACHE_DIR = str(CACHE)


def functions_cached() -> int:
    """How many functions are compiled, and kept for the next start."""
    return sum(1 for _ in CACHE.rglob("*.nbi")) if CACHE else 0


class Compilation(event.Listener):  # type: ignore[misc]  # numba has no annotations
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
        """Whether Numba is at it."""
        return self._depth > 0

    def on_start(self, _event: event.Event) -> None:
        """A function is begun, perhaps for another that calls it."""
        if not self._depth:
            self._since = time.monotonic()
        self._depth += 1
        self._notice(self)

    def on_end(self, _event: event.Event) -> None:
        """A function is done."""
        self._depth -= 1
        self.functions += 1
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = now
        self._notice(self)


def watch(compilation: Compilation) -> None:
    """Have Numba tell `compilation` what it compiles, from now on in this process."""
    event.register("numba:compile", compilation)


#: Nothing that is compiled allocates, so Numba's reference counting is off: with it, each call that passes a device's
#: arrays on counts every one of them up and down, which took six sevenths of the time of a small frame.
_OPTIONS: dict[str, Any] = {"cache": CACHE is not None, "error_model": "numpy", "_nrt": False}


def _compile(function: Callable[..., object], **options: Any) -> Any:
    """What is called from Python is the function as Numba makes it; what compiled code calls is its `callee`.

    That is compiled once for types of arguments. Left alone, Numba compiles it for each constant besides that it is
    called with: 192 functions instead of 143, and half as much time again. LLVM makes of a constant what it is worth
    where it inlines.
    """
    dispatcher = numba.njit(**options)(function)
    dispatcher.callee = called = callee(function, **options)

    def by_types(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        args = tuple(map(types.unliteral, args))
        return called.get_call_template(args, {name: types.unliteral(kind) for name, kind in kws.items()})

    dispatcher.get_call_template = by_types
    dispatcher.get_overload = called.get_overload
    return dispatcher


def compiled(function: F) -> F:
    """Compile a function: no Python objects or new arrays inside, code cached on disk."""
    if JIT_DISABLED:
        return _interpreted(function)
    result: F = _compile(function, **_OPTIONS)
    return result


def inlined(function: F) -> F:
    """As `compiled`, for small functions that belong inside their caller (LLVM decides; this only asks)."""
    if JIT_DISABLED:
        return _interpreted(function)
    result: F = _compile(function, **_OPTIONS, forceinline=True)
    return result


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
