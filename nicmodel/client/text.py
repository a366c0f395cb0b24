"""What a person reads in a terminal: text from outside made harmless, and trace events, a line each and one more for
each descriptor.

Names of files and processes, what a driver says of itself, and whatever else a guest, a client or a wire sends may hold
control sequences, which a terminal would obey. So all that is printed goes through `printable`; JSON has escapes of its
own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: What says which event it is, and so comes first and without its name.
_HEADLINE = {
    "register": ("access", "register"),
    "config": ("access",),
    "msix": ("access",),
    "admin": ("command", "status"),
    "doorbell": ("queue",),
    "interrupt": ("queue", "what"),
    "client": ("what",),
    "reset": ("what",),
    "injected": ("fault", "queue"),
    "error": ("command",),
    "vectors": ("type",),
    "rx": ("queue", "verdict"),
    "tx": ("queue", "verdict"),
}
_NESTED = ("buffers", "descriptors", "completions")
_HEX = ("offset", "value", "hash", "key", "list_address")


def printable(text: str) -> str:
    """The text with an escape sequence, such as ``\\x1b``, for every character that cannot be printed.

    Those are control characters, line ends, marks that turn the direction of writing, and bytes that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def escaped(data: Any) -> Any:
    """The same data, as JSON has it, with all its text `printable`."""
    if isinstance(data, str):
        return printable(data)
    if isinstance(data, Mapping):
        return {escaped(key): escaped(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [escaped(one) for one in data]
    return data


def lines(event: Mapping[str, Any], start: int) -> Iterator[str]:
    """An event's lines.

    Args:
        event: as `nicmodel.observe.trace` makes it, or ``{"lost": N}``.
        start: the time, ns, that counts as zero.
    """
    if "lost" in event:
        yield f"{event['lost']} events lost: they came faster than they were read"
        return
    event = escaped(event)
    kind = event["kind"]
    head = _HEADLINE.get(kind, ())
    words = [str(event[name]) for name in head if name in event]
    rest = {name: value for name, value in event.items() if name not in ("time", "nic", "kind", *head, *_NESTED)}
    rest |= rest.pop("fields", {})
    seconds = (event["time"] - start) / 1e9
    yield f"{seconds:12.6f} {event['nic']} {kind:<9} {' '.join([*words, fields(rest)])}".rstrip()
    for name in _NESTED:
        for entry in event.get(name, ()):
            # Fields of zeros say nothing in a descriptor.
            told = {key: value for key, value in entry.items() if value and key != "index"}
            yield f"{'':12} {'':9} {name[:-1]} {entry['index']}: {fields(told)}"


def fields(values: Mapping[str, Any]) -> str:
    """``name=value …``, printable, addresses in hexadecimal, records in braces, nothing of what is reserved."""
    return " ".join(f"{name}={value_text(name, value)}" for name, value in values.items() if not is_reserved(name))


def value_text(name: str, value: Any) -> str:
    """A value as it is printed behind its name: printable, addresses in hexadecimal, ``-`` for what is empty."""
    if isinstance(value, Mapping):
        return "{" + fields(value) + "}"
    if isinstance(value, list):
        return printable(",".join(map(str, value))) or "-"
    if isinstance(value, int) and not isinstance(value, bool) and is_hex(name):
        return f"{value:#x}"
    return printable(str(value)) if value != "" else "-"


def is_reserved(name: str) -> bool:
    """Whether a field of this name means nothing."""
    return name.startswith(("reserved", "padding"))


def is_hex(name: str) -> bool:
    """Whether a number of this name is an address, or bits, and so is read in hexadecimal."""
    return name in _HEX or name.endswith(("address", "ring", "counter_array", "_status"))
