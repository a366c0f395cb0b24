"""TOML from outside."""

from __future__ import annotations

import pytest

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
