"""The kernel's own network driver selftests: some cases of every program. `nicmodel selftests` runs them all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nicmodel.vm.selftests import Recipe

pytestmark = pytest.mark.guest

NICMODEL = [sys.executable, "-m", "nicmodel.cli", "selftests"]


#: Number of parts in which they are run, each with a guest and a time limit of its own.
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_every_program_ends_as_expected(part: int, tmp_path: Path) -> None:
    programs = [name for name, program in Recipe.read().programs.items() if not program.slow][part::PARTS]
    command = [*NICMODEL, *programs, "--quick"]
    command += ["--json", str(tmp_path / "cases.json"), "--logs", str(tmp_path / "logs")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    cases = json.loads((tmp_path / "cases.json").read_text())
    assert {case["test"] for case in cases} == set(programs)
    assert {log.stem for log in (tmp_path / "logs").iterdir()} == set(programs)
    assert all(case["reason"] for case in cases if case["outcome"] != "pass")


def test_list() -> None:
    run = subprocess.run([*NICMODEL, "--list"], check=True, capture_output=True, text=True)
    assert "hw/devmem.py" in run.stdout
    assert "loopback.sh" in run.stdout


def test_a_name_that_is_none() -> None:
    run = subprocess.run([*NICMODEL, "pong"], capture_output=True, text=True)
    assert run.returncode == 1
    assert "no test 'pong' to run: say one of ping, hds" in run.stderr
