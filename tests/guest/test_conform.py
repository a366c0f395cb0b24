"""``nicmodel conform``: the stock driver stands what it is put through, one with a fault does not, and it is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.guest, pytest.mark.long]


def conform(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nicmodel.cli", "conform", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=800)


def test_the_stock_driver(tmp_path: Path) -> None:
    run = conform("--weather", "2", "--faults", "tx-never,admin-silent", "--json", tmp_path / "report.json")
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(check["group"], check["name"]) for check in report["checks"]] == [
        ("ordinary", "traffic, queues and rings"), ("weather", "seed 2"), ("faults", "tx-never"),
        ("faults", "admin-silent"), ("faults", "admin-silent, at load"),
    ]  # fmt: skip
    # Its admin queue has timed out by then: it gives up, and comes up when it is loaded again.
    assert report["checks"][-1]["said"] == "it gives up, works again"
    assert all(step["stage"] == "reached" for step in report["steps"] if step["need"] == "required")
    assert not report["findings"]


def test_a_driver_without_a_setting() -> None:
    """The gve of Linux 6.1 has no other rings. That is no fault of it, and it is told."""
    run = conform("--kernel", "bookworm", "--weather", "", "--faults", "none")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "good, other rings: not offered" in run.stdout


def test_a_driver_that_does_not_know_misses(gve: Path, tmp_path: Path) -> None:
    """*Steps*: a driver for which a packet is done that has been missed, and comes again.

    *Verify*: in ordinary use it is good, as it is with a device that is polite. In weather the kernel complains, and
    the report has the line.
    """
    source = gve / "gve_tx_dqo.c"
    text, changed = re.subn(
        r"gve_handle_miss_completion\(priv, tx, compl_tag,\s+&miss_compl_bytes,\s+&miss_compl_pkts\);",
        "gve_handle_packet_completion(priv, tx, !!napi, compl_tag, &miss_compl_bytes, &miss_compl_pkts, false);",
        source.read_text(),
    )
    assert changed == 2, "the driver is not what it was when this was written"  # a miss has two forms
    # What nobody calls any more is no error.
    source.write_text(text.replace("static void gve_handle_miss", "static __maybe_unused void gve_handle_miss"))
    run = conform(gve, "--weather", "2", "--faults", "none", "--html", tmp_path / "report.html")
    assert run.returncode == 3, run.stdout + run.stderr
    assert "✓ ordinary" in run.stdout and "✗ weather  seed 2" in run.stdout
    assert "njection" in (tmp_path / "report.html").read_text()
