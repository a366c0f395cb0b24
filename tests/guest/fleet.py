"""The fleet: three guests, of one, two and four CPUs, at one server with ten NICs.

====== ===== ========= ========================================================================================
guest  CPUs  interface wire
====== ===== ========= ========================================================================================
single 1     eth0      back to back with eth1
single 1     eth1      (in the namespace "peer")
single 1     eth2      a capture is replayed, and one is written, once the guest has sent a frame
double 2     eth0      back to back with eth0 of the guest of four CPUs
double 2     eth1      the switch
double 2     eth2      a stream socket, to which a test may connect
quad   4     eth0      back to back with eth0 of the guest of two CPUs
quad   4     eth1      the switch
quad   4     eth2      the switch (in the namespace "third")
quad   4     eth3      an AF_PACKET socket on one end of a veth pair in a network namespace of the host's (root only)
====== ===== ========= ========================================================================================

The switch has an uplink, a tap in that namespace of the host's, if the tests run as root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import quiet_log
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from nicmodel.vm import link
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.layout import Nic
from nicmodel.vm.server import NicServer

QUEUES = 16


@dataclass(frozen=True)
class Station:
    """A NIC of the fleet: its number at the server, its guest and where it is there, its address."""

    number: int
    guest: str
    interface: str
    address: str
    namespace: str = ""

    @property
    def mac(self) -> str:
        return f"02:00:00:00:01:{self.number:02x}"

    @property
    def inside(self) -> str:
        """Put before a command that has to run where the interface is."""
        return f"ip netns exec {self.namespace} " if self.namespace else ""


SINGLE0 = Station(0, "single", "eth0", "10.11.0.1")
SINGLE1 = Station(1, "single", "eth1", "10.11.0.2", "peer")
REPLAY = Station(2, "single", "eth2", "10.15.0.1")
DOUBLE = Station(3, "double", "eth0", "10.12.0.1")
SWITCH_A = Station(4, "double", "eth1", "10.13.0.1")
QUAD = Station(5, "quad", "eth0", "10.12.0.2")
SWITCH_B = Station(6, "quad", "eth1", "10.13.0.2")
SWITCH_C = Station(7, "quad", "eth2", "10.13.0.3", "third")
VETH = Station(8, "quad", "eth3", "10.14.0.1")
STALLED = Station(9, "double", "eth2", "10.16.0.1")
STATIONS = (SINGLE0, SINGLE1, REPLAY, DOUBLE, SWITCH_A, QUAD, SWITCH_B, SWITCH_C, VETH, STALLED)
CPUS = {"single": 1, "double": 2, "quad": 4}

#: Addresses of the host's: at the uplink of the switch, and at the far end of the veth pair.
UPLINK_HOST, VETH_HOST = "10.13.0.4", "10.14.0.2"
MTU = 8896


@dataclass(frozen=True)
class Replayed:
    """The capture that `REPLAY` gets: datagrams to `port`, whole, in two fragments, damaged, and to another station."""

    port: int = 7000
    whole: int = 500
    fragmented: int = 20
    damaged: int = 30
    strays: int = 10

    @property
    def frames(self) -> list[bytes]:
        """The frames, kind after kind."""
        ours = Ether(src="02:00:00:00:02:01", dst=REPLAY.mac)
        packet = IP(src="10.15.0.2", dst=REPLAY.address)
        kinds = [[bytes(ours / packet / UDP(dport=self.port) / bytes(size)) for size in range(self.whole)]]
        for number in range(self.fragmented):
            packet.id = number
            parts = fragment(packet / UDP(dport=self.port) / bytes(2000), 1400)
            kinds.append([bytes(ours / part) for part in parts])
        packet.id = 0
        kinds.append([bytes(ours / packet / UDP(dport=self.port, chksum=0xBAD) / b"damaged")] * self.damaged)
        kinds.append([bytes(Ether(dst="02:00:00:00:02:02") / packet / UDP(dport=self.port))] * self.strays)
        return [frame for kind in kinds for frame in kind]


REPLAYED = Replayed()


class Fleet:
    """The fleet, running.

    Args:
        stack: ends it.

    Attributes:
        guests: by name.
        written: what the guest has sent from `REPLAY`.
        stream: the socket where the wire of `STALLED` listens.
        has_host: whether there is a namespace of the host's at the other end of `VETH` and of the switch's uplink.
    """

    def __init__(self, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nicmodel-fleet-")))
        self.has_host = os.geteuid() == 0 and shutil.which("ip") is not None
        self.namespace = f"nicmodel-fleet-{os.getpid()}"
        prefix: tuple[str, ...] = ()
        switch, packet = "switch", "none"
        if self.has_host:
            subprocess.run(["ip", "netns", "add", self.namespace], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", self.namespace], check=True)
            prefix = ("ip", "netns", "exec", self.namespace)
            self.on_host("sysctl -q net.ipv6.conf.default.disable_ipv6=1")
            self.on_host(f"ip link add veth0 mtu {MTU} type veth peer name veth1 mtu {MTU}")
            self.on_host(f"ip link set veth0 up; ip addr add {VETH_HOST}/24 dev veth1; ip link set veth1 up")
            switch, packet = "switch:uplink=tap:tap0", "packet:veth0"
        wrpcap(str(folder / "replayed.pcap"), [Ether(frame) for frame in REPLAYED.frames])
        self.written = folder / "written.pcap"
        pcap = f"pcap:{folder / 'replayed.pcap'},write={self.written},pace=2000,after=1"
        wires = ["link", "link", pcap, "link", switch, "link"]
        self.stream = folder / "wire.sock"
        wires += ["switch", "switch", packet, f"stream:listen={self.stream}"]
        arguments = [word for wire in wires for word in ("--wire", wire)]
        arguments += [word for station in STATIONS for word in ("--mac", station.mac)]
        arguments += ["--queues", str(QUEUES)]
        self.server = stack.enter_context(NicServer(arguments, sockets=len(STATIONS), prefix=prefix))
        if self.has_host:
            self.on_host(f"ip addr add {UPLINK_HOST}/24 dev tap0; ip link set tap0 mtu {MTU} up")

        self.guests: dict[str, Guest] = {}
        for name, vcpus in CPUS.items():
            nics = [Nic(self.server.sockets[station.number]) for station in STATIONS if station.guest == name]
            self.guests[name] = stack.enter_context(Guest(GuestConfig(nics=nics, vcpus=vcpus)))
        for station in STATIONS:
            self._set_up(station)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Fleet]:
        """The fleet, taken down afterwards."""
        with ExitStack() as stack:
            yield cls(stack)

    def _set_up(self, station: Station) -> None:
        """Address a NIC and bring it up, except for `REPLAY`, whose first frame starts the replay."""
        guest, interface = self.guests[station.guest], station.interface
        # Only what a test sends is on the wires: nothing of IPv6's own.
        guest.run(f"sysctl -q net.ipv6.conf.all.disable_ipv6=1; test -e /sys/class/net/{interface}")
        if station.namespace:
            guest.run(f"ip netns add {station.namespace}; ip link set {interface} netns {station.namespace}")
            guest.run(f"{station.inside}sysctl -q net.ipv6.conf.all.disable_ipv6=1")
        guest.run(f"{station.inside}ip addr add {station.address}/24 dev {interface}")
        if station is not REPLAY:
            self.run(station, f"ip link set {interface} up")
            if station is not STALLED:  # which nobody is connected to yet
                self.await_carrier(station)

    def run(self, station: Station, command: str, **options: Any) -> str:
        """Run a shell command where a NIC is; what it prints."""
        guest = self.guests[station.guest]
        words = ["ip", "netns", "exec", station.namespace, "sh", "-c", command] if station.namespace else command
        return guest.run(words, **options).stdout

    def await_carrier(self, station: Station) -> None:
        self.run(station, f"until {link.is_up(station.interface)}; do sleep 0.05; done")

    def on_host(self, command: str) -> str:
        """Run a shell command in the host's namespace at the far end; what it prints."""
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace, "sh", "-ec", command], check=True, text=True, capture_output=True
        ).stdout

    def report(self, station: Station) -> dict[str, Any]:
        """State and counters of a NIC now."""
        return self.server.report()[station.number]

    @contextmanager
    def quiet_logs(self) -> Iterator[None]:
        """No guest's kernel may have anything to complain about meanwhile."""
        with ExitStack() as stack:
            for guest in self.guests.values():
                stack.enter_context(quiet_log(guest))
            yield
