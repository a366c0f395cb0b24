"""Coverage as pages for a browser: an index of files and functions, and each source with what ran of it, and in which
tests. The pages' templates are in the folder `pages`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import CLexer

from nicmodel.client.page import templates
from nicmodel.vm.coverage.report import BETWEEN, Report

#: A line or a function names this many of the contexts that reach it.
_NAMED = 20


def write_pages(folder: Path, reports: Sequence[Report], sources: Mapping[str, Mapping[str, str]]) -> Path:
    """Write the pages.

    Args:
        folder: where, made if it is not there; files of these names are overwritten.
        reports: what they show.
        sources: texts of source files, by build id and name; others have pages without text.

    Returns:
        The first page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = _environment()
    parts = []
    for report in reports:
        pages = {file: f"{report.record.build_id[:8]}-{_file_name(file)}.html" for file in report.source}
        title = f"{report.record.name} of Linux {report.record.release}"
        parts.append({"report": report, "pages": pages, "title": title})
        texts = sources.get(report.record.build_id, {})
        source = environment.get_template("source.html")
        for file, name in pages.items():
            text = texts.get(file)
            page = source.render(
                title=f"{file}, {title}",
                text=text,
                lines=_lines(text, report.source[file]),
                counts=report.source[file],
                tests=report.contexts_of_lines.get(file, {}),
            )
            (folder / name).write_text(page, "utf-8")
    index = folder / "index.html"
    index.write_text(environment.get_template("index.html").render(title="Coverage", parts=parts), "utf-8")
    return index


def _environment() -> Environment:
    environment = templates("nicmodel.vm.coverage")
    environment.filters["names"] = _names
    environment.globals["between"] = BETWEEN
    environment.globals["highlighting"] = Markup(HtmlFormatter(style="default").get_style_defs(".source"))
    return environment


def _file_name(path: str) -> str:
    return re.sub(r"[^\w.-]+", "-", path).strip("-")


def _names(tests: Sequence[str]) -> str:
    """Names of tests, one a line."""
    named = [test or BETWEEN for test in tests[:_NAMED]]
    if len(tests) > _NAMED:
        named.append(f"and {len(tests) - _NAMED} more")
    return "\n".join(named)


def _lines(text: str | None, counts: Mapping[int, int]) -> list[tuple[int, Markup]]:
    """Numbers and highlighted text of a source's lines; of those that have code only, where there is no text."""
    if text is None:
        return [(line, Markup("")) for line in sorted(counts)]
    shown = highlight(text, CLexer(stripnl=False), HtmlFormatter(nowrap=True)).split("\n")
    return [(number, Markup(line)) for number, line in enumerate(shown, 1)]
