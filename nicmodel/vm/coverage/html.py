"""Coverage as pages for a browser: an index of files and functions, and each source with what ran of it, and in which
tests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import CLexer

from nicmodel.vm.coverage.report import BETWEEN, FunctionReport, Report, Share, Totals

#: Of the contexts that reach a line or a function, so many are named.
_NAMED = 20

_STYLE = """
body { font: 14px/1.4 sans-serif; margin: 2em; color: #222; background: #fff; }
table { border-collapse: collapse; }
th, td { padding: 2px 10px; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
thead th { border-bottom: 2px solid #888; }
tbody tr:nth-child(even) { background: #f6f6f6; }
tr.total td { border-top: 2px solid #888; font-weight: bold; }
.bar { display: inline-block; width: 80px; height: 9px; background: #f3b6b6; }
.bar i { display: block; height: 9px; background: #4a9d5b; }
.never { color: #b00020; }
.source { font: 12px/1.35 monospace; border-spacing: 0; }
.source td { padding: 0 8px; white-space: pre; }
.source td.number { color: #888; user-select: none; }
.source tr { background: #fff !important; }
.source tr.ran td.count { background: #d7f0dc; }
.source tr.not td.count { background: #f9d0d0; }
.source tr.not td.text { background: #fdeeee; }
.source tr:target td { outline: 2px solid #e0a000; }
@media (prefers-color-scheme: dark) {
body { color: #ddd; background: #1b1b1b; } a { color: #8ab4f8; }
tbody tr:nth-child(even) { background: #242424; } .source tr { background: #1b1b1b !important; }
.source tr.ran td.count { background: #1d4427; } .source tr.not td.count { background: #5a2020; }
.source tr.not td.text { background: #331c1c; }
}
"""


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
    parts = []
    for report in reports:
        pages = {file: f"{report.record.build_id[:8]}-{_file_name(file)}.html" for file in report.source}
        parts.append(_overview(report, pages))
        texts = sources.get(report.record.build_id, {})
        for file, name in pages.items():
            _write(folder / name, f"{file}, {_title(report)}", _source(report, file, texts.get(file)))
    index = folder / "index.html"
    _write(index, "Coverage", "\n".join(parts) or "<p>Nothing was recorded.</p>")
    return index


def _title(report: Report) -> str:
    return f"{report.record.name} of Linux {report.record.release}"


def _file_name(path: str) -> str:
    return re.sub(r"[^\w.-]+", "-", path).strip("-")


def _write(path: Path, title: str, body: str) -> None:
    highlighting = HtmlFormatter(style="default").get_style_defs(".source")
    path.write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f"<style>{_STYLE}{highlighting}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body></html>\n",
        "utf-8",
    )


def _overview(report: Report, pages: Mapping[str, str]) -> str:
    words = [f"<h2>{escape(_title(report))}</h2>", f"<p>Build id {escape(report.record.build_id)}</p>"]
    rows = [_totals_row(_link(file, pages[file]), totals) for file, totals in report.files.items()]
    rows.append(_totals_row("all", report.total, "total"))
    words.append(_table(("file", "functions", "blocks", "lines"), rows))
    if report.lines is None:
        words.append("<p>Lines are not known: there are no debug symbols of this module here.</p>")
    words.append("<h3>Functions</h3>")
    rows = [_function_row(report, function, pages) for function in report.functions]
    words.append(_table(("function", "source", "calls", "blocks", "lines", "tests"), rows))
    if any(report.contexts):
        words.append("<h3>Tests</h3>")
        rows = [
            f"<tr><td>{escape(test.name or BETWEEN)}</td>{_number(test.functions)}{_number(test.blocks)}"
            f"{_number(test.lines)}<td>{escape(', '.join(test.only_here))}</td></tr>"
            for test in report.by_test
        ]
        words.append(_table(("test", "functions", "blocks", "lines", "reached by no other"), rows))
    return "\n".join(words)


def _table(headings: Sequence[str], rows: Sequence[str]) -> str:
    numbers = {"functions", "blocks", "lines", "calls", "tests"}
    cells = "".join(f'<th class="{"number" if title in numbers else ""}">{title}</th>' for title in headings)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table>"


def _link(text: str, target: str) -> str:
    return f'<a href="{escape(target)}">{escape(text)}</a>'


def _number(value: object, more: str = "") -> str:
    return f'<td class="number"{more}>{value}</td>'


def _share(share: Share) -> str:
    if not share.total:
        return _number("")
    percent = 100 * share.ran / share.total
    return _number(f'{share} {share.percent} <span class="bar"><i style="width:{percent:.0f}%"></i></span>')


def _totals_row(title: str, totals: Totals, kind: str = "") -> str:
    shares = "".join(map(_share, (totals.functions, totals.blocks, totals.lines)))
    return f'<tr class="{kind}"><td>{title}</td>{shares}</tr>'


def _function_row(report: Report, function: FunctionReport, pages: Mapping[str, str]) -> str:
    place = function.place
    page = pages.get(function.file)
    tests = report.tests_of(function.function)
    return (
        f'<tr><td class="{"" if function.reached else "never"}">{escape(function.function.name)}</td>'
        f"<td>{_link(place, f'{page}#{function.line}') if page else escape(place)}</td>{_number(function.calls)}"
        f"{_share(function.blocks)}{_share(function.lines)}{_number(len(tests), _names(list(tests)))}</tr>"
    )


def _names(tests: Sequence[str]) -> str:
    """An attribute that shows the names of tests."""
    named = [test or BETWEEN for test in tests[:_NAMED]]
    if len(tests) > _NAMED:
        named.append(f"and {len(tests) - _NAMED} more")
    text = "&#10;".join(map(escape, named))
    return f' title="{text}"' if named else ""


def _source(report: Report, file: str, text: str | None) -> str:
    counts, tests = report.source[file], report.contexts_of_lines.get(file, {})
    words = ["<p><a href='index.html'>Index</a></p>"]
    if text is None:
        words.append("<p>The source is not here: name its folder (--source), or have it fetched (--fetch).</p>")
        lines = dict.fromkeys(counts, "")
    else:
        shown = highlight(text, CLexer(stripnl=False), HtmlFormatter(nowrap=True)).split("\n")
        lines = dict(enumerate(shown, 1))
    rows = []
    for line, shown_line in sorted(lines.items()):
        count = counts.get(line)
        kind = "" if count is None else "ran" if count else "not"
        names = tests.get(line, [])
        rows.append(
            f'<tr id="{line}" class="{kind}"><td class="number">{line}</td>'
            f'<td class="number count"{_names(names)}>{"" if count is None else count}</td>'
            f'<td class="text">{shown_line}</td></tr>'
        )
    return "\n".join([*words, '<table class="source"><tbody>', *rows, "</tbody></table>"])
