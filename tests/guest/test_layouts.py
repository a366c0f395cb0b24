"""Every machine of `qemu-configs/` with the NIC in it, carrying traffic; and the README's other device."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from lab import LINK0, TROUBLE, connect_pair, flood, load_driver, nics_of, ping, send_file

from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.layout import ACCELERATORS, FOLDER, LAYOUTS, Nic
from nicmodel.vm.qemu import spawn
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import install_guest_module, install_guest_tools

pytestmark = pytest.mark.guest

MEBIBYTES = 4


#: A CPU whose host bridge Linux lets peers talk through, as in every AMD Zen.
ZEN = "EPYC"


@contextmanager
def machine(layout: str) -> Iterator[tuple[Guest, NicServer]]:
    """A guest of the layout with two NICs back to back and an accelerator."""
    with NicServer(["--wire", "link"], sockets=2) as server, ExitStack() as stack:
        config = GuestConfig(nics=nics_of(server), layout=layout, accelerators={"hbm": 64 << 20}, cpu=ZEN)
        # One boots with its NICs in place, as those do who use the files by hand; an IOMMU wants that, too.
        guest = stack.enter_context(Guest(config, snapshot=layout != "q35"))
        assert bool(guest.why_booted) == (layout in ("q35", "iommu"))
        connect_pair(guest)
        yield guest, server
        assert not [line for line in guest.dmesg().splitlines() if TROUBLE.search(line)]


def ping_sizes(guest: Guest) -> None:
    """Datagrams from one byte to the largest frame, and none is lost."""
    for size in (1, 1472, 4096, 8868):
        ping(guest, LINK0.peer, count=20, size=size, options="-M do")


def from_peer_to_peer(guest: Guest, server: NicServer) -> None:
    """One NIC reads the accelerator's memory, the other writes it, and no CPU carries the payload."""
    install_guest_tools(guest)
    install_guest_module(guest)
    size = MEBIBYTES << 20
    hbm = guest.device_memory["hbm"]
    guest.run(
        "set -e; ethtool -G eth0 tcp-data-split on; ethtool -K eth0 ntuple on; ethtool -X eth0 equal 3;"
        "ethtool -N eth0 flow-type tcp4 dst-port 5201 action 3; ethtool -n eth0;"
        f"until ping -q -c 1 -W 1 {LINK0.peer}; do :; done",
        timeout=120,
    )
    receiver = guest.start(f"devmem_receiver --interface eth0 --port 5201 --queues 3 --size {size} {hbm.options}")
    receiver.expect("ready", timeout=120)
    guest.run(
        f"ip netns exec peer devmem_sender --interface eth1 --connect {LINK0.address} --port 5201 --bytes {size}"
        f" --size {size} --offset {size} {hbm.options}",
        timeout=120,
    )
    result = receiver.wait(60)
    assert result.status == 0 and f'"bytes": {size}, ' in result.stdout, result
    receiving, sending = server.report()
    assert receiving["dma"]["payload"]["hbm"] >= size and sending["dma"]["transmit"]["hbm"] >= size


#: How many bridges there are above the NIC: a root port, and the switch's upstream and downstream port.
PLAIN_LAYOUTS = {"q35": 1, "two-nics": 1, "switch": 3}


def test_every_file_is_a_layout_that_is_tested() -> None:
    assert {path.name for path in FOLDER.glob("*.args")} == {*LAYOUTS.values(), *ACCELERATORS.values()}
    assert set(LAYOUTS) - {"virt"} == set(ACCELERATORS) == {*PLAIN_LAYOUTS, "iommu"}  # virt: test_arm64.py


@pytest.mark.parametrize(
    ("layout", "bridges"),
    [
        pytest.param(name, bridges, marks=[] if name == "switch" else pytest.mark.long)
        for name, bridges in PLAIN_LAYOUTS.items()
    ],
)
def test_traffic(layout: str, bridges: int) -> None:
    with machine(layout) as (guest, server):
        path = guest.run("readlink -f /sys/class/net/eth0/device").stdout
        assert path.count("/0000:") == bridges + 1
        ping_sizes(guest)
        send_file(guest, LINK0.peer, MEBIBYTES << 20)
        from_peer_to_peer(guest, server)
        assert [report["dma_faults"] for report in server.report()] == [0, 0]


@pytest.fixture(scope="module")
def behind_iommu() -> Iterator[tuple[Guest, NicServer]]:
    """A guest whose NICs reach its memory through an IOMMU. QEMU has nothing to say about any mapping of theirs."""
    with machine("iommu") as (guest, server):
        yield guest, server
        assert "vfio" not in guest.qemu_log(), guest.qemu_log()


def test_traffic_through_an_iommu(behind_iommu: tuple[Guest, NicServer]) -> None:
    """Rings and buffers have I/O virtual addresses, and each mapping of 4 KiB is a DMA_MAP of its own."""
    guest, server = behind_iommu
    assert "DMAR: Intel(R) Virtualization Technology for Directed I/O" in guest.dmesg()
    assert guest.run("cat /sys/class/net/eth0/device/iommu_group/type").stdout.startswith("DMA")
    # What the guest has mapped when its NICs are up, that a guest without IOMMU does not: ring pages and buffers.
    before = server.report()
    mapped = [report["vfio_user"]["dma_map"] - report["vfio_user"]["dma_unmap"] for report in before]
    assert min(mapped) > 1000
    # Above its memory: no address of the guest's physical memory, whatever the mapping.
    assert all(queue["completion_ring"] >= 1 << 30 for queue in before[0]["rx_queues"] if queue["active"])
    for split in ("on", "off"):
        guest.run(f"ethtool -G eth0 tcp-data-split {split}", timeout=120)
        ping_sizes(guest)
    send_file(guest, LINK0.peer, MEBIBYTES << 20)
    from_peer_to_peer(guest, server)
    after = server.report()
    assert sum(queue["bad_checksum"] for report in after for queue in report["rx_queues"]) == 0
    assert [report["dma_faults"] for report in after] == [0, 0]
    # Unloading takes every mapping back.
    guest.run("rmmod gve; ip netns del peer", timeout=120)
    for report, held in zip(server.report(), mapped, strict=True):
        assert report["vfio_user"]["dma_map"] - report["vfio_user"]["dma_unmap"] < held / 10
    load_driver(guest)
    ping(guest, LINK0.peer, count=20, size=4000)


@pytest.mark.parametrize("restart", [Guest.reset, pytest.param(Guest.reboot, marks=pytest.mark.long)])
def test_restarts_behind_an_iommu(behind_iommu: tuple[Guest, NicServer], restart: Callable[[Guest], None]) -> None:
    """The reset button, of which no driver learns, or a reboot, while the NICs write to memory.

    QEMU takes all memory back by a few huge ranges.
    """
    guest, server = behind_iommu
    flood(guest, server)
    restart(guest)
    connect_pair(guest)
    ping(guest, LINK0.peer, count=20, size=4000)


def test_a_driver_in_user_space_behind_an_iommu(behind_iommu: tuple[Guest, NicServer]) -> None:
    """*Steps*: have a program of the guest's drive the NIC by VFIO, and leave in disorder; twice, at the same I/O
    virtual address. Give the NIC back to the kernel's driver.
    *Verify*: each time the NIC has written to the memory of the program that runs, and the kernel's driver works.
    """
    guest, server = behind_iommu
    device = guest.run("basename $(readlink /sys/class/net/eth0/device)").stdout.strip()
    mac = guest.run("cat /sys/class/net/eth0/address").stdout
    there = f"/sys/bus/pci/devices/{device}"
    guest.run(
        f"set -e; modprobe vfio_pci; echo {device} > {there}/driver/unbind; echo vfio-pci > {there}/driver_override"
    )
    guest.run(f"echo {device} > /sys/bus/pci/drivers_probe; ip netns del peer")
    guest.put(Path(__file__).with_name("user_space_driver.py"), "/tmp/driver.py")
    for _ in range(2):
        assert guest.run(f"python3 /tmp/driver.py {device}", timeout=120).stdout == mac
    guest.run(f"set -e; echo {device} > {there}/driver/unbind; echo > {there}/driver_override; rmmod gve")
    load_driver(guest)
    ping(guest, LINK0.peer, count=20, size=4000)
    assert [report["dma_faults"] for report in server.report()] == [0, 0]


def test_the_30_line_device_in_a_guest(tmp_path: Path) -> None:
    """The guest finds it, and its BAR keeps what the guest writes."""
    path = tmp_path / "scratch.sock"
    process = spawn([sys.executable, "-m", "nicmodel.vfio_user.example", str(path)])
    try:
        deadline = time.monotonic() + 30
        while not path.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        with Guest(GuestConfig(nics=[Nic(path)])) as guest:
            program = (
                "import glob, mmap, pathlib, struct\n"
                "for device in map(pathlib.Path, glob.glob('/sys/bus/pci/devices/*')):\n"
                "    if (device / 'vendor').read_text() == '0x1234\\n' and"
                " (device / 'device').read_text() == '0x5678\\n':\n"
                "        (device / 'enable').write_text('1')\n"
                "        with (device / 'resource0').open('r+b') as file:\n"
                "            registers = memoryview(mmap.mmap(file.fileno(), 4096)).cast('I')\n"
                "        registers[4], registers[1023] = 0x12345678, 0x9abcdef0\n"
                "        print(hex(registers[4]), hex(registers[5]), hex(registers[1023]))\n"
            )
            said = guest.run(["python3", "-c", program]).stdout
            assert said.split() == ["0x12345678", "0x0", "0x9abcdef0"]
    finally:
        process.terminate()
        assert process.wait(120) == 0
