"""Inputs: what a device does for a moment, drawn by dice and changed by dice.

An input is a `Scenario`: faults, frames, and what the guest does meanwhile. What it may be made of is said by the
faults' own declarations (`Fault.parameters`), so that a new fault is fuzzed without a word here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nicmodel.faults.fault import Chance, Fault, Parameter, make
from nicmodel.faults.faults import Kinds
from nicmodel.faults.scenario import Deed, Frame, Scenario

#: What inputs are about, and where the faults of each sit (`Fault.where`).
ABOUT: Mapping[str, Collection[str]] = {
    "frames": (),
    "completions": ("receive", "transmit"),
    "interrupts": ("interrupts",),
    "commands": ("admin queue", "mailbox"),
    "device": ("device", "DMA"),
    "xdp": ("receive", "transmit"),
    "load": ("admin queue", "mailbox"),
}
#: Those that a guest answers by itself, in a millisecond.
FAST = ("frames", "completions", "interrupts")

#: Faults that are of no use here: they are about the wire, which there is none of, or say nothing of a driver. After
#: `device-gone` a PC's bus reads as zeros, and gve waits for ever; for a reply that is lost idpf waits a minute.
_LEFT_OUT = ("device-gone", "clock-jump", "admin-silent", "mailbox-lost", "dma-slow")

UP_AND_DOWN = "ip link set $NETIF down; ip link set $NETIF up"
RELOAD = "echo $PCI >/sys/bus/pci/drivers/$DRIVER/unbind; echo $PCI >/sys/bus/pci/drivers/$DRIVER/bind; set_up"
"""The latter has the driver let go of the NIC and take it again."""

#: What a guest does: each makes the driver ask something of its device.
_DEEDS = (
    UP_AND_DOWN,
    "ethtool -S $NETIF",
    "ethtool $NETIF",
    "ethtool -C $NETIF rx-usecs {usecs} tx-usecs {usecs}",
    "ethtool -G $NETIF rx {entries} tx {entries}",
    "ethtool -L $NETIF rx {queues} tx {queues} || ethtool -L $NETIF combined {queues}",
    "ethtool -G $NETIF tcp-data-split {switch}",
    "ethtool -K $NETIF rx-gro-hw {switch}",
    "ethtool -K $NETIF ntuple {switch}",
    "ethtool -X $NETIF equal {queues}",
    "ethtool -x $NETIF",
    "ethtool -N $NETIF flow-type tcp4 dst-port {port} action 0",
    "ethtool -n $NETIF",
    "ethtool -T $NETIF",
    "ip link set $NETIF mtu {mtu}",
    "ping -q -c 5 -i 0.01 -W 0.1 -s {size} 192.0.2.2",
    "sleep 0.3",
)
#: Programs that take the driver's packets before the kernel does, for some seconds: the shell function `xdp` runs them.
XDP = (
    "xdp {seconds} xdp_program pass",
    "xdp {seconds} xdp_program drop",
    "xdp {seconds} xdp_program tx",
    "xdp {seconds} xdp_program redirect",
    "xdp {seconds} xdp_program --timestamp tx",
    "xdp {seconds} xdp_socket --queues {queues} copy",
    "xdp {seconds} xdp_socket --queues {queues} zero-copy",
    "no_xdp",
)
#: What drivers want for it: no header split, no coalescing, small buffers, no more queues than processors.
_READY = "xdp_settings"
_CHOICES: Mapping[str, Sequence[object]] = {
    "seconds": (1, 2, 4),
    "usecs": (0, 1, 20, 100, 8190),
    "entries": (256, 512, 1024, 2048, 4096),
    "queues": (1, 2, 3, 4),
    "switch": ("on", "off"),
    "port": (80, 443, 5201),
    "mtu": (68, 576, 1280, 1460, 1500, 4000, 8000),
    "size": (8, 56, 1400, 4000, 20000),
}
#: The most that an input is made of.
_MOST_FAULTS, _MOST_FRAMES, _MOST_DEEDS, _MOST_BYTES = 4, 8, 4, 10_000
_MOST_IN_ALL = 30_000


class Inputs:
    """Makes inputs.

    Args:
        kinds: the faults that the NIC may have.
        about: what inputs are about, of `ABOUT`.
        frames: frames to begin with.
        chance: the dice.
    """

    def __init__(self, kinds: Kinds, about: Sequence[str], frames: Sequence[bytes], chance: random.Random) -> None:
        self._faults = {
            name: [kind for kind in kinds.values() if kind.where in places and kind.name not in _LEFT_OUT]
            for name, places in ABOUT.items()
        }
        self.about = [name for name in about if name == "frames" or self._faults[name]]
        self._frames = list(frames)
        self._chance = chance

    def draw(self, about: str) -> Scenario:
        """An input from nothing."""
        chance = self._chance
        faults: list[Fault] = []
        if about != "frames":
            faults = [self._fault(chance.choice(self._faults[about])) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
        frames = [self._frame() for _ in range(chance.randint(1, 4))] if about != "load" else []
        deeds: list[str] = []
        if about == "load":
            deeds = [RELOAD]
        elif about == "commands":
            resets = self._resets() if chance.random() < 0.5 else []
            faults += resets
            deeds = [self._deed() for _ in range(chance.randint(1, 3))]
            deeds = ["sleep 0.5", *deeds] if resets else deeds
        elif about == "device":
            deeds = [self._deed() for _ in range(chance.randint(0, 2))]
        elif about == "xdp":
            deeds = [*([_READY] if chance.random() < 0.7 else []), self._filled(chance.choice(XDP))]
            deeds += [self._deed() for _ in range(chance.choice((0, 0, 1)))]
        return _scenario(chance.getrandbits(31), faults, frames, deeds)

    def mutate(self, one: Scenario, other: Scenario) -> Scenario:
        """An input like `one`, with something changed, left out, or taken over from another."""
        for _ in range(self._chance.choice((1, 1, 2, 4))):
            one = self._mutated(one, other)
        return one

    def _mutated(self, one: Scenario, other: Scenario) -> Scenario:
        faults, frames, deeds = (
            [fault for _, fault in one.faults],
            [frame.data for frame in one.frames],
            [deed.run for deed in one.guest],
        )
        parts: list[list[Any]] = [faults, frames, deeds]
        changes: list[Callable[[], None]] = [lambda: self._join(parts, other), lambda: self._leave_out(parts)]
        if faults:
            changes += 4 * [lambda: self._change(faults, self._changed_fault)]
        if frames:
            changes += 4 * [lambda: self._change(frames, self._changed_frame)]
        if deeds:
            changes += 2 * [lambda: self._change(deeds, lambda _: self._deed())]
        self._chance.choice(changes)()
        seed = one.seed if self._chance.random() < 0.7 else self._chance.getrandbits(31)
        return _scenario(seed, faults, frames, deeds)

    def _resets(self) -> list[Fault]:
        kinds = [kind for kind in self._faults["device"] if kind.name == "device-reset"]
        return [make(kind, {"count": 1}) for kind in kinds]

    def _join(self, parts: list[list[Any]], other: Scenario) -> None:
        faults, frames, deeds = parts
        faults += [fault for _, fault in other.faults]
        frames += [frame.data for frame in other.frames]
        if deeds:  # what takes a millisecond is to take no second
            deeds += [deed.run for deed in other.guest]

    def _leave_out(self, parts: list[list[Any]]) -> None:
        chosen = self._chance.choice(parts)
        if chosen and sum(map(len, parts)) > 1:
            chosen.pop(self._chance.randrange(len(chosen)))

    def _change(self, parts: list[Any], change: Callable[[Any], Any]) -> None:
        at = self._chance.randrange(len(parts))
        parts[at] = change(parts[at])

    def _deed(self) -> str:
        return self._filled(self._chance.choice(_DEEDS))

    def _filled(self, line: str) -> str:
        return line.format(**{name: self._chance.choice(values) for name, values in _CHOICES.items()})

    def _fault(self, kind: type[Fault]) -> Fault:
        values = {}
        for name, parameter in kind.parameters().items():
            value = self._value(kind, parameter)
            if value is not None:
                values[name] = value
        return make(kind, values)

    def _changed_fault(self, fault: Fault) -> Fault:
        kind = type(fault)
        name, parameter = self._chance.choice(list(kind.parameters().items()))
        return replace(fault, **{name: self._value(kind, parameter)})

    def _value(self, kind: type[Fault], parameter: Parameter) -> Any:
        """A value for a parameter."""
        chance = self._chance
        match parameter.name:
            case "start":
                return 0.0
            case "duration":
                # What does not end by its count ends by its time, or the next input would meet it.
                return None if issubclass(kind, Chance) else round(10 ** chance.uniform(-2, 0), 3)
            case "count":
                return chance.choice((None, 1, 1, 2, 5))
            case "probability":
                return chance.choice((1.0, 1.0, 1.0, 0.5))
            case "queue" | "vector":
                return None
        if parameter.words:
            return chance.choice(parameter.words)
        assert parameter.range is not None
        if float in parameter.kinds:
            return max(round(10 ** chance.uniform(-4, -1), 5), parameter.range.low)
        low = int(parameter.range.low)
        high = parameter.range.high
        assert not callable(high)
        return min(max(self._number(), low), int(high))

    def _number(self) -> int:
        """Small ones, borders of powers of two, and any."""
        chance = self._chance
        bits = chance.choice((1, 2, 4, 6, 8, 10, 11, 12, 14, 16, 16, 32, 64))
        return chance.choice((0, 1, 1 << bits - 1, (1 << bits) - 1, chance.getrandbits(bits), chance.getrandbits(bits)))

    def _frame(self) -> bytes:
        frame = self._chance.choice(self._frames)
        return frame if self._chance.random() < 0.5 else self._changed_frame(frame)

    def _changed_frame(self, frame: bytes) -> bytes:
        chance, data = self._chance, bytearray(frame)
        for _ in range(chance.choice((1, 1, 2, 4))):
            # Headers matter most.
            at = chance.randrange(min(len(data), chance.choice((14, 40, 80, 80, 2000))))
            match chance.randrange(5):
                case 0:
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
                case 2:
                    data = data[: max(1, chance.choice((at, len(data) - 1, 14, 60)))]
                case 3:
                    data += bytes(chance.choice((1, 100, 1500, 4000)))
                case 4:
                    data[at:at] = data[at : at + chance.choice((4, 8, 20, 40))]
        return bytes(data[:_MOST_BYTES])


def keeps_contract(scenario: Scenario) -> bool:
    """Whether all that the device does in it is allowed to it."""
    return all(
        (fault.source or fault.name in _ALLOWED) and getattr(fault, "status", "") not in _NO_STATUS
        for _, fault in scenario.faults
    )


#: Faults that a device may have without breaking its contract, besides behaviours of weather: a command may fail, for
#: one, and statistics may come later. (A driver is then to fail in order.) It may not say that it has done what it has
#: not, nor say nothing.
_NO_STATUS = ("UNSET", "UNDEFINED", "PASSED")
_ALLOWED = ("admin-status", "mailbox-status", "rx-error", "rx-starve", "rx-checksum", "irq-spurious")


def _scenario(seed: int, faults: Sequence[Fault], frames: Sequence[bytes], deeds: Sequence[str]) -> Scenario:
    frames = list(frames[:_MOST_FRAMES])
    while sum(map(len, frames)) > _MOST_IN_ALL:
        frames.pop()
    return Scenario(
        seed,
        tuple((None, fault) for fault in faults[:_MOST_FAULTS]),
        frames=tuple(Frame(data) for data in frames),
        guest=tuple(Deed(line) for line in deeds[:_MOST_DEEDS]),
    )


#: Which of the first frames has a short answer.
PING = 1


def first_frames(mac: str, guest: str, guest6: str, peer_mac: str, peer: str, peer6: str) -> list[bytes]:
    """Frames of all sorts that a host may get, most of which it answers.

    Args:
        mac: the NIC's address.
        guest: the guest's IPv4 address.
        guest6: its IPv6 address.
        peer_mac: the address of who is at the other end.
        peer: likewise.
        peer6: likewise.
    """
    from scapy.layers.inet import ICMP, IP, TCP, UDP  # slow to load
    from scapy.layers.inet6 import (
        ICMPv6EchoRequest,
        IPv6,
        IPv6ExtHdrDestOpt,
        IPv6ExtHdrFragment,
        IPv6ExtHdrHopByHop,
        PadN,
    )
    from scapy.layers.l2 import ARP, GRE, Dot1Q, Ether
    from scapy.layers.sctp import SCTP
    from scapy.packet import Raw

    link, there, there6 = Ether(src=peer_mac, dst=mac), IP(src=peer, dst=guest), IPv6(src=peer6, dst=guest6)
    nested: Any = link
    for _ in range(8):
        nested = nested / IPv6(src=peer6, dst=guest6)
    packets = [
        Ether(src=peer_mac, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=peer_mac, psrc=peer, pdst=guest),
        *(link / there / ICMP() / Raw(bytes(size)) for size in (8, 200, 1000, 1472, 4000, 8000)),
        link / there6 / ICMPv6EchoRequest(data=bytes(100)),
        link / there / TCP(dport=80, flags="S"),
        link / there / TCP(dport=80, flags="A", seq=1000) / Raw(bytes(1400)),
        link / there6 / TCP(dport=80, flags="S"),
        link / there6 / TCP(dport=80, flags="A") / Raw(bytes(1400)),
        link / there / UDP(dport=9) / Raw(bytes(100)),
        link / there / UDP(dport=9) / Raw(bytes(8000)),
        link / there6 / UDP(dport=9) / Raw(bytes(1400)),
        link / there / SCTP(dport=9),
        link / Dot1Q(vlan=5) / there / ICMP(),
        link / Dot1Q(vlan=5) / Dot1Q(vlan=6) / there6 / UDP(dport=9),
        link / there / GRE() / there / TCP(dport=80),
        nested / TCP(dport=80) / Raw(bytes(600)),
        link / there6 / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(200))]) / TCP(dport=80) / Raw(bytes(600)),
        link / there6 / IPv6ExtHdrDestOpt() / UDP(dport=9) / Raw(bytes(300)),
        link / there6 / IPv6ExtHdrFragment(m=1) / UDP(dport=9) / Raw(bytes(304)),
        link / IP(src=peer, dst=guest, flags="MF") / UDP(dport=9) / Raw(bytes(800)),
        link / Raw(bytes(46)),
    ]
    return [bytes(packet) for packet in packets]
