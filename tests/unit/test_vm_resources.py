"""What a container leaves of a machine's processors and memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nicmodel.vm import doctor
from nicmodel.vm.host import State
from nicmodel.vm.resources import available_memory, processors

GIB = 1 << 30
MEMINFO = f"MemTotal:       33554432 kB\nMemFree:         1048576 kB\nMemAvailable:   {16 << 20} kB\n"
GROUPS = "sys/fs/cgroup/"


#: What there is, and the processors and bytes of memory that it leaves.
CASES: dict[str, tuple[dict[str, str], int, int]] = {
    "no control groups": ({}, 16, 16 * GIB),
    # Limits of groups above count, too; what can be reclaimed is available.
    "version 2": (
        {
            "proc/self/cgroup": "0::/user.slice/box\n",
            GROUPS + "user.slice/box/cpu.max": "max 100000\n",
            GROUPS + "user.slice/box/memory.max": "max\n",
            GROUPS + "user.slice/cpu.max": "250000 100000\n",
            GROUPS + "user.slice/memory.max": f"{8 * GIB}\n",
            GROUPS + "user.slice/memory.current": f"{5 * GIB}\n",
            GROUPS + "user.slice/memory.stat": f"anon {2 * GIB}\ninactive_file {3 * GIB}\nactive_file 0\n",
        },
        3,
        6 * GIB,
    ),
    "version 1, in a container that sees the name of its group outside": (
        {
            "proc/self/cgroup": "9:memory:/docker/0123\n4:cpu,cpuacct:/docker/0123\n1:name=systemd:/\n0::/\n",
            GROUPS + "cpu/cpu.cfs_quota_us": "50000\n",
            GROUPS + "cpu/cpu.cfs_period_us": "100000\n",
            GROUPS + "memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            GROUPS + "memory/memory.usage_in_bytes": f"{GIB}\n",
            GROUPS + "memory/memory.stat": "total_inactive_file 1024\n",
        },
        1,
        GIB + 1024,
    ),
    # Of memory it is a large number, of time -1.
    "version 1, no limit": (
        {
            "proc/self/cgroup": "9:memory:/\n4:cpu:/\n",
            GROUPS + "cpu/cpu.cfs_quota_us": "-1\n",
            GROUPS + "cpu/cpu.cfs_period_us": "100000\n",
            GROUPS + "memory/memory.limit_in_bytes": "9223372036854771712\n",
            GROUPS + "memory/memory.usage_in_bytes": f"{GIB}\n",
        },
        16,
        16 * GIB,
    ),
}


@pytest.mark.parametrize(("files", "count", "memory"), CASES.values(), ids=CASES)
def test_what_control_groups_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], count: int, memory: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    for name, text in ({"proc/meminfo": MEMINFO} | files).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert (processors(tmp_path), available_memory(tmp_path)) == (count, memory)


def test_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: 700 << 20)
    check = doctor.resources()
    assert check.state is State.LIMITED and "734 MB" in check.found and "1,573 MB" in check.advice
    monkeypatch.setattr(doctor, "available_memory", lambda: 8 * GIB)
    assert doctor.resources().state is State.GOOD
