"""The stock driver's part of ``nicmodel experiment exit``: a receiver of devmem TCP is killed under traffic.

The NIC's trace tells what its driver does about the queue whose buffers were the receiver's, and when the NIC writes to
them for the last time. The dma-buf is poisoned when the queue has been destroyed, while frames go on to come.
"""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from nicmodel.client.control import Control, ControlError
from nicmodel.client.results import Claim, Column, Result, Table
from nicmodel.vm.channel import Process
from nicmodel.vm.device_memory import DeviceMemory
from nicmodel.vm.errors import VmError
from nicmodel.vm.experiment import MEMORY, PORT, QUEUE, Bench

#: Bytes of a stream for whose receiver there is to be room.
DMABUF = 16 << 20

#: Seconds in which a guest on a busy machine does anything.
_PATIENCE = 120.0
#: Packets to the receiver before it is killed, and to its queue when that is there again.
_BEFORE, _AFTERWARDS = 50, 50
#: Admin commands that give one queue other buffers; flow rules and the NIC's time may be looked up meanwhile.
_OF_ONE_QUEUE = ("CREATE_RX_QUEUE", "DESTROY_RX_QUEUE", "EXTENDED_COMMAND", "QUERY_FLOW_RULES", "REPORT_NIC_TIMESTAMP")


@dataclass(frozen=True)
class Kill:
    """What happened when a receiver was killed.

    Attributes:
        last_write: ms from SIGKILL to the last write to the dma-buf.
        destroyed: ms to the end of the command that destroys the queue.
        created: ms to the end of the command that creates another.
        poisoned: places of the dma-buf that were poisoned in between.
        late: those of them that something was written to.
        afterwards: packets that the queue has received after that.
        others: frames that came for other queues meanwhile.
        others_lost: those of them that were dropped.
        commands: admin commands that the driver gave, other than those that concern one queue.
    """

    last_write: float
    destroyed: float
    created: float
    poisoned: int
    late: int
    afterwards: int
    others: int
    others_lost: int
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """Who is killed, and what comes meanwhile.

    Attributes:
        control: control socket of the NIC's server.
        nic: the NIC's name there.
        queue: the receive queue with the receiver's buffers.
        memory: what the dma-buf is in.
        kind: what the NIC's ledger calls it.
        receive: starts the receiver, which listens then.
        push: connects to it and sends until the connection ends.
        frames: for the receiver's queue, whether anybody listens or not.
        others: for other queues.
    """

    control: str
    nic: str
    queue: int
    memory: DeviceMemory
    kind: str
    receive: Callable[[], Process]
    push: Callable[[], None]
    frames: Sequence[bytes]
    others: Sequence[bytes]


class _Watch:
    """What the NIC does at the queue, as its trace tells it, and poison where the dma-buf was."""

    POISON = 0xA5

    def __init__(self, scene: Scene, stack: ExitStack) -> None:
        with Control(scene.control) as control:
            regions = [region for region in control.show(scene.nic)["memory"] if region["kind"] == scene.kind]
        self._memory, self._base = scene.memory.array, regions[0]["address"]
        self.events: list[dict[str, Any]] = []
        self.poisoned: set[tuple[int, int]] = set()
        self._seen: set[tuple[int, int]] = set()
        self._control = stack.enter_context(Control(scene.control))
        trace = self._control.trace(kinds=["rx", "admin"], queues=[f"rx{scene.queue}"], nic=scene.nic)
        self._thread = threading.Thread(target=self._follow, args=(trace,), daemon=True)
        self._thread.start()

    def written(self, event: dict[str, Any]) -> list[tuple[int, int]]:
        """The parts of the device memory that a received packet was written to: first byte, one past the last."""
        if event.get("kind") != "rx" or event["verdict"] != "delivered":
            return []
        starts = [
            (buffer["buffer_address"] - self._base, completion["packet_length"])
            for buffer, completion in zip(event.get("buffers", ()), event.get("completions", ()), strict=True)
        ]
        return [(start, start + count) for start, count in starts if 0 <= start < len(self._memory) and count]

    def command(self, name: str) -> dict[str, Any] | None:
        """The event of an admin command, if it was executed."""
        return next((event for event in list(self.events) if event.get("command") == name), None)

    def received_again(self) -> int:
        """Packets that the queue has received since it was created anew; 0 before."""
        created = self.command("CREATE_RX_QUEUE")
        if created is None:
            return 0
        packets = (event for event in list(self.events) if event.get("verdict") == "delivered")
        return sum(event["time"] > created["time"] for event in packets)

    def _follow(self, trace: Iterator[dict[str, Any]]) -> None:
        with suppress(OSError, ControlError):
            for event in trace:
                self.events.append(event)
                if "lost" in event:
                    continue
                self._seen.update(self.written(event))
                if event.get("command") == "DESTROY_RX_QUEUE":
                    for start, end in self._seen:
                        self._memory[start:end] = self.POISON
                    self.poisoned = set(self._seen)

    def changed(self) -> list[tuple[int, int]]:
        """Poisoned places that something was written to."""
        return [(start, end) for start, end in self.poisoned if (self._memory[start:end] != self.POISON).any()]


def kill_under_traffic(scene: Scene) -> Kill:
    """Kill a receiver while its own stream flows, and frames come that do not care whether anybody listens.

    Raises:
        VmError: the driver did nothing about it, or the NIC's trace has lost events.
    """
    with ExitStack() as stack:
        control = stack.enter_context(Control(scene.control))
        receiver = scene.receive()
        watch = _Watch(scene, stack)
        sender = threading.Thread(target=_quietly, args=(scene.push,), daemon=True)
        sender.start()
        ends = time.monotonic() + _PATIENCE
        while len(watch.events) <= _BEFORE:
            if time.monotonic() > ends:
                raise VmError("no packets came to the receiver that was to be killed")
            time.sleep(0.005)
        before = _commands(control, scene.nic)
        killed = time.monotonic_ns()
        receiver.kill(9)
        others: list[str] = []
        ends = time.monotonic() + _PATIENCE
        while watch.received_again() < _AFTERWARDS:
            answers = control.inject([*scene.frames, *scene.others], nic=scene.nic)
            others += [answer["verdict"] for answer in answers[len(scene.frames) :]]
            if time.monotonic() > ends:
                raise VmError("the receiver was killed, and its queue does not receive again")
        receiver.wait(_PATIENCE)
        sender.join(_PATIENCE)
        if sender.is_alive():
            raise VmError("the connection to a receiver that was killed does not end")
        after = _commands(control, scene.nic)
        events = list(watch.events)
        if any("lost" in event for event in events):
            raise VmError("the NIC's trace has lost events, so that the last write is not known: the host is too busy")
        destroyed, created = watch.command("DESTROY_RX_QUEUE"), watch.command("CREATE_RX_QUEUE")
        if not destroyed or not created:
            raise VmError("the driver has created a queue without having destroyed the one before")
        writes = [event["time"] for event in events if watch.written(event)]
        return Kill(
            last_write=(max(writes) - killed) / 1e6,
            destroyed=(destroyed["time"] - killed) / 1e6,
            created=(created["time"] - killed) / 1e6,
            poisoned=len(watch.poisoned),
            late=len(watch.changed()) + sum(at > destroyed["time"] for at in writes),
            afterwards=watch.received_again(),
            others=len(others),
            others_lost=sum(verdict not in ("delivered", "held") for verdict in others),
            commands=tuple(
                sorted(
                    name
                    for name in after
                    if after[name] != before.get(name)
                    and name not in [f"{command} PASSED" for command in _OF_ONE_QUEUE]
                )
            ),
        )


def _quietly(push: Callable[[], None]) -> None:
    """Send until the other end has died."""
    with suppress(OSError):
        push()


def _commands(control: Control, nic: str) -> dict[str, int]:
    """How often the NIC has executed each admin command, with what status."""
    (found,) = (each for each in control.stat() if each["name"] == nic)
    commands: dict[str, int] = found["admin"]
    return commands


def trickle(address: str, port: int) -> None:
    """Connect, and send 16 KiB each millisecond until the connection ends: so much that a trace can follow.

    Raises:
        OSError: the connection could not be made, or has ended.
    """
    with socket.create_connection((address, port), timeout=20) as connection:
        while True:
            connection.sendall(bytes(16 << 10))
            time.sleep(0.001)


def kill(bench: Bench) -> Kill:
    """Kill a receiver on the bench of ``nicmodel experiment devmem``.

    Raises:
        VmError: see `kill_under_traffic`.
    """
    with Control(bench.server.control) as control:
        (about,) = control.stat()
        mac, nic = about["mac"], about["name"]

    def receive() -> Process:
        process = bench.guest.start(
            f"devmem_receiver --interface eth0 --port {PORT} --queues {QUEUE} --size {bench.dmabuf_size}"
            f" {bench.memory.options} --no-verify"
        )
        process.expect("ready", timeout=_PATIENCE)
        return process

    ours = Ether(dst=mac) / IP(src="192.0.2.9", dst=bench.address) / TCP(dport=PORT) / (b"x" * 1400)
    others = [
        bytes(Ether(dst=mac) / IP(src="192.0.2.9", dst=bench.address) / UDP(sport=port, dport=9) / (b"x" * 100))
        for port in range(4000, 4008)
    ]
    return kill_under_traffic(
        Scene(
            control=str(bench.server.control), nic=nic, queue=QUEUE, memory=bench.memory, kind=MEMORY,
            receive=receive, push=lambda: bench.call(trickle), frames=[bytes(ours)], others=others,
        )
    )  # fmt: skip


_COLUMNS = (
    Column("kill", "SIGKILL", "d"), Column("last_write", "last write, ms", ",.1f"),
    Column("destroyed", "queue destroyed, ms", ",.1f"), Column("created", "another created, ms", ",.1f"),
    Column("poisoned", "places", ",d"), Column("late", "late", ",d"),
    Column("others", "others' frames", ",d"), Column("others_lost", "lost", ",d"),
)  # fmt: skip
_LEGEND = (
    "Times from the host's request to kill. places: of the dma-buf, poisoned when the queue was destroyed; late: those "
    "that something was written to after that; others' frames: for the other queues, from the kill on."
)


def add_kills(result: Result, found: Sequence[Kill], about: dict[str, str]) -> None:
    """Add the stock driver's part to a result.

    Args:
        result: of what needed no guest.
        found: what happened each time.
        about: the guest's circumstances.
    """
    rows = [{"kill": number, **vars(kill)} for number, kill in enumerate(found, 1)]
    result.tables.append(
        Table("The stock driver, when the receiver of a dma-buf is killed under traffic", _COLUMNS, rows)
    )
    result.about.update(about)
    commands = sorted({command for kill in found for command in kill.commands})
    times = sorted(kill.last_write for kill in found)
    result.claims += [
        Claim(
            "The stock driver destroys the queue and creates another, and resets nothing.",
            bool(found) and not commands,
            "; ".join(commands) or f"{len(found)} kills, no other admin command",
        ),
        Claim(
            "From the end of the command that destroys the queue nothing is written to the dma-buf.",
            all(kill.late == 0 < kill.poisoned for kill in found),
            f"{sum(kill.late for kill in found)} of {sum(kill.poisoned for kill in found):,} poisoned places; last "
            f"write {statistics.median(times):.1f} ms after SIGKILL ({times[0]:.1f}–{times[-1]:.1f})",
        ),
        Claim(
            "Other queues lose nothing meanwhile, and the queue receives again.",
            all(kill.others_lost == 0 < kill.others and kill.afterwards > 0 for kill in found),
            f"{sum(kill.others_lost for kill in found)} of {sum(kill.others for kill in found):,} frames lost",
        ),
    ]
