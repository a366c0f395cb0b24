"""What a benchmark leaves behind: a table to read, the same as JSON, a plot, and a line in the history.

A figure means something only beside another of the same run on the same machine, so each row has its peer's figure and
the ratio of the two, and each file names the machine.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from plot import Picture, Row
from rich.console import Console
from rich.table import Table

from nicmodel.client.results import Column, machine

FOLDER = Path(__file__).resolve().parent

output_option = click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=FOLDER, metavar="DIR",
    help="Where results/ and history.jsonl are written.  [default: benchmarks/]",
)  # fmt: skip


def counted(number: int, what: str) -> str:
    """So many of something: "1 queue", "4 queues"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def commit() -> str:
    """The checkout's commit, with a + if what is measured was changed since; empty without git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(FOLDER.parent), *words], capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "nicmodel", "guest", "benchmarks/*.py", "pyproject.toml")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def write(
    name: str, title: str, columns: Sequence[Column], rows: Sequence[Row], plot: Picture, folder: Path = FOLDER
) -> None:
    """Print a table, write it to ``results/NAME.md``, ``.json`` and ``.png`` in `folder`, add the rows to its history.

    Args:
        name: of the benchmark, which is that of its program.
        title: of the table.
        columns: of the table.
        rows: by the columns' keys, and whatever else JSON is to have.
        plot: how they are drawn.
        folder: where everything goes.
    """
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.heading, justify="right" if column.style else "left")
    for row in rows:
        table.add_row(*(column.text(row) for column in columns))
    Console(width=max(120, Console().width)).print(table)

    about = {"benchmark": name, "title": title, "command": command(), "machine": machine(), "commit": commit()}
    about["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    origin = origin_of(about)
    text = [f"# {title}", "", origin, "", f"![{title}]({name}.png)", ""]
    text.append("| " + " | ".join(column.heading for column in columns) + " |")
    text.append("|" + "|".join("--:" if column.style else "---" for column in columns) + "|")
    text += ["| " + " | ".join(column.text(row) for column in columns) + " |" for row in rows]
    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.md").write_text("\n".join(text) + "\n")
    (results / f"{name}.json").write_text(json.dumps({**about, "rows": list(rows)}, indent=1) + "\n")
    with (folder / "history.jsonl").open("a") as history:
        history.write(json.dumps({**about, "rows": list(rows)}) + "\n")
    written = f"written: {results / name}.md, .json"
    try:
        plot.draw(results / f"{name}.png", title, origin.replace("`", ""), rows)
        written += ", .png"
    except ImportError:
        written += "; no plot: matplotlib is missing (pip install -e '.[plot]')"
    click.echo(written, err=True)


def origin_of(result: Mapping[str, Any]) -> str:
    """Where a result comes from, in one sentence: command, machine, date, commit."""
    return f"`{result['command']}` on {result['machine']}; {result['date'][:10]}, commit {result['commit']}."


def command() -> str:
    """The command that was given, without where its results go."""
    words = [f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    if "--output" in words:
        at = words.index("--output")
        del words[at : at + 2]
    return shlex.join(["python", *words])
