"""The text that names a wire on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from nicmodel.nearest import did_you_mean
from nicmodel.wire.dgram import DgramWire
from nicmodel.wire.none import NoWire
from nicmodel.wire.packet import PacketWire
from nicmodel.wire.stream import StreamWire
from nicmodel.wire.tap import TapWire
from nicmodel.wire.wire import Wire, WireError

if TYPE_CHECKING:
    from nicmodel.wire.pcap import Pace

#: Every form that `open_wire` takes, and what it stands for.
FORMS = {
    "tap:NAME": "a tap interface; made if there is none",
    "tap:fd=N": "an open tap, inherited as descriptor N",
    "packet:INTERFACE": "an interface that is there: a veth end, a real one; takes root",
    "stream:PATH": "connect to a UNIX socket (passt, QEMU's -netdev stream)",
    "stream:HOST:PORT": "connect over TCP",
    "stream:listen=PATH": "listen at a UNIX socket, or at HOST:PORT",
    "stream:fd=N": "a connected stream socket, inherited as descriptor N",
    "dgram:local=A,remote=B": "datagrams (QEMU's -netdev dgram); both PATH, or both HOST:PORT",
    "pcap:FILE": "replay a capture; add any of ,pace=original|max|FRAMES_PER_SECOND ,loop=N ,after=FRAMES_SENT",
    "pcap:write=FILE": "record what the NIC sends; also pcap:FILE,write=FILE",
    "none": "no network: frames sent are counted, none come",
}

#: The kinds of wires, those included that join NICs of one server.
KINDS = tuple(dict.fromkeys([form.partition(":")[0] for form in FORMS] + ["link", "switch"]))
#: KIND, KIND:ADDRESS or KIND:OPTION=VALUE. A path with an equals sign can be told from an option by a slash before it.
_SPEC = re.compile(r"([a-z]+)(?::(?:([a-z]+)=)?(.*))?")
#: A comma may also be part of a file's name.
_PCAP_OPTION = re.compile(r",(write|pace|loop|after)=")


def open_wire(spec: str) -> Wire:
    """The wire that `spec` names, in one of `FORMS`.

    Raises:
        WireError: it names none, or that wire cannot be opened.
    """
    parts = _SPEC.fullmatch(spec)
    match parts.groups() if parts else ():
        case "tap", None, str(name) if name:
            return TapWire(name)
        case "tap", "fd", fd:
            return TapWire(fd=_descriptor(spec, fd))
        case "packet", None, str(interface) if interface:
            return PacketWire(interface)
        case "stream", None, str(peer) if peer:
            return StreamWire(connect=peer)
        case "stream", "listen", address if address:
            return StreamWire(listen=address)
        case "stream", "fd", fd:
            return StreamWire(fd=_descriptor(spec, fd))
        case "dgram", "local", str(addresses):
            local, _, remote = addresses.partition(",remote=")
            if local and remote:
                return DgramWire(local=local, remote=remote)
        case "pcap", None, str(rest) if rest:
            return _open_pcap(spec, rest)
        case "pcap", "write", str(rest) if rest:
            return _open_pcap(spec, f",write={rest}")
        case "none", None, None:
            return NoWire()
        case "link" | "switch" as kind, _, _:
            raise WireError(f"{spec!r}: a {kind} joins NICs of one server, and cannot be opened for one alone")
    kind = spec.partition(":")[0]
    nearest = "" if kind in KINDS else did_you_mean(kind, KINDS)
    raise WireError(f"{spec!r} names no wire{nearest}\nThe forms are\n{listing(FORMS)}")


def listing(forms: Mapping[str, str]) -> str:
    """Forms and what they stand for, in two columns."""
    width = max(map(len, forms))
    return "\n".join(f"  {form:<{width}}  {meaning}" for form, meaning in forms.items())


def _open_pcap(spec: str, text: str) -> Wire:
    """The wire of ``FILE,OPTION=VALUE…``, where one of FILE and the option ``write`` may be missing."""
    replay, *rest = _PCAP_OPTION.split(text)
    options = dict(zip(rest[::2], rest[1::2], strict=True))
    write = options.pop("write", None)
    if options and not replay:
        raise WireError(f"{spec!r}: there is nothing to replay")
    pace: Pace
    match options.get("pace", "original"):
        case ("original" | "max") as word:
            pace = word
        case text:
            pace = _number(spec, "pace", text, 1)
    loop, after = (_number(spec, name, options.get(name, str(value)), 0) for name, value in (("loop", 1), ("after", 0)))
    from nicmodel.wire.pcap import PcapWire  # it loads scapy, a tenth of a server's time to start

    return PcapWire(replay or None, write=write, pace=pace, loop=loop, after=after)


def _number(spec: str, option: str, text: str, least: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise WireError(f"{spec!r}: {option}= takes a number from {least} on")
    return int(text)


def _descriptor(spec: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise WireError(f"{spec!r}: fd= takes the number of an open descriptor")
    return int(text)
