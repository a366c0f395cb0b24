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
from junitparser import JUnitXml

pytestmark = pytest.mark.guest

NICMODEL = [sys.executable, "-m", "nicmodel.cli", "selftests"]


#: Of different kinds: header split, interrupts, devmem; queues, statistics, timestamps, AF_XDP.
FEW, MORE = ("hds", "irq", "devmem"), ("queues", "stats", "nic_timestamp", "xsk_reconfig")


#: What idpf has, and gve not, among them: combined channels, timestamps of what is sent.
IDPFS = ("hds", "napi_threaded", "nic_timestamp", "xdp_metadata", "stats_down")


@pytest.mark.parametrize(
    ("device", "programs"),
    [
        ("gvnic", FEW),
        pytest.param("gvnic", MORE, marks=pytest.mark.long),
        pytest.param("idpf", IDPFS, marks=pytest.mark.long),
    ],
    ids=["few", "more", "idpf"],
)
def test_programs_end_as_expected(device: str, programs: Sequence[str], tmp_path: Path) -> None:
    command = [*NICMODEL, *programs, "--quick", "--device", device]
    for option, name in {
        "--json": "cases.json",
        "--ktap": "cases.ktap",
        "--junit": "cases.xml",
        "--logs": "logs",
    }.items():
        command += [option, str(tmp_path / name)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    tests = json.loads((tmp_path / "cases.json").read_text())["results"]
    cases = [case for test in tests for case in test["results"]]
    assert {test["name"] for test in tests} == set(programs)
    assert {log.stem for log in (tmp_path / "logs").iterdir()} == set(programs)
    assert all(case["reason"] for case in cases if case["outcome"] != "pass")
    # All three formats tell of the same cases, and what is expected is no failure in JUnit.
    suites = JUnitXml.fromfile(str(tmp_path / "cases.xml"))
    assert [case.name for suite in suites for case in suite] == [case["name"] for case in cases]
    assert (suites.failures, suites.errors) == (0, 0)
    lines = (tmp_path / "cases.ktap").read_text().splitlines()
    nested = [line for line in lines if line.startswith(("  ok ", "  not ok "))]
    assert [line.split(" # ")[0].split()[-1] for line in nested] == [case["name"] for case in cases]


def test_list() -> None:
    run = subprocess.run([*NICMODEL, "--list"], check=True, capture_output=True, text=True)
    assert "hw/devmem.py" in run.stdout
    assert "loopback.sh" in run.stdout


def test_a_name_that_is_none() -> None:
    run = subprocess.run([*NICMODEL, "pong"], capture_output=True, text=True)
    assert run.returncode == 1
    assert "no test 'pong' to run: say one of ping, hds" in run.stderr
