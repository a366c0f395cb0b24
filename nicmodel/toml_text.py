"""TOML from outside: whatever it is, it is read in bounded time, or refused by a sentence."""

from __future__ import annotations

import re
import tomllib
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
