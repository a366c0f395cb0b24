"""Compiling is told when it happens, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nicmodel.jit.cache import sources
from nicmodel.jit.compiled import _OPTIONS, JIT_DISABLED, Compilation, Compiled, compiled, inlined, watch
from nicmodel.observe import compiling

needs_compiler = pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")


def anew(function: Any) -> Any:
    """As `compiled`, and again in the next run of the tests."""
    return Compiled(function, {**_OPTIONS, "cache": False})


@needs_compiler
def test_numba_tells_of_each_function_that_it_compiles() -> None:
    noticed: list[tuple[int, bool]] = []
    watched = Compilation(lambda compilation: noticed.append((compilation.functions, compilation.running)))
    watch(watched)

    @anew
    def inner(x: int) -> int:
        return x + 1

    @anew
    def outer(x: int) -> int:
        return int(inner(x)) * 2

    assert outer(1) == 4
    # Begun before anything is done; all that is begun is done; and nothing while it only runs.
    assert noticed[0] == (0, True)
    assert noticed[-1][0] >= 2 and not noticed[-1][1]
    assert watched.seconds > 0
    count = len(noticed)
    assert outer(2) == 6
    assert len(noticed) == count


@needs_compiler
def test_a_function_is_compiled_once_for_all_constants() -> None:
    @anew
    def scaled(x: int, factor: int, negative: bool) -> int:
        return -x * factor if negative else x * factor

    @anew
    def several(x: int, factor: int) -> int:
        return int(scaled(x, 2, False) + scaled(x, 3, True) + scaled(x, factor=factor, negative=False))

    assert several(10, 5) == 20 - 30 + 50
    assert len(scaled.callee.signatures) == 1


@needs_compiler
def test_machine_code_is_made_only_of_what_is_called_from_python() -> None:
    @inlined
    def twice(x: int) -> int:
        return 2 * x

    @compiled
    def four_times(x: int) -> int:
        return twice(twice(x))

    assert four_times(10) == 40
    assert not twice._known  # type: ignore[attr-defined]
    assert twice(10) == 20
    assert len(twice._known) == 1  # type: ignore[attr-defined]


_CALLERS = """
from nicmodel.jit.compiled import Compilation, compiled, inlined, watch

@inlined
def one(x):
    return x + 1

@inlined
def two(x):
    return one(one(x))

@compiled
def first(x):
    return two(x)

@compiled
def second(x):
    return two(one(x))

def told(function):
    watched = Compilation(lambda _: None)
    watch(watched)
    print(function(1), watched.functions)
"""


@needs_compiler
def test_what_compiled_code_calls_is_kept_for_other_callers(tmp_path: Path) -> None:
    (tmp_path / "callers.py").write_text(_CALLERS)
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(compiling.__file__).parents[2])]),
    }
    for function, told in (("first", "3 3\n"), ("second", "4 1\n"), ("first", "3 0\n")):
        code = f"import callers; callers.told(callers.{function})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment
        )
        assert done.stdout == told, done.stderr


def state(functions: int, seconds: float, running: bool) -> Any:
    return SimpleNamespace(functions=functions, seconds=seconds, running=running)


def test_lines_come_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = compiling._Progress(said.append, terminal=False)
    for second in range(25):
        now[0] = 100.0 + second
        progress(state(second, second, True))
    assert said[0].startswith(compiling.BEGINS) and said[0].endswith("\n")
    assert said[1:] == ["  10 functions compiled, 10 s\n", "  20 functions compiled, 20 s\n"]
    assert all(compiling.PROGRESS in line for line in said[1:])


def test_a_terminal_has_one_line_that_changes_and_goes() -> None:
    said: list[str] = []
    progress = compiling._Progress(said.append, terminal=True)
    progress(state(0, 0, True))
    progress(state(1, 2, True))
    progress(state(2, 3, False))
    assert said[1:] == ["\r  0 functions compiled, 0 s", "\r  1 functions compiled, 2 s", "\r\x1b[K"]


@needs_compiler
def test_code_that_cannot_be_kept_is_compiled_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = (
        "from nicmodel.jit import cache, compiled\n"
        "assert cache.CACHE is None and cache.functions_cached() == 0\n"
        "double = compiled.compiled(lambda x: 2 * x)\n"
        "print(double(21))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "file")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.stdout == "42\n", done.stderr


def test_compiled_code_of_any_room_is_known_with_all_that_it_imports(tmp_path: Path) -> None:
    files = {
        "__init__": "",
        "jit/compiled": "def compiled(function): ...",
        "fast/inside/loop": "from house.jit.compiled import compiled, i64\nfrom house.fast import numbers as n",
        "fast/numbers": "import house.fast.deeper\nfrom typing import (\n    TYPE_CHECKING,\n)\n"
        "if TYPE_CHECKING:\n    from house.slow import Slow",
        "fast/deeper": "from house.table import (\n    FIRST,\n    SECOND,\n)",
        "table": "FIRST = SECOND = 1",
        "small": "from house.jit.compiled import inlined",
        "slow": "from house.jit.compiled import CACHE\nimport house.fast.inside.loop",
    }
    for name, text in files.items():
        path = tmp_path / "house" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    expected = ["fast.deeper", "fast.inside.loop", "fast.numbers", "jit.compiled", "small", "table"]
    found = sources(tmp_path / "house")
    assert list(found) == [f"house.{module}" for module in expected]
    assert found["house.table"] == files["table"].encode()


def test_what_is_known_of_this_package() -> None:
    """Of each room that compiles; and what has nothing to do with it may be edited."""
    found = sources(Path(compiling.__file__).parents[1])
    part = ("packet.parse", "nic.receive", "gvnic.descriptors", "wire.tap", "nic.peek")
    assert {f"nicmodel.{name}" for name in part} <= set(found)
    assert not {f"nicmodel.{name}" for name in ("cli.main", "wire.pcap", "gvnic.admin", "vm.guest")} & set(found)
