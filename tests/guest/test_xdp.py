"""XDP and AF_XDP under the stock drivers: gve, in the queue formats that it supports them for, DQO-RDA and GQI-QPL, and
idpf.

The programs are ours (guest/xdp*.c). Whatever the NIC receives, they send back with the Ethernet addresses swapped, by
each way there is, and the sender compares each frame. gve asks for a NIC with frames of a single buffer, without header
split and coalescing, and with twice the queues that are in use (gve_verify_xdp_configuration). With idpf there may be
several buffers, if the program can do with them, which ours cannot; it makes queues for XDP in queue scheduling mode.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import frame_echo
import lab
import pytest
from lab import HBM, quiet_log, wait_until, with_memory_of
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nicmodel.vm import link
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import install_guest_tools

pytestmark = pytest.mark.guest

FRAMES = 400
MIB = 1 << 20
PORT = 5201
MEMORY = "hbm"
EACH_ONCE: dict[str, list[str]] = {"missing": [], "twice": []}


@dataclass(frozen=True)
class Pair:
    """Two NICs back to back: one that runs the programs, and its peer in namespace "peer".

    Attributes:
        serve: options of `nicmodel serve`.
        settings: options of ethtool that the driver wants for XDP, or the tests.
        sizes: of rings, and numbers of queues: others, and what they are otherwise.
        counts: the driver counts what programs do with packets.
        queues: receive queues; the driver makes as many for XDP to send by.
    """

    serve: tuple[str, ...]
    interface: str
    address: str
    peer_interface: str
    peer_address: str
    settings: tuple[str, ...] = ()
    sizes: tuple[tuple[str, str, str], ...] = (
        ("-G", "rx 512 tx 512", "rx 1024 tx 1024"),
        ("-L", "rx 2 tx 2", "rx 4 tx 4"),
    )
    counts: bool = True
    queues: int = 4


DQO = Pair(
    ("--profile", "afxdp", "--check"),
    *("eth0", "10.1.0.1", "eth1", "10.1.0.2"),
    settings=("-K {} rx-gro-hw off", "-G {} rx-buf-len 2048"),
)
GQI = Pair(
    ("--profile", "legacy", "--queues", "16", "--default-queues", "4", "--revision", "1", "--check"),
    *("eth2", "10.2.0.1", "eth3", "10.2.0.2"),
)
IDPF = Pair(
    ("--device", "idpf", "--device", "gvnic"),
    *(lab.IDPF.interface, lab.IDPF.address, lab.FAR.interface, lab.FAR.address),
    # Linux attaches a program for single buffers only where nobody has asked for header split (net/core/dev.c,
    # dev_xdp_install).
    settings=("-G {} tcp-data-split off",),
    sizes=(("-G", "rx 192 tx 160", "rx 512 tx 512"), ("-L", "combined 1", "combined 2")),
    counts=False,
    # No more than there are CPUs, or the driver crashes (docs/found.md).
    queues=2,
)
PAIRS = (DQO, GQI, IDPF)


@dataclass
class Bench:
    """A pair in the guest, and the server of its NICs."""

    guest: Guest
    server: NicServer
    pair: Pair

    def sent_by_xdp_queues(self) -> int:
        """Packets that the NIC has taken from the transmit queues after those of the stack."""
        queues = self.server.report()[0]["tx_queues"]
        return sum(int(queue["packets"]) for queue in queues[self.pair.queues : 2 * self.pair.queues])

    def counters(self, name: str) -> int:
        """The sum of the driver's counters of that name over all queues."""
        assert self.pair.counts
        said = self.guest.run(f"ethtool -S {self.pair.interface}").stdout
        return sum(int(count) for count in re.findall(rf"\b{name}\[\d+\]: (\d+)", said))

    def moved(self) -> tuple[int, int]:
        """Bytes of frames that the NIC has written into the memory of its own node, and read there."""
        dma = self.server.report()[0]["dma"]
        return dma["payload"].get(MEMORY, 0), dma["transmit"].get(MEMORY, 0)

    def await_carrier(self) -> None:
        """A driver may take the link away when it is given a program, or other rings."""
        self.guest.run(f"until {link.is_up(self.pair.interface)}; do sleep 0.05; done", timeout=120)

    @contextmanager
    def running(self, command: str) -> Iterator[Any]:
        """Run one of our programs on the NIC inside the block; its process, which must end well."""
        process = self.guest.start(command.format(self.pair.interface))
        try:
            process.expect("ready", timeout=120)
            self.await_carrier()
            yield process
        finally:
            process.close_input()
            result = process.wait(60)
        assert result.status == 0, result.stderr

    def send(self, frames: list[bytes]) -> dict[str, list[str]]:
        """Send frames from the peer; those that did not come back as they should."""
        self.guest.put(b"\n".join(frame.hex().encode() for frame in frames), "/tmp/frames")
        command = f"ip netns exec peer python3 /tmp/frame_echo.py {self.pair.peer_interface} /tmp/frames"
        said: dict[str, list[str]] = json.loads(self.guest.run(command, timeout=240).stdout)
        if said["missing"]:  # what pytest shows then
            print(f"{len(said['missing'])} of {len(frames)} are missing:", said["missing"][:4])
            for nic in self.server.report():
                print(nic["name"], {name: nic[name] for name in ("delivered", "drops", "wire")})
            for inside, interface in (("", self.pair.interface), ("ip netns exec peer", self.pair.peer_interface)):
                wanted = "drop|err|fail|xdp|packets|no_buf"
                command = f"{inside} ethtool -S {interface} | grep -i -E '{wanted}' | grep -v ' 0$'"
                command += f"; {inside} ip -s link show {interface}; {inside} tc -s qdisc show dev {interface}"
                print(self.guest.run(f"{command}; cat /proc/net/softnet_stat", check=False).stdout)
        return said

    def frames(self, seed: int, count: int = FRAMES) -> list[bytes]:
        """Frames to the NIC from its peer: all sizes, and flows that spread over the queues, to addresses of nobody."""
        mac, peer = (
            self.guest.run(f"{inside} cat /sys/class/net/{interface}/address").stdout.strip()
            for inside, interface in (("", self.pair.interface), ("ip netns exec peer", self.pair.peer_interface))
        )
        chance = random.Random(seed)
        ethernet = Ether(src=peer, dst=mac)
        v4, v6 = IP(src="198.18.0.1", dst="198.18.0.2"), IPv6(src="2001:db8::1", dst="2001:db8::2")

        def frame(number: int) -> bytes:
            kinds: list[Packet] = [
                ethernet / v4 / UDP(sport=1000 + number, dport=7),
                ethernet / v4 / TCP(sport=1000 + number, dport=7),
                ethernet / v6 / UDP(sport=1000 + number, dport=7),
                ethernet / v6 / TCP(sport=1000 + number, dport=7),
                Ether(src=peer, dst=mac, type=0x88B5),  # IEEE 802: for experiments
            ]
            headers = kinds[number % len(kinds)]
            size = chance.choice([60, 64, 128, 1513, 1514, chance.randint(20, 1514)])
            content = number.to_bytes(4, "big") + chance.randbytes(size)
            return bytes(headers / Raw(content[: max(4, size - len(headers))]))

        return [frame(number) for number in range(count)]


@pytest.fixture(scope="module")
def benches() -> Iterator[dict[Pair, Bench]]:
    """All pairs in one guest, set up as the drivers want them for XDP."""
    with ExitStack() as stack:
        servers = [stack.enter_context(NicServer(["--wire", "link", *pair.serve], sockets=2)) for pair in PAIRS]
        nics = [nic for server in servers for nic in lab.nics_of(server)]
        guest = stack.enter_context(Guest(GuestConfig(nics=nics, device_memory={MEMORY: HBM})))
        install_guest_tools(guest)
        guest.put(Path(frame_echo.__file__), "/tmp/frame_echo.py")
        guest.run("for i in 0 1 2 3; do until [ -e /sys/class/net/eth$i ]; do sleep 0.1; done; done")
        lab.name_idpf(guest)
        for pair in PAIRS:
            # Neighbours are told, and IPv6 is off: but for the end of a stream, no frames but those of the tests.
            guest.run(
                f"""
                set -e
                ip -n peer link show {pair.peer_interface} || ip link set {pair.peer_interface} netns peer
                mac=$(cat /sys/class/net/{pair.interface}/address)
                peer_mac=$(ip netns exec peer cat /sys/class/net/{pair.peer_interface}/address)
                sysctl -qw net.ipv6.conf.{pair.interface}.disable_ipv6=1
                ip netns exec peer sysctl -qw net.ipv6.conf.{pair.peer_interface}.disable_ipv6=1
                ip addr add {pair.address}/24 dev {pair.interface}
                ip -n peer addr add {pair.peer_address}/24 dev {pair.peer_interface}
                ip link set {pair.interface} up
                ip -n peer link set {pair.peer_interface} up
                ip neigh add {pair.peer_address} lladdr $peer_mac dev {pair.interface}
                ip -n peer neigh add {pair.address} lladdr $mac dev {pair.peer_interface}
                """
            )
            for setting in pair.settings:
                guest.run(f"ethtool {setting.format(pair.interface)}")
        yield {pair: Bench(guest, server, pair) for pair, server in zip(PAIRS, servers, strict=True)}
        for server in servers[:2]:
            findings = server.findings()
            assert not findings, "the driver breaks the contract:\n" + findings


@pytest.fixture(params=PAIRS, ids=["dqo-rda", "gqi-qpl", "idpf"])
def bench(request: pytest.FixtureRequest, benches: dict[Pair, Bench]) -> Iterator[Bench]:
    bench = benches[request.param]
    with quiet_log(bench.guest):
        yield bench


def test_passed_on_to_the_stack(bench: Bench) -> None:
    """A stream arrives unharmed, also as aggregated frames by the link, which the NIC cuts into single ones."""
    guest, pair = bench.guest, bench.pair
    with bench.running("xdp_program --interface {} pass"):
        before = bench.counters("rx_xdp_pass") if pair.counts else 0
        said = guest.run(
            f"""
            head -c {8 * MIB} /dev/urandom >/tmp/sent
            socat -u -b 65536 TCP-LISTEN:{PORT},reuseaddr - >/tmp/received &
            until ss -ltn | grep -q :{PORT}; do sleep 0.05; done
            ip netns exec peer socat -u -b 65536 - TCP:{pair.address}:{PORT} </tmp/sent
            wait $!
            cmp /tmp/sent /tmp/received && echo equal
            """,
            timeout=120,
        ).stdout
        assert said == "equal\n"
        assert not pair.counts or bench.counters("rx_xdp_pass") - before >= 8 * MIB // 1500


@pytest.mark.parametrize("bench", [DQO, GQI], ids=["dqo-rda", "gqi-qpl"], indirect=True)
def test_dropped(bench: Bench) -> None:
    """(idpf has no counter of them, and nobody else sees them.)"""
    frames = bench.frames(1)
    with bench.running("xdp_program --interface {} drop"):
        bench.guest.put(b"\n".join(frame.hex().encode() for frame in frames), "/tmp/frames")
        program = (
            "import socket, sys\n"
            "packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n"
            "packets.bind((sys.argv[1], 0))\n"
            "for line in open('/tmp/frames'): packets.send(bytes.fromhex(line))\n"
        )
        before = bench.counters("rx_xdp_drop")

        def send_again() -> bool:
            """Nobody does it for the sender: on a busy machine the receiver runs out of buffers, and loses some."""
            bench.guest.run(["ip", "netns", "exec", "peer", "python3", "-c", program, bench.pair.peer_interface])
            return bench.counters("rx_xdp_drop") - before >= FRAMES

        wait_until(send_again)
        assert bench.counters("rx_xdp_pass") == 0


@pytest.mark.parametrize(
    ("verdict", "received", "sent"), [("tx", "rx_xdp_tx", None), ("redirect", "rx_xdp_redirect", "tx_xdp_xmit")]
)
def test_sent_back_by_a_program(bench: Bench, verdict: str, received: str, sent: str | None) -> None:
    """Through the transmit queues that the driver makes for XDP, one for each receive queue."""
    with bench.running(f"xdp_program --interface {{}} {verdict}"):
        before = bench.sent_by_xdp_queues()
        assert bench.send(bench.frames(2)) == EACH_ONCE
        if bench.pair.counts:
            assert bench.counters(received) >= FRAMES
            assert sent is None or bench.counters(sent) >= FRAMES
        assert bench.sent_by_xdp_queues() - before >= FRAMES


@pytest.mark.parametrize("mode", ["copy", "zero-copy"])
def test_sent_back_by_af_xdp_sockets(bench: Bench, mode: str) -> None:
    """A socket for each queue, their memory on a NUMA node of its own, that stands for a device's."""
    frames = bench.frames(3)
    command = f"{with_memory_of(bench.guest, MEMORY)} xdp_socket --interface {{}} --queues {bench.pair.queues} {mode}"
    with bench.running(command) as process:
        before = bench.moved()
        assert bench.send(frames) == EACH_ONCE
        after = bench.moved()
        if bench.pair.counts:
            sent = bench.counters("tx_xsk_sent")
            assert sent >= FRAMES if mode == "zero-copy" else sent == 0
    sockets = json.loads(process.output().splitlines()[-1])
    assert sum(socket["received"] for socket in sockets) >= FRAMES
    assert all(socket["received"] > 0 for socket in sockets), "the flows should spread over all queues"
    for socket in sockets:
        assert socket["zero_copy"] is (mode == "zero-copy")
        assert socket["completed"] == socket["received"]
        assert (socket["rx_dropped"], socket["rx_ring_full"], socket["tx_invalid"]) == (0, 0, 0)
    # The NIC itself reaches the sockets' memory, but in GQI-QPL: there the driver copies (gve_xsk_pool_redirect).
    moved = [now - then for now, then in zip(after, before, strict=True)]
    if mode == "zero-copy" and bench.pair is not GQI:
        assert min(moved) >= sum(map(len, frames))
    else:
        assert moved == [0, 0]


def test_rings_change_under_a_program(bench: Bench) -> None:
    interface = bench.pair.interface
    frames = bench.frames(4, 100)
    with bench.running("xdp_program --interface {} tx"):
        for option, *settings in bench.pair.sizes:
            for setting in settings:
                bench.guest.run(f"ethtool {option} {interface} {setting}")
                bench.await_carrier()
                assert bench.send(frames) == EACH_ONCE


def test_hardware_timestamps_in_a_program(benches: dict[Pair, Bench]) -> None:
    """bpf_xdp_metadata_rx_timestamp gives the NIC's clock, which is the server's monotonic one."""
    bench = benches[DQO]
    with quiet_log(bench.guest):
        started = time.monotonic_ns()
        with bench.running("xdp_program --interface {} --timestamp tx") as process:
            assert bench.send(bench.frames(5)) == EACH_ONCE
        ended = time.monotonic_ns()
    stamps = [int(line) for line in process.output().split()[1:]]
    assert len(stamps) >= FRAMES
    assert started < min(stamps) and max(stamps) < ended
