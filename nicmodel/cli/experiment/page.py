"""Results of experiments as one page for a browser, which needs nothing beside it. The template is in `pages`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from nicmodel.client.page import templates
from nicmodel.client.results import Result


def write_page(file: Path, results: Sequence[tuple[Result, bytes | None]], machine: str) -> None:
    """Write the page.

    Args:
        file: where.
        results: each with its plot, an SVG; None: there is none. A plot is shown as a picture, so that nothing in it
            can run, and names in it do not meet those of another.
        machine: what times are of.
    """
    parts = [
        {"result": result, "plot": picture and f"data:image/svg+xml;base64,{base64.b64encode(picture).decode()}"}
        for result, picture in results
    ]
    file.write_text(
        templates("nicmodel.cli.experiment").get_template("report.html").render(parts=parts, machine=machine), "utf-8"
    )
