"""arm64 guests with pages of 4 KiB and of 16 KiB: the stock kernels of Debian, whose CPUs QEMU emulates."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab import IN_PEER, LINK0, connect_pair, nics_of, ping, quiet_log, send_file

from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.kernel import kernel_named
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import install_guest_tools

pytestmark = pytest.mark.guest

KIB, MIB = 1 << 10, 1 << 20
PORT, QUEUE = 5201, 3
#: What ``ncdevmem -v 7`` expects, over and over.
NCDEVMEM_PATTERN = bytes((1, 2, 3, 4, 5, 6, 10))
#: The driver's numbers of the queue formats (gve.h, enum gve_queue_format) by the options that make a NIC offer them.
FORMATS = {"gqi-rda": 1, "legacy --revision 1": 2, "dqo-qpl": 4}


@dataclass(frozen=True)
class Kernel:
    """A kernel by its package, and the size of its pages in bytes."""

    package: str
    page_size: int


SMALL, LARGE = Kernel("linux-image-cloud-arm64", 4 * KIB), Kernel("linux-image-arm64-16k", 16 * KIB)


def config_of(kernel: Kernel, server: NicServer) -> GuestConfig:
    """All guests here are alike, so that there is one snapshot for each kernel."""
    return GuestConfig(
        nics=nics_of(server), kernel=kernel_named(kernel.package), device_memory={"hbm": 64 * MIB}, arch="arm64"
    )


@pytest.fixture(
    scope="module",
    params=[SMALL, pytest.param(LARGE, marks=pytest.mark.long)],
    ids=lambda kernel: f"{kernel.page_size // KIB}k",
)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Kernel, Guest, NicServer]]:
    """A guest with two NICs back to back, the second in namespace "peer"."""
    kernel: Kernel = request.param
    with NicServer(["--wire", "link", "--check"], sockets=2) as server, Guest(config_of(kernel, server)) as guest:
        with quiet_log(guest):
            connect_pair(guest)
            yield kernel, guest, server
        assert not server.findings()


def test_traffic_and_header_split(pair: tuple[Kernel, Guest, NicServer]) -> None:
    """*Verify*: a snapshot serves these guests, too; frames of all sizes and streams arrive, with and without split."""
    kernel, guest, server = pair
    assert guest.why_booted == ""
    assert guest.run("uname -m; python3 -c 'import resource; print(resource.getpagesize())'").stdout.split() == [
        "aarch64",
        str(kernel.page_size),
    ]
    for split in ("off", "on"):
        guest.run(f"ethtool -G eth0 tcp-data-split {split}")
        for size in (1, 1472, 4096, 8868):
            ping(guest, LINK0.peer, count=5, size=size, options="-M do")
        send_file(guest, LINK0.address, MIB, here=IN_PEER, there="")
    receiving = server.report()[0]
    assert receiving["dma"]["header"]["ram"] > 0 and receiving["dma"]["payload"]["ram"] >= 2 * MIB
    assert [report["dma_faults"] for report in server.report()] == [0, 0]


@pytest.mark.long
def test_devmem(pair: tuple[Kernel, Guest, NicServer]) -> None:
    """From one dma-buf to another, in memory of a device. A queue's piece of a dma-buf is a page, as large as it is."""
    _, guest, server = pair
    install_guest_tools(guest)
    hbm, size = guest.device_memory["hbm"], 4 * MIB
    guest.run(
        f"set -e; ethtool -G eth0 tcp-data-split on; ethtool -K eth0 ntuple on; ethtool -X eth0 equal {QUEUE};"
        f"ethtool -N eth0 flow-type tcp4 dst-port {PORT} action {QUEUE};"
        f"until ping -q -c 1 -W 1 {LINK0.peer}; do :; done",
        timeout=120,
    )
    for buffer in (2 * KIB, 4 * KIB):
        before = server.report()[0]["dma"]["payload"].get("hbm", 0)
        guest.run(f"ethtool -G eth0 rx-buf-len {buffer}")
        receiver = guest.start(
            f"devmem_receiver --interface eth0 --port {PORT} --queues {QUEUE} --size {32 * MIB} {hbm.options}"
        )
        receiver.expect("ready", timeout=120)
        guest.run(
            f"{IN_PEER}devmem_sender --interface eth1 --connect {LINK0.address} --port {PORT} --bytes {size}"
            f" --size {size} {hbm.options}",
            timeout=120,
        )
        result = receiver.wait(60)
        assert result.status == 0, result.stdout + result.stderr
        said = json.loads(result.stdout.splitlines()[-1])
        assert (said["bytes"], said["linear_bytes"], said["errors"]) == (size, 0, 0)
        assert server.report()[0]["dma"]["payload"]["hbm"] - before >= size
    # The same, by the kernel's own program.
    process = guest.start(f"ncdevmem -s {LINK0.address} -f eth0 -l -L -p {PORT} -v 7 -t {QUEUE} -q 1")
    guest.run(f"until ss -ltn | grep -q :{PORT}; do sleep 0.1; done", timeout=120)
    connection = f"socket.create_connection(('{LINK0.address}', {PORT}))"
    sender = f"import socket; {connection}.sendall({NCDEVMEM_PATTERN!r} * 100_000)"
    guest.run(["ip", "netns", "exec", "peer", "python3", "-c", sender], timeout=120)
    result = process.wait(60)
    assert result.status == 0, result.stdout + result.stderr


@pytest.mark.long
@pytest.mark.parametrize("profile", FORMATS)
def test_formats(profile: str) -> None:
    """With pages of 16 KiB, page lists have as large ones, and a queue's pages hold more buffers."""
    with ExitStack() as stack:
        words = ["--wire", "link", "--check", "--profile", *profile.split()]
        server = stack.enter_context(NicServer(words, sockets=2))
        guest = stack.enter_context(Guest(config_of(LARGE, server)))
        stack.enter_context(quiet_log(guest))
        connect_pair(guest)
        assert guest.dmesg().count(f"GVE queue format {FORMATS[profile]}") == 2
        mtu = int(guest.run("cat /sys/class/net/eth0/mtu").stdout)
        for size in (1, 1472, 2016, 2017, 4066, 4067, 8868):
            if size <= mtu - 28:
                ping(guest, LINK0.peer, count=5, size=size, options="-M do")
        send_file(guest, LINK0.address, MIB, here=IN_PEER, there="")
        assert not server.findings()
        assert [report["dma_faults"] for report in server.report()] == [0, 0]


@pytest.mark.long
def test_the_first_nics_are_of_no_use_to_a_kernel_with_larger_pages() -> None:
    """A fault of the driver's, which the checker shows.

    A NIC of revision 0 is told in pages of 4 KiB where the admin queue is, but the driver divides the address by its
    own page size (gve_adminq.c, gve_adminq_alloc).
    """
    words = ["--wire", "none", "--check", "--profile", "legacy"]
    with NicServer(words) as server, Guest(config_of(LARGE, server)) as guest:
        guest.run("until dmesg | grep -q 'probe with driver gve failed'; do sleep 0.1; done", timeout=120)
        assert "REG-006" in server.findings()


@pytest.mark.long
@pytest.mark.parametrize("kernel", [SMALL, LARGE], ids=lambda kernel: f"{kernel.page_size // KIB}k")
def test_a_selftest(kernel: Kernel, tmp_path: Path) -> None:
    """The kernel's own tests, compiled for arm64, end as on amd64."""
    command = [sys.executable, "-m", "nicmodel.cli", "selftests", "hds", "--kernel", kernel.package]
    run = subprocess.run([*command, "--logs", str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0 and "All 13 cases are as expected" in run.stdout, run.stdout + run.stderr
