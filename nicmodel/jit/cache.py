"""Where compiled code is kept, and what it is known by.

Numba caches what it compiles, but decides by the time stamp of the one file a function is in: a change in a *called*
function of another file goes unnoticed. So the cache folder is named after the contents of every file that compiled
code comes from (`sources`), and after the versions of Python, numpy and Numba. Any change starts a fresh folder. Where
the files are does not matter: a second checkout of the same sources finds all that the first one compiled.

In that folder are Numba's own files, which only compiling needs and which Numba keeps apart by where the sources are,
and those of machine code (`read`, `write`): what a start needs. Machine code is for one kind of processor besides, and
for what the environment tells Numba.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import pickle
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import FunctionType
from typing import IO, TypeVar

import numpy as np

from nicmodel.cache import by_last_use, cache_dir
from nicmodel.jit.machine_code import MachineCode

Made = TypeVar("Made", bound=MachineCode | None)

_PACKAGE = Path(__file__).resolve().parent.parent
#: Folders of sources that are kept, and files of machine code in one.
_CACHES_KEPT = 12
_FILES_KEPT = 1000
#: Seconds to wait for what another process makes.
_PATIENCE = 120.0

#: An import at the top level of a file; others are for type checkers, or for later.
_IMPORT = re.compile(r"^from ([\w.]+) import (\([^)]*\)|.*)|^import ([\w.]+)", re.MULTILINE)

#: What tells processors apart in /proc/cpuinfo: the code that LLVM makes for this host depends on no more than this.
_PROCESSOR = {b"vendor_id", b"cpu family", b"model", b"model name", b"stepping", b"flags"}

#: Settings of Numba's in the current folder.
SETTINGS = Path(".numba_config.yaml")


def sources(package: Path) -> dict[str, bytes]:
    """Contents of the files of a package that compiled code comes from, by module, sorted.

    They are those that have something compiled, wherever they are, all that these import, whose constants and
    functions are part of what is compiled, and what compiles them.
    """
    files = {}
    for folder, folders, names in os.walk(package):
        folders[:] = [name for name in folders if name != "__pycache__"]
        inside = (package.name, *Path(folder).relative_to(package).parts)
        for name in names:
            if name.endswith(".py"):
                module = ".".join((*inside, name[:-3])).removesuffix(".__init__")
                with open(os.path.join(folder, name), "rb") as file:
                    files[module] = file.read()
    here = f"{package.name}.jit."
    compilers = {f"{here}compiled.compiled", f"{here}compiled.inlined"}
    # Most files do not name it, and reading their imports would take most of the time, at every start.
    named = f"{here}compiled".encode()
    wanted = [module for module, text in files.items() if named in text and compilers & _imports(text)]
    wanted += [module for module in files if module.startswith(here)]
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


def _version(package: str) -> bytes:
    """What a package's file says of its version, without loading the package."""
    specification = importlib.util.find_spec(package)
    if specification and specification.origin:
        with contextlib.suppress(OSError):
            return (Path(specification.origin).parent / "_version.py").read_bytes()
    from importlib.metadata import version  # takes longer to load than all else here

    return version(package).encode()


def _source_key() -> str:
    digest = hashlib.sha256(repr((np.__version__, sys.version_info[:2])).encode())
    for package in ("numba", "llvmlite"):
        digest.update(_version(package))
    for module, content in sources(_PACKAGE).items():
        digest.update(module.encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _use_cache(key: str) -> Path | None:
    """Make the folder of these sources and drop all but the newest few of earlier ones.

    None if nothing can be written there: then all is compiled at every start.
    """
    home = cache_dir() / "compiled"
    folder = home / key
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


def _settings() -> bytes:
    """What may change the code that Numba makes: its environment variables, its file of settings."""
    variables = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_") and item[0] != _FOLDER)
    with contextlib.suppress(OSError):
        return repr(variables).encode() + SETTINGS.read_bytes()
    return repr(variables).encode()


def _processor() -> bytes:
    """The processor, as far as machine code depends on it; the first, as all of a host are of one kind."""
    with open("/proc/cpuinfo", "rb") as file:
        lines = iter(file.readline, b"\n")
        return b"".join(line for line in lines if line.partition(b"\t")[0].rstrip() in _PROCESSOR)


_FOLDER = "NUMBA_CACHE_DIR"
_SOURCES = _source_key()

#: Where compiled code is kept, or None: the cache folder cannot be written.
CACHE: Path | None = Path(os.environ[_FOLDER]) if os.environ.get(_FOLDER) else _use_cache(_SOURCES)


@functools.cache
def _host() -> bytes:
    """All that machine code depends on besides its function and the types that it is called with."""
    python = (sys.implementation.name, sys.version_info, sys.abiflags, object.__basicsize__)
    return repr((_SOURCES, python)).encode() + _settings() + _processor()


def identity(function: FunctionType) -> tuple[object, ...] | None:
    """What tells a function from all others; None if that cannot be told, as of one with variables of another's."""
    code = function.__code__
    if function.__closure__ is not None:
        return None
    try:
        status = os.stat(code.co_filename)
    except OSError:
        return None
    file = Path(code.co_filename)
    if file.is_relative_to(_PACKAGE):  # its contents are in the name of the folder already
        place: tuple[object, ...] = (str(file.relative_to(_PACKAGE)),)
    else:
        place = str(file), status.st_mtime_ns, status.st_size
    return *place, function.__qualname__, code.co_firstlineno, code.co_code


def file_of(name: str, *key: object) -> Path | None:
    """The file in which machine code is kept; None if none can be.

    Args:
        name: for people.
        key: what it depends on besides the sources, the host and the versions: each has a `repr` that tells all.
    """
    try:
        host = _host()
    except OSError:  # of an unknown processor
        return None
    if CACHE is None:
        return None
    digest = hashlib.sha256(host + repr((name, key)).encode()).hexdigest()[:32]
    return CACHE / "machine_code" / f"{re.sub('[^A-Za-z0-9_.]', '-', name)[-80:]}-{digest}"


def kept(
    file: Path | None,
    make: Callable[[], Made],
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    missing: Callable[[], object] = lambda: None,
) -> MachineCode | Made:
    """Machine code from its file, or new, and then kept if it can be.

    What another process makes at this moment is waited for: two servers that start at once, or the processes of
    pytest-xdist, would all make the same.

    Args:
        file: `file_of`.
        make: makes it; may give None, which is not kept.
        waiting: entered while another process makes it.
        missing: called if it is not in its file, before any lock is taken, which a forked process would hold as well.
    """
    if file is None:
        return make()
    if (code := read(file)) is not None:
        return code
    missing()
    with _alone(file, waiting) as waited:
        if waited and (code := read(file)) is not None:
            return code
        made = make()
        if made is not None:
            write(file, made)
    return made


@contextmanager
def _alone(file: Path, waiting: Callable[[], AbstractContextManager[object]]) -> Iterator[bool]:
    """Wait until nobody else makes that file, but not for ever; whether there was anybody.

    A lock is for several files, so that their number has a bound; it is only to save work.
    """
    with ExitStack() as stack:
        waited = False
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(file.parent / f".lock-{file.name[-2:]}", "a"))
            if not _lock(lock):
                waited = True
                with waiting():
                    limit = time.monotonic() + _PATIENCE
                    while not _lock(lock) and time.monotonic() < limit:
                        time.sleep(0.05)
        yield waited


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read(path: Path) -> MachineCode | None:
    """Machine code from its file; None if there is none, or the file is not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        return None
    return MachineCode(*pickle.loads(content))


def write(path: Path, code: MachineCode) -> None:
    """Keep machine code, if that is possible; whoever reads meanwhile finds the whole file or none."""
    content = pickle.dumps(tuple(code))
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_old(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with open(handle, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


def _drop_old(folder: Path) -> None:
    """Make room for one file more."""
    files = list(folder.iterdir())
    if len(files) >= _FILES_KEPT:
        for old in sorted(files, key=lambda file: file.stat().st_mtime_ns)[: len(files) - _FILES_KEPT + 1]:
            old.unlink(missing_ok=True)


def functions_cached() -> int:
    """How many functions are compiled, and kept for the next start."""
    if CACHE is None:
        return 0
    return sum(1 for _ in CACHE.rglob("*.nbi")) + sum(1 for _ in (CACHE / "machine_code").glob("[!.]*"))
