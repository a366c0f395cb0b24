"""Processors and memory that a process may use: those of the machine, or what a container leaves of them.

Sources: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max, memory.max), cgroup-v1/memory.rst,
scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

#: Where control groups are mounted.
_MOUNTED = Path("/sys/fs/cgroup")


def processors(root: Path = Path("/")) -> int:
    """How many processors this process may keep busy, at least one.

    Args:
        root: where /proc and /sys are.
    """
    count = len(os.sched_getaffinity(0))
    for folder in _groups(root, "cpu"):
        quota, period = [*_words(folder / "cpu.max"), "", ""][:2]  # version 2
        if not quota:
            quota, period = ("".join(_words(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit():
            count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process and its children can still take without others having to give some up.

    Args:
        root: where /proc and /sys are.
    """
    left = 1024 * int(_fields(root / "proc/meminfo")["MemAvailable:"])
    for folder in _groups(root, "memory"):
        for limit, used, reclaimable in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most = "".join(_words(folder / limit))
            if most.isdigit():
                taken = int("".join(_words(folder / used)) or 0) - int(
                    _fields(folder / "memory.stat").get(reclaimable, 0)
                )
                left = min(left, int(most) - taken)
    return max(0, left)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control groups that limit this process by a controller, its own first.

    A container may see the name that its group has outside, and no folder of that name: those above it are there.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounted = root / _MOUNTED.relative_to("/") / (controller if controllers else "")
        here = mounted / path.lstrip("/")
        yield from (folder for folder in (here, *here.parents) if folder.is_relative_to(mounted))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _fields(path: Path) -> dict[str, str]:
    """Of lines of a name and a number."""
    return {words[0]: words[1] for line in _lines(path) if len(words := line.split()) > 1}
