"""The benchmarks run; what they measure is for a machine that has nothing else to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_inject() -> None:
    command = [sys.executable, str(BENCHMARKS / "inject.py"), "--starts", "2", "--frames", "300", "--calls", "1"]
    result = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)
    assert result["start"].keys() == {"first_ms", "median_ms", "p99_ms", "max_ms"}
    assert len(result["inject"]) == 4 and all(row["per_second"] > 0 for row in result["inject"])
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "2 starts of NIC and driver" in table and "TCP, 1514 bytes" in table
