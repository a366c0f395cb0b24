"""What the experiment concludes from what it has measured, and how it shows it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nicmodel.cli.experiment import plot
from nicmodel.cli.experiment import series as cli
from nicmodel.client.experiment import COPY, DEVMEM, Experiment, Run, as_json
from nicmodel.client.ledger import Entry, Place

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


def held(found: Experiment) -> list[bool]:
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
