"""The bench: one guest with NICs of either kind, each on another wire.

- ``link0`` and ``link1`` are back to back; `link1` is in the guest's network namespace "peer".
- ``tap`` leads to a network namespace of the host's, whose stack answers (root only).
- ``user`` leads to the host's loopback through passt.
- ``idpf`` and ``far``, of another server, are back to back, too: an idpf, and a gVNIC in namespace "peer".
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from nicmodel.client.control import Control
from nicmodel.vm import link
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.layout import Nic
from nicmodel.vm.packages import Packages, obtain
from nicmodel.vm.passt import Passt
from nicmodel.vm.qemu import spawn
from nicmodel.vm.server import NicServer

#: Put before a command that is to run in the guest's namespace "peer".
IN_PEER = "ip netns exec peer "

IPERF = Packages("iperf3", ("iperf3",), suite="trixie")


def free_ports(count: int) -> list[int]:
    """TCP ports of the host that nobody listens at."""
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(server.getsockname()[1]) for server in servers]


#: The guest port of each host port that passt forwards is the same number.
DEVMEM_PORT, PLAIN_PORT, IPERF_PORT = free_ports(3)

#: Device memory of the guest: room for several udmabufs.
HBM = 192 << 20

#: Rules that stock drivers are known to break, by the kind of NIC; docs/found.md has what was seen of idpf's two and of
#: INT-004. REG-008: gve's worker that asks for the NIC's time (REPORT_NIC_TIMESTAMP, every 250 ms) may ring the admin
#: queue's doorbell when a reset has just taken the queue away: seen 30 ms after DRIVER_STATUS said so, on a busy host.
KNOWN_FAULTS = {"gvnic": ("INT-004", "REG-008"), "idpf": ("DBL-001", "DBL-003")}

#: What the kernel's log must never say.
TROUBLE = re.compile(
    r"AQ command failed|WARNING:|BUG:|Oops|Invalid RX buffer_id|RX buffer_id is not allocated|Invalid TX completion tag"
    r"|No pending data completion|einjection completion|Unexpected packet state"
    r"|Timeout on tx queue|Unrecoverable platform error|NETDEV WATCHDOG|Call Trace"
    r"|Reset failed|State not recoverable|hung task"
)


@dataclass(frozen=True)
class Port:
    """A NIC of the bench.

    Attributes:
        number: of the NIC at its server.
        interface: its name in the guest.
        address, address6: its own; empty if it has none.
        peer, peer6: of what is at its far end.
        device: its kind, as `nicmodel serve --device` has it.
        server: number of its server.
        inside: put before a command that has to run where the interface is.
    """

    number: int
    interface: str
    address: str
    peer: str
    address6: str = ""
    peer6: str = ""
    device: str = "gvnic"
    server: int = 0
    inside: str = ""

    @property
    def name(self) -> str:
        """As its server calls it."""
        return f"nic{self.number}"

    @property
    def mac(self) -> str:
        return f"02:00:00:00:{self.server:02x}:{self.number + 1:02x}"


LINK0 = Port(0, "eth0", "10.1.0.1", "10.1.0.2", "fd00:1::1", "fd00:1::2")
LINK1 = Port(1, "eth1", "10.1.0.2", "10.1.0.1", "fd00:1::2", "fd00:1::1", inside=IN_PEER)
TAP = Port(2, "eth2", "10.2.0.1", "10.2.0.2", "fd00:2::1", "fd00:2::2")
USER = Port(3, "eth3", "10.0.2.15", "10.0.2.2")
IDPF = Port(0, "idpf0", "10.3.0.1", "10.3.0.2", "fd00:3::1", "fd00:3::2", device="idpf", server=1)
FAR = Port(1, "far0", "10.3.0.2", "10.3.0.1", "fd00:3::2", "fd00:3::1", server=1, inside=IN_PEER)
PORTS = (LINK0, LINK1, TAP, USER, IDPF, FAR)


@dataclass(frozen=True)
class Cable:
    """Two NICs back to back: one to be tested, and one in namespace "peer"."""

    here: Port
    there: Port

    @property
    def device(self) -> str:
        """The kind of the NIC that is tested."""
        return self.here.device


CABLES = {cable.device: cable for cable in (Cable(LINK0, LINK1), Cable(IDPF, FAR))}

#: Has a test run for each kind of NIC, as its `cable`, and that of what it uses.
on_each_device = pytest.mark.parametrize("cable", CABLES.values(), ids=CABLES)


@dataclass(frozen=True)
class Stock:
    """What differs between the stock drivers.

    Attributes:
        module: its name.
        set_up: what the device counts (`report["admin"]`) whenever the driver has set it up.
        notices: what the kernel's log says when the driver sees that the device wants to be reset.
    """

    module: str
    set_up: str
    notices: str


STOCK = {
    "gvnic": Stock("gve", "VERIFY_DRIVER_COMPATIBILITY PASSED", "Device requested reset"),
    "idpf": Stock("idpf", "CREATE_VPORT OK", "HW reset detected"),
}


def iperf3(*arguments: str) -> list[str]:
    """iperf3 on the host: Debian's, whatever the host has."""
    return obtain(IPERF).command("usr/bin/iperf3", *arguments)


class Lab:
    """The bench, running. `run` is a command in the guest."""

    def __init__(self, stack: ExitStack) -> None:
        self.has_tap = os.geteuid() == 0 and shutil.which("ip") is not None
        self.namespace = f"nicmodel-{os.getpid()}"
        wires = ["link", "link", "none", "none"]
        prefix: tuple[str, ...] = ()
        if self.has_tap:
            subprocess.run(["ip", "netns", "add", self.namespace], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", self.namespace], check=True)
            prefix = ("ip", "netns", "exec", self.namespace)
            wires[2] = "tap:tap0"
        ports = (DEVMEM_PORT, PLAIN_PORT, IPERF_PORT)
        self.passt = stack.enter_context(Passt({port: port for port in ports}, mtu=8896))
        wires[3] = f"stream:{self.passt.socket}"
        arguments = [word for wire in wires for word in ("--wire", wire)]
        arguments += [word for port in (LINK0, LINK1, TAP, USER) for word in ("--mac", port.mac)]
        self.server = stack.enter_context(NicServer(["-v", "--check", *arguments], sockets=4, prefix=prefix))
        arguments = [word for port in (IDPF, FAR) for word in ("--device", port.device, "--mac", port.mac)]
        self.servers = [
            self.server,
            stack.enter_context(NicServer(["-v", "--check", "--wire", "link", *arguments], sockets=2)),
        ]
        config = GuestConfig(
            nics=[nic for server in self.servers for nic in nics_of(server)],
            device_memory={"hbm": HBM},
        )
        self.guest = stack.enter_context(Guest(config))
        self.run = self.guest.run
        if self.has_tap:
            self.on_host(["ip", "addr", "add", f"{TAP.peer}/24", "dev", "tap0"])
            self.on_host(["ip", "addr", "add", f"{TAP.peer6}/64", "dev", "tap0", "nodad"])
            self.on_host(["ip", "link", "set", "tap0", "up", "mtu", "8896"])
            self.on_host(["ip", "link", "set", "lo", "up"])
        self.set_up()

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        """The bench, taken down afterwards."""
        with ExitStack() as stack:
            yield cls(stack)

    def set_up(self) -> None:
        """Drivers and addresses in the guest, as after each boot or module reload."""
        self.run("modprobe gve; ip link set lo up; ip netns add peer 2>/dev/null; ip -n peer link set lo up")
        self.run("for i in 0 1 2 3; do until [ -e /sys/class/net/eth$i ]; do sleep 0.1; done; done", timeout=120)
        self.run("ip link set eth1 netns peer")
        for port in (LINK0, LINK1, TAP, USER):
            give_addresses(self.guest, port)
        connect_idpf(self.guest)
        self.await_carrier()

    def await_carrier(self, *ports: Port) -> None:
        """Wait until the interfaces are up."""
        for port in ports or PORTS:
            await_carrier(self.guest, port)

    def in_peer(self, command: str, **options: Any) -> str:
        """Run a shell command in the guest's namespace "peer"; what it prints."""
        return self.run(["ip", "netns", "exec", "peer", "sh", "-c", command], **options).stdout

    def on_host(self, command: list[str]) -> str:
        """Run a command in the host's namespace at the far end of the tap; what it prints."""
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace, *command], check=True, text=True, capture_output=True
        ).stdout

    def report(self, port: Port) -> dict[str, Any]:
        """State and counters of a NIC now."""
        return self.servers[port.server].report()[port.number]

    def control(self, port: Port) -> Control:
        """Control of the server of a NIC, which calls it `port.name`."""
        return Control(self.servers[port.server].control)

    @contextmanager
    def quiet_log(self) -> Iterator[None]:
        """The kernel must have nothing to complain about meanwhile. If it has, the servers' state is printed."""
        try:
            with quiet_log(self.guest):
                yield
        except AssertionError:
            print(json.dumps([server.report() for server in self.servers]))
            raise

    @contextmanager
    def contract_kept(self) -> Iterator[None]:
        """The drivers must break no rule meanwhile (`nicmodel rules`), except for their known faults."""
        before = self._findings()
        yield
        after = self._findings()
        assert after == before, "a driver breaks the contract:\n" + "\n".join(after)

    def _findings(self) -> list[str]:
        """Of each server, which has NICs of one kind."""
        kinds = (LINK0.device, IDPF.device)
        return [server.findings(without=KNOWN_FAULTS[kind]) for server, kind in zip(self.servers, kinds, strict=True)]

    def split(self, port: Port, on: bool) -> None:
        """Switch header split.

        What ethtool shows is not asked first: the driver shows "on" for "automatic" too, which will not do for devmem.
        """
        self.run(f"{port.inside}ethtool -G {port.interface} tcp-data-split {'on' if on else 'off'}")
        self.await_carrier(port)

    def tcp_listen(self, port: int, command: str = "cat >/dev/null", where: str = "") -> Any:
        """Start a TCP server in the guest that pipes each connection into a command; returns when it listens."""
        process = self.guest.start(f"{where} socat -u -b 65536 TCP-LISTEN:{port},reuseaddr,fork SYSTEM:'{command}'")
        self.run(f"{where} sh -c 'until ss -ltn | grep -q :{port}; do sleep 0.05; done'", timeout=120)
        return process


@contextmanager
def quiet_log(guest: Guest) -> Iterator[None]:
    """The guest's kernel must have nothing to complain about meanwhile."""
    before = guest.dmesg()
    yield
    after = guest.dmesg()
    trouble = [line for line in after[len(before) :].splitlines() if TROUBLE.search(line)]
    context = [*after[: len(before)].splitlines()[-10:], "-- then --", *after[len(before) :].splitlines()[-50:]]
    assert not trouble, "\n".join(["the guest's kernel complains:", *trouble, "The log around it:", *context])


def ethtool(lab: Lab, port: Port, option: str, *arguments: str) -> str:
    """Run ethtool in the namespace of the interface; what it prints."""
    return lab.run(f"{port.inside}ethtool {option} {port.interface} {' '.join(arguments)}").stdout


def times_set_up(lab: Lab, port: Port) -> int:
    """How often the driver of a NIC has set it up: once when it bound, and once more after each reset."""
    return int(lab.report(port)["admin"][STOCK[port.device].set_up])


def active(lab: Lab, port: Port, way: str) -> list[int]:
    """Numbers of the queues that exist."""
    return [queue["queue"] for queue in lab.report(port)[f"{way}_queues"] if queue["active"]]


def with_memory_of(guest: Guest, device: str) -> str:
    """What to put before a command in the guest so that all its memory comes from a device's."""
    # set_mempolicy(2), system call 238, with MPOL_BIND; a program that is executed inherits it.
    program = (
        "import ctypes, os, sys\n"
        f"nodes = ctypes.c_ulong({1 << guest.device_memory[device].node})\n"
        "assert ctypes.CDLL(None).syscall(238, 2, ctypes.byref(nodes), 64) == 0\n"
        "os.execvp(sys.argv[1], sys.argv[1:])\n"
    )
    return shlex.join(["python3", "-c", program])


def ping(guest: Guest, address: str, *, count: int, size: int, interval: float = 0.01, options: str = "") -> None:
    """Send `count` echo requests of `size` bytes to an IPv4 `address`; each is answered, however late.

    ping gives up two round trips after its last request (iputils, ping(8) -W), which on a busy machine is less than a
    scheduler's pause: the kernel's own count of replies (RFC 2011, icmpInEchoReps) decides. An interface that has just
    been opened drops what is sent until the kernel's link watch has given it a queueing discipline, so a first reply is
    waited for.
    """

    def replies() -> int:
        names, values = guest.run("grep ^Icmp: /proc/net/snmp").stdout.splitlines()
        return int(dict(zip(names.split(), values.split(), strict=True))["InEchoReps"])

    guest.run(f"until ping -q -c 1 -W 1 {address} >/dev/null; do :; done", timeout=120)
    before = replies()
    said = guest.run(f"ping -q -c {count} -i {interval} -s {size} {options} {address}", timeout=120, check=False).stdout
    wait_until(lambda: replies() - before >= count, what=lambda: f"{replies() - before} of {count} replies:\n{said}")


@contextmanager
def echo_server(namespace: str, port: int, size: int) -> Iterator[Iterator[tuple[str, str]]]:
    """A TCP server in a namespace of the host's that sends `size` random bytes and receives what comes back.

    Yields:
        For each connection in turn, the digests of both.
    """
    program = str(Path(__file__).with_name("echo.py"))
    command = ["ip", "netns", "exec", namespace, sys.executable, program, str(port), str(size)]
    with spawn(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == "ready\n"
            yield ((sent, back) for sent, back in map(str.split, server.stdout))
        finally:
            server.kill()


def echo_back(guest: Guest, address: str, window: int = 4 << 20) -> None:
    """Connect to an `echo_server`, receive all, with a receive buffer of `window` bytes, and send it back."""
    guest.run(
        "set -e; printf 'cat > /tmp/echo; cat /tmp/echo' > /tmp/echo.sh;"
        f"socat -b 65536 -t 300 TCP:{address},rcvbuf={window} EXEC:'sh /tmp/echo.sh'; rm /tmp/echo /tmp/echo.sh",
        timeout=300,
    )


def connect_pair(guest: Guest) -> None:
    """Set up a guest with two NICs back to back: eth0, 10.1.0.1, and eth1 in namespace "peer", 10.1.0.2."""
    guest.run(
        f"""
        set -e
        ip netns add peer
        ip link set eth1 netns peer
        ip addr add {LINK0.address}/24 dev eth0
        ip -n peer addr add {LINK1.address}/24 dev eth1
        ip link set eth0 up
        ip -n peer link set eth1 up
        ping -q -c 1 -w 20 {LINK1.address}
        """,
        timeout=120,
    )


def frames_dropped(report: Mapping[str, Any]) -> dict[str, int]:
    """Drops by name of a NIC's report, without those that every network has: frames for other stations."""
    return {name: count for name, count in report["drops"].items() if name != "not_ours"}


def send_file(
    sender: Guest, address: str, size: int, *, receiver: Guest | None = None, here: str = "", there: str = IN_PEER
) -> None:
    """A file of random bytes over TCP arrives as it was.

    Args:
        sender: the guest that sends it.
        address: where to.
        size: bytes.
        receiver: the guest that receives it; the same if None.
        here: put before what has to run where the sender is.
        there: put before what has to run where the receiver is.
    """
    receiver = receiver or sender
    listen, connect = ("TCP6-LISTEN", f"TCP6:[{address}]") if ":" in address else ("TCP4-LISTEN", f"TCP4:{address}")
    # In large pieces: to an emulated CPU, switching processes is dear.
    sink = receiver.start(f"{there}sh -c 'socat -u -b 65536 {listen}:5400,reuseaddr - | sha256sum'")
    receiver.run(f"{there}sh -c 'until ss -ltn | grep -q :5400; do sleep 0.05; done'", timeout=120)
    sender.run(f"head -c {size} /dev/urandom > /tmp/file", timeout=120)
    sender.run(f"{here}socat -u -b 65536 FILE:/tmp/file {connect}:5400", timeout=120)
    sent = sender.run("sha256sum < /tmp/file; rm /tmp/file", timeout=120).stdout
    assert sink.wait(120).stdout == sent


def account(report: dict[str, Any]) -> dict[str, int]:
    """Frames that came to a NIC, both ways together, and where they are; "missing" is the difference."""
    wire = {name: count for name, count in report["wire"].items() if name != "name" and not name.startswith("uplink_")}
    moved = {name: wire.pop(name) for name in ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes")}
    places = {
        "sent": moved["tx_frames"],
        "delivered": report["delivered"],
        "held": sum(queue["held"] for queue in report["rx_queues"]),
        "dropped": sum(report["drops"].values()),
        # A switch has taken also what then goes nowhere.
        "lost by the wire": sum(count for name, count in wire.items() if name != "nowhere"),
    }
    came = moved["rx_frames"] + sum(queue["segments"] for queue in report["tx_queues"])
    return {"came": came, **places, "missing": came - sum(places.values())}


def nics_of(server: NicServer) -> list[Nic]:
    """All NICs of a server, for one guest."""
    return [Nic(path) for path in server.sockets]


def give_addresses(guest: Guest, port: Port) -> None:
    """Bring an interface up that has just been made."""
    guest.run(f"{port.inside}ip addr replace {port.address}/24 dev {port.interface}")
    add_address6(guest, port)
    guest.run(f"{port.inside}ip link set {port.interface} up")


def add_address6(guest: Guest, port: Port) -> None:
    """The kernel takes IPv6 addresses away when an interface goes down, and leaves those of IPv4."""
    if port.address6:
        guest.run(f"{port.inside}ip addr replace {port.address6}/64 dev {port.interface} nodad")


def await_carrier(guest: Guest, port: Port) -> None:
    """Wait until an interface is up, and its cable is in."""
    guest.run(f"{port.inside}sh -c 'until {link.is_up(port.interface)}; do sleep 0.05; done'", timeout=120)


def name_idpf(guest: Guest) -> None:
    """Give `IDPF` and `FAR` their names; `FAR` is the last of the guest's gVNICs."""
    guest.run(
        f"""
        modprobe -a gve idpf
        ip netns add peer 2>/dev/null
        ip -n peer link set lo up
        for nic in /sys/bus/pci/drivers/gve/0000*; do :; done
        until [ -e $nic/net/eth* ]; do sleep 0.1; done
        ip link set $(ls $nic/net) name {FAR.interface}
        ip link set {FAR.interface} netns peer
        until ls /sys/bus/pci/drivers/idpf/0000*/net; do sleep 0.1; done
        ip link set $(ls /sys/bus/pci/drivers/idpf/0000*/net) name {IDPF.interface}
        """,
        timeout=120,
    )


def connect_idpf(guest: Guest) -> None:
    """Give `IDPF` and `FAR` names and addresses, as after a boot, or gve's reload."""
    name_idpf(guest)
    give_addresses(guest, FAR)
    bring_idpf_up(guest)


def reload_idpf(guest: Guest) -> None:
    """Load the driver of `IDPF` again, when it was removed."""
    guest.run("modprobe idpf; until ls /sys/bus/pci/drivers/idpf/0000*/net; do sleep 0.1; done", timeout=120)
    guest.run(f"ip link set $(ls /sys/bus/pci/drivers/idpf/0000*/net) name {IDPF.interface}")
    bring_idpf_up(guest)


def bring_idpf_up(guest: Guest) -> None:
    """With the MTU of gVNICs; its driver begins with 1500."""
    guest.run(f"ip link set {IDPF.interface} mtu 8896")
    give_addresses(guest, IDPF)
    await_carrier(guest, IDPF)


def load_driver(guest: Guest) -> None:
    """That of both NICs of a pair, and connect them."""
    guest.run("modprobe gve; until [ -e /sys/class/net/eth1 ]; do sleep 0.05; done", timeout=120)
    connect_pair(guest)


def flood(guest: Guest, server: NicServer, size: int = 4000, peer: str = LINK0.peer) -> None:
    """Start echo requests without end from one NIC of a pair to the other, and see them arrive."""
    guest.start(f"exec ping -q -f -s {size} {peer}")
    before = frames_received(server)
    wait_until(lambda: frames_received(server) > before + 100)


def frames_received(server: NicServer) -> int:
    """By the driver of the first NIC."""
    return sum(int(queue["frames"]) for queue in server.report()[0]["rx_queues"])


@dataclass(frozen=True)
class Footprint:
    """What a process holds: descriptors, mappings, memory of its own (bytes), and mappings of guests' memory."""

    descriptors: int
    mappings: int
    anonymous: int
    guest_memory: int


def footprint(pid: int) -> Footprint:
    """Of a process now."""
    process = Path("/proc", str(pid))
    maps = (process / "maps").read_text().splitlines()
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Footprint(
        descriptors=len(list((process / "fd").iterdir())),
        mappings=len(maps),
        anonymous=int(status["RssAnon"].split()[0]) << 10,
        guest_memory=sum("/memfd:" in line for line in maps),
    )


def wait_until(condition: Any, timeout: float = 120, pause: float = 0.1, what: Callable[[], str] = str) -> None:
    """Poll until `condition()` is true; `what()` is said of it when it does not come true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain {what()}"
        time.sleep(pause)


def change_source(file: Path, old: str, new: str, after: str = "") -> None:
    """Replace a piece of a source, the first one after another piece."""
    text = file.read_text()
    place = text.find(old, text.find(after))
    assert after in text and place >= 0, f"{file.name} is not what it was when this was written"
    file.write_text(text[:place] + new + text[place + len(old) :])
