"""The debug kernel: what it looks for is on, the stock drivers are good under its eyes, and mistakes are found.

It is built once, by `nicmodel kernel build`; without it these tests are skipped.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab import LINK0, change_source, connect_pair, nics_of, ping, quiet_log, send_file

from nicmodel.vm.debug_kernel import DebugKernel
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.image import MODULES
from nicmodel.vm.kernel import Kernel
from nicmodel.vm.server import NicServer

pytestmark = [pytest.mark.guest, pytest.mark.long, pytest.mark.timeout(1800)]

MIB = 1 << 20
#: Modules of guests that it does without: it is for NICs' drivers. And what no kernel of its version has as a module.
LEFT_OUT = re.compile(
    r"vmxnet3|e1000e|igb|bridge|bonding|nf_tables|nft_\w+|9p\w*|vmw_vsock_virtio_transport|ipv6|udmabuf"
)


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    try:
        return DebugKernel().find()
    except VmError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["gvnic", "idpf"])
def guest(kernel: Kernel, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """With two NICs of a kind, back to back."""
    with ExitStack() as stack:
        server = stack.enter_context(NicServer(["--device", request.param, "--wire", "link"], sockets=2))
        guest = stack.enter_context(Guest(GuestConfig(nics=nics_of(server), kernel=DebugKernel())))
        connect_pair(guest)
        yield guest


def locks_are_watched(guest: Guest) -> bool:
    """Lockdep switches itself off with its first report, and when its tables are full."""
    return re.search(r"^ debug_locks: +1$", guest.run("cat /proc/lockdep_stats").stdout, re.MULTILINE) is not None


def test_what_it_looks_for_is_on(kernel: Kernel, guest: Guest) -> None:
    assert guest.run("uname -r").stdout == f"{kernel.release}\n"
    for sign in ("KernelAddressSanitizer initialized", "DMA-API: debugging enabled"):
        assert sign in guest.console.read_text(errors="replace")
    assert locks_are_watched(guest)
    guest.run("cd /sys/kernel/debug && ls kmemleak dma-api/error_count failslab fail_page_alloc fail_skb_realloc")


def test_it_has_the_modules_of_guests(kernel: Kernel) -> None:
    missing = {name for name in MODULES if name not in kernel.modules and name not in kernel.built_in}
    assert {name for name in missing if not LEFT_OUT.fullmatch(name)} == set()


def test_a_stock_driver_is_good(guest: Guest) -> None:
    """*Steps*: traffic, the interface down and up, other rings, the driver unbound and bound again.

    *Verify*: the kernel has no complaint, nothing is leaked, and all checks are still on.
    """
    [driver] = {Path(path).name for path in guest.run("readlink -f /sys/class/net/eth0/device/driver").stdout.split()}
    leaks = "echo scan >/sys/kernel/debug/kmemleak; cat /sys/kernel/debug/kmemleak"
    guest.run(leaks, timeout=120)
    guest.run("echo clear >/sys/kernel/debug/kmemleak")  # of the boot
    with quiet_log(guest):
        ping(guest, LINK0.peer, count=50, size=1400)
        send_file(guest, LINK0.peer, 2 * MIB)
        guest.run("ethtool -L eth0 combined 1 || ethtool -L eth0 rx 1 tx 1; ethtool -G eth0 rx 512 tx 512", timeout=120)
        guest.run("ip link set eth0 down; ip link set eth0 up", timeout=120)
        ping(guest, LINK0.peer, count=50, size=1400)
        guest.run(
            f"cd /sys/bus/pci/drivers/{driver}; for nic in 0*; do echo $nic >unbind; echo $nic >bind; done",
            timeout=120,
        )
        # What is younger than five seconds is not told of; and what has changed between two scans is not, either.
        found = guest.run(f"sleep 6; {leaks}; {leaks}", timeout=240).stdout
    assert driver not in found, found
    assert guest.run("cat /sys/kernel/debug/dma-api/error_count").stdout == "0\n"
    assert locks_are_watched(guest)


@pytest.mark.parametrize(
    ("file", "old", "new", "after", "found"),
    [
        pytest.param(
            "gve_tx_dqo.c",
            "*bytes += pending_packet->skb->len;\n\n\t\tnapi_consume_skb(pending_packet->skb, is_napi);",
            "napi_consume_skb(pending_packet->skb, is_napi);\n\t\t*bytes += pending_packet->skb->len;",
            "static void gve_handle_packet_completion",
            r"BUG: KASAN: (slab-)?use-after-free in gve_\w+\S+ \[gve\] \(\S+/gve_tx_dqo\.c:\d+\)",
            id="used-after-it-was-freed",
        ),
        pytest.param(
            "gve_tx_dqo.c",
            "\tpkt->num_bufs = 0;\n",
            "",
            "static void gve_unmap_packet",
            r"DMA-API: gve \S+: device driver tries to free DMA memory it has not allocated",
            id="unmapped-twice",
        ),
        pytest.param(
            "gve_rx_dqo.c",
            "dma_free_coherent(hdev, sizeof(*rx->q_resources),\n\t\t\t\t  rx->q_resources, rx->q_resources_bus);",
            "",
            "void gve_rx_free_ring_dqo",
            r"DMA-API: \w+ \S+: device driver has pending DMA allocations while released from device",
            id="never-unmapped",
        ),
        pytest.param(
            "gve_rx_dqo.c",
            "\tkvfree(rx->dqo.buf_states);\n",
            "",
            "void gve_rx_free_ring_dqo",
            r"unreferenced object 0x\w+ \(size \d+\):\n(.*\n)*? +.* gve_\S+ \[gve\] \(\S+/gve_\w+\.c:\d+\)",
            id="leaked",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_found(kernel: Kernel, gve: Path, file: str, old: str, new: str, after: str, found: str) -> None:
    """*Verify*: `nicmodel driver dev` shows the kernel's report, with the place in the source, and fails."""
    change_source(gve / file, old, new, after=after)
    command = [sys.executable, "-m", "nicmodel.cli", "driver", "dev", str(gve), "--once", "--kernel", kernel.name]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert run.returncode == 1, run.stdout + run.stderr
    assert re.search(found, run.stdout), run.stdout
