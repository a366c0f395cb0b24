"""TOML from outside, and TOML that is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nicmodel import toml_text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = ", "Invalid value"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "9" * 10_000, "a number has too many digits"),
        ("a" + ".a" * 100_000 + " = 1", "a key has at most 256 parts"),
        ("[" + "a . " * 100_000 + "a]", "a key has at most 256 parts"),
        ("a = {'b'" + ".'b'" * 100_000 + " = 1}", "a key has at most 256 parts"),
    ],
)
def test_what_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        toml_text.loads(text)


def test_what_is_read() -> None:
    """A long name, and a text with as many dots as somebody may write in a line."""
    assert toml_text.loads(f"{'a' * 100_000} = '{'. ' * 200}'\na{'.a' * 255} = 1\n")["a"]["a"]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=150)
_VALUES = _TEXT | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
_NAMES = st.sampled_from(["name", "start", "dry_run", "queue-3"])
_TABLES = st.dictionaries(_NAMES, _VALUES | st.lists(_VALUES, max_size=3), max_size=4)


@given(_TABLES, st.lists(_TABLES, min_size=1, max_size=3))
def test_what_is_written_reads_the_same(table: dict[str, object], several: list[dict[str, object]]) -> None:
    whole = {**table, "several": several}
    assert toml_text.loads(toml_text.dumps(whole)) == whole
