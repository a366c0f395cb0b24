"""Machine code that is kept: called as Numba's is, loaded without Numba, and made again when the file is not good."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from nicmodel.jit import cache
from nicmodel.jit.arguments import kind_of
from nicmodel.jit.compiled import JIT_DISABLED, compiled, u64
from nicmodel.jit.linking import Unlinkable, link
from nicmodel.jit.machine_code import MachineCode, load

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")

PAIR = np.dtype([("a", "<i4"), ("b", "<u8")])


@compiled
def mixed(data: Any, count: int, wide: int, on: bool | None, factor: float) -> tuple[int, int, bool, float]:
    if on is not None:
        data[0] += 1
    return int(data[0]) + count, wide, on is not None, factor


def test_arguments_and_results_of_all_types() -> None:
    data = np.zeros(3, np.uint8)
    assert mixed(data, -5, 7, None, 0.5) == (-5, 7, False, 0.5)
    assert mixed(data, -5, u64(7), None, 0.5) == (-5, 7, False, 0.5)
    assert mixed(data, 5, (1 << 64) - 1, None, 0.5) == (5, (1 << 64) - 1, False, 0.5)
    result = mixed(data, 5, 1 << 63, True, -1.25)
    assert result == (6, 1 << 63, True, -1.25)
    assert [type(part) for part in result] == [int, int, bool, float]
    assert mixed(data, 1, 2, False, 1.0) == (3, 2, True, 1.0)
    assert mixed(data.astype(np.int64), 1, 2, None, 1.0)[0] == 3


def test_edges_of_integers() -> None:
    @compiled
    def same(x: Any) -> Any:
        return x

    for number in (0, -1, 1, (1 << 63) - 1, -(1 << 63), 1 << 63, (1 << 64) - 1):
        assert same(number) == number
        assert same(number) == number
    for kind in (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        for value in (np.iinfo(kind).min, np.iinfo(kind).max):
            assert same(kind(value)) == value
    assert same(None) is None
    assert same(True) is True
    with pytest.raises(Exception, match=r"[Ii]nt"):
        same(1 << 64)
    assert same(-7) == -7


def test_arrays_that_are_not_as_others() -> None:
    @compiled
    def total(data: Any) -> int:
        result = 0
        for i in range(len(data)):
            result += int(data[i])
        return result

    numbers = np.arange(10)
    for _ in range(2):
        assert total(numbers) == 45
        assert total(numbers[::2]) == 20
        assert total(numbers[:0]) == 0
        assert total(numbers.astype(np.uint8)) == 45
        assert total(np.frombuffer(bytes(range(10)), np.uint8)) == 45  # read-only
        assert total(np.frombuffer(bytes(41), np.uint8)[1:].view(np.int64)) == 0  # not aligned
        assert total(numbers.view(np.recarray)) == 45  # of another class
        assert total((1, 2, 3)) == 6


def test_equal_types_of_elements_are_the_same_type() -> None:
    @compiled
    def both(pairs: Any) -> int:
        return int(pairs[0].a) + int(pairs[0].b)

    first = np.array([(1, 2)], PAIR)
    other = np.array([(3, 4)], np.dtype([("a", "<i4"), ("b", "<u8")]))
    assert other.dtype is not PAIR and kind_of(other) == kind_of(first)
    assert [both(first), both(other), both(first)] == [3, 7, 3]
    swapped = np.array([(5, 6)], np.dtype([("b", "<i4"), ("a", "<u8")]))
    assert kind_of(swapped) != kind_of(first)
    assert [both(swapped), both(first)] == [11, 3]


def test_a_wrong_number_of_arguments_is_an_error() -> None:
    with pytest.raises(TypeError):
        mixed(np.zeros(3, np.uint8), 1)  # type: ignore[call-arg]
    assert mixed(np.zeros(3, np.uint8), 1, 2, None, 3.0) == (1, 2, False, 3.0)


def test_what_compiled_code_raises_is_raised() -> None:
    @compiled
    def picky(x: int) -> int:
        if x < 0:
            raise ValueError("less than nothing")
        return x

    assert picky(1) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="less than nothing"):
            picky(-1)
    assert picky(2) == 2


def test_code_with_variables_of_another_function_is_not_mistaken_for_another() -> None:
    def adding(number: int) -> Any:
        @compiled
        def add(x: int) -> int:
            return x + number

        return add

    assert [adding(1)(10), adding(2)(10)] == [11, 12]


def test_only_object_files_are_linked() -> None:
    with pytest.raises(Exception, match=r"[Mm]agic|ELF"):
        link(b"no object file", "entry")
    assert issubclass(Unlinkable, Exception)


def test_code_that_asks_for_what_nobody_has_is_not_loaded() -> None:
    code = MachineCode(bytes(4096), 4096, 4096 + 8, 0, {"nobody has this": (4096,)}, ())
    with pytest.raises(LookupError, match="nobody has this"):
        load(code, {})


def test_data_behind_code_is_put_right(tmp_path: Path) -> None:
    """Words take the addresses of what is inside and of what is outside, and the rest is zero."""
    # mov rax, [rip + 4089]; ret: the word at 4096.
    code = b"\x48\x8b\x05" + (4096 - 7).to_bytes(4, "little") + b"\xc3"
    given = MachineCode(code.ljust(4096, b"\xcc"), 4096, 4096 + 8, 0, {"thing": (4096,)}, ())
    assert ctypes.CFUNCTYPE(ctypes.c_uint64)(load(given, {"thing": 0x123456789ABCDEF0}))() == 0x123456789ABCDEF0
    inside = given._replace(outside={}, inside=((4096, 5),))
    address = load(inside, {})
    assert ctypes.CFUNCTYPE(ctypes.c_uint64)(address)() == address + 5
    zero = given._replace(outside={})
    assert ctypes.CFUNCTYPE(ctypes.c_uint64)(load(zero, {}))() == 0


_CODE = MachineCode(b"\xc3" * 4096, 4096, 4096, 0, {"read": (8, 16)}, ((24, 32),))


def test_files_that_are_not_whole_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "code"
    assert cache.read(file) is None
    cache.write(file, _CODE)
    assert cache.read(file) == _CODE
    assert [path.name for path in file.parent.iterdir()] == ["code"]
    whole = file.read_bytes()
    for torn in (b"", whole[:16], whole[:32], whole[:-1], whole[:100] + b"X" + whole[101:], bytes(len(whole))):
        file.write_bytes(torn)
        assert cache.read(file) is None
        assert cache.kept(file, lambda: _CODE) == _CODE
        assert file.read_bytes() == whole


def test_what_another_process_makes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """*Verify*: it is made once, by the other one; if that ends or takes too long without having made it, here."""
    file = tmp_path / "code"
    made: list[str] = []

    def make() -> MachineCode:
        made.append("here")
        return _CODE

    for what, limit in (("write", 60.0), ("end", 60.0), ("do nothing", 0.2)):
        file.unlink(missing_ok=True)
        monkeypatch.setattr(cache, "_PATIENCE", limit)
        with (tmp_path / ".lock-de").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)

            @contextmanager
            def waiting(lock: IO[str] = lock, what: str = what) -> Iterator[None]:
                if what == "write":
                    cache.write(file, _CODE)
                if what != "do nothing":
                    fcntl.flock(lock, fcntl.LOCK_UN)
                yield
                made.append(f"waited for one to {what}")

            assert cache.kept(file, make, waiting) == _CODE
            assert cache.kept(file, make, waiting) == _CODE
    assert made == ["waited for one to write", "waited for one to end", "here", "waited for one to do nothing", "here"]


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert cache.kept(tmp_path / "file" / "code", lambda: _CODE) == _CODE
    assert cache.kept(None, lambda: _CODE) == _CODE


def test_old_files_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_FILES_KEPT", 3)
    for number in range(6):
        cache.write(tmp_path / str(number), _CODE)
        os.utime(tmp_path / str(number), (number, number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "5"]


_MODULE = """
from nicmodel.jit.compiled import compiled


@compiled
def triple(x):
    return 3 * x
"""


_CALL = "triple.triple(14)"


def _run(folder: Path, call: str = _CALL, package: Path = Path(cache.__file__).parents[2], **variables: str) -> str:
    """What a call gives, whether Numba and LLVM were loaded for it, and how many functions were compiled."""
    code = (
        f"import sys, {call.rpartition('.')[0]}\n"
        "from nicmodel.jit.compiled import Compilation, watch\n"
        "watched = Compilation(lambda _: None)\n"
        "watch(watched)\n"
        f"print({call}, 'numba' in sys.modules, 'llvmlite' in sys.modules, watched.functions)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")} | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(package)])
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment | variables,
        cwd=folder,
    )
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_what_is_kept_needs_no_compiler(tmp_path: Path) -> None:
    """And is kept for one processor, one version of the function, and what the environment tells Numba."""
    run = functools.partial(_run, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    source = tmp_path / "triple.py"
    source.write_text(_MODULE)
    assert run() == "42 True True 1"
    assert run() == "42 False False 0"
    assert run(NUMBA_BOUNDSCHECK="1").startswith("42 True True")
    assert run(NUMBA_BOUNDSCHECK="1") == "42 False False 0"
    assert run(NUMBA_CPU_NAME="x86-64-v2", NUMBA_CPU_FEATURES="").startswith("42 True True")
    assert run(NUMBA_DISABLE_JIT="1") == "42 False False 0"
    kept = [file for file in (tmp_path / "cache" / "machine_code").iterdir() if "triple" in file.name]
    assert len(kept) == 3
    for file in kept:
        file.write_bytes(file.read_bytes()[:-1])
    assert run().startswith("42 True True")
    assert run() == "42 False False 0"
    source.write_text(_MODULE.replace("3 * x", "2 * x + x"))
    assert run() == "42 True True 1"


def test_a_second_checkout_compiles_nothing(tmp_path: Path) -> None:
    """It has the same sources elsewhere, written at another time; one whose sources differ compiles its own."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(Path(cache.__file__).parents[1], first / "nicmodel", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(first, second, copy_function=shutil.copyfile)
    call = "nicmodel.packet.crc32c.crc32c(7, 0, 0)"

    def run(checkout: Path) -> str:
        return _run(tmp_path, call, checkout, XDG_CACHE_HOME=str(tmp_path / "cache"))

    assert re.fullmatch("7 True True [1-9].*", run(first))
    assert run(second) == run(first) == "7 False False 0"
    with (second / "nicmodel" / "packet" / "words.py").open("a") as file:
        file.write("#")
    assert run(second).startswith("7 True True")


def test_code_is_for_one_kind_of_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    here = cache.file_of("name", 1)
    assert here == cache.file_of("name", 1) != cache.file_of("name", 2)
    monkeypatch.setattr(cache, "_processor", lambda: b"another")
    cache._host.cache_clear()
    try:
        assert cache.file_of("name", 1) != here
    finally:
        monkeypatch.undo()
        cache._host.cache_clear()
    assert cache.file_of("name", 1) == here
    assert b"flags" in cache._processor() and b"MHz" not in cache._processor()
