"""What the experiment concludes from what it has measured, and how it shows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nicmodel.cli.experiment import plot
from nicmodel.cli.experiment import series as cli
from nicmodel.cli.experiment.show import judge, show_claims
from nicmodel.client import results
from nicmodel.client.experiment import COPY, DEVMEM, Experiment, Run, as_json
from nicmodel.client.ledger import Entry, Place
from nicmodel.vm.errors import VmError
from nicmodel.vm.load import Load

MIB = 1 << 20


def entry(
    purpose: str, memory: str, place: Place, count: int, *, queue: str = "rx3", direction: str = "write"
) -> Entry:
    return Entry(queue, direction, purpose, memory, place, place.path, count)


def transfer(mode: str, place: Place = Place.PEER, *, seconds: float = 0.1) -> Run:
    """A run with round numbers: for each MiB of payload 10,000 bytes of headers and as much of rings."""
    payload = entry("payload", "ram", Place.RAM, MIB) if mode == COPY else entry("payload", "hbm", place, MIB)
    ledger = (
        payload,
        entry("header", "ram", Place.RAM, 8_000),
        entry("transmit", "ram", Place.RAM, 2_000, queue="tx0", direction="read"),
        entry("descriptor", "ram", Place.RAM, 6_000, direction="read"),
        entry("completion", "ram", Place.RAM, 4_000),
    )
    copied = MIB if mode == COPY else 0
    return Run(mode, "rx3", MIB, seconds, 0.2 * seconds, copied, copied, place, ledger)


def experiment(*runs: Run) -> Experiment:
    return Experiment({"guest CPUs": "2"}, list(runs) or [transfer(COPY, seconds=0.4), transfer(DEVMEM)])


def held(found: Experiment) -> list[bool | None]:
    return [claim.holds for claim in found.claims()]


def test_where_bytes_went() -> None:
    before, after = transfer(COPY), transfer(DEVMEM)
    assert sum(before.host_memory.values()) == 4 * MIB + 20_000
    assert sum(after.host_memory.values()) == 20_000
    assert before.root_complex == {"the NIC": MIB + 20_000, "a CPU, to the BAR": MIB}
    assert after.root_complex == {"the NIC": 20_000, "a CPU, to the BAR": 0}
    assert (before.copied, after.copied) == (2 * MIB, 0)


def test_a_node_is_behind_the_root_complex_for_the_nic_and_not_for_a_cpu() -> None:
    assert transfer(COPY, Place.NODE).root_complex == {"the NIC": MIB + 20_000, "a CPU, to the BAR": 0}
    assert transfer(DEVMEM, Place.NODE).root_complex == {"the NIC": MIB + 20_000, "a CPU, to the BAR": 0}


def test_claims_that_hold() -> None:
    assert held(experiment()) == [True] * 5
    assert held(experiment(transfer(COPY, Place.NODE, seconds=0.4), transfer(DEVMEM, Place.NODE))) == [True] * 4


@pytest.mark.parametrize(
    ("run", "verdicts"),
    [
        (replace(transfer(DEVMEM), fault="byte 7 of the stream is 0x00"), [False, True, True, True, True]),
        (replace(transfer(DEVMEM), to_user=1), [True, False, True, True, True]),
        (transfer(DEVMEM, seconds=0.5), [True, True, True, False, True]),
        (
            replace(transfer(DEVMEM), ledger=(*transfer(DEVMEM).ledger, entry("payload", "ram", Place.RAM, MIB // 2))),
            [True, False, False, True, False],
        ),
    ],
)
def test_claims_that_do_not(run: Run, verdicts: list[bool]) -> None:
    assert held(experiment(transfer(COPY, seconds=0.4), run)) == verdicts


@pytest.mark.parametrize(
    ("ratios", "others", "verdict"),
    [
        ((2, 3, 0.5), 0.0, True),  # a quiet machine: the median
        ((0.9, 2, 0.5), 0.2, False),
        ((2, 3, 0.5, 2, 3), 0.5, None),  # a busy one: all or nothing
        ((0.5, 0.9, 2, 0.5, 0.9), 0.5, None),
        ((2, 3, 1.1, 2, 3), 0.5, True),
        ((0.5, 0.9, 0.9, 0.5, 0.9), 0.5, False),
        ((2, 3), 0.5, None),  # too few
        ((0.5,), 0.5, None),
        ((2, 3), None, True),  # a host that does not tell
    ],
)
def test_throughput_on_a_busy_machine(ratios: tuple[float, ...], others: float | None, verdict: bool | None) -> None:
    runs = [
        replace(one, others=others)
        for ratio in ratios
        for one in (transfer(COPY, seconds=0.4), transfer(DEVMEM, seconds=0.4 / ratio))
    ]
    (claim,) = (one for one in experiment(*runs).claims() if one.claim == "Throughput rises.")
    assert claim.holds is verdict
    assert f"rose in {sum(ratio > 1 for ratio in ratios)} of {len(ratios)} pairs" in claim.evidence
    assert ("other programs had up to 50%" in claim.evidence) == (others == 0.5)


def test_what_was_not_judged_is_neither_held_nor_failed(capsys: pytest.CaptureFixture[str]) -> None:
    """*Verify*: on a terminal, in a document, by the exit status, which a claim that fails decides alone."""
    unjudged, failed = results.Claim("It rises.", None, "1 of 2"), results.Claim("It falls.", False, "2 of 2")
    show_claims([unjudged])
    assert "? not judged: It rises. 1 of 2" in capsys.readouterr().out
    assert results.verdicts([unjudged, failed]).splitlines() == [
        "- ? **not judged:** It rises. (1 of 2)", "- ✗ **does not hold:** It falls. (2 of 2)",
    ]  # fmt: skip
    with pytest.raises(click.exceptions.Exit) as ended:
        judge([unjudged, results.Claim("It is.", True, "")])
    assert ended.value.exit_code == 4
    with pytest.raises(VmError, match=r"did not hold: It falls\. \(2 of 2\)$"):
        judge([unjudged, failed])


def test_what_others_do_on_this_host() -> None:
    """*Steps*: keep one CPU busy here, in a process that has ended, and in one that another has started.
    *Verify*: none of it counts as others'.
    """
    spin = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    before = Load.now()
    subprocess.run([sys.executable, "-c", spin], check=True)
    deep = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin!r}])"
    subprocess.run([sys.executable, "-c", deep], check=True)
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = Load.now()
    assert after.own - before.own >= 0.85 * os.sysconf("SC_CLK_TCK")
    share = after.others(before)
    assert share is not None and 0 <= share <= 1
    assert after.others(after) is None
    assert Load(1000, 500, 100).others(Load(0, 0, 0)) == pytest.approx(0.4)
    assert Load(1000, 0, 0)._replace(idle=1000).others(Load(0, 0, 0)) == 0


def test_for_programs() -> None:
    found = json.loads(json.dumps(as_json(experiment())))
    assert [claim["holds"] for claim in found["claims"]] == [True] * 5
    assert found["summary"]["devmem"]["host_memory_bytes"] == pytest.approx(20_000 / MIB)
    assert found["summary"]["copy"]["gbps"] == pytest.approx(8 * MIB / 0.4 / 1e9)
    assert found["summary"]["copy"]["cpu_ns"] == pytest.approx(1e9 * 0.08 / MIB)
    assert [run["mode"] for run in found["runs"]] == ["copy", "devmem"]
    assert sum(one["bytes"] for one in found["runs"][1]["ledger"]) == MIB + 20_000


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    cli.show(experiment())
    shown = capsys.readouterr().out
    assert "Through host memory" in shown and shown.count("✓") == 5
    lines = cli.as_markdown(experiment()).splitlines()
    assert "| **Copied by guest CPUs, bytes** | 2 | 0 |  |" in lines
    assert "| **Throughput, median, Gbit/s** | 0.021 | 0.0839 | × 4 |" in lines
    assert sum(line.startswith("- ✓") for line in lines) == 5


def test_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plotting = plot.pyplot()
    plot.save(cli.draw(experiment(), plotting), tmp_path / "plot.png", plotting)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(cli.devmem, ["--plot", "x.png"], standalone_mode=False)
    assert isinstance(result.exception, click.ClickException)
    assert f"{sys.executable} -m pip install matplotlib" in str(result.exception)
