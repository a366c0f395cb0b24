"""Faults of the stock driver that weather and fuzzing have found (docs/found.md): each is shown, in a guest of its own.

A test that fails means that the kernel is better now: say so on the page, and take it away.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import frame_echo
import pytest
from lab import wait_until
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from nicmodel.client.control import Control
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.layout import Nic
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import install_guest_tools

pytestmark = [pytest.mark.guest, pytest.mark.long]

PEER, NIC = "02:00:00:00:00:02", "02:00:00:00:00:01"
FRAMES = [
    bytes(
        Ether(src=PEER, dst=NIC) / IP(src="198.18.0.1", dst="198.18.0.2") / UDP(sport=number, dport=7) / Raw(b"x" * 64)
    )
    for number in range(40)
]
#: Sends the frames and waits for none.
SEND = """
import socket
packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
packets.bind(("eth1", 0))
for line in open("/tmp/frames"):
    packets.send(bytes.fromhex(line))
"""
#: Where the kernel frees what is no skb as one.
UNDERFLOW = "refcount_warn_saturate"


class Bench:
    """A guest with two NICs back to back, of which the first has an XDP program or sockets.

    Attributes:
        guest: the guest.
        control: of the server.
    """

    def __init__(self, stack: ExitStack) -> None:
        arguments = ["--profile", "afxdp", "--wire", "link", "--mac", NIC, "--mac", PEER]
        server = stack.enter_context(NicServer(arguments, sockets=2))
        self.control = stack.enter_context(Control(server.control))
        self.guest = stack.enter_context(Guest(GuestConfig(nics=[Nic(path) for path in server.sockets])))
        install_guest_tools(self.guest)
        self.guest.put(Path(frame_echo.__file__), "/tmp/frame_echo.py")
        self.guest.put(b"\n".join(frame.hex().encode() for frame in FRAMES), "/tmp/frames")
        self.guest.run(
            """
            set -e
            for i in 0 1; do until [ -e /sys/class/net/eth$i ]; do sleep 0.1; done; done
            ip netns add peer; ip link set eth1 netns peer
            ip link set eth0 up; ip -n peer link set eth1 up
            ethtool -K eth0 rx-gro-hw off; ethtool -G eth0 rx-buf-len 2048
            """,
            timeout=120,
        )

    def echo(self) -> str:
        """Send frames from the peer and wait for each to come back."""
        return self.guest.run("ip netns exec peer python3 /tmp/frame_echo.py eth1 /tmp/frames", timeout=120).stdout

    def begin(self, program: str) -> None:
        """Start one of our programs on the first NIC; frames come back then."""
        self.guest.start(program).expect("ready", timeout=120)
        wait_until(lambda: '"missing": []' in self.echo(), timeout=120)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack)


def complains(bench: Bench, of: str, act: Callable[[], object]) -> None:
    """The kernel's log tells of a use after free, in this function of the driver."""
    act()
    wait_until(lambda: UNDERFLOW in bench.guest.dmesg(), timeout=60)
    log = bench.guest.dmesg()
    assert of in log[log.index(UNDERFLOW) :], log[-3000:]


@pytest.mark.parametrize("form", ["type", "bit"])
def test_a_miss_completion_of_an_af_xdp_packet(bench: Bench, form: str) -> None:
    bench.begin("xdp_socket --interface eth0 --queues 4 zero-copy")
    bench.control.add_fault("tx-miss", nic="nic0", delay=0.01, form=form)
    with pytest.raises(VmError, match="Kernel panic"):
        bench.echo()
    assert "gve_handle_miss_completion" in bench.guest.console_tail(120)


def test_a_miss_of_an_xdp_frame_that_is_not_re_injected(bench: Bench) -> None:
    bench.begin("xdp_program --interface eth0 tx")
    bench.control.add_fault("tx-miss", nic="nic0", delay=1000, count=20)
    bench.echo()

    def later() -> None:
        bench.guest.run("sleep 1.5")
        bench.echo()

    complains(bench, "gve_clean_tx_done_dqo", later)


def test_the_interface_goes_down_while_xdp_frames_are_under_way(bench: Bench) -> None:
    bench.begin("xdp_program --interface eth0 tx")
    bench.control.add_fault("tx-late", nic="nic0", delay=4)

    def go_down() -> None:
        with contextlib.suppress(VmError):  # it may end in a panic
            bench.guest.run(f"ip netns exec peer python3 -c {shlex.quote(SEND)}; sleep 0.2; ip link set eth0 down")

    complains(bench, "gve_tx_stop_ring_dqo", go_down)


def test_a_reset_by_a_task_that_ends(bench: Bench) -> None:
    """The link by which its program is attached ends with it, queues are made anew, and the device refuses."""
    program = bench.guest.start("exec xdp_program --interface eth0 pass")
    program.expect("ready", timeout=120)
    bench.control.add_fault("admin-status", nic="nic0", opcode="DESTROY_RX_QUEUE")
    program.close_input()
    wait_until(lambda: "Fixing recursive fault" in bench.guest.console_tail(200), timeout=120)
    assert "RIP: 0010:gve_init_priv" in bench.guest.console_tail(200)
    bench.guest.kill()


def test_idpf_has_more_queues_for_xdp_than_there_are_cpus() -> None:
    """A program is attached where four queues are, and two CPUs: memory is asked for of the node of the third."""
    with NicServer(["--device", "idpf"]) as server, Guest(GuestConfig(nics=[Nic(server.sockets[0])])) as guest:
        install_guest_tools(guest)
        guest.run("until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ip link set eth0 up", timeout=120)
        guest.run("ethtool -G eth0 tcp-data-split off; ethtool -L eth0 combined 4", timeout=120)
        guest.start("exec xdp_program --interface eth0 pass")
        wait_until(lambda: "idpf_xdpsqs_get" in guest.console_tail(120), timeout=120)
        guest.kill()


@contextlib.contextmanager
def one_gve() -> Iterator[tuple[Guest, Control]]:
    """A guest with one gVNIC, which is up."""
    with ExitStack() as stack:
        server = stack.enter_context(NicServer(["--mac", NIC]))
        control = stack.enter_context(Control(server.control))
        guest = stack.enter_context(Guest(GuestConfig(nics=[Nic(server.sockets[0])])))
        guest.run("until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ip link set eth0 up", timeout=120)
        wait_until(lambda: "Device link is up" in guest.dmesg(), timeout=60)
        yield guest, control
        guest.kill()


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("ethtool -S eth0", "gve_rx_was_added_to_block"),
        ("ethtool -C eth0 rx-usecs 77", "gve_set_coalesce"),
        ("ip link set eth0 down; ip link set eth0 up", "gve_tx_add_to_block"),
    ],
)
def test_what_is_asked_of_gve_after_a_reset_that_failed(command: str, function: str) -> None:
    """The notification blocks are gone, and are looked at."""
    with one_gve() as (guest, control):
        control.add_fault("admin-status", opcode="CONFIGURE_DEVICE_RESOURCES", status="RESOURCE_EXHAUSTED", count=1)
        control.add_fault("device-reset", count=1)
        wait_until(lambda: "DISABLING ALL QUEUES" in guest.dmesg(), timeout=60)
        guest.start(command)
        wait_until(lambda: f"RIP: 0010:{function}" in guest.dmesg(), timeout=60)


def test_gve_uses_a_pool_that_a_reset_that_failed_has_freed() -> None:
    """What is allocated is what the pool's memory says by then: nothing of it makes sense."""
    with one_gve() as (guest, control):
        control.add_fault("admin-status", opcode="CONFIGURE_RSS", status="RESOURCE_EXHAUSTED", count=1)
        control.add_fault("device-reset", count=1)
        wait_until(lambda: "DISABLING ALL QUEUES" in guest.dmesg(), timeout=60)
        guest.start("for try in 1 2 3; do ethtool -n eth0; done")
        wait_until(lambda: "gve_adminq_query_flow_rules" in guest.dmesg(), timeout=60)
        assert "dma_pool_alloc" in guest.dmesg()


def test_gve_believes_how_many_flow_rules_there_are() -> None:
    """It copies as many as the device says, beyond the buffer that it has for them: the kernel crashes anywhere."""
    with one_gve() as (guest, control):
        rules = 100_000
        control.add_fault("admin-answer", opcode="QUERY_FLOW_RULES", at=8, value=rules)
        control.add_fault("admin-answer", opcode="QUERY_FLOW_RULES", at=12, value=16 + 4 * rules)
        with pytest.raises(VmError):
            for _ in range(10):
                guest.run("ethtool -N eth0 flow-type tcp4 dst-port 80 action 0; ethtool -n eth0; sleep 0.2", timeout=30)
        assert "Oops" in guest.console_tail(200)


@pytest.mark.parametrize(
    ("command", "answer", "function"),
    [
        ("cd /sys/bus/pci/drivers/gve; echo $0 >unbind; echo $0 >bind; sleep 1; ip link set eth0 up",
         {"opcode": "DESCRIBE_DEVICE", "at": 10, "size": 2, "value": 0}, "gve_tx_alloc_rings_dqo"),
        ("ip link set eth0 down; ip link set eth0 up",
         {"opcode": "CREATE_RX_QUEUE", "at": 0, "value": 0x4000_0000}, "iowrite32"),
    ],
    ids=["rings of no entries", "doorbells"],
)  # fmt: skip
def test_gve_believes_numbers_of_the_device(command: str, answer: dict[str, Any], function: str) -> None:
    with one_gve() as (guest, control):
        pci = guest.run("basename $(readlink -f /sys/class/net/eth0/device)").stdout.strip()
        control.add_fault("admin-answer", **answer)
        guest.start(["sh", "-c", command, pci])
        wait_until(lambda: f"RIP: 0010:{function}" in guest.console_tail(200) + _log(guest), timeout=60)


def _log(guest: Guest) -> str:
    """The kernel's log, as long as the guest tells it."""
    try:
        return guest.dmesg()
    except VmError:
        return ""


def test_each_reset_leaks_an_admin_queue() -> None:
    """Besides the one in use."""
    with one_gve() as (guest, control):
        pools = "cat /sys/bus/pci/devices/*/pools | grep -c adminq_pool"
        assert guest.run(pools).stdout.strip() == "1"
        for number in range(1, 4):
            control.request_reset()
            wait_until(lambda number=number: guest.dmesg().count("Device link is up") > number, timeout=60)
        assert guest.run(pools).stdout.strip() == "4"
        guest.run("modprobe -r gve", timeout=120)


def test_gve_warns_when_buffers_do_not_come_back() -> None:
    """Each completion makes room in the ring of buffers, also one of which no buffer is free again."""
    with one_gve() as (guest, control):
        control.add_fault("rx-buffer-id", which="beyond")
        for _ in range(60):
            control.inject(FRAMES)
        wait_until(lambda: "gve_alloc_buffer" in guest.dmesg(), timeout=60)
        assert "gve_buffer_mgmt_dqo.c" in guest.dmesg()


def test_idpf_believes_which_buffer_a_completion_is_about() -> None:
    """An identifier beyond its table is taken for one in it."""
    with ExitStack() as stack:
        server = stack.enter_context(NicServer(["--device", "idpf", "--mac", NIC]))
        control = stack.enter_context(Control(server.control))
        guest = stack.enter_context(Guest(GuestConfig(nics=[Nic(server.sockets[0])])))
        guest.run("until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; ip link set eth0 up", timeout=120)
        wait_until(lambda: guest.run("cat /sys/class/net/eth0/operstate").stdout == "up\n", timeout=60)
        control.add_fault("rx-buffer-id", which="beyond")
        for _ in range(3):
            control.inject(FRAMES)
        wait_until(lambda: "idpf_rx_splitq_clean" in guest.console_tail(200), timeout=60)
        guest.kill()
