"""The bench of ``nicmodel experiment ddp``: a NIC whose driver is here, at a switch with a guest that is the target."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from nicmodel.client.control import Control
from nicmodel.gvnic.experiments.ddp import MEMORY, Bench, Network
from nicmodel.gvnic.testing.driver import Driver
from nicmodel.gvnic.testing.nvme_host import BLOCK
from nicmodel.gvnic.testing.station import Station
from nicmodel.testing.guest_memory import GuestMemory
from nicmodel.vfio_user.client import Client
from nicmodel.vm import link
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.kernel import KernelChoice
from nicmodel.vm.layout import Nic
from nicmodel.vm.needs import GVE, require
from nicmodel.vm.nvmet import NVMET, NvmeTarget
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import check_host

#: Addresses of host and target.
_HOST, _TARGET = "10.4.0.1", "10.4.0.2"
#: Names of the host's NIC and of the guest's, by the server.
_OURS = "nic0"
_MTU = 1500
#: Memory for reads, and the host's own, bytes.
_DATA, _RAM = 32 << 20, 64 << 20
_SECOND = 1_000_000_000
#: The longest that the host waits for an interrupt before it looks by itself, ms.
_LOOK = 50
#: How long an overtaken frame is held back, s.
_HELD = 0.002


def set_up(stack: ExitStack, kernel: KernelChoice) -> Bench:
    """Start server, guest and target, and connect the driver; the stack ends it.

    Raises:
        VmError: something did not start.
    """
    check_host()
    require(kernel.find(), (GVE, *NVMET))
    server = stack.enter_context(NicServer(["--wire", "switch", "--ddp-flows", "1"], sockets=2))
    guest = stack.enter_context(Guest(GuestConfig(nics=[Nic(server.sockets[1])], kernel=kernel)))
    guest.run(
        f"modprobe gve; until [ -e /sys/class/net/eth0 ]; do sleep 0.05; done; ip addr add {_TARGET}/24 dev eth0;"
        f"ip link set eth0 mtu {_MTU} up; until {link.is_up('eth0')}; do sleep 0.05; done",
        timeout=120,
    )
    target = stack.enter_context(NvmeTarget(guest, _TARGET, BLOCK).running())
    control = stack.enter_context(Control(server.control))
    ram = stack.enter_context(GuestMemory("ram", size=_RAM))
    driver = stack.enter_context(Driver(Client(str(server.sockets[0])), ram=ram, pause=time.sleep))
    driver.probe()
    memory = driver.add_memory(MEMORY, _DATA)

    def wait(ns: int) -> None:
        """Sleep until the receive queue has fired."""
        vector = driver.rx_block(0)
        driver.enable(vector)
        waiting = select.poll()
        waiting.register(driver.eventfds[vector], select.POLLIN)
        waiting.poll(min(-(-ns // 1_000_000), _LOOK))
        driver.fired(vector)

    @contextmanager
    def disturb(network: Network) -> Iterator[None]:
        if network.loss:
            control.add_fault("wire-drop", nic=_OURS, seed=1, probability=network.loss)
        if network.reorder:
            control.add_fault("wire-reorder", nic=_OURS, seed=2, probability=network.reorder, delay=_HELD)
        try:
            yield
        finally:
            if network.loss or network.reorder:
                control.end_fault(nic=_OURS)

    about = {
        "target": "nvmet in a guest, one namespace in a file",
        "guest kernel": guest.kernel_version,
        "acceleration": {"kvm": "KVM", "tcg": "TCG, an emulated CPU"}.get(guest.accel, guest.accel),
    }
    return Bench(
        driver=driver,
        station=Station(driver, _HOST, now=time.monotonic_ns, wait=wait, mtu=_MTU),
        target=target,
        memory=memory,
        disturb=disturb,
        report=lambda: next(nic for nic in control.stat() if nic["name"] == _OURS),
        about=about,
    )
