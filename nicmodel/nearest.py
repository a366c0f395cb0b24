"""What a mistyped name was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click


def did_you_mean(word: object, names: Iterable[str]) -> str:
    """The end of a sentence that refuses `word`: ``; did you mean 'link'?``, or nothing if none of `names` is near."""
    lowered = {name.lower(): name for name in names}
    found = difflib.get_close_matches(str(word).lower()[:100], lowered, n=1)
    return f"; did you mean {lowered[found[0]]!r}?" if found else ""


if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:
    _Choice = click.Choice  # not generic before click 8.2


class Choice(_Choice):
    """An option's value that is one of some names, of which a mistyped one gets the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See `click.ParamType.convert`."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(error.message.rstrip(".") + (did_you_mean(value, self.choices) or "."), param, ctx)
