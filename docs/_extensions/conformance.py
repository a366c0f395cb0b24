"""Reports of ``nicmodel conform`` side by side, made from the JSON that it writes; each also as a page of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from nicmodel.cli.conform import GROUPS, page
from nicmodel.vm.conform import Check, Conformance

FOLDER = Path(__file__).parent.parent / "conformance"


class ConformanceDirective(SphinxDirective):
    """``{conformance} gve-6.1 gve-7.3``: a row for each check, a column for each of these reports."""

    required_arguments = 1
    optional_arguments = 9

    def run(self) -> list[nodes.Node]:
        """Called by docutils."""
        for name in self.arguments:
            self.env.note_dependency(str(FOLDER / f"{name}.json"))
        return self.parse_text_to_nodes("\n".join(table({name: read(name) for name in self.arguments})))


def read(name: str) -> Conformance:
    """A report that is kept here."""
    return Conformance.from_dict(json.loads((FOLDER / f"{name}.json").read_text()))


def table(named: Mapping[str, Conformance]) -> Iterator[str]:
    """The rows, as Markdown: what each group comes to, and then each of its checks."""
    reports = list(named.values())
    # In HTML, since Sphinx knows nothing of pages that are written at the end.
    heads = [f'<a href="conformance/{name}.html">Linux {report.kernel}</a>' for name, report in named.items()]
    yield f"| | {' | '.join(heads)} |"
    yield f"|---|{'---|' * len(reports)}"
    for group, title in GROUPS.items():
        stood = [[check.good for check in report.group(group)] for report in reports]
        yield f"| **{title}** | {' | '.join(f'**{sum(good)} of {len(good)}**' for good in stood)} |"
        for name in dict.fromkeys(check.name for report in reports for check in report.group(group)):
            found = [next((c for c in report.group(group) if c.name == name), None) for report in reports]
            yield f"| {name} | {' | '.join(map(_cell, found))} |"
    for title, feature in (("Steps taken", False), ("Features used in ordinary use", True)):
        steps = [[step for step in report.steps if (step["need"] == "feature") == feature] for report in reports]
        counts = [f"{sum(step['stage'] == 'reached' for step in some)} of {len(some)}" for some in steps]
        yield f"| **{title}** | {' | '.join(counts)} |"
    yield f"| **Rules broken in ordinary use** | {' | '.join(_rules(report) for report in reports)} |"
    yield ""


def _cell(check: Check | None) -> str:
    if check is None:
        return "not tried"
    return f"{'✓' if check.good else '✗'} {check.said}".replace("|", "\\|")


def _rules(report: Conformance) -> str:
    return ", ".join(str(finding["rule"]) for finding in report.findings) or "none"


def write_pages(app: Sphinx, error: Exception | None) -> None:
    """Called by Sphinx at the end: each report as a page of its own."""
    if error is None and app.builder.format == "html":
        for path in FOLDER.glob("*.json"):
            target = Path(app.outdir, "conformance", f"{path.stem}.html")
            target.parent.mkdir(exist_ok=True)
            target.write_text(page(read(path.stem)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("conformance", ConformanceDirective)
    app.connect("build-finished", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
