"""What a benchmark leaves behind: a table to read, the same as JSON, a plot, and a line in the history.

A figure is worth something beside another of the same run on the same machine, so each row has its peer's figure and
the ratio of the two, and each file names the machine.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
HISTORY = FOLDER / "history.jsonl"


@dataclass(frozen=True)
class Column:
    """A column of the table: the key in each row, its heading, how its values are written."""

    key: str
    heading: str
    style: str = ""

    def text(self, row: dict[str, Any]) -> str:
        """The value of a row, as a person reads it."""
        value = row.get(self.key)
        return "" if value is None else format(value, self.style)


def machine() -> str:
    """The machine in one line: processor, cores, memory, kernel, Python."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB; "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def commit() -> str:
    """The checkout's commit, with a + if it was changed; empty without git."""
    done = subprocess.run(
        ["git", "-C", str(FOLDER), "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True
    )
    return done.stdout.strip()


def write(name: str, title: str, command: str, columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> None:
    """Print a table and write it to ``results/NAME.md`` and ``.json``; add the rows to the history."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.style else "left")
    for row in rows:
        table.add_row(*(column.text(row) for column in columns))
    Console(width=max(120, Console().width)).print(table)

    about = {"benchmark": name, "command": command, "machine": machine(), "commit": commit()}
    about["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    text = [f"# {title}", "", f"`{command}` on {about['machine']}; {about['date'][:10]}, commit {about['commit']}.", ""]
    text.append("| " + " | ".join(column.heading for column in columns) + " |")
    text.append("|" + "|".join("--:" if column.style else "---" for column in columns) + "|")
    text += ["| " + " | ".join(column.text(row) for column in columns) + " |" for row in rows]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(text) + "\n")
    (RESULTS / f"{name}.json").write_text(json.dumps({**about, "rows": list(rows)}, indent=1) + "\n")
    with HISTORY.open("a") as history:
        history.write(json.dumps({**about, "rows": list(rows)}) + "\n")
    click.echo(f"written: {RESULTS / name}.md, .json", err=True)
