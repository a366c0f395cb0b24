"""What an experiment hands over: what was asked, what was measured, and whether it held. Tables, claims and panels of a
plot are data, so that a terminal, a file for programs and a page for a browser show the same.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

#: Values by the columns' keys, and whatever else programs are to have.
Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """Something that is said of a device, and whether it held here; None: that could not be judged."""

    claim: str
    holds: bool | None
    evidence: str

    @property
    def fails(self) -> bool:
        """Whether it was judged, and did not hold."""
        return self.holds is not None and not self.holds


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: of its values in each row.
        heading: for people.
        style: how a value is written, as `format` takes it; with one the column is a number's and stands to the right.
    """

    key: str
    heading: str
    style: str = ""

    def text(self, row: Row) -> str:
        """The value of a row, as a person reads it; nothing if there is none."""
        value = row.get(self.key)
        return "" if value is None else format(value, self.style)


@dataclass(frozen=True)
class Table:
    """Rows that were measured, and the columns that people see of them.

    Attributes:
        title: a sentence without its full stop.
        columns: in their order.
        rows: in their order.
        legend: what the headings mean, where that does not go without saying.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One part of a plot: a group of bars for each label, in each group a bar for each series.

    Attributes:
        title: what is shown.
        unit: of the values.
        labels: of the groups, in order.
        series: values by name of the series, as many as there are labels; None: there is no such value.
        stacked: the bars of a group are parts of a sum.
    """

    title: str
    unit: str
    labels: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    stacked: bool = False


@dataclass
class Result:
    """An experiment's result.

    Attributes:
        name: of the command, such as ``owners``.
        title: what was compared.
        question: what was asked.
        asked: by whom and where.
        about: the circumstances, for the reader: name and value.
        tables: what was measured.
        claims: what follows, and the criteria that the exit status stands for.
        panels: of the plot.
        driver: what a driver would have to do.
        page: of the documentation, that tells more.
    """

    name: str
    title: str
    question: str
    asked: str
    about: dict[str, str]
    tables: list[Table] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    driver: str = ""
    page: str = ""

    @property
    def holds(self) -> bool:
        """Whether every claim did; an experiment that claims nothing does not."""
        return bool(self.claims) and all(claim.holds for claim in self.claims)


def as_json(result: Result) -> dict[str, Any]:
    """All of it, for programs."""
    return {
        "experiment": result.name,
        "title": result.title,
        "question": result.question,
        "asked": result.asked,
        "about": result.about,
        "holds": result.holds,
        "claims": [vars(claim) for claim in result.claims],
        "tables": [{"title": table.title, "rows": [dict(row) for row in table.rows]} for table in result.tables],
    }


def as_markdown(result: Result) -> str:
    """The question, the tables, the circumstances and the verdicts, for a document."""
    lines = [f"> {result.question}", "", f"Asked by {result.asked}.", ""]
    for table in result.tables:
        lines += [f"**{table.title}**", "", "| " + " | ".join(column.heading for column in table.columns) + " |"]
        lines.append("|" + "|".join("--:" if column.style else "---" for column in table.columns) + "|")
        lines += ["| " + " | ".join(column.text(row) for column in table.columns) + " |" for row in table.rows]
        lines += ["", *([f"({table.legend})", ""] if table.legend else [])]
    lines += ["; ".join(f"{name}: {value}" for name, value in result.about.items()) + ".", ""]
    return "\n".join(lines) + "\n" + verdicts(result.claims)


def verdicts(claims: Sequence[Claim]) -> str:
    """Which claims held, which did not and which could not be judged, as a list for a document."""
    marks = {True: "✓", False: "✗ **does not hold:**", None: "? **not judged:**"}
    return "".join(f"- {marks[claim.holds]} {claim.claim} ({claim.evidence})\n" for claim in claims)


def machine() -> str:
    """The machine in one line, for times that are its own: processor, cores, memory, kernel, Python."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB; "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )
