"""The report on a driver: its page, its XML, and what the command takes."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner
from junitparser import JUnitXml

from nicmodel.cli import conform as command
from nicmodel.cli.devices import DEVICES
from nicmodel.cli.main import cli
from nicmodel.vm import conform
from nicmodel.vm.conform import SETTINGS, Check, Conformance
from nicmodel.vm.driver_bench import Part, Verdict

BAD = Check("weather", "seed 2", False, "command: status 1", ("gve: <b>\x1b[31mAQ</b> timed out",), 12.3)
REPORT = Conformance(
    "gve/<script>", "7.3.4", "gvnic",
    checks=[Check("ordinary", "traffic", True, "good", (), 9.0), BAD, Check("faults", "tx-never", True, "works again")],
    steps=[{"title": "admin queue set up", "need": "required", "stage": "reached", "now": "256 slots"},
           {"title": "header split", "need": "feature", "stage": "missing", "now": ""}],
    findings=[{"rule": "DBL-005", "severity": "error", "says": "A doorbell holds an index.", "what": "too large",
               "evidence": {"value": 5}, "source": "gve_rx_dqo.c", "count": 3}],
    log=["gve 0000:01:00.0: up"],
    device_counts={"rx": "5 frames"},
    coverage=[{"file": "gve_rx.c", "functions": "3 of 9", "blocks": "20 of 80", "lines": ""}],
)  # fmt: skip


def test_the_page_has_all_of_it_and_nothing_can_run() -> None:
    text = command.page(REPORT)
    told = ("tx-never", "seed 2", "DBL-005", "A doorbell holds an index.", "admin queue set up", "256 slots",
            "header split", "5 frames", "gve 0000:01:00.0: up", "3 of 9", "not known", "does not stand")  # fmt: skip
    assert [said for said in told if said not in text] == []
    assert "<script" not in text and "gve/&lt;script&gt;" in text
    assert "\x1b" not in text and "&lt;b&gt;\\x1b[31mAQ" in text
    assert "http" not in text  # nothing is fetched


def test_a_saved_report_is_the_same_again() -> None:
    saved = json.loads(json.dumps(REPORT.as_dict()))
    assert Conformance.from_dict(saved) == REPORT
    for wrong in ({}, {"version": 1}, saved | {"version": 2}, saved | {"checks": [{"evidence": [], "more": 1}]}):
        with pytest.raises(ValueError, match="this is no report"):
            Conformance.from_dict(wrong)


def test_the_xml(tmp_path: Path) -> None:
    command.suite(REPORT).write(str(tmp_path / "results.xml"))
    document = JUnitXml.fromfile(str(tmp_path / "results.xml"))
    cases = {case.name: case for suite in document for case in suite}
    assert set(cases) == {"traffic", "seed 2", "tx-never"}
    assert [cases[name].is_passed for name in ("traffic", "seed 2", "tx-never")] == [True, False, True]
    assert "\\x1b[31mAQ" in cases["seed 2"].result[0].text


def test_files_and_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command writes and returns, the guest left out."""

    def examine(report: Conformance, *_: Any, **__: Any) -> None:
        report.checks, report.steps = list(REPORT.checks), list(REPORT.steps)

    class Bench:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Bench:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(command, "examine", examine)
    monkeypatch.setattr(command, "DriverBench", Bench)
    monkeypatch.setattr(command, "check_host", lambda: None)
    kernel = type("Choice", (), {"find": lambda self: type("Kernel", (), {"release": "7.3.4"})()})()
    monkeypatch.setattr("nicmodel.vm.options.kernel_named", lambda *_: kernel)
    html, data, xml = tmp_path / "r.html", tmp_path / "r.json", tmp_path / "r.xml"
    files = ["--html", str(html), "--json", str(data), "--junit", str(xml)]
    run = CliRunner().invoke(cli, ["conform", *files])
    assert run.exit_code == 3, run.output
    assert json.loads(data.read_text())["good"] is False and len(JUnitXml.fromfile(str(xml))) == 3
    assert "seed 2" in html.read_text()
    lost = CliRunner().invoke(cli, ["conform", "--html", str(tmp_path / "no" / "such" / "r.html")])
    assert lost.exit_code == 1 and "cannot be written" in str(lost.exception)


@pytest.mark.parametrize(("text", "seeds"), [("1-3", (1, 2, 3)), ("7", (7,)), ("3,40-41", (3, 40, 41)), ("", ())])
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert command._seeds(None, None, text) == seeds  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["x", "3-1", "1-9999", "-1", "1--2", "\u0663"])
def test_no_seeds(text: str) -> None:
    run = CliRunner().invoke(cli, ["conform", "--weather", text])
    assert run.exit_code == 2 and "--weather" in run.output


def test_faults() -> None:
    for device, some in (("gvnic", "tx-never"), ("idpf", "mailbox-lost")):
        kinds, every = DEVICES[device].faults, command._faults("all", device)
        assert some in every and "device-gone" not in every and not any(kinds[name].source for name in every)
        assert command._faults("none", device) == () and command._faults(some, device) == (some,)
    run = CliRunner().invoke(cli, ["conform", "--faults", "tx-nevr"])
    assert run.exit_code == 2 and "tx-never" in run.output


def verdict(*parts: Part, **fields: Any) -> Verdict:
    return Verdict(parts=list(parts), **fields)


def test_a_guest_starts_before_what_is_to_befall_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that starts may have a driver of its own, which is not the one to be judged."""
    happened: list[str] = []

    class Bench:
        command, prefix, control = "true", (), "/nowhere"

        def prepare(self) -> None:
            happened.append("guest")

        def try_out(self, *_: Any) -> Verdict:
            happened.append("try")
            return verdict(Part("load", True, 1.0, "gve"))

    class Asked:
        def __enter__(self) -> Asked:
            return self

        def __exit__(self, *_: object) -> None: ...

        def begin_scenario(self, _: str) -> None:
            happened.append("weather")

        def add_fault(self, _: str, **__: Any) -> None:
            happened.append("fault")

        def end_fault(self) -> None: ...

    monkeypatch.setattr(conform, "Control", lambda _: Asked())
    told: list[Check] = []
    report = Conformance("gve", "7.3.4", "gvnic")
    work = conform._Examiner(report, cast("Any", Bench()), None, 1, None, told.append)
    work.weather(1, 0.2)
    assert happened[:2] == ["guest", "weather"] and happened[-1] == "try"
    happened.clear()
    work.fault("admin-status", at_load=True)
    assert happened[:2] == ["guest", "fault"] and "try" in happened
    assert [check.good for check in told] == [True, True]


def test_what_is_harm() -> None:
    """A device may make a driver fail, but not a kernel."""
    failed = Part("command", False, 1.0, "status 1")
    assert list(conform._harm(verdict(failed, complaints=["gve: AQ timed out"]))) == []
    oops = verdict(failed, log=["BUG: kernel NULL pointer dereference"], lost="its kernel crashed")
    assert list(conform._harm(oops)) == ["the guest was lost: its kernel crashed"]
    stuck = verdict(failed, lost="gve cannot be removed")
    assert list(conform._harm(stuck)) == ["the guest was lost: gve cannot be removed"]


def test_evidence_of_a_driver_that_does_not_work_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what happened in the fault, and of what happened when it was loaded again."""
    told: list[Check] = []
    bench = type("Bench", (), {"command": "true"})()
    work = conform._Examiner(Conformance("gve", "7.3.4", "gvnic"), cast("Any", bench), None, 1, None, told.append)
    during = verdict(Part("remove", False, 60.0, "it does not end"), lost="remove does not end")
    work._settle("tx-never", during, verdict(Part("up", False, 5.0, "no carrier")), "after a reload, ")
    assert not told[0].good and told[0].evidence == ("remove: it does not end", "up: no carrier")


def test_evidence_has_the_end_of_what_a_command_said() -> None:
    said = "".join(f"line {number}\n" for number in range(20))
    found = conform._evidence(
        verdict(Part("up", True, 1.0, "up", "all good"), Part("command", False, 1.0, "status 1", said))
    )
    assert found == ("command: status 1", *(f"line {number}" for number in range(12, 20)))


def test_evidence_has_a_bound() -> None:
    lines = [f"gve: complaint {'x' * number}" for number in range(100)]
    found = conform._evidence(verdict(Part("up", False, 1.0, "no carrier"), complaints=lines))
    assert len(found) == 41 and found[0] == "up: no carrier" and found[-1] == "and 61 more"


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("true", 0, ""),
        ("echo 'netlink error: Operation not supported'; exit 81", 0, "not offered: other rings\n"),
        ("echo 'netlink error: Invalid argument'; exit 1", 1, "netlink error: Invalid argument\n"),
    ],
)
def test_a_setting_need_not_be_offered_but_has_to_work(command: str, status: int, said: str) -> None:
    line = f"{SETTINGS}\nsetting 'other rings' sh -c {shlex.quote(command)}"
    run = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert run.returncode == status
    assert run.stdout.endswith(said) and bool(run.stdout) == bool(said)
