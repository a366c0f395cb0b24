"""The experiments that want a guest, with little data and few kills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nicmodel.vm.experiment import NODE, SWITCH

pytestmark = pytest.mark.guest

NICMODEL = Path(sys.executable).with_name("nicmodel")
SIZE = 32 << 20
RUNS = 2


@pytest.mark.parametrize("accelerator", [SWITCH, pytest.param(NODE, marks=pytest.mark.long)])
def test_devmem(accelerator: str, tmp_path: Path) -> None:
    """Each claim of the series holds, and the accounts are those of a transfer of this size.

    Throughput and CPU time are left out of the verdict: two short transfers each way beside whatever else this machine
    does.
    """
    file = tmp_path / "result.json"
    run = subprocess.run(
        [NICMODEL, "experiment", "devmem", "--accelerator", accelerator, "--size", str(SIZE), "--runs", str(RUNS),
         "--json", file],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert run.returncode in (0, 1, 4) and file.exists(), run.stdout + run.stderr
    found = json.loads(file.read_text())
    failed = {claim["claim"]: claim["holds"] for claim in found["claims"] if not claim["holds"]}
    assert failed.keys() <= {"Throughput rises."}, run.stdout + run.stderr
    assert run.returncode == {None: 4, False: 1, True: 0}[failed.get("Throughput rises.", True)]
    assert all(0 <= one["others"] <= 1 for one in found["runs"])
    assert [one["mode"] for one in found["runs"]] == ["copy", "devmem"] * RUNS
    for one in found["runs"]:
        payload = {entry["memory"]: 0 for entry in one["ledger"]}
        for entry in one["ledger"]:
            if (entry["queue"], entry["purpose"]) == ("rx3", "payload"):
                payload[entry["memory"]] += entry["bytes"]
        where, other = ("ram", "hbm") if one["mode"] == "copy" else ("hbm", "ram")
        assert SIZE <= payload[where] < 1.1 * SIZE and payload.get(other, 0) == 0
        assert one["copied"] == (2 * SIZE if one["mode"] == "copy" else 0)
        assert 0 <= one["cpu_seconds"] < 2 * one["seconds"] + 0.1
    before, after = (found["summary"][mode] for mode in ("copy", "devmem"))
    assert 4 < before["host_memory_bytes"] < 4.5 and after["host_memory_bytes"] < 0.2
    # Below a switch payload does not pass the root complex, and a copy to the BAR does; to a node it is the NIC's DMA.
    assert 2 < before["root_complex_bytes"] < 2.2 if accelerator == SWITCH else before["root_complex_bytes"] < 1.2
    assert after["root_complex_bytes"] < 0.2 if accelerator == SWITCH else 1 < after["root_complex_bytes"] < 1.2


@pytest.mark.long
def test_exit(tmp_path: Path) -> None:
    """The command with a guest: the stock driver's part is in the result, and all holds."""
    file = tmp_path / "result.json"
    run = subprocess.run(
        [NICMODEL, "experiment", "exit", "--rounds", "1", "--kills", "1", "--json", file],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(file.read_text())
    [kill] = found["tables"][1]["rows"]
    assert 0 < kill["last_write"] <= kill["destroyed"] < kill["created"] and kill["poisoned"] > 0 == kill["late"]
    assert found["about"]["guest kernel"] and len(found["claims"]) == 9
