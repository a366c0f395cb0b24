"""The latest results, written between their marks: goals into docs/benchmarks.md, all tables into the README here.

python benchmarks/summary.py
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from devmem import CPU_GOAL as DEVMEM_CPU_GOAL
from devmem import GOAL as DEVMEM_GOAL
from growth import GOALS, TOLERANCE
from guest_tap import CASES, CPU_GOAL
from packet_path import label
from plot import Picture
from report import FOLDER, counted, origin_of
from run import BENCHMARKS

Row = dict[str, Any]
RESULTS = FOLDER / "results"
EVENTS = "events"
#: What events.py has measured has a place of its own, and is not measured by run.py.
EVENT_MARKS = ("<!-- events: written by benchmarks/summary.py -->\n", "<!-- end of events -->\n")
MARKS = ("<!-- results: written by benchmarks/summary.py -->\n", "<!-- end of results -->\n")


@dataclass(frozen=True)
class Goal:
    """One line for docs/benchmarks.md: a goal, and the case that is furthest from it.

    Attributes:
        text: what is measured.
        benchmark: whose rows.
        among: which of them.
        case: a row's name.
        figure: of ours, as a person reads it.
        peer: beside what, likewise.
        ratio: what the goal is about.
        least: what the ratio has to reach; None: there is a limit.
        most: what it may not exceed; None: there is a goal to be reached.
    """

    text: str
    benchmark: str
    among: Callable[[Row], bool]
    case: Callable[[Row], str]
    figure: Callable[[Row], str]
    peer: Callable[[Row], str]
    ratio: Callable[[Row], float]
    least: float | None = None
    most: float | None = None

    def line(self, rows: list[Row]) -> str:
        """A line of the table; empty if nothing of it was measured."""
        found = sorted(filter(self.among, rows), key=self.ratio, reverse=self.most is not None)
        if not found:
            return ""
        row = found[0]
        value, best = self.ratio(row), self.ratio(found[-1])
        held = value >= self.least if self.least is not None else value <= (self.most or 0)
        goal = f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"
        words = (
            self.text,
            self.case(row),
            self.figure(row),
            self.peer(row),
            f"{value:.3g}",
            f"{best:.3g}" if len(found) > 1 else "",
            goal,
            "yes" if held else "no",
        )
        return "| " + " | ".join(words) + " |"


def goals(rows: dict[str, list[Row]]) -> Iterator[Goal]:
    """All of them."""
    path = rows.get("packet_path", [])

    def crowded(row: Row) -> bool:
        return bool(row["flows"] > 1 or row["rules"] > 0)

    def slower(row: Row) -> float:
        same = ("length", "split", "vouched", "cold")
        alone = next(
            other for other in path if not crowded(other) and all(other[key] == row[key] for key in same)
        )  # fmt: skip
        return float(alone["mpps"] / row["mpps"])

    def mpps(row: Row) -> str:
        return f"{row['mpps']:.1f} Mpps"

    yield Goal(
        "packet path, 64 bytes: million frames a second", "packet_path", lambda row: row["length"] == 64, label, mpps,
        lambda row: "", lambda row: float(row["mpps"]), least=5,
    )  # fmt: skip
    yield Goal(
        "packet path, 1514 bytes and up: ns for each frame beyond a bare copy", "packet_path",
        lambda row: row["length"] >= 1514 and not crowded(row), label,
        lambda row: f"{row['gbps']:.0f} Gbit/s", lambda row: f"{row['copy_gbps']:.0f} Gbit/s",
        lambda row: float(row["beyond_ns"]), most=45,
    )  # fmt: skip
    yield Goal(
        "packet path, many flows and rules: times the frame of one flow", "packet_path", crowded, label, mpps,
        lambda row: f"{row['mpps'] * slower(row):.1f} Mpps", slower, most=1.2,
    )  # fmt: skip

    for goal, exponent in GOALS.items():
        yield Goal(
            f"what should be {goal} as it grows: exponent", "growth", lambda row, goal=goal: row["goal"] == goal,  # type: ignore[misc]
            lambda row: f"{row['what']}, {row['sizes']}", lambda row: f"{row['last']:.3g} {row['unit']}",
            lambda row: f"at first: {row['first']:.3g}", lambda row: float(max(row["exponent"], row["end"])),
            most=exponent + TOLERANCE,
        )  # fmt: skip

    def tap(text: str, begins: str) -> Goal:
        """Of the cases whose names begin so, which have one goal."""
        one = next(case for name, case in CASES.items() if name.startswith(begins))
        return Goal(
            text, "guest_tap", lambda row: row["case"].startswith(begins) and not row["case"].endswith("busy poll"),
            lambda row: str(row["case"]), lambda row: f"{row['nicmodel']:.3g} {row['unit']}",
            lambda row: f"{row['best']}: {row[row['best']]:.3g}", lambda row: float(row["ratio"]),
            least=None if one.less_is_better else one.goal, most=one.goal if one.less_is_better else None,
        )  # fmt: skip

    yield tap("a guest receives TCP over a tap", "tcp receive")
    yield tap("a guest sends TCP over a tap", "tcp send")
    yield tap("datagrams a second over a tap", "udp")
    yield tap("a TCP request's time over a tap", "tcp request")
    yield Goal(
        "the same TCP: CPU time of QEMU and server for each GiB", "guest_tap", lambda row: "cpu" in row,
        lambda row: str(row["case"]), lambda row: f"{row['cpu']:.3g} s",
        lambda row: f"virtio-net: {row['cpu_peer']:.3g}", lambda row: float(row["cpu_ratio"]), most=CPU_GOAL,
    )  # fmt: skip

    def devmem(row: Row) -> str:
        return f"{row['payload']} bytes, {counted(row['queues'], 'queue')}"

    yield Goal(
        "devmem TCP beside what the guest's CPU time allows", "devmem", lambda row: True, devmem,
        lambda row: f"{row['devmem']:.2f} Gbit/s", lambda row: f"allowed: {row['allowed']:.2f}",
        lambda row: float(row["share"]), least=DEVMEM_GOAL,
    )  # fmt: skip
    yield Goal(
        "the guest's CPU time of devmem TCP beside ordinary receive's", "devmem", lambda row: True, devmem,
        lambda row: f"{row['guest_devmem']:.0f} ns/KiB", lambda row: f"{row['best']}: {row['guest_best']:.0f}",
        lambda row: float(row["guest_ratio"]), most=DEVMEM_CPU_GOAL,
    )  # fmt: skip
    yield between_guests("link")
    yield between_guests("switch")
    yield from (small_thing(row) for row in rows.get("small", []) if row["goal"] is not None)


def between_guests(wire: str) -> Goal:
    """The goal of one of our wires."""
    return Goal(
        f"two guests over `{wire}`", "guest_to_guest", lambda row: row["wire"] == wire,
        lambda row: f"MTU {row['mtu']}, {counted(row['streams'], 'stream')}", lambda row: f"{row['gbps']:.2f} Gbit/s",
        lambda row: f"QEMU's socket: {row['peer']:.2f}", lambda row: float(row["ratio"]), least=2,
    )  # fmt: skip


def small_thing(wanted: Row) -> Goal:
    """The goal of one of the small things."""
    return Goal(
        wanted["what"], "small", lambda row: row is wanted, lambda row: "",
        lambda row: f"{row['value']:.3g} {row['unit']}", lambda row: "", lambda row: float(row["value"]),
        most=wanted["goal"],
    )  # fmt: skip


def main_table(results: dict[str, dict[str, Any]]) -> str:
    """The table for docs/benchmarks.md."""
    rows = {name: result["rows"] for name, result in results.items()}
    lines = [goal.line(rows.get(goal.benchmark, [])) for goal in goals(rows)]
    machines = dict.fromkeys(result["machine"] for result in results.values())
    commits = dict.fromkeys(result["commit"] for result in results.values())
    return "\n".join(
        [
            f"`make bench` on {'; '.join(machines)}; commit {', '.join(commits)}.",
            "",
            "| what | its weakest case | nicmodel | beside | ratio | its best case | goal | held |",
            "|---|---|--:|--:|--:|--:|--:|---|",
            *filter(None, lines),
            "",
        ]
    )


def all_tables(results: Mapping[str, object]) -> str:
    """The tables for the benchmarks' README: each result file, with its heading two levels down."""
    tables = []
    for name in results:
        text = (RESULTS / f"{name}.md").read_text()
        tables.append("##" + text.replace(f"({name}.png)", f"(results/{name}.png)"))
    return "\n".join(tables)


def put(path: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Write text between the marks of a file."""
    begin, end = marks
    old = path.read_text()
    new, count = re.subn(f"(?s){re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", old)
    if count != 1:
        raise click.ClickException(f"{path} has no place for results: it needs the lines\n{begin}{end}")
    path.write_text(new)


@click.command()
def main() -> None:
    """Write the latest results into docs/benchmarks.md and benchmarks/README.md, and draw their plots anew."""
    results = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in BENCHMARKS
        if (RESULTS / f"{name}.json").exists()
    }
    if not results:
        raise click.ClickException("there are no results yet: make bench")
    for name, result in results.items():
        plot: Picture = importlib.import_module(name).PLOT
        plot.draw(RESULTS / f"{name}.png", result["title"], origin_of(result).replace("`", ""), result["rows"])
    put(FOLDER.parent / "docs" / "benchmarks.md", main_table(results))
    put(FOLDER / "README.md", all_tables(results))
    if (RESULTS / f"{EVENTS}.md").exists():
        put(FOLDER / "README.md", all_tables({EVENTS: {}}), EVENT_MARKS)


if __name__ == "__main__":
    main()
