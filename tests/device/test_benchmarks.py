"""The benchmarks run; what they measure is for a machine that has nothing else to do."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nicmodel.vm.namespace import namespace_for_taps

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(program: str, *arguments: str | Path) -> str:
    """Run a benchmark; what it prints."""
    command = [sys.executable, BENCHMARKS / program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """What a benchmark has written: the table has a line for each row, and the history has the same rows."""
    result = json.loads((folder / "results" / f"{name}.json").read_text())
    lines = (folder / "results" / f"{name}.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == 1 + len(result["rows"])
    [past] = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
    assert past == result
    assert result["benchmark"] == name and result["machine"] and result["date"]
    assert result["command"].startswith(f"python benchmarks/{name}.py")
    return list(result["rows"])


@pytest.mark.long
def test_inject() -> None:
    arguments = ("--starts", "2", "--frames", "300", "--calls", "1")
    result = json.loads(run("inject.py", *arguments, "--json"))
    assert result["start"].keys() == {"first_ms", "median_ms", "p99_ms", "max_ms"}
    assert len(result["inject"]) == 4 and all(row["per_second"] > 0 for row in result["inject"])
    table = run("inject.py", *arguments)
    assert "2 starts of NIC and driver" in table and "TCP, 1514 bytes" in table


def test_packet_path(tmp_path: Path) -> None:
    run("packet_path.py", "--length", "256", "--seconds", "0.01", "--output", tmp_path)
    found = rows(tmp_path, "packet_path")
    assert [(row["split"], row["vouched"]) for row in found] == [(a, b) for a in (False, True) for b in (False, True)]
    for row in found:
        assert row["ratio"] == pytest.approx(row["gbps"] / row["copy_gbps"])
    assert all(row["ratio"] > 0 for row in found) and {len(row["runs"]) for row in found} <= {*range(1, 6)}
    said = run("history.py", "packet_path", "--row", "on verified", "--history", tmp_path / "history.jsonl")
    assert f"{found[2]['ratio']:.4g}" in said and "vouched" not in said


def growth(folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """The curves of a short run, by their keys."""
    run("growth.py", "--short", "--repetitions", "2", "--output", folder, *arguments)
    found = {row["key"]: row for row in rows(folder, "growth")}
    for row in found.values():
        (first, before), (last, after) = row["points"]
        assert row["end"] == pytest.approx(math.log(after / before) / math.log(last / first))
        assert (row["first"], row["last"], row["repetitions"]) == (before, after, 2)
        assert row["verdict"] in ("flat", "linear", "worse") and len(row["runs"]) == 2
    return found


def test_growth(tmp_path: Path) -> None:
    """What takes no server: frames of so many flows, and rules; what they cost is no matter here."""
    found = growth(tmp_path, "--only", "flows", "--only", "rules")
    assert found.keys() == {"flows", "same", "different", "added", "added_different"}
    assert found["flows"]["sizes"] == "1 to 1,000 flows" and found["flows"]["goal"] == "flat"


@pytest.mark.long
def test_growth_of_servers(tmp_path: Path) -> None:
    """Everything else, in small. Each NIC takes memory, and a map some; a driver that is watched costs more."""
    found = growth(tmp_path)
    assert {"memory", "answer_busy", "busy", "sent", "checked", "map", "mapped", "age_all", "life"} < found.keys()
    assert found["memory"]["last"] > found["memory"]["first"]
    assert found["age_checker"]["last"] > found["age_"]["last"]


@pytest.mark.long
def test_small(tmp_path: Path) -> None:
    run("small.py", "--no-guest", "--no-compile", "--starts", "1", "--rounds", "20", "--output", tmp_path)
    found = {row["what"]: row for row in rows(tmp_path, "small")}
    assert found["start to accepting a client"]["value"] > found["start to accepting a client"]["peer"] > 0
    latencies = [found[f"doorbell to interrupt, {which}"]["value"] for which in ("median", "99th percentile")]
    assert 0 < latencies[0] <= latencies[1]


@pytest.mark.long
def test_ddp(tmp_path: Path) -> None:
    run("ddp.py", "--read", "32", "--megabytes", "1", "--seconds", "0.01", "--output", tmp_path)
    found = json.loads((tmp_path / "results/ddp.json").read_text())["rows"]
    assert found[0]["placed"] > 0.999 and all(row["placed"] + row["copied"] == pytest.approx(1) for row in found)
    assert {row["digests"] for row in json.loads((tmp_path / "results/ddp_speed.json").read_text())["rows"]} == {
        "none", "header and data",
    }  # fmt: skip


def test_instructions() -> None:
    """What valgrind counts runs outside of it as well, and nothing is dropped."""
    run("instructions.py", "--inside", "--length", "64")


def test_turns(tmp_path: Path) -> None:
    """The steps add up, and the interpreter has not got twice as much to do with them: it was 290 and 370 calls."""
    if (namespace := namespace_for_taps()) is None:
        pytest.skip("no tap in a network namespace")
    namespace.close()
    run("turns.py", "--rounds", "20", "--output", tmp_path)
    found = rows(tmp_path, "turns")
    for device in ("nicmodel", "idpf"):
        *steps, whole = [row for row in found if row["device"] == device]
        assert len(steps) == 4 and whole["calls"] == pytest.approx(sum(row["calls"] for row in steps))
        assert 0 < whole["calls"] < 500


@pytest.mark.long
def test_deferred(tmp_path: Path) -> None:
    run("deferred.py", "--length", "1514", "--seconds", "0.02", "--output", tmp_path)
    [row] = rows(tmp_path, "deferred")
    assert row["ratio"] == pytest.approx(row["deferred_mpps"] / row["immediate_mpps"])
    assert row["deferred_us"] > row["immediate_us"] > 0
