"""Every queue format under the stock driver, which takes what the profile offers, and older stock kernels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from lab import TROUBLE, send_file

from nicmodel.vm import link
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.kernel import DEFAULT_KERNEL, kernel_named
from nicmodel.vm.layout import Nic
from nicmodel.vm.server import NicServer

pytestmark = pytest.mark.guest


@dataclass(frozen=True)
class Case:
    """A profile under a kernel, the driver's number of the format, the MTU that it comes up with."""

    profile: str
    format: int
    mtu: int = 8896
    kernel: str = DEFAULT_KERNEL.name


CASES = [
    Case("gqi-rda", 1),
    Case("legacy", 2, mtu=1500),
    Case("dqo-qpl", 4),
    Case("gce", 3),
    Case("default", 3, kernel="trixie"),
    Case("default", 3, kernel="bookworm"),
]
FILE_SIZE = 2 << 20


#: What is like another case but for one thing, which other tests see: addresses, options, a kernel in between.
LONG = [case for case in CASES if case.profile in ("gqi-rda", "gce") or case.kernel == "trixie"]


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=pytest.mark.long if case in LONG else []) for case in CASES],
    ids=lambda case: f"{case.profile}-{case.kernel}",
)
def linked(request: pytest.FixtureRequest) -> Iterator[tuple[Case, Guest, NicServer]]:
    """A guest with two NICs of one profile, back to back, the second in namespace "peer"."""
    case: Case = request.param
    with ExitStack() as stack:
        server = stack.enter_context(NicServer(["--wire", "link", "--profile", case.profile, "--check"], sockets=2))
        nics = [Nic(path) for path in server.sockets]
        config = GuestConfig(nics=nics, memory="1536M", kernel=kernel_named(case.kernel))
        guest = stack.enter_context(Guest(config))
        guest.run(
            "modprobe gve; ip netns add peer; until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done;"
            "ip link set eth1 netns peer; ip addr add 10.1.0.1/24 dev eth0; ip -n peer addr add 10.1.0.2/24 dev eth1;"
            "ip link set eth0 up; ip -n peer link set eth1 up; ip -n peer link set lo up;"
            f"until {link.is_up('eth0')}; do sleep 0.1; done"
        )
        yield case, guest, server
        trouble = [line for line in guest.dmesg().splitlines() if TROUBLE.search(line)]
        assert not trouble
        findings = server.findings()
        assert not findings, "the driver breaks the contract:\n" + findings


def test_the_driver_takes_the_format(linked: tuple[Case, Guest, NicServer]) -> None:
    case, guest, _ = linked
    assert guest.dmesg().count(f"GVE queue format {case.format}") == 2
    assert f"mtu {case.mtu} " in guest.run("ip link show eth0").stdout


def test_ping_of_every_size(linked: tuple[Case, Guest, NicServer]) -> None:
    case, guest, _ = linked
    sizes = [0, 1, 18, 64, 128, 1000, 1472, 2016, 2017, 2018, 2019, 2020, 4066, 4067, 4068, 6114, 6115, 8868]
    chosen = " ".join(str(size) for size in sizes if size <= case.mtu - 28)
    script = f"for s in {chosen}; do ping -q -c 2 -i 0.01 -W 5 -s $s 10.1.0.2 >/dev/null || echo $s; done"
    assert guest.run(script, timeout=90).stdout.split() == []


def test_tcp_and_udp_with_several_streams(linked: tuple[Case, Guest, NicServer]) -> None:
    _, guest, server = linked
    before = server.report()
    guest.run("ip netns exec peer iperf3 -s -D; until ip netns exec peer ss -ltn | grep -q :5201; do sleep 0.05; done")
    # By bytes and not by seconds: a guest may have no processor for one.
    for options in ("-P 4 -n 4M", "-P 4 -R -n 4M", "-u -b 5M -l 1400 -n 512K"):
        said = guest.run(f"iperf3 -J -c 10.1.0.2 {options}", timeout=120).stdout
        end = json.loads(said)["end"]
        assert (end["sum"] if "-u" in options else end["sum_received"])["bytes"] > 1 << 18
    guest.run("pkill iperf3")
    for old, new in zip(before, server.report(), strict=True):
        assert new["dma_faults"] == 0
        grown = {name for name, count in new["drops"].items() if count > old["drops"].get(name, 0)}
        assert grown <= {"no_buffers"}


def test_a_file_arrives_as_it_was(linked: tuple[Case, Guest, NicServer]) -> None:
    _, guest, _ = linked
    send_file(guest, "10.1.0.2", FILE_SIZE)


def test_reconfiguration_and_reload(linked: tuple[Case, Guest, NicServer]) -> None:
    """Queues are destroyed and made anew, page lists with them; the driver goes and comes back."""
    _, guest, _ = linked
    guest.run("ethtool -L eth0 rx 2 tx 2; ip link set eth0 down; ip link set eth0 up")
    guest.run("until ping -q -c 1 -W 1 10.1.0.2 >/dev/null; do sleep 0.1; done", timeout=120)
    guest.run("ip -n peer link set eth1 netns 1; rmmod gve && modprobe gve", timeout=120)
    guest.run(
        "until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done; ip link set eth1 netns peer;"
        "ip addr add 10.1.0.1/24 dev eth0; ip -n peer addr add 10.1.0.2/24 dev eth1;"
        "ip link set eth0 up; ip -n peer link set eth1 up; until ping -q -c 1 -W 1 10.1.0.2 >/dev/null; do :; done",
        timeout=120,
    )
