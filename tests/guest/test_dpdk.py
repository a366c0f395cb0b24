"""DPDK's drivers for both kinds of NIC, in a guest's user space behind an IOMMU.

testpmd forwards what comes to one NIC to the other; at the far ends of both there are gVNICs with the kernel's driver:

    10.1.0.1  eth0 ── NIC ── testpmd ── NIC ── eth1  10.1.0.2, in namespace "peer"
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path

import pytest
from lab import IN_PEER, LINK0, LINK1, TROUBLE, await_carrier, give_addresses, nics_of, ping, send_file, wait_until

from nicmodel.client.control import Control
from nicmodel.vm.channel import Process
from nicmodel.vm.dpdk import DPDK, DPDK_24_11, install_dpdk
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.packages import Packages
from nicmodel.vm.server import NicServer

pytestmark = [pytest.mark.guest, pytest.mark.long]

#: Rules that net_idpf breaks (docs/dpdk.md); net_gve breaks none.
KNOWN_FAULTS = ("VPT-003", "RSS-004", "RXQ-008", "MSG-007", "TX-PKT-006")
PAGE = Path(__file__).parents[2] / "docs/dpdk.md"
MTU = 1500
MEBIBYTES = 2
#: Of the far ends.
PORTS = (LINK0, LINK1)
#: How an interface gets to where its port is.
NAMESPACE = {LINK0: "", LINK1: "netns peer "}


class Testpmd:
    """DPDK's program for trying drivers, which takes commands.

    Args:
        process: it, running.
    """

    __test__ = False
    PROMPT = "testpmd> "

    def __init__(self, process: Process) -> None:
        self._process = process
        self._seen = 0
        self._await()

    def _await(self) -> str:
        """What it has said since the last prompt, up to the next one."""

        def said() -> str:
            return self._process.output()[self._seen :]

        wait_until(lambda: self.PROMPT in said() or not self._process.running, what=self._process.output)
        assert self.PROMPT in said(), self._process.output() + self._process.wait().stderr
        answer = said()[: said().index(self.PROMPT)]
        self._seen += len(answer) + len(self.PROMPT)
        return answer

    def say(self, *commands: str) -> str:
        """Have commands executed; what is said of the last one."""
        answer = ""
        for command in commands:
            self._process.write(command.encode() + b"\n")
            answer = self._await()
        return answer

    def output(self) -> str:
        """All that it has said so far."""
        return self._process.output()

    def quit(self) -> None:
        """End it in order."""
        self._process.write(b"quit\n")
        result = self._process.wait(120)
        assert result.status == 0, result


class Bench:
    """The guest and the NICs of the picture above.

    Args:
        stack: what is taken down when the bench is.
        kinds: of the two NICs between.
        arguments: for the server.
        packages: with testpmd.

    Attributes:
        guest: the guest.
        server: the NICs' server.
        devices: PCI addresses of the two NICs between.
    """

    def __init__(self, stack: ExitStack, kinds: Sequence[str], arguments: Sequence[str], packages: Packages) -> None:
        words = [f"--device={kind}" for kind in ("gvnic", *kinds, "gvnic")]
        # Neither driver can ask for frames that are for others.
        words += ["--wire=link"] * 4 + ["--promiscuous", "--check", *arguments]
        self.server = stack.enter_context(NicServer(words, sockets=4))
        config = GuestConfig(nics=nics_of(self.server), layout="iommu", memory="1536M")
        self.guest = stack.enter_context(Guest(config))
        addresses = self.guest.pci_addresses()
        self.devices = [addresses["nic1"], addresses["nic2"]]
        install_dpdk(self.guest, packages)
        self.guest.run("echo 128 > /proc/sys/vm/nr_hugepages; modprobe vfio_pci")
        for device in self.devices:
            self._give(device, "vfio-pci")
        for nic, port in (("nic0", LINK0), ("nic3", LINK1)):
            there = f"/sys/bus/pci/devices/{addresses[nic]}/net"
            self.guest.run(
                f"ip netns add peer 2>/dev/null; ip link set dev $(ls {there}) {NAMESPACE[port]}name {port.interface};"
                f"{port.inside}ip link set dev {port.interface} mtu {MTU}"
            )
            give_addresses(self.guest, port)
            await_carrier(self.guest, port)

    def _give(self, device: str, driver: str) -> None:
        """Give a NIC to a driver; "": the kernel's own."""
        there = f"/sys/bus/pci/devices/{device}"
        self.guest.run(
            f"set -e; echo {device} > {there}/driver/unbind; echo {driver} > {there}/driver_override;"
            f"echo {device} > /sys/bus/pci/drivers_probe",
            timeout=120,
        )

    def start(self, *options: str) -> Process:
        """Start testpmd with both NICs."""
        allowed = " ".join(f"-a {device}" for device in self.devices)
        words = " ".join(("--rxq=2 --txq=2 --total-num-mbufs=16384", *options))
        # On a terminal it says at once what it has to say.
        return self.guest.start(f"exec dpdk-testpmd -l 0-1 {allowed} -- -i {words}", terminal=(50, 200))

    @contextmanager
    def testpmd(self, *options: str) -> Iterator[Testpmd]:
        """Run testpmd with both NICs; it ends in order."""
        running = Testpmd(self.start(*options))
        yield running
        running.quit()

    def send_both_ways(self) -> None:
        """Echo requests of several sizes, and a file over TCP each way."""
        for size in (1, 300, 1472):
            ping(self.guest, LINK0.peer, count=5, size=size)
        send_file(self.guest, LINK0.peer, MEBIBYTES << 20)
        send_file(self.guest, LINK1.peer, MEBIBYTES << 20, here=IN_PEER, there="")

    def counts(self, nic: int, way: str, name: str) -> list[int]:
        """A count of each queue of a NIC."""
        return [int(queue[name]) for queue in self.server.report()[nic][f"{way}_queues"]]

    def check(self) -> None:
        """Nobody has reason to complain."""
        assert not [line for line in self.guest.dmesg().splitlines() if TROUBLE.search(line)]
        assert self.server.findings(without=KNOWN_FAULTS) == ""
        assert [report["dma_faults"] for report in self.server.report()] == [0] * 4


@contextmanager
def bench(*kinds: str, arguments: Sequence[str] = (), packages: Packages = DPDK) -> Iterator[Bench]:
    """Such a guest, whose kernel and NICs have no reason to complain in the end."""
    with ExitStack() as stack:
        made = Bench(stack, kinds, arguments, packages)
        yield made
        made.check()


def test_the_page_s_recipe() -> None:
    """As it is printed, for a gVNIC and an idpf with the addresses that testpmd sends to: frames go round for ever.
    Then ask the idpf for the other queue model.
    """
    [recipe] = re.findall(r":name: dpdk-recipe\n\n(.*?)```", PAGE.read_text(), re.DOTALL)
    set_up, program, options = recipe.rpartition("dpdk-testpmd")
    words = ["--device=gvnic", "--device=idpf", "--mac=02:00:00:00:00:01", "--mac=02:00:00:00:00:00"]
    with (
        NicServer([*words, "--wire=link", "--check"], sockets=2) as server,
        Guest(GuestConfig(nics=nics_of(server), layout="iommu")) as guest,
    ):
        install_dpdk(guest)
        guest.run(set_up)
        testpmd = Testpmd(guest.start(f"exec {program}{options}", terminal=(50, 200)))
        testpmd.say("start tx_first")
        wait_until(lambda: all(report["delivered"] > 1000 for report in server.report()))
        testpmd.say("stop")
        testpmd.quit()
        idpf = guest.pci_addresses()["nic1"]
        single = guest.run(f"dpdk-testpmd -a {idpf},rx_single=1,tx_single=1 -- --auto-start </dev/null", check=False)
        assert "CREATE_VPORT" in single.stderr + single.stdout
        assert server.findings(without=(*KNOWN_FAULTS, "VPT-002")) == ""


def test_frames_pass_between_both_kinds() -> None:
    """*Steps*: forward between a gVNIC and an idpf. Stop and start both ports, and testpmd. Give the NICs back.
    *Verify*: all arrives, each time; and each NIC works with the kernel's driver afterwards.
    """
    with bench("gvnic", "idpf") as made:
        for _ in range(2):
            with made.testpmd() as testpmd:
                testpmd.say("start")
                made.send_both_ways()
                testpmd.say("stop", "port stop all", "port start all", "start")
                ping(made.guest, LINK0.peer, count=5, size=1000)
        for device in made.devices:
            made._give(device, "")
            made.guest.run(f"until ls /sys/bus/pci/devices/{device}/net; do sleep 0.1; done", timeout=120)


@pytest.mark.parametrize("kind", ["gvnic", "idpf"])
def test_rss_and_long_frames(kind: str) -> None:
    """*Steps*: set hash key and table; send frames of nearly 9000 bytes.
    *Verify*: all goes where the table says, and is whole.
    """
    with bench(kind, kind) as made:
        with made.testpmd() as testpmd:
            testpmd.say("start")
            testpmd.say("port config 0 rss-hash-key ipv4-tcp " + bytes(range(40)).hex())
            for start in range(0, 128, 8):
                entries = ",".join(f"({entry},1)" for entry in range(start, start + 8))
                assert "Bad" not in testpmd.say(f"port config 0 rss reta {entries}")
            before = made.counts(1, "rx", "frames")
            made.send_both_ways()
            grown = [now - then for now, then in zip(made.counts(1, "rx", "frames"), before, strict=True)]
            assert grown[1] > 1000 and grown[0] < 20  # those without a hash, such as ARP
        for port in (LINK0, LINK1):
            made.guest.run(f"{port.inside}ip link set dev {port.interface} mtu 8896")
            await_carrier(made.guest, port)
        with made.testpmd("--mbuf-size=9344", "--max-pkt-len=8910", "--total-num-mbufs=6000") as testpmd:
            testpmd.say("start")
            ping(made.guest, LINK0.peer, count=5, size=8868)
            made.send_both_ways()


#: Errors that the kernel has found in checksums that nobody has looked at for it.
CHECKSUM_ERRORS = ("TcpInCsumErrors", "UdpInCsumErrors", "IpInHdrErrors")


def checksum_errors(made: Bench) -> dict[str, int]:
    """What both ends have found wrong so far."""
    said = "".join(made.guest.run(f"{port.inside}nstat -az {' '.join(CHECKSUM_ERRORS)}").stdout for port in PORTS)
    counts = re.findall(rf"^({'|'.join(CHECKSUM_ERRORS)}) +(\d+)", said, re.MULTILINE)
    assert len(counts) == 2 * len(CHECKSUM_ERRORS), said
    return {name: sum(int(count) for one, count in counts if one == name) for name in CHECKSUM_ERRORS}


def send_datagrams(guest: Guest) -> None:
    """A datagram arrives."""
    sink = guest.start(f"{IN_PEER}sh -c 'socat -u UDP4-RECVFROM:5401 - | wc -c'")
    guest.run(f"{IN_PEER}sh -c 'until ss -lun | grep -q :5401; do sleep 0.05; done'", timeout=120)
    guest.run(f"head -c 1400 /dev/zero | socat -u - UDP4-SENDTO:{LINK0.peer}:5401")
    assert sink.wait(120).stdout.strip() == "1400"


def offload(testpmd: Testpmd, *what: str) -> None:
    """Have both ports leave something to the NIC, and forward with it."""
    testpmd.say("port stop all")
    said = [testpmd.say(f"{one} {port}") for one in ("csum mac-swap off", *what) for port in (0, 1)]
    assert not [one for one in said if "not supported" in one or "Bad" in one], said
    testpmd.say("port start all", "set fwd csum", "start")


@pytest.mark.parametrize("kind", ["gvnic"])
def test_the_nic_fills_in_checksums(kind: str) -> None:
    """*Steps*: have the NIC compute checksums of what is forwarded. The far ends look at checksums themselves.
    *Verify*: they are right.
    """
    with bench(kind, kind) as made, made.testpmd() as testpmd:
        for port in PORTS:
            made.guest.run(f"{port.inside}ethtool -K {port.interface} rx off")
        offload(testpmd, "csum set ip hw", "csum set tcp hw", "csum set udp hw")
        made.send_both_ways()
        send_datagrams(made.guest)
        assert checksum_errors(made) == dict.fromkeys(CHECKSUM_ERRORS, 0), testpmd.output()


def test_gqi_with_page_lists() -> None:
    """What net_gve takes where there is no DQO-RDA, nor GQI-RDA."""
    with bench("gvnic", "gvnic", arguments=["--profile=legacy"]) as made, made.testpmd() as testpmd:
        testpmd.say("start")
        made.send_both_ways()
        testpmd.say("stop", "port stop all", "port start all", "start")
        ping(made.guest, LINK0.peer, count=5, size=1000)


@pytest.mark.parametrize("kind", ["gvnic", "idpf"])
def test_weather(kind: str) -> None:
    """What devices may do and rarely do. *Verify*: all arrives."""
    with bench(kind, kind, arguments=["--weather", "7"]) as made, made.testpmd() as testpmd:
        testpmd.say("start")
        made.send_both_ways()
        testpmd.say("stop", "port stop all", "port start all", "start")
        made.send_both_ways()


# Faults of the drivers (docs/found.md). A test that fails means that they are better now: say so on the page.


def flood(guest: Guest, count: int) -> None:
    """Echo requests of one flow, for which nobody waits."""
    guest.run(f"ping -q -f -c {count} -s 100 -W 1 {LINK0.peer}", timeout=300, check=False)


def test_24_11_dies_at_the_second_packet_of_a_queue() -> None:
    with bench("gvnic", "gvnic", packages=DPDK_24_11) as made:
        process = made.start("--rxq=1 --txq=1")
        Testpmd(process).say("start")
        made.guest.run(f"ping -q -c 5 -W 1 {LINK0.peer}", check=False)
        assert process.wait(60).status != 0
        assert re.search(r"segfault at 24 .*librte_net_gve", made.guest.dmesg())


def test_gqi_with_raw_addresses_begins_two_bytes_early() -> None:
    """*Verify*: what is passed on is not what came: each frame has the padding in front of it, and lacks its end."""
    with bench("gvnic", "gvnic", arguments=["--profile=gqi-rda"]) as made, made.testpmd() as testpmd:
        testpmd.say("start")
        with Control(made.server.control) as control:
            _, frames = control.capture()
            made.guest.run(f"ping -q -c 5 -W 1 {LINK0.peer}", check=False)
            control.mark()
            seen = list(takewhile(lambda frame: "reply" not in frame, frames))
        came, went = (
            [b64decode(frame["data"]) for frame in seen if (frame["nic"], frame["direction"]) == way]
            for way in (("nic1", "in"), ("nic2", "out"))
        )
        assert went and set(went) <= {bytes(2) + frame[:-2] for frame in came}


def test_an_idpf_that_is_not_polled_for_long() -> None:
    """*Steps*: let more packets come than a queue has places for completions while nobody polls; then poll.
    *Verify*: nothing is received any more until the port is started anew.
    """
    with bench("idpf", "idpf") as made, made.testpmd("--rxq=1", "--txq=1") as testpmd:
        made.guest.run(f"ip neigh replace {LINK0.peer} lladdr 02:00:00:00:00:09 dev {LINK0.interface} nud permanent")
        flood(made.guest, 700)
        assert made.counts(1, "rx", "frames")[0] >= 700
        testpmd.say("start")
        made.guest.run(f"ip neigh del {LINK0.peer} dev {LINK0.interface}")
        assert made.guest.run(f"ping -q -c 5 -W 1 {LINK0.peer}", check=False).status == 1
        testpmd.say("stop", "port stop all", "port start all", "start")
        ping(made.guest, LINK0.peer, count=5, size=1000)
