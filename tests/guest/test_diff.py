"""``nicmodel diff``: a driver is like itself, and a regression that was put in is found and named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lab import change_source

# Each tries two drivers several times; what is told is held by tests/unit/test_behaviour.py.
pytestmark = [pytest.mark.guest, pytest.mark.long]


def diff(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nicmodel.cli", "diff", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=800)


@pytest.mark.parametrize("serve", ["", "--profile legacy", "--device idpf"])
def test_a_driver_is_like_itself(serve: str) -> None:
    run = diff("trixie-backports", "trixie-backports", "--serve", serve)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "no difference: " in run.stdout


def test_a_regression_is_named(gve: Path, tmp_path: Path) -> None:
    """*Steps*: rings are filled by half, rung for sixteen buffers; one command is sent twice.

    *Verify*: that is told, of all queues at once, and nothing else is; also from what was saved.
    """
    change_source(gve / "gve_rx_dqo.c", "(bufq->tail & (GVE_RX_BUF_THRESH_DQO - 1)) == 0", "(bufq->tail & 15) == 0")
    change_source(gve / "gve_rx_dqo.c", "num_avail_slots = bufq->mask - num_full_slots;",
           "num_avail_slots = bufq->mask / 2 - min_t(u32, num_full_slots, bufq->mask / 2);")  # fmt: skip
    command = "err = gve_adminq_get_ptype_map_dqo(priv, priv->ptype_lut_dqo);"
    change_source(gve / "gve_main.c", command, f"gve_adminq_get_ptype_map_dqo(priv, priv->ptype_lut_dqo); {command}")
    run = diff("trixie-backports", gve, "--tries", "2", "--save", tmp_path / "saved")
    assert run.returncode == 3, run.stdout + run.stderr
    found = run.stdout[run.stdout.index("load\n") :]
    assert found.startswith(
        "load\n"
        "  + once more: GET_PTYPE_MAP, after CONFIGURE_DEVICE_RESOURCES\n"
        "up\n"
        "  ~ buffers posted before the first doorbell, to rx0 to rx3: 32 -> 16\n"
        "  ~ buffers posted when the interface is up, to rx0 to rx3: 992 -> 496\n"
    ), run.stdout
    again = diff(tmp_path / "saved" / "a.json", tmp_path / "saved" / "b.json")
    assert again.stdout[again.stdout.index("load\n") :] == found
