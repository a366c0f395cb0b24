"""What a stock driver, and the stack above it, make of each fault; and that traffic flows when it is over.

One guest of this file's own: two NICs back to back, of which the first is struck, and one that the host reaches through
passt, for devmem TCP. The table in docs/faults.md says in words what is seen here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from lab import HBM, connect_pair, free_ports, wait_until

from nicmodel.client.control import Control
from nicmodel.vm import link
from nicmodel.vm.devmem import send_pattern
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.layout import Nic
from nicmodel.vm.passt import Passt
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import install_guest_tools

pytestmark = pytest.mark.guest

MIB = 1 << 20
#: A TCP stream of 4 MiB; $1 is where it goes: "here" from the peer, or "there". Counters are of the receiver, those of
#: the sender have a "sender." before their names.
STREAM = r"""#!/bin/sh
[ -e /tmp/data ] || head -c 4194304 /dev/urandom >/tmp/data
peer="ip netns exec peer"
if [ "$1" = here ]; then from="$peer" to= address=10.1.0.1; else from= to="$peer" address=10.1.0.2; fi
NSTAT_HISTORY=/tmp/to.nstat $to nstat -n
NSTAT_HISTORY=/tmp/from.nstat $from nstat -n
rm -f /tmp/got
$to timeout 100 socat -u -b 65536 TCP-LISTEN:7000,reuseaddr OPEN:/tmp/got,creat,trunc &
server=$!
until $to ss -ltn | grep -q :7000; do sleep 0.05; done
$from timeout 100 socat -u -b 65536 OPEN:/tmp/data TCP:$address:7000
wait $server
NSTAT_HISTORY=/tmp/to.nstat $to nstat | awk '!/^#/ {print $1, $2}'
NSTAT_HISTORY=/tmp/from.nstat $from nstat | awk '!/^#/ {print "sender." $1, $2}'
[ "$(sha256sum </tmp/data)" = "$(sha256sum </tmp/got)" ] && echo same 1 || echo same 0
"""


class Bench:
    """The guest and its server."""

    def __init__(self, stack: ExitStack) -> None:
        [self.port] = free_ports(1)
        passt = stack.enter_context(Passt({self.port: self.port}, mtu=8896))
        wires = ["--wire", "link", "--wire", "link", "--wire", f"stream:{passt.socket}"]
        self.server = stack.enter_context(NicServer(wires, sockets=3))
        self.control = stack.enter_context(Control(self.server.control))
        config = GuestConfig(nics=[Nic(path) for path in self.server.sockets], device_memory={"hbm": HBM})
        self.guest = stack.enter_context(Guest(config))
        self.guest.put(STREAM.encode(), "/usr/local/bin/stream")
        connect_pair(self.guest)
        self.run("ip addr add 10.0.2.15/24 dev eth2; ip link set eth2 up")

    def run(self, command: str, timeout: float = 120) -> str:
        """Run a shell command in the guest; what it prints, errors too."""
        return self.guest.run(f"( {command} ) 2>&1", timeout=timeout).stdout

    def hits(self, fault: str, nic: int = 0) -> int:
        """How often a fault has struck."""
        events: dict[str, int] = self.control.stat()[nic]["events"]
        return events.get(f"fault {fault}", 0)

    def stream(self, where: str = "here") -> dict[str, int]:
        """A TCP stream to where the faults are, or "there" from them; counters by name."""
        said = self.run(f"stream {where}", timeout=240)
        return {name: int(value) for name, value in (line.split() for line in said.splitlines() if " " in line)}

    def ping(self) -> tuple[float, float]:
        """Three echoes are answered; the shortest and the longest round trip, ms."""
        said = self.run("ping -q -c 3 -i 0.05 -w 60 10.1.0.2", timeout=120)
        found = re.search(r"rtt min/avg/max/mdev = ([\d.]+)/[\d.]+/([\d.]+)/", said)
        assert found, said
        return float(found[1]), float(found[2])

    def log(self) -> str:
        """The kernel's log."""
        return self.guest.dmesg()


@pytest.fixture(scope="module")
def running() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack)


@pytest.fixture
def bench(running: Bench) -> Iterator[Bench]:
    """The bench; afterwards no fault is left, and traffic flows both ways without a new server."""
    yield running
    for nic in ("nic0", "nic2"):
        running.control.end_fault(nic=nic)
    running.ping()


@contextmanager
def fault(bench: Bench, name: str, nic: int = 0, **parameters: Any) -> Iterator[None]:
    """A fault while the block lasts; it must have struck."""
    before = bench.hits(name, nic)
    number = bench.control.add_fault(name, nic=f"nic{nic}", seed=1, **parameters)
    try:
        yield
    finally:
        if any(one["id"] == number for one in bench.control.faults(f"nic{nic}")):
            bench.control.end_fault(number, nic=f"nic{nic}")
    assert bench.hits(name, nic) > before


# Wire.


@pytest.mark.parametrize(
    ("name", "parameters", "seen"),
    [
        ("wire-drop", {"probability": 0.02}, "sender.TcpRetransSegs"),
        ("wire-corrupt", {"probability": 0.02}, "TcpInCsumErrors"),
        ("wire-duplicate", {"probability": 0.05}, "sender.TcpExtTCPDSACKRecv"),
        ("wire-reorder", {"probability": 0.05, "delay": 0.05}, "TcpExtTCPOFOQueue"),
    ],
)
def test_tcp_overcomes_a_bad_wire(bench: Bench, name: str, parameters: dict[str, Any], seen: str) -> None:
    """The counter that a user would look at, and every byte."""
    with fault(bench, name, direction="rx", **parameters):
        counters = bench.stream()
    assert counters["same"], counters
    assert counters.get(seen, 0) > 0, counters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("wire-delay", {"direction": "rx", "delay": 0.05}),
        ("rx-late", {"delay": 0.05}),
        ("irq-late", {"delay": 0.05}),
        ("dma-slow", {"delay": 0.05}),
    ],
)
def test_the_round_trip_grows(bench: Bench, name: str, parameters: dict[str, Any]) -> None:
    with fault(bench, name, **parameters):
        shortest, longest = bench.ping()
    # Nearly 50 ms: the guest's clock is another. An interrupt may be that of a packet before.
    assert longest >= 45
    assert name == "irq-late" or shortest >= 45


def test_a_slow_wire(bench: Bench) -> None:
    """4 MiB at 20 Mbit/s take 1.7 s, not less; frames for which there is no room are sent again."""
    number = bench.control.add_fault("wire-rate", nic="nic0", direction="rx", rate=20_000_000, limit=4)
    before = time.monotonic()
    counters = bench.stream()
    assert time.monotonic() - before > 1.6
    bench.control.end_fault(number, nic="nic0")
    assert counters["same"], counters
    assert counters.get("sender.TcpRetransSegs", 0) > 0, counters


def test_a_flapping_cable(bench: Bench) -> None:
    changes = "cat /sys/class/net/eth0/carrier_changes"
    before = int(bench.run(changes))
    with fault(bench, "wire-flap", down=0.5, period=2, count=2):
        assert bench.stream()["same"]
        wait_until(lambda: int(bench.run(changes)) >= before + 4, timeout=120)


# Receive.


@pytest.mark.parametrize("name", ["rx-unsplit", "rx-header-overflow", "rx-split-beyond"])
def test_an_ordinary_queue_bears_any_split(bench: Bench, name: str) -> None:
    bench.run(f"ethtool -G eth0 tcp-data-split on; until {link.is_up('eth0')}; do sleep 0.1; done")
    with fault(bench, name, probability=0.2):
        counters = bench.stream()
    assert counters["same"], counters
    assert counters.get("TcpInCsumErrors", 0) == 0, counters


def test_a_packet_called_bad_is_verified_by_the_stack(bench: Bench) -> None:
    bench.run("ethtool -K eth0 rx-gro-hw off")
    with fault(bench, "rx-checksum", verdict="bad"):
        counters = bench.stream()
    bench.run("ethtool -K eth0 rx-gro-hw on")
    assert counters["same"], counters
    assert counters.get("TcpInCsumErrors", 0) == 0, counters


def test_a_packet_called_good_is_believed(bench: Bench) -> None:
    """Wrong bytes reach the application: nobody else looks."""
    with (
        fault(bench, "wire-corrupt", direction="rx", probability=0.05),
        fault(bench, "rx-checksum", verdict="good"),
    ):
        counters = bench.stream()
    assert not counters["same"], counters


def test_starvation(bench: Bench) -> None:
    """What waits longer than 200 ms is lost; the connection survives."""

    def lost() -> int:
        return int(bench.control.stat()[0]["drops"].get("no_buffers", 0))

    def sent_again() -> int:  # what is lost may be no part of the stream: kernels have things to say of their own
        return int(bench.run("ip netns exec peer nstat -asz TcpRetransSegs | awk '/Retrans/ {print $2}'"))

    before, at_first = lost(), sent_again()
    with fault(bench, "rx-starve"):
        process = bench.guest.start("stream here")
        wait_until(lambda: sent_again() > at_first, timeout=120)
    assert lost() > before
    said = process.wait(240).stdout
    assert "same 1" in said, said
    assert re.search(r"^sender.TcpRetransSegs [1-9]", said, re.MULTILINE), said


# Transmit. That the watchdog resets a queue whose completions never come is tested in test_recovery.py.


def test_late_transmit_completions(bench: Bench) -> None:
    with fault(bench, "tx-late", delay=0.01, probability=0.1):
        counters = bench.stream("there")
    assert counters["same"], counters


# Interrupts.


def test_a_lost_interrupt_stops_a_receive_queue(bench: Bench) -> None:
    """Nothing looks after it; the interface down and up does."""
    with fault(bench, "irq-lost"):
        said = bench.run("ping -q -c 3 -W 1 10.1.0.2 || true")
        assert "100% packet loss" in said, said
    bench.run("ip link set eth0 down; ip link set eth0 up")
    bench.ping()


def test_spurious_interrupts_do_no_harm(bench: Bench) -> None:
    count = "awk '/gve/ {for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i} END {print sum}' /proc/interrupts"
    with fault(bench, "irq-spurious", interval=0.01):
        before = int(bench.run(count))
        wait_until(lambda: int(bench.run(count)) > before + 100, timeout=120)
        assert bench.stream()["same"]


# Admin queue.


def test_a_status_is_an_error_that_the_user_sees(bench: Bench) -> None:
    with fault(bench, "admin-status", opcode="CREATE_RX_QUEUE", status="RESOURCE_EXHAUSTED"):
        said = bench.run("ip link set eth0 down; ip link set eth0 up || true")
        assert "Cannot allocate memory" in said, said
    assert "AQ command failed with status" in bench.log()
    bench.run("ip link set eth0 up")


def test_a_slow_admin_queue(bench: Bench) -> None:
    with fault(bench, "admin-slow", delay=0.05):
        bench.run("ip link set eth0 down; ip link set eth0 up")
        bench.ping()


def test_an_admin_queue_without_answer(bench: Bench) -> None:
    with fault(bench, "admin-silent", opcode="REPORT_LINK_SPEED"):
        bench.run("ethtool eth0 || true")
        wait_until(lambda: "AQ commands timed out, need to reset AQ" in bench.log(), timeout=120)
    assert "Speed" in bench.run("ethtool eth0")


# DMA.


def test_rings_that_cannot_be_reached(bench: Bench) -> None:
    """Without buffer rings nothing comes; with them again all does, no packet wrong."""
    queues = bench.control.show("nic0")["queues"]
    with ExitStack() as stack:
        for name, queue in queues.items():
            if name.startswith("rx"):
                size = 32 * queue["buffer_entries"]
                stack.enter_context(fault(bench, "dma-fault", address=queue["buffer_ring"], size=size))
        said = bench.run("ping -q -c 3 -W 1 10.1.0.2 || true")
        assert "100% packet loss" in said, said
    assert bench.control.stat()[0]["drops"]["dma_fault"] > 0
    assert bench.stream()["same"]


# Device.


def test_a_reset_on_request(bench: Bench) -> None:
    before = bench.log().count("Device requested reset")
    with fault(bench, "device-reset", count=1):
        wait_until(lambda: bench.log().count("Device requested reset") > before, timeout=120)
    assert bench.stream()["same"]


def test_a_device_that_hangs_for_a_while(bench: Bench) -> None:
    with fault(bench, "device-hang", duration=2):
        counters = bench.stream("there")
    assert counters["same"], counters


def test_registers_of_ones(bench: Bench) -> None:
    """Packets flow; commands are refused by the driver itself."""
    bench.run("ethtool -K eth0 ntuple on")
    rule = "ethtool -N eth0 flow-type tcp4 dst-port 9 action 1"
    with fault(bench, "device-ones"):
        bench.ping()
        said = bench.run(f"{rule} || true")
    assert "Invalid argument" in said, said
    assert "Added rule" in bench.run(rule)
    bench.run("ethtool -K eth0 ntuple off")


# devmem TCP.


@pytest.fixture(scope="module")
def tools(running: Bench) -> None:
    install_guest_tools(running.guest)
    running.run("ethtool -G eth2 tcp-data-split on; ethtool -K eth2 ntuple on; ethtool -X eth2 equal 3")


@pytest.mark.parametrize("name", ["rx-split-beyond", "rx-unsplit", "rx-header-overflow"])
def test_devmem(bench: Bench, tools: None, name: str) -> None:
    """Payload behind the header is handed out as SCM_DEVMEM_LINEAR; a packet without its header is dropped."""
    added = bench.run(f"ethtool -N eth2 flow-type tcp4 dst-port {bench.port} action 3")
    rule = re.search(r"ID (\d+)", added)
    assert rule, added
    node = bench.guest.device_memory["hbm"].node
    receiver = bench.guest.start(
        f"devmem_receiver --interface eth2 --port {bench.port} --queues 3 --size {32 * MIB} --node {node} --seed 1"
    )
    receiver.expect("ready", timeout=120)

    def out_of_order() -> int:
        """Segments that came after one that was lost. (The driver's own count of the queue goes with the queue.)"""
        return int(bench.run("nstat -asz TcpExtTCPOFOQueue | awk '/OFO/ {print $2}'"))

    before = out_of_order()
    with fault(bench, name, nic=2, queue=3, probability=0.05, count=10):
        send_pattern("127.0.0.1", bench.port, 4 * MIB)
    result = receiver.wait(120)
    assert result.status == 0, result.stdout + result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    bench.run(f"ethtool -N eth2 delete {rule[1]}")
    assert (said["bytes"], said["errors"]) == (4 * MIB, 0)
    assert (said["linear_bytes"] > 0) == (name == "rx-split-beyond")
    assert (out_of_order() > before) == (name != "rx-split-beyond")


# At last, since the guest is another afterwards.


def test_a_device_that_is_gone_and_comes_back(bench: Bench) -> None:
    """No word of it in the log; the bus looked at again, and the driver binds anew."""
    path = bench.run("basename $(readlink /sys/class/net/eth0/device)").strip()
    with fault(bench, "device-gone"):
        said = bench.run("ping -q -c 2 -W 1 10.1.0.2 || true")
        assert "100% packet loss" in said, said
        bench.run(f"echo 1 > /sys/bus/pci/devices/{path}/remove", timeout=240)
    bench.run("echo 1 > /sys/bus/pci/rescan; until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done")
    bench.run("ip addr add 10.1.0.1/24 dev eth0; ip link set eth0 up")
    assert bench.stream()["same"]
