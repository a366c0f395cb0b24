"""TOML: read from outside in bounded time, or refused by a sentence; and written."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

#: Parts of a key, as in ``a.b.c``: tomllib takes time by their square.
_MOST_PARTS = 256
#: What a key may be made of, and other text as well. Each character is looked at once.
_KEYS = re.compile(r"[\w\"' \t.-]+")


def loads(text: str) -> dict[str, Any]:
    """What a text says.

    Raises:
        ValueError: it is no TOML; the text says why.
    """
    if any(found[0].count(".") >= _MOST_PARTS for found in _KEYS.finditer(text)):
        raise ValueError(f"a key has at most {_MOST_PARTS} parts")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # of Python's conversion, which speaks of Python
        raise ValueError("a number has too many digits") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dumps(table: Mapping[str, Any]) -> str:
    """The text of a table: values, then arrays of tables, which have values only; `loads` reads the same from it.

    Args:
        table: values are strings, numbers, truth values and lists of them.
    """
    lines = []
    for name, value in table.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for entry in value:
                lines += ["", f"[[{name}]]", *(f"{key} = {_value(one)}" for key, one in entry.items())]
        else:
            lines.append(f"{name} = {_value(value)}")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    # tomllib looks at each character of a string in quotation marks, which for frames takes milliseconds, but finds the
    # end of one in apostrophes at once.
    if isinstance(value, str) and len(value) > 100 and value.isalnum():
        return f"'{value}'"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON lets that one stand
