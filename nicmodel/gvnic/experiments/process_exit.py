"""The owner of a receive queue's buffers dies: ways to take its memory from the NIC, and who suffers.

A *flush* hands the buffers back on command (an option of this model), a *restart* destroys the queue and creates
another, as Linux does when a dma-buf is unbound, and a *reset* of the device is what is left without either. Traffic
comes while the queue has no buffers and when it has others. When the driver may give the memory away it is cleared, and
whatever is in it afterwards was written too late. Times are those of the driver in Python, with every command through
the socket.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nicmodel.client.results import Claim, Column, Panel, Result, Row, Table
from nicmodel.gvnic.commands import Inner, Opcode
from nicmodel.gvnic.experiments.labels import FIRST_PORT, MAC, Labelled, different, owner_of
from nicmodel.gvnic.options.flush.declarations import ALL_OWNERS, FLUSH_RX_QUEUE
from nicmodel.gvnic.profile import Profile
from nicmodel.gvnic.testing.flows import UDPv4
from nicmodel.gvnic.testing.loopback import Loopback
from nicmodel.gvnic.testing.rx import RxPacket
from nicmodel.testing.guest_memory import GuestMemory

NOTHING, FLUSH, RESTART, RESET = WAYS = ("nothing", "flush", "restart", "reset")
QUEUES = 4
#: The queue whose owner dies: the last. Queue 0 is the one that Linux does not restart by itself.
_QUEUE = QUEUES - 1
_RING, _PAYLOAD = 1024, 1000
#: The process's memory: more than the ring's buffers, bytes.
_MEMORY = 8 << 20


@dataclass(frozen=True)
class Parameters:
    """What is compared.

    Attributes:
        rounds: how often the owner dies, each way.
        frames: for each queue that come before, while the queue has no buffers, and after.
    """

    rounds: int = 10
    frames: int = 20


class _Bench:
    """A NIC whose last queue has its buffers in the memory of a process; a flow to each queue."""

    def __init__(self, frames: int) -> None:
        self.lab = Loopback(Profile(mac=MAC, queue_flush=True), ram=GuestMemory("ram", size=256 << 20))
        self.traffic = Labelled(QUEUES, _PAYLOAD)
        self.frames = frames
        self.sent: Counter[int] = Counter()
        self.received: Counter[int] = Counter()
        self.wrong_bytes = 0
        self.lab.driver.probe()
        self.memory = self.lab.driver.add_memory("hbm", _MEMORY)
        self.up()

    def up(self) -> None:
        """Interface and rules."""
        driver = self.lab.driver
        driver.open(rx_queues=QUEUES, tx_queues=1, ring_entries=_RING, header_split=True)
        for queue in range(QUEUES):
            driver.add_flow_rule(UDPv4(dst_port=FIRST_PORT + queue), queue=queue, location=queue)

    def come(self) -> None:
        """Frames for each queue."""
        queues = [queue for _ in range(self.frames) for queue in range(QUEUES)]
        self.lab.receive(*(self.traffic.frame(queue, number) for number, queue in enumerate(queues)))
        self.sent.update(queues)

    def take(self, packets: list[RxPacket]) -> None:
        """The driver has had them."""
        for packet in packets:
            self.received[owner_of(packet.header)] += 1
            self.wrong_bytes += different(self.traffic.payload(packet.header), packet.payload)

    def nothing(self, between: Callable[[], None]) -> None:
        """Tell the NIC nothing."""
        between()

    def flush(self, between: Callable[[], None]) -> None:
        """Get the buffers back by the command."""
        driver, queue = self.lab.driver, self.lab.driver.rx[_QUEUE]
        driver.extended(Inner.FLUSH_RX_QUEUE, np.array((_QUEUE, ALL_OWNERS), FLUSH_RX_QUEUE))
        between()
        queue.discard(repost=False)  # what was received has been read; the rest are buffers that come back
        queue.exchange(self.lab.ram)
        queue.post()

    def restart(self, between: Callable[[], None]) -> None:
        """Get the buffers back by a new queue (`Driver.restart_rx`)."""
        driver, old = self.lab.driver, self.lab.driver.rx[_QUEUE]
        new = driver.make_rx(_QUEUE, old.config)
        driver.admin(Opcode.DESTROY_RX_QUEUE, queue_id=_QUEUE)
        between()
        driver.admin_batch([new.create_command()])
        driver.rx[_QUEUE] = new
        new.post()
        driver.enable(driver.rx_block(_QUEUE))
        old.free()

    def reset(self, between: Callable[[], None]) -> None:
        """Get the buffers back by a reset of the device."""
        driver = self.lab.driver
        driver.release()
        between()
        driver.setup_adminq()
        driver.verify_compatibility()
        driver.setup_resources()
        self.up()

    def die(self, way: str) -> tuple[float, float, int, int]:
        """The owner dies.

        Returns:
            Seconds until the NIC could no longer write, and until the queue had other buffers; admin commands; bytes
            that were written to the memory after that.
        """
        lab = self.lab
        lab.driver.restart_rx(_QUEUE, payload_memory=self.memory)
        self.come()
        self.take(lab.driver.poll_all())
        stopped = paused = begin = 0.0

        def between() -> None:
            nonlocal stopped, paused
            stopped = time.perf_counter() - begin
            self.memory.bytes[:] = 0  # as the next owner finds it
            self.come()
            paused = time.perf_counter() - begin - stopped

        commands = sum(lab.nic.admin.executed.values())
        begin = time.perf_counter()
        getattr(self, way)(between)
        lab.run()
        done = time.perf_counter() - begin - paused
        commands = sum(lab.nic.admin.executed.values()) - commands
        self.come()
        self.take(lab.driver.poll_all())
        return stopped, done, commands, int(np.count_nonzero(self.memory.bytes))


def measure(parameters: Parameters, way: str) -> dict[str, Any]:
    """One way, several times."""
    bench = _Bench(parameters.frames)
    bench.die(way)  # what is compiled is compiled, what is mapped is mapped
    bench.sent.clear()
    bench.received.clear()
    with bench.lab:
        deaths = [bench.die(way) for _ in range(parameters.rounds)]
        stopped, done = ([death[number] * 1e6 for death in deaths] for number in (0, 1))
        lost = bench.sent - bench.received
    others = bench.sent.total() - bench.sent[_QUEUE], lost.total() - lost[_QUEUE]
    return {
        "lost_of": f"{lost[_QUEUE]:,} of {bench.sent[_QUEUE]:,}", "lost_others_of": f"{others[1]:,} of {others[0]:,}",
        "way": way, "rounds": parameters.rounds, "commands": deaths[0][2], "late": sum(death[3] for death in deaths),
        "sent": bench.sent[_QUEUE], "lost": lost[_QUEUE], "sent_others": others[0],
        "lost_others": others[1], "wrong_bytes": bench.wrong_bytes,
        "received_bytes": bench.received.total() * _PAYLOAD,
        "stopped_us": _quartiles(stopped), "done_us": _quartiles(done),
        "stopped": _spread(stopped) if way != NOTHING else None, "done": _spread(done) if way != NOTHING else None,
    }  # fmt: skip


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def _spread(values: list[float]) -> str:
    """Of times in µs, in ms: the median, and the quartiles in brackets."""
    first, median, third = (f"{value / 1000:.{0 if value >= 1e5 else 1}f}" for value in _quartiles(values))
    return f"{median} ({first}–{third})"


COLUMNS = (
    Column("way", "way"), Column("commands", "commands", ",d"), Column("stopped", "no write after, ms", ">"),
    Column("done", "other buffers after, ms", ">"), Column("late", "late, bytes", ",d"),
    Column("lost_of", "lost", ">"), Column("lost_others_of", "others lost", ">"),
)  # fmt: skip
_LEGEND = (
    "late: bytes that the NIC has written to the memory when the driver had given it away; lost: frames of the queue; "
    "others lost: frames of the other queues. Times are medians, and quartiles in brackets."
)


def conclude(parameters: Parameters, rows: Sequence[Row], about: dict[str, str]) -> Result:
    """What follows.

    Args:
        parameters: what was compared.
        rows: of each way.
        about: what the times are of: the machine.
    """
    by_way = {row["way"]: row for row in rows}
    nothing, flush, restart, reset = (by_way[way] for way in WAYS)
    told = [flush, restart, reset]
    wrong, checked = sum(row["wrong_bytes"] for row in rows), sum(row["received_bytes"] for row in rows)
    result = Result(
        name="exit",
        title="The owner of a queue's buffers dies",
        question="Must a device be reset when a process dies whose memory a queue writes to?",
        asked="reviewers of devmem TCP, in the discussion of the series",
        about={
            "each way": f"{parameters.rounds} times, {parameters.frames} frames to each of {QUEUES} queues before, "
            "while the queue had no buffers, and after",
            "device and driver": "the model behind its socket, the driver in Python, shared memory; no guest",
            **about,
        },
        tables=[Table("Taking a receive queue's buffers from the NIC", COLUMNS, rows, _LEGEND)],
        driver="With the option: FLUSH_RX_QUEUE, take back what comes with rx_error, post other buffers. Without: what "
        "Linux does, destroy the queue and create it again.",
        page="exit.md",
    )
    result.claims = [
        Claim(
            "Each payload that the driver received was whole.",
            wrong == 0 and checked > 0,
            f"{checked:,} bytes checked, {wrong:,} wrong",
        ),
        Claim(
            "If nobody tells the NIC, it writes to memory that has another owner.",
            nothing["late"] > 0,
            f"{nothing['late']:,} bytes in {nothing['rounds']} rounds",
        ),
        Claim(
            "After each of the three ways nothing is written to the memory any more.",
            not any(row["late"] for row in told),
            "; ".join(f"{row['way']}: {row['late']:,} bytes" for row in told),
        ),
        Claim(
            "A flush loses no frame of any queue.",
            flush["lost"] == flush["lost_others"] == 0 < flush["sent"],
            f"{flush['lost']:,} of {flush['sent']:,}, {flush['lost_others']:,} of {flush['sent_others']:,} of others",
        ),
        Claim(
            "A restart of the queue loses frames of that queue and of no other.",
            restart["lost"] > 0 == restart["lost_others"],
            f"{restart['lost']:,} of {restart['sent']:,}, {restart['lost_others']:,} of {restart['sent_others']:,} "
            "of others",
        ),
        Claim(
            "A reset loses frames of all queues, and takes the most commands.",
            reset["lost"] > 0 < reset["lost_others"]
            and reset["commands"] > max(flush["commands"], restart["commands"]),
            f"{reset['lost_others']:,} of {reset['sent_others']:,} of others; {reset['commands']} commands, "
            f"{restart['commands']} for a restart, {flush['commands']} for a flush",
        ),
    ]
    ways = [row["way"] for row in told]
    result.panels = [
        Panel("How soon, median", "µs, of this machine", ways, {
            "no write after": [row["stopped_us"][1] for row in told],
            "other buffers after": [row["done_us"][1] for row in told],
        }),
        Panel("Frames lost", "%", [row["way"] for row in rows], {
            "of the queue": [100 * row["lost"] / row["sent"] for row in rows],
            "of other queues": [100 * row["lost_others"] / row["sent_others"] for row in rows],
        }),
    ]  # fmt: skip
    return result
