"""The kernel's selftests with one driver beside another, made from the files of what is expected of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from nicmodel.vm.selftests import FILES, Program, Recipe


class SelftestsDirective(SphinxDirective):
    """``{selftests} gvnic idpf``: a row for each program, a column for each of these kinds of NICs."""

    required_arguments = 1
    optional_arguments = 9

    def run(self) -> list[nodes.Node]:
        """Called by docutils."""
        for path in FILES.glob("selftests*.toml"):
            self.env.note_dependency(str(path))
        recipes = [Recipe.read(device) for device in self.arguments]
        return self.parse_text_to_nodes("\n".join(table(recipes)))


def table(recipes: Sequence[Recipe]) -> Iterator[str]:
    """The rows, as Markdown."""
    yield f"| test | {' | '.join(f'`{recipe.driver}`, Linux {recipe.kernel}' for recipe in recipes)} |"
    yield f"|---|{'---|' * len(recipes)}"
    for name in dict.fromkeys(name for recipe in recipes for name in recipe.programs):
        yield f"| {name} | {' | '.join(_cell(recipe, name) for recipe in recipes)} |"
    yield ""


def _names(files: Iterable[str]) -> list[str]:
    return [Path(name).stem for name in files]


def _cell(recipe: Recipe, name: str) -> str:
    """How the program ends, in a few words."""
    if name in recipe.programs:
        return outcome(recipe.programs[name])
    return "not run" if name in _names(recipe.inapplicable) else "unknown"


def outcome(program: Program) -> str:
    """What becomes of a program's cases: "7 pass", or those which do not, by their patterns."""
    by_outcome: dict[str, list[str]] = {}
    for entry in program.expected:
        by_outcome.setdefault(" or ".join(entry.outcomes), []).append(entry.pattern)
    if not program.cases:
        return "ends before its first case"
    if not by_outcome:
        return f"{program.cases} pass"
    told = [f"{words}: {', '.join(f'`{pattern}`' for pattern in patterns)}" for words, patterns in by_outcome.items()]
    if len(program.expected) == 1 and (program.expected[0].pattern == "*" or program.cases == 1):
        return f"{program.cases} {next(iter(by_outcome))}"
    rest = any(fnmatch.fnmatchcase("any case", entry.pattern) for entry in program.expected)
    return f"{program.cases}; {'; '.join(told)}{'' if rest else '; the others pass'}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("selftests", SelftestsDirective)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
