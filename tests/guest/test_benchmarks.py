"""Benchmarks that take QEMU run, in small; what they measure is for a machine that has nothing else to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nicmodel.vm.errors import VmError
from nicmodel.vm.host import program

pytestmark = [pytest.mark.guest, pytest.mark.long]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GUEST_TAP = BENCHMARKS / "guest_tap.py"


def test_guest_tap(tmp_path: Path) -> None:
    try:
        inside = [program("unshare"), "--map-root-user", "--net", program("ip"), "link"]
    except VmError as error:
        pytest.skip(str(error))
    if subprocess.run(inside, capture_output=True).returncode:
        pytest.skip("no network namespace of one's own")
    cases = ["tcp receive 1500 x1 plain", "tcp request and response"]
    command: list[str | Path] = [sys.executable, GUEST_TAP, "--seconds", "1", "--rounds", "1", "--hw-gro"]
    command += [word for device in ("idpf", "virtio-net") for word in ("--device", device)]
    command += [word for case in cases for word in ("--case", case)]
    done = subprocess.run([*command, "--output", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results/guest_tap_idpf.json").read_text())["rows"]
    assert [row["case"] for row in rows] == cases
    for row in rows:
        assert row["best"] == "virtio-net"
        assert row["ratio"] == row["nicmodel"] / row["virtio-net"] > 0
        assert row["idpf_ratio"] == row["idpf"] / row["virtio-net"] > 0
    stream, request = rows
    assert stream["cpu_ratio"] == stream["cpu"] / stream["cpu_peer"] > 0 and "cpu" not in request


def test_events(tmp_path: Path) -> None:
    """Without a guest. *Verify*: each part that the estimate adds up was measured, and that is what it comes to."""
    command: list[str | Path] = [sys.executable, BENCHMARKS / "events.py", "--no-guest", "--rounds", "100"]
    done = subprocess.run([*command, "--output", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results/events.json").read_text())["rows"]
    value = {(row["what"], row["part"]): row["value"] for row in rows}
    wakes = value["a message there, an eventfd back", "two bare processes"]
    server = value["a packet sent out of rest, with its interrupt", "server"]
    qemu = value["a doorbell out of rest", "QEMU"]
    turn, rate = [row for row in rows if row["kind"] == "estimate"]
    assert turn["value"] == pytest.approx(1.5 + qemu + wakes + server) and turn["reality"] is None
    packet = value["a packet sent among many, 64 bytes", "server"]
    assert rate["value"] == pytest.approx(1e3 / (packet + 1e3 * server / 64))
    assert server > value["an interrupt", "server"] >= 0
    assert value["a packet sent among many, 64 bytes", "server"] < 1000 * server  # ns, µs
    if shutil.which("strace"):  # one write signals the interrupt
        assert value["system calls for a packet out of rest: write", "server"] == pytest.approx(1, abs=0.2)
