"""devmem TCP: payload of a steered flow lands in a dma-buf, and nowhere else.

The receivers are the kernel's own ncdevmem, unmodified, and ours (guest/devmem_receiver.c), which checks every fragment
and every byte. The dma-bufs lie in memory that the device's ledger tells from ordinary memory.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from lab import DEVMEM_PORT, LINK0, PLAIN_PORT, USER, Lab, wait_until
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from nicmodel.vm.channel import Process
from nicmodel.vm.devmem import send_pattern
from nicmodel.vm.kills import Kill, Scene, kill_under_traffic, trickle
from nicmodel.vm.tools import install_guest_tools

pytestmark = pytest.mark.guest

INTERFACE = USER.interface
QUEUE = 3
MIB = 1 << 20
CHUNK = 4096
#: What ``ncdevmem -v 7`` expects, over and over.
NCDEVMEM_PATTERN = b"\x01\x02\x03\x04\x05\x06\n" * 1_000_000


@pytest.fixture(scope="module")
def _tools(bench: Lab) -> None:
    install_guest_tools(bench.guest)


@pytest.fixture
def devmem(lab: Lab, _tools: None) -> Iterator[Lab]:
    """Header split on, ordinary traffic kept off the last queue; everything as before afterwards."""
    lab.split(USER, True)
    lab.run(f"ethtool -K {INTERFACE} ntuple on")
    lab.run(f"ethtool -X {INTERFACE} equal {QUEUE}")
    yield lab
    lab.run("pkill -9 ncdevmem; pkill -9 devmem_receiver; true")
    lab.run(f"ethtool -K {INTERFACE} ntuple off")
    lab.run(f"ethtool -X {INTERFACE} default")


@contextmanager
def rule(lab: Lab, port: int, queue: int) -> Iterator[None]:
    """A flow rule for a TCP port."""
    said = lab.run(f"ethtool -N {INTERFACE} flow-type tcp4 dst-port {port} action {queue}").stdout
    location = re.search(r"ID (\d+)", said)
    assert location, said
    try:
        yield
    finally:
        lab.run(f"ethtool -N {INTERFACE} delete {location[1]}")


def receiver(lab: Lab, *options: str, queues: str = str(QUEUE), seed: int = 1, size: int = 32 * MIB) -> Process:
    """Our receiver, listening."""
    process = lab.guest.start(
        f"devmem_receiver --interface {INTERFACE} --port {DEVMEM_PORT} --queues {queues} --size {size}"
        f" --node {lab.guest.device_memory['hbm'].node} --seed {seed} {' '.join(options)}"
    )
    process.expect("ready", timeout=120)
    return process


def ncdevmem(lab: Lab, first: int, queues: int) -> Process:
    """The kernel's receiver, listening; it validates what it gets and fails on linear payload."""
    process = lab.guest.start(
        f"ncdevmem -s {USER.address} -f {INTERFACE} -l -L -p {DEVMEM_PORT} -v 7 -t {first} -q {queues}"
    )
    lab.run(f"until ss -ltn | grep -q :{DEVMEM_PORT}; do sleep 0.1; done", timeout=120)
    return process


def verdict(process: Process, timeout: float = 60) -> dict[str, Any]:
    """What our receiver says at its end, which must be without complaint."""
    result = process.wait(timeout)
    assert result.status == 0, result.stdout + result.stderr
    said: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return said


def payload(report: dict[str, Any], queue: int) -> dict[str, int]:
    """Bytes written to a queue's data buffers so far, by kind of memory."""
    return dict(report["rx_queues"][queue]["dma"].get("payload", {}))


class OtherTraffic:
    """A TCP stream through the same NIC's other queues, in a thread; all of it has arrived when the block ends.

    It is a stream, not a ping-pong: gve starts its transmit queues without waking them after a queue's restart
    (gve_turnup, netif_tx_start_all_queues), so a lone packet that waited in the guest's qdisc stays there until the
    next one comes to that queue. The sender's retransmission brings it about.
    """

    def __init__(self, lab: Lab) -> None:
        self.rounds = 0
        self._lab = lab
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> OtherTraffic:
        self._sink = self._lab.guest.start(f"socat -u -b 65536 TCP-LISTEN:{PLAIN_PORT},reuseaddr - | wc -c")
        self._lab.run(f"until ss -ltn | grep -q :{PLAIN_PORT}; do sleep 0.05; done")
        self._thread.start()
        return self

    def _run(self) -> None:
        with socket.create_connection(("127.0.0.1", PLAIN_PORT), timeout=60) as connection:
            # A small buffer here, so that a round means that the guest has taken about as much.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
            while not self._stop.wait(0.005):
                connection.sendall(bytes(CHUNK))
                self.rounds += 1

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self._sink.wait(60).stdout.strip() == str(self.rounds * CHUNK)


def test_every_byte_lands_in_the_dma_buf(devmem: Lab) -> None:
    with rule(devmem, DEVMEM_PORT, QUEUE):
        process = receiver(devmem, seed=7)
        before = devmem.report(USER)
        send_pattern("127.0.0.1", DEVMEM_PORT, 40 * MIB, 7)
        said = verdict(process)
        after = devmem.report(USER)
    assert (said["bytes"], said["linear_bytes"], said["errors"]) == (40 * MIB, 0, 0)
    old, new = payload(before, QUEUE), payload(after, QUEUE)
    assert new["hbm"] - old.get("hbm", 0) >= 40 * MIB
    assert new.get("ram", 0) == old.get("ram", 0)
    assert after["dma_faults"] == before["dma_faults"]


def test_several_queues_share_one_dma_buf(devmem: Lab) -> None:
    """Two flows to two queues, both bound to one dma-buf."""
    devmem.run(f"ethtool -X {INTERFACE} equal 2")
    with rule(devmem, DEVMEM_PORT, 2):
        process = receiver(devmem, queues="2,3", seed=9, size=48 * MIB)
        before = devmem.report(USER)
        send_pattern("127.0.0.1", DEVMEM_PORT, 16 * MIB, 9)
        said = verdict(process)
        after = devmem.report(USER)
    assert (said["bytes"], said["linear_bytes"]) == (16 * MIB, 0)
    assert payload(after, 2)["hbm"] - payload(before, 2).get("hbm", 0) >= 16 * MIB


def test_after_the_receiver_the_queue_is_an_ordinary_one(devmem: Lab) -> None:
    with rule(devmem, DEVMEM_PORT, QUEUE):
        process = receiver(devmem)
        send_pattern("127.0.0.1", DEVMEM_PORT, 4 * MIB)
        verdict(process)
    with rule(devmem, PLAIN_PORT, QUEUE):
        before = devmem.report(USER)
        digest = devmem.guest.start(f"socat -u -b 65536 TCP-LISTEN:{PLAIN_PORT},reuseaddr - | wc -c")
        devmem.run(f"until ss -ltn | grep -q :{PLAIN_PORT}; do sleep 0.05; done")
        with socket.create_connection(("127.0.0.1", PLAIN_PORT), timeout=30) as connection:
            connection.sendall(bytes(8 * MIB))
        assert digest.wait(120).stdout.strip() == str(8 * MIB)
        after = devmem.report(USER)
    assert payload(after, QUEUE)["ram"] - payload(before, QUEUE).get("ram", 0) >= 8 * MIB
    assert payload(after, QUEUE).get("hbm", 0) == payload(before, QUEUE).get("hbm", 0)


@pytest.mark.parametrize("queues", [1, 2])
def test_ncdevmem_validates_what_it_receives(devmem: Lab, queues: int) -> None:
    """The kernel's test program: -v 7 wants bytes 1..6 and a newline, over and over; -L fails on linear payload.

    It sets up header split, RSS and its rule itself.
    """
    devmem.run(f"ethtool -X {INTERFACE} default")
    process = ncdevmem(devmem, 4 - queues, queues)
    with socket.create_connection(("127.0.0.1", DEVMEM_PORT), timeout=60) as connection:
        connection.sendall(NCDEVMEM_PATTERN)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
    result = process.wait(60)
    assert result.status == 0, (result.stdout + result.stderr)[-2000:]
    assert result.stdout.count("Validated buffer") >= len(NCDEVMEM_PATTERN) // 4096


def test_killed_under_traffic(devmem: Lab) -> None:
    """SIGKILL takes the binding away, the queue works normally again, and a new bind succeeds; others do not notice."""
    with OtherTraffic(devmem) as others, rule(devmem, DEVMEM_PORT, QUEUE):
        for round in range(4):
            process = receiver(devmem, seed=round)

            def push(seed: int = round) -> None:
                with suppress(OSError):
                    send_pattern("127.0.0.1", DEVMEM_PORT, 512 * MIB, seed, timeout=20)

            before = payload(devmem.report(USER), QUEUE).get("hbm", 0)
            sender = threading.Thread(target=push)
            sender.start()
            wait_until(lambda at=before: payload(devmem.report(USER), QUEUE).get("hbm", 0) > at + MIB, timeout=120)
            process.kill(9)
            process.wait(120)
            sender.join(120)
            assert not sender.is_alive()
        # Bound once more, and everything arrives.
        process = receiver(devmem, seed=99)
        send_pattern("127.0.0.1", DEVMEM_PORT, 8 * MIB, 99)
        assert verdict(process)["bytes"] == 8 * MIB
        rounds = others.rounds
        wait_until(lambda: others.rounds > rounds + 10, timeout=120)
    assert others.rounds > 40


def kill_receiver(lab: Lab) -> Kill:
    """Kill a receiver while its own stream flows, and frames come that do not care whether anybody listens."""
    head = Ether(dst=USER.mac) / IP(src="192.0.2.9", dst=USER.address)
    return kill_under_traffic(
        Scene(
            control=str(lab.server.control), nic=f"nic{USER.number}", queue=QUEUE,
            memory=lab.guest.device_memory["hbm"], kind="hbm",
            receive=lambda: receiver(lab, "--no-verify"), push=lambda: trickle("127.0.0.1", DEVMEM_PORT),
            frames=[bytes(head / TCP(dport=DEVMEM_PORT) / (b"x" * 1400))],
            others=[bytes(head / UDP(sport=port, dport=9) / (b"x" * 100)) for port in range(4000, 4004)],
        )
    )  # fmt: skip


def test_from_the_kill_to_the_last_write(devmem: Lab) -> None:
    """What the stock driver does when the owner of a dma-buf is killed: it destroys the queue, and no more.

    *Steps*: kill a receiver under traffic, three times; poison what the queue's buffers were in when the queue has been
    destroyed, while frames go on to come.

    *Verify*: the device is not reset, and nothing is written to the dma-buf from the end of the command on. How long
    that takes from the kill is printed.
    """
    with rule(devmem, DEVMEM_PORT, QUEUE):
        kills = [kill_receiver(devmem) for _ in range(3)]
    for kill in kills:
        assert 0 < kill.last_write <= kill.destroyed < kill.created and kill.commands == ()
        assert kill.poisoned > 50 and kill.late == 0 and kill.afterwards >= 50
        assert kill.others > 0 and kill.others_lost == 0
    print("\nms from SIGKILL to   the last write   the queue destroyed   another created")
    for kill in kills:
        print(f"{kill.last_write:35.2f} {kill.destroyed:21.2f} {kill.created:17.2f}")


def test_ncdevmem_killed_under_traffic(devmem: Lab) -> None:
    """The same with the kernel's own program, which leaves its rule behind when it is killed."""

    def frames() -> int:
        return int(devmem.report(USER)["rx_queues"][QUEUE]["frames"])

    def push() -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", DEVMEM_PORT), timeout=20) as connection:
            while True:
                connection.sendall(NCDEVMEM_PATTERN)

    with OtherTraffic(devmem) as others:
        for _ in range(2):
            process = ncdevmem(devmem, QUEUE, 1)
            before = frames()
            sender = threading.Thread(target=push)
            sender.start()
            wait_until(lambda at=before: frames() > at + 100, timeout=120)
            process.kill(9)
            process.wait(120)
            sender.join(120)
            assert not sender.is_alive()
            devmem.run(f"ethtool -K {INTERFACE} ntuple off; ethtool -K {INTERFACE} ntuple on")
        rounds = others.rounds
        wait_until(lambda: others.rounds > rounds + 10, timeout=120)
    # Ordinary traffic to the queue, and a new bind by another program.
    devmem.split(USER, True)
    devmem.run(f"ethtool -X {INTERFACE} equal {QUEUE}")
    with rule(devmem, DEVMEM_PORT, QUEUE):
        process = receiver(devmem, seed=5)
        send_pattern("127.0.0.1", DEVMEM_PORT, 8 * MIB, 5)
        assert verdict(process)["bytes"] == 8 * MIB


def test_memory_that_was_given_back_is_not_written(devmem: Lab) -> None:
    """After the unbind the device does not write into the device memory again, while the same flow goes on."""
    with rule(devmem, DEVMEM_PORT, QUEUE):
        process = receiver(devmem)
        send_pattern("127.0.0.1", DEVMEM_PORT, 8 * MIB)
        verdict(process)
        before = devmem.report(USER)
        sink = devmem.guest.start(f"socat -u -b 65536 TCP-LISTEN:{DEVMEM_PORT},reuseaddr - | wc -c")
        devmem.run(f"until ss -ltn | grep -q :{DEVMEM_PORT}; do sleep 0.05; done")
        with socket.create_connection(("127.0.0.1", DEVMEM_PORT), timeout=30) as connection:
            connection.sendall(b"\xa5" * (8 * MIB))
        assert sink.wait(120).stdout.strip() == str(8 * MIB)
        after = devmem.report(USER)
    assert {purpose: kinds.get("hbm", 0) for purpose, kinds in after["dma"].items()} == {
        purpose: kinds.get("hbm", 0) for purpose, kinds in before["dma"].items()
    }
    assert payload(after, QUEUE)["ram"] - payload(before, QUEUE).get("ram", 0) >= 8 * MIB


def test_a_receiver_that_knows_nothing_of_dma_bufs_gets_efault(devmem: Lab) -> None:
    with rule(devmem, DEVMEM_PORT, QUEUE):
        process = receiver(devmem, "--plain")
        with suppress(OSError):
            send_pattern("127.0.0.1", DEVMEM_PORT, MIB, timeout=10)
        result = process.wait(120)
    assert "EFAULT" in result.stdout + result.stderr or "Bad address" in result.stdout + result.stderr


def test_tokens_never_returned_exhaust_the_dma_buf(devmem: Lab) -> None:
    """Drops are counted under a name, the rest of the NIC lives, and the flow recovers when the tokens return."""
    total = 64 * MIB
    with rule(devmem, DEVMEM_PORT, QUEUE):
        process = receiver(devmem, "--no-return", seed=3, size=16 * MIB)
        before = devmem.report(USER)

        def push() -> None:
            send_pattern("127.0.0.1", DEVMEM_PORT, total, 3, timeout=90)

        sender = threading.Thread(target=push)
        sender.start()

        def drops() -> int:
            now = devmem.report(USER)["rx_queues"][QUEUE]["drops"].get("no_buffers", 0)
            return int(now - before["rx_queues"][QUEUE]["drops"].get("no_buffers", 0))

        wait_until(lambda: drops() > 0, timeout=120)
        with OtherTraffic(devmem) as others:
            wait_until(lambda: others.rounds > 100, timeout=120)
        process.kill(10)  # SIGUSR1: return tokens from now on
        sender.join(120)
        assert not sender.is_alive()
        assert verdict(process, 90)["bytes"] == total


def test_queue_0_is_refused_in_words(bench: Lab, _tools: None) -> None:
    """Gve cannot restart its first receive queue alone; our tool says what the kernel says.

    The kernel's log is not watched here: on this way out net/core/devmem.c itself warns, about a page pool that has no
    NAPI any more (page_pool_disable_direct_recycling).
    """
    bench.split(USER, True)
    result = bench.run(
        f"devmem_receiver --interface {INTERFACE} --port {DEVMEM_PORT} --queues 0 --size {16 * MIB}", check=False
    )
    assert result.status != 0
    assert "queue 0" in result.stderr and "range" in result.stderr.lower(), result.stderr


def test_payload_moves_to_its_own_queue_only(devmem: Lab) -> None:
    """A flow without a rule is ordinary TCP on the RSS queues, also while the last queue is bound."""
    with rule(devmem, DEVMEM_PORT, QUEUE):
        process = receiver(devmem)
        before = devmem.report(USER)
        sink = devmem.guest.start(f"socat -u -b 65536 TCP-LISTEN:{PLAIN_PORT},reuseaddr - | wc -c")
        devmem.run(f"until ss -ltn | grep -q :{PLAIN_PORT}; do sleep 0.05; done")
        with socket.create_connection(("127.0.0.1", PLAIN_PORT), timeout=30) as connection:
            connection.sendall(bytes(4 * MIB))
        assert sink.wait(120).stdout.strip() == str(4 * MIB)
        after = devmem.report(USER)
        send_pattern("127.0.0.1", DEVMEM_PORT, MIB)
        verdict(process)
    assert payload(after, QUEUE) == payload(before, QUEUE)
    moved = sum(payload(after, queue).get("ram", 0) - payload(before, queue).get("ram", 0) for queue in range(QUEUE))
    assert moved >= 4 * MIB


def test_the_linked_nics_saw_nothing_of_it(devmem: Lab) -> None:
    """Device memory is written by the one NIC that it is bound to."""
    for queue in devmem.report(LINK0)["rx_queues"]:
        assert "hbm" not in queue["dma"].get("payload", {})
