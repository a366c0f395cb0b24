"""The Python environment that make sets up: also when it was interrupted, or when two do it at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 60

#: Stands for Python, and for the pip of a virtual environment. It tells in `calls` what it was called for, and waits in
#: the middle of its work while the file `hold-venv` or `hold-pip` is there. Its pip fails on what an interrupted one
#: has left.
FAKE = r"""#!/bin/sh
work() {
    echo "$1" >>calls
    while [ -e hold-$1 ]; do sleep 0.05; done
}
case "$(basename "$0") $*" in
    *" -m venv "*)
        rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python
        work venv
        cp "$0" .venv/bin/pip ;;
    "pip install "*)
        [ ! -e .venv/half ] || { echo "a half-written package" >&2; exit 1; }
        touch .venv/half; work pip; rm .venv/half ;;
esac
"""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts make in a folder with the project's Makefile and a Python that only pretends."""
    if not shutil.which("make"):
        pytest.skip("make is missing")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    python = tmp_path / "fake"
    python.write_text(FAKE)
    python.chmod(0o755)
    os.utime(tmp_path / "pyproject.toml", (1, 1))

    # These tests may run below a make, which would have it tell its folders, and in the background of a shell, where
    # Ctrl-C is ignored.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = ["env", "--default-signal=INT", "make", f"PYTHON={python}", ".venv/.ready"]
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def calls(folder: Path) -> list[str]:
    """What Python and pip were called for so far."""
    file = folder / "calls"
    return file.read_text().split() if file.exists() else []


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("moment", ["venv", "pip"])
def test_after_an_interrupt_make_starts_anew(
    make: Callable[[], subprocess.Popen[str]], tmp_path: Path, moment: str
) -> None:
    (tmp_path / f"hold-{moment}").touch()
    process = make()
    wait_for(lambda: moment in calls(tmp_path))
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=SECONDS)
    assert not (tmp_path / ".venv/.ready").exists()

    (tmp_path / f"hold-{moment}").unlink()
    (tmp_path / "calls").unlink()
    again = make()
    said, _ = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, said
    assert calls(tmp_path) == ["venv", "pip"]
    assert (tmp_path / ".venv/.ready").exists()


def test_two_at_once_are_one_after_the_other(make: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    (tmp_path / "hold-venv").touch()
    one = make()
    wait_for(lambda: calls(tmp_path) == ["venv"])
    other = make()
    assert other.stdout
    assert "Another make is setting up .venv" in other.stdout.readline()
    (tmp_path / "hold-venv").unlink()
    for process in (one, other):
        said, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said
    assert calls(tmp_path) == ["venv", "pip"]


def test_a_change_of_the_requirements_needs_no_new_environment(
    make: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = make()
    first.communicate(timeout=SECONDS)
    (tmp_path / "calls").unlink()
    os.utime(tmp_path / ".venv/.ready", (2, 2))
    os.utime(tmp_path / "pyproject.toml", (3, 3))
    said, _ = make().communicate(timeout=SECONDS)
    assert calls(tmp_path) == ["pip"], said
