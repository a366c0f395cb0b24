"""Output for terminals and logs that know ASCII only (``LC_ALL=C``)."""

from __future__ import annotations

import codecs
import io
import locale
import sys

#: One character for one, so that tables stay aligned. What is not here becomes a question mark.
_PLAIN = {
    "✓": "+",
    "✗": "x",
    "×": "x",
    "…": "~",
    "→": ">",
    "←": "<",
    "–": "-",
    "—": "-",
    "µ": "u",
    "·": ".",
    "•": "*",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "≥": ">",
    "≤": "<",
    "±": "+",
    "⋯": "~",
}


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Handler of codecs: the plain form of what cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


def plain_where_needed() -> None:
    """Have standard output and error take ASCII where the locale has nothing else.

    Python itself writes UTF-8 in the C locale (PEP 540), whatever the terminal makes of it. Rich draws its tables in
    ASCII once the encoding is that.
    """
    try:
        locale.setlocale(locale.LC_CTYPE, "")
        codeset = locale.nl_langinfo(locale.CODESET)
    except locale.Error:  # a locale that is not installed works as C does
        codeset = "ANSI_X3.4-1968"
    ascii_only = codecs.lookup(codeset).name == "ascii"
    codecs.register_error("nicmodel.plain", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="ascii" if ascii_only else None, errors="nicmodel.plain")
