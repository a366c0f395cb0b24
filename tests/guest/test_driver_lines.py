"""What the stock gve does where other tests do not lead it: commands that are refused, settings that it refuses itself,
completions that cannot be, queues that are full, buffers that are held, a machine that sleeps.

One guest has pairs of NICs back to back, one pair for each queue format. docs/coverage.md tells which of the driver's
lines are reached by all tests together; many only by these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from lab import nics_of, wait_until

from nicmodel.client.control import Control
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import install_guest_tools

# Eight minutes, for lines that hardly ever run: `make lines` has them.
pytestmark = [pytest.mark.guest, pytest.mark.long]

#: Options of `nicmodel serve`, by the names of the pairs' interfaces without their number.
PROFILES = {
    "dqo": ("--profile", "default"),
    "qpl": ("--profile", "dqo-qpl"),
    "gqi": ("--profile", "legacy"),
    "rda": ("--profile", "gqi-rda"),
    "gce": ("--profile", "gce", "--queues", "8", "--default-queues", "4", "--revision", "1"),
    "xdp": ("--profile", "afxdp"),
}
DRIVER = "/sys/bus/pci/drivers/gve"

#: Statistics of an interface's queues by the netdev family of generic netlink (Linux,
#: Documentation/netlink/specs/netdev.yaml): prints, as JSON, the attributes of each answer, by their numbers. Of the
#: interface alone, or with "queue" of each.
QUEUE_STATISTICS = r"""
import json, socket, struct, sys

index, scope = int(sys.argv[1]), int(len(sys.argv) > 2)
NETLINK_GENERIC, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, FAMILY_ID, FAMILY_NAME = 16, 16, 3, 1, 2
REQUEST, DUMP, DONE, ERROR = 1, 0x300, 3, 2
QSTATS_GET, IFINDEX, SCOPE = 12, 1, 4


def attribute(kind, content):
    return struct.pack("HH", 4 + len(content), kind) + content + bytes(-len(content) % 4)


def attributes(content):
    found = {}
    while content:
        length, kind = struct.unpack_from("HH", content)
        found[kind & 0x3FFF] = content[4:length]
        content = content[(length + 3) & ~3 :]
    return found


def ask(family, command, flags, *words):
    content = struct.pack("BBH", command, 1, 0) + b"".join(words)
    netlink.send(struct.pack("IHHII", 16 + len(content), family, flags, 1, 0) + content)
    while True:
        answer = netlink.recv(1 << 16)
        while answer:
            length, kind = struct.unpack_from("IH", answer)
            if kind == ERROR and struct.unpack_from("i", answer, 16)[0]:
                sys.exit(f"error {struct.unpack_from('i', answer, 16)[0]}")
            if kind in (DONE, ERROR):
                return
            yield attributes(answer[20:length])
            if not flags & DUMP:
                return
            answer = answer[(length + 3) & ~3 :]


netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
[about] = ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, REQUEST, attribute(FAMILY_NAME, b"netdev\0"))
[family] = struct.unpack("H", about[FAMILY_ID])
words = [attribute(IFINDEX, struct.pack("I", index))]
words += [attribute(SCOPE, struct.pack("Q", 1))] * scope
answers = list(ask(family, QSTATS_GET, REQUEST | DUMP, *words))
print(json.dumps([{kind: int.from_bytes(value, "little") for kind, value in one.items()} for one in answers]))
"""

#: All that can be asked of a PTP clock, and the errors that come of it, as JSON: its time, plainly and with that of the
#: system around it, a new time, another frequency.
ASK_CLOCK = r"""
import ctypes, fcntl, json, os, sys, time

file = os.open(sys.argv[1], os.O_RDWR)
clock = ~file << 3 | 3
libc = ctypes.CDLL(None, use_errno=True)
PTP_SYS_OFFSET_EXTENDED, ADJ_FREQUENCY = 0xC4C03D09, 2


def extended():
    samples = bytearray(0x4C0)
    samples[0] = 1
    fcntl.ioctl(file, PTP_SYS_OFFSET_EXTENDED, samples)


def adjust():
    words = (ctypes.c_long * 64)(ADJ_FREQUENCY)  # by nothing: the most that it says it can
    if libc.clock_adjtime(clock, words) < 0:
        raise OSError(ctypes.get_errno(), "")


said = {}
for name, act in {
    "gettime": lambda: time.clock_gettime_ns(clock),
    "extended": extended,
    "settime": lambda: time.clock_settime_ns(clock, 1),
    "adjtime": adjust,
}.items():
    try:
        act()
        said[name] = 0
    except OSError as error:
        said[name] = error.errno
print(json.dumps(said))
"""

#: A TCP sender and a receiver who holds all of it in the socket for a while: (peer) ADDRESS PORT BYTES. Both in one
#: program, the sender in namespace "peer". Prints whether all came as it was.
HOLD = r"""
import os, socket, sys, threading, time

address, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, 33, 2 * size)  # SO_RCVBUFFORCE
listener.bind((address, port))
listener.listen()
os.setns(os.open("/run/netns/peer", os.O_RDONLY), os.CLONE_NEWNET)
sender = socket.socket()
sender.connect((address, port))
receiver, _ = listener.accept()
content = os.urandom(size)
thread = threading.Thread(target=lambda: (sender.sendall(content), sender.shutdown(socket.SHUT_WR)))
thread.start()
thread.join(20)
time.sleep(0.5)
came = bytearray()
while piece := receiver.recv(1 << 20):
    came += piece
print(came == content)
"""


#: Datagrams to ADDRESS without end, of a sender whom no buffer of its socket holds up.
FLOOD = r"""
import socket, sys

sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.SOL_SOCKET, 32, 64 << 20)  # SO_SNDBUFFORCE
while True:
    try:
        sender.sendto(bytes(1400), (sys.argv[1], 9))
    except OSError:  # the queueing discipline has no room
        pass
"""


@dataclass(frozen=True)
class Side:
    """A pair of NICs of one profile: the first, which is tested, and its peer, which is in namespace "peer".

    Attributes:
        name: of the pair.
        number: of the pair, which its addresses have.
        control: of the server.
        place: of the first NIC on the guest's PCI bus.
    """

    name: str
    number: int
    control: Control
    place: str

    @property
    def interface(self) -> str:
        return f"{self.name}0"

    @property
    def address(self) -> str:
        return f"10.{self.number}.0.1"

    @property
    def peer(self) -> str:
        return f"10.{self.number}.0.2"


class Bench:
    """The guest and its pairs."""

    def __init__(self, stack: ExitStack, *names: str) -> None:
        servers = {
            name: stack.enter_context(NicServer(["--wire", "link", *PROFILES[name]], sockets=2)) for name in names
        }
        nics = [nic for server in servers.values() for nic in nics_of(server)]
        self.guest = stack.enter_context(Guest(GuestConfig(nics=nics, memory="2G")))
        install_guest_tools(self.guest)
        last = f"/sys/class/net/eth{2 * len(servers) - 1}"
        self.run(f"modprobe gve; ip netns add peer; until [ -e {last} ]; do sleep 0.1; done")
        self.run("sysctl -w net.core.message_cost=0")  # no message is left out for there being many
        self.sides = {}
        for number, (name, server) in enumerate(servers.items()):
            first, second = f"eth{2 * number}", f"eth{2 * number + 1}"
            place = self.run(f"basename $(readlink /sys/class/net/{first}/device)").strip()
            side = Side(name, number, stack.enter_context(Control(server.control)), place)
            self.sides[name] = side
            self.run(
                f"""
                set -e
                ip link set {first} name {side.interface}
                ip link set {second} netns peer name {name}1
                ip -n peer addr add {side.peer}/24 dev {name}1
                ip -n peer link set {name}1 up
                """
            )
            self.up(side)

    def run(self, command: str, timeout: float = 120) -> str:
        """Run a shell command in the guest; what it prints, errors too."""
        return self.guest.run(f"( {command} ) 2>&1", timeout=timeout, check=False).stdout

    def log(self) -> str:
        """The kernel's log since it was last cleared."""
        return self.run("dmesg")

    def clear_log(self) -> None:
        """Begin it anew: it is a ring, from which the oldest lines vanish."""
        self.run("dmesg --clear")

    def up(self, side: Side) -> None:
        """Bring the tested interface up, whatever it was before."""
        interface = side.interface
        self.run(
            f"ip link set {interface} down; ip addr replace {side.address}/24 dev {interface}; "
            f"ip link set {interface} up"
        )

    def ping(self, side: Side) -> None:
        """An echo is answered, however late."""
        said = self.run(f"for i in $(seq 60); do ping -q -c 1 -W 1 {side.peer} >/dev/null && echo yes && break; done")
        assert said == "yes\n", self.log()[-3000:]

    def unbind(self, side: Side) -> None:
        """Take the driver away from the tested NIC."""
        self.run(f"echo {side.place} >{DRIVER}/unbind")

    def bind(self, side: Side) -> bool:
        """Give the tested NIC to the driver; whether it took it."""
        self.run(f"echo {side.place} >{DRIVER}/bind")
        found = self.run(f"ls /sys/bus/pci/devices/{side.place}/net").split()
        if found and "cannot" not in found:
            self.run(f"ip link set {found[0]} name {side.interface}")
            return True
        return False

    def revive(self, side: Side) -> None:
        """The driver bound anew, the interface up; traffic flows."""
        self.unbind(side)
        assert self.bind(side), self.log()[-3000:]
        self.up(side)
        self.ping(side)

    def statistics(self, side: Side) -> dict[str, int]:
        """`ethtool -S` of the tested interface."""
        said = self.run(f"ethtool -S {side.interface}")
        return {name: int(value) for name, value in re.findall(r"^ +(\S+): (\d+)$", said, re.MULTILINE)}


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, *PROFILES)


@pytest.fixture
def side(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Side]:
    """The pair that a test names; afterwards no fault is left, and traffic flows. The log is that of the test."""
    side = bench.sides[request.param]
    bench.clear_log()
    yield side
    side.control.end_fault(nic="nic0")
    if "yes" not in bench.run(f"ping -q -c 1 -W 2 {side.peer} >/dev/null && echo yes"):
        bench.revive(side)


def of(*names: str) -> pytest.MarkDecorator:
    """Have a test run for these pairs."""
    return pytest.mark.parametrize("side", names, indirect=True)


@contextmanager
def fault(side: Side, name: str, **parameters: Any) -> Iterator[None]:
    """A fault of the tested NIC while the block lasts; it must have struck."""
    with faults(side, (name, parameters)):
        yield


@contextmanager
def faults(side: Side, *several: tuple[str, dict[str, Any]]) -> Iterator[None]:
    """Faults of the tested NIC while the block lasts; each must have struck."""

    def hits() -> dict[str, int]:
        events: dict[str, int] = side.control.stat()[0]["events"]
        return {name: events.get(f"fault {name}", 0) for name, _ in several}

    before = hits()
    for name, parameters in several:
        side.control.add_fault(name, nic="nic0", seed=1, **parameters)
    try:
        yield
    finally:
        side.control.end_fault(nic="nic0")
    assert all(hits()[name] > before[name] for name in before), (several, before, hits())


def refused(
    *opcodes: str, status: str = "INTERNAL_ERROR", count: int | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Faults by which commands are refused."""
    return [("admin-status", {"opcode": opcode, "status": status, "count": count}) for opcode in opcodes]


# Commands that are refused.

DOWN_AND_UP = "ip link set {0} down; ip link set {0} up"
#: A command, what has the driver send it, and what the log says then.
REFUSED: dict[str, list[tuple[Sequence[str], str, str]]] = {
    "all": [
        (["CREATE_TX_QUEUE"], DOWN_AND_UP, "failed to create 4 tx queues"),
        (["CREATE_RX_QUEUE"], DOWN_AND_UP, "failed to create 4 rx queues"),
        (["DESTROY_TX_QUEUE"], DOWN_AND_UP, "failed to destroy tx queues"),
        (["DESTROY_RX_QUEUE"], DOWN_AND_UP, "failed to destroy rx queues"),
        (["CREATE_RX_QUEUE"], "ethtool -L {0} rx 2 tx 2", "Adjust config failed to start new queues"),
        (["DESTROY_TX_QUEUE", "CONFIGURE_DEVICE_RESOURCES"], "ethtool -L {0} rx 3 tx 3",
         "Adjust config failed to close old queues"),
        (["DESTROY_TX_QUEUE"], "ethtool --reset {0} all", "failed to destroy tx queues"),
        (["CREATE_RX_QUEUE"], "ethtool --reset {0} all", "Reset failed"),
        (["VERIFY_DRIVER_COMPATIBILITY"], "ethtool --reset {0} all", "Could not verify driver compatibility"),
        (["CONFIGURE_DEVICE_RESOURCES"], "ethtool --reset {0} all", "could not setup device_resources"),
        (["REPORT_STATS"], "ethtool --reset {0} all", "Failed to detach stats report"),
        (["DECONFIGURE_DEVICE_RESOURCES"], "ethtool --reset {0} all", "Could not deconfigure device resources"),
    ],
    "qpl": [
        (["REGISTER_PAGE_LIST"], DOWN_AND_UP, "failed to register queue page list"),
        (["UNREGISTER_PAGE_LIST"], DOWN_AND_UP, "Failed to unregister queue page list"),
    ],
    "dqo": [
        (["CONFIGURE_RSS"], "ethtool -X {0} equal 2", "AQ command failed"),
        (["CONFIGURE_RSS"], "ethtool -L {0} rx 3 tx 3", "AQ command failed"),
        (["CONFIGURE_RSS"], "ip link set {0} down; ethtool -L {0} rx 2 tx 2; ip link set {0} up", "AQ command failed"),
        (["GET_PTYPE_MAP"], "ethtool --reset {0} all", "Failed to get ptype map"),
        (["QUERY_FLOW_RULES"], "ethtool -n {0}", "AQ command failed"),
        (["EXTENDED_COMMAND"], "ethtool --reset {0} all", "Failed to reset flow rules"),
        (["EXTENDED_COMMAND"], "ethtool -K {0} ntuple on; ethtool -K {0} ntuple off", "AQ command failed"),
    ],
}  # fmt: skip
PAGE_LISTS = ("qpl", "gqi")


@of("dqo", "qpl", "gqi", "rda")
def test_commands_that_are_refused(bench: Bench, side: Side) -> None:
    """*Verify*: the driver says so; once they are not refused any more, it comes up again."""
    cases = REFUSED["all"] + REFUSED["qpl"] * (side.name in PAGE_LISTS) + REFUSED["dqo"] * (side.name == "dqo")
    for opcodes, command, said in cases:
        bench.clear_log()
        with faults(side, *refused(*opcodes)):
            bench.run(command.format(side.interface))
        after = bench.log()
        assert said in after, (opcodes, command, after)
        bench.revive(side)


#: Commands that a driver sends while it binds, what the log says when they are refused, and whether it binds all the
#: same.
AT_BIND = [
    ("VERIFY_DRIVER_COMPATIBILITY", "Could not verify driver compatibility", False),
    ("DESCRIBE_DEVICE", "Could not get device information", False),
    ("CONFIGURE_DEVICE_RESOURCES", "could not setup device_resources", False),
    ("GET_PTYPE_MAP", "Failed to get ptype map", False),
    ("REPORT_NIC_TIMESTAMP", "failed to read NIC clock", True),
    ("CONFIGURE_RSS", "Failed to init RSS config", False),
    ("REPORT_STATS", "Failed to report stats", True),
]
ONLY_DQO = ("GET_PTYPE_MAP", "REPORT_NIC_TIMESTAMP", "CONFIGURE_RSS")


@of("dqo", "gqi")
def test_commands_that_are_refused_while_it_binds(bench: Bench, side: Side) -> None:
    for opcode, said, binds in AT_BIND:
        if side.name == "gqi" and opcode in ONLY_DQO:
            continue
        bench.unbind(side)
        bench.clear_log()
        with faults(side, *refused(opcode)):
            assert bench.bind(side) is binds, bench.log()
        assert said in bench.log()
        if opcode == "REPORT_NIC_TIMESTAMP":
            answer = bench.run(f"hwstamp_ctl -i {side.interface} -r 1 || ethtool -T {side.interface}")
            assert "hardware-receive" not in answer
        bench.revive(side)
    with fault(side, "admin-status", status="UNIMPLEMENTED", opcode="VERIFY_DRIVER_COMPATIBILITY"):
        bench.unbind(side)
        assert bench.bind(side)
    with fault(side, "admin-status", status="INTERNAL_ERROR", opcode="REPORT_LINK_SPEED"):
        assert "Speed" not in bench.run(f"ethtool {side.interface}")


@of("dqo")
def test_registers_of_ones_while_it_binds(bench: Bench, side: Side) -> None:
    """So many queues are none."""
    bench.unbind(side)
    with fault(side, "device-ones"):
        assert not bench.bind(side)
    assert "could not allocate netdev" in bench.log()
    bench.revive(side)


def test_more_interrupt_vectors_than_the_machine_has() -> None:
    """Of two NICs with 127 vectors each, and one processor, which has some 200."""
    with NicServer(["--queues", "63", "--wire", "link"], sockets=2) as server:
        config = GuestConfig(nics=nics_of(server), vcpus=1)
        with Guest(config) as guest:
            guest.run("modprobe gve")
            wait_until(lambda: "Failed to receive msix vector" in guest.dmesg())
            guest.run("until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ip link set eth0 up", timeout=120)


@of("dqo")
def test_answers_that_are_none(bench: Bench, side: Side) -> None:
    """A status that was left as it was, and one that nobody knows."""
    for status, said in (("UNSET", "err and status both unset"), ("UNDEFINED", "unknown status code")):
        with fault(side, "admin-status", status=status, opcode="QUERY_FLOW_RULES"):
            bench.run(f"ethtool -n {side.interface}")
        assert said in bench.log()


@of("dqo")
def test_a_rule_that_takes_too_long(bench: Bench, side: Side) -> None:
    """The device is reset for it."""
    before = bench.statistics(side)["reset_cnt"]
    bench.run(f"ethtool -K {side.interface} ntuple on")
    with fault(side, "admin-status", status="DEADLINE_EXCEEDED", opcode="EXTENDED_COMMAND", count=1):
        bench.run(f"ethtool -N {side.interface} flow-type tcp4 dst-port 9 action 1")
    assert "Timeout to configure the flow rule, trigger reset" in bench.log()
    assert bench.statistics(side)["reset_cnt"] == before + 1
    bench.run(f"ethtool -K {side.interface} ntuple off")


@of("dqo", "qpl", "gqi", "rda", "gce")
def test_options_that_are_malformed(bench: Bench, side: Side) -> None:
    """*Steps*: bind while they are. *Verify*: what the log says; afterwards it binds as always."""
    said = {
        "short": "option error",
        "long": "larger than expected",
        "required": "option error",
        "beyond": "options exceed device_descriptor's total length",
        "unknown": "GVE version",
        "minimums": "GVE version",
        "mtu": "below minimum MTU",
        "oldest": "Gqi raw addressing device option enabled",
    }
    for what, message in said.items():
        bench.unbind(side)
        bench.clear_log()
        with fault(side, "admin-options", what=what):
            bench.bind(side)
        assert message in bench.log(), what
        bench.revive(side)


# Settings that the driver refuses.


#: A command, and a pattern for what is said, by ethtool or by the log.
SETTINGS = {
    "dqo": [
        ("ethtool -G {0} rx 128", "out of range"),
        ("ethtool -G {0} rx 1000", "power of 2"),
        ("ethtool -G {0} rx-buf-len 1024", "can only be 2048 or 4096"),
        ("ethtool --set-tunable {0} rx-copybreak 9000", "Invalid argument"),
        ("ethtool --set-tunable {0} tx-copybreak 256", "not supported"),
        ("ethtool --get-tunable {0} tx-copybreak", "Cannot get tunable"),
        ("ethtool -C {0} rx-usecs 100000", "Invalid argument"),
        ("ethtool --reset {0} irq", "not supported"),
        ("ethtool -X {0} hfunc xor", "not supported|Invalid argument"),
        ("ethtool -K {0} ntuple on; ethtool -N {0} flow-type tcp4 action -1", "not supported"),
        ("ethtool -N {0} flow-type tcp4 action 63", "Invalid argument"),
        ("ethtool -N {0} flow-type ether dst 02:00:00:00:00:01 action 0", "Invalid argument"),
        ("ethtool -N {0} delete 77; ethtool -K {0} ntuple off", "rmgr: Cannot delete RX class rule"),
        ("ethtool -n {0} rule 5", "Cannot get RX class rule"),
    ],
    "gqi": [
        ("ethtool -c {0}", "not supported"),
        ("ethtool -C {0} rx-usecs 10", "not supported"),
        ("ethtool -x {0}", "not supported"),
        ("ethtool -X {0} equal 2", "not supported"),
        ("ethtool -n {0}", "not supported"),
        ("ethtool -n {0} rule 5", "not supported"),
        ("ethtool -G {0} rx-buf-len 4096", "not supported"),
        ("ethtool -G {0} tcp-data-split on", "not supported"),
    ],
    "qpl": [("ethtool -G {0} tcp-data-split on", "not supported")],
}  # fmt: skip


@of("dqo", "gqi", "qpl")
def test_settings_that_it_refuses(bench: Bench, side: Side) -> None:
    for command, said in SETTINGS[side.name]:
        bench.clear_log()
        answer = bench.run(command.format(side.interface))
        assert re.search(said, answer + bench.log()), (command, answer)


@of("gqi")
def test_timestamps_of_a_nic_without_a_clock(bench: Bench, side: Side) -> None:
    configure = (
        "import ctypes, fcntl, socket, struct\n"
        "config = (ctypes.c_int * 3)(0, 0, 1)\n"  # HWTSTAMP_FILTER_ALL
        f"request = struct.pack('16sP8x', b'{side.interface}', ctypes.addressof(config))\n"
        "fcntl.ioctl(socket.socket(), 0x89B0, request)\n"  # SIOCSHWTSTAMP
    )
    bench.guest.put(configure.encode(), "/tmp/configure.py")
    assert "not supported" in bench.run("python3 /tmp/configure.py")


@of("dqo")
def test_ring_sizes_that_are_not_offered(bench: Bench, side: Side) -> None:
    """Of a NIC whose option is malformed."""
    bench.unbind(side)
    with fault(side, "admin-options", what="required"):
        assert bench.bind(side)
    assert "not supported" in bench.run(f"ethtool -G {side.interface} rx 512")
    assert "not supported" in bench.run(f"ethtool -G {side.interface} rx-buf-len 4096")
    bench.revive(side)


RULES = [
    "tcp4 src-ip 10.0.0.1 dst-port 1 action 1 loc 1",
    "udp4 dst-ip 10.0.0.1 src-port 1 action 1 loc 2",
    "sctp4 dst-port 1 action 1 loc 3",
    "ah4 dst-ip 10.0.0.1 spi 1 action 1 loc 4",
    "esp4 dst-ip 10.0.0.1 spi 1 action 1 loc 5",
    "tcp6 src-ip fd00::1 dst-port 1 action 1 loc 6",
    "udp6 dst-ip fd00::1 src-port 1 action 1 loc 7",
    "sctp6 dst-port 1 action 1 loc 8",
    "ah6 dst-ip fd00::1 spi 1 action 1 loc 9",
    "esp6 dst-ip fd00::1 spi 1 action 1 loc 10",
]


@of("dqo")
def test_rules_of_every_kind(bench: Bench, side: Side) -> None:
    """*Verify*: the device has them, and ethtool shows each by what was asked for."""
    bench.run(f"ethtool -K {side.interface} ntuple on")
    for rule in RULES:
        bench.run(f"ethtool -N {side.interface} flow-type {rule}")
    shown = bench.run(f"ethtool -n {side.interface}")
    assert f"Total {len(RULES)} rules" in shown, shown
    for kind in ("TCP", "UDP", "SCTP"):
        assert f"{kind} over IPv4" in shown and f"{kind} over IPv6" in shown
    assert "IPSEC AH" in shown and "IPSEC ESP" in shown and "SPI: 0x1" in shown.replace("SPI: 1 ", "SPI: 0x1 ")
    one = bench.run(f"ethtool -n {side.interface} rule 9")
    assert "Filter: 9" in one, one
    assert "Cannot get RX class rule" in bench.run(f"ethtool -n {side.interface} rule 99")
    bench.run(f"ethtool -K {side.interface} ntuple off")
    assert "Total 0 rules" in bench.run(f"ethtool -n {side.interface}")


@of("gce")
def test_settings_of_rss_that_the_device_keeps(bench: Bench, side: Side) -> None:
    bench.run(f"ethtool -X {side.interface} equal 2")
    shown = bench.run(f"ethtool -x {side.interface}")
    assert re.search(r"^\s+0:\s+0\s+1\s+0\s+1", shown, re.MULTILINE), shown
    assert "toeplitz: on" in shown
    with faults(side, *refused("QUERY_RSS")):
        assert "Invalid argument" in bench.run(f"ethtool -x {side.interface}")


@of("dqo", "qpl")
def test_settings_for_udp_segmentation(bench: Bench, side: Side) -> None:
    """The driver hands over a large datagram whose socket asks for segments of 1000 bytes (UDP_SEGMENT)."""
    segments = (
        "import socket\n"
        "sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "sender.setsockopt(socket.IPPROTO_UDP, 103, 1000)\n"
        f"sender.sendto(bytes(20000), ('{side.peer}', 9))\n"
    )
    bench.guest.put(segments.encode(), "/tmp/segments.py")

    def sent() -> int:
        return sum(queue["bytes"] for queue in side.control.stat()[0]["tx_queues"])

    bench.ping(side)
    before = sent()
    bench.run("python3 /tmp/segments.py")
    wait_until(lambda: sent() >= before + 20_000)


# Statistics, the clock, sleep.


def test_the_drivers_half_of_the_statistics(bench: Bench) -> None:
    """With the flag report-stats a timer of 20 s has the driver write them; the kernel's own trace tells of it."""
    sides = [bench.sides[name] for name in ("dqo", "gqi")]
    events = "/sys/kernel/tracing/events/workqueue/workqueue_execute_start/enable"
    bench.run(f"mount -t tracefs tracefs /sys/kernel/tracing; echo 1 >{events}")
    for side in sides:
        bench.run(f"ip link set {side.interface} down; ethtool --set-priv-flags {side.interface} report-stats on")
        bench.up(side)
        bench.run(f"ethtool --set-priv-flags {side.interface} report-stats on")
    tasks = "grep -c 'function gve_stats_report_task' /sys/kernel/tracing/trace"
    try:
        wait_until(lambda: int(bench.run(tasks)) >= 2 * len(sides), timeout=120, pause=2)
    finally:
        bench.run(f"echo 0 >{events}")
        for side in sides:
            bench.run(f"ethtool --set-priv-flags {side.interface} report-stats off")
    for side in sides:
        bench.ping(side)


@of("dqo", "gqi")
def test_statistics_by_netlink(bench: Bench, side: Side) -> None:
    """Of the interface: a sum, that grows with traffic; of each queue."""
    bench.guest.put(QUEUE_STATISTICS.encode(), "/tmp/queue_statistics.py")
    ask = f"python3 /tmp/queue_statistics.py $(cat /sys/class/net/{side.interface}/ifindex)"
    rx_packets, tx_packets, queue_id = 8, 10, 3
    [before] = json.loads(bench.run(ask))
    bench.run(f"ping -q -c 10 -i 0.01 {side.peer}")
    [after] = json.loads(bench.run(ask))
    for kind in map(str, (rx_packets, tx_packets)):
        assert after[kind] >= before[kind] + 10, (before, after)
    queues = json.loads(bench.run(f"{ask} queue"))
    assert sorted(one[str(queue_id)] for one in queues) == [0, 0, 1, 1, 2, 2, 3, 3]


@of("dqo")
def test_the_clock_cannot_be_asked(bench: Bench, side: Side) -> None:
    """The driver has functions for it that do nothing else than to say so (EOPNOTSUPP)."""
    number = bench.run(f"ethtool -T {side.interface}").partition("provider index: ")[2].split()[0]
    bench.guest.put(ASK_CLOCK.encode(), "/tmp/ask_clock.py")
    said = json.loads(bench.run(f"python3 /tmp/ask_clock.py /dev/ptp{number}"))
    assert said == dict.fromkeys(("gettime", "extended", "settime", "adjtime"), 95)


def test_sleep() -> None:
    """*Steps*: to memory (S3) and back. One interface is up, one down; of one the device does not let the queues go,
    one it does not set up again.
    *Verify*: the driver sets each up once more, and says of the last that it could not.

    The guest's agent is not heard any more after that, so the console and the servers have to tell.
    """
    with ExitStack() as stack:
        bench = Bench(stack, "dqo", "gqi", "qpl", "rda")
        sides = list(bench.sides.values())
        up, down, held, broken = sides
        bench.run(f"ip link set {down.interface} down")
        for side, opcodes in (
            (held, ("DESTROY_RX_QUEUE", "CONFIGURE_DEVICE_RESOURCES")),
            (broken, ("CREATE_TX_QUEUE",)),
        ):
            for name, parameters in refused(*opcodes, count=1):
                side.control.add_fault(name, nic="nic0", **parameters)

        def times_set_up() -> list[int]:
            counts = [side.control.stat()[0]["admin"] for side in sides]
            return [count.get("CONFIGURE_DEVICE_RESOURCES PASSED", 0) for count in counts]

        before = times_set_up()
        bench.guest.start("echo mem >/sys/power/state")
        wait_until(lambda: bench.guest.qmp.execute("query-status")["status"] == "suspended")
        bench.guest.qmp.execute("system_wakeup")
        wait_until(lambda: "PM: suspend exit" in bench.guest.console_tail(100))
        assert all(now > then for now, then in zip(times_set_up(), before, strict=True))
        console = bench.guest.console_tail(100)
        assert f"{up.interface}: Device link is up" in console
        assert console.count("Reset failed") == 2, console  # of one while it fell asleep, of the other afterwards
        bench.guest.kill()


# Completions that cannot be.


@of("dqo", "qpl")
@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("rx-error", {}, ""),
        ("rx-buffer-id", {"which": "beyond"}, "Invalid RX buffer_id"),
        ("rx-buffer-id", {"which": "again"}, "RX buffer_id is not allocated"),
        ("tx-tag", {"which": "beyond"}, "Invalid TX completion tag"),
        ("tx-tag", {"which": "again"}, "No pending data completion"),
    ],
)
def test_completions_that_cannot_be(
    bench: Bench, side: Side, name: str, parameters: dict[str, Any], said: str
) -> None:  # fmt: skip
    dropped = bench.statistics(side)["rx_desc_err_dropped_pkt"]
    with fault(side, name, count=20, **parameters):
        for size in (56, 6000):
            bench.run(f"timeout 5 ping -q -f -l 50 -c 200 -W 1 -s {size} {side.peer}")
    assert said in bench.log()
    if name == "rx-error":
        assert bench.statistics(side)["rx_desc_err_dropped_pkt"] > dropped


@of("gqi", "rda")
@pytest.mark.parametrize(
    ("name", "said"), [("rx-too-long", "Unexpected frag size"), ("rx-unfinished", "with incomplete packet")]
)
def test_descriptors_for_which_it_resets_the_device(bench: Bench, side: Side, name: str, said: str) -> None:
    resets = bench.statistics(side)["reset_cnt"]
    with fault(side, name, count=1):
        bench.run(f"ping -q -c 1 -W 1 {side.peer}")
        wait_until(lambda: bench.statistics(side)["reset_cnt"] > resets)
    assert said in bench.log()
    bench.ping(side)


@of("gqi", "rda")
def test_a_descriptor_with_an_error(bench: Bench, side: Side) -> None:
    dropped = bench.statistics(side)["rx_desc_err_dropped_pkt"]
    with fault(side, "rx-error", count=5):
        bench.run(f"ping -q -c 5 -i 0.1 -W 1 {side.peer}")
    assert bench.statistics(side)["rx_desc_err_dropped_pkt"] > dropped
    bench.ping(side)


@of("dqo", "qpl")
def test_a_miss_that_is_not_re_injected(bench: Bench, side: Side) -> None:
    """*Steps*: misses without a re-injection, and one that comes after the driver has given it up."""
    for delay in (None, 3.0):
        with fault(side, "tx-miss", count=8, delay=delay):
            bench.run(f"ping -q -c 20 -i 0.2 -W 1 {side.peer}")
            bench.run(f"sleep 2; ping -q -c 10 -i 0.2 -W 1 {side.peer}")
    log = bench.log()
    assert "No reinjection completion was received" in log
    assert "received after timeout" in log


# Queues that are full, buffers that are held.


@of("dqo", "qpl", "gqi", "rda")
def test_full_transmit_queues(bench: Bench, side: Side) -> None:
    """Completions come late, and byte queue limits do not stop the sender before the ring is full."""
    interface = side.interface
    bench.run(f"ethtool -G {interface} tx 256")
    limits = f"/sys/class/net/{interface}/queues/tx-*/byte_queue_limits/limit_min"
    bench.run(f"for file in {limits}; do echo 1000000000 >$file; done")

    def counted(name: str) -> int:
        return sum(count for counter, count in bench.statistics(side).items() if counter.startswith(name))

    bench.guest.put(FLOOD.encode(), "/tmp/flood.py")
    with fault(side, "tx-late", delay=0.1):
        bench.guest.start(f"exec timeout 60 python3 /tmp/flood.py {side.peer}")
        wait_until(
            lambda: counted("tx_stop[") > 3 and counted("tx_wake[") > 3, what=lambda: str(bench.statistics(side))
        )
    bench.run(f"pkill -f flood.py; for file in {limits}; do echo 0 >$file; done; ethtool -G {interface} tx 1024")
    bench.ping(side)


@of("dqo", "qpl", "gqi", "rda")
def test_buffers_that_a_socket_holds(bench: Bench, side: Side) -> None:
    """More than the rings have: the driver copies, or takes other pages."""
    bench.guest.put(HOLD.encode(), "/tmp/hold.py")
    for port in (7001, 7002):
        said = bench.run(f"python3 /tmp/hold.py {side.address} {port} {48 << 20}", timeout=240)
        assert said == "True\n", said


@of("dqo")
def test_a_transmit_queue_that_is_kicked_and_then_reset(bench: Bench, side: Side) -> None:
    resets = bench.statistics(side)["reset_cnt"]
    bench.guest.put(FLOOD.encode(), "/tmp/flood.py")
    with fault(side, "tx-never"):
        bench.guest.start(f"exec timeout 100 python3 /tmp/flood.py {side.peer}")
        wait_until(lambda: "Kicking queue" in bench.log())
        wait_until(lambda: bench.statistics(side)["reset_cnt"] > resets)
    bench.run("pkill -f flood.py")
    bench.ping(side)


@of("dqo", "gqi")
def test_an_admin_queue_that_is_not_let_go(bench: Bench, side: Side) -> None:
    """For more than ten seconds; each revision of the device is asked for it in its own way."""
    side.control.add_fault("device-hang", nic="nic0")
    reset = bench.guest.start(f"ethtool --reset {side.interface} all")
    wait_until(lambda: "Unrecoverable platform error" in bench.log())
    side.control.end_fault(nic="nic0")
    reset.wait(120)
    bench.revive(side)


# XDP.


@pytest.fixture
def xdp(bench: Bench) -> Iterator[Side]:
    """The pair for XDP, as the driver wants it for that; afterwards as at first."""
    side = bench.sides["xdp"]
    bench.run(f"ethtool -K {side.interface} rx-gro-hw off; ethtool -G {side.interface} rx-buf-len 2048")
    yield side
    side.control.end_fault(nic="nic0")
    bench.revive(side)


def attach(bench: Bench, side: Side, words: str = "pass") -> str:
    """Attach a program, and detach it at once; what is said."""
    return bench.run(f"xdp_program --interface {side.interface} {words} </dev/null")


def test_what_xdp_does_not_go_with(bench: Bench, xdp: Side) -> None:
    """Each setting that the driver refuses a program for, and that it refuses while there is one."""
    interface = xdp.interface
    for before, after in (
        ("ethtool -K {} rx-gro-hw on", "ethtool -K {} rx-gro-hw off"),
        ("ethtool -G {} tcp-data-split on", "ethtool -G {} tcp-data-split off"),
        ("ethtool -G {} rx-buf-len 4096", "ethtool -G {} rx-buf-len 2048"),
        ("ethtool -L {} rx 3 tx 4", "ethtool -L {} rx 4 tx 4"),
        ("ethtool -L {} rx 9 tx 9", "ethtool -L {} rx 4 tx 4"),
    ):
        bench.run(before.format(interface))
        assert "ready" not in attach(bench, xdp), before
        bench.run(after.format(interface))
    assert "ready" in attach(bench, xdp)
    program = bench.guest.start(f"xdp_program --interface {interface} pass")
    program.expect("ready", timeout=120)
    for command in ("-K {} rx-gro-hw on", "-G {} rx-buf-len 4096", "-L {} rx 3 tx 4", "-G {} tcp-data-split on"):
        bench.clear_log()
        said = bench.run(f"ethtool {command.format(interface)}")
        assert re.search("not supported|Invalid|Could not|only be|should be", said + bench.log()), command
    program.close_input()
    program.wait(60)


def test_a_program_while_the_interface_is_down(bench: Bench, xdp: Side) -> None:
    bench.run(f"ip link set {xdp.interface} down")
    assert "ready" in attach(bench, xdp)
    program = bench.guest.start(f"xdp_program --interface {xdp.interface} tx")
    program.expect("ready", timeout=120)
    bench.up(xdp)
    program.close_input()
    assert program.wait(60).status == 0
    bench.ping(xdp)


@pytest.mark.parametrize("opcode", ["CREATE_TX_QUEUE", "CREATE_RX_QUEUE"])
def test_queues_for_xdp_that_are_refused(bench: Bench, xdp: Side, opcode: str) -> None:
    with faults(xdp, *refused(opcode)):
        bench.run(f"timeout 20 xdp_program --interface {xdp.interface} pass </dev/null")
    bench.revive(xdp)
