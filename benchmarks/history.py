"""A figure's way through the commits, from the history that every benchmark appends to.

    python benchmarks/history.py                                       which benchmarks there are, and how often
    python benchmarks/history.py instructions                          each row's figures, oldest first
    python benchmarks/history.py guest_tap --row "tcp send" --figure ratio

Figures of different machines are not compared: each change is to the run before on the same machine.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click
from report import FOLDER
from rich.console import Console
from rich.table import Table

#: The figure of each benchmark that says most, and whether less of it is better.
FIGURES = {
    "packet_path": ("ratio", False),
    "guest_tap": ("ratio", False),
    "devmem": ("ratio", False),
    "guest_to_guest": ("ratio", False),
    "small": ("value", True),
    "instructions": ("count", True),
}
#: What tells rows apart.
KEYS = (
    *("case", "what", "wire", "mtu", "streams", "payload", "queues"),
    *("length", "split_text", "checksum", "memory", "flows", "rules"),
)
#: A change beyond this is coloured; below, it may be the machine's mood.
NOTEWORTHY = 0.05


@click.command()
@click.argument("benchmark", required=False, type=click.Choice(list(FIGURES)))
@click.option("--row", "wanted", default="", help="Only rows whose name holds this.")
@click.option("--figure", help="Which figure, by its key in the JSON.")
@click.option("--last", default=10, show_default=True, help="How many runs.")
@click.option("--history", type=click.Path(path_type=Path), default=FOLDER / "history.jsonl", hidden=True)
def main(benchmark: str | None, wanted: str, figure: str | None, last: int, history: Path) -> None:
    """Show how a benchmark's figures came about."""
    if not history.exists():
        raise click.ClickException("there is no history yet: make bench")
    runs = [json.loads(line) for line in history.read_text().splitlines()]
    if benchmark is None:
        for name, count in Counter(run["benchmark"] for run in runs).items():
            click.echo(f"{name}: {count} runs, the last of commit {_last(runs, name)['commit']}")
        return
    key, less_is_better = FIGURES[benchmark]
    key = figure or key
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
            machine = run["machine"].partition(";")[0]
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


def _last(runs: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(run for run in reversed(runs) if run["benchmark"] == name)


def _coloured(change: float | None, less_is_better: bool) -> str:
    if change is None:
        return ""
    if abs(change) < NOTEWORTHY:
        return f"{change:+.1%}"
    return f"[{'green' if (change < 0) == less_is_better else 'red'}]{change:+.1%}[/]"


if __name__ == "__main__":
    main()
