"""The text that names a wire on the command line."""

from __future__ import annotations

from nicmodel.wire.none import NoWire
from nicmodel.wire.stream import StreamWire
from nicmodel.wire.tap import TapWire
from nicmodel.wire.wire import Wire, WireError

#: Every form that `open_wire` takes, and what it stands for.
FORMS = {
    "tap:NAME": "a tap interface; made if there is none",
    "tap:fd=N": "an open tap, inherited as descriptor N",
    "stream:PATH": "connect to a UNIX socket (passt, QEMU's -netdev stream)",
    "stream:HOST:PORT": "connect over TCP",
    "stream:listen=PATH": "listen at a UNIX socket, or at HOST:PORT",
    "stream:fd=N": "a connected stream socket, inherited as descriptor N",
    "none": "no network: frames sent are counted, none come",
}


def open_wire(spec: str) -> Wire:
    """The wire that `spec` names, in one of `FORMS`.

    Raises:
        WireError: it names none, or that wire cannot be opened.
    """
    kind, _, rest = spec.partition(":")
    way, equals, what = rest.partition("=")
    match kind, way + equals:
        case "tap", "fd=":
            return TapWire(fd=_descriptor(spec, what))
        case "tap", _ if rest and not equals:
            return TapWire(rest)
        case "stream", "fd=":
            return StreamWire(fd=_descriptor(spec, what))
        case "stream", "listen=" if what:
            return StreamWire(listen=what)
        case "stream", _ if rest and not equals:
            return StreamWire(connect=rest)
        case "none", "" if spec == "none":
            return NoWire()
        case "link", _:
            raise WireError("link: a cable joins two NICs of one server; it cannot be opened for one alone")
    forms = "\n".join(f"  {form:<20} {meaning}" for form, meaning in FORMS.items())
    raise WireError(f"{spec!r} names no wire; the forms are\n{forms}")


def _descriptor(spec: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise WireError(f"{spec!r}: fd= takes the number of an open descriptor")
    return int(text)
