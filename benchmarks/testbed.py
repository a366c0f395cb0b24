"""What benchmarks with guests share: a network namespace of their own, a guest with several NICs on taps, CPU time.

The benchmark runs inside the namespace as a whole, so that taps, addresses and whatever else it makes there are gone
with it, however it ends. That needs no privileges but those of a user namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import click

from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.host import program
from nicmodel.vm.image import USERLAND, build_image
from nicmodel.vm.kernel import DEFAULT_KERNEL, DebianKernel
from nicmodel.vm.layout import Nic
from nicmodel.vm.packages import Packages, obtain
from nicmodel.vm.qemu import acceleration, find_qemu
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import build_guest_tools

IPERF = Packages("iperf3", ("iperf3",), suite="trixie")
#: Debian's larger flavour: the cloud's has neither e1000e nor igb.
LARGE_KERNEL = DebianKernel("amd64", "trixie-backports", "linux-image-amd64")

OURS, IDPF = "nicmodel", "idpf"
#: Our own, by the kinds of NICs that they are.
KINDS = {OURS: "gvnic", IDPF: "idpf"}
#: QEMU's devices by the names that people know them by.
PEERS = {"virtio-net": "virtio-net-pci", "vmxnet3": "vmxnet3", "e1000e": "e1000e", "igb": "igb"}

#: The largest that all of them take: gVNIC's.
LARGEST_MTU = 8896
#: Ports of the guest's `iperf3` and of `tcp_peer`, from this one on.
IPERF_PORT, PEER_PORT = 5201, 5300
#: One memory for all guests: the device's need of it does not depend on it.
MEMORY = "2G"

_INSIDE = "NICMODEL_BENCHMARK_NAMESPACE"


def kernel_for(devices: Collection[str]) -> DebianKernel:
    """One kernel that has drivers for all these devices."""
    return LARGE_KERNEL if {"e1000e", "igb"} & set(devices) else DEFAULT_KERNEL


def enter_namespace(devices: Collection[str] = ()) -> None:
    """Start this program again in a network namespace of its own, unless it is there already.

    All that is downloaded or built for guests with these devices is had before: in there is no network.
    """
    if os.environ.get(_INSIDE):
        subprocess.run([program("ip"), "link", "set", "lo", "up"], check=True)
        # Nothing but what is measured is to be on the wires.
        for which in ("all", "default"):
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
        return
    try:
        acceleration(find_qemu(), build_image(kernel_for(devices).find()))
        obtain(IPERF)
        build_guest_tools()
    except VmError as error:
        raise click.ClickException(str(error)) from None
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = [program("unshare"), *user, "--net", "--", sys.executable, *sys.orig_argv[1:]]
    os.execvpe(command[0], command, os.environ | {_INSIDE: "1"})


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its threads so far, s."""
    # The clock that clock_getcpuclockid(3) names: Linux, include/linux/posix-timers_types.h, CPUCLOCK_SCHED.
    return time.clock_gettime(~pid << 3 | 2)


@dataclass(frozen=True)
class Port:
    """A NIC of the guest's and the tap it is on."""

    number: int
    device: str

    @property
    def mac(self) -> str:
        """The NIC's address."""
        return f"02:00:00:00:00:{self.number + 1:02x}"

    @property
    def tap(self) -> str:
        """The interface at the host's end."""
        return f"tap{self.number}"

    @property
    def address(self) -> str:
        """The guest's."""
        return f"10.9.{self.number}.1"

    @property
    def host(self) -> str:
        """The host's."""
        return f"10.9.{self.number}.2"

    def options(self) -> list[str]:
        """Those of ``nicmodel serve``, for a device of ours."""
        return ["--device", KINDS[self.device], "--wire", f"tap:{self.tap}", "--mac", self.mac]

    def arguments(self) -> list[str]:
        """QEMU's, for a device of its own."""
        return [
            "-netdev", f"tap,id=net{self.number},ifname={self.tap},script=no,downscript=no",
            "-device", f"{PEERS[self.device]},netdev=net{self.number},mac={self.mac},romfile=",
        ]  # fmt: skip


class Testbed:
    """A guest with NICs of ours and others of QEMU's, each on a tap; use it as a context manager.

    Args:
        devices: names: keys of `KINDS`, at least one, and of `PEERS`.
        options: for ``nicmodel serve``, besides kind, wire and MAC address.
        vcpus: of the guest.

    Attributes:
        ports: by device.
        guest: the guest.
        server: the server of our NICs.
    """

    __test__ = False  # the name is no invitation to pytest

    guest: Guest
    server: NicServer

    def __init__(self, devices: Sequence[str] = (OURS,), *, options: Sequence[str] = (), vcpus: int = 2) -> None:
        self.ports = {device: Port(number, device) for number, device in enumerate(devices)}
        self._options = options
        self._vcpus = vcpus
        self._interfaces: dict[str, str] = {}
        self._mtu = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            ours = [port for port in self.ports.values() if port.device in KINDS]
            words = [word for port in ours for word in port.options()]
            self.server = stack.enter_context(NicServer([*words, *self._options], sockets=len(ours)))
            others = [word for port in self.ports.values() if port not in ours for word in port.arguments()]
            config = GuestConfig(
                nics=[Nic(socket) for socket in self.server.sockets],
                vcpus=self._vcpus,
                memory=MEMORY,
                kernel=kernel_for(self.ports),
                arguments=others,
            )
            self.guest = stack.enter_context(Guest(config))
            self._interfaces = interfaces(self.guest)
            self.guest.run("sysctl -q net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
            for port in self.ports.values():
                self.guest.run(f"ip addr add {port.address}/24 dev {self.interface(port)}")
                self.guest.run(f"ip link set {self.interface(port)} up")
                host(program("ip"), "addr", "add", f"{port.host}/24", "dev", port.tap)
                host(program("ip"), "link", "set", port.tap, "up")
            self.set_mtu(1500)
            install_tcp_peer(self.guest)
            self.guest.start(f"iperf3 -s -p {IPERF_PORT}")
            wait_for_listener(self.guest, IPERF_PORT)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def interface(self, port: Port) -> str:
        """The NIC's name in the guest."""
        return self._interfaces[port.mac]

    def set_mtu(self, mtu: int) -> None:
        """Set the MTU of all NICs, at both ends."""
        if mtu == self._mtu:
            return
        self._mtu = mtu
        for port in self.ports.values():
            self.guest.run(f"ip link set {self.interface(port)} mtu {mtu}")
            host(program("ip"), "link", "set", port.tap, "mtu", str(mtu))
        for port in self.ports.values():
            self.await_path(port)

    def await_path(self, port: Port) -> None:
        """Wait until the two ends reach each other; drivers restart their queues at many an occasion."""
        self.guest.run(f"until ping -q -c 1 -W 1 {port.host} >/dev/null; do :; done", timeout=60)

    @contextlib.contextmanager
    def without_aggregation(self, port: Port) -> Iterator[None]:
        """Frames of the MTU's size only, in both directions: each end's kernel segments before it hands them over."""
        ethtool = obtain(USERLAND).command("usr/sbin/ethtool")

        def switch(state: str) -> None:
            # What a device does not take has never been on, and cannot be switched on again.
            for feature in ("tso", "gso"):
                subprocess.run([*ethtool, "-K", port.tap, feature, state], capture_output=True)
            self.guest.run(f"ethtool -K {self.interface(port)} tso {state} gso {state}", check=False)
            self.await_path(port)

        switch("off")
        if "tcp-segmentation-offload: off" not in host(*ethtool, "-k", port.tap):
            raise click.ClickException(f"segmentation by {port.tap} cannot be switched off")
        try:
            yield
        finally:
            switch("on")

    def iperf(
        self, port: Port, seconds: float, *, guest_sends: bool, streams: int = 1, datagrams: bool = False
    ) -> float:
        """Gbit/s of TCP that arrive, or thousands of datagrams of 64 bytes a second."""
        wait_for_listener(self.guest, IPERF_PORT)  # which iperf3 does anew for each run
        words = ["-c", port.address, "-p", str(IPERF_PORT), "-t", str(seconds), "-P", str(streams), "-J"]
        if guest_sends:
            words.append("-R")
        if datagrams:
            words += ["-u", "-b", "0", "-l", "64"]
        command = obtain(IPERF).command("usr/bin/iperf3", *words)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 + seconds)
        said: dict[str, Any] = json.loads(done.stdout or "{}")
        if done.returncode or "error" in said:
            raise click.ClickException(f"iperf3 over {port.device}: {said.get('error') or done.stderr}")
        received = said["end"]["sum_received"]
        if datagrams:
            return float((received["packets"] - received["lost_packets"]) / received["seconds"] / 1e3)
        return float(received["bits_per_second"] / 1e9)


def interfaces(guest: Guest) -> dict[str, str]:
    """Names of the guest's interfaces by MAC address."""
    listed: list[dict[str, Any]] = json.loads(guest.run("ip -j link").stdout)
    return {link["address"]: link["ifname"] for link in listed if "address" in link}


def host(*command: str) -> str:
    """Run a command in the benchmark's namespace; what it prints."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def install_tcp_peer(guest: Guest) -> None:
    """Put `guest/tcp_peer.c`, compiled, into the guest."""
    guest.put(tcp_peer(), "/usr/local/bin/tcp_peer")


def tcp_peer() -> Path:
    """The same program for the host: it is linked statically."""
    return build_guest_tools() / "tcp_peer"


def wait_for_listener(guest: Guest, port: int) -> None:
    """Wait until somebody in the guest listens at a TCP port."""
    guest.run(f"until ss -ltn | grep -q :{port}; do sleep 0.05; done", timeout=20)


def round_trip(guest: Guest, address: str, seconds: float, ask: Callable[..., str] = host) -> dict[str, float]:
    """TCP request and response, one byte each: rounds, median and 99th percentile in µs; the guest answers."""
    echo = guest.start(f"tcp_peer echo {PEER_PORT}")
    echo.expect("ready")
    answer: dict[str, float] = json.loads(ask(str(tcp_peer()), "ask", address, str(PEER_PORT), str(seconds)))
    echo.kill()
    echo.wait()
    return answer
