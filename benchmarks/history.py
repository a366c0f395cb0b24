"""A figure's way through the commits, from the history that every benchmark appends to.

    python benchmarks/history.py                                       which benchmarks there are, and how often
    python benchmarks/history.py instructions                          each row's figures, oldest first
    python benchmarks/history.py guest_tap --row "tcp send" --figure ratio
    python benchmarks/history.py --compare                             the last run of each beside the one before

Figures of different machines are not compared: each change is to the run before on the same machine.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import click
from report import FOLDER
from rich.console import Console
from rich.table import Table

#: A line of the history, and a row of it.
Run = dict[str, Any]
Row = dict[str, Any]
#: Repetitions of what a row's figure is made of: a list of figures for each.
Repetitions = Callable[[Row], Sequence[Sequence[float]]]


def _itself(row: Row) -> Sequence[Sequence[float]]:
    return [row.get("runs", [])]


def _two(ours: Callable[[Row], str], peer: Callable[[Row], str], figure: str = "") -> Repetitions:
    """Those of the two that are compared, by their names among a row's runs, each a number or the `figure` of it."""

    def runs(row: Row) -> Sequence[Sequence[float]]:
        both = [row.get("runs", {}).get(name(row), []) for name in (ours, peer)]
        return [[one[figure] if figure else one for one in some] for some in both]

    return runs


@dataclass(frozen=True)
class Figure:
    """The figure of a benchmark that says most.

    Attributes:
        key: in its rows.
        less_is_better: whether it is.
        runs: its repetitions in a row; none: there were none, or they were not kept.
    """

    key: str
    less_is_better: bool
    runs: Repetitions


FIGURES = {
    "packet_path": Figure("ratio", False, _itself),
    "growth": Figure("last", True, _itself),
    "guest_tap": Figure("ratio", False, _two(lambda row: "nicmodel", lambda row: str(row["best"]))),
    "devmem": Figure("ratio", False, _two(lambda row: "devmem", lambda row: str(row["best"]), "gbps")),
    "guest_to_guest": Figure("ratio", False, _two(lambda row: str(row["wire"]), lambda row: "virtio-net")),
    "small": Figure("value", True, _itself),
    "instructions": Figure("count", True, _itself),
}
#: What tells rows apart.
KEYS = (
    *("case", "what", "sizes", "wire", "mtu", "streams", "payload", "queues"),
    *("length", "split_text", "checksum", "memory", "flows", "rules"),
)
#: A change beyond this is coloured; below, it may be the machine's mood. So much noise has a figure of which no more is
#: known.
NOTEWORTHY = 0.05
#: No figure has less: instructions, which nothing disturbs, are the same within a percent.
LEAST_NOISE = 0.01


@click.command()
@click.argument("benchmark", required=False, type=click.Choice(list(FIGURES)))
@click.option("--row", "wanted", default="", help="Only rows whose name holds this.")
@click.option("--figure", help="Which figure, by its key in the JSON.")
@click.option("--last", default=10, show_default=True, help="How many runs.")
@click.option("--compare", "comparing", is_flag=True, help="Say what the last run has that is slower than before.")
@click.option("--history", type=click.Path(path_type=Path), default=FOLDER / "history.jsonl", hidden=True)
def main(
    benchmark: str | None, wanted: str, figure: str | None, last: int, comparing: bool, history: Path
) -> None:  # fmt: skip
    """Show how a benchmark's figures came about."""
    runs = read(history)
    if not runs:
        raise click.ClickException("there is no history yet: make bench")
    if comparing:
        show_changes(runs, [benchmark] if benchmark else [name for name in FIGURES if _last(runs, name)])
        return
    if benchmark is None:
        for name, count in Counter(run["benchmark"] for run in runs).items():
            said = _last(runs, name)
            click.echo(f"{name}: {count} runs, the last of commit {said['commit'] if said else ''}")
        return
    key, less_is_better = figure or FIGURES[benchmark].key, FIGURES[benchmark].less_is_better
    table = Table(title=f"{benchmark}: {key}", title_justify="left")
    for heading in ("row", "date", "commit", "machine"):
        table.add_column(heading)
    for heading in (key, "change"):
        table.add_column(heading, justify="right")
    rows: dict[str, list[tuple[dict[str, Any], float]]] = {}
    for run in runs:
        for row in run["rows"] if run["benchmark"] == benchmark else []:
            if wanted in (name := row_name(row)) and row.get(key) is not None:
                rows.setdefault(name, []).append((run, row[key]))
    for name, found in rows.items():
        before: dict[str, float] = {}
        for number, (run, value) in enumerate(found):
            machine = machine_of(run)
            change = value / before[machine] - 1 if before.get(machine) else None
            before[machine] = value
            if len(found) - number <= last:
                shown = _coloured(change, less_is_better)
                table.add_row(name, run["date"][:16], run["commit"], machine, f"{value:.4g}", shown)
                name = ""
        table.add_section()
    Console(width=max(120, Console().width)).print(table)


def row_name(row: dict[str, Any]) -> str:
    """What a row is about, in a line."""
    return " ".join(
        f"{key} {row[key]}" if isinstance(row[key], int) else str(row[key]) for key in KEYS if row.get(key) is not None
    )


def read(history: Path) -> list[Run]:
    """The history, oldest first; nothing if there is none."""
    return [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []


def machine_of(run: Run) -> str:
    """The machine that a run was on, without what is installed there."""
    return str(run["machine"]).partition(";")[0]


def _last(runs: Sequence[Run], name: str) -> Run | None:
    return next((run for run in reversed(runs) if run["benchmark"] == name), None)


# What got slower.


@dataclass(frozen=True)
class Change:
    """A figure beside that of the run before on the same machine.

    Attributes:
        benchmark: whose.
        row: which.
        before: the figure then.
        commit: of then.
        after: the figure now.
        noise: how far it moves by itself, as a share of it.
        less_is_better: whether it is.
    """

    benchmark: str
    row: str
    before: float
    commit: str
    after: float
    noise: float
    less_is_better: bool

    @property
    def share(self) -> float:
        """How much worse it is, as a share of what was before: negative is better."""
        change = self.after / self.before - 1
        return change if self.less_is_better else -change

    @property
    def slower(self) -> bool:
        """Worse by more than noise."""
        return self.share > self.noise

    @property
    def faster(self) -> bool:
        """Better by more than noise."""
        return self.share < -self.noise


def spread(repetitions: Sequence[Sequence[float]]) -> float:
    """How far repetitions lie apart, as a share of their median; where a figure is made of several, of all together."""
    return sum((max(some) - min(some)) / median(some) for some in repetitions if len(some) > 1 and median(some))


def noise_of(figure: Figure, past: Sequence[tuple[Run, Row]], row: Row) -> float:
    """How far a figure moves by itself, as a share of it.

    It is the larger of two: how far apart the repetitions were, now and before; and how far the figure has moved from
    run to run so far, by the median, so that a commit that has changed it does not count.

    Args:
        figure: which.
        past: the runs before on the same machine that have the row, oldest first, and the row in each.
        row: the row now.
    """
    found = [spread(figure.runs(one)) for one in (row, past[-1][1])]
    values = [before[figure.key] for _, before in past]
    steps = [abs(after / before - 1) for before, after in pairwise(values) if before]
    if len(steps) > 1:
        found.append(median(steps))
    known = max(found)
    return max(known, LEAST_NOISE) if known else NOTEWORTHY


def changes(past: Sequence[Run], now: Run) -> list[Change]:
    """The figures of a run beside those of the last run before it that was on the same machine and has the row."""
    figure = FIGURES[now["benchmark"]]
    before: dict[str, list[tuple[Run, Row]]] = {}
    for run in past:
        if (run["benchmark"], machine_of(run)) == (now["benchmark"], machine_of(now)):
            for row in run["rows"]:
                if row.get(figure.key):
                    before.setdefault(row_name(row), []).append((run, row))
    return [
        Change(
            now["benchmark"], name, found[-1][1][figure.key], found[-1][0]["commit"], row[figure.key],
            noise_of(figure, found, row), figure.less_is_better,
        )
        for row in now["rows"]
        if (found := before.get(name := row_name(row))) and row.get(figure.key) is not None
    ]  # fmt: skip


def show_changes(runs: Sequence[Run], names: Sequence[str]) -> None:
    """Say what the last run of each of these benchmarks has that is slower than before, beyond the noise."""
    table = Table(title="slower by more than the noise", title_justify="left")
    for heading in ("benchmark", "row", "since"):
        table.add_column(heading)
    for heading in ("before", "now", "worse by", "noise"):
        table.add_column(heading, justify="right")
    slower = 0
    for name in names:
        place = max((number for number, run in enumerate(runs) if run["benchmark"] == name), default=None)
        found = [] if place is None else changes(runs[:place], runs[place])
        if not found:
            click.echo(f"{name}: nothing to compare with: no run before on this machine")
            continue
        worse = [change for change in found if change.slower]
        better = sum(change.faster for change in found)
        click.echo(
            f"{name}: of {len(found)} figures {len(worse)} slower, {better} faster, the others within noise"
        )  # fmt: skip
        for change in sorted(worse, key=lambda one: one.noise - one.share):
            table.add_row(
                name, change.row, change.commit, f"{change.before:.4g}", f"{change.after:.4g}",
                f"[red]{change.share:+.1%}[/]", f"{change.noise:.1%}",
            )  # fmt: skip
        slower += len(worse)
    if slower:
        Console(width=max(120, Console().width)).print(table)


def _coloured(change: float | None, less_is_better: bool) -> str:
    if change is None:
        return ""
    if abs(change) < NOTEWORTHY:
        return f"{change:+.1%}"
    return f"[{'green' if (change < 0) == less_is_better else 'red'}]{change:+.1%}[/]"


if __name__ == "__main__":
    main()
