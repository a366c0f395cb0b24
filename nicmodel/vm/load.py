"""What else a host does while something is measured on it: a busy one makes times mean less."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Load(NamedTuple):
    """CPU time of the CPUs that this process may use, since the host's start, in clock ticks.

    Attributes:
        total: all that there was, that which a hypervisor gave to others included.
        idle: of it, with nothing to do.
        own: of this process and all that it has started, guests included.
    """

    total: int
    idle: int
    own: int

    @classmethod
    def now(cls) -> Load:
        """As it is."""
        names = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        total = idle = 0
        for line in Path("/proc/stat").read_text("ascii").splitlines():
            name, *fields = line.split()
            if name in names:
                # proc_stat(5): user nice system idle iowait irq softirq steal; time of guests is in user already.
                ticks = [int(field) for field in fields[:8]]
                total, idle = total + sum(ticks), idle + ticks[3] + ticks[4]
        return cls(total, idle, _own())

    def others(self, since: Load) -> float | None:
        """The share of CPU time that others have had since an earlier `now`, 0 to 1; None: the host does not tell."""
        total = self.total - since.total
        if total <= 0:
            return None
        return min(max(total - (self.idle - since.idle) - (self.own - since.own), 0) / total, 1.0)


def _own() -> int:
    """Ticks of this process, of its descendants, and of those that have ended and were waited for."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text("utf-8", "replace")
            except OSError:  # it has ended
                continue
            # proc_pid_stat(5): behind the name, which may have anything in it, state and ppid; utime is field 14.
            fields = text.rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
            used[int(folder.name)] = sum(map(int, fields[11:15]))
    found, generation = 0, {os.getpid()}
    while generation:
        found += sum(used.get(process, 0) for process in generation)
        generation = {process for process, parent in parents.items() if parent in generation}
    return found
