"""The kernel's own network driver selftests: programs that take some seconds each.

`nicmodel selftests --quick` runs some cases of every program in five minutes, `nicmodel selftests`
all of them in twenty.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest

NICMODEL = [sys.executable, "-m", "nicmodel.cli", "selftests"]


#: Of different kinds: header split, interrupts, devmem; queues, statistics, timestamps, AF_XDP.
FEW, MORE = ("hds", "irq", "devmem"), ("queues", "stats", "nic_timestamp", "xsk_reconfig")


@pytest.mark.parametrize("programs", [FEW, pytest.param(MORE, marks=pytest.mark.long)], ids=["few", "more"])
def test_programs_end_as_expected(programs: Sequence[str], tmp_path: Path) -> None:
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
