"""The smallest case of a benchmark with a guest runs; what it measures is for a machine that has nothing else to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nicmodel.vm.errors import VmError
from nicmodel.vm.host import program

pytestmark = [pytest.mark.guest, pytest.mark.long]

GUEST_TAP = Path(__file__).parents[2] / "benchmarks" / "guest_tap.py"


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
