"""Pages for a browser, which need nothing beside them: what those of all commands have in common."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def templates(package: str) -> Environment:
    """The templates in a package's folder `pages`, and those of all packages in this one's.

    What is put into them is text: markup in it is escaped. A name that is not given is an error.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package, "pages"), PackageLoader("nicmodel.client", "pages")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
