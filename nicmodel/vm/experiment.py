"""The experiment of the devmem TCP series (`nicmodel.client.experiment`), run in a guest.

Both ways of the transfer use the same NIC, queue, flow rule and header split, take turns, and end with the same: the
whole stream in the accelerator's memory, checked byte by byte when the clock has stopped.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from nicmodel.client.control import Control
from nicmodel.client.experiment import COPY, MODES, Run
from nicmodel.client.ledger import Place, entries, since
from nicmodel.client.topology import places
from nicmodel.vm.device_memory import DeviceMemory
from nicmodel.vm.devmem import send_pattern, set_up_devmem
from nicmodel.vm.errors import VmError
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.kernel import KernelChoice, default_kernel
from nicmodel.vm.layout import Nic
from nicmodel.vm.load import Load
from nicmodel.vm.namespace import namespace_for_taps
from nicmodel.vm.needs import DEVMEM, GVE, require
from nicmodel.vm.passt import Passt
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import build_guest_tools, check_guest_module, check_host, install_guest_module

MEMORY = "hbm"
"""Name of the accelerator's memory."""
SWITCH, NODE = ACCELERATORS = ("switch", "node")
"""The places where it may be."""

PORT = 5201
"""Of the receiver."""
QUEUE = 3
"""The stream's: the last one, of those that the driver starts with."""
#: TCP segments of two pages, so that each fills two buffers; headers of IP and TCP, and the timestamps of Linux' TCP.
_SEGMENT, _HEADERS, _TIMESTAMPS = 8192, 40, 12
#: What the dma-buf has besides the stream: buffers that wait in the ring, and those that are not full.
_RING_BYTES = 32 << 20


@dataclass(frozen=True)
class Bench:
    """A guest with a NIC and an accelerator's memory, and a host that sends.

    Attributes:
        guest: with eth0 set up for devmem TCP.
        server: of the NIC.
        memory: the accelerator's.
        dmabuf_size: bytes that a receiver takes of it.
        place: what it is, as the NIC reaches it.
        address: of eth0.
        there: calls a function where the host reaches the guest.
        reach: address and port there of the guest's receiver.
        about: see `Experiment`.
    """

    guest: Guest
    server: NicServer
    memory: DeviceMemory
    dmabuf_size: int
    place: Place
    address: str
    there: Callable[..., Any]
    reach: tuple[str, int]
    about: dict[str, str]

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function on the host with the address and the port that lead to the guest's receiver, and these."""
        return self.there(function, *self.reach, *arguments)

    @property
    def places(self) -> dict[str, Place]:
        """What the kinds of memory are."""
        with Control(self.server.control) as control:
            return places(self.guest.qmp.execute("query-pci"), control.show())

    def transfer(self, mode: str, nbytes: int) -> Run:
        """Send a stream, another each time, and measure what it took.

        Raises:
            VmError: the receiver failed.
        """
        seed = secrets.randbits(32)
        how = "--copy" if mode == COPY else f"--keep --interface eth0 --queues {QUEUE}"
        receiver = self.guest.start(
            f"devmem_receiver {how} --port {PORT} --size {self.dmabuf_size} {self.memory.options} --seed {seed}"
        )
        receiver.expect("ready", timeout=60)
        before, load = entries(self.server.report()[0], self.places), Load.now()
        self.call(send_pattern, nbytes, seed)
        result = receiver.wait(120)
        others = Load.now().others(load)
        after = entries(self.server.report()[0], self.places)
        try:
            said: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            raise VmError(f"the receiver failed: {result.stderr.strip() or result.stdout.strip()}") from None
        return Run(
            mode=mode,
            queue=f"rx{QUEUE}",
            nbytes=nbytes,
            seconds=said["seconds"],
            cpu_seconds=said["cpu_seconds"],
            to_user=said["copied"] + said["linear_bytes"],
            to_device=said["copied"],
            place=self.place,
            ledger=tuple(since(before, after)),
            fault=_fault(said, nbytes),
            others=others,
        )


def _fault(said: dict[str, Any], nbytes: int) -> str | None:
    if said["errors"]:
        return str(said["first_error"])
    if said["bytes"] != nbytes:
        return f"{said['bytes']:,} bytes of {nbytes:,} arrived"
    if said["linear_bytes"]:
        return f"{said['linear_bytes']:,} bytes came outside of the dma-buf"
    return None


def set_up(stack: ExitStack, nbytes: int, accelerator: str = SWITCH, kernel: KernelChoice | None = None) -> Bench:
    """Start all that the experiment needs, for transfers of up to `nbytes` bytes; the stack ends it.

    The accelerator's memory is a BAR below the NIC's own PCIe switch (`SWITCH`) or a NUMA node (`NODE`).

    The wire is a tap in a network namespace where that can be had (root, iproute2), with the host's own TCP at its
    other end; else user-mode networking.

    Raises:
        VmError: something did not start.
    """
    check_host()
    kernel = kernel or default_kernel()
    found = kernel.find()
    require(found, (GVE, *DEVMEM))
    if accelerator == SWITCH:
        check_guest_module(found)
    tools = build_guest_tools(found.arch)
    namespace = namespace_for_taps()
    if namespace is not None:
        stack.enter_context(namespace)
        mtu = _SEGMENT + _HEADERS + _TIMESTAMPS
        server = stack.enter_context(NicServer(["--wire", "tap:tap0"], prefix=namespace.prefix))
        namespace.ip("addr", "add", "10.2.0.2/24", "dev", "tap0")
        namespace.ip("link", "set", "tap0", "mtu", str(mtu), "up")
        address, gateway = "10.2.0.1", None
        there: Callable[..., Any] = namespace.run
        reach = address, PORT

    else:
        mtu = _SEGMENT + _HEADERS
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        passt = stack.enter_context(Passt({port: PORT}, mtu=mtu))
        server = stack.enter_context(NicServer(["--wire", f"stream:{passt.socket}"]))
        address, gateway = passt.address, passt.gateway
        there, reach = _here, ("127.0.0.1", port)

    dmabuf_size = _whole_mib(nbytes * 9 // 8 + _RING_BYTES)
    guest = stack.enter_context(Guest(_config(server, accelerator, dmabuf_size, kernel)))
    guest.put(tools / "devmem_receiver", "/usr/local/bin/devmem_receiver")
    if accelerator == NODE:
        guest.run(f"echo {dmabuf_size >> 20} > /sys/module/udmabuf/parameters/size_limit_mb")
    else:
        install_guest_module(guest)
    set_up_devmem(guest, address, PORT, QUEUE, mtu=mtu, gateway=gateway)
    with Control(server.control) as control:
        place = places(guest.qmp.execute("query-pci"), control.show())[MEMORY]
    about = {
        "guest kernel": guest.kernel_version,
        "acceleration": {"kvm": "KVM", "tcg": "TCG, an emulated CPU"}.get(guest.accel, guest.accel),
        "guest CPUs": str(guest.config.vcpus),
        "accelerator's memory": f"{place}, reached through the {place.path}",
        "wire": "tap, the host's own TCP" if namespace else "user-mode networking (passt)",
        "TCP segments": f"{_SEGMENT} bytes",
    }
    return Bench(guest, server, guest.device_memory[MEMORY], dmabuf_size, place, address, there, reach, about)


def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _config(server: NicServer, accelerator: str, dmabuf_size: int, kernel: KernelChoice) -> GuestConfig:
    nics = [Nic(server.sockets[0])]
    if accelerator == NODE:
        # A node's own bookkeeping takes a sixty-fourth of it, and there should be room for what one run leaves to the
        # next.
        size = _whole_mib(dmabuf_size * 17 // 16 + (32 << 20))
        return GuestConfig(nics=nics, device_memory={MEMORY: size}, kernel=kernel)
    memory = {MEMORY: 1 << (dmabuf_size - 1).bit_length()}
    return GuestConfig(nics=nics, accelerators=memory, layout="switch", kernel=kernel)


def _whole_mib(size: int) -> int:
    """The next multiple of 2 MiB, the size of what QEMU and the kernel hand out."""
    return -(-size // (2 << 20)) * (2 << 20)


def run(bench: Bench, nbytes: int, runs: int) -> Iterator[Run]:
    """So many runs of each mode, by turns."""
    for _ in range(runs):
        for mode in MODES:
            yield bench.transfer(mode, nbytes)
