"""The texts that name wires on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nicmodel.nearest import did_you_mean
from nicmodel.wire.dgram import DgramWire
from nicmodel.wire.link import link
from nicmodel.wire.none import NoWire
from nicmodel.wire.packet_socket import PacketSocketWire
from nicmodel.wire.stream import StreamWire
from nicmodel.wire.switch import Switch
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

#: Forms of wires that join NICs of one server, which `open_wires` takes besides.
JOINING_FORMS = {
    "link": "two NICs of this server, back to back",
    "switch": "any number of NICs of this server; switch:NAME to have several",
    "switch:uplink=WIRE": "and one of the wires above to the outside; also switch:NAME,uplink=WIRE",
}

KINDS = tuple(dict.fromkeys(form.partition(":")[0] for form in {**FORMS, **JOINING_FORMS}))
#: KIND, KIND:ADDRESS or KIND:OPTION=VALUE. A path with an equals sign can be told from an option by a slash before it.
_SPEC = re.compile(r"([a-z]+)(?::(?:([a-z]+)=)?(.*))?")
#: switch, switch:NAME, switch:uplink=WIRE or switch:NAME,uplink=WIRE.
_SWITCH = re.compile(r"switch(?::(?P<name>[\w.-]+))?(?:(?(name),|:)uplink=(?P<uplink>.+))?")
_LINK = "link"
#: A comma may also be part of a file's name.
_PCAP_OPTION = re.compile(r",(write|pace|loop|after)=")


class MisfitError(Exception):
    """Wires that do not go together, or not with the NICs that they are for; the text says why."""


def open_wires(specs: Sequence[str], count: int) -> tuple[list[Wire], list[object]]:
    """Open one wire for each of `count` NICs of a server.

    Each two that say "link" are the ends of one cable, all that name a switch have a port of it.

    Args:
        specs: one of `FORMS` or of `JOINING_FORMS` for each NIC; or a single one of `JOINING_FORMS`, for all.
        count: number of NICs.

    Returns:
        The wires, and for each what it leads to: the same object for those that are joined.

    Raises:
        MisfitError: there are too few or too many, a link with one end, or a switch with two uplinks.
        WireError: one of them names no wire, or cannot be opened.
    """
    if len(specs) == 1 and (specs[0] == _LINK or _SWITCH.fullmatch(specs[0])):
        specs = [specs[0]] * count
    if len(specs) != count:
        raise MisfitError(f"{len(specs)} wires for {count} NICs: repeat --wire for each --socket")
    if specs.count(_LINK) % 2:
        raise MisfitError("a link joins two NICs: give --socket for both")
    switches = _make_switches(specs)
    wires: list[Wire] = []
    joined: list[object] = []
    other: Wire | None = None
    for spec in specs:
        if switch := _SWITCH.fullmatch(spec):
            joined.append(switches[switch["name"]])
            wires.append(switches[switch["name"]].port())
        elif spec != _LINK:
            wires.append(open_wire(spec))
            joined.append(wires[-1])
        elif other is None:
            near, other = link()
            wires.append(near)
            joined.append(near)
        else:
            wires.append(other)
            joined.append(near)
            other = None
    return wires, joined


def _make_switches(specs: Sequence[str]) -> dict[str | None, Switch]:
    """The switches that `specs` speak of, by name; any port may be the one that tells of the uplink."""
    uplinks: dict[str | None, str | None] = {}
    for spec in specs:
        if switch := _SWITCH.fullmatch(spec):
            name, uplink = switch["name"], switch["uplink"]
            if uplink and uplinks.get(name) not in (None, uplink):
                raise MisfitError(f"a switch has one uplink: {uplinks[name]} or {uplink}?")
            uplinks[name] = uplink or uplinks.get(name)
    return {
        name: Switch(f"switch:{name}" if name else "switch", open_wire(uplink) if uplink else None)
        for name, uplink in uplinks.items()
    }


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
            return PacketSocketWire(interface)
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
