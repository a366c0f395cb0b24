"""The commands of the contract: rules, findings, and a server that is strict."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nicmodel.client.control import Control, ControlError
from nicmodel.gvnic.contract.rules import AREAS, RULES
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.idpf.contract.rules import RULES as IDPF_RULES
from nicmodel.idpf.registers import TX_TAIL
from nicmodel.idpf.testing.driver import Driver as IdpfDriver

#: What the pages say of the number of rules, so that a new one need not touch them.
_MANY = "more than a hundred rules"


def run(*arguments: str, status: int = 0) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "nicmodel.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout or done.stderr


def test_all_rules_are_listed() -> None:
    listed = run("rules")
    assert all(name in listed for name in RULES) and f"{len(RULES)} rules" in listed
    root = Path(__file__).parents[2]
    assert len(RULES) > 100 and all(_MANY in (root / page).read_text() for page in ("README.md", "docs/contract.md"))
    told = json.loads(run("rules", "--json"))
    assert [rule["rule"] for rule in told] == list(RULES)
    assert {rule["area"] for rule in told} == set(AREAS.values())


def test_a_rule_is_told_in_full() -> None:
    told, rule = run("rules", "rx-buf-003"), RULES["RX-BUF-003"]
    assert all(text in told for text in (rule.name, rule.says, rule.why, rule.source, "receive", "error"))
    assert "RX-BUF-001" not in told
    assert run("rules", "TX-TSO").count("source") == 6
    assert "no rule is called XX-1" in run("rules", "XX-1", status=2)


class Strict:
    """A strict server as a process."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.socket, self.control, self.report = (str(folder / name) for name in ("nic.sock", "ctl.sock", "report"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nicmodel.cli", "serve", "--socket", self.socket, "--control", self.control,
             "--report", self.report, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert any(line == "ready\n" for line in self.process.stdout)

    def end(self, status: int) -> str:
        """Stop it; what it has printed on stderr."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=60)
        assert self.process.returncode == status, said
        return said


def test_a_strict_server_ends_with_a_status_of_its_own(tmp_path: Path) -> None:
    server = Strict(tmp_path, "--strict")
    with Driver(server.socket) as driver:
        driver.probe()
        driver.open(rx_queues=2)
        driver.device_status()
        assert run("findings", "--control", server.control) == "no findings\n"
        for _ in range(3):
            driver.doorbells.ring(driver.rx[1].doorbell_index, 5000)
        driver.device_status()
        told = run("findings", "--control", server.control, status=3)
        assert "DBL-005 error: nic0 rx1, 3 times" in told and "before  " in told
        [finding] = json.loads(run("findings", "--control", server.control, "--json", status=3))
        assert (finding["rule"], finding["queue"], finding["count"]) == ("DBL-005", "rx1", 3)
    assert "DBL-005 error: nic0 rx1: the doorbell is set to 5000 of 1024 entries" in server.end(3)
    [report] = json.loads(Path(server.report).read_text())
    assert [one["rule"] for one in report["findings"]] == ["DBL-005"]


def test_a_strict_server_of_an_idpf(tmp_path: Path) -> None:
    """*Verify*: its rules are told by its name, a broken one is found, and the others are kept."""
    told = run("rules", "--device", "idpf")
    assert all(name in told for name in IDPF_RULES) and len(IDPF_RULES) > 100
    server = Strict(tmp_path, "--strict", "--device", "idpf")
    with IdpfDriver(server.socket) as driver:
        driver.probe()
        driver.open()
        assert run("findings", "--control", server.control) == "no findings\n"
        driver.registers.write(TX_TAIL, 5000)
        driver.remove()
        assert "DBL-002 error: nic0 tx0: the tail is set to 5000" in run(
            "findings", "--control", server.control, status=3
        )
    assert "DBL-002" in server.end(3)


def test_findings_are_forgotten_on_request(tmp_path: Path) -> None:
    """Steps: break a rule, clear, break it again. Verify: each time there is one finding, counted anew."""
    server = Strict(tmp_path, "--strict")
    with Driver(server.socket) as driver, Control(server.control) as control:
        driver.probe()
        driver.open(rx_queues=1)
        for tail in (5000, 6000):
            driver.doorbells.ring(driver.rx[0].doorbell_index, tail)
            driver.device_status()
            [finding] = control.findings(clear=True)
            assert f"set to {tail} " in finding["what"] and finding["count"] == 1
            assert control.findings() == []
        with pytest.raises(ControlError, match="clear is true or false"):
            control.request("findings", clear=1)
        driver.remove()
    server.end(0)


def test_a_driver_without_fault_leaves_status_0(tmp_path: Path) -> None:
    server = Strict(tmp_path, "--strict")
    with Driver(server.socket) as driver:
        driver.probe()
        driver.open()
        driver.remove()
    assert server.end(0) == ""


def test_without_check_nobody_watches(tmp_path: Path) -> None:
    server = Strict(tmp_path)
    with Control(server.control) as control, pytest.raises(ControlError, match="--check"):
        control.findings()
    server.end(0)
