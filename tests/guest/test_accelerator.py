"""devmem TCP into and out of an accelerator's memory, of both kinds, and the accelerator's own view of it.

"hbm" is a PCI device's BAR: the device and the NIC are under one PCIe switch, and the module of guest/module makes
dma-bufs of it. "coherent" is a NUMA node without CPUs. A third device, "far", is on the root bus, out of the NIC's
reach. The memory of a fourth, "private", QEMU shares with nobody: the NIC reaches it by messages. All tests share one
guest.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from lab import KNOWN_FAULTS, frames_dropped, free_ports, quiet_log, wait_until
from numpy.typing import NDArray

from nicmodel.vfio_user.dma import BY_MESSAGE
from nicmodel.vm import link
from nicmodel.vm.channel import Process
from nicmodel.vm.device_memory import DeviceMemory
from nicmodel.vm.devmem import Received, mismatch, pattern, receive_pattern, send_pattern
from nicmodel.vm.guest import Guest, GuestConfig
from nicmodel.vm.layout import Nic
from nicmodel.vm.passt import Passt
from nicmodel.vm.server import NicServer
from nicmodel.vm.tools import install_guest_module, install_guest_tools

pytestmark = pytest.mark.guest

MIB = 1 << 20
PAGE = 4096
QUEUE = 3
#: A TCP segment fills two pages of a dma-buf.
MTU = 8192 + 40
PORTS = free_ports(3)
PORT = PORTS[0]
FAR = ("-object", "memory-backend-memfd,id=far,size=1M,share=on", "-device", "ivshmem-plain,id=far,memdev=far")
PRIVATE = (
    "-object", "memory-backend-ram,id=private,size=32M",
    "-device", "xio3130-downstream,id=p9,bus=switch,chassis=9,slot=9",
    "-device", "ivshmem-plain,id=private,memdev=private,bus=p9",
)  # fmt: skip
POISON = 0xA5
KINDS = ("hbm", "coherent")


class Bench:
    """The guest, its NIC, and the accelerators' memories as this process sees them."""

    def __init__(self, stack: ExitStack) -> None:
        self.passt = stack.enter_context(Passt({port: port for port in PORTS}, mtu=MTU))
        self.server = stack.enter_context(NicServer(["-v", "--check", "--wire", f"stream:{self.passt.socket}"]))
        config = GuestConfig(
            nics=[Nic(self.server.sockets[0])],
            layout="switch",
            accelerators={"hbm": 128 * MIB},
            device_memory={"coherent": 128 * MIB},
            arguments=(*FAR, *PRIVATE),
        )
        self.guest = stack.enter_context(Guest(config))
        self.run = self.guest.run
        self.memory = self.guest.device_memory
        install_guest_tools(self.guest)
        install_guest_module(self.guest)
        self.run(
            f"""
            set -e
            ip link set eth0 mtu {MTU}
            ip addr add {self.passt.address}/24 dev eth0
            ip link set eth0 up
            ip route add default via {self.passt.gateway}
            ethtool -G eth0 tcp-data-split on rx 1024
            ethtool -K eth0 ntuple on
            ethtool -X eth0 equal 1
            """
        )
        self.await_carrier()

    def await_carrier(self) -> None:
        self.run(f"until {link.is_up('eth0')}; do sleep 0.05; done", timeout=120)

    def report(self) -> dict[str, Any]:
        """State and counters of the NIC now."""
        return self.server.report()[0]

    def payload(self, queue: int, kind: str) -> int:
        """Bytes written to a queue's data buffers so far, in one kind of memory."""
        return int(self.report()["rx_queues"][queue]["dma"].get("payload", {}).get(kind, 0))

    @contextmanager
    def rule(self, port: int, queue: int) -> Iterator[None]:
        """A flow rule for a TCP port."""
        said = self.run(f"ethtool -N eth0 flow-type tcp4 dst-port {port} action {queue}").stdout
        location = re.search(r"ID (\d+)", said)
        assert location, said
        try:
            yield
        finally:
            self.run(f"ethtool -N eth0 delete {location[1]}")

    def receiver(
        self, kind: str, *options: str, port: int = PORT, queues: str = str(QUEUE), size: int = 32 * MIB
    ) -> Process:
        """Our receiver, listening; `kind` is the name of a memory, or the options that choose one."""
        memory = self.memory[kind].options if kind in self.memory else kind
        process = self.guest.start(
            f"devmem_receiver --interface eth0 --port {port} --queues {queues} --size {size}"
            f" {memory} {' '.join(options)}"
        )
        process.expect("ready", timeout=120)
        return process

    def ranges(self) -> list[str]:
        """Which programs have dma-bufs of the BAR."""
        below = self.run("sed -n '/bar_dmabuf/,/PCI Bus/p' /proc/iomem | grep -o 'devmem.*' || true").stdout
        return below.split()

    def await_no_ranges(self) -> None:
        """Wait until the last reference to a dma-buf of the BAR is gone.

        A packet that a program has read is not freed by the CPU that read it, but put on a list of the one that got it,
        which looks there when it receives again (net/core/skbuff.c, skb_attempt_defer_free). On a quiet network that
        may be never, so each CPU gets something to receive.
        """
        receive = "taskset -c $cpu ping -q -c 1 127.0.0.1"

        def gone() -> bool:
            self.run(f"ip link set lo up; for cpu in $(seq 0 $(($(nproc) - 1))); do {receive}; done")
            return not self.ranges()

        wait_until(gone)

    def stays_poisoned(self, traffic: Callable[[], None]) -> None:
        """Nobody has a dma-buf of the BAR any more; fill it, have traffic go on, and find it as it was."""
        self.await_no_ranges()
        self.memory["hbm"].array[:] = POISON
        traffic()
        assert (self.memory["hbm"].array == POISON).all()

    def ordinary_traffic(self, port: int = PORT, nbytes: int = 4 * MIB) -> None:
        """The same flow into ordinary memory, by a program that knows nothing of dma-bufs."""
        sink = self.guest.start(f"socat -u -b 65536 TCP-LISTEN:{port},reuseaddr - | wc -c")
        self.run(f"until ss -ltn | grep -q :{port}; do sleep 0.05; done", timeout=120)
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(bytes(nbytes))
        assert sink.wait(60).stdout.strip() == str(nbytes)


@pytest.fixture(scope="module")
def booted() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack)


@pytest.fixture
def uneasy(booted: Bench) -> Iterator[Bench]:
    """The bench, for tests after which the guest's kernel has reason to complain."""
    yield booted
    booted.run("pkill -9 devmem_; true")
    booted.await_no_ranges()


@pytest.fixture
def bench(uneasy: Bench) -> Iterator[Bench]:
    """The bench, with the guest's kernel log watched for trouble during the test, and its driver for faults."""
    before = uneasy.server.findings(without=KNOWN_FAULTS["gvnic"])
    with quiet_log(uneasy.guest):
        yield uneasy
    after = uneasy.server.findings(without=KNOWN_FAULTS["gvnic"])
    assert after == before, "the driver breaks the contract:\n" + after


def verdict(process: Process, timeout: float = 60) -> dict[str, Any]:
    """What our receiver says at its end, which must be without complaint."""
    result = process.wait(timeout)
    assert result.status == 0, result.stdout + result.stderr
    said: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return said


class Pushing(threading.Thread):
    """Sends the pattern to a port, a quarter of a MiB at a time, until the block ends or the other end does.

    Args:
        port: The port.
        seed: The pattern's.
        pause: Seconds between two pieces.
    """

    def __init__(self, port: int = PORT, seed: int = 1, pause: float = 0) -> None:
        super().__init__()
        self.port, self.seed, self.pause = port, seed, pause
        self.sent = 0
        self.enough = threading.Event()

    def __enter__(self) -> Pushing:
        self.start()
        return self

    def run(self) -> None:
        content = pattern(self.seed).data
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            while not self.enough.wait(self.pause):
                start = self.sent % len(content)
                self.sent += connection.send(content[start : start + MIB // 4])
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)

    def __exit__(self, *_: object) -> None:
        self.enough.set()
        self.join(120)
        assert not self.is_alive()


def lost(report: dict[str, Any]) -> dict[str, int]:
    """Drops by name, without those for want of buffers: a sender that is quicker than the guest repeats such frames."""
    return {reason: count for reason, count in frames_dropped(report).items() if reason != "no_buffers"}


def stream_in(memory: DeviceMemory, pieces: str) -> bytes:
    """The stream that lies in an accelerator's memory in pieces, each an offset and a size."""
    places = [tuple(map(int, line.split())) for line in pieces.splitlines()]
    return b"".join(memory.array[offset : offset + size].tobytes() for offset, size in places)


def pages_in(memory: DeviceMemory) -> set[bytes]:
    """The content of each page."""
    return {page.tobytes() for page in memory.array.reshape(-1, PAGE)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_in_the_accelerators_memory(bench: Bench, kind: str) -> None:
    """*Steps*: receive into a dma-buf, and return no token, so that all of it stays where it is.

    *Verify*: the guest's program through its mapping, then the accelerator in its own memory: every byte; the NIC has
    written the flow's payload there and nowhere else.
    """
    nbytes = 16 * MIB
    before = bench.report()
    with bench.rule(PORT, QUEUE):
        process = bench.receiver(kind, "--no-return", "--pieces /tmp/pieces", "--seed 7")
        send_pattern("127.0.0.1", PORT, nbytes, 7)
        said = verdict(process)
    assert (said["bytes"], said["linear_bytes"], said["errors"]) == (nbytes, 0, 0)
    after = bench.report()
    old, new = (side["rx_queues"][QUEUE]["dma"].get("payload", {}) for side in (before, after))
    assert new[kind] - old.get(kind, 0) >= nbytes
    assert new.get("ram", 0) == old.get("ram", 0)
    assert after["dma_faults"] == before["dma_faults"]
    assert lost(after) == lost(before)

    pieces = bench.guest.get("/tmp/pieces").decode()
    if kind == "hbm":
        stream = stream_in(bench.memory[kind], pieces)
        assert len(stream) == nbytes and mismatch(stream, 0, 7) is None
        return
    # Which page of the node a page of the dma-buf is only the guest's kernel knows: each must be there.
    there = pages_in(bench.memory[kind])
    position = whole = 0
    for size in (int(line.split()[1]) for line in pieces.splitlines()):
        if size == PAGE:
            expected = np.take(pattern(7), np.arange(position, position + size), mode="wrap").tobytes()
            assert expected in there, position
            whole += 1
        position += size
    assert position == nbytes and whole > nbytes // PAGE // 2


@pytest.mark.parametrize("kind", KINDS)
def test_sent_from_the_accelerators_memory(bench: Bench, kind: str) -> None:
    """The guest's program fills the dma-buf, the NIC reads it there, and the far end finds every byte."""
    nbytes = 16 * MIB
    with Receiving(seed=6) as receiving:
        before = bench.report()["dma"].get("transmit", {})
        said = bench.run(
            f"devmem_sender --interface eth0 --connect {bench.passt.gateway} --port {receiving.port} --bytes {nbytes}"
            f" --seed 6 {bench.memory[kind].options}",
            timeout=120,
        ).stdout
    assert (receiving.result.nbytes, receiving.result.mismatch) == (nbytes, None)
    assert json.loads(said)["copied"] == 0
    after = bench.report()["dma"]["transmit"]
    assert after[kind] - before.get(kind, 0) >= nbytes
    assert after.get("ram", 0) - before.get("ram", 0) < nbytes // 20


def test_memory_without_a_descriptor_is_reached_by_messages(bench: Bench) -> None:
    """The same into, and out of, memory that only QEMU itself can reach: each buffer is a message to it, and back."""
    nbytes = 2 * MIB
    private = f"--device /dev/bar_dmabuf/{bench.guest.pci_addresses()['private']}"
    before = bench.report()
    with bench.rule(PORT, QUEUE):
        process = bench.receiver(private, "--seed 8", size=8 * MIB)
        send_pattern("127.0.0.1", PORT, nbytes, 8)
        said = verdict(process)
    assert (said["bytes"], said["linear_bytes"], said["errors"]) == (nbytes, 0, 0)
    with Receiving(seed=9) as receiving:
        bench.run(
            f"devmem_sender --interface eth0 --connect {bench.passt.gateway} --port {receiving.port} --bytes {nbytes}"
            f" --size {8 * MIB} --seed 9 {private}",
            timeout=120,
        )
    assert (receiving.result.nbytes, receiving.result.mismatch) == (nbytes, None)
    after = bench.report()
    for purpose in ("payload", "transmit"):
        old, new = (side["dma"].get(purpose, {}).get(BY_MESSAGE, 0) for side in (before, after))
        assert new - old >= nbytes, purpose
    assert after["dma_faults"] == before["dma_faults"]


class Receiving(threading.Thread):
    """A server of the host's that takes one connection and compares, or keeps, what comes."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.seed = seed
        self.result = Received(0, 0, None)
        self.content = b""

    def __enter__(self) -> Receiving:
        self.start()
        return self

    def run(self) -> None:
        if self.seed:
            self.result = receive_pattern(self.listener, seed=self.seed)
            return
        connection, _ = self.listener.accept()
        with connection:
            connection.settimeout(60)
            self.content = b"".join(iter(lambda: connection.recv(MIB), b""))

    def __exit__(self, *_: object) -> None:
        self.join(60)
        self.listener.close()
        assert not self.is_alive()


def test_an_accelerator_that_works_on_the_data(bench: Bench) -> None:
    """Numbers come in over one connection, the accelerator works on them, the result goes out over another.

    No CPU of the guest's touches them: the receiver does not look, the sender sends what is there.
    """
    hbm = bench.memory["hbm"]
    numbers: NDArray[np.uint32] = np.random.default_rng(1).integers(0, 1 << 20, MIB, dtype=np.uint32)
    with bench.rule(PORT, QUEUE):
        process = bench.receiver("hbm", "--no-return", "--no-verify", "--pieces /tmp/pieces", size=16 * MIB)
        with socket.create_connection(("127.0.0.1", PORT), timeout=60) as connection:
            connection.sendall(numbers.tobytes())
        assert verdict(process)["bytes"] == numbers.nbytes
    found = np.frombuffer(stream_in(hbm, bench.guest.get("/tmp/pieces").decode()), np.uint32)
    assert found.sum(dtype=np.uint64) == numbers.sum(dtype=np.uint64)
    hbm.view("<u4", offset=64 * MIB, count=MIB)[:] = found * 3 + 1
    with Receiving() as receiving:
        bench.run(
            f"devmem_sender --interface eth0 --connect {bench.passt.gateway} --port {receiving.port}"
            f" --bytes {numbers.nbytes} --size {numbers.nbytes} --no-fill {hbm.options} --offset 64M",
            timeout=120,
        )
    assert (np.frombuffer(receiving.content, np.uint32) == numbers * 3 + 1).all()


def test_three_processes_with_three_dma_bufs_on_three_queues(bench: Bench) -> None:
    """Two of them share the BAR, one has memory of the other kind; none sees a byte of the others' streams."""
    offsets = {PORTS[0]: ("hbm", 0), PORTS[1]: ("hbm", 32 * MIB), PORTS[2]: ("coherent", 0)}
    with ExitStack() as stack:
        processes = []
        for number, (port, (kind, offset)) in enumerate(offsets.items(), 1):
            stack.enter_context(bench.rule(port, number))
            options = [f"--seed {number}", *([f"--offset {offset}"] if offset else [])]
            processes.append(bench.receiver(kind, *options, port=port, queues=str(number)))
        assert bench.ranges() == ["devmem_receiver"] * 2
        before = bench.report()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda port, seed: send_pattern("127.0.0.1", port, 16 * MIB, seed), offsets, (1, 2, 3)))
        assert [verdict(process)["bytes"] for process in processes] == [16 * MIB] * 3
        after = bench.report()
    for number, (kind, _) in enumerate(offsets.values(), 1):
        old, new = (side["rx_queues"][number]["dma"].get("payload", {}) for side in (before, after))
        assert {name: new[name] - old.get(name, 0) >= 16 * MIB for name in new if new[name] > old.get(name, 0)} == {
            kind: True
        }


def test_one_dma_buf_on_two_queues(bench: Bench) -> None:
    """A flow moves from one queue to the other meanwhile; all of it is in the dma-buf."""
    before = {queue: bench.payload(queue, "hbm") for queue in (2, 3)}
    process = bench.receiver("hbm", queues="2,3")
    with bench.rule(PORT, 2):
        with Pushing() as pushing:
            wait_until(lambda: bench.payload(2, "hbm") > before[2] + MIB, pause=0.01)
            bench.run(f"ethtool -N eth0 flow-type tcp4 dst-port {PORT} action 3 loc 0")
            wait_until(lambda: bench.payload(3, "hbm") > before[3] + MIB, pause=0.01)
        said = verdict(process)
        bench.run("ethtool -N eth0 delete 0")
    assert (said["bytes"], said["linear_bytes"]) == (pushing.sent, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_unbound_while_the_stream_goes_on(bench: Bench, kind: str) -> None:
    """The rest of the stream comes to ordinary memory: not a byte is wrong, and no other goes where the first went."""
    with bench.rule(PORT, QUEUE):
        before = bench.payload(QUEUE, kind)
        process = bench.receiver(kind, "--unbind-after 8M")
        with Pushing() as pushing:
            process.expect("unbound", timeout=120)
            written = bench.payload(QUEUE, kind)
            sent = pushing.sent
            wait_until(lambda: pushing.sent > sent + 16 * MIB)
        said = verdict(process)
        assert bench.payload(QUEUE, kind) == written
    assert said["bytes"] == pushing.sent and said["errors"] == 0
    assert 8 * MIB <= pushing.sent - said["linear_bytes"] <= written - before


@pytest.mark.parametrize("kind", KINDS)
def test_killed_while_the_stream_goes_on(bench: Bench, kind: str) -> None:
    """When the last page has come back from the network stack the NIC writes none of them any more, whatever comes."""
    for number in range(2):
        with bench.rule(PORT, QUEUE):
            process = bench.receiver(kind, f"--seed {number}", "--no-return")
            before = bench.payload(QUEUE, kind)
            with Pushing(seed=number):
                wait_until(lambda at=before: bench.payload(QUEUE, kind) > at + MIB, pause=0.01)
                process.kill(9)
                process.wait(120)
            written = bench.payload(QUEUE, kind)
            bench.stays_poisoned(bench.ordinary_traffic)
            assert bench.payload(QUEUE, kind) == written


def test_sender_killed_while_the_stream_goes_on(bench: Bench) -> None:
    """What the socket has taken is still sent, from memory that is not given back before: no poison gets out."""
    with Receiving(seed=4) as receiving:
        before = bench.report()["dma"].get("transmit", {}).get("hbm", 0)
        process = bench.guest.start(
            f"devmem_sender --interface eth0 --connect {bench.passt.gateway} --port {receiving.port} --bytes 8G"
            f" --seed 4 {bench.memory['hbm'].options}"
        )
        wait_until(lambda: bench.report()["dma"].get("transmit", {}).get("hbm", 0) > before + 4 * MIB, pause=0.01)
        process.kill(9)
        process.wait(120)
        bench.stays_poisoned(lambda: receiving.join(60))
    assert 4 * MIB < receiving.result.nbytes < 8 << 30 and receiving.result.mismatch is None


def test_what_is_bound_is_not_given_away(bench: Bench) -> None:
    """Neither by another dma-buf of the same range, nor by unloading the module."""
    with bench.rule(PORT, QUEUE):
        process = bench.receiver("hbm", size=16 * MIB)
        busy = bench.run(
            f"devmem_receiver --interface eth0 --port {PORT} --queues 2 --size 1M --offset 15M"
            f" {bench.memory['hbm'].options}",
            check=False,
        )
        assert busy.status == 1 and "Device or resource busy" in busy.stderr and "/proc/iomem" in busy.stderr
        assert "in use" in bench.run("rmmod bar_dmabuf", check=False).stderr
        send_pattern("127.0.0.1", PORT, MIB)
        assert verdict(process)["bytes"] == MIB
    bench.await_no_ranges()
    bench.run("rmmod bar_dmabuf")
    install_guest_module(bench.guest)


def test_unplugged_while_bound(bench: Bench) -> None:
    """The device goes when its memory has been given back, not before; and may come again."""
    guest = bench.guest
    with bench.rule(PORT, QUEUE):
        process = bench.receiver("hbm", size=16 * MIB)
        guest.qmp.execute("device_del", {"id": "hbm"})
        wait_until(lambda: "removal waits until all of its dma-bufs are closed and unbound" in guest.dmesg())
        send_pattern("127.0.0.1", PORT, 8 * MIB)
        assert "hbm" in guest.pci_addresses()
        assert verdict(process)["bytes"] == 8 * MIB
    wait_until(lambda: "hbm" not in guest.pci_addresses(), timeout=120)
    assert bench.run(f"test -e {bench.memory['hbm'].device}", check=False).status == 1
    # QEMU does not let the same backend be a device's memory twice; the file may be.
    file = f"/proc/self/fd/{bench.memory['hbm'].fd}"
    backend = {"qom-type": "memory-backend-file", "id": "again", "mem-path": file, "size": 128 * MIB, "share": True}
    guest.qmp.execute("object-add", backend)
    guest.qmp.execute("device_add", {"driver": "ivshmem-plain", "id": "hbm", "memdev": "again", "bus": "accelerator0"})
    bench.run(f"until test -e {bench.memory['hbm'].device}; do sleep 0.1; done", timeout=120)


def test_memory_of_a_node_is_not_taken_offline_while_bound(bench: Bench) -> None:
    node = bench.memory["coherent"].node
    with bench.rule(PORT, QUEUE):
        process = bench.receiver("coherent", size=16 * MIB)
        said = bench.run(
            f"for block in /sys/devices/system/node/node{node}/memory*; do"
            ' timeout -s INT 2 sh -c "echo offline > $block/state"; cat $block/state; done',
            check=False,
        )
        assert "online" in said.stdout.split(), said
        send_pattern("127.0.0.1", PORT, 4 * MIB)
        assert verdict(process)["bytes"] == 4 * MIB
    bench.run(f"for block in /sys/devices/system/node/node{node}/memory*; do echo online > $block/state || true; done")


def test_interface_down_with_a_binding(uneasy: Bench) -> None:
    """The queue has its dma-buf again when the interface is up. A process killed meanwhile leaves nothing behind.

    The kernel's log is not watched: net/core/netdev_rx_queue.c warns when a queue cannot be given back because the
    interface is down (gve answers EAGAIN, ENETDOWN would be quiet).
    """
    bench = uneasy
    with bench.rule(PORT, QUEUE):
        process = bench.receiver("hbm", size=16 * MIB)
        bench.run("ip link set eth0 down; ip link set eth0 up")
        bench.run(f"ip route replace default via {bench.passt.gateway}")
        bench.await_carrier()
        send_pattern("127.0.0.1", PORT, 8 * MIB)
        assert verdict(process)["linear_bytes"] == 0

        process = bench.receiver("hbm", size=16 * MIB)
        bench.run("ip link set eth0 down")
        process.kill(9)
        process.wait(120)
        bench.run(f"ip link set eth0 up; ip route replace default via {bench.passt.gateway}")
        bench.await_carrier()
        bench.stays_poisoned(bench.ordinary_traffic)
        process = bench.receiver("hbm", size=16 * MIB)
        send_pattern("127.0.0.1", PORT, 8 * MIB)
        assert verdict(process)["bytes"] == 8 * MIB


def test_a_bar_that_is_switched_off(uneasy: Bench) -> None:
    """*Steps*: clear "memory space" in the device's command register while a stream comes, then set it again.

    *Verify*: named drops and counted faults meanwhile, no other traffic harmed, not a byte in the accelerator's memory;
    afterwards TCP sends again what was lost, and the accelerator finds the whole stream.
    """
    bench = uneasy
    hbm = bench.memory["hbm"]
    config = f"/sys/bus/pci/devices/{hbm.device.rpartition('/')[2]}/config"

    def command(value: int) -> None:
        bench.run(f"printf '\\x{value:02x}\\x00' | dd of={config} bs=1 seek=4 conv=notrunc status=none")

    def lost() -> int:
        return int(bench.report()["rx_queues"][QUEUE]["drops"].get("dma_fault", 0))

    before, faults = lost(), bench.report()["dma_faults"]
    with bench.rule(PORT, QUEUE), quiet_log(bench.guest):
        process = bench.receiver("hbm", "--no-return", "--no-verify", "--pieces /tmp/pieces", size=64 * MIB)
        written = bench.payload(QUEUE, "hbm")
        with Pushing(pause=0.01) as pushing:
            wait_until(lambda: bench.payload(QUEUE, "hbm") > written + MIB, pause=0.01)
            command(0)
            wait_until(lambda: lost() > before, pause=0.01)
            untouched = bench.payload(QUEUE, "hbm")
            bench.ordinary_traffic(PORTS[1], MIB)
            assert bench.payload(QUEUE, "hbm") == untouched
            command(2)
        assert verdict(process)["bytes"] == pushing.sent
    assert bench.report()["dma_faults"] > faults
    stream = stream_in(hbm, bench.guest.get("/tmp/pieces").decode())
    assert len(stream) == pushing.sent and mismatch(stream, 0) is None


def refused(bench: Bench, options: str, tool: str = "devmem_receiver --queues 3") -> str:
    """What a tool says that does not get its way."""
    result = bench.run(f"{tool} --interface eth0 --port {PORT} {options}", check=False)
    assert result.status == 1, result.stdout
    return str(result.stderr)


def test_bad_input_is_refused_in_words(bench: Bench) -> None:
    hbm = bench.memory["hbm"].options
    assert "multiple of the page size, 4096" in refused(bench, f"--size 5000 {hbm}")
    assert "multiple of the page size, 4096" in refused(bench, "--size 5000")
    assert "the offset must be a multiple of the page size" in refused(bench, f"--size 1M --offset 100 {hbm}")
    assert "the device's memory ends before" in refused(bench, f"--size 2M --offset 127M {hbm}")
    assert "insmod bar_dmabuf.ko?" in refused(bench, "--device /dev/bar_dmabuf/none")
    assert "no device of bar_dmabuf.ko" in refused(bench, "--device /dev/null")
    assert "ethtool -l" in refused(bench, f"--size 1M {hbm}", "devmem_receiver --queues 60")
    bench.run("ethtool -G eth0 tcp-data-split off")
    said = refused(bench, f"--size 1M {hbm}")
    assert "tcp-data-split is disabled" in said and "ethtool -G <interface> tcp-data-split on" in said
    bench.run("ethtool -G eth0 tcp-data-split on")
    bench.await_carrier()
    process = bench.receiver("hbm", size=16 * MIB)
    said = refused(bench, f"--size 1M --offset 16M {hbm}")
    assert "already memory provider bound" in said and "another process" in said
    process.kill(9)


def test_a_peer_that_is_out_of_reach(bench: Bench) -> None:
    """No switch is above both, and the host bridge is not one of those that Linux trusts with it."""
    address = bench.guest.pci_addresses()["far"]
    far = f"--device /dev/bar_dmabuf/{address} --size 1M"
    for said in (
        refused(bench, far),
        refused(bench, f"{far} --connect 192.0.2.1 --bytes 1M", "devmem_sender"),
    ):
        assert "Failed to bind dmabuf to device" in said and "under one PCIe switch" in said
    assert f"provider ({address}) do not share an upstream bridge or whitelisted host bridge" in bench.guest.dmesg()


def test_queue_0_or_an_interface_that_is_down(uneasy: Bench) -> None:
    """The kernel's log is not watched: on these ways out net/core itself warns."""
    hbm = uneasy.memory["hbm"].options
    said = refused(uneasy, f"--size 16M {hbm}", "devmem_receiver --queues 0")
    assert "range" in said and "take another queue" in said
    uneasy.run("ip link set eth0 down")
    said = refused(uneasy, f"--size 16M {hbm}")
    uneasy.run(f"ip link set eth0 up; ip route replace default via {uneasy.passt.gateway}")
    uneasy.await_carrier()
    assert "ip link set <interface> up" in said


def test_a_dma_buf_that_is_too_small(bench: Bench) -> None:
    """The kernel takes it, and the NIC would run out of buffers: our program says so."""
    for size, words in ((PAGE, "has fewer buffers (1) than the rings of its queues (1 of 1024)"), (4 * MIB, "")):
        process = bench.receiver("hbm", size=size)
        process.kill(9)
        assert words in process.wait(120).stderr
