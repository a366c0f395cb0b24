"""The first start, compiled by several processes: each test has a process of its own, with an empty cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nicmodel.jit.compiled import JIT_DISABLED

pytestmark = pytest.mark.skipif(JIT_DISABLED, reason="nothing is compiled")

_START = """
import os, signal, sys, time
os.sched_getaffinity = lambda pid: set(range(2))
from nicmodel.jit import cache
from nicmodel.jit.compiled import Compilation, compiled, watch
from nicmodel.jit.side_by_side import side_by_side

@compiled
def once(number):
    return number

@compiled
def twice(number):
    return 2 * number

def files():
    return len([file for file in cache.CACHE.glob("machine_code/*") if file.name[0] != "."])

compilation = Compilation(lambda _: None)
watch(compilation)
parent, steps = os.getpid(), []

def wait_for(what):
    for _ in range(12000):
        if what():
            return
        time.sleep(0.01)
    sys.exit("the helper has not come")

def double():
    steps.append(twice(21))

def no_helper_is_left():
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
"""


def run(tmp_path: Path, script: str) -> str:
    """What a script prints."""
    file = tmp_path / "script.py"
    file.write_text(_START + script)
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_helper_compiles_for_the_process(tmp_path: Path) -> None:
    """*Verify*: the last step's function is there when the one before is over, and is not compiled again."""
    said = run(
        tmp_path,
        """
side_by_side(lambda: steps.append(files()), lambda: once(1) and wait_for(lambda: files() == 2), double)
print(steps, compilation.functions, no_helper_is_left())
""",
    )
    assert said == "[0, 42] 1 True\n"


@pytest.mark.parametrize("fate", ["os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(1000)", "sys.exit('wrong')"])
def test_helper_that_fails_is_no_loss(tmp_path: Path, fate: str) -> None:
    """It is killed, hangs, or fails in its step. *Verify*: the process compiles by itself, and leaves nobody behind."""
    said = run(
        tmp_path,
        f"""
def fail_as_helper():
    if os.getpid() != parent:
        open({str(tmp_path / "came")!r}, "w").close()
        {fate}

came = lambda: os.path.exists({str(tmp_path / "came")!r})
side_by_side(lambda: once(1) and wait_for(came), fail_as_helper, double)
print(steps, compilation.functions, no_helper_is_left())
""",
    )
    assert said == "[42] 2 True\n"


def test_helper_does_not_outlive_the_process(tmp_path: Path) -> None:
    """*Verify*: when the process is killed in its first step, the helper's end of a pipe is closed."""
    said = run(
        tmp_path,
        """
theirs, ours = os.pipe()
if not os.fork():
    os.close(theirs)
    side_by_side(lambda: once(1) and os.kill(os.getpid(), signal.SIGKILL), lambda: time.sleep(1000))
os.close(ours)
import select
print(select.select([theirs], [], [], 100)[0] == [theirs], os.read(theirs, 1))
""",
    )
    assert said == "True b''\n"


@pytest.mark.parametrize("why_not", ["threading.Thread(target=time.sleep, args=(3,)).start()", "once(1), double()"])
def test_nobody_helps(tmp_path: Path, why_not: str) -> None:
    """A process of several threads is not forked, nor one that has nothing to compile."""
    said = run(
        tmp_path,
        f"""
import threading
{why_not}
steps.clear()
side_by_side(lambda: once(1) and steps.append(no_helper_is_left()), double)
print(steps)
""",
    )
    assert said == "[True, 42]\n"
